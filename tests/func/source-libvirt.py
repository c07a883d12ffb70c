#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The work of source-libvirt.sh."""
import glob
import os
import signal
import subprocess
import sys
import time

from libvirt_daemon import Libvirt, private
from source_driver import MIB, Source, ranges, same
from stopped import stop

ID = 'a1b2c3'
SIZE = 16 * MIB
os.environ['TMPDIR'] = os.getcwd() + '/tmp'
HERE = os.getcwd()


def disk(name, fmt='qcow2', size=SIZE):
    path = f'{HERE}/{name}.{fmt}'
    subprocess.run(['qemu-img', 'create', '-q', '-f', fmt, path, str(size)],
                   check=True)
    return path


def copy_of(path, raw, fmt='qcow2'):
    """As the disk is now; the guests write only when they are told to."""
    subprocess.run(['qemu-img', 'convert', '-U', '-f', fmt, '-O', 'raw', path,
                    raw], check=True)


def source(v, name='vm', **options):
    return Source('libvirt:' + name, ID, connect=v.uri, **options)


def opened(s):
    assert 'disks' in s.opened, s.opened
    return [d['name'] for d in s.opened['disks']]


def left(v, name='vm'):
    """All that a backup may leave, except checkpoints."""
    return ([j['id'] for j in v.ask(name, 'query-jobs')] +
            [e['id'] for e in v.ask(name, 'query-block-exports')] +
            [n['node-name'] for n in v.ask(name, 'query-named-block-nodes')
             if '/nbdelta-' in n.get('file', '')] +
            glob.glob(HERE + '/tmp/*') +
            glob.glob('/var/lib/libvirt/qemu/domain-*/nbdelta-*sock'))


def checkpoints(s):
    return sorted((n, d, why) for n, d, why in s.ask('list'))


def apply(raw, part, dirty):
    """Write the dirty ranges of @part over @raw."""
    with open(raw, 'r+b') as to, open(part, 'rb') as f:
        to.truncate(os.path.getsize(part))
        for at, length in dirty:
            f.seek(at)
            to.seek(at)
            to.write(f.read(length))


# --- Full, then increments ---

