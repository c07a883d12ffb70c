#!/bin/bash
# A backup that is killed when all is copied, before or after its manifest is
# pending, before or after the source has ended it: the next run finishes that
# point, which has what was frozen first, and copies nothing of it again once it
# is pending.  The source is our daemon, and QEMU.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-system-x86_64 qemu-img qemu-io jq

faulty=$BUILD/tests/func/faulty

# What the guest does, a copy of what it has, and what is left of a backup.
daemon_write() { qemu-io -f raw "$(uri_of vda)" -c "write -P $1" >qemu-io.out; }
daemon_freeze() { qemu-img convert -f raw -O raw "$(uri_of vda)" "$1"; }
daemon_left() {
    qmp query-backups | jq -r '.[].id'
    qmp checkpoint-list | jq -r '.[].name' | sed 's/.*-//'
}

ask() { nbdelta qmp own.sock "$@"; }
answers() { ask query-status >/dev/null 2>&1; }
hmp() {
    local said
    said=$(ask human-monitor-command command-line="qemu-io -d \
/machine/peripheral/vda/virtio-backend \"$1\"")
    [ "$said" = '""' ] || fail "$1: $said"
}
qemu_write() { hmp "write -P $1"; }
qemu_freeze() {
    hmp flush
    cp --sparse=always qemu.qcow2 "$1"
}
qemu_left() {
    ask query-jobs | jq -r '.[].id'
    ask query-block-exports | jq -r '.[].id'
    ask query-named-block-nodes | jq -r '[.[] | .["dirty-bitmaps"][]? |
        .name // empty] | unique | .[]' | sed 's/.*-//'
}

# round KIND SOCKET WHEN PATTERN: killed at WHEN, and again without that.
round() {
    local kind=$1 source=$2 when=$3 dir=$1.dir status=0 killed now
    "${kind}_write" "$4 1M 1M"
    "${kind}_freeze" first
    # shellcheck disable=SC2016
    FAULTY_NAME=$when "$faulty" backup --hook='[ "$NBDELTA_WHEN" != frozen ] ||
        echo "$NBDELTA_POINT" >instant #' "$source" "$dir" 2>/dev/null ||
        status=$?
    [ $status = 137 ] || fail "$kind, $when: not killed: $status"
    killed=$(cat instant)
    "${kind}_write" "$(($4 + 100)) 3M 64k"
    "${kind}_freeze" second
    status=0
    nbdelta backup --output=json "$source" "$dir" >report 2>said || status=$?
    if [ $status != 0 ] || [ -s said ]; then
        fail "$kind, $when: $status $(cat said)"
    fi
    now=$(jq -r .point report)
    qemu-img compare -q "$dir/vda/$killed.qcow2" first ||
        fail "$kind, $when: $killed is not what was frozen"
    qemu-img check -q "$dir/vda/$killed.qcow2"
    case $when in
    *:.json.pending) # or it was resumed
        [ "$when" = before:.json.pending ] || [ "$now" != "$killed" ] ||
            fail "$kind, $when: it was copied again"
        ;;
    esac
    if [ "$now" != "$killed" ]; then
        qemu-img compare -q "$dir/vda/$now.qcow2" second ||
            fail "$kind, $when: $now is not what it is now"
        jq -e '.disks[0].read == 65536 and .disks[0].kind == "increment"' \
            report >/dev/null || fail "$kind, $when: $(cat report)"
    fi
    [ "$("${kind}_left")" = "$now" ] || fail "$kind, $when: $("${kind}_left")"
    [ ! -e "$dir/resume.json" ] || fail "$kind, $when: resume.json is left"
    [ -z "$(ls tmp)" ] || fail "$kind, $when: left: $(ls tmp)"
}

all() {
    local i=1 when
    nbdelta backup "$2" "$1.dir" || fail "$1: $?"
    for when in before:.json.pending after:.json.pending before:Z.json \
        after:Z.json; do
        round "$1" "$2" "$when" $((++i))
    done
    nbdelta verify "$1.dir" >/dev/null || fail "$1: verify"
}

mkdir tmp
export TMPDIR=$PWD/tmp
for d in daemon qemu; do
    qemu-img create -q -f qcow2 $d.qcow2 4M
    qemu-io -f qcow2 $d.qcow2 -c 'write -P 1 0 2M' >/dev/null
done

serve vda=daemon.qcow2
all daemon "$qmp_sock"

# A session of that checkpoint's name, and of another instant: the point goes,
# as nobody knows what has changed since.
daemon_write '40 1M 1M'
FAULTY_NAME=after:.json.pending "$faulty" backup "$qmp_sock" daemon.dir || true
pending=$(basename daemon.dir/*.json.pending .json.pending)
kill_server
serve vda=daemon.qcow2
daemon_write '41 2M 64k'
nbdelta backup-begin --checkpoint \
    "nbdelta-$(jq -r .id daemon.dir/nbdelta.json)-$pending" "$qmp_sock" \
    >/dev/null
nbdelta backup --output=json "$qmp_sock" daemon.dir >report 2>said ||
    fail "another instant: $? $(cat said)"
# Names run ahead of a clock that is slower than we are: the new point may have
# the name of the one that has gone.
[ ! -e "daemon.dir/$pending.json" ] ||
    [ "$(jq -r .point report)" = "$pending" ] ||
    fail "another instant: it counts"
daemon_freeze now
qemu-img compare -q "daemon.dir/vda/$(jq -r .point report).qcow2" now ||
    fail "another instant: not what it is now"
[ "$(daemon_left)" = "$(jq -r .point report)" ] || fail "$(daemon_left)"
stop_server

qemu-system-x86_64 -M q35,accel=tcg -m 32 -S -nodefaults -display none \
    -qmp unix:qemu.sock,server=on,wait=off \
    -qmp unix:own.sock,server=on,wait=off \
    -blockdev qcow2,node-name=a,file.driver=file,file.filename=qemu.qcow2 \
    -device virtio-blk-pci,drive=a,id=vda >qemu.out 2>&1 &
qemu=$!
end_qemu() { kill "$qemu" 2>/dev/null || true; }
at_exit end_qemu
wait_until "QEMU answers" answers
all qemu qemu.sock
ask quit >/dev/null
wait "$qemu" || true
