#!/bin/bash
# External data files: created, written and resized by us or by QEMU, read and
# checked by the other; a raw one equals the disk at any time; blockdev-reopen
# and backup know them.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io nbdinfo nbdcopy jq

RANDOM=${SEED:-11}
size=$((5 * 1024 * 1024 + 512))

# Commands for qemu-io that write, zero and trim at random.
random_commands() {
    local i at len
    for ((i = 0; i < 20; i++)); do
        at=$(((RANDOM * 32768 + RANDOM) % (size / 512) * 512))
        len=$(((RANDOM % 600 + 1) * 512))
        [ $((at + len)) -le "$size" ] || len=$((size - at))
        case $((RANDOM % 5)) in
        0) echo "write -q -z $at $len" ;;
        1) echo "write -q -z -u $at $len" ;;
        *) echo "write -q -P $((RANDOM % 255 + 1)) $at $len" ;;
        esac
    done
}

create_by() {
    case $1 in
    us) nbdelta create -o "$options" disk.qcow2 "$size" ;;
    qemu) qemu-img create -q -f qcow2 -o "$options" disk.qcow2 "$size" ;;
    esac
}

write_by() {
    random_commands >commands
    case $1 in
    us)
        serve disk=disk.qcow2
        qemu-io -f raw "$uri" <commands >/dev/null
        [ "$raw" = off ] || qemu-img compare -q -f raw -F raw "$uri" disk.data
        stop_server
        ;;
    qemu) qemu-io -d unmap -f qcow2 disk.qcow2 <commands >/dev/null ;;
    esac
    qemu-io -f raw model.raw <commands >/dev/null
}

# Both read what was written, and so it is in the data file if that is raw.
verify() {
    qemu-img check -q disk.qcow2 || fail "$what: qemu-img check"
    qemu-img compare -q -f qcow2 -F raw disk.qcow2 model.raw ||
        fail "$what: QEMU reads something else"
    serve -r disk=disk.qcow2
    nbdcopy "$uri" ours.raw
    stop_server
    cmp ours.raw model.raw || fail "$what: we read something else"
    [ "$raw" = off ] || cmp disk.data model.raw ||
        fail "$what: the data file is not raw"
}

for cluster in 512 64k 2M; do
    for raw in off on; do
        options=cluster_size=$cluster,data_file=disk.data,data_file_raw=$raw
        for who in 'us us' 'us qemu us' 'qemu us qemu us'; do
            what="$options, by $who"
            read -r -a by <<<"$who"
            rm -f disk.qcow2 disk.data model.raw
            truncate -s "$size" model.raw
            create_by "${by[0]}"
            # QEMU makes data files longer, to whole clusters.
            for writer in "${by[@]:1}"; do
                write_by "$writer"
                truncate -s "$size" disk.data
                verify
            done
        done
    done
done

# --- What they tell of it. ---

same_info() {
    diff <(qemu-img info --output=json "$1" | jq -S '."format-specific"') \
        <(nbdelta info --output=json "$1" | jq -S '."format-specific"') ||
        fail "$1: info differs"
}
same_info disk.qcow2
mv disk.data away.data
same_info disk.qcow2 # without a look at the data
serve_refused "names the file 'disk.data', which cannot be opened: No such file" \
    -U "$sock" disk.qcow2
mv away.data disk.data
map=$(nbdelta map --output=json disk.qcow2)
[ "$(jq -c 'map(.start != .offset) | any' <<<"$map")" = false ] ||
    fail "clusters are not at their place: $map"

# Refused as in QEMU.
for options in data_file_raw=on compat=0.10,data_file=x.data \
    data_file=x.data,data_file_raw=on,backing_file=disk.data,backing_fmt=raw; do
    theirs=$(qemu-img create -q -f qcow2 -o "$options" x.qcow2 1M 2>&1) &&
        fail "qemu-img takes $options"
    ours=$(nbdelta create -o "$options" x.qcow2 1M 2>&1) &&
        fail "we take $options"
    [ "${theirs#*x.qcow2: }" = "${ours#*create: }" ] ||
        fail "$options: '$ours', not '$theirs'"
done
rm -f x.qcow2 x.data

# --- Sizes; a preallocated data file; allocation of a sparse one. ---

rm -f disk.qcow2 disk.data
nbdelta create -o data_file=disk.data,preallocation=falloc disk.qcow2 1M
[ $(($(stat -c '%b * %B' disk.data))) -ge 1048576 ]
qemu-img check -q disk.qcow2
rm disk.qcow2 disk.data
nbdelta create -o data_file=disk.data,data_file_raw=on disk.qcow2 8M
qemu-io -f raw -c 'write -q -P 3 1M 64k' disk.data
serve disk0=disk.qcow2
nbdinfo --map --json "$(uri_of disk0)" |
    jq -e 'map([.offset, .length, .type]) == [[0, 1048576, 3],
        [1048576, 65536, 0], [1114112, 7274496, 3]]' >/dev/null ||
    fail "holes of the data file are not seen"
qmp block_resize node-name=disk0 size=16777216 >/dev/null
qemu-io -f raw -c 'write -q -P 4 15M 64k' "$(uri_of disk0)"
stop_server
[ "$(stat -c %s disk.data)" = 16777216 ]
qemu-img compare -q -f qcow2 -F raw disk.qcow2 disk.data
qemu-img check -q disk.qcow2
qemu-img resize -q --shrink disk.qcow2 9M
truncate -s 9M disk.data
qemu-img compare -q -f qcow2 -F raw disk.qcow2 disk.data

