# SPDX-License-Identifier: BSD-3-Clause
# See qcow2-overlap.sh.  argv: nbdelta.
import json
import shutil
import socket
import struct
import subprocess
import sys

from qmp_daemon import Daemon

CLUSTER = 65536
MASK = 0x00fffffffffffe00


class Image:
    def __init__(self, name):
        self.name = name
        with open(name, 'rb') as f:
            self.bytes = f.read()

    def u64(self, at):
        return struct.unpack('>Q', self.bytes[at:at + 8])[0]

    def places(self):
        """A cluster of each kind of metadata."""
        l1, reftable = self.u64(40), self.u64(48)
        at = struct.unpack('>I', self.bytes[100:104])[0]
        directory = None
        while True:
            kind, length = struct.unpack('>II', self.bytes[at:at + 8])
            if kind == 0:
                break
            if kind == 0x23852875:
                directory = self.u64(at + 24)
            at += 8 + (length + 7 & ~7)
        snapshots = self.u64(64)
        inactive = self.u64(snapshots)
        return {'snapshot-table': snapshots, 'inactive-l1': inactive,
                'inactive-l2': self.u64(inactive) & MASK,
                'main-header': 0, 'active-l1': l1,
                'active-l2': self.u64(l1) & MASK, 'refcount-table': reftable,
                'refcount-block': self.u64(reftable) & MASK,
                'bitmap-directory': directory}

    def is_corrupt(self):
        return self.bytes[:4] == b'QFI\xfb' and bool(self.u64(72) & 2)


