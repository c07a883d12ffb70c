#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The work of backup-freeze-libvirt.sh."""
import signal
import subprocess
import sys
import time

from libvirt_backup import NBDELTA, command, until, with_libvirt
from source_driver import Source
from stopped import stop

ID = 'a1b2c3'


class Guest:
    def __init__(self, v):
        self.uri = f'test+unix:///default?socket={v.run}/libvirt-sock'
        # The driver forgets all when its last client has gone.
        self.stays = subprocess.Popen(
            ['virsh', '-c', self.uri], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE)
        self.stays.stdin.write('domstate test\n')
        self.stays.stdin.flush()
        while 'running' not in self.stays.stdout.readline():
            pass

    def count(self, what):
        """File systems that it freezes, or thaws, now."""
        out = command('virsh', '-c', self.uri, what, 'test').split()
        assert out[0] in ('Froze', 'Thawed'), out
        return int(out[1])

    def source(self):
        s = Source('libvirt:test', ID, connect=self.uri)
        s.did('freeze')
        assert self.count('domfsfreeze') == 0, 'they do not stand still'
        return s

    def close(self):
        self.stays.stdin.close()
        self.stays.wait()
        self.stays.stdout.close()


def guards(pid):
    """Children of the process."""
    with open(f'/proc/{pid}/task/{pid}/children', encoding='ascii') as f:
        return [int(p) for p in f.read().split()]


def is_gone(pid):
    try:
        with open(f'/proc/{pid}/stat', encoding='ascii') as f:
            return f.read().rsplit(')', 1)[1].split()[0] == 'Z'
    except OSError:
        return True


def killed(g):
    s = g.source()
    guard, = guards(s.p.pid)
    begin = time.monotonic()
    s.signal(signal.SIGKILL)
    until('the guard ends', lambda: is_gone(guard))
    assert time.monotonic() - begin < 9, 'it has waited'
    assert g.count('domfsthaw') == 0, 'they stand still'


def hangs(g):
    s = g.source()
    begin = time.monotonic()
    stop(s.p.pid)
    # A freeze finds something when they were thawed.
    until('they are thawed', lambda: g.count('domfsfreeze') > 0)
    assert 8 < time.monotonic() - begin, 'it has not waited'
    assert g.count('domfsthaw') > 0
    s.p.send_signal(signal.SIGCONT)
    assert s.ask('thaw')['errno'] == 110
    s.close()


def run_fails(g):
    """There are no backups of such a domain, after the freeze."""
    done = subprocess.run([NBDELTA, 'backup', '--freeze', '--connect', g.uri,
                           'libvirt:test', 'dir'], stderr=subprocess.PIPE,
                          text=True, check=False, timeout=120)
    assert done.returncode == 1, done
    assert 'freeze' not in done.stderr, done.stderr
    assert g.count('domfsthaw') == 0


def work(v):
    g = Guest(v)
    for part in killed, hangs, run_fails:
        print(part.__name__, flush=True)
        part(g)
    g.close()


sys.exit(with_libvirt(work))
