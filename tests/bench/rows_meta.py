# SPDX-License-Identifier: BSD-3-Clause
"""Rows of what is about data: bitmaps, block status, checks, start, memory, the
waits of guests while commands work."""
import json
import subprocess
import time

from images import GIB, touches
from measure import Goal, Row
from peers import Disk, Server, file_options, kind, serve
from rows_io import QCOW2, RAW

BOTH = ['nbdelta', 'q-s-d']


def process_seconds(lab, words):
    return {'value': lab.timed(words)}


# Lists of extents, by a client that costs next to nothing.

def make_list(image, context, bitmap=''):
    def run(lab, who, _):
        disk = Disk(lab.images.get(image), 'qcow2', read_only=True,
                    bitmap=bitmap)
        with serve(lab, who, disk) as s:
            words = [lab.tool('nbd-status'), s.sock, '', context]
            lab.run(words)  # tables are read in
            before = s.cpu()
            seconds, extents = lab.run(words).split()
            sample = {'value': float(seconds) * 1e3}
            if int(extents) > 1000:  # CPU for each
                sample['cpu_us'] = (s.cpu() - before) * 1e6 / int(extents)
            return sample
    return run


def list_rows():
    return [
        Row('list-bitmap', 'list a dirty bitmap of 16 TiB, 5.3M extents', 'ms',
            QCOW2, make_list('dense.qcow2', 'qemu:dirty-bitmap:b0', 'b0'),
            'less', [Goal(0.35)]),
        Row('block-status-1m', 'block status of 1M extents', 'ms', QCOW2,
            make_list('holes.qcow2', 'base:allocation'), 'less', [Goal(0.25)]),
        Row('block-status-empty', 'block status of an empty disk of 16 TiB',
            'ms', QCOW2, make_list('empty.qcow2', 'base:allocation'), 'less',
            [Goal(0.4)])]


# Bitmaps of a disk of 16 TiB.

def start_words(lab, who, disk):
    """A server of one disk, as people start it."""
    sock = lab.path('sock')
    if kind(who) == 'nbdelta':
        return lab.programs.nbdelta(who) + [
            'serve', '--log=null', '-U', sock, '-f', disk.format,
            'disk=' + disk.path]
    if kind(who) == 'q-s-d':
        return lab.programs.in_tree('q-s-d') + [
            '--blockdev', file_options(disk), '--blockdev',
            f'driver={disk.format},node-name=disk,file=f', '--nbd-server',
            f'addr.type=unix,addr.path={sock}', '--export',
            'type=nbd,id=e,node-name=disk,name=,writable=on']
    if kind(who) == 'qemu-nbd':
        return lab.programs.in_tree('qemu-nbd') + [
            '-t', '-f', disk.format, '-k', sock, disk.path]
    return lab.programs.in_tree('nbdkit') + ['-f', '-U', sock, 'file',
                                             disk.path]


def first_reply(lab, who, disk):
    lab.remove('sock')
    done = lab.run([lab.tool('nbd-start'), lab.path('sock'),
                    *start_words(lab, who, disk)])
    milliseconds, kib = done.split()[-2:]
    return {'value': float(milliseconds), 'rss_mib': int(kib) / 1024}


def make_start(image, fmt):
    def run(lab, who, _):
        disk = Disk(lab.images.get(image), fmt)
        samples = sorted((first_reply(lab, who, disk) for _ in range(5)),
                         key=lambda s: s['value'])
        return samples[2]
    return run


def store(lab, who, _):
    """Stop after touches all over it."""
    path = lab.path('stored.qcow2')
    lab.images.copy(lab.images.get('large.qcow2'), path)
    s = serve(lab, who, Disk(path, 'qcow2'))
    try:
        subprocess.run(['qemu-io', '-f', 'raw', s.uri()], input=touches(),
                       text=True, check=True, stdout=subprocess.DEVNULL)
        begin = time.monotonic()
        s.process.terminate()
        s.process.wait()  # with a time limit, it would look now and then
        took = time.monotonic() - begin
    finally:
        s.stop()
    lab.remove('stored.qcow2')
    return {'value': took * 1e3}


def bitmap_rows():
    return [
        Row('bitmap-load-few', 'a bitmap of 16 TiB, few bits: start to first '
            'reply', 'ms', BOTH, make_start('large.qcow2', 'qcow2'), 'less',
            [Goal(0.6)], needs=['qemu-io']),
        Row('bitmap-load-dense', 'a bitmap of 16 TiB, dense: start to first '
            'reply', 'ms', BOTH, make_start('dense.qcow2', 'qcow2'), 'less',
            [Goal(0.6)], needs=['qemu-io']),
        Row('bitmap-store', 'a bitmap of 16 TiB, few bits: stop', 'ms', BOTH,
            store, 'less', [Goal(0.15)], needs=['qemu-io'])]


# Start, and memory.

def idle(lab, who, _):
    with serve(lab, who, Disk(lab.images.get('disk.raw'), 'raw')) as s:
        p = lab.spawn([lab.tool('nbd-load'), '-s', s.sock, '-e', s.export, '-i',
                       '-c', '500'], stdin=subprocess.PIPE,
                      stdout=subprocess.PIPE)
        p.stdout.readline()
        time.sleep(0.3)
        kib = s.resident_kib()
        p.stdin.close()
        p.wait(30)
        lab.stop(p)
        return {'value': kib / 1024}


