# SPDX-License-Identifier: BSD-3-Clause
"""What QEMU's schema and ours have for a block layer, held against each other.

qemu_schema.py make DAEMON EMULATOR: print the part of QEMU's schema that
concerns us, from what query-qmp-schema of its storage daemon and its emulator
returned (files).  It is kept in qemu-10-schema.json:

    ask() { echo '{"execute": "qmp_capabilities"}' \\
        '{"execute": "query-qmp-schema"} {"execute": "quit"}' |
        "$@" | jq 'select(.return | type == "array").return'; }
    ask qemu-storage-daemon --chardev stdio,id=m --monitor m >daemon.json
    ask qemu-system-x86_64 -machine none -display none -qmp stdio >emulator.json
    python3 qemu_schema.py make daemon.json emulator.json >qemu-10-schema.json

A difference is a place, a verb and an item:

    commands: lacks NAME                        they have it, we have not
    blockdev-add/+nbd: has host                 a member that is ours
    blockdev-add/discard: has ^off              a word
    block-commit/base: lacks $deprecated        a feature
    blockdev-add/+nbd: differs in server:optional   or :type

A place is a command or event, and members below it; "+nbd" is a case, "[]" an
item of an array, "=>" what the command returns.  What several commands share is
looked at where it is met first; blockdev-add comes before all others.
"""
import json
import sys

# Commands and events of emulators that have to do with their block layer, or
# that those that use one expect.
EMULATOR = '''
    BLOCK_IO_ERROR BLOCK_WRITE_THRESHOLD DEVICE_DELETED DEVICE_TRAY_MOVED RESET
    RESUME SHUTDOWN STOP
    add-fd block-latency-histogram-set block_set_io_throttle
    blockdev-change-medium blockdev-close-tray blockdev-insert-medium
    blockdev-open-tray blockdev-remove-medium closefd cont device_add device_del
    eject getfd human-monitor-command query-fdsets query-iothreads query-kvm
    query-name query-status query-tpm query-tpm-models query-tpm-types
    query-uuid query-yank remove-fd stop system_reset yank
'''.split()

# Of unions that have a case for each of many kinds, these are kept.
KINDS = {
    'vmdk': '''blkdebug blklogwrites compress copy-before-write copy-on-read
        file host_device nbd null-co qcow2 raw snapshot-access throttle''',
    'can-bus': '''authz-list authz-listfile authz-simple iothread secret
        throttle-group tls-creds-anon tls-creds-psk tls-creds-x509''',
    'vhost-user-blk': 'nbd',
    'udp': 'file pty socket stdio',
}


class Types:
    def __init__(self, entries):
        self.types = {}
        self.users = {}
        for e in entries:
            user = e['meta-type'] in ('command', 'event')
            (self.users if user else self.types)[e['name']] = e


def references(e):
    """The types that an entry names."""
    for key in 'arg-type', 'ret-type', 'element-type':
        if key in e:
            yield e[key]
    if e['meta-type'] in ('object', 'alternate'):
        for m in e['members'] + e.get('variants', []):
            yield m['type']


def prune(e):
    """The entry without cases that are not kept, and what is said twice."""
    e = {k: v for k, v in e.items() if k != 'values'}
    cases = {v['case'] for v in e.get('variants', [])}
    for mark, kept in KINDS.items():
        if mark in cases:
            e['variants'] = [v for v in e['variants']
                             if v['case'] in kept.split()]
    return e


def make(daemon, emulator):
    with open(daemon, encoding='utf-8') as f:
        names = set(Types(json.load(f)).users) | set(EMULATOR)
    with open(emulator, encoding='utf-8') as f:
        schema = Types(json.load(f))
    wanted = [schema.users[n] for n in sorted(names)]
    kept = {}
    while wanted:
        e = prune(wanted.pop(0))
        user = e['meta-type'] in ('command', 'event')
        if (user, e['name']) not in kept:
            kept[user, e['name']] = e
            wanted += [schema.types[t] for t in references(e)]
    print('[')
    print(',\n'.join(json.dumps(e, sort_keys=True, separators=(',', ':'))
                     for e in kept.values()))
    print(']')


