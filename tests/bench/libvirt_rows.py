#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""bench.sh's rows about domains of libvirt: seconds, less is better.

    libvirt_rows.py SIZE ROUNDS

One disk of SIZE bytes, all data, then parts of it written again.  Candidates
take turns.  virtnbdbackup is Debian's; it refuses a domain that has
checkpoints of others, and so has one of its own, with a copy of the disk.
nbdcopy and qemu-img convert read what libvirt has frozen; blockdev-backup is QEMU's, of the same domain.  None of them hashes, or
knows what a point is.
"""
import os
import shutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)) + '/../func')
# pylint: disable=wrong-import-position
from bench_rows import fill, quiet, row, seconds, writes
from libvirt_backup import HERE, NBDELTA, Backups, with_libvirt

SIZE, ROUNDS = int(sys.argv[1]), int(sys.argv[2])
VIRTNBD = shutil.which('virtnbdbackup')


class Frozen:
    """A backup job of libvirt's with one export, for programs that read NBD."""

    def __init__(self, v):
        self.v = v
        with open('job.xml', 'w', encoding='utf-8') as f:
            f.write("<domainbackup mode='pull'><server transport='unix' "
                    f"socket='{HERE}/job.sock'/><disks><disk name='vda' "
                    "backup='yes' type='file'>"
                    f"<scratch file='{HERE}/job.scratch'/></disk></disks>"
                    "</domainbackup>")

    def pull(self, *words):
        self.v.virsh('backup-begin', 'vm', 'job.xml')
        quiet(*words)
        self.v.virsh('domjobabort', 'vm')


def blockdev_backup(v):
    """QEMU's own job, full."""
    quiet('qemu-img', 'create', '-q', '-f', 'qcow2', HERE + '/job.qcow2',
          str(SIZE))
    node = next(n['node-name'] for n in v.ask('vm', 'query-named-block-nodes',
                                              flat=True)
                if n['file'] == HERE + '/vda.qcow2' and n['drv'] == 'qcow2')
    v.ask('vm', 'blockdev-add', **{
        'driver': 'qcow2', 'node-name': 't', 'discard': 'unmap',
        'file': {'driver': 'file', 'filename': HERE + '/job.qcow2'}})
    v.ask('vm', 'blockdev-backup', **{'job-id': 'b', 'device': node,
                                      'target': 't', 'sync': 'full'})
    while v.ask('vm', 'query-block-jobs'):
        time.sleep(0.05)
    v.ask('vm', 'blockdev-del', **{'node-name': 't'})


def change(v, share, seed):
    for commands in writes(SIZE, share, seed):
        for name in ('vm', 'theirs')[:2 if VIRTNBD else 1]:
            v.io(name, 0, *commands)


def virtnbd(level):
    quiet(VIRTNBD, '-U', os.environ['LIBVIRT_DEFAULT_URI'], '-d', 'theirs',
          '-l', level, '-o', HERE + '/virtnbd')


def fulls(v, b):
    results = {'nbdelta': []}
    frozen = Frozen(v)
    uri = f'nbd+unix:///vda?socket={HERE}/job.sock'
    for _ in range(ROUNDS):
        shutil.rmtree(b.dir, ignore_errors=True)
        results['nbdelta'].append(seconds(b.run))
        if VIRTNBD:
            shutil.rmtree(HERE + '/virtnbd', ignore_errors=True)
            results.setdefault('virtnbdbackup', []).append(
                seconds(virtnbd, 'full'))
        for who, words in (
                ('nbdcopy', ('nbdcopy', uri, HERE + '/job.raw')),
                ('convert', ('qemu-img', 'convert', '-W', '-f', 'raw', '-O',
                             'qcow2', uri, HERE + '/job.qcow2'))):
            results.setdefault(who, []).append(seconds(frozen.pull, *words))
            for path in ('job.raw', 'job.qcow2'):
                if os.path.exists(path):
                    os.unlink(path)
        results.setdefault('blockdev-backup', []).append(
            seconds(blockdev_backup, v))
        os.unlink('job.qcow2')
    row('libvirt: full', results)


def increments(v, b):
    for share in (0.1, 0.01, 0.0001):
        results = {}
        for k in range(ROUNDS):
            change(v, share, k)
            results.setdefault('nbdelta', []).append(seconds(b.run))
            if VIRTNBD:
                results.setdefault('virtnbdbackup', []).append(
                    seconds(virtnbd, 'inc'))
        row(f'libvirt: {100 * share:g} % changed', results)


def verify(b):
    """Beside SHA-256 of the same files by coreutils, one thread."""
    results = {'nbdelta': [], 'sha256sum': []}
    for _ in range(ROUNDS):
        point = b.points()[0]
        results['nbdelta'].append(seconds(quiet, NBDELTA, 'verify',
                                          f'{b.dir}@{point}'))
        results['sha256sum'].append(seconds(quiet, 'sha256sum',
                                            b.file('vda', point)))
    row('verify', results)


def work(v):
    os.environ['LIBVIRT_DEFAULT_URI'] = v.uri
    path = HERE + '/vda.qcow2'
    fill('vda.raw', SIZE)
    quiet('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', 'vda.raw', path)
    os.unlink('vda.raw')
    v.define('vm', [('vda', path, 'qcow2', '')])
    if VIRTNBD:
        shutil.copy(path, HERE + '/theirs.qcow2')
        v.define('theirs', [('vda', HERE + '/theirs.qcow2', 'qcow2', '')])
    b = Backups(v, 'vm', 'ours')
    fulls(v, b)
    increments(v, b)
    verify(b)


sys.exit(with_libvirt(work))
