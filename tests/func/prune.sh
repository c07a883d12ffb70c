#!/bin/bash
# `nbdelta prune`: of ten points under writes the ones that stay are what they
# were, by qemu-img and by `nbdelta verify`, whichever go and in whatever order;
# rules and status are those of the page; a prune that is killed at any step
# leaves points that qemu-img reads, and the next one finishes it.
#
#   SEED=N      of what changes, and of the steps (printed)
#   STEPS=all   all steps, and not some of them
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io

export TZ=UTC
make_point=$BUILD/tests/func/make-point
seed=${SEED:-$$}
echo "SEED=$seed"
RANDOM=$seed
size=$((3 * 1024 * 1024 + 5 * 65536 + 512))

# status N COMMAND...: it exits with N; its output is in the files out and err.
status() {
    local want=$1 rc=0
    shift
    "$@" >out 2>err || rc=$?
    [ "$rc" -eq "$want" ] ||
        fail "$* exits with $rc, not $want: $(cat out err)"
}

says() {
    grep -qF -- "$2" "$1" || fail "no '$2' in $1: $(cat "$1")"
}

# Three points a day, from the 10th of November.
points=()
for i in 0 1 2 3 4 5 6 7 8 9; do
    points+=("202611$((10 + i / 3))T0$((2 + i % 3))3000Z")
done

# Some clusters get other bytes, some zeroes.
change() {
    local commands=() i
    for i in 1 2 3 4 5 6 7 8 9; do
        commands+=(-c "write -P $((RANDOM % 256)) $((RANDOM % 53 * 65536)) 64k")
        commands+=(-c "write -P 0 $((RANDOM % 53 * 65536)) 64k")
    done
    commands+=(-c "write -P $((RANDOM % 255 + 1)) $((size - 512)) 512")
    qemu-io -f raw "${commands[@]}" "$1" >qemu-io.out
}

truncate -s $size now.raw
before=
for point in "${points[@]}"; do
    change now.raw
    cp now.raw "$point.raw"
    "$make_point" whole "$point" "$point.raw" ${before:+"$before.raw"}
    before=$point
done

