# SPDX-License-Identifier: BSD-3-Clause
# The scenarios of pull-others.sh.  argv: nbdelta.  Works in the current
# directory.
import os
import subprocess
import sys
import time

import nbd

import pull_util
from pull_util import begin, connect, end, live, refused

NBDELTA = sys.argv[1]
MIB = 1 << 20


def image(name):
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', f'{name}.img',
                    '8M'], check=True)


def start(*names):
    for name in names:
        if not os.path.exists(f'{name}.img'):
            image(name)
    return pull_util.start(NBDELTA, names)


def write(name, byte, length=MIB):
    h = connect(live(name))
    h.pwrite(byte * length, 0)
    h.shutdown()


def read(uri):
    """The byte that the first MiB is full of."""
    h = connect(uri)
    data = bytes(h.pread(MIB, 0))
    h.shutdown()
    assert data == data[:1] * MIB
    return data[:1]


def node_of(daemon, begun):
    """What the first disk of a backup is exported from."""
    name = f"{begun['id']}:{begun['disks'][0]['node']}"
    return next(e['node-name'] for e in daemon.ask('query-block-exports')
                if e['id'] == name)


def checkpoints(daemon):
    return [c['name'] for c in daemon.ask('checkpoint-list')]


def add_target(daemon):
    image('t')
    daemon.ask('blockdev-add', driver='qcow2', node_name='t',
               file={'driver': 'file', 'filename': 't.img'})


def the_filter_of_a_job_stands_for_its_disk():
    with start('a') as daemon:
        write('a', b'1', 4 * MIB)
        add_target(daemon)
        daemon.ask('blockdev-backup', device='a', target='t', sync='full',
                   job_id='j', speed=65536, filter_node_name='f')
        refused(daemon, "'a' is given twice", 'backup-begin',
                disks=[{'node': 'f'}, {'node': 'a'}])
        begun = begin(daemon, 'f', checkpoint='c1')
        daemon.ask('block-job-cancel', device='j', force=True)
        daemon.event('BLOCK_JOB_CANCELLED')
        write('a', b'2')
        disk = daemon.ask('query-backups')[0]['disks'][0]
        assert disk['node'] == 'a' and disk['size'] == 8 * MIB, disk
        assert read(disk['uri']) == b'1'
        end(daemon, begun)
        assert checkpoints(daemon) == ['c1']


def all_disks_are_those_of_no_backup():
    with start('a', 'b') as daemon:
        daemon.ask('block-export-add', id='a2', type='nbd', name='a2',
                   node_name='a')
        first = begin(daemon, 'a')
        begun = daemon.ask('backup-begin', checkpoint='c1')
        assert [d['node'] for d in begun['disks']] == ['a', 'b'], begun
        end(daemon, first)
        assert [d['node'] for d in daemon.ask('query-backups')[0]['disks']
                ] == ['a', 'b']
        end(daemon, begun)
        for name in 'a', 'b', 'a2':
            daemon.ask('block-export-del', id=name, mode='hard')
        refused(daemon, 'There are no exports', 'backup-begin')


def its_exports_are_no_devices():
    with start('a') as daemon:
        daemon.ask('block-export-del', id='a')
        daemon.ask('block-export-add', id='disk', type='nbd', name='disk',
                   node_name='a', writable=True)
        write('disk', b'1')
        begun = begin(daemon, 'a')
        assert begun['disks'][0]['export'] == 'a', begun
        write('disk', b'2')
        daemon.ask('drive-backup', device='a', sync='full', target='copy.raw',
                   format='raw', job_id='j')
        daemon.event('BLOCK_JOB_COMPLETED')
        with open('copy.raw', 'rb') as f:
            assert f.read(MIB) == b'2' * MIB
        assert read(begun['disks'][0]['uri']) == b'1'
        # Nor can anybody else have an export by its id when it is gone.
        name = f"{begun['id']}:a"
        daemon.ask('block-export-del', id=name, mode='hard')
        refused(daemon, 'Invalid block export id', 'block-export-add', id=name,
                type='nbd', name='mine', node_name='a')
        end(daemon, begun)


