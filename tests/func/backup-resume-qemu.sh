#!/bin/bash
# A backup of a QEMU's disks that is killed while it copies is gone on with by
# the next run, as long as QEMU has the jobs that it left: the point has what was
# frozen first, and what was copied is not read again.  When these are gone or
# are of another instant, all begins again, with one line that says so.  In no
# case is anything of ours left in QEMU, except for the last point's checkpoint.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-system-x86_64 qemu-img qemu-io jq

ask() { nbdelta qmp own.sock "$@"; }

# What the guest does to both disks.
write() {
    local d said
    for d in vda vdb; do
        said=$(ask human-monitor-command command-line="qemu-io -d \
/machine/peripheral/$d/virtio-backend \"$1\"")
        [ "$said" = '""' ] || fail "$1: $said"
    done
}

# Beside each disk a copy of what it has now.
freeze() {
    write flush
    cp --sparse=always a.qcow2 vda.frozen
    cp --sparse=always b.qcow2 vdb.frozen
}

answers() { ask query-status >/dev/null 2>&1; }
start() {
    qemu-system-x86_64 -M q35,accel=tcg -m 32 -S -nodefaults -display none \
        -qmp unix:qemu.sock,server=on,wait=off \
        -qmp unix:own.sock,server=on,wait=off \
        -blockdev qcow2,node-name=a,file.driver=file,file.filename=a.qcow2 \
        -device virtio-blk-pci,drive=a,id=vda \
        -blockdev qcow2,node-name=b,file.driver=file,file.filename=b.qcow2 \
        -device virtio-blk-pci,drive=b,id=vdb >qemu.out &
    qemu=$!
    wait_until "QEMU answers" answers
}
stop() {
    ask quit >/dev/null
    wait "$qemu" || true
}
end_qemu() { kill "$qemu" 2>/dev/null || true; }
at_exit end_qemu

parts_are_flushed() {
    local part bytes
    sleep 0.3
    kill -0 $run || fail "it has ended before"
    for part in dir/vd{a,b}/"$(cat instant)".qcow2.part; do
        bytes=$(qemu-img map -U --output=json "$part" 2>/dev/null | jq '[.[] |
            select(.depth == 0 and .data) | .length] | add // 0')
        [ "${bytes:-0}" -ge $((512 << 10)) ] || return 1
    done
}
noted() {
    [ "$(jq -r "select(.what) | .point" dir/resume.json 2>/dev/null)" = \
        "$(cat instant)" ]
}
jobs_of_qemu() { ask query-jobs | jq -r '.[].id' | sort; }

# A run that is killed when $1 is so.  Both disks change afterwards.
cut_off() {
    rm -f instant
    # shellcheck disable=SC2016
    nbdelta backup --rate=2M --hook='[ "$NBDELTA_WHEN" != frozen ] ||
        echo "$NBDELTA_POINT" >instant #' qemu.sock dir &
    run=$!
    wait_until "it has begun" test -s instant
    wait_until "it copies" "$1"
    kill -9 $run
    wait $run 2>/dev/null || true
    jobs=$(jobs_of_qemu)
    [ "$(wc -w <<<"$jobs")" = 2 ] || fail "jobs: $jobs"
    write 'write -P 99 1M 1M'
    write 'write -P 98 11M 2M'
}

backup() {
    status=0
    nbdelta backup --output=json qemu.sock dir >report 2>said || status=$?
}

nothing_left() {
    [ -z "$(jobs_of_qemu)" ] || fail "jobs: $(jobs_of_qemu)"
    ask query-block-exports | jq -e 'length == 0' >/dev/null ||
        fail "exports: $(ask query-block-exports)"
    ask query-named-block-nodes | jq -e 'all(.[]; .["node-name"] |
        startswith("nbdelta") | not)' >/dev/null || fail "nodes are left"
    ask nbd-server-stop >/dev/null 2>&1 && fail "the NBD server is left"
    [ ! -e dir/resume.json ] || fail "resume.json is left"
    [ -z "$(find dir -name '*.part' -o -name '*.pending')" ] ||
        fail "$(find dir)"
    [ -z "$(ls tmp)" ] || fail "left: $(ls tmp)"
}
bitmaps() {
    ask query-named-block-nodes | jq -r '[.[] | .["dirty-bitmaps"][]? |
        .name // empty] | unique | .[]' | sed 's/.*-//'
}

