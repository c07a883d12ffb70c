# SPDX-License-Identifier: BSD-3-Clause
"""Logs of blklogwrites, and disks as a power cut may leave them."""
import os
import struct

MAGIC = 0x6a736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


class Entry:
    def __init__(self, flags, offset, length, data, end):
        self.flags = flags
        self.offset = offset
        self.length = length
        self.data = data  # None: nothing is written
        self.end = end    # in the log


def read(path):
    """The entries of a log; also ones that its super does not know yet."""
    entries = []
    with open(path, 'rb') as f:
        magic, version, known, sector = struct.unpack('<QQQL', f.read(28))
        assert (magic, version) == (MAGIC, 1), (hex(magic), version)
        end = sector
        size = os.fstat(f.fileno()).st_size
        while end < size:
            f.seek(end)
            where, count, flags, more = struct.unpack('<QQQQ', f.read(32))
            if count == 0 and flags == 0:  # its data came first
                break
            assert more == 0 and flags & ~15 == 0, (flags, more)
            data = None
            end += sector
            if not flags & (FLUSH | DISCARD):
                f.seek(end)
                data = f.read(count * sector)
                if len(data) < count * sector:
                    break
                end += count * sector
            entries.append(Entry(flags, where * sector, count * sector, data,
                                 end))
    assert known <= len(entries), (known, len(entries))
    return entries


def put(disk, entry):
    """Do to @disk, a bytearray, what was written."""
    end = entry.offset + entry.length
    if entry.flags & DISCARD and end >= len(disk):  # the file was cut there
        disk[entry.offset:] = bytes(max(0, len(disk) - entry.offset))
    if entry.data is None:
        return
    if len(disk) < end:
        disk.extend(bytes(end - len(disk)))
    disk[entry.offset:end] = entry.data


def cuts(base, entries, rng):
    """Yield (cut, disk, what) for each prefix of the log: with all that was
    written, and with a random part of what was not flushed yet.  What is
    yielded is for the moment.  A write with FUA is there, in its turn."""
    durable = bytearray(base)
    everything = bytearray(base)
    pending = []
    for cut in range(len(entries) + 1):
        yield cut, everything, 'all'
        if pending:
            disk = bytearray(durable)
            share = rng.choice([0.1, 0.5, 0.9])
            for entry in pending:
                if entry.flags & FUA or rng.random() < share:
                    put(disk, entry)
            yield cut, disk, 'some'
        if cut == len(entries):
            break
        entry = entries[cut]
        put(everything, entry)
        if entry.flags & FLUSH:
            for each in pending:
                put(durable, each)
            pending = []
        else:
            pending.append(entry)