# right DIR: all points that are in DIR are what they were, and no cluster is
# lost.
right() {
    local manifest point
    for manifest in "$1"/*T*Z.json; do
        point=$(basename "$manifest" .json)
        qemu-img compare -q -f qcow2 -F raw "$1/vda/$point.qcow2" "$point.raw" ||
            fail "$point is not what it was"
        qemu-img check -q -f qcow2 "$1/vda/$point.qcow2" >check.out 2>&1 ||
            fail "$(cat check.out)"
    done
}

# has DIR NUMBER...: just these points are there, and no file too many.
has() {
    local dir=$1 i want=()
    shift
    for i; do
        want+=("${points[i]}")
    done
    diff <(printf '%s\n' "${want[@]}") \
        <(find "$dir" -maxdepth 1 -name '*Z.json' -printf '%f\n' | sort |
            sed 's/\.json//') || fail "other points than $*"
    diff <(for i; do printf '%s\n' "${points[i]}.qcow2" "${points[i]}.sums"; done |
        sort) <(find "$dir/vda" -type f -printf '%f\n' | sort) ||
        fail "other files than those of $*"
    [ ! -e "$dir/prune.json" ] || fail "there is a journal"
}

fresh() {
    rm -rf dir
    cp -a whole dir
}

sound() {
    right dir
    status 0 nbdelta verify dir
}

# --- Rules, one after the other and together ---
fresh
status 0 nbdelta prune --keep-last 3 --keep-daily 2 --dry-run dir
says out '2026-11-10T02:30:00Z  remove'
says out '2026-11-12T04:30:00Z  keep                last, daily'
says out '7 of 10 points would go'
has dir 0 1 2 3 4 5 6 7 8 9
status 0 nbdelta prune --keep-last 9 dir
if [ -s out ] || [ -s err ]; then fail "not quiet: $(cat out err)"; fi
has dir 1 2 3 4 5 6 7 8 9
sound
status 0 nbdelta prune --keep-daily 4 dir
has dir 2 5 8 9
sound
status 0 nbdelta prune --keep-within 25h dir
has dir 8 9
sound
status 0 nbdelta prune --keep-weekly 1 dir
has dir 9
sound
status 0 nbdelta prune --keep-weekly 1 dir
has dir 9

fresh
status 0 nbdelta prune --keep-hourly 4 --keep-daily 3 dir
has dir 5 6 7 8 9
sound
fresh
status 0 nbdelta prune --keep-last 1 dir
has dir 9
sound
fresh
status 0 nbdelta prune --keep-monthly unlimited --keep-last 1 dir
has dir 0 9
sound
status 0 nbdelta restore dir@"${points[0]}" vda=out.raw
cmp out.raw "${points[0]}.raw"

# A manifest that cannot be read: it is told, and the rest goes.
fresh
printf '~' | dd of="dir/${points[5]}.json" bs=1 seek=100 conv=notrunc status=none
status 4 nbdelta prune --keep-last 1 --dry-run dir
says out 'its manifest cannot be read'
status 4 nbdelta prune --keep-last 1 dir
says err 'point 2026-11-11T04:30:00Z is left: its manifest cannot be used'
cp "whole/${points[5]}.json" dir
has dir 3 4 5 9
sound

# A new point over what was merged.
change now.raw
cp now.raw 20261201T023000Z.raw
"$make_point" dir 20261201T023000Z now.raw "${points[9]}.raw"
sound
status 0 nbdelta prune --keep-last 1 dir
right dir

# What is compressed stays so.
fresh
rm dir/vda/"${points[3]}".qcow2
qemu-img create -q -f qcow2 -u -F qcow2 -b "${points[2]}.qcow2" \
    dir/vda/"${points[3]}".qcow2 $size
nbdelta map --output json "whole/vda/${points[3]}.qcow2" >map.json
python - map.json "${points[3]}.raw" >commands <<'EOF'
import json
import sys
with open(sys.argv[1], encoding='utf-8') as f:
    runs = json.load(f)
with open(sys.argv[2], 'rb') as f:
    data = f.read()
for run in runs:
    if run['depth'] != 0 or not run['present']:
        continue
    for at in range(run['start'], run['start'] + run['length'], 65536):
        chunk = data[at:at + 65536]
        kind = '-z' if not any(chunk) else f'-c -P {chunk[0]}'
        if len(set(chunk)) > 1:
            kind = f'-s chunk.{at}'
            with open(f'chunk.{at}', 'wb') as out:
                out.write(chunk)
        print(f'write {kind} {at} {len(chunk)}')
EOF
qemu-io "json:{\"driver\":\"qcow2\",\"backing\":null,\"file\":{\"driver\":\
\"file\",\"filename\":\"dir/vda/${points[3]}.qcow2\"}}" <commands >qemu-io.out
status 0 nbdelta verify dir
packed=$(nbdelta map --output json "dir/vda/${points[3]}.qcow2" |
    grep -c '"depth": 0.*"compressed": true')
[ "$packed" -gt 0 ] || fail "nothing is compressed"
status 0 nbdelta prune --keep-last 7 dir
sound
[ "$(nbdelta map --output json "dir/vda/${points[3]}.qcow2" |
    grep -c '"compressed": true')" -ge "$packed" ] || fail "not compressed"

# --- What is refused ---
fresh
status 2 nbdelta prune dir
says err 'at least one of the --keep options'
status 2 nbdelta prune --keep-last 1
status 2 nbdelta prune --keep-last 1 dir dir
status 2 nbdelta prune --keep-last 0 dir
status 2 nbdelta prune --keep-within 3w dir
status 6 nbdelta prune --keep-last 1 nowhere
status 6 nbdelta prune --keep-last 1 .
says err 'not a backup directory'
flock dir/lock sh -c 'touch held; while [ -e held ]; do sleep 0.1; done' &
holder=$!
wait_until 'the directory to be locked' test -e held
status 5 nbdelta prune --keep-last 1 dir
status 0 nbdelta prune --keep-last 1 --dry-run dir
rm held
wait "$holder"
flock -s "dir/${points[4]}.json" \
    sh -c 'touch held; while [ -e held ]; do sleep 0.1; done' &
holder=$!
wait_until 'the point to be held' test -e held
status 5 nbdelta prune --keep-last 1 dir
says err 'point 2026-11-11T03:30:00Z is left'
rm held
wait "$holder"
sound
[ ! -e "dir/${points[0]}.json" ] || fail "the first one did not go"
status 0 nbdelta prune --keep-last 1 dir
has dir 9
sound

# A tool of others has an image open.
fresh
qemu-nbd -r -t -f qcow2 -k "$PWD/other.sock" "dir/vda/${points[0]}.qcow2" &
other=$!
at_exit sh -c "kill $other 2>/dev/null || :"
wait_until "qemu-nbd listens" listens "$PWD/other.sock"
status 5 nbdelta prune --keep-last 9 dir
has dir 0 1 2 3 4 5 6 7 8 9
kill $other
wait $other || true
status 0 nbdelta prune --keep-last 9 dir
sound

# --- Killed at each step ---
# Four points: two go, one of them into one that stays.
rm -rf small
last=
for i in 0 1 2 3; do
    "$make_point" small "${points[i]}" "${points[i]}.raw" ${last:+"$last.raw"}
    last=${points[i]}
done
reset() {
    rm -rf dir
    cp -a small dir
}
prune_killed() {
    local rc=0
    FAULTY=step:$1:${2-0} "$BUILD/tests/func/faulty" prune --keep-last 2 dir \
        >out 2>err || rc=$?
    return $rc
}
kept_right() {
    local i
    for i in 2 3; do
        qemu-img compare -q -f qcow2 -F raw "dir/vda/${points[i]}.qcow2" \
            "${points[i]}.raw" || fail "step $1: ${points[i]} is not right"
    done
}
reset
FAULTY_COUNTS=$PWD/counts "$BUILD/tests/func/faulty" prune --keep-last 2 dir
read -r _ _ steps <counts
[ "$steps" -gt 50 ] || fail "only $steps steps"
has dir 2 3

# What a prune has not ended is not read; all else is, and is right.
read_or_busy() {
    local rc=0
    nbdelta verify --quick dir >out 2>err || rc=$?
    [ $rc -eq 0 ] || [ $rc -eq 5 ] || fail "step $1: verify: $rc $(cat out err)"
    rm -f out.raw
    rc=0
    nbdelta restore dir vda=out.raw >out 2>err || rc=$?
    case $rc in
    0) cmp out.raw "${points[3]}.raw" ;;
    5) grep -q "'nbdelta prune' or 'nbdelta backup' goes on" err ||
        fail "step $1: $(cat err)"
        busy=yes ;;
    *) fail "step $1: restore: $rc $(cat err)" ;;
    esac
}
busy=

# tried K ERRNO: the K-th step ends it, or fails; then all is done again.
tried() {
    reset
    ! prune_killed "$1" "$2" || [ "$2" -ne 0 ] || fail "$1 killed nothing"
    kept_right "$1"
    read_or_busy "$1"
    status 0 nbdelta prune --keep-last 2 dir
    rm -f dir/tmp.*
    has dir 2 3
    right dir
    status 0 nbdelta verify dir
}
# Some of the steps, others each time; test-prune has them all.
[ "${STEPS-}" = all ] && every=1 || every=$((steps / 12))
for ((k = RANDOM % every + 1; k <= steps; k += every)); do
    tried $k 0
done
for ((k = RANDOM % every + 1; k <= steps; k += 4 * every)); do
    tried $k 28
done

[ -n "$busy" ] || fail "no journal was ever left"

# A backup finishes it, too.
reset
prune_killed $((steps / 3)) && fail "it was not killed"
[ -e dir/prune.json ] || fail "there is no journal"
qemu-img create -q -f qcow2 disk.qcow2 1M
status 0 nbdelta backup disk.qcow2 dir
[ ! -e dir/prune.json ] || fail "the journal is left"
kept_right backup
status 0 nbdelta verify dir
