#!/bin/bash
# drive-backup through QMP: a chain of a full and two incremental backups,
# events in QEMU's order, job verbs, errors; the bitmap survives a failure.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-io qemu-img socat

qmp() {
    nbdelta qmp qmp.sock "$@"
}

backup() {
    qmp --wait drive-backup device=disk0 format=qcow2 "$@"
}

refused() {
    local text=$1
    shift
    if qmp "$@" >/dev/null 2>err; then
        echo "$*: not refused"
        exit 1
    fi
    [ "$(cat err)" = "nbdelta: qmp: $text" ] ||
        { echo "$*: $(cat err)"; exit 1; }
}

guest() {
    qemu-io -f raw "$@" 'nbd+unix:///?socket=nbd.sock' >/dev/null
}

same() {
    qemu-img compare -q -f raw -F qcow2 'nbd+unix:///?socket=nbd.sock' "$1"
}

count() {
    qmp query-named-block-nodes | jq '.[] |
        select(."node-name" == "disk0") | ."dirty-bitmaps"[0].count'
}

# The status of job $1, until it is $2.
until_status() {
    for _ in {1..600}; do
        if [ "$(qmp query-jobs | jq -r --arg i "$1" \
            '.[] | select(.id == $i) | .status')" = "$2" ]; then
            return
        fi
        sleep 0.1
    done
    echo "job '$1' does not become '$2': $(qmp query-jobs)"
    exit 1
}

nbdelta create disk.qcow2 64M
qemu-io -f qcow2 -c 'write -P0x41 0 512' -c 'write -P0xd5 1M 32k' \
    -c 'write -P0xdc 32M 124k' disk.qcow2 >/dev/null
nbdelta serve -U nbd.sock --qmp qmp.sock --pidfile pid disk.qcow2 &
server=$!
until [ -s pid ]; do
    kill -0 "$server"
    sleep 0.05
done

# Full, then two incremental ones into images that stand on it.
qmp block-dirty-bitmap-add node=disk0 name=b0 >/dev/null
backup job-id=full sync=full target=full.qcow2 >out
jq -es '.[1].event == "BLOCK_JOB_COMPLETED" and .[1].data == {device: "full",
    len: 67108864, offset: 67108864, speed: 0, type: "backup"}' out >/dev/null
same full.qcow2
guest -c 'write -P0xab 0 512' -c 'write -P0xfe 16M 256k' \
    -c 'write -P0x64 32736k 64k'
[ "$(count)" = 458752 ]
qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 inc1.qcow2
backup job-id=inc sync=incremental bitmap=b0 target=inc1.qcow2 \
    mode=existing >out
jq -es '.[1].data.len == 458752 and .[1].data.offset == 458752' out >/dev/null
[ "$(count)" = 0 ]
same inc1.qcow2
guest -c 'write -P0x9a 0 512' -c 'write -P0x55 8M 352k' \
    -c 'write -P0x78 15872k 1M'
qemu-img create -q -f qcow2 -b inc1.qcow2 -F qcow2 inc2.qcow2
backup sync=incremental bitmap=b0 target=inc2.qcow2 mode=existing >out
jq -es '.[1].data.device == "disk0" and .[1].data.len == 1507328' out \
    >/dev/null
same inc2.qcow2

# One conversation: events in order, the reply among them.
mkfifo to from
socat -t60 - UNIX-CONNECT:qmp.sock <to >from &
monitor=$!
exec 6>to 5<from
read -r -u 5 _
echo "{'execute':'qmp_capabilities'}" >&6
read -r -u 5 _
echo "{'execute':'drive-backup','id':1,'arguments':{'device':'disk0'," \
    "'job-id':'j','sync':'full','target':'ev.qcow2','format':'qcow2'}}" >&6
