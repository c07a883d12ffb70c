# SPDX-License-Identifier: BSD-3-Clause
"""Where rows are measured: a directory, the programs, what runs meanwhile."""
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time

from images import Images
from qmp import Qmp

PR_SET_PDEATHSIG = 1
PATIENCE = 900  # seconds, for a command that ends
PACKAGES = {
    'nbdkit': 'nbdkit', 'qemu-nbd': 'qemu-utils', 'qemu-img': 'qemu-utils',
    'q-s-d': 'qemu-system-common', 'qemu': 'qemu-system-x86',
    'nbdcopy': 'libnbd-bin', 'certtool': 'gnutls-bin', 'psktool': 'gnutls-bin',
    'virtnbdbackup': 'virtnbdbackup', 'libvirt': 'libvirt-daemon',
    'valgrind': 'valgrind', 'qemu-io': 'qemu-utils', 'strace': 'strace',
    'rbd': 'ceph-common'}
COMMANDS = {'q-s-d': 'qemu-storage-daemon', 'qemu': 'qemu-system-x86_64',
            'libvirt': 'libvirtd'}


class Failed(Exception):
    """A measurement has no result."""


class Missing(Failed):
    """It cannot be made on this machine."""


def package_of(name):
    """In words: what to install for a program."""
    package = PACKAGES.get(PROGRAM_OF.get(name, name))
    return f'{name} (Debian package {package})' if package else name


class Programs:
    """@builds: {'': the build, or names of several: their directories}.  @tree:
    another release's files, whose programs are the peers; they are started by
    their own loader, so nothing is mounted.  What only makes images is this
    machine's."""

    def __init__(self, builds, tree=None):
        self.builds = builds
        self.tree = tree

    def in_tree(self, name):
        """The words that start a peer."""
        command = COMMANDS.get(name, name)
        path = shutil.which(command, path='/usr/bin:/bin:/usr/sbin')
        if self.tree:
            inside = f'{self.tree}/usr/bin/{command}'
            if os.path.exists(inside):
                return self.loader() + [inside]
        return [path] if path else None

    def loader(self):
        machine = os.uname().machine
        libraries = f'{self.tree}/usr/lib/{machine}-linux-gnu'
        for name in os.listdir(libraries):
            if name.startswith('ld-linux'):
                return [f'{libraries}/{name}', '--library-path', libraries]
        raise Failed(f'{self.tree}: no loader')

    def build_of(self, who):
        return self.builds[who.partition('+')[0].partition('@')[2]]

    def nbdelta(self, who='nbdelta'):
        return [self.build_of(who) + '/nbdelta']

    def has(self, name):
        kind = name.partition('+')[0].partition('@')[0]
        if kind == 'nbdelta':
            return True
        if kind == 'plugin':
            return os.path.exists(self.build_of(name) +
                                  '/nbdkit-nbdelta-plugin.so')
        return self.in_tree(PROGRAM_OF.get(kind, kind)) is not None

    def version(self, kind):
        if kind == 'nbdelta':
            words = self.nbdelta(self.own_name()) + ['--version']
        elif kind in CLIENTS:
            words = [kind, '--version']
        else:
            words = (self.in_tree(kind) or ['false']) + ['--version']
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.DEVNULL, check=False)
        told = done.stdout.partition('\n')[0]
        return told if told[:1].isalpha() else f'{kind} {told}'

    def own_name(self):
        build = next(iter(self.builds))
        return f'nbdelta@{build}' if build else 'nbdelta'


# They measure, or are always this machine's.
CLIENTS = ('nbdcopy', 'virtnbdbackup')
# Candidates that are another program's jobs.
PROGRAM_OF = {'convert': 'qemu-img', 'blockdev-backup': 'qemu',
              'qemu-job': 'q-s-d'}


def own(who):
    """A candidate is ours."""
    return who.partition('+')[0].partition('@')[0] in ('nbdelta', 'plugin')


def ends_with_parent(cpus):
    """For a new process: it ends when we are killed."""
    def prepare():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
    return prepare


class Lab:
    def __init__(self, programs, size, seconds, quick):
        self.programs = programs
        self.size = size
        self.seconds = seconds
        self.quick = quick
        self.cpus = None  # what processes of a row are bound to
        self.dir = tempfile.mkdtemp(prefix='nbdelta-bench.',
                                    dir=os.environ.get('TMPDIR', '/var/tmp'))
        self.running = []
        self.more_dirs = []
        self.images = Images(self)

    def path(self, name):
        return os.path.join(self.dir, name)

    def in_memory(self):
        """A directory on a tmpfs."""
        if not self.more_dirs:
            self.more_dirs.append(tempfile.mkdtemp(prefix='nbdelta-bench.',
                                                   dir='/dev/shm'))
        return self.more_dirs[0]

    def spawn(self, words, **options):
        options.setdefault('stdin', subprocess.DEVNULL)
        options.setdefault('cwd', self.dir)
        p = subprocess.Popen(words, preexec_fn=ends_with_parent(self.cpus),
                             **options)
        self.running.append(p)
        return p

    def stop(self, p):
        if p.poll() is None:
            p.terminate()
            try:
                p.wait(30)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        for f in (p.stdin, p.stdout, p.stderr):
            if f:
                f.close()
        if p in self.running:
            self.running.remove(p)

    def run(self, words, **options):
        """A command to its end: what it printed."""
        p = self.spawn(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, **options)
        try:
            out = p.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired as e:
            self.stop(p)
            raise Failed(f'{" ".join(words)}: no end in {PATIENCE} s') from e
        self.running.remove(p)
        if p.returncode != 0:
            raise Failed(f'{" ".join(words)}: {out.strip()[-500:]}')
        return out

    def timed(self, words, **options):
        begin = time.monotonic()
        self.run(words, **options)
        return time.monotonic() - begin

    def tool(self, name):
        """One of the programs in C of this folder."""
        return self.programs.build_of(self.programs.own_name()) + \
            '/tests/bench/' + name

    def img(self, *words):
        self.run(['qemu-img', *words])

    def remove(self, *names):
        for name in names:
            path = self.path(name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.lexists(path):
                os.unlink(path)

    def qmp(self, path, process):
        """As soon as somebody listens there."""
        for _ in range(2000):
            try:
                return Qmp(path)
            except OSError:
                if process.poll() is not None:
                    break
                time.sleep(0.01)
        raise Failed('a monitor did not come')

    def close(self):
        for p in self.running[:]:
            self.stop(p)
        for d in [self.dir, *self.more_dirs]:
            shutil.rmtree(d, ignore_errors=True)
