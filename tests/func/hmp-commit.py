# SPDX-License-Identifier: BSD-3-Clause
"""Commits that empty the image, while a guest writes.

hmp-commit.py PROGRAM

The guest writes blocks of 4 KiB at random.  The disk, a chain of two images, is
committed again and again, and then the daemon is killed in the middle.  At all
times the chain reads what the guest has written; of what it had not flushed
when the daemon was killed, that or what was there before.
"""
import os
import random
import subprocess
import sys
import threading

import nbd

from qmp_daemon import Daemon

BLOCK = 4096
BLOCKS = 4096
ROUNDS = 8
FLUSH_EACH = 40  # writes, about


class Guest(threading.Thread):
    """content: of each block; unsure: of blocks that were written since the last
    flush, what a kill may leave there."""

    def __init__(self):
        super().__init__()
        self.content = bytearray(BLOCKS)
        self.unsure = {}
        self.stop = False
        self.handle = nbd.NBD()
        self.handle.connect_uri('nbd+unix:///disk?socket=' +
                                os.path.abspath('nbd.sock'))

    def run(self):
        rng = random.Random(7)
        try:
            while not self.stop:
                block, value = rng.randrange(BLOCKS), rng.randrange(1, 256)
                self.unsure.setdefault(block, {self.content[block]}).add(value)
                self.handle.pwrite(bytes([value]) * BLOCK, block * BLOCK)
                self.content[block] = value
                if rng.randrange(FLUSH_EACH) == 0:
                    self.handle.flush()
                    self.unsure = {}
        except nbd.Error:
            pass

    def check(self, data, where, killed=False):
        for i in range(BLOCKS):
            found = data[i * BLOCK:(i + 1) * BLOCK]
            allowed = {self.content[i]}
            if killed:
                allowed = self.unsure.get(i, allowed)
            assert found in [bytes([v]) * BLOCK for v in allowed], \
                f'{where}: block {i} is {found[:8]}, not {allowed}'


def allocated():
    text = subprocess.run(['qemu-img', 'map', '-U', '--output=json',
                           'over.qcow2'], capture_output=True, text=True,
                          check=True).stdout
    return text.count('"depth": 0, "present": true')


def chain_as_read():
    subprocess.run(['qemu-img', 'convert', '-O', 'raw', 'over.qcow2',
                    'seen.raw'], check=True)
    with open('seen.raw', 'rb') as f:
        return f.read()


def main(daemon):
    def commit():
        return daemon.ask('human-monitor-command',
                          **{'command-line': 'commit over'})

    daemon.ask('blockdev-add', driver='qcow2', node_name='over',
               file={'driver': 'file', 'filename': 'over.qcow2'})
    daemon.ask('block-export-add', type='nbd', id='e', node_name='over',
               name='disk', writable=True)
    guest = Guest()
    guest.start()
    for _ in range(ROUNDS):
        said = commit()
        assert said == '', said
    assert not [e for e in daemon.events if 'JOB' in e['event']], daemon.events
    assert daemon.ask('query-jobs') == []
    guest.stop = True
    guest.join()
    guest.check(guest.handle.pread(BLOCK * BLOCKS, 0), 'after commits')
    assert commit() == ''
    assert allocated() == 0, 'the image is not empty'
    guest.check(guest.handle.pread(BLOCK * BLOCKS, 0), 'when it is empty')

    last, guest = guest, Guest()
    guest.content = last.content
    guest.handle.flush()
    guest.start()
    killer = threading.Timer(0.15, daemon.process.kill)
    killer.start()
    try:
        while True:
            commit()
    except (OSError, EOFError, ValueError, AssertionError):
        pass
    guest.join()
    killer.join()
    daemon.process.wait()
    for image in 'over.qcow2', 'under.qcow2':
        check = subprocess.run(['qemu-img', 'check', '-q', image],
                               capture_output=True, check=False)
        assert check.returncode in (0, 3), check
    guest.check(chain_as_read(), 'after kill -9', killed=True)


with Daemon(sys.argv[1]) as started:
    main(started)
