# SPDX-License-Identifier: BSD-3-Clause
# The scenarios of nbd-flights.sh.  Works in the current directory.
import json
import os
import random
import socket
import struct
import subprocess
import sys
import time

import nbd

from qmp_daemon import Daemon

K, M = 1 << 10, 1 << 20
SIZE = 8 * M
UNIT = 64 * K
nbdelta, without = sys.argv[1:]
random.seed(1)


def image(form):
    name = 'disk.' + form
    if os.path.exists(name):
        os.unlink(name)
    subprocess.check_call([nbdelta, 'create', '-f', form, name, str(SIZE)],
                          stdout=subprocess.DEVNULL)
    return name


def daemon(form, aio='', program=nbdelta):
    direct = 'cache.direct=on'
    return Daemon(program,
                  '--blockdev', f'driver=file,node-name=f,{direct}{aio},'
                  f'filename={image(form)}',
                  '--blockdev', f'driver={form},node-name=disk,file=f,{direct}',
                  '--export', 'type=nbd,id=e,node-name=disk,name=,writable=on')


def client(uri='nbd+unix:///?socket=nbd.sock'):
    h = nbd.NBD()
    h.connect_uri(uri)
    return h


def has_ring(d):
    fds = f'/proc/{d.process.pid}/fd'
    return any('io_uring' in os.readlink(f'{fds}/{fd}')
               for fd in os.listdir(fds))


def together(h, requests):
    """Have all of them on their way at once."""
    left = [request() for request in requests]
    while left:
        h.poll(-1)
        left = [c for c in left if not h.aio_command_completed(c)]


def fill(h, byte):
    for at in range(0, SIZE, M):
        h.pwrite(bytes([byte]) * M, at)


def agrees_with_the_model(h):
    model = bytearray(b'\1' * SIZE)
    fill(h, 1)
    for _ in range(12):
        units = random.sample(range(SIZE // UNIT), 64)
        requests, checks = [], []
        for unit in units:
            # Most are blocks, some are not.
            step = random.choice([4096, 4096, 4096, 512, 100])
            start = random.randrange(0, UNIT // 2, step)
            size = min(random.randrange(1, 10) * step, UNIT - start)
            at = unit * UNIT + start
            if random.random() < 0.5:
                data = bytes([random.randrange(256)]) * size
                model[at:at + size] = data
                flags = nbd.CMD_FLAG_FUA if random.random() < 0.1 else 0
                buf = nbd.Buffer.from_bytearray(bytearray(data))
                requests.append(lambda buf=buf, at=at, flags=flags:
                                h.aio_pwrite(buf, at, flags=flags))
            else:
                buf = nbd.Buffer(size)
                checks.append((buf, at, size))
                requests.append(lambda buf=buf, at=at: h.aio_pread(buf, at))
        together(h, requests)
        for buf, at, size in checks:
            assert buf.to_bytearray() == model[at:at + size], at
    h.flush()
    for at in range(0, SIZE, M):
        assert h.pread(M, at) == model[at:at + M], at


def expect_whole(h):
    """Each unit was written by one request."""
    for at in range(0, SIZE, M):
        data = h.pread(M, at)
        for i in range(0, M, UNIT):
            assert data[i:i + UNIT] == data[i:i + 1] * UNIT, at + i


def writes(byte):
    """As the wire has them: a unit each."""
    return b''.join(
        struct.pack('>IHHQQI', 0x25609513, 0, 1, at, at, UNIT) +
        bytes([byte]) * UNIT for at in range(0, SIZE, UNIT))


def vanish(byte):
    s = socket.socket(socket.AF_UNIX)
    s.connect('nbd.sock')
    s.sendall(struct.pack('>IQII', 1, 0x49484156454F5054, 1, 0))
    s.settimeout(0.02)
    try:
        s.sendall(writes(byte))
    except (socket.timeout, OSError):
        pass
    s.close()


def connections(d):
    count = 0
    for task in os.listdir(f'/proc/{d.process.pid}/task'):
        try:
            with open(f'/proc/{d.process.pid}/task/{task}/comm',
                      encoding='utf-8') as f:
                count += f.read().strip() == 'nbd-conn'
        except OSError:  # it has ended
            pass
    return count


def clients_may_vanish(d, h):
    """What they have begun is finished; nothing says how two that write to one
    place at once mix."""
    fill(h, 1)
    for byte in range(2, 12):
        vanish(byte)
        end = time.monotonic() + 60
        while connections(d) > 1:
            assert time.monotonic() < end
            time.sleep(0.001)
        expect_whole(h)


def points_have_writes_whole(d, h):
    for byte in range(20, 24):
        buf = nbd.Buffer.from_bytearray(bytearray([byte]) * UNIT)
        left = [h.aio_pwrite(buf, at) for at in range(0, SIZE, UNIT)]
        point = json.loads(subprocess.check_output(
            [nbdelta, 'backup-begin', 'qmp.sock', '--scratch', '.',
             '--output', 'json']))
        while left:
            h.poll(-1)
            left = [c for c in left if not h.aio_command_completed(c)]
        expect_whole(client(point['disks'][0]['uri']))
        subprocess.check_call([nbdelta, 'backup-end', 'qmp.sock', point['id']],
                              stdout=subprocess.DEVNULL)
    fill(h, 30)  # without a point, in flight again


for form in 'raw', 'qcow2':
    with daemon(form) as d:
        h = client()
        agrees_with_the_model(h)
        assert has_ring(d)
        clients_may_vanish(d, h)
        points_have_writes_whole(d, h)
        expect_whole(h)
        for at in range(0, SIZE, UNIT):  # the end comes meanwhile
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b'x') * UNIT), at)

with daemon('raw', aio=',aio=threads') as d:
    h = client()
    agrees_with_the_model(h)
    assert not has_ring(d)

if subprocess.call([without, 'true']) == 0:
    with open('forbidden', 'w', encoding='utf-8') as f:
        f.write(f'#!/bin/sh\nexec {without} {nbdelta} "$@"\n')
    os.chmod('forbidden', 0o755)
    with daemon('qcow2', program='./forbidden') as d:
        h = client()
        agrees_with_the_model(h)
        assert not has_ring(d)
