#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""source-image.py: see source-image.sh."""
import errno
import hashlib
import json
import os
import signal
import subprocess

import listener
from source_driver import MIB, Source, ranges, same

ID = '0123456789abcdef0123456789abcdef'
C1, C2 = (f'nbdelta-{ID}-2026112{n}T000000Z' for n in (1, 2))
WHOLE = [(0, 8 * MIB)]


def run(*words):
    return subprocess.run(words, check=True, text=True,
                          capture_output=True).stdout


def write(path, *commands, fmt='qcow2'):
    run('qemu-io', '-f', fmt, *[w for c in commands for w in ('-c', c)], path)


def make(path, fmt='qcow2'):
    if os.path.exists(path):
        os.unlink(path)
    run('qemu-img', 'create', '-q', '-f', fmt, path, '8M')
    write(path, 'write -P 1 0 2M', fmt=fmt)


def bitmaps(path):
    info = json.loads(run('qemu-img', 'info', '--output', 'json', path))
    data = info['format-specific']['data']
    return {b['name']: sorted(b['flags']) for b in data.get('bitmaps', [])}


def content(path):
    with open(path, 'rb') as f:
        return hashlib.sha256(f.read()).digest()


def failed(source, text, number=None):
    assert text in source.opened['error'], source.opened
    assert number in (None, source.opened['errno']), source.opened
    source.p.stdin.close()
    source.ended(1)


def checkpoints_are_bitmaps_of_the_image():
    make('vda.qcow2')
    with Source('vda.qcow2', ID) as s:
        assert s.opened['kind'] == 'image', s.opened
        assert [(d['name'], d['size']) for d in s.opened['disks']] == [
            ('vda', 8 * MIB)], s.opened
        disk = s.begin(C1)['vda']
        assert ranges(disk) == WHOLE and disk['checkpoint'], disk
        s.did('read', 'vda', 'vda.raw')
        s.did('end', 'keep')
        assert s.ask('list') == [[C1, 'vda', None]]
    same('vda.raw', 'vda.qcow2')
    assert bitmaps('vda.qcow2') == {C1: ['auto']}, bitmaps('vda.qcow2')

    # Stock QEMU writes, and the bitmap knows.
    write('vda.qcow2', 'write -P 2 3M 64k', 'write -z 5M 128k')
    with Source('vda.qcow2', ID) as s:
        disk = s.begin(C2, f'vda={C1}')['vda']
        assert ranges(disk) == [(3 * MIB, 65536), (5 * MIB, 131072)], disk
        s.did('end', 'drop')
        assert bitmaps_here(s) == [C1]
        disk = s.begin(C2, f'vda={C1}')['vda']
        s.did('end', 'keep')
        s.did('forget', C1)
        s.did('forget', C1)
        disk = s.begin('-', f'vda={C1}')['vda']
        assert disk['reason'] == 'no-checkpoint', disk
        assert ranges(disk) == WHOLE and not disk['checkpoint'], disk
        s.did('end', 'keep')
    assert bitmaps('vda.qcow2') == {C2: ['auto']}
    run('qemu-img', 'check', '-q', 'vda.qcow2')


def bitmaps_here(source):
    return [c[0] for c in source.ask('list')]


def who_goes_changes_nothing():
    make('vda.qcow2')
    before = content('vda.qcow2')
    for how in (None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP,
                signal.SIGKILL):
        s = Source('vda.qcow2', ID)
        s.begin(C1)
        if how:
            s.signal(how)
        else:
            s.close()
        assert bitmaps('vda.qcow2') == {}, how
    assert content('vda.qcow2') == before


def an_image_in_use_is_left_alone():
    make('vda.qcow2')
    with Source('vda.qcow2', ID):
        failed(Source('vda.qcow2', ID), '', errno.EAGAIN)
        refused = subprocess.run(['qemu-io', '-f', 'qcow2', '-c', 'write 0 1k',
                                  'vda.qcow2'], capture_output=True)
        assert refused.returncode != 0
    write('vda.qcow2', 'write 0 1k')


def others_say_why_not():
    make('r.raw', 'raw')
    with Source('r.raw', ID, format='raw') as s:
        disk = s.begin(C1)['r']
        assert not disk['checkpoint'] and disk['reason'] == 'no-bitmaps', disk
        s.did('end', 'keep')
        disk = s.begin(C1, f'r={C1}')['r']
        assert disk['reason'] == 'no-bitmaps', disk
        assert ranges(disk) == WHOLE, disk
        s.did('end', 'keep')
        assert s.ask('list') == []
    make('vda.qcow2')
    run('qemu-img', 'bitmap', '--add', '--disable', 'vda.qcow2', 'off')
    with Source('vda.qcow2', ID) as s:
        assert s.begin('-', 'vda=off')['vda']['reason'] == 'bitmap-disabled'
    failed(Source('nosuch.qcow2', ID), 'nosuch.qcow2', errno.ENOENT)
    failed(Source('vda.qcow2', 'no/id'), "'no/id' is no id", errno.EINVAL)


class Server:
    """qemu-nbd, read-only, with the bitmap b."""

    def __enter__(self):
        self.p = subprocess.Popen(['qemu-nbd', '-r', '-k',
                                   os.path.abspath('nbd.sock'), '-t', '-e', '8',
                                   '-f', 'qcow2', '-x', 'vda', '-B', 'b',
                                   'vda.qcow2'])
        assert listener.wait('nbd.sock', self.p)
        return f"nbd+unix:///vda?socket={os.path.abspath('nbd.sock')}"

    def __exit__(self, *why):
        self.p.terminate()
        self.p.wait()
        if os.path.exists('nbd.sock'):
            os.unlink('nbd.sock')


def an_export_has_the_bitmap_that_was_named():
    make('vda.qcow2')
    run('qemu-img', 'bitmap', '--add', 'vda.qcow2', 'b')
    write('vda.qcow2', 'write -P 2 3M 64k')
    run('qemu-img', 'bitmap', '--disable', 'vda.qcow2', 'b')
    with Server() as uri:
        with Source(uri, ID, bitmap='b') as s:
            assert s.opened['kind'] == 'nbd', s.opened
            disk = s.begin(C1)['vda']
            assert ranges(disk) == WHOLE and not disk['checkpoint'], disk
            s.did('read', 'vda', 'vda.raw')
            same('vda.raw', 'vda.qcow2')
            s.did('end', 'keep')
            disk = s.begin(C2, 'vda=any')['vda']
            assert ranges(disk) == [(3 * MIB, 65536)], disk
            s.did('end', 'keep')
            assert s.ask('list') == []
        with Source(uri, ID) as s:
            disk = s.begin(C2, 'vda=any')['vda']
            assert disk['reason'] == 'no-checkpoint', disk
        failed(Source(uri, ID, bitmap='c'), 'qemu:dirty-bitmap:c not found')
        failed(Source(uri.replace('vda', 'vdx'), ID), 'vdx')
    failed(Source('nbd+unix:///?socket=nosuch', ID), 'No such file')
    failed(Source('nbd:nonsense', ID), '')


def a_module_that_is_not_there_is_said():
    failed(Source('libvirt:x', ID), 'libvirt')


for scenario in (checkpoints_are_bitmaps_of_the_image, who_goes_changes_nothing,
                 an_image_in_use_is_left_alone, others_say_why_not,
                 an_export_has_the_bitmap_that_was_named,
                 a_module_that_is_not_there_is_said):
    print(scenario.__name__, flush=True)
    scenario()
