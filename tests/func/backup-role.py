#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""backup-role.py: see backup-role.sh."""
import json
import os
import random
import socket
import subprocess

import nbd

from nbd_tls import context
from qmp_daemon import Daemon, QmpError

NBDELTA = os.environ['BUILD'] + '/nbdelta'
MIB = 1024 * 1024
THEIRS = {'backup-begin', 'backup-end', 'backup-renew', 'checkpoint-delete',
          'checkpoint-list', 'qmp_capabilities', 'query-backups',
          'query-block', 'query-commands', 'query-version'}


class Role:
    """A client of the monitor, by TLS; an event is an error."""

    def __init__(self, port, identity):
        raw = socket.create_connection(('127.0.0.1', port), 60)
        self.socket = context('pki', identity).wrap_socket(
            raw, server_hostname='localhost')
        self.lines = self.socket.makefile('r')
        assert 'QMP' in json.loads(self.lines.readline())
        self.ask('qmp_capabilities')

    def ask(self, command, **arguments):
        arguments = {k.replace('_', '-'): v for k, v in arguments.items()}
        self.socket.sendall(json.dumps(
            {'execute': command, 'arguments': arguments}).encode())
        reply = json.loads(self.lines.readline())
        if 'error' in reply:
            raise QmpError(reply['error'])
        return reply['return']

    def refuses(self, text, command, **arguments):
        try:
            self.ask(command, **arguments)
        except QmpError as e:
            assert str(e) == 'GenericError', (command, str(e))
            assert text in e.text, (command, e.text)
        else:
            raise AssertionError(f'{command} {arguments}: not refused')


def connect(port, name, identity):
    h = nbd.NBD()
    h.set_tls(nbd.TLS_REQUIRE)
    h.set_tls_certificates('pki' if identity == 'client' else identity)
    h.set_export_name(name)
    h.connect_tcp('localhost', str(port))
    return h


def refused(port, name, identity):
    try:
        connect(port, name, identity)
    except nbd.Error:
        return
    raise AssertionError(f'{identity} may open {name}')


def may_not_write(h):
    try:
        h.pwrite(b'x' * 512, 0)
    except nbd.Error:
        return
    raise AssertionError('it can be written to')


def run(*words, status=0):
    p = subprocess.run(words, text=True, capture_output=True, check=False)
    assert p.returncode == status, (words, p)
    return p.stdout + p.stderr


def start():
    """The daemon, and the ports of its monitor with the role and of NBD."""
    for _ in range(20):
        qmp, port = random.sample(range(20000, 32000), 2)
        try:
            return Daemon(
                NBDELTA, '--object',
                'tls-creds-x509,id=t,dir=pki,endpoint=server,verify-peer=on',
                '--object', 'authz-simple,id=guest,identity=CN=alice',
                '--object', 'authz-simple,id=appliance,identity=CN=appliance',
                '--chardev', f'socket,id=c,host=127.0.0.1,port={qmp},server=on,'
                'wait=off,tls-creds=t,tls-authz=appliance',
                '--monitor', 'c,role=backup,disks.0=vda,disks.1=vdc',
                '--nbd-server', f'id=far,addr.type=inet,addr.host=0.0.0.0,'
                f'addr.port={port},tls-creds=t',
                *(word for disk in ('vda', 'vdb', 'vdc') for word in (
                    '--blockdev', f'qcow2,node-name=node-{disk},'
                    f'file.driver=file,file.filename={disk}.qcow2',
                    '--export', f'nbd,id={disk},node-name=node-{disk},'
                    f'name={disk},writable=on,server=far,tls-authz=guest'))
            ), qmp, port
        except AssertionError:
            continue
    raise AssertionError('no free port')


def other_commands(admin, role):
    mine = {c['name'] for c in role.ask('query-commands')}
    assert mine == THEIRS, mine
    for command in admin.ask('query-commands'):
        if command['name'] not in THEIRS:
            role.refuses('is not for clients', command['name'])


def too_much(role):
    vda = [{'node': 'vda'}]
    begin = 'backup-begin'
    for disks in ([{'node': 'vdb'}], [{'node': 'vda'}, {'node': 'vdb'}],
                  [{'node': 'node-vda'}]):
        role.refuses('among the disks', begin, disks=disks)
    role.refuses('of all disks', begin, server='far')
    role.refuses("'listen'", begin, disks=vda,
                 listen={'type': 'unix', 'path': 'x.sock'})
    role.refuses("'scratch'", begin, disks=vda, scratch={'quota': 1 << 40})
    role.refuses("'on-limit'", begin, disks=vda, on_limit='break-guest-write')
    role.refuses('an export', begin, disks=[{'node': 'vda', 'export': 'vdb'}])
    role.refuses('expire', begin, disks=vda, server='far', expire=0)
    role.refuses('expire', begin, disks=vda, server='far', expire=86401)
    role.refuses('checkpoint whose', begin, disks=vda, server='far',
                 checkpoint='mine')
    assert not os.path.exists('x.sock')


