#!/bin/bash
# The main job, on real data: serve a disk, know what changed, back it up.
#
#   BUILD=build [KEEP=DIR] tests/demo.sh     KEEP: leave the backups there
set -eu -o pipefail
PATH=/usr/bin:$PATH # nbdsh needs the python3 that has its module

keep=${KEEP-}
BUILD=$(realpath "${BUILD:?}")
export BUILD
nbdelta=$BUILD/nbdelta
tests=$(realpath "${0%/*}")
size=$((1024 * 1024 * 1024))
disk=vda
bitmap=since-last-backup

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }
mib() { awk -v b="$1" 'BEGIN { printf "%.1f MiB", b / 1048576 }'; }

work=$(mktemp -d "${TMPDIR:-/tmp}/nbdelta-demo.XXXXXX")
server=
cleanup() {
    if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
        kill "$server"
        wait "$server" || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
if [ -n "$keep" ]; then
    mkdir -p "$keep"
    keep=$(cd "$keep" && pwd)
    for f in full.qcow2 inc1.qcow2 inc2.qcow2; do
        [ ! -e "$keep/$f" ] || die "$keep/$f is there already"
    done
fi
cd "$work"
uri="nbd+unix:///$disk?socket=$work/nbd.sock"
qmp() { "$nbdelta" qmp "$work/qmp.sock" "$@"; }

# What qemu-img says the file takes on the disk.
disk_bytes() { qemu-img info --output json "$1" | jq '."actual-size"'; }

# Bytes that the bitmap has dirty, asked over NBD as any backup tool would.
dirty_bytes() {
    nbdinfo --json --map="qemu:dirty-bitmap:$bitmap" "$uri" |
        jq '[.[] | select(.type == 1) | .length] | add // 0'
}

# A copy of the disk as it is now, read through NBD, to compare with later.
snapshot() { nbdcopy "$uri" "$1"; }

incremental() {
    "$nbdelta" create -f qcow2 -b "$1" -F qcow2 "$2"
    printf 'dirty before: %s of %s\n' "$(mib "$(dirty_bytes)")" "$(mib $size)"
    qmp drive-backup device=$disk target="$work/$2" format=qcow2 \
        sync=incremental bitmap=$bitmap mode=existing --wait >/dev/null
    printf 'copied into %s, which takes %s; dirty after: %s\n' "$2" \
        "$(mib "$(disk_bytes "$2")")" "$(mib "$(dirty_bytes)")"
    [ "$(dirty_bytes)" -eq 0 ] || die "the bitmap is not clear"
}

say "1. A qcow2 disk of 1 GiB, served over NBD"
"$nbdelta" create -f qcow2 disk.qcow2 $size
"$nbdelta" serve --log-level=warning -U nbd.sock --qmp qmp.sock \
    --pidfile pid $disk=disk.qcow2 &
server=$!
for _ in $(seq 200); do
    [ -e pid ] && break
    kill -0 "$server" 2>/dev/null || die "the server did not start"
    sleep 0.05
done
[ -e pid ] || die "the server did not get ready"
nbdinfo --no-content "$uri" | grep -E 'export-size|contexts|qemu:' || true

say "2. nbdcopy writes 160 MiB of random data into it"
truncate -s $size seed.raw
for at in 0 200 400 600 800; do
    head -c 32M /dev/urandom |
        dd of=seed.raw bs=1M seek=$at conv=notrunc status=none
done
nbdcopy --flush seed.raw "$uri"
rm seed.raw

say "3. A dirty bitmap, and a full backup"
qmp block-dirty-bitmap-add node=$disk name=$bitmap >/dev/null
qmp drive-backup device=$disk target="$work/full.qcow2" format=qcow2 \
    sync=full --wait >/dev/null
snapshot ref0.raw
printf 'full.qcow2 takes %s\n' "$(mib "$(disk_bytes full.qcow2)")"

say "4. libnbd dirties five regions; first increment"
nbdsh -u "$uri" -c '
import os
for at in (0, 5 * 1024**2 + 512, 300 * 1024**2, 555555555, 1023 * 1024**2):
    h.pwrite(os.urandom(200000), at)
h.flush()'
incremental full.qcow2 inc1.qcow2
snapshot ref1.raw

say "5. It overwrites, trims and zeroes some more; second increment"
nbdsh -u "$uri" -c '
import os
h.pwrite(os.urandom(4096), 300 * 1024**2)
h.trim(1024**2, 200 * 1024**2)
h.zero(3 * 1024**2, 400 * 1024**2)
h.pwrite(os.urandom(65536), 700 * 1024**2)
h.flush()'
incremental inc1.qcow2 inc2.qcow2
snapshot ref2.raw

say "6. The server stops; stock QEMU tools look at what it left"
kill "$server"
wait "$server" || die "the server did not stop cleanly"
server=
for f in disk full inc1 inc2; do
    qemu-img check -q "$f.qcow2" || die "qemu-img check: $f.qcow2"
    echo "qemu-img check $f.qcow2: no errors"
done
compare() {
    qemu-img compare -q -f "$2" -F "$4" "$1" "$3" || die "$1 differs from $3"
    echo "qemu-img compare: $1 equals $5"
}
compare full.qcow2 qcow2 ref0.raw raw "the disk at the full backup"
compare inc1.qcow2 qcow2 ref1.raw raw "the disk at the first increment"
compare inc2.qcow2 qcow2 ref2.raw raw "the disk at the second increment"
compare inc2.qcow2 qcow2 disk.qcow2 qcow2 "the disk as it is now"

say "7. nbdelta backup of a domain of libvirt: two nights, one line each"
if [ -e "$BUILD/nbdelta-source-libvirt.so" ] && [ "$(id -u)" -eq 0 ]; then
    mkdir libvirt
    (cd libvirt && NBDELTA_MODULES=$BUILD PYTHONDONTWRITEBYTECODE=1 \
        /usr/bin/python3 "$tests/demo-libvirt.py") || [ $? -eq 77 ] ||
        die "the domain was not backed up"
else
    echo "It needs libvirt-dev to build, and root: left out"
fi

if [ -n "$keep" ]; then
    cp --sparse=always full.qcow2 inc1.qcow2 inc2.qcow2 "$keep/"
    say "The chain full <- inc1 <- inc2 is in $keep"
else
    say "All is proved; everything was removed (KEEP=DIR keeps the backups)"
fi
