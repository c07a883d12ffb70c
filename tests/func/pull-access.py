# SPDX-License-Identifier: BSD-3-Clause
# The scenarios of pull-access.sh.  argv: nbdelta.  Works in the current
# directory, where psk/keys.psk has alice, bob and carol.
import subprocess
import sys

import nbd

from pull_util import begin, end, refused
from qmp_daemon import Daemon

WHO = ('alice', 'bob', 'carol')
DISKS = 'plain', 'alices', 'theirs', 'readers', 'below', 'bare', 'tls'


def image(name):
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', f'{name}.img',
                    '8M'], check=True)
    subprocess.run(['qemu-img', 'bitmap', '--add', f'{name}.img', 'b1'],
                   check=True)
    return ['--blockdev', f'qcow2,node-name={name},file.driver=file,'
            f'file.filename={name}.img']


def offer(node, more='', name=None):
    name = name or node
    return ['--export', f'nbd,id={name},node-name={node},name={name},'
            f'writable=on{more}']


def open_as(who, sock, name):
    """'no', 'reads' or 'discards'; a client without a name speaks no TLS."""
    h = nbd.NBD()
    h.set_export_name(name)
    if who:
        h.set_tls(nbd.TLS_REQUIRE)
        h.set_tls_username(who)
        h.set_tls_psk_file('psk/keys.psk')
    try:
        h.connect_unix(sock)
    except nbd.Error:
        return 'no'
    h.flush()
    able = 'reads' if h.is_read_only() else 'discards'
    h.shutdown()
    return able


def listed(who, sock):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.set_tls(nbd.TLS_REQUIRE)
    h.set_tls_username(who)
    h.set_tls_psk_file('psk/keys.psk')
    h.connect_unix(sock)
    names = []
    h.opt_list(lambda name, text: names.append(name))
    h.opt_abort()
    return names


def expect(sock, disk, *views, **able):
    """What each can do; and no view of it is a way around that."""
    for who in WHO:
        want = able.get(who, 'no')
        got = open_as(who, sock, disk['export'])
        assert got == want, (disk, who, got)
        if disk.get('context'):
            view = disk['export'] + '@dirty=' + \
                disk['context'].replace('qemu:dirty-bitmap:', '')
            got = open_as(who, sock, view)
            assert got == ('no' if want == 'no' else 'reads'), (view, who, got)
        assert (disk['export'] in listed(who, sock)) == (want != 'no')


options = []
for disk in DISKS:
    options += image(disk)
daemon = Daemon(
    sys.argv[1],
    '--object', 'tls-creds-psk,id=creds,endpoint=server,dir=psk',
    '--object', 'authz-simple,id=al,identity=alice',
    '--object', 'authz-simple,id=bo,identity=bob',
    '--object', 'throttle-group,id=group',
    '--nbd-server', 'id=t,tls-creds=creds,addr.type=unix,addr.path=tls.sock',
    '--nbd-server', 'id=strict,tls-creds=creds,tls-authz=bo,addr.type=unix,'
    'addr.path=strict.sock',
    *options,
    '--blockdev', 'throttle,node-name=above,throttle-group=group,file=below',
    *offer('plain'),
    *offer('tls', ',server=t'),
    *offer('alices', ',server=t,tls-authz=al'),
    *offer('theirs', ',server=t,tls-authz=al', 'one'),
    *offer('theirs', ',server=strict', 'two'),
    *offer('readers', ',server=t,tls-authz-writable=al'),
    *offer('above', ',server=t,tls-authz=al'))


with daemon:
    # Where the disk is; those of all its exports, and of those above it.
    backup = begin(daemon, *({'node': d, 'since': 'b1'} for d in DISKS
                             if d != 'bare'), server='t')
    disks = {d['node']: d for d in backup['disks']}
    assert all(d['mode'] == 'incremental' for d in disks.values())
    for disk in 'plain', 'tls', 'readers':
        expect('tls.sock', disks[disk], alice='reads', bob='reads', carol='reads')
    expect('tls.sock', disks['alices'], alice='reads')
    expect('tls.sock', disks['below'], alice='reads')
    expect('tls.sock', disks['theirs'], alice='reads', bob='reads')
    end(daemon, backup)

    # Only a client that may write to the disk may discard in its backup.
    backup = begin(daemon, 'readers', 'alices', 'tls', server='t', discard=True)
    disks = {d['node']: d for d in backup['disks']}
    expect('tls.sock', disks['readers'], alice='discards', bob='reads',
           carol='reads')
    expect('tls.sock', disks['alices'], alice='discards')
    expect('tls.sock', disks['tls'], alice='discards', bob='discards',
           carol='discards')
    end(daemon, backup)

    # On a server of the backup's own.
    address = {'type': 'unix', 'path': 'own.sock'}
    backup = begin(daemon, {'node': 'alices', 'since': 'b1'}, listen=address)
    assert backup['disks'][0]['uri'].startswith('nbds+unix:')
    expect('own.sock', backup['disks'][0], alice='reads')
    assert open_as(None, 'own.sock', 'alices') == 'no'
    end(daemon, backup)
    backup = begin(daemon, 'alices', 'plain', listen=address)
    disks = {d['node']: d for d in backup['disks']}
    expect('own.sock', disks['alices'], alice='reads')
    for who in None, 'carol':
        assert open_as(who, 'own.sock', disks['plain']['export']) == 'reads'
        assert who == 'alice' or open_as(who, 'own.sock',
                                         disks['alices']['export']) == 'no'
    end(daemon, backup)

    # On a server that asks for other clients, or whose clients nobody knows.
    backup = begin(daemon, 'alices', 'theirs', server='strict')
    disks = {d['node']: d for d in backup['disks']}
    assert open_as('alice', 'strict.sock', disks['alices']['export']) == 'no'
    assert open_as('bob', 'strict.sock', disks['alices']['export']) == 'no'
    assert open_as('bob', 'strict.sock', disks['theirs']['export']) == 'reads'
    end(daemon, backup)
    for disk in 'alices', 'theirs', 'readers', 'tls', 'below':
        refused(daemon, 'certain clients only', 'backup-begin',
                disks=[{'node': disk}])
    assert daemon.ask('query-backups') == []

    # Nobody but the backup's own server decides for a disk that is not exported.
    backup = begin(daemon, 'plain', 'bare')
    for disk in backup['disks']:
        assert open_as(None, 'nbd.sock', disk['export']) == 'reads'
    end(daemon, backup)
