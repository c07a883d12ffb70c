#!/bin/bash
# Fields of nodes that say what QEMU 10's say: of files, of what has no bytes, of
# filters, of a chain.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img jq

truncate -s 1M base.raw
qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2
nbdelta create --object secret,id=s,data=x \
    -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 l.qcow2 1M
nbdelta serve --qmp "$qmp_sock" --pidfile "$pidfile" \
    --object secret,id=s,data=x --object throttle-group,id=g \
    --blockdev driver=qcow2,node-name=top,file.driver=file,file.filename=top.qcow2,file.node-name=file \
    --blockdev driver=compress,node-name=filter,file=top \
    --blockdev driver=qcow2,node-name=luks,encrypt.format=luks,encrypt.key-secret=s,file.driver=file,file.filename=l.qcow2 \
    --blockdev driver=throttle,node-name=slow,throttle-group=g,file.driver=null-co &
server=$!
wait_until "the server is ready" server_ready

# WHAT NODE JQ-FILTER VALUE [ARGUMENT]: of that node
is() {
    local value
    value=$(qmp query-named-block-nodes "${@:5}" |
        jq -c --arg n "$2" ".[] | select(.\"node-name\" == \$n) | $3")
    [ "$value" = "$4" ] || fail "$1: $value, not $4"
}
is "a file" file '.image."format-specific"' '{"type":"file","data":{}}'
is "a chain" top \
    '[.backing_file_depth, .image."backing-image".filename]' '[1,"base.raw"]'
is "flat" top '[.backing_file_depth, (.image | has("backing-image"))]' \
    '[0,false]' flat=true
is "a filter" filter '[.backing_file_depth, .image."cluster-size",
    .image."backing-image".format,
    .image."backing-image"."backing-image".format]' '[2,65536,"qcow2","raw"]'
is "nothing" slow '[(.image | has("dirty-flag")), .image."actual-size"]' '[false,0]'
is "a qcow2 image" top '.image."dirty-flag"' false
is "LUKS" luks '.image."format-specific".data.encrypt."detached-header"' false
stop_server
