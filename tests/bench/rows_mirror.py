# SPDX-License-Identifier: BSD-3-Clause
"""Rows of mirrors: until the job is ready and has been ended, with the target
durable; and what a guest gets meanwhile."""
import os
import time

from guests import flushed
from machine import make_resident
from measure import Goal, Row
from peers import serve, variant
from rows_backup import BOTH, target_path
from rows_io import disk_of, hot


def begin(s, target, **how):
    s.ask('blockdev-add', driver='qcow2', node_name='t', discard='unmap',
          file={'driver': 'file', 'filename': target, 'aio': 'io_uring'})
    s.ask('blockdev-mirror', job_id='j', device='disk', target='t',
          sync='full', **how)


def end(s):
    """The disk stays what it is."""
    while s.ask('query-block-jobs')[0]['ready'] is not True:
        time.sleep(0.005)
    s.ask('block-job-cancel', device='j')
    s.qmp.until_no_job()
    s.ask('blockdev-del', node_name='t')


def make_mirror(in_memory=False):
    def run(lab, who, _):
        target = target_path(lab, in_memory)
        lab.img('create', '-q', '-f', 'qcow2', target, str(lab.size))
        with serve(lab, who, disk_of(lab, 'qcow2')) as s:
            start = time.monotonic()
            begin(s, target)
            end(s)
            flushed(target)
            seconds = time.monotonic() - start
        os.unlink(target)
        return {'value': seconds}
    return run


def make_guest(mode):
    """A guest writes at random, with many requests at once."""
    def run(lab, who, _):
        target = target_path(lab, False)
        lab.img('create', '-q', '-f', 'qcow2', target, str(lab.size))
        make_resident(lab.images.get('disk.qcow2'))
        with serve(lab, who, disk_of(lab, 'qcow2')) as s:
            if variant(who) != 'without':
                begin(s, target, copy_mode=mode)
            result = s.load('-p', 'write', '-r', '-b', '4K', '-d', '16', '-t',
                            str(lab.seconds))
            if variant(who) != 'without':
                s.ask('block-job-cancel', device='j', force=True)
                s.qmp.until_no_job()
                s.ask('blockdev-del', node_name='t')
        os.unlink(target)
        return {**result, 'value': result['iops'] / 1e3}
    return run


def all_rows():
    disk = hot('disk.qcow2')
    who = ['nbdelta', 'q-s-d', 'nbdelta+without']
    return [
        Row('mirror-full', 'mirror of a disk to qcow2, until it is ready', 's',
            BOTH, make_mirror(), 'less', [Goal(0.66)], hot=disk),
        Row('mirror-full-tmpfs', 'mirror of a disk to qcow2 on a tmpfs, until '
            'it is ready', 's', BOTH, make_mirror(True), 'less', [Goal(0.66)],
            hot=disk),
        Row('guest-while-mirrored', "a guest's 4K random writes, QD 16, while "
            'the disk is mirrored', 'K/s', who, make_guest('background'),
            goals=[Goal(1.0), Goal(1.0, 'p99_us')], hot=disk),
        Row('guest-while-mirrored-both', "a guest's 4K random writes, QD 16, "
            'while the disk is mirrored, write-blocking', 'K/s', who,
            make_guest('write-blocking'),
            goals=[Goal(1.0), Goal(1.0, 'p99_us')], hot=disk)]
