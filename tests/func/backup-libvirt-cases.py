#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""backup-libvirt-cases.py [CASE...]: the work of backup-libvirt-cases.sh."""
import glob
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid

from libvirt_backup import (HERE, MIB, NBDELTA, Backups, command, image, same,
                            until, with_libvirt)

SIZE = 8 * MIB


def make(v, name, disks=('vda', 'vdb'), fmt='qcow2', *options):
    """A domain of that name; its directory, {disk: file}."""
    files = {n: image(f'{name}-{n}', SIZE, fmt, *options) for n in disks}
    v.define(name, [(n, path, fmt, '') for n, path in files.items()])
    for i in range(len(disks)):
        v.io(name, i, f'write -P {i + 1} 0 1M', 'flush')
    return Backups(v, name, name + '-dir'), files


def first(v, name, disks=('vda', 'vdb')):
    b, files = make(v, name, disks)
    b.run()
    return b, files


def change(v, b, count=2, byte=77):
    for i in range(count):
        v.io(b.name, i, f'write -P {byte} {i + 2}M 64k', 'flush')


def right(b, files, formats=None):
    """The latest point is what the disks are now; nothing is left."""
    for n, path in files.items():
        same(b.file(n), path, (formats or {}).get(n, 'qcow2'))
    b.verify()
    b.clean()


def kinds(disks):
    """"increment", or why it is none."""
    return {n: d.get('reason', d['kind']) for n, d in disks.items()}


def restart(v, b):
    v.virsh('destroy', '--graceful', b.name)
    v.virsh('start', '--paused', b.name)


def remove_bitmap(v, b, path, name=None):
    v.ask(b.name, 'block-dirty-bitmap-remove', name=name or b.own()[-1],
          node=v.nodes(b.name)[path]['node-name'])


# --- Metadata and bitmaps that do not belong together ---

def metadata_lost(v):
    """Bitmaps have outlived the checkpoints that libvirt knew of."""
    b, files = first(v, 'meta')
    old = b.own()
    v.virsh('checkpoint-delete', 'meta', old[0], '--metadata')
    change(v, b)
    assert kinds(b.run()) == dict.fromkeys(files, 'increment')
    right(b, files)
    # The old one is gone from the images, too.
    assert len(b.own()) == 1 and b.own() != old
    for path in files.values():
        assert list(v.bitmaps('meta', path)) == b.own()


def transient(v):
    """Libvirt forgets its checkpoints whenever the domain ends."""
    path = image('tra', SIZE)
    with open('tra.xml', 'w', encoding='utf-8') as f:
        f.write(v.xml('tra', [('vda', path, 'qcow2', '')]).replace(
            '<memory ', f'<uuid>{uuid.uuid4()}</uuid><memory ', 1))
    v.virsh('create', '--paused', 'tra.xml')
    b = Backups(v, 'tra', 'tra-dir')
    b.run()
    for k in range(2):
        v.virsh('destroy', '--graceful', 'tra')
        v.virsh('create', '--paused', 'tra.xml')
        assert b.checkpoints() == []
        v.io('tra', 0, f'write -P {k + 5} {k}M 64k', 'flush')
        disks = b.run()
        assert kinds(disks) == {'vda': 'increment'}
        assert disks['vda']['written'] == 65536, disks
        right(b, {'vda': path})
        assert list(v.bitmaps('tra', path)) == b.own()
    # A bitmap of a run that was killed, of which libvirt knows no more.
    run = b.start('--rate=64k')
    v.io('tra', 0, 'write -P 9 4M 1M')
    until('the backup runs', b.busy)
    run.p.kill()
    run.wait()
    v.virsh('destroy', '--graceful', 'tra')
    v.virsh('create', '--paused', 'tra.xml')
    assert kinds(b.run(again=True)) == {'vda': 'increment'}
    right(b, {'vda': path})
    assert list(v.bitmaps('tra', path)) == b.own()
    v.virsh('destroy', 'tra')


