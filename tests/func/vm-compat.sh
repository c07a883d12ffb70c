#!/bin/bash
# serve --vm-compat in the place of QEMU: drives and their names, and the human
# monitor's qemu-io command, which does and prints what the program qemu-io
# does.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

for disk in a b; do
    qemu-img create -q -f qcow2 "$disk.base" 4M
    qemu-io -f qcow2 -c 'write -P 9 1M 1M' "$disk.base" >/dev/null
    qemu-img create -q -f qcow2 -b "$disk.base" -F qcow2 "$disk.qcow2" 4M
done
qemu-img create -q -f qcow2 c.qcow2 4M
printf 'pattern' >pattern
mkfifo out.fifo
cat out.fifo >out &
reader=$!

serve --vm-compat \
    --drive "if=virtio,id=drive0,file=a.qcow2,format=qcow2,cache=writeback,aio=threads,discard=unmap,node-name=node0" \
    --drive "if=none,id=drive1,file=blkdebug::c.qcow2,format=qcow2" \
    --device "virtio-blk,id=disk0,drive=drive0" >out.fifo

hmp() {
    qmp human-monitor-command "command-line=$1"
}

io() {
    [ "$(hmp "qemu-io drive0 \"$1\"")" = '""' ] || fail "$1: not answered"
}

# --- The same commands, by qemu-io and by the monitor ---

cat >commands <<'COMMANDS'
write -P 5 0 128k
write -z 64k 64k
write -s pattern 3M 1k
writev -P 6 2M 512 512 1k
aio_write -P 7 2560k 64k
aio_flush
read -P 5 0 64k
read -P 6 0 64k
read -P 5 -s 512 -l 512 0 1k
read -q -v 0 16
read -v 3M 40
readv -P 6 2M 1k 1k
aio_read -P 7 2560k 64k
aio_flush
read -P 9 1M 1M
read 0
read 4M 512
write 4095k 2k
write -P 300 0 512
write -u 0 512
write -z -P 1 0 512
write 0 2G
read -P 1 -l 1k 0 512
read x 1
discard 0 64k
discard 4M 64k
read -P 0 0 64k
flush
length
alloc 0 4M
alloc 2560k
map
truncate 5M
length
write -P 8 4M 1M
nonsense 1 2
COMMANDS
args=()
while read -r command; do
    args+=(-c "$command")
    io "$command"
done <commands

# By node and by device, too.
[ "$(hmp 'qemu-io node0 "write -qP 4 512k 64k"')" = '""' ] || fail node
[ "$(hmp 'qemu-io -d disk0 "write -qP 3 576k 64k"')" = '""' ] || fail qdev
args+=(-c 'write -qP 4 512k 64k' -c 'write -qP 3 576k 64k')

# A request that is held up holds up neither its own monitor, when it has been
# started with aio_, nor any other.
io1() {
    [ "$(timeout 30 nbdelta qmp "$qmp_sock" human-monitor-command \
        "command-line=qemu-io drive1 \"$1\"")" = '""' ] ||
        fail "$1: not answered"
}
io1 'break write_aio A'
io1 'aio_write -qP 1 0 64k'
io1 'wait_break A'
io1 'length'
timeout 30 nbdelta qmp "$qmp_sock" query-block >/dev/null ||
    fail "query-block waits for a request"
io1 'resume A' # prints an error if it has gone on already
io1 'aio_flush'
io1 'break write_aio B'
io1 'write -qP 2 1M 64k' &
writer=$!
io1 'wait_break B'
timeout 30 nbdelta qmp "$qmp_sock" query-block >/dev/null ||
    fail "query-block waits for a write"
io1 'resume B'
wait "$writer"
io1 'resume B' # by now there is none
# Commands of several monitors at once: options are not mixed up.
for i in 1 2 3 4; do
    for ((n = 0; n < 20; n++)); do
        io1 "write -q -P $((i + 10)) $((i + 1))28k 4k"
    done &
    clients[i]=$!
done
wait "${clients[@]}"

# --- Drives come and go ---

qemu-img create -q -f qcow2 d.qcow2 1M
[ "$(hmp 'drive_add 0 if=none,id=drive2,file=d.qcow2,format=qcow2')" = \
    '"OK\r\n"' ] || fail drive_add
