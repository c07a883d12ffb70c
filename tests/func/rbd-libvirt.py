#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The work of rbd-libvirt.sh."""
import os
import re
import subprocess
import sys

from libvirt_backup import Backups, same, with_libvirt

CONF = os.environ['CEPH_CONF']
with open(CONF, encoding='utf-8') as conf:
    PORT = re.search(r'mon host = .*:(\d+)', conf.read()).group(1)


def disk(target, image, fmt):
    return (f"<disk type='network' device='disk'>"
            f"<driver name='qemu' type='{fmt}'/>"
            f"<source protocol='rbd' name='rbd/{image}'>"
            f"<host name='127.0.0.1' port='{PORT}'/>"
            f"<config file='{CONF}'/></source>"
            f"<target dev='{target}' bus='virtio'/></disk>")


def backups(v):
    text = v.xml('vm', []).replace('</devices>', disk('vda', 'a', 'raw') +
                                   disk('vdb', 'b', 'qcow2') + '</devices>')
    with open('vm.xml', 'w', encoding='utf-8') as f:
        f.write(text)
    v.virsh('define', 'vm.xml')
    v.virsh('start', '--paused', 'vm')
    b = Backups(v, 'vm', 'dir')

    def right():
        for name, image, fmt in ('vda', 'a', 'raw'), ('vdb', 'b', 'qcow2'):
            subprocess.run(['qemu-img', 'convert', '-U', '-f', fmt, '-O', 'raw',
                            f'rbd:rbd/{image}:conf={CONF}', 'is.raw'],
                           check=True)
            same(b.file(name), 'is.raw')

    for n in 0, 1:
        v.io('vm', n, 'write -P 1 1M 1M', 'flush')
    done = b.run()
    assert {d['kind'] for d in done.values()} == {'full'}, done
    right()
    for n in 0, 1:
        v.io('vm', n, 'write -P 2 2M 64k', 'flush')
    done = b.run()
    assert done['vdb']['kind'] == 'increment', done
    assert done['vda']['kind'] == 'compared', done
    assert done['vda']['written'] == 65536, done
    right()


sys.exit(with_libvirt(backups))
