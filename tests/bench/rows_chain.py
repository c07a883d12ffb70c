# SPDX-License-Identifier: BSD-3-Clause
"""Rows of chains: an overlay gets the data of the image below it, and a guest
that writes meanwhile."""
import json
import os
import subprocess
import time

from measure import Goal, Row
from peers import Disk, serve
from qmp import Refused
from rows_io import hot

BOTH = ['nbdelta', 'q-s-d']


def overlay(lab):
    """An empty image above the disk, which has all its data."""
    path = lab.path('overlay.qcow2')
    if os.path.exists(path):
        os.unlink(path)
    lab.img('create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b',
            lab.images.get('disk.qcow2'), path)
    return path


def stream(s, **how):
    """Returns seconds, with the time that the data take to the disk."""
    begin = time.monotonic()
    s.ask('block-stream', job_id='j', device='disk', **how)
    s.qmp.until_no_job()
    return time.monotonic() - begin


def streamed(lab, who, _):
    path = overlay(lab)
    with serve(lab, who, Disk(path, 'qcow2')) as s:
        seconds = stream(s)
        begin = time.monotonic()
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        seconds += time.monotonic() - begin
    lab.remove('overlay.qcow2')
    return {'value': seconds}


def while_streamed(lab, who, _):
    """The guest writes all the time that the job takes, over what is there and
    over what is copied; the worst of it is what counts."""
    path = overlay(lab)
    with serve(lab, who, Disk(path, 'qcow2')) as s:
        guest = lab.spawn(s.load_words('-p', 'write', '-r', '-b', '4K', '-d',
                                       '4', '-t', str(lab.seconds)),
                          stdout=subprocess.PIPE, text=True)
        # So fast that it lasts as long as the guest does.
        s.ask('block-stream', job_id='j', device='disk',
              speed=int(lab.size / lab.seconds))
        result = json.loads(guest.communicate()[0])
        lab.stop(guest)
        try:
            s.ask('block-job-set-speed', device='j', speed=0)
        except Refused:
            pass  # it has ended
        s.qmp.until_no_job()
    lab.remove('overlay.qcow2')
    return {**result, 'value': result['p99_us']}


def all_rows():
    disk = hot('disk.qcow2')
    return [
        Row('stream', 'block-stream of a disk into an overlay', 's', BOTH,
            streamed, 'less', [Goal(0.66)], hot=disk),
        Row('guest-while-streamed', "p99 of a guest's 4K random writes, QD 4, "
            'while its disk is streamed', 'us', BOTH, while_streamed, 'less',
            [Goal(1.0)], hot=disk)]
