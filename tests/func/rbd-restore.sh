#!/bin/bash
# `nbdelta restore` to images of Ceph, on a real cluster: new ones and ones that
# are there, raw and qcow2; what is refused; a restore that ends in its middle,
# in order and by kill -9, and two at once.  And the other commands with names
# of such images.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
# shellcheck source=tests/func/ceph.bash
. "$SRCDIR/tests/func/ceph.bash"
need jq qemu-img qemu-io
need_ceph

make_point=$BUILD/tests/func/make-point
t1=20261127T023000Z t2=20261128T023000Z

# restore STATUS TEXT ARG...: it ends so, and says TEXT (or nothing).
restore() {
    local status=$1 text=$2 out rc=0
    shift 2
    out=$(nbdelta restore "$@" 2>&1) || rc=$?
    [ "$rc" = "$status" ] || fail "restore $*: exit $rc, not $status: $out"
    if [ "$text" ]; then
        [[ $out == *"$text"* ]] || fail "restore $*: says '$out'"
    else
        [ -z "$out" ] || fail "restore $*: says '$out'"
    fi
}

# is IMAGE FILE: QEMU finds the same in it.
is() {
    qemu-img compare -q -f raw -F raw "$(rbd_of "$1")" "$2" ||
        fail "$1 is not $2"
}
no_image() { ! rbd info "$1" >out 2>&1 || fail "there is an image $1"; }

truncate -s $((40 * 1024 * 1024 + 512)) one.raw
mkimg part.raw 6M 1
dd if=part.raw of=one.raw bs=1M seek=2 conv=notrunc status=none
cp one.raw two.raw
printf 'two' | dd of=two.raw bs=1 seek=5000000 conv=notrunc status=none
dd if=/dev/urandom of=two.raw bs=64k seek=517 count=3 conv=notrunc status=none
"$make_point" dir $t1 one.raw
"$make_point" dir $t2 two.raw one.raw

# --- New images: as large as the disk, and no larger than its data ---
restore 0 '' dir "vda=$(rbd_of new)"
is new two.raw
rbd info --format json new | jq -e '.size == 41943552' >out ||
    fail "its size: $(rbd info new)"
# Objects of 4 MiB: two parts of the disk have data.
rbd diff --format json new | jq -e 'map(.offset) | max <= 37748736 and
    length <= 4' >out || fail "not sparse: $(rbd diff new)"
restore 0 '' -f qcow2 dir@$t1 "vda=$(rbd_of q)"
qemu-img compare -q -f qcow2 -F raw "$(rbd_of q)" one.raw ||
    fail "the qcow2 image in rbd is not one.raw"
qemu-img check -q -f qcow2 "$(rbd_of q)"

# --- Images that are there ---
restore 1 'is not empty' dir@$t1 "vda=$(rbd_of new)"
is new two.raw
restore 0 '' --force dir@$t1 "vda=$(rbd_of new)"
is new one.raw
rbd create --size 41943552B empty
restore 0 '' dir "vda=$(rbd_of empty)"
is empty two.raw
rbd create --size 64M large
restore 1 "has 67108864 bytes, and the disk 41943552" --force dir \
    "vda=$(rbd_of large)"
restore 6 "error opening pool nopool" dir "vda=rbd:nopool/x:conf=$CEPH_CONF"
rbd snap create --no-progress new@s 2>out
restore 1 "read-only" --force dir "vda=$(rbd_of new@s)"
restore 2 "two disks" dir "vda=$(rbd_of x)" "vda=$(rbd_of x)"
no_image x

# --- In use ---
start_user() { # IMAGE: a client that has it open for writing
    mkfifo "$1.in"
    qemu-io -f raw "$(rbd_of "$1")" <"$1.in" >user.out 2>&1 &
    user=$!
    exec 5>"$1.in"
}
watched() {
    rbd status --format json "$1" >status.out 2>&1 &&
        jq -e '.watchers | length > 0' status.out >out
}
start_user new
wait_until "a client has the image open" watched new
restore 5 "it is in use: a client at" --force dir "vda=$(rbd_of new)"
exec 5>&-
wait "$user" || fail "the other client: $(cat user.out)"
is new one.raw

