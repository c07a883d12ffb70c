#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The work of backup-libvirt-remote.sh."""
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys

from libvirt_backup import (HERE, MIB, NBDELTA, Backups, command, image, same,
                            until, with_libvirt)

SIZE = 8 * MIB


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def make_home(known_hosts):
    """ssh looks for it in passwd, which is our own here."""
    os.makedirs('home/.ssh', mode=0o700)
    with open('home/.ssh/known_hosts', 'w', encoding='utf-8') as f:
        f.write(known_hosts)
    with open('/etc/passwd', encoding='utf-8') as f:
        lines = f.readlines()
    with open('root/passwd', 'w', encoding='utf-8') as f:
        f.writelines(f'root:x:0:0::{HERE}/home:/bin/sh\n'
                     if line.startswith('root:') else line for line in lines)


class Sshd:
    """Of its own: keys, configuration, port.  The user's home is here."""

    def __init__(self):
        self.port = free_port()
        for name in ('host', 'user'):
            command('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f',
                    f'{HERE}/{name}-key')
        shutil.copy('user-key.pub', 'authorized')
        os.chmod('authorized', 0o600)
        with open('host-key.pub', encoding='utf-8') as f:
            key = ' '.join(f.read().split()[:2])
        make_home(f'[127.0.0.1]:{self.port} {key}\n')
        with open('sshd.conf', 'w', encoding='utf-8') as f:
            f.write(f'ListenAddress 127.0.0.1\nPort {self.port}\n'
                    f'HostKey {HERE}/host-key\nPidFile {HERE}/sshd.pid\n'
                    f'AuthorizedKeysFile {HERE}/authorized\nUsePAM no\n'
                    'StrictModes no\nPermitRootLogin prohibit-password\n'
                    'PasswordAuthentication no\nMaxStartups 100\n'
                    'AllowStreamLocalForwarding yes\n')
        os.makedirs('/run/sshd', exist_ok=True)
        self.log = open('sshd.log', 'a', encoding='utf-8')
        self.start()

    def start(self):
        self.p = subprocess.Popen(['/usr/sbin/sshd', '-D', '-e', '-f',
                                   HERE + '/sshd.conf'], stderr=self.log)

        def answers():
            with socket.socket() as s:
                return s.connect_ex(('127.0.0.1', self.port)) == 0
        until('sshd answers', answers)

    def end(self):
        self.p.terminate()
        self.p.wait()

    def uri(self, key='user-key'):
        return (f'qemu+ssh://root@127.0.0.1:{self.port}/system'
                f'?keyfile={HERE}/{key}&no_tty=1')


def tunnels():
    """Pids of ssh that carry a socket of a backup, which is in $TMPDIR, or in
    /tmp if that is too long for a socket."""
    found = []
    for path in glob.glob('/proc/[0-9]*/cmdline'):
        try:
            with open(path, 'rb') as f:
                words = f.read().split(b'\0')
        except OSError:
            continue
        if words[0] == b'ssh' and b'-L' in words and \
                any(b'/nbdelta-' in w for w in words):
            found.append(int(path.split('/')[2]))
    return found


class Far(Backups):
    def __init__(self, v, name, directory, uri, *options):
        super().__init__(v, name, directory, *options)
        self.uri = uri

    def start(self, *options, env=None):
        real, self.v.uri = self.v.uri, self.uri
        try:
            return super().start(*options, env=env)
        finally:
            self.v.uri = real

    def clean(self):
        super().clean()
        assert tunnels() == []


def change(v, byte):
    for i in range(2):
        v.io('vm', i, f'write -P {byte} {byte % 8}M 64k', 'flush')


def right(b, files):
    for n, path in files.items():
        same(b.file(n), path, 'qcow2')
    b.verify()
    b.clean()
    assert len(b.own()) == 1


def increment(b, files):
    assert {d['kind'] for d in b.run().values()} == {'increment'}
    right(b, files)


# --- By ssh ---

def by_ssh(v, files, sshd):
    b = Far(v, 'vm', 'far', sshd.uri(), '--timeout=20')
    done = b.try_run()
    assert done.status == 1 and '--tunnel=ssh' in done.err, done.err
    b.options += ('--tunnel=ssh',)
    b.run()
    right(b, files)
    change(v, 33)
    increment(b, files)
    return b


def slow(v, b):
    """A run that copies by a tunnel, and ssh's pid.  On a busy machine it may
    be over before anybody has seen that."""
    for attempt in range(5):
        for i in range(2):
            v.io('vm', i, f'write -P {41 + attempt} 0 8M', 'flush')
        run = b.start('--rate=1M')
        until('it copies', lambda: run.p.poll() is not None or (
            tunnels() and glob.glob(b.dir + '/*/*.part')))
        pids = tunnels()
        if run.p.poll() is None and pids:
            return run, pids[0]
        run.wait()
        assert run.status == 0, run.err
    raise AssertionError('no run was seen while it copied')


