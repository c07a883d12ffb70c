#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The work of libvirt-disks.sh.  argv: the NBD socket."""
import os
import sys

from libvirt_backup import command, until, with_libvirt

SOCK = sys.argv[1]
HERE = os.getcwd()


def source(export):
    return (f"<source protocol='nbd' name='{export}'>"
            f"<host transport='unix' socket='{SOCK}'/></source>")


def disk(target, export, fmt):
    return (f"<disk type='network' device='disk'>"
            f"<driver name='qemu' type='{fmt}'/>{source(export)}"
            f"<target dev='{target}' bus='virtio'/></disk>")


def write(name, text):
    with open(name, 'w', encoding='utf-8') as f:
        f.write(text)
    return name


def has(export, pattern, offset, length, fmt='raw'):
    """What a client of nbdelta reads there."""
    out = command('qemu-io', '-r', '-f', fmt, '-c',
                  f'read -P {pattern} {offset} {length}',
                  f'nbd+unix:///{export}?socket={SOCK}')
    assert 'failed' not in out, (export, out)


def define(v):
    text = v.xml('vm', []).replace('</devices>', disk('vda', 'vda', 'raw') +
                                   disk('vdb', 'vdb', 'qcow2') + '</devices>')
    v.virsh('define', write('vm.xml', text))
    v.virsh('start', '--paused', 'vm')


def snapshot(v, name):
    v.virsh('snapshot-create-as', 'vm', name, '--disk-only', '--no-metadata',
            '--diskspec', f'vda,file={HERE}/{name}.qcow2',
            '--diskspec', 'vdb,snapshot=no')


def layers(v):
    """A snapshot over an export is committed into it; one is pulled."""
    v.io('vm', 0, 'write -P 1 0 1M', 'flush')
    snapshot(v, 'first')
    v.io('vm', 0, 'write -P 2 64k 64k', 'flush')
    has('vda', 1, '64k', '64k')
    v.virsh('blockcommit', 'vm', 'vda', '--active', '--wait', '--pivot')
    has('vda', 2, '64k', '64k')
    v.io('vm', 0, 'write -P 3 128k 64k', 'flush')
    has('vda', 3, '128k', '64k')
    snapshot(v, 'second')
    v.io('vm', 0, 'write -P 4 192k 64k')
    v.virsh('blockpull', 'vm', 'vda', '--wait')
    chain = [n for n in v.nodes('vm') if n.endswith('second.qcow2')]
    assert len(chain) == 1, v.nodes('vm')
    out = command('qemu-img', 'info', '-U', 'second.qcow2')
    assert 'backing file' not in out, out


def copy(v):
    """The overlay is copied to an export, and back to where it was."""
    for export in 'copy', 'vda':
        xml = (f"<disk type='network' device='disk'><driver name='qemu' "
               f"type='raw'/>{source(export)}<target dev='vda'/></disk>")
        v.virsh('blockcopy', 'vm', 'vda', '--xml', write('dest.xml', xml),
                '--reuse-external', '--transient-job', '--wait', '--pivot')
        v.io('vm', 0, 'write -P 5 256k 64k', 'flush')
        for pattern, at in (1, '0'), (3, '128k'), (4, '192k'), (5, '256k'):
            has(export, pattern, at, '64k')
    v.virsh('blockcopy', 'vm', 'vda', f'{HERE}/file.raw', '--format', 'raw',
            '--transient-job', '--wait', '--finish')
    command('qemu-img', 'compare', '-U', '-f', 'raw', '-F', 'raw', 'file.raw',
            f'nbd+unix:///vda?socket={SOCK}')


BACKUP = ("<domainbackup>%s<disks><disk name='vda' backup='no'/>"
          "<disk name='vdb' type='file'><target file='%s'/>"
          "<driver type='qcow2'/></disk></disks></domainbackup>")


def push(v, name, since):
    path = f'{HERE}/{name}.qcow2'
    parent = f'<incremental>{since}</incremental>' if since else ''
    checkpoint = write('check.xml', f'<domaincheckpoint><name>{name}</name>'
                       "<disks><disk name='vda' checkpoint='no'/>"
                       "<disk name='vdb' checkpoint='bitmap'/></disks>"
                       '</domaincheckpoint>')
    v.virsh('backup-begin', 'vm', write('backup.xml',
                                        BACKUP % (parent, path)), checkpoint)
    until('the backup', lambda: 'None' in v.virsh('domjobinfo', 'vm'))
    done = v.virsh('domjobinfo', 'vm', '--completed', '--anystats')
    assert 'Completed' in done, done
    return path


def backups(v):
    """A qcow2 image in an export has bitmaps of QEMU's."""
    v.io('vm', 1, 'write -P 6 0 1M')
    full = push(v, 'full', None)
    v.io('vm', 1, 'write -P 7 512k 64k')
    increment = push(v, 'next', 'full')
    out = command('qemu-img', 'map', '-f', 'qcow2', increment)
    own = [line.split()[:2] for line in out.splitlines() if increment in line]
    assert own == [['0x80000', '0x10000']], out     # what has changed
    command('qemu-img', 'rebase', '-u', '-f', 'qcow2', '-b', full, '-F',
            'qcow2', increment)
    v.virsh('destroy', 'vm')            # QEMU stores its bitmaps
    command('qemu-img', 'compare', '-f', 'qcow2', '-F', 'qcow2', increment,
            f'nbd+unix:///vdb?socket={SOCK}')
    info = command('qemu-img', 'info', f'nbd+unix:///vdb?socket={SOCK}')
    assert 'name: next' in info, info
    for name in 'next', 'full':
        v.virsh('checkpoint-delete', 'vm', name, '--metadata')


def work(v):
    define(v)
    layers(v)
    copy(v)
    backups(v)


sys.exit(with_libvirt(work))
