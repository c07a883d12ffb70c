# SPDX-License-Identifier: BSD-3-Clause
"""`nbdelta backup libvirt:DOMAIN DIR` as people run it, for tests in Python."""
import glob
import json
import os
import subprocess
import time

from libvirt_daemon import Libvirt, private

NBDELTA = os.environ['BUILD'] + '/nbdelta'
MIB = 1 << 20
HERE = os.getcwd()


def command(*words, status=0):
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, check=False)
    assert done.returncode == status, (words, done.returncode, done.stdout)
    return done.stdout


def image(name, size, fmt='qcow2', *options):
    path = f'{HERE}/{name}.{fmt}'
    command('qemu-img', 'create', '-q', '-f', fmt, *options, path, str(size))
    return path


def copy_of(path, raw, fmt='qcow2'):
    """The disk as it is now: guests write only when they are told to."""
    command('qemu-img', 'convert', '-U', '-f', fmt, '-O', 'raw', path, raw)


def same(a, b, fmt='raw'):
    command('qemu-img', 'compare', '-q', '-U', '-f', 'qcow2', '-F', fmt, a, b)


def until(what, test, seconds=60):
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, 'not in time: ' + what
        time.sleep(0.02)


class Started:
    """A run that goes on."""

    def __init__(self, words, env=None):
        self.p = subprocess.Popen(words, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, env=env,
                                  stdin=subprocess.DEVNULL)

    def wait(self, seconds=120):
        self.out, self.err = self.p.communicate(timeout=seconds)
        self.status = self.p.returncode
        return self


class Backups:
    """A directory, and the domain that it is of."""

    def __init__(self, v, name, directory, *options):
        self.v = v
        self.name = name
        self.dir = HERE + '/' + directory
        self.options = options

    def start(self, *options, env=None, program=NBDELTA):
        return Started([program, 'backup', '--connect', self.v.uri,
                        *self.options, *options, 'libvirt:' + self.name,
                        self.dir], env)

    def try_run(self, *options, env=None):
        return self.start(*options, env=env).wait()

    def run(self, *options, status=0, says='', env=None, again=False):
        """{disk: what the report says of it}; `point` is its name.  @again: it
        may say that it begins again what was cut off."""
        done = self.try_run('--output=json', *options, env=env)
        assert done.status == status, (done.status, done.out, done.err)
        assert says in done.err, (says, done.err)
        lines = done.err.splitlines()
        if again and lines and 'is begun again' in lines[0]:
            del lines[0]
        assert status != 0 or lines == [], done.err
        report = json.loads(done.out)
        self.point = report.get('point')
        return {d['name']: d for d in report['disks']}

    def refused(self, *options, status=1, says=''):
        """No point is made."""
        before = self.points()
        done = self.try_run(*options)
        assert done.status == status, (done.status, done.err)
        assert says in done.err, (says, done.err)
        assert done.out == '', done.out
        assert self.points() == before
        self.clean()
        return done.err

    def points(self):
        return sorted(os.path.basename(p)[:-5]
                      for p in glob.glob(self.dir + '/*Z.json'))

    def file(self, disk, point=None):
        return f'{self.dir}/{disk}/{point or self.point}.qcow2'

    def manifest(self, point=None):
        with open(f'{self.dir}/{point or self.point}.json',
                  encoding='utf-8') as f:
            return json.load(f)

    def checkpoints(self):
        return self.v.virsh('checkpoint-list', self.name, '--name').split()

    def own(self):
        """Checkpoints of this directory."""
        with open(self.dir + '/nbdelta.json', encoding='utf-8') as f:
            mark = f'nbdelta-{json.load(f)["id"]}-'
        return [c for c in self.checkpoints() if c.startswith(mark)]

    def busy(self):
        """A backup runs."""
        return self.v.try_virsh('backup-dumpxml', self.name).returncode == 0

    def left(self):
        """All that a run may leave neither at the domain nor in the
        directory, except points and a checkpoint."""
        v = self.v
        ask = v.ask
        there = [j['id'] for j in ask(self.name, 'query-jobs')]
        there += [e['id'] for e in ask(self.name, 'query-block-exports')]
        there += [n['node-name']
                  for n in ask(self.name, 'query-named-block-nodes')
                  if '/nbdelta-' in n.get('file', '')]
        there += glob.glob('/var/lib/libvirt/qemu/domain-*/nbdelta-*sock')
        there += glob.glob(os.environ['TMPDIR'] + '/nbdelta-*')
        there += glob.glob(self.dir + '/**/*.part', recursive=True)
        there += glob.glob(self.dir + '/*.pending')
        return there

    def clean(self):
        assert self.left() == [], self.left()

    def verify(self):
        command(NBDELTA, 'verify', self.dir)
        for path in glob.glob(self.dir + '/*/*.qcow2'):
            command('qemu-img', 'check', '-q', path)


def with_libvirt(work):
    """The exit status of a test."""
    os.environ['TMPDIR'] = HERE + '/tmp'
    os.mkdir('tmp')
    if not private():
        print('no mount namespace for a libvirt daemon of its own')
        return 77
    try:
        v = Libvirt()
    except RuntimeError as e:
        with open('libvirtd.log', encoding='utf-8') as f:
            print(f.read())
        print(e)
        return 77
    try:
        work(v)
    finally:
        v.close()
    return 0
