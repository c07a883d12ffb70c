# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-mirror and drive-mirror, while a client writes: at the pivot the
target is what the source is, in each mode, and nothing that was acknowledged is
missing."""
import json
import os
import random
import subprocess
import sys
import threading
import time

import nbd

from qmp_daemon import Daemon, QmpError

K = 1 << 10
M = 1 << 20
SIZE = 24 * M


def img(*argv):
    subprocess.run(['qemu-img', *argv], check=True, stdout=subprocess.DEVNULL)


def fill(name, *commands):
    subprocess.run(['qemu-io', '-f', 'qcow2', name] + [
        w for c in commands for w in ('-c', c)], check=True,
        stdout=subprocess.DEVNULL)


def node(name, driver='qcow2', **more):
    return {'driver': driver, 'node-name': name, 'file': {
        'driver': 'file', 'filename': name + '.img'}, **more}


def make_images():
    for name in os.listdir('.'):
        if name.endswith('.img'):
            os.unlink(name)
    img('create', '-q', '-f', 'qcow2', 'base.img', str(SIZE))
    fill('base.img', 'write -P 1 0 9M', 'write -P 2 20M 2M')
    img('create', '-q', '-f', 'qcow2', '-b', 'base.img', '-F', 'qcow2',
        'disk.img')
    fill('disk.img', 'write -P 3 4M 9M', 'write -z 1M 256k')


class Writers:
    """Clients that write, zero and trim, each where no other does, and know what
    has to be there."""

    def __init__(self, count=3, seed=1, durable=False):
        self.durable = durable      # only what was flushed is known
        self.pending = {}           # by thread: what may be either
        self.stop = False
        self.errors = []
        self.known = {}     # offset of 4 KiB: the byte
        self.rounds = [0] * count
        self.threads = [threading.Thread(target=self.run, args=(i, count,
                                                                seed + i))
                        for i in range(count)]
        for t in self.threads:
            t.start()

    def run(self, i, count, seed):
        r = random.Random(seed)
        h = nbd.NBD()
        try:
            h.connect_uri('nbd+unix:///d?socket=nbd.sock')
            step = 128 * K
            while not self.stop:
                slot = r.randrange(SIZE // step // count) * count + i
                length = r.choice((4 * K, 4 * K, 12 * K, 64 * K, 128 * K))
                at = slot * step + r.randrange((step - length) // (4 * K) + 1
                                               ) * 4 * K
                byte = r.randrange(256)
                self.pending[i] = range(at, at + length, 4 * K)
                if byte == 0:
                    h.zero(length, at)
                else:
                    h.pwrite(bytes([byte]) * length, at)
                if self.durable:
                    h.flush()
                for k in self.pending.pop(i):
                    self.known[k] = byte
                self.rounds[i] += 1
                if self.rounds[i] % 50 == 0:
                    h.flush()
                time.sleep(0.002)
        except nbd.Error as e:
            self.errors.append(e)

    def go_on(self, more=30):
        """Until each has done some more."""
        wanted = [n + more for n in self.rounds]
        while any(n < w for n, w in zip(self.rounds, wanted)):
            assert not self.errors, self.errors
            time.sleep(0.005)

    def end(self, killed=False):
        self.stop = True
        for t in self.threads:
            t.join()
        assert killed or not self.errors, self.errors

    def check(self, name, fmt='qcow2'):
        img('convert', '-U', '-f', fmt, '-O', 'raw', name, 'seen.raw')
        with open('seen.raw', 'rb') as f:
            disk = f.read()
        either = {at for part in self.pending.values() for at in part}
        for at, byte in self.known.items():
            assert at in either or disk[at:at + 4 * K] == bytes([byte]) * 4 * K, (name, at)
        return disk


def daemon(program, *nodes):
    arguments = []
    for n in (node('base', **{'read-only': True}),
              node('disk', backing='base', discard='unmap'), *nodes):
        arguments += ['--blockdev', json.dumps(n)]
    return Daemon(program, *arguments, '--export',
                  'nbd,id=exp,node-name=disk,name=d,writable=on')


def same(a, b, fa='qcow2', fb='qcow2'):
    img('compare', '-U', '-f', fa, '-F', fb, a, b)


def statuses(d, job):
    out = []
    while not out or out[-1] != 'null':
        out.append(d.event('JOB_STATUS_CHANGE', id=job)['status'])
    return out


def job(d):
    return d.ask('query-block-jobs')[0]


def backing_of(name):
    out = subprocess.run(['qemu-img', 'info', '-U', '--output=json', name],
                         check=True, stdout=subprocess.PIPE).stdout
    return json.loads(out).get('backing-filename')


# --- Pivot while clients write ------------------------------------------------

def pivots(program):
    """Each sync and copy mode: the clients go on across the pivot."""
    for sync in ('full', 'top'):
        for mode in ('background', 'write-blocking'):
            make_images()
            if sync == 'full':
                img('create', '-q', '-f', 'raw', 't.img', str(SIZE))
                target = node('t', 'raw', discard='unmap')
            else:
                img('create', '-q', '-f', 'qcow2', '-b', 'base.img', '-F',
                    'qcow2', 't.img')
                target = node('t', backing='base')
            with daemon(program, target) as d:
                w = Writers()
                w.go_on()
                d.ask('blockdev-mirror', job_id='j', device='disk',
                      target='t', sync=sync, copy_mode=mode,
                      granularity=64 * K)
                assert d.event('BLOCK_JOB_READY', device='j')['type'] == \
                    'mirror'
                w.go_on()
                d.ask('block-job-complete', device='j')
                end = d.event('BLOCK_JOB_COMPLETED', device='j')
                assert 'error' not in end and end['len'] == end['offset'], end
                assert statuses(d, 'j') == [
                    'created', 'running', 'ready', 'waiting', 'pending',
                    'concluded', 'null']
                w.go_on()
                w.end()
                d.ask('blockdev-del', node_name='disk')
            w.check('t.img', 'raw' if sync == 'full' else 'qcow2')


def equal(program):
    """Where nobody writes after the pivot the two are equal, to the byte; a
    cancel that is not forced leaves clients with the source."""
    for mode in ('background', 'write-blocking'):
        for verb in ('complete', 'cancel'):
            make_images()
            img('create', '-q', '-f', 'qcow2', 't.img', str(SIZE))
            with daemon(program, node('t')) as d:
                w = Writers()
                d.ask('blockdev-mirror', job_id='j', device='disk',
                      target='t', sync='full', copy_mode=mode)
                d.event('BLOCK_JOB_READY', device='j')
                w.go_on(60)
                d.ask('job-complete' if verb == 'complete' and
                      mode == 'background' else 'block-job-' + verb,
                      **({'id': 'j'} if verb == 'complete' and
                         mode == 'background' else {'device': 'j'}))
                d.event('BLOCK_JOB_COMPLETED', device='j')
                w.end()
            # After a cancel, what was written later is in the source alone.
            w.check('t.img' if verb == 'complete' else 'disk.img')
            img('check', '-q', 't.img')
            if verb == 'complete':
                continue
            # Without writers, they are equal.
            with daemon(program, node('t')) as d:
                d.ask('blockdev-mirror', job_id='j', device='disk',
                      target='t', sync='full', copy_mode=mode)
                d.event('BLOCK_JOB_READY', device='j')
                d.ask('block-job-cancel', device='j')
                d.event('BLOCK_JOB_COMPLETED', device='j')
            same('disk.img', 't.img')


def change(program):
    """block-job-change; actively-synced; a filter's name; pause, speed."""
    make_images()
    img('create', '-q', '-f', 'qcow2', 't.img', str(SIZE))
    with daemon(program, node('t')) as d:
        w = Writers()
        d.ask('blockdev-mirror', job_id='j', device='disk', target='t',
              sync='full', filter_node_name='top', speed=4 * M,
              auto_finalize=False, auto_dismiss=False)
        assert job(d)['actively-synced'] is False
        names = [n['node-name'] for n in d.ask('query-named-block-nodes')]
        assert 'top' in names, names
        d.ask('block-job-pause', device='j')
        d.event('JOB_STATUS_CHANGE', status='paused')
        seen = job(d)['offset']
        w.go_on()
        assert job(d)['offset'] == seen
        d.ask('block-job-resume', device='j')
        d.ask('block-job-set-speed', device='j', speed=0)
        d.event('BLOCK_JOB_READY', device='j')
        for what, text in (
                ({'type': 'mirror', 'copy_mode': 'background'}, None),
                ({'type': 'mirror', 'copy_mode': 'write-blocking'}, None),
                ({'type': 'mirror', 'copy_mode': 'write-blocking'}, None),
                ({'type': 'mirror', 'copy_mode': 'background'},
                 "Change to copy mode 'background' is not implemented")):
            try:
                d.ask('block-job-change', id='j', **what)
                assert text is None, what
            except QmpError as e:
                assert e.text == text, e.text
        w.go_on()
        while not job(d)['actively-synced']:
            time.sleep(0.01)
        d.ask('job-complete', id='j')
        assert d.event('BLOCK_JOB_PENDING')['id'] == 'j'
        w.go_on()           # the guest is not held up meanwhile
        d.ask('job-finalize', id='j')
        assert job(d)['status'] == 'concluded'
        d.ask('job-dismiss', id='j')
        w.end()
    w.check('t.img')