case $(hmp 'drive_add 0 if=none,id=drive2,file=d.qcow2') in
*"Duplicate ID 'drive2'"*) ;;
*) fail "a second drive of the name" ;;
esac
[ "$(hmp 'qemu-io drive2 "write -q -P 1 0 1k"')" = '""' ] || fail drive2
# Not while others use its node, and it is still there then.
node=$(qmp query-block | jq -r '.[] | select(.device == "drive2") |
       .inserted."node-name"')
qmp block-export-add type=nbd id=e "node-name=$node" >/dev/null
case $(hmp 'drive_del drive2') in
*Error:*) ;;
*) fail "drive_del of a disk in use" ;;
esac
[ "$(hmp 'qemu-io drive2 "read -q -P 1 0 1k"')" = '""' ] || fail still
qmp block-export-del id=e >/dev/null
[ "$(hmp 'drive_del drive2')" = '""' ] || fail drive_del
qemu-io -f qcow2 -c 'read -P 1 0 1k' d.qcow2 >d.out ||
    fail "drive_del has not closed the image: $(cat d.out)"
case $(hmp 'drive_del drive2') in
*"Device 'drive2' not found"*) ;;
*) fail "a drive that is gone" ;;
esac

case $(hmp 'qemu-io nobody "flush"') in
*"Cannot find device='' nor node-name='nobody'"*) ;;
*) fail "an unknown disk" ;;
esac
case $(hmp 'frobnicate 1') in
*"unknown command: 'frobnicate'"*) ;;
*) fail "an unknown command" ;;
esac

qmp query-block >block.json
jq -e '.[] | select(.device == "drive0") |
       .qdev == "disk0" and .inserted."node-name" == "node0"' block.json \
    >/dev/null || fail "query-block: $(cat block.json)"

# A medium that is taken out: its export ends, its image is free, the drive
# stays.
qmp nbd-server-add device=drive1 name=c >/dev/null
qmp query-block-exports | jq -e 'any(.id == "c")' >/dev/null
qmp eject device=drive1 >/dev/null
qmp query-block-exports | jq -e 'all(.id != "c")' >/dev/null ||
    fail "the export of an ejected disk"
qmp query-block | jq -e '.[] | select(.device == "drive1") |
    has("inserted") | not' >/dev/null || fail "it is still there"
qemu-io -f qcow2 -c 'flush' c.qcow2 || fail "the image is still locked"
if qmp eject device=nobody 2>err; then
    fail "a drive that does not exist"
fi
grep -q "DeviceNotFound: Device 'nobody' not found" err || fail "$(cat err)"

# A device is a name for a drive or a node; it takes its drive with it, whose
# job is cancelled, but not a node.
qmp blockdev-add driver=null-co node-name=n0 size=1M >/dev/null
qmp device_add driver=scsi-hd id=bare drive=n0 >/dev/null
qmp query-block | jq -e 'any(.[]; .qdev == "bare" and .device == "" and
    .inserted."node-name" == "n0")' >/dev/null || fail "bare: no such device"
# Its disk can become another one, and the old one is free then.
qmp blockdev-add driver=null-co node-name=n1 size=2M >/dev/null
qom_set() {
    qmp qom-set "path=/machine/peripheral/$1" "property=$2" "value=$3"
}
qom_set bare drive n1 >/dev/null
qmp query-block | jq -e 'any(.[]; .qdev == "bare" and
    .inserted."node-name" == "n1")' >/dev/null || fail "bare: not on n1"
qmp blockdev-del node-name=n0 >/dev/null
qmp blockdev-add driver=null-co node-name=n0 size=1M >/dev/null
if qom_set bare drive n2 2>err || qom_set bare color red 2>>err ||
    qom_set nobody drive n0 2>>err; then
    fail "qom-set of what there is not"
fi
diff - err <<'END' || fail "qom-set"
nbdelta: qmp: GenericError: Property 'bare.drive' can't find value 'n2'
nbdelta: qmp: GenericError: Property 'bare.color' not found
nbdelta: qmp: DeviceNotFound: Device 'nobody' not found
END
qom_set bare drive n0 >/dev/null
qmp blockdev-del node-name=n1 >/dev/null
if qmp blockdev-del node-name=n0 2>/dev/null; then
    fail "a node that a device is on"
