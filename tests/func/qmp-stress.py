# Eight QMP clients send random commands at once, while other clients read and
# write over NBD.  In the end everything is as it was.  Beside them one disk is
# backed up, gets overlays and is committed, while four clients write to it that
# know what is there.  Each backup that succeeds is the disk at its instant, and
# the disk is what they wrote.
# argv: QMP socket, NBD socket, pid of the server, seed, commands (0: none) or
# seconds ("60s").  In the directory of the disks.
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time

import nbd

QMP, SOCK, PID, SEED, AMOUNT = sys.argv[1:]
PID = int(PID)
CLIENTS = 8
WRITERS = 3
WRITERS_OF_KEPT = 4
END = time.time() + float(AMOUNT[:-1]) if AMOUNT.endswith('s') else None
MANY = sys.maxsize if END else int(AMOUNT)
PATIENCE = 120
POOL = 16  # threads that the server may keep
CLASSES = {'GenericError', 'CommandNotFound', 'DeviceNotFound',
           'DeviceNotActive'}
DISKS = ['disk0', 'disk1', 'disk2', 'disk3']

# What was asked, when its reply had come.
LOG = open(os.environ['STRESS_LOG'], 'w', 1) if 'STRESS_LOG' in os.environ \
    else None

failures = []
stop = threading.Event()
counts = {}


def over():
    return bool(failures) or (END is not None and time.time() > END)


class Gone(Exception):
    pass


