#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""For guests.py: a domain of libvirt with one disk of SIZE bytes, vda.qcow2 in
this directory, and who backs it up.

    libvirt_guest.py SIZE <COMMANDS >ANSWERS

virtnbdbackup is Debian's; it refuses a domain that has checkpoints of others,
and so has one of its own, with a copy of the disk.  nbdcopy and qemu-img
convert read what libvirt has frozen; blockdev-backup is QEMU's, of the same
domain.  None of them hashes, or knows what a point is.  Their files are flushed
by us, as ours are durable.
"""
import json
import os
import shutil
import subprocess
import sys
import time

HERE = os.getcwd()
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)) + '/../func')
# pylint: disable=wrong-import-position
from guests import flushed, writes
from libvirt_backup import Backups, with_libvirt

SIZE = int(sys.argv[1])
VIRTNBD = shutil.which('virtnbdbackup')
ANSWERS = os.fdopen(os.dup(1), 'w')  # what helpers print goes elsewhere
os.dup2(2, 1)


def quiet(*words, env=None):
    done = subprocess.run(words, stdout=subprocess.PIPE, env=env, text=True,
                          stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, (words, done.stdout[-500:])


class Domain:
    def __init__(self, v):
        self.v = v
        os.environ['LIBVIRT_DEFAULT_URI'] = v.uri
        path = HERE + '/vda.qcow2'
        v.define('vm', [('vda', path, 'qcow2', '')])
        if VIRTNBD:
            shutil.copy(path, HERE + '/theirs.qcow2')
            v.define('theirs', [('vda', HERE + '/theirs.qcow2', 'qcow2', '')])
        with open('job.xml', 'w', encoding='utf-8') as f:
            f.write("<domainbackup mode='pull'><server transport='unix' "
                    f"socket='{HERE}/job.sock'/><disks><disk name='vda' "
                    "backup='yes' type='file'>"
                    f"<scratch file='{HERE}/job.scratch'/></disk></disks>"
                    "</domainbackup>")

    def change(self, share, seed):
        for commands in writes(SIZE, share, seed):
            for name in ('vm', 'theirs')[:2 if VIRTNBD else 1]:
                self.v.io(name, 0, *commands)

    def frozen(self, target, *words):
        """A backup job of libvirt's with one export, for programs that read
        NBD."""
        self.v.virsh('backup-begin', 'vm', 'job.xml')
        quiet(*words, target)
        self.v.virsh('domjobabort', 'vm')
        flushed(target)

    def blockdev_backup(self):
        v, target = self.v, HERE + '/job.qcow2'
        quiet('qemu-img', 'create', '-q', '-f', 'qcow2', target, str(SIZE))
        node = next(n['node-name'] for n in
                    v.ask('vm', 'query-named-block-nodes', flat=True)
                    if n['file'] == HERE + '/vda.qcow2' and n['drv'] == 'qcow2')
        v.ask('vm', 'blockdev-add', **{
            'driver': 'qcow2', 'node-name': 't', 'discard': 'unmap',
            'file': {'driver': 'file', 'filename': target}})
        v.ask('vm', 'blockdev-backup', **{'job-id': 'b', 'device': node,
                                          'target': 't', 'sync': 'full'})
        while v.ask('vm', 'query-block-jobs'):
            time.sleep(0.02)
        v.ask('vm', 'blockdev-del', **{'node-name': 't'})
        flushed(target)

    @staticmethod
    def virtnbd(level):
        quiet(VIRTNBD, '-U', os.environ['LIBVIRT_DEFAULT_URI'], '-d', 'theirs',
              '-l', level, '-o', HERE + '/virtnbd')
        for directory, _, names in os.walk(HERE + '/virtnbd'):
            for name in names:
                flushed(os.path.join(directory, name))

    def ours(self, who, build):
        env = {**os.environ, 'NBDELTA_MODULES': build}
        b = Backups(self.v, 'vm', who)
        done = b.start(env=env, program=build + '/nbdelta').wait()
        assert done.status == 0, done.err[-500:]

    def prepare(self, who):
        """What was there is gone; not in anybody's time."""
        for path in (who, 'virtnbd', 'job.raw', 'job.qcow2'):
            if os.path.isdir(path) and (path != 'virtnbd' or
                                        who == 'virtnbdbackup'):
                shutil.rmtree(path)
            elif os.path.isfile(path):
                os.unlink(path)

    def full(self, who, build=None):
        uri = f'nbd+unix:///vda?socket={HERE}/job.sock'
        if build:
            self.ours(who, build)
        elif who == 'virtnbdbackup':
            self.virtnbd('full')
        elif who == 'nbdcopy':
            self.frozen(HERE + '/job.raw', 'nbdcopy', uri)
        elif who == 'convert':
            self.frozen(HERE + '/job.qcow2', 'qemu-img', 'convert', '-W', '-f',
                        'raw', '-O', 'qcow2', uri)
        else:
            self.blockdev_backup()

    def increment(self, who, build=None):
        if build:
            self.ours(who, build)
        else:
            self.virtnbd('inc')


def serve(v):
    domain = None
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop('do')
        try:
            if do == 'start':
                domain = Domain(v)
            elif do == 'change':
                domain.change(**command)
            if do == 'full':
                domain.prepare(command['who'])
            begin = time.monotonic()
            if do in ('full', 'increment'):
                getattr(domain, do)(**command)
            answer = {'seconds': time.monotonic() - begin}
        except Exception as e:  # pylint: disable=broad-except
            answer = {'error': f'{type(e).__name__}: {e}'[:800]}
        ANSWERS.write(json.dumps(answer) + '\n')
        ANSWERS.flush()


sys.exit(with_libvirt(serve))
