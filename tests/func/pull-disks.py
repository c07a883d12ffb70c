# SPDX-License-Identifier: BSD-3-Clause
# The scenarios of pull-disks.sh.  argv: nbdelta.  Works in the current
# directory.
import json
import os
import struct
import subprocess
import sys
import threading
import time

import nbd

import pull_util
from pull_util import begin, connect, dirty, end, live, pull_into, refused

NBDELTA = sys.argv[1]
MIB = 1 << 20
SIZE = 16 * MIB
SLOT = 65536
# The first half of a disk has a counter in each slot; fio has the other half.
SLOTS = SIZE // 2 // SLOT
DISKS = ('a', 'b', 'c')


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode == 0, (command, done.stdout)
    return done.stdout


def start(names=DISKS, fmt='qcow2'):
    """A daemon that serves these disks, which exist or are made."""
    for name in names:
        if not os.path.exists(f'{name}.img'):
            run('qemu-img', 'create', '-q', '-f', fmt, f'{name}.img',
                str(SIZE))
    return pull_util.start(NBDELTA, names, fmt)


def pull(disk, path):
    """Bring the raw file at path to what the disk was."""
    if disk['mode'] == 'full':
        run('nbdcopy', disk['uri'], path)
        return
    with open(path, 'rb') as f:
        data = bytearray(f.read())
    pull_into(disk, data)
    with open(path, 'wb') as f:
        f.write(data)


def same(path, other):
    with open(path, 'rb') as f, open(other, 'rb') as g:
        return f.read() == g.read()


def checkpoints(daemon):
    return {c['name']: [d['node'] for d in c['disks']]
            for c in daemon.ask('checkpoint-list')}


class Writer:
    """Writes a counter to all disks, in their order, slot after slot."""

    def __init__(self):
        self.handles = [connect(live(name)) for name in DISKS]
        self.count = 0
        self.stop = False
        self.thread = None

    def once(self):
        self.count += 1
        data = struct.pack('>Q', self.count) * 512
        for h in self.handles:
            h.pwrite(data, self.count % SLOTS * SLOT)

    def loop(self):
        while not self.stop:
            self.once()
            time.sleep(0.002)  # the puller needs the interpreter, too

    def __enter__(self):
        self.stop = False
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        self.thread.join()


