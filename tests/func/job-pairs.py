# SPDX-License-Identifier: BSD-3-Clause
"""All pairs of what is done with a disk: the first goes on, the second begins.

TABLE says for each pair whether the second is refused, as QEMU does and with
its words, or goes on beside the first.  Then both have to be right: a client
writes all the time, and knows from what it has written what a disk, a backup
and a bitmap may have in the end.
"""
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import nbd

from qmp_daemon import Daemon, QmpError

K = 1 << 10
M = 1 << 20
SIZE = 8 * M
SLOW = 64 * K

# --- Where it happens: base <- mid <- disk, two targets, an overlay ---------


def node(name, **more):
    return {'driver': 'qcow2', 'node-name': name, 'file': {
        'driver': 'file', 'filename': name + '.img'}, **more}


def make_templates():
    def img(*argv):
        subprocess.run(['qemu-img', *argv], check=True,
                       stdout=subprocess.DEVNULL)

    def fill(name, *commands):
        subprocess.run(['qemu-io', '-f', 'qcow2', name] + [
            w for c in commands for w in ('-c', c)], check=True,
            stdout=subprocess.DEVNULL)

    os.mkdir('templates')
    os.chdir('templates')
    img('create', '-q', '-f', 'qcow2', 'base.img', str(SIZE))
    fill('base.img', 'write -P 1 0 4M')
    img('create', '-q', '-f', 'qcow2', '-b', 'base.img', '-F', 'qcow2',
        'mid.img')
    fill('mid.img', 'write -P 2 2M 3M')
    img('create', '-q', '-f', 'qcow2', '-b', 'mid.img', '-F', 'qcow2',
        'disk.img')
    fill('disk.img', 'write -P 3 3M 3M', 'write -z 1M 256k')
    img('create', '-q', '-f', 'qcow2', 'over.img', str(SIZE))
    img('convert', '-O', 'raw', 'disk.img', 'initial.raw')
    for name in ('t.img', 'u.img'):     # increments go on a full copy
        img('convert', '-O', 'qcow2', 'disk.img', name)
    os.chdir('..')


