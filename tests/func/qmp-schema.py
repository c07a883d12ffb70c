# The schema of the daemon, held against itself, against replies and events,
# against the man pages, and against another program's.  argv: a QMP socket, the
# directory of the pages, qemu-storage-daemon or ''.
import json
import os
import re
import socket
import subprocess
import sys

import qmp_page
from qmp_schema import Schema


class Monitor:
    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(60)
        self.file = sock.makefile('r')
        self.events = []
        self.recv()
        self.ask('qmp_capabilities')

    def recv(self):
        return json.loads(self.file.readline())

    def ask(self, command, arguments=None):
        message = {'execute': command, 'arguments': arguments or {}}
        self.sock.sendall(json.dumps(message).encode())
        while True:
            reply = self.recv()
            if 'event' not in reply:
                assert 'return' in reply, (message, reply)
                return reply['return']
            self.events.append(reply)

    def until(self, name, **data):
        def fits(e):
            return e['event'] == name and data.items() <= e['data'].items()
        while not any(fits(e) for e in self.events):
            self.events.append(self.recv())


class Checked(Monitor):
    """A monitor that holds all it sends and gets against the schema."""
    schema = None

    def ask(self, command, arguments=None):
        reply = super().ask(command, arguments)
        if self.schema:
            e = self.schema.of('command')[command]
            self.schema.validate(e['arg-type'], arguments or {}, command)
            self.schema.validate(e['ret-type'], reply, f'{command} returns')
        return reply


def kind(schema, name):
    e = schema.by_name[name]
    return {'builtin': lambda: e['json-type'],
            'enum': lambda: 'string',
            'array': lambda: [kind(schema, e['element-type'])],
            'object': lambda: 'object',
            'alternate': lambda: 'alternate'}[e['meta-type']]()


# Where we differ from QEMU 7.2 on purpose: "command.argument".
MORE = {
    # We have one more: mem.
    'blockdev-add.driver',
    'blockdev-reopen.options.driver',
    # Words that QEMU knows on its command line.
    'blockdev-add.discard',
    'blockdev-reopen.options.discard',
    'blockdev-create.options.driver',
    # The only format there is may be left out, and names its own members.
    'blockdev-add(qcow2).encrypt.format',
    'blockdev-add(qcow2).encrypt.key-secret',
    'blockdev-reopen.options(qcow2).encrypt.format',
    'blockdev-reopen.options(qcow2).encrypt.key-secret',
    # Both formats have the same members.
    'blockdev-add(rbd).encrypt.key-secret',
    'blockdev-create.options(rbd).location.encrypt.key-secret',
    'blockdev-reopen.options(rbd).encrypt.key-secret',
    # Several servers, and what one client may have of each.
    'block-export-add(nbd).bitmaps.context-name',
    'block-export-add(nbd).server',
    'nbd-server-start.id',
    'nbd-server-start.handshake-max-seconds',
    'nbd-server-start.max-connections-per-address',
    'nbd-server-stop.id',
    'query-block-exports returns.server',
    # Authorization for each export.
    'block-export-add(nbd).tls-authz',
    'block-export-add(nbd).tls-authz-writable',
    'blockdev-create.options(qcow2).backing-fmt',
    # How long a guest waits for the target of a backup.
    'blockdev-backup.cbw-timeout',
    'drive-backup.cbw-timeout',
    # Bitmaps that come along.
    'blockdev-mirror.bitmaps',
    'drive-mirror.bitmaps',
    'transaction.actions(blockdev-backup).data.cbw-timeout',
    'transaction.actions(drive-backup).data.cbw-timeout',
    # Why a bitmap cannot be used.
    'query-block returns.inserted.dirty-bitmaps.inconsistent-reason',
    'query-named-block-nodes returns.dirty-bitmaps.inconsistent-reason',
}


# Types of jobs that QEMU has not.
JOBS = {'fetch'}


# What QEMU has had since 7.2, up to 10: "command.argument".
LATER = {
    'block-job-change',
    'blockdev-set-active',
    'query-block-jobs returns.actively-synced',
    'BLOCK_IO_ERROR.qom-path',
    'block-commit.backing-mask-protocol',
    'block-stream.backing-mask-protocol',
    'block-export-add.allow-inactive',
    'query-block returns.inserted.active',
    'query-named-block-nodes returns.active',
    'blockdev-add.active',
    'blockdev-reopen.options.active',
    'blockdev-add.discard-no-unref',
    'blockdev-add.min-cluster-size',
    'blockdev-reopen.options.discard-no-unref',
    'blockdev-reopen.options.min-cluster-size',
    *(f'{c}.{m}' for m in ('discard-source', 'x-perf.min-cluster-size')
      for c in ('blockdev-backup', 'drive-backup',
                'transaction.actions.data')),
}


