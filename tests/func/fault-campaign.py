# SPDX-License-Identifier: BSD-3-Clause
"""Every operation that changes metadata, with a fault in it.

fault-campaign.py PROGRAM OFFLINE-PROGRAM SEED [--short] [CASE...]

A case is OPERATION/SHAPE/KIND-K/ERROR: the K-th request of a kind fails that
the operation sends to storage (fault_storage.py).  Then the image is looked
at as kill -9 would leave it, and as a power cut would; the guest goes on, and
repeats what failed; the image is looked at again, and a last time when the
disk was closed in order.  fault_model.py says what is right.
"""
import json
import os
import random
import struct
import subprocess
import sys
import time
import traceback

import bitmap_image
import nbd

import fault_model
from fault_model import UNIT, Disk
from fault_storage import (ERRORS, REPEATED, Content, Fault, Storage,
                           cut_power)
from qmp_daemon import Daemon, QmpError

MIB = 1 << 20
SIZE = 16 * MIB
PATIENCE = 20      # s, for a connection that comes back
SHOWN = 0.2        # of the images at the end go to QEMU
MOST = 2           # requests of a kind of one operation, in the short form,
ENOUGH = 70        # and s after which it begins no other operation

# name: cluster size, bytes of storage, granularities of the bitmaps b0 and b1.
# `sub` has subclusters, and a snapshot, s0.
SHAPES = {
    '64k': (65536, 12 * MIB, 65536, 1 << 20),
    '4k': (4096, 4 * MIB, 4096, 65536),
    '512': (512, 4 * MIB, 512, 4096),
    'sub': (16384, 8 * MIB, 16384, 65536),
}


class Failed(Exception):
    """A command or a job has failed, as it may."""


class Wrong(Exception):
    """What must not be."""


# --- Daemons and images -----------------------------------------------------

class Bench:
    """A daemon, and the storage that its disks lie on."""

    def __init__(self, program):
        self.program = program
        self.storage = Storage('storage.sock')
        self.daemon = None
        self.templates = {}

    def start(self):
        if self.daemon is None or self.daemon.process.poll() is not None:
            for path in 'nbd.sock', 'qmp.sock':
                if os.path.exists(path):
                    os.unlink(path)
            self.daemon = Daemon(self.program)
        return self.daemon

    def kill(self):
        if self.daemon:
            self.daemon.process.kill()
            self.daemon.process.wait()
            self.daemon.lines.close()
            self.daemon.socket.close()
            self.daemon = None

    def last_words(self):
        """After something wrong there is another one; what this one has said
        if it did not wait for that."""
        ended = self.daemon and self.daemon.process.poll() is not None
        self.kill()
        with open('log', errors='replace', encoding='utf-8') as f:
            said = f.read()
        os.truncate('log', 0)
        return '\n' + said[-4000:] if ended or 'Sanitizer' in said else ''

    def template(self, shape):
        """A closed image with data and bitmaps, and what is in it."""
        if shape not in self.templates:
            self.templates[shape] = self.make(shape)
        data, model = self.templates[shape]
        return data, model.fork()

    def empty(self, shape, *options):
        cluster, room, *_ = SHAPES[shape]
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
                        f'cluster_size={cluster}' +
                        (',extended_l2=on' if shape == 'sub' else ''),
                        *options, 'new.qcow2',
                        str(SIZE)], check=True)
        with open('new.qcow2', 'rb') as f:
            content = Content.of(f.read())
        content.size = room
        return content

    def make(self, shape):
        grains = SHAPES[shape][2:]
        self.storage.forget()
        w = World(self, shape, 'template', Fault(), self.empty(shape),
                  Disk(SIZE))
        w.open()
        w.write(7 * MIB, 8)
        w.verbs(('add', 'b0', {'granularity': grains[0]}))
        w.write(0, 2)
        w.write(MIB, 17)
        w.verbs(('add', 'd0', {'granularity': grains[0]}))
        w.verbs(('add', 'b1', {'granularity': grains[1]}))
        if shape == 'sub':
            w.internal('make', 's0')
        w.write(MIB + 4 * UNIT, 2)
        w.verbs(('disable', 'd0', {}))
        w.write(13 * MIB, 3)
        w.write(2 * MIB, 64)
        w.flush()
        w.close()
        w.judge('stopped')
        model = w.models['d'].settled()
        model.flushed(True)
        return w.disks['d'].data, model


# --- One case ---------------------------------------------------------------