class Comparison:
    """The differences between two schemas, as a list of texts."""

    def __init__(self, ours, theirs):
        self.ours, self.theirs = ours, theirs
        self.found = []
        self.seen = set()
        a, b = ours.users, theirs.users
        for meta in 'command', 'event':
            self.names(f'{meta}s', {n for n in a if a[n]['meta-type'] == meta},
                       {n for n in b if b[n]['meta-type'] == meta})
        for name in sorted(set(a) & set(b), key=lambda n: (n != 'blockdev-add',
                                                           n)):
            self.user(name, a[name], b[name])

    def tell(self, place, verb, item):
        self.found.append(f'{place}: {verb} {item}')

    def names(self, place, ours, theirs, mark=''):
        for name in sorted(set(theirs) - set(ours)):
            self.tell(place, 'lacks', mark + name)
        for name in sorted(set(ours) - set(theirs)):
            self.tell(place, 'has', mark + name)

    def features(self, place, a, b):
        self.names(place, a.get('features', []), b.get('features', []), '$')

    def user(self, name, a, b):
        self.features(name, a, b)
        self.names(name, {'allow-oob'} & set(a), {'allow-oob'} & set(b), '$')
        self.both(name, a['arg-type'], b['arg-type'])
        if 'ret-type' in a:
            self.both(f'{name}=>', a['ret-type'], b['ret-type'])

    def kind(self, schema, name):
        e = schema.types[name]
        if e['meta-type'] == 'array':
            return [self.kind(schema, e['element-type'])]
        return e.get('json-type', e['meta-type'])

    def both(self, place, x, y):
        if (x, y) in self.seen:
            return
        self.seen.add((x, y))
        a, b = self.ours.types[x], self.theirs.types[y]
        if self.kind(self.ours, x) != self.kind(self.theirs, y):
            above, _, name = place.rpartition('/')
            self.tell(above, 'differs in', f'{name}:type')
            return
        if a['meta-type'] != 'builtin':
            self.features(place, a, b)
            getattr(self, a['meta-type'])(place, a, b)

    def array(self, place, a, b):
        self.both(f'{place}[]', a['element-type'], b['element-type'])

    def enum(self, place, a, b):
        a, b = ({m['name']: m for m in e['members']} for e in (a, b))
        self.names(place, a, b, '^')
        for word in sorted(set(a) & set(b)):
            self.features(f'{place}/^{word}', a[word], b[word])

    def alternate(self, place, a, b):
        a = {str(self.kind(self.ours, m['type'])): m['type']
             for m in a['members']}
        b = {str(self.kind(self.theirs, m['type'])): m['type']
             for m in b['members']}
        self.names(place, a, b, '|')
        for kind in sorted(set(a) & set(b)):
            self.both(place, a[kind], b[kind])

    def object(self, place, a, b):
        mine, other = ({m['name']: m for m in e['members']} for e in (a, b))
        self.names(place, mine, other)
        if a.get('tag') != b.get('tag'):
            self.tell(place, 'differs in', 'its:tag')
        for name in sorted(set(mine) & set(other)):
            m, o = mine[name], other[name]
            below = f'{place}/{name}'
            self.features(below, m, o)
            if ('default' in m) != ('default' in o):
                self.tell(place, 'differs in', f'{name}:optional')
            self.both(below, m['type'], o['type'])
        mine, other = ({v['case']: v['type'] for v in e.get('variants', [])}
                       for e in (a, b))
        for case in sorted(set(mine) & set(other)):
            self.both(f'{place}/+{case}', mine[case], other[case])


def listed(page):
    """The differences that the section DIFFERENCES of a page has, and the
    entries without a reason.  A tag is 'PLACE: VERB ITEM ITEM...'."""
    found, bare = [], []
    inside = tag = False
    with open(page, encoding='utf-8') as f:
        lines = f.read().replace('\\-', '-').replace('\\(ha', '^').splitlines()
    for line in lines:
        if line.startswith('.SH '):
            inside = 'DIFFERENCES' in line
        elif not inside or line.startswith('.SS '):
            tag = False
        elif line in ('.TP', '.TQ'):
            if line == '.TP':
                bare.append(None)
            tag = True
        elif tag:
            tag = False
            place, _, rest = line[3:].partition(': ')
            verb, items = next((v, rest[len(v):].split())
                               for v in ('lacks', 'has', 'differs in')
                               if rest.startswith(v + ' '))
            found += [f'{place}: {verb} {i}' for i in items]
            bare[-1] = line
        elif line.strip() and bare:
            bare[-1] = ''
    return found, [b for b in bare if b]


def follow(schema, query):
    """Does the schema have what a query of libvirt's kind asks for?  It begins
    with a command or event, and goes on by arg-type or ret-type and members;
    +x is a case, *x an optional member, ^x a word, $x a feature."""
    parts = query.split('/')
    e = schema.users.get(parts.pop(0))
    for part in parts:
        while e and e['meta-type'] == 'array':
            e = schema.types[e['element-type']]
        if not e:
            return False
        mark, name = (part[0], part[1:]) if part[0] in '+*^$' else ('', part)
        if mark == '$':
            return name in e.get('features', [])
        if mark == '^':
            return name in {m['name'] for m in e.get('members', [])}
        if part in ('arg-type', 'ret-type'):
            e = schema.types[e[part]]
            continue
        found = None
        objects = [e] if e['meta-type'] == 'object' else [
            schema.types[m['type']] for m in e.get('members', [])
            if e['meta-type'] == 'alternate']
        for o in objects:
            for m in o.get('variants' if mark == '+' else 'members', []):
                if m.get('case' if mark == '+' else 'name') == name and \
                        (mark != '*' or 'default' in m):
                    found = m
        e = schema.types[found['type']] if found else None
    return bool(e)


if __name__ == '__main__':
    make(*sys.argv[2:])
