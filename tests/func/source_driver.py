# SPDX-License-Identifier: BSD-3-Clause
"""Sources of backups, and QEMUs without a guest, for tests in Python."""
import json
import os
import signal
import socket
import subprocess
import time

TOOL = os.environ['BUILD'] + '/tests/func/source-tool'
MIB = 1 << 20


class Source:
    """source-tool at work; `opened` is its first line."""

    def __init__(self, what, ident, **options):
        words = [f'{k}={v}' for k, v in options.items()]
        self.p = subprocess.Popen([TOOL, what, ident, *words], text=True,
                                  stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        self.opened = self.line()

    def line(self):
        text = self.p.stdout.readline()
        return json.loads(text) if text else None

    def send(self, *words):
        self.p.stdin.write(' '.join(words) + '\n')
        self.p.stdin.flush()

    def ask(self, *words):
        self.send(*words)
        return self.line()

    def did(self, *words):
        answer = self.ask(*words)
        assert answer == {'ok': True}, (words, answer)

    def begin(self, *words):
        answer = self.ask('begin', *words)
        assert 'error' not in answer, answer
        disks = {d['name']: d for d in answer['disks'] if not d['skip']}
        for d in disks.values():
            assert 'error' not in d, d
        return disks

    def close(self, status=0):
        self.p.stdin.close()
        self.ended(status)

    def ended(self, status=0):
        rc = self.p.wait(60)
        self.p.stdout.close()
        assert rc == status, rc

    def signal(self, signo):
        self.p.send_signal(signo)
        if signo != signal.SIGKILL:
            self.ended()
            self.p.stdin.close()
        else:
            self.p.wait()
            self.p.stdin.close()
            self.p.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        if self.p.poll() is None:
            if kind:
                self.p.kill()
                self.p.wait()
            else:
                self.close()


class Qemu:
    """A QEMU whose guest never runs; `hmp` and `ask` by a monitor of our own,
    because it has one client at a time."""

    def __init__(self, *options, program='qemu-system-x86_64'):
        self.p = subprocess.Popen(
            [program, '-nodefaults', '-display', 'none', '-S', '-machine',
             'q35,accel=tcg', '-m', '64', '-qmp',
             'unix:qemu.sock,server=on,wait=off',
             '-qmp', 'unix:own.sock,server=on,wait=off', *options])
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(300):
            try:
                self.socket.connect('own.sock')
                break
            except OSError:
                assert self.p.poll() is None, 'QEMU has ended'
                time.sleep(0.1)
        self.file = self.socket.makefile('rw')
        self.file.readline()
        self.ask('qmp_capabilities')

    def try_ask(self, command, **arguments):
        self.file.write(json.dumps({
            'execute': command,
            'arguments': {k.replace('_', '-'): v
                          for k, v in arguments.items()}}) + '\n')
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if 'event' not in answer:
                return answer

    def ask(self, command, **arguments):
        answer = self.try_ask(command, **arguments)
        assert 'return' in answer, (command, arguments, answer)
        return answer['return']

    def io(self, device, command):
        """What the guest does, as its device does it: above filters of jobs.
        @device: the path of a device."""
        out = self.ask('human-monitor-command',
                       command_line=f'qemu-io -d {device} "{command}"')
        assert not out, (command, out)

    def left(self):
        """All that a backup may leave behind, except checkpoints."""
        nodes = self.ask('query-named-block-nodes')
        return ([n['node-name'] for n in nodes
                 if n['node-name'].startswith('nbdelta')] +
                [j['id'] for j in self.ask('query-jobs')] +
                [e['id'] for e in self.ask('query-block-exports')] +
                [b['name'] for n in nodes for b in n.get('dirty-bitmaps', [])
                 if b.get('name', '').endswith('-map')])

    def bitmaps(self):
        nodes = self.ask('query-named-block-nodes', flat=True)
        return {n['node-name']: sorted(b.get('name', '')
                                       for b in n['dirty-bitmaps'])
                for n in nodes if n.get('dirty-bitmaps')}

    def has_server(self):
        """QEMU does not tell; it refuses to start a second one."""
        answer = self.try_ask('nbd-server-start', addr={
            'type': 'unix', 'data': {'path': 'probe.sock'}})
        if 'return' in answer:
            self.ask('nbd-server-stop')
            return False
        return True

    def quit(self):
        self.ask('quit')
        assert self.p.wait(60) == 0
        self.file.close()
        self.socket.close()

    def kill(self):
        self.p.kill()
        self.p.wait()
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        if self.p.poll() is None:
            self.kill() if kind else self.quit()


def ranges(disk):
    return [tuple(r) for r in disk['ranges']]


def same(raw, image, fmt='qcow2'):
    subprocess.run(['qemu-img', 'compare', '-q', '-U', '-f', 'raw', '-F', fmt,
                    raw, image], check=True)
