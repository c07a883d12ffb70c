#!/bin/bash
# nbdelta create --track: a small qcow2 beside a raw disk that stays as it is,
# with bitmaps that work and survive; README's recipe, on a device, too.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io jq

# $1: what it says; the rest: arguments.  RAW has not changed.
refused() {
    local text=$1 rc=0
    shift
    nbdelta create "$@" >out 2>&1 </dev/null || rc=$?
    [ "$rc" -ne 0 ] || fail "not refused: $*"
    grep -qF -e "$text" out || fail "$*: said '$(cat out)', not '$text'"
    cmp disk.raw disk.before
    [ ! -e new.qcow2 ] || fail "$*: there is an image"
}

counts() {
    qmp query-named-block-nodes | jq -r '.[] | select(."node-name" == "disk0") |
        ."dirty-bitmaps"[] | "\(.name) \(.count)"'
}

# --- What is refused. ---

mkimg disk.raw 5000192
cp disk.raw disk.before
nbdelta create there.qcow2 1M
refused 'which file?' --track disk.raw
refused "the size is that of 'disk.raw'" --track disk.raw new.qcow2 1M
refused 'makes a qcow2 image' -f raw --track disk.raw new.qcow2
refused "'--bitmap' needs --track" --bitmap b0 new.qcow2 1M
refused "'--force' needs --track" --force new.qcow2 1M
refused "Could not open 'none'" --track none new.qcow2
refused 'neither a regular file nor a block device' --track . new.qcow2
refused 'neither a regular file nor a block device' --track /dev/null new.qcow2
refused "'there.qcow2': File exists" --track disk.raw there.qcow2
refused 'File exists' --track there.qcow2 --force disk.raw
refused "'there.qcow2' looks like an image of format qcow2" \
    --track there.qcow2 new.qcow2
refused "option 'size' makes no sense" -o size=1M --track disk.raw new.qcow2
refused "option 'data_file' makes no sense" -o data_file=x --track disk.raw \
    new.qcow2
refused "Invalid parameter 'data_file_exists'" \
    -o data_file=disk.raw,data_file_exists=on new.qcow2 5000192
refused 'Cluster size' -o cluster_size=3000 --track disk.raw new.qcow2
refused 'compat' -o compat=0.10 --track disk.raw new.qcow2
refused 'name' --track disk.raw --bitmap '' new.qcow2
: >empty
refused "'empty' is empty" --track empty new.qcow2
serve -r disk.raw
refused 'is another process using' --track disk.raw new.qcow2
stop_server
loop=
if [ "$(id -u)" = 0 ] && loop=$(losetup -f --show disk.raw 2>/dev/null); then
    at_exit losetup -d "$loop"
    refused "option 'size' makes no sense" -o size=1M --track "$loop" new.qcow2
fi

# --- Any size, and where it lies. ---

for size in 512 65536 5000001 5000192; do
    for dir in . "$PWD"; do
        truncate -s "$size" any.raw
        nbdelta create --track "$dir/any.raw" any.qcow2
        [ "$(stat -c %s any.raw)" = "$size" ]
        qemu-img check -q any.qcow2
        qemu-img compare -q -f raw -F qcow2 any.raw any.qcow2
        [ "$(nbdelta info --output=json any.qcow2 |
            jq -r '."virtual-size"')" = $(((size + 511) / 512 * 512)) ]
        rm any.qcow2
    done
    rm any.raw
done
printf 'QFI\373' | dd of=there.raw bs=512 conv=sync status=none
nbdelta create --track there.raw --force odd.qcow2
rm odd.qcow2

# The last bytes of an odd disk, when they are written.
truncate -s 1000 odd.raw
nbdelta create --track odd.raw odd.qcow2
serve odd.qcow2
qemu-io -f raw -c 'read -q -P 0 0 1k' -c 'write -q -P 5 0 1k' "$uri"
stop_server
[ "$(stat -c %s odd.raw)" = 1024 ]

