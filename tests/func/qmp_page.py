# SPDX-License-Identifier: BSD-3-Clause
"""What the man pages say of commands, arguments and events, and what the tables
of the monitor have.

In nbdelta-qmp-ref(7) each command and event is a sub-section.  The tags in it
are arguments, or the members of an event; after "It returns" they are what the
command returns:

    .BR disks[].since " (string, optional, ours)"

A tag names a member by its path.  The type is in words.  "ours" means that QEMU
has no such member.  The options of nodes are tags of the same form in
nbdelta-disks(7), a sub-section for each driver.
"""
import re

NODE_COMMANDS = {'blockdev-add': '', 'blockdev-reopen': 'options'}


def type_words(schema, name):
    e = schema.by_name[name]
    meta = e['meta-type']
    if meta == 'builtin':
        return {'int': 'integer', 'value': 'any'}.get(e['json-type'],
                                                      e['json-type'])
    if meta == 'enum':
        return 'word'
    if meta == 'array':
        words = type_words(schema, e['element-type'])
        return f'list of {words.replace(" or ", "s or ")}s'
    if meta == 'alternate':
        words = sorted({type_words(schema, m['type']) for m in e['members']},
                       key=['string', 'word', 'object', 'null'].index)
        return ' or '.join(words)
    return 'object'


def objects_in(schema, name):
    """The object types that a value of this type can be, and how to get at
    one: '' or '[]'."""
    e = schema.by_name[name]
    if e['meta-type'] == 'object':
        yield '', e
    elif e['meta-type'] == 'array':
        for how, below in objects_in(schema, e['element-type']):
            yield '[]' + how, below
    elif e['meta-type'] == 'alternate':
        for m in e['members']:
            yield from objects_in(schema, m['type'])


def of_list(schema, name):
    return schema.by_name[name]['meta-type'] == 'array'


def words_in(schema, name):
    """The words that a value of this type can be."""
    e = schema.by_name[name]
    if e['meta-type'] == 'enum':
        return set(e['values'])
    if e['meta-type'] == 'array':
        return words_in(schema, e['element-type'])
    if e['meta-type'] == 'alternate':
        return set().union(*(words_in(schema, m['type'])
                             for m in e['members']))
    return set()


def node_type(schema):
    return schema.by_name[schema.of('command')['blockdev-add']['arg-type']]


def walk(schema, name, path, into):
    """Each member of an object, and of the objects in it, as (path, type,
    optional, words).  into(path, object) says which are gone into."""
    for how, e in objects_in(schema, name):
        at = path + how
        if not into(at, e):
            continue
        members = list(e['members'])
        for v in e.get('variants', []):
            members += schema.by_name[v['type']]['members']
            for w in schema.by_name[v['type']].get('variants', []):
                members += schema.by_name[w['type']]['members']
        for m in members:
            below = f'{at}.{m["name"]}' if at else m['name']
            yield (below, type_words(schema, m['type']), 'default' in m,
                   frozenset(words_in(schema, m['type'])))
            yield from walk(schema, m['type'], below, into)


def rows_of(schema, name, owner):
    """What the reference has to tell of the members of a command or event."""
    node = node_type(schema)

    def into(path, e):
        if e is node:       # in nbdelta-disks(7)
            return path == '' and owner == 'blockdev-add'
        return not path.startswith('actions[].data')    # of other commands

    for row in walk(schema, name, '', into):
        path = row[0]
        if owner == 'blockdev-add' and path not in ('driver', 'node-name'):
            continue
        if owner == 'object-add' and path.startswith('x-'):
            continue        # limits.NAME in other words: one sentence
        yield row


def return_rows(schema, name, owner):
    """The same of what a command returns, or of each item of a list."""
    for path, *rest in rows_of(schema, name, owner + ' returns'):
        yield (path[3:] if path.startswith('[].') else path, *rest)


def flat_members(schema, name, owner):
    return {row[:3] for row in rows_of(schema, name, owner)}


def node_rows(schema, case):
    """The options of a driver, or of all nodes (None)."""
    node = node_type(schema)
    if case is None:
        return [r for m in node['members'] if m['name'] != 'driver'
                for r in member_rows(schema, m)]
    v = next(v for v in node['variants'] if v['case'] == case)
    return [r for m in schema.by_name[v['type']]['members']
            for r in member_rows(schema, m)]


def member_rows(schema, m):
    node = node_type(schema)
    yield (m['name'], type_words(schema, m['type']), 'default' in m,
           frozenset(words_in(schema, m['type'])))
    yield from walk(schema, m['type'], m['name'], lambda _, e: e is not node)


