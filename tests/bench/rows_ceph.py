# SPDX-License-Identifier: BSD-3-Clause
"""Rows of images of Ceph, in a cluster of this machine (tests/mini-ceph.sh).

All candidates have the same librbd and OSD, which take most of the time: what
differs is what stands above them.  RSS is the server's, or the rbd command's, at
its end.  Images have a sixteenth of the size of disks.
"""
from contextlib import contextmanager
import ctypes
import os
import shutil
import subprocess
import time

from guests import flushed
from lab import Failed, Missing
from measure import Goal, Row
from peers import Disk, kind, serve

PR_SET_CHILD_SUBREAPER = 36
SCRIPT = os.path.join(os.path.dirname(os.path.dirname(
    os.path.realpath(__file__))), 'mini-ceph.sh')
MIB = 1 << 20


class Cluster:
    def __init__(self, lab):
        self.dir = lab.path('ceph')
        self.conf = self.dir + '/ceph.conf'
        self.environ = {**os.environ, 'CEPH_CONF': self.conf, 'CEPH_ARGS': ''}

    def start(self):
        # What it starts is ours: not what others take of the CPU.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        done = subprocess.run([SCRIPT, 'start', self.dir], check=False,
                              text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL)
        if done.returncode == 77:
            raise Missing(done.stdout.strip().rpartition('\n')[2])
        if done.returncode != 0:
            raise Failed(f'no cluster: {done.stdout[-500:]}')

    def stop(self):
        pids = []
        for name in ('mon', 'osd'):
            try:
                with open(f'{self.dir}/{name}.pid', encoding='ascii') as f:
                    pids.append(int(f.read()))
            except OSError:
                pass
        subprocess.run([SCRIPT, 'stop', self.dir], check=False)
        for pid in pids:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)
        shutil.rmtree(self.dir, ignore_errors=True)

    def rbd(self, lab, *words):
        """Run to its end: the KiB that it had at most."""
        p = lab.spawn(['rbd', *words], stdout=subprocess.DEVNULL,
                      stderr=subprocess.PIPE, env=self.environ)
        told = p.stderr.read()
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        lab.stop(p)
        if p.returncode != 0:
            raise Failed(f'rbd {" ".join(words)}: {told.decode()[-500:]}')
        return usage.ru_maxrss


def image_size(lab):
    return lab.size >> 4


@contextmanager
def cluster(lab):
    """With the image "disk", which is full."""
    c = Cluster(lab)
    os.environ['NBDELTA_MODULES'] = lab.programs.build_of(
        lab.programs.own_name())
    try:
        c.start()
        c.rbd(lab, 'create', '--size', f'{image_size(lab)}B', 'disk')
        with serve(lab, lab.programs.own_name(), disk(c)) as s:
            s.load('-p', 'write', '-b', '4M', '-d', '4', '-n',
                   str(image_size(lab) >> 22))
        yield c
    finally:
        c.stop()
        del os.environ['NBDELTA_MODULES']


def disk(c):
    return Disk('disk', ceph=c.conf)


def make_io(shape, what):
    def run(lab, who, c):
        with serve(lab, who, disk(c)) as s:
            s.load(*shape, '-t', '0.2')
            result = s.load(*shape, '-t', str(lab.seconds))
            return {**result, 'value': what(result),
                    'rss_mib': s.resident_kib() / 1024}
    return run


def kilo(result):
    return result['iops'] / 1e3


def mib(result):
    return result['mib_s']


def pulled(lab, s, target, **how):
    """A job of the server, until the file is durable."""
    with open(target, 'wb') as f:
        f.truncate(image_size(lab))
    start = time.monotonic()
    s.ask('blockdev-add', driver='file', node_name='t', filename=target,
          aio='io_uring')
    s.ask('blockdev-backup', job_id='j', device='disk', target='t', **how)
    s.qmp.until_no_job()
    s.ask('blockdev-del', node_name='t')
    flushed(target)
    return {'value': time.monotonic() - start,
            'rss_mib': s.resident_kib('VmHWM') / 1024}


def exported(lab, c, target, *words):
    start = time.monotonic()
    kib = c.rbd(lab, *words, '--no-progress', 'disk', target)
    flushed(target)
    return {'value': time.monotonic() - start, 'rss_mib': kib / 1024}


def full(lab, who, c):
    target = lab.path('copy.raw')
    try:
        if kind(who) == 'rbd':
            return exported(lab, c, target, 'export')
        with serve(lab, who, disk(c)) as s:
            return pulled(lab, s, target, sync='full')
    finally:
        lab.remove('copy.raw')


