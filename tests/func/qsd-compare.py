# Hold the conversation of a file with two programs and compare what they say.
# argv: theirs, ours, the file.  They run in the directories of these names.
#
# A line of the file is a command with its arguments in JSON, or
#   wait EVENT {...}    until an event with this data has come
#   # ...               a comment
#   ! WHY: COMMAND ...  both succeed, or both fail; what they say differs
import json
import socket
import subprocess
import sys


class Monitor:
    def __init__(self, program, cwd):
        ours, its = socket.socketpair()
        self.process = subprocess.Popen(
            [program, '--chardev', f'socket,id=c,fd={its.fileno()}',
             '--monitor', 'c'], pass_fds=[its.fileno()], cwd=cwd)
        its.close()
        self.sock = ours
        self.sock.settimeout(60)
        self.file = ours.makefile('r')
        self.recv()

    def recv(self):
        line = self.file.readline()
        if not line:
            return None
        message = json.loads(line)
        if 'event' in message:
            del message['timestamp']
        return message

    def ask(self, command, arguments):
        """What comes up to the reply, and the reply."""
        request = {'execute': command}
        if arguments:
            request['arguments'] = json.loads(arguments)
        self.sock.sendall(json.dumps(request).encode())
        got = [self.recv()]
        while 'event' in got[-1]:
            got.append(self.recv())
        return got

    def until(self, name, data):
        got = []
        while not got or got[-1]['event'] != name or \
                not data.items() <= got[-1]['data'].items():
            got.append(self.recv())
        return got


def talk(program, cwd, lines):
    """A list of what was said to each line."""
    m = Monitor(program, cwd)
    said = []
    for line in lines:
        words = line.split(None, 2)
        if words[0] == 'wait':
            said.append(m.until(words[1], json.loads(words[2])))
        else:
            if words[0] == '!':
                words = line.split(': ', 1)[1].split(None, 1)
            else:
                words = line.split(None, 1)
            said.append(m.ask(words[0], words[1] if words[1:] else None))
    assert m.process.wait(60) == 0, f'{program} ended with an error'
    return said


def without_order(messages):
    """Exports that go together go in creation's order in QEMU 7.2, and from the
    last to the first in QEMU 10."""
    return sorted(messages, key=lambda m: m['data']['id']
                  if m.get('event') == 'BLOCK_EXPORT_DELETED' else '~')


def outcome(messages):
    return [sorted(m) for m in messages]


lines = [line.strip() for line in open(sys.argv[3])]
lines = [line for line in lines if line and line[0] != '#']
theirs, ours = (talk(program, cwd, lines) for program, cwd in
                ((sys.argv[1], 'theirs'), (sys.argv[2], 'ours')))
differ = 0
for line, a, b in zip(lines, theirs, ours):
    a, b = without_order(a), without_order(b)
    if line[0] == '!':
        if a == b:
            print(f'no difference any more: {line}')
            differ += 1
        a, b = outcome(a), outcome(b)
    if a != b:
        differ += 1
        print(line)
        for who, messages in (('QEMU', a), ('we', b)):
            for message in messages:
                print(f'    {who}: {json.dumps(message)}')
assert len(lines) > 60
sys.exit(differ > 0)