def full_and_increments(v):
    files = {n: disk(n, f) for n, f in (('vda', 'qcow2'), ('vdb', 'qcow2'),
                                        ('vdc', 'raw'), ('vdd', 'qcow2'))}
    v.define('vm', [('vda', files['vda'], 'qcow2', ''),
                    ('vdb', files['vdb'], 'qcow2', ''),
                    ('vdc', files['vdc'], 'raw', ''),
                    ('vdd', files['vdd'], 'qcow2', '<readonly/>'),
                    ('sda', None, 'raw', '')])
    for i in range(3):
        v.io('vm', i, f'write -P {i + 1} {i}M 2M', 'flush')
    with source(v) as s:
        assert opened(s) == ['vda', 'vdb', 'vdc'], s.opened
        assert s.opened['version'].startswith('libvirt '), s.opened
        assert [d['size'] for d in s.opened['disks']] == [SIZE] * 3
        for n, fmt in (('vda', 'qcow2'), ('vdb', 'qcow2'), ('vdc', 'raw')):
            copy_of(files[n], f'{n}.1', fmt)
        disks = s.begin('nbdelta-1', 'vda', 'vdb', 'vdc')
        assert disks['vdc']['reason'] == 'no-bitmaps', disks['vdc']
        assert [disks[n]['checkpoint'] for n in ('vda', 'vdb', 'vdc')] == \
            [True, True, False]
        assert 'reason' not in disks['vda'] and 'dirty' not in disks['vda']
        for i in range(3):
            v.io('vm', i, f'write -P {i + 11} 0 4M', 'write -P 9 8M 64k')
        for n in disks:
            s.did('read', n, f'{n}.raw')
            subprocess.run(['cmp', f'{n}.raw', f'{n}.1'], check=True)
        s.did('renew')
        s.did('end', 'keep')
        assert checkpoints(s) == [('nbdelta-1', 'vda', None),
                                  ('nbdelta-1', 'vdb', None)]
    assert left(v) == [], left(v)

    # Two more, each since the one before.
    for k in (2, 3):
        v.io('vm', 0, f'write -P {k + 20} {k + 3}M 192k', 'flush')
        v.io('vm', 1, 'flush')
        copy_of(files['vda'], f'vda.{k}')
        copy_of(files['vdb'], f'vdb.{k}')
        with source(v) as s:
            since = f'nbdelta-{k - 1}'
            disks = s.begin(f'nbdelta-{k}', f'vda={since}', f'vdb={since}',
                            f'vdc={since}')
            assert disks['vdc']['reason'] == 'no-bitmaps'
            assert 'reason' not in disks['vda'], disks['vda']
            if k == 3:
                assert ranges(disks['vda']) == [(6 * MIB, 3 * 65536)]
                assert ranges(disks['vdb']) == []
            v.io('vm', 0, 'write -P 77 0 16M')
            for n in ('vda', 'vdb'):
                s.did('read', n, f'{n}.part')
                apply(f'{n}.raw', f'{n}.part', ranges(disks[n]))
                subprocess.run(['cmp', f'{n}.raw', f'{n}.{k}'], check=True)
            s.did('end', 'keep')
            s.did('forget', since)
            s.did('forget', since)      # it is no failure
            # What the guest wrote after the instant is in the next one.
            v.io('vm', 0, f'write -P {k} 0 16M', 'flush')
            if k == 2:
                disks = s.begin('-', 'vda=nbdelta-2')
                assert ranges(disks['vda']) == [(0, SIZE)]
                s.did('end', 'drop')
                # So that the next increment is a small one.
                s.begin('nbdelta-2b', 'vda', 'vdb')
                s.did('end', 'keep')
                s.did('forget', 'nbdelta-2')
                v.virsh('checkpoint-list', 'vm')
                s.begin('nbdelta-2', 'vda', 'vdb')
                s.did('end', 'keep')
                copy_of(files['vda'], 'vda.raw')
                copy_of(files['vdb'], 'vdb.raw')
                s.did('forget', 'nbdelta-2b')
    assert list(v.bitmaps('vm', files['vda'])) == ['nbdelta-3']
    assert left(v) == [], left(v)
    return files


# --- Every way out ---

def ways_out(v, files):
    before = v.bitmaps('vm', files['vda'])
    with source(v) as s:
        s.begin('nbdelta-4', 'vda=nbdelta-3')
        s.did('end', 'drop')
        assert left(v) == []
        answer = s.ask('begin', 'nbdelta-3', 'vda')
        assert answer['errno'] == 17, answer
    assert v.bitmaps('vm', files['vda']) == before
    # Closed without an end, and told to end.
    for how in ('close', signal.SIGTERM):
        s = source(v)
        s.begin('nbdelta-5', 'vda=nbdelta-3')
        if how == 'close':
            s.close()
        else:
            s.signal(how)
        assert left(v) == [], left(v)
        assert v.bitmaps('vm', files['vda']) == before
    # Killed: the next one finds and ends it, and leaves others' jobs.
    s = source(v)
    s.begin('nbdelta-6', 'vda=nbdelta-3')
    s.signal(signal.SIGKILL)
    assert left(v) != []
    with source(v) as s:
        assert left(v) == [], left(v)
        assert ('nbdelta-6', 'vda', None) in checkpoints(s)
        s.did('forget', 'nbdelta-6')
    assert v.bitmaps('vm', files['vda']) == before
    # An address of TCP.
    with source(v, nbd='nbd://127.0.0.1:10831') as s:
        s.begin('-', 'vda')
        s.did('read', 'vda', 'vda.part')
        same('vda.part', files['vda'])
        s.did('end', 'drop')
    # Scratch files where told; nowhere, all is as before.
    os.mkdir('elsewhere')
    with source(v, scratch=HERE + '/elsewhere') as s:
        s.begin('-', 'vda')
        assert glob.glob('elsewhere/nbdelta-*/*-vda.qcow2'), 'no scratch file'
        s.did('end', 'drop')
        assert os.listdir('elsewhere') == []
    with source(v, scratch=HERE + '/nowhere') as s:
        answer = s.ask('begin', 'nbdelta-7', 'vda=nbdelta-3')
        assert 'nowhere' in answer['error'], answer
    assert v.bitmaps('vm', files['vda']) == before
    assert left(v) == [], left(v)