def bitmap_lost(v):
    b, files = first(v, 'lost')
    remove_bitmap(v, b, files['vdb'])
    change(v, b)
    disks = b.run()
    assert kinds(disks) == {'vda': 'increment', 'vdb': 'no-checkpoint'}
    assert disks['vdb']['kind'] == 'compared', disks
    right(b, files)
    change(v, b, byte=78)
    assert kinds(b.run()) == dict.fromkeys(files, 'increment')
    right(b, files)
    remove_bitmap(v, b, files['vda'])
    assert kinds(b.run('--no-fallback'))['vda'] == 'no-checkpoint'
    assert len(b.own()) == 1


def killed_qemu(v):
    """Bitmaps that QEMU has not closed cannot be trusted."""
    b, files = first(v, 'crash')
    restart(v, b)
    change(v, b)
    os.kill(v.pid('crash'), signal.SIGKILL)
    until('libvirt sees it', lambda: 'shut off' in v.virsh('domstate', 'crash'))
    v.virsh('start', '--paused', 'crash')
    change(v, b, byte=78)
    assert kinds(b.run()) == \
        dict.fromkeys(files, 'bitmap-inconsistent')
    right(b, files)
    change(v, b, byte=79)
    assert kinds(b.run()) == dict.fromkeys(files, 'increment')
    right(b, files)
    for path in files.values():
        assert v.bitmaps('crash', path) == {b.own()[0]: False}


# --- Domains and disks that are not as one would like them ---

def shut_off(v):
    b, files = first(v, 'off')
    v.virsh('destroy', '--graceful', 'off')
    done = b.try_run()
    assert done.status == 1 and "'off' is shut off" in done.err, done.err
    assert 'virsh start --paused' in done.err and files['vda'] in done.err
    assert len(b.points()) == 1
    v.virsh('start', '--paused', 'off')
    assert kinds(b.run()) == dict.fromkeys(files, 'increment')
    right(b, files)
    for name, says in (('nosuch', 'nosuch'), ('', 'which domain')):
        done = Backups(v, name, 'nosuch-dir').try_run()
        assert done.status == (6 if name else 1) and says in done.err, done.err


def no_bitmaps(v):
    """Raw disks, and qcow2 ones of version 2, beside one that has bitmaps."""
    files = {'vda': image('fmt-vda', SIZE), 'vdb': image('fmt-vdb', SIZE, 'raw'),
             'vdc': image('fmt-vdc', SIZE, 'qcow2', '-o', 'compat=0.10')}
    formats = {'vdb': 'raw'}
    v.define('fmt', [(n, p, formats.get(n, 'qcow2'), '')
                     for n, p in files.items()])
    b = Backups(v, 'fmt', 'fmt-dir')
    for k in range(3):
        for i in range(3):
            v.io('fmt', i, f'write -P {10 * i + k + 1} {k}M 64k', 'flush')
        disks = b.run()
        for n, d in disks.items():
            assert (d['kind'], d.get('reason')) == \
                (('full', 'new-disk') if k == 0 else
                 ('increment', None) if n == 'vda' else
                 ('compared', 'no-bitmaps')), (k, d)
        right(b, files, formats)
        assert list(v.bitmaps('fmt', files['vda'])) == b.own()
        assert [n for n in files
                if v.bitmaps('fmt', files[n])] == ['vda'], files
    # No disk has a place for one.
    v.virsh('destroy', '--graceful', 'fmt')
    v.define('fmt2', [('vda', files['vdc'], 'qcow2', '')])
    b = Backups(v, 'fmt2', 'fmt2-dir')
    b.run()
    v.io('fmt2', 0, 'write -P 9 5M 64k', 'flush')
    assert kinds(b.run()) == {'vda': 'no-bitmaps'}
    right(b, {'vda': files['vdc']})