def who_reads_on_after_the_end_gets_errors():
    """Not what a later backup keeps, in whose place it would be."""
    with start('a') as daemon:
        write('a', b'1')
        first = begin(daemon, 'a')
        past = node_of(daemon, first)
        daemon.ask('block-export-add', id='past', type='nbd', name='past',
                   node_name=past)
        add_target(daemon)
        daemon.ask('blockdev-backup', device=past, target='t', sync='full',
                   job_id='j', speed=1)
        write('a', b'2')
        second = begin(daemon, 'a')
        write('a', b'3')
        assert read(live('past')) == b'1'
        end(daemon, first)
        try:
            read(live('past'))
        except nbd.Error as e:
            assert e.errno == 'EIO', e
        else:
            raise AssertionError('it is still there')
        daemon.ask('block-job-set-speed', device='j', speed=0)
        done = daemon.event('BLOCK_JOB_COMPLETED')
        assert 'error' in done, done
        assert read(second['disks'][0]['uri']) == b'2'
        end(daemon, second)
        assert read(live('a')) == b'3'


def a_checkpoint_that_may_be_forgotten_is_none():
    with start('a') as daemon:
        first = begin(daemon, 'a', checkpoint='c1')
        second = begin(daemon, {'node': 'a', 'since': 'c1'}, checkpoint='c2')
        disk = second['disks'][0]
        assert (disk['mode'], disk['reason']) == (
            'full', 'checkpoint-pending'), disk
        refused(daemon, "no checkpoint 'c1'", 'backup-end', id=second['id'],
                success=True, drop=['c1'])
        end(daemon, first, success=False)
        end(daemon, second)
        assert checkpoints(daemon) == ['c2']
        begun = begin(daemon, {'node': 'a', 'since': 'c2'})
        assert begun['disks'][0]['mode'] == 'incremental', begun
        end(daemon, begun, drop=['c2'])


def a_checkpoint_that_is_gone_keeps_no_backup():
    """A script that was interrupted after its end drops the same again."""
    with start('a') as daemon:
        end(daemon, begin(daemon, 'a', checkpoint='c1'))
        begun = begin(daemon, 'a', checkpoint='c2')
        end(daemon, begun, drop=['c1', 'never-was'])
        end(daemon, begin(daemon, 'a', checkpoint='c3'), drop=['c1', 'c2'])
        assert checkpoints(daemon) == ['c3']


def backups_that_nobody_ends_have_a_bound():
    with start('a') as daemon:
        begun = [begin(daemon, 'a') for _ in range(16)]
        sessions = daemon.ask('query-backups')
        assert all(s['expire'] == 86400 for s in sessions), sessions
        refused(daemon, 'not ended', 'backup-begin', disks=[{'node': 'a'}])
        end(daemon, begun[0], success=False)
        last = daemon.ask('backup-begin', disks=[{'node': 'a'}], expire=0)
        assert 'expire' not in daemon.ask('query-backups')[-1]
        for b in begun[1:] + [last]:
            end(daemon, b, success=False)