# --- drive-mirror --------------------------------------------------------------

def drive(program):
    """Files that are made or there; what they name as their backing file."""
    for sync, backing, mode in (
            ('full', None, 'background'), ('full', None, 'write-blocking'),
            ('top', 'base.img', 'write-blocking'),
            ('none', 'disk.img', 'background'),
            ('none', 'disk.img', 'write-blocking')):
        make_images()
        with daemon(program) as d:
            w = Writers()
            d.ask('drive-mirror', job_id='j', device='disk', sync=sync,
                  target='new.img', node_name='new', copy_mode=mode)
            d.event('BLOCK_JOB_READY', device='j')
            w.go_on()
            d.ask('block-job-complete', device='j')
            d.event('BLOCK_JOB_COMPLETED', device='j')
            w.go_on()
            w.end()
        assert (backing_of('new.img') or '').endswith(backing or ''), sync
        assert (backing is None) == (backing_of('new.img') is None)
        w.check('new.img')
        img('check', '-q', 'new.img')
    make_images()
    img('create', '-q', '-f', 'raw', 'new.img', str(SIZE))
    with daemon(program) as d:
        d.ask('drive-mirror', job_id='j', device='disk', sync='full',
              target='new.img', mode='existing', format='raw')
        d.event('BLOCK_JOB_READY', device='j')
        d.ask('block-job-cancel', device='j')
        d.event('BLOCK_JOB_COMPLETED', device='j')
        same('disk.img', 'new.img', fb='raw')