def disks_change(v):
    """Attached, detached, resized; each is what it should be."""
    b, files = first(v, 'chg')
    files['vdc'] = image('chg-vdc', SIZE)
    v.virsh('attach-disk', 'chg', files['vdc'], 'vdc', '--subdriver', 'qcow2',
            '--config', '--live')
    change(v, b)
    assert kinds(b.run()) == {'vda': 'increment', 'vdb': 'increment',
                              'vdc': 'new-disk'}
    right(b, files)
    v.virsh('blockresize', 'chg', 'vda', f'{12}M')
    v.io('chg', 0, 'write -P 5 11M 64k', 'flush')
    disks = b.run(status=3, says='resized')
    assert kinds(disks) == {'vda': 'resized', 'vdb': 'increment',
                            'vdc': 'increment'}
    assert disks['vda']['size'] == 12 * MIB
    right(b, files)
    v.virsh('detach-disk', 'chg', 'vdb', '--config')
    restart(v, b)
    gone = files.pop('vdb')
    assert kinds(b.run()) == dict.fromkeys(files, 'increment')
    right(b, files)
    assert not os.path.exists(b.file('vdb'))
    # Back again, with what the image has kept.
    v.virsh('attach-disk', 'chg', gone, 'vdb', '--subdriver', 'qcow2',
            '--config', '--live')
    files['vdb'] = gone
    assert kinds(b.run(status=3))['vdb'] == 'no-checkpoint'
    right(b, files)
    assert list(v.bitmaps('chg', gone)) == b.own()


def renamed(v):
    """Two disks change their names.  The bitmaps have the same name, and are
    about the other disk's points."""
    b, files = first(v, 'ren')
    v.io('ren', 0, 'write -P 31 3M 64k', 'flush')
    v.io('ren', 1, 'write -P 32 5M 64k', 'flush')
    v.virsh('destroy', '--graceful', 'ren')
    files['vda'], files['vdb'] = files['vdb'], files['vda']
    v.define('ren', [(n, p, 'qcow2', '') for n, p in files.items()])
    disks = b.run()
    assert kinds(disks) == dict.fromkeys(files, 'moved'), disks
    right(b, files)
    # One gets a name that was never there.
    v.virsh('destroy', '--graceful', 'ren')
    files['vdx'] = files.pop('vdb')
    v.define('ren', [(n, p, 'qcow2', '') for n, p in files.items()])
    assert kinds(b.run()) == {'vda': 'increment', 'vdx': 'new-disk'}
    right(b, files)
    for path in files.values():
        assert list(v.bitmaps('ren', path)) == b.own(), (path, b.own())


# --- Others ---

def others_jobs(v):
    b, files = first(v, 'job')
    with open('other.xml', 'w', encoding='utf-8') as f:
        f.write("<domainbackup mode='pull'><server transport='unix' "
                f"socket='{HERE}/other.sock'/><disks>"
                "<disk name='vda' backup='yes' type='file'>"
                f"<scratch file='{HERE}/other.scratch'/></disk>"
                "<disk name='vdb' backup='no'/></disks></domainbackup>")
    v.virsh('backup-begin', 'job', 'other.xml')
    try:
        done = b.try_run()
        assert done.status == 5 and 'another job' in done.err, done.err
        assert b.busy(), "another's backup was ended"
    finally:
        v.virsh('domjobabort', 'job')
    until('it has ended', lambda: not b.busy())
    # A job of one disk, which waits to be completed.
    v.virsh('blockcopy', 'job', 'vda', HERE + '/mirror.qcow2',
            '--transient-job')
    try:
        b.refused_busy = b.try_run()
        assert b.refused_busy.status == 5, b.refused_busy.err
        assert "'vda'" in b.refused_busy.err, b.refused_busy.err
    finally:
        v.virsh('blockjob', 'job', 'vda', '--abort')
    # Another run of the directory, and one of another directory.
    run = b.start('--rate=128k', '--full')
    until('it runs', b.busy)
    done = b.try_run()
    assert done.status == 5 and 'is in use by backup' in done.err, done.err
    other = Backups(v, 'job', 'job-dir2')
    done = other.try_run()
    assert done.status == 5, (done.status, done.err)
    assert other.points() == []
    run.p.send_signal(signal.SIGINT)
    assert run.wait().status == 7
    b.run()
    right(b, files)


