# SPDX-License-Identifier: BSD-3-Clause
"""Rows of requests: rates, streams, what is cold, TLS, new clusters."""
import machine
from measure import Goal, Row
from peers import Disk, serve, variant

RAW = ['nbdelta', 'nbdkit', 'q-s-d', 'qemu-nbd']
QCOW2 = ['nbdelta', 'q-s-d', 'qemu-nbd']
DIRECT = ['nbdelta', 'q-s-d', 'qemu-nbd']
GIB = 1 << 30


def image(fmt):
    return 'disk.' + fmt


def disk_of(lab, fmt, **options):
    return Disk(lab.images.get(image(fmt)), fmt, **options)


def rate(result):
    return {**result, 'value': result['iops'] / 1e3}


def stream(result):
    return {**result, 'value': result['mib_s']}


def timed(lab):
    return '-t', str(lab.seconds)


def make_io(fmt, shape, what, warm=False, options=()):
    """The run of a row: requests of one kind to a server of its own.  @warm:
    once before, not counted."""
    def run(lab, who, _):
        with serve(lab, who, disk_of(lab, fmt, **dict(options))) as s:
            if warm:
                s.load(*shape, '-t', '0.2')
            return what(s.load(*shape, *timed(lab)))
    return run


def hot(*names):
    return lambda lab: [lab.images.get(n) for n in names]


def io_rows():
    rows = []

    def add(key, title, fmt, shape, goal, who=None, what=rate, unit='K/s',
            cpu=None, one_cpu=False, options=(), in_cache=True):
        goals = [Goal(goal)] if goal else []
        if cpu:
            goals.append(Goal(cpu, 'cpu_us'))
        rows.append(Row(key, title, unit, who or (RAW if fmt == 'raw' else
                                                  QCOW2),
                        make_io(fmt, shape, what, True, options), goals=goals,
                        hot=hot(image(fmt)) if in_cache else None,
                        one_cpu=one_cpu))

    def read(depth, *more):
        return ('-r', '-b', '4K', '-d', str(depth), *more)

    def write(depth, block='4K', order=('-r',)):
        return ('-p', 'write', *order, '-b', block, '-d', str(depth))

    add('read-4k-qd1-raw', '4K random read, QD 1, raw', 'raw', read(1), 1.2)
    add('read-4k-qd1-raw-onecpu', '4K random read, QD 1, raw, client and '
        'server on one CPU', 'raw', read(1), 1.35, one_cpu=True)
    add('read-4k-qd1-qcow2', '4K random read, QD 1, qcow2', 'qcow2', read(1),
        None)
    for depth, raw, qcow2 in ((16, 1.6, 2.0), (64, 2.4, 3.5)):
        add(f'read-4k-qd{depth}-raw', f'4K random read, QD {depth}, raw', 'raw',
            read(depth), raw)
        add(f'read-4k-qd{depth}-qcow2', f'4K random read, QD {depth}, qcow2',
            'qcow2', read(depth), qcow2)
    for fmt, goal in (('raw', 2.5), ('qcow2', 4.5)):
        add(f'read-4k-qd16x4-{fmt}', '4K random read, QD 16 on 4 connections, '
            + fmt, fmt, read(16, '-c', '4'), goal)
    add('write-4k-qd1-qcow2', '4K random write, QD 1, qcow2', 'qcow2', write(1),
        None)
    add('write-4k-qd16-qcow2', '4K random write, QD 16, qcow2', 'qcow2',
        write(16), None)
    add('write-4k-qd64-qcow2', '4K random write, QD 64, qcow2', 'qcow2',
        write(64), 1.7)
    for fmt, goals in (('raw', (1.35, 1.0)), ('qcow2', (3.8, 2.7))):
        add(f'stream-read-{fmt}', f'1M sequential read, QD 4, {fmt}', fmt,
            ('-b', '1M', '-d', '4'), goals[0], what=stream, unit='MiB/s')
        add(f'stream-write-{fmt}', f'1M sequential write, QD 4, {fmt}', fmt,
            write(4, '1M', ()), goals[1], what=stream, unit='MiB/s')
    direct = {'who': DIRECT, 'options': (('direct', True),), 'in_cache': False}
    for fmt in ('raw', 'qcow2'):
        add(f'direct-read-4k-qd64-{fmt}', f'O_DIRECT: 4K random read, QD 64, '
            f'{fmt}', fmt, read(64), 1.5, cpu=0.8, **direct)
        add(f'direct-write-4k-qd64-{fmt}', f'O_DIRECT: 4K random write, QD 64, '
            f'{fmt}', fmt, write(64), 1.5, cpu=0.8, **direct)
    add('direct-read-4k-qd1-raw', 'O_DIRECT: 4K random read, QD 1, raw', 'raw',
        read(1), None, **direct)
    add('direct-stream-read-raw', 'O_DIRECT: 1M sequential read, QD 4, raw',
        'raw', ('-b', '1M', '-d', '4'), None, what=stream, unit='MiB/s',
        **direct)
    for shape, name in ((read(16), 'read-4k-qd16'),
                        (write(16), 'write-4k-qd16'),
                        (('-r', '-b', '1M', '-d', '4'), 'read-1m-qd4'),
                        (write(4, '1M'), 'write-1m-qd4')):
        add(f'luks-{name}', f'LUKS: {name}, at random', 'luks', shape, None,
            who=['nbdelta', 'q-s-d'])
        rows[-1].run = luks(shape)
    return rows


