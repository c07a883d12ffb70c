#!/bin/bash
# `nbdelta points` and `nbdelta verify` with a backup directory that was made
# without nbdelta: by qemu-img, and by what the headers say of hashes and
# manifests.  Each thing that is damaged afterwards is found and named; exit
# status and words are those of the pages.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

one=20261127T023000Z
two=20261128T023000Z
three=20261129T023000Z

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

flip() {
    python - "$1" "$2" <<'EOF'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    byte = f.read(1)[0]
    f.seek(int(sys.argv[2]))
    f.write(bytes([byte ^ 4]))
EOF
}

python "$SRCDIR/tests/func/store_dir.py" dir
chmod 700 dir

# All is right, and nothing is said.
status 0 nbdelta verify --quick dir
if [ -s out ] || [ -s err ]; then
    fail "not quiet: $(cat out err)"
fi
[ ! -e dir/$one.verified ] || fail "--quick has verified data"
status 0 nbdelta points --output json dir
jq -e '.id == "0123456789abcdef" and (.points | length) == 3 and
    all(.points[]; .verified == 0 and (.pending | not))' out >jq.out ||
    fail "$(cat out)"
status 0 nbdelta verify --output json dir
jq -e '.files == 6 and .damage == []' out >jq.out || fail "$(cat out)"
status 0 nbdelta points --output json dir@latest
jq -e '.points[0].verified > 1700000000 and .points[0].damages == 0 and
    .points[0].disks[1].reason == "resized"' out >jq.out || fail "$(cat out)"
status 0 nbdelta points dir
says out '2026-11-28T02:30:00Z  vda'
says out 'increment  -'
says out 'resized'