class World:
    def __init__(self, bench, shape, name, fault, data, model):
        self.bench = bench
        self.shape = shape
        self.name = name
        self.rng = random.Random(name)
        self.storage = bench.storage
        self.storage.fault = fault
        self.fault = fault
        self.reconnect = 15 if fault.error in REPEATED else 0
        self.disks = {'d': self.storage.add('d', data)}
        self.models = {'d': model}
        self.files = {}       # images that are local files, by name
        self.top = 'd'        # what the guest writes to
        self.nodes = []       # to be closed, the last first
        self.seen = {}        # by the guest, of 'o' over 'd': values of units
        self.targets = {}     # of jobs that succeeded: disk: values of units
        self.repeats = []     # what failed, to be tried once more
        self.maybe = None     # models, if what failed was done all the same
        # Not those of the template: only so does the model see that a unit
        # was written, and may be lost, in its new place.
        self.value = 0 if name == 'template' else 20
        self.exact = True     # there is room for exact bits
        self.handle = None
        self.daemon = None

    # --- The server ---

    def ask(self, command, **arguments):
        try:
            return self.daemon.ask(command, **arguments)
        except QmpError as e:
            raise Failed(f'{command}: {e.text}') from None

    def file(self, name):
        return self.storage.node(name, **{'reconnect-delay': self.reconnect})

    def options(self, name):
        """Of a node without a daemon."""
        return ('driver=qcow2,discard=unmap,file.driver=nbd,'
                f'file.export={name},file.reconnect-delay={self.reconnect},'
                f'file.server.type=unix,file.server.path={self.storage.path}')

    def add(self, node, driver, disk, **more):
        self.ask('blockdev-add', driver=driver, node_name=node,
                 discard='unmap', file=self.file(disk), **more)
        self.nodes.append(node)

    def open(self):
        self.daemon = self.bench.start()
        self.daemon.events.clear()
        self.add('vda', 'qcow2', 'd')
        self.export()

    def export(self):
        self.ask('block-export-add', type='nbd', id='e', node_name='vda',
                 name='vda', writable=True)
        self.connect()

    def connect(self):
        self.disconnect()
        self.handle = nbd.NBD()
        self.handle.connect_uri('nbd+unix:///vda?socket=' +
                                os.path.abspath('nbd.sock'))

    def disconnect(self):
        if self.handle:
            try:
                self.handle.shutdown()
            except nbd.Error:
                pass
            self.handle = None

    def withdraw(self):
        self.disconnect()
        if self.ask('query-block-exports'):
            self.ask('block-export-del', id='e', mode='hard')
            self.daemon.event('BLOCK_EXPORT_DELETED', id='e')

    def close(self):
        """In order."""
        self.withdraw()
        for node in reversed(self.nodes):
            if node in [n['node-name'] for n in
                        self.ask('query-named-block-nodes')]:
                self.ask('blockdev-del', node_name=node)
        self.nodes = []

    # --- The guest ---

    def guest(self, f):
        try:
            f()
            return True
        except nbd.Error:
            return False

    def write(self, offset, units=1, how='write'):
        self.value = self.value % 250 + 1
        value = 0 if how in ('zero', 'trim') else self.value
        length = units * UNIT

        def run():
            if how == 'write':
                self.handle.pwrite(bytes([value]) * length, offset)
            elif how == 'fua':
                self.handle.pwrite(bytes([value]) * length, offset,
                                   flags=nbd.CMD_FLAG_FUA)
            elif how == 'zero':
                self.handle.zero(length, offset)
            else:
                self.handle.trim(length, offset)

        def once():
            good = self.guest(run)
            if good:
                self.maybe = None
            top = self.models[self.top]
            for i in range(units):
                unit = offset // UNIT + i
                # A trim may leave what was there, and do it in part.
                top.write(unit, value, good and how != 'trim')
            return good

        good = once()
        if not good:
            self.repeats.append(once)
        return good

    def flush(self):
        good = self.guest(lambda: self.handle.flush())
        for model in self.models.values():
            model.flushed(good)
        if not good:
            self.repeats.append(self.flush)
        return good

    # --- Commands ---

    def command(self, change, run, repeat=None):
        """@change makes of the models what they are when @run, which may
        raise Failed, has succeeded.  @repeat: how it is tried once more."""
        new = {n: m.fork() for n, m in self.models.items()}
        change(new)
        try:
            run()
            good = True
        except Failed as e:
            if os.environ.get('FAULTS_VERBOSE'):
                print(f'{self.name}: {e}')
            good = False
        if good:
            self.models = new
            self.maybe = None
        else:
            self.maybe = new
            for name, model in self.models.items():
                model.widen(new[name])
            self.repeats.append(repeat or (lambda: self.command(change, run)))
        return good

    def verbs(self, *actions):
        """Of bitmaps, in one transaction: (verb, name, arguments)."""
        def change(new):
            for what, name, more in actions:
                new[self.top].verb(what, name, **more)

        def run():
            asked = []
            for what, name, more in actions:
                data = {'node': 'vda', **more}
                data['target' if what == 'merge' else 'name'] = name
                if what == 'add':
                    data['persistent'] = True
                asked.append({'type': f'block-dirty-bitmap-{what}',
                              'data': data})
            if len(asked) == 1:
                self.ask(asked[0]['type'], **asked[0]['data'])
            else:
                self.ask('transaction', actions=asked)

        return self.command(change, run)

    def internal(self, what, name):
        """Make or remove an internal snapshot."""
        verb = '' if what == 'make' else 'delete-'
        return self.command(
            lambda new: new[self.top].snapshot(what, name), lambda:
            self.ask(f'blockdev-snapshot-{verb}internal-sync', device='vda',
                     name=name))

    def resize(self, size):
        return self.command(lambda new: new[self.top].resize(size), lambda:
                            self.ask('block_resize', node_name='vda',
                                     size=size))

    def job_ends(self, job='j'):
        e = self.daemon.event('JOB_STATUS_CHANGE', id=job, status='null')
        assert e
        done = [e for e in self.daemon.events if e['event'] in (
            'BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED')]
        self.daemon.events.clear()
        error = done[-1]['data'].get('error') if done else 'no end'
        if error or done[-1]['event'] == 'BLOCK_JOB_CANCELLED':
            raise Failed(error or 'cancelled')

    def status_of(self, job, *wanted):
        while True:
            e = self.daemon.event('JOB_STATUS_CHANGE', id=job)
            if e['status'] in wanted:
                return e['status']

    # --- What is right ---

    def images(self, moment=None, cut=False):
        if cut:
            disks = list(self.disks.values())
            found = cut_power(disks, self.storage.log, self.rng, moment)
            return {d.name: data for d, data in found.items()}
        images = {n: d.data for n, d in self.disks.items()}
        for name, path in self.files.items():
            if os.path.exists(path):
                with open(path, 'rb') as f:
                    images[name] = Content.of(f.read())
        return images

    def differs(self, images, models, how):
        def has(target, unit, value):
            return (images[target].read(unit * UNIT, UNIT) ==
                    bytes([value]) * UNIT)

        wrong = []
        for name, model in models.items():
            if name in images:
                for text in fault_model.judge(images[name].used(), model, how,
                                              has, self.exact):
                    wrong.append(f'{name}, {how}: {text}')
        if self.seen and 'o' in images:
            wrong += fault_model.judge_below(images['o'].used(),
                                             images['d'].used(), self.seen)
        for name, values in self.targets.items():
            for unit, value in values.items():
                if name in images and not has(name, unit, value):
                    wrong.append(f'{name}, {how}: the target of the backup '
                                 f'differs at {unit * UNIT:#x}')
                    break
        return wrong

    def judge(self, how):
        """Of a command that has failed nobody knows what became of it, until
        the next change of data."""
        images = self.images(cut=how == 'cut')
        wrong = self.differs(images, self.models, how)
        if wrong and (how == 'stopped' or not self.maybe or
                      self.differs(images, self.maybe, how)):
            self.keep(images)
            raise Wrong('; '.join(wrong))

    def judge_between(self, before, start):
        """The power fails in the middle: the image has the state before the
        operation, or the state after it; that, too, when the operation has
        failed and nobody knows what became of it."""
        moment = self.rng.randrange(start, self.storage.moment() + 1)
        images = self.images(moment, cut=True)
        for name, model in before.items():
            model.widen(self.models[name])
        wrong = self.differs(images, before, 'cut')
        after = wrong and self.differs(images, self.models, 'cut')
        if after and (not self.maybe or
                      self.differs(images, self.maybe, 'cut')):
            self.keep(images)
            raise Wrong('in the middle: neither as before (' +
                        '; '.join(wrong) + ') nor as after (' +
                        '; '.join(after) + ')')

    def show_qemu(self):
        """It finds nothing corrupt, and takes the same bitmaps."""
        data = self.disks['d'].data.used()
        with open('shown.qcow2', 'wb') as f:
            f.write(data)
        check = subprocess.run(['qemu-img', 'check', '-q', 'shown.qcow2'],
                               capture_output=True, text=True, check=False)
        if check.returncode not in (0, 3):  # 3: leaked clusters
            raise Wrong(f'qemu-img: {check.stdout}{check.stderr}')
        info = subprocess.run(['qemu-img', 'info', '--output=json',
                               'shown.qcow2'], capture_output=True, check=True)
        theirs = {b['name']: 'in-use' in b['flags'] for b in json.loads(
            info.stdout)['format-specific']['data'].get('bitmaps', [])}
        ours = {name: bool(b.flags & fault_model.IN_USE)
                for name, b in bitmap_image.bitmaps(data).items()}
        if theirs != ours:
            raise Wrong(f'QEMU has the bitmaps {theirs}, not {ours}')

    def keep(self, images):
        if os.environ.get('FAULTS_KEEP'):
            for name, data in images.items():
                path = os.path.join(os.environ['FAULTS_KEEP'], name)
                with open(path, 'wb') as f:
                    f.write(data.used())

    def shown(self):
        """The server has at least the bits that it must have."""
        for node in self.ask('query-named-block-nodes'):
            if node['node-name'] != 'vda':
                continue
            for b in node.get('dirty-bitmaps', []):
                want = self.models['d'].bitmaps.get(b.get('name'))
                if want and not b.get('inconsistent') and not want.kept:
                    grain = b['granularity']
                    must = len({u * UNIT // grain for u in want.must}) * max(
                        grain, UNIT)
                    if b['count'] < must:
                        raise Wrong(f"the server has {b['count']} bytes dirty "
                                    f"in {b['name']}, {must} are needed")

    def read_back(self):
        top, data = self.models[self.top], b''
        for unit, values in top.now.items():
            if unit * UNIT >= top.size or None in values:
                continue
            data = self.handle.pread(UNIT, unit * UNIT)
            for at in range(0, UNIT, fault_model.SECTOR):
                if data[at] not in values:
                    raise Wrong(f'the guest reads {data[at]} at '
                                f'{unit * UNIT:#x}, not {values}')

    def repeat(self):
        """What failed, until it works: what was lost has come back."""
        todo, self.repeats = self.repeats, []
        end = time.time() + PATIENCE
        good = True
        for f in todo:
            while not f():
                if time.time() > end or 'lost' not in (self.fault.error or ''):
                    good = False
                    break
                time.sleep(0.05)
        self.repeats = []
        return good


# --- Operations -------------------------------------------------------------

OPERATIONS = {}


class Operation:
    """`prepare` goes before the fault; the disk is open unless `offline`; when
    it `ends` the disk, it is closed afterwards.  `room`: so much is left on
    the storage.  `single`: there is a state before and one after, nothing in
    between.  `slow`: only if it is asked for."""

    def __init__(self, name, run, prepare=None, offline=False, ends=False,
                 room=None, single=False, slow=False, shapes=tuple(SHAPES)):
        self.name = name
        self.run = run
        self.prepare = prepare or (lambda w: None)
        self.offline = offline
        self.ends = ends
        self.room = room
        self.single = single
        self.slow = slow
        self.shapes = shapes


def operation(name, run=None, **more):
    def add(f):
        assert name not in OPERATIONS, name
        OPERATIONS[name] = Operation(name, f, **more)
        return f

    return add(run) if run else add


FAR = 9 * MIB  # nothing is there


def busy(w):
    """Some regions are armed, some clusters were not flushed."""
    w.write(2 * MIB + 8 * UNIT, 4)
    w.write(12 * MIB, 2)


operation('write-first', lambda w: w.write(FAR))
operation('write-over', lambda w: w.write(7 * MIB, 3))
operation('write-large', lambda w: w.write(3 * MIB, 512))
operation('write-fua', lambda w: w.write(FAR, 2, 'fua'))
operation('zero-first', lambda w: w.write(7 * MIB, 8, 'zero'))
operation('trim-first', lambda w: w.write(MIB, 17, 'trim'))


@operation('writes-and-flush')
def writes_and_flush(w):
    w.write(FAR, 3)
    w.flush()
    w.write(FAR + MIB, 3)
    w.write(FAR, 3, 'zero')
    w.flush()


operation('flush', lambda w: w.flush(), prepare=busy)


def fill(w):
    """Until there is no room; what was accepted can be flushed."""
    at = 0
    while w.write(at, 16):
        at += 16 * UNIT
        if at == SIZE:
            raise Wrong('there was room for all')
    w.repeats.pop()
    w.flush()


def full_storage(w):
    """As a file system is full: of what is not there nothing can be added."""
    w.verbs(('clear', 'b0', {}))
    w.disks['d'].room = 0
    w.exact = False


def overwrite(w):
    w.write(7 * MIB, 8)
    w.write(2 * MIB, 64)
    w.flush()


def trim_and_rewrite(w):
    w.write(2 * MIB, 64, 'zero')
    w.write(2 * MIB, 64)
    w.flush()


def some_room(w):
    w.disks['d'].room = MIB
    w.exact = False


operation('fill-device', fill, room=MIB, shapes=('64k', '4k'))
operation('fill-thin', fill, prepare=some_room, shapes=('64k', '4k'))
operation('overwrite-when-full', overwrite, prepare=full_storage,
          shapes=('64k', '4k'))
operation('trim-and-rewrite-on-a-full-device', trim_and_rewrite,
          prepare=lambda w: (fill(w), w.repeats.clear()), room=MIB // 2,
          shapes=('64k', '4k'))


@operation('tighten', prepare=busy, slow=True, shapes=('4k', '512'))
def tighten(w):
    """What is quiet for so long loses its ones in the image."""
    time.sleep(4.5)
    w.write(2 * MIB + 20 * UNIT, 1)


def change(name, *actions, **more):
    operation(name, lambda w: w.verbs(*actions), single=True, **more)


GRAIN = {'granularity': 65536}
OFF = {'granularity': 65536, 'disabled': True}
for before, word in (None, ''), (busy, '-busy'):
    change(f'add{word}', ('add', 'n', GRAIN), prepare=before)
    change(f'remove{word}', ('remove', 'b0', {}), prepare=before)
    change(f'clear{word}', ('clear', 'b0', {}), prepare=before)
    change(f'merge{word}', ('merge', 'd0', {'bitmaps': ['b0', 'b1']}),
           prepare=before)
change('add-disabled', ('add', 'n', OFF))
change('enable', ('enable', 'd0', {}), prepare=busy)
change('disable', ('disable', 'b0', {}), prepare=busy)
change('merge-enabled', ('merge', 'b1', {'bitmaps': ['d0']}))
change('transaction-add-clear', ('add', 'n', GRAIN), ('clear', 'b0', {}),
       ('clear', 'b1', {}), prepare=busy)
change('transaction-next-increment', ('disable', 'b0', {}), ('add', 'n', OFF),
       ('merge', 'n', {'bitmaps': ['b0', 'b1']}), ('remove', 'b1', {}),
       ('enable', 'n', {}), prepare=busy)


@operation('clear-then-write', prepare=busy)
def clear_then_write(w):
    w.verbs(('clear', 'b0', {}))
    w.write(2 * MIB + 8 * UNIT, 1)
    w.write(FAR, 1)


operation('grow', lambda w: w.resize(24 * MIB), single=True)
operation('grow-busy', lambda w: w.resize(24 * MIB), prepare=busy, single=True)
operation('shrink', lambda w: w.resize(8 * MIB), prepare=busy, single=True)


# --- Internal snapshots ---

def with_internal(w):
    """A snapshot, and what has changed since, in memory and on disk."""
    w.internal('make', 's1')
    w.write(MIB, 5)
    w.write(2 * MIB + 3 * UNIT, 2, 'zero')
    w.flush()
    busy(w)


operation('internal-make', lambda w: w.internal('make', 's1'), prepare=busy,
          single=True)
operation('internal-make-another', lambda w: w.internal('make', 's2'),
          prepare=with_internal, single=True)
operation('internal-remove', lambda w: w.internal('remove', 's1'),
          prepare=with_internal, single=True)
operation('internal-write', lambda w: (w.write(MIB, 9), w.write(2 * MIB, 8,
                                                                'zero'),
                                       w.write(7 * MIB + UNIT, 1), w.flush()),
          prepare=with_internal)


# --- The chain ---

def overlay(w, name='o'):
    w.disks[name] = w.storage.add(name, w.bench.empty(w.shape))
    w.models[name] = Disk(SIZE, below='d')
    w.ask('blockdev-add', driver='qcow2', node_name=name, backing=None,
          discard='unmap', file=w.file(name))
    w.nodes.append(name)


def snapshot(w, below='vda', name='o'):
    def run():
        w.ask('blockdev-snapshot', node=below, overlay=name)

    good = w.command(lambda new: None, run, lambda: snapshot(w, below, name))
    if good:
        w.top = name
    return good


operation('blockdev-snapshot', snapshot, prepare=lambda w: (busy(w),
                                                            overlay(w)))


@operation('snapshot-sync', prepare=busy)
def snapshot_sync(w):
    def run():
        path = os.path.abspath(f'o{len(w.files)}.qcow2')
        w.ask('blockdev-snapshot-sync', node_name='vda', snapshot_file=path,
              snapshot_node_name='o')
        w.files['o'] = path

    good = w.command(lambda new: None, run, lambda: snapshot_sync(w))
    if good:
        w.models['o'] = Disk(w.models['d'].size, below='d')
        w.top = 'o'
        w.nodes.append('o')
    return good


def with_overlay(w):
    busy(w)
    overlay(w)
    snapshot(w)
    w.write(MIB, 3)
    w.write(FAR, 2)
    w.write(7 * MIB, 2, 'zero')
    w.write(FAR + 3 * MIB, 1)


def brought_down(models, source, target, sure):
    """What a commit has done, or has begun."""
    for unit, values in models[source].now.items():
        if values == {None}:
            continue
        disk = models[target]
        if None in values:
            values = values - {None} | disk.values(unit)
        if sure:
            disk.now[unit] = values
            disk.crashed[unit] = values
            disk.lost.pop(unit, None)
            disk.touch(unit, len(values) == 1)
        else:
            disk.now[unit] = disk.values(unit) | values
            disk.crashed[unit] = disk.values(unit, disk.crashed) | values
        for bitmap in disk.bitmaps.values():
            if bitmap.enabled:
                bitmap.may.add(unit)


def commit(w, **more):
    source, target = 'o', 'd'

    def run():
        w.daemon.events.clear()
        w.ask('block-commit', job_id='j', device='o', **more)
        if not more and w.status_of('j', 'ready', 'null') == 'ready':
            w.write(FAR + 5 * UNIT, 1)
            w.ask('job-complete', id='j')
            w.daemon.events = [e for e in w.daemon.events if
                               e['event'] != 'JOB_STATUS_CHANGE']
        elif not more:
            w.daemon.events.append({'event': 'JOB_STATUS_CHANGE',
                                    'data': {'id': 'j', 'status': 'null'}})
        w.job_ends()

    # A write while the job runs is the overlay's.
    try:
        run()
        good = True
    except Failed:
        good = False
    brought_down(w.models, source, target, good)
    if good:
        w.top = 'd'
        del w.models['o']
    else:
        w.repeats.append(lambda: commit(w, **more))
    return good


operation('commit-active', commit, prepare=with_overlay)


def emptied(models, sure):
    """What was in the overlay is below, and need not be in the overlay."""
    for unit in models['o'].now:
        for table in models['o'].now, models['o'].crashed:
            table[unit] = {None} if sure else \
                models['o'].values(unit, table) | {None}
        if sure:
            models['o'].lost.pop(unit, None)


@operation('commit-empty', prepare=lambda w: (with_overlay(w), w.flush()))
def commit_empty(w):
    """Wherever a cluster is at any time, the guest reads it."""
    seen = {u: v | w.models['o'].crashed.get(u, v)
            for u, v in w.models['o'].now.items()}
    w.seen.update({u: v for u, v in seen.items() if None not in v})
    text = w.ask('human-monitor-command', **{'command-line': 'commit o'})
    brought_down(w.models, 'o', 'd', not text)
    emptied(w.models, not text)
    if text:
        w.repeats.append(lambda: commit_empty(w))
    return not text


def brought_up(models, source, target, sure):
    """What a stream has done, or may do: where nothing was there may be what is
    below, and in the end it is.  Zeroes below may be nothing there, too."""
    disk = models[target]
    for unit in range(disk.size // UNIT):
        below = models[source].values(unit)
        for table in (disk.now, disk.crashed):
            values = disk.values(unit, table)
            if None in values:
                gone = {None} if sure and 0 not in below else set()
                table[unit] = values - gone | below


def stream(w):
    """The overlay gets the rest.  No disk changes by that."""
    def run():
        w.daemon.events.clear()
        w.ask('block-stream', job_id='j', device='o')
        w.job_ends()

    brought_up(w.models, 'd', 'o', False)
    try:
        run()
    except Failed:
        w.repeats.append(lambda: stream(w))
        return False
    brought_up(w.models, 'd', 'o', True)
    return True


operation('stream', stream, prepare=with_overlay)


# --- Backups ---

def target(w, name='t'):
    w.disks[name] = w.storage.add(name, Content(SIZE))
    w.add(name, 'raw', name)


def backup(w, mode, end, sync='bitmap'):
    """Guests write while it runs, and when all is copied."""
    model = w.models[w.top]
    at_start = model.fork()
    model.bitmaps['@job'] = fault_model.Bitmap(UNIT)
    more = {'bitmap': 'b0', 'bitmap-mode': mode} if mode else {}
    good = False
    try:
        w.daemon.events.clear()
        w.ask('blockdev-backup', job_id='j', device='vda', target='t',
              sync=sync, auto_finalize=False, **more)
        w.write(2 * MIB, 1)
        if w.status_of('j', 'pending', 'null') == 'pending':
            w.write(FAR, 1)
            w.ask('job-finalize' if end == 'success' else 'job-cancel', id='j')
        else:
            w.daemon.events.append({'event': 'JOB_STATUS_CHANGE',
                                    'data': {'id': 'j', 'status': 'null'}})
        w.job_ends()
        good = True
    except Failed:
        pass
    model = w.models[w.top]
    since = model.bitmaps.pop('@job')
    values = {u: next(iter(v)) for u, v in at_start.now.items()
              if len(v) == 1}
    bitmap = model.bitmaps['b0']
    if mode == 'always' or (good and mode == 'on-success'):
        old = bitmap.must
        bitmap.must = set(since.must)
        if good:
            bitmap.may = set(since.may)
            bitmap.base = at_start.sure_values()
        else:
            bitmap.base = None
            bitmap.kept = {u: ('t', values.get(u, 0)) for u in old
                           if u not in since.must}
            bitmap.must |= set(bitmap.kept)
    if not good:  # it comes back in the job's own granularity
        bitmap.may = fault_model.spread(bitmap.may, 65536)
    if good:
        copied = at_start.bitmaps['b0'].must if mode else values
        w.targets['t'] = {u: values.get(u, 0) for u in copied
                          if u in values or u not in at_start.now}
    elif end == 'success':
        w.repeats.append(lambda: backup(w, mode, end, sync))
    return good


for mode in 'on-success', 'always', 'never':
    for end in 'success', 'cancel':
        operation(f'backup-{mode}-{end}', lambda w, m=mode, e=end:
                  backup(w, m, e), prepare=lambda w: (busy(w), target(w)),
                  shapes=('64k', '4k'))
operation('backup-full', lambda w: backup(w, None, 'success', 'full'),
          prepare=lambda w: (busy(w), target(w)), shapes=('64k', '4k'))


# --- Mirrors ---

def image_target(w):
    busy(w)
    w.disks['t'] = w.storage.add('t', w.bench.empty(w.shape))
    w.add('t', 'qcow2', 't')


def mirror(w, mode, bitmaps=False):
    """Guests write while it runs, and when it is ready; then they have the
    target, which is on disk, and the source is closed."""
    def run():
        w.daemon.events.clear()
        w.ask('blockdev-mirror', job_id='j', device='vda', target='t',
              sync='full', copy_mode=mode, bitmaps=bitmaps)
        w.write(2 * MIB, 1)
        ready = w.status_of('j', 'ready', 'null') == 'ready'
        if ready:
            w.write(FAR, 1)
            try:
                w.ask('job-complete', id='j')
            except Failed:  # it has failed meanwhile
                pass
        else:
            w.daemon.events.append({'event': 'JOB_STATUS_CHANGE',
                                    'data': {'id': 'j', 'status': 'null'}})
        w.job_ends()

    try:
        run()
    except Failed:
        w.repeats.append(lambda: mirror(w, mode, bitmaps))
        return False
    source = w.models['d']
    w.models['t'] = Disk(SIZE)
    for unit, values in source.now.items():
        values = values | source.lost.get(unit, set())
        w.models['t'].now[unit] = values
        w.models['t'].crashed[unit] = values
    if bitmaps:
        w.models['t'].bitmaps = {n: b.fork() for n, b in
                                 source.bitmaps.items()}
    w.top = 't'
    w.ask('blockdev-del', node_name='vda')
    if w.fault.hit:     # of a disk that failed, and is not used any more,
        del w.models['d']               # nothing is asked
    else:
        source.flushed(True)
    return True


for mode in 'background', 'write-blocking':
    operation(f'mirror-{mode}', lambda w, m=mode: mirror(w, m),
              prepare=image_target, shapes=('64k', '4k'))
operation('mirror-bitmaps', lambda w: mirror(w, 'background', True),
          prepare=image_target, shapes=('64k', '4k'))


def pull(w, success=True):
    def begin():
        w.ask('backup-begin', disks=[{'node': 'vda', 'since': 'b0'}],
              checkpoint='c1')

    if not w.command(lambda new: None, begin,
                     repeat=lambda: pull(w, success)):
        return False
    w.models['d'].bitmaps['@pull'] = fault_model.Bitmap(UNIT)
    w.write(MIB, 2)
    return pull_end(w, success)


def pull_end(w, success):
    def end():
        ids = [b['id'] for b in w.ask('query-backups')]
        if not ids:
            raise Failed('no backup')
        w.ask('backup-end', id=ids[0], success=success)

    def change(new):
        since = new['d'].bitmaps.pop('@pull')
        if success:
            new['d'].verb('add', 'c1', granularity=65536)
            new['d'].bitmaps['c1'].must = since.must
            new['d'].bitmaps['c1'].may = since.may
            new['d'].bitmaps['c1'].base = None

    return w.command(change, end)


operation('pull-success', pull, prepare=busy)
operation('pull-failed', lambda w: pull(w, False), prepare=busy)


# --- The node ---

@operation('reopen', prepare=lambda w: (busy(w), w.withdraw()))
def reopen(w):
    def to(read_only):
        w.ask('blockdev-reopen', options=[{
            'driver': 'qcow2', 'node-name': 'vda', 'read-only': read_only,
            'discard': 'unmap', 'file': file_node(w)}])

    w.command(lambda new: None, lambda: to(True))
    if w.repeats:  # it is to be writable in the end
        w.repeats.pop()
    w.command(lambda new: None, lambda: to(False))


@operation('inactive', prepare=lambda w: (busy(w), w.withdraw()))
def inactive(w):
    def to(active):
        w.ask('blockdev-set-active', **{'node-name': 'vda', 'active': active})

    w.command(lambda new: None, lambda: to(False))
    if w.repeats:  # it is to be active in the end
        w.repeats.pop()
    w.command(lambda new: None, lambda: to(True))


def file_node(w):
    """The name of the node below."""
    graph = w.ask('x-debug-query-block-graph')
    ids = {n['id']: n['name'] for n in graph['nodes']}
    vda = next(i for i, name in ids.items() if name == 'vda')
    return next(ids[e['child']] for e in graph['edges']
                if e['parent'] == vda and e['name'] == 'file')


@operation('del', prepare=busy, ends=True)
def close(w):
    w.close()


@operation('quit', prepare=busy, ends=True, shapes=('4k',))
def leave(w):
    w.disconnect()
    w.ask('quit')
    w.daemon.process.wait(60)
    w.bench.kill()
    w.nodes = []


# --- Without a daemon ---

def tool(w, *argv):
    done = subprocess.run([w.bench.offline, *argv], capture_output=True,
                          text=True, timeout=60, check=False)
    if done.returncode < 0 or 'Sanitizer' in done.stderr:
        raise Wrong(f'{argv} ended with {done.returncode}: {done.stderr}')
    if done.returncode:
        raise Failed(done.stderr)


def offline(verb, name, *more, **arguments):
    def run(w):
        def change(new):
            new['d'].verb(verb, name, **arguments)

        grain = ('-g', '64k') if verb == 'add' else ()
        w.command(change, lambda: tool(w, 'bitmap', verb, *grain,
                                       '--image-opts', w.options('d'), name,
                                       *more))
    return run


for verb, name, more, arguments in (
        ('add', 'n', (), GRAIN), ('remove', 'b0', (), {}),
        ('clear', 'b0', (), {}), ('enable', 'd0', (), {}),
        ('disable', 'b0', (), {}),
        ('merge', 'd0', ('b0', 'b1'), {'bitmaps': ['b0', 'b1']})):
    operation(f'offline-{verb}', offline(verb, name, *more, **arguments),
              offline=True, single=True)


def break_bitmap(w):
    """b0 is in use by a process that is gone."""
    disk, image = w.disks['d'], fault_model.Image(w.disks['d'].data.used())
    at = image.directory['b0'] + 12
    disk.data.write(at, struct.pack('>L', fault_model.IN_USE |
                                    fault_model.AUTO))
    disk.base = disk.data.copy()
    bitmap = w.models['d'].bitmaps['b0']
    bitmap.must, bitmap.base = set(), None


@operation('offline-repair', prepare=break_bitmap, offline=True, single=True)
def offline_repair(w):
    def whole(new):
        bitmap = new['d'].bitmaps['b0']
        bitmap.must = bitmap.may = set(range(SIZE // UNIT))

    w.command(whole, lambda: tool(w, 'bitmap', 'repair', '--image-opts',
                                  w.options('d'), 'b0'))


def left_with_internal(w):
    """As a daemon leaves it that has ended."""
    w.open()
    with_internal(w)
    w.close()
    w.daemon = None
    w.disks['d'].base = w.disks['d'].data.copy()
    w.models['d'] = w.models['d'].settled()
    w.models['d'].flushed(True)


def offline_internal(letter, what, name):
    def run(w):
        image = 'json:' + json.dumps({
            'driver': 'qcow2', 'discard': 'unmap', 'file': w.file('d')})
        w.command(lambda new: new['d'].snapshot(what, name),
                  lambda: tool(w, 'snapshot', letter, name, image))
    return run


for letter, what, name in (('-c', 'make', 's2'), ('-d', 'remove', 's1'),
                           ('-a', 'apply', 's1')):
    operation(f'offline-internal-{what}', offline_internal(letter, what, name),
              prepare=left_with_internal, offline=True, single=True,
              shapes=('64k', '4k', 'sub'))


# --- On local files ---

LOCAL_ERRORS = {'EIO': 5, 'ENOSPC': 28, 'kill': 0}


class Local:
    """A command of the tool, on a file system that fails."""

    shapes = ('4k',)
    slow = False

    def __init__(self, name, run):
        self.name = name
        self.run = run


def faulty(bench, where, *argv):
    """Did it succeed, and was it killed?  @where: as in FAULTY."""
    done = subprocess.run(
        [bench.offline, *argv], capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ, 'FAULTY_COUNTS': 'counts',
                          **({'FAULTY': where} if where else {})})
    if done.returncode not in (0, 1, 4, 6, -9) or 'Sanitizer' in done.stderr:
        raise Wrong(f'{argv} ended with {done.returncode}: {done.stderr}')
    return done.returncode == 0, done.returncode == -9


def local_verb(verb, name, *more, **arguments):
    def run(bench, where):
        """When it was killed it may have been done."""
        content, model = bench.template('4k')
        with open('local.qcow2', 'wb') as f:
            f.write(content.used())
        grain = ('-g', '64k') if verb == 'add' else ()
        argv = ('bitmap', verb, *grain, 'local.qcow2', name, *more)
        after = model.fork()
        after.verb(verb, name, **arguments)
        good, killed = faulty(bench, where, *argv)
        with open('local.qcow2', 'rb') as f:
            found = f.read()
        wrong = fault_model.judge(found, after, 'killed')
        if not good:
            if wrong or not killed:
                model.widen(after)
            wrong = wrong and fault_model.judge(found, model, 'killed')
            again, _ = faulty(bench, None, *argv)
            if not again and not wrong and not killed:
                wrong = ['it does not work afterwards']
        if wrong:
            raise Wrong('; '.join(wrong))

    return run


def create_track(bench, where):
    for path in 'disk.raw', 'track.qcow2':
        if os.path.exists(path):
            os.unlink(path)
    with open('disk.raw', 'wb') as f:
        f.write(b'x' * MIB + bytes(MIB))
    argv = ('create', '--track', 'disk.raw', '--bitmap', 'b0', 'track.qcow2')
    good, killed = faulty(bench, where, *argv)
    with open('disk.raw', 'rb') as f:
        if f.read() != b'x' * MIB + bytes(MIB):
            raise Wrong('the raw disk has changed')
    if not good:
        if os.path.exists('track.qcow2'):
            if not killed:
                raise Wrong('an image is left')
            os.unlink('track.qcow2')
        good, _ = faulty(bench, None, *argv)
        if not good:
            raise Wrong('it does not work afterwards')
    subprocess.run(['qemu-img', 'check', '-q', 'track.qcow2'], check=True)
    info = subprocess.run(['qemu-img', 'info', '--output=json', 'track.qcow2'],
                          check=True, capture_output=True, text=True).stdout
    bitmap, = json.loads(info)['format-specific']['data']['bitmaps']
    if bitmap['name'] != 'b0' or bitmap['flags'] != ['auto']:
        raise Wrong(f'the bitmap is {bitmap}')


for verb, name, more, arguments in (
        ('add', 'n', (), GRAIN), ('clear', 'b0', (), {}),
        ('merge', 'd0', ('b0', 'b1'), {'bitmaps': ['b0', 'b1']})):
    OPERATIONS[f'local-{verb}'] = Local(f'local-{verb}', local_verb(
        verb, name, *more, **arguments))
OPERATIONS['create-track'] = Local('create-track', create_track)


# --- Running ----------------------------------------------------------------

def run_local(bench, op, kind, k, error, counts):
    where = kind and f'{kind}:{k}:{LOCAL_ERRORS[error]}'
    op.run(bench, where)
    if counts is not None:
        with open('counts', encoding='ascii') as f:
            writes, flushes, _ = map(int, f.read().split())
        counts.update(write=writes, flush=flushes)


def run_case(bench, name, counts=None):
    """What is wrong, or None.  With @counts, a dict: how many requests of each
    kind there are."""
    op, shape, *rest = name.split('/')
    op, kind, k, error = OPERATIONS[op], None, 0, None
    if rest:
        kind, k = rest[0].split('-')
        error = rest[1]
    try:
        if isinstance(op, Local):
            run_local(bench, op, kind, k, error, counts)
        else:
            run_served(bench, op, shape, name, Fault(kind, int(k), error),
                       counts)
        return None
    except Exception as e:  # pylint: disable=broad-except
        if os.environ.get('FAULTS_TRACE'):
            traceback.print_exc()
        return f'{type(e).__name__}: {e}{bench.last_words()}'


def run_served(bench, op, shape, name, fault, counts):
    bench.storage.forget()
    data, model = bench.template(shape)
    bench.storage.forget()
    if op.room is not None:
        data = data.copy()
        data.size = min(data.size, len(data.used()) + op.room)
    w = World(bench, shape, f'{bench.seed}/{name}', fault, data, model)
    w.daemon = None if op.offline else bench.start()
    go(w, op, fault)
    if counts is not None:
        counts.update(fault.counts)


def go(w, op, fault):
    if not op.offline:
        w.open()
    op.prepare(w)
    before = {n: m.fork() for n, m in w.models.items()}
    start = w.storage.moment()
    fault.active = True
    try:
        op.run(w)
        ended = True
    except Failed:
        if not op.ends:
            raise
        ended = False
    finally:
        fault.active = False
    if fault.hit and fault.kind == 'flush' and ERRORS[fault.error][1]:
        for model in w.models.values():
            model.flush_failed()
    calm = not fault.hit
    if calm and w.repeats:
        raise Wrong('a command failed without a reason')
    w.judge('killed')
    w.judge('cut')
    w.judge('cut')
    if op.single:
        w.judge_between(before, start)
    if op.offline:
        w.repeat()
        w.judge('killed')
        w.judge('cut')
        return
    if op.ends:
        if not ended:
            w.close()
        w.judge('stopped' if calm else 'killed')
        return
    if op.name in ('reopen', 'inactive'):
        w.repeat()
        w.export()
    elif op.name in ('grow', 'grow-busy', 'shrink'):
        w.connect()
    w.shown()
    good = True
    if w.rng.random() < 0.7:
        good = w.repeat()
    else:
        w.repeats = []
    w.write(FAR + 2 * MIB - FAR // 2, 1)
    w.write(0, 1)
    w.write(MIB + 20 * UNIT, 9)
    w.judge('killed')
    w.judge('cut')
    good = w.repeat() and good
    if w.flush():
        w.judge('cut')
        w.read_back()
    else:
        good = False
    # What is lost below an overlay is not looked for.
    w.exact = w.exact and good and (w.top == 'd' or
                                    'lost' not in (fault.error or ''))
    w.shown()
    if w.ask('query-backups'):
        pull_end(w, False)
    w.close()
    w.models = {n: m.settled() for n, m in w.models.items()}
    w.judge('stopped')
    w.judge('cut')
    if w.rng.random() < SHOWN:
        w.show_qemu()


def errors_of(op, kind):
    if isinstance(op, Local):
        return list(LOCAL_ERRORS)
    return [e for e in ERRORS if kind == 'write' or 'torn' not in e]


def cases_of(bench, op, short):
    """Names; with the first of a shape a dict, for its numbers of requests."""
    shapes = [bench.rng.choice(op.shapes)] if short else op.shapes
    for shape in shapes:
        counts = {}
        yield f'{op.name}/{shape}', counts
        for kind, count in counts.items():
            turn = bench.rng.randrange(100)
            errors = errors_of(op, kind)
            some = range(1, count + 1)
            if short and count > MOST:
                some = sorted(bench.rng.sample(some, MOST))
            for k in some:
                turn += 1
                picked = [errors[turn * 7 % len(errors)]] if short else errors
                for error in picked:
                    yield f'{op.name}/{shape}/{kind}-{k}/{error}', None


def work(bench, ops, short, only):
    """How many cases there were, and how many of them were wrong."""
    cases = wrongs = left = 0
    end = time.time() + ENOUGH
    for op in ops:
        if short and time.time() > end:
            left += 1
            continue
        if only:
            todo = ((n, None) for n in only if n.split('/')[0] == op.name)
        else:
            todo = cases_of(bench, op, short)
        for name, counts in todo:
            start = time.time()
            wrong = run_case(bench, name, counts)
            cases += 1
            if wrong:
                wrongs += 1
                print(f'{name}: {wrong}', flush=True)
            elif os.environ.get('FAULTS_VERBOSE'):
                print(f'{name}: {time.time() - start:.2f} s', flush=True)
    bench.kill()
    if left:
        print(f'{left} operations were left out: it is slow here')
    return cases, wrongs


def main():
    program, offline_program, seed, jobs, *rest = sys.argv[1:]
    short = '--short' in rest
    only = [r for r in rest if '/' in r]
    words = [r for r in rest if r != '--short' and '/' not in r]
    ops = [op for op in OPERATIONS.values()
           if (any(w in op.name for w in words) if words else
               not (op.slow and short))]
    if only:
        ops = [op for op in ops if op.name in {o.split('/')[0] for o in only}]
    random.Random(seed).shuffle(ops)
    children = []
    for i in range(min(int(jobs), len(ops))):
        pid = os.fork()
        if pid == 0:
            os.mkdir(f'worker{i}')
            os.chdir(f'worker{i}')
            # What daemons say goes to a log; what we say does not.
            sys.stderr = os.fdopen(os.dup(2), 'w')
            os.dup2(os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            bench = Bench(program)
            bench.offline = offline_program
            bench.seed = seed
            bench.rng = random.Random(f'{seed}-{i}')
            status = 1
            try:
                cases, wrongs = work(bench, ops[i::int(jobs)], short, only)
                print(f'{cases} cases, {wrongs} of them wrong', flush=True)
                status = bool(wrongs)
            except BaseException:
                traceback.print_exc()
                bench.kill()
            os._exit(status)
        children.append(pid)
    sys.exit(any([os.waitpid(pid, 0)[1] for pid in children]))


main()