events=
while read -r -u 5 line; do
    word=$(jq -r 'if has("return") then "return" else
        .data.status // .event end' <<<"$line")
    events="$events $word"
    [ "$word" != null ] || break
done
exec 6>&-
wait "$monitor"
exec 5<&-
# A job pauses for a moment when it is drained.
case $events in
" created running return waiting pending BLOCK_JOB_COMPLETED concluded null") ;;
" created running paused running return waiting pending BLOCK_JOB_COMPLETED concluded null") ;;
*) echo "events:$events"; exit 1 ;;
esac

# By hand to the end.
qmp drive-backup device=disk0 job-id=m sync=full target=m.qcow2 \
    format=qcow2 auto-finalize=off auto-dismiss=off >/dev/null
until_status m pending
refused "GenericError: Job 'm' in state 'pending' cannot accept command verb 'dismiss'" \
    job-dismiss id=m
refused "GenericError: Job ID 'm' already in use" drive-backup device=disk0 \
    job-id=m sync=full target=m2.qcow2 format=qcow2
qmp job-finalize id=m >/dev/null
until_status m concluded
qmp job-dismiss id=m >/dev/null
[ "$(qmp query-jobs)" = "[]" ]
same m.qcow2

# Slow, paused, cancelled; the bitmap keeps what it had.
guest -c 'write -P0x11 0 8M'
[ "$(count)" = 8388608 ]
qemu-img create -q -f qcow2 -b inc2.qcow2 -F qcow2 inc3.qcow2
qmp drive-backup device=disk0 job-id=s sync=incremental bitmap=b0 \
    target=inc3.qcow2 format=qcow2 mode=existing speed=64k >/dev/null
qmp block-job-pause device=s >/dev/null
until_status s paused
qmp query-block-jobs | jq -e '.[0].device == "s" and
    .[0].type == "backup" and .[0].speed == 65536' >/dev/null
qmp query-named-block-nodes | jq -e '.[] |
    select(."node-name" == "disk0") | ."dirty-bitmaps"[] |
    select(.name == "b0") | .busy' >/dev/null
refused "GenericError: Bitmap 'b0' is currently in use by another operation and cannot be used" \
    block-dirty-bitmap-clear node=disk0 name=b0
qmp block-job-resume device=s >/dev/null
until_status s running
guest -c 'write -P0x12 60M 64k'
qmp block-job-set-speed device=s speed=32k >/dev/null
qmp block-job-cancel device=s force=on >/dev/null
for _ in {1..600}; do
    [ "$(qmp query-jobs)" != "[]" ] || break
    sleep 0.1
done
[ "$(qmp query-jobs)" = "[]" ]
[ "$(count)" = 8454144 ]
qemu-img create -q -f qcow2 -b inc2.qcow2 -F qcow2 inc4.qcow2
backup job-id=again sync=incremental bitmap=b0 target=inc4.qcow2 \
    mode=existing >/dev/null
same inc4.qcow2

# What cannot be.
refused "GenericError: must provide a valid bitmap name for 'incremental' sync mode" \
    drive-backup device=disk0 sync=incremental target=x.qcow2 format=qcow2
refused "GenericError: Bitmap 'unknown' could not be found" drive-backup \
    device=disk0 sync=incremental bitmap=unknown target=x.qcow2 format=qcow2
refused "GenericError: Cannot find device='no' nor node-name='no'" \
    drive-backup device=no sync=full target=x.qcow2
refused "GenericError: Unknown file format 'spaghetti-noodles'" drive-backup \
    device=disk0 sync=full target=x.qcow2 format=spaghetti-noodles
refused "GenericError: Parameter 'speed' expects a non-negative value" \
    drive-backup device=disk0 sync=full target=x.qcow2 speed=-1
refused "GenericError: max-workers must be between 1 and 2147483647" \
    drive-backup device=disk0 sync=full target=x.qcow2 x-perf.max-workers=0
refused "GenericError: Job not found" job-cancel id=no
refused "DeviceNotActive: Block job 'no' not found" block-job-cancel device=no
[ ! -e x.qcow2 ]

qmp quit >/dev/null
wait "$server"
server=
qemu-img check -q disk.qcow2
qemu-img compare -q disk.qcow2 inc4.qcow2
