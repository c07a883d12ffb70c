#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""source-qemu.py: see source-qemu.sh."""
import errno
import glob
import os
import pwd
import signal
import subprocess
import tempfile
import time

from source_driver import MIB, Qemu, Source, ranges, same
from stopped import stop

ID = '0123456789abcdef0123456789abcdef'
OTHER = 'f' * 32
VDA = '/machine/peripheral/vda/virtio-backend'
VDB = '/machine/peripheral-anon/device[0]/virtio-backend'
C1, C2, C3 = (f'nbdelta-{ID}-2026112{n}T000000Z' for n in (1, 2, 3))
THEIRS = f'nbdelta-{OTHER}-20261121T000000Z'


def run(*words):
    subprocess.run(words, check=True)


def make_images():
    for name in ('vda', 'vdb'):
        run('qemu-img', 'create', '-q', '-f', 'qcow2', f'{name}.qcow2', '8M')
    run('truncate', '-s', '4M', 'vdc.raw')


def start(*options):
    """vda by its device's id, vdb by its node, vdc raw; a CD; an empty one."""
    return Qemu(
        '-blockdev', 'qcow2,node-name=a,file.driver=file,'
        'file.filename=vda.qcow2,discard=unmap',
        '-device', 'virtio-blk-pci,drive=a,id=vda',
        '-blockdev', 'qcow2,node-name=vdb,file.driver=file,'
        'file.filename=vdb.qcow2', '-device', 'virtio-blk-pci,drive=vdb',
        '-drive', 'if=none,id=vdc,format=raw,file=vdc.raw',
        '-device', 'virtio-blk-pci,drive=vdc',
        '-drive', 'if=none,id=cd0,media=cdrom,format=raw,file=vdc.raw,'
        'readonly=on,file.locking=off',
        '-device', 'ide-cd,drive=cd0,bus=ide.0',
        '-device', 'ide-cd,id=empty,bus=ide.1', *options)


def left(qemu):
    tmp = os.environ['TMPDIR']
    dirs = glob.glob(f'{tmp}/nbdelta-*')
    return qemu.left() + dirs + (['server'] if qemu.has_server() else [])


