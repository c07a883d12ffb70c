# SPDX-License-Identifier: BSD-3-Clause
"""A disk moves to another daemon by a mirror, with its bitmaps.

move.py PROGRAM PART...

Each host has a directory with an image and a daemon.  A guest writes to the
disk "vda" of one of them.  For each bitmap there is a copy of the disk at the
time when it began, so a bitmap is right if all is dirty in it that differs from
that copy.
"""
import json
import os
import shutil
import signal
import subprocess
import sys

import nbd

from qmp_daemon import Daemon, QmpError
from stopped import stop

K = 1 << 10
M = 1 << 20
G = 64 * K      # of the bitmaps
SIZE = 12 * M
ASK = dict(job_id='move', device='vda', target='far', sync='full')


def img(*argv):
    subprocess.run(['qemu-img', *argv], check=True, stdout=subprocess.DEVNULL)


class Host:
    def __init__(self, name):
        self.name = name
        self.d = None
        shutil.rmtree(name, ignore_errors=True)
        os.mkdir(name)
        img('create', '-q', '-f', 'qcow2', f'{name}/disk.qcow2', str(SIZE))

    def start(self, *more):
        for old in 'pid', 'nbd.sock', 'qmp.sock':
            if os.path.exists(f'{self.name}/{old}'):
                os.unlink(f'{self.name}/{old}')
        os.chdir(self.name)
        try:
            self.d = Daemon(program, 'vda=disk.qcow2', *more)
        finally:
            os.chdir('..')
        running.append(self)
        return self.d

    def socket(self):
        return {'type': 'unix', 'path': os.path.abspath(
            f'{self.name}/nbd.sock')}

    def kill(self):
        if self.d:
            self.d.process.send_signal(signal.SIGCONT)
            self.d.process.kill()
            self.d.process.wait()
            self.d.lines.close()
            self.d.socket.close()
            self.d = None

    def connect(self, context=None):
        h = nbd.NBD()
        if context:
            h.add_meta_context(context)
        h.set_export_name('vda')
        h.connect_unix(f'{self.name}/nbd.sock')
        return h

    def bitmaps(self):
        nodes = self.d.ask('query-named-block-nodes', flat=True)
        vda, = (n for n in nodes if n['node-name'] == 'vda')
        return {b['name']: b for b in vda.get('dirty-bitmaps', ())
                if 'name' in b}

    def dirty(self, name):
        """The granules that are dirty, as numbers."""
        context = f'qemu:dirty-bitmap:{name}'
        h = self.connect(context)
        found = set()

        def take(what, offset, entries, _):
            for length, flags in zip(entries[::2], entries[1::2]):
                if what == context and flags:
                    found.update(range(offset // G, (offset + length) // G))
                offset += length
        h.block_status(SIZE, 0, take)
        h.shutdown()
        return found

    def content(self):
        h = self.connect()
        data = h.pread(SIZE, 0)
        h.shutdown()
        return data


class Guest:
    """What a guest has written, and the disk as each bitmap began."""

    def __init__(self, host):
        self.disk = bytearray(SIZE)
        self.began = {}
        self.handle = None
        self.attach(host)

    def attach(self, host):
        self.handle = host.connect()

    def write(self, at, byte, length=G):
        self.handle.pwrite(bytes([byte]) * length, at)
        self.handle.flush()
        self.disk[at:at + length] = bytes([byte]) * length

    def zero(self, at, length=G):
        self.handle.zero(length, at)
        self.handle.flush()
        self.disk[at:at + length] = bytes(length)

    def begin(self, host, name, **more):
        host.d.ask('block-dirty-bitmap-add', node='vda', name=name,
                   persistent=True, **more)
        self.began[name] = bytes(self.disk)

    def covered(self, host, content):
        """Which bitmaps of @host can be trusted; they are right."""
        known = {n for n, b in host.bitmaps().items()
                 if not b.get('inconsistent')}
        for name in known:
            dirty = host.dirty(name)
            for i in range(SIZE // G):
                part = slice(i * G, (i + 1) * G)
                assert i in dirty or content[part] == self.began[name][part], (
                    host.name, name, i)
        return known

    def is_whole(self, host):
        """The host has the disk and all bitmaps."""
        content = host.content()
        assert content == bytes(self.disk), host.name
        assert self.covered(host, content) == set(self.began), host.name


program = sys.argv[1]
running = []


def introduce(a, b):
    a.d.ask('blockdev-add', driver='nbd', node_name='far', export='vda',
            discard='unmap', server=b.socket())
    b.d.ask('blockdev-add', driver='nbd', node_name='far', export='vda',
            read_only=True, server=a.socket())


def two_hosts():
    """A disk with data and two bitmaps, and an empty one of that size."""
    a, b = Host('here'), Host('there')
    a.start()
    b.start()
    g = Guest(a)
    for i in range(40):
        g.write(i * G * 3, i + 1)
    g.begin(a, 'b0')
    g.write(5 * M, 77, 3 * G)
    g.zero(6 * G)
    g.begin(a, 'b1')
    g.write(2 * M, 78)
    introduce(a, b)
    return a, b, g


def ready(a, g, **more):
    a.d.ask('blockdev-mirror', **{**ASK, 'bitmaps': True, **more})
    a.d.event('BLOCK_JOB_READY')
    g.write(7 * M, 79)


def begin_fetch(b, **more):
    b.d.ask('block-dirty-bitmap-fetch', **{
        'job_id': 'fetch', 'node': 'vda', 'source': 'far',
        'bitmaps': ['b0', 'b1'], **more})


def fetch(b, **more):
    """The error of the job, or None."""
    begin_fetch(b, **more)
    b.d.event('JOB_STATUS_CHANGE', id='fetch', status='concluded')
    info, = b.d.ask('query-jobs')
    b.d.ask('job-dismiss', id='fetch')
    return info.get('error')


def complete(a, g):
    a.d.ask('job-complete', id='move')
    end = a.d.event('BLOCK_JOB_COMPLETED')
    assert 'error' not in end, end
    g.write(8 * M, 80)      # by way of a, to b


# --- It works -----------------------------------------------------------------

def moves():
    """Each copy mode: the bits are the same, and go on at the target."""
    for mode in 'background', 'write-blocking':
        a, b, g = two_hosts()
        ready(a, g, copy_mode=mode)
        assert fetch(b) is None
        g.write(9 * M, 81)
        before = {n: a.dirty(n) for n in ('b0', 'b1')}
        complete(a, g)
        for name, bits in before.items():
            more = b.dirty(name)
            assert bits | {8 * M // G} <= more, (name, bits - more)
            # What the mirror wrote again may be more, and no more than that.
            assert len(more) <= len(bits) + 4, (name, sorted(more - bits))
        g.is_whole(b)
        a.kill()
        g.attach(b)
        g.write(10 * M, 82)
        b.kill()
        b.start()
        g.is_whole(b)
        b.kill()


def asks():
    """Without the bitmaps, or with wrong ones, users stay where they are."""
    a, b, g = two_hosts()
    ready(a, g)         # report: it fails
    a.d.ask('job-complete', id='move')
    end = a.d.event('BLOCK_JOB_COMPLETED')
    assert 'qemu:dirty-bitmap:b0 not found' in end['error'], end
    g.write(11 * M, 90)
    g.is_whole(a)

    ready(a, g, on_target_error='stop')
    b.d.ask('block-dirty-bitmap-add', node='vda', name='b0', persistent=True)
    a.d.events.clear()
    a.d.ask('job-complete', id='move')
    assert a.d.event('BLOCK_JOB_ERROR')['action'] == 'stop'
    a.d.event('JOB_STATUS_CHANGE', status='standby')
    g.write(11 * M, 91)
    b.d.ask('block-dirty-bitmap-remove', node='vda', name='b0')
    assert fetch(b) is None
    a.d.ask('job-resume', id='move')
    assert 'error' not in a.d.event('BLOCK_JOB_COMPLETED')
    g.write(11 * M, 92)
    g.is_whole(b)
    a.kill()
    b.kill()

    # A bitmap that is right in number, and is not the disk's.
    a, b, g = two_hosts()
    ready(a, g)
    for name in 'b0', 'b1':
        b.d.ask('block-dirty-bitmap-add', node='vda', name=name,
                persistent=True)
    a.d.ask('job-complete', id='move')
    end = a.d.event('BLOCK_JOB_COMPLETED')
    assert 'it lacks changes' in end['error'], end
    g.is_whole(a)
    for name in 'b0', 'b1':
        b.d.ask('block-dirty-bitmap-remove', node='vda', name=name)

    # One that is made after the job has looked.
    ready(a, g, auto_finalize=False)
    assert fetch(b) is None
    a.d.events.clear()
    a.d.ask('job-complete', id='move')
    a.d.event('JOB_STATUS_CHANGE', status='pending')
    g.begin(a, 'late')
    g.write(3 * M, 93)
    a.d.ask('job-finalize', id='move')
    end = a.d.event('BLOCK_JOB_COMPLETED')
    assert "bitmap 'late' was made too late" in end['error'], end
    g.is_whole(a)

    # What the other side cannot fetch.
    for text, more in (
            ('nosuch', {'bitmaps': ['nosuch']}),
            ('already exists', {'bitmaps': ['b0']}),
            ('no bitmap', {'bitmaps': []}),
            ('no NBD export', {'source': 'vda', 'bitmaps': ['x']}),
            ('power of 2', {'granularity': 1000, 'bitmaps': ['x']})):
        try:
            why = fetch(b, **more)
        except QmpError as e:
            why = e.text
        assert why and text in why, (text, why)
    a.kill()
    b.kill()


def meanwhile():
    """What is written while bitmaps are fetched is in all of them."""
    a, b, g = two_hosts()
    ready(a, g)
    stop(a.d.process.pid)
    begin_fetch(b)
    h = b.connect()
    h.pwrite(b'x' * G, 150 * G)
    h.shutdown()
    a.d.process.send_signal(signal.SIGCONT)
    b.d.event('JOB_STATUS_CHANGE', id='fetch', status='concluded')
    for name in 'b0', 'b1':
        assert b.dirty(name) == a.dirty(name) | {150}, name
    a.kill()
    b.kill()


def local():
    """A target that is an image of the same daemon."""
    a, b, g = two_hosts()
    b.kill()
    a.d.ask('blockdev-del', node_name='far')
    a.d.ask('block-dirty-bitmap-disable', node='vda', name='b1')
    a.d.ask('block-dirty-bitmap-add', node='vda', name='ram')
    g.write(4 * M, 60)
    stands = a.bitmaps()
    image = {'driver': 'qcow2', 'node-name': 'far', 'file': {
        'driver': 'file', 'filename': '../there/disk.qcow2'}}

    raw = {'driver': 'raw', 'node-name': 'raw', 'file': {
        'driver': 'null-co', 'size': SIZE}}
    a.d.ask('blockdev-add', **raw)
    try:
        a.d.ask('blockdev-mirror', **{**ASK, 'target': 'raw'}, bitmaps=True)
        raise AssertionError('a raw file has bitmaps')
    except QmpError as e:
        assert "Can't store persistent bitmaps" in e.text, e.text

    a.d.ask('blockdev-add', **image)
    a.d.ask('block-dirty-bitmap-add', node='far', name='b0')
    try:
        a.d.ask('blockdev-mirror', **ASK, bitmaps=True)
        raise AssertionError('two bitmaps of one name')
    except QmpError as e:
        assert 'Bitmap already exists: b0' in e.text, e.text
    a.d.ask('block-dirty-bitmap-remove', node='far', name='b0')

    ready(a, g)
    bits = {n: a.dirty(n) for n in ('b0', 'b1', 'ram')}
    assert bits['b0'] and bits['b1'], bits
    a.d.ask('job-complete', id='move')
    assert 'error' not in a.d.event('BLOCK_JOB_COMPLETED')
    for name, was in bits.items():
        assert a.dirty(name) == was, name
    far = {n['node-name']: n for n in a.d.ask('query-named-block-nodes',
                                              flat=True)}['far']
    for new in far['dirty-bitmaps']:
        old = stands[new['name']]
        for key in 'recording', 'persistent', 'granularity':
            assert new[key] == old[key], (new, old)
    g.write(8 * M, 61)
    a.kill()
    b.start()
    assert b.content() == bytes(g.disk)
    assert set(b.bitmaps()) == {'b0', 'b1'}
    assert b.dirty('b0') >= bits['b0'] | {8 * M // G}
    assert b.dirty('b1') == bits['b1']
    b.kill()


# --- It is killed -------------------------------------------------------------

PHASES = 'mirror', 'ready', 'fetching', 'fetched', 'pending', 'pivoted'


def come_to(phase, a, b, g):
    if phase == 'mirror':
        a.d.ask('blockdev-mirror', **ASK, bitmaps=True, speed=M)
        return
    ready(a, g, auto_finalize=phase != 'pending')
    if phase == 'ready':
        return
    if phase == 'fetching':     # a does not answer: b waits for it
        stop(a.d.process.pid)
        begin_fetch(b)
        return
    assert fetch(b) is None
    g.write(9 * M, 81)
    if phase == 'fetched':
        return
    if phase == 'pivoted':
        complete(a, g)
        return
    a.d.ask('job-complete', id='move')
    a.d.event('JOB_STATUS_CHANGE', status='pending')
    g.write(10 * M, 82)


def killed():
    """Whoever is killed when: the host that has the guest has all bitmaps, and
    no bitmap of the other one says that it is right when it is not."""
    for phase in PHASES:
        for victims in 'a', 'b', 'ab':
            a, b, g = two_hosts()
            come_to(phase, a, b, g)
            for host, name in (a, 'a'), (b, 'b'):
                if name in victims:
                    host.kill()
            if victims == 'b' and phase != 'pivoted':
                a.d.process.send_signal(signal.SIGCONT)
                g.write(11 * M, 83)     # the guest goes on
            a.kill()
            b.kill()
            a.start()
            b.start()
            g.is_whole(b if phase == 'pivoted' else a)
            known = g.covered(b, b.content())
            wanted = {'b0', 'b1'} if phase in ('fetched', 'pending',
                                               'pivoted') else set()
            assert known == wanted, (phase, victims, known)
            a.kill()
            b.kill()


# --- An increment after it ----------------------------------------------------

def backups():
    """The nightly backup goes on at the other host with an increment, which is
    the disk."""
    shutil.rmtree('backups', ignore_errors=True)
    a, b = Host('here'), Host('there')
    a.start()
    b.start()
    g = Guest(a)
    for i in range(40):
        g.write(i * G * 3, i + 1)

    def backup(host):
        subprocess.run([program, 'backup', f'{host.name}/qmp.sock',
                        'backups'], check=True)
        last = sorted(f for f in os.listdir('backups')
                      if f.endswith('Z.json'))[-1]
        with open(f'backups/{last}', encoding='utf-8') as f:
            return json.load(f)['disks'][0]

    assert backup(a)['kind'] == 'full'
    g.write(5 * M, 77, 3 * G)
    name, = a.bitmaps()
    introduce(a, b)
    ready(a, g)
    assert fetch(b, bitmaps=[name]) is None
    complete(a, g)
    g.attach(b)
    g.zero(6 * G)
    point = backup(b)
    assert (point['kind'], point.get('reason')) == ('increment', None), point
    a.kill()
    b.kill()
    image = sorted(f for f in os.listdir('backups/vda')
                   if f.endswith('.qcow2'))[-1]
    img('compare', f'backups/vda/{image}', 'there/disk.qcow2')


def main():
    try:
        for part in sys.argv[2:]:
            globals()[part]()
    finally:
        for host in running:
            host.kill()


main()
