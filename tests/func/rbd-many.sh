#!/bin/bash
# One run of `nbdelta backup` for many images of Ceph: what has changed in a few
# of them; killed in its middle, and again.  Each image has one snapshot after
# it, and none after --forget.  Threads do not become more with the images, and
# descriptors are two for each and some.  RBD_IMAGES=N: so many.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
# shellcheck source=tests/func/ceph.bash
. "$SRCDIR/tests/func/ceph.bash"
need jq qemu-img
need_ceph
python -c "import rados, rbd" 2>out || skip "python3-rbd is not there"
images=${RBD_IMAGES:-24}
many() { python "$SRCDIR/tests/func/rbd_many.py" "$images" "$@"; }

many make
all=()
for ((i = 0; i < images; i++)); do
    all+=("rbd:rbd/i$i:conf=$CEPH_CONF")
done

# What the process has: while it copies, and when all is open.
cat >look <<'E2'
#!/bin/sh
if [ "$1" = frozen ]; then
    grep Threads "/proc/$PPID/status" >look.threads
    ls "/proc/$PPID/fd" >look.fds
fi
E2
chmod +x look

# backup KIND READ ARG...: all are of this kind, and READ of them were read.
backup() {
    local kind=$1 read=$2
    shift 2
    nbdelta backup --output=json "$@" "${all[@]}" dir >report 2>said ||
        fail "backup: $(cat said)"
    [ ! -s said ] || fail "backup says $(cat said)"
    jq -e --arg kind "$kind" --argjson read "$read" --argjson n "$images" '
        (.disks | length == $n) and all(.disks[]; .kind == $kind) and
        ([.disks[] | select(.read > 0)] | length == $read)' report >out ||
        fail "not $kind, $read: $(jq -c '.disks[] | [.name, .kind, .read]' report)"
    many snapshots "nbdelta.checkpoint.nbdelta-$(jq -r .id dir/nbdelta.json)-$(point)"
    many compare "$(point)"
}
point() { find dir -name '*Z.json' -printf '%f\n' | sort | tail -n 1 | cut -d. -f1; }

backup full "$images" --hook=./look
threads=$(tr -dc 0-9 <look.threads)
fds=$(wc -l <look.fds)
[ "$threads" -le 64 ] || fail "$threads threads"
[ "$fds" -le $((2 * images + 64)) ] || fail "$fds descriptors"
jq -e '.source | length < 4200' "dir/$(point).json" >out

many change 1
backup increment $(((images + 6) / 7))
backup increment 0

# Killed while it copies; the next run goes on with that.
many change 2
killed=$(point)
nbdelta backup --rate=4k "${all[@]}" dir >out 2>&1 &
run=$!
begun() { [ -e dir/resume.json ] && compgen -G 'dir/i0/*.part' >out; }
wait_until "a copy has begun" begun
kill -KILL "$run"
wait "$run" 2>/dev/null || :
[ "$(point)" = "$killed" ]
many forget-dead
backup increment $(((images + 6) / 7))

nbdelta verify dir >out 2>&1 || fail "verify: $(cat out)"
nbdelta backup --forget "${all[@]}" dir >out 2>&1 || fail "--forget: $(cat out)"
many snapshots ''
