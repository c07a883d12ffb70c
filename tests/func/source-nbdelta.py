#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""source-nbdelta.py: see source-nbdelta.sh."""
import glob
import json
import os
import signal
import subprocess
import tempfile

import listener
from source_driver import MIB, Source, ranges, same

NBDELTA = os.environ['BUILD'] + '/nbdelta'
ID = '0123456789abcdef0123456789abcdef'
C1, C2, C3 = (f'nbdelta-{ID}-2026112{n}T000000Z' for n in (1, 2, 3))


def run(*words):
    return subprocess.run(words, check=True, text=True,
                          capture_output=True).stdout


def qmp(command, *words):
    return json.loads(run(NBDELTA, 'qmp', 'qmp.sock', command, *words))


def write(disk, *commands):
    words = [w for c in commands for w in ('-c', c)]
    run('qemu-io', '-f', 'raw', *words, f'nbd+unix:///{disk}?socket=nbd.sock')


def make_images():
    for name in ('vda', 'vdb'):
        run('qemu-img', 'create', '-q', '-f', 'qcow2', f'{name}.qcow2', '8M')
    run('truncate', '-s', '4M', 'vdc.raw')


def start(*options):
    p = subprocess.Popen([NBDELTA, 'serve', '-U', 'nbd.sock', '--qmp',
                          'qmp.sock', 'vda=vda.qcow2', 'vdb=vdb.qcow2',
                          'vdc=vdc.raw', *options], stderr=subprocess.DEVNULL)
    assert listener.wait('qmp.sock', p)
    return p


def stop(p):
    p.terminate()
    assert p.wait(60) == 0


def checkpoints():
    return sorted(c['name'] for c in qmp('checkpoint-list'))


def left():
    tmp = os.environ['TMPDIR']
    return glob.glob(f'{tmp}/nbdelta-*') + qmp('query-backups')


def one_instant_and_increments():
    daemon = start()
    write('vda', 'write -P 1 0 2M')
    with Source('qmp.sock', ID) as s:
        assert s.opened['kind'] == 'nbdelta', s.opened
        assert s.opened['version'].startswith('nbdelta '), s.opened
        assert [(d['name'], d['size'] // MIB) for d in s.opened['disks']] == [
            ('vda', 8), ('vdb', 8), ('vdc', 4)], s.opened
        disks = s.begin(C1)
        assert all(d['checkpoint'] for d in disks.values()), disks
        assert ranges(disks['vda']) == [(0, 8 * MIB)], disks
        mode = [os.stat(d).st_mode & 0o777
                for d in glob.glob(f"{os.environ['TMPDIR']}/nbdelta-{ID}.*")]
        assert mode == [0o700], mode
        run('cp', 'vda.qcow2', 'then.qcow2')
        write('vda', 'write -P 2 1M 2M')
        write('vdb', 'write -P 3 4M 64k')
        s.did('read', 'vda', 'vda.raw')
        same('vda.raw', 'then.qcow2')
        s.did('renew')
        assert checkpoints() == []
        s.did('end', 'keep')
        assert checkpoints() == [C1]
    assert left() == [], left()

    with Source('qmp.sock', ID) as s:
        assert sorted(s.ask('list')) == [[C1, d, None] for d in (
            'vda', 'vdb', 'vdc')]
        disks = s.begin(C2, f'vda={C1}', f'vdb={C1}')
        assert ranges(disks['vda']) == [(MIB, 2 * MIB)], disks
        assert ranges(disks['vdb']) == [(4 * MIB, 65536)], disks
        assert 'vdc' not in disks
        s.did('end', 'drop')
        assert checkpoints() == [C1], checkpoints()
        disks = s.begin(C2, 'vda=nosuch', f'vdb={C1}')
        assert disks['vda']['reason'] == 'no-checkpoint', disks
        assert ranges(disks['vda']) == [(0, 8 * MIB)], disks
        s.did('end', 'keep')
        s.did('forget', C1)
        s.did('forget', C1)
        assert checkpoints() == [C2]
        s.did('forget', C2)

    # A quota needs no directory.
    with Source('qmp.sock', ID, quota=2 * MIB) as s:
        s.begin(C3, 'vda')
        backup, = qmp('query-backups')
        assert backup['disks'][0]['scratch']['quota'] == 2 * MIB, backup
        s.did('end', 'drop')
    stop(daemon)


def who_goes_ends_the_session():
    daemon = start()
    for how in (None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        s = Source('qmp.sock', ID)
        s.begin(C1)
        assert len(qmp('query-backups')) == 1
        if how:
            s.signal(how)
        else:
            s.close()
        assert left() == [] and checkpoints() == [], (how, left())
    stop(daemon)


def what_a_killed_run_leaves_goes_with_the_next():
    daemon = start()
    other = 'f' * 32
    with Source('qmp.sock', other) as theirs:
        theirs.begin(f'nbdelta-{other}-20261121T000000Z', 'vdb')
        for checkpoint in (C1, '-'):
            s = Source('qmp.sock', ID)
            s.begin(checkpoint, 'vda')
            s.signal(signal.SIGKILL)
            assert len(qmp('query-backups')) == 2
            Source('qmp.sock', ID).close()
            backups = qmp('query-backups')
            assert [b['disks'][0]['node'] for b in backups] == ['vdb'], backups
        theirs.did('end', 'keep')
    assert left() == [], left()
    with Source('qmp.sock', ID) as s:
        s.did('forget', f'nbdelta-{other}-20261121T000000Z')
    stop(daemon)


def a_daemon_that_starts_again_has_no_frozen_disk():
    daemon = start()
    with Source('qmp.sock', ID) as s:
        s.begin(C1)
        daemon.kill()
        daemon.wait()
        os.unlink('qmp.sock')
        daemon = start()
        assert 'error' in s.ask('renew')
        answer = s.ask('end', 'keep')
        assert 'without its checkpoint' in answer['error'], answer
        s.ask('end', 'drop')
    assert left() == [] and checkpoints() == []
    stop(daemon)


def monitors_that_are_none_are_refused():
    daemon = start()
    for what, text in (('nbd.sock', 'does not speak QMP'),
                       ('qmp://localhost', 'is not qmp://HOST:PORT'),
                       ('qmp://127.0.0.1:1', 'refused')):
        s = Source(what, ID)
        assert text in s.opened['error'], s.opened
        s.p.stdin.close()
        s.ended(1)
    stop(daemon)


with tempfile.TemporaryDirectory(dir='/tmp') as tmp:
    os.environ['TMPDIR'] = tmp
    make_images()
    for scenario in (one_instant_and_increments, who_goes_ends_the_session,
                     what_a_killed_run_leaves_goes_with_the_next,
                     a_daemon_that_starts_again_has_no_frozen_disk,
                     monitors_that_are_none_are_refused):
        print(scenario.__name__, flush=True)
        scenario()
