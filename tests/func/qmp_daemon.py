# SPDX-License-Identifier: BSD-3-Clause
"""nbdelta serve and its monitor, for tests in Python."""
import json
import os
import socket
import subprocess
import time


class QmpError(Exception):
    """str() is the class of the error, text its description."""

    def __init__(self, error):
        super().__init__(error['class'])
        self.text = error['desc']


class Daemon:
    """A daemon with a monitor at qmp.sock and an NBD server at nbd.sock, both in
    the current directory; events wait until they are asked for."""

    def __init__(self, nbdelta, *arguments):
        self.events = []
        if os.path.exists('pid'):  # of one that was killed
            os.unlink('pid')
        self.process = subprocess.Popen(
            [nbdelta, 'serve', '--pidfile', 'pid',
             '--chardev', 'socket,id=m,path=qmp.sock,server=on,wait=off',
             '--monitor', 'chardev=m',
             '--nbd-server', 'addr.type=unix,addr.path=nbd.sock', *arguments])
        while not os.path.exists('pid'):
            assert self.process.poll() is None
            time.sleep(0.02)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect('qmp.sock')
        self.socket.settimeout(120)
        self.lines = self.socket.makefile('r')
        assert 'QMP' in self.receive()
        self.ask('qmp_capabilities')

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        gone = self.process.poll() is not None  # a test has killed it
        if kind is not None:
            self.process.kill()
        elif not gone:
            self.ask('quit')
        status = self.process.wait(60)
        self.lines.close()
        self.socket.close()
        assert kind is not None or gone or status == 0, status

    def receive(self):
        line = self.lines.readline()
        assert line, 'the monitor has ended'
        return json.loads(line)

    def send(self, data):
        self.socket.sendall(data)

    def ask(self, command, **arguments):
        arguments = {k.replace('_', '-'): v for k, v in arguments.items()}
        self.send(json.dumps({'execute': command,
                              'arguments': arguments}).encode())
        while True:
            message = self.receive()
            if 'event' in message:
                self.events.append(message)
            elif 'error' in message:
                raise QmpError(message['error'])
            else:
                return message['return']

    def refuses(self, command, **arguments):
        try:
            self.ask(command, **arguments)
        except QmpError as e:
            assert str(e) == 'GenericError', e
        else:
            raise AssertionError(f'{command} {arguments}: not refused')
        assert self.ask('query-jobs') == []

    def event(self, name, **data):
        """The oldest such event; those before it stay."""
        seen = 0
        while True:
            while seen < len(self.events):
                e = self.events[seen]
                if e['event'] == name and data.items() <= e['data'].items():
                    del self.events[seen]
                    return e['data']
                seen += 1
            self.events.append(self.receive())

    def quiet(self):
        """No job, and nothing to tell but of changes that jobs went through."""
        assert self.ask('query-block-jobs') == []
        left = [e for e in self.events if e['event'] != 'JOB_STATUS_CHANGE']
        assert left == [], left
        self.events.clear()

    def end_of(self, job):
        """How a job ended: the data of BLOCK_JOB_COMPLETED."""
        data = self.event('BLOCK_JOB_COMPLETED', device=job)
        self.event('JOB_STATUS_CHANGE', id=job, status='null')
        if 'error' not in data:
            assert data['offset'] == data['len'], data
        return data
