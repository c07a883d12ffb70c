# Hold dialogues with two storage daemons and compare what they say: those of a
# file, and one for each argument of each command that both have.  argv: theirs,
# ours, the file.  They run in the directories of these names.
import json
import sys

from qsd_dialogue import Line, Monitor, read_dialogues
from qemu_schema import Types

# Commands whose arguments are not gone through here, and why.
LEFT = {
    'qmp_capabilities',     # once only
    'quit',
    'transaction',          # of other commands
    'blockdev-add', 'blockdev-reopen',      # in the file: options of drivers
    'x-blockdev-amend', 'x-blockdev-change',
}

# Arguments that differ, and why: "COMMAND ARGUMENT".
KNOWN = {
}

# What is of no type but its own.
WRONG = {'string': [7, True, None, [], {}], 'int': ['1', True, None, 1.5, []],
         'boolean': ['on', 1, None, {}], 'object': ['x', 1, None, []],
         'array': ['x', 1, None, {}], 'enum': ['nosuch', '', 7, None],
         'alternate': [1, None, True]}


def type_of(schema, name):
    e = schema.types[name]
    return e.get('json-type', e['meta-type'])


def sample(schema, name):
    """A value of the type that leads nowhere."""
    e = schema.types[name]
    kind = type_of(schema, name)
    if kind == 'object':
        members = list(e['members'])
        value = {m['name']: sample(schema, m['type']) for m in members
                 if 'default' not in m}
        for v in e.get('variants', []):
            if v['case'] == value[e['tag']]:
                value.update(sample(schema, v['type']))
        return value
    return {'string': 'nosuch', 'int': 1, 'boolean': True, 'array': [],
            'enum': e.get('members', [{'name': ''}])[0]['name'] if
            kind == 'enum' else None, 'alternate': 'nosuch'}.get(kind)


def of_arguments(ours, theirs):
    """A dialogue for each argument, with values of wrong types; and one for
    each command, with an argument more, and with each of its own less."""
    for name, e in sorted(ours.users.items()):
        if e['meta-type'] != 'command' or name not in theirs.users or \
                name in LEFT:
            continue
        args = ours.types[e['arg-type']]
        other = {m['name']: m for m in theirs.types[
            theirs.users[name]['arg-type']]['members']}
        base = sample(ours, e['arg-type'])
        lines = []
        for m in args['members']:
            kind = type_of(ours, m['type'])
            if m['name'] not in other or \
                    kind != type_of(theirs, other[m['name']]['type']):
                continue
            wrong = [Line(f'{name} {json.dumps({**base, m["name"]: w})}')
                     for w in WRONG.get(kind, [])]
            if wrong and f'{name} {m["name"]}' not in KNOWN:
                yield f'{name}: types of {m["name"]}', wrong
            if 'default' not in m:
                less = {k: v for k, v in base.items() if k != m['name']}
                lines.append(Line(f'{name} {json.dumps(less)}'))
        lines.append(Line(f'{name} {json.dumps({**base, "x-foo": 1})}'))
        yield f'{name}: arguments too few and too many', lines


def schema_of(monitor):
    return Types(monitor.result('query-qmp-schema'))


def settled(messages):
    """Without what a drain does to a job: QEMU pauses and resumes it."""
    found = []
    for m in messages:
        data = m.get('data', {})
        if m.get('event') == 'JOB_STATUS_CHANGE' and found and \
                data.get('status') == 'running' and \
                found[-1].get('data') == {**data, 'status': 'paused'}:
            found.pop()
        else:
            found.append(m)
    return found


def outcome(messages):
    return [sorted(m) for m in messages if 'event' not in m]


class Report:
    def __init__(self):
        self.lines = self.wrong = self.known = 0

    def line(self, dialogue, line, version, theirs, ours):
        self.lines += 1
        known = line.known(version)
        same = settled(theirs) == settled(ours)
        if same and known and not line.version:
            self.tell(dialogue, line, 'no difference (any more)')
        elif not same and not known:
            self.tell(dialogue, line, 'they differ')
            for who, messages in (('QEMU', theirs), ('we', ours)):
                for m in settled(messages):
                    print(f'    {who}: {json.dumps(m)[:400]}')
        self.known += bool(known)

    def tell(self, dialogue, line, what):
        self.wrong += 1
        print(f'{dialogue}: {line.text[:300]}: {what}')


def main(theirs, ours, path):
    monitors = Monitor(theirs, 'theirs'), Monitor(ours, 'ours')
    for m in monitors:
        m.send('{"execute": "qmp_capabilities"}')
    version = monitors[0].version
    dialogues = read_dialogues(path)
    dialogues += of_arguments(*(schema_of(m) for m in reversed(monitors)))
    report = Report()
    for name, lines in dialogues:
        for m in monitors:
            m.take_away()
        for line in lines:
            report.line(name, line, version, *(m.say(line) for m in monitors))
    for m in monitors:
        m.end()
    print(f'{len(dialogues)} dialogues with QEMU {version}, {report.lines} '
          f'lines, {report.known} known differences')
    assert len(dialogues) >= 240
    return report.wrong > 0


sys.exit(main(*sys.argv[1:]))
