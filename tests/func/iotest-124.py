# SPDX-License-Identifier: BSD-3-Clause
# The scenarios of iotest-124.sh.  argv: nbdelta, then the disks' format and,
# after a comma, options for their creation.  Works in the current directory.
import os
import subprocess
import sys
import time

from qmp_daemon import Daemon

NBDELTA = sys.argv[1]
FORMAT, _, OPTIONS = sys.argv[2].partition(',')
MIB = 1 << 20

START = ['write -P 0x41 0 512', 'write -P 0xd5 1M 32k',
         'write -P 0xdc 32M 124k']
FIRST = ['write -P 0xab 0 512', 'write -P 0xfe 16M 256k',
         'write -P 0x64 32736k 64k']
SECOND = ['write -P 0x9a 0 512', 'write -P 0x55 8M 352k',
          'write -P 0x78 15872k 1M']
# What FIRST dirties with a granularity of 64 KiB: 1, 4 and 2 pieces.
FIRST_DIRTY = 7 * 65536

# The first read after the first flush fails.
FAIL_A_READ = {
    'set-state': [{'event': 'flush_to_disk', 'state': 1, 'new_state': 2}],
    'inject-error': [{'event': 'read_aio', 'errno': 5, 'state': 2,
                      'immediately': False, 'once': True}],
}


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=120)
    assert done.returncode == 0, (command, done.stdout)


def create(name, size='64M', fmt='qcow2', parent=None, options=''):
    args = ['-o', options] if options else []
    if parent:
        args += ['-b', parent, '-F', 'qcow2']
    run('qemu-img', 'create', '-q', '-f', fmt, *args, name, size)


def io(fmt, image, commands):
    run('qemu-io', '-f', fmt,
        *[word for c in commands for word in ('-c', c)], image)


class Disk:
    """A node with an export, a full backup and a chain of increments."""

    def __init__(self, daemon, name='drive0', file=None, start=START):
        self.daemon = daemon
        self.name = name
        self.image = name + '.img'
        self.uri = f'nbd+unix:///{name}?socket=nbd.sock'
        self.tips = {}     # of the chain of a bitmap
        self.backups = []  # and raw copies of what the disk was then
        create(self.image, fmt=FORMAT, options=OPTIONS)
        io(FORMAT, self.image, start)
        child = {'driver': 'file', 'filename': self.image}
        if file:
            child = {'driver': 'blkdebug', 'image': child, **file}
        daemon.ask('blockdev-add', driver=FORMAT, node_name=name, file=child)
        self.export()

    def export(self):
        self.daemon.ask('block-export-add', type='nbd', id=self.name,
                        node_name=self.name, name=self.name, writable=True)

    def write(self, commands):
        io('raw', self.uri, commands + ['flush'])

    def full(self):
        data = self.backup(sync='full', target=self.name + '.full')
        assert 'error' not in data and data['len'] == 64 * MIB, data

    def backup(self, **arguments):
        self.daemon.ask('drive-backup', device=self.name, job_id=self.name,
                        format='qcow2', **arguments)
        return self.daemon.end_of(self.name)

    def bitmap(self, name='bitmap0', **arguments):
        self.daemon.ask('block-dirty-bitmap-add', node=self.name, name=name,
                        **arguments)

    def bitmap_is(self, name='bitmap0', **expected):
        for node in self.daemon.ask('query-named-block-nodes'):
            if node['node-name'] == self.name:
                bitmap, = [b for b in node['dirty-bitmaps']
                           if b.get('name') == name]
                assert expected.items() <= bitmap.items(), bitmap

    def tip(self, bitmap):
        return self.tips.get(bitmap, self.name + '.full')

    def target(self, bitmap='bitmap0', size='64M'):
        name = f'{self.name}.{bitmap}.{len(self.backups)}'
        if os.path.exists(name):
            os.unlink(name)
        create(name, size, parent=self.tip(bitmap))
        return name

    def arguments(self, target, bitmap='bitmap0'):
        return {'sync': 'incremental', 'bitmap': bitmap, 'target': target,
                'mode': 'existing'}

    def keep(self, target, bitmap='bitmap0'):
        """A backup that nothing was written since: it is the disk."""
        copy = f'{target}.copy'
        run('qemu-img', 'compare', '-q', '-f', 'raw', '-F', 'qcow2', self.uri,
            target)
        run('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', self.uri, copy)
        self.tips[bitmap] = target
        self.backups.append((target, copy))

    def increment(self, bitmap='bitmap0', **how):
        target = self.target(bitmap, **how)
        data = self.backup(**self.arguments(target, bitmap))
        assert 'error' not in data, data
        self.keep(target, bitmap)
        return data['len']

    def check(self):
        """With the daemon gone: old backups, the newest, and the disk."""
        for target, copy in self.backups:
            run('qemu-img', 'check', '-q', '-f', 'qcow2', target)
            run('qemu-img', 'compare', '-q', '-f', 'qcow2', '-F', 'raw',
                target, copy)
        for target in self.tips.values():
            run('qemu-img', 'compare', '-q', '-f', FORMAT, '-F', 'qcow2',
                self.image, target)
        if FORMAT == 'qcow2':
            run('qemu-img', 'check', '-q', self.image)


