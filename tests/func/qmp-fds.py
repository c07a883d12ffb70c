# SPDX-License-Identifier: BSD-3-Clause
# Descriptors that a client passes.  argv: the program.  raw, disk.qcow2 and
# names.qcow2, which names /dev/fdset/0, are there.
import array
import json
import os
import resource
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
from qmp_daemon import Daemon, QmpError  # noqa: E402


def send(sock, data, *fds):
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                           array.array('i', fds))])


class Client(Daemon):
    passing = ()

    def ask_with(self, fds, command, **arguments):
        """As ask(), with descriptors that come along."""
        self.passing = fds
        try:
            return self.ask(command, **arguments)
        finally:
            self.passing = ()

    def send(self, data):
        if self.passing:
            send(self.socket, data, *self.passing)
        else:
            super().send(data)

    def says(self, text, command, fds=(), **arguments):
        try:
            if fds:
                self.ask_with(fds, command, **arguments)
            else:
                self.ask(command, **arguments)
        except QmpError as e:
            assert str(e) == 'GenericError', e
            assert e.text == text, f'{command} {arguments}: {e.text}'
        else:
            raise AssertionError(f'{command} {arguments}: not refused')

    def again(self):
        """Leave, and come back."""
        self.lines.close()
        self.socket.close()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect('qmp.sock')
        self.lines = self.socket.makefile('r')
        assert 'QMP' in self.receive()
        self.ask('qmp_capabilities')

    def open_files(self, of):
        """How many descriptors the daemon has of a file."""
        count = 0
        where = f'/proc/{self.process.pid}/fd'
        for fd in os.listdir(where):
            try:
                count += os.path.samestat(os.stat(f'{where}/{fd}'),
                                          os.stat(of))
            except FileNotFoundError:  # it was closed meanwhile
                pass
        return count

    def comes_to(self, of, count):
        for _ in range(500):
            if self.open_files(of) == count:
                return
            time.sleep(0.02)
        raise AssertionError(f'{of}: {self.open_files(of)}, not {count}')


def names(d):
    none = 'No file descriptor supplied via SCM_RIGHTS'
    fd = os.open('raw', os.O_RDONLY)
    d.says(none, 'getfd', fdname='a')
    d.says("Parameter 'fdname' expects a name not starting with a digit",
           'getfd', (fd,), fdname='0a')
    assert d.open_files('raw') == 0
    d.ask_with((fd, fd, fd), 'getfd', fdname='a')
    assert d.open_files('raw') == 1, 'of several the first counts'
    d.ask_with((fd,), 'getfd', fdname='a')
    assert d.open_files('raw') == 1, 'what had the name is closed'
    d.says("File descriptor named 'b' not found", 'closefd', fdname='b')
    d.ask('closefd', fdname='a')
    assert d.open_files('raw') == 0

    # What came with no command, or with one that does not take it.
    send(d.socket, b' ', fd)
    d.comes_to('raw', 1)
    d.ask('query-version')
    d.ask('getfd', fdname='late')
    d.says(none, 'getfd', fdname='later')
    send(d.socket, b' ', fd)
    d.comes_to('raw', 2)
    send(d.socket, b' ', fd)
    d.ask('query-version')
    assert d.open_files('raw') == 2, 'another one takes its place'
    d.ask('closefd', fdname='late')

    for i in range(64):
        d.ask_with((fd,), 'getfd', fdname=f'n{i}')
    d.says('this client has 64 descriptors with names already', 'getfd', (fd,),
           fdname='more')
    assert d.open_files('raw') == 64
    d.again()
    d.comes_to('raw', 0)
    d.says("File descriptor named 'n0' not found", 'closefd', fdname='n0')
    os.close(fd)