# Options of nodes that we have and QEMU has not, or has only on its command line.
NODE_MORE = {
    'nbd': ('connections', 'host', 'path', 'port', 'server', 'tls',
            'tls-certificates', 'tls-psk-file', 'tls-username'),
    'qcow2': ('bitmap-durability', 'snapshot'),
}
for driver, options in NODE_MORE.items():
    for option in options:
        MORE.add(f'blockdev-add({driver}).{option}')
        MORE.add(f'blockdev-reopen.options({driver}).{option}')


# What QEMU has, and its storage daemon has not.
MACHINE = {'DEVICE_DELETED', 'RESET', 'SHUTDOWN', 'add-fd',
           'block_set_io_throttle', 'closefd', 'cont',
           'device_add', 'device_del', 'eject', 'getfd',
           'human-monitor-command', 'query-fdsets', 'query-kvm', 'query-name',
           'query-status', 'query-tpm', 'query-tpm-models', 'query-tpm-types',
           'query-uuid', 'query-yank', 'remove-fd', 'stop',
           'system_reset', 'yank'}


def plain(member):
    """A member without the cases in which it is there."""
    return re.sub(r'\([\w-]+\)', '', member)


class Pages:
    def __init__(self, schema, man):
        self.reference = qmp_page.read_page(f'{man}/nbdelta-qmp-ref.7')
        self.nodes = qmp_page.read_page(f'{man}/nbdelta-disks.7')
        wrong = [*qmp_page.check_reference(schema, self.reference),
                 *qmp_page.check_nodes(schema, self.nodes)]
        assert not wrong, '\n'.join(wrong)
        self.names = qmp_page.of_nbdelta(f'{man}/nbdelta-qmp-ref.7')
        self.ours = qmp_page.marked(self.reference, self.nodes)
        assert len(self.ours) > 15, self.ours

    def check_names(self, ours, theirs):
        """The sections OF NBDELTA have what no QEMU has."""
        names = {*ours.of('command'), *ours.of('event')}
        names -= {*theirs.by_name, *LATER}
        assert names == self.names | MACHINE, names ^ (self.names | MACHINE)

    def check_ours(self, absent):
        """What they call ours is what QEMU has not."""
        wrong = {plain(m) for m in self.ours} - {plain(m) for m in MORE}
        assert not wrong, f'the pages call these ours: {wrong}'
        for where in absent:
            command, member = re.match(r'([\w-]+)[^.]*\.(.*)', where).groups()
            described = self.reference[command][2 if 'returns' in where else 1]
            if described and command not in ('blockdev-reopen', 'transaction'):
                assert plain(where) in {plain(m) for m in self.ours}, \
                    f'QEMU has no {where}, {member} is not marked'


