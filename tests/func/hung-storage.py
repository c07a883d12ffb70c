# SPDX-License-Identifier: BSD-3-Clause
# The scenarios of hung-storage.sh.  Works in the current directory.
import json
import os
import socket
import subprocess
import sys
import threading
import time

import nbd

import nbd_raw
from qmp_daemon import Daemon, QmpError
from stalling import Stalling, READ, WRITE, FLUSH

K, M = 1 << 10, 1 << 20
SOON = 20  # seconds: what is not held up is done by then, also on a slow machine


class Session:
    """Another one, opened now."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SOON)
        self.socket.connect('qmp.sock')
        self.lines = self.socket.makefile('r')
        assert 'QMP' in json.loads(self.lines.readline())
        self.ask('qmp_capabilities')

    def ask(self, command, **arguments):
        arguments = {k.replace('_', '-'): v for k, v in arguments.items()}
        self.socket.sendall(json.dumps(
            {'execute': command, 'arguments': arguments}).encode())
        while True:
            message = json.loads(self.lines.readline())
            if 'error' in message:
                raise QmpError(message['error'])
            if 'return' in message:
                return message['return']


class Behind(threading.Thread):
    """A command in a session of its own, that may take its time."""

    def __init__(self, command, **arguments):
        super().__init__(daemon=True)
        self.session = Session()
        self.session.socket.settimeout(120)
        self.command, self.arguments = command, arguments
        self.result = self.error = None
        self.start()

    def run(self):
        try:
            self.result = self.session.ask(self.command, **self.arguments)
        except QmpError as e:
            self.error = e

    def waits(self):
        self.join(1)
        return self.is_alive()

    def end(self, seconds=60):
        self.join(seconds)
        assert not self.is_alive(), self.command
        return self.error


def client(name):
    h = nbd.NBD()
    h.connect_uri(f'nbd+unix:///{name}?socket={os.getcwd()}/nbd.sock')
    return h


def in_time(what, seconds=SOON):
    """What it returns; it is not held up."""
    done = []
    t = threading.Thread(target=lambda: done.append(what()), daemon=True)
    t.start()
    t.join(seconds)
    assert done, what
    return done[0]


def export(name):
    return ['--export', f'type=nbd,id={name},node-name={name},name={name},'
            'writable=on']


def start(far, *more):
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', 'ok.qcow2',
                    '16M'], check=True)
    return Daemon('nbdelta', '--blockdev', f'{far.options},node-name=far',
                  *export('far'), '--blockdev',
                  'driver=qcow2,node-name=ok,file.driver=file,'
                  'file.filename=ok.qcow2', *export('ok'), *more)


def others_go_on(name='ok', files=True):
    """Clients and commands of another disk go on.  A query of all nodes asks
    for the sizes of their @files, too."""
    h = in_time(lambda: client(name))
    in_time(lambda: (h.pwrite(b'x' * 64 * K, 64 * K), h.flush()))
    s = Session()
    s.ask('query-block-exports')
    if files:
        s.ask('query-named-block-nodes')
    s.ask('block-dirty-bitmap-add', node=name, name='b', persistent=True)
    s.ask('block-dirty-bitmap-remove', node=name, name='b')
    assert 'a' not in h.pread(1, 0).decode()
    in_time(h.shutdown)


def ends(d):
    """What was cut off cannot be flushed, so the status is not asked."""
    d.ask('quit')
    d.process.wait(SOON)


def hang(far, count=1):
    """Clients whose requests are held."""
    clients = []
    before = far.held
    far.hold()
    for i in range(count):
        h = client('far')
        for k in range(16):
            h.aio_pread(nbd.Buffer(4 * K), k * 4 * K)
        clients.append(h)
    end = time.monotonic() + SOON
    while far.held == before:
        assert time.monotonic() < end
        time.sleep(0.02)
    return clients


def yank():
    Session().ask('yank', instances=[{'type': 'block-node',
                                      'node-name': 'far'}])


def clients_and_commands_of_others_go_on(far):
    with start(far) as d:
        clients = hang(far, 5)
        others_go_on()
        waiting = [Behind('block-dirty-bitmap-add', node='far', name='b'),
                   Behind('blockdev-del', node_name='far'),
                   Behind('block_resize', node_name='far', size=M),
                   Behind('backup-begin', disks=[{'node': 'far'}]),
                   Behind('transaction', actions=[
                       {'type': 'block-dirty-bitmap-add',
                        'data': {'node': 'far', 'name': 'c'}}])]
        assert all(w.waits() for w in waiting)
        others_go_on()
        yank()
        for w in waiting:
            w.end(SOON)
        for h in clients:
            in_time(h.shutdown)
        ends(d)
    far.go_on()


def a_command_does_not_wait_for_ever(far):
    with start(far):
        hang(far)
        w = Behind('block-dirty-bitmap-add', node='far', name='b')
        e = w.end()
        assert e and "'far'" in e.text, e
        others_go_on()
        far.go_on()
        Session().ask('block-dirty-bitmap-add', node='far', name='b')


def a_backup_that_expires_holds_up_nobody(far):
    with start(far) as d:
        d.ask('backup-begin', disks=[{'node': 'far'}], expire=4)
        clients = hang(far)
        end = time.monotonic() + 8
        while time.monotonic() < end:
            others_go_on()
            time.sleep(0.2)
        far.go_on()
        end = time.monotonic() + 60
        while d.ask('query-backups'):
            assert time.monotonic() < end
            time.sleep(0.2)
        del clients


def who_comes_back_and_leaves_again_is_gone(far):
    def descriptors():
        return len(os.listdir(f'/proc/{d.process.pid}/fd'))

    with start(far) as d:
        before = far.held
        far.hold()
        c = nbd_raw.Client('nbd.sock').go('far')
        c.s.sendall(c.request(nbd_raw.READ, 0, 4 * K))
        while far.held == before:
            time.sleep(0.02)
        c.close()
        some = descriptors()
        for _ in range(20):
            c = nbd_raw.Client('nbd.sock')
            c.send_option(nbd_raw.GO, nbd_raw.info_data('far'))
            c.close()
        end = time.monotonic() + SOON
        while descriptors() > some:
            assert time.monotonic() < end, descriptors()
            time.sleep(0.1)
        far.go_on()


def an_export_goes_while_another_of_its_disk_hangs(far):
    with start(far, '--export', 'type=nbd,id=two,node-name=far,name=two') as d:
        clients = hang(far)
        two = client('two')
        two.shutdown()
        w = Behind('block-export-del', id='two', mode='hard')
        w.waits()
        others_go_on()
        h = in_time(lambda: client('ok'))
        d.ask('block-export-del', id='ok', mode='hard')
        d.event('BLOCK_EXPORT_DELETED', id='ok')
        far.go_on()
        w.end()
        for c in clients:
            in_time(c.shutdown)


def bitmaps(path):
    """Those of a closed image that can be trusted, with what they have."""
    info = json.loads(subprocess.run(
        ['nbdelta', 'info', '--output', 'json', path], check=True,
        stdout=subprocess.PIPE).stdout)
    return {b['name']: b for b in info['format-specific']['data']['bitmaps']
            if 'in-use' not in b['flags']}


def write_to_ok(d):
    d.ask('block-dirty-bitmap-add', node='ok', name='kept', persistent=True)
    h = client('ok')
    h.pwrite(b'y' * 64 * K, M)
    return h


def ok_is_whole():
    subprocess.run(['qemu-img', 'check', '-q', 'ok.qcow2'], check=True)
    assert 'kept' in bitmaps('ok.qcow2')
    out = subprocess.run(['qemu-io', '-r', '-c', f'read -P {ord("y")} 1M 64k',
                          'ok.qcow2'], check=True, stdout=subprocess.PIPE).stdout
    assert b'failed' not in out, out


def the_end_has_a_limit(far):
    with start(far, '--stop-timeout', '3') as d:
        clients = hang(far)
        mine = write_to_ok(d)
        d.process.terminate()
        time.sleep(1)
        d.process.terminate()  # more of them change nothing
        assert d.process.wait(3 + SOON) == 1
        assert not any(map(os.path.exists, ('pid', 'nbd.sock', 'qmp.sock')))
        ok_is_whole()
    far.go_on()
    del clients, mine


def storage_that_is_no_server(far):
    """A file that hangs: its requests cannot be cut off."""
    os.mkdir('mnt')
    fuse = subprocess.Popen(['nbdfuse', 'mnt', '--unix', far.path])
    try:
        end = time.monotonic() + SOON
        while not os.path.exists('mnt/nbd'):
            if fuse.poll() is not None or time.monotonic() > end:
                print('  no file system in user space here')
                return
            time.sleep(0.05)
        with start(far, '--stop-timeout', '3', '--blockdev',
                   'driver=file,node-name=stuck,filename=mnt/nbd,locking=off',
                   *export('stuck')) as d:
            far.hold(READ)
            clients = [client('stuck') for _ in range(5)]
            for h in clients:
                for k in range(16):
                    h.aio_pread(nbd.Buffer(4 * K), M + k * 64 * K)
            time.sleep(1)
            others_go_on(files=False)
            mine = write_to_ok(d)
            d.process.terminate()
            # The kernel does not let go of a thread that is in there.
            end = time.monotonic() + 3 + 20 + SOON
            while os.path.exists('pid'):
                assert time.monotonic() < end
                time.sleep(0.05)
            ok_is_whole()
            far.go_on()
            assert d.process.wait(SOON) != 0
    finally:
        far.go_on()
        if fuse.poll() is None and subprocess.run(
                ['umount', '-l', 'mnt'], check=False,
                stderr=subprocess.DEVNULL).returncode != 0:
            subprocess.run(['fusermount3', '-u', '-z', 'mnt'], check=True)
        # A mount namespace that another test has made meanwhile has it still.
        fuse.terminate()
        fuse.wait(SOON)
    os.rmdir('mnt')
    del clients, mine


class Mute:
    """A server that greets nobody."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        self.options = (f'driver=nbd,server.type=unix,server.path={path},'
                        'open-timeout=3600')


