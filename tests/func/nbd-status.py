"""The disks of nbd-status.sh.

    make             write images at random; `disks` has a line for each: its
                     name, options of the export and of the node
    compare SOCKET   does each disk tell what its image and its bitmaps have?
    busy SOCKET      a disk that is written to at the same time
"""
import json
import os
import random
import struct
import subprocess
import sys
import threading

from nbd_raw import REQ_ONE, STATUS, WRITE, Client

SIZE = 6 * 2**20 + 512
CONTEXTS = ['base:allocation', 'qemu:allocation-depth']
DISKS = [  # name, options of qemu-img create, backing, compressed, of the node
    ('small', 'cluster_size=512', None, False, ',l2-cache-size=4096'),
    ('short', 'cluster_size=4k', None, False, ''),
    ('packed', 'cluster_size=4k', None, True, ''),
    ('middle', 'cluster_size=4k', 'short', False, ''),
    ('top', 'cluster_size=64k', 'middle', False, ''),
    ('subs', 'cluster_size=64k,extended_l2=on', 'short', False, ''),
    ('old', 'cluster_size=4k,compat=0.10', 'short', False, ''),
    ('apart', 'cluster_size=4k,data_file=apart.data', None, False, ''),
]
GRANULARITIES = {'fine': 4096, 'coarse': 65536}


def size_of(name):
    return 2 * 2**20 if name == 'short' else SIZE


def has_bitmaps(options):
    return 'compat' not in options


def run(*words, **kw):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE,
                          **kw).stdout