def later(program):
    """An existing target gets its backing file in the end: another makes it
    meanwhile."""
    for mode in ('background', 'write-blocking'):
        make_images()
        img('create', '-q', '-f', 'qcow2', '-b', 'copy.img', '-F', 'qcow2',
            '-u', 'new.img', str(SIZE))
        with daemon(program) as d:
            w = Writers()
            d.ask('drive-mirror', job_id='j', device='disk', sync='top',
                  target='new.img', mode='existing', format='qcow2',
                  copy_mode=mode)
            d.event('BLOCK_JOB_READY', device='j')
            w.go_on()
            d.ask('block-job-complete', device='j')
            assert d.event('BLOCK_JOB_COMPLETED')['error']
            w.go_on()
            img('convert', '-O', 'qcow2', 'base.img', 'copy.img')
            d.ask('drive-mirror', job_id='j', device='disk', sync='top',
                  target='new.img', mode='existing', format='qcow2',
                  copy_mode=mode)
            d.event('BLOCK_JOB_READY', device='j')
            w.go_on()
            d.ask('block-job-complete', device='j')
            assert 'error' not in d.event('BLOCK_JOB_COMPLETED')
            w.go_on()
            w.end()
        w.check('new.img')
        img('check', '-q', 'new.img')


# --- Errors -------------------------------------------------------------------

def failing(name, event, k, error, last='', **more):
    """A node of which the k-th request of a kind fails, once; @last: of which
    the first one fails after k requests of another kind."""
    return node(name, **{'file': {
        'driver': 'blkdebug',
        'image': {'driver': 'file', 'filename': name + '.img'},
        'set-state': [{'event': event, 'state': i, 'new_state': i + 1}
                      for i in range(1, k + (last != ''))],
        'inject-error': [{'event': last or event, 'state': k + (last != ''),
                          'errno': error, 'once': True}]}, **more})


def with_failing(program, source=None, target=None):
    make_images()
    img('create', '-q', '-f', 'qcow2', 't.img', str(SIZE))
    arguments = []
    for n in (node('base', **{'read-only': True}),
              {**(source or node('disk')), 'backing': 'base'},
              target or node('t')):
        arguments += ['--blockdev', json.dumps(n)]
    return Daemon(program, *arguments, '--export',
                  'nbd,id=exp,node-name=disk,name=d,writable=on')


ASK = dict(job_id='j', device='disk', target='t', sync='full')


