#!/bin/bash
# The QMP monitor as a conversation: greeting, negotiation, ids, errors,
# garbage, several clients, quit.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need socat

start() {
    rm -f pid
    nbdelta serve -U nbd.sock --qmp qmp.sock --pidfile pid disk.raw &
    server=$!
    until [ -s pid ]; do
        kill -0 "$server"
        sleep 0.05
    done
}

# Send $1 in one go, and print what comes back after the greeting, without CRs.
talk() {
    printf %b "$1" | socat -t60 - UNIX-CONNECT:qmp.sock | tr -d '\r' | sed 1d
}

# The same after negotiation.
ask() {
    talk "{'execute':'qmp_capabilities'}$1" | sed 1d
}

is() {
    [ "$1" = "$2" ] || { printf 'got\n%s\nnot\n%s\n' "$1" "$2"; exit 1; }
}

error() {
    echo "{\"error\": {\"class\": \"${2-GenericError}\", \"desc\": \"$1\"}}"
}

truncate -s 1M disk.raw other.raw
start
[ "$(stat -c %a qmp.sock)" = 600 ]

greeting=$(socat -t60 - UNIX-CONNECT:qmp.sock </dev/null)
jq -e '.QMP.version.qemu.major == 7 and .QMP.capabilities == ["oob"] and
    (.QMP.version.package | startswith("nbdelta "))' <<<"$greeting" >/dev/null
[[ $greeting == *$'\r' ]]

# Nothing before qmp_capabilities, and that only once.
is "$(talk "{'execute':'query-name'}{'execute':'qmp_capabilities'}\
{'execute':'query-name'}{'execute':'qmp_capabilities'}")" \
"$(error "Expecting capabilities negotiation with 'qmp_capabilities'" \
    CommandNotFound)
{\"return\": {}}
{\"return\": {}}
$(error "Capabilities negotiation is already complete, command ignored" \
    CommandNotFound)"

# Requests need no newline and may be split anywhere.
is "$( (
    for part in '{"exec' 'ute":"qmp_capa' 'bilities"}{' "'execute':" \
        "'query-name','id':[1,{'x':null}]" '}'; do
        printf %s "$part"
        sleep 0.02
    done) | socat -t60 - UNIX-CONNECT:qmp.sock | tr -d '\r' | tail -n 1)" \
    '{"return": {}, "id": [1, {"x": null}]}'

is "$(ask "{'execute':'foo','id':7}")" \
    '{"id": 7, "error": {"class": "CommandNotFound", "desc": "The command foo has not been found"}}'
is "$(ask "{'execute':'query-name','arguments':{'a':1}}")" \
    "$(error "Parameter 'a' is unexpected")"
is "$(ask "{'execute':'block-dirty-bitmap-add','arguments':{'node':'disk0'}}")" \
    "$(error "Parameter 'name' is missing")"
is "$(ask "{'execute':'block-dirty-bitmap-add','arguments':{'node':1}}")" \
    "$(error "Invalid parameter type for 'node', expected: string")"
is "$(ask "{'execute':'query-name','x':1}[]{'execute':1}")" \
    "$(error "QMP input member 'x' is unexpected")
$(error "QMP input must be a JSON object")
$(error "QMP input member 'execute' must be a string")"

# Out of band only where it was agreed on.
is "$(ask "{'exec-oob':'query-name'}")" \
    "$(error "QMP input member 'exec-oob' is unexpected")"
is "$(talk "{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}\
{'exec-oob':'query-name','id':1}")" \
    '{"return": {}}
{"return": {}, "id": 1}'

# Garbage has an answer, and what follows is understood.
is "$(ask "@ {'execute':'query-name','id':1}")" \
    "$(error "JSON parse error, stray '@'")
{\"return\": {}, \"id\": 1}"
is "$(ask "{'a':[{'b\xff{'execute':'query-name','id':1}" | tail -n 1)" \
    '{"return": {}, "id": 1}'
head -c 300000 /dev/urandom | socat -t60 - UNIX-CONNECT:qmp.sock >/dev/null
is "$(ask "$(printf '[%.0s' {1..1025})" | head -n 1)" \
    "$(error "JSON nesting depth limit exceeded")"

# A client that never reads does not keep others waiting.
socat -u EXEC:'sleep 600' UNIX-CONNECT:qmp.sock &
sleeper=$!
clients=()
for _ in 1 2 3 4 5 6 7 8; do
    for _ in 1 2 3 4 5; do
        nbdelta qmp qmp.sock query-block >/dev/null
    done &
    clients+=($!)
done
for c in "${clients[@]}"; do
    wait "$c"
done

# The command line: exit status, texts, types of arguments.
nbdelta qmp qmp.sock query-version | jq -e '.qemu.major == 7' >/dev/null
if nbdelta qmp qmp.sock foo 2>err; then
    exit 1
fi
is "$(cat err)" \
    "nbdelta: qmp: CommandNotFound: The command foo has not been found
nbdelta: qmp: there is no command 'foo' ('help' tells which there are)"
if nbdelta qmp qmp.sock query-version a 2>err; then
    exit 1
fi
is "$(cat err)" \
    "nbdelta: qmp: 'a' is neither KEY=VALUE nor a JSON object"
if nbdelta qmp no.sock quit 2>err; then
    exit 1
fi
is "$(cat err)" \
    "nbdelta: qmp: cannot connect to 'no.sock': No such file or directory"

# A socket that is in use stays; one that nobody listens on is replaced.
if nbdelta serve -U nbd2.sock --qmp qmp.sock other.raw 2>err; then
    exit 1
fi
grep -q "'qmp.sock': Address already in use" err
nbdelta qmp qmp.sock query-name >/dev/null

# quit: the last events come, the reply, the end.
is "$(ask "{'execute':'quit','id':'bye'}" | sed 's/.*"event"/"event"/')" \
    '"event": "BLOCK_EXPORT_DELETED", "data": {"id": "disk0"}}
{"return": {}, "id": "bye"}'
wait "$server"
server=
kill "$sleeper" 2>/dev/null || true
wait "$sleeper" || true
[ ! -e qmp.sock ]

socat UNIX-LISTEN:qmp.sock,unlink-close=0 - </dev/null >/dev/null &
stale=$!
until [ -S qmp.sock ]; do
    sleep 0.05
done
kill "$stale"
wait "$stale" || true
[ -S qmp.sock ]
start
nbdelta qmp qmp.sock quit
wait "$server"
server=
[ ! -e qmp.sock ]