def luks(shape):
    def run(lab, who, _):
        disk = Disk(lab.images.get('disk.luks'), 'qcow2', luks=True)
        with serve(lab, who, disk) as s:
            return rate(s.load(*shape, *timed(lab)))
    return run


def make_cold(fmt, shape, what, write_after=False):
    """What the server has not read in; or its cache was cold, is read through
    once, and then written to."""
    def run(lab, who, _):
        disk = disk_of(lab, fmt)
        machine.throw_out(disk.path)
        with serve(lab, who, disk) as s:
            if write_after:
                s.load('-b', '1M', '-d', '4', '-n', str(lab.size >> 20))
            return what(s.load(*shape(lab)))
    return run


def seconds_of(result):
    return {**result, 'value': result['seconds']}


def cold_rows():
    def once(block, depth):
        size = {'256K': 18, '1M': 20}[block]
        return lambda lab: ('-b', block, '-d', str(depth), '-n',
                            str(lab.size >> size))

    def random(lab):
        return ('-r', '-b', '4K', '-d', '64', *timed(lab))

    return [
        Row('cold-stream-raw', 'cold, all of it by 256K, one request at a '
            'time, raw', 's', RAW,
            make_cold('raw', once('256K', 1), seconds_of), 'less', [Goal(0.9)]),
        Row('cold-stream-qcow2', 'cold, all of it by 256K, one request at a '
            'time, qcow2', 's', QCOW2,
            make_cold('qcow2', once('256K', 1), seconds_of), 'less'),
        Row('cold-stream-qd4-raw', 'cold, all of it by 1M, QD 4, raw', 's', RAW,
            make_cold('raw', once('1M', 4), seconds_of), 'less'),
        Row('cold-read-4k-qd64-raw', 'cold, 4K random read, QD 64, raw', 'K/s',
            RAW, make_cold('raw', random, rate), goals=[Goal(1.3)]),
        Row('cold-write-4k-qd64-qcow2', '4K random write, QD 64, qcow2, after '
            'the server has read it in', 'K/s', QCOW2,
            make_cold('qcow2', lambda lab: ('-p', 'write', *random(lab)), rate,
                      True))]


# New clusters: an image that nothing was written to, made for each run.

