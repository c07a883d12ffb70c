# SPDX-License-Identifier: BSD-3-Clause
"""The images of qcow2-matrix.sh, what a guest does to them, and what it sees.

    plan             writes the file `images`, a line per image:
                     NAME OURS|QEMU BACKING COMPRESSED OPTIONS
                     `commands` for qemu-io, to fill images of QEMU's, and for
                     compressed ones their disk, NAME.before
    maps NAME...     do NAME.qemu, of qemu-img map, and NAME.ours say the same?
    run SOCKET       over NBD: each disk shows what is planned; it is written
                     to at random, and shows that; NAME.model is the disk then
    verify SOCKET    over NBD: each disk shows NAME.model
"""
import json
import random
import sys

SIZE = 3 * 1024 * 1024 + 512
SECTOR = 512


def combinations():
    """(options, backing, compressed); each two of these that go together do so
    once at least."""
    backings = 'none', 'short', 'long'
    for i, cluster in enumerate(('512', '4k', '64k', '2M')):
        for j, bits in enumerate((1, 16, 64)):
            options = f'cluster_size={cluster},refcount_bits={bits}'
            yield options, backings[(i + j) % 3], False
            # Compressed clusters share host clusters: they need refcounts > 1.
            if bits != 1:
                yield options, 'none', True
                yield options + ',compression_type=zstd', 'none', True
        options = f'cluster_size={cluster},compat=0.10'
        yield options, 'short', False
        yield options, 'none', False
        yield options, 'none', True
    for cluster in '16k', '64k', '2M':
        options = f'cluster_size={cluster},extended_l2=on'
        for backing in 'none', 'short', 'long':
            yield options, backing, False
        yield options, 'none', True
        yield options + ',compression_type=zstd', 'none', True
        yield options + ',preallocation=metadata', 'long', False
        yield options + ',preallocation=falloc', 'none', False
        yield options + ',data_file=DATA', 'short', False
        yield options + ',data_file=DATA,data_file_raw=on', 'none', False


def images():
    for number, (options, backing, compressed) in enumerate(combinations()):
        for who in ('QEMU',) if compressed else ('OURS', 'QEMU'):
            name = f'{who.lower()}{number}'
            yield (name, who, backing, compressed,
                   options.replace('DATA', name + '.data'))


def backing_disk(backing):
    disk = bytearray(SIZE)
    if backing == 'short':      # base.qcow2
        disk[:700 * 1024] = bytes([17]) * (700 * 1024)
    elif backing == 'long':     # base.raw
        disk[100 * 1024:] = bytes([23]) * (SIZE - 100 * 1024)
    return disk


