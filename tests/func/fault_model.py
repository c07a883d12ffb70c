# SPDX-License-Identifier: BSD-3-Clause
"""What a disk and its bitmaps have to be, after faults and crashes.

The guest writes units of UNIT bytes, each full of one byte, its value.
"""
import struct

import bitmap_image

UNIT = 4096
SECTOR = 512
IN_USE, AUTO = 1, 2
ANY = -2
MASK = 0x00fffffffffffe00


class Bitmap:
    def __init__(self, granularity, enabled=True):
        self.granularity = granularity
        self.flags = {enabled}   # enabled: what the image may say
        self.enabled = enabled
        self.must = set()        # units that have to be dirty,
        self.may = set()         # that may be
        self.base = {}           # what was there when it was clear; None: it
        #                          says nothing of what differs
        self.ghost = False       # its command has failed, and yet it may count
        self.gone = False        # the same, of a removal
        self.kept = {}           # unit: what a backup's target may have instead

    def clear(self, disk):
        self.must, self.may, self.kept = set(), set(), {}
        self.base = disk.sure_values() if self.enabled else None

    def fork(self):
        b = Bitmap(self.granularity)
        b.__dict__.update(self.__dict__)
        b.flags, b.must, b.may = set(self.flags), set(self.must), set(self.may)
        b.kept = dict(self.kept)
        return b


class Snapshot:
    """What a disk was when it was made."""

    def __init__(self, disk):
        self.size = disk.size
        self.values = {u: v | disk.lost.get(u, set())
                       for u, v in disk.now.items()}
        self.unsure = False     # its command has failed, and yet it may count

    def fork(self):
        s = Snapshot.__new__(Snapshot)
        s.__dict__.update(self.__dict__)
        return s


