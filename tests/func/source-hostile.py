#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""source-hostile.py: see source-hostile.sh."""
import json
import os
import random
import socket
import tempfile
import threading

from source_driver import Source

ID = '0123456789abcdef0123456789abcdef'
C1 = f'nbdelta-{ID}-20261121T000000Z'
NAMES = ('device', 'inserted', 'node-name', 'image', 'virtual-size', 'id',
         'disks', 'uri', 'export', 'context', 'size', 'dirty-bitmaps', 'name',
         'status', 'qdev', 'ro', 'drv', 'checkpoint', 'devices', 'persistent',
         'recording', 'granularity', 'format-specific', 'data', 'compat',
         'node', 'reason', 'inconsistent', 'busy')
PLAIN = (None, True, False, 0, 1, -1, 2**63 - 1, -2**63, 1.5, '', 'a', 'qcow2',
         'vda', f'nbdelta-{ID}-0', f'nbdelta-{ID[:12]}-s0', C1, 'x' * 5000,
         '../../x', 'nbd+unix:///a?socket=nosuch', 'nbd://', 'running',
         '\x1b[2J', '/machine/peripheral/', 'concluded', '1.1')


def anything(rng, depth=0):
    """A value of any shape, with members that mean something."""
    kind = rng.random()
    if depth > 4 or kind < 0.35:
        return rng.choice(PLAIN)
    if kind < 0.6:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(NAMES): anything(rng, depth + 1)
            for _ in range(rng.randrange(1, 12))}


def likely(rng):
    """An answer that a real one could be, so that more is asked."""
    return [{'device': 'vda', 'qdev': 'x', 'node-name': 'vda', 'inserted': {
        'node-name': 'vda', 'drv': 'qcow2', 'ro': False, 'image': {
            'virtual-size': rng.choice((1 << 20, -1, 2**63 - 1))}},
        'image': {'virtual-size': 1 << 20}, 'name': C1, 'id': f'nbdelta-{ID}-0',
        'dirty-bitmaps': [anything(rng, 3)], 'devices': ['vda'],
        'disks': [anything(rng, 2)]}]


def serve(listener, rng, package):
    conn, _ = listener.accept()
    listener.close()
    with conn, conn.makefile('rw') as f:
        try:
            f.write(json.dumps({'QMP': {'version': {
                'package': package, 'qemu': {'major': 7}}}}) + '\n')
            f.flush()
            for i, line in enumerate(f):
                request = json.loads(line)
                kind = rng.random()
                if i > 0 and kind < 0.02:
                    return
                if i > 0 and kind < 0.04:
                    f.write('{{{]\n\x00"')
                    f.flush()
                    return
                answer = {'return': {} if i == 0 or kind < 0.3 else
                          likely(rng) if kind < 0.7 else anything(rng)}
                if i > 0 and kind > 0.95:
                    answer = {'error': anything(rng)}
                f.write(json.dumps({'id': request['id'], **answer}) + '\n')
                f.flush()
        except OSError:
            pass


def one_round(seed):
    rng = random.Random(seed)
    if os.path.exists('fake.sock'):
        os.unlink('fake.sock')
    listener = socket.socket(socket.AF_UNIX)
    listener.bind('fake.sock')
    listener.listen()
    thread = threading.Thread(target=serve, args=(
        listener, rng, rng.choice(('nbdelta 1', 'qemu', 5))))
    thread.start()
    s = Source('fake.sock', ID, timeout=2)
    if 'error' not in s.opened:
        for words in (('begin', C1), ('renew',), ('list',), ('end', 'keep'),
                      ('forget', C1), ('begin', '-'), ('end', 'drop')):
            assert s.ask(*words) is not None, (seed, words)
        s.p.stdin.close()
        s.ended()
    else:
        s.p.stdin.close()
        s.ended(1)
    thread.join(60)
    assert not thread.is_alive()
    left = os.listdir(os.environ['TMPDIR'])
    assert left == [], (seed, left)


with tempfile.TemporaryDirectory(dir='/tmp') as tmp:
    os.environ['TMPDIR'] = tmp
    for number in range(int(os.environ.get('ROUNDS', '120'))):
        one_round(number)
