# SPDX-License-Identifier: BSD-3-Clause
"""Backups that are pulled, for tests in Python."""
import nbd

from qmp_daemon import Daemon, QmpError

DIRTY_GRAIN = 65536
CHUNK = 1 << 20


def live(name):
    return f'nbd+unix:///{name}?socket=nbd.sock'


def connect(uri, *contexts):
    h = nbd.NBD()
    for context in contexts:
        h.add_meta_context(context)
    h.connect_uri(uri)
    return h


def start(program, names, fmt='qcow2'):
    """A daemon that serves the images NAME.img."""
    options = []
    for name in names:
        options += ['--blockdev', f'{fmt},node-name={name},file.driver=file,'
                    f'file.filename={name}.img,discard=unmap', '--export',
                    f'nbd,id={name},node-name={name},name={name},writable=on']
    return Daemon(program, *options)


def begin(daemon, *disks, **arguments):
    disks = [d if isinstance(d, dict) else {'node': d} for d in disks]
    return daemon.ask('backup-begin', disks=disks, **arguments)


def refused(daemon, text, command, **arguments):
    try:
        daemon.ask(command, **arguments)
    except QmpError as e:
        assert text in e.text, e.text
    else:
        raise AssertionError(f'{command} {arguments}: not refused')


def end(daemon, begun, success=True, **arguments):
    daemon.ask('backup-end', id=begun['id'], success=success, **arguments)
    data = daemon.event('BACKUP_ENDED')
    assert data == {'id': begun['id'],
                    'result': 'success' if success else 'failed'}, data


def dirty(disk):
    """The dirty extents of an export of a backup."""
    h = connect(disk['uri'], disk['context'])
    runs = []
    at = 0

    def extents(context, offset, entries, error):
        nonlocal at
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags & 1:
                runs.append((at, length))
            at += length

    while at < h.get_size():
        h.block_status(min(h.get_size() - at, 1 << 30), at, extents)
    h.shutdown()
    return runs


def pull_into(disk, data):
    """Bring what the disk was before, in a bytearray, to what it is there."""
    h = connect(disk['uri'])
    runs = dirty(disk) if 'context' in disk else [(0, h.get_size())]
    for offset, length in runs:
        for at in range(offset, offset + length, CHUNK):
            n = min(CHUNK, offset + length - at)
            data[at:at + n] = h.pread(n, at)
    h.shutdown()