def a_twentieth(lab):
    """To be written, in pieces of 64K."""
    return ('-p', 'write', '-1', '-b', '64K', '-d', '8', '-n',
            str(max(1, image_size(lab) // 20 >> 16)))


def increment(lab, who, c):
    """A twentieth was written; a bitmap tells which."""
    target = lab.path('copy.raw')
    some = a_twentieth(lab)
    by_command = kind(who) == 'rbd'
    try:
        if by_command:
            c.rbd(lab, 'snap', 'create', 'disk@then')
        writer = lab.programs.own_name() if by_command else who
        with serve(lab, writer, disk(c)) as s:
            if not by_command:
                s.ask('block-dirty-bitmap-add', node='disk', name='b')
            s.load(*some)
            if not by_command:
                return pulled(lab, s, target, sync='incremental', bitmap='b')
        result = exported(lab, c, target, 'export-diff', '--from-snap', 'then')
        c.rbd(lab, 'snap', 'rm', 'disk@then')
        return result
    finally:
        lab.remove('copy.raw')


def point(lab, who, c):
    """A twentieth was written since a snapshot.  From the next one on, until it
    is durable in a file, and the older snapshot is removed."""
    target = lab.path('copy.raw')
    try:
        with serve(lab, lab.programs.own_name(), disk(c)) as s:
            first = s.ask('backup-begin', disks=[{'node': 'disk'}],
                          checkpoint='then')
            s.ask('backup-end', id=first['id'], success=True)
            s.load(*a_twentieth(lab))
            start = time.monotonic()
            if kind(who) == 'rbd':
                kib = exported_since(lab, c, target)
            else:
                pulled_since(lab, s, target)
                kib = s.resident_kib('VmHWM')
            result = {'value': time.monotonic() - start, 'rss_mib': kib / 1024}
            s.ask('checkpoint-delete', name='now')
            return result
    finally:
        lab.remove('copy.raw')


def pulled_since(lab, s, target):
    """A client of NBD gets what is dirty."""
    with open(target, 'wb') as f:
        f.truncate(image_size(lab))
    begun = s.ask('backup-begin', disks=[{'node': 'disk', 'since': 'then'}],
                  checkpoint='now')
    of_disk = begun['disks'][0]
    dirty = of_disk['context'].rpartition(':')[2]
    lab.run(['nbdcopy', '--destination-is-zero', '--request-size=65536',
             s.uri(f'{of_disk["export"]}@dirty={dirty}'), target])
    flushed(target)
    s.ask('backup-end', id=begun['id'], success=True, drop=['then'])


def exported_since(lab, c, target):
    name = 'nbdelta.checkpoint.'
    c.rbd(lab, 'snap', 'create', '--no-progress', f'disk@{name}now')
    kib = c.rbd(lab, 'export-diff', '--no-progress', '--from-snap',
                f'{name}then', f'disk@{name}now', target)
    flushed(target)
    c.rbd(lab, 'snap', 'rm', '--no-progress', f'disk@{name}then')
    return kib


def all_rows():
    servers = ['nbdelta', 'q-s-d']
    rows = []

    def add(key, title, shape, what, unit, goal):
        rows.append(Row('rbd-' + key, 'Ceph: ' + title + '; memory', unit,
                        servers, make_io(shape, what), state=cluster,
                        goals=[Goal(goal), Goal(1.1, 'rss_mib')]))

    for op in ('read', 'write'):
        for depth in (1, 16):
            add(f'{op}-4k-qd{depth}', f'4K random {op}, QD {depth}',
                ('-p', op, '-r', '-b', '4K', '-d', str(depth)), kilo, 'K/s',
                0.95)
        add(f'stream-{op}', f'1M sequential {op}, QD 4',
            ('-p', op, '-b', '1M', '-d', '4'), mib, 'MiB/s', 0.95)
    rows += [
        Row('rbd-full', 'Ceph: a whole image to a file; memory', 's',
            ['nbdelta', 'rbd', 'q-s-d'], full, 'less',
            [Goal(1.0), Goal(1.1, 'rss_mib')], state=cluster),
        Row('rbd-incremental', 'Ceph: 5 % of an image to a file (rbd: '
            'export-diff); memory', 's', ['nbdelta', 'rbd', 'q-s-d'], increment,
            'less', [Goal(1.0), Goal(1.1, 'rss_mib')], state=cluster),
        Row('rbd-point', 'Ceph: snapshot, 5 % since the last one to a file '
            '(rbd: export-diff); memory', 's', ['nbdelta', 'rbd'], point,
            'less', [Goal(1.0), Goal(1.1, 'rss_mib')], state=cluster)]
    return rows