def cut(v, files, b, sshd):
    # ssh is killed: another carries on.
    run, pid = slow(v, b)
    os.kill(pid, signal.SIGKILL)
    run.wait()
    assert (run.status, run.err) == (0, ''), run.err
    b.point = b.points()[-1]
    right(b, files)
    if os.environ.get('LIBVIRT_CASES') != 'all':
        return
    # The other host cannot be reached any more, by nobody.
    b.options = ('--timeout=3', '--tunnel=ssh')
    run, pid = slow(v, b)
    before = b.points()
    sshd.end()
    for child in sessions(sshd.port):
        os.kill(child, signal.SIGKILL)
    run.wait()
    assert run.status == 1, (run.status, run.err)
    assert b.points() == before and tunnels() == []
    sshd.start()
    b.options = ('--timeout=20', '--tunnel=ssh')
    increment(b, files)
    # The tool is killed: so is its ssh.
    run, pid = slow(v, b)
    run.p.kill()
    run.wait()
    until('ssh has ended', lambda: tunnels() == [])
    increment(b, files)
    run, pid = slow(v, b)
    run.p.send_signal(signal.SIGINT)
    assert run.wait().status == 7
    b.clean()
    increment(b, files)


def sessions(port):
    """Processes of sshd that have a client."""
    out = command('ss', '-tnpH', f'sport = :{port}')
    return {int(w.split(',')[0]) for w in out.split('pid=')[1:]}


def refused(v, b, sshd):
    for uri, options, says in (
            ('qemu:///system', ('--tunnel=ssh',), 'a connection URI such as'),
            (sshd.uri('other-key'), ('--tunnel=ssh',), 'libvirt says'),
            (sshd.uri(), ('--tunnel=ssh', '--nbd=nbds://127.0.0.1:1'),
             'a tunnel needs')):
        far = Far(v, 'vm', 'far', uri, *options)
        far.refused(says=says)
    done = subprocess.run([NBDELTA, 'backup', '--tunnel=ssh', 'some.qcow2',
                           'x'], stderr=subprocess.PIPE, text=True,
                          check=False)
    assert done.returncode == 1 and 'for domains of libvirt' in done.stderr
    assert len(b.own()) == 1


# --- By TCP ---

def by_tls(v, files, sshd):
    port = free_port()

    def nbd(pki):
        return f'--nbd=nbds://127.0.0.1:{port}/?tls-certificates={HERE}/{pki}'
    b = Far(v, 'vm', 'tls', sshd.uri(), '--timeout=20', nbd('client'))
    b.run()
    right(b, files)
    change(v, 35)
    increment(b, files)
    # Certificates of somebody else: nothing is read, and nothing is left.
    b.options = ('--timeout=5', nbd('stranger'))
    b.refused()
    assert len(b.own()) == 1
    b.options = ('--timeout=20', nbd('client'))
    change(v, 36)
    increment(b, files)


def keys(pki, to, names):
    os.mkdir(to)
    for a, b in names:
        shutil.copy(f'{pki}/{a}', f'{to}/{b}')


def work(v):
    server = [('ca-cert.pem', 'ca-cert.pem'), ('server-cert.pem',
                                               'server-cert.pem'),
              ('server-key.pem', 'server-key.pem')]
    client = [(n.replace('server', 'client'), m.replace('server', 'client'))
              for n, m in server]
    keys('pki', 'served', server)
    keys('pki', 'client', client)
    keys('other', 'stranger', client)
    v.end()
    with open('/etc/libvirt/qemu.conf', 'a', encoding='utf-8') as f:
        f.write(f'backup_tls_x509_cert_dir = "{HERE}/served"\n'
                'backup_tls_x509_verify = 1\n')
    v.start()
    os.symlink(v.run + '/libvirt-sock', '/run/libvirt/libvirt-sock')
    files = {n: image(n, SIZE) for n in ('vda', 'vdb')}
    v.define('vm', [(n, path, 'qcow2', '') for n, path in files.items()])
    os.environ['HOME'] = HERE + '/home'
    change(v, 32)
    sshd = Sshd()
    try:
        b = by_ssh(v, files, sshd)
        refused(v, b, sshd)
        by_tls(v, files, sshd)
        cut(v, files, b, sshd)
    finally:
        sshd.end()


sys.exit(with_libvirt(work))