class Writer(threading.Thread):
    """Writes the number of each write, one after the other."""

    def __init__(self):
        super().__init__()
        self.h = nbd.NBD()
        self.h.connect_uri('nbd+unix:///d?socket=nbd.sock')
        self.issued = self.done = 0
        self.offsets = []
        self.stop = False
        self.error = None
        self.start()
        while self.done < 60:
            time.sleep(0.01)

    def run(self):
        try:
            while not self.stop:
                self.issued += 1
                n = self.issued
                at = n * 37 % 128 * 64 * K + n % 16 * 4 * K
                self.offsets.append(at)
                self.h.pwrite(n.to_bytes(8, 'big') * 512, at)
                self.done = n
                time.sleep(0.001)
        except nbd.Error as e:
            self.error = e

    def end(self, gone):
        """@gone: the export has ended, so that the next write fails."""
        self.stop = not gone
        self.join()
        assert (self.error is not None) == gone, self.error
        if not gone:
            self.h.flush()

    def state(self, n):
        """The disk after the first @n writes."""
        with open('initial.raw', 'rb') as f:
            disk = bytearray(f.read())
        for i, at in enumerate(self.offsets[:n]):
            disk[at:at + 4 * K] = (i + 1).to_bytes(8, 'big') * 512
        return disk

    def newest(self, disk):
        """The number of the last write that @disk has."""
        return max([i + 1 for i, at in enumerate(self.offsets)
                    if disk[at:at + 8] == (i + 1).to_bytes(8, 'big')],
                   default=0)

    def clusters(self, since=0):
        return len({at // (64 * K) for at in self.offsets[since:]})


class World:
    def __init__(self, program, rate=M):
        """@rate: at which an image is made on t, bytes a second."""
        self.rate = rate
        for name in os.listdir('templates'):
            shutil.copy('templates/' + name, name)
        arguments = []
        for n in (node('base', **{'read-only': True}),
                  node('mid', backing='base', **{'read-only': True}),
                  node('disk', backing='mid', discard='unmap'),
                  node('t'), node('u'), node('over', backing=None)):
            arguments += ['--blockdev', json.dumps(n)]
        self.d = Daemon(program, *arguments, '--vm-compat', '--device',
                        'virtio-blk,id=dev,drive=disk', '--export',
                        'nbd,id=exp,node-name=disk,name=d,writable=on')
        self.ask = self.d.ask
        for name in ('b', 'c'):
            self.ask('block-dirty-bitmap-add', node='disk', name=name)
        self.writer = Writer()
        self.instants = {}      # of a target: writes before, after; the job
        self.points = []        # what was pulled; writes before, after
        self.views = []         # of dirty ranges; the extents at first
        self.ejected = False    # the disk, and with it the writer's export
        self.created = False    # an image on t
        self.endless = set()    # jobs
        self.uses = {}          # the bitmap of a job
        self.always = set()     # jobs that clear what they have copied, anyway

    def backup(self, target, command='blockdev-backup', **arguments):
        before = self.writer.done
        name = arguments.pop('job_id')
        self.ask(command, **{'job-id': name, 'device': 'disk',
                             'target': target, 'sync': 'full', 'speed': SLOW,
                             **arguments})
        if arguments.get('sync') == 'none':
            self.endless.add(name)
        if arguments.get('bitmap-mode') == 'always':
            self.always.add(name)
        if arguments.get('bitmap-mode') != 'never':
            self.uses[name] = arguments.get('bitmap')
        if 'device' not in arguments:
            self.instants[target] = (before, self.writer.issued, name)

    def kill(self):
        self.writer.stop = True
        self.d.process.kill()
        self.d.process.wait()
        self.writer.join()

    def pull(self):
        before = self.writer.done
        begun = self.ask('backup-begin', disks=[{'node': 'disk'}])
        self.points.append((begun, before, self.writer.issued))

    def view(self):
        self.ask('block-export-add', type='nbd', id='v', name='v',
                 node_name='disk', writable=True, bitmaps=['b'])
        h = nbd.NBD()
        h.add_meta_context('base:allocation')
        h.connect_uri('nbd+unix:///v@dirty=b?socket=nbd.sock')
        self.views.append((h, extents_of(h)))

    def drop_checkpoint(self):
        begun = self.ask('backup-begin', disks=[{'node': 'disk'}],
                         checkpoint='cp')
        self.ask('backup-end', id=begun['id'], success=True)
        self.ask('checkpoint-delete', name='cp')

    def eject(self):
        self.ask('eject', id='dev')
        self.ejected = True

    def create(self):
        self.ask('object-add', **{'qom-type': 'throttle-group', 'id': 'tg',
                                  'limits': {'bps-total': self.rate}})
        self.ask('blockdev-add', driver='throttle', node_name='slow',
                 throttle_group='tg', file='t')
        before = os.stat('t.img').st_mtime_ns
        self.ask('blockdev-create', job_id='j', options={
            'driver': 'qcow2', 'file': 'slow', 'size': M,
            'preallocation': 'full'})
        self.created = True
        while os.stat('t.img').st_mtime_ns == before:   # it has begun
            time.sleep(0.01)


def extents_of(h):
    found = []
    at = 0

    def note(context, offset, entries, error):
        found.extend(entries)

    while at < SIZE:
        before = len(found)
        h.block_status(SIZE - at, at, note)
        at += sum(found[before::2])
    return found


# --- What is done -----------------------------------------------------------

def backup(target, name, **more):
    return lambda w: w.backup(target, job_id=name, **more)


def drive(target, name, **more):
    return lambda w: w.backup(target, 'drive-backup', job_id=name,
                              format='qcow2', **more)


def ask(command, **arguments):
    arguments = {k.replace('_', '-'): v for k, v in arguments.items()}
    return lambda w: w.ask(command, **arguments)


def then(*steps):
    def run(w):
        for s in steps:
            s(w)
    return run


def event(name, **data):
    return lambda w: w.d.event(name, **data)


def commit(name, top, base, **more):
    return ask('block-commit', job_id=name, device='disk', top_node=top,
               base_node=base, **more)


def mirror(name, target, **more):
    return ask('blockdev-mirror', job_id=name, device='disk', target=target,
               sync='full', **more)


def stream(name, **more):
    return ask('block-stream', job_id=name, device='disk', **more)


def cbw(name, of, target):
    return ask('blockdev-add', driver='copy-before-write', node_name=name,
               file=of, target=target)


def export(name, of, writable):
    return ask('block-export-add', type='nbd', id=name, name=name,
               node_name=of, writable=writable)


def bitmap(verb, name='b', **more):
    return ask('block-dirty-bitmap-' + verb, node='disk', name=name, **more)


def merge(source, target):
    return ask('block-dirty-bitmap-merge', node='disk', target=target,
               bitmaps=[source])


FIRST = {
    'backup full': backup('t', 'j'),
    'backup incremental': backup('t', 'j', sync='incremental', bitmap='b'),
    'backup always': backup('t', 'j', sync='bitmap', bitmap='b',
                            **{'bitmap-mode': 'always'}),
    'backup paused': then(backup('t', 'j'), ask('job-pause', id='j')),
    'backup pending': then(
        backup('t', 'j', speed=0, **{'auto-finalize': False}),
        event('BLOCK_JOB_PENDING')),
    'pull': World.pull,
    'commit below': commit('j', 'mid', 'base', speed=SLOW),
    'commit active': commit('j', 'disk', 'mid', speed=SLOW),
    'commit ready': then(commit('j', 'disk', 'mid'),
                         event('BLOCK_JOB_READY')),
    'mirror': mirror('j', 't', speed=SLOW),
    'mirror ready': then(mirror('j', 't'), event('BLOCK_JOB_READY')),
    'mirror blocking': then(
        mirror('j', 't', **{'copy-mode': 'write-blocking'}),
        event('BLOCK_JOB_READY')),
    'stream': stream('j', speed=SLOW),
    'stream paused': then(stream('j', speed=SLOW), ask('job-pause', id='j')),
    'filter': cbw('f', 'disk', 't'),
    'create': World.create,
    'dirty view': World.view,
    'checkpoint gone': World.drop_checkpoint,
    'eject': World.eject,
}

SECOND = {
    'backup full': backup('u', 'k'),
    'backup incremental': backup('u', 'k', sync='incremental', bitmap='b'),
    'drive-backup top': drive('e.qcow2', 'k', sync='top'),
    'backup to t': backup('t', 'k'),
    'backup of mid': backup('u', 'k', device='mid'),
    'pull': World.pull,
    'commit below': commit('k', 'mid', 'base'),
    'commit active': commit('k', 'disk', 'mid'),
    'mirror': mirror('k', 'u'),
    'mirror to t': mirror('k', 't'),
    'stream': stream('k'),
    'snapshot': ask('blockdev-snapshot', node='disk', overlay='over'),
    'snapshot, transaction': ask('transaction', actions=[
        {'type': 'block-dirty-bitmap-add', 'data': {
            'node': 'disk', 'name': 'x'}},
        {'type': 'blockdev-snapshot', 'data': {
            'node': 'disk', 'overlay': 'over'}}]),
    'grow': ask('block_resize', node_name='disk', size=SIZE + M),
    'grow t': ask('block_resize', node_name='t', size=SIZE + M),
    'writable export': export('x', 'disk', True),
    'writable export of t': export('x', 't', True),
    'export of mid': export('x', 'mid', False),
    'filter': cbw('g', 'disk', 'u'),
    'del t': ask('blockdev-del', node_name='t'),
    'reopen, read-only': ask('blockdev-reopen', options=[
        node('disk', backing='mid', **{'read-only': True})]),
    'reopen, backing': ask('blockdev-reopen', options=[
        node('disk', backing='base')]),
    'change-backing-file': ask(
        'change-backing-file', device='disk', image_node_name='disk',
        backing_file='mid.img'),
    'bitmap add': bitmap('add', 'x'),
    'bitmap remove': bitmap('remove'),
    'bitmap clear': bitmap('clear'),
    'bitmap disable': bitmap('disable'),
    'bitmap merge from': merge('b', 'c'),
    'bitmap merge into': merge('c', 'b'),
    'pause': ask('job-pause', id='j'),
    'complete': ask('job-complete', id='j'),
    'cancel': ask('block-job-cancel', device='j'),
    'cancel by force': ask('block-job-cancel', device='j', force=True),
    'finalize': ask('job-finalize', id='j'),
    'dismiss': ask('job-dismiss', id='j'),
    'eject': World.eject,
}


# --- The table --------------------------------------------------------------

# What is refused while the first goes on, by (a part of) what is said.  All
# else begins.  These are the answers of QEMU 7.2, except that it lets others
# write to the target of a backup ("writable export of t", "filter, backup to
# t") and calls a node in use by another name ("grow t", "grow").  QEMU has no
# pulls and views.  Its eject is refused by a job alone, in these words, and
# does not close nodes of blockdev-add.
REFUSED = {
    'backup full': {
        'in use by block job: backup': [
            'backup to t', 'del t', 'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow', 'grow t', 'writable export', 'writable export of t'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "cannot accept command verb 'complete'": [
            'complete'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'backup always': {
        "Bitmap 'b' is currently in use by another operation and cannot be used": [
            'backup incremental', 'bitmap remove', 'bitmap clear',
            'bitmap disable', 'bitmap merge from', 'bitmap merge into'],
        'in use by block job: backup': [
            'backup to t', 'del t', 'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow', 'grow t', 'writable export', 'writable export of t'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "cannot accept command verb 'complete'": [
            'complete'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'backup pending': {
        'in use by block job: backup': [
            'backup to t', 'del t', 'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow', 'grow t', 'writable export', 'writable export of t'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "cannot accept command verb 'pause'": [
            'pause'],
        "cannot accept command verb 'complete'": [
            'complete'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'commit below': {
        'in use by block job: commit': [
            'backup full', 'backup incremental', 'drive-backup top',
            'backup to t', 'backup of mid', 'pull', 'snapshot',
            'snapshot, transaction', 'grow', 'change-backing-file', 'eject',
            'stream'],
        'Need a root block node': [
            'commit below', 'commit active', 'mirror', 'mirror to t'],
        'Cannot replace implicit backing child of disk': [
            'reopen, read-only', 'reopen, backing'],
        "cannot accept command verb 'complete'": [
            'complete'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'commit ready': {
        'in use by block job: commit': [
            'backup full', 'backup incremental', 'drive-backup top',
            'backup to t', 'backup of mid', 'pull', 'snapshot',
            'snapshot, transaction', 'grow', 'eject', 'stream'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "Cannot change frozen 'backing' link from 'disk' to 'mid'": [
            'reopen, backing'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'backup incremental': {
        "Bitmap 'b' is currently in use by another operation and cannot be used": [
            'backup incremental', 'bitmap remove', 'bitmap clear',
            'bitmap disable', 'bitmap merge from', 'bitmap merge into'],
        'in use by block job: backup': [
            'backup to t', 'del t', 'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow', 'grow t', 'writable export', 'writable export of t'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "cannot accept command verb 'complete'": [
            'complete'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'backup paused': {
        'in use by block job: backup': [
            'backup to t', 'del t', 'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow', 'grow t', 'writable export', 'writable export of t'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        'Job is already paused': [
            'pause'],
        "cannot accept command verb 'complete'": [
            'complete'],
        "The block job for device 'j' is currently paused": [
            'cancel'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'pull': {
        'in use by block job: backup': [
            'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow', 'writable export'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        'Job not found': [
            'pause', 'complete', 'finalize', 'dismiss'],
        "Block job 'j' not found": [
            'cancel', 'cancel by force'],
    },
    'commit active': {
        'in use by block job: commit': [
            'backup full', 'backup incremental', 'drive-backup top',
            'backup to t', 'backup of mid', 'pull', 'snapshot',
            'snapshot, transaction', 'grow', 'eject', 'stream'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "Cannot change frozen 'backing' link from 'disk' to 'mid'": [
            'reopen, backing'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'mirror': {
        'in use by block job: mirror': [
            'backup full', 'backup incremental', 'drive-backup top',
            'backup to t', 'pull', 'stream', 'snapshot',
            'snapshot, transaction', 'grow', 'del t', 'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow t', 'writable export of t'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "cannot accept command verb 'complete'": [
            'complete'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'mirror ready': {
        'in use by block job: mirror': [
            'backup full', 'backup incremental', 'drive-backup top',
            'backup to t', 'pull', 'stream', 'snapshot',
            'snapshot, transaction', 'grow', 'del t', 'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow t', 'writable export of t'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'mirror blocking': {
        'in use by block job: mirror': [
            'backup full', 'backup incremental', 'drive-backup top',
            'backup to t', 'pull', 'stream', 'snapshot',
            'snapshot, transaction', 'del t', 'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow', 'grow t', 'writable export of t', 'writable export'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'stream': {
        'in use by block job: stream': [
            'backup full', 'backup incremental', 'drive-backup top',
            'backup to t', 'backup of mid', 'pull', 'stream', 'snapshot',
            'snapshot, transaction', 'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "Cannot change frozen 'backing' link from 'disk' to 'mid'": [
            'reopen, backing'],
        "cannot accept command verb 'complete'": [
            'complete'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'stream paused': {
        'in use by block job: stream': [
            'backup full', 'backup incremental', 'drive-backup top',
            'backup to t', 'backup of mid', 'pull', 'stream', 'snapshot',
            'snapshot, transaction', 'eject'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Permission conflict on node': [
            'grow'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "Cannot change frozen 'backing' link from 'disk' to 'mid'": [
            'reopen, backing'],
        'Job is already paused': [
            'pause'],
        "The block job for device 'j' is currently paused": [
            'cancel'],
        "cannot accept command verb 'complete'": [
            'complete'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
    },
    'filter': {
        'Permission conflict on node': [
            'backup to t', 'grow t', 'writable export of t'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file', 'mirror',
            'mirror to t'],
        'Block device t is in use': [
            'del t'],
        'Block device disk is in use': [
            'eject'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        'Job not found': [
            'pause', 'complete', 'finalize', 'dismiss'],
        "Block job 'j' not found": [
            'cancel', 'cancel by force'],
    },
    'create': {
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        "cannot accept command verb 'complete'": [
            'complete'],
        "Block job 'j' not found": [
            'cancel', 'cancel by force'],
        "cannot accept command verb 'finalize'": [
            'finalize'],
        "cannot accept command verb 'dismiss'": [
            'dismiss'],
        # They drain t, which lets throttled writes pass: they come last.
        'Permission conflict on node': [
            'mirror to t'],
        'Block device t is in use': [
            'del t'],
    },
    'dirty view': {
        "Bitmap 'b' is currently in use by another operation and cannot be used": [
            'backup incremental', 'bitmap remove', 'bitmap clear',
            'bitmap disable', 'bitmap merge from', 'bitmap merge into'],
        'Need a root block node': [
            'commit below', 'commit active', 'change-backing-file'],
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        'Job not found': [
            'pause', 'complete', 'finalize', 'dismiss'],
        "Block job 'j' not found": [
            'cancel', 'cancel by force'],
    },
    'checkpoint gone': {
        "Read-only block node 'disk' cannot support read-write users": [
            'reopen, read-only'],
        'Job not found': [
            'pause', 'complete', 'finalize', 'dismiss'],
        "Block job 'j' not found": [
            'cancel', 'cancel by force'],
    },
    'eject': {
        "Cannot find device='disk' nor node-name='disk'": [
            'backup full', 'backup incremental', 'drive-backup top',
            'backup to t', 'pull', 'snapshot', 'snapshot, transaction',
            'filter', 'change-backing-file', 'bitmap add', 'mirror',
            'mirror to t', 'stream'],
        "Device 'disk' not found": [
            'commit below', 'commit active'],
        "Cannot find device='' nor node-name='disk'": [
            'grow', 'writable export'],
        "Failed to find node with node-name='disk'": [
            'reopen, read-only', 'reopen, backing'],
        "Node 'disk' not found": [
            'bitmap remove', 'bitmap clear', 'bitmap disable',
            'bitmap merge from', 'bitmap merge into'],
        'Job not found': [
            'pause', 'complete', 'finalize', 'dismiss'],
        "Block job 'j' not found": [
            'cancel', 'cancel by force'],
    },
}

# What is gone through when all pairs would take too long (PAIRS=all).
RIGHT = {
    'backup full', 'pull', 'commit below', 'commit active', 'snapshot', 'filter',
    'bitmap merge into', 'complete', 'cancel', 'eject', 'mirror', 'stream',
}

# --- The end of it, and what must be true then ------------------------------

# What takes a guest's writes to another image, what changes bits by itself.
ELSEWHERE = ('commit', 'mirror', 'snapshot', 'reopen', 'grow', 'eject')
TOUCHED = {'bitmap remove': {'b'}, 'bitmap clear': {'b'},
           'bitmap disable': {'b'}, 'bitmap merge from': {'c'},
           'bitmap merge into': {'b'}}


def push(d, j, endless):
    """Bring a job a step nearer to its end."""
    name = j['id']
    verb = {'paused': 'job-resume', 'standby': 'job-resume',
            'ready': 'job-complete', 'pending': 'job-finalize',
            'concluded': 'job-dismiss'}.get(j['status'])
    try:
        if verb:
            d.ask(verb, id=name)
        elif name in endless:
            d.ask('block-job-cancel', device=name)
        elif j['status'] == 'running':
            d.ask('block-job-set-speed', device=name, speed=0)
    except QmpError:
        pass                    # it has gone on meanwhile


def finish(w, endless):
    end = time.monotonic() + 120
    while True:
        jobs = w.ask('query-jobs')
        if not jobs:
            break
        assert time.monotonic() < end, jobs
        for j in jobs:
            push(w.d, j, endless)
        time.sleep(0.02)


def is_state(w, disk, before, after, what):
    """@disk has the first n writes and no others, n from before to after."""
    n = w.writer.newest(disk)
    assert before <= n <= after, f'{what}: {before} <= {n} <= {after}'
    assert w.writer.state(n) == disk, f'{what}: not what was after write {n}'
    return n


def check_views(w, n):
    """The extents of the instant, the disk's bytes of now."""
    for h, extents in w.views:
        assert extents_of(h) == extents, 'the view has other extents'
        is_state(w, h.pread(SIZE, 0), n, n, 'the view')
        h.shutdown()


def check_point(w, point, before, after):
    for p in point['disks']:
        h = nbd.NBD()
        h.connect_uri(p['uri'])
        is_state(w, h.pread(SIZE, 0), before, after, 'the pulled backup')
        h.shutdown()
    w.ask('backup-end', id=point['id'], success=True)


def dirty_clusters(w, name):
    for n in w.ask('query-named-block-nodes'):
        for b in n.get('dirty-bitmaps', []):
            if b.get('name') == name and n['node-name'] == 'disk':
                return b['count'] // (64 * K)
    return None


def check_bitmaps(w, names, ended):
    """All that was written since; and no more than ever was."""
    most = w.writer.clusters()
    for name in names:
        least = most
        for before, after, job in w.instants.values():
            if (job in ended or job in w.always) and w.uses.get(job) == name:
                least = w.writer.clusters(after)
        count = dirty_clusters(w, name)
        assert least <= count <= most, f'{name}: {least} <= {count} <= {most}'


def content(file):
    subprocess.run(['qemu-img', 'convert', '-U', '-O', 'raw', file,
                    'got.raw'], check=True)
    with open('got.raw', 'rb') as f:
        return f.read(SIZE)


def check_images(w, ended):
    for target, (before, after, job) in w.instants.items():
        if job not in ended or w.endless & {job}:
            continue
        file = target if '.' in target else target + '.img'
        is_state(w, content(file), before, after, target)
    if w.ejected:
        is_state(w, content('disk.img'), w.writer.done, w.writer.issued,
                 'the ejected disk')
    if w.created:
        content('t.img')
        info = json.loads(subprocess.check_output([
            'qemu-img', 'info', '-f', 'qcow2', '--output=json', 'got.raw']))
        assert info['virtual-size'] == M, info


def check_right(program, first, second):
    w = World(program)
    try:
        FIRST[first](w)
        SECOND[second](w)
        time.sleep(0.05)
        finish(w, w.endless)
        ended = {e['data']['device'] for e in w.d.events
                 if e['event'] == 'BLOCK_JOB_COMPLETED' and
                 'error' not in e['data']}
        for p in w.points:
            check_point(w, *p)
        w.writer.end(w.ejected)
        if not w.ejected:
            n = w.writer.done
            is_state(w, w.writer.h.pread(SIZE, 0), n, n, 'the disk')
            w.writer.h.shutdown()
            check_views(w, n)
        if not any(word in first + second for word in ELSEWHERE):
            check_bitmaps(w, {'b', 'c'} - TOUCHED.get(second, set()), ended)
            assert dirty_clusters(w, 'cp') is None, 'a checkpoint came back'
    except BaseException:
        w.kill()
        raise
    w.d.__exit__(None)
    check_images(w, ended)


# --- All of it --------------------------------------------------------------

def check_refused(program, first):
    """In one world: what is refused changes nothing."""
    w = World(program, 64 * K)  # the image takes a quarter of a minute
    try:
        FIRST[first](w)
        for text, seconds in REFUSED[first].items():
            for second in seconds:
                try:
                    SECOND[second](w)
                except QmpError as e:
                    assert text in e.text, f'{second}: {e.text}'
                else:
                    raise AssertionError(f'{second}: not refused')
        finish(w, w.endless)
        for p in w.points:
            check_point(w, *p)
        w.writer.end(w.ejected)
    except BaseException:
        w.kill()
        raise
    if not w.ejected:
        w.writer.h.shutdown()
    w.d.__exit__(None)


def clean():
    for name in os.listdir('.'):
        if name != 'templates':
            os.unlink(name)


def main():
    program = sys.argv[1]
    everything = os.environ.get('PAIRS') == 'all'
    make_templates()
    for first, refused in REFUSED.items():
        try:
            check_refused(program, first)
        except BaseException:
            print(f'{first}, and what is refused then')
            raise
        clean()
        known = {s for seconds in refused.values() for s in seconds}
        for second in SECOND:
            # The disk is another one then; the job may be ready or not; the
            # image may be there by the time that a drain of t is over.
            if second in known or second == 'reopen, backing' or \
                    (first, second) == ('commit active', 'complete') or \
                    (first, second) == ('create', 'backup to t') or \
                    not (everything or second in RIGHT):
                continue
            try:
                check_right(program, first, second)
            except BaseException:
                print(f'{first}, then {second}')
                raise
            clean()


main()
