# SPDX-License-Identifier: BSD-3-Clause
"""Disks of a QEMU, and of a domain of libvirt, that `nbdelta backup` and others
back up.  Each is the state of a row: all rounds share it."""
import json
import os
import random
import shutil
import subprocess
import sys
import time

from lab import Failed, Missing, own
from peers import Server, kind

HERE = os.path.dirname(os.path.realpath(__file__))
CHUNK = 65536
DEVICE = '/machine/peripheral/vda/virtio-backend'


def writes(size, share, seed):
    """Commands of qemu-io for so much of a disk, in pieces of CHUNK bytes, a
    hundred at a time."""
    rng = random.Random(seed)
    count = max(1, int(size * share / CHUNK))
    pieces = rng.sample(range(size // CHUNK), count)
    for i in range(0, count, 100):
        yield [f'write -q -P {rng.randrange(1, 256)} {p * CHUNK} {CHUNK}'
               for p in pieces[i:i + 100]] + ['flush']


def own_names(lab):
    return [f'nbdelta@{b}' if b else 'nbdelta' for b in lab.programs.builds]


class QemuGuest:
    """A QEMU whose guest never runs.  blockdev-backup is QEMU's own job; it
    hashes nothing.  nbdcopy reads an export, so of no instant.  Both files are
    flushed by us, as ours are durable."""

    def __init__(self, lab, share=0):
        self.lab = lab
        self.share = share
        self.disk = lab.path('vda.qcow2')
        lab.images.copy(lab.images.get('disk.qcow2'), self.disk)
        self.server = Server(lab, 'qemu', lab.programs.in_tree('qemu') + [
            '-nodefaults', '-display', 'none', '-S', '-machine',
            'q35,accel=tcg', '-m', '64', '-qmp',
            f'unix:{lab.path("qemu.sock")},server=on,wait=off', '-qmp',
            f'unix:{lab.path("own.sock")},server=on,wait=off', '-blockdev',
            'qcow2,node-name=vda,discard=unmap,file.driver=file,file.filename='
            + self.disk, '-device',
            'virtio-blk-pci,drive=vda,id=vda,share-rw=on'], None,
            lab.path('own.sock'))
        self.ask = self.server.ask

    def __enter__(self):
        try:
            if self.share:
                self.ask('block-dirty-bitmap-add', node='vda', name='own')
                for who in own_names(self.lab):
                    self.backup(who)
                self.job('full.qcow2', None, sync='full')
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *what):
        self.server.stop()
        self.lab.remove('vda.qcow2', 'full.qcow2', 'job.qcow2', 'qemu.sock',
                        *(self.directory(w) for w in own_names(self.lab)))

    @staticmethod
    def directory(who):
        return 'points-' + who

    def before_round(self, number):
        for commands in writes(self.lab.size, self.share, number) \
                if self.share else ():
            for command in commands:
                out = self.ask('human-monitor-command', command_line=
                               f'qemu-io -d {DEVICE} "{command}"')
                if out:
                    raise Failed(out)

    def backup(self, who):
        return self.lab.timed(self.lab.programs.nbdelta(who) + [
            'backup', self.lab.path('qemu.sock'),
            self.lab.path(self.directory(who))])

    def job(self, name, backing, **how):
        path = self.lab.path(name)
        begin = time.monotonic()
        self.lab.img('create', '-q', '-f', 'qcow2',
                     *(('-u', '-F', 'qcow2', '-b', backing) if backing else ()),
                     path, str(self.lab.size))
        self.ask('blockdev-add', driver='qcow2', node_name='t',
                 discard='unmap', backing=None,
                 file={'driver': 'file', 'filename': path})
        self.ask('blockdev-backup', job_id='b', device='vda', target='t', **how)
        self.server.qmp.until_no_job()
        self.ask('blockdev-del', node_name='t')
        flushed(path)
        return time.monotonic() - begin

    def copied(self):
        sock, target = self.lab.path('nbd.sock'), self.lab.path('copy.raw')
        self.ask('nbd-server-start', addr={'type': 'unix',
                                           'data': {'path': sock}})
        self.ask('block-export-add', type='nbd', id='e', node_name='vda',
                 name='vda')
        begin = time.monotonic()
        self.lab.run(['nbdcopy', f'nbd+unix:///vda?socket={sock}', target])
        flushed(target)
        seconds = time.monotonic() - begin
        self.ask('nbd-server-stop')
        self.lab.remove('copy.raw')
        return seconds

    def full(self, who):
        if own(who):
            self.lab.remove(self.directory(who))
            return self.backup(who)
        if kind(who) == 'nbdcopy':
            return self.copied()
        seconds = self.job('job.qcow2', None, sync='full')
        self.lab.remove('job.qcow2')
        return seconds

    def increment(self, who):
        if own(who):
            return self.backup(who)
        seconds = self.job('job.qcow2', 'full.qcow2', sync='incremental',
                           bitmap='own')
        self.lab.remove('job.qcow2')
        return seconds


def flushed(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


class LibvirtGuest:
    """A domain of a libvirt daemon of its own, in a process with mounts of its
    own (libvirt_guest.py): one line of JSON says what to do, one answers."""

    def __init__(self, lab, share=0):
        self.lab = lab
        self.share = share
        self.dir = lab.path('libvirt')
        os.mkdir(self.dir)
        shutil.copy(lab.images.get('disk.qcow2'), self.dir + '/vda.qcow2')
        builds = lab.programs.builds
        env = {**os.environ, 'BUILD': next(iter(builds.values())),
               'PYTHONDONTWRITEBYTECODE': '1'}
        self.process = lab.spawn(
            [sys.executable, HERE + '/libvirt_guest.py', str(lab.size)],
            cwd=self.dir, env=env, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        try:
            self.tell(do='start')
            names = own_names(self.lab) if self.share else []
            if names and self.lab.programs.has('virtnbdbackup'):
                names.append('virtnbdbackup')
            for who in names:
                self.full(who)
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *what):
        self.process.stdin.close()
        self.process.wait(60)
        self.lab.stop(self.process)
        self.lab.remove('libvirt')

    def tell(self, **what):
        self.process.stdin.write(json.dumps(what) + '\n')
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line and self.process.wait() == 77:
            raise Missing('it needs root, and mounts of its own for libvirt')
        if not line:
            raise Failed('libvirt: the helper has ended')
        answer = json.loads(line)
        if 'error' in answer:
            raise Failed('libvirt: ' + answer['error'])
        return answer.get('seconds')

    def before_round(self, number):
        if self.share:
            self.tell(do='change', share=self.share, seed=number)

    def words(self, who):
        return {'build': self.lab.programs.build_of(who)} if own(who) else {}

    def full(self, who):
        return self.tell(do='full', who=who, **self.words(who))

    def increment(self, who):
        return self.tell(do='increment', who=who, **self.words(who))
