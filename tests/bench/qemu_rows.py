#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""bench.sh's rows about a QEMU without libvirt: seconds, less is better.

    qemu_rows.py SIZE ROUNDS

One disk of SIZE bytes, all data, then parts of it written again.  Candidates
take turns.  blockdev-backup is QEMU's own job, into qcow2 files: full, then
with a bitmap, which it clears itself.  It hashes nothing, and its file is
flushed by us, as ours is durable.  nbdcopy reads the disk by an NBD server of
the same QEMU, so of no instant."""
import os
import shutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)) + '/../func')
# pylint: disable=wrong-import-position
from bench_rows import fill, quiet, row, seconds, writes
from source_driver import Qemu

NBDELTA = os.environ['BUILD'] + '/nbdelta'
SIZE, ROUNDS = int(sys.argv[1]), int(sys.argv[2])
DEVICE = '/machine/peripheral/vda/virtio-backend'


def ours():
    quiet(NBDELTA, 'backup', 'qemu.sock', 'ours')


def flushed(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def own_job(q, name, backing, **how):
    """QEMU's own, to the end."""
    quiet('qemu-img', 'create', '-q', '-f', 'qcow2',
          *(('-u', '-F', 'qcow2', '-b', backing) if backing else ()),
          name, str(SIZE))
    q.ask('blockdev-add', driver='qcow2', node_name='t', discard='unmap',
          backing=None, file={'driver': 'file', 'filename': name})
    q.ask('blockdev-backup', job_id='b', device='vda', target='t', **how)
    while q.ask('query-block-jobs'):
        time.sleep(0.01)
    q.ask('blockdev-del', node_name='t')
    flushed(name)


def copied():
    quiet('nbdcopy', f'nbd+unix:///vda?socket={os.getcwd()}/nbd.sock',
          'copy.raw')
    flushed('copy.raw')


def fulls(q):
    results = {'nbdelta': [], 'blockdev-backup': [], 'nbdcopy': []}
    for _ in range(ROUNDS):
        shutil.rmtree('ours', ignore_errors=True)
        results['nbdelta'].append(seconds(ours))
        results['blockdev-backup'].append(
            seconds(lambda: own_job(q, 'full.qcow2', None, sync='full')))
        q.ask('nbd-server-start', addr={'type': 'unix', 'data': {
            'path': 'nbd.sock'}})
        q.ask('block-export-add', type='nbd', id='e', node_name='vda',
              name='vda')
        results['nbdcopy'].append(seconds(copied))
        q.ask('nbd-server-stop')
        os.unlink('full.qcow2')
        os.unlink('copy.raw')
    row('QEMU: full', results)


def increments(q):
    q.ask('block-dirty-bitmap-add', node='vda', name='own')
    for share in (0.1, 0.01, 0.0001):
        results = {'nbdelta': [], 'blockdev-backup': []}
        for k in range(ROUNDS):
            for commands in writes(SIZE, share, k):
                for command in commands:
                    q.io(DEVICE, command)
            results['nbdelta'].append(seconds(ours))
            results['blockdev-backup'].append(seconds(
                lambda: own_job(q, 'inc.qcow2', 'full.qcow2',
                                sync='incremental', bitmap='own')))
            os.unlink('inc.qcow2')
        row(f'QEMU: {100 * share:g} % changed', results)


fill('vda.raw', SIZE)
quiet('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', 'vda.raw', 'vda.qcow2')
os.unlink('vda.raw')
with Qemu('-blockdev', 'qcow2,node-name=vda,discard=unmap,file.driver=file,'
          'file.filename=vda.qcow2', '-device',
          'virtio-blk-pci,drive=vda,id=vda,share-rw=on') as qemu:
    fulls(qemu)
    increments(qemu)
