#!/bin/bash
# A backup of an image that is killed while it copies is gone on with by the next
# run: what was copied is not read again, the point has the instant of the first
# run, and its file is plain.  When the image has changed meanwhile, the copy
# begins again and says so.  An NBD export has changed when the caller says so.
set -eu -o pipefail
. "$SRCDIR/tests/func/lib.sh"

part_is_flushed() {
    local part
    part=$(compgen -G 'dir/disk/*.qcow2.part') || return 1
    [ "$(qemu-img map -U --output=json "$part" 2>/dev/null | jq '
        [.[] | select(.depth == 0 and .data) | .length] | add // 0')" -ge \
        $((8 << 20)) ]
}

# Kill a run when some of its file is flushed.
cut_off() {
    nbdelta backup --rate=6M disk.qcow2 dir &
    local run=$!
    wait_until "some is copied" part_is_flushed
    kill -9 $run
    wait $run 2>/dev/null || true
    compgen -G 'dir/disk/*.qcow2.part' | sed 's,.*/,,;s,\..*,,' >part
}

# The latest point is what was cut off, right and plain, and read at most $1.
resumed() {
    jq -e --arg p "$(cat part)" --argjson max "$1" '.point == $p and
        .disks[0].read <= $max' report >/dev/null ||
        fail "not resumed: $(cat report part)"
    qemu-img compare -q "dir/disk/$(cat part).qcow2" disk.qcow2
    qemu-img check -q "dir/disk/$(cat part).qcow2"
    [ ! -e dir/resume.json ] || fail "resume.json is left"
    nbdelta verify dir >/dev/null || fail "verify: $?"
}

qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-io -f qcow2 disk.qcow2 -c 'write -P 1 0 24M' -c 'write -P 2 40M 1M' \
    >/dev/null
cut_off
nbdelta backup --output=json disk.qcow2 dir >report
resumed $((17 << 20))

# An increment, compressed, cut off twice.
qemu-io -f qcow2 disk.qcow2 -c 'write -P 3 64k 24M' -c 'write -z 12M 1M' \
    >/dev/null
cut_off
first=$(cat part)
nbdelta backup --rate=6M disk.qcow2 dir &
run=$!
sleep 0.5
kill -9 $run
wait $run 2>/dev/null || true
[ "$(compgen -G 'dir/disk/*.qcow2.part')" = "dir/disk/$first.qcow2.part" ] ||
    fail "the second run has made another file"
nbdelta backup --output=json disk.qcow2 dir >report 2>said
[ ! -s said ] || fail "it says: $(cat said)"
resumed $((17 << 20))

# The image has changed: all is read again.
qemu-io -f qcow2 disk.qcow2 -c 'write -P 4 0 24M' >/dev/null
cut_off
qemu-io -f qcow2 disk.qcow2 -c 'write -P 5 0 1M' >/dev/null
nbdelta backup --output=json disk.qcow2 dir >report 2>said
grep -q 'is begun again' said || fail "it does not say so: $(cat said)"
jq -e --arg p "$(cat part)" '.point != $p and .disks[0].read == 25165824' \
    report >/dev/null || fail "$(cat report)"
jq -r .point report >part
resumed $((24 << 20))

# What is in the place of the part is not followed, and not believed.
qemu-io -f qcow2 disk.qcow2 -c 'write -P 6 0 24M' >/dev/null
cut_off
rm dir/disk/*.part
ln -s "$PWD/elsewhere" "dir/disk/$(cat part).qcow2.part"
nbdelta backup --output=json disk.qcow2 dir >report
resumed $((24 << 20))
[ ! -e elsewhere ] || fail "a link was followed"

# An NBD export cannot tell whether it has what it had: the caller's word does.
qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-io -f qcow2 disk.qcow2 -c 'write -P 1 0 24M' >/dev/null
serve -r disk=disk.qcow2
export_backup() { nbdelta backup --output=json "$@" "$(uri_of disk)" dir; }
cut_off_export() {
    nbdelta backup --rate=6M "$@" "$(uri_of disk)" dir &
    local run=$!
    wait_until "some is copied" part_is_flushed
    kill -9 $run
    wait $run 2>/dev/null || true
    compgen -G 'dir/disk/*.qcow2.part' | sed 's,.*/,,;s,\..*,,' >part
}
rm -r dir
cut_off_export --instant=monday
export_backup --instant=monday >report 2>said
[ ! -s said ] || fail "--instant: it says: $(cat said)"
resumed $((17 << 20))
cut_off_export --full --instant=tuesday
export_backup --full --instant=wednesday >report 2>said
grep -q 'is begun again' said || fail "another word: it says $(cat said)"
jq -e --arg p "$(cat part)" '.point != $p and .disks[0].read == 25165824' \
    report >/dev/null || fail "another word: $(cat report)"
cut_off_export --full
export_backup --full --instant=wednesday >report 2>said
jq -e --arg p "$(cat part)" '.point != $p and .disks[0].read == 25165824' \
    report >/dev/null || fail "no word: $(cat report)"
! nbdelta backup --instant=x disk.qcow2 new 2>said || fail "--instant, an image"
grep -q 'tells itself' said || fail "--instant, an image: $(cat said)"
stop_server