def an_open_that_waits_can_be_ended(far):
    mute = Mute('mute.sock')
    with start(far) as d:
        options = dict(o.split('=') for o in mute.options.split(','))
        w = Behind('blockdev-add', **{'node-name': 'far2', 'driver': 'nbd',
                                      'open-timeout': 3600, 'server': {
                                          'type': 'unix',
                                          'path': options['server.path']}})
        assert w.waits()
        Session().ask('yank', instances=[{'type': 'block-node',
                                          'node-name': 'far2'}])
        assert 'yank' in w.end(SOON).text
        w = Behind('blockdev-add', **{'node-name': 'far2', 'driver': 'nbd',
                                      'open-timeout': 3600, 'server': {
                                          'type': 'unix',
                                          'path': options['server.path']}})
        assert w.waits()
        d.process.terminate()
        d.process.wait(SOON)
    p = subprocess.Popen(['nbdelta', 'serve', '-U', 'two.sock', mute.options])
    time.sleep(1)
    p.terminate()
    assert p.wait(SOON) == 7


def a_mirror_whose_target_hangs_holds_up_nobody(far):
    """A guest's write waits for the target, and the job wants to look at what
    another one has changed."""
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', 'two.qcow2',
                    '16M'], check=True)
    two = ('--blockdev', 'driver=qcow2,node-name=two,discard=unmap,'
           'file.driver=file,file.filename=two.qcow2', *export('two'))
    with start(far, *two) as d:
        d.ask('block-export-del', id='far')
        d.ask('blockdev-mirror', device='two', target='far', sync='full',
              copy_mode='write-blocking', job_id='j')
        d.event('BLOCK_JOB_READY')
        far.hold(WRITE)
        far.held = 0
        h = client('two')
        for i in range(8):
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(64 * K)),
                         i * 64 * K)
        while far.held == 0:
            time.sleep(0.02)
        late = client('two')
        late.aio_trim(64 * K, 8 * M)  # it is not sent to the target
        time.sleep(0.3)               # the job looks each 0.1 s
        others_go_on()
        w = Behind('human-monitor-command',
                   **{'command-line': 'block_resize two 16M'})
        assert w.waits()
        others_go_on()
        s = Session()
        in_time(lambda: s.ask('block-job-cancel', device='j', force=True))
        others_go_on()
        d.event('BLOCK_JOB_CANCELLED', device='j')
        far.go_on()
        w.end()
        del late
        ends(d)


def main():
    far = Stalling(os.getcwd() + '/far.sock', 16 * M)
    only = sys.argv[1:]
    for test in (clients_and_commands_of_others_go_on,
                 a_command_does_not_wait_for_ever,
                 a_backup_that_expires_holds_up_nobody,
                 who_comes_back_and_leaves_again_is_gone,
                 an_export_goes_while_another_of_its_disk_hangs,
                 the_end_has_a_limit,
                 storage_that_is_no_server,
                 an_open_that_waits_can_be_ended,
                 a_mirror_whose_target_hangs_holds_up_nobody):
        if only and test.__name__ not in only:
            continue
        print(test.__name__, flush=True)
        test(far)
        for f in ('ok.qcow2', 'two.qcow2', 'qmp.sock', 'nbd.sock'):
            if os.path.exists(f):
                os.unlink(f)


main()
