# Monitors on sockets, seen from the other side.  argv: the program.
import json
import os
import socket
import subprocess
import sys
import time

nbdelta = sys.argv[1]
CAPABLE = {'execute': 'qmp_capabilities'}


class Client:
    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(60)
        self.file = sock.makefile('r')

    def send(self, *messages):
        # All of it at once, and no line end behind it.
        self.sock.sendall(''.join(map(json.dumps, messages)).encode())

    def recv(self):
        line = self.file.readline()
        return json.loads(line) if line else None

    def greeted(self):
        assert 'QMP' in self.recv()
        self.send(CAPABLE)
        assert self.recv() == {'return': {}}
        return self

    def ask(self, command, **arguments):
        self.send({'execute': command, 'arguments': arguments})
        return self.recv()

    def ended(self):
        return self.recv() is None


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    for _ in range(600):
        try:
            s.connect(path)
            return Client(s)
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f'nobody listens at {path}')


def listener(path):
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    s.listen()
    s.settimeout(60)
    return s


def start(*args, **kwargs):
    return subprocess.Popen([nbdelta, 'serve', *args], **kwargs)


def quit(p, client):
    client.send({'execute': 'quit'})
    while client.recv() is not None:
        pass
    assert p.wait(60) == 0


# A descriptor that was inherited; commands were sent before it started.
ours, theirs = socket.socketpair()
early = Client(ours)
early.send(CAPABLE, {'execute': 'query-name', 'id': 7})
p = start('--chardev', f'socket,id=c,fd={theirs.fileno()}', '--monitor', 'c',
          pass_fds=[theirs.fileno()])
theirs.close()
assert 'QMP' in early.recv()
assert early.recv() == {'return': {}}
assert early.recv() == {'return': {}, 'id': 7}
quit(p, early)

# A listening one, with clients in its queue.
sock = listener('inherited')
waiting = connect('inherited')
waiting.send(CAPABLE, {'execute': 'query-name', 'id': 7})
p = start('--chardev',
          f'socket,id=c,fd={sock.fileno()},server=on,wait=off',
          '--monitor', 'c', pass_fds=[sock.fileno()])
assert 'QMP' in waiting.recv()
assert waiting.recv() == {'return': {}}
assert waiting.recv() == {'return': {}, 'id': 7}
quit(p, waiting)
sock.close()

# Several monitors at once; all of them see events, in the same order.
with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
p = start('--chardev', 'socket,id=a,path=a.sock,server=on,wait=off',
          '--chardev', f'socket,id=b,host=127.0.0.1,port={port},server=on,'
          'wait=off', '--monitor', 'a', '--monitor', 'chardev=b',
          '--qmp', 'c.sock')
clients = [connect('c.sock').greeted(), connect('a.sock').greeted(),
           connect('a.sock').greeted(),
           Client(socket.create_connection(('127.0.0.1', port))).greeted()]
c = clients[0]
assert c.ask('blockdev-add', driver='null-co', size=65536,
             **{'node-name': 'n'}) == {'return': {}}
assert c.ask('nbd-server-start', addr={
    'type': 'unix', 'data': {'path': 'nbd.sock'}}) == {'return': {}}
for name in 'x', 'y':
    assert c.ask('block-export-add', type='nbd', id=name, name=name,
                 **{'node-name': 'n'}) == {'return': {}}
c.send({'execute': 'nbd-server-stop'})
for each in clients:
    ids = [each.recv()['data']['id'] for _ in range(2)]
    assert ids == ['y', 'x'], ids  # the newest first
assert c.recv() == {'return': {}}
quit(p, c)
assert all(each.ended() for each in clients[1:])
assert not os.path.exists('a.sock')

# It waits for its first client, whom it greets once.
p = start('--chardev', 'socket,id=a,path=a.sock,server=on', '--monitor', 'a',
          '--qmp', 'c.sock', stderr=subprocess.DEVNULL)
client = connect('a.sock')
client.send(CAPABLE, {'execute': 'query-name', 'id': 1})
assert 'QMP' in client.recv()
assert client.recv() == {'return': {}}
assert client.recv() == {'return': {}, 'id': 1}
quit(p, client)

# Told to stop while it waits, it ends.
p = start('--chardev', 'socket,id=a,path=a.sock,server=on', '--monitor', 'a',
          stderr=subprocess.PIPE, text=True)
assert 'waiting' in p.stderr.readline()
p.terminate()
assert p.wait(60) == 1
assert 'told to stop' in p.stderr.read()

# It connects over TCP.
with socket.create_server(('127.0.0.1', 0)) as sock:
    sock.settimeout(60)
    p = start('--chardev',
              f'socket,id=a,host=127.0.0.1,port={sock.getsockname()[1]}',
              '--monitor', 'a')
    quit(p, Client(sock.accept()[0]).greeted())

# It connects, once.
sock = listener('there')
p = start('--chardev', 'socket,id=a,path=there', '--monitor', 'a',
          '--qmp', 'c.sock')
client = Client(sock.accept()[0]).greeted()
client.sock.shutdown(socket.SHUT_RDWR)
other = connect('c.sock').greeted()
sock.settimeout(0.3)
try:
    sock.accept()
    raise AssertionError('it has connected again')
except socket.timeout:
    pass
quit(p, other)
sock.close()

# It connects as soon as somebody is there, and again.
p = start('--chardev', 'socket,id=a,path=later,reconnect=1', '--monitor', 'a',
          '--qmp', 'c.sock')
other = connect('c.sock').greeted()
sock = listener('later')
for _ in range(2):
    client = Client(sock.accept()[0])
    # Before it was greeted.
    client.send(CAPABLE, {'execute': 'query-name', 'id': 1})
    assert 'QMP' in client.recv()
    assert client.recv() == {'return': {}}
    assert client.recv() == {'return': {}, 'id': 1}
    client.sock.shutdown(socket.SHUT_RDWR)
quit(p, other)

# A host that is silent keeps nobody else from a monitor.
p = start('--chardev', 'socket,id=a,path=silent,reconnect=1', '--monitor', 'a',
          '--qmp', 'c.sock')
other = connect('c.sock').greeted()
sock = socket.socket(socket.AF_UNIX)
sock.bind('silent')
sock.listen(0)
waiting = []
while True:
    s = socket.socket(socket.AF_UNIX)
    waiting.append(s)
    s.setblocking(False)
    try:
        s.connect('silent')
    except BlockingIOError:
        break  # the next client would wait for ever
for _ in range(8):
    connect('c.sock').greeted().sock.close()
    time.sleep(0.25)
quit(p, other)