def make_allocate(block, piece):
    def run(lab, who, _):
        path = lab.images.new('first.qcow2', 2 * GIB if lab.quick else 10 * GIB)
        count = (64 if lab.quick else 1024) << 20
        with serve(lab, who, Disk(path, 'qcow2')) as s:
            result = s.load('-p', 'write', '-1', '-g', piece, '-b', block, '-d',
                            '16', '-n', str(count // 65536))
        lab.remove('first.qcow2')
        return rate(result)
    return run


def touch(lab, who, _):
    """One write in each 4 MiB, one after the other, with so many bitmaps."""
    path = lab.images.new('first.qcow2', 10 * GIB)
    with serve(lab, who, Disk(path, 'qcow2')) as s:
        for i in range(int(variant(who) or 0)):
            s.ask('block-dirty-bitmap-add', node='disk', name=f'b{i}',
                  persistent=True)
        result = s.load('-p', 'write', '-1', '-g', '4M', '-b', '4K', '-d', '1')
    lab.remove('first.qcow2')
    return seconds_of(result)


def with_bitmaps(lab, who, _):
    with serve(lab, who, disk_of(lab, 'qcow2')) as s:
        count = int(variant(who) or 0)
        for i in range(count):
            s.ask('block-dirty-bitmap-add', node='disk', name=f'b{i}',
                  persistent=True)
        shape = ('-p', 'write', '-r', '-b', '4K', '-d', '64')
        s.load(*shape, *timed(lab))  # arms regions
        result = s.load(*shape, *timed(lab))
        for i in range(count):
            s.ask('block-dirty-bitmap-remove', node='disk', name=f'b{i}')
        return {**rate(result), 'value': result['cpu_us']}


def write_rows():
    touched = ['nbdelta', 'nbdelta+1', 'nbdelta+4']
    return [
        Row('alloc-64k', '64K writes into new clusters, QD 16', 'K/s', QCOW2,
            make_allocate('64K', '64K'), goals=[Goal(1.6)]),
        Row('alloc-4k', '4K writes into new clusters, QD 16', 'K/s', QCOW2,
            make_allocate('4K', '64K'), goals=[Goal(5.0)]),
        Row('bitmap-first-touches', 'first touches of 10 GiB, one in 4 MiB, '
            'with 0, 1, 4 bitmaps', 's', touched, touch, 'less'),
        Row('bitmap-writes-cpu', 'CPU of a 4K write, QD 64; 0, 1, 4 bitmaps',
            'us', touched + ['q-s-d', 'q-s-d+1', 'q-s-d+4'], with_bitmaps,
            'less', [Goal(1.03, ours='nbdelta+1', of='nbdelta'),
                     Goal(1.03, ours='nbdelta+4', of='nbdelta')],
            hot=hot('disk.qcow2'))]


# TLS, and whole disks, by nbdcopy: it knows keys.

def nbdcopy(lab, uri, *options):
    return lab.timed(['nbdcopy', *options, uri, 'null:'])


def tls_uri(lab, how):
    keys, query = lab.images.keys(), f'socket={lab.path("sock")}'
    if how == 'x509':
        return f'nbds+unix:///?{query}&tls-certificates={keys}'
    return f'nbds+unix://user@/?{query}&tls-psk-file={keys}/keys.psk'


def make_tls(name, how, block, depth):
    def run(lab, who, _):
        disk = Disk(lab.images.get(name), 'raw', read_only=True, tls=how)
        with serve(lab, who, disk) as s:
            before = s.cpu()
            seconds = nbdcopy(lab, tls_uri(lab, how), '--connections=1',
                              f'--requests={depth}', f'--request-size={block}')
            size = lab.size if name == 'disk.raw' else 16 << 20
            requests = size // block
            unit = size / (1 << 20) if block > 4096 else requests / 1e3
            return {'value': unit / seconds,
                    'cpu_us': (s.cpu() - before) * 1e6 / requests}
    return run


def tls_rows():
    rows = []
    for how, name, goals in (('x509', 'X.509', (1.4, 1.2)),
                             ('psk', 'PSK', (6.0, 1.2))):
        rows += [
            Row(f'tls-{how}-1m', f'TLS {name}: 1M sequential read, QD 8',
                'MiB/s', RAW, make_tls('disk.raw', how, 1 << 20, 8),
                goals=[Goal(goals[0])], hot=hot('disk.raw')),
            Row(f'tls-{how}-4k', f'TLS {name}: 4K sequential read, QD 1', 'K/s',
                RAW, make_tls('small.raw', how, 4096, 1),
                goals=[Goal(goals[1])], hot=hot('small.raw'))]
    for row in rows:
        row.needs = ['nbdcopy', 'certtool', 'psktool']
    return rows


def make_pull(fmt, disk):
    def run(lab, who, _):
        with serve(lab, who, disk(lab)) as s:
            before = s.cpu()
            return {'value': nbdcopy(lab, s.uri()),
                    'cpu_us': (s.cpu() - before) * 1e6 / (lab.size >> 18)}
    return run


def pull_rows():
    rows = []
    for fmt, who, goal in (('raw', RAW, 1.0), ('qcow2', QCOW2, 0.85)):
        rows.append(Row(f'pull-{fmt}', f'nbdcopy pulls all, {fmt}', 's', who,
                        make_pull(fmt, lambda lab, fmt=fmt: disk_of(lab, fmt)),
                        'less', [Goal(goal)], hot=hot(image(fmt))))
    rows.append(Row('pull-luks', 'nbdcopy pulls all, LUKS', 's',
                    ['nbdelta', 'q-s-d'],
                    make_pull('luks', lambda lab: Disk(
                        lab.images.get('disk.luks'), 'qcow2', luks=True)),
                    'less'))
    for row in rows:
        row.needs = ['nbdcopy']
    return rows


def plugin_rows():
    rows = []
    for fmt, peers in (('raw', ['plugin', 'nbdkit', 'nbdelta']),
                       ('qcow2', ['plugin', 'qemu-nbd', 'nbdelta'])):
        for depth in (1, 16):
            for op in ('read', 'write'):
                shape = ('-p', op, '-r', '-b', '4K', '-d', str(depth))
                rows.append(Row(
                    f'plugin-{op}-4k-qd{depth}-{fmt}',
                    f'nbdkit plugin: 4K random {op}, QD {depth}, {fmt}', 'K/s',
                    peers, make_io(fmt, shape, rate, True),
                    goals=[Goal(0.92)] if fmt == 'raw' else [],
                    hot=hot(image(fmt))))
        rows.append(Row(
            f'plugin-pull-{fmt}', f'nbdkit plugin: nbdcopy pulls all, {fmt}',
            's', peers, make_pull(fmt, lambda lab, fmt=fmt: disk_of(lab, fmt)),
            'less', hot=hot(image(fmt)), needs=['nbdcopy']))
    for row in rows:
        row.needs.append('nbdkit')
    return rows


def deep_rows():
    """Images in which a byte is hard to find."""
    def chain(lab, who, _):
        path = lab.images.get('chain')
        disk = Disk(path + '/64.qcow2', 'qcow2', allow=[path])
        with serve(lab, who, disk) as s:
            result = s.load('-r', '-d', '16', *timed(lab))
            return {**rate(result), 'value': result['cpu_us']}

    def fragments(lab, who, _):
        with serve(lab, who, Disk(lab.images.get('fragments.qcow2'),
                                  'qcow2')) as s:
            s.load('-b', '1M', '-d', '4', '-n', '1024')
            result = s.load('-r', '-d', '64', *timed(lab))
            return {**rate(result), 'value': result['cpu_us']}
    return [
        Row('overlays-64', 'CPU of a 4K random read through 64 overlays', 'us',
            QCOW2, chain, 'less', [Goal(0.14)]),
        Row('fragments-4k', 'CPU of a 4K random read, shuffled 4K clusters',
            'us', QCOW2, fragments, 'less', [Goal(0.4)])]


def all_rows():
    return (io_rows() + plugin_rows() + cold_rows() + write_rows() +
            tls_rows() + pull_rows() + deep_rows())
