# SPDX-License-Identifier: BSD-3-Clause
"""Rows of backups: jobs, points in time, `nbdelta backup` of images, QEMU and
domains of libvirt.  All targets are durable in the end: ours are, and the
others' files are flushed by us, in their time."""
from contextlib import contextmanager
import json
import os
import subprocess
import time

import machine
from guests import LibvirtGuest, QemuGuest, flushed
from lab import Failed, own
from measure import Goal, Row
from peers import Disk, Server, daemon_words, kind, serve, variant
from rows_io import disk_of, hot

BOTH = ['nbdelta', 'q-s-d']


# Jobs of the daemon.

def job(s, target, **how):
    """blockdev-backup into an image that is there: QEMU's commands, which both
    daemons know.  Returns seconds."""
    begin = time.monotonic()
    s.ask('blockdev-add', driver='qcow2', node_name='t', discard='unmap',
          file={'driver': 'file', 'filename': target, 'aio': 'io_uring'})
    s.ask('blockdev-backup', job_id='j', device='disk', target='t', **how)
    s.qmp.until_no_job()
    s.ask('blockdev-del', node_name='t')
    flushed(target)
    return time.monotonic() - begin


def our_full(s, target):
    begin = time.monotonic()
    s.ask('drive-backup', job_id='j', device='disk', target=target,
          format='qcow2', sync='full')
    s.qmp.until_no_job()
    return time.monotonic() - begin


def target_path(lab, in_memory):
    path = (lab.in_memory() if in_memory else lab.dir) + '/target.qcow2'
    if os.path.exists(path):
        os.unlink(path)
    return path


def convert(lab, source, target):
    begin = time.monotonic()
    lab.run(lab.programs.in_tree('qemu-img') + [
        'convert', '-W', '-f', 'qcow2', '-O', 'qcow2', source, target])
    flushed(target)
    return time.monotonic() - begin


def make_full(image, in_memory=False):
    def run(lab, who, _):
        source = lab.images.get(image)
        target = target_path(lab, in_memory)
        if kind(who) == 'convert':
            seconds = convert(lab, source, target)
        else:
            with serve(lab, who, Disk(source, 'qcow2')) as s:
                if own(who):
                    seconds = our_full(s, target)
                else:
                    size = '1T' if image == 'empty1t.qcow2' else str(lab.size)
                    lab.img('create', '-q', '-f', 'qcow2', target, size)
                    seconds = job(s, target, sync='full')
        os.unlink(target)
        return {'value': seconds}
    return run


def make_increment(share, in_memory=False):
    """So much of a disk was written, in pieces of 64K."""
    def run(lab, who, _):
        target = target_path(lab, in_memory)
        lab.img('create', '-q', '-f', 'qcow2', target, str(lab.size))
        count = max(1, int(lab.size * share) >> 16)
        with serve(lab, who, disk_of(lab, 'qcow2')) as s:
            s.ask('block-dirty-bitmap-add', node='disk', name='b')
            s.load('-p', 'write', '-1', '-b', '64K', '-d', '8', '-n',
                   str(count))
            os.sync()
            seconds = job(s, target, sync='incremental', bitmap='b')
            s.ask('block-dirty-bitmap-remove', node='disk', name='b')
        os.unlink(target)
        return {'value': seconds}
    return run


def remote(lab, who, _):
    """Into an export of another server."""
    target = lab.path('target.raw')
    with open(target, 'wb') as f:
        f.truncate(lab.size)
    far = Server(lab, 'qemu-nbd', ['qemu-nbd', '-t', '-f', 'raw',
                                   '--discard=unmap', '-k', lab.path('far'),
                                   target], lab.path('far'))
    with far, serve(lab, who, disk_of(lab, 'qcow2')) as s:
        begin = time.monotonic()
        s.ask('blockdev-add', driver='nbd', node_name='t', discard='unmap',
              server={'type': 'unix', 'path': far.sock})
        s.ask('blockdev-backup', job_id='j', device='disk', target='t',
              sync='full')
        s.qmp.until_no_job()
        seconds = time.monotonic() - begin
    lab.remove('target.raw')
    return {'value': seconds}