# --- Nodes. ---

nodes=(
    --blockdev "file,node-name=data,filename=$PWD/disk.data"
    --blockdev "qcow2,node-name=disk,data-file=data,file.driver=file,file.filename=$PWD/disk.qcow2"
    --export 'nbd,id=exp,node-name=disk,name=disk,writable=on'
)
cp disk.data before.raw
nbdelta serve --chardev "socket,id=q,path=$qmp_sock,server=on,wait=off" \
    --monitor q --nbd-server "addr.type=unix,addr.path=$sock" \
    "${nodes[@]}" --pidfile "$pidfile" &
server=$!
wait_until "the server is ready" server_ready

reopen() {
    qmp blockdev-reopen "$(jq -cn --arg f "$PWD/disk.qcow2" '{options: [
        {driver: "qcow2", "node-name": "disk", "data-file": "data",
        file: {driver: "file", filename: $f}}'" $1]}")"
}
ro() {
    qmp query-named-block-nodes | jq -c 'map({(."node-name"): .ro}) | add |
        [.disk, .data]'
}

# A second writer to the data is refused.
if qmp block-export-add type=nbd id=e2 node-name=data name=e2 writable=true \
    2>err; then
    fail "two write to the data file"
fi
grep -q "uses node 'data' as 'data-file' child" err || fail "$(cat err)"
qmp blockdev-del node-name=data 2>err && fail "the data file is taken away"
grep -q 'Block device data is in use' err || fail "$(cat err)"

# A backup of the data node has the point in time, although a client writes
# through the image.
truncate -s 9M copy.raw
qmp blockdev-add driver=file node-name=copy filename="$PWD/copy.raw" >/dev/null
qmp blockdev-backup job-id=j device=data target=copy sync=full \
    speed=1048576 >/dev/null
qemu-io -f raw -c 'write -q -P 77 0 8M' -c 'write -q -z 8M 1M' \
    "$(uri_of disk)"
# It may be done: the writes have copied all.
qmp block-job-set-speed device=j speed=0 >/dev/null 2>&1 || true
no_job() {
    [ "$(qmp query-block-jobs)" = '[]' ]
}
wait_until "the backup is done" no_job
cmp copy.raw before.raw || fail "the backup saw later writes"
qemu-img compare -q -f raw -F raw -U "$(uri_of disk)" disk.data

# Flags of the image are not those of a data node with its own.
qmp block-export-del id=exp mode=hard >/dev/null
reopen '+ {"read-only": true}' >/dev/null
[ "$(ro)" = '[true,false]' ] || fail "$(ro)"
reopen '' >/dev/null
[ "$(ro)" = '[false,false]' ] || fail "$(ro)"
if reopen '+ {"data-file": "copy"}' 2>err; then
    fail "the data file was changed"
fi
grep -q "Cannot change the option 'data-file'" err || fail "$(cat err)"
kill "$server"
wait "$server" || fail "the server ended with $?"
server=

# --- blockdev-create: an image for a data file that is there, as iotest 244. ---

truncate -s 1M raw.data
qemu-io -f raw -c 'write -q -P 42 0 1M' raw.data
: >meta.qcow2
serve disk.qcow2
qmp blockdev-add driver=file node-name=raw filename="$PWD/raw.data" >/dev/null
format() {
    nbdelta qmp --wait "$qmp_sock" blockdev-create "{\"job-id\": \"c\",
        \"options\": {\"driver\": \"qcow2\", \"size\": 2097152, $1
        \"file\": {\"driver\": \"file\",
        \"filename\": \"$PWD/meta.qcow2\"}}}" >/dev/null 2>err || true
    qmp job-dismiss id=c >/dev/null
    cat err
}
format '"data-file-raw": true,' | grep -q 'data-file-raw requires data-file' ||
    fail "$(cat err)"
format '"data-file": "none",' | grep -q "Cannot find device='none'" ||
    fail "$(cat err)"
[ -z "$(format '"data-file": "raw", "data-file-raw": true,')" ] ||
    fail "$(cat err)"
stop_server
[ "$(stat -c %s raw.data)" = 2097152 ]
qemu-io -f raw -c 'read -q -P 42 0 1M' -c 'read -q -P 0 1M 1M' raw.data
qemu-img check -q meta.qcow2
qemu-img compare -q -f raw -F qcow2 raw.data meta.qcow2

# A data file that belongs to its image follows it.
serve "disk0=driver=qcow2,read-only=on,file.driver=file,file.filename=$PWD/disk.qcow2"
reopen_disk0() {
    qmp blockdev-reopen "$(jq -cn --arg f "$PWD/disk.qcow2" '{options: [
        {driver: "qcow2", "node-name": "disk0", "read-only": '"$1"',
        file: {driver: "file", filename: $f}}]}')" >/dev/null
}
locked() {
    ! nbdelta map -f raw disk.data >/dev/null 2>&1
}
! locked || fail "a data file is locked for reading only"
reopen_disk0 false
locked || fail "the data file of a writable image is not locked"
qmp block-export-del id=disk0 >/dev/null 2>&1 || true
reopen_disk0 true
! locked || fail "the lock stays"
stop_server
