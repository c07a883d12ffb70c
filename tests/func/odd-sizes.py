# SPDX-License-Identifier: BSD-3-Clause
"""Raw disks of odd sizes, with data or zeroes in their last bytes."""
import os
import random
import subprocess
import sys

import nbd

import pull_util
from qmp_daemon import Daemon

SIZES = (1, 511, 65537, 1000001, 1048575)


def same(path, fmt='qcow2'):
    subprocess.run(['qemu-img', 'compare', '-q', '-f', fmt, '-F', 'raw', path,
                    'disk.img'], check=True)


def junk(path, size):
    """An image that is full of something else already."""
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', path,
                    str(size)], check=True)
    subprocess.run(['qemu-io', '-c', f'write -P 7 0 {(size + 511) & ~511}',
                    path], check=True, stdout=subprocess.DEVNULL)


def backup(d, **arguments):
    d.ask('drive-backup', device='disk', target='t.qcow2', format='qcow2',
          **{'job-id': 'j'}, **arguments)
    d.end_of('j')
    same('t.qcow2')
    os.unlink('t.qcow2')


def backups(d, size):
    for sync in ('full', 'top'):
        backup(d, sync=sync)
        backup(d, sync=sync, compress=True)
    for mode in ('on-success', 'always'):
        backup(d, sync='full', bitmap='b', **{'bitmap-mode': mode})
    junk('t.qcow2', size)
    backup(d, sync='full', mode='existing')
    d.ask('drive-backup', device='disk', target='t.raw', format='raw',
          sync='full', **{'job-id': 'j'})
    d.end_of('j')
    with open('t.raw', 'rb') as a, open('disk.img', 'rb') as b:
        assert a.read() == b.read()
    os.unlink('t.raw')


def incremental(d, h, size):
    d.ask('drive-backup', device='disk', target='t.qcow2', format='qcow2',
          sync='full', bitmap='b', **{'bitmap-mode': 'on-success',
                                      'job-id': 'j'})
    d.end_of('j')
    h.pwrite(b'\xab', size - 1)
    h.flush()
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 't.qcow2',
                    '-F', 'qcow2', 'inc.qcow2'], check=True)
    d.ask('drive-backup', device='disk', target='inc.qcow2', mode='existing',
          format='qcow2', sync='incremental', bitmap='b', **{'job-id': 'j'})
    d.end_of('j')
    same('inc.qcow2')
    os.unlink('t.qcow2')
    os.unlink('inc.qcow2')


def fleecing(d, h, size):
    """sync=none: what is about to change goes to the target."""
    with open('disk.img', 'rb') as f:
        then = f.read()
    d.ask('drive-backup', device='disk', target='t.qcow2', format='qcow2',
          sync='none', **{'job-id': 'j'})
    h.pwrite(b'\xcd', size - 1)
    h.flush()
    d.ask('block-job-cancel', device='j')
    d.event('BLOCK_JOB_CANCELLED')
    with open('now.img', 'wb') as f:
        f.write(then)
    subprocess.run(['qemu-img', 'compare', '-q', 't.qcow2', 'now.img',
                    '-F', 'raw'], check=True)
    os.unlink('t.qcow2')


def pull(d, size):
    begun = pull_util.begin(d, 'disk')
    c = pull_util.connect(begun['disks'][0]['uri'])
    assert c.get_size() == size
    with open('disk.img', 'rb') as f:
        assert c.pread(size, 0) == f.read()
    c.shutdown()
    pull_util.end(d, begun)


def overlay(d, h, size):
    d.ask('blockdev-snapshot-sync', **{'node-name': 'disk',
                                       'snapshot-node-name': 'over',
                                       'snapshot-file': 'over.qcow2',
                                       'format': 'qcow2'})
    h.pwrite(b'\xef', size - 1)
    h.flush()
    d.ask('block-commit', device='over', **{'job-id': 'j'})
    d.event('BLOCK_JOB_READY')
    d.ask('job-complete', id='j')
    d.event('BLOCK_JOB_COMPLETED')
    h.flush()
    same('over.qcow2')
    with open('disk.img', 'rb') as f:
        data = f.read()
    assert data[size - 1:size] == b'\xef'
    assert data[size:].strip(b'\0') == b''  # a whole sector, of zeroes


def one(size, data):
    with open('disk.img', 'wb') as f:
        f.write(data)
    with Daemon(sys.argv[1], '--blockdev',
                'raw,node-name=disk,file.driver=file,'
                'file.filename=disk.img', '--export',
                'nbd,id=e,node-name=disk,name=disk,writable=on') as d:
        d.ask('block-dirty-bitmap-add', node='disk', name='b')
        h = nbd.NBD()
        h.connect_uri('nbd+unix:///disk?socket=nbd.sock')
        backups(d, size)
        incremental(d, h, size)
        fleecing(d, h, size)
        pull(d, size)
        overlay(d, h, size)
        h.shutdown()
    for name in ('disk.img', 'over.qcow2', 'now.img'):
        os.unlink(name)


for number in SIZES:
    one(number, random.Random(number).randbytes(number))
one(SIZES[-1], bytes(SIZES[-1]))
