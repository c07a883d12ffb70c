# SPDX-License-Identifier: BSD-3-Clause
"""A mirror to an export of another server while clients write: across the
pivot, when the server is killed, and when it hangs.

mirror-nbd.py PROGRAM PART...
"""
import json
import os
import signal
import subprocess
import sys
import time

from mirror import M, SIZE, Writers, img, job, make_images, node, same
from qmp_daemon import Daemon
from stopped import stop

ASK = dict(job_id='j', device='disk', target='t', sync='full')
MODES = 'background', 'write-blocking'


class Far:
    """The server of the target, far.raw: nbdelta, or qemu-nbd."""

    def __init__(self, program, kind):
        self.argv = {
            'nbdelta': [program, 'serve', '--pidfile', 'far.pid',
                        '--blockdev', json.dumps({
                            'driver': 'raw', 'node-name': 'far', 'discard':
                            'unmap', 'file': {'driver': 'file',
                                              'filename': 'far.raw'}}),
                        '--nbd-server', 'addr.type=unix,addr.path=far.sock',
                        '--export', 'nbd,id=far,node-name=far,name=far,'
                        'writable=on'],
            'qemu-nbd': ['qemu-nbd', '-t', '-f', 'raw', '-x', 'far',
                         '--discard=unmap', '-k', os.path.abspath('far.sock'),
                         '--pid-file', 'far.pid', 'far.raw']}[kind]
        with open('far.raw', 'wb') as f:
            f.truncate(SIZE)
        self.process = None
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.unlink('far.raw')

    def start(self):
        for name in 'far.pid', 'far.sock':
            if os.path.exists(name):
                os.unlink(name)
        self.process = subprocess.Popen(self.argv)
        while not os.path.exists('far.pid'):
            assert self.process.poll() is None
            time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def hang(self, does=True):
        if does:
            stop(self.process.pid)
        else:
            os.kill(self.process.pid, signal.SIGCONT)


def begin(program):
    make_images()
    d = Daemon(program, '--blockdev', json.dumps(
        node('base', **{'read-only': True})), '--blockdev', json.dumps(
            node('disk', backing='base', discard='unmap')), '--export',
        'nbd,id=exp,node-name=disk,name=d,writable=on')
    return d


def target(d, **more):
    d.ask('blockdev-add', driver='nbd', node_name='t', export='far',
          discard='unmap', server={'type': 'unix', 'path':
                                   os.path.abspath('far.sock')}, **more)


def complete(d, w):
    w.go_on()
    d.ask('block-job-complete', device='j')
    end = d.event('BLOCK_JOB_COMPLETED')
    assert 'error' not in end, end
    w.go_on()


def resume(d):
    """Until it is ready; the connection may come back only after some tries."""
    while True:
        info = job(d)
        if info['status'] in ('paused', 'standby'):
            d.ask('block-job-resume', device='j')
        elif info['status'] == 'ready' and info['io-status'] == 'ok':
            break
        time.sleep(0.05)


def pivots(program):
    """Clients go on with the export; each server, each mode."""
    for kind in 'nbdelta', 'qemu-nbd':
        for mode in MODES:
            with Far(program, kind):
                with begin(program) as d:
                    target(d)
                    w = Writers()
                    w.go_on()
                    d.ask('blockdev-mirror', **ASK, copy_mode=mode)
                    d.event('BLOCK_JOB_READY')
                    complete(d, w)
                    w.end()
                w.check('far.raw', 'raw')
    for mode in MODES:  # nobody writes after the end: equal to the byte
        with Far(program, 'nbdelta'):
            with begin(program) as d:
                target(d)
                w = Writers()
                d.ask('blockdev-mirror', **ASK, copy_mode=mode)
                d.event('BLOCK_JOB_READY')
                w.go_on()
                w.end()
                d.ask('block-job-cancel', device='j')
                d.event('BLOCK_JOB_COMPLETED')
            same('disk.img', 'far.raw', fb='raw')


def killed(program):
    """The server is killed in the first pass, or when the job is ready, and
    comes back, or does not."""
    for kind, mode, ready, verb in (
            ('nbdelta', 'background', False, 'resume'),
            ('qemu-nbd', 'background', True, 'resume'),
            ('nbdelta', 'write-blocking', True, 'resume'),
            ('qemu-nbd', 'write-blocking', False, 'resume'),
            ('nbdelta', 'background', False, 'force'),
            ('nbdelta', 'write-blocking', True, 'force'),
            ('qemu-nbd', 'background', True, 'report')):
        with Far(program, kind) as far:
            with begin(program) as d:
                target(d)
                w = Writers()
                d.ask('blockdev-mirror', **ASK, copy_mode=mode,
                      speed=0 if ready else 4 * M,
                      on_target_error='report' if verb == 'report' else 'stop')
                if ready:
                    d.event('BLOCK_JOB_READY')
                w.go_on(10)
                far.kill()
                e = d.event('BLOCK_JOB_ERROR')
                assert e['operation'] == 'write', e
                assert e['action'] == ('report' if verb == 'report' else
                                       'stop'), e
                w.go_on()
                if verb == 'report':
                    assert 'error' in d.event('BLOCK_JOB_COMPLETED')
                elif verb == 'force':
                    d.ask('block-job-cancel', device='j', force=True)
                    d.event('BLOCK_JOB_CANCELLED')
                else:
                    far.start()
                    d.ask('block-job-set-speed', device='j', speed=0)
                    resume(d)
                    complete(d, w)
                w.go_on()
                w.end()
            if verb == 'resume':
                w.check('far.raw', 'raw')
            else:
                w.check('disk.img')


def hangs(program):
    """The server does not answer: a cancel that is forced ends the job, and
    clients go on."""
    for mode, ready in (('background', False), ('write-blocking', True)):
        with Far(program, 'nbdelta') as far:
            with begin(program) as d:
                target(d, reconnect_delay=300)
                w = Writers()
                w.go_on(10)
                if not ready:   # with all workers on their way
                    far.hang()
                d.ask('blockdev-mirror', **ASK, copy_mode=mode)
                if ready:
                    d.event('BLOCK_JOB_READY')
                    w.go_on(10)
                    far.hang()
                if mode == 'background':
                    w.go_on()
                else:
                    time.sleep(0.2)
                d.ask('block-job-cancel', device='j', force=True)
                d.event('BLOCK_JOB_CANCELLED')
                w.go_on()
                w.end()
                far.hang(False)
            w.check('disk.img')


def main():
    program = sys.argv[1]
    for part in sys.argv[2:]:
        globals()[part](program)


main()
