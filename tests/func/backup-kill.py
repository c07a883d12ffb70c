# SPDX-License-Identifier: BSD-3-Clause
"""End runs of a backup at all moments.

backup-kill.py PROGRAM KINDS SEED ROUNDS

Two directories take turns.  A round writes to the disks, starts a run, ends the
run or its source in some phase, starts the source again where it has ended, and
then has a run that nobody disturbs.  A phase is told by a hook, by files in the
directory, or is a random moment.  Beside each point there is a copy of the
disks at its instant.

A source ends for good ("source": a run notices, or gets a signal, too), or is
there again at once ("restart").  Of libvirt it is the daemon, or the domain.
"""
import glob
import json
import os
import random
import signal
import subprocess
import sys
import time

from libvirt_daemon import Libvirt, private

program, kinds, seed, rounds = sys.argv[1:]
rng = random.Random(int(seed))
MIB = 1 << 20
SIZE = 8 * MIB
HOOK = '''#!/bin/sh
echo $$ >hook.pid
echo "$NBDELTA_POINT" >"hook-$1"
[ ! -e "hold-$1" ] || exec sleep 60
'''
PHASES = ('moment', 'before', 'frozen', 'copy', 'files', 'pending', 'after')
ACTIONS = ('KILL', 'KILL', 'INT', 'TERM', 'twice', 'source', 'source',
           'restart')
TIMEOUT = 3  # seconds that a run waits for a source that has ended


def run(*words):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout


def wait_until(what, limit=30):
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, 'it does not happen'
        time.sleep(0.002)


class Daemon:
    disks = ('a', 'b')
    monitor = 'qmp.sock'
    options = ()

    def start(self):
        if os.path.exists('pid'):
            os.unlink('pid')
        self.p = subprocess.Popen(
            [program, 'serve', '-U', 'nbd.sock', '--qmp', self.monitor,
             '--pidfile', 'pid', *[f'{d}={d}.qcow2' for d in self.disks]],
            stderr=subprocess.DEVNULL)
        wait_until(lambda: os.path.exists('pid') and os.stat('pid').st_size)

    def write(self, disk, pattern, offset, length):
        run('qemu-io', '-f', 'raw', f'nbd+unix:///{disk}?socket=nbd.sock', '-c',
            f'write -P {pattern} {offset} {length}')

    def flush(self):
        pass

    def abandon(self):
        self.p.kill()

    def kill(self):
        self.p.kill()
        self.p.wait()
        for name in ('nbd.sock', self.monitor):
            if os.path.exists(name):
                os.unlink(name)

    def stop(self):
        self.p.terminate()
        assert self.p.wait(60) == 0

    # Checkpoints survive all of it.
    statuses = (0,)


class Qemu:
    disks = ('a', 'b')
    monitor = 'qemu.sock'
    options = ()

    def start(self):
        words = ['qemu-system-x86_64', '-M', 'q35,accel=tcg', '-m', '32', '-S',
                 '-nodefaults', '-display', 'none', '-qmp',
                 f'unix:{self.monitor},server=on,wait=off', '-qmp',
                 'unix:own.sock,server=on,wait=off']
        for d in self.disks:
            words += ['-blockdev', f'driver=qcow2,node-name={d},file.driver='
                      f'file,file.filename={d}.qcow2', '-device',
                      f'virtio-blk-pci,drive={d},id={d}']
        self.p = subprocess.Popen(words, stdout=subprocess.DEVNULL)

        def answers():
            return subprocess.run([program, 'qmp', 'own.sock', 'query-status'],
                                  stdout=subprocess.DEVNULL, check=False,
                                  stderr=subprocess.DEVNULL).returncode == 0
        wait_until(answers)

    def hmp(self, disk, command):
        said = run(program, 'qmp', 'own.sock', 'human-monitor-command',
                   'command-line=qemu-io -d '
                   f'/machine/peripheral/{disk}/virtio-backend "{command}"')
        assert json.loads(said) == '', said

    def write(self, disk, pattern, offset, length):
        self.hmp(disk, f'write -P {pattern} {offset} {length}')

    def flush(self):
        for d in self.disks:
            self.hmp(d, 'flush')

    def abandon(self):
        self.p.kill()

    def kill(self):
        self.p.kill()
        self.p.wait()

    def stop(self):
        run(program, 'qmp', 'own.sock', 'quit')
        self.p.wait(60)

    # Bitmaps of QEMU do not survive its crash.
    statuses = (0, 3)