def errors(program):
    """An I/O error on either side, and what the user has asked for then."""
    for side, event, error, policy in (
            ('source', 'read_aio', 5, 'report'),
            ('source', 'read_aio', 5, 'ignore'),
            ('source', 'read_aio', 5, 'stop'),
            ('target', 'write_aio', 28, 'report'),
            ('target', 'write_aio', 28, 'enospc'),
            ('target', 'write_aio', 5, 'enospc'),
            ('target', 'write_aio', 5, 'stop')):
        bad = failing('disk' if side == 'source' else 't', event, 4, error)
        with with_failing(program, **{side: bad}) as d:
            # No clients: a guest's own request would have the error.
            d.ask('blockdev-mirror', **ASK,
                  **{f'on_{side}_error': policy})
            e = d.event('BLOCK_JOB_ERROR')
            action = policy if policy != 'enospc' else \
                'stop' if error == 28 else 'report'
            assert e == {'device': 'j', 'action': action, 'operation':
                         'read' if side == 'source' else 'write'}, e
            if action == 'report':
                assert 'error' in d.event('BLOCK_JOB_COMPLETED')
                continue
            if action == 'stop':
                d.event('JOB_STATUS_CHANGE', status='paused')
                assert job(d)['io-status'] == ('nospace' if error == 28
                                               else 'failed')
                d.ask('block-job-resume', device='j')
            d.event('BLOCK_JOB_READY')
            w = Writers()
            w.go_on()
            d.ask('block-job-complete', device='j')
            assert 'error' not in d.event('BLOCK_JOB_COMPLETED')
            w.go_on()
            w.end()
        w.check('t.img')


def late(program):
    """A write to both of which the second fails: the guest does not notice."""
    for policy, verb in (('report', None), ('ignore', 'complete'),
                         ('stop', 'complete'), ('stop', 'cancel'),
                         ('stop', 'force')):
        bad = failing('t', 'flush_to_disk', 1, 28, last='write_aio')
        with with_failing(program, target=bad) as d:
            d.ask('blockdev-mirror', **ASK, copy_mode='write-blocking',
                  on_target_error=policy)
            d.event('BLOCK_JOB_READY')
            w = Writers()
            e = d.event('BLOCK_JOB_ERROR')
            assert e['action'] == policy and e['operation'] == 'write', e
            w.go_on()
            if policy == 'stop':
                d.event('JOB_STATUS_CHANGE', status='standby')
                assert not job(d)['actively-synced']
                if verb != 'force':
                    d.ask('block-job-resume', device='j')
            if verb == 'force':
                d.ask('block-job-cancel', device='j', force=True)
                d.event('BLOCK_JOB_CANCELLED')
            else:
                if verb:
                    while not job(d)['ready']:
                        time.sleep(0.01)
                    d.ask('block-job-' + verb, device='j')
                e = d.event('BLOCK_JOB_COMPLETED')
                assert ('error' in e) == (verb is None), e
            w.go_on()
            w.end()
        w.check('t.img' if verb == 'complete' else 'disk.img')


def flushes(program):
    """The target cannot be flushed: at ready, ahead of the end, in the end."""
    for k in (1, 2, 3):
        bad = failing('t', 'flush_to_disk', k, 5)
        with with_failing(program, target=bad) as d:
            w = Writers()
            d.ask('blockdev-mirror', **ASK, on_target_error='stop')
            if k > 1:
                d.event('BLOCK_JOB_READY')
                w.go_on()
                d.ask('block-job-complete', device='j')
            assert 'error' in d.event('BLOCK_JOB_COMPLETED'), k
            w.go_on()
            d.ask('blockdev-del', node_name='t')
            w.end()
        w.check('disk.img')


