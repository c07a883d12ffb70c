#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Damage qcow2 images at random, and hold check and repair to their word.

check_campaign.py NBDELTA ROUNDS [SEED]   in an empty directory

  - check finds at least what qemu-img check finds, and writes nothing
  - after a repair, what could be read reads the same, except for ranges that
    the report names, which read as zeroes; also in snapshots
  - a second repair finds nothing, and qemu-img finds nothing
  - a repair of leaks leaves no more than qemu-img's

What a guest sees is worked out here, from the bytes of the image.
"""
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import zlib

MASK = 0x00fffffffffffe00
COPIED = 1 << 63
COMPRESSED = 1 << 62


def run(*args, ok=None):
    p = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       timeout=120)
    if ok is not None and p.returncode not in ok:
        raise AssertionError('%s: exit %d\n%s%s' % (
            ' '.join(args), p.returncode, p.stdout.decode(),
            p.stderr.decode()))
    return p


class Image:
    """The bytes of an image, and what a guest reads."""

    def __init__(self, path):
        with open(path, 'rb') as f:
            self.b = bytearray(f.read())
        self.bits = self.be32(20)
        self.cluster = 1 << self.bits
        self.size = self.be64(24)
        self.version = self.be32(4)
        self.extended = self.version >= 3 and self.be64(72) & 16
        self.stride = 16 if self.extended else 8
        self.per_table = self.cluster // self.stride
        self.part = self.cluster // (32 if self.extended else 1)

    def be32(self, at):
        return struct.unpack_from('>I', self.b, at)[0]

    def be64(self, at):
        return struct.unpack_from('>Q', self.b, at)[0]

    def placed(self, host, bytes_):
        return (host and host % self.cluster == 0 and
                host + bytes_ <= len(self.b) + self.cluster)

    def take(self, host, n):
        return bytes(self.b[host:host + n]).ljust(n, b'\0')

    def word(self, at):
        return struct.unpack('>Q', self.take(at, 8))[0]

    def active(self):
        return self.be64(40), self.be32(36), self.size

    def snapshots(self):
        """{name: (L1 table, entries, size)}, as far as they can be read."""
        found = {}
        at = self.be64(64)
        if not self.placed(at, self.cluster):
            return found
        for _ in range(min(self.be32(60), 16)):
            head = self.take(at, 64)
            l1, n, id_size, name_size = struct.unpack_from('>QIHH', head)
            extra, = struct.unpack_from('>I', head, 36)
            if extra < 16 or extra > 1024 or id_size + name_size > 1024:
                break
            size, = struct.unpack_from('>Q', head, 48)
            name = self.take(at + 40 + extra + id_size, name_size)
            found[name] = l1, n, size
            at += (40 + extra + id_size + name_size + 7) // 8 * 8
        return found

    def tables(self, disk=None):
        """(guest offset of the first byte, host) of each L2 table."""
        l1, n, _ = disk or self.active()
        if not self.placed(l1, n * 8) or n * 8 > 32 << 20:
            return
        for i in range(n):
            entry = self.word(l1 + i * 8)
            host = entry & MASK
            if host and self.placed(host, self.cluster):
                yield i * self.per_table * self.cluster, host

    def entries(self, disk=None):
        for guest, table in self.tables(disk):
            for i in range(self.per_table):
                at = table + i * self.stride
                yield guest + i * self.cluster, self.word(at), at

    def structures(self):
        """The clusters of tables: what a guest sees there is no data."""
        found = set()
        table, size = self.be64(48), self.be32(56) * self.cluster
        places = [(table, size)] + [
            (l1, n * 8) for l1, n, _ in [self.active(),
                                         *self.snapshots().values()]]
        for at, bytes_ in places:
            if not self.placed(at, bytes_) or bytes_ > 32 << 20:
                continue
            found.update(range(at, at + bytes_, self.cluster))
            found.update(self.word(at + i) & MASK for i in range(0, bytes_, 8))
        if self.be32(60):
            found.add(self.be64(64))
        return found

    def unpack(self, e):
        shift = 62 - (self.bits - 8)
        host = e & ((1 << shift) - 1)
        n = ((e >> shift) & ((1 << (62 - shift)) - 1)) + 1
        if not self.placed(host & ~(self.cluster - 1), self.cluster):
            return None
        packed = self.take(host, n * 512 - host % 512)
        try:
            return zlib.decompressobj(-12).decompress(packed, self.cluster)
        except zlib.error:
            return b'bad:' + packed

    def parts(self, guest, e, at, tables):
        """(guest offset, bytes or None) of what the entry has itself."""
        host = e & MASK
        placed = self.placed(host, self.cluster)
        bits = self.word(at + 8) if self.extended else 0
        if e & COMPRESSED:
            data = self.unpack(e)
            for i in range(0, self.cluster, self.part):
                yield guest + i, data and (
                    data if data[:4] == b'bad:' else data[i:i + self.part])
            return
        for i in range(self.cluster // self.part):
            if self.extended:
                there, zero = bits >> i & 1, bits >> (i + 32) & 1
            else:
                zero = e & 1 and self.version >= 3
                there = host and not zero
            at = guest + i * self.part
            if self.extended and there and zero:
                yield at, None
            elif zero:
                yield at, (bytes(self.part) if self.extended or not host or
                           placed else None)
            elif there:
                yield at, (None if not placed else
                           b'table' if host in tables else
                           self.take(host + i * self.part, self.part))

    def guest(self, disk=None):
        """{guest offset: bytes, or None where nothing can be read}, of what
        the image has itself."""
        disk = disk or self.active()
        tables = self.structures()
        return {offset: data for guest, e, at in self.entries(disk)
                for offset, data in self.parts(guest, e, at, tables)
                if offset < disk[2]}

    def pasts(self):
        return {name: self.guest(disk)
                for name, disk in self.snapshots().items()}


def make(rng, path, back):
    """A small image with a bit of everything."""
    extended = rng.random() < .35
    bits = rng.choice([14, 16] if extended else [9, 10, 12, 16])
    size = rng.choice([1, 2, 4]) << 20
    compat = '1.1' if extended else rng.choice(['1.1', '1.1', '0.10'])
    options = 'compat=%s,cluster_size=%d' % (compat, 1 << bits)
    if extended:
        options += ',extended_l2=on'
    if compat == '1.1':
        options += ',refcount_bits=%d' % rng.choice([1, 8, 16, 16, 64])
    args = ['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options]
    if rng.random() < .5:
        args += ['-b', back, '-F', 'raw']
    run(*args, path, str(size), ok=[0])
    wide = 'refcount_bits=1,' not in options + ','

    def io(*commands, ok=(0,)):
        flat = []
        for c in commands:
            flat += ['-c', c]
        run('qemu-io', '-f', 'qcow2', *flat, path, ok=ok)

    def write():
        at = rng.randrange(size >> 9) << 9
        n = min(rng.choice([512, 4096, 65536, 200000]) & ~511, size - at)
        kind = rng.choice(['write -P %d' % rng.randrange(1, 255)] * 4 +
                          ['write -z', 'discard'])
        return '%s %d %d' % (kind, at, n)

    io(*[write() for _ in range(rng.randrange(1, 12))])
    if rng.random() < .4:
        at = rng.randrange(size >> bits) << bits
        io('write -c -P 7 %d %d' % (at, 1 << bits), ok=(0, 1))
    if compat == '1.1' and rng.random() < .5:
        run('qemu-img', 'bitmap', '--add', path, 'b0', ok=[0, 1])
        io(write())
    if wide and rng.random() < .4:
        run('qemu-img', 'snapshot', '-c', 's0', path, ok=[0])
        io(write(), write())


def damage(rng, path):
    """Change words of the metadata, or cut the file."""
    im = Image(path)
    places = [36, 40, 48, 56, 60, 64]
    l1 = im.be64(40)
    table = im.be64(48)
    blocks = [im.be64(table + i * 8) for i in range(8)]
    hosts = [l1, table] + [b for b in blocks if b] + \
        [h for _, h in im.tables()]
    disks = [im.active(), *im.snapshots().values()]
    entries = [at for d in disks for _, e, at in im.entries(d)
               if e or im.extended and im.word(at + 8)]
    if im.extended:  # and their bits
        entries += [at + 8 for at in entries]
    pasts = [l1 + i * 8 for l1, n, _ in disks[1:] for i in range(n)]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        how = rng.random()
        if how < .45 and entries:
            at = rng.choice(entries)
        elif how < .65:
            at = l1 + rng.randrange(im.be32(36)) * 8
        elif how < .75:
            at = table + rng.randrange(4) * 8
        elif how < .9 and blocks[0]:
            used = len(im.b) // im.cluster // 8 + 1
            at = blocks[0] + rng.randrange(min(im.cluster // 8, used)) * 8
        elif how < .92 and pasts:
            at = rng.choice(pasts)
        elif how < .95:
            at = rng.choice(places)
        else:
            del im.b[rng.randrange(im.cluster, len(im.b)):]
            continue
        if at + 8 > len(im.b):
            continue
        old = im.be64(at)
        host = rng.choice(hosts)
        new = rng.choice([
            old ^ 1 << rng.randrange(64), 0, rng.getrandbits(64),
            (old & ~MASK) | host, host | COPIED, COPIED | len(im.b) + 65536,
            (len(im.b) // im.cluster + rng.randrange(1, 9)) * im.cluster,
            old ^ COPIED, old ^ 1, COPIED, im.word(rng.choice(entries))
            if entries else 5])
        if at in (36, 56):
            struct.pack_into('>I', im.b, at, new & 0xff)
        elif at == 60:
            struct.pack_into('>I', im.b, at, new & 3)
        else:
            struct.pack_into('>Q', im.b, at, new)
    with open(path, 'wb') as f:
        f.write(im.b)


def digest(path):
    with open(path, 'rb') as f:
        return hashlib.sha256(f.read()).hexdigest()


def check(nbdelta, path):
    """One damaged image."""
    before = digest(path)
    ours = run(nbdelta, 'check', path, ok=[0, 2, 3])
    assert digest(path) == before, 'a check has written'
    theirs = run('qemu-img', 'check', path)
    assert digest(path) == before
    if theirs.returncode == 2:
        assert ours.returncode == 2, 'qemu-img: corrupt; nbdelta: %d\n%s' % (
            ours.returncode, theirs.stderr.decode())
    if theirs.returncode == 3:
        assert ours.returncode in (2, 3), 'qemu-img found leaks'
    seen, pasts = Image(path).guest(), Image(path).pasts()
    shutil.copy(path, 'theirs.qcow2')
    run('qemu-img', 'check', '-r', 'leaks', 'theirs.qcow2')
    left = run('qemu-img', 'check', 'theirs.qcow2').returncode
    leaks = run(nbdelta, 'check', '-r', 'leaks', path, ok=[0, 2, 3])
    assert leaks.returncode != 2 or ours.returncode == 2, '-r leaks did harm'
    assert left != 0 or leaks.returncode == 0 or ours.returncode == 2, \
        'qemu-img mends these leaks'
    assert Image(path).guest() == seen, '-r leaks changed what a guest sees'
    assert Image(path).pasts() == pasts, '-r leaks changed a snapshot'
    mended = run(nbdelta, 'check', '-r', 'all', '--output', 'json', path,
                 ok=[0, 2, 3])
    report = json.loads(mended.stdout)
    lost = [(r['start'], r['start'] + r['length'])
            for r in report.get('lost', [])]
    now = Image(path).guest()
    for guest, data in seen.items():
        gone = any(a <= guest < b for a, b in lost)
        assert data is not None or gone or mended.returncode == 2, \
            'cluster %#x could not be read, and nobody says so' % guest
        got = now.get(guest)
        if gone:
            assert not got or not any(got), 'lost %#x is not zero' % guest
        elif data is not None and data != b'table':
            assert got == data, 'cluster %#x has changed' % guest
    told = b'of a snapshot read as zeroes' in mended.stderr
    for name, past in Image(path).pasts().items():
        for guest, data in pasts.get(name, {}).items():
            got = past.get(guest)
            assert got == data or data in (None, b'table') or \
                told and not any(got or b''), \
                'snapshot %s, %#x has changed' % (name, guest)
    again = run(nbdelta, 'check', '-r', 'all', '--output', 'json', path,
                ok=[0, 2, 3])
    more = json.loads(again.stdout)
    assert not more.get('corruptions-fixed') and not more.get('leaks-fixed'), \
        'a second repair found something: %s' % again.stdout.decode()
    assert again.returncode == mended.returncode
    if again.returncode == 0:
        run('qemu-img', 'check', path, ok=[0])
    return ours.returncode, mended.returncode


def snapshots(path):
    """The names of the snapshots that qemu-img reads."""
    info = json.loads(run('qemu-img', 'info', '--output=json', path,
                          ok=[0]).stdout)
    return [s['name'] for s in info.get('snapshots', [])]


def cut_off_snapshots(nbdelta, path, how):
    """An entry of the snapshot table cannot be read.  Without -r all nothing
    is written.  Then the snapshots before it are all there are, and whole."""
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=64k',
        path, '1M', ok=[0])
    for name in 'first', 'second':
        run('qemu-io', '-c', 'write -P %d 0 256k' % ord(name[0]), path, ok=[0])
        run('qemu-img', 'snapshot', '-c', name, path, ok=[0])
    im = Image(path)
    table = im.be64(64)
    entry = table + (40 + im.be32(table + 36) + 7 +
                     sum(struct.unpack_from('>HH', im.b, table + 12)) & ~7)
    left = ['first']
    if how == 'extra data':     # more than any entry has
        struct.pack_into('>I', im.b, entry + 36, 0x7fffffff)
    elif how == 'number':
        struct.pack_into('>I', im.b, 60, 60000)
        left.append('second')
    else:
        assert len(im.b) - entry < im.cluster, 'the table is not the last'
        del im.b[entry + 20:]
    with open(path, 'wb') as f:
        f.write(im.b)
    before = digest(path)
    for args in [], ['-r', 'leaks']:
        run(nbdelta, 'check', *args, path, ok=[2])
        assert digest(path) == before, how
    report = run(nbdelta, 'check', '-r', 'all', path, ok=[0]).stderr.decode()
    words = 'the snapshot table ends after %d entries; ' % len(left)
    assert words in report, (how, report)
    assert snapshots(path) == left, how
    run('qemu-img', 'check', path, ok=[0])
    for name in left:
        run('qemu-img', 'convert', '-l', name, '-O', 'raw', path, 'snap.raw',
            ok=[0])
        with open('snap.raw', 'rb') as f:
            assert f.read(256 << 10) == name[:1].encode() * (256 << 10), name
    os.unlink(path)


def main():
    nbdelta, rounds = sys.argv[1], int(sys.argv[2])
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    with open('back.raw', 'wb') as f:
        f.write(b'back' * (1 << 20))
    for how in 'extra data', 'number', 'end of the file':
        cut_off_snapshots(nbdelta, 'image.qcow2', how)
    tally = {}
    for seed in range(first, first + rounds):
        rng = random.Random(seed)
        path = 'image.qcow2'
        make(rng, path, 'back.raw')
        fine = run(nbdelta, 'check', path, ok=[0, 3])
        assert fine.returncode == run('qemu-img', 'check', path).returncode, \
            'seed %d: %s' % (seed, fine.stderr.decode())
        damage(rng, path)
        os.replace(path, 'damaged.qcow2')
        with open('damaged.qcow2', 'rb') as f, open(path, 'wb') as t:
            t.write(f.read())
        try:
            key = check(nbdelta, path)
        except (AssertionError, subprocess.TimeoutExpired) as e:
            sys.exit('seed %d: %s' % (seed, e))
        tally[key] = tally.get(key, 0) + 1
        os.unlink(path)
    print(tally)


main()