fi
if qmp device_add driver=scsi-hd id=bare drive=n0 2>err; then
    fail "the same device twice"
fi
grep -q "GenericError: Duplicate device ID 'bare'" err || fail "$(cat err)"
qmp device_del id=bare >/dev/null
qmp blockdev-del node-name=n0 >/dev/null
if qmp device_del id=bare 2>err; then
    fail "a device that does not exist"
fi
grep -q "DeviceNotFound: Device 'bare' not found" err || fail "$(cat err)"

qemu-img create -q -f qcow2 e.qcow2 4M
[ "$(hmp 'drive_add 0 if=none,id=drive3,file=e.qcow2,format=qcow2')" != "" ]
qmp device_add driver=scsi-hd id=plugged drive=drive3 >/dev/null
qmp drive-backup device=drive3 target=f.qcow2 sync=none >/dev/null
qmp device_del id=plugged >/dev/null
is_gone() {
    [ "$(qmp query-jobs)" = '[]' ] && qemu-io -f qcow2 -c flush e.qcow2 \
        2>/dev/null
}
wait_until "the job and the disk are gone" is_gone
qmp query-block | jq -e 'all(.[]; .device != "drive3")' >/dev/null ||
    fail "the drive of a device that is gone"

# A job that is only asked to end, since it is ready, does not hold that up.
qemu-img create -q -f qcow2 g.qcow2 4M
[ "$(hmp 'drive_add 0 if=none,id=drive4,file=g.qcow2,format=qcow2')" != "" ]
qmp device_add driver=scsi-hd id=ready drive=drive4 >/dev/null
qmp blockdev-snapshot-sync device=drive4 snapshot-file="$PWD/h.qcow2" >/dev/null
qmp block-commit device=drive4 job-id=c4 >/dev/null
is_ready() {
    [ "$(qmp query-jobs | jq -r '.[0].status')" = ready ]
}
wait_until "the commit is ready" is_ready
timeout 60 nbdelta qmp "$qmp_sock" device_del id=ready >/dev/null ||
    fail "device_del of a disk whose commit is ready"
no_jobs() {
    [ "$(qmp query-jobs)" = '[]' ]
}
wait_until "the commit has ended" no_jobs

stop_server
wait "$reader"

qemu-io -f qcow2 -r c.qcow2 -c 'read -P 1 0 64k' -c 'read -P 2 1M 64k' \
    -c 'read -P 11 228k 4k' -c 'read -P 12 328k 4k' -c 'read -P 13 428k 4k' \
    -c 'read -P 14 528k 4k' >c.out
! grep -q 'verification failed' c.out || fail "c.qcow2: $(cat c.out)"

# Times differ, also in how many digits they have.
same() {
    sed -E 's/^([^,]*), 1 ops; .*/\1, 1 ops/; s/^qemu-io: //' "$1"
}
stdbuf -oL qemu-io -f qcow2 "${args[@]}" b.qcow2 >expected 2>&1 || true
{
    same expected
    printf '%s\n' '4 MiB' \
        'Could not resume request: No such file or directory'
} >expected.same
# What QEMU says when a snapshot makes an image.
grep '^Formatting' out >formatting
image="fmt=qcow2 cluster_size=65536 extended_l2=off compression_type=zlib"
image+=" size=4194304 backing_file=e.qcow2 backing_fmt=qcow2"
image+=" lazy_refcounts=off refcount_bits=16"
[ "$(head -n 1 formatting)" = "Formatting 'f.qcow2', $image" ] ||
    fail "$(cat formatting)"
[ "$(wc -l <formatting)" = 2 ] || fail "$(cat formatting)"
sed -i '/^Formatting/d' out
same out >out.same
diff -u expected.same out.same || fail "not what qemu-io prints"
qemu-img compare -q a.qcow2 b.qcow2 || fail "not what qemu-io writes"
qemu-img check -q a.qcow2 || fail "the image is damaged"
