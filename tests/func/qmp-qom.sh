#!/bin/bash
# The tree of objects as QMP shows it, and limits of disks: what waits for its
# turn goes on when the limits go.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-io jq

truncate -s 1M disk.raw
serve --object throttle-group,id=slow,x-iops-total=100 \
    --object secret,id=s,data=xx --object iothread,id=i vda=disk.raw

[ "$(qmp qom-list path=/objects | jq -r '.[] | .name + ":" + .type' | sort |
    tr '\n' ' ')" = 'i:child<iothread> s:child<secret> slow:child<throttle-group> type:string ' ] ||
    fail "$(qmp qom-list path=/objects)"
[ "$(qmp qom-list path=/objects/s | jq -r '.[].name' | sort | tr '\n' ' ')" = \
    'data file format type ' ] || fail "$(qmp qom-list path=/objects/s)"
[ "$(qmp qom-list path=s)" = "$(qmp qom-list-properties typename=secret)" ] ||
    fail "an object has not the properties of its type"
[ "$(qmp qom-get path=/objects/s property=format)" = '"raw"' ] ||
    fail "what was not given has no value"
[ "$(qmp qom-get path=/objects property=slow)" = '"/objects/slow"' ] ||
    fail "no path of an object"
qmp qom-list-types implements=user-creatable >out
jq -e 'any(.name == "throttle-group")' out >/dev/null || fail "$(cat out)"

no() { # TEXT COMMAND...: QMP refuses it
    local text=$1
    shift
    ! qmp "$@" >refused 2>&1 || fail "$*: not refused"
    grep -qF -e "$text" refused || fail "$*: $(cat refused)"
}
no "Device '/x' not found" qom-list path=/x
no "Class 'x' not found" qom-list-properties typename=x
no "Property 'secret.x' not found" qom-get path=/objects/s property=x
no "Property 'secret.type' is not writable" \
    qom-set path=/objects/s property=type value=x
no 'cannot be set after initialization' \
    qom-set path=/objects/slow property=x-iops-total value=5

# A limit that was not named stays.
qmp qom-set '{"path": "/objects/slow", "property": "limits",
    "value": {"bps-total": 1000}}'
qmp qom-get path=/objects/slow property=limits >out
[ "$(jq -c '[."iops-total", ."bps-total"]' out)" = '[100,1000]' ] ||
    fail "$(cat out)"
no 'cannot be used at the same time' qom-set '{"path": "/objects/slow",
    "property": "limits", "value": {"bps-read": 5}}'

# Disks.  The name of an export is that of a device, too.
qmp query-block >out
[ "$(jq -c '.[] | [.device, .qdev, .inserted.group]' out)" = \
    '["vda","vda",null]' ] || fail "$(cat out)"
none='"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops_rd": 0, "iops_wr": 0'
no "Need exactly one of 'device' and 'id'" block_set_io_throttle \
    "{$none, \"iops\": 1}"
no "Device 'x' not found" block_set_io_throttle \
    "{$none, \"iops\": 1, \"id\": \"x\"}"
no 'cannot be used at the same time' block_set_io_throttle \
    '{"id": "vda", "bps": 5, "bps_rd": 5, "bps_wr": 0, "iops": 0,
      "iops_rd": 0, "iops_wr": 0}'

has_written() { # COUNT
    qmp query-blockstats >stats
    [ "$(jq '.[0].stats.wr_operations' stats)" -ge "$1" ]
}

# A byte a second: the first write of 64 KiB goes, the next one would wait for
# most of a day.
qmp block_set_io_throttle '{"id": "vda", "bps": 0, "bps_rd": 0, "bps_wr": 1,
    "iops": 0, "iops_rd": 0, "iops_wr": 0}'
qmp query-block >out
[ "$(jq -c '.[].inserted | [.group, .bps_wr, .bps_wr_max_length, .iops_size]' \
    out)" = '["vda",1,1,0]' ] || fail "$(cat out)"
qemu-io -f raw -c 'write -P 1 0 64k' -c 'write -P 2 64k 64k' \
    "nbd+unix:///vda?socket=$sock" >io.out &
io=$!
wait_until "the first write has gone" has_written 1
sleep 0.3
kill -0 "$io" || fail "the limit limits nothing: $(cat io.out)"

# Whoever drains the disk waits for nobody, and nothing is lost.
timeout 20 nbdelta qmp "$qmp_sock" block-dirty-bitmap-add node=vda name=b
qmp block_set_io_throttle "{$none, \"iops\": 0, \"id\": \"vda\"}"
wait "$io"
[ "$(grep -c wrote io.out)" = 2 ] || fail "$(cat io.out)"
qmp query-block >out
jq -e '.[].inserted | has("group") | not' out >/dev/null || fail "$(cat out)"

# The group of an object.  One that was made for a disk has gone with it.
qmp block_set_io_throttle "{$none, \"iops\": 50, \"id\": \"vda\",
    \"group\": \"slow\"}"
[ "$(qmp qom-get path=/objects/slow property=x-iops-total)" = 50 ] ||
    fail "the disk is not in the group"
no 'is in use' object-del id=slow
qmp block_set_io_throttle "{$none, \"iops\": 0, \"id\": \"vda\"}"
qmp object-del id=slow
qmp object-add qom-type=throttle-group id=vda

# The end lets go of what waits.
qmp block_set_io_throttle '{"id": "vda", "bps": 1, "bps_rd": 0, "bps_wr": 0,
    "iops": 0, "iops_rd": 0, "iops_wr": 0, "group": "other"}'
qemu-io -f raw -c 'write -P 3 0 64k' -c 'write -P 4 64k 64k' \
    "nbd+unix:///vda?socket=$sock" >io.out 2>&1 &
io=$!
wait_until "the first write has gone" has_written 3
stop_server
wait "$io" || :
