#!/bin/bash
# `nbdelta backup` of an image that nobody uses: the first point has everything,
# the next ones what has changed; each is equal to the disk as it was, read by
# qemu-img alone.  A run that is killed at any moment changes nothing that
# counts.
set -eu -o pipefail
. "$SRCDIR/tests/func/lib.sh"

# Point $1 of the directory is equal to the file $2.
point_is() {
    qemu-img compare -q "dir/disk/$1.qcow2" "$2" ||
        fail "point $1 is not $2"
    qemu-img check -q "dir/disk/$1.qcow2"
}

# A run has begun to copy.
copying() {
    compgen -G 'dir/disk/*.part' >/dev/null
}

latest() {
    find dir -maxdepth 1 -name '*Z.json' | sort | tail -n 1 |
        sed 's,dir/\(.*\).json,\1,'
}

qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-io -f qcow2 disk.qcow2 -c 'write -P 1 0 5M' -c 'write -z 8M 1M' \
    -c 'write -P 2 63M 1M' >/dev/null
nbdelta backup --output=json disk.qcow2 dir >report
jq -e '.disks[0].kind == "full" and .disks[0].reason == "new-disk"' report \
    >/dev/null || fail "$(cat report)"
first=$(latest)
qemu-img convert -O raw disk.qcow2 first.raw
disk=$(jq -r '.disks[0].name' report)
[ "$disk" = disk ] || fail "the disk is called $disk"
point_is "$first" first.raw
[ "$(stat -c %a dir)" = 700 ] || fail "the directory is open to others"
[ "$(stat -c %a "dir/disk/$first.qcow2")" = 600 ] || fail "an image is"

# What is zeroed hides the parent's data.
qemu-io -f qcow2 disk.qcow2 -c 'write -P 3 1M 64k' -c 'write -z 2M 1M' \
    >/dev/null
out=$(nbdelta backup disk.qcow2 dir 2>&1) || fail "exit $?"
[ -z "$out" ] || fail "a run that works says: $out"
second=$(latest)
qemu-img convert -O raw disk.qcow2 second.raw
point_is "$second" second.raw
point_is "$first" first.raw
[ "$(stat -c %b "dir/disk/$second.qcow2")" -lt 4096 ] ||
    fail "the increment is as large as a full backup"
qemu-img info --output=json "dir/disk/$second.qcow2" |
    jq -e --arg f "$first.qcow2" '."backing-filename" == $f' >/dev/null

# One checkpoint of this directory, and none of another one goes.
nbdelta bitmap add disk.qcow2 other
nbdelta backup disk.qcow2 dir2
nbdelta backup disk.qcow2 dir
nbdelta bitmap list --output json disk.qcow2 |
    jq -e 'map(.name) | length == 3 and any(. == "other")' >/dev/null ||
    fail "bitmaps: $(nbdelta bitmap list disk.qcow2)"

# The bitmap is lost: all is compared with the point before, which is no
# failure (backup-compared.sh has the rest).
nbdelta backup --forget disk.qcow2 dir
nbdelta bitmap list --output json disk.qcow2 |
    jq -e 'map(.name) | length == 2' >/dev/null
nbdelta backup --dry-run disk.qcow2 dir >plan || fail "exit $?"
grep -q 'compared over .* (no-checkpoint)' plan || fail "$(cat plan)"
nbdelta backup disk.qcow2 dir
point_is "$(latest)" second.raw

# A file of the point before is lost: a full one, and the exit status says so.
mv "dir/disk/$(latest).sums" lost
rc=0
nbdelta backup --no-fallback disk.qcow2 dir 2>said || rc=$?
[ "$rc" = 1 ] || fail "--no-fallback: $rc"
rc=0
nbdelta backup disk.qcow2 dir 2>said || rc=$?
[ "$rc" = 3 ] || fail "a fallback exits $rc"
grep -q parent-missing said
point_is "$(latest)" second.raw

# In use: the image, and the directory.
serve disk=disk.qcow2
rc=0
nbdelta backup disk.qcow2 dir 2>said || rc=$?
[ "$rc" = 5 ] || fail "an image in use: $rc"
stop_server
rc=0
flock dir/lock nbdelta backup disk.qcow2 dir 2>said || rc=$?
[ "$rc" = 5 ] || fail "a directory in use: $rc"

