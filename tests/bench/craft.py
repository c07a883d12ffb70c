# SPDX-License-Identifier: BSD-3-Clause
"""Change qcow2 images at once, where writes to a disk would take long."""
import array
import random
import struct

CLUSTER = 65536
BITMAPS = 0x23852875
OFFSET = 0x00fffffffffffe00


def holes(path):
    """Of a new image: every other cluster is there (it is always the same one
    in the file: it is only listed), L2 tables full."""
    with open(path, 'r+b') as f:
        header = f.read(104)
        size, = struct.unpack('>Q', header[24:32])
        l1, = struct.unpack('>Q', header[40:48])
        data = -(-f.seek(0, 2) // CLUSTER) * CLUSTER
        per_table = CLUSTER // 8
        table = struct.pack('>QQ', data, 0) * (per_table // 2)
        tables = -(-size // (CLUSTER * per_table))
        f.seek(data)
        f.write(b'x' * CLUSTER)
        for _ in range(tables):
            f.write(table)
        f.seek(l1)
        f.write(struct.pack(f'>{tables}Q', *(data + (i + 1) * CLUSTER
                                             for i in range(tables))))


def find_extension(head, wanted):
    at, = struct.unpack('>I', head[100:104])
    while True:
        kind, length = struct.unpack('>II', head[at:at + 8])
        if kind == wanted:
            return at
        at += 8 + (length + 7) // 8 * 8


def dense(path):
    """In the first bitmap, whose clusters are all there, one bit in a hundred
    is set at random."""
    with open(path, 'r+b') as f:
        head = f.read(CLUSTER)
        at = find_extension(head, BITMAPS)
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


def shuffle(path):
    """Of a preallocated image, not compressed: the places of all data clusters,
    without moving data."""
    with open(path, 'r+b') as f:
        head = f.read(48)
        size = 1 << struct.unpack('>I', head[20:24])[0]
        entries, l1 = struct.unpack('>IQ', head[36:48])
        f.seek(l1)
        tables = [e & OFFSET for e in struct.unpack(f'>{entries}Q',
                                                    f.read(entries * 8))]
        places = array.array('Q')
        for table in tables:
            f.seek(table)
            places.frombytes(f.read(size))
        used = [i for i, place in enumerate(places) if place]
        shuffled = [places[i] for i in used]
        random.Random(1).shuffle(shuffled)
        for i, place in zip(used, shuffled):
            places[i] = place
        data = places.tobytes()
        for i, table in enumerate(tables):
            f.seek(table)
            f.write(data[i * size:(i + 1) * size])