# --- Ends in the middle ---
# Damage: the image that was made goes, and with --partial it stays.
cp -a dir bad
printf 'x' | dd of=bad/vda/$t2.qcow2 bs=1 conv=notrunc status=none \
    seek=$(($(qemu-img map -f qcow2 --output=json bad/vda/$t2.qcow2 |
        jq 'map(select(.depth == 0 and .data)) | .[-1].offset') + 100))
restore 4 'is damaged from' bad "vda=$(rbd_of damaged)"
no_image damaged
restore 4 'was overwritten in part' --force bad "vda=$(rbd_of new)"
restore 4 "vda 33554432 1048576 $t2:" --partial bad "vda=$(rbd_of partial)"
dd if=two.raw of=expected.raw bs=1M status=none
dd if=/dev/zero of=expected.raw bs=1M seek=32 count=1 conv=notrunc status=none
is partial expected.raw
# kill -9: what it has made is told by its size alone.  The next restore needs
# --force, and waits for the cluster to forget the dead client.
ceph tell osd.0 config set osd_client_watch_timeout 10 >out # not 30 s
truncate -s 256M big.raw
dd if=/dev/urandom of=big.raw bs=1M count=96 conv=notrunc status=none
"$make_point" bigdir $t1 big.raw
start_restore() { # IMAGE
    nbdelta restore --progress=json bigdir "vda=$(rbd_of "$1")" \
        >"$1.out" 2>&1 &
    restoring=$!
    wait_until "the restore to $1 has begun" watched "$1"
}
start_restore killed
kill -KILL "$restoring"
wait "$restoring" 2>/dev/null || :
rbd info --format json killed | jq -e '.size == 268435456' >out
# A signal: nothing stays.
start_restore stopped
kill -TERM "$restoring"
rc=0
wait "$restoring" || rc=$?
case $rc in
0) is stopped big.raw ;; # it was faster
*) no_image stopped ;;
esac

# --- Two at once ---
# To one image: one of them at most restores, and what it says is true.
for i in 1 2; do
    nbdelta restore dir "vda=$(rbd_of both)" >both$i.out 2>&1 &
    pids[i]=$!
done
rc1=0 rc2=0
wait "${pids[1]}" || rc1=$?
wait "${pids[2]}" || rc2=$?
case $rc1,$rc2 in
0,0) fail "two restores to one new image" ;;
0,* | *,0) is both two.raw ;;
*) cat both1.out both2.out >both.out
    grep -q -e 'in use' -e 'File exists' -e 'not empty' both.out ||
        fail "neither: $(cat both.out)" ;;
esac
# To two images.
nbdelta restore dir "vda=$(rbd_of left)" >left.out 2>&1 &
left=$!
nbdelta restore dir@$t1 "vda=$(rbd_of right)" >right.out 2>&1 || fail "right"
wait "$left" || fail "left: $(cat left.out)"
is left two.raw
is right one.raw

# --- The other commands ---
rbd snap create --no-progress empty@s 2>out
nbdelta compare -f raw -F raw two.raw "$(rbd_of empty)" >out
nbdelta compare -f raw -F raw two.raw "$(rbd_of empty@s)" >out
nbdelta compare -f raw -F raw dir@$t2/vda "$(rbd_of empty@s)" >out 2>&1 ||
    nbdelta compare -f qcow2 -F raw dir/vda/$t2.qcow2 "$(rbd_of empty@s)" >out
nbdelta info -f raw --output json "$(rbd_of empty)" |
    jq -e '."virtual-size" == 41943552 and .format == "raw"' >out
nbdelta map -f raw --output json "$(rbd_of empty)" |
    jq -e 'map(select(.data)) | length > 0' >out
nbdelta check "$(rbd_of q)" >out
nbdelta measure -f raw -O qcow2 --output json "$(rbd_of empty)" |
    jq -e '.required > 0' >out
nbdelta resize -f raw "$(rbd_of large)" 80M >out
rbd info --format json large | jq -e '.size == 83886080' >out
nbdelta snapshot -c before "$(rbd_of q)"
nbdelta snapshot -l "$(rbd_of q)" >out
grep -q before out || fail "snapshots of qcow2 in rbd: $(cat out)"

# --- The dead client is forgotten ---
watch_gone() { ! watched killed; }
wait_until "the cluster has forgotten the client that was killed" watch_gone
restore 1 'is not empty' bigdir "vda=$(rbd_of killed)"
restore 0 '' --force bigdir "vda=$(rbd_of killed)"
is killed big.raw
