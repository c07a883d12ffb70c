# Removing the export "live" while clients use it.  argv: the NBD socket, the
# QMP socket, where nbd_raw is.
import json
import socket
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[3])
from nbd_raw import *

qmp = socket.socket(socket.AF_UNIX)
qmp.connect(sys.argv[2])
qmp.settimeout(60)
lines = qmp.makefile('r')


def recv():
    message = json.loads(lines.readline())
    message.pop('timestamp', None)
    return message


def ask(command, **arguments):
    qmp.sendall(json.dumps({'execute': command,
                            'arguments': arguments}).encode())
    return recv()


def error(text):
    return {'error': {'class': 'GenericError', 'desc': text}}


recv()
ask('qmp_capabilities')

one = Client(sys.argv[1]).go('live')
two = Client(sys.argv[1]).go('live')
assert one.error(WRITE, 0, 512, data=b'x' * 512) == 0
for arguments in {}, {'mode': 'safe'}:
    assert ask('block-export-del', id='live', **arguments) == \
        error("export 'live' still in use")
assert one.error(WRITE, 0, 512, data=b'y' * 512) == 0

# One that has only asked for contexts holds nothing.
asker = Client(sys.argv[1])
assert asker.option(STRUCTURED)[0] == ACK
assert ask('block-export-add', type='nbd', id='brief', name='brief',
           **{'node-name': 'top'}) == {'return': {}}
kind, contexts = asker.option(SET_META, meta_data('brief', 'base:allocation'))
assert kind == ACK and len(contexts) == 1
qmp.sendall(b'{"execute": "block-export-del", "arguments": {"id": "brief"}}')
assert recv() == {'event': 'BLOCK_EXPORT_DELETED', 'data': {'id': 'brief'}}
assert recv() == {'return': {}}
asker.close()

# Hard: both are gone, and only then it is deleted.
reply = ask('block-export-del', id='live', mode='hard')
events = []
if 'event' in reply:
    events.append(reply)
    reply = recv()
assert reply == {'return': {}}, reply
assert one.ended() and two.ended()
event = events[0] if events else recv()
assert event['event'] == 'BLOCK_EXPORT_DELETED', event
assert event['data'] == {'id': 'live'}
exports = ask('query-block-exports')['return']
assert 'live' not in [e['id'] for e in exports], exports
# The node is free at once.
assert ask('block-export-add', type='nbd', id='live', name='live',
           **{'node-name': 'top'}) == {'return': {}}

# Stopping ends all clients, and tells of all exports before its reply.
one = Client(sys.argv[1]).go('live')
qmp.sendall(json.dumps({'execute': 'block-export-del', 'arguments': {
    'id': 'live', 'mode': 'hard'}}).encode())
got = {}
while len(got) < 2:
    message = recv()
    got['return' if 'return' in message else message['data']['id']] = message
assert set(got) == {'return', 'live'}, got
assert one.ended()
