#!/bin/bash
# What verify finds damaged in a backup directory is copied from the source by
# the next backup, wherever the bit was that changed: data, tables, refcounts,
# header, hashes.  What the source has no more stays damaged, and says so.
set -eu -o pipefail
. "$SRCDIR/tests/func/lib.sh"

flip() {
    python - "$1" "$2" <<'PY'
import sys
with open(sys.argv[1], 'r+b') as f:
    f.seek(int(sys.argv[2]))
    b = f.read(1)[0] ^ 4
    f.seek(-1, 1)
    f.write(bytes([b]))
PY
}

# Run with $2...: it exits $1.
run() {
    local want=$1 rc=0
    shift
    "$@" >out 2>said || rc=$?
    [ "$rc" = "$want" ] || fail "$*: exit $rc: $(cat said out)"
}

be64() {
    od -A n -t u8 --endian=big -j "$2" -N 8 "$1" | tr -d ' '
}

change() {
    qemu-io -f qcow2 disk.qcow2 "$@" >/dev/null
}

same() {
    qemu-img compare -q "dir/disk/$1.qcow2" "$2" || fail "$1 is not $2"
    qemu-img check -q "dir/disk/$1.qcow2"
}

qemu-img create -q -f qcow2 disk.qcow2 16M
change -c 'write -P 1 0 3M' -c 'write -P 2 8M 1M'
nbdelta backup disk.qcow2 dir
qemu-img convert -O raw disk.qcow2 first.raw
change -c 'write -P 3 1M 64k' -c 'write -z 2112k 64k' -c 'write -P 4 10M 1M'
nbdelta backup disk.qcow2 dir
qemu-img convert -O raw disk.qcow2 second.raw
mapfile -t points < <(find dir/disk -name '*.qcow2' | sort | sed 's,.*/,,;s,\..*,,')
first=${points[0]} second=${points[1]}

# A place each time: of a file, and what it is.
for point in "$second" "$first"; do
    file=dir/disk/$point.qcow2
    data=$(qemu-img map --output=json "$file" |
        jq '[.[] | select(.depth == 0 and .data and .start >= 8388608)][0].offset')
    l1=$(be64 "$file" 40)
    l2=$(($(be64 "$file" "$l1") & 0xfffffffffffe00))
    # The entries of the tables that the data at 8 MiB, or 10 MiB, is found by.
    entry=$((l2 + 8 * 16 * $([ "$point" = "$first" ] && echo 8 || echo 10)))
    places=("$data" $((entry + 5)))
    # Without its table or header, all of a file has to be on the disk still.
    if [ "$point" = "$second" ]; then
        places+=($((data + 65535)) $((l1 + 5)) 1 27 43)
    fi
    for at in "${places[@]}"; do
        flip "$file" "$at"
        run 4 nbdelta verify "dir@$point"
        run 0 nbdelta backup disk.qcow2 dir
        grep -q 'healed from the source' said || fail "$point $at: $(cat said)"
        run 0 nbdelta verify "dir@$point"
        nbdelta points --output=json dir |
            jq -e '.points[-1].disks[0].kind == "increment"' >/dev/null ||
            fail "over what was healed there is no increment"
        file=dir/disk/$point.qcow2
        data=$(qemu-img map --output=json "$file" |
            jq '[.[] | select(.depth == 0 and .data and .start >= 8388608)][0].offset')
        same "$first" first.raw
        same "$second" second.raw
    done
    flip "dir/disk/$point.sums" 50
    run 4 nbdelta verify "dir@$point"
    run 0 nbdelta backup disk.qcow2 dir
    run 0 nbdelta verify dir
done

# A daemon has all of the disk then.
flip "dir/disk/$second.qcow2" "$(qemu-img map --output=json \
    "dir/disk/$second.qcow2" | jq '[.[] | select(.depth == 0 and .data)][0].offset')"
run 4 nbdelta verify dir
serve disk=disk.qcow2
run 0 nbdelta backup "$qmp_sock" dir
run 0 nbdelta verify dir
stop_server

# A refcount that is too low.
file=dir/disk/$first.qcow2
data=$(qemu-img map --output=json "$file" |
    jq '[.[] | select(.depth == 0 and .data)][0].offset')
block=$(be64 "$file" "$(be64 "$file" 48)")
printf '\0' | dd of="$file" bs=1 seek=$((block + data / 32768 + 1)) \
    conv=notrunc status=none
run 4 nbdelta verify dir
run 0 nbdelta backup disk.qcow2 dir
run 0 nbdelta verify dir
same "$first" first.raw

# The guest has written there since.
change -c 'write -P 5 10M 64k'
file=dir/disk/$second.qcow2
flip "$file" "$(qemu-img map --output=json "$file" |
    jq '[.[] | select(.depth == 0 and .data and .start >= 8388608)][0].offset')"
run 4 nbdelta verify dir
run 3 nbdelta backup disk.qcow2 dir
grep -q 'lost data for good' said || fail "$(cat said)"
nbdelta points dir | grep -q LOST || fail "points does not say LOST"
inode=$(stat -c %i "$file")
run 0 nbdelta backup disk.qcow2 dir
[ ! -s said ] || fail "it tries again: $(cat said)"
[ "$(stat -c %i "$file")" = "$inode" ] || fail "it writes it again"
run 4 nbdelta verify "dir@$second"
grep -q 'disk.*1048576' out said || fail "$(cat out said)"
run 4 nbdelta restore --partial "dir@$second" disk=restored.raw
cmp -n 10485760 restored.raw second.raw
cmp -i 11534336 restored.raw second.raw