def commands(rng, name, options, compressed):
    """For qemu-io, and the bytes that become dirty."""
    if compressed: # a cluster can be written once
        for i in rng.sample(range(size_of(name) // 4096), 120):
            yield f'write -c -P 7 {i * 4096} 4096', i * 4096, 4096
        return
    for _ in range(120):
        offset = rng.randrange(size_of(name) // 512) * 512
        length = min(rng.randrange(512, 2**17 + 1, 512),
                     size_of(name) - offset)
        how = rng.choice(['write -P 7'] * 3 + ['write -z', 'write -z -u'])
        if 'compat' in options:
            how = 'write -P 7'
        yield f'{how} {offset} {length}', offset, length


def make():
    rng = random.Random(17)
    with open('disks', 'w', encoding='ascii') as disks:
        for name, options, backing, compressed, of_node in DISKS:
            image = name + '.qcow2'
            below = ['-b', backing + '.qcow2', '-F', 'qcow2'] if backing else []
            run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options,
                *below, image, str(size_of(name)))
            for bitmap, granularity in GRANULARITIES.items():
                if has_bitmaps(options):
                    run('qemu-img', 'bitmap', '--add', '-g', str(granularity),
                        image, bitmap)
            todo = list(commands(rng, name, options, compressed))
            run('qemu-io', '-f', 'qcow2', image,
                input='\n'.join(c for c, _, _ in todo).encode())
            with open(name + '.writes', 'w', encoding='ascii') as f:
                json.dump([w[1:] for w in todo], f)
            bitmaps = list(GRANULARITIES) if has_bitmaps(options) else []
            of_export = ''.join(f',bitmaps.{i}={b}'
                                for i, b in enumerate(bitmaps))
            print(name, 'allocation-depth=on' + of_export, of_node, file=disks)


# --- What a reply has to say ---

def bitmap_model(name, granularity):
    """[(length, state)] of the whole disk."""
    size = size_of(name)
    dirty = bytearray(-(-size // granularity))
    with open(name + '.writes', encoding='ascii') as f:
        for offset, length in json.load(f):
            for i in range(offset // granularity,
                           (offset + length - 1) // granularity + 1):
                dirty[i] = 1
    return [(min(granularity, size - i * granularity), d)
            for i, d in enumerate(dirty)]


def models(name, options):
    """{context: [(length, state)]} of the whole disk, not joined."""
    ranges = json.loads(run('qemu-img', 'map', '-U', '--output', 'json',
                            name + '.qcow2'))
    out = {
        CONTEXTS[0]: [(r['length'], (0 if r['data'] else 1) |
                       (2 if r['zero'] else 0)) for r in ranges],
        CONTEXTS[1]: [(r['length'], r['depth'] + 1 if r['present'] else 0)
                      for r in ranges],
    }
    if has_bitmaps(options):
        for bitmap, granularity in GRANULARITIES.items():
            out['qemu:dirty-bitmap:' + bitmap] = bitmap_model(name, granularity)
    return out


def cut(model, offset, length):
    """The part of a model, joined as a reply has to be."""
    out = []
    at = 0
    for n, state in model:
        part = min(at + n, offset + length) - max(at, offset)
        at += n
        if part > 0 and out and out[-1][1] == state:
            out[-1] = (out[-1][0] + part, state)
        elif part > 0:
            out.append((part, state))
    return out


def runs_of(c, chunk):
    """(context, [(length, state)])"""
    return c.contexts[struct.unpack('>I', chunk[:4])[0]], list(
        struct.iter_unpack('>QQ', chunk[8:]) if c.extended
        else struct.iter_unpack('>II', chunk[4:]))


def ask(c, offset, length, flags=0):
    """{context: [(length, state)]}"""
    error, chunks = c.call(STATUS, offset, length, flags)
    assert error == 0, error
    out = dict(runs_of(c, p) for _, p in chunks)
    assert all(kind == (6 if c.extended else 5) for kind, _ in chunks)
    assert set(out) == set(c.contexts.values()) and len(out) == len(chunks)
    return out


def same(c, want, offset, length, flags=0):
    got = ask(c, offset, length, flags)
    for context, runs in got.items():
        wanted = cut(want[context], offset, length)
        if flags & REQ_ONE:
            wanted = wanted[:1]
        assert runs == wanted, (context, offset, length, flags, runs, wanted)


def same_at_once(c, want):
    """Many questions, whose answers share a batch."""
    asked = [random.randrange(c.size) for _ in range(30)]
    answers = {at: [] for at in asked}
    c.s.sendall(b''.join(c.request(STATUS, at, c.size - at, cookie=at)
                         for at in asked))
    for _ in range(len(asked) * len(c.contexts)):
        at, error, _, _, p = c.message()
        assert error == 0
        answers[at].append(p)
    for at, chunks in answers.items():
        for p in chunks:
            context, runs = runs_of(c, p)
            assert runs == cut(want[context], at, c.size - at)


def compare_disk(sock, name, want):
    for extended in False, True:
        for contexts in list(want), [random.choice(list(want))]:
            c = Client(sock).go(name, extended=extended, contexts=contexts)
            assert c.size == size_of(name)
            same(c, want, 0, c.size)
            for _ in range(12):
                offset = random.randrange(c.size)
                length = min(random.randrange(1, 2**random.randrange(1, 23)),
                             c.size - offset)
                same(c, want, offset, length)
                same(c, want, offset, length, REQ_ONE)
            same_at_once(c, want)
            c.close()


def compare(sock):
    for name, options, _, _, _ in DISKS:
        want = models(name, options)
        compare_disk(sock, name, want)
        if name in ('small', 'top'): # tables are in memory now, if they fit
            compare_disk(sock, name, want)


# --- A disk that is written to ---

CHUNK = 65536


class Writer(threading.Thread):
    """Writes to chunks of its own, each once."""

    def __init__(self, sock, chunks):
        super().__init__()
        self.client = Client(sock).go('busy')
        self.chunks = chunks
        self.begun = set()
        self.done = set()

    def run(self):
        for chunk in self.chunks:
            self.begun.add(chunk)
            error = self.client.error(WRITE, chunk * CHUNK, CHUNK,
                                      data=b'x' * CHUNK)
            assert error == 0, error
            self.done.add(chunk)


def look(c, writers, size):
    """Whatever was written before the question is there; whatever is not begun
    after the answer is not."""
    done = [set(w.done) for w in writers]
    got = ask(c, 0, size)
    begun = [set(w.begun) for w in writers]
    for context, runs in got.items():
        assert all(a[1] != b[1] for a, b in zip(runs, runs[1:]))
        assert sum(n for n, _ in runs) == size
        written = 1 if 'dirty' in context else 0
        state = []
        for n, s in runs:
            assert n % CHUNK == 0
            state += [s == written] * (n // CHUNK)
        is_written = {i for i, s in enumerate(state) if s}
        assert set.union(*done) <= is_written, context
        assert is_written <= set.union(*begun), context


def busy(sock):
    size = 256 * 2**20
    rng = random.Random()
    chunks = rng.sample(range(size // CHUNK), 600)
    writers = [Writer(sock, chunks[i::2]) for i in range(2)]
    clients = [Client(sock).go('busy', extended=extended, contexts=contexts)
               for extended in (False, True)
               for contexts in (['base:allocation', 'qemu:dirty-bitmap:b'],
                                ['qemu:dirty-bitmap:b'])]
    for w in writers:
        w.start()
    while any(w.is_alive() for w in writers) or not os.path.exists('drained'):
        look(rng.choice(clients), writers, size)
    for w in writers:
        w.join()
        assert w.done == set(w.chunks)
    for c in clients:
        look(c, writers, size)


if __name__ == '__main__':
    {'make': make, 'compare': compare, 'busy': busy}[sys.argv[1]](*sys.argv[2:])