def job_rows():
    full = ['nbdelta', 'q-s-d', 'convert']
    disk = hot('disk.qcow2')
    # convert reads the file itself, of no instant, with no daemon.
    goals = [Goal(0.35, of='q-s-d'), Goal(1.0, of='convert')]
    return [
        Row('backup-full', 'full backup of a disk to qcow2', 's', full,
            make_full('disk.qcow2'), 'less', goals, hot=disk),
        Row('backup-full-tmpfs', 'full backup of a disk to qcow2 on a tmpfs',
            's', full, make_full('disk.qcow2', True), 'less', goals,
            hot=disk),
        Row('backup-inc-10', 'incremental backup, 10 % in 64K', 's', BOTH,
            make_increment(0.1), 'less', [Goal(0.45)], hot=disk),
        Row('backup-inc-10-tmpfs', 'incremental backup, 10 % in 64K, tmpfs',
            's', BOTH, make_increment(0.1, True), 'less', [Goal(0.45)],
            hot=disk),
        Row('backup-empty-1t', 'full backup of an empty disk of 1 TiB', 's',
            BOTH, make_full('empty1t.qcow2'), 'less', [Goal(0.01)], rounds=2),
        Row('backup-remote', 'full backup of a disk to an NBD export', 's',
            BOTH, remote, 'less', hot=disk, needs=['qemu-nbd'])]


# Points in time: a guest writes where nothing was kept yet.

def cbw_words(lab, who, disk):
    """copy-before-write and snapshot-access by options, for both daemons."""
    words = daemon_words(lab, who, disk)
    scratch = lab.images.new('scratch.qcow2', lab.size)
    at = words.index('--nbd-server')
    nodes = [f'driver=file,node-name=sf,filename={scratch},aio=io_uring',
             'driver=qcow2,node-name=scratch,file=sf',
             'driver=copy-before-write,node-name=cbw,file=disk,target=scratch',
             'driver=snapshot-access,node-name=past,file=cbw']
    more = [w for n in nodes for w in ('--blockdev', n)]
    words = words[:at] + more + words[at:]
    export = words.index('--export') + 1
    words[export] = words[export].replace('node-name=disk', 'node-name=cbw')
    return words[:export + 1] + ['--export',
                                 'type=nbd,id=p,node-name=past,name=past'] + \
        words[export + 1:]


def pull_begin(s, *options):
    """backup-begin: what it tells."""
    return json.loads(s.lab.run(s.lab.programs.nbdelta(s.who) + [
        'backup-begin', s.monitor, '--scratch', s.lab.dir, '--output', 'json',
        *options]))


def pull_end(s, told):
    s.lab.run(s.lab.programs.nbdelta(s.who) + ['backup-end', s.monitor,
                                               told['id']])


@contextmanager
def past_of(lab, who):
    """A server with a point open: (server, URI of the past).  Variants: begin
    (ours: backup-begin), without (no point)."""
    disk = disk_of(lab, 'qcow2')
    if variant(who) in ('begin', 'without'):
        with serve(lab, who, disk) as s:
            if variant(who) == 'without':
                yield s, None
                return
            told = pull_begin(s, '--disk=disk')
            yield s, told['disks'][0]['uri']
            pull_end(s, told)
        return
    with Server(lab, who, cbw_words(lab, who, disk), lab.path('sock'),
                lab.path('qmp')) as s:
        yield s, s.uri('past')
    lab.remove('scratch.qcow2')


def first_touch(lab, who, _):
    count = min(lab.size >> 16, 1 << 16)
    with past_of(lab, who) as (s, _):
        result = s.load('-p', 'write', '-1', '-g', '64K', '-b', '4K', '-d',
                        '16', '-n', str(count))
    return {**result, 'value': result['iops'] / 1e3}


def while_pulled(lab, who, _):
    with past_of(lab, who) as (s, past):
        pull = past and lab.spawn(['nbdcopy', past, 'null:'])
        result = s.load('-p', 'write', '-r', '-b', '4K', '-d', '16', '-t',
                        str(lab.seconds))
        if pull and pull.wait() != 0:
            raise Failed('nbdcopy failed')
        if pull:
            lab.stop(pull)
    return {**result, 'value': result['iops'] / 1e3}


def point_rows():
    goals = [Goal(2.5), Goal(0.5, 'cpu_us'),
             Goal(3, 'p99_us', of='nbdelta+without')]
    disk = hot('disk.qcow2')
    return [
        Row('first-touch-begin', "a guest's first 4K write in each 64K, QD 16, "
            'while a point is open (backup-begin)', 'K/s',
            ['nbdelta+begin', 'q-s-d', 'nbdelta+without'], first_touch,
            goals=goals, hot=disk),
        Row('first-touch-cbw', "a guest's first 4K write in each 64K, QD 16, "
            'while a point is open (copy-before-write)', 'K/s',
            ['nbdelta+cbw', 'q-s-d', 'nbdelta+without'], first_touch,
            goals=goals, hot=disk),
        Row('guest-while-pulled', "a guest's 4K random writes, QD 16, while "
            'the past is pulled', 'K/s',
            ['nbdelta+begin', 'q-s-d', 'nbdelta+without'], while_pulled,
            hot=disk, needs=['nbdcopy'])]


# `nbdelta backup`.

