#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The images of rbd-many.sh, by Ceph's own library.

rbd_many.py COUNT make            i0, i1, ... in the pool "rbd"
                  change N        every seventh; N: for the N-th time
                  snapshots NAME  each has this one, or none ('')
                  compare POINT   the first eight: what dir has is what they have
                  forget-dead     clients that hold one are put on the blocklist
"""
import json
import os
import subprocess
import sys

import rados
import rbd

MIB = 1024 * 1024


def write(io, i, step):
    with rbd.Image(io, 'i%d' % i) as image:
        image.write(b'%04d%04d' % (i, step) * 512, 65536 * ((i + step) % 16))


def make(io, count):
    for i in range(count):
        rbd.RBD().create(io, 'i%d' % i, MIB)
        write(io, i, 0)


def change(io, count, step):
    for i in range(0, count, 7):
        write(io, i, int(step))


def snapshots(io, count, wanted):
    for i in range(count):
        with rbd.Image(io, 'i%d' % i, read_only=True) as image:
            names = [s['name'] for s in image.list_snaps()]
            assert names == ([wanted] if wanted else []), (i, names)


def compare(io, count, point):
    for i in range(min(count, 8)):
        name = 'i%d' % i
        with rbd.Image(io, name, read_only=True) as image, \
                open('is.raw', 'wb') as f:
            f.write(image.read(0, MIB))
        subprocess.run(['qemu-img', 'compare', '-q', '-f', 'qcow2', '-F', 'raw',
                        'dir/%s/%s.qcow2' % (name, point), 'is.raw'], check=True)


def forget_dead(cluster, io, count):
    dead = set()
    for i in range(count):
        with rbd.Image(io, 'i%d' % i, read_only=True) as image:
            dead |= {w['addr'] for w in image.watchers_list()}
    for addr in dead:
        command = {'prefix': 'osd blocklist', 'blocklistop': 'add',
                   'addr': addr}
        ret, _, text = cluster.mon_command(json.dumps(command), b'')
        assert ret == 0, text


def main(count, verb, *args):
    with rados.Rados(conffile=os.environ['CEPH_CONF']) as cluster, \
            cluster.open_ioctx('rbd') as io:
        if verb == 'forget-dead':
            forget_dead(cluster, io, count)
        else:
            {'make': make, 'change': change, 'snapshots': snapshots,
             'compare': compare}[verb](io, count, *args)


main(int(sys.argv[1]), *sys.argv[2:])
