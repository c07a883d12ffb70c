# SPDX-License-Identifier: BSD-3-Clause
"""A client of the monitor that sees its end may open the images at once.

quit-last.py PROGRAM
"""
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import time

import listener
from qmp_daemon import Daemon
from stopped import stop

F_OFD_GETLK = 36
FLOCK = 'hhqqi4x'


def is_locked(path):
    """Has somebody a lock on any byte of it?"""
    with open(path, 'r+b') as f:
        lock = fcntl.fcntl(f, F_OFD_GETLK, struct.pack(
            FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    return struct.unpack(FLOCK, lock)[0] != fcntl.F_UNLCK


def disk(name, **file):
    return '--blockdev', json.dumps({'driver': 'qcow2', 'node-name': name,
                                     'file': file})


def main(program):
    for name in 'near', 'far':
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2',
                        f'{name}.qcow2', '1M'], check=True)
    os.truncate('far.qcow2', 4 << 20)  # an export does not grow
    storage = subprocess.Popen(['qemu-nbd', '-t', '-f', 'raw', '-k',
                                os.path.abspath('far.sock'), 'far.qcow2'])
    try:
        assert listener.wait('far.sock', storage)
        d = Daemon(program,
                   *disk('near', driver='file', filename='near.qcow2'),
                   *disk('far', driver='nbd', server={
                       'type': 'unix', 'path': os.path.abspath('far.sock')}))
        # Closing stores it.
        d.ask('block-dirty-bitmap-add', node='far', name='b', persistent=True)
        assert is_locked('near.qcow2')
        stop(storage.pid)
        ask = subprocess.Popen([program, 'qmp', 'qmp.sock', 'quit'],
                               stdout=subprocess.PIPE, text=True)
        assert ask.stdout.readline() == '{}\n'
        time.sleep(0.3)
        assert ask.poll() is None, 'storage is not closed yet'
        storage.send_signal(signal.SIGCONT)
        assert d.lines.read() == ''
        assert not is_locked('near.qcow2')
        assert ask.wait(60) == 0
        assert d.process.wait(60) == 0
    finally:
        storage.kill()
        storage.wait()


main(sys.argv[1])