def compare(ours, theirs):
    """What we say of a command that both have is what they say.  Returns the
    members that they have not."""
    common = set(ours.of('command')) & set(theirs.of('command'))
    assert len(common) > 30, common
    problems = []
    absent = set()

    def both(a, b, at, depth):
        if a['meta-type'] == 'array' and b['meta-type'] == 'array':
            return both(ours.by_name[a['element-type']],
                        theirs.by_name[b['element-type']], at, depth)
        if a['meta-type'] == 'enum' and b['meta-type'] == 'enum':
            more = set(a['values']) - set(b['values'])
            if 'mirror' in a['values']:
                more -= JOBS
            if at.endswith('.format-specific.type'):
                more.discard('nbd')     # QEMU's nbd nodes tell nothing
                more.discard('file')    # before version 8
            if more:
                problems.append(f'{at}: {more}')
        if a['meta-type'] != 'object' or b['meta-type'] != 'object' or \
                depth > 4:
            return None
        cases = {v['case']: v['type'] for v in b.get('variants', [])}
        for v in a.get('variants', []):
            if v['case'] in cases:
                both(ours.by_name[v['type']], theirs.by_name[cases[v['case']]],
                     f'{at}({v["case"]})', depth)
        mine = {m['name']: m for m in a['members']}
        other = {m['name']: m for m in b['members']}
        in_cases = {m['name'] for case in cases.values()
                    for m in theirs.by_name[case]['members']}
        for name, m in mine.items():
            where = f'{at}.{name}'
            o = other.get(name)
            if not o and plain(where) in LATER:
                continue
            if not o and name not in in_cases:
                absent.add(where)
            if where.endswith('.detached-header'):
                continue                # since QEMU 9
            if where in MORE or where.endswith(
                    ('(qcow2).armed-bytes', '(copy-before-write).delay')):
                continue
            if not o:
                problems.append(f'{where}: QEMU has none')
            elif 'default' in m and 'default' not in o:
                problems.append(f'{where}: QEMU requires it')
            elif 'default' in o and 'default' not in m:
                problems.append(f'{where}: optional in QEMU')
            elif kind(ours, m['type']) != kind(theirs, o['type']) and \
                    kind(ours, m['type']) != 'value':
                problems.append(f'{where}: {kind(ours, m["type"])}, in QEMU '
                                f'{kind(theirs, o["type"])}')
            else:
                both(ours.by_name[m['type']], theirs.by_name[o['type']],
                     where, depth + 1)

    for name in sorted(common):
        a, b = ours.of('command')[name], theirs.of('command')[name]
        both(ours.by_name[a['arg-type']], theirs.by_name[b['arg-type']], name,
             0)
        both(ours.by_name[a['ret-type']], theirs.by_name[b['ret-type']],
             f'{name} returns', 0)
        if kind(ours, a['ret-type']) != kind(theirs, b['ret-type']):
            problems.append(f'{name} returns something else')
    for name, e in ours.of('event').items():
        if name not in theirs.by_name:
            # Of virtual machines, and our own.
            assert name in ('RESET', 'SHUTDOWN', 'DEVICE_DELETED',
                            'BACKUP_ENDED', 'BACKUP_SNAPSHOT_LOST'), name
            continue
        both(ours.by_name[e['arg-type']],
             theirs.by_name[theirs.by_name[name]['arg-type']], name, 0)
    assert not problems, '\n'.join(problems)
    return absent


def schema_of(program):
    """That of another program, which has a monitor on a socketpair."""
    a, b = socket.socketpair()
    p = subprocess.Popen([program, '--chardev', f'socket,id=c,fd={b.fileno()}',
                          '--monitor', 'c'], pass_fds=[b.fileno()])
    b.close()
    m = Monitor(a)
    schema = Schema(m.ask('query-qmp-schema'))
    m.ask('quit')
    assert p.wait(60) == 0
    return schema


# Options with which a node of each driver can be made beside the others.
NODES = {
    'blkdebug': {'image': 'below'},
    'blklogwrites': {'file': 'below', 'log': 'log'},
    'compress': {'file': {'driver': 'qcow2', 'read-only': True,
                          'file': {'driver': 'file', 'filename': 'top.qcow2',
                                   'locking': 'off', 'read-only': True}},
                 'read-only': True},
    'copy-before-write': {'file': 'below', 'target': 'target'},
    'copy-on-read': {'file': 'below'},
    'file': {'filename': 'free.raw'},
    'host_device': {'filename': '/dev/null'},
    'mem': {'size': 65536},
    'nbd': {'server': {'type': 'unix', 'path': '/nonexistent'}},
    'null-co': {},
    'qcow2': {'file': {'driver': 'file', 'filename': 'top.qcow2',
                       'locking': 'off', 'read-only': True},
              'read-only': True},
    'raw': {'file': 'below'},
    'rbd': {'pool': 'rbd', 'image': 'x', 'conf': '/nonexistent'},
    'snapshot-access': {'file': 'below'},
    'throttle': {'file': 'below', 'throttle-group': 'group'},
}


def sample(schema, type_name):
    """Some value of a type."""
    e = schema.by_name[type_name]
    meta = e['meta-type']
    if meta == 'builtin':
        return {'string': 'x', 'int': 1, 'boolean': True,
                'null': None}[e['json-type']]
    if meta == 'enum':
        return e['values'][0]
    if meta == 'array':
        return [sample(schema, e['element-type'])]
    if meta == 'alternate':
        for m in e['members']:
            if schema.by_name[m['type']]['meta-type'] == 'enum':
                return sample(schema, m['type'])
        return 'below'
    value = {m['name']: sample(schema, m['type']) for m in e['members']}
    return {k: v for k, v in value.items() if v is not None}