# --- One disk ---


def simple(**how):
    with Daemon(NBDELTA) as daemon:
        disk = Disk(daemon)
        disk.full()
        disk.bitmap(**how)
        assert disk.increment() == 0
        disk.write(FIRST)
        assert disk.increment() > 0
        disk.write(SECOND)
        assert disk.increment() > 0
        daemon.quiet()
    disk.check()


def small_granularity():
    simple(granularity=32768)


def large_granularity():
    simple(granularity=131072)


def larger_cluster_target():
    for size in '128k', '2M':
        with Daemon(NBDELTA) as daemon:
            disk = Disk(daemon)
            create('drive0.full', options='cluster_size=' + size)
            data = disk.backup(sync='full', target='drive0.full',
                               mode='existing')
            assert 'error' not in data, data
            disk.bitmap()
            disk.write(FIRST)
            disk.bitmap_is(count=FIRST_DIRTY, granularity=65536,
                           persistent=False)
            # Without a backing file: clusters of it are copied whole.
            create('inc', options='cluster_size=' + size)
            data = disk.backup(**disk.arguments('inc'))
            assert 'error' not in data, data
            run('qemu-img', 'rebase', '-f', 'qcow2', '-u', '-b',
                'drive0.full', '-F', 'qcow2', 'inc')
            disk.keep('inc')
            daemon.quiet()
        disk.check()
        clean()


def missing_bitmap():
    with Daemon(NBDELTA) as daemon:
        Disk(daemon)
        daemon.refuses('drive-backup', device='drive0', sync='incremental',
                       format='qcow2', target='no')
    assert not os.path.exists('no')


def unknown_bitmap():
    with Daemon(NBDELTA) as daemon:
        Disk(daemon)
        daemon.refuses('drive-backup', device='drive0', sync='incremental',
                       format='qcow2', target='no', bitmap='unknown')
    assert not os.path.exists('no')


def bad_granularity():
    with Daemon(NBDELTA) as daemon:
        Disk(daemon)
        for granularity in 64000, 0, 256, 1 << 32:
            daemon.refuses('block-dirty-bitmap-add', node='drive0',
                           name='bitmap0', granularity=granularity)


def growing():
    with Daemon(NBDELTA) as daemon:
        disk = Disk(daemon)
        disk.full()
        disk.bitmap()
        daemon.ask('block-export-del', id='drive0')
        daemon.ask('block_resize', node_name='drive0', size=65 * MIB)
        disk.export()
        disk.write(['write -P 0x77 64M 64k'])
        disk.increment(size='65M')
    disk.check()


def failure():
    with Daemon(NBDELTA) as daemon:
        disk = Disk(daemon, file=FAIL_A_READ)
        disk.full()
        disk.bitmap()
        disk.write(FIRST)
        data = disk.backup(**disk.arguments(disk.target()))
        assert data.get('error') == 'Input/output error', data
        error = daemon.event('BLOCK_JOB_ERROR', device='drive0')
        assert error == {'device': 'drive0', 'operation': 'read',
                         'action': 'report'}, error
        disk.bitmap_is(count=FIRST_DIRTY, busy=False)
        disk.write(SECOND)
        assert disk.increment() > FIRST_DIRTY
        daemon.quiet()
    disk.check()


def pause():
    with Daemon(NBDELTA) as daemon:
        disk = Disk(daemon, file=FAIL_A_READ)
        disk.full()
        disk.bitmap()
        disk.write(FIRST)
        disk.bitmap_is(count=FIRST_DIRTY, busy=False, recording=True)
        target = disk.target()
        daemon.ask('drive-backup', device='drive0', job_id='drive0',
                   format='qcow2', on_source_error='stop',
                   **disk.arguments(target))
        error = daemon.event('BLOCK_JOB_ERROR', device='drive0')
        assert error == {'device': 'drive0', 'operation': 'read',
                         'action': 'stop'}, error
        disk.bitmap_is(count=FIRST_DIRTY, busy=True, recording=True)
        daemon.ask('block-job-resume', device='drive0')
        data = daemon.end_of('drive0')
        assert data['len'] == FIRST_DIRTY and 'error' not in data, data
        disk.bitmap_is(count=0, busy=False, recording=True)
        disk.keep(target)
        daemon.quiet()
    disk.check()


# --- Transactions ---


def action(kind, **data):
    return {'type': kind,
            'data': {k.replace('_', '-'): v for k, v in data.items()}}


