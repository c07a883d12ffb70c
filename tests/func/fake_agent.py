# SPDX-License-Identifier: BSD-3-Clause
"""Guests' agents for tests: fake_agent.py FOLDER=MODE...

FOLDER/ga.sock is the socket.  FOLDER/state has a line for each command that
freezes or thaws: its name, and seconds.  MODE: good; rubbish (before the answer
to a sync); refuse; deaf (no answer to anything); hang (no answer to a freeze
before the thaw); stop:PID (stops the process until the thaw); endless (rubbish
without an end)."""
import json
import os
import signal
import socket
import sys
import threading
import time


class Agent:
    def __init__(self, folder, mode):
        self.state = folder + '/state'
        self.mode, _, self.pid = mode.partition(':')
        self.client = None
        server = socket.socket(socket.AF_UNIX)
        server.bind(folder + '/ga.sock')
        server.listen()
        threading.Thread(target=self.accept, args=[server], daemon=True).start()

    def accept(self, server):
        while True:
            self.client, _ = server.accept()
            try:
                self.serve()
            except OSError:
                pass
            self.client.close()

    def note(self, name):
        with open(self.state, 'a', encoding='ascii') as f:
            f.write(f'{name} {time.monotonic():.3f}\n')

    def reply(self, what, before=b''):
        self.client.sendall(before + json.dumps(what).encode() + b'\n')

    def freeze(self):
        self.note('freeze')
        if self.mode == 'refuse':
            self.reply({'error': {'class': 'GenericError',
                                  'desc': 'failed to freeze /\x1b[2J'}})
            return
        if self.mode == 'stop':
            os.kill(int(self.pid), signal.SIGSTOP)
        if self.mode != 'hang':
            self.reply({'return': 2})

    def thaw(self):
        self.note('thaw')
        if self.mode == 'hang':
            self.reply({'return': 2})  # of the freeze: too late
        if self.mode == 'stop':
            os.kill(int(self.pid), signal.SIGCONT)
        self.reply({'return': 2})

    def serve(self):
        for line in self.client.makefile('rb'):
            if self.mode == 'deaf':
                continue
            while self.mode == 'endless':
                self.client.sendall(b'x' * 65536)
            # What comes before 0xFF is the end of something older.
            c = json.loads(line[line.rfind(b'\xff') + 1:])
            if c['execute'] == 'guest-sync-delimited':
                if self.mode == 'rubbish':
                    self.client.sendall(
                        b'{"return": 17}\n{"ret\xff\xff{"return": 1}\n'
                        b'{"return": [[{}\n\xff\x00\n\xff' + b'y' * 100000 +
                        b'\n')
                self.reply({'return': c['arguments']['id']}, b'\xff')
            elif c['execute'] == 'guest-fsfreeze-freeze':
                self.freeze()
            elif c['execute'] == 'guest-fsfreeze-thaw':
                self.thaw()


for word in sys.argv[1:]:
    Agent(*word.split('='))
open('agents-ready', 'w', encoding='ascii').close()
signal.pause()
