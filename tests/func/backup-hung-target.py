# SPDX-License-Identifier: BSD-3-Clause
"""qemu-nbd, stopped by a signal, is a server that does not answer."""
import contextlib
import os
import subprocess
import sys
import time

import nbd

import listener
from qmp_daemon import Daemon
from stopped import stop

M = 1 << 20
SIZE = 32 * M
LIMIT = 1               # seconds that a guest's write may wait


@contextlib.contextmanager
def server():
    """An NBD server of an empty disk."""
    with open('target.img', 'wb') as f:
        f.truncate(SIZE)
    p = subprocess.Popen(['qemu-nbd', '-t', '-e', '8', '-f', 'raw', '-k',
                          os.path.abspath('target.sock'), 'target.img'])
    try:
        assert listener.wait('target.sock', p)
        yield p
    finally:
        p.kill()
        p.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink('target.sock')


def blockdev(d, **more):
    d.ask('blockdev-add', **{
        'driver': 'nbd', 'node-name': 't', **more,
        'server': {'type': 'unix', 'path': os.path.abspath('target.sock')}})
    return 'blockdev-backup', {'target': 't'}


def blockdev_patient(d):
    return blockdev(d, **{'reconnect-delay': 600})


def drive(_):
    uri = 'nbd+unix:///?socket=' + os.path.abspath('target.sock')
    return 'drive-backup', {'target': uri, 'mode': 'existing', 'format': 'raw'}


def start(d, target, **more):
    command, arguments = target(d)
    d.ask(command, device='disk', sync='full', speed=M, **arguments, **more,
          **{'job-id': 'j'})
    while d.ask('query-jobs')[0]['current-progress'] < M:
        time.sleep(0.02)


def gone(d):
    assert d.ask('query-jobs') == []
    if any(n['node-name'] == 't' for n in d.ask('query-named-block-nodes')):
        d.ask('blockdev-del', **{'node-name': 't'})
    d.events.clear()


def write_waits(d, h, target):
    with server() as p:
        start(d, target, **{'cbw-timeout': LIMIT})
        stop(p.pid)
        begin = time.monotonic()
        h.pwrite(b'x' * 65536, SIZE - M)
        took = time.monotonic() - begin
        assert took > LIMIT / 2, took       # it was the target that it awaited
        data = d.event('BLOCK_JOB_COMPLETED', device='j')
        assert 'timed out' in data['error'], data
        h.pwrite(b'y' * 65536, SIZE - 2 * M)
        gone(d)


def forced(d, h, target):
    with server() as p:
        start(d, target)
        stop(p.pid)
        time.sleep(0.2)                     # a worker stands there
        d.ask('block-job-cancel', device='j', force=True)
        d.event('BLOCK_JOB_CANCELLED', device='j')
        h.pwrite(b'z' * 65536, SIZE - M)
        gone(d)


def main():
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.img',
                    str(SIZE)], check=True)
    subprocess.run(['qemu-io', '-c', f'write -P 1 0 {SIZE}', 'disk.img'],
                   check=True, stdout=subprocess.DEVNULL)
    with Daemon(sys.argv[1], '--blockdev',
                'qcow2,node-name=disk,file.driver=file,'
                'file.filename=disk.img', '--export',
                'nbd,id=e,node-name=disk,name=disk,writable=on') as d:
        h = nbd.NBD()
        h.connect_uri('nbd+unix:///disk?socket=nbd.sock')
        for target in (blockdev, blockdev_patient, drive):
            write_waits(d, h, target)
            forced(d, h, target)
        h.shutdown()


main()