def of_others(admin, role):
    """Sessions and checkpoints that are not theirs."""
    for name in ('mine', 'nbdelta-x'):
        s = admin.ask('backup-begin', disks=[{'node': 'vda'}, {'node': 'vdb'}],
                      checkpoint=name, server='far')['id']
        assert role.ask('query-backups') == []
        role.refuses('no backup', 'backup-renew', id=s)
        role.refuses('no backup', 'backup-end', id=s, success=False)
        admin.ask('backup-end', id=s, success=True)
    s = admin.ask('backup-begin', disks=[{'node': 'vdb'}],
                  checkpoint='nbdelta-b', server='far')['id']
    admin.ask('backup-end', id=s, success=True)

    listed = {c['name']: [d['devices'] for d in c['disks']]
              for c in role.ask('checkpoint-list')}
    assert listed == {'mine': [['vda']], 'nbdelta-x': [['vda']]}, listed
    role.refuses('does not begin', 'checkpoint-delete', name='mine')
    role.refuses('no checkpoint', 'checkpoint-delete', name='nbdelta-b')
    role.refuses("'nodes'", 'checkpoint-delete', name='nbdelta-x',
                 nodes=['node-vdb'])
    role.ask('checkpoint-delete', name='nbdelta-x')
    left = {c['name']: [d['devices'] for d in c['disks']]
            for c in admin.ask('checkpoint-list')}
    assert left == {'mine': [['vda'], ['vdb']], 'nbdelta-x': [['vdb']],
                    'nbdelta-b': [['vdb']]}, left
    assert [b['device'] for b in role.ask('query-block')] == ['vda', 'vdc']


def by_nbd(role, port):
    """Who has begun a backup may read it, and that is all."""
    begun = role.ask('backup-begin', disks=[{'node': 'vda'}], server='far',
                     checkpoint='nbdelta-n')
    name = begun['disks'][0]['export']
    assert [b['id'] for b in role.ask('query-backups')] == [begun['id']]
    for identity in ('appliance', 'client'):
        h = connect(port, name, identity)
        assert h.pread(512, 0) == b'1' * 512
        may_not_write(h)
        h.shutdown()
    refused(port, 'vda', 'appliance')
    refused(port, 'vdb', 'appliance')
    role.refuses("'drop'", 'backup-end', id=begun['id'], success=True,
                 drop=['mine'])
    role.ask('backup-renew', id=begun['id'])
    role.ask('backup-end', id=begun['id'], success=False)


def write(port, text):
    h = connect(port, 'vda', 'client')
    h.pwrite(text * MIB, 0)
    h.flush()
    h.shutdown()


def main():
    for disk in ('vda', 'vdb', 'vdc'):
        run('qemu-img', 'create', '-q', '-f', 'qcow2', f'{disk}.qcow2', '8M')
    admin, qmp, port = start()
    with admin:
        what = f'qmp://localhost:{qmp}'
        backup = (NBDELTA, 'backup', '--nbd', 'far', '--tls-certificates')
        for text in (b'0', b'1'):
            write(port, text)
            run(*backup, 'appliance', what, 'dir')
        run(NBDELTA, 'restore', 'dir', 'vda=vda.raw')
        run('qemu-img', 'compare', '-U', 'vda.raw', 'vda.qcow2')
        points = run(NBDELTA, 'points', 'dir')
        assert points.count('increment') == 2, points
        assert 'vdc' in points and 'vdb' not in points, points
        run(NBDELTA, 'backup', '--forget', '--nbd', 'far',
            '--tls-certificates', 'appliance', what, 'dir')
        assert admin.ask('checkpoint-list') == []
        assert 'vdb' in run(*backup, 'appliance', '--disk', 'vdb', what, 'dir',
                            status=6)
        run(*backup, 'pki', '--timeout', '2', what, 'other', status=1)

        role = Role(qmp, 'appliance')
        other_commands(admin, role)
        too_much(role)
        assert admin.ask('query-backups') == []
        of_others(admin, role)
        by_nbd(role, port)
        assert admin.ask('query-backups') == []


main()
