#!/bin/bash
# `nbdelta qmp SOCKET help` tells what a monitor knows, of nbdelta and of QEMU;
# a schema that lies, turns in circles or is huge does no harm.  What was
# misspelt is named.  Arguments come from standard input.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need jq

nbdelta create disk.qcow2 1M
serve vda=disk.qcow2

# --- What is listed and told is what the schema has. ---

qmp query-qmp-schema >schema
listed() {
    sed -n "/^$1:\$/,/^\$/s/^  //p" list
}
tells() {
    grep -qE -- "$1" out || fail "no '$1' in: $(cat out)"
}
qmp help >list
for meta in command event; do
    title=${meta^}s
    diff <(jq -r --arg m "$meta" '.[] | select(."meta-type" == $m).name' \
        schema | LC_ALL=C sort) <(listed "$title") || fail "$title"
done
while read -r name; do
    qmp help "$name" >out 2>err
    tells "^$name( \(deprecated\))?\$"
    if [ -s err ] || grep -q 'not described' out; then
        fail "$name: $(cat out err)"
    fi
done < <(listed Commands | awk 'NR % 20 == 4')

qmp help block-dirty-bitmap-merge >out
tells '^  target +string$'
tells '^  bitmaps +array of string or object$'
tells '^    node +string$'
qmp help blockdev-backup >out
tells '^  sync +top, full, none, incremental or bitmap$'
tells '^    max-workers +optional integer$'
qmp help blockdev-add >out
tells '^  with driver=qcow2$'
tells '\(see Arguments above\)'
[ "$(wc -l <out)" -lt 500 ] || fail "blockdev-add: $(wc -l <out) lines"
awk 'length > 79' out >long
[ ! -s long ] || fail "long lines: $(cat long)"
qmp help JOB_STATUS_CHANGE >out
tells '^JOB_STATUS_CHANGE \(event\)$'
tells '^  status +undefined, created, '

# --- What is misspelt. ---

refused() {
    local text=$1
    shift
    if nbdelta qmp "$@" >out 2>&1 </dev/null; then
        fail "$*: not refused"
    fi
    tells "$text"
}
refused "no command or event 'query-block-job'; is 'query-block-jobs' meant" \
    "$qmp_sock" help query-block-job
refused "no command or event 'zzz'\$" "$qmp_sock" help zzz
refused "help is of one command" "$qmp_sock" help a b
refused "help is of one command" --quiet "$qmp_sock" help
refused "no command 'Query_jbos'; is 'query-jobs' meant" "$qmp_sock" Query_jbos
refused "'help' tells which" "$qmp_sock" zzz
refused "Parameter 'node' is missing" "$qmp_sock" block-dirty-bitmap-add \
    name=b nod=vda
tells "no argument 'nod'; is 'node' meant"
refused "'help query-jobs' tells which" "$qmp_sock" query-jobs zzz=1
refused "Parameter 'node' is missing" "$qmp_sock" block-dirty-bitmap-add name=b
[ "$(wc -l <out)" -eq 1 ] || fail "a hint without reason: $(cat out)"

# --- Arguments from standard input; silence. ---

echo '{"node": "vda",
    "name": "b"}' | qmp -q block-dirty-bitmap-add - >out 2>&1
[ ! -s out ] || fail "not quiet: $(cat out)"
qmp query-block | jq -e '.[0].inserted."dirty-bitmaps"[0].name == "b"' >out
qmp --quiet --wait drive-backup device=vda sync=full target=full.raw \
    format=raw job-id=j >out 2>&1
[ ! -s out ] || fail "not quiet: $(cat out)"
refused 'Cannot find device' "$qmp_sock" --quiet --wait blockdev-backup \
    device=zz target=vda sync=full
for text in '' '[]' '{"a": 1, "a": 2}' '{"a": 1} 1' '{"a"' '"a"'; do
    rc=0
    printf '%s' "$text" | qmp query-jobs - >out 2>&1 || rc=$?
    [ "$rc" -eq 1 ] || fail "'$text': exits with $rc"
    tells 'standard input: '
done
rc=0
head -c 70M /dev/zero | tr '\0' ' ' | qmp query-jobs - >out 2>&1 || rc=$?
[ "$rc" -eq 1 ] || fail "70 MiB: exits with $rc"
tells 'more than 64 MiB'
stop_server