# The chains, drawn: a full copy and what is over it are one line.
# tree WANTED [WORD...]: what stands before and behind the times.
tree() {
    local wanted=$1
    shift
    status 0 nbdelta points --output tree "$@"
    sed -n 's/^\(vd.\), .*/\1/p
        s/^  \(..\) 2026-11-\(..\)T[^ ]*  \([a-z]*\) .*B  \([^2]*\).*/\1\2 \3 \4/p' \
        out | sed 's/ *$//' | diff <(echo "$wanted") - || fail "the tree is another"
}
never='never verified'
LC_ALL=C tree "vda
,-27 full verified
|-28 increment verified
\`-29 increment verified
vdb
,-27 full verified
\`-28 increment verified
--29 full verified" dir
says out '; resized'
grep -qE '^  --.*full +1.[0-9]+ MiB +1.5 MiB  verified 20' out ||
    fail "no sizes: $(cat out)"
bytes=$(du -cB1 dir/vd?/*.qcow2 dir/vd?/*.sums |
    awk 'END { printf "%.2f", $1 / 1048576 }' | sed 's/\.*0*$//')
says out "dir: 3 points, $bytes MiB on the storage"
LC_ALL=C.UTF-8 tree "vda
┌─27 full verified
└─28 increment verified
vdb
┌─27 full verified
└─28 increment verified" dir@latest~1
mv dir/vda/$two.qcow2 outside.qcow2
mv dir/$two.verified two.verified
LC_ALL=C tree "vda
,-27 full verified
|-28 increment MISSING: disk 'vda': cannot open '
\`-29 increment NEEDS one that is damaged or missing
vdb
,-27 full verified
\`-28 increment $never
--29 full verified" dir
says out "MISSING: disk 'vda': cannot open '$two.qcow2': No such file"
echo '{}' >dir/prune.json
status 0 nbdelta points --output tree dir
says out 'a prune works on it'
rm dir/prune.json
mv outside.qcow2 dir/vda/$two.qcow2
mv two.verified dir/$two.verified
status 2 nbdelta points --output xml dir

# Points, by any of their names.
for word in latest~1 2026-11-28 20261128 2026-11-28T02:30:00Z; do
    status 0 nbdelta points --output json "dir@$word"
    [ "$(jq -r '.points[].name' out)" = $two ] || fail "$word is not $two"
done
status 0 nbdelta verify --output json "dir@$one"
jq -e '.files == 2' out >jq.out || fail "$(cat out)"
status 0 nbdelta verify --output json "dir@$two"
jq -e '.files == 4' out >jq.out || fail "$(cat out)"
status 6 nbdelta points dir@2026
status 6 nbdelta verify dir@2025
says err "no point '2025'"
status 6 nbdelta verify dir@latest~3
status 6 nbdelta verify dir@typo
status 6 nbdelta points nowhere
status 6 nbdelta verify .
says err 'not a backup directory'
for words in '' 'dir dir' '--part 0/3 dir' '--part 4/3 dir' '--part 1 dir' \
    '--part 1/3x dir' '--quick --part 1/2 dir' '--output xml dir'; do
    # shellcheck disable=SC2086  # words
    status 2 nbdelta verify $words
done
status 2 nbdelta points

# A bit of the data.
map=$(nbdelta map --output json dir/vda/$one.qcow2)
host=$(jq '.[] | select(.start == 0) | .offset' <<<"$map")
flip dir/vda/$one.qcow2 $((host + 70000))
status 0 nbdelta verify --quick dir
status 4 nbdelta verify dir
says out "$one disk 'vda' bytes 0 to 1048575: has other bytes"
[ "$(wc -l <out)" -eq 1 ] || fail "more than one: $(cat out)"
status 4 nbdelta verify --output json dir@latest
jq -e '.damage == [{"point": "'$one'", "disk": "vda", "offset": 0,
    "bytes": 1048576, "what": "has other bytes than were written"}]' out \
    >jq.out || fail "$(cat out)"
status 0 nbdelta points dir
says out DAMAGED
LC_ALL=C tree "vda
,-27 full DAMAGED; new-disk
|-28 increment NEEDS one that is damaged or missing
\`-29 increment NEEDS one that is damaged or missing
vdb
,-27 full verified
\`-28 increment verified
--29 full verified" dir
flip dir/vda/$one.qcow2 $((host + 70000))
for part in 1 2 3; do
    status 0 nbdelta verify --part $part/3 dir
done
status 0 nbdelta points --output json dir@$one
jq -e '.points[0].verified > 0 and .points[0].damages == 0' out >jq.out ||
    fail "$(cat out)"

# A refcount that is too low loses data later; one of a cluster that nobody has
# is a leak only.
be64() {
    od -A n -t u8 --endian=big -j "$2" -N 8 "$1" | tr -d ' '
}
cp dir/vda/$one.qcow2 whole.qcow2
block=$(be64 whole.qcow2 "$(be64 whole.qcow2 48)")
printf '\0' | dd of=dir/vda/$one.qcow2 bs=1 seek=$((block + host / 32768 + 1)) \
    conv=notrunc status=none
status 0 nbdelta verify --quick dir
status 0 nbdelta verify --part 2/2 dir
status 4 nbdelta verify --part 1/2 dir
says out "$one disk 'vda': the image contradicts itself: "
status 4 nbdelta verify dir
[ "$(wc -l <out)" -eq 1 ] || fail "more than one: $(cat out)"
cp whole.qcow2 dir/vda/$one.qcow2
last=$(($(stat -c %s whole.qcow2) / 65536))
truncate -s +64K dir/vda/$one.qcow2
printf '\1' | dd of=dir/vda/$one.qcow2 bs=1 seek=$((block + last * 2 + 1)) \
    conv=notrunc status=none
qemu-img check -q dir/vda/$one.qcow2 || [ $? -eq 3 ] || fail "it is no leak"
status 0 nbdelta verify dir
cp whole.qcow2 dir/vda/$one.qcow2

# A bit of the hashes, of the manifest, of the image's header.
flip dir/vdb/$two.sums 20
status 4 nbdelta verify --quick dir
says out "$two disk 'vdb': the file of hashes is damaged"
flip dir/vdb/$two.sums 20
flip dir/$three.json 300
status 4 nbdelta verify --quick dir
says out "$three: "
status 4 nbdelta verify dir@latest
status 4 nbdelta points dir
says out 'cannot be used'
status 4 nbdelta points --output tree dir
says out '2026-11-29T02:30:00Z  cannot be used: '
status 4 nbdelta points --output json dir
jq -e '.points[2].error' out >jq.out || fail "$(cat out)"
flip dir/$three.json 300
flip dir/vda/$three.qcow2 31
status 4 nbdelta verify --quick dir
says out "$three disk 'vda'"
flip dir/vda/$three.qcow2 31
status 0 nbdelta verify --quick dir

# What the image names, other tools follow.
qemu-img rebase -u -F qcow2 -b $two.qcow2 dir/vda/$two.qcow2
status 4 nbdelta verify --quick dir
says out "does not name its parent"
qemu-img rebase -u -F qcow2 -b $one.qcow2 dir/vda/$two.qcow2

# Links lead nowhere; files that are missing are.
mv dir/vda/$two.qcow2 outside.qcow2
ln -s ../../outside.qcow2 dir/vda/$two.qcow2
status 4 nbdelta verify --quick dir
says out 'symbolic link'
rm dir/vda/$two.qcow2
status 4 nbdelta verify --quick dir
says out 'No such file'
mv outside.qcow2 dir/vda/$two.qcow2
status 0 nbdelta verify dir

# A point that is being pruned.
flock dir/$two.json sh -c 'touch held; while [ -e held ]; do sleep 0.1; done' &
holder=$!
wait_until 'the point to be held' test -e held
status 5 nbdelta verify dir
says err 'being pruned'
rm held
wait "$holder"

# A directory that cannot be written to can be verified.
if [ "$(id -u)" -ne 0 ]; then
    chmod 500 dir
    status 0 nbdelta verify dir
    chmod 700 dir
fi
