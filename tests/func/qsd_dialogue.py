# SPDX-License-Identifier: BSD-3-Clause
"""Dialogues with a storage daemon, by its monitor.

A dialogue is a name and lines.  A line is a command with its arguments in JSON,
or

    wait EVENT {...}    until an event with this data has come
    < TEXT              this text as it is, and what is replied to it
    ! WHY: LINE         what is said differs, and this is why
    !7 WHY: LINE        the same with QEMU 7 only; !10: with QEMU 10 only

All dialogues go over one monitor.  Before each, all that the one before has left
is taken away, so each stands for itself.
"""
import json
import re
import socket
import subprocess


class Line:
    def __init__(self, text):
        m = re.match(r'!(\d*) ([^:]*): (.*)', text)
        self.version, self.why, text = m.groups() if m else ('', '', text)
        self.text = text
        self.word, _, self.rest = text.partition(' ')

    def known(self, version):
        """Why what is said differs from QEMU of this version, or ''."""
        return self.why if self.version in ('', version) else ''


class Monitor:
    def __init__(self, program, cwd):
        ours, its = socket.socketpair()
        self.process = subprocess.Popen(
            [program, '--chardev', f'socket,id=c,fd={its.fileno()}',
             '--monitor', 'c'], pass_fds=[its.fileno()], cwd=cwd)
        its.close()
        self.sock = ours
        self.sock.settimeout(20)
        self.file = ours.makefile('r')
        self.events = []
        greeting = self.recv()
        self.version = str(greeting['QMP']['version']['qemu']['major'])

    def recv(self):
        message = json.loads(self.file.readline())
        if 'event' in message:
            del message['timestamp']
        return message

    def send(self, text):
        """The replies to a text.  Text that is no JSON may have several."""
        self.sock.sendall((text + '{"execute": "query-version", '
                           '"id": "sync"}').encode())
        replies = []
        while True:
            got = self.recv()
            if 'event' in got:
                self.events.append(got)
            elif got.get('id') == 'sync':
                return replies
            else:
                replies.append(got)

    def ask(self, command, arguments=None):
        return self.send(json.dumps({'execute': command,
                                     'arguments': arguments or {}}))

    def until(self, name, data):
        """All events so far that nobody has asked for, the last of them this
        one."""
        def wanted(e):
            return e['event'] == name and data.items() <= e['data'].items()

        while not any(wanted(e) for e in self.events):
            self.events.append(self.recv())
        at = next(i for i, e in enumerate(self.events) if wanted(e)) + 1
        got, self.events = self.events[:at], self.events[at:]
        return got

    def say(self, line):
        """What is said to a line."""
        if line.word == 'wait':
            name, _, data = line.rest.partition(' ')
            return self.until(name, json.loads(data or '{}'))
        if line.word == '<':
            return self.send(line.rest + '\n')
        # As it stands, so that a key may be there twice.
        return self.send(f'{{"execute": "{line.word}"' + (
            f', "arguments": {line.rest}}}' if line.rest else '}'))

    def result(self, command, arguments=None):
        return self.ask(command, arguments)[-1].get('return')

    def take_away(self):
        """All jobs, exports, nodes and objects, and the server."""
        how = {'concluded': 'job-dismiss', 'pending': 'job-finalize',
               'paused': 'job-resume'}
        for _ in range(50):
            jobs = self.result('query-jobs')
            if not jobs:
                break
            for j in jobs:
                self.ask(how.get(j['status'], 'job-cancel'), {'id': j['id']})
        assert not jobs, jobs
        for e in self.result('query-block-exports'):
            self.ask('block-export-del', {'id': e['id'], 'mode': 'hard'})
        self.ask('nbd-server-stop')
        for _ in range(20):
            nodes = self.result('query-named-block-nodes')
            if not nodes:
                break
            for n in nodes:
                self.ask('blockdev-del', {'node-name': n['node-name']})
        assert not nodes, nodes
        for name in 'o', 'g', 's':
            self.ask('object-del', {'id': name})
        self.events = []

    def end(self):
        self.sock.sendall(b'{"execute": "quit"}')
        assert self.process.wait(60) == 0


def read_dialogues(path):
    """[(name, lines)].  "== NAME" begins one; "# ..." is a comment."""
    found = []
    with open(path, encoding='utf-8') as f:
        for text in f.read().replace('\\\n', '').splitlines():
            if text.startswith('== '):
                found.append((text[3:], []))
            elif text.strip() and not text.startswith('#'):
                found[-1][1].append(Line(text))
    return found
