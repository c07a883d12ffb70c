#!/bin/bash
# `nbdelta backup` of images of Ceph, with nobody's help: points are what the
# snapshots have, increments are diffs of two snapshots, also of images in use.
# In all the ways in which that can fail; and killed at each step, after which
# the next run works, and no snapshot is left that nobody needs.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
# shellcheck source=tests/func/ceph.bash
. "$SRCDIR/tests/func/ceph.bash"
need jq qemu-img qemu-io
need_ceph

of() { printf 'rbd:%s:conf=%s' "$1" "$CEPH_CONF"; } # POOL/IMAGE
io() {                                              # POOL/IMAGE COMMAND...
    local image=$1 c words=()
    shift
    for c in "$@"; do words+=(-c "$c"); done
    qemu-io -f raw "$(of "$image")" "${words[@]}" >io.out 2>&1 ||
        fail "qemu-io $image: $(cat io.out)"
    ! grep -q -e failed -e error io.out || fail "qemu-io: $(cat io.out)"
}

# backup STATUS TEXT ARG...: it ends so, and says TEXT (or nothing).  The report
# is in `report`.
backup() {
    local status=$1 text=$2 rc=0
    shift 2
    nbdelta backup --output=json "$@" >report 2>said || rc=$?
    [ "$rc" = "$status" ] || fail "backup $*: exit $rc, not $status: $(cat said)"
    if [ "$text" ]; then
        grep -qF -e "$text" said || fail "backup $*: says '$(cat said)'"
    else
        [ ! -s said ] || fail "backup $*: says '$(cat said)'"
    fi
}
all=()
backup_all() { backup "$1" "$2" "${@:3}" "${all[@]}" dir; }
told() { # DISK FILTER: what the report says of the disk
    jq -e --arg d "$1" ".disks[] | select(.name == \$d) | $2" report >out ||
        fail "$1: not $2: $(cat report)"
}

