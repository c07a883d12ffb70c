# SPDX-License-Identifier: BSD-3-Clause
"""Candidates as servers of one disk.

A candidate is PROGRAM[@BUILD][+VARIANT], as nbdelta, q-s-d, nbdelta+4.  The
programs: nbdelta; plugin (ours, in nbdkit); q-s-d (qemu-storage-daemon);
qemu-nbd; nbdkit (its file plugin).  QEMU's have aio=io_uring, which is their
best.  All take the same options for the same thing, and write to the cache.
"""
from dataclasses import dataclass, field
import json
import os
import time

from lab import Failed
from machine import process_cpu


@dataclass
class Disk:
    path: str
    format: str = 'raw'
    direct: bool = False          # O_DIRECT
    read_only: bool = False
    bitmap: str = ''              # its dirty bitmap is exported
    luks: bool = False
    tls: str = ''                 # x509 or psk
    ceph: str = ''                # it is an image there: the configuration
    allow: list = field(default_factory=list)  # where its backing files are


def kind(who):
    return who.partition('+')[0].partition('@')[0]


def variant(who):
    return who.partition('+')[2]


class Server:
    """A server that runs.  Its default export is the disk; `qmp` where it has a
    monitor, and the disk's node is `disk` there."""

    def __init__(self, lab, who, words, sock=None, monitor=None, export=''):
        self.lab = lab
        self.who = who
        self.sock = sock
        self.export = export
        for path in (sock, monitor):
            if path and os.path.exists(path):
                os.unlink(path)
        self.monitor = monitor
        self.log = open(lab.path('server.log'), 'w', encoding='utf-8')
        self.process = lab.spawn(words, stdout=self.log, stderr=self.log)
        self.qmp = None
        for path in (sock, monitor):
            self.wait_for(path)

    def wait_for(self, path):
        for _ in range(2000):
            if not path or os.path.exists(path):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.005)
        self.log.flush()
        with open(self.log.name, encoding='utf-8') as f:
            raise Failed(f'{self.who} did not start: {f.read()[-500:]}')

    def ask(self, command, **arguments):
        if not self.qmp:
            self.qmp = self.lab.qmp(self.monitor, self.process)
        return self.qmp(command, **arguments)

    def cpu(self):
        return process_cpu(self.process.pid)

    def uri(self, name=None):
        return f'nbd+unix:///{name or self.export}?socket={self.sock}'

    def load_words(self, *options, export=None, sock=None):
        return [self.lab.tool('nbd-load'), '-s', sock or self.sock, '-e',
                self.export if export is None else export, '-o', '-', *options]

    def load(self, *options, **where):
        """nbd-load's result, with `cpu_us`: the server's CPU for a request."""
        before = self.cpu()
        result = json.loads(self.lab.run(self.load_words(*options, **where)))
        result['cpu_us'] = (self.cpu() - before) * 1e6 / result['requests']
        return result

    def resident_kib(self, what='VmRSS'):
        with open(f'/proc/{self.process.pid}/status', encoding='utf-8') as f:
            for line in f:
                if line.startswith(what + ':'):
                    return int(line.split()[1])
        return 0

    def stop(self):
        if self.qmp:
            self.qmp.close()
        self.lab.stop(self.process)
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.stop()


def file_options(disk, name='f', path=None):
    direct = ',cache.direct=on' if disk.direct else ''
    if disk.ceph:
        return (f'driver=rbd,node-name={name},pool=rbd,image={disk.path},'
                f'conf={disk.ceph}{direct}')
    return (f'driver=file,node-name={name},filename={path or disk.path},'
            f'aio=io_uring{direct}')


def daemon_words(lab, who, disk):
    """Of nbdelta and q-s-d."""
    read_only = ',read-only=on' if disk.read_only else ''
    words = []
    server = f'addr.type=unix,addr.path={lab.path("sock")},max-connections=0'
    node = f'driver={disk.format},node-name=disk,file=f{read_only}'
    export = 'type=nbd,id=e,node-name=disk,name='
    if not disk.read_only:
        export += ',writable=on'
    if disk.luks:
        words += ['--object', 'secret,id=s,data=bench']
        node += ',encrypt.key-secret=s'
        if kind(who) == 'q-s-d':
            node += ',encrypt.format=luks'
    if disk.tls:
        words += ['--object', f'tls-creds-{disk.tls},id=t,endpoint=server,'
                              f'dir={lab.images.keys()}']
        server += ',tls-creds=t'
    if disk.bitmap:
        export += f',bitmaps.0={disk.bitmap}'
    words += ['--blockdev', file_options(disk) + read_only, '--blockdev', node,
              '--nbd-server', server, '--export', export]
    if kind(who) == 'nbdelta':
        for path in disk.allow:
            words += ['--allow-path', path]
        return lab.programs.nbdelta(who) + ['serve', '--log=null', '--qmp',
                                            lab.path('qmp'), *words]
    return lab.programs.in_tree('q-s-d') + words + [
        '--chardev', f'socket,id=c,path={lab.path("qmp")},server=on,wait=off',
        '--monitor', 'chardev=c']


def qemu_nbd_words(lab, disk):
    words = lab.programs.in_tree('qemu-nbd') + [
        '-t', '-e', '0', '-f', disk.format, '--aio', 'io_uring', '--cache',
        'none' if disk.direct else 'writeback', '-k', lab.path('sock')]
    if disk.read_only:
        words.append('-r')
    if disk.bitmap:
        words += ['--bitmap', disk.bitmap]
    if disk.tls:
        words += ['--object', f'tls-creds-{disk.tls},id=t,endpoint=server,'
                              f'dir={lab.images.keys()}', '--tls-creds', 't']
    return words + [disk.path]


def nbdkit_words(lab, who, disk):
    words = lab.programs.in_tree('nbdkit') + ['-f', '-U', lab.path('sock')]
    if disk.read_only:
        words.append('-r')
    if disk.tls:
        keys = lab.images.keys()
        words += ['--tls=require'] + {
            'x509': [f'--tls-certificates={keys}', '--tls-verify-peer'],
            'psk': [f'--tls-psk={keys}/keys.psk']}[disk.tls]
    if kind(who) == 'plugin':
        plugin = lab.programs.build_of(who) + '/nbdkit-nbdelta-plugin.so'
        return words + [plugin, disk.path, f'format={disk.format}']
    plugin = 'file'
    if lab.programs.tree:
        plugin = (f'{lab.programs.tree}/usr/lib/{os.uname().machine}-linux-gnu/'
                  'nbdkit/plugins/nbdkit-file-plugin.so')
    return words + [plugin, disk.path]


def serve(lab, who, disk):
    sock = lab.path('sock')
    if kind(who) in ('nbdelta', 'q-s-d'):
        return Server(lab, who, daemon_words(lab, who, disk), sock,
                      lab.path('qmp'))
    if kind(who) == 'qemu-nbd':
        return Server(lab, who, qemu_nbd_words(lab, disk), sock)
    return Server(lab, who, nbdkit_words(lab, who, disk), sock)
