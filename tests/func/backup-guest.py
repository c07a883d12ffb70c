#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""backup-guest.py: see backup-guest.sh."""
import glob
import json
import os
import subprocess
import sys
import time

from real_guest import Guest, Unavailable, build, make_disk, prove

NBDELTA = os.environ['BUILD'] + '/nbdelta'
WHERE = os.environ['GUEST']
ROUNDS = min(int(os.environ.get('ROUNDS') or 3), 20)
STEPS = 5  # between two backups


def run(*words, status=(0,)):
    p = subprocess.run(words, text=True, capture_output=True, check=False)
    assert p.returncode in status, (words, p)
    return p.stdout


def backup(*options, status=(0,)):
    return json.loads(run(NBDELTA, 'backup', '--output=json', *options,
                          'qemu.sock', 'dir', status=status))


def restored(point='latest'):
    run(NBDELTA, 'restore', '--force', f'dir@{point}', 'vda=restored.raw')
    return 'restored.raw'


def a_point(guest, proven, *options, status=(0,)):
    """The guest goes on, a backup is made, and is proven; its name."""
    before = guest.more(STEPS)
    report = backup(*options, status=status)
    after = guest.more(1)
    last = prove(restored(), clean=bool(options))
    assert before <= last <= after, (before, last, after)
    name = max(glob.glob('dir/*Z.json'))[len('dir/'):-len('.json')]
    proven[name] = last
    return report['disks'][0]


def killed_in_a_backup(guest):
    """QEMU ends while it is read: no point, and what was durable is there."""
    guest.more(STEPS)
    points = glob.glob('dir/*Z.json')
    p = subprocess.Popen([NBDELTA, 'backup', '--full', '--rate=1M', '--timeout',
                          '5', 'qemu.sock', 'dir'], stderr=subprocess.PIPE,
                         text=True)
    while not glob.glob('dir/vda/*.part') and p.poll() is None:
        time.sleep(0.05)
    last = guest.kill()
    why = p.communicate()[1]
    assert p.returncode == 1, (p.returncode, why)
    assert glob.glob('dir/*Z.json') == points
    return last


def as_killed(image):
    run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, 'killed.raw')
    return prove('killed.raw')


def one_round(number, image, proven):
    """Over the disk @image; returns the image for the next round."""
    guest = Guest(WHERE, image)
    try:
        first = a_point(guest, proven, status=(0, 3))
        # Of a QEMU that was killed no bitmap is trusted.
        assert first['kind'] != 'increment', first
        for options in ((), ('--freeze=agent.sock',), ()):
            disk = a_point(guest, proven, *options)
            assert disk['kind'] == 'increment', disk
        last = killed_in_a_backup(guest)
    finally:
        guest.kill()
    assert as_killed(image) >= last
    # It starts again: from what is there, or from a point.
    if number % 2 == 0:
        return image
    point = sorted(proven)[-2]
    target = f'round{number}.qcow2'
    run(NBDELTA, 'restore', f'dir@{point}', f'vda={target}')
    guest = Guest(WHERE, target)
    try:
        assert guest.first == proven[point], (guest.first, proven[point])
        last = guest.more(STEPS)
    finally:
        guest.kill()
    assert as_killed(target) >= last
    return target


def main():
    try:
        build(WHERE)
    except Unavailable as e:
        print(e)
        sys.exit(77)
    make_disk('disk.raw', 256 << 20)
    run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw',
        'disk.qcow2')
    proven = {}
    image = 'disk.qcow2'
    for number in range(ROUNDS):
        image = one_round(number, image, proven)
        print(f'round {number}: {len(proven)} points, the last with step '
              f'{max(proven.values())}')
    for point, last in proven.items():
        assert prove(restored(point)) == last, point
    run(NBDELTA, 'prune', '--keep-last', '3', 'dir')
    for point in sorted(proven)[-3:]:
        assert prove(restored(point)) == proven[point], point
    run(NBDELTA, 'verify', 'dir')


main()
