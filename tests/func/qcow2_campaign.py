#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Change qcow2 images at random, by turns of nbdelta and of QEMU, and hold them
against a model of the disk, of its snapshots and of its bitmaps.

qcow2_campaign.py NBDELTA ROUNDS SEED [STAGES]   in an empty directory

A round is an image with random options: version, cluster size, width of
counts, subclusters, LUKS, data file, backing file.  It goes through stages: a
guest of ours or of QEMU's, commands of either, an overlay that is committed,
a compressed backup into it, kill -9.  After each of them

  - qemu-img check and nbdelta check find nothing (after kill -9: leaks at most)
  - both programs read what the model has, from the disk and from each snapshot
  - each bitmap has all that was changed, and nothing else

A command may be refused for a reason that REFUSED knows.  Then it has changed
nothing.
"""
import collections
import copy
import json
import os
import random
import re
import subprocess
import sys

import nbd

from qmp_daemon import Daemon, QmpError

UNIT = 512
ROWS = [bytes([i]) * UNIT for i in range(256)]
IMAGE, OVERLAY = 'image.qcow2', 'overlay.qcow2'
SECRET = 'secret,id=s,data=sesame'

REFUSED = re.compile('|'.join((
    'cannot tell of one snapshot more',    # counts that are too narrow
    'refcount_bits',
    'Could not create snapshot .*: -22',   # QEMU has the same
    'Invalid argument',
    'data file',                           # no snapshots with one
    'snapshot',
    'has active dirty bitmaps',            # QEMU does not apply then
    'bitmaps',
    'not supported',
    'Operation not supported',
)))

tally = collections.Counter()


class Wrong(Exception):
    """What must not be."""


class Refused(Exception):
    """A command has failed for a good reason."""


def run(*argv, ok=(0,)):
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       timeout=120, check=False)
    text = p.stdout.decode(errors='replace')
    if p.returncode not in ok:
        raise Wrong(f'{" ".join(argv)}: exit {p.returncode}\n{text}')
    return p.returncode, text


def command(*argv):
    """Run what may be refused."""
    status, text = run(*argv, ok=(0, 1))
    if status:
        if not REFUSED.search(text):
            raise Wrong(f'{" ".join(argv)}: {text}')
        raise Refused(text)


class Disk:
    """What each sector shows: a byte that fills it, or one of several."""

    def __init__(self, sectors):
        self.bytes = bytearray(sectors)
        self.maybe = {}

    def fork(self):
        return copy.deepcopy(self)

    def set(self, first, values):
        self.bytes[first:first + len(values)] = values
        for i in range(first, first + len(values)):
            self.maybe.pop(i, None)

    def allow(self, first, values):
        """It may also show these."""
        for i, v in enumerate(values, first):
            self.maybe.setdefault(i, {self.bytes[i]}).add(v)

    def resize(self, sectors):
        del self.bytes[sectors:]
        self.bytes.extend(bytes(sectors - len(self.bytes)))
        self.maybe = {i: v for i, v in self.maybe.items() if i < sectors}

    def agree(self, data, who):
        """@data is what @who reads; what was open is known now."""
        seen = data[::UNIT]
        if b''.join([ROWS[v] for v in seen]) != data:
            bad = next(i for i, v in enumerate(seen)
                       if data[i * UNIT:(i + 1) * UNIT] != ROWS[v])
            raise Wrong(f'{who}: garbage in sector {bad}')
        for i, v in self.maybe.items():
            if i < len(seen) and seen[i] in v:
                self.bytes[i] = seen[i]
        self.maybe = {i: v for i, v in self.maybe.items() if i >= len(seen)}
        want = bytes(self.bytes[:len(seen)])
        if seen != want:
            bad = next(i for i, v in enumerate(seen) if v != want[i])
            raise Wrong(f'{who}: sector {bad} shows {seen[bad]}, '
                        f'not {want[bad]}')


class Bitmap:
    def __init__(self, sectors, grain):
        self.grain = grain
        self.must = bytearray(sectors)
        self.may = bytearray(sectors)

    def mark(self, first, count, must=True):
        ones = b'\1' * count
        if must:
            self.must[first:first + count] = ones
        per = self.grain // UNIT
        first, end = first // per * per, -(-(first + count) // per) * per
        end = min(end, len(self.may))
        self.may[first:end] = b'\1' * (end - first)

    def resize(self, sectors, must):
        old = len(self.must)
        for b in self.must, self.may:
            del b[sectors:]
            b.extend(bytes(sectors - len(b)))
        if sectors > old:
            self.mark(old, sectors - old, must)
        elif must:  # ours marks where the disk is cut
            self.mark(sectors - 1, 1, False)

    def agree(self, extents, name):
        for e in extents:
            first, end = e['start'] // UNIT, (e['start'] + e['length']) // UNIT
            if e['dirty'] and self.may.count(0, first, end):
                raise Wrong(f'bitmap {name}: sector '
                            f'{self.may.find(0, first, end)} is dirty')
            if not e['dirty'] and self.must.count(1, first, end):
                raise Wrong(f'bitmap {name}: sector '
                            f'{self.must.find(1, first, end)} is clean')


class Guest:
    """What a guest asks for, at random: (what, first sector, sectors, byte)."""

    def __init__(self, rng, sectors, cluster):
        self.rng, self.sectors = rng, sectors
        self.cluster = max(1, cluster // UNIT)
        self.hot = rng.randrange(sectors)

    def place(self):
        rng = self.rng
        first = rng.randrange(self.sectors)
        if rng.random() < .5:
            first = min(self.sectors - 1,
                        self.hot + rng.randrange(2 * self.cluster))
        count = rng.choice((1, 1, 3, 8, 64, self.cluster, 3 * self.cluster,
                            self.sectors // 3))
        if rng.random() < .4:
            first = first // self.cluster * self.cluster
        return first, max(1, min(count, self.sectors - first))

    def request(self):
        what = self.rng.choice(('write',) * 6 + ('zero', 'unmap', 'unmap',
                                                 'trim', 'trim', 'touch'))
        return (what, *self.place(), self.rng.randrange(1, 256))


class Round:
    def __init__(self, nbdelta, seed, log):
        self.nbdelta, self.rng, self.log = nbdelta, random.Random(seed), log
        self.snapshots = {}
        self.bitmaps = {}
        self.number = 0
        self.make()

    def say(self, *words):
        self.log.append(' '.join(str(w) for w in words))

    # --- Images ---

    def pick_options(self):
        rng = self.rng
        self.compat = rng.choice(('1.1',) * 5 + ('0.10',))
        new = self.compat == '1.1'
        self.extended = new and rng.random() < .5
        sizes = (16384, 65536) if self.extended else (512, 4096, 65536)
        self.cluster = rng.choice(sizes + ((1 << 21,) if rng.random() < .1
                                           else ()))
        self.refbits = rng.choice((1, 2, 8, 16, 16, 64)) if new else 16
        self.luks = rng.random() < .3
        self.data_file = new and rng.random() < .2
        self.raw = self.data_file and not self.luks and rng.random() < .5
        self.backing = rng.choice((None, 'raw', 'qcow2'))
        if self.raw:
            self.backing = None
        self.packed = not (self.luks or self.data_file)

    def options(self):
        yield f'compat={self.compat}'
        yield f'cluster_size={self.cluster}'
        if self.compat == '1.1':
            yield f'refcount_bits={self.refbits}'
        if self.extended:
            yield 'extended_l2=on'
        if self.data_file:
            yield f'data_file=image.data,data_file_raw={"on" if self.raw else "off"}'
        if self.packed and self.compat == '1.1' and self.rng.random() < .3:
            yield 'compression_type=zstd'
        if self.luks:
            yield ('encrypt.format=luks,encrypt.key-secret=s,'
                   'encrypt.iter-time=1')
        elif self.rng.random() < .15:
            yield 'preallocation=metadata'

    def make(self):
        self.pick_options()
        # A disk of QEMU's own test of its speed would take a second for LUKS.
        ours = self.luks or self.rng.random() < .5
        sectors = self.rng.choice((1, 3, 4)) * 2048 + self.rng.choice((0, 0, 1))
        text = ','.join(self.options())
        self.disk = Disk(sectors)
        self.below = bytes(sectors)
        argv = [self.nbdelta, 'create'] if ours else ['qemu-img', 'create', '-q',
                                                      '-f', 'qcow2']
        if self.luks:
            argv += ['--object', SECRET]
        if self.backing:
            self.make_backing('back', self.backing)
            if ',preallocation' in text and not self.extended:
                text = text.replace(',preallocation=metadata', '')
            argv += ['-b', 'back', '-F', self.backing]
        for name in IMAGE, 'image.data':
            if os.path.exists(name):
                os.unlink(name)
        self.say('make', 'ours' if ours else 'QEMU', text, self.backing,
                 sectors)
        run(*argv, '-o', text, IMAGE, str(sectors * UNIT))

    def make_backing(self, name, form):
        rng = self.rng
        had = len(self.disk.bytes) - rng.choice((0, 100, 1000))
        value = rng.randrange(1, 256)
        first = rng.randrange(had // 2)
        if os.path.exists(name):
            os.unlink(name)
        run('qemu-img', 'create', '-q', '-f', form, name, str(had * UNIT))
        run('qemu-io', '-f', form, '-c', f'write -P {value} {first * UNIT} '
            f'{(had - first) * UNIT}', name)
        below = bytearray(had)
        below[first:] = bytes([value]) * (had - first)
        self.backing_bytes = bytes(below)
        self.disk.bytes[:had] = below
        self.below = bytes(self.disk.bytes)

    def opts(self, path=IMAGE):
        key = ',encrypt.key-secret=s' if self.luks else ''
        if path == OVERLAY:
            key = ',backing.encrypt.key-secret=s' if self.luks else ''
        return (f'driver=qcow2,discard=unmap,file.driver=file,'
                f'file.filename={path}{key}')

    def objects(self):
        return ('--object', SECRET) if self.luks else ()

    def under(self, first, count):
        """What shines through where nothing is allocated."""
        return self.below[first:first + count].ljust(count, b'\0')

    # --- What changes ---

    def change(self, request, disk=None, open_end=False):
        """The model goes along; @open_end: it may not have happened."""
        disk = disk or self.disk
        what, first, count, value = request
        if what == 'touch':
            return
        values = bytes(count) if what in ('zero', 'unmap') \
            else bytes([value]) * count
        if what == 'trim':
            disk.allow(first, bytes(count))
            disk.allow(first, self.under(first, count))
        elif open_end:
            disk.allow(first, values)
        else:
            disk.set(first, values)

    def mark(self, request, must=True):
        what, first, count, _ = request
        for b in self.bitmaps.values():
            b.mark(first, count, must and what not in ('trim', 'touch'))

    def guest(self):
        return Guest(self.rng, len(self.disk.bytes), self.cluster)

    # --- QEMU ---

    def qemu_io(self, path=IMAGE, most=12):
        g = self.guest()
        words = {'write': 'write -P {v} {a} {n}', 'zero': 'write -z {a} {n}',
                 'unmap': 'write -z -u {a} {n}', 'trim': 'discard {a} {n}'}
        lines = []
        for _ in range(self.rng.randrange(1, most)):
            r = g.request()
            if r[0] == 'touch':
                continue
            lines.append(words[r[0]].format(v=r[3], a=r[1] * UNIT,
                                            n=r[2] * UNIT))
            self.say('  qemu-io', lines[-1])
            self.change(r)
            self.mark(r)
        text = run('qemu-io', *self.objects(), '--image-opts', self.opts(path),
                   *(x for line in lines for x in ('-c', line)))[1]
        if 'failed' in text or 'rror' in text:
            raise Wrong(f'qemu-io: {text}')

    def qemu_packs(self):
        """Compressed clusters, of what has none yet."""
        if not self.packed:
            raise Refused('no compression')
        per = max(1, self.cluster // UNIT)
        first = self.rng.randrange(len(self.disk.bytes)) // per * per
        count = min(per * self.rng.randrange(1, 4),
                    len(self.disk.bytes) - first)
        value = self.rng.randrange(1, 256)
        for at in range(first, first + count, per):
            n = min(per, first + count - at)
            line = f'write -c -P {value} {at * UNIT} {n * UNIT}'
            text = run('qemu-io', '--image-opts', self.opts(), '-c', line,
                       ok=(0, 1))[1]
            r = ('write', at, n, value)
            if 'failed' in text:
                if 'Input/output error' not in text:
                    raise Wrong(text)
                self.mark(r, False)
                continue
            self.say('  qemu-io', line)
            self.change(r)
            self.mark(r)

    # --- Ours ---

    def daemon(self, path=IMAGE, more=()):
        node = f'node-name=d,{self.opts(path)}'
        return Daemon(self.nbdelta, *self.objects(), '--blockdev', node,
                      '--export', 'type=nbd,id=d,node-name=d,name=d,writable=on',
                      *more)

    def connect(self, name='d'):
        h = nbd.NBD()
        h.connect_uri(f'nbd+unix:///{name}?socket=nbd.sock')
        return h

    def submit(self, h, r):
        """(cookie, the buffer, which has to live as long as the request)."""
        what, first, count, value = r
        at, n = first * UNIT, count * UNIT
        if what == 'touch':
            # The same bytes again, and not by sectors.
            value, at, n = self.disk.bytes[first], at + 13, 77
        if what in ('write', 'touch'):
            buf = nbd.Buffer.from_bytearray(bytearray([value]) * n)
            return h.aio_pwrite(buf, at), buf
        if what == 'trim':
            return h.aio_trim(n, at), None
        return h.aio_zero(n, at, flags=nbd.CMD_FLAG_NO_HOLE
                          if what == 'zero' else 0), None

    def batch(self, h, g, most=5):
        """Requests in flight together do not overlap, but share clusters."""
        taken, batch = [], []
        for _ in range(self.rng.randrange(1, most)):
            r = g.request()
            if any(a < r[1] + r[2] and r[1] < b for a, b in taken):
                continue
            if r[0] == 'touch' and r[1] in self.disk.maybe:
                continue
            taken.append((r[1], r[1] + r[2]))
            batch.append(r)
        self.say('  ours', *batch)
        return [(r, *self.submit(h, r)) for r in batch]

    @staticmethod
    def finish(h, flying):
        for _, cookie, _ in flying:
            while not h.aio_command_completed(cookie):
                h.poll(-1)

    def our_requests(self, h, d, batches, open_end=False, verbs=True):
        g = self.guest()
        for _ in range(batches):
            flying = self.batch(h, g)
            for r, _, _ in flying:
                self.mark(r, not open_end)
            if verbs and self.rng.random() < .25:
                self.our_verb(d, [r for r, _, _ in flying])
            self.finish(h, flying)
            for r, _, _ in flying:
                self.change(r, open_end=open_end)
            if not open_end and self.often(.2):
                self.disk.agree(bytes(h.pread(len(self.disk.bytes) * UNIT, 0)),
                                'the guest')

    def often(self, chance):
        return self.rng.random() < (1 if os.environ.get('LOOK') else chance)

    def our_verb(self, d, flying):
        """A command, while the requests @flying go on."""
        verb = self.rng.choice((self.make_snapshot, self.drop_snapshot,
                                self.our_bitmap))
        try:
            verb(d, flying)
            tally[verb.__name__] += 1
        except (QmpError, Refused) as e:
            text = getattr(e, 'text', str(e))
            if not REFUSED.search(text):
                raise Wrong(f'{verb.__name__}: {text}') from e
            tally[f'{verb.__name__} refused'] += 1

    def name(self):
        self.number += 1
        return f's{self.number}'

    def make_snapshot(self, d, flying):
        name = self.name()
        snapshot = self.disk.fork()
        self.say('  ours makes', name)
        d.ask('blockdev-snapshot-internal-sync', device='d', name=name)
        for r in flying:
            self.change(r, snapshot, True)
        self.snapshots[name] = snapshot

    def drop_snapshot(self, d, _):
        if not self.snapshots:
            raise Refused('no snapshot')
        name = self.rng.choice(sorted(self.snapshots))
        self.say('  ours removes', name)
        d.ask('blockdev-snapshot-delete-internal-sync', device='d', name=name)
        del self.snapshots[name]

    def our_bitmap(self, d, flying):
        if self.compat != '1.1':
            raise Refused('no bitmaps')
        grain = self.rng.choice((512, 4096, 65536))
        name = self.rng.choice(('b0', 'b1'))
        new = Bitmap(len(self.disk.bytes), grain)
        if name not in self.bitmaps:
            self.say('  ours adds', name, grain)
            d.ask('block-dirty-bitmap-add', node='d', name=name,
                  persistent=True, granularity=grain)
        elif self.rng.random() < .5:
            new.grain = self.bitmaps[name].grain
            self.say('  ours clears', name)
            d.ask('block-dirty-bitmap-clear', node='d', name=name)
        else:
            self.say('  ours drops', name)
            d.ask('block-dirty-bitmap-remove', node='d', name=name)
            del self.bitmaps[name]
            return
        for r in flying:
            if r[0] != 'touch':
                new.mark(r[1], r[2], False)
            else:
                new.mark(r[1], 1, False)
        self.bitmaps[name] = new

    # --- Stages ---

    def stage_ours(self):
        with self.daemon() as d:
            h = self.connect()
            self.our_requests(h, d, self.rng.randrange(1, 12))
            h.shutdown()

    def stage_qemu(self):
        self.qemu_io()

    def stage_qemu_packs(self):
        self.qemu_packs()
        self.qemu_io(most=4)

    def stage_kill(self):
        with self.daemon() as d:
            h = self.connect()
            self.our_requests(h, d, 3)
            h.flush()
            self.our_requests(h, d, self.rng.randrange(1, 6), True, False)
            d.process.kill()
            d.process.wait()
        for path in 'nbd.sock', 'qmp.sock', 'pid':
            if os.path.exists(path):
                os.unlink(path)
        run(self.nbdelta, 'check', '-r', 'leaks', IMAGE)
        # One that was armed then is dirty there.
        for b in self.bitmaps.values():
            b.mark(0, len(b.may), False)

    def stage_our_resize(self):
        sectors = self.new_size()
        self.say('  ours resizes', sectors)
        try:
            with self.daemon() as d:
                d.ask('block_resize', node_name='d', size=sectors * UNIT)
        except QmpError as e:
            if not REFUSED.search(e.text):
                raise Wrong(f'resize: {e.text}') from e
            raise Refused(e.text) from e
        self.resized(sectors, True)

    def stage_qemu_resize(self):
        sectors = self.new_size()
        self.say('  QEMU resizes', sectors)
        command('qemu-img', 'resize', '-q', '--shrink', *self.objects(),
                '--image-opts', self.opts(), str(sectors * UNIT))
        self.resized(sectors, False)

    def new_size(self):
        return self.rng.choice((1, 2, 5)) * 1024 + self.rng.choice((0, 0, 7))

    def resized(self, sectors, must):
        self.disk.resize(sectors)
        for b in self.bitmaps.values():
            b.resize(sectors, must)

    def stage_our_snapshot(self):
        """By the command, which knows no keys."""
        if self.luks:
            raise Refused('no keys')
        self.snapshot(self.nbdelta, IMAGE)

    def stage_qemu_snapshot(self):
        self.snapshot('qemu-img', '--image-opts', self.opts())

    def snapshot(self, program, *image):
        rng = self.rng
        name = rng.choice(sorted(self.snapshots)) if self.snapshots else None
        verb = rng.choice('ccaad') if name else 'c'
        objects = self.objects() if program == 'qemu-img' else ()
        if verb == 'c':
            name = self.name()
        self.say(' ', os.path.basename(program), 'snapshot', verb, name)
        try:
            command(program, 'snapshot', *objects, f'-{verb}', name, *image)
        except Refused:
            if program == 'qemu-img':  # it has raised counts by then
                run(self.nbdelta, 'check', '-r', 'all', IMAGE)
            raise
        if verb == 'c':
            self.snapshots[name] = self.disk.fork()
        elif verb == 'd':
            del self.snapshots[name]
        else:
            self.disk = self.snapshots[name].fork()
            sectors = len(self.disk.bytes)
            for b in self.bitmaps.values():
                b.resize(sectors, True)
                b.mark(0, sectors)

    def stage_qemu_bitmap(self):
        if self.compat != '1.1':
            raise Refused('no bitmaps')
        name = self.rng.choice(('b0', 'b1'))
        verb = 'add' if name not in self.bitmaps else \
            self.rng.choice(('clear', 'remove'))
        self.say('  QEMU', verb, name)
        command('qemu-img', 'bitmap', *self.objects(), f'--{verb}',
                '--image-opts', self.opts(), name)
        if verb == 'remove':
            del self.bitmaps[name]
            return
        grain = 65536 if verb == 'add' else self.bitmaps[name].grain
        self.bitmaps[name] = Bitmap(len(self.disk.bytes), grain)

    def stage_commit(self):
        rng = self.rng
        if os.path.exists(OVERLAY):
            os.unlink(OVERLAY)
        extended = rng.random() < .5
        options = (f'cluster_size={rng.choice((16384, 65536))},extended_l2=on'
                   if extended else
                   f'cluster_size={rng.choice((512, 4096, 65536))}')
        ours = rng.random() < .6
        self.say('  overlay', options, 'ours' if ours else 'QEMU')
        size = str(len(self.disk.bytes) * UNIT)
        # By name: a file with a key cannot be looked at.
        run('qemu-img', 'create', '-q', '-u', '-f', 'qcow2', '-o', options,
            '-b', IMAGE, '-F', 'qcow2', OVERLAY, size)
        bitmaps, self.bitmaps = self.bitmaps, {}
        below, self.below = self.below, bytes(self.disk.bytes)
        try:
            self.qemu_io(OVERLAY)
            if ours:
                self.our_commit()
            else:
                run('qemu-img', 'commit', '-q', *self.objects(),
                    '--image-opts', self.opts(OVERLAY))
        finally:
            self.below, self.bitmaps = below, bitmaps
        for b in bitmaps.values():
            b.mark(0, len(b.may), False)

    def our_commit(self):
        with self.daemon(OVERLAY) as d:
            h = self.connect()
            self.our_requests(h, d, 3, verbs=False)
            d.ask('block-commit', job_id='j', device='d', base=IMAGE)
            d.event('BLOCK_JOB_READY')
            self.our_requests(h, d, 2, verbs=False)
            d.ask('block-job-complete', device='j')
            done = d.end_of('j')
            if 'error' in done:
                raise Wrong(f'commit: {done}')
            self.our_requests(h, d, 2, verbs=False)
            h.shutdown()

    def stage_backup(self):
        """Another disk is copied here, maybe compressed."""
        rng = self.rng
        disk = Disk(len(self.disk.bytes))
        for _ in range(4):
            _, first, count, value = self.guest().request()
            disk.set(first, bytes([rng.choice((0, value))]) * count)
        with open('source.raw', 'wb') as f:
            f.write(b''.join([ROWS[v] for v in disk.bytes]))
        compress = self.packed and rng.random() < .7
        self.say('  backup', 'compressed' if compress else '')
        with self.daemon(more=('--blockdev', 'driver=file,node-name=s,'
                               'filename=source.raw')) as d:
            d.ask('block-export-del', id='d')
            d.ask('blockdev-backup', job_id='j', device='s', target='d',
                  sync='full', compress=compress)
            done = d.end_of('j')
            if 'error' in done:
                raise Wrong(f'backup: {done}')
        self.disk = disk
        for b in self.bitmaps.values():
            b.mark(0, len(b.may), False)

    def stage_rebase(self):
        if not self.backing or self.luks or self.data_file:
            raise Refused('no backing')
        form = self.rng.choice((None, 'raw', 'qcow2'))
        before = self.disk.fork()
        old, old_bytes = self.below, self.backing_bytes
        if form:
            self.make_backing('back2', form)
            argv = ['-b', 'back2', '-F', form]
        else:
            argv = ['-b', '']
            self.below = bytes(len(old))
        self.disk = before
        ours = self.rng.random() < .6
        self.say('  rebase', *argv, 'ours' if ours else 'QEMU')
        if self.snapshots:
            # What they had of the old one changes with it.
            self.below, self.backing_bytes = old, old_bytes
            raise Refused('snapshots show the backing file')
        run(self.nbdelta if ours else 'qemu-img', 'rebase', *argv, '-f',
            'qcow2', IMAGE)
        self.backing = form
        if form:
            os.replace('back2', 'back')
            run('qemu-img', 'rebase', '-u', '-b', 'back', '-F', form, '-f',
                'qcow2', IMAGE)
        for b in self.bitmaps.values():
            b.mark(0, len(b.may), False)

    # --- Looking ---

    def look(self):
        """All that both programs say."""
        for argv in ([self.nbdelta, 'check', IMAGE],
                     ['qemu-img', 'check', *self.objects(), '--image-opts',
                      self.opts()]):
            run(*argv)
        self.read_ours()
        self.read_qemu()
        for name, b in self.bitmaps.items():
            text = run(self.nbdelta, 'map', '--bitmap', name, *self.objects(),
                       '--output', 'json', self.opts())[1]
            b.agree(json.loads(text), name)

    def read_ours(self):
        disks = [('d', self.disk, '')] + [
            (n, s, f',snapshot={n}') for n, s in self.snapshots.items()]
        argv = []
        for name, _, which in disks:
            argv += ['--blockdev', f'node-name={name},read-only=on,'
                     f'{self.opts()}{which}', '--export',
                     f'type=nbd,id={name},node-name={name},name={name}']
        with Daemon(self.nbdelta, *self.objects(), *argv):
            for name, disk, _ in disks:
                h = self.connect(name)
                size = h.get_size()
                if size != len(disk.bytes) * UNIT:
                    raise Wrong(f'{name} has {size} bytes')
                disk.agree(bytes(h.pread(size, 0)), f'{name}, by us')
                h.shutdown()

    def read_qemu(self):
        self.convert(self.disk, 'the disk, by QEMU')
        for name, disk in self.snapshots.items():
            if self.rng.random() < .4:
                self.convert(disk, f'{name}, by QEMU', '-l',
                             f'snapshot.name={name}')

    def convert(self, disk, what, *which):
        """QEMU shows a snapshot in the size that the disk has now."""
        size = min(len(disk.bytes), len(self.disk.bytes)) * UNIT
        run('qemu-img', 'convert', '-O', 'raw', *self.objects(), *which,
            '--image-opts', self.opts(), 'out.raw')
        with open('out.raw', 'rb') as f:
            disk.agree(f.read(size), what)

    def go(self, stages):
        kinds = [(name[6:], getattr(self, name)) for name in sorted(dir(self))
                 if name.startswith('stage_')]
        weights = [4 if n == 'ours' else 2 if n in ('qemu', 'qemu_snapshot',
                                                    'our_snapshot') else 1
                   for n, _ in kinds]
        self.look()
        for _ in range(stages):
            name, stage = self.rng.choices(kinds, weights)[0]
            self.say(name)
            try:
                stage()
                tally[name] += 1
            except Refused as e:
                self.say('  refused:', str(e).strip())
                tally[f'{name} refused'] += 1
            self.look()


def main():
    nbdelta, rounds, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    stages = int(sys.argv[4]) if len(sys.argv) > 4 else 8
    for seed in range(first, first + rounds):
        log = []
        try:
            Round(nbdelta, seed, log).go(stages)
        except (Wrong, AssertionError, nbd.Error, QmpError,
                subprocess.TimeoutExpired) as e:
            print('\n'.join(log))
            sys.exit(f'seed {seed}: {type(e).__name__}: {e}')
    print(dict(sorted(tally.items())))


main()