def each_option(m, schema):
    """Each option that the schema describes is taken, and each that it calls
    mandatory is missed."""
    def tell(**options):
        message = {'execute': 'blockdev-add', 'arguments': options}
        m.sock.sendall(json.dumps(message).encode())
        reply = m.recv()
        while 'event' in reply:
            reply = m.recv()
        if 'return' in reply:
            m.ask('blockdev-del', {'node-name': options['node-name']})
            return None
        return reply['error']['desc']
    for name in 'below', 'log', 'target':
        m.ask('blockdev-add', {'driver': 'null-co', 'node-name': name,
                               'size': 65536})
    m.ask('object-add', {'qom-type': 'throttle-group', 'id': 'group'})
    node = schema.by_name[schema.of('command')['blockdev-add']['arg-type']]
    common = [x for x in node['members'] if x['name'] not in ('driver',
                                                              'node-name')]
    cases = {v['case']: schema.by_name[v['type']] for v in node['variants']}
    assert set(cases) == set(NODES), set(cases) ^ set(NODES)
    for driver, base in NODES.items():
        base = {'driver': driver, 'node-name': 'one', **base}
        for x in common + cases[driver]['members']:
            said = tell(**{**base, x['name']: sample(schema, x['type'])}) or ''
            for bad in 'does not take', 'described', 'must be', 'expects':
                assert bad not in said or 'must be the host' in said, \
                    (driver, x['name'], said)
            if 'default' not in x:
                left = {k: v for k, v in base.items() if k != x['name']}
                assert tell(**left), (driver, x['name'], 'may be left out')
        # Drivers that cannot be opened here say so before they look at options.
        if tell(**base) is None:
            assert 'unheard_of' in (tell(**base, unheard_of=1) or ''), driver
    for name in 'below', 'log', 'target':
        m.ask('blockdev-del', {'node-name': name})


s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
m = Checked(s)
schema = Schema(m.ask('query-qmp-schema'))
schema.check()
assert set(schema.of('command')) == {c['name']
                                     for c in m.ask('query-commands')}
m.schema = schema

# Every query, at rest and with something to tell.
queries = [c for c in schema.of('command') if c.startswith('query-')]


def ask_all():
    for query in queries:
        m.ask(query)


ask_all()
m.ask('transaction', {'actions': [
    {'type': 'block-dirty-bitmap-add', 'data': {'node': 'disk', 'name': 'b'}},
    {'type': 'block-dirty-bitmap-clear', 'data': {'node': 'disk',
                                                  'name': 'b'}}]})
m.ask('blockdev-add', {'driver': 'null-co', 'node-name': 'n', 'size': 65536})
m.ask('block-export-add', {'type': 'nbd', 'id': 'x', 'node-name': 'disk',
                           'name': 'x', 'bitmaps': [
                               {'node': 'disk', 'name': 'b'}]})
common = {'device': 'disk', 'sync': 'full', 'format': 'qcow2'}
m.ask('drive-backup', {**common, 'job-id': 'slow', 'target': 'slow.qcow2',
                       'speed': 1})
m.ask('drive-backup', {**common, 'job-id': 'kept', 'target': 'kept.qcow2',
                       'auto-dismiss': False, 'auto-finalize': False})
m.until('BLOCK_JOB_PENDING', id='kept')
ask_all()
m.ask('job-finalize', {'id': 'kept'})
m.until('JOB_STATUS_CHANGE', id='kept', status='concluded')
ask_all()
m.ask('job-dismiss', {'id': 'kept'})
m.ask('block-job-cancel', {'device': 'slow', 'force': True})
m.until('JOB_STATUS_CHANGE', id='slow', status='null')
m.ask('block-export-del', {'id': 'x'})
m.until('BLOCK_EXPORT_DELETED', id='x')
names = set()
for event in m.events:
    names.add(event['event'])
    e = schema.of('event')[event['event']]
    schema.validate(e['arg-type'], event['data'], event['event'])
assert len(names) >= 4, names

m.schema = None
each_option(m, schema)
pages = Pages(schema, sys.argv[2])
absent = ()
if sys.argv[3]:
    other = schema_of(sys.argv[3])
    absent = compare(schema, other)
    pages.check_names(schema, other)
pages.check_ours(absent)