def kill(program):
    """kill -9 at any time: the source has all, or the target."""
    for n in range(8):
        mode = ('background', 'write-blocking')[n % 2]
        phase = ('begin', 'ready', 'pivot', 'after')[n // 2]
        with with_failing(program) as d:
            w = Writers(durable=True)
            d.ask('blockdev-mirror', **ASK, copy_mode=mode)
            if phase != 'begin':
                d.event('BLOCK_JOB_READY')
                w.go_on(10)
            if phase in ('pivot', 'after'):
                d.ask('block-job-complete', device='j')
            if phase == 'after':
                d.event('BLOCK_JOB_COMPLETED')
                w.go_on(10)
            d.process.kill()
            d.process.wait()
            w.end(killed=True)
        try:
            w.check('disk.img' if phase != 'after' else 't.img')
        except AssertionError:
            assert phase == 'pivot'
            w.check('t.img')
        os.unlink('pid')
        for name in ('disk.img', 't.img'):
            rc = subprocess.run(['qemu-img', 'check', '-q', name]).returncode
            assert rc in (0, 3), (phase, name, rc)


# --- What is refused ------------------------------------------------------------

def refused(program):
    make_images()
    img('create', '-q', '-f', 'qcow2', 't.img', str(SIZE))
    img('create', '-q', '-f', 'qcow2', 'small.img', str(SIZE - M))
    thr = {'driver': 'throttle', 'node-name': 'thr', 'throttle-group': 'g',
           'file': 'disk'}
    with daemon(program, node('t'), node('small')) as d:
        ask = dict(job_id='j', device='disk', target='t', sync='full')
        for more, text in (
                ({'sync': 'incremental'},
                 "Sync mode 'incremental' not supported"),
                ({'sync': 'bitmap'}, "Sync mode 'bitmap' not supported"),
                ({'granularity': 511},
                 "Parameter 'granularity' expects a value in range "
                 "[512B, 64MB]"),
                ({'granularity': 128 * M},
                 "Parameter 'granularity' expects a value in range "
                 "[512B, 64MB]"),
                ({'granularity': 3000},
                 "Parameter 'granularity' expects a power of 2"),
                ({'buf_size': -1}, "Invalid parameter 'buf-size'"),
                ({'target': 'disk'}, "Can't mirror node into itself"),
                ({'device': 'base'}, "Need a root block node"),
                ({'target': 'nobody'}, "Cannot find device='nobody' nor "
                 "node-name='nobody'"),
                ({'replaces': 'nobody'}, "Failed to find node with "
                 "node-name='nobody'"),
                ({'replaces': 't'}, "Cannot replace 't' by a node mirrored "
                 "from 'disk', because it cannot be guaranteed that doing so "
                 "would not lead to an abrupt change of visible data"),
                ({'job_id': '#'}, "Invalid job ID '#'")):
            try:
                d.ask('blockdev-mirror', **{**ask, **more})
            except QmpError as e:
                assert e.text == text, (more, e.text)
            else:
                raise AssertionError(f'{more}: not refused')
            assert d.ask('query-jobs') == []
        # The job fails, not the command.
        d.ask('blockdev-mirror', **{**ask, 'target': 'small'})
        assert d.event('BLOCK_JOB_COMPLETED')['error'] == \
            'Source and target image have different sizes'
        # While it works.
        d.ask('blockdev-mirror', **ask, speed=1 * M)
        for command, more in (
                ('blockdev-mirror', {**ask, 'job_id': 'k',
                                     'target': 'small'}),
                ('blockdev-backup', {**ask, 'job_id': 'k',
                                     'target': 'small'}),
                ('blockdev-del', {'node_name': 't'}),
                ('blockdev-del', {'node_name': 'disk'}),
                ('block_resize', {'node_name': 'disk', 'size': SIZE + M}),
                ('block_resize', {'node_name': 't', 'size': SIZE + M}),
                ('block-job-complete', {'device': 'j'}),
                ('block-export-add', {'id': 'x', 'type': 'nbd',
                                      'node_name': 't'})):
            try:
                d.ask(command, **more)
            except QmpError:
                pass
            else:
                raise AssertionError(f'{command}: not refused')
        d.ask('block-job-cancel', device='j')
        d.event('BLOCK_JOB_CANCELLED', device='j')
        d.event('JOB_STATUS_CHANGE', id='j', status='null')
        d.ask('blockdev-del', node_name='t')
        # Below a filter: the filter stays.
        d.ask('object-add', qom_type='throttle-group', id='g')
        d.ask('block-export-del', id='exp')
        d.ask('blockdev-add', **thr)
        d.ask('blockdev-add', **node('t'))
        d.ask('blockdev-mirror', **{**ask, 'device': 'thr', 'replaces':
                                    'disk'})
        d.event('BLOCK_JOB_READY', device='j')
        d.ask('block-job-complete', device='j')
        assert 'error' not in d.event('BLOCK_JOB_COMPLETED', device='j')
        d.ask('blockdev-del', node_name='disk')
        d.refuses('blockdev-del', node_name='t')
        d.ask('blockdev-del', node_name='thr')


def main():
    program = sys.argv[1]
    for part in sys.argv[2:]:
        globals()[part](program)


if __name__ == '__main__':
    main()