def others_jobs(v, files):
    with open('backup.xml', 'w', encoding='utf-8') as f:
        f.write("<domainbackup mode='pull'><server transport='unix' socket='"
                f"{HERE}/other.sock'/><disks><disk name='vda' type='file'>"
                f"<scratch file='{HERE}/other.qcow2'/></disk></disks>"
                "</domainbackup>")
    v.virsh('backup-begin', 'vm', 'backup.xml')
    with source(v) as s:
        answer = s.ask('begin', 'nbdelta-7', 'vdb')
        assert answer['errno'] == 16 and 'another job' in answer['error'], \
            answer
    v.virsh('domjobabort', 'vm')
    while 'None' not in v.virsh('domjobinfo', 'vm'):
        time.sleep(0.05)
    v.virsh('blockcopy', 'vm', 'vda', f'{HERE}/copy.qcow2', '--bandwidth',
            '1', '--transient-job')
    with source(v) as s:
        answer = s.ask('begin', 'nbdelta-7', 'vda')
        assert answer['errno'] == 16 and 'vda' in answer['error'], answer
        s.begin('nbdelta-7', 'vdb')     # the job is not on this one
        s.did('end', 'drop')
    v.virsh('blockjob', 'vm', 'vda', '--abort')
    assert list(v.bitmaps('vm', files['vda'])) == ['nbdelta-3']


# --- What is lost ---

def lost_metadata(v, files):
    v.virsh('checkpoint-delete', 'vm', 'nbdelta-3', '--metadata')
    assert v.virsh('checkpoint-list', 'vm', '--name').split() == []
    assert list(v.bitmaps('vm', files['vda'])) == ['nbdelta-3']
    copy_of(files['vda'], 'vda.raw')
    v.io('vm', 0, 'write -P 99 1M 64k', 'flush')
    with source(v) as s:
        disks = s.begin('nbdelta-8', 'vda=nbdelta-3', 'vdb=nbdelta-3')
        for d in disks.values():
            assert 'reason' not in d and d['dirty'], d
        s.did('end', 'keep')
        assert ('nbdelta-3', 'vda', None) in checkpoints(s)
        # A checkpoint without metadata goes, too.
        v.virsh('checkpoint-delete', 'vm', 'nbdelta-3', '--metadata')
        s.did('forget', 'nbdelta-3')
        assert list(v.bitmaps('vm', files['vda'])) == ['nbdelta-8']
        assert list(v.bitmaps('vm', files['vdb'])) == ['nbdelta-8']
        # The new one's name has a bitmap without metadata already.
        v.ask('vm', 'block-dirty-bitmap-add', name='nbdelta-9',
              node=v.nodes('vm')[files['vda']]['node-name'], persistent=True)
        s.begin('nbdelta-9', 'vda=nbdelta-8', 'vdb=nbdelta-8')
        s.did('end', 'keep')
        s.did('forget', 'nbdelta-8')


def lost_bitmap(v, files):
    v.ask('vm', 'block-dirty-bitmap-remove', name='nbdelta-9',
          node=v.nodes('vm')[files['vdb']]['node-name'])
    with source(v) as s:
        assert checkpoints(s) == [('nbdelta-9', 'vda', None),
                                  ('nbdelta-9', 'vdb', 'bitmap-inconsistent')]
        disks = s.begin('nbdelta-10', 'vda=nbdelta-9', 'vdb=nbdelta-9')
        assert disks['vdb']['reason'] == 'no-checkpoint', disks['vdb']
        assert 'reason' not in disks['vda'], disks['vda']
        s.did('end', 'keep')
        s.did('forget', 'nbdelta-9')
        # No bitmap is left of it at all.
        for n in ('vda', 'vdb'):
            v.ask('vm', 'block-dirty-bitmap-remove', name='nbdelta-10',
                  node=v.nodes('vm')[files[n]]['node-name'])
        disks = s.begin('nbdelta-11', 'vda=nbdelta-10', 'vdb=nbdelta-10')
        assert [d['reason'] for d in disks.values()] == ['no-checkpoint'] * 2
        s.did('end', 'keep')
        assert [n for n, _, _ in checkpoints(s)] == ['nbdelta-11'] * 2


