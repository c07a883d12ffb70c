# SPDX-License-Identifier: BSD-3-Clause
"""What a qcow2 image in memory says: the disk, and its persistent bitmaps.

Contents of disks are tuples of CHUNK bytes each, so that many of them share
what is alike.
"""
import struct

CHUNK = 65536
SECTOR = 512
ZEROES = bytes(CHUNK)
OFFSET = 0x00fffffffffffe00

_known = {ZEROES: ZEROES}


def shared(chunk):
    return _known.setdefault(chunk, chunk)


def forget():
    """What is shared from now on is apart from what was before."""
    _known.clear()
    _known[ZEROES] = ZEROES


def chunks(data):
    data = bytes(data)
    return tuple(shared(data[i:i + CHUNK].ljust(CHUNK, b'\0'))
                 for i in range(0, len(data), CHUNK))


class Bitmap:
    def __init__(self, flags, granularity, bits):
        self.flags = flags
        self.granularity = granularity
        self.bits = bits

    def has(self, offset):
        n = offset // self.granularity
        return self.bits[n // 8] >> n % 8 & 1


def _be(form, data, at):
    return struct.unpack_from('>' + form, data, at)


def content(image):
    """The disk; of uncompressed images without a backing file, whose clusters
    are not larger than CHUNK."""
    cluster = 1 << _be('L', image, 20)[0]
    size, = _be('Q', image, 24)
    l1_size, = _be('L', image, 36)
    l1_offset, = _be('Q', image, 40)
    per_table = cluster // 8
    hosts = []
    for entry in _be(f'{l1_size}Q', image, l1_offset):
        if entry & OFFSET:
            hosts += _be(f'{per_table}Q', image, entry & OFFSET)
        else:
            hosts += [0] * per_table
    view = memoryview(image)
    disk = []
    step = CHUNK // cluster
    for i in range(0, (size + cluster - 1) // cluster, step):
        entries = hosts[i:i + step]
        if not any(entries):
            disk.append(ZEROES)
            continue
        parts = []
        for host in entries:
            assert not host >> 62 & 1, 'compressed'
            zero = host & 1 or not host & OFFSET
            host &= OFFSET
            part = b'' if zero else bytes(view[host:host + cluster])
            parts.append(part if len(part) == cluster
                         else part.ljust(cluster, b'\0'))
        disk.append(b''.join(parts).ljust(CHUNK, b'\0'))
    return tuple(disk)


def _bits(image, cluster, table, entries):
    bits = bytearray()
    for entry in _be(f'{entries}Q', image, table):
        if entry & OFFSET:
            at = entry & OFFSET
            bits += image[at:at + cluster].ljust(cluster, b'\0')
        else:
            bits += (b'\xff' if entry & 1 else b'\0') * cluster
    return bits


def bitmaps(image):
    """{name: Bitmap} of the bitmaps that count."""
    cluster = 1 << _be('L', image, 20)[0]
    if not _be('Q', image, 88)[0] & 1:
        return {}
    at, = _be('L', image, 100)
    while True:
        kind, length = _be('LL', image, at)
        if kind == 0x23852875:
            break
        assert kind != 0, 'no extension'
        at += 8 + (length + 7) // 8 * 8
    count, _, _, entry = _be('LLQQ', image, at + 8)
    found = {}
    for _ in range(count):
        table, entries, flags, kind, shift, length, extra = _be(
            'QLLBBHL', image, entry)
        assert kind == 1, kind
        name = bytes(image[entry + 24 + extra:entry + 24 + extra + length])
        found[name.decode()] = Bitmap(
            flags, 1 << shift, _bits(image, cluster, table, entries))
        entry += (24 + extra + length + 7) // 8 * 8
    assert len(found) == count, 'two have one name'
    return found


def changed_sectors(old, new):
    """Offsets of sectors in which @new differs; past @old's end from zeroes."""
    for i, now in enumerate(new):
        was = old[i] if i < len(old) else ZEROES
        if was is now or was == now:
            continue
        for k in range(0, CHUNK, SECTOR):
            if was[k:k + SECTOR] != now[k:k + SECTOR]:
                yield i * CHUNK + k