def small_rows():
    return [
        Row('start', 'start to first reply, raw', 'ms', RAW,
            make_start('small.raw', 'raw'), 'less',
            [Goal(2.5, of='absolute'),
             Goal(5, 'rss_mib', of='absolute')]),
        Row('idle-500', 'RSS of a server with 500 idle connections', 'MiB',
            RAW, idle, 'less', [Goal(1.4, of='q-s-d')])]


# Checks of images.

def make_check(image):
    def run(lab, who, _):
        path = lab.images.get(image)
        if kind(who) == 'nbdelta':
            return process_seconds(lab, lab.programs.nbdelta(who) +
                                   ['check', '-q', path])
        return process_seconds(lab, lab.programs.in_tree('qemu-img') +
                               ['check', '-q', path])
    return run


def check_rows():
    who = ['nbdelta', 'qemu-img']
    return [
        Row('check-order', 'check an image of 4M clusters in order', 's', who,
            make_check('order.qcow2'), 'less', [Goal(1.0)]),
        # It takes qemu-img 7.2 more than eight minutes.
        Row('check-shuffled', 'check an image of 4M clusters, shuffled', 's',
            ['nbdelta'], make_check('shuffled.qcow2'), 'less')]


# Waits of a guest that goes on while a command works: the longest.

class Guest:
    """nbd-load beside commands."""

    def __init__(self, server, *options, seconds):
        self.lab = server.lab
        self.process = self.lab.spawn(
            server.load_words('-r', *options, '-t', str(seconds)),
            stdout=subprocess.PIPE, text=True)
        time.sleep(min(1.0, seconds / 3))

    def result(self):
        out = self.process.communicate()[0]
        self.lab.stop(self.process)
        return json.loads(out)


def make_worst(what):
    """Four bitmaps of 16 TiB, with bits all over, are cleared; or the disk
    grows and shrinks."""
    def run(lab, who, _):
        path = lab.images.new('huge.qcow2', '16T', '-o', 'cluster_size=2M')
        with serve(lab, who, Disk(path, 'qcow2')) as s:
            for i in range(4):
                s.ask('block-dirty-bitmap-add', node='disk', name=f'b{i}',
                      persistent=True, granularity=65536)
            subprocess.run(['qemu-io', '-f', 'raw', s.uri()], input=touches(),
                           text=True, check=True, stdout=subprocess.DEVNULL)
            time.sleep(1 if lab.quick else 5)  # bits are made exact
            guest = Guest(s, '-p', 'write', '-b', '4K', '-d', '4', '-S', '1G',
                          seconds=lab.seconds + 1)
            if what == 'clear':
                for i in range(4):
                    s.ask('block-dirty-bitmap-clear', node='disk', name=f'b{i}')
            else:
                for tib in (16385, 16383):
                    s.ask('block_resize', node_name='disk', size=tib * GIB)
            result = guest.result()
        lab.remove('huge.qcow2')
        return {'value': result['max_us'] / 1e3, 'p99_us': result['p99_us']}
    return run


def start_qemu(lab, path):
    """A QEMU that runs nothing: q-s-d makes no internal snapshots."""
    s = Server(lab, 'qemu', lab.programs.in_tree('qemu') + [
        '-M', 'none', '-nodefaults', '-display', 'none', '-S', '-blockdev',
        f'file,node-name=f,filename={path},aio=io_uring', '-blockdev',
        'qcow2,node-name=disk,file=f', '-qmp',
        f'unix:{lab.path("qmp")},server=on,wait=off'], None, lab.path('qmp'))
    s.sock = lab.path('sock')
    lab.remove('sock')
    s.ask('nbd-server-start', addr={'type': 'unix',
                                    'data': {'path': s.sock}})
    s.ask('block-export-add', type='nbd', id='e', node_name='disk', name='',
          writable=True)
    return s


def worst_snapshot(lab, who, _):
    path = lab.path('snapshot.qcow2')
    lab.images.copy(lab.images.get('order.qcow2'), path)
    with (start_qemu(lab, path) if who == 'qemu' else
          serve(lab, who, Disk(path, 'qcow2'))) as s:
        guest = Guest(s, '-p', 'write', '-b', '4K', '-d', '4',
                      seconds=lab.seconds + 1)
        s.ask('blockdev-snapshot-internal-sync', device='disk', name='s')
        result = guest.result()
    lab.remove('snapshot.qcow2')
    return {'value': result['max_us'] / 1e3, 'p99_us': result['p99_us']}


def worst_rows():
    return [
        Row('worst-clear', 'worst wait of a guest while bitmaps clear', 'ms',
            BOTH, make_worst('clear'), 'less', [Goal(1.0)], needs=['qemu-io']),
        # q-s-d does not resize a disk that it exports.
        Row('worst-resize', 'worst wait of a guest while the disk resizes',
            'ms', ['nbdelta'], make_worst('resize'), 'less',
            needs=['qemu-io']),
        Row('worst-snapshot', 'worst wait of a guest while an internal '
            'snapshot is made', 'ms', ['nbdelta', 'qemu'], worst_snapshot,
            'less')]


def all_rows():
    return (list_rows() + bitmap_rows() + small_rows() + check_rows() +
            worst_rows())