# Killed while it copies: the point is not there, the next one is right.
qemu-io -f qcow2 disk.qcow2 -c 'write -P 4 10M 40M' >/dev/null
qemu-img convert -O raw disk.qcow2 third.raw
before=$(latest)
nbdelta backup --rate=4M disk.qcow2 dir &
run=$!
wait_until "it copies" copying
kill -9 "$run"
wait "$run" 2>/dev/null || true
[ "$(latest)" = "$before" ] || fail "a killed run has made a point"
nbdelta backup disk.qcow2 dir
point_is "$(latest)" third.raw
if copying; then
    fail "parts are left"
fi

# Interrupted.
qemu-io -f qcow2 disk.qcow2 -c 'write -P 5 10M 40M' >/dev/null
qemu-img convert -O raw disk.qcow2 fourth.raw
nbdelta backup --rate=4M disk.qcow2 dir 2>said &
run=$!
wait_until "it copies" copying
kill -INT "$run"
rc=0
wait "$run" || rc=$?
[ "$rc" = 7 ] || fail "interrupted: $rc"
if copying; then
    fail "an interrupted run leaves parts"
fi
nbdelta backup --compress=zstd disk.qcow2 dir
point_is "$(latest)" fourth.raw

# A pending point that lacks a file is none: it goes, and a run works.
last=$(latest)
mv "dir/$last.json" "dir/$last.json.pending"
rm "dir/disk/$last.qcow2"
nbdelta backup disk.qcow2 dir 2>said || fail "after half a point: $(cat said)"
[ ! -e "dir/$last.json.pending" ] || fail "half a point is still pending"
point_is "$(latest)" fourth.raw

# Whose checkpoints are to go has to be there.
rc=0
nbdelta backup --forget disk.qcow2 nowhere 2>said || rc=$?
if [ "$rc" != 6 ] || [ -e nowhere ]; then fail "--forget: $rc"; fi

# A wrong word mixes no two sources: exit 1, and nothing has changed.  The same
# file by another name is the same one.
refused() {
    local rc=0
    nbdelta backup "$@" 2>said || rc=$?
    [ "$rc" = 1 ] || fail "$*: exit $rc, $(cat said)"
    grep -q "is another source: .*--new-source" said || fail "$*: $(cat said)"
}
truncate -s 1M raw.raw
cp raw.raw other.raw
cp disk.qcow2 copy.qcow2 # has the checkpoint
qemu-img create -q -f qcow2 fresh.qcow2 64M
before=$(find dir | sort)
refused fresh.qcow2 dir
refused --full fresh.qcow2 dir
refused --dry-run fresh.qcow2 dir
[ "$(find dir | sort)" = "$before" ] || fail "a refused run changes DIR"
nbdelta backup copy.qcow2 dir
nbdelta backup raw.raw rawdir
ln raw.raw same.raw
nbdelta backup --new-source "$PWD/raw.raw" rawdir
nbdelta backup "../${PWD##*/}/./same.raw" rawdir
refused other.raw rawdir
mkdir sub
cp raw.raw sub/raw.raw
(cd sub && refused raw.raw ../rawdir)
nbdelta backup --new-source other.raw rawdir
refused raw.raw rawdir

# A first run that fails leaves no directory, one that was there stays.
for what in nowhere.qcow2 libvirt:nobody "$PWD/none.sock" nbd://127.0.0.1:1/x; do
    rc=0
    nbdelta backup --timeout=2 "$what" first 2>said || rc=$?
    if [ "$rc" = 0 ] || [ -e first ]; then fail "$what: exit $rc, or first/"; fi
done
rc=0
nbdelta backup --hook=false raw.raw first 2>said || rc=$?
if [ "$rc" = 0 ] || [ -e first ]; then fail "a hook: exit $rc, or first/"; fi
mkdir first
rc=0
nbdelta backup nowhere.qcow2 first 2>said || rc=$?
[ -d first ] || fail "the directory was there before"
nbdelta backup raw.raw first
