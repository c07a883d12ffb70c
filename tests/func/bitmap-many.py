# SPDX-License-Identifier: BSD-3-Clause
"""bitmap-many.py FILE COUNT [twins|broken]: an image of 64 MiB with so many
bitmaps, each with its table: of ones, zeroes, or a cluster.  With "twins" all
have one name, with "broken" all tables are outside of the file."""
import struct
import sys

path, count = sys.argv[1], int(sys.argv[2])
how = sys.argv[3] if len(sys.argv) > 3 else ''
CLUSTER, SIZE, SHIFT = 512, 64 << 20, 16
PER_BLOCK = CLUSTER // 2

entries = SIZE >> SHIFT >> 3 + 9 or 1  # of a table
l1_size = SIZE // (CLUSTER * CLUSTER // 8)

directory = bytearray()
tables = []
for i in range(count):
    name = b'twin' if how == 'twins' else b'b%06d' % i
    tables.append(len(directory))
    directory += struct.pack('>QLLBBHL', 0, entries, 2, 1, SHIFT, len(name), 0)
    directory += name
    directory += bytes(-len(directory) % 8)


def clusters(size):
    return (size + CLUSTER - 1) // CLUSTER


# header, L1, directory, tables, one cluster of bits each for some, refcounts
l1 = 1
dir_at = l1 + clusters(l1_size * 8)
table_at = dir_at + clusters(len(directory))
bits_at = table_at + count
with_bits = [i for i in range(count) if i % 64 == 2]
end = bits_at + len(with_bits)
blocks = 0
while (end + blocks + clusters(blocks * 8)) > blocks * PER_BLOCK:
    blocks += 1
reftable_at = end + blocks
total = reftable_at + clusters(blocks * 8)

for i, at in enumerate(tables):
    where = (1 << 50) if how == 'broken' else (table_at + i) * CLUSTER
    struct.pack_into('>Q', directory, at, where)

with open(path, 'wb') as f:
    f.write(struct.pack('>4sLQLLQLLQQLLQQQQLL', b'QFI\xfb', 3, 0, 0, 9, SIZE,
                        0, l1_size, l1 * CLUSTER, reftable_at * CLUSTER,
                        clusters(blocks * 8), 0, 0, 0, 0, 1, 4, 104))
    f.write(struct.pack('>LLLLQQQ', 0x23852875, 24, count, 0, len(directory),
                        dir_at * CLUSTER, 0))
    f.seek(dir_at * CLUSTER)
    f.write(directory)
    for i in range(count):
        f.seek((table_at + i) * CLUSTER)
        entry = i % 2
        if i % 64 == 2:
            entry = (bits_at + i // 64) * CLUSTER
        f.write(struct.pack('>Q', entry))
    for i in range(len(with_bits)):
        f.seek((bits_at + i) * CLUSTER)
        f.write(b'\1')
    f.seek(end * CLUSTER)
    counted = [1] * total + [0] * (blocks * PER_BLOCK - total)
    f.write(struct.pack(f'>{len(counted)}H', *counted))
    f.seek(reftable_at * CLUSTER)
    f.write(struct.pack(f'>{blocks}Q',
                        *((end + i) * CLUSTER for i in range(blocks))))
    f.truncate(total * CLUSTER)
