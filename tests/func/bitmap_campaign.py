# SPDX-License-Identifier: BSD-3-Clause
"""Random work on a disk with persistent bitmaps, and what its image must say
at each moment of it.

The guest is four clients that write, and flush, at once: so clusters are freed
during a flush.

A moment is what clock() returns.  A *life* is a promise of one bitmap: from a
moment on, until another, each sector that differs from `base` is dirty; for a
bitmap that was disabled, each that differed then.
"""
import os
import subprocess

import bitmap_image
import nbd

NAMES = ['a', 'bb', 'ccc', 'd' * 300]
GRANULARITIES = [512, 4096, 65536, 1 << 20]
NODE = 'vda'
CLIENTS = 4
IN_USE, AUTO = 1, 2


class Life:
    def __init__(self, name, base, until, start):
        self.name = name
        self.base = base
        self.until = until  # a content, or None: whatever the disk holds
        self.start = start
        self.end = None


class Campaign:
    def __init__(self, daemon, rng, clock):
        self.daemon = daemon
        self.rng = rng
        self.clock = clock
        self.handles = []
        self.size = 0
        self.names = {}     # name -> enabled
        self.alive = {}     # name -> [Life]
        self.lives = []
        self.steps = []     # (issued, done or None, names before, after)
        self.jobs = 0

    # --- Connections ---

    def connect(self):
        """Anew: a client does not learn of another size."""
        self.disconnect()
        self.handles = [nbd.NBD() for _ in range(CLIENTS)]
        for handle in self.handles:
            handle.connect_uri(f'nbd+unix:///{NODE}?socket=' +
                               os.path.abspath('nbd.sock'))
        self.size = self.handles[0].get_size()

    def disconnect(self):
        for handle in self.handles:
            handle.shutdown()
        self.handles = []

    def content(self):
        data = bytearray()
        while len(data) < self.size:
            step = min(self.size - len(data), 8 << 20)
            data += self.handles[0].pread(step, len(data))
        return bitmap_image.chunks(data)

    # --- The guest ---

    def ranges(self, count):
        """Apart from one another; near the start, and anywhere."""
        taken = []
        for _ in range(count):
            length = self.rng.choice([512, 4096, 4096, 20000, 70000, 300000])
            top = self.rng.choice([self.size // 16, self.size])
            offset = self.rng.randrange(max(top - length, 1)) // 512 * 512
            length = min(length // 512 * 512, self.size - offset)
            if all(offset + length <= o or o + n <= offset for o, n in taken):
                taken.append((offset, length))
        return taken

    def write(self, h, offset, length):
        rng = self.rng
        what = rng.random()
        if what < 0.6:
            data = nbd.Buffer.from_bytearray(
                bytearray(rng.randbytes(16) * (length // 16)))
            flags = nbd.CMD_FLAG_FUA if rng.random() < 0.1 else 0
            return h.aio_pwrite(data, offset, flags=flags)
        if what < 0.85:
            flags = rng.choice([0, nbd.CMD_FLAG_NO_HOLE,
                                nbd.CMD_FLAG_FAST_ZERO])
            return h.aio_zero(length, offset, flags=flags)
        return h.aio_trim(length, offset)

    def burst(self):
        asked = []
        for offset, length in self.ranges(self.rng.randrange(1, 12)):
            handle = self.rng.choice(self.handles)
            asked.append((handle, self.write(handle, offset, length)))
            if self.rng.random() < 0.2:
                handle = self.rng.choice(self.handles)
                asked.append((handle, handle.aio_flush()))
        while asked:
            asked[0][0].poll(-1)
            asked = [a for a in asked if not self.completed(*a)]

    def completed(self, handle, cookie):
        try:
            return handle.aio_command_completed(cookie)
        except nbd.Error as e:
            if e.errno == 'ENOTSUP':  # a fast zero that would not be
                return True
            raise

    # --- Bitmaps ---

    def change(self, names, alive, run):
        """Run a command after which there are @names, and for those of
        @alive other promises: (base, until) of each."""
        ended = []
        for name in alive:
            ended += self.alive.get(name, [])
        issued = self.clock()
        for life in ended:
            life.end = issued
        self.steps.append((issued, None, dict(self.names), dict(names)))
        run()
        done = self.clock()
        self.steps[-1] = (issued, done, dict(self.names), dict(names))
        self.names = dict(names)
        for name, promises in alive.items():
            self.alive[name] = [Life(name, base, until, done)
                                for base, until in promises]
            self.lives += self.alive[name]

    def verb(self):
        actions = []
        names = dict(self.names)
        alive = {}
        now = self.content()

        def promises(name):
            return alive.get(name, [(life.base, life.until) for life in
                                    self.alive.get(name, [])])

        for _ in range(self.rng.choice([1, 1, 1, 2, 4])):
            name = self.rng.choice(NAMES)
            data = {'node': NODE, 'name': name}
            if name not in names:
                what = 'add'
                disabled = self.rng.random() < 0.2
                data |= {'persistent': True, 'disabled': disabled,
                         'granularity': GRANULARITIES[NAMES.index(name)]}
                names[name] = not disabled
                alive[name] = [] if disabled else [(now, None)]
            else:
                what = self.rng.choice(['remove', 'clear', 'enable', 'disable',
                                        'merge'])
            if what == 'remove':
                del names[name]
                alive[name] = []
            elif what == 'clear':
                alive[name] = [(now, None)] if names[name] else []
            elif what == 'enable' and not names[name]:
                names[name] = True
                alive[name] = [(now, None)]
            elif what == 'disable' and names[name]:
                names[name] = False
                alive[name] = [(base, until or now)
                               for base, until in promises(name)]
            elif what == 'merge':
                source = self.rng.choice(sorted(names))
                data = {'node': NODE, 'target': name, 'bitmaps': [source]}
                end = None if names[name] else now
                alive[name] = promises(name) + [
                    (base, until or end) for base, until in promises(source)]
            actions.append({'type': f'block-dirty-bitmap-{what}',
                            'data': data})
        if len(actions) == 1:
            self.change(names, alive, lambda: self.daemon.ask(
                actions[0]['type'], **actions[0]['data']))
        else:
            self.change(names, alive, lambda: self.daemon.ask(
                'transaction', actions=actions))

    def backup(self):
        """A job that uses a bitmap; it comes to an end when it is told."""
        names = sorted(n for n, enabled in self.names.items() if enabled)
        if not names:
            return
        name = self.rng.choice(names)
        mode = self.rng.choice(['on-success', 'always', 'never'])
        job, target = f'job{self.jobs}', f'target{self.jobs}'
        self.jobs += 1
        self.daemon.ask('blockdev-add', driver='null-co', node_name=target,
                        size=self.size)
        start = self.content()
        self.daemon.ask('blockdev-backup', job_id=job, device=NODE,
                        target=target, sync='bitmap', bitmap=name,
                        bitmap_mode=mode, auto_finalize=False)
        self.burst()
        self.daemon.event('JOB_STATUS_CHANGE', id=job, status='pending')
        self.burst()
        success = self.rng.random() < 0.5
        alive = {}
        if mode == 'always' or (mode == 'on-success' and success):
            alive[name] = [(start, None)]

        def end():
            self.daemon.ask('job-finalize' if success else 'job-cancel',
                            id=job)
            self.daemon.event('JOB_STATUS_CHANGE', id=job, status='null')

        self.change(self.names, alive, end)
        self.daemon.ask('blockdev-del', node_name=target)
        self.daemon.events.clear()

    def by_hand(self):
        """Commands of qemu-io, through the human monitor."""
        for offset, length in self.ranges(2):
            what = self.rng.choice(['write -P 7', 'write -z', 'write -z -u',
                                    'discard', 'aio_write -P 9'])
            self.daemon.ask('human-monitor-command', command_line=f'qemu-io '
                            f'{NODE} "{what} {offset} {length}"')
        self.daemon.ask('human-monitor-command',
                        command_line=f'qemu-io {NODE} aio_flush')

    def commit(self):
        """Writes into an overlay, and a job that brings them down."""
        n, self.jobs = self.jobs, self.jobs + 1
        overlay, job = f'overlay{n}', f'commit{n}'
        path = f'{overlay}.qcow2'
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', path,
                        str(self.size)], check=True)
        self.daemon.ask('blockdev-add', driver='qcow2', node_name=overlay,
                        file={'driver': 'file', 'filename': path},
                        backing=None)
        self.daemon.ask('blockdev-snapshot', node=NODE, overlay=overlay)
        self.burst()
        self.daemon.ask('block-commit', job_id=job, device=overlay,
                        base_node=NODE)
        self.burst()
        self.daemon.event('BLOCK_JOB_READY', device=job)
        self.burst()
        self.daemon.ask('job-complete', id=job)
        self.daemon.event('JOB_STATUS_CHANGE', id=job, status='null')
        self.daemon.ask('blockdev-del', node_name=overlay)
        self.daemon.events.clear()
        os.unlink(path)

    def restore(self):
        """The disk is the target of a backup; nobody else writes to it."""
        n, self.jobs = self.jobs, self.jobs + 1
        source, job = f'source{n}', f'restore{n}'
        with open(f'{source}.img', 'wb') as f:
            f.truncate(self.size)
            for offset, length in self.ranges(20):
                f.seek(offset)
                f.write(self.rng.randbytes(length))
        self.daemon.ask('blockdev-add', driver='raw', node_name=source,
                        file={'driver': 'file', 'filename': f'{source}.img'})
        self.disconnect()
        self.daemon.ask('block-export-del', id='e', mode='hard')
        self.daemon.event('BLOCK_EXPORT_DELETED', id='e')
        self.daemon.ask('blockdev-backup', job_id=job, device=source,
                        target=NODE, sync='full')
        self.daemon.event('JOB_STATUS_CHANGE', id=job, status='null')
        self.daemon.ask('block-export-add', type='nbd', id='e',
                        node_name=NODE, name=NODE, writable=True)
        self.connect()
        self.daemon.ask('blockdev-del', node_name=source)
        self.daemon.events.clear()
        os.unlink(f'{source}.img')

    def resize(self):
        """What is cut off is forgotten, and dirty when it comes back; but a
        bitmap that is disabled does not record that."""
        chunks = self.rng.randrange(16 << 20, 48 << 20) // bitmap_image.CHUNK
        size = chunks * bitmap_image.CHUNK
        alive = {name: [(life.base, life.until and life.until[:chunks])
                        for life in lives]
                 for name, lives in self.alive.items()
                 if not self.names.get(name, True)}
        self.change(self.names, alive, lambda: self.daemon.ask(
            'block_resize', node_name=NODE, size=size))
        self.connect()

    def step(self):
        what = self.rng.random()
        if what < 0.60:
            self.burst()
        elif what < 0.70:
            self.handles[0].flush()
        elif what < 0.88:
            self.verb()
        elif what < 0.92:
            self.backup()
        elif what < 0.97:
            self.rng.choice([self.by_hand, self.commit, self.restore])()
        else:
            self.resize()

    def resume(self, daemon, image):
        """After a crash that left @image: what was asked for last has happened
        or not, and nothing is promised of that."""
        self.daemon = daemon
        moment = self.clock()
        if self.steps and self.steps[-1][1] is None:
            self.names = {name: bool(b.flags & AUTO) for name, b in
                          bitmap_image.bitmaps(image).items()}
        for name, lives in self.alive.items():
            self.alive[name] = [life for life in lives if life.end is None]
        self.lives = sum(self.alive.values(), [])
        self.steps = [(moment, moment, {}, dict(self.names))]
        bitmap_image.forget()

    # --- What an image must say ---

    def names_at(self, moment):
        """What bitmaps there may be."""
        names = {}
        for issued, done, before, after in self.steps:
            if moment < issued:
                break
            if done is None or moment < done:
                return [before, after]
            names = after
        return [names]

    def lost_bits(self, image, moment):
        """Changes that no bit tells of, as texts."""
        there = bitmap_image.bitmaps(image)
        for name, bitmap in there.items():
            assert bitmap.flags & ~AUTO == 0, (name, bitmap.flags)
        found = {name: bool(b.flags & AUTO) for name, b in there.items()}
        allowed = self.names_at(moment)
        assert found in allowed, (found, allowed)
        now = bitmap_image.content(image)
        lost = []
        for life in self.lives:
            if life.start <= moment and (life.end is None or
                                         moment < life.end):
                bitmap = there[life.name]
                sectors = bitmap_image.changed_sectors(life.base,
                                                       life.until or now)
                lacking = [s for s in sectors
                           if s < len(now) * bitmap_image.CHUNK and
                           not bitmap.has(s)]
                if lacking:
                    lost.append(f'{life.name[:8]}: {len(lacking)} sectors, '
                                f'the first at {lacking[0]}')
        return lost