class Client:
    def __init__(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(QMP)
        self.file = self.sock.makefile('rb')
        self.status = {}
        self.id = 0
        assert 'QMP' in self.recv()
        self.ask('qmp_capabilities')

    def recv(self):
        try:
            line = self.file.readline()
        except socket.timeout:
            raise AssertionError('no answer') from None
        if not line:
            raise Gone
        return json.loads(line)

    # The order in which a job's status may change.
    NEXT = {'created': ('running', 'aborting', 'null'),
            'running': ('paused', 'ready', 'waiting', 'aborting'),
            'paused': ('running',), 'ready': ('standby', 'waiting', 'aborting'),
            'standby': ('ready',), 'waiting': ('pending', 'aborting'),
            'pending': ('aborting', 'concluded'), 'concluded': ('null',),
            'aborting': ('aborting', 'concluded'), 'null': ('created',)}

    def event(self, e):
        assert set(e) == {'event', 'data', 'timestamp'}, e
        if e['event'] == 'JOB_STATUS_CHANGE':
            job, status = e['data']['id'], e['data']['status']
            before = self.status.get(job)
            assert before is None or status in self.NEXT[before], \
                f'{job}: {before}, {status}'
            self.status[job] = status

    def reply(self, want):
        while True:
            m = self.recv()
            if 'event' in m:
                self.event(m)
                continue
            assert m.get('id') == want, (m, want)
            if 'error' in m:
                assert m['error']['class'] in CLASSES, m
                assert m['error']['desc'], m
            else:
                assert 'return' in m, m
            return m

    def send(self, command, arguments=None):
        self.id += 1
        request = {'execute': command, 'id': self.id}
        if arguments:
            request['arguments'] = arguments
        self.sock.sendall(json.dumps(request).encode())
        return self.id

    def ask(self, command, arguments=None):
        reply = self.reply(self.send(command, arguments))
        if LOG:
            LOG.write(json.dumps([command, arguments, reply.get('error')]) +
                      '\n')
        key = command, 'return' in reply
        counts[key] = counts.get(key, 0) + 1
        return reply

    def close(self):
        self.file.close()
        self.sock.close()


# --- Commands ---

# Mostly what can be there.

def disk(r):
    return r.choice(DISKS)


def node(r):
    return r.choices([disk(r), 'n' + str(r.randrange(4)), 'nosuch'],
                     [60, 38, 2])[0]


def bitmap(r):
    return r.choices(['b0', 'b1', 'b2'], [60, 38, 2])[0]


def job(r):
    return r.choice(['j0', 'j1', 'j2', 'j3'])


def maybe(r, arguments, **more):
    for key, value in more.items():
        if r.random() < 0.3:
            arguments[key.replace('_', '-')] = value
    return arguments


def flag(r):
    return r.random() < 0.5


def backup(r):
    a = {'job-id': job(r), 'device': disk(r),
         'sync': r.choice(['full', 'top', 'none', 'full', 'bitmap',
                           'incremental', 'incremental'])}
    if r.random() < 0.1 or a['sync'] in ('bitmap', 'incremental'):
        a['bitmap'] = bitmap(r)
        if a['sync'] != 'incremental':
            a['bitmap-mode'] = r.choice(['on-success', 'always', 'never'])
    if r.random() < 0.1:
        maybe(r, a, compress=True, x_perf={'max-workers': r.randrange(5)},
              filter_node_name='filter' + str(r.randrange(2)))
    return maybe(r, a, speed=r.choice([0, 65536, 1 << 22]),
                 auto_dismiss=flag(r), auto_finalize=flag(r),
                 on_source_error=r.choice(['report', 'stop', 'ignore']))


def drive_backup(r):
    a = backup(r)
    a['target'] = f't{r.randrange(6)}.img'
    a['format'] = r.choice(['qcow2', 'qcow2', 'qcow2', 'raw'])
    if r.random() < 0.1:
        a['mode'] = 'existing'
    return 'drive-backup', a


def blockdev_backup(r):
    a = backup(r)
    a['target'] = 'n' + str(r.randrange(4))
    return 'blockdev-backup', a


def mirror(r):
    a = {'job-id': job(r), 'device': disk(r),
         'sync': r.choice(['full', 'full', 'top', 'none'])}
    maybe(r, a, copy_mode=r.choice(['background', 'write-blocking']),
          granularity=r.choice([512, 65536, 1 << 20]), buf_size=1 << 16,
          on_target_error=r.choice(['report', 'stop', 'ignore']))
    maybe(r, a, speed=r.choice([0, 65536, 1 << 22]),
          auto_dismiss=flag(r), auto_finalize=flag(r))
    if flag(r):
        a['target'] = 'n' + str(r.randrange(4))
        return 'blockdev-mirror', a
    a['target'] = f't{r.randrange(6)}.img'
    return 'drive-mirror', maybe(r, a, format='qcow2', mode='existing',
                                 node_name='n' + str(r.randrange(4)))


def job_change(r):
    return 'block-job-change', {'id': job(r), 'type': 'mirror', 'copy-mode':
                                r.choice(['background', 'write-blocking'])}


def bitmap_add(r):
    return 'block-dirty-bitmap-add', maybe(
        r, {'node': node(r), 'name': bitmap(r)}, persistent=flag(r),
        disabled=flag(r), granularity=r.choice([512, 65536, 65536, 1 << 20]))


def bitmap_verb(r):
    verb = r.choice(['remove', 'clear', 'clear', 'enable', 'enable', 'disable'])
    return f'block-dirty-bitmap-{verb}', {'node': node(r), 'name': bitmap(r)}


def bitmap_merge(r):
    names = [r.choice([bitmap(r), {'node': node(r), 'name': bitmap(r)}])
             for _ in range(r.randrange(4))]
    return 'block-dirty-bitmap-merge', {'node': node(r), 'target': bitmap(r),
                                        'bitmaps': names}


def snapshot(r):
    a = {'device': disk(r), 'snapshot-file': f'o{r.randrange(6)}.qcow2'}
    if r.random() < 0.1:
        a = {'node-name': node(r), 'snapshot-file': f'o{r.randrange(6)}.qcow2'}
        maybe(r, a, snapshot_node_name=node(r), format='raw')
    return 'blockdev-snapshot-sync', a


def blockdev_snapshot(r):
    return 'blockdev-snapshot', {'node': node(r), 'overlay': node(r)}


ACTIONS = [drive_backup, blockdev_backup, bitmap_add, bitmap_verb, bitmap_verb,
           bitmap_merge, snapshot, blockdev_snapshot,
           lambda r: ('abort', {})]


def transaction(r):
    actions = [r.choice(ACTIONS)(r) for _ in range(r.randrange(5))]
    a = {'actions': [{'type': t, 'data': d} for t, d in actions]}
    return 'transaction', maybe(
        r, a, properties={'completion-mode': r.choice(['grouped',
                                                       'individual'])})


def options(r, name=None):
    o = {'driver': r.choice(['null-co', 'qcow2', 'raw', 'mem', 'mem', 'mem',
                             'blkdebug', 'throttle', 'file',
                             'copy-before-write', 'copy-on-read'])}
    if name:
        o['node-name'] = name
    below = r.choice([node(r), {'driver': 'file',
                                'filename': f't{r.randrange(6)}.img'}])
    if o['driver'] in ('null-co', 'mem'):
        o['size'] = r.choice([8 << 20, 16 << 20, 32 << 20, 0, -1])
    elif o['driver'] == 'blkdebug':
        o['image'] = below
    elif o['driver'] == 'file':
        o['filename'] = f't{r.randrange(6)}.img'
    else:
        o['file'] = below
    if o['driver'] == 'throttle':
        o['throttle-group'] = r.choice(['g0', 'g1'])
    if o['driver'] == 'qcow2' and r.random() < 0.3:
        o['backing'] = r.choice([node(r), None])
    if o['driver'] == 'copy-before-write':
        o['target'] = node(r)
    if r.random() < 0.2:
        maybe(r, o, read_only=flag(r), discard=r.choice(['unmap', 'ignore']),
              cache={'direct': flag(r)}, detect_zeroes='on')
    return o


def blockdev_add(r):
    return 'blockdev-add', options(r, r.choice(['n0', 'n1', 'n2', 'n3']))


def blockdev_del(r):
    return 'blockdev-del', {'node-name': node(r)}


def blockdev_create(r):
    o = {'driver': 'file', 'filename': f't{r.randrange(6)}.img',
         'size': r.choice([0, 1 << 20, 64 << 20])}
    if flag(r):
        o = maybe(r, {'driver': 'qcow2', 'file': node(r), 'size': 1 << 22},
                  preallocation=r.choice(['metadata', 'full']),
                  cluster_size=r.choice([512, 65536]))
    return 'blockdev-create', {'job-id': job(r), 'options': o}


def reopen(r):
    return 'blockdev-reopen', {'options': [options(r, node(r))
                                           for _ in range(r.randrange(3))]}


def commit(r):
    a = {'job-id': job(r), 'device': disk(r)}
    if r.random() < 0.3:
        maybe(r, a, top_node=node(r), base_node=disk(r))
    return 'block-commit', maybe(r, a, speed=r.choice([0, 1 << 20]),
                                 auto_dismiss=flag(r), auto_finalize=flag(r))


def stream(r):
    a = {'job-id': job(r), 'device': disk(r) if flag(r) else node(r)}
    if r.random() < 0.3:
        maybe(r, a, base_node=node(r), bottom=node(r))
    return 'block-stream', maybe(r, a, speed=r.choice([0, 1 << 20]),
                                 on_error=r.choice(['report', 'ignore',
                                                    'stop']),
                                 auto_dismiss=flag(r), auto_finalize=flag(r))


def hang(r):
    """A filter, or what has the size of the disk."""
    return 'qom-set', {'path': disk(r), 'property': 'drive', 'value': node(r)}


def resize(r):
    return 'block_resize', {'node-name': node(r),
                            'size': r.choice([8 << 20, 64 << 20, 65 << 20,
                                              12345])}


def job_verb(r):
    if flag(r):
        verb = r.choice(['cancel', 'pause', 'resume', 'complete', 'finalize',
                         'dismiss', 'dismiss'])
        return f'job-{verb}', {'id': job(r)}
    verb = r.choice(['cancel', 'pause', 'resume', 'complete', 'set-speed'])
    a = {'device': job(r)}
    if verb == 'set-speed':
        a['speed'] = r.choice([0, 1 << 20, -1])
    elif verb == 'cancel':
        maybe(r, a, force=True)
    return f'block-job-{verb}', a


def export_add(r):
    return 'block-export-add', maybe(
        r, {'type': 'nbd', 'id': 'e' + str(r.randrange(4)),
            'node-name': node(r)}, name='x' + str(r.randrange(4)),
        writable=flag(r), bitmaps=[bitmap(r)], description='d' * 300)


def export_del(r):
    return 'block-export-del', maybe(r, {'id': 'e' + str(r.randrange(4))},
                                     mode=r.choice(['hard', 'safe']))


def throttle_object(r):
    if flag(r):
        return 'object-del', {'id': 'g1'}
    return 'object-add', {'qom-type': 'throttle-group', 'id': 'g1',
                          'limits': {'bps-total': 1 << 24}}


def query(r):
    return r.choice(['query-block', 'query-named-block-nodes', 'query-jobs',
                     'query-block-jobs', 'query-block-exports',
                     'query-blockstats', 'x-debug-query-block-graph',
                     'query-commands', 'nosuch']), None


def checksum(r):
    return 'x-debug-block-dirty-bitmap-sha256', {'node': node(r),
                                                 'name': bitmap(r)}


def bad_arguments(r):
    c, a = random_command(r)
    a = dict(a or {})
    if a and flag(r):
        a.pop(r.choice(list(a)))
    else:
        a[r.choice(list(a) + ['odd'])] = r.choice([None, 7, 'x', [], {}, True])
    return c, a


COMMANDS = [(6, drive_backup), (4, blockdev_backup), (6, bitmap_add),
            (6, mirror), (2, job_change),
            (8, bitmap_verb), (4, bitmap_merge), (2, snapshot),
            (2, blockdev_snapshot), (8, transaction), (6, blockdev_add),
            (6, blockdev_del), (3, blockdev_create), (4, reopen), (4, commit),
            (3, stream), (3, hang),
            (2, resize), (16, job_verb), (4, export_add), (4, export_del),
            (2, throttle_object), (6, query), (2, checksum),
            (6, bad_arguments)]


def random_command(r):
    make = r.choices([c for _, c in COMMANDS], [w for w, _ in COMMANDS])[0]
    return make(r)


# --- What else clients do ---

def garbage(r):
    """Its client goes after that."""
    client = Client()
    kind = r.randrange(5)
    try:
        if kind == 0:
            client.sock.sendall(os.urandom(r.randrange(2000)))
        elif kind == 1:
            client.sock.sendall(b'[' * r.randrange(5000))
        elif kind == 2:
            client.sock.sendall(b'{"execute": "query-jobs", "id": "' +
                                b'x' * r.randrange(100000))
        elif kind == 3:
            for _ in range(r.randrange(30)):  # replies that nobody reads
                client.send('query-named-block-nodes')
        else:
            client.send(*random_command(r))
    except (BrokenPipeError, ConnectionResetError):
        pass
    client.close()


def clear(client):
    """Things must not pile up."""
    client.ask('block-export-del', {'id': 'e0', 'mode': 'hard'})
    for i in range(4):
        client.ask('job-resume', {'id': f'j{i}'})
        client.ask('job-cancel', {'id': f'j{i}'})
        client.ask('job-dismiss', {'id': f'j{i}'})


def run_client(number):
    r = random.Random(f'{SEED}-{number}')
    client = Client()
    for i in range(MANY):
        if over():
            break
        client.ask(*random_command(r))
        if r.random() < 0.02:
            garbage(r)
        if r.random() < 0.02:
            client.close()
            client = Client()
        if r.random() < 0.01:
            clear(client)
    client.close()


def run_writer(number):
    r = random.Random(f'{SEED}-nbd-{number}')
    while not stop.is_set() and not over():
        h = nbd.NBD()
        h.set_export_name(r.choice(DISKS + ['x0', 'x1', 'e0', 'e1']))
        try:
            h.connect_unix(SOCK)
            size = h.get_size()
            for _ in range(r.randrange(100)):
                at = r.randrange(max(size - 65536, 1))
                length = min(r.choice([512, 4096, 65536]), size - at)
                if length <= 0 or stop.is_set():
                    break
                do = r.randrange(6)
                if do < 2:
                    h.pread(length, at)
                elif do == 2:
                    h.pwrite(bytes([r.randrange(256)]) * length, at)
                elif do == 3:
                    h.zero(length, at)
                elif do == 4:
                    h.trim(length, at)
                else:
                    h.flush()
            if flag(r):
                h.shutdown()
        except nbd.Error:
            time.sleep(0.01)


# --- A disk of which all is known ---

KEPT = 'kept'
SHARE = 2 << 20  # bytes of each of its writers
PIECE = 4096
kept = bytearray(WRITERS_OF_KEPT * SHARE)
turns = [threading.Lock() for _ in range(WRITERS_OF_KEPT)]


def run_keeper(number):
    """Writes to its own part, and finds there what it wrote."""
    r = random.Random(f'{SEED}-kept-{number}')
    h = nbd.NBD()
    h.set_export_name(KEPT)
    h.connect_unix(SOCK)
    start = number * SHARE
    while not stop.is_set() and not over():
        length = r.choice([1, 1, 4, 16, 40]) * PIECE
        at = start + r.randrange((SHARE - length) // PIECE + 1) * PIECE
        with turns[number]:
            do = r.randrange(6)
            data = bytes([r.randrange(256)]) * length
            if do < 3:
                h.pwrite(data, at)
                kept[at:at + length] = data
            elif do == 3:
                h.zero(length, at)
                kept[at:at + length] = bytes(length)
            elif do == 4:
                assert h.pread(length, at) == kept[at:at + length], \
                    f'at {at} is something else'
            else:
                h.flush()
        time.sleep(r.random() * 0.01)
    h.shutdown()


class Still:
    """Nobody writes to the kept disk meanwhile."""

    def __enter__(self):
        for t in turns:
            t.acquire()

    def __exit__(self, *_):
        for t in turns:
            t.release()


def extents_of(path):
    """(start, data) of what an image has itself."""
    found = json.loads(subprocess.run(
        ['qemu-img', 'map', '--output=json', '-f', 'qcow2', path], check=True,
        capture_output=True).stdout)
    subprocess.run(['qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', path,
                    'kept.raw'], check=True)
    with open('kept.raw', 'rb') as f:
        data = f.read()
    return [(e['start'], data[e['start']:e['start'] + e['length']])
            for e in found if e.get('present', True)]


class Keeper:
    """Jobs on the kept disk."""

    def __init__(self):
        self.r = random.Random(f'{SEED}-keeper')
        self.client = Client()
        self.copy = bytearray(len(kept))  # what the increments make
        self.count = 0

    def good(self, command, **arguments):
        reply = self.client.ask(command, {k.replace('_', '-'): v for k, v in
                                          arguments.items()})
        return 'return' in reply

    def begin(self, **arguments):
        """What the disk is when a backup begins; None: it does not."""
        self.count += 1
        path = os.path.abspath(f'kept{self.count}.qcow2')
        with Still():
            if not self.good('drive-backup', job_id='kept', device=KEPT,
                             target=path, format='qcow2', auto_dismiss=False,
                             speed=self.r.choice([0, 0, 4 << 20]),
                             **arguments):
                return None, path
            return bytes(kept), path

    def end(self, job):
        """Did it succeed?"""
        wait_for(f'{job} ends', lambda: over() or self.state(job) in (
            'concluded', None))
        jobs = [j for j in self.client.ask('query-jobs')['return']
                if j['id'] == job]
        self.good('job-dismiss', id=job)
        return bool(jobs) and 'error' not in jobs[0] and \
            jobs[0]['status'] == 'concluded' and self.cancelled is False

    def state(self, job):
        return next((j['status'] for j in
                     self.client.ask('query-jobs')['return']
                     if j['id'] == job), None)

    def increment(self):
        """Whatever becomes of them, the increments make the disk."""
        mode = self.r.choice(['always', 'always', 'on-success'])
        now, path = self.begin(sync='bitmap', bitmap='k', bitmap_mode=mode)
        assert now is not None or over(), 'an increment is refused'
        self.cancelled = False
        if self.r.random() < 0.4:
            time.sleep(self.r.random() * 0.1)
            self.cancelled = self.good('block-job-cancel', device='kept',
                                       force=True)
        success = self.end('kept')
        if over():
            return
        if success or mode == 'always':
            for start, data in extents_of(path):
                self.copy[start:start + len(data)] = data
        if success:
            assert self.copy == now, 'the increments lack something'
        os.unlink(path)

    def layers(self):
        """A snapshot is committed; a backup begins before or meanwhile."""
        path = os.path.abspath(f'kept-top{self.count}.qcow2')
        self.cancelled = False
        assert self.good('blockdev-snapshot-sync', device=KEPT,
                         snapshot_file=path), 'no snapshot'
        time.sleep(self.r.random() * 0.2)
        now = None
        if flag(self.r):
            now, target = self.begin(sync='full')
        tries = 0
        while not self.good('block-commit', job_id='down', device=KEPT,
                            auto_dismiss=False):
            assert tries < 200, 'no commit'
            if now is not None:
                self.full(now, target)
                now = None
            tries += 1
        if now is None and flag(self.r):
            now, target = self.begin(sync='full')
        wait_for('the commit', lambda: over() or self.state('down') in (
            'ready', 'concluded', None))
        self.good('job-complete', id='down')
        if now is not None:
            self.full(now, target)
        down = self.end('down')
        assert down or over(), 'the commit has failed'
        if not over():
            os.unlink(path)

    def full(self, now, path):
        if self.end('kept') and not over():
            whole = bytearray(len(kept))
            for start, data in extents_of(path):
                whole[start:start + len(data)] = data
            assert whole == now, 'the backup is of another instant'
            os.unlink(path)

    def check(self):
        """At the end: the disk is what was written."""
        h = nbd.NBD()
        h.set_export_name(KEPT)
        h.connect_unix(SOCK)
        assert h.pread(len(kept), 0) == kept, 'the disk is something else'
        h.shutdown()


def run_jobs_of_kept(_):
    keeper = Keeper()
    with Still():
        assert keeper.good('block-dirty-bitmap-add', node=KEPT, name='k',
                           persistent=True)
        keeper.copy[:] = kept
    while not stop.is_set() and not over():
        keeper.r.choice([keeper.increment, keeper.increment, keeper.layers])()
    keeper.client.close()


def guarded(f, number):
    try:
        f(number)
    except Exception as e:  # all of them, also the asserts
        failures.append(f'{f.__name__}({number}): {type(e).__name__} {e}')


# --- The end: all goes, and nothing is left ---

def resources():
    """Descriptors of files here, other ones, and threads."""
    links = []
    for fd in os.listdir(f'/proc/{PID}/fd'):
        try:
            links.append(os.readlink(f'/proc/{PID}/fd/{fd}'))
        except FileNotFoundError:
            pass
    here = sum(link.startswith(os.getcwd() + '/') for link in links)
    return (here, len(links) - here, len(os.listdir(f'/proc/{PID}/task')))


def files_of(client):
    """How many files the nodes have open."""
    nodes = client.ask('query-named-block-nodes')['return']
    return sum(n['drv'] == 'file' for n in nodes)


# A file node has one descriptor, and opens one more for writes past the page
# cache and one for writes with FUA when they come.
DESCRIPTORS = 3


def settled(client):
    """What is there is by the nodes, and a pool of threads."""
    here, others, threads = resources()
    files = files_of(client)
    more = max(files - before_files, 0)     # a stream has let go of one
    return (here <= before[0] - before_files + DESCRIPTORS * files and
            others <= before[1] + more and threads <= before[2] + POOL + more)


def wait_for(what, condition):
    deadline = time.time() + PATIENCE
    while not condition():
        assert time.time() < deadline, f'not in the end: {what}'
        time.sleep(0.02)


def jobs_end(client):
    jobs = client.ask('query-jobs')['return']
    for j in jobs:
        if j['status'] == 'concluded':
            client.ask('job-dismiss', {'id': j['id']})
        else:
            client.ask('job-cancel', {'id': j['id']})
    return not jobs


def nodes_go(client):
    """A node goes when nothing above it is there any more."""
    for name in DISKS:
        client.ask('qom-set', {'path': name, 'property': 'drive',
                               'value': name})
    for x in client.ask('query-block-exports')['return']:
        if x['id'] not in DISKS + [KEPT]:
            client.ask('block-export-del', {'id': x['id'], 'mode': 'hard'})
    names = [n['node-name'] for n in
             client.ask('query-named-block-nodes')['return']]
    for name in ('n0', 'n1', 'n2', 'n3'):
        if name in names:
            client.ask('blockdev-del', {'node-name': name})
    return not {'n0', 'n1', 'n2', 'n3'} & set(names)


client = Client()
before = resources()
before_files = files_of(client)
threads = [threading.Thread(target=guarded, args=(run_client, i))
           for i in range(CLIENTS)]
writers = [threading.Thread(target=guarded, args=(run_writer, i))
           for i in range(WRITERS)]
keepers = [threading.Thread(target=guarded, args=(run_jobs_of_kept, 0))]
keepers += [threading.Thread(target=guarded, args=(run_keeper, i))
            for i in range(WRITERS_OF_KEPT)]
for t in threads + writers + keepers:
    t.start()
for t in threads:
    t.join()
stop.set()
for t in writers + keepers:
    t.join()
if not failures:
    try:
        client.close()
        client = Client()
        wait_for('no jobs', lambda: jobs_end(client))
        nodes_go(client)
        Keeper().check()
        try:
            wait_for('files and threads are given back',
                     lambda: settled(client))
        except AssertionError:
            print(before, before_files, resources(), files_of(client))
            raise
    except Exception as e:
        failures.append(f'the end: {type(e).__name__} {e}')
for f in failures:
    print(f)
done = sum(n for (_, good), n in counts.items() if good)
refused = sum(n for (_, good), n in counts.items() if not good)
print(f'{done} commands succeeded, {refused} did not')
sys.exit(bool(failures))