def one_instant_and_increments():
    with start() as qemu:
        qemu.io(VDA, 'write -P 1 0 2M')
        with Source('qemu.sock', ID) as s:
            assert s.opened['kind'] == 'qemu', s.opened
            assert s.opened['version'].startswith('QEMU '), s.opened
            assert {d['name']: d['size'] // MIB for d in s.opened['disks']} \
                == {'vda': 8, 'vdb': 8, 'vdc': 4}, s.opened
            disks = s.begin(C1)
            assert disks['vda']['checkpoint'] and disks['vdb']['checkpoint']
            assert disks['vdc']['reason'] == 'no-bitmaps', disks['vdc']
            assert not disks['vdc']['checkpoint']
            assert ranges(disks['vda']) == [(0, 8 * MIB)], disks
            modes = [os.stat(d).st_mode & 0o777 for d in glob.glob(
                f"{os.environ['TMPDIR']}/nbdelta-{ID}.*")]
            assert modes == [0o700, 0o700], modes
            qemu.io(VDA, 'flush')
            run('cp', 'vda.qcow2', 'then.qcow2')
            qemu.io(VDA,
                    'write -P 9 7M 4k')
            s.did('read', 'vda', 'a.raw')
            s.did('read', 'vdc', 'c.raw')
            s.did('renew')
            s.did('end', 'keep')
            assert qemu.bitmaps() == {'a': [C1], 'vdb': [C1]}, qemu.bitmaps()
        assert left(qemu) == [], left(qemu)
        qemu.io(VDA, 'write -P 2 1M 2M')
        qemu.io(VDB, 'write -P 3 4M 64k')
        with Source('qemu.sock', ID) as s:
            disks = s.begin(C2, f'vda={C1}', f'vdb={C1}', f'vdc={C1}')
            assert ranges(disks['vda']) == [(MIB, 2 * MIB),
                                            (7 * MIB, 65536)], disks
            assert ranges(disks['vdb']) == [(4 * MIB, 65536)], disks
            assert disks['vdc']['reason'] == 'no-bitmaps', disks
            assert ranges(disks['vdc']) == [(0, 4 * MIB)], disks
            s.did('end', 'drop')
            assert qemu.bitmaps() == {'a': [C1], 'vdb': [C1]}
            assert left(qemu) == [], left(qemu)
            disks = s.begin(C2, 'vda=nosuch', f'vdb={C1}')
            assert disks['vda']['reason'] == 'no-checkpoint', disks
            s.did('end', 'keep')
            assert sorted(s.ask('list')) == [
                [C1, 'vda', None], [C1, 'vdb', None],
                [C2, 'vda', None], [C2, 'vdb', None]]
            s.did('forget', C1)
            s.did('forget', C1)
            assert qemu.bitmaps() == {'a': [C2], 'vdb': [C2]}
    with start() as qemu:  # QEMU has kept it
        with Source('qemu.sock', ID) as s:
            assert sorted(s.ask('list')) == [[C2, 'vda', None],
                                             [C2, 'vdb', None]]
            s.did('forget', C2)
        assert left(qemu) == [], left(qemu)


def what_the_guest_overwrites_is_kept():
    with start() as qemu:
        qemu.io(VDA, 'write -P 1 0 8M')
        with Source('qemu.sock', ID) as s:
            s.begin(C3)
            qemu.io(VDA, 'write -P 2 1M 3M')
            qemu.io(VDA, 'write -z 6M 1M')
            s.did('read', 'vda', 'a.raw')
            with open('a.raw', 'rb') as f:
                assert f.read() == b'\1' * (8 * MIB)
            s.did('end', 'keep')
        with Source('qemu.sock', ID) as s:
            disks = s.begin('-', f'vda={C3}')
            assert ranges(disks['vda']) == [(MIB, 3 * MIB),
                                            (6 * MIB, MIB)], disks
            assert not disks['vda']['checkpoint']
            s.did('end', 'drop')
            s.did('forget', C3)
        assert left(qemu) == [], left(qemu)


def who_goes_takes_all_away():
    with start() as qemu:
        for how in (None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = qemu.bitmaps()
            s = Source('qemu.sock', ID)
            s.begin(C1)
            assert qemu.left()
            if how:
                s.signal(how)
            else:
                s.close()
            assert left(qemu) == [], (how, left(qemu))
            assert qemu.bitmaps() == before, (how, qemu.bitmaps())


def what_a_killed_run_leaves_goes_with_the_next():
    with start() as qemu:
        with Source('qemu.sock', OTHER) as s:
            s.begin(THEIRS, 'vdb')
            s.did('end', 'keep')
        before = qemu.bitmaps()
        for _ in range(2):
            s = Source('qemu.sock', ID)
            s.begin(C1)
            s.signal(signal.SIGKILL)
            assert qemu.left()
            with Source('qemu.sock', ID) as s:
                assert qemu.left() == [], qemu.left()
                s.did('forget', C1)
            assert left(qemu) == [], left(qemu)
            assert qemu.bitmaps() == before, qemu.bitmaps()
        with Source('qemu.sock', ID) as s:
            s.did('forget', THEIRS)


def a_server_that_runs_is_used_and_stays():
    with start() as qemu:
        for addr, uri in (
                ({'type': 'unix', 'data': {'path': 'nbd.sock'}},
                 f'nbd+unix:///?socket={os.getcwd()}/nbd.sock'),
                ({'type': 'inet', 'data': {'host': '127.0.0.1',
                                           'port': '0'}}, None)):
            if addr['type'] == 'unix':
                addr['data']['path'] = os.path.abspath('nbd.sock')
            qemu.ask('nbd-server-start', addr=addr)
            qemu.ask('block-export-add', type='nbd', id='theirs',
                     node_name='vdb')
            for options in ({}, {'nbd': uri}) if uri else ({},):
                with Source('qemu.sock', ID, **options) as s:
                    s.begin(C1)
                    s.did('read', 'vda', 'a.raw')
                    s.did('end', 'drop')
                assert qemu.has_server()
                assert qemu.left() == ['theirs'], qemu.left()
            qemu.ask('nbd-server-stop')
            assert left(qemu) == [], left(qemu)


def a_busy_monitor_says_so_soon():
    with start() as qemu:
        with Source('qemu.sock', ID):
            before = time.monotonic()
            s = Source('qemu.sock', OTHER)
            assert 'another client may be connected' in s.opened['error']
            assert time.monotonic() - before < 8
            s.p.stdin.close()
            s.ended(1)
        stop(qemu.p.pid)
        s = Source('qemu.sock', OTHER)
        assert 'does not answer within 5 s' in s.opened['error'], s.opened
        s.p.stdin.close()
        s.ended(1)
        qemu.p.send_signal(signal.SIGCONT)


def end_theirs(qemu):
    qemu.ask('block-job-cancel', device='theirs', force=True)
    while qemu.ask('query-jobs'):
        time.sleep(0.02)


def failures_leave_nothing():
    with start() as qemu:
        with Source('qemu.sock', ID) as s:
            # Somebody else has a job on the second disk.
            qemu.ask('blockdev-add', driver='null-co', node_name='void',
                     size=8 * MIB)
            qemu.ask('blockdev-mirror', device='vdb', target='void',
                     sync='none', job_id='theirs')
            before = qemu.bitmaps()
            answer = s.ask('begin', C1)
            assert 'is busy' in answer['error'], answer
            assert answer['errno'] == errno.EBUSY, answer
            assert qemu.left() == ['theirs'], qemu.left()
            assert qemu.bitmaps() == before
            end_theirs(qemu)
        # The job's filter is what QEMU shows as the disk.
        qemu.ask('blockdev-mirror', device='vdb', target='void', sync='none',
                 job_id='theirs', filter_node_name='filter')
        with Source('qemu.sock', ID) as s:
            answer = s.ask('begin', C1)
            assert 'has a job at QEMU' in answer['error'], answer
        end_theirs(qemu)
        with Source('qemu.sock', ID) as s:
            # Somebody ends ours: the disk is frozen no more.
            s.begin(C1)
            mine = [j['id'] for j in qemu.ask('query-jobs')]
            qemu.ask('block-job-cancel', device=mine[0], force=True)
            while len(qemu.ask('query-jobs')) == len(mine):
                time.sleep(0.02)
            assert 'frozen no more' in s.ask('renew')['error']
            assert 'frozen no more' in s.ask('end', 'keep')['error']
            s.did('end', 'drop')
            assert left(qemu) == [], left(qemu)
            assert qemu.bitmaps() == {}, qemu.bitmaps()
            # A checkpoint of this name is there: it stays.
            qemu.ask('block-dirty-bitmap-add', node='a', name=C1,
                     persistent=True)
            assert 'has a checkpoint' in s.ask('begin', C1)['error']
            assert qemu.bitmaps() == {'a': [C1]}
            s.did('forget', C1)
        assert left(qemu) == [], left(qemu)


def bitmaps_of_a_crash_are_told():
    with start() as qemu:
        with Source('qemu.sock', ID) as s:
            s.begin(C1)
            s.did('end', 'keep')
    qemu = start()
    qemu.io(VDA, 'write -P 5 0 4k')
    qemu.kill()
    with start() as qemu:
        with Source('qemu.sock', ID) as s:
            assert [C1, 'vda', 'bitmap-inconsistent'] in s.ask('list')
            disks = s.begin(C2, f'vda={C1}')
            assert disks['vda']['reason'] == 'bitmap-inconsistent', disks
            assert disks['vda']['checkpoint']
            s.did('end', 'keep')
            s.did('forget', C1)
            s.did('forget', C2)
        assert left(qemu) == [], left(qemu)


def a_qemu_that_hangs_holds_nobody_up():
    with start() as qemu:
        for begun in (True, False):
            s = Source('qemu.sock', ID, timeout=2)
            if begun:
                s.begin(C1)
                stop(qemu.p.pid)
            else:
                stop(qemu.p.pid)
                s.send('begin', C1)
                time.sleep(0.2)
            before = time.monotonic()
            s.signal(signal.SIGTERM)
            assert time.monotonic() - before < 30
            qemu.p.send_signal(signal.SIGCONT)
            with Source('qemu.sock', ID) as s:
                s.did('forget', C1)
            assert left(qemu) == [], left(qemu)
            assert qemu.bitmaps() == {}, qemu.bitmaps()


def another_user_is_given_what_it_needs():
    if os.geteuid() != 0:
        return
    for name in ('.', os.environ['TMPDIR'], 'vda.qcow2', 'vdb.qcow2',
                 'vdc.raw'):
        os.chown(name, pwd.getpwnam('nobody').pw_uid, -1)
    # QEMU 10 has another word for it.
    said = subprocess.run(['qemu-system-x86_64', '-help'], check=True,
                          capture_output=True, text=True).stdout
    as_nobody = (['-runas', 'nobody'] if '-runas' in said
                 else ['-run-with', 'user=nobody'])
    with start(*as_nobody) as qemu:
        with Source('qemu.sock', ID) as s:
            s.begin(C1)
            s.did('read', 'vda', 'a.raw')
            s.did('end', 'drop')
        s = Source('qemu.sock', ID)
        s.begin(C1)
        s.signal(signal.SIGKILL)
        with Source('qemu.sock', ID) as s:
            s.did('forget', C1)
        assert left(qemu) == [], left(qemu)


def a_qemu_that_dies_ends_the_backup():
    qemu = start()
    s = Source('qemu.sock', ID)
    s.begin(C1)
    qemu.kill()
    assert 'error' in s.ask('renew')
    assert 'error' in s.ask('end', 'keep')
    assert 'error' in s.ask('end', 'drop')
    s.close()
    assert glob.glob(f"{os.environ['TMPDIR']}/nbdelta-*") == []


with tempfile.TemporaryDirectory(dir='/tmp') as tmp:
    os.environ['TMPDIR'] = tmp
    make_images()
    for scenario in (one_instant_and_increments,
                     what_the_guest_overwrites_is_kept,
                     who_goes_takes_all_away,
                     what_a_killed_run_leaves_goes_with_the_next,
                     a_server_that_runs_is_used_and_stays,
                     a_busy_monitor_says_so_soon,
                     failures_leave_nothing,
                     bitmaps_of_a_crash_are_told,
                     a_qemu_that_hangs_holds_nobody_up,
                     a_qemu_that_dies_ends_the_backup,
                     another_user_is_given_what_it_needs):
        print(scenario.__name__, flush=True)
        scenario()