# --- Monitors of others. ---

echo '{}' >answers
fake_monitor
refused 'does not tell its commands: The command query-qmp-schema' fake.sock help
answer() {
    cat >answers
}
answer <<<'{"query-qmp-schema": 7}'
refused 'is no list' fake.sock help
answer <<<'{"query-qmp-schema": [{"name": "a"}]}'
refused 'entry 0' fake.sock help
answer <<<'{"query-qmp-schema": [null]}'
refused 'entry 0' fake.sock help

# Types that are not there, are something else, or are parts of themselves.
cat >hostile.py <<'END'
import json
o = lambda n, members, **more: {'name': n, 'meta-type': 'object',
                                'members': members, **more}
m = lambda n, t, **more: {'name': n, 'type': t, **more}
print(json.dumps({'query-qmp-schema': [
    {'name': 'c', 'meta-type': 'command', 'arg-type': '0', 'ret-type': '[r]'},
    {'name': 'n', 'meta-type': 'command', 'arg-type': 'nowhere'},
    {'name': 't', 'meta-type': 'command', 'arg-type': 'c', 'ret-type': 3},
    {'name': 'E\x1b[2J\u202e', 'meta-type': 'event', 'arg-type': '0'},
    {'name': '[r]', 'meta-type': 'array', 'element-type': '[r]'},
    {'name': 'a', 'meta-type': 'alternate',
     'members': [{'type': 'a'}, {'type': '0'}, {'type': '[a]'}, 5]},
    {'name': '[a]', 'meta-type': 'array', 'element-type': 'a'},
    {'name': 'e', 'meta-type': 'enum', 'values': [1, 'x', None]},
    {'name': 'b', 'meta-type': 'builtin', 'json-type': []},
    o('0', [m('self', '0'), m('a', 'a', default=None), m('a2', '[a]'),
            m('e', 'e'), m('b', 'b'), m('w', 'wide'), m('w2', 'wide'), m('d', 'd0'),
            m('bad\x07\u0085', 'x'), 3, {'type': 'e'}, {'name': 'k' * 5000}],
      tag='e', variants=[{'case': 'x', 'type': '0'}, {'case': 'x', 'type': 'v'},
                         {'case': 'y', 'type': 'v'}, 1, {}]),
    o('v', [m('m', 'e')], tag='m', variants=[{'case': 'x', 'type': 'v'}]),
    {'name': 'wide', 'meta-type': 'enum', 'values': ['w%d' % i for i in range(5000)]},
] + [o('d%d' % i, [m('m', 'd%d' % (i + 1))]) for i in range(3000)]}))
END
python hostile.py >answers
for name in c n t; do
    nbdelta qmp fake.sock help "$name" >"out.$name" 2>&1 || fail "$(cat "out.$name")"
    [ "$(wc -c <"out.$name")" -lt 500000 ] || fail "$name: $(wc -c <"out.$name") bytes"
done
nbdelta qmp fake.sock help >list
grep -q '^  E?\[2J' list || fail "$(cat list)"
if grep -q $'[\x01-\x09\x0b-\x1f\x7f]\|\xc2\x85\|\xe2\x80\xae' list out.c; then
    fail 'control characters came through'
fi
grep -q '^  w2 *one of many words (see w above)' out.c || fail "$(head -c 3000 out.c)"

# Events instead of a schema.
answer <<<'{"endless": "{\"event\": \"X\", \"data\": \"0123456789abcdef\"}\n"}'
refused 'MiB of events came instead' fake.sock help

if command -v qemu-system-x86_64 >/dev/null; then
    qemu-system-x86_64 -M none -display none -S -daemonize -pidfile qemu.pid \
        -qmp "unix:$PWD/qemu.sock,server=on,wait=off"
    at_exit kill "$(cat qemu.pid)"
    nbdelta qmp qemu.sock help >list
    listed Commands | grep -qx blockdev-backup || fail "$(cat list)"
    nbdelta qmp qemu.sock help blockdev-add >out
    tells '^  with driver=qcow2$'
    nbdelta qmp qemu.sock help human-monitor-command >out
    tells '^  command-line +string$'
    # QEMU tells the argument that is missing.
    refused "no argument 'devic'; is 'device' meant" qemu.sock \
        blockdev-backup devic=a target=b sync=full
fi
