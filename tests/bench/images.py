# SPDX-License-Identifier: BSD-3-Clause
"""Images of bench.sh that would take long to write by way of a disk.

    holes FILE   a new image: every other cluster is there (it is always the
                 same one in the file: it is only listed), L2 tables full
    dense FILE   in the bitmap of an image, whose clusters are all there, one bit
                 in a hundred is set at random
"""
import random
import struct
import sys

CLUSTER = 65536
BITMAPS = 0x23852875
OFFSET = 0x00fffffffffffe00


def holes(f):
    f.seek(0)
    header = f.read(104)
    size, = struct.unpack('>Q', header[24:32])
    l1, = struct.unpack('>Q', header[40:48])
    data = -(-f.seek(0, 2) // CLUSTER) * CLUSTER
    per_table = CLUSTER // 8
    table = struct.pack('>QQ', data, 0) * (per_table // 2)
    tables = -(-size // (CLUSTER * per_table))
    f.seek(data)
    f.write(b'x' * CLUSTER + table * tables)
    f.seek(l1)
    f.write(struct.pack(f'>{tables}Q', *(data + (i + 1) * CLUSTER
                                         for i in range(tables))))


def dense(f):
    f.seek(0)
    head = f.read(CLUSTER)
    at, = struct.unpack('>I', head[100:104])
    while True:
        kind, length = struct.unpack('>II', head[at:at + 8])
        if kind == BITMAPS:
            break
        at += 8 + (length + 7) // 8 * 8
    directory, = struct.unpack('>Q', head[at + 24:at + 32])
    f.seek(directory)
    offset, count = struct.unpack('>QI', f.read(12))
    f.seek(offset)
    rng = random.Random(1)
    for entry in struct.unpack(f'>{count}Q', f.read(8 * count)):
        bits = bytearray(CLUSTER)
        for i in rng.sample(range(CLUSTER * 8), CLUSTER * 8 // 100):
            bits[i // 8] |= 1 << i % 8
        f.seek(entry & OFFSET)
        f.write(bits)


with open(sys.argv[2], 'r+b') as image:
    {'holes': holes, 'dense': dense}[sys.argv[1]](image)
