#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Write an image whose header claims the most that the format allows.

The files are sparse.  What a table needs to be taken seriously is there.
Usage: qcow2-memory.py SHAPE FILE
"""

import array
import struct
import sys

MiB = 1 << 20
L1_BYTES = 32 * MiB
REFTABLE_BYTES = 8 * MiB
SNAPSHOTS = 65536


def header(bits, **fields):
    size = fields.get('size', MiB)
    return struct.pack(
        '>4sIQIIQIIQQIIQQQQII', b'QFI\xfb', 3, 0, 0, bits, size, 0,
        fields.get('l1_size', 1), fields.get('l1', 4 * MiB),
        fields.get('reftable', 2 * MiB), fields.get('reftable_clusters', 1),
        fields.get('snapshots', 0), fields.get('snapshot_table', 0),
        0, 0, 0, 4, 104)


def entries(first, step, count, flags=0):
    first |= flags
    table = array.array('Q', range(first, first + step * count, step)
                        if step else [first] * count)
    if sys.byteorder == 'little':
        table.byteswap()
    return table.tobytes()


def write(name, length, *parts):
    with open(name, 'wb') as f:
        for offset, data in parts:
            f.seek(offset)
            f.write(data)
        f.truncate(length)


def plain(name):
    write(name, 8 * MiB, (0, header(16)))


def empty_l1(name):
    write(name, 64 * MiB, (0, header(16, l1_size=L1_BYTES // 8)))


def one_table_for_all(name):
    table = entries(40 * MiB, 0, L1_BYTES // 8, 1 << 63)
    write(name, 64 * MiB, (0, header(16, l1_size=L1_BYTES // 8)),
          (4 * MiB, table))


def tables_of_512(name):
    """The smallest clusters, and a table of its own for each entry."""
    count = L1_BYTES // 8
    write(name, 64 * MiB + 512 * count, (0, header(9, l1_size=count)),
          (4 * MiB, entries(64 * MiB, 512, count, 1 << 63)))


def tables_far_apart(name):
    """Each behind the end of the file."""
    count = L1_BYTES // 8
    write(name, 64 * MiB, (0, header(16, l1_size=count)),
          (4 * MiB, entries(1 << 40, 1 << 32, count, 1 << 63)))


def refblocks(name):
    count = REFTABLE_BYTES // 8
    write(name, 64 * MiB,
          (0, header(16, reftable=8 * MiB,
                     reftable_clusters=REFTABLE_BYTES >> 16)),
          (8 * MiB, entries(1 << 40, 1 << 32, count)))


def snapshots(name):
    """65536 of them, with the largest L1 table that a name can share."""
    one = struct.pack('>QIHHIIQII', 4 * MiB, L1_BYTES // 8, 1, 1, 0, 0, 0, 0,
                      16)
    one += struct.pack('>QQ', 0, MiB) + b'1n'
    one += bytes(-len(one) % 8)
    write(name, 128 * MiB,
          (0, header(16, snapshots=SNAPSHOTS, snapshot_table=64 * MiB)),
          (4 * MiB, entries(1 << 40, 1 << 32, L1_BYTES // 8)),
          (64 * MiB, one * SNAPSHOTS))


def everything(name):
    """The largest of all tables at once."""
    count = L1_BYTES // 8
    one = struct.pack('>QIHHIIQII', 4 * MiB, 1, 1, 210, 0, 0, 0, 0, 0)
    one += b'1' + b'n' * 210
    one += bytes(-len(one) % 8)
    write(name, 128 * MiB,
          (0, header(16, l1_size=count, reftable=48 * MiB,
                     reftable_clusters=REFTABLE_BYTES >> 16,
                     snapshots=SNAPSHOTS, snapshot_table=64 * MiB)),
          (4 * MiB, entries(1 << 40, 1 << 32, count, 1 << 63)),
          (48 * MiB, entries(1 << 50, 1 << 32, REFTABLE_BYTES // 8)),
          (64 * MiB, one * SNAPSHOTS))


SHAPES = {f.__name__: f for f in (
    plain, empty_l1, one_table_for_all, tables_of_512, tables_far_apart,
    refblocks, snapshots, everything)}

if __name__ == '__main__':
    if len(sys.argv) == 1:
        print(*SHAPES)
    else:
        SHAPES[sys.argv[1]](sys.argv[2])