def what_is_inconsistent_can_be_dropped():
    with start('a') as daemon:
        end(daemon, begin(daemon, 'a', checkpoint='c1'))
    # QEMU leaves it in use when it is killed while it has the image open.
    qemu = subprocess.Popen(
        ['qemu-io', '-f', 'qcow2', '-c', 'write 0 64k', '-c', 'abort',
         'a.img'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    qemu.wait()
    with start('a') as daemon:
        begun = begin(daemon, {'node': 'a', 'since': 'c1'}, checkpoint='c2')
        assert begun['disks'][0]['reason'] == 'bitmap-inconsistent', begun
        end(daemon, begun, drop=['c1'])
        assert checkpoints(daemon) == ['c2']


def a_snapshot_meanwhile_changes_nothing_of_the_past():
    with start('a') as daemon:
        write('a', b'1')
        begun = begin(daemon, 'a', checkpoint='c1')
        daemon.ask('blockdev-snapshot-sync', node_name='a',
                   snapshot_file='over.img', snapshot_node_name='over')
        write('a', b'2')
        uri = begun['disks'][0]['uri']
        assert read(uri) == b'1'
        second = begin(daemon, {'node': 'over', 'since': 'c1'})
        assert second['disks'][0]['reason'] == 'base-bitmap', second
        write('a', b'3')
        assert read(second['disks'][0]['uri']) == b'2'
        assert read(uri) == b'1'
        # What the overlay gets is not in the bitmap, so it is no checkpoint.
        refused(daemon, 'read-only', 'backup-end', id=begun['id'],
                success=True)
        assert len(daemon.ask('query-backups')) == 2
        end(daemon, begun, success=False)
        assert read(second['disks'][0]['uri']) == b'2'
        end(daemon, second)
        assert read(live('a')) == b'3'


def without_its_exports_it_expires():
    with start('a') as daemon:
        refused(daemon, "'expire' expects", 'backup-begin',
                disks=[{'node': 'a'}], expire=1 << 34)
        refused(daemon, "'expire' expects", 'backup-begin',
                disks=[{'node': 'a'}], expire=-1)
        begun = begin(daemon, 'a', expire=1, checkpoint='c1')
        h = connect(begun['disks'][0]['uri'])
        daemon.ask('block-export-del', id=f"{begun['id']}:a", mode='hard')
        assert daemon.event('BACKUP_ENDED') == {'id': begun['id'],
                                                'result': 'expired'}
        assert daemon.ask('query-backups') == []
        del h
        forever = begin(daemon, 'a', expire=(1 << 32) - 1)
        time.sleep(0.1)
        assert daemon.ask('query-backups')[0]['id'] == forever['id']
        end(daemon, forever)
        # A server of its own that somebody stops.
        begun = begin(daemon, 'a', checkpoint='c2',
                      listen={'type': 'unix', 'path': 'own.sock'})
        daemon.ask('nbd-server-stop', id=begun['id'])
        end(daemon, begun)
        assert checkpoints(daemon) == ['c2']


def no_other_export_holds_up_its_end():
    with start('a') as daemon:
        image('t')
        daemon.ask('blockdev-add', driver='qcow2', node_name='slow',
                   file={'driver': 'blkdebug', 'image': {
                       'driver': 'file', 'filename': 't.img'}})
        daemon.ask('block-export-add', id='slow', type='nbd', name='slow',
                   node_name='slow', writable=True)

        def debug(command):
            return daemon.ask('human-monitor-command',
                              command_line=f'qemu-io slow "{command}"')

        debug('break write_aio A')
        h = connect(live('slow'))
        h.aio_pwrite(bytes(65536), 0)
        while h.aio_in_flight() and not h.aio_is_ready():
            h.poll(1000)
        debug('wait_break A')
        begun = begin(daemon, 'a')
        daemon.ask('block-export-del', id='slow', mode='hard')
        end(daemon, begun)
        assert [e['id'] for e in daemon.ask('query-block-exports')
                if e['shutting-down']] == ['slow']
        debug('resume A')
        gone = [daemon.event('BLOCK_EXPORT_DELETED')['id'] for _ in range(2)]
        assert gone == [f"{begun['id']}:a", 'slow'], gone


def names_may_be_odd():
    with start('a') as daemon:
        for name in 'x' * 1023, 'a/b=c@d \u00fc', '@dirty=', '%41#?&':
            end(daemon, begin(daemon, 'a', checkpoint=name))
            assert checkpoints(daemon) == [name]
            begun = begin(daemon, {'node': 'a', 'since': name,
                                   'export': name})
            disk = begun['disks'][0]
            assert disk['mode'] == 'incremental', disk
            h = connect(disk['uri'], disk['context'])
            assert h.get_export_name() == name
            h.shutdown()
            end(daemon, begun, drop=[name])
        for text, arguments in (
                ('too long', {'checkpoint': 'x' * 1024}),
                ('cannot be empty', {'checkpoint': ''}),
                ('too long', {'disks': [{'node': 'a', 'export': 'x' * 4097}]}),
                ('1 to 256', {'disks': []}),
                ('1 to 256', {'disks': [{'node': 'a'}] * 257}),
                ('given twice', {'disks': [{'node': 'a'}] * 256})):
            refused(daemon, text, 'backup-begin',
                    **{'disks': [{'node': 'a'}], **arguments})
        assert daemon.ask('query-backups') == []
        assert checkpoints(daemon) == []


for scenario in (the_filter_of_a_job_stands_for_its_disk,
                 all_disks_are_those_of_no_backup,
                 its_exports_are_no_devices,
                 who_reads_on_after_the_end_gets_errors,
                 a_checkpoint_that_may_be_forgotten_is_none,
                 a_checkpoint_that_is_gone_keeps_no_backup,
                 backups_that_nobody_ends_have_a_bound,
                 what_is_inconsistent_can_be_dropped,
                 a_snapshot_meanwhile_changes_nothing_of_the_past,
                 without_its_exports_it_expires,
                 no_other_export_holds_up_its_end,
                 names_may_be_odd):
    print(scenario.__name__, flush=True)
    scenario()
    for path in os.listdir('.'):
        os.unlink(path)