def crash(v, files):
    # Stored when the domain ends, opened again, and then never closed.
    v.virsh('destroy', '--graceful', 'vm')
    v.virsh('start', '--paused', 'vm')
    os.kill(v.pid('vm'), signal.SIGKILL)
    while 'shut off' not in v.virsh('domstate', 'vm'):
        time.sleep(0.05)
    s = source(v)
    assert s.opened['errno'] == 19, s.opened
    assert files['vda'] in s.opened['error'], s.opened
    s.close(1)
    v.virsh('start', '--paused', 'vm')
    assert v.bitmaps('vm', files['vda']) == {'nbdelta-11': True}
    with source(v) as s:
        disks = s.begin('nbdelta-12', 'vda=nbdelta-11', 'vdb=nbdelta-11')
        assert [d['reason'] for d in disks.values()] == \
            ['bitmap-inconsistent'] * 2, disks
        copy_of(files['vda'], 'vda.raw')
        s.did('read', 'vda', 'vda.part')
        subprocess.run(['cmp', 'vda.raw', 'vda.part'], check=True)
        s.did('end', 'keep')
    for n in ('vda', 'vdb'):
        assert v.bitmaps('vm', files[n]) == {'nbdelta-12': False}
    # A domain that ends in order keeps them; the one that ends while it is
    # backed up says so.
    v.virsh('destroy', '--graceful', 'vm')
    v.virsh('start', '--paused', 'vm')
    s = source(v)
    disks = s.begin('nbdelta-13', 'vda=nbdelta-12')
    assert 'reason' not in disks['vda'], disks
    v.virsh('destroy', '--graceful', 'vm')
    answer = s.ask('end', 'keep')
    assert 'frozen no more' in answer['error'], answer
    s.close()
    v.virsh('start', '--paused', 'vm')
    with source(v) as s:
        names = {n for n, _, _ in checkpoints(s)}
        assert 'nbdelta-12' in names, names
        s.did('forget', 'nbdelta-13')
        s.did('forget', 'nbdelta-12')
    assert v.bitmaps('vm', files['vda']) == {}


# --- Disks that come, go and grow ---

def changed_disks(v, files):
    with source(v) as s:
        s.begin('nbdelta-20', 'vda', 'vdb')
        s.did('end', 'keep')
    copy_of(files['vda'], 'vda.raw')
    v.virsh('blockresize', 'vm', 'vda', '20M')
    v.io('vm', 0, 'write -P 5 18M 64k', 'flush')
    copy_of(files['vda'], 'vda.now')
    # A guest that does not run lets go of no disk.
    v.virsh('detach-disk', 'vm', 'vdb', '--config')
    v.virsh('destroy', '--graceful', 'vm')
    v.virsh('start', '--paused', 'vm')
    files['vde'] = disk('vde')
    v.virsh('attach-disk', 'vm', files['vde'], 'vde', '--subdriver', 'qcow2')
    with source(v) as s:
        assert opened(s) == ['vda', 'vdc', 'vde'], s.opened
        assert checkpoints(s) == [('nbdelta-20', 'vda', None)]
        disks = s.begin('nbdelta-21', 'vda=nbdelta-20', 'vde=nbdelta-20')
        assert disks['vda']['size'] == 20 * MIB
        assert disks['vde']['reason'] == 'no-checkpoint', disks['vde']
        assert ranges(disks['vda']) == [(18 * MIB, 65536)], disks['vda']
        s.did('read', 'vda', 'vda.part')
        apply('vda.raw', 'vda.part', ranges(disks['vda']))
        subprocess.run(['cmp', 'vda.raw', 'vda.now'], check=True)
        s.did('end', 'keep')
        s.did('forget', 'nbdelta-20')
        s.did('forget', 'nbdelta-21')