def sockets(d):
    """A socket by its name: to listen on, and to connect with."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind('passed.sock')
    listening.listen()
    fd = os.open('raw', os.O_RDONLY)
    d.ask('nbd-server-stop')
    server = {'type': 'fd', 'data': {'str': 's'}}
    d.says("File descriptor named 's' has not been found", 'nbd-server-start',
           addr=server)
    d.says("File descriptor named '0' has not been found", 'nbd-server-start',
           addr={'type': 'fd', 'data': {'str': '0'}})
    d.ask_with((fd,), 'getfd', fdname='s')
    d.says("File descriptor 's' is not a socket", 'nbd-server-start',
           addr=server)
    assert d.open_files('raw') == 0, 'it is used up'
    d.ask_with((listening.fileno(),), 'getfd', fdname='s')
    d.ask('nbd-server-start', addr=server)
    d.says("File descriptor named 's' not found", 'closefd', fdname='s')
    d.ask('blockdev-add', driver='null-co', node_name='n', size=1 << 20)
    d.ask('block-export-add', type='nbd', id='e', node_name='n')

    connected = socket.socket(socket.AF_UNIX)
    connected.connect('passed.sock')
    d.ask_with((connected.fileno(),), 'getfd', fdname='c')
    try:  # the server's greeting is for whoever has the other end
        d.ask('blockdev-add', driver='nbd', node_name='r', export='n',
              read_only=True,
              server={'type': 'fd', 'str': 'c'})
        d.ask('blockdev-del', node_name='r')
    finally:
        d.ask('nbd-server-stop')
    d.says("File descriptor named 'c' not found", 'closefd', fdname='c')
    d.ask('blockdev-del', node_name='n')
    listening.close()
    connected.close()
    os.close(fd)


def file_node(d, name, n, **more):
    d.ask('blockdev-add', driver='file', node_name=name,
          filename=f'/dev/fdset/{n}', **more)


def sets(d):
    r = os.open('raw', os.O_RDONLY)
    rw = os.open('raw', os.O_RDWR)
    d.says("Parameter 'fdset-id' expects a non-negative value", 'add-fd', (r,),
           fdset_id=-1)
    assert d.ask_with((r,), 'add-fd', opaque='r')['fdset-id'] == 0
    assert d.ask_with((r,), 'add-fd', fdset_id=2)['fdset-id'] == 2
    assert d.ask_with((r,), 'add-fd')['fdset-id'] == 1
    taken = d.ask_with((rw,), 'add-fd', fdset_id=0)['fd']
    listed = d.ask('query-fdsets')
    assert [s['fdset-id'] for s in listed] == [2, 1, 0], listed
    assert [f.get('opaque') for f in listed[2]['fds']] == ['r', None], listed
    assert d.open_files('raw') == 4
    d.again()
    assert d.ask('query-fdsets') == listed, 'sets stay'

    # The access mode, and who closes what.
    file_node(d, 'w', 0)
    assert d.open_files('raw') == 5
    d.says('Failed to find file descriptor with matching flags=0x2',
           'blockdev-add', driver='file', node_name='x',
           filename='/dev/fdset/1')
    d.says('Failed to find fdset /dev/fdset/9', 'blockdev-add', driver='file',
           node_name='x', filename='/dev/fdset/9')
    d.says('Could not parse fdset /dev/fdset/1x', 'blockdev-add',
           driver='file', node_name='x', filename='/dev/fdset/1x')
    d.ask('remove-fd', fdset_id=2)
    d.says("File descriptor named 'fdset-id:2' not found", 'remove-fd',
           fdset_id=2)
    d.says(f"File descriptor named 'fdset-id:1, fd:{taken}' not found",
           'remove-fd', fdset_id=1, fd=taken)
    d.ask('remove-fd', fdset_id=0, fd=taken)
    d.ask('remove-fd', fdset_id=0)
    assert d.ask('query-fdsets')[1] == {'fdset-id': 0, 'fds': []}
    d.ask('blockdev-del', node_name='w')
    assert [s['fdset-id'] for s in d.ask('query-fdsets')] == [1]
    file_node(d, 'r', 1, auto_read_only=True)
    assert d.ask('query-named-block-nodes')[0]['ro']
    d.ask('blockdev-del', node_name='r')
    d.ask('remove-fd', fdset_id=1)
    assert d.open_files('raw') == 0

    # The locks belong to the open file, which we have, too.
    d.ask_with((rw,), 'add-fd', fdset_id=0)
    file_node(d, 'a', 0)
    file_node(d, 'b', 0)
    other = {'driver': 'file', 'filename': 'raw', 'node-name': 'c'}
    d.refuses('blockdev-add', **other)
    d.ask('blockdev-del', node_name='a')
    d.refuses('blockdev-add', **other)
    d.ask('blockdev-del', node_name='b')
    d.ask('blockdev-add', **other)
    d.ask('blockdev-del', node_name='c')

    # An image's name for another is no set.
    d.refuses('blockdev-add', driver='qcow2', node_name='n',
              file={'driver': 'file', 'filename': 'names.qcow2'})
    d.ask('remove-fd', fdset_id=0)
    os.close(r)
    os.close(rw)


def reopened(d):
    """A node that changes its access mode takes the other descriptor."""
    r = os.open('disk.qcow2', os.O_RDONLY)
    rw = os.open('disk.qcow2', os.O_RDWR)
    d.ask_with((r,), 'add-fd', fdset_id=5)
    options = {'driver': 'qcow2', 'node-name': 'q', 'file': 'f'}
    protocol = {'driver': 'file', 'filename': '/dev/fdset/5', 'node-name': 'f'}
    d.ask('blockdev-add', **protocol, read_only=True)
    d.ask('blockdev-add', **options, read_only=True)
    both = [dict(protocol, **{'read-only': False}),
            dict(options, **{'read-only': False})]
    d.refuses('blockdev-reopen', options=both)
    d.ask_with((rw,), 'add-fd', fdset_id=5)
    d.ask('blockdev-reopen', options=both)
    assert not any(n['ro'] for n in d.ask('query-named-block-nodes'))
    d.ask('block-dirty-bitmap-add', node='q', name='b', persistent=True)
    back = [dict(options, **{'read-only': True}),
            dict(protocol, **{'read-only': True})]
    d.ask('blockdev-reopen', options=back)
    assert all(n['ro'] for n in d.ask('query-named-block-nodes'))
    d.ask('blockdev-del', node_name='q')
    d.ask('blockdev-del', node_name='f')
    d.ask('remove-fd', fdset_id=5)
    assert d.open_files('disk.qcow2') == 0
    os.close(r)
    os.close(rw)


def limit(d):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 1200 or hard == resource.RLIM_INFINITY, hard
    fd = os.open('raw', os.O_RDONLY)
    message = json.dumps({'execute': 'add-fd',
                          'arguments': {'fdset-id': 0}}).encode()
    for _ in range(1024):
        send(d.socket, message, fd)
        d.receive()
    d.says('there are 1024 descriptors in sets already', 'add-fd', (fd,))
    d.ask('remove-fd', fdset_id=0)
    d.comes_to('raw', 0)
    os.close(fd)


with Client(sys.argv[1]) as daemon:
    names(daemon)
    sets(daemon)
    reopened(daemon)
    limit(daemon)
    sockets(daemon)
