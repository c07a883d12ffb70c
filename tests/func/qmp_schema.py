# SPDX-License-Identifier: BSD-3-Clause
"""What query-qmp-schema says, held against itself and against values.

qmp_schema.py NBDELTA RECORD: hold what daemons said (server/qmp/record.h)
against the schema of NBDELTA.  Exit status 1 with a line for each command and
event that has said what is not described."""
import json
import subprocess
import sys


class Schema:
    def __init__(self, entries):
        self.entries = entries
        self.by_name = {e['name']: e for e in entries}

    def of(self, meta):
        return {e['name']: e for e in self.entries if e['meta-type'] == meta}

    def references(self, e):
        for key in 'arg-type', 'ret-type', 'element-type':
            if key in e:
                yield e[key]
        if e['meta-type'] in ('object', 'alternate'):
            for m in e['members'] + e.get('variants', []):
                yield m['type']

    def check(self):
        """Nothing is missing, twice there, or not used."""
        assert len(self.by_name) == len(self.entries), 'a name is there twice'
        used = set()
        for e in self.entries:
            for name in self.references(e):
                assert name in self.by_name, f'{e["name"]}: no type {name}'
                used.add(name)
            if e['meta-type'] == 'object' and 'tag' in e:
                tag = [m for m in e['members'] if m['name'] == e['tag']]
                cases = self.by_name[tag[0]['type']]['values']
                assert [v['case'] for v in e['variants']] == cases, e
        types = {e['name'] for e in self.entries
                 if e['meta-type'] not in ('command', 'event')}
        assert types == used, f'nobody uses {types - used}'
        for name in types:
            meta = self.by_name[name]['meta-type']
            if meta in ('object', 'enum', 'alternate'):
                assert name.isdigit(), f'a type is called {name}'

    def members(self, e, value=None):
        """Those of an object, and of its variants: of @value's, or all."""
        found = {m['name']: m for m in e['members']}
        for v in e.get('variants', []):
            if value is None or value.get(e['tag']) == v['case']:
                found.update(self.members(self.by_name[v['type']]))
        return found

    def validate(self, type_name, value, at):
        e = self.by_name[type_name]
        meta = e['meta-type']
        if meta == 'builtin':
            kinds = {'string': str, 'int': int, 'boolean': bool,
                     'null': type(None), 'value': object}
            ok = isinstance(value, kinds[e['json-type']])
            if e['json-type'] == 'int':
                ok = ok and not isinstance(value, bool)
            assert ok, f'{at}: {value!r} is no {type_name}'
        elif meta == 'enum':
            assert value in e['values'], f'{at}: {value!r}, not {e["values"]}'
        elif meta == 'array':
            assert isinstance(value, list), at
            for i, item in enumerate(value):
                self.validate(e['element-type'], item, f'{at}[{i}]')
        elif meta == 'alternate':
            for m in e['members']:
                try:
                    return self.validate(m['type'], value, at)
                except AssertionError:
                    pass
            raise AssertionError(f'{at}: {value!r} is none of its types')
        else:
            assert isinstance(value, dict), at
            members = self.members(e, value)
            for name, m in members.items():
                if name in value:
                    self.validate(m['type'], value[name], f'{at}.{name}')
                else:
                    assert 'default' in m, f'{at}: {name} is missing'
            unknown = set(value) - set(members)
            assert not unknown, f'{at}: not described: {unknown}'


def schema_of(nbdelta):
    said = subprocess.run(
        ['qemu-storage-daemon', '--chardev', 'stdio,id=m', '--monitor',
         'chardev=m'], executable=nbdelta, stdout=subprocess.PIPE, check=True,
        text=True, input='{"execute": "qmp_capabilities"}'
        '{"execute": "query-qmp-schema"} {"execute": "quit"}').stdout
    replies = [json.loads(line) for line in said.splitlines()]
    return Schema(next(r['return'] for r in replies if r.get('return')))


def problems(schema, record):
    """{type: what is wrong with the first such value that is not described}"""
    found = {}
    with open(record, encoding='ascii') as f:
        lines = set(f)
    for line in lines:
        (key, name), (_, value) = json.loads(line).items()
        if name not in found:
            try:
                schema.validate(schema.by_name[name][key], value, name)
            except AssertionError as e:
                found[name] = str(e)
    return found


def main(nbdelta, record):
    found = problems(schema_of(nbdelta), record)
    for text in found.values():
        print('not as query-qmp-schema says:', text)
    return bool(found)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
