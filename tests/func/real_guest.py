# SPDX-License-Identifier: BSD-3-Clause
"""A real Linux guest in QEMU without KVM, which writes to ext4 and says what is
durable: Debian's kernel for clouds, and busybox.

    build(DIR)            DIR/vmlinuz and DIR/initrd.gz, once; from Debian
    make_disk(RAW, SIZE)  an empty file system for it
    Guest(DIR, IMAGE)     it runs; .wait(N) until step N is durable
    prove(RAW)            what a copy of its disk has: the last step, or a Fault

Step N: a file of random bytes under its own hash, block N % RING of the file
`ring` overwritten in place, N into the file `last`; each followed by a sync; at
last "STEP N" on the console.  So a copy of any later instant has at least N."""
import glob
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading

RING = 128
MODULES = ('virtio', 'virtio_ring', 'virtio_pci_modern_dev',
           'virtio_pci_legacy_dev', 'virtio_pci', 'virtio_blk',
           'virtio_console', 'crc32c-intel', 'libcrc32c', 'crc32c_generic',
           'crc16', 'mbcache', 'jbd2', 'ext4')

INIT = r'''#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for again in 1 2 3 4; do
    for m in /modules/*.ko; do insmod "$m" 2>/dev/null; done
done
mount -t ext4 /dev/vda /mnt || { echo "GUEST has no disk"; poweroff -f; }

# A guest agent: it freezes and thaws.
agent() {
    while ! exec 3<>"$1"; do sleep 1; done
    while :; do
        read -r line <&3 || { sleep 0.2; continue; }
        case $line in
        *guest-sync-delimited*)
            id=${line##*\"id\":}
            id=${id%%\}*}
            printf '\377{"return": %d}\n' $id >&3 ;;
        *guest-fsfreeze-freeze*)
            fsfreeze --freeze /mnt && printf '{"return": 1}\n' >&3 ;;
        *guest-fsfreeze-thaw*)
            fsfreeze --unfreeze /mnt
            printf '{"return": 1}\n' >&3 ;;
        *)
            printf '{"error": {"class": "CommandNotFound", "desc": "?"}}\n' >&3 ;;
        esac
    done
}
for port in /dev/vport*; do
    [ -c "$port" ] && agent "$port" 2>/dev/null &
done

n=$(cat /mnt/last 2>/dev/null || echo 0)
[ -e /mnt/ring ] ||
    dd if=/dev/zero of=/mnt/ring bs=4096 count=RING 2>/dev/null
sync
echo "STEP $n"
while :; do
    n=$((n + 1))
    dir=/mnt/$((n % 16))
    mkdir -p $dir
    rm -f $dir/$((n % 320)).*
    dd if=/dev/urandom of=$dir/new bs=4096 count=$((n % 40 + 1)) 2>/dev/null
    sync
    sum=$(sha256sum <$dir/new)
    mv $dir/new $dir/$((n % 320)).${sum%% *}
    printf '%4095d\n' $n |
        dd of=/mnt/ring bs=4096 seek=$((n % RING)) conv=notrunc 2>/dev/null
    [ $((n % 25)) = 0 ] && fstrim /mnt 2>/dev/null
    echo $n >/mnt/last.new
    sync
    mv /mnt/last.new /mnt/last
    sync
    echo "STEP $n"
done
'''.replace('RING', str(RING))


class Unavailable(Exception):
    """There can be no guest here; the text says why."""


class Fault(Exception):
    """A copy of the disk is not what the guest has written."""


def _run(*words, **how):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, **how).stdout


def _packages(where):
    """Debian's kernel and busybox, unpacked."""
    try:
        meta = _run('apt-cache', 'depends', 'linux-image-cloud-amd64')
        kernel = re.search(r'Depends: (linux-image\S+)', meta).group(1)
        _run('apt-get', 'download', '-qq', kernel, 'busybox-static', cwd=where)
        for package in glob.glob(where + '/*.deb'):
            _run('dpkg', '-x', package, where + '/root')
    except (OSError, subprocess.CalledProcessError, AttributeError) as e:
        raise Unavailable(f'no kernel from Debian: {e}') from e


def _entry(archive, name, mode, data=b''):
    """A file in the format that the kernel unpacks: cpio, "newc"."""
    encoded = name.encode() + b'\0'
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0]
    archive.write(b'070701' + b''.join(b'%08X' % f for f in fields) + encoded)
    archive.write(b'\0' * (-(110 + len(encoded)) % 4) + data)
    archive.write(b'\0' * (-len(data) % 4))


def _read(path):
    with open(path, 'rb') as f:
        return f.read()


def _pack(root, target):
    with gzip.open(target, 'wb', compresslevel=1) as archive:
        for name in ('bin', 'modules', 'dev', 'proc', 'sys', 'mnt'):
            _entry(archive, name, 0o40755)
        _entry(archive, 'init', 0o100755, INIT.encode())
        _entry(archive, 'bin/busybox', 0o100755, _read(root + '/bin/busybox'))
        for name in MODULES:
            for found in glob.glob(f'{root}/lib/modules/**/{name}.ko',
                                   recursive=True):
                _entry(archive, f'modules/{name}.ko', 0o100644, _read(found))
        _entry(archive, 'TRAILER!!!', 0)


