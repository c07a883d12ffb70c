# SPDX-License-Identifier: BSD-3-Clause
"""Shuffle the places of all data clusters of a qcow2 image, in place, without
moving data.  argv: the image, preallocated, and not compressed."""
import array
import random
import struct
import sys

OFFSET = 0x00fffffffffffe00

with open(sys.argv[1], 'r+b') as f:
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
    random.seed(1)
    random.shuffle(shuffled)
    for i, place in zip(used, shuffled):
        places[i] = place
    data = places.tobytes()
    for i, table in enumerate(tables):
        f.seek(table)
        f.write(data[i * size:(i + 1) * size])
