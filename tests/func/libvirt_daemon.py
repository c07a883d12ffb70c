# SPDX-License-Identifier: BSD-3-Clause
"""A libvirt daemon of its own, with domains whose guests never run.

Root has a mount namespace: private() puts directories below the current one
over the ones that libvirt's daemon uses, and a passwd that has the user that it
insists on.  So nothing of the host's is read or changed.
"""
import ctypes
import glob
import json
import os
import shutil
import signal
import subprocess
import time

BACKEND = '/machine/peripheral/virtio-disk%d/virtio-backend'
CONFIG = '''\
stdio_handler = "file"
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
namespaces = []
cgroup_controllers = []
'''


def bind(source, target):
    subprocess.run(['mount', '--bind', source, target], check=True)


def private():
    """False: it is not possible here."""
    if os.geteuid() != 0:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) != 0:        # CLONE_NEWNS
        return False
    done = subprocess.run(['mount', '--make-rprivate', '/'], check=False,
                          stderr=subprocess.DEVNULL)
    if done.returncode != 0:
        return False
    for where in ('/etc/libvirt', '/var/lib/libvirt', '/var/cache/libvirt',
                  '/var/log/libvirt', '/run/libvirt'):
        own = os.getcwd() + '/root' + where
        os.makedirs(own)
        os.makedirs(where, exist_ok=True)
        bind(own, where)
    os.makedirs('root/var/log/libvirt/qemu')
    for name, line in (('passwd', 'libvirt-qemu:x:64055:64055::/:/bin/false'),
                       ('group', 'libvirt-qemu:x:64055:')):
        shutil.copy('/etc/' + name, 'root/' + name)
        with open('root/' + name, 'a', encoding='utf-8') as f:
            f.write(line + '\n')
        bind(os.getcwd() + '/root/' + name, '/etc/' + name)
    with open('/etc/libvirt/qemu.conf', 'w', encoding='utf-8') as f:
        f.write(CONFIG)
    return True


class Libvirt:
    def __init__(self):
        self.run = os.getcwd() + '/run'
        self.uri = f'qemu:///system?socket={self.run}/libvirt-sock'
        os.makedirs(self.run, exist_ok=True)
        with open('libvirtd.conf', 'w', encoding='utf-8') as f:
            f.write(f'unix_sock_dir = "{self.run}"\n'
                    'auth_unix_rw = "none"\nauth_unix_ro = "none"\n')
        self.start()

    def start(self):
        self.log = open('libvirtd.log', 'a', encoding='utf-8')
        self.p = subprocess.Popen(
            ['libvirtd', '-f', os.getcwd() + '/libvirtd.conf', '-p',
             os.getcwd() + '/libvirtd.pid'], stdout=self.log,
            stderr=self.log, stdin=subprocess.DEVNULL)
        for _ in range(300):
            if self.try_virsh('version').returncode == 0:
                return
            if self.p.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError('libvirtd does not start')

    def end(self, signo=signal.SIGTERM):
        self.p.send_signal(signo)
        self.p.wait(60)
        self.log.close()

    def try_virsh(self, *words):
        return subprocess.run(['virsh', '-q', '-c', self.uri, *words],
                              stdout=subprocess.PIPE, text=True, check=False,
                              stderr=subprocess.PIPE)

    def virsh(self, *words):
        done = self.try_virsh(*words)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def refused(self, *words):
        done = self.try_virsh(*words)
        assert done.returncode != 0, words
        return done.stderr

    def close(self):
        """End all, also what the daemon knows no more."""
        if self.p.poll() is None:
            for name in self.try_virsh('list', '--name').stdout.split():
                self.try_virsh('destroy', name)
            self.end()
        for path in glob.glob('/run/libvirt/qemu/*.pid'):
            pid = self.pid(os.path.basename(path)[:-4])
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass

    def pid(self, name):
        """Of a domain's QEMU."""
        with open(f'/run/libvirt/qemu/{name}.pid', encoding='utf-8') as f:
            return int(f.read())

    def xml(self, name, disks):
        """@disks: (target, file or None, format, more XML) of virtio disks,
        CDs where the target begins with sd."""
        text = ''
        for target, path, fmt, more in disks:
            source = f"<source file='{path}'/>" if path else ''
            cd = target.startswith('sd')
            text += (f"<disk type='file' device='{'cdrom' if cd else 'disk'}'>"
                     f"<driver name='qemu' type='{fmt}'/>{source}"
                     f"<target dev='{target}' "
                     f"bus='{'sata' if cd else 'virtio'}'/>{more}</disk>")
        return (f"<domain type='qemu'><name>{name}</name>"
                "<memory unit='MiB'>64</memory><vcpu>1</vcpu>"
                "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
                "<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>"
                f"{text}</devices></domain>")

    def define(self, name, disks):
        """Also again, with other disks."""
        path = f'{name}.xml'
        text = self.xml(name, disks)
        known = self.try_virsh('domuuid', name)
        if known.returncode == 0:
            text = text.replace('<memory ', f'<uuid>{known.stdout.strip()}'
                                '</uuid><memory ', 1)
        with open(path, 'w', encoding='utf-8') as f:
            f.write(text)
        self.virsh('define', path)
        self.virsh('start', '--paused', name)

    def io(self, name, disk, *commands):
        """Writes as of the guest, to the n-th virtio disk."""
        out = self.virsh('; '.join(
            f"qemu-monitor-command {name} --hmp "
            f"'qemu-io -d {BACKEND % disk} \"{c}\"'" for c in commands))
        assert 'rror' not in out, out

    def ask(self, domain, command, **arguments):
        """QEMU's own answer, of which libvirt knows nothing."""
        out = self.virsh('qemu-monitor-command', domain, json.dumps(
            {'execute': command, 'arguments': arguments}))
        answer = json.loads(out)
        assert 'return' in answer, answer
        return answer['return']

    def nodes(self, name):
        """{file of the image: node}"""
        return {n['file']: n for n in self.ask(name, 'query-named-block-nodes',
                                               flat=True)
                if n['drv'] in ('qcow2', 'raw') and '/nbdelta-' not in n['file']}

    def bitmaps(self, name, path):
        """{name: is it inconsistent}"""
        return {b['name']: b.get('inconsistent', False)
                for b in self.nodes(name)[path].get('dirty-bitmaps', [])}
