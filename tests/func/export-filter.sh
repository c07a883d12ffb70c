#!/bin/bash
# A filter is hung above a disk by the name of its export, as tools do with a
# guest's device (qom-set), under a client that goes on; and taken away again.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

nbdelta create vda.qcow2 4M
nbdelta create fleece.qcow2 4M
nbdelta create other.qcow2 8M
qemu-io -f qcow2 -c 'write -P 1 0 4M' vda.qcow2 >/dev/null
serve vda=vda.qcow2

no() { # TEXT COMMAND...: QMP refuses it
    local text=$1
    shift
    ! qmp "$@" >refused 2>&1 || fail "$*: not refused"
    grep -qF -e "$text" refused || fail "$*: $(cat refused)"
}
hang() { # NODE: what the clients of vda are on from now on
    qmp qom-set path=vda property=drive "value=$1" >out
}
on() { # the node that query-block shows
    qmp query-block >block
    jq -r '.[0].inserted."node-name"' block
}
add() { # NODE FILE
    qmp blockdev-add "{\"driver\": \"qcow2\", \"node-name\": \"$1\",
        \"file\": {\"driver\": \"file\", \"filename\": \"$2\"}}"
}

# One client all the time: its connection is never cut.
coproc client { exec qemu-io -f raw "nbd+unix:///vda?socket=$sock" 2>&1; }
# The shell forgets it when the client has ended.
# shellcheck disable=SC2154  # of coproc
client_pid=$client_PID
ask() { # a command of qemu-io
    local line
    echo "$*" >&"${client[1]}"
    read -r -t 20 line <&"${client[0]}" || fail "$*: no answer"
    case $line in *wrote* | *read*) ;; *) fail "$*: $line" ;; esac
    read -r -t 20 line <&"${client[0]}"
}
ask write -P 2 0 64k

add fleece fleece.qcow2
add other other.qcow2
qmp blockdev-add '{"driver": "copy-before-write", "node-name": "cbw",
    "file": "vda", "target": "fleece"}'
hang cbw
[ "$(on)" = cbw ] || fail "the disk is $(cat block)"
qmp blockdev-add '{"driver": "snapshot-access", "node-name": "snap",
    "file": "cbw"}'
qmp block-export-add '{"type": "nbd", "id": "snap", "node-name": "snap",
    "name": "snap"}'
ask write -P 3 0 64k
ask read -P 3 0 64k
qemu-io -r -f raw -c 'read -P 2 0 64k' -c 'read -P 1 64k 64k' \
    "nbd+unix:///snap?socket=$sock" >out || fail "no point in time: $(cat out)"
! grep -q failed out || fail "the point in time has what came later"

# The disk has its name still: bitmaps and backups are below the filter.
qmp block-dirty-bitmap-add node=vda name=b persistent=true
qmp query-named-block-nodes >nodes
[ "$(jq -r '.[] | select(any(."dirty-bitmaps"[]?; .name == "b")) |
    ."node-name"' nodes)" = vda ] || fail "the bitmap is elsewhere"
no "Node cbw is in use" blockdev-del node-name=cbw

# What is refused has changed nothing.
no "another size" qom-set path=vda property=drive value=other
no "Property 'vda.drive' can't find value 'x'" \
    qom-set path=vda property=drive value=x
no "Device 'vdx' not found" qom-set path=vdx property=drive value=vda
no "Permission conflict" block-export-add '{"type": "nbd", "id": "w",
    "node-name": "vda", "name": "w", "writable": true}'
[ "$(on)" = cbw ] || fail "the disk is $(cat block)"

qmp block-export-del id=snap
qmp blockdev-del node-name=snap
hang vda
[ "$(on)" = vda ] || fail "the disk is $(cat block)"
qmp blockdev-del node-name=cbw
ask write -P 4 0 64k

# A job has to see all writes until it ends.
qmp blockdev-mirror '{"job-id": "m", "device": "vda", "target": "fleece",
    "sync": "full", "speed": 65536}'
no "in use by block job: mirror" qom-set path=vda property=drive value=vda
qmp block-job-cancel device=m force=true

# A disk that is left is flushed; its clients go on with the other one.
add twin twin.qcow2 2>/dev/null && fail "there is a twin"
nbdelta create twin.qcow2 4M
add twin twin.qcow2
hang twin
ask read -P 0 0 64k
ask write -P 5 0 64k
hang vda
ask read -P 4 0 64k
echo quit >&"${client[1]}"
wait "$client_pid" || fail "the client has failed"
stop_server
qemu-io -r -f qcow2 -c 'read -P 5 0 64k' twin.qcow2 >out
! grep -q failed out || fail "the other disk lacks what was written"
qemu-img check -q vda.qcow2