def transaction():
    with Daemon(NBDELTA) as daemon:
        disk = Disk(daemon)
        disk.bitmap('bitmap0')
        disk.write(FIRST)
        disk.bitmap('bitmap1')
        daemon.ask('transaction', actions=[
            action('block-dirty-bitmap-clear', node='drive0', name='bitmap0'),
            action('block-dirty-bitmap-clear', node='drive0', name='bitmap1'),
            action('drive-backup', device='drive0', job_id='drive0',
                   sync='full', format='qcow2', target='drive0.full')])
        assert 'error' not in daemon.end_of('drive0')
        disk.write(SECOND)
        assert disk.increment('bitmap0') == disk.increment('bitmap1') > 0
        daemon.quiet()
    disk.check()


def increments(disks, targets):
    """All of them, or none: a grouped transaction."""
    disks[0].daemon.ask(
        'transaction', properties={'completion-mode': 'grouped'},
        actions=[action('drive-backup', device=d.name, job_id=d.name,
                        format='qcow2', **d.arguments(t))
                 for d, t in zip(disks, targets)])


def transaction_failure(race=False):
    with Daemon(NBDELTA) as daemon:
        disks = [Disk(daemon),
                 Disk(daemon, 'drive1', FAIL_A_READ,
                      ['write -P 0x14 0 512', 'write -P 0x5d 1M 32k',
                       'write -P 0xcd 32M 124k'])]
        for disk in disks:
            disk.bitmap()
            disk.full()
        daemon.quiet()
        # In the race the first has nothing to do, and is cancelled anyway.
        if not race:
            disks[0].write(FIRST)
        disks[1].write(['write -P 0xba 0 512', 'write -P 0xef 16M 256k',
                        'write -P 0x46 32736k 64k'])
        increments(disks, [d.target() for d in disks])
        daemon.event('BLOCK_JOB_CANCELLED', device='drive0')
        daemon.event('JOB_STATUS_CHANGE', id='drive0', status='null')
        data = daemon.end_of('drive1')
        assert data.get('error') == 'Input/output error', data
        error = daemon.event('BLOCK_JOB_ERROR', device='drive1')
        assert error == {'device': 'drive1', 'operation': 'read',
                         'action': 'report'}, error
        daemon.quiet()
        # Nothing is lost: the same once more.
        disks[0].bitmap_is(count=0 if race else FIRST_DIRTY, busy=False)
        disks[1].bitmap_is(count=FIRST_DIRTY, busy=False)
        targets = [d.target() for d in disks]
        increments(disks, targets)
        for disk, target in zip(disks, targets):
            assert 'error' not in daemon.end_of(disk.name)
            disk.bitmap_is(count=0)
            disk.keep(target)
        daemon.quiet()
    for disk in disks:
        disk.check()


def transaction_failure_race():
    transaction_failure(race=True)


def four_disks_under_fio():
    with Daemon(NBDELTA) as daemon:
        disks = [Disk(daemon, f'drive{i}') for i in range(4)]
        for disk in disks:
            disk.bitmap()
            disk.full()
        writers = []
        try:
            for i, disk in enumerate(disks):
                writers.append(subprocess.Popen(
                    ['fio', '--name=w', '--ioengine=nbd', '--uri=' + disk.uri,
                     '--rw=randwrite', '--bsrange=512-128k', '--bs_unaligned',
                     '--size=64M', '--iodepth=8', f'--randseed={i + 1}',
                     '--refill_buffers', '--time_based', '--runtime=600',
                     '--rate_iops=,120'], stdout=subprocess.DEVNULL))
            for _ in range(4):
                # Something is dirty everywhere: backups do not come for free.
                while any(b['count'] == 0
                          for n in daemon.ask('query-named-block-nodes')
                          for b in n.get('dirty-bitmaps', [])):
                    assert all(w.poll() is None for w in writers)
                    time.sleep(0.02)
                targets = [d.target() for d in disks]
                increments(disks, targets)
                for disk, target in zip(disks, targets):
                    data = daemon.end_of(disk.name)
                    assert 'error' not in data and data['len'] > 0, data
                    disk.tips['bitmap0'] = target
                    copy = target + '.copy'
                    run('qemu-img', 'convert', '-O', 'raw', target, copy)
                    disk.backups.append((target, copy))
                assert all(w.poll() is None for w in writers)
        finally:
            for writer in writers:
                writer.terminate()
            for writer in writers:
                writer.wait(60)
        for disk in disks:
            disk.increment()
        daemon.quiet()
    for disk in disks:
        disk.check()


def clean():
    for name in os.listdir('.'):
        os.unlink(name)


# Once, because the load is the same for all formats.
under_load = (four_disks_under_fio,) if FORMAT == 'qcow2' and not OPTIONS else ()
for scenario in (simple, small_granularity, large_granularity,
                 larger_cluster_target, transaction, transaction_failure,
                 transaction_failure_race, missing_bitmap, unknown_bitmap,
                 bad_granularity, growing, failure, pause, *under_load):
    print(scenario.__name__, flush=True)
    scenario()
    clean()
