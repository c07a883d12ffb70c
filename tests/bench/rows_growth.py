# SPDX-License-Identifier: BSD-3-Clause
"""Rows of growth: ours alone, at one size and at larger ones.  What is measured
is a cost for each request, extent or disk, so a goal of 1.3 says "flat".
Higher ones have a reason: of 64 TiB an L1 table of 1 MiB is read at the start;
a read asks each overlay; the name of a new export is compared with all others.
"""
import json
import time

import craft
from measure import Goal, Row
from peers import Disk, Server, serve, variant
from rows_backup import pull_begin, pull_end
from rows_meta import first_reply

FLAT = 1.3


def grown(key, title, unit, sizes, run, limit=FLAT):
    who = [f'nbdelta+{s}' for s in sizes]
    return Row(key, 'growth: ' + title, unit, who, run, 'less',
               [Goal(limit, ours=who[-1], of=who[0])])


def cpu_value(result):
    return {**result, 'value': result['cpu_us']}


def vast(lab, who):
    return Disk(lab.images.new('vast.qcow2', variant(who)), 'qcow2')


def size_cpu(lab, who, _):
    """With 256 MiB of data."""
    with serve(lab, who, vast(lab, who)) as s:
        s.load('-p', 'write', '-b', '64K', '-d', '16', '-n', '4096')
        s.load('-r', '-S', '256M', '-d', '16', '-t', '0.2')
        return cpu_value(s.load('-r', '-S', '256M', '-d', '16', '-t',
                                str(lab.seconds)))


def size_start(lab, who, _):
    disk = vast(lab, who)
    return sorted((first_reply(lab, who, disk) for _ in range(5)),
                  key=lambda s: s['value'])[2]


def extents(lab, who, _):
    count = int(variant(who)[:-1]) * {'K': 1000, 'M': 1000000}[variant(who)[-1]]
    name = f'extents-{variant(who)}.qcow2'
    path = lab.path(name)
    if name not in lab.images.made:
        lab.images.new(name, count * 65536)
        craft.holes(path)
        lab.images.made.add(name)
    with serve(lab, who, Disk(path, 'qcow2', read_only=True)) as s:
        words = [lab.tool('nbd-status'), s.sock, '', 'base:allocation']
        lab.run(words)
        seconds, told = lab.run(words).split()
        return {'value': float(seconds) * 1e9 / int(told)}


def chain(lab, who, _):
    name = f'chain-{variant(who)}'
    path = lab.path(name)
    if name not in lab.images.made:
        lab.images.chain(path, int(variant(who)))
        lab.images.made.add(name)
    disk = Disk(f'{path}/{variant(who)}.qcow2', 'qcow2', allow=[path])
    with serve(lab, who, disk) as s:
        s.load('-r', '-d', '16', '-t', '0.2')
        return cpu_value(s.load('-r', '-d', '16', '-t', str(lab.seconds)))


def connections(lab, who, _):
    with serve(lab, who, Disk(lab.images.get('small.raw'), 'raw')) as s:
        count = int(variant(who))
        more = max(50000, 100 * count)
        # What it costs to connect is in both.
        few = s.load('-r', '-c', variant(who), '-n', str(count))
        many = s.load('-r', '-c', variant(who), '-n', str(count + more))
        cpu = (many['cpu_us'] * (count + more) - few['cpu_us'] * count) / more
        return {**many, 'value': cpu, 'cpu_us': cpu,
                'rss_mib': s.resident_kib() / 1024}


def exports(lab, who, _):
    """Milliseconds for one more, beside so many."""
    with serve(lab, who, Disk(lab.images.get('small.raw'), 'raw')) as s:
        s.ask('blockdev-add', driver='null-co', node_name='n', size=1 << 20)

        def add(name):
            s.ask('block-export-add', type='nbd', id=name, node_name='n',
                  name=name)
        for i in range(int(variant(who))):
            add(f'e{i}')
        begin = time.monotonic()
        for i in range(50):
            add(f'more{i}')
        seconds = time.monotonic() - begin
        s.load('-r', '-t', '0.2', '-d', '16')
        result = s.load('-r', '-t', '0.5', '-d', '16')
        return {'value': seconds * 1e3 / 50, 'cpu_us': result['cpu_us'],
                'rss_mib': s.resident_kib() / 1024}


def disks(lab, who, _):
    """backup-begin and -end of so many, for each of them."""
    count = int(variant(who))
    words = lab.programs.nbdelta(who) + ['serve', '--log=null', '-U',
                                         lab.path('sock'), '--qmp',
                                         lab.path('qmp')]
    for i in range(count):
        words.append(f'd{i}=' + lab.images.new(f'many{i}.qcow2', '1G'))
    with Server(lab, who, words, lab.path('sock'), lab.path('qmp')) as s:
        begin = time.monotonic()
        told = pull_begin(s)
        assert len(told['disks']) == count, json.dumps(told)[:200]
        pull_end(s, told)
        seconds = time.monotonic() - begin
    lab.remove(*(f'many{i}.qcow2' for i in range(count)))
    return {'value': seconds * 1e3 / count}


def all_rows():
    sizes = ('1T', '16T', '64T')
    return [
        grown('growth-size', 'CPU of a 4K random read, by the size of the disk',
              'us', sizes, size_cpu),
        grown('growth-size-start', 'start to first reply, by the size of the '
              'disk', 'ms', sizes, size_start, 2),
        grown('growth-extents', 'block status of an extent, by their number',
              'ns', ('100K', '1M', '10M'), extents),
        grown('growth-chain', 'CPU of a 4K random read, by the number of '
              'overlays', 'us', ('1', '20', '200'), chain, 8),
        grown('growth-connections', 'CPU of a 4K random read, QD 1, by the '
              'number of connections', 'us', ('10', '200', '2000'),
              connections),
        grown('growth-exports', 'another export, by their number', 'ms',
              ('1', '100', '1000'), exports, 3),
        grown('growth-disks', 'backup-begin and -end for each disk, by their '
              'number', 'ms', ('10', '50', '200'), disks)]