def expected_half(count):
    """What the first half of a disk is after so many writes."""
    half = bytearray(SIZE // 2)
    for n in range(max(1, count - SLOTS + 1), count + 1):
        at = n % SLOTS * SLOT
        half[at:at + 4096] = struct.pack('>Q', n) * 512
    return half


def count_in(path):
    """The counter that a copy has come to; it has exactly what that says."""
    with open(path, 'rb') as f:
        half = f.read(SIZE // 2)
    count = max(struct.unpack_from('>Q', half, i * SLOT)[0]
                for i in range(SLOTS))
    assert half == expected_half(count), f'{path} is of no instant'
    return count


def one_instant(paths):
    counts = [count_in(path) for path in paths]
    assert counts == sorted(counts, reverse=True), counts
    assert counts[0] - counts[-1] <= 1, counts
    return counts[0]


def fio(name):
    return subprocess.Popen(
        ['fio', '--name=w', '--ioengine=nbd', f'--uri={live(name)}',
         '--rw=randwrite', '--bs=16k', '--iodepth=8', f'--offset={SIZE // 2}',
         f'--size={SIZE // 2}', '--time_based', '--runtime=60',
         '--randrepeat=0', '--rate_iops=200'],
        stdout=subprocess.DEVNULL)


def three_disks_one_instant():
    daemon = start()
    with daemon:
        loads = [fio(name) for name in DISKS]
        writer = Writer()
        try:
            for _ in range(SLOTS // 2):
                writer.once()
            with writer:
                written = one_full(daemon)
                for n in range(2):
                    assert writer.count > written
                    written = one_increment(daemon, n)
        finally:
            for load in loads:
                load.terminate()
            for load in loads:
                load.wait()
        # Nothing writes any more: the chain has to equal the disks.
        one_increment(daemon, 2)
        for name in DISKS:
            run('nbdcopy', live(name), f'{name}.now')
            assert same(f'{name}.now', f'{name}.copy'), name
    for name in DISKS:
        run('qemu-img', 'check', '-q', f'{name}.img')
        info = json.loads(run('qemu-img', 'info', '--output=json',
                              f'{name}.img'))
        bitmaps = info['format-specific']['data']['bitmaps']
        assert [b['name'] for b in bitmaps] == ['c3'], bitmaps
        assert bitmaps[0]['flags'] == ['auto'], bitmaps


def one_full(daemon):
    begun = begin(daemon, *DISKS, checkpoint='c0')
    for disk in begun['disks']:
        assert disk['mode'] == 'full' and 'reason' not in disk, disk
        assert disk['size'] == SIZE and 0 < disk['estimate'] <= SIZE, disk
        pull(disk, disk['node'] + '.copy')
    return check_session(daemon, begun)


def one_increment(daemon, n):
    begun = begin(daemon, *({'node': name, 'since': f'c{n}'}
                            for name in DISKS), checkpoint=f'c{n + 1}')
    for disk in begun['disks']:
        assert disk['mode'] == 'incremental', disk
        runs = dirty(disk)
        assert disk['estimate'] == sum(length for _, length in runs), disk
        pull(disk, disk['node'] + '.copy')
    return check_session(daemon, begun, drop=[f'c{n}'])


def check_session(daemon, begun, **arguments):
    """Pulled a second time, later, each disk is what it was the first time."""
    count = one_instant([name + '.copy' for name in DISKS])
    for disk in begun['disks']:
        name = disk['node']
        run('cp', name + '.copy', name + '.again')
        pull(disk, name + '.again')
        assert same(name + '.copy', name + '.again'), name
    end(daemon, begun, **arguments)
    return count


def failure_and_crash_leave_the_old_checkpoint():
    with start(('a',)) as daemon:
        h = connect(live('a'))
        h.pwrite(b'1' * SLOT, 0)
        begun = begin(daemon, 'a', checkpoint='c1')
        refused(daemon, 'already exists', 'backup-begin',
                disks=[{'node': 'a'}], checkpoint='c1')
        refused(daemon, 'in use', 'block-dirty-bitmap-clear', node='a',
                name='c1')
        assert checkpoints(daemon) == {}
        pull(begun['disks'][0], 'a.copy')
        end(daemon, begun)
        assert checkpoints(daemon) == {'c1': ['a']}

        h.pwrite(b'2' * SLOT, 2 * SLOT)
        begun = begin(daemon, {'node': 'a', 'since': 'c1'}, checkpoint='c2')
        assert dirty(begun['disks'][0]) == [(2 * SLOT, SLOT)]
        h.pwrite(b'3' * SLOT, 4 * SLOT)
        end(daemon, begun, success=False)
        assert checkpoints(daemon) == {'c1': ['a']}
        refused(daemon, 'no backup', 'backup-end', id=begun['id'],
                success=True)

        begun = begin(daemon, {'node': 'a', 'since': 'c1'}, checkpoint='c2')
        h.pwrite(b'4' * SLOT, 6 * SLOT)
        h.flush()
        daemon.process.kill()
        daemon.process.wait()
    info = json.loads(run('qemu-img', 'info', '--output=json', 'a.img'))
    bitmaps = info['format-specific']['data']['bitmaps']
    assert [b['name'] for b in bitmaps] == ['c1'], bitmaps
    with start(('a',)) as daemon:
        begun = begin(daemon, {'node': 'a', 'since': 'c1'}, checkpoint='c2')
        pull(begun['disks'][0], 'a.copy')
        end(daemon, begun)
        run('nbdcopy', live('a'), 'a.now')
        assert same('a.now', 'a.copy')


def any_checkpoint_is_a_start_and_none_needs_another():
    with start(('a',)) as daemon:
        h = connect(live('a'))
        for n in range(4):
            end(daemon, begin(daemon, 'a', checkpoint=f'c{n}'))
            h.pwrite(b'x' * SLOT, 2 * n * SLOT)
        assert list(checkpoints(daemon)) == ['c0', 'c1', 'c2', 'c3']
        # A bitmap of that name that is no checkpoint stays.
        daemon.ask('block-dirty-bitmap-add', node='a', name='mine')
        refused(daemon, 'no checkpoint', 'checkpoint-delete', name='mine')
        daemon.ask('checkpoint-delete', name='c2')
        refused(daemon, 'no checkpoint', 'checkpoint-delete', name='c2')
        for n in (0, 1, 3):
            begun = begin(daemon, {'node': 'a', 'since': f'c{n}'})
            assert dirty(begun['disks'][0]) == [
                (2 * i * SLOT, SLOT) for i in range(n, 4)], n
            end(daemon, begun)
        # Several sessions of one disk at once have each their own instant.
        first = begin(daemon, {'node': 'a', 'since': 'c3'})
        h.pwrite(b'y' * SLOT, 6 * SLOT)
        second = begin(daemon, 'a')
        h.pwrite(b'z' * SLOT, 6 * SLOT)
        for begun, what in ((first, b'x'), (second, b'y')):
            c = connect(begun['disks'][0]['uri'])
            assert c.pread(SLOT, 6 * SLOT) == what * SLOT, what
            c.shutdown()
        assert len(daemon.ask('query-backups')) == 2
        end(daemon, second)
        end(daemon, first)
    with start(('a',)) as daemon:
        assert list(checkpoints(daemon)) == ['c0', 'c1', 'c3']


def a_full_backup_in_place_of_an_increment_says_why():
    with start(('a', 'b')) as daemon:
        end(daemon, begin(daemon, 'a', checkpoint='c1'))
        daemon.ask('block-dirty-bitmap-add', node='a', name='off',
                   persistent=True, disabled=True)
        begun = begin(daemon, {'node': 'a', 'since': 'c1'},
                      {'node': 'b', 'since': 'c1'})
        modes = [(d['mode'], d.get('reason'), 'context' in d)
                 for d in begun['disks']]
        assert modes == [('incremental', None, True),
                         ('full', 'new-disk', False)], modes
        end(daemon, begun)
        for since, reason in (('c0', 'no-checkpoint'),
                              ('off', 'bitmap-disabled')):
            begun = begin(daemon, {'node': 'a', 'since': since})
            disk = begun['disks'][0]
            assert (disk['mode'], disk['reason']) == ('full', reason), disk
            end(daemon, begun)
        refused(daemon, 'Cannot find', 'backup-begin', disks=[{'node': 'no'}])
        refused(daemon, 'given twice', 'backup-begin',
                disks=[{'node': 'a'}, {'node': 'a'}])
        assert daemon.ask('query-backups') == []


def whom_nobody_reads_it_expires():
    with start(('a',)) as daemon:
        end(daemon, begin(daemon, 'a', checkpoint='c1'))
        begun = begin(daemon, 'a', checkpoint='c2', expire=1)
        assert 'a@' not in str(daemon.ask('query-blockstats'))
        assert 'a@' not in str([d['device']
                                for d in daemon.ask('query-block')])
        h = connect(begun['disks'][0]['uri'])
        time.sleep(2)
        h.pread(512, 0)
        assert [b['id'] for b in daemon.ask('query-backups')] == [begun['id']]
        h.shutdown()
        data = daemon.event('BACKUP_ENDED')
        assert data == {'id': begun['id'], 'result': 'expired'}, data
        assert checkpoints(daemon) == {'c1': ['a']}
        assert daemon.ask('query-backups') == []


def whom_somebody_renews_stays():
    with start(('a',)) as daemon:
        begun = begin(daemon, 'a', expire=2)
        for _ in range(8):
            time.sleep(0.5)
            daemon.ask('backup-renew', id=begun['id'])
        assert [b['id'] for b in daemon.ask('query-backups')] == [begun['id']]
        data = daemon.event('BACKUP_ENDED')
        assert data == {'id': begun['id'], 'result': 'expired'}, data
        refused(daemon, 'There is no backup', 'backup-renew', id=begun['id'])


def who_stays_connected_is_disconnected():
    with start(('a',)) as daemon:
        begun = begin(daemon, 'a')
        idle = connect(begun['disks'][0]['uri'])
        stuck = connect(begun['disks'][0]['uri'])
        for _ in range(64):  # it does not read what it has asked for
            stuck.aio_pread(nbd.Buffer(MIB), 0)
        end(daemon, begun)
        try:
            idle.pread(512, 0)
        except nbd.Error:
            pass
        else:
            raise AssertionError('a backup that has ended can be read')


def it_may_have_a_server_of_its_own():
    with start(('a',)) as daemon:
        begun = begin(daemon, 'a',
                      listen={'type': 'unix', 'path': 'pull.sock'})
        disk = begun['disks'][0]
        assert disk['export'] == 'a' and 'pull.sock' in disk['uri'], disk
        assert 'a@' not in run('nbdinfo', '--list', live(''))
        servers = {e['id']: e.get('server')
                   for e in daemon.ask('query-block-exports')}
        assert servers == {'a': None, begun['id'] + ':a': begun['id']}, servers
        run('nbdcopy', disk['uri'], 'a.copy')
        end(daemon, begun)
        assert not os.path.exists('pull.sock')
        run('nbdinfo', '--size', live('a'))
        begun = begin(daemon, 'a')
        assert begun['disks'][0]['export'] == 'a@' + begun['id']
        end(daemon, begun)


def a_disk_that_cannot_store_has_checkpoints_in_memory():
    with start(('a',), 'raw') as daemon:
        h = connect(live('a'))
        begun = begin(daemon, 'a', checkpoint='c1')
        assert checkpoints(daemon) == {}
        end(daemon, begun)
        assert checkpoints(daemon) == {'c1': ['a']}
        h.pwrite(b'x' * SLOT, SLOT)
        begun = begin(daemon, {'node': 'a', 'since': 'c1'})
        assert dirty(begun['disks'][0]) == [(SLOT, SLOT)]
        end(daemon, begun)


def without_room_the_snapshot_goes_not_the_write():
    with start(('a',)) as daemon:
        h = connect(live('a'))
        for i in range(0, SIZE, MIB):
            h.pwrite(b'1' * MIB, i)
        end(daemon, begin(daemon, 'a', checkpoint='c1'))
        for quota in -1, 1 << 63:
            refused(daemon, 'less than 2^63', 'backup-begin',
                    disks=[{'node': 'a'}],
                    scratch={'dir': '.', 'quota': quota})
        begun = begin(daemon, 'a', checkpoint='c2',
                      scratch={'dir': '.', 'quota': 4 * MIB})
        for i in range(0, SIZE, MIB):
            h.pwrite(b'2' * MIB, i)
        data = daemon.event('BACKUP_SNAPSHOT_LOST')
        assert data['id'] == begun['id'] and data['node'] == 'a', data
        c = connect(begun['disks'][0]['uri'])
        try:
            c.pread(512, 0)
        except nbd.Error as e:
            assert e.errno == 'EIO', e
        else:
            raise AssertionError('a lost snapshot can be read')
        refused(daemon, 'was lost', 'backup-end', id=begun['id'], success=True)
        end(daemon, begun, success=False)
        assert checkpoints(daemon) == {'c1': ['a']}
        begun = begin(daemon, {'node': 'a', 'since': 'c1'})
        assert dirty(begun['disks'][0]) == [(0, SIZE)]
        end(daemon, begun)


def what_was_pulled_is_not_kept():
    with start(('a',)) as daemon:
        h = connect(live('a'))
        for i in range(0, SIZE, MIB):
            h.pwrite(b'1' * MIB, i)
        scratch = {'dir': '.', 'quota': 4 * MIB}
        for arguments in ({'once': True}, {'discard': True}):
            begun = begin(daemon, 'a', scratch=scratch, **arguments)
            c = connect(begun['disks'][0]['uri'])
            assert c.is_read_only() == ('once' in arguments)
            for i in range(0, SIZE, MIB):
                assert c.pread(MIB, i)[:1] == b'1', i
                if 'discard' in arguments:
                    c.trim(MIB, i)
            if 'discard' in arguments:
                try:
                    c.pwrite(b'9' * SLOT, 0)
                except nbd.Error:
                    pass
                else:
                    raise AssertionError('the past was written to')
            # More than fits, if any of it were kept.
            for i in range(0, SIZE, MIB):
                h.pwrite(b'1' * MIB, i)
            disk = daemon.ask('query-backups')[0]['disks'][0]
            assert disk['copied'] == 0 and disk['clients'] == 1, disk
            c.shutdown()
            end(daemon, begun)
        assert 'BACKUP_SNAPSHOT_LOST' not in str(daemon.events)


def other_clients_see_the_same():
    with start(('a',)) as daemon:
        h = connect(live('a'))
        for i in range(0, 16):
            h.pwrite(bytes([i + 1]) * SLOT, 3 * i * SLOT)
        end(daemon, begin(daemon, 'a', checkpoint='c1'))
        h.pwrite(b'x' * SLOT, 0)
        h.pwrite(b'y' * 3 * SLOT, 8 * SLOT)
        begun = begin(daemon, {'node': 'a', 'since': 'c1'})
        disk = begun['disks'][0]
        image = (f'driver=nbd,server.type=unix,server.path=nbd.sock,'
                 f"export={disk['export']},x-dirty-bitmap={disk['context']}")
        # What qemu-img calls data there is what the bitmap does not have.
        runs = [(m['start'], m['length']) for m in json.loads(run(
            'qemu-img', 'map', '--image-opts', '--output=json', image))
            if not m['data']]
        assert runs == dirty(disk) == [(0, SLOT), (8 * SLOT, 3 * SLOT)], runs
        lines = json.loads(run('nbdinfo', '--json',
                               '--map=' + disk['context'], disk['uri']))
        assert [(m['offset'], m['length']) for m in lines
                if m['type'] == 1] == runs, lines
        end(daemon, begun)
        begun = begin(daemon, 'a')
        h.pwrite(b'z' * MIB, 0)
        run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2',
            begun['disks'][0]['uri'], 'a.qcow2')
        run('nbdcopy', begun['disks'][0]['uri'], 'a.copy')
        run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', 'a.qcow2',
            'a.copy')
        with open('a.copy', 'rb') as f:
            assert f.read(SLOT) == b'x' * SLOT
        end(daemon, begun)


for scenario in (three_disks_one_instant,
                 failure_and_crash_leave_the_old_checkpoint,
                 any_checkpoint_is_a_start_and_none_needs_another,
                 a_full_backup_in_place_of_an_increment_says_why,
                 whom_nobody_reads_it_expires,
                 whom_somebody_renews_stays,
                 who_stays_connected_is_disconnected, it_may_have_a_server_of_its_own,
                 a_disk_that_cannot_store_has_checkpoints_in_memory,
                 without_room_the_snapshot_goes_not_the_write,
                 what_was_pulled_is_not_kept,
                 other_clients_see_the_same):
    print(scenario.__name__, flush=True)
    scenario()
    for name in os.listdir('.'):
        if not name.endswith('.pid'):
            os.unlink(name)