def random_requests(rng):
    """(what, offset, length, byte); some hit the same cluster many times."""
    for i in range(14):
        at = rng.randrange(SIZE // SECTOR) * SECTOR
        if i % 3 == 2:
            at = rng.randrange(256) * SECTOR
        length = min(rng.randint(1, 300 if i % 3 else 20) * SECTOR, SIZE - at)
        what = rng.choice(('zero', 'unmap', 'write', 'write', 'write', 'trim'))
        yield what, at, length, rng.randint(1, 255)


def change(disk, what, at, length, byte):
    if what == 'write':
        disk[at:at + length] = bytes([byte]) * length
    elif what != 'trim':
        disk[at:at + length] = bytes(length)


def before(name, backing, compressed):
    """What QEMU writes, and the disk that it leaves."""
    rng = random.Random('before ' + name)
    disk = backing_disk(backing)
    # Nobody knows what a trimmed range shows.
    requests = [r for r in random_requests(rng) if r[0] != 'trim']
    if compressed:
        requests.append(('write', 65536, 1024 * 1024, 99))
    for r in requests:
        change(disk, *r)
    return requests, disk


def plan():
    words = {'write': 'write -P {byte} {at} {length}',
             'zero': 'write -z {at} {length}',
             'unmap': 'write -z -u {at} {length}'}
    with open('images', 'w', encoding='ascii') as f, \
            open('commands', 'w', encoding='ascii') as c:
        for name, who, backing, compressed, options in images():
            print(name, who, backing, 'yes' if compressed else 'no', options,
                  file=f)
            if who != 'QEMU':
                continue
            requests, disk = before(name, backing, compressed)
            if compressed:
                with open(name + '.before', 'wb') as b:
                    b.write(disk)
                continue
            print('open -o driver=qcow2', name, file=c)
            for what, at, length, byte in requests:
                print(words[what].format(byte=byte, at=at, length=length),
                      file=c)
            print('close', file=c)


def ask(h, what, at, length, byte):
    import nbd
    if what == 'write':
        h.pwrite(bytes([byte]) * length, at)
    elif what == 'trim':
        h.trim(length, at)
    else:
        h.zero(length, at, nbd.CMD_FLAG_NO_HOLE if what == 'zero' else 0)


def read_all(h):
    return bytes(h.pread(SIZE, 0))


def after_trim(h, name, disk, at, length):
    """What was trimmed shows the old bytes, or zeroes."""
    now = bytes(h.pread(length, at))
    for i in range(0, length, SECTOR):
        part = now[i:i + SECTOR]
        if part not in (disk[at + i:at + i + SECTOR], bytes(SECTOR)):
            sys.exit(f'{name}: at {at + i}, trimmed, there is something else')
    disk[at:at + length] = now


def run_image(socket, name, disk, what):
    import nbd
    h = nbd.NBD()
    h.connect_uri(f'nbd+unix:///{name}?socket={socket}')
    if read_all(h) != disk:
        sys.exit(f'{what}: we read something else than is there')
    for request in random_requests(random.Random('run ' + name)):
        ask(h, *request)
        change(disk, *request)
        if request[0] == 'trim':
            after_trim(h, what, disk, *request[1:3])
    if read_all(h) != disk:
        sys.exit(f'{what}: the export differs from what was written')
    h.flush()
    h.shutdown()
    with open(name + '.model', 'wb') as f:
        f.write(disk)


def run(socket):
    for name, who, backing, compressed, options in images():
        disk = (before(name, backing, compressed)[1] if who == 'QEMU' else
                backing_disk(backing))
        run_image(socket, name, disk, f'{name} ({options}, {backing})')


def load_map(name, data_file):
    """Runs that are alike are one.  What a hole in the file says is none of the
    image's: so data are data, and of a data file there is only what is present.
    Only data have a place (QEMU tells it of empty subclusters, too)."""
    runs = []
    with open(name, encoding='ascii') as f:
        found = json.load(f)
    for e in found:
        kind = [e['depth'], e['present']]
        if not data_file:
            kind += [e['data'], not e['data'] and e['zero'],
                     e['offset'] - e['start']
                     if e['data'] and 'offset' in e else None]
        if runs and runs[-1][2] == kind:
            runs[-1][1] += e['length']
        else:
            runs.append([e['start'], e['length'], kind])
    return runs


def compare_maps(names):
    options = {i[0]: i[4] for i in images()}
    for name in names:
        data_file = 'data_file' in options[name.split('.')[0]]
        qemu = load_map(name + '.qemu', data_file)
        ours = load_map(name + '.ours', data_file)
        for q, o in zip(qemu + [None], ours + [None]):
            if q != o:
                sys.exit(f'{name}: qemu-img map has {q}, and ours {o}')


def verify(socket):
    """What QEMU shows is what was written."""
    import nbd
    for name, _, backing, _, options in images():
        h = nbd.NBD()
        h.connect_uri(f'nbd+unix:///{name}?socket={socket}')
        with open(name + '.model', 'rb') as f:
            if read_all(h) != f.read():
                sys.exit(f'{name} ({options}, {backing}): QEMU reads something '
                         'else than was written')
        h.shutdown()


if __name__ == '__main__':
    if sys.argv[1] == 'plan':
        plan()
    elif sys.argv[1] == 'maps':
        compare_maps(sys.argv[2:])
    elif sys.argv[1] == 'verify':
        verify(sys.argv[2])
    else:
        run(sys.argv[2])
