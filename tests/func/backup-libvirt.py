#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The work of backup-libvirt.sh."""
import os
import subprocess
import sys
import threading

from libvirt_backup import (HERE, MIB, NBDELTA, Backups, command, copy_of,
                            image, same, until, with_libvirt)

SIZES = {'vda': 24 * MIB, 'vdb': 16 * MIB, 'vdc': 8 * MIB}
SLOT = 65536


def make_domain(v):
    files = {n: image(n, size) for n, size in SIZES.items()}
    v.define('vm', [(n, path, 'qcow2', '') for n, path in files.items()])
    return files


def freeze_copies(v, files, tag):
    for i, (n, path) in enumerate(files.items()):
        v.io('vm', i, 'flush')
        copy_of(path, f'{n}.{tag}')


# --- Points that are made while the guest writes ---

def points_under_writes(v, b, files):
    """Each equals a copy from before it began, whatever is written while it is
    copied, as slowly as it takes."""
    for k in range(4):
        for i, size in enumerate(SIZES.values()):
            v.io('vm', i, f'write -P {10 * k + i + 1} {k}M {(i + 1) * 192}k',
                 f'write -P {70 + k} {size - (k + 1) * SLOT} {SLOT}',
                 f'write -z {7 - i}M 64k')
        freeze_copies(v, files, k)
        run = b.start('--output=json', '--rate=8M')
        until('the backup runs', lambda: b.busy() or run.p.poll() is not None)
        for i in range(3):
            v.io('vm', i, f'write -P {200 + k} {k}M 3M',
                 f'write -P {100 + k} 6M 2M', f'discard {7 - k}M 1M')
        run.wait()
        assert (run.status, run.err) == (0, ''), (run.status, run.err)
        b.point = b.points()[-1]
        for d in b.manifest()['disks']:
            assert (d['kind'], d['reason']) == \
                (('increment', None) if k else ('full', 'new-disk')), d
            assert not k or d['written'] < SIZES[d['name']], d
        b.clean()
        assert b.checkpoints() == [b.manifest()['disks'][0]['checkpoint']]
    for k, point in enumerate(b.points()):
        for n in files:
            same(b.file(n, point), f'{n}.{k}')
    b.verify()


# --- One instant of all disks ---

def write_slots(v, end, count):
    """One after the other, to each disk in turn: slot i has byte i + 1."""
    for i in range(count):
        if end.is_set():
            break
        v.io('vm', i % 3, f'write -P {i + 1} {i // 3 * SLOT} {SLOT}')


def slots_of(b, count):
    """What the point has of them."""
    there = []
    disks = []
    for n in SIZES:
        copy_of(b.file(n), n + '.slots')
        with open(n + '.slots', 'rb') as f:
            disks.append(f.read())
    for i in range(count):
        at = i // 3 * SLOT
        part = disks[i % 3][at:at + SLOT]
        there.append(part == bytes([i + 1]) * SLOT)
        assert there[-1] or part == bytes(SLOT), f'slot {i} is torn'
    return there


def one_instant(v, b):
    """A write is in the point only if all that came before it are."""
    count = 3 * 64
    for i in range(3):
        v.io('vm', i, f'write -z 0 {count // 3 * SLOT}')
    end = threading.Event()
    writer = threading.Thread(target=write_slots, args=(v, end, count))
    writer.start()
    try:
        for _ in range(2):
            b.run()
            there = slots_of(b, count)
            n = there.index(False) if False in there else count
            print(f'{n} of {count} writes are in {b.point}')
            assert not any(there[n:]), there
    finally:
        end.set()
        writer.join()


# --- Using points ---

def use_points(b, files):
    listed = command(NBDELTA, 'points', b.dir)
    for point in b.points():
        assert point[:4] in listed, listed
    names = b.points()
    for tag, point, fmt in (('2', names[2], 'qcow2'), ('3', names[3], 'raw')):
        for n in files:
            target = f'{HERE}/restored-{n}.{fmt}'
            command(NBDELTA, 'restore', f'{b.dir}@{point}', f'{n}={target}')
            command('qemu-img', 'compare', '-q', '-f', fmt, '-F', 'raw',
                    target, f'{n}.{tag}')
    for point in names:
        path = f'{b.dir}/{point}.xml'
        with open(path, encoding='utf-8') as f:
            text = f.read()
        assert '<name>vm</name>' in text and files['vda'] in text, text
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert b.manifest(point)['source-version'].startswith('libvirt ')


# --- As cron runs it ---

def as_cron(v, b, files):
    """No terminal, no HOME: nothing is said."""
    v.io('vm', 1, 'write -P 55 3M 64k', 'flush')
    done = subprocess.run(
        ['env', '-i', 'LANG=C', 'PATH=/usr/bin:/bin',
         'NBDELTA_MODULES=' + os.environ['NBDELTA_MODULES'],
         'TMPDIR=' + os.environ['TMPDIR'], NBDELTA, 'backup', '--connect',
         v.uri, 'libvirt:vm', b.dir], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    assert (done.returncode, done.stdout) == (0, b''), done
    b.point = b.points()[-1]
    same(b.file('vdb'), files['vdb'], 'qcow2')


# --- README's commands ---

def readme(v):
    with open(os.environ['SRCDIR'] + '/README.md', encoding='utf-8') as f:
        blocks = [b for b in f.read().split('\n```\n')[1::2]
                  if b.startswith('nbdelta backup libvirt:web ')]
    assert len(blocks) == 1, blocks
    path = image('web', 4 * MIB)
    v.define('web', [('vda', path, 'qcow2', '')])
    v.io('web', 0, 'write -P 8 1M 64k', 'flush')
    done = subprocess.run(['bash', '-eux', '-c', blocks[0]], check=False,
                          stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                          stdout=subprocess.PIPE, text=True,
                          env=os.environ | {'LIBVIRT_DEFAULT_URI': v.uri})
    assert done.returncode == 0, done.stdout
    same(path, 'web-vda.qcow2', 'qcow2')
    assert v.virsh('checkpoint-list', 'web', '--name').split() == []


def work(v):
    files = make_domain(v)
    b = Backups(v, 'vm', 'dir')
    points_under_writes(v, b, files)
    use_points(b, files)
    one_instant(v, b)
    as_cron(v, b, files)
    readme(v)
    b.verify()
    b.clean()
    assert len(b.checkpoints()) == 1


sys.exit(with_libvirt(work))