def make():
    for command in (
            'create -q -f qcow2 base.qcow2 64M',
            'bitmap --add base.qcow2 b'):
        subprocess.run(['qemu-img', *command.split()], check=True)
    # The L2 table and the data of the first cluster are there.
    write = ['qemu-io', '-c', 'write -P 1 0 64k', 'base.qcow2']
    subprocess.run(write, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(['qemu-img', 'snapshot', '-c', 's', 'base.qcow2'],
                   check=True)
    subprocess.run(write, check=True, stdout=subprocess.DEVNULL)


def lie(name, place):
    """The cluster at @place counts as free, and is the first that does."""
    shutil.copy('base.qcow2', name)
    block = Image(name).places()['refcount-block']
    with open(name, 'r+b') as f:
        f.seek(block)
        f.write(b'\0\1' * (place // CLUSTER) + b'\0\0')


def choices(kind):
    return [None, 'none', 'constant', 'cached', 'all',
            {'template': 'none', kind: True}, {'template': 'all', kind: False},
            {'bitmap-directory': False, kind: True}]


def options(name, choice):
    o = {'driver': 'qcow2', 'file': {'driver': 'file', 'filename': name}}
    return o if choice is None else {**o, 'overlap-check': choice}


def dotted(choice):
    if choice is None:
        return []
    if isinstance(choice, str):
        return [f'overlap-check={choice}']
    words = {True: 'on', False: 'off'}
    return [f'overlap-check.{k}={words.get(v, v)}' for k, v in choice.items()]


def qemu_refuses(name, choice):
    image = ','.join(['driver=qcow2', f'file.filename={name}',
                      *dotted(choice)])
    p = subprocess.run(['qemu-io', '--image-opts', '-c',
                        'write -P 238 1M 64k', image],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return Image(name).is_corrupt(), p.stdout.decode()



def client(node, *commands):
    """What each of the commands says."""
    p = subprocess.run(
        ['qemu-io', '-f', 'raw', *(x for c in commands for x in ('-c', c)),
         f'nbd+unix:///{node}?socket=nbd.sock'],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return p.stdout.decode()


def client_writes(node):
    """Writes fail until the end, or never; what is there can be read."""
    said = client(node, 'write -P 238 1M 64k', 'write -P 238 2M 64k',
                  'read -P 1 0 64k')
    assert 'read 65536' in said and 'verification' not in said, said
    failed = said.count('write failed: Input/output error')
    assert failed in (0, 2) and said.count('wrote') == 2 - failed, said
    return failed == 0


def ours_refuses(daemon, name, node, choice, place):
    before = Image(name).bytes
    daemon.ask('blockdev-add', node_name=node, **options(name, choice))
    daemon.ask('block-export-add', type='nbd', id=node, node_name=node,
               name=node, writable=True)
    wrote = client_writes(node)
    corrupt = Image(name).is_corrupt()
    assert corrupt != wrote, (name, choice, wrote)
    if corrupt:
        event = daemon.event('BLOCK_IMAGE_CORRUPTED', **{'node-name': node})
        assert event['device'] == '' and event['fatal'], event
        assert event['size'] == CLUSTER and event['offset'] == place, event
        assert event['msg'], event
        # Nothing has changed except for the mark.
        after = bytearray(Image(name).bytes)
        after[72:80] = before[72:80]
        assert bytes(after[place:place + CLUSTER]) == \
            before[place:place + CLUSTER], (name, choice)
    daemon.ask('block-export-del', id=node, mode='hard')
    daemon.event('BLOCK_EXPORT_DELETED', id=node)
    daemon.ask('blockdev-del', node_name=node)
    return corrupt


def each_kind(daemon):
    places = Image('base.qcow2').places()
    assert all(p is not None for p in places.values())
    count = 0
    for kind, place in places.items():
        hit = set()
        for choice in choices(kind):
            lie('theirs.qcow2', place)
            lie('ours.qcow2', place)
            theirs, said = qemu_refuses('theirs.qcow2', choice)
            count += 1
            ours = ours_refuses(daemon, 'ours.qcow2', f'n{count}', choice,
                                place)
            # Here the header is never overwritten.
            assert ours == theirs or kind == 'main-header' and ours, \
                (kind, choice, said)
            hit.add(theirs)
        assert hit == {True, False}, kind


def a_table_in_another(daemon):
    """The L1 table is where the bitmap directory is: no entry is written."""
    shutil.copy('base.qcow2', 'ours.qcow2')
    directory = Image('ours.qcow2').places()['bitmap-directory']
    with open('ours.qcow2', 'r+b') as f:
        f.seek(24)
        f.write(struct.pack('>Q', 8 << 29))     # 8 L1 entries
        f.seek(36)
        f.write(struct.pack('>IQ', 8, directory))
    daemon.ask('blockdev-add', node_name='t', **options('ours.qcow2', None))
    daemon.ask('block-export-add', type='nbd', id='t', node_name='t', name='t',
               writable=True)
    assert 'Input/output error' in client('t', 'write 3G 64k')
    event = daemon.event('BLOCK_IMAGE_CORRUPTED', **{'node-name': 't'})
    assert event['offset'] == directory and event['fatal'], event
    daemon.ask('block-export-del', id='t', mode='hard')
    daemon.event('BLOCK_EXPORT_DELETED', id='t')
    daemon.ask('blockdev-del', node_name='t')
    after = Image('ours.qcow2')
    assert after.is_corrupt()
    assert after.u64(directory + 6 * 8) == 0    # behind the only bitmap


def words_are_checked(daemon):
    for bad in 'some', {'template': 'some'}, {'active-l3': True}, 7, \
            {'active-l1': 'perhaps'}, None:
        daemon.refuses('blockdev-add', node_name='bad', **{
            **options('base.qcow2', 'all'), 'overlap-check': bad})


def reopened(daemon):
    """The choice is the last one that was made; one that is undone is not."""
    places = Image('base.qcow2').places()
    lie('ours.qcow2', places['active-l2'])
    daemon.ask('blockdev-add', node_name='n', **options('ours.qcow2', 'none'))
    daemon.ask('blockdev-add', driver='null-co', node_name='other')
    daemon.refuses('blockdev-reopen', options=[
        {'node-name': 'n', **options('ours.qcow2', 'none')},
        {'node-name': 'other', 'driver': 'null-co', 'size': 7}])
    daemon.ask('blockdev-reopen', options=[
        {'node-name': 'n', **options('ours.qcow2', None)}])
    daemon.ask('block-export-add', type='nbd', id='n', node_name='n', name='n',
               writable=True)
    assert not client_writes('n')
    daemon.event('BLOCK_IMAGE_CORRUPTED', **{'node-name': 'n'})
    daemon.ask('block-export-del', id='n', mode='hard')
    daemon.event('BLOCK_EXPORT_DELETED', id='n')
    daemon.ask('blockdev-del', node_name='n')


def read_only(daemon):
    """A read that finds a table at no cluster: the event is not fatal, and the
    image stays as it is."""
    shutil.copy('base.qcow2', 'ours.qcow2')
    l1 = Image('ours.qcow2').places()['active-l1']
    with open('ours.qcow2', 'r+b') as f:
        f.seek(l1)
        f.write(struct.pack('>Q', 1 << 63 | 0x12200))
    before = Image('ours.qcow2').bytes
    daemon.ask('blockdev-add', node_name='r', read_only=True,
               **options('ours.qcow2', None))
    daemon.ask('block-export-add', type='nbd', id='r', node_name='r', name='r')
    p = subprocess.run(
        ['qemu-io', '-f', 'raw', '-r', '-c', 'read 0 64k', '-c', 'read 0 64k',
         'nbd+unix:///r?socket=nbd.sock'], stdout=subprocess.PIPE)
    assert p.stdout.count(b'Input/output error') == 2, p.stdout
    event = daemon.event('BLOCK_IMAGE_CORRUPTED', **{'node-name': 'r'})
    assert event['fatal'] is False and event['offset'] == 0x12200, event
    daemon.ask('block-export-del', id='r', mode='hard')
    daemon.event('BLOCK_EXPORT_DELETED', id='r')
    daemon.ask('blockdev-del', node_name='r')
    assert not any(e['event'] == 'BLOCK_IMAGE_CORRUPTED'
                   for e in daemon.events), daemon.events
    assert Image('ours.qcow2').bytes == before


def same_members(mine):
    """QEMU's event has the same members, of the same types."""
    lie('theirs.qcow2', Image('base.qcow2').places()['active-l2'])
    a, b = socket.socketpair()
    p = subprocess.Popen(
        ['qemu-storage-daemon', '--chardev', f'socket,id=c,fd={b.fileno()}',
         '--monitor', 'c', '--blockdev',
         json.dumps({'node-name': 'n', **options('theirs.qcow2', None)}),
         '--nbd-server', 'addr.type=unix,addr.path=theirs.sock',
         '--export', 'nbd,id=n,node-name=n,name=n,writable=on'],
        pass_fds=[b.fileno()])
    b.close()
    lines = a.makefile('r')
    a.sendall(b'{"execute": "qmp_capabilities"}')
    while 'return' not in json.loads(lines.readline()):
        pass
    subprocess.run(['qemu-io', '-f', 'raw', '-c', 'write 1M 64k',
                    'nbd+unix:///n?socket=theirs.sock'],
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        event = json.loads(lines.readline())
        if event.get('event') == 'BLOCK_IMAGE_CORRUPTED':
            break
    a.sendall(b'{"execute": "quit"}')
    assert p.wait(60) == 0
    lines.close()
    a.close()
    theirs = event['data']
    assert {k: type(v) for k, v in theirs.items()} == \
        {k: type(v) for k, v in mine.items()}, (theirs, mine)
    for key in 'device', 'offset', 'size', 'fatal':
        assert theirs[key] == mine[key], (key, theirs, mine)


def event_of_a_device(nbdelta):
    """An emulator's event names the device; then QEMU's storage daemon's."""
    lie('ours.qcow2', Image('base.qcow2').places()['active-l2'])
    with Daemon(nbdelta, '--vm-compat', '--drive',
                'id=drive0,if=none,format=qcow2,file=ours.qcow2') as daemon:
        daemon.ask('human-monitor-command', **{
            'command_line': 'qemu-io drive0 "write 1M 64k"'})
        event = daemon.event('BLOCK_IMAGE_CORRUPTED', device='drive0')
    same_members({**event, 'device': ''})


make()
with Daemon(sys.argv[1]) as daemon:
    each_kind(daemon)
    a_table_in_another(daemon)
    words_are_checked(daemon)
    reopened(daemon)
    read_only(daemon)
event_of_a_device(sys.argv[1])
