#!/bin/bash
# The human monitor's `commit`: it writes an image into its backing file and
# empties it, while guests write; what it refuses, in QEMU's words; kill -9.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq
python -c 'import nbd' 2>/dev/null || skip "python has no libnbd"

# --- A base that is shorter, an image with everything in it. ---

qemu-img create -q -f qcow2 base.qcow2 3M
qemu-io -c 'write -q -P 1 0 3M' base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2 8M
qemu-io -c 'write -q -P 2 100k 64k' -c 'write -q -z 1M 64k' \
    -c 'write -q -c -P 3 2M 64k' -c 'write -q -P 4 7M 1M' disk.qcow2
qemu-img create -q -f qcow2 alone.qcow2 1M
qemu-img convert -O raw disk.qcow2 reference.raw
before=$(stat -c %b disk.qcow2)

human() {
    nbdelta serve --vm-compat --chardev stdio,id=c \
        --monitor chardev=c,mode=readline \
        --drive file=disk.qcow2,id=d,if=none \
        --drive file=alone.qcow2,id=a,if=none \
        --drive file=disk2.qcow2,id=r,if=none,read-only=on |
        tr -d '\r' | grep -v '^QEMU ' >out
}

qemu-img create -q -f qcow2 -b base2.qcow2 -F qcow2 -u disk2.qcow2 1M
qemu-img create -q -f qcow2 base2.qcow2 1M
printf '%s\n' 'commit none' 'commit a' 'commit r' 'commit d' 'commit' \
    quit | human
cat >expected <<'END'
(qemu) commit none
Device 'none' not found
(qemu) commit a
'commit' error for 'a': Operation not supported
(qemu) commit r
Block node is read-only
'commit' error for 'r': Operation not permitted
(qemu) commit d
(qemu) commit
unknown command: 'commit'
(qemu) quit
END
diff -u expected out || fail "not what QEMU says"
empty() {
    [ "$(qemu-img map --output json disk.qcow2 |
        jq '[.[] | select(.depth == 0 and .present)] | length')" = 0 ]
}
empty || fail "not empty: $(qemu-img map --output json disk.qcow2)"
[ "$(stat -c %b disk.qcow2)" -lt "$before" ] || fail "the file takes as much"
for image in base.qcow2 disk.qcow2; do
    qemu-img check -q $image
    qemu-img compare -q $image reference.raw || fail "$image differs"
done

# --- A snapshot keeps what it has, a bitmap its bits; `all`. ---

qemu-io -c 'write -q -P 5 0 256k' disk.qcow2
qemu-img snapshot -c s disk.qcow2
qemu-img bitmap --add disk.qcow2 b
qemu-io -c 'write -q -P 6 128k 256k' disk.qcow2
qemu-img convert -O raw disk.qcow2 reference.raw
rm -f disk2.qcow2
qemu-img create -q -f qcow2 -b base2.qcow2 -F qcow2 disk2.qcow2
printf '%s\n' 'commit all' quit | human
grep -qxF "'commit' error for 'all': Operation not permitted" out ||
    fail "$(cat out)"
empty || fail "not empty: $(qemu-img map --output json disk.qcow2)"
qemu-img check -q disk.qcow2
qemu-img compare -q base.qcow2 reference.raw || fail "base.qcow2 differs"
nbdelta bitmap list --output json disk.qcow2 >bitmaps
[ "$(jq -c '[.. | objects | select(has("name")) |
    [.name, .count // ."dirty-bytes"]]' bitmaps)" = '[["b",262144]]' ] ||
    fail "$(cat bitmaps)"
qemu-img convert -l snapshot.name=s -O raw disk.qcow2 s.raw
qemu-io -f raw -c 'read -q -P 5 0 256k' s.raw >said
[ ! -s said ] || fail "the snapshot: $(cat said)"

# --- While a job works on it. ---

nbdelta serve --qmp "$qmp_sock" --pidfile "$pidfile" \
    --blockdev driver=qcow2,node-name=d,file.driver=file,file.filename=disk.qcow2 &
server=$!
wait_until "the server is ready" server_ready
qmp block-commit device=d job-id=j >/dev/null
said=$(qmp human-monitor-command command-line='commit d')
case $said in
*"'commit' error for 'd': Device or resource busy"*) ;;
*) fail "of a disk with a job: $said" ;;
esac
stop_server

# --- While a guest writes; kill -9. ---

qemu-img create -q -f qcow2 under.qcow2 16M
qemu-img create -q -f qcow2 -b under.qcow2 -F qcow2 over.qcow2
python "$SRCDIR/tests/func/hmp-commit.py" "$nbdelta"