def others_checkpoints(v):
    b, files = make(v, 'oth')
    v.virsh('checkpoint-create-as', 'oth', 'theirs')
    b.run()
    before = v.virsh('checkpoint-dumpxml', 'oth', 'theirs')
    b2 = Backups(v, 'oth', 'oth-dir2')
    for k in range(2):
        for who in (b, b2):
            change(v, who, byte=50 + k)
            got = kinds(who.run())
            assert got == dict.fromkeys(files, 'increment' if k or who is b
                                        else 'new-disk'), got
            right(who, files)
            assert len(who.own()) == 1
    assert len(b.checkpoints()) == 3
    v.virsh('checkpoint-create-as', 'oth', 'theirs-2')
    # One directory's go; those of all others stay.
    kept = [c for c in b.checkpoints() if c not in b.own()]
    done = b.try_run('--forget')
    assert (done.status, done.out, done.err) == (0, '', ''), done.err
    assert sorted(b.checkpoints()) == sorted(kept)
    for path in files.values():
        assert sorted(v.bitmaps('oth', path)) == sorted(kept)
    change(v, b2, byte=60)
    assert kinds(b2.run()) == dict.fromkeys(files, 'increment')
    right(b2, files)
    assert kinds(b.run()) == dict.fromkeys(files, 'no-checkpoint')
    right(b, files)
    assert v.virsh('checkpoint-dumpxml', 'oth', 'theirs') == before


# --- What dies in the middle ---

def started(v, b, *options):
    """A run that copies: the last MiB of each disk was not read yet."""
    for i in range(2):
        v.io(b.name, i, 'write -P 41 1M 7M', 'flush')
    run = b.start('--rate=2M', '--timeout=10', *options)
    until('it copies', lambda: run.p.poll() is not None or (
        b.busy() and glob.glob(b.dir + '/*/*.part')))
    assert run.p.poll() is None, run.wait().err
    return run


def daemon_restarts(v):
    b, files = first(v, 'ldr')
    for signo in (signal.SIGTERM, signal.SIGKILL):
        run = started(v, b)
        v.end(signo)
        v.start()
        run.wait()
        assert (run.status, run.err) == (0, ''), run.err
        b.point = b.points()[-1]
        right(b, files)
    # It does not come back in time.
    run = started(v, b)
    v.end(signal.SIGKILL)
    run.wait()
    assert run.status in (1, 6) and run.err, (run.status, run.err)
    v.start()
    assert kinds(b.run()) == dict.fromkeys(files, 'increment')
    right(b, files)
    assert len(b.own()) == 1


def tool_ends(v):
    b, files = first(v, 'end')
    for signo, twice in ((signal.SIGKILL, False), (signal.SIGINT, False),
                         (signal.SIGTERM, False), (signal.SIGHUP, False),
                         (signal.SIGINT, True)):
        before = b.points()
        run = started(v, b)
        run.p.send_signal(signo)
        if twice:
            time.sleep(0.01)
            run.p.send_signal(signo)
        run.wait(30)
        # The second signal may come when all is done.
        assert run.status in ((-9,) if signo == signal.SIGKILL else
                              (7, -2) if twice else (7,)), \
            (signo, run.status, run.err)
        assert b.points() == before
        if run.status == 7:
            assert 'interrupted' in run.err, run.err
            b.clean()
            assert len(b.own()) == 1
        assert kinds(b.run()) == dict.fromkeys(files, 'increment')
        right(b, files)
        assert len(b.own()) == 1
        for path in files.values():
            assert list(v.bitmaps('end', path)) == b.own()