def build(where):
    os.makedirs(where, exist_ok=True)
    if not os.path.exists(where + '/vmlinuz'):
        with tempfile.TemporaryDirectory() as work:
            _packages(work)
            shutil.copytree(work + '/root', where + '/root',
                            dirs_exist_ok=True, symlinks=True)
        kernel, = glob.glob(where + '/root/boot/vmlinuz-*')
        shutil.move(kernel, where + '/vmlinuz')
    _pack(where + '/root', where + '/initrd.gz')


def make_disk(raw, size):
    with open(raw, 'wb') as f:
        f.truncate(size)
    _run('mkfs.ext4', '-q', '-F', raw)


class Guest:
    """The QEMU that runs a guest over the qcow2 file @image: its monitor is
    qemu.sock, the agent's socket agent.sock, in the current directory."""

    def __init__(self, where, image, ready=300):
        self.step = -1
        self.console = []
        self.changed = threading.Condition()
        self.process = subprocess.Popen(
            ['qemu-system-x86_64', '-accel', 'tcg', '-m', '256', '-nodefaults',
             '-display', 'none', '-no-reboot', '-serial', 'stdio',
             '-kernel', where + '/vmlinuz', '-initrd', where + '/initrd.gz',
             # The timer of a busy machine looks broken.
             '-append', 'console=ttyS0 quiet panic=-1 no_timer_check',
             '-qmp', 'unix:qemu.sock,server=on,wait=off',
             '-blockdev', 'qcow2,node-name=vda,discard=unmap,file.driver=file,'
             f'file.filename={image},file.discard=unmap',
             '-device', 'virtio-blk-pci,drive=vda,id=vda',
             '-chardev', 'socket,id=a,path=agent.sock,server=on,wait=off',
             '-device', 'virtio-serial', '-device',
             'virtserialport,chardev=a,name=org.qemu.guest_agent.0'],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            errors='replace')
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        self.first = self.wait(0, ready)

    def _read(self):
        for line in self.process.stdout:
            found = re.match(r'STEP (\d+)\s*$', line)
            with self.changed:
                if found:
                    self.step = int(found.group(1))
                else:
                    self.console.append(line)
                self.changed.notify_all()
        with self.changed:
            self.process.wait()
            self.changed.notify_all()

    def wait(self, step, limit=300):
        """Until this step is durable; returns the last one."""
        with self.changed:
            done = self.changed.wait_for(
                lambda: self.step >= step or
                self.process.returncode is not None, limit)
            if not done or self.step < step:
                raise Fault(f'the guest is at {self.step}, not at {step}: '
                            + ''.join(self.console[-20:]))
            return self.step

    def more(self, steps):
        return self.wait(self.step + steps)

    def kill(self):
        """As kill -9; returns the last step that was durable."""
        self.process.kill()
        self.thread.join()
        self.process.stdout.close()
        return self.step


def _check(raw, replay):
    """Replay of the journal, and then nothing is to be repaired."""
    for words in ((['e2fsck', '-p', raw],) if replay else ()) + (
            ['e2fsck', '-fn', raw],):
        p = subprocess.run(words, stdout=subprocess.PIPE, text=True,
                           stderr=subprocess.STDOUT, check=False)
        if p.returncode not in ((0, 1) if '-p' in words else (0,)):
            raise Fault(f'{words}: {p.stdout}')


def _prove_ring(path, last):
    with open(path, 'rb') as f:
        for block in range(RING):
            data = f.read(4096)
            text = data.strip(b'\0 \n')
            n = int(text) if text.isdigit() else 0 if not text else -1
            want = {max(0, last - (last - block) % RING)}
            if (last + 1) % RING == block:
                want.add(last + 1)
            if n not in want:
                raise Fault(f'block {block} of the ring has {n}, and not '
                            f'{want}: the last step is {last}')


def prove(raw, clean=False):
    """The last step that is in @raw, a copy.  @clean: it was frozen, so there
    is no journal to replay."""
    with tempfile.TemporaryDirectory() as work:
        copy = work + '/disk'
        _run('cp', '--sparse=always', raw, copy)
        if clean and 'needs_recovery' in _run('dumpe2fs', '-h', copy):
            raise Fault('the file system was not frozen')
        _check(copy, not clean)
        _run('debugfs', '-R', f'rdump / {work}', copy)
        for path in glob.glob(work + '/[0-9]*/[0-9]*.*'):
            with open(path, 'rb') as f:
                if hashlib.sha256(f.read()).hexdigest() != path.split('.')[-1]:
                    raise Fault(f'{path} has other bytes')
        last = 0
        if os.path.exists(work + '/last'):
            with open(work + '/last', encoding='ascii') as f:
                last = int(f.read())
        if os.path.exists(work + '/ring'):
            _prove_ring(work + '/ring', last)
        return last
