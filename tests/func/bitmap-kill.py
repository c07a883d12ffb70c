# SPDX-License-Identifier: BSD-3-Clause
"""Kill a server at random moments.

bitmap-kill.py PROGRAM SEED ROUNDS

Random work on a disk with persistent bitmaps, over NBD and QMP, until kill -9;
then the image must tell of each change since a bitmap was cleared, also in
rounds before, and QEMU must agree.
"""
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time

import bitmap_image
import nbd
from bitmap_campaign import NODE, Campaign
from qmp_daemon import Daemon

IMAGE = 'disk.qcow2'

program, seed, rounds = sys.argv[1], *map(int, sys.argv[2:])
rng = random.Random(seed)


def start():
    for path in 'nbd.sock', 'qmp.sock':
        if os.path.exists(path):
            os.unlink(path)
    level = rng.choice(['power', 'process'])
    return Daemon(
        program, '--blockdev',
        f'qcow2,node-name={NODE},bitmap-durability={level},'
        f'file.driver=file,file.filename={IMAGE}',
        '--export', f'nbd,id=e,node-name={NODE},name={NODE},writable=on')


def work(campaign):
    """Until the server is gone; False: it was not killed."""
    killed = threading.Event()

    def kill():
        killed.set()
        campaign.daemon.process.kill()

    # Seldom so long that what is quiet is tightened.
    timer = threading.Timer(rng.choice([0.2, 0.5, 0.5, 1, 1, 1, 5])
                            * rng.random(), kill)
    try:
        campaign.handles = []
        campaign.connect()
        timer.start()
        while True:
            campaign.step()
            if rng.random() < 0.02:
                time.sleep(rng.random() * 2)
    except (nbd.Error, AssertionError, OSError):
        if not killed.is_set():
            timer.cancel()
            raise
    finally:
        if killed.is_set():
            campaign.daemon.process.wait(60)
            campaign.daemon.lines.close()
            campaign.daemon.socket.close()
        else:
            campaign.daemon.process.kill()


def by_qemu(name):
    """Dirty ranges of a bitmap, by QEMU's own server."""
    for path in 'q.pid', 'q.sock':
        if os.path.exists(path):
            os.unlink(path)
    server = subprocess.Popen(
        ['qemu-nbd', '-r', '-t', '-k', os.path.abspath('q.sock'),
         '--pid-file=q.pid', '-B', name, IMAGE])
    try:
        while not os.path.exists('q.pid'):
            assert server.poll() is None, 'qemu-nbd has ended'
            time.sleep(0.02)
        out = subprocess.run(
            ['nbdinfo', '--json', f'--map=qemu:dirty-bitmap:{name}',
             'nbd+unix:///?socket=' + os.path.abspath('q.sock')],
            check=True, capture_output=True).stdout
        return [(e['offset'], e['length']) for e in json.loads(out)
                if e['type'] & 1]
    finally:
        server.kill()
        server.wait()


def by_us(bitmap, size):
    """The same by the bits."""
    step = bitmap.granularity
    dirty = (at for at in range(0, size, step) if bitmap.has(at))
    ranges = []
    for at in dirty:
        end = min(at + step, size)
        if ranges and ranges[-1][0] + ranges[-1][1] == at:
            ranges[-1] = (ranges[-1][0], end - ranges[-1][0])
        else:
            ranges.append((at, end - at))
    return ranges


def show_qemu(image):
    check = subprocess.run(['qemu-img', 'check', '-q', IMAGE],
                           capture_output=True, text=True)
    # 3: leaked clusters, nothing worse.
    assert check.returncode in (0, 3), check.stdout + check.stderr
    info = json.loads(subprocess.run(
        ['qemu-img', 'info', '--output=json', IMAGE], capture_output=True,
        check=True).stdout)
    bitmaps = bitmap_image.bitmaps(image)
    listed = info['format-specific']['data'].get('bitmaps', [])
    assert {b['name'] for b in listed} == set(bitmaps), listed
    assert all(b['flags'] in ([], ['auto']) for b in listed), listed
    if bitmaps:
        name = rng.choice(sorted(bitmaps))
        theirs = by_qemu(name)
        ours = by_us(bitmaps[name], info['virtual-size'])
        assert theirs == ours, (name, theirs, ours)


def main():
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
                    f'cluster_size={rng.choice(["4k", "64k"])}', IMAGE,
                    '32M'], check=True)
    campaign = Campaign(None, rng, itertools.count().__next__)
    checked = 0
    with open(IMAGE, 'rb') as f:
        image = f.read()
    for i in range(rounds):
        campaign.resume(start(), image)
        work(campaign)
        with open(IMAGE, 'rb') as f:
            image = f.read()
        try:
            lost = campaign.lost_bits(image, campaign.clock())
            assert not lost, '; '.join(lost)
            show_qemu(image)
        except AssertionError as e:
            sys.exit(f'seed {seed}, round {i}: {e}')
        checked += sum(life.end is None for life in campaign.lives)
    print(f'killed {rounds} times, {checked} promises were kept')
    assert rounds < 20 or checked > rounds


main()