latest() { find "$1" -name '*Z.json' -printf '%f\n' | sort | tail -n 1 | cut -d. -f1; }
checkpoint() { printf 'nbdelta.checkpoint.nbdelta-%s-%s' "$(jq -r .id "$1/nbdelta.json")" "$(latest "$1")"; }
snapshots() { rbd snap ls --format json "$1" | jq -r '.[].name'; }
# snapshots_are POOL/IMAGE NAME...
snapshots_are() {
    local image=$1
    shift
    printf '%s\n' "$@" | sed '/^$/d' | sort >want
    snapshots "$image" | sort >is
    diff want is >out || fail "$image: snapshots are not the wanted ones: $(cat out)"
}
# Are the latest points of DIR what the snapshots have, and the snapshots no
# more than they have to be?  DIR DISK=POOL/IMAGE...
right() {
    local dir=$1 pair image disk name
    shift
    name=$(checkpoint "$dir")
    for pair in "$@"; do
        disk=${pair%%=*} image=${pair#*=}
        snapshots_are "$image" "$name"
        qemu-img compare -q -f qcow2 -F raw \
            "$dir/$disk/${name##*-}.qcow2" "$(of "$image@$name")" ||
            fail "$disk of $(latest "$dir") is not what the snapshot has"
    done
    [ -z "$(find "$dir" -name '*.part' -o -name '*.pending' -o -name resume.json)" ] ||
        fail "left: $(ls -R "$dir")"
}
all_right() { right dir a=rbd/a x=rbd/b c=two/c; }
is_export() { # DISK POOL/IMAGE: the same, as Ceph's own program reads it
    rm -f export.raw
    rbd export --no-progress "$2@$(checkpoint dir)" export.raw
    qemu-img compare -q -f qcow2 -F raw "dir/$1/$(latest dir).qcow2" \
        export.raw || fail "$1 of $(latest dir) is not what rbd exports"
}

# A client that was killed holds an image for half a minute, or until it is put
# on the blocklist.
forget_dead() {
    local image addr
    for image in "$@"; do
        rbd status --format json "$image" | jq -r '.watchers[].address'
    done | sort -u >dead
    while read -r addr; do
        ceph osd blocklist add "$addr" 3600 >out 2>&1
    done <dead
}
watched() {
    rbd status --format json "$1" >status.out 2>&1 &&
        jq -e '.watchers | length > 0' status.out >out
}

# --- One that was killed, and nobody tells the cluster ---
# It holds the image for 12 s (by default 30).  Snapshots wait 10 s at most, so
# the first one comes too late.  The end of this test looks what becomes of it.
ceph tell osd.0 config set osd_client_watch_timeout 12 >out
cat >kill-hook <<'E2'
#!/bin/sh
[ "$1" != "$KILL" ] || kill -KILL "$(cat run.pid)"
E2
chmod +x kill-hook
killed_backup() { # WHEN ARG...: by that hook
    local rc=0
    export KILL=$1
    shift
    # shellcheck disable=SC2016
    bash -c 'echo $$ >run.pid; exec "$0" backup --hook=./kill-hook "$@"' \
        "$nbdelta" "$@" >out 2>&1 || rc=$?
    [ "$rc" = 137 ] || fail "a run that is to be killed: $rc, $(cat out)"
}
rbd create --size 4M late
io rbd/late 'write -P 9 1M 1M'
killed_backup before "$(of rbd/late)" late.dir
nbdelta backup "$(of rbd/late)" late.dir >late.out 2>&1 &
late=$!
at_exit eval "kill -KILL $late 2>/dev/null || :"

# --- All of it, then what has changed ---
ceph osd pool create two 8 8 >out 2>&1
rbd pool init two
rbd create --size 40M a
rbd create --size 20M b
rbd create --size 9M two/c
io rbd/a 'write -P 1 1M 3M' 'write -P 2 20M 64k'
io two/c 'write -P 3 0 9M'
all=("$(of rbd/a)" "x=$(of rbd/b)" "$(of two/c)")
key=$(ceph-authtool -p -n client.admin "$cluster/keyring")
backup 0 '' "$(of rbd/a):id=admin:key=${key//=/\\=}" "${all[@]:1}" dir
all_right
is_export a rbd/a
is_export c two/c
told a '.kind == "full" and .reason == "new-disk"'
! grep -rqF "$key" dir || fail "the key is in the directory"
jq -e '.source | startswith("rbd:rbd/a") and endswith("ceph.conf")' \
    "dir/$(latest dir).json" >out || fail "$(cat dir/*.json)"

io rbd/a 'write -P 5 2M 100k' 'write -P 2 30M 64k' 'discard 20M 64k'
backup_all 0 ''
all_right
is_export a rbd/a
told a '.kind == "increment" and .read <= 8388608 and .written <= 262144'
told x '.kind == "increment" and .read == 0'
told c '.kind == "increment" and .read == 0'
backup_all 0 ''
all_right
told a '.kind == "increment" and .read == 0'
nbdelta backup --dry-run --output=json "${all[@]}" dir >report
all_right

# The bytes of the disk are not looked at: a header there is none of the image's.
nbdelta create -f qcow2 header.qcow2 1G
rbd import --no-progress header.qcow2 header
backup 0 '' "$(of rbd/header)" header.dir
right header.dir header=rbd/header
told header '.size < 10000000'

# Another directory has snapshots of its own.
backup 0 '' "$(of rbd/header)" other.dir
snapshots_are rbd/header "$(checkpoint header.dir)" "$(checkpoint other.dir)"
backup 0 '' --forget "$(of rbd/header)" other.dir
right header.dir header=rbd/header

# Two disks have changed their names: their bytes are told apart.
io rbd/b 'write -P 12 1M 64k'
backup 3 'was copied as a whole' "${all[0]}" "c=$(of rbd/b)" "x=$(of two/c)" dir
right dir a=rbd/a c=rbd/b x=two/c
told a '.kind == "increment"'
told c '.kind != "increment"'
backup_all 3 'was copied as a whole'
all_right

# --- In use ---
mkfifo user.in
: >user.out
stdbuf -oL qemu-io -f raw "$(of rbd/a)" <user.in >user.out 2>&1 &
user=$!
exec 5>user.in
say() { # COMMAND: and wait until it is done
    local before
    before=$(grep -c 'wrote' user.out) || :
    echo "$1" >&5
    wrote() { [ "$(grep -c 'wrote' user.out)" -gt "$before" ]; }
    wait_until "$1" wrote
}
say 'write -P 6 5M 1M'
backup_all 0 ''
all_right
told a '.kind == "increment" and .written == 1048576'
say 'write -P 7 5M 64k'
all_right
backup_all 0 ''
all_right
told a '.kind == "increment" and .written == 65536'
exec 5>&-
wait "$user" || fail "the other client: $(cat user.out)"
! grep -q -e failed -e error user.out || fail "the other client: $(cat user.out)"

# --- Another size; an object map that nobody can trust ---
rbd resize --no-progress --size 44M a
io rbd/a 'write -P 8 41M 64k'
backup_all 3 "disk 'a' was copied as a whole: resized"
all_right
rbd feature disable a fast-diff object-map
rbd feature enable a object-map fast-diff
io rbd/a 'write -P 9 10M 64k'
backup_all 0 "disk 'a': an object map is marked as invalid"
all_right
told a '.kind == "increment" and .written == 65536'
for image in a "a@$(checkpoint dir)"; do
    rbd object-map rebuild --no-progress "$image"
done

# --- Snapshots that are gone, and one that cannot go ---
io rbd/a 'write -P 10 10M 64k'
rbd snap rm --no-progress "a@$(checkpoint dir)"
backup_all 0 ''
all_right
told a '.kind == "compared" and .reason == "no-checkpoint" and
    .written <= 1048576'
told c '.kind == "increment"'
before=$(checkpoint dir)
io rbd/b 'write -P 11 0 2M'
part_is_there() { compgen -G "dir/$1/*.qcow2.part" >out; }
nbdelta backup --rate=1M "${all[@]}" dir >said 2>&1 &
run=$!
wait_until "a copy has begun" part_is_there x
# Nothing of that one is read: what is looked at in the end has to tell.
new=$(snapshots rbd/a | tail -n 1)
[ "$new" != "$before" ]
rbd snap rm --no-progress "a@$new"
rc=0
wait "$run" || rc=$?
[ "$rc" = 1 ] || fail "its snapshot was removed: $rc, $(cat said)"
grep -q "somebody has removed the snapshot '$new' of disk 'a'" said || fail "it says $(cat said)"
[ "$(checkpoint dir)" = "$before" ] || fail "a point of it is there"
all_right
cat >rm-hook <<'E2'
#!/bin/sh
[ "$1" != frozen ] || rbd snap rm --no-progress "b@$OLD"
E2
chmod +x rm-hook
io rbd/b 'write -P 11 1M 64k'
OLD=$before backup_all 1 "the snapshot '$before'" --hook=./rm-hook
backup_all 0 ''
all_right
told x '.kind == "compared" and .written == 2097152'
before=$(checkpoint dir)
io rbd/b 'write -P 11 0 64k'
rbd snap protect "b@$(checkpoint dir)"
backup_all 0 "of disk 'x' stays"
snapshots_are rbd/b "$before" "$(checkpoint dir)"
rbd snap unprotect "b@$before"
backup_all 0 ''
all_right

# --- What is refused ---
before=$(latest dir)
backup 1 "is a snapshot" "$(of "rbd/a@$(checkpoint dir)")" new.dir
backup 1 "two disks would be 'a'" "$(of rbd/a)" "$(of two/a)" new.dir
backup 1 "are both 'rbd:rbd/a'" "$(of rbd/a)" "y=$(of rbd/a)" new.dir
mapfile -t many < <(seq -f "rbd:rbd/%g" 1001)
backup 2 "1000 disks at most, and these are 1001" "${many[@]}" new.dir
backup 6 "No such file" "$(of rbd/none)" new.dir
backup 2 "is none" "$(of rbd/a)" a.raw new.dir
backup 1 "is another source" "$(of rbd/late)" header.dir
ceph auth get-or-create client.reader mon 'profile rbd' \
    osd 'profile rbd-read-only' -o "$cluster/reader" 2>out
backup 1 "which can only be read" \
    "$(of rbd/a):id=reader:keyring=$cluster/reader" new.dir
[ ! -e new.dir ] || fail "new.dir is there"
all_right

# --- Killed at each step ---
step=0
recover() { # the next run works
    forget_dead rbd/a rbd/b two/c
    backup 0 '' --hook=./kill-hook "${all[@]}" dir
    all_right
}
change() {
    step=$((step + 1))
    io rbd/a "write -P $((20 + step)) $step""M 128k"
    io two/c "write -P $((20 + step)) 1M 64k"
}
for when in frozen after; do
    change
    killed_backup $when "${all[@]}" dir
    KILL=no
    recover
done
for when in after:{resume.json,Z.qcow2,.sums,.json.pending} before:Z.json; do
    change
    rc=0
    FAULTY_NAME=$when "$BUILD/tests/func/faulty" backup "${all[@]}" dir \
        >out 2>&1 || rc=$?
    [ "$rc" = 137 ] || fail "$when: it was not killed: $rc, $(cat out)"
    recover
done
# In the middle of a copy: what is copied is not read again.
part_is_flushed() {
    local part
    part=$(compgen -G 'dir/c/*.qcow2.part') || return 1
    [ "$(qemu-img map -U --output=json "$part" 2>/dev/null | jq '
        [.[] | select(.depth == 0 and .data) | .length] | add // 0')" -gt 0 ]
}
io two/c 'write -P 77 0 9M'
nbdelta backup --rate=2M "${all[@]}" dir >out 2>&1 &
run=$!
wait_until "some is copied" part_is_flushed
kill -KILL "$run"
wait "$run" 2>/dev/null || :
part=$(compgen -G 'dir/c/*.qcow2.part')
forget_dead rbd/a two/c
io two/c 'write -P 78 0 1M'
recover
told c '.read < 9437184'
[[ $part == "dir/c/$(latest dir).qcow2.part" ]] || fail "another instant: $part"
# A signal, while all wait: everything is as it was.
before=$(latest dir)
io two/c 'write -P 79 0 9M'
nbdelta backup --rate=1M "${all[@]}" dir >out 2>&1 &
run=$!
wait_until "a copy has begun" part_is_there c
kill -INT "$run"
rc=0
wait "$run" || rc=$?
[ "$rc:$(latest dir)" = "7:$before" ] || fail "a signal: $rc"
all_right

nbdelta verify dir >out || fail "verify: $(cat out)"
backup 0 '' --forget "${all[@]}" dir
snapshots_are rbd/a

# --- The recipe ---
ceph osd pool create vms 8 8 >out 2>&1
rbd pool init vms
mkdir recipe
awk -v section='IMAGES OF CEPH' -f "$SRCDIR/tests/func/recipe.awk" \
    "$SRCDIR/man/nbdelta-recipes.7" >recipe/script
(cd recipe && PATH=$BUILD:$PATH bash -eu script) >out 2>&1 ||
    fail "the recipe: $(cat out)"
[ "$(find recipe/web -name '*Z.json' | wc -l)" = 2 ]
snapshots_are vms/web
snapshots_are vms/web-db
qemu-img compare -q "$(of vms/web)" "$(of vms/web-back)"
qemu-img compare -q "$(of vms/web-db)" recipe/web-db.qcow2

# --- The one that nobody told of ---
wait "$late" || fail "after a client that was killed: $(cat late.out)"
grep -q "came too late and was removed" late.out ||
    fail "it has not waited: $(cat late.out)"
right late.dir late=rbd/late

# --- A cluster that does not answer: a signal is heard ---
before=$(find late.dir | sort)
ceph_daemon kill osd
nbdelta backup "$(of rbd/late)" "$(of rbd/a)" late.dir >out 2>&1 &
run=$!
opening() { cat "/proc/$run/task"/*/comm | grep -c rbd-open >out; }
wait_until "it opens" opening
kill -INT "$run"
rc=0
wait "$run" || rc=$?
[ "$rc:$(find late.dir | sort)" = "7:$before" ] ||
    fail "a signal while images are opened: $rc, $(cat out)"
