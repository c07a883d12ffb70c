# SPDX-License-Identifier: BSD-3-Clause
"""Images of rows.  Each is made when a row first wants it, by this machine's
qemu-img or by `craft`, and stays for the run."""
import os
import subprocess

import craft

GIB = 1 << 30


def fill(path, size):
    """Bytes that no format makes smaller."""
    block = os.urandom(16 << 20)
    with open(path, 'wb') as f:
        for at in range(0, size, len(block)):
            f.write(block[:size - at])


def touches():
    """A write in each 32 GiB of 16 TiB, for qemu-io."""
    return '\n'.join(f'write -q {i * 32 + 5}G 4k' for i in range(512)) + '\n'


class Images:
    def __init__(self, lab):
        self.lab = lab
        self.made = set()

    def get(self, name):
        """The path of the image that make_NAME makes."""
        path = self.lab.path(name)
        if name not in self.made:
            getattr(self, 'make_' + name.replace('.', '_'))(path)
            self.made.add(name)
        return path

    def new(self, name, size, *options):
        """An empty qcow2 image, in place of an older one."""
        path = self.lab.path(name)
        self.lab.img('create', '-q', '-f', 'qcow2', *options, path, str(size))
        return path

    def copy(self, of, path):
        self.lab.run(['cp', '--sparse=always', of, path])

    def drop(self, *names):
        for name in names:
            self.made.discard(name)
            self.lab.remove(name)

    def make_disk_raw(self, path):
        fill(path, self.lab.size)

    def make_disk_qcow2(self, path):
        self.lab.img('convert', '-f', 'raw', '-O', 'qcow2',
                     self.get('disk.raw'), path)

    def make_small_raw(self, path):
        fill(path, 16 << 20)

    def make_disk_luks(self, path):
        self.lab.run(self.lab.programs.nbdelta(self.lab.programs.own_name()) + [
            'create', '--object', 'secret,id=s,data=bench', '-o',
            'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=100',
            path, str(self.lab.size)])
        self.lab.img('convert', '-n', '-f', 'raw', '--target-image-opts',
                     '--object', 'secret,id=s,data=bench', self.get('disk.raw'),
                     f'driver=qcow2,encrypt.key-secret=s,file.filename={path}')

    def make_large_qcow2(self, path):
        """16 TiB, with a bitmap, and a bit set in each 32 GiB: 32 MiB of bits
        in the file."""
        self.lab.img('create', '-q', '-f', 'qcow2', path, '16T')
        self.lab.img('bitmap', '--add', path, 'b0')
        subprocess.run(['qemu-io', '-f', 'qcow2', path], input=touches(),
                       text=True, check=True, stdout=subprocess.DEVNULL)

    def make_dense_qcow2(self, path):
        self.copy(self.get('large.qcow2'), path)
        craft.dense(path)

    def make_holes_qcow2(self, path):
        self.lab.img('create', '-q', '-f', 'qcow2', path, '64G')
        craft.holes(path)

    def make_empty_qcow2(self, path):
        self.lab.img('create', '-q', '-f', 'qcow2', path, '16T')

    def make_empty1t_qcow2(self, path):
        self.lab.img('create', '-q', '-f', 'qcow2', path, '1T')

    def make_order_qcow2(self, path):
        """4M clusters, or 256K."""
        self.lab.img('create', '-q', '-f', 'qcow2', '-o',
                     'preallocation=metadata', path,
                     '16G' if self.lab.quick else '256G')

    def make_shuffled_qcow2(self, path):
        self.copy(self.get('order.qcow2'), path)
        craft.shuffle(path)

    def make_fragments_qcow2(self, path):
        """Clusters of 4K, at places of no order."""
        self.lab.img('create', '-q', '-f', 'qcow2', '-o',
                     'preallocation=metadata,cluster_size=4k', path, '1G')
        craft.shuffle(path)

    def make_chain(self, path):
        """64 overlays, the disk's bytes at the bottom."""
        self.chain(path, 64)

    def chain(self, path, count):
        """In a directory; each overlay has a few clusters, the top is N."""
        os.makedirs(path, exist_ok=True)
        below, fmt = os.path.join(path, 'base.raw'), 'raw'
        fill(below, 64 << 20)
        for i in range(1, count + 1):
            top = os.path.join(path, f'{i}.qcow2')
            self.lab.img('create', '-q', '-f', 'qcow2', '-u', '-F', fmt, '-b',
                         os.path.basename(below), top, '64M')
            below, fmt = top, 'qcow2'
        return below

    def keys(self):
        """A directory with certificates, and with the key of a user."""
        path = self.lab.path('keys')
        if 'keys' not in self.made:
            os.mkdir(path)
            make_keys(self.lab, path)
            self.made.add('keys')
        return path


def make_keys(lab, path):
    lab.run(['psktool', '-u', 'user', '-p', path + '/keys.psk'])
    for name, lines in (('ca', ['cn = bench', 'ca', 'cert_signing_key']),
                        ('server', ['cn = localhost', 'tls_www_server']),
                        ('client', ['cn = user', 'tls_www_client'])):
        template = path + '/template'
        with open(template, 'w', encoding='utf-8') as f:
            f.write('\n'.join(lines + ['signing_key', 'expiration_days = 2']))
        key, cert = f'{path}/{name}-key.pem', f'{path}/{name}-cert.pem'
        lab.run(['certtool', '--generate-privkey', '--ecc', '--outfile', key])
        how = ['--generate-self-signed'] if name == 'ca' else [
            '--generate-certificate', '--load-ca-privkey', path + '/ca-key.pem',
            '--load-ca-certificate', path + '/ca-cert.pem']
        lab.run(['certtool', *how, '--load-privkey', key, '--template',
                 template, '--outfile', cert])
