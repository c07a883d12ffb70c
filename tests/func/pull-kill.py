# SPDX-License-Identifier: BSD-3-Clause
"""Kill a daemon at random moments of backups that are pulled.

pull-kill.py PROGRAM SEED ROUNDS

Beside each checkpoint there is a copy of the disks at its instant.  After each
kill, what a checkpoint says has changed, put over its copy, must be the disk.
"""
import os
import random
import subprocess
import sys
import threading

import nbd

from pull_util import DIRTY_GRAIN, connect, end, live, pull_into, start

DISKS = ('a', 'b')
SIZE = 4 << 20

program, seed, rounds = sys.argv[1], *map(int, sys.argv[2:])
rng = random.Random(seed)
copies = {}      # of checkpoints: {disk: bytes at its instant}
kept = set()     # checkpoints whose backup-end was answered
perhaps = set()  # checkpoints whose end or removal has no answer yet
serial = 0


def read(name):
    h = connect(live(name))
    data = bytearray(h.pread(SIZE, 0))
    h.shutdown()
    return data


def write(handles):
    name = rng.choice(DISKS)
    offset = rng.randrange(SIZE // DIRTY_GRAIN) * DIRTY_GRAIN
    offset += rng.randrange(DIRTY_GRAIN // 512) * 512
    if rng.random() < 0.2:
        handles[name].zero(512, offset)
    else:
        handles[name].pwrite(rng.randbytes(512), offset)


def backup(daemon, handles, names):
    """Begin, pull, end: whatever comes in between."""
    global serial
    serial += 1
    new = f'c{serial}'
    since = rng.choice([None] + names)
    disks = [{'node': d, 'since': since} if since else {'node': d}
             for d in DISKS]
    begun = daemon.ask('backup-begin', disks=disks, checkpoint=new)
    for _ in range(rng.randrange(20)):
        write(handles)
    copy = {}
    for disk in begun['disks']:
        assert disk['mode'] == ('incremental' if since else 'full'), disk
        name = disk['node']
        copy[name] = bytearray(copies[since][name] if since else SIZE)
        pull_into(disk, copy[name])
    if rng.random() < 0.3:
        end(daemon, begun, success=False)
        return
    copies[new] = copy
    perhaps.add(new)
    drop = [name for name in names if rng.random() < 0.4]
    perhaps.update(drop)
    kept.difference_update(drop)
    end(daemon, begun, drop=drop)
    perhaps.difference_update(drop, (new,))
    kept.add(new)


def work(daemon, names):
    """Until it is gone."""
    killed = threading.Event()

    def kill():
        killed.set()
        daemon.process.kill()

    timer = threading.Timer(rng.random() * 1.5, kill)
    try:
        handles = {name: connect(live(name)) for name in DISKS}
        timer.start()
        while True:
            for _ in range(rng.randrange(30)):
                write(handles)
            backup(daemon, handles, names)
            names = sorted(kept)
    except (nbd.Error, AssertionError, OSError):
        if not killed.is_set():
            timer.cancel()
            raise
    finally:
        timer.join()
        daemon.process.wait(60)


def check(daemon):
    """The checkpoints that are there, whole, with what they must be."""
    there = {c['name']: [d['node'] for d in c['disks']]
             for c in daemon.ask('checkpoint-list')}
    assert kept <= set(there), (kept, there)
    assert set(there) <= kept | perhaps, (there, kept, perhaps)
    for name, nodes in there.items():
        assert name in perhaps or sorted(nodes) == sorted(DISKS), there
        begun = daemon.ask('backup-begin', disks=[
            {'node': node, 'since': name} for node in nodes])
        for disk in begun['disks']:
            assert disk['mode'] == 'incremental', disk
            copy = bytearray(copies[name][disk['node']])
            pull_into(disk, copy)
            assert copy == read(disk['node']), (name, disk)
        end(daemon, begun, success=False)
        if len(nodes) == len(DISKS):
            kept.add(name)
        else:  # one that was half there, or half gone
            daemon.ask('checkpoint-delete', name=name)
    perhaps.clear()
    kept.intersection_update(there)
    return sorted(kept)


for name in DISKS:
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', f'{name}.img',
                    str(SIZE)], check=True)
for number in range(rounds + 1):
    for path in 'nbd.sock', 'qmp.sock':
        if os.path.exists(path):
            os.unlink(path)
    daemon = start(program, DISKS)
    with daemon:
        names = check(daemon)
        if number < rounds:
            work(daemon, names)
    for name in DISKS:
        done = subprocess.run(['qemu-img', 'check', '-q', f'{name}.img'],
                              check=False)
        assert done.returncode in (0, 3), done  # 3: leaks
print(f'{rounds} kills, {serial} backups')
