#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The work of backup-resume-libvirt.sh."""
import glob
import json
import os
import signal
import subprocess
import sys
import time

from libvirt_backup import (MIB, Backups, copy_of, image, same, until,
                            with_libvirt)

FAULTY = os.environ['BUILD'] + '/tests/func/faulty'
DISKS = ('vda', 'vdb')
SIZE = 16 * MIB


def flushed(path):
    """Bytes that a part has on disk."""
    done = subprocess.run(['qemu-img', 'map', '-U', '--output=json', path],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          check=False)
    return sum(e['length'] for e in json.loads(done.stdout or '[]')
               if e['depth'] == 0 and e['data'])


class Domain:
    def __init__(self, v):
        self.v = v
        self.files = {n: image(n, SIZE) for n in DISKS}
        v.define('vm', [(n, path, 'qcow2', '')
                        for n, path in self.files.items()])
        self.b = Backups(v, 'vm', 'dir')

    def write(self, *commands):
        for i in range(len(DISKS)):
            self.v.io('vm', i, *commands, 'flush')

    def freeze(self):
        """Keep copies of what the disks have now."""
        for n, path in self.files.items():
            copy_of(path, n + '.frozen')

    def noted(self):
        """It can be gone on with."""
        return (self.state() or {}).get('what') is not None

    def state(self):
        try:
            with open(self.b.dir + '/resume.json', encoding='utf-8') as f:
                return json.load(f)
        except FileNotFoundError:
            return None

    def set_state(self, state):
        with open(self.b.dir + '/resume.json', 'w', encoding='utf-8') as f:
            json.dump(state, f)

    def copied(self):
        parts = glob.glob(self.b.dir + '/vd?/*.qcow2.part')
        time.sleep(0.2)
        return len(parts) == 2 and min(map(flushed, parts)) >= MIB // 2

    def cut_off(self, when, *options):
        """A run that is killed; its point.  The disks change afterwards."""
        run = self.b.start('--rate=2M', *options)
        until('it copies', lambda: when() or run.p.poll() is not None)
        run.p.kill()
        run.wait()
        assert run.status == -signal.SIGKILL, (run.status, run.err)
        assert self.b.busy()
        self.write('write -P 99 1M 1M', 'write -P 98 11M 2M')
        return self.state()['point']

    def right(self):
        for n in DISKS:
            same(self.b.file(n), n + '.frozen')
        self.b.verify()
        self.b.clean()
        assert not self.state()
        assert [c.split('-')[-1] for c in self.b.checkpoints()] == \
            [self.b.point], self.b.checkpoints()
        for path in self.files.values():
            assert list(self.v.bitmaps('vm', path)) == self.b.checkpoints()

    def gone_on(self, point, kind):
        """The next run has gone on with @point, and not read it all again."""
        disks = self.b.run()
        assert self.b.point == point, (self.b.point, point)
        for d in disks.values():
            assert d['kind'] == kind and 0 < d['read'] <= 12 * MIB - MIB // 2, d
        self.right()

    def begins_again(self, point):
        done = self.b.try_run('--output=json')
        assert done.status == 0, (done.status, done.err)
        assert len(done.err.splitlines()) == 1, done.err
        assert 'begun again' in done.err, done.err
        self.b.point = json.loads(done.out)['point']
        assert self.b.point != point
        self.right()


def work(v):
    d = Domain(v)
    b = d.b
    # A full, cut off twice; libvirt's daemon starts anew in between.
    d.write('write -P 1 0 12M')
    d.freeze()
    point = d.cut_off(d.copied)
    v.end(signal.SIGKILL)
    v.start()
    xml = v.virsh('backup-dumpxml', 'vm')
    run = b.start('--rate=1M')
    time.sleep(1.5)
    run.p.kill()
    run.wait()
    assert v.virsh('backup-dumpxml', 'vm') == xml, 'there is another job'
    d.gone_on(point, 'full')

    # An increment.
    d.write('write -P 2 2M 12M')
    d.freeze()
    d.gone_on(d.cut_off(d.copied), 'increment')

    # Somebody has aborted the job.
    d.write('write -P 3 2M 2M')
    point = d.cut_off(d.noted)
    v.virsh('domjobabort', 'vm')
    until('the job ends', lambda: not b.busy())
    d.freeze()
    d.begins_again(point)

    # It is a job of ours, of another instant.
    d.write('write -P 4 2M 2M')
    point = d.cut_off(d.noted)
    state = d.state()
    state['what']['identity']['instant'] = '0123456789abcdef'
    d.set_state(state)
    d.freeze()
    d.begins_again(point)

    # It is there, and begin cannot have it.
    d.write('write -P 5 2M 2M')
    point = d.cut_off(d.noted)
    state = d.state()
    state['what']['identity']['disks'][0]['since'] = 'else'
    d.set_state(state)
    d.freeze()
    d.begins_again(point)

    # All is copied, and the point is pending: it is finished.
    for when in 'after:.json.pending', 'before:Z.json':
        d.write('write -P 7 2M 2M')
        d.freeze()
        before = b.points()
        run = b.start(env=os.environ | {'FAULTY_NAME': when}, program=FAULTY)
        run.wait()
        assert run.status == -signal.SIGKILL, (run.status, run.err)
        d.write('write -P 8 5M 64k')
        assert all(x['read'] == 65536 for x in b.run().values())
        point = b.points()[-2]
        assert len(b.points()) == len(before) + 2
        for n in DISKS:
            same(b.file(n, point), n + '.frozen')
        d.freeze()
        d.right()

    # A run that finds it, and makes no point, ends it.
    d.write('write -P 6 2M 2M')
    before = b.checkpoints()
    d.cut_off(d.noted)
    b.refused('--hook=[ "$NBDELTA_WHEN" != before ] #')
    assert not b.busy() and b.checkpoints() == before


sys.exit(with_libvirt(work))
