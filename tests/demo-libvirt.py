#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""demo.sh's last step: a domain of libvirt is backed up twice, and restored."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)) + '/func')
# pylint: disable=wrong-import-position
from libvirt_backup import (MIB, NBDELTA, Backups, command, image, same,
                            with_libvirt)


def show(*words):
    print('$ nbdelta', *words, flush=True)
    subprocess.run([NBDELTA, *words], check=True)


def work(v):
    os.environ['LIBVIRT_DEFAULT_URI'] = v.uri
    files = {n: image(n, size * MIB) for n, size in (('vda', 1024),
                                                     ('vdb', 256))}
    v.define('web', [(n, path, 'qcow2', '') for n, path in files.items()])
    for i in range(2):
        v.io('web', i, f'write -P {i + 1} 0 32M', 'flush')
    show('backup', 'libvirt:web', 'backups')
    v.io('web', 0, 'write -P 7 100M 1M', 'flush')
    v.io('web', 1, 'write -P 8 5M 64k', 'flush')
    show('backup', 'libvirt:web', 'backups')
    show('points', 'backups')
    show('verify', 'backups')
    show('restore', 'backups', 'vda=restored.qcow2')
    b = Backups(v, 'web', 'backups')
    for name, path in files.items():
        same(b.file(name, b.points()[-1]), path, 'qcow2')
        print(f'qemu-img compare: the last point of {name} equals the disk')
    same('restored.qcow2', files['vda'], 'qcow2')
    print('libvirt knows of the checkpoint:',
          command('virsh', '-q', '-c', v.uri, 'checkpoint-list', 'web',
                  '--name').strip())


sys.exit(with_libvirt(work))
