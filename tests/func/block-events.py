# SPDX-License-Identifier: BSD-3-Clause
"""Events that requests of clients give rise to."""
import json
import shutil
import socket
import subprocess
import sys

from qmp_daemon import Daemon, QmpError

DISK = 64 << 20


def options(file):
    return {'driver': 'qcow2', 'node-name': 'disk',
            'file': {'driver': 'file', 'node-name': 'file', 'filename': file}}


def client(name, *commands, sock='nbd.sock'):
    p = subprocess.run(
        ['qemu-io', '-f', 'raw', *(x for c in commands for x in ('-c', c)),
         f'nbd+unix:///{name}?socket={sock}'],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return p.stdout.decode()


class Peer(Daemon):
    """QEMU's storage daemon."""

    def __init__(self, *arguments):
        a, b = socket.socketpair()
        self.process = subprocess.Popen(
            ['qemu-storage-daemon', '--chardev', f'socket,id=c,fd={b.fileno()}',
             '--monitor', 'c', *arguments], pass_fds=[b.fileno()])
        b.close()
        self.socket = a
        self.lines = a.makefile('r')
        self.events = []
        assert 'QMP' in self.receive()
        self.ask('qmp_capabilities')

    def end(self):
        self.ask('quit')
        assert self.process.wait(60) == 0
        self.lines.close()
        self.socket.close()


def threshold_of(daemon, node):
    return next(n['write_threshold']
                for n in daemon.ask('query-named-block-nodes')
                if n['node-name'] == node)


def refusal(daemon, **arguments):
    try:
        daemon.ask('block-set-write-threshold', **arguments)
    except QmpError as e:
        return str(e), e.text
    raise AssertionError('not refused')


def thresholds(daemon, sock):
    """What is told, of the image's file and of the disk, by the same writes."""
    told = [refusal(daemon, node_name='nosuch', write_threshold=1)]
    daemon.ask('block-set-write-threshold', node_name='file',
               write_threshold=2 << 20)
    told.append(threshold_of(daemon, 'file'))
    # Far inside of the disk: it is the file that has to grow.
    said = client('disk', 'write -P 1 32M 64k', 'write -P 2 0 1M', sock=sock)
    assert said.count('wrote') == 2, said
    told.append(threshold_of(daemon, 'file'))
    said = client('disk', 'write -P 3 16M 2M', 'write -P 4 20M 2M', sock=sock)
    assert said.count('wrote') == 2, said
    e = daemon.event('BLOCK_WRITE_THRESHOLD')
    assert e['amount-exceeded'] > 0, e
    e['amount-exceeded'] = 'some'   # where clusters are is the program's own
    told += [e, threshold_of(daemon, 'file')]

    daemon.ask('block-set-write-threshold', node_name='disk',
               write_threshold=1 << 20)
    client('disk', 'write 0 1M', 'write 512k 1M', 'write 2M 64k', sock=sock)
    told.append(daemon.event('BLOCK_WRITE_THRESHOLD'))
    daemon.ask('block-set-write-threshold', node_name='disk', write_threshold=9)
    daemon.ask('block-set-write-threshold', node_name='disk', write_threshold=0)
    client('disk', 'write 4M 64k', sock=sock)
    told.append(daemon.ask('query-named-block-nodes') and
                [x['event'] for x in daemon.events])
    return told


def thresholds_are_qemus(nbdelta):
    for name in 'ours.qcow2', 'theirs.qcow2':
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', name,
                        str(DISK)], check=True)
    with Daemon(nbdelta, '--blockdev', json.dumps(options('ours.qcow2')),
                '--export', 'nbd,id=d,node-name=disk,name=disk,writable=on') \
            as daemon:
        ours = thresholds(daemon, 'nbd.sock')
    assert ours[-1] == [], ours
    if shutil.which('qemu-storage-daemon'):
        peer = Peer('--blockdev', json.dumps(options('theirs.qcow2')),
                    '--nbd-server', 'addr.type=unix,addr.path=theirs.sock',
                    '--export', 'nbd,id=d,node-name=disk,name=disk,writable=on')
        theirs = thresholds(peer, 'theirs.sock')
        peer.end()
        assert ours == theirs, (ours, theirs)


def errors_are_told(nbdelta):
    """The first at once, of those that follow the last; each export for itself,
    and of an export that has gone without its node."""
    for name in 'r.raw', 'w.raw':
        with open(name, 'wb') as f:
            f.truncate(1 << 20)
    with Daemon(nbdelta) as daemon:
        for name, event, error in ('r', 'read', 5), ('w', 'write', 28):
            daemon.ask('blockdev-add', driver='blkdebug', node_name=name,
                       image={'driver': 'file', 'filename': name + '.raw'},
                       inject_error=[{'event': 'none', 'iotype': event,
                                      'errno': error}])
            daemon.ask('block-export-add', type='nbd', id='id-' + name,
                       node_name=name, name=name, writable=True)
        said = client('r', 'write 0 64k', 'read 0 4k', 'read 4k 4k', 'read 0 8k')
        assert said.count('Input/output error') == 3, said
        first = daemon.event('BLOCK_IO_ERROR', device='r')
        assert first == {'qom-path': '', 'device': 'r', 'node-name': 'r',
                         'operation': 'read', 'action': 'report',
                         'reason': 'Input/output error'}, first
        said = client('w', 'write 0 4k')
        assert 'No space left' in said, said
        other = daemon.event('BLOCK_IO_ERROR', device='w')
        assert other == {**first, 'device': 'w', 'node-name': 'w',
                         'operation': 'write',
                         'reason': 'No space left on device'}, other
        # Of the two errors that have followed, one is told.
        assert daemon.event('BLOCK_IO_ERROR', device='r') == first
        # An impossible request is no error of storage.
        client('r', 'read 2M 4k')
        # That of `w` is held when the export goes.
        said = client('w', 'write 0 4k')
        daemon.ask('block-export-del', id='id-w', mode='hard')
        daemon.event('BLOCK_EXPORT_DELETED', id='id-w')
        last = daemon.event('BLOCK_IO_ERROR', device='w')
        assert {**last, 'node-name': 'w'} == other, last
        assert not any(e['event'] == 'BLOCK_IO_ERROR' for e in daemon.events)


thresholds_are_qemus(sys.argv[1])
errors_are_told(sys.argv[1])
