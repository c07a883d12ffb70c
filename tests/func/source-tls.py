#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""source-tls.py: see source-tls.sh."""
import json
import os
import random
import subprocess

import listener
from source_driver import MIB, Source, ranges, same

NBDELTA = os.environ['BUILD'] + '/nbdelta'
ID = '0123456789abcdef0123456789abcdef'
C1, C2 = (f'nbdelta-{ID}-2026112{n}T000000Z' for n in (1, 2))


def start():
    """The daemon, and the port of its monitor."""
    for _ in range(20):
        qmp, nbd = random.sample(range(20000, 32000), 2)
        p = subprocess.Popen(
            [NBDELTA, 'serve', '-U', 'nbd.sock', '--qmp', 'qmp.sock',
             '--object', 'tls-creds-x509,id=t,dir=pki,endpoint=server',
             '--chardev', f'socket,id=c,host=127.0.0.1,port={qmp},server=on,'
             'wait=off,tls-creds=t', '--monitor', 'c', '--nbd-server',
             f'id=far,addr.type=inet,addr.host=0.0.0.0,addr.port={nbd},'
             'tls-creds=t', 'vda=vda.qcow2'], stderr=subprocess.PIPE)
        if listener.wait('qmp.sock', p):
            return p, qmp
        why = p.stderr.read()
        assert b'in use' in why, why
    raise AssertionError('no free port')


def failed(source, text):
    assert text in source.opened['error'], source.opened
    source.p.stdin.close()
    source.ended(1)


def run(*words):
    return subprocess.run(words, check=True, text=True,
                          capture_output=True).stdout


def write(command):
    run('qemu-io', '-f', 'raw', '-c', command, 'nbd+unix:///vda?socket=nbd.sock')


run('qemu-img', 'create', '-q', '-f', 'qcow2', 'vda.qcow2', '8M')
daemon, port = start()
write('write -P 1 0 2M')
what = f'qmp://localhost:{port}'
for since, checkpoint in ((None, C1), (C1, C2)):
    with Source(what, ID, tls='pki', nbd='far') as s:
        disk = s.begin(checkpoint, f'vda={since}' if since else 'vda')['vda']
        assert disk['options']['tls-creds'] == 'tls', disk
        assert disk['options']['server']['host'] == 'localhost', disk
        run('cp', 'vda.qcow2', 'then.qcow2')
        expected = [(3 * MIB, 65536)] if since else [(0, 8 * MIB)]
        write('write -P 2 3M 64k')
        assert ranges(disk) == expected, disk
        if not since:  # else only what is dirty can be read
            s.did('read', 'vda', 'vda.raw')
            same('vda.raw', 'then.qcow2')
        s.did('end', 'keep')
with Source(what, ID, tls='pki', nbd='nosuch') as s:
    assert 'nosuch' in s.ask('begin', C1)['error']
failed(Source(what, ID, tls='other'), '')
failed(Source(what, ID, timeout=2), 'wants TLS')
failed(Source(f'qmp://127.0.0.1:{port}', ID, tls='nosuch'), 'nosuch')
backups = json.loads(run(NBDELTA, 'qmp', 'qmp.sock', 'query-backups'))
assert backups == [], backups
daemon.terminate()
assert daemon.wait(60) == 0
daemon.stderr.close()