class Disk:
    """One image: values of units (absent: 0, or those of below)."""

    def __init__(self, size, values=(), below=None):
        self.sizes = {size}
        self.size = size
        self.now = {u: {v} for u, v in dict(values).items()}
        self.crashed = {u: {v} for u, v in dict(values).items()}
        self.lost = {}      # what a failed flush may have lost: unit: values
        self.bitmaps = {}
        self.snapshots = {}
        self.below = below

    def fork(self):
        d = Disk(self.size, below=self.below)
        d.sizes = set(self.sizes)
        d.now, d.crashed = dict(self.now), dict(self.crashed)
        d.lost = dict(self.lost)
        d.bitmaps = {n: b.fork() for n, b in self.bitmaps.items()}
        d.snapshots = {n: s.fork() for n, s in self.snapshots.items()}
        return d

    def values(self, unit, table=None):
        """What may be there; {None}: nothing, it is below."""
        default = {None} if self.below else {0}
        return (self.now if table is None else table).get(unit, default)

    def sure_values(self):
        """By unit; ANY where nobody knows."""
        return {u: next(iter(v)) if len(v) == 1 else ANY
                for u, v in self.now.items()}

    # --- The guest ---

    def write(self, unit, value, good):
        old = self.values(unit)
        self.now[unit] = {value} if good else old | {value}
        self.crashed[unit] = (self.values(unit, self.crashed) | old |
                              self.now[unit])
        if good:
            self.lost.pop(unit, None)
        self.touch(unit, good)

    def touch(self, unit, good):
        """What has failed need not be dirty, unless it is there."""
        for bitmap in self.bitmaps.values():
            if bitmap.enabled:
                bitmap.may.add(unit)
                if good:
                    bitmap.must.add(unit)
                    bitmap.kept.pop(unit, None)

    def flushed(self, good):
        if not good:
            self.flush_failed()
            return
        self.crashed = {u: v | self.lost.get(u, set())
                        for u, v in self.now.items()}

    def flush_failed(self):
        """What was not on disk by now may be lost although a later flush
        succeeds; then anything can be in the clusters that were for it."""
        for unit, values in self.crashed.items():
            if len(values) > 1:
                self.lost[unit] = {ANY}
                self.crashed[unit] = values | {ANY}

    # --- Commands ---

    def resize(self, size):
        old, self.size = self.size, size
        self.sizes = {size}
        for table in self.now, self.crashed, self.lost:
            for unit in [u for u in table if u * UNIT >= size]:
                del table[unit]
        for bitmap in self.bitmaps.values():
            grown = set(range(old // UNIT, size // UNIT))
            for units in bitmap.must, bitmap.may:
                units.difference_update([u for u in units if u * UNIT >= size])
            bitmap.may |= grown
            if bitmap.enabled:
                bitmap.must |= grown

    def verb(self, what, name, **more):
        bitmap = self.bitmaps.get(name)
        if what == 'add':
            bitmap = Bitmap(more['granularity'], not more.get('disabled'))
            bitmap.clear(self)
            self.bitmaps[name] = bitmap
        elif what == 'remove':
            del self.bitmaps[name]
        elif what == 'clear':
            bitmap.clear(self)
        elif what in ('enable', 'disable'):
            if what == 'disable' and bitmap.enabled:
                bitmap.base = None
            bitmap.enabled = what == 'enable'
            bitmap.flags = {bitmap.enabled}
        elif what == 'merge':
            for source in more['bitmaps']:
                source = self.bitmaps[source]
                bitmap.must |= source.must
                bitmap.may |= spread(source.may, source.granularity)

    def snapshot(self, what, name):
        if what == 'make':
            self.snapshots[name] = Snapshot(self)
        elif what == 'remove':
            del self.snapshots[name]
        else:
            snapshot = self.snapshots[name]
            self.resize(snapshot.size)
            self.now, self.lost = dict(snapshot.values), {}
            self.crashed = dict(snapshot.values)
            for bitmap in self.bitmaps.values():
                if bitmap.enabled:
                    bitmap.must = bitmap.may = set(range(self.size // UNIT))

    def widen(self, new):
        """The command that would have led to @new has failed: the old state,
        with no more bits than needed by either; what was to be new may be in
        the image, if it is right."""
        self.sizes |= new.sizes
        if new.size < self.size:    # what was to be cut off may be zeroes
            for unit in [u for u in self.now if u * UNIT >= new.size]:
                self.write(unit, 0, False)
            for bitmap in self.bitmaps.values():
                bitmap.may.update(range(new.size // UNIT, self.size // UNIT))
        for name, bitmap in new.bitmaps.items():
            old = self.bitmaps.get(name)
            if old is None:
                bitmap = bitmap.fork()
                bitmap.ghost = True
                self.bitmaps[name] = bitmap
            else:
                old.may |= bitmap.may
                old.flags |= bitmap.flags
        for name, bitmap in self.bitmaps.items():
            if name not in new.bitmaps:
                bitmap.gone = True
        for name, snapshot in {**new.snapshots, **self.snapshots}.items():
            if name not in self.snapshots or name not in new.snapshots:
                self.snapshots[name] = snapshot.fork()
                self.snapshots[name].unsure = True

    def settled(self):
        """What failed has no effect any more, once the server has stopped."""
        d = self.fork()
        d.sizes = {d.size}
        d.bitmaps = {n: b for n, b in d.bitmaps.items() if not b.ghost}
        for bitmap in d.bitmaps.values():
            bitmap.flags, bitmap.gone = {bitmap.enabled}, False
        return d


def spread(units, granularity):
    """All units of the granules that these lie in."""
    step = max(granularity // UNIT, 1)
    return {g * step + i for g in {u // step for u in units}
            for i in range(step)}


def dirty_units(bitmap):
    found = set()
    for at, byte in enumerate(bitmap.bits):
        if byte:
            found |= {(at * 8 + i) * bitmap.granularity // UNIT
                      for i in range(8) if byte >> i & 1}
    return spread(found, bitmap.granularity)


class Image:
    """A qcow2 image of 16-bit refcounts, uncompressed, without a data file."""

    def __init__(self, data):
        self.data = data
        bits, = self.be('L', 20)
        self.cluster = 1 << bits
        self.size, = self.be('Q', 24)
        self.l1_size, self.l1 = self.be('LQ', 36)
        self.table, self.table_clusters = self.be('QL', 48)
        self.extended = self.be('Q', 72)[0] & 16
        self.entries = {}   # guest cluster: L2 entry, and bits
        self.snapshots = {} # name: size, entries
        self.refs = {}      # cluster: references
        self.directory = {} # name of a bitmap: where its entry is
        self.wrong = []
        self._walk()

    def be(self, form, at):
        return struct.unpack_from('>' + form, self.data, at)

    def _count(self, at, length=1):
        for cluster in range(at // self.cluster,
                             (at + length - 1) // self.cluster + 1):
            self.refs[cluster] = self.refs.get(cluster, 0) + 1

    def _disk(self, l1, l1_size, copied):
        """What an L1 table leads to; @copied: where to add what may say so."""
        words = 2 if self.extended else 1
        per = self.cluster // 8 // words
        entries = {}
        self._count(l1, l1_size * 8)
        for i, entry in enumerate(self.be(f'{l1_size}Q', l1)):
            table = entry & MASK
            if not table:
                continue
            self._count(table)
            copied.append(entry)
            if not any(self.data[table:table + self.cluster]):
                continue
            found = self.be(f'{per * words}Q', table)
            for k in range(per):
                e = found[k * words]
                bits = found[k * words + 1] if words == 2 else 0
                if e or bits:
                    entries[i * per + k] = e, bits
                if e & MASK:
                    self._count(e & MASK)
                    copied.append(e)
        return entries

    def _snapshots(self):
        count, at = self.be('LQ', 60)
        first = at
        for _ in range(count):
            l1, l1_size, id_size, name_size = self.be('QLHH', at)
            extra, = self.be('L', at + 36)
            size, = self.be('Q', at + 48)
            name = at + 40 + extra + id_size
            self.snapshots[self.data[name:name + name_size].decode()] = (
                size, self._disk(l1, l1_size, []))
            at += (40 + extra + id_size + name_size + 7) // 8 * 8
        if count:
            self._count(first, at - first)

    def _walk(self):
        per = self.cluster // 8
        self._count(0)
        self._count(self.table, self.table_clusters * self.cluster)
        blocks = self.be(f'{self.table_clusters * per}Q', self.table)
        for block in blocks:
            if block:
                self._count(block)
        copied = []
        self.entries = self._disk(self.l1, self.l1_size, copied)
        self._snapshots()
        self._bitmaps()
        counts = {}
        for cluster, refs in self.refs.items():
            index = cluster * 2 // self.cluster
            block = blocks[index] if index < len(blocks) else 0
            counts[cluster] = self.be(
                'H', block + cluster * 2 % self.cluster)[0] if block else 0
            if refs > counts[cluster]:
                self.wrong.append(f'cluster {cluster:#x} has {refs} '
                                  f'references, refcount {counts[cluster]}')
        for entry in copied:
            if entry >> 63 and counts[(entry & MASK) // self.cluster] != 1:
                self.wrong.append(f'entry {entry:#x} is not alone')

    def _bitmaps(self):
        if not self.be('Q', 88)[0] & 1:
            return
        at, = self.be('L', 100)
        while self.be('L', at)[0] != 0x23852875:
            kind, length = self.be('LL', at)
            if kind == 0:
                self.wrong.append('no extension')
                return
            at += 8 + (length + 7) // 8 * 8
        count, _, length, entry = self.be('LLQQ', at + 8)
        self._count(entry, length)
        for _ in range(count):
            table, entries, _, _, _, name, extra = self.be('QLLBBHL', entry)
            at = entry + 24 + extra
            self.directory[self.data[at:at + name].decode()] = entry
            self._count(table, entries * 8)
            for e in self.be(f'{entries}Q', table):
                if e & MASK:
                    self._count(e & MASK)
            entry += (24 + extra + name + 7) // 8 * 8

    def sector(self, offset, entries=None):
        """Its byte, None if it is below, -1 if it is a mixture."""
        entries = self.entries if entries is None else entries
        entry, bits = entries.get(offset // self.cluster, (0, 0))
        zero, there = entry & 1, entry & MASK
        if self.extended:
            sub = offset % self.cluster * 32 // self.cluster
            zero, there = bits >> (sub + 32) & 1, bits >> sub & 1
        if zero:
            return 0
        if not there:
            return None
        at = (entry & MASK) + offset % self.cluster
        data = self.data[at:at + SECTOR]
        if not data:
            return 0
        return data[0] if data == bytes(data[:1]) * SECTOR else -1

    def units(self):
        """The units that the image has something for."""
        for cluster in self.entries:
            first = cluster * self.cluster // UNIT
            yield from range(first, first + max(self.cluster // UNIT, 1))


def wrong_bits(name, want, have, disk, image, exact, targets):
    if have.flags & IN_USE:
        return []
    size = min(image.size, disk.size)
    top = len(have.bits) * 8 * have.granularity
    step = min(have.granularity, UNIT)
    lacking = [u for u in want.must if u * UNIT < min(size, top) and
               not all(have.has(u * UNIT + s) for s in range(0, UNIT, step))
               and
               not (u in want.kept and targets and
                    targets(want.kept[u][0], u, want.kept[u][1]))]
    if lacking:
        return [f'bitmap {name} is valid and lacks {len(lacking)} units, the '
                f'first at {min(lacking) * UNIT:#x}']
    for unit in disk.now if want.base is not None else ():
        was = want.base.get(unit)
        if was is None and unit not in want.base:
            was = None if disk.below else 0
        if was == ANY or disk.lost.get(unit) or unit * UNIT >= size or \
                unit in want.kept:
            continue
        for at in range(unit * UNIT, unit * UNIT + UNIT, SECTOR):
            is_now = image.sector(at)
            if is_now is None and not disk.below:
                is_now = 0
            if is_now != was and not have.has(at):
                return [f'bitmap {name} is valid and lacks what differs at '
                        f'{at:#x}']
    if exact:
        may = spread(want.may, have.granularity)
        more = [u for u in dirty_units(have) - may if u * UNIT < size]
        if more:
            return [f'bitmap {name} has {len(more)} units without a reason, '
                    f'the first at {more[0] * UNIT:#x}']
    return []


def judge(data, disk, how, targets=None, exact=True):
    """What is wrong with an image, as texts.  @how: 'stopped' in order,
    'killed' (storage is as it was then; new tables may be in memory only) or
    'cut' (the power)."""
    try:
        image = Image(data)
        bitmaps = bitmap_image.bitmaps(image.data)
    except (struct.error, AssertionError, IndexError, ValueError) as e:
        return [f'the image cannot be read: {e!r}']
    wrong = image.wrong[:3]
    if image.size not in disk.sizes:
        wrong.append(f'its size is {image.size}, not {disk.sizes}')
    table = disk.now if how == 'stopped' else disk.crashed
    bad = []
    # What is beside something that was written came from below with it.
    copied = {u * UNIT // image.cluster for u in table if disk.below}
    for unit in set(image.units()) | set(table):
        allowed = disk.values(unit, table)
        if ANY in allowed or unit * UNIT >= min(image.size, *disk.sizes) or (
                unit not in table and unit * UNIT // image.cluster in copied):
            continue
        for at in range(unit * UNIT, unit * UNIT + UNIT, SECTOR):
            value = image.sector(at)
            if value is None and not disk.below:
                value = 0
            if value not in allowed and not (
                    value == 0 and allowed == {None} and unit not in table):
                bad.append((unit, value, allowed))
                break
    if bad:
        unit, value, allowed = min(bad, key=lambda b: b[0])
        wrong.append(f'data: {len(bad)} units, at {unit * UNIT:#x} is {value}, '
                     f'not of {allowed}')
    for name, have in bitmaps.items():
        want = disk.bitmaps.get(name)
        if want is None:
            if not have.flags & IN_USE:
                wrong.append(f'bitmap {name} should not be there')
            continue
        if bool(have.flags & AUTO) not in want.flags and \
                not have.flags & IN_USE:
            wrong.append(f'bitmap {name} has flags {have.flags}')
        wrong += wrong_bits(name, want, have, disk, image,
                            exact and how == 'stopped', targets)
    wrong += wrong_snapshots(image, disk)
    for name, want in disk.bitmaps.items():
        if name not in bitmaps and not want.ghost and not want.gone and \
                name[0] != '@':
            wrong.append(f'bitmap {name} is not there')
    return wrong


def judge_below(over, base, seen):
    """Of units that the overlay leaves to its base, what is wrong there."""
    over, base = Image(over), Image(base)
    for unit, values in seen.items():
        for at in range(unit * UNIT, unit * UNIT + UNIT, SECTOR):
            if over.sector(at) is None and (base.sector(at) or 0) not in values:
                return [f'the guest finds {base.sector(at)} below at '
                        f'{unit * UNIT:#x}, not of {values}']
    return []


def wrong_snapshots(image, disk):
    """What is wrong with the snapshots."""
    for name, (size, entries) in image.snapshots.items():
        want = disk.snapshots.get(name)
        if want is None:
            return [f'snapshot {name} should not be there']
        if size != want.size:
            return [f'snapshot {name} has {size} bytes, not {want.size}']
        for unit in range(size // UNIT):
            allowed = want.values.get(unit, {0})
            for at in range(unit * UNIT, unit * UNIT + UNIT, SECTOR):
                value = image.sector(at, entries) or 0
                if value not in allowed and ANY not in allowed:
                    return [f'snapshot {name} has {value} at {at:#x}, not of '
                            f'{allowed}']
    return [f'snapshot {name} is not there'
            for name, want in disk.snapshots.items()
            if name not in image.snapshots and not want.unsure]


def marked(data):
    """Names of the bitmaps that the image says are in use."""
    return [n for n, b in bitmap_image.bitmaps(bytes(data)).items()
            if b.flags & IN_USE]