def qemu_dies(v):
    b, files = first(v, 'qdi')
    run = started(v, b)
    os.kill(v.pid('qdi'), signal.SIGKILL)
    run.wait(60)
    assert run.status in (1, 6), (run.status, run.err)
    assert len(b.points()) == 1
    v.virsh('start', '--paused', 'qdi')
    # Nothing was open when it had its first checkpoint: no bitmap is stored.
    b.run()
    right(b, files)
    # It ends in order while it is copied.
    run = started(v, b)
    v.virsh('destroy', '--graceful', 'qdi')
    run.wait(60)
    assert run.status in (1, 6), (run.status, run.err)
    v.virsh('start', '--paused', 'qdi')
    assert kinds(b.run()) == dict.fromkeys(files, 'increment')
    right(b, files)


def scratch_full(v):
    """The guest cannot write, or the run fails; no point is wrong."""
    b, files = first(v, 'scr')
    os.mkdir('small')
    command('mount', '-t', 'tmpfs', '-o', 'size=1m', 'none', 'small')
    try:
        v.io('scr', 0, 'write -P 41 1M 7M', 'flush')
        shutil.copy(files['vda'], 'scr.was')
        run = b.start('--rate=2M', '--timeout=10', '--output=json',
                      f'--scratch={HERE}/small')
        until('it copies', lambda: b.busy() and glob.glob(b.dir + '/*/*.part'))
        said = v.try_virsh('qemu-monitor-command', 'scr', '--hmp',
                           'qemu-io -d /machine/peripheral/virtio-disk0/'
                           'virtio-backend "write -P 99 0 8M"')
        print(said.stdout)
        run.wait()
        print('status', run.status, run.err)
        if run.status == 0:
            b.point = b.points()[-1]
            same(b.file('vda'), 'scr.was', 'qcow2')
        b.clean()
        assert os.listdir('small') == []
    finally:
        command('umount', 'small')
    v.io('scr', 0, 'write -P 98 0 8M', 'flush')
    b.run()
    right(b, files)
    done = b.try_run(f'--scratch={HERE}/nowhere')
    assert done.status == 6 and 'nowhere' in done.err, done.err
    b.clean()


def target_full(v):
    b, files = make(v, 'tgt')
    os.mkdir('tgt-dir')
    command('mount', '-t', 'tmpfs', '-o', 'size=40m', 'none', 'tgt-dir')
    try:
        b.run()
        for i in range(2):
            v.io('tgt', i, 'write -P 41 0 8M', 'flush')
        with open('tgt-dir/filler', 'wb') as f:
            f.write(bytes(30 * MIB))
        b.refused(says='needed')
        os.unlink('tgt-dir/filler')
        assert kinds(b.run()) == dict.fromkeys(files, 'increment')
        right(b, files)
    finally:
        command('umount', 'tgt-dir')


def frozen(v):
    """Without a guest agent no point is made, and it is said why."""
    b, files = first(v, 'frz')
    for how in ('paused', 'running'):
        if how == 'running':
            v.virsh('resume', 'frz')
        err = b.refused('--freeze')
        assert how == 'paused' or 'agent' in err, err
        print(err)
    v.virsh('suspend', 'frz')
    change(v, b)
    assert kinds(b.run()) == dict.fromkeys(files, 'increment')
    right(b, files)


CASES = [frozen, metadata_lost, transient, bitmap_lost, killed_qemu, shut_off,
         no_bitmaps, disks_change, renamed, others_jobs, others_checkpoints,
         daemon_restarts, tool_ends, qemu_dies, scratch_full, target_full]


def work(v):
    wanted = sys.argv[1:]
    for case in CASES:
        if wanted and case.__name__ not in wanted:
            continue
        begin = time.monotonic()
        case(v)
        for name in v.virsh('list', '--name').split():
            v.virsh('destroy', name)
        print(f'{case.__name__}: {time.monotonic() - begin:.1f} s', flush=True)


sys.exit(with_libvirt(work))