class Entry:
    """A tag of a page, and the text below it."""

    def __init__(self, tag):
        name, attributes = re.fullmatch(r'\.BR (\S+) " \((.*)\)"',
                                        tag).groups()
        words = attributes.split(', ')
        self.ours = 'ours' in words
        self.row = (name, words[0], 'optional' in words)
        self.text = ''


def read_page(file):
    """{sub-section: [the first text, arguments, what it returns]}"""
    found = {}
    now = None
    entries = []
    tag = new = False
    with open(file, encoding='utf-8') as f:
        lines = f.read().replace('\\-', '-').replace('\\&', '').splitlines()
    for line in lines:
        if line.startswith('.SH '):
            now = None
        elif line.startswith('.SS '):
            now = found.setdefault(line[4:].strip('"'), ['', [], []])
            entries, tag, kind = [], False, 1
        elif now is None:
            continue
        elif line in ('.TP', '.TQ'):
            new = line == '.TP'
            tag = True
        elif tag:
            tag = False
            if not re.fullmatch(r'\.BR \S+ " \(.*\)"', line):
                entries = []
                continue
            entries = [] if new else entries
            entries.append(Entry(line))
            now[kind].append(entries[-1])
        elif line.startswith('It returns'):
            entries, kind = [], 2
        else:
            text = re.sub(r'^\.\w+ ', '', line).replace('"', '')
            for e in entries:
                e.text += ' ' + text
            if not entries and kind == 1:
                now[0] += ' ' + text
    return found


def of_nbdelta(file):
    """The sub-sections that stand in a section OF NBDELTA."""
    found, inside = set(), False
    with open(file, encoding='utf-8') as f:
        for line in f:
            if line.startswith('.SH '):
                inside = 'OF NBDELTA' in line
            elif line.startswith('.SS ') and inside:
                found.add(line[4:].strip().replace('\\-', '-'))
    return found


def held(entries, rows, at, wants_default=True):
    """What is wrong with the entries of a sub-section."""
    said = {e.row for e in entries}
    has = {r[:3] for r in rows}
    for row in sorted(has - said):
        yield f'{at}: the page lacks {row}'
    for row in sorted(said - has):
        yield f'{at}: the page alone has {row}'
    if len(said) < len(entries):
        yield f'{at}: something is there twice'
    for e in entries:
        words = set().union(*(r[3] for r in rows if r[:3] == e.row))
        elsewhere = re.search(r'\bas in [\w-]+', e.text)
        if not elsewhere and (at != 'blockdev-create' or
                              e.row[0] != 'options.backing-fmt'):
            missing = {w for w in words if not re.search(
                rf'(?<![\w-]){re.escape(w)}(?![\w-])', e.text)}
            if missing:
                yield f'{at}.{e.row[0]}: no word of {sorted(missing)}'
        if not e.text.strip():
            yield f'{at}.{e.row[0]}: says nothing'
        if wants_default and e.row[2] and 'efault' not in e.text:
            yield f'{at}.{e.row[0]}: tells no default'


def check_reference(schema, page):
    named = {**schema.of('command'), **schema.of('event')}
    for name in sorted(set(named) - set(page)):
        yield f'the page lacks {name}'
    for name in sorted(set(page) & set(named)):
        text, arguments, returned = page[name]
        if not text.strip():
            yield f'{name}: says nothing'
        yield from held(arguments,
                        list(rows_of(schema, named[name]['arg-type'], name)),
                        name, named[name]['meta-type'] == 'command')
        if returned:
            yield from held(returned, list(
                return_rows(schema, named[name]['ret-type'], name)),
                f'{name} returns', False)
    for name in sorted(set(page) - set(named)):
        if page[name][1]:
            yield f'the page alone has {name}'


def check_nodes(schema, page):
    cases = [v['case'] for v in node_type(schema)['variants']]
    for case in [None] + cases:
        title = case or 'All nodes'
        if title not in page:
            yield f'nbdelta-disks(7) lacks {title}'
        else:
            yield from held(page[title][1], node_rows(schema, case), title)


def marked(reference, nodes):
    """What the pages call ours, as members of commands; [] left out."""
    found = set()
    for name, (_, arguments, returned) in reference.items():
        for e in arguments + returned:
            if e.ours:
                where = f'{name} returns' if e in returned else name
                found.add(f'{where}.{e.row[0]}'.replace('[]', ''))
    for name, (_, options, _) in nodes.items():
        found.update(f'blockdev-add({name}).{e.row[0]}'.replace('[]', '')
                     for e in options if e.ours)
    return found