# The latest point is $1, right and plain; nothing else is left.
is_right() {
    local d
    [ $status = 0 ] || fail "exit status $status: $(cat said)"
    [ "$(jq -r .point report)" = "$1" ] || fail "not $1: $(cat report said)"
    for d in vda vdb; do
        qemu-img compare -q "dir/$d/$1.qcow2" $d.frozen ||
            fail "$d is not what was frozen"
        qemu-img check -q "dir/$d/$1.qcow2"
    done
    nothing_left
    [ "$(bitmaps)" = "$1" ] || fail "bitmaps: $(bitmaps)"
    nbdelta verify dir >/dev/null || fail "verify: $?"
}

# At least 512 KiB of the $2 MiB of each disk were not read again.
gone_on() {
    is_right "$(cat instant)"
    [ ! -s said ] || fail "it says: $(cat said)"
    jq -e --arg kind "$1" --argjson most $((($2 << 20) - (512 << 10))) \
        'all(.disks[]; .kind == $kind and .read > 0 and .read <= $most)' \
        report >/dev/null ||
        fail "it was read again: $(cat report)"
}

began_again() {
    [ "$(wc -l <said)" = 1 ] || fail "it says '$(cat said)'"
    grep -q "begun again: .*$1" said || fail "it says '$(cat said)'"
    [ "$(jq -r .point report)" != "$(cat instant)" ] ||
        fail "it is the first run's point"
    is_right "$(jq -r .point report)"
}

mkdir tmp
export TMPDIR=$PWD/tmp
for d in a b; do
    qemu-img create -q -f qcow2 $d.qcow2 16M
    qemu-io -f qcow2 $d.qcow2 -c 'write -P 1 0 12M' >/dev/null
done
start

# --- A full, cut off twice. ---

freeze
cut_off parts_are_flushed
nbdelta backup --rate=1M qemu.sock dir &
run=$!
sleep 1
kill -9 $run
wait $run 2>/dev/null || true
[ "$(jobs_of_qemu)" = "$jobs" ] || fail "the second run has other jobs"
backup
gone_on full 12

# --- An increment. ---

write 'write -P 3 2M 12M'
freeze
cut_off parts_are_flushed
backup
gone_on increment 13 # with what cut_off wrote

# --- Somebody has ended a job. ---

write 'write -P 5 2M 2M'
cut_off noted
ask block-job-cancel device="${jobs%%$'\n'*}" force=true >/dev/null
job_is_gone() { [ "$(jobs_of_qemu | wc -l)" = 1 ]; }
wait_until "the job has ended" job_is_gone
freeze
backup
began_again "may have changed"

# --- Jobs of the same names, and another instant. ---

write 'write -P 7 2M 2M'
cut_off noted
sed -i 's/"instant": "./"instant": "x/' dir/resume.json
freeze
backup
began_again "may have changed"

# --- QEMU has started anew. ---

write 'write -P 8 2M 2M'
cut_off noted
stop
start
freeze
backup
began_again "may have changed"

# --- They are there when the source is opened, and begin cannot have them. ---

write 'write -P 9 2M 2M'
cut_off noted
jq '.what.identity.disks[1].since = "else"' dir/resume.json >changed
cp changed dir/resume.json
freeze
backup
began_again "may have changed"

# --- A run that finds them, and makes no point, ends them. ---

write 'write -P 10 2M 2M'
before=$(bitmaps)
cut_off noted
status=0
# shellcheck disable=SC2016
nbdelta backup --hook='[ "$NBDELTA_WHEN" != before ] #' qemu.sock dir \
    2>/dev/null || status=$?
[ $status = 1 ] || fail "a hook that fails: $status"
nothing_left
[ "$(bitmaps)" = "$before" ] || fail "bitmaps: $(bitmaps), not $before"
cut_off noted
mkdir "dir/vda/$(cat instant).sums.part" # it cannot be tidied up
backup
[ $status = 1 ] || fail "a directory in the way: $status"
rmdir dir/vda/*.sums.part
[ -z "$(jobs_of_qemu)" ] || fail "jobs: $(jobs_of_qemu)"
[ -z "$(ls tmp)" ] || fail "left: $(ls tmp)"
stop
