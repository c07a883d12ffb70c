# SPDX-License-Identifier: BSD-3-Clause
"""Cut the power of a server at each moment.

bitmap-power.py PROGRAM SEED STEPS SAMPLES

Random work on a disk with persistent bitmaps, over NBD and QMP, with
blklogwrites below the image.  Then each prefix of the log, and a random part
of what was not flushed by then, is a crash: the image must tell of each
change.  SAMPLES of these are shown to QEMU, too.
"""
import json
import os
import random
import subprocess
import sys
import time

import writelog
from bitmap_campaign import NODE, Campaign
from qmp_daemon import Daemon

IMAGE = 'disk.qcow2'
LOG = 'writes.log'

program, seed, steps, samples = sys.argv[1], *map(int, sys.argv[2:])
rng = random.Random(seed)


def start():
    log = 'file.driver=blklogwrites'
    return Daemon(
        program, '--blockdev',
        f'qcow2,node-name={NODE},{log},file.log.driver=file,'
        f'file.log.filename={LOG},file.log.cache.no-flush=on,'
        f'file.file.driver=file,file.file.filename={IMAGE},'
        'file.file.cache.no-flush=on',
        '--export', f'nbd,id=e,node-name={NODE},name={NODE},writable=on')


def work(daemon):
    campaign = Campaign(daemon, rng, lambda: os.stat(LOG).st_size)
    campaign.connect()
    for i in range(steps):
        campaign.step()
        if i in (steps // 3, steps * 2 // 3):
            time.sleep(4.5)  # what is quiet is tightened
    campaign.disconnect()
    return campaign


def show_qemu(disk):
    with open('crashed.qcow2', 'wb') as f:
        f.write(disk)
    check = subprocess.run(['qemu-img', 'check', '-q', 'crashed.qcow2'],
                           capture_output=True, text=True)
    # 3: leaked clusters, nothing worse.
    assert check.returncode in (0, 3), check.stdout + check.stderr
    info = json.loads(subprocess.run(
        ['qemu-img', 'info', '--output=json', 'crashed.qcow2'],
        capture_output=True, check=True).stdout)
    for bitmap in info['format-specific']['data'].get('bitmaps', []):
        assert 'in-use' not in bitmap['flags'], bitmap


def main():
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
                    f'cluster_size={rng.choice(["4k", "64k"])}', IMAGE,
                    '32M'], check=True)
    with open(IMAGE, 'rb') as f:
        base = f.read()
    open(LOG, 'w').close()
    daemon = start()
    try:
        campaign = work(daemon)
    except BaseException:
        daemon.process.kill()
        raise
    with daemon:
        pass
    entries = writelog.read(LOG)
    moments = [512] + [e.end for e in entries]
    shown = set(rng.sample(range(len(moments)), min(samples, len(moments))))
    crashes = lost = 0
    for cut, disk, what in writelog.cuts(base, entries, rng):
        where = f'seed {seed}, cut {cut} of {len(entries)}, {what}'
        try:
            lacking = campaign.lost_bits(disk, moments[cut])
            if cut in shown:
                show_qemu(disk)
        except AssertionError as e:
            sys.exit(f'{where}: {e}')
        crashes += 1
        if lacking:
            lost += 1
            if lost < 5:
                print(f'{where}: {"; ".join(lacking)}')
    print(f'{len(entries)} entries, {len(campaign.lives)} promises, '
          f'{crashes} crashes, {lost} of them lost bits')
    sys.exit(3 if lost else 0)


main()