# --- The daemon, and QEMU ---

def daemon_dies(v, files):
    with source(v) as s:
        s.begin('nbdelta-30', 'vda')
        copy_of(files['vda'], 'vda.raw')
        v.end(signal.SIGKILL)
        s.did('read', 'vda', 'vda.part')
        v.start()
        subprocess.run(['cmp', 'vda.raw', 'vda.part'], check=True)
        s.did('renew')
        s.did('end', 'keep')
        assert checkpoints(s) == [('nbdelta-30', 'vda', None)]
    assert left(v) == [], left(v)
    # Nobody is there.
    v.end()
    begin = time.monotonic()
    s = source(v)
    assert 'error' in s.opened, s.opened
    s.close(1)
    assert time.monotonic() - begin < 30
    v.start()


def qemu_hangs(v, _):
    s = source(v, timeout='2')
    pid = v.pid('vm')
    stop(pid)
    try:
        begin = time.monotonic()
        answer = s.ask('begin', 'nbdelta-31', 'vda=nbdelta-30')
        assert answer['errno'] in (110, 16), answer
        assert time.monotonic() - begin < 60
    finally:
        os.kill(pid, signal.SIGCONT)
    s.close()
    with source(v) as s:
        for n in {n for n, _, _ in checkpoints(s)}:
            s.did('forget', n)
    assert left(v) == [], left(v)


def transient(v, _):
    path = disk('tda')
    with open('tm.xml', 'w', encoding='utf-8') as f:
        f.write(v.xml('tm', [('vda', path, 'qcow2', '')]))
    v.virsh('create', '--paused', 'tm.xml')
    with source(v, 'tm') as s:
        s.begin('nbdelta-40', 'vda')
        s.did('end', 'keep')
    # Libvirt forgets the checkpoint with the domain; the image has it.
    v.virsh('destroy', '--graceful', 'tm')
    v.virsh('create', '--paused', 'tm.xml')
    assert v.virsh('checkpoint-list', 'tm', '--name').split() == []
    copy_of(path, 'tda.raw')
    v.io('tm', 0, 'write -P 3 2M 64k', 'flush')
    with source(v, 'tm') as s:
        disks = s.begin('nbdelta-41', 'vda=nbdelta-40')
        assert ranges(disks['vda']) == [(2 * MIB, 65536)], disks
        s.did('end', 'keep')
        answer = s.ask('definition')
        assert "<name>tm</name>" in answer['xml'], answer
    v.virsh('destroy', 'tm')


def file_systems(v, _):
    v.virsh('resume', 'vm')
    with source(v) as s:
        answer = s.ask('freeze')
        assert 'agent' in answer['error'].lower(), answer
        s.did('thaw')
    # Libvirt's driver for tests has an agent, in a way.
    with Source('libvirt:test', ID, connect='test:///default') as s:
        s.did('freeze')
        s.did('freeze')
        s.did('thaw')
        s.did('freeze')
        begin = time.monotonic()
        time.sleep(10.5)
        answer = s.ask('thaw')
        assert answer['errno'] == 110, answer
        assert time.monotonic() - begin < 30
    for what, word in (('libvirt:nosuch', 'nosuch'), ('libvirt:', 'which')):
        s = Source(what, ID, connect=v.uri)
        assert word in s.opened['error'], s.opened
        s.close(1)


def main():
    os.mkdir('tmp')
    if not private():
        print('no mount namespace for a libvirt daemon of its own')
        return 77
    try:
        v = Libvirt()
    except RuntimeError as e:
        with open('libvirtd.log', encoding='utf-8') as f:
            print(f.read())
        print(e)
        return 77
    try:
        files = full_and_increments(v)
        for part in (ways_out, others_jobs, lost_metadata, lost_bitmap, crash,
                     changed_disks, daemon_dies, qemu_hangs, transient,
                     file_systems):
            begin = time.monotonic()
            part(v, files)
            print(f'{part.__name__}: {time.monotonic() - begin:.1f} s')
    finally:
        v.close()
    return 0


sys.exit(main())