class Domain:
    """A domain of libvirt.  What ends is libvirt's daemon, or QEMU."""
    disks = ('vda', 'vdb')
    monitor = 'libvirt:vm'

    def __init__(self):
        self.v = None

    def start(self):
        v = self.v
        if not v:
            self.v = v = Libvirt()
            v.define('vm', [(d, f'{os.getcwd()}/{d}.qcow2', 'qcow2', '')
                            for d in self.disks])
            self.options = ('--connect', v.uri)
            return
        if v.p.poll() is not None:
            v.start()
        if 'vm' not in v.virsh('list', '--name').split():
            v.virsh('start', '--paused', 'vm')

    def write(self, disk, pattern, offset, length):
        self.v.io('vm', self.disks.index(disk),
                  f'write -P {pattern} {offset} {length}')

    def flush(self):
        for i in range(len(self.disks)):
            self.v.io('vm', i, 'flush')

    def kill(self):
        if rng.random() < 0.5:
            self.v.end(signal.SIGKILL)
            return
        os.kill(self.v.pid('vm'), signal.SIGKILL)
        wait_until(lambda: 'shut off' in self.v.virsh('domstate', 'vm'))

    def stop(self):
        self.v.virsh('destroy', '--graceful', 'vm')
        self.v.close()

    def abandon(self):
        if self.v:
            self.v.close()

    statuses = (0, 3)