# Large disks have small tables, which are there at once.
truncate -s 8T large.raw 2>/dev/null || truncate -s 1T large.raw
nbdelta create --track large.raw --bitmap b0 large.qcow2
[ $(($(stat -c '%b * %B' large.qcow2))) -le $((48 * 1024 * 1024)) ] ||
    fail "the image takes $(($(stat -c '%b * %B' large.qcow2))) bytes"
[ "$(nbdelta info --output=json large.qcow2 |
    jq '."format-specific".data.bitmaps[0].granularity')" = 65536 ]
[ "$(stat -c %b large.raw)" = 0 ]
rm large.raw large.qcow2

# --- Bitmaps on it. ---

nbdelta create --track disk.raw --bitmap b0 disk.qcow2
cmp disk.raw disk.before
before=$(md5sum <disk.qcow2)
qemu-img info disk.qcow2 | grep -q "data file: $PWD/disk.raw"
serve disk0=disk.qcow2
qemu-io -f raw -c 'write -q -P 1 1M 64k' -c 'write -q -z 2M 64k' \
    -c 'discard -q 3M 64k' -c 'write -q -P 9 5000000 192' "$(uri_of disk0)"
[ "$(counts)" = 'b0 262144' ] || fail "$(counts)"
stop_server
# Tables do not change with the data: only bitmaps do.
[ "$(qemu-img check --output=json disk.qcow2 | jq '.leaks // 0')" = 0 ]
qemu-img compare -q -f raw -F qcow2 disk.raw disk.qcow2
[ "$before" != "$(md5sum <disk.qcow2)" ]
serve disk0=disk.qcow2
[ "$(counts)" = 'b0 262144' ] || fail "after a restart: $(counts)"
qemu-io -f raw -c 'write -q -P 1 4M 64k' "$(uri_of disk0)"
kill -9 "$server"
wait "$server" 2>/dev/null || true
server=
rm -f "$sock" "$qmp_sock" "$pidfile"
serve disk0=disk.qcow2
[ "$(counts | cut -d' ' -f2)" -ge 327680 ] || fail "after a kill: $(counts)"
qemu-io -f raw -c 'read -q -P 1 4M 64k' "$(uri_of disk0)"
stop_server
qemu-img compare -q -f raw -F qcow2 disk.raw disk.qcow2

# --- README's recipe, on a device if there is one, else on a file. ---

mkdir images backup
cp disk.raw disk.before
raw=${loop:-$PWD/disk.raw}
sed -n '/^nbdelta create --track/,/^```$/p' "$SRCDIR/README.md" |
    sed -e ':join' -e '/\\$/{N;s/\\\n *//;b join' -e '}' |
    sed -n -e "s|disk\.raw|$raw|" -e "s|tracked\.sock|$sock|" \
        -e "s|tracked\.qmp|$qmp_sock|" \
        -e "s|tracked\.qcow2|$PWD/images/tracked.qcow2|" \
        -e "s|tracked-full\.qcow2|$PWD/backup/disk.qcow2|" \
        -e "s|serve --daemonize \(.*\)|serve --allow-path ${raw%/*} \1 \&|" \
        -e '/ quit$/d' -e '/^nbdelta/p' >recipe
[ "$(wc -l <recipe)" = 3 ] || fail "README has another recipe: $(cat recipe)"
while read -r line <&3; do
    case $line in
    *' &')
        eval "$line"
        server=$!
        wait_until "the server is ready" listens "$qmp_sock"
        ;;
    *) eval "$line" >/dev/null ;;
    esac
done 3<recipe
qemu-img compare -q -f raw -F qcow2 disk.before backup/disk.qcow2
qemu-io -f raw -c 'write -q -P 7 0 64k' "$(uri_of disk)"
nbdelta create -b disk.qcow2 -F qcow2 backup/inc.qcow2
qmp drive-backup device=disk sync=incremental bitmap=b0 format=qcow2 \
    mode=existing target="$PWD/backup/inc.qcow2" --wait >/dev/null
kill "$server"
wait "$server" || fail "the server ended with $?"
server=
qemu-img compare -q -f raw -F qcow2 "$raw" backup/inc.qcow2
[ "$(qemu-img map --output=json backup/inc.qcow2 |
    jq -c '[.[] | select(.depth == 0) | .length]')" = '[65536]' ]