def make_backup_dir(lab, who, directory):
    lab.remove(directory)
    begin = time.monotonic()
    lab.run(lab.programs.nbdelta(who) + ['backup', lab.images.get('disk.qcow2'),
                                         lab.path(directory)])
    return time.monotonic() - begin


def backup_image(lab, who, _):
    if own(who):
        seconds = make_backup_dir(lab, who, 'points')
        lab.remove('points')
        return {'value': seconds}
    target = target_path(lab, False)
    seconds = convert(lab, lab.images.get('disk.qcow2'), target)
    os.unlink(target)
    return {'value': seconds}


class Points:
    """A backup directory with one point, to be verified."""

    def __init__(self, lab):
        self.lab = lab
        make_backup_dir(lab, lab.programs.own_name(), 'points')
        self.files = [os.path.join(d, f) for d, _, names in
                      os.walk(lab.path('points')) for f in names
                      if f.endswith('.qcow2')]

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.lab.remove('points')


def verify(lab, who, points):
    for path in points.files:
        machine.make_resident(path)
    if own(who):
        return {'value': lab.timed(lab.programs.nbdelta(who) +
                                   ['verify', lab.path('points')])}
    return {'value': lab.timed(['sha256sum', *points.files])}


def guest_rows(prefix, title, guest, fulls, increments):
    """Full, and after changes."""
    def full(lab, who, state):
        return {'value': state.full(who)}

    def increment(lab, who, state):
        return {'value': state.increment(who)}

    rows = [Row(prefix + '-full', title + ': full backup', 's', fulls, full,
                'less', state=guest)]
    for share, word in ((0.1, '10'), (0.01, '1'), (0.0001, '0.01')):
        rows.append(Row(f'{prefix}-inc-{word}',
                        f'{title}: {word} % has changed', 's', increments,
                        increment, 'less',
                        state=lambda lab, share=share: guest(lab, share)))
    for row in rows:
        row.needs = ['libvirt'] if prefix == 'libvirt' else ['qemu']
    return rows


def tool_rows():
    return [
        Row('image-full', 'nbdelta backup of an image', 's',
            ['nbdelta', 'convert'], backup_image, 'less',
            hot=hot('disk.qcow2')),
        Row('verify', 'nbdelta verify, beside SHA-256 of the same file', 's',
            ['nbdelta', 'sha256sum'], verify, 'less', state=Points)] + \
        guest_rows('qemu', 'QEMU', QemuGuest,
                   ['nbdelta', 'blockdev-backup', 'nbdcopy'],
                   ['nbdelta', 'blockdev-backup']) + \
        guest_rows('libvirt', 'libvirt', LibvirtGuest,
                   ['nbdelta', 'virtnbdbackup', 'nbdcopy', 'convert',
                    'blockdev-backup'], ['nbdelta', 'virtnbdbackup'])


# A point of the largest disk.

def begin_end(lab, who, _):
    path = lab.images.new('vast.qcow2', '1T' if lab.quick else '64T')
    with serve(lab, who, Disk(path, 'qcow2')) as s:
        pull_end(s, pull_begin(s, '--disk=disk', '--checkpoint=first'))
        s.load('-p', 'write', '-1', '-g', '1G', '-n', '512', '-d', '8')
        with open(f'/proc/{s.process.pid}/clear_refs', 'w',
                  encoding='ascii') as f:
            f.write('5')  # the peak begins anew
        before = s.resident_kib()
        begin = time.monotonic()
        pull_end(s, pull_begin(s, '--disk=disk,since=first',
                               '--checkpoint=second'))
        seconds = time.monotonic() - begin
        # With a guest that writes they take as long as its bytes take to the
        # disk.  That it need not wait is what counts.
        guest = lab.spawn(s.load_words('-p', 'write', '-r', '-S', '1G', '-d',
                                       '4', '-t', '3'),
                          stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        pull_end(s, pull_begin(s, '--disk=disk,since=second',
                               '--checkpoint=third'))
        peak = s.resident_kib('VmHWM')
        result = json.loads(guest.communicate()[0])
        lab.stop(guest)
    lab.remove('vast.qcow2')
    return {'value': seconds, 'rss_mib': (peak - before) / 1024,
            'stall_ms': result['max_us'] / 1e3}


def begin_rows():
    return [Row('begin-end-64t', 'backup-begin and -end on 64 TiB, '
                'incremental: time; memory, and the worst stall of a guest '
                'that writes', 's',
                ['nbdelta'],
                begin_end, 'less',
                [Goal(0.3, of='absolute'), Goal(40, 'rss_mib', of='absolute'),
                 Goal(10, 'stall_ms', of='absolute')])]


def all_rows():
    return job_rows() + point_rows() + begin_rows() + tool_rows()