class Campaign:
    def __init__(self, source):
        self.source = source
        self.model = {d: bytearray(SIZE) for d in self.source.disks}
        self.points = {}  # (directory, point): number of the copy
        self.copies = 0
        self.pattern = 0
        with open('hook', 'w', encoding='ascii') as f:
            f.write(HOOK)
        os.chmod('hook', 0o755)
        for d in self.source.disks:
            run('qemu-img', 'create', '-q', '-f', 'qcow2', f'{d}.qcow2',
                str(SIZE))

    def write(self):
        for d in self.source.disks:
            for _ in range(rng.randrange(3)):
                self.pattern = self.pattern % 255 + 1
                length = rng.randrange(1, 2 * MIB // 512) * 512
                offset = rng.randrange((SIZE - length) // 512) * 512
                self.source.write(d, self.pattern, offset, length)
                self.model[d][offset:offset + length] = \
                    bytes([self.pattern]) * length
        self.source.flush()

    def keep_copy(self):
        self.copies += 1
        for d in self.source.disks:
            with open(f'copy-{self.copies}.{d}', 'wb') as f:
                f.write(self.model[d])
        return self.copies

    def command(self, where, *options):
        for name in glob.glob('hook-*'):
            os.unlink(name)
        return subprocess.Popen(
            [program, 'backup', '--hook=./hook', f'--timeout={TIMEOUT}',
             *self.source.options, *options, self.source.monitor, where], stderr=subprocess.PIPE, text=True)

    def listed(self, where):
        return {os.path.basename(n)[:-5] for n in
                glob.glob(f'{where}/*Z.json')}

    def new_points(self, where, copy):
        """Points that are there and were not before have @copy."""
        for name in self.listed(where):
            self.points.setdefault((where, name), copy)

    def wait_phase(self, p, phase, where):
        def seen():
            if p.poll() is not None:
                return True
            if phase == 'copy':
                return bool(glob.glob(f'{where}/*/*.part'))
            if phase == 'files':
                names = {os.path.basename(n) for n in
                         glob.glob(f'{where}/*/*Z.qcow2')}
                return bool({n[:-6] for n in names} - self.listed(where))
            if phase == 'pending':
                return bool(glob.glob(f'{where}/*.pending'))
            return os.path.exists(f'hook-{phase}')

        if phase == 'moment':
            time.sleep(rng.random() * 0.4)
        else:
            wait_until(seen)
            time.sleep(rng.random() * 0.01)

    def disturb(self, where):
        phase = rng.choice(PHASES)
        action = rng.choice(ACTIONS)
        slow = ['--rate=8M'] if phase == 'copy' or rng.random() < 0.3 else []
        hold = f'hold-{phase}'
        if phase in ('before', 'frozen', 'after') and rng.random() < 0.7:
            open(hold, 'w', encoding='ascii').close()
        print(f'{where}: {action} at {phase} {slow}', flush=True)
        copy = self.keep_copy()
        p = self.command(where, *slow)
        self.wait_phase(p, phase, where)
        if action == 'source':
            self.source.kill()
            # A hook would wait for as long.
            if os.path.exists(hold) or rng.random() < 0.5:
                p.send_signal(signal.SIGTERM)
        elif action == 'restart':
            self.source.kill()
            self.source.start()
            if os.path.exists(hold):
                os.unlink(hold)
                self.end_hook()
        elif action == 'twice':
            p.send_signal(signal.SIGINT)
            time.sleep(rng.random() * 0.05)
            p.send_signal(signal.SIGINT)
        else:
            p.send_signal(getattr(signal, 'SIG' + action))
        self.end_run(p)
        if os.path.exists(hold):
            os.unlink(hold)
            self.end_hook()
        if action == 'source':
            self.source.start()
        if action in ('source', 'restart'):
            self.look_again()
        self.new_points(where, copy)

    def end_hook(self):
        """One that is held outlives a run that is killed."""
        if not os.path.exists('hook.pid'):
            return
        with open('hook.pid', encoding='ascii') as f:
            pid = int(f.read())
        try:
            group = os.getpgid(pid)
            assert group != os.getpgid(0)
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def end_run(self, p):
        try:
            p.wait(60)
        except subprocess.TimeoutExpired:
            p.kill()
            raise
        p.stderr.close()

    def look_again(self):
        """A crash may lose what was not flushed; all was."""
        for d in self.source.disks:
            run('qemu-img', 'convert', '-U', '-f', 'qcow2', '-O', 'raw',
                f'{d}.qcow2', 'now.raw')
            with open('now.raw', 'rb') as f:
                assert f.read() == self.model[d], f'{d}: the disk itself'

    def pending(self, where):
        return bool(glob.glob(f'{where}/*.pending'))

    def settle(self, where, before):
        """The run that nobody disturbs.  A pending point that it finishes is of
        the run before, with the copy @before; so is one that it goes on
        with."""
        then = [os.path.basename(n)[:-13] for n in
                glob.glob(f'{where}/*.pending')]
        copy = self.keep_copy()
        options = ['--prune', '--keep-last=4'] if rng.random() < 0.3 else []
        p = self.command(where, *options)
        _, said = p.communicate(timeout=120)
        # One that has taken no instant has gone on with the run before.
        if not os.path.exists('hook-frozen'):
            print(f'{where}: gone on with', flush=True)
            copy = before
        assert p.returncode in self.source.statuses, (p.returncode, said)
        assert (said == '') == (p.returncode == 0), said
        for name in then:
            if name in self.listed(where):
                self.points.setdefault((where, name), before)
        self.new_points(where, copy)
        left = glob.glob(f'{where}/*/*.part') + glob.glob(f'{where}/*.pending')
        assert not left, left

    def check(self, where):
        for name in self.listed(where):
            copy = self.points[where, name]
            for d in self.source.disks:
                image = f'{where}/{d}/{name}.qcow2'
                run('qemu-img', 'compare', '-q', '-f', 'raw', '-F', 'qcow2',
                    f'copy-{copy}.{d}', image)
                run('qemu-img', 'check', '-q', image)

    def check_bitmaps(self):
        """The last point of a directory has one in each image, and nothing else
        has.  QEMU's may be lost in a crash."""
        for d in self.source.disks:
            info = json.loads(run('qemu-img', 'info', '--output=json',
                                  f'{d}.qcow2'))
            names = [b['name'] for b in info['format-specific']['data'].get(
                'bitmaps', [])]
            want = {f'nbdelta-{self.identity(w)}-{max(self.listed(w))}'
                    for w in ('one', 'two') if os.path.exists(w)}
            assert set(names) <= want, (d, names, want)
            assert 3 in self.source.statuses or set(names) == want, names

    def identity(self, where):
        with open(f'{where}/nbdelta.json', encoding='ascii') as f:
            return json.load(f)['id']

    def forget_copies(self):
        used = {c for (w, n), c in self.points.items() if n in self.listed(w)}
        for name in glob.glob('copy-*'):
            if int(name[5:].split('.')[0]) not in used:
                os.unlink(name)

    def round(self, i):
        where = rng.choice(('one', 'two'))
        self.write()
        self.disturb(where)
        before = self.copies
        self.write()
        self.settle(where, before)
        if i % 4 == 3:
            self.check(where)
        self.forget_copies()

    def all(self):
        self.source.start()
        try:
            for i in range(int(rounds)):
                self.round(i)
            for where in ('one', 'two'):
                self.check(where)
                if os.path.exists(where):
                    run(program, 'verify', where)
            self.source.stop()
        except BaseException:
            self.source.abandon()
            raise
        self.check_bitmaps()


KINDS = {'nbdelta': Daemon, 'qemu': Qemu, 'libvirt': Domain}
for kind in kinds.split(','):
    if kind == 'libvirt' and not private():
        print('no mount namespace for a libvirt daemon of its own')
        continue
    os.mkdir(kind)
    os.chdir(kind)
    Campaign(KINDS[kind]()).all()
    os.chdir('..')
