#!/bin/bash
# nbdelta bitmap: each verb does to an image what qemu-img bitmap does, in
# either spelling.  Several names change together or not at all.  The exit
# status tells failures apart.  Inconsistent bitmaps can be repaired.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io qemu-nbd nbdinfo jq

# What QEMU finds in an image, in the order of the directory.
seen() {
    qemu-img info --output=json "$1" | jq -c '."format-specific".data |
        [.bitmaps // [] | .[] | [.name, .granularity, .flags]]'
}

# Dirty ranges of bitmap $2 of image $1, by QEMU's own server.
dirty() {
    local q
    rm -f q.sock q.pid
    qemu-nbd -r -t -k "$PWD/q.sock" --pid-file="$PWD/q.pid" -B "$2" "$1" &
    q=$!
    wait_until "qemu-nbd is ready" test -s q.pid
    nbdinfo --json --map="qemu:dirty-bitmap:$2" \
        "nbd+unix:///?socket=$PWD/q.sock" |
        jq -c 'map(select(.type == 1) | [.offset, .length])'
    kill "$q"
    wait "$q" || true
}

# $1: the exit status, $2: a part of the text.
refused() {
    local want=$1 text=$2 rc=0
    shift 2
    sha256sum ./*.qcow2 >before
    nbdelta bitmap "$@" >out 2>&1 || rc=$?
    [ "$rc" -eq "$want" ] || fail "bitmap $*: $rc, not $want: $(cat out)"
    grep -qF -e "$text" out || fail "bitmap $*: said $(cat out)"
    sha256sum -c --quiet before || fail "bitmap $*: changed something"
}

# --- Either program does the same to its image. ---

both() {
    qemu-img bitmap "$@" qemu.qcow2 "$name"
    nbdelta bitmap "$@" ours.qcow2 "$name"
    [ "$(seen ours.qcow2)" = "$(seen qemu.qcow2)" ] ||
        fail "bitmap $* $name: $(seen ours.qcow2), QEMU: $(seen qemu.qcow2)"
}

for image in qemu.qcow2 ours.qcow2; do
    qemu-img create -q -f qcow2 $image 64M
done
qemu-img create -q -f qcow2 other.qcow2 64M
qemu-img bitmap --add -g 1M other.qcow2 theirs
qemu-io -f qcow2 -c 'write -q 7M 100k' -c 'write -q 63M 1M' other.qcow2
name=a both --add
name=$'gr\xc3\xb6\xc3\x9fe' both --add -g 512
name=c both --add --disable -g 2G
name=big both --add --granularity=4k --disable --enable
for image in qemu.qcow2 ours.qcow2; do
    qemu-io -f qcow2 -c 'write -q -P 3 3M 2000k' -c 'write -q -z 60M 64k' \
        $image
done
name=c both --merge a
name=c both --merge theirs -b other.qcow2 -F qcow2
name=c both --enable
name=big both --disable
name=big both --clear
name=big both --merge $'gr\xc3\xb6\xc3\x9fe' --merge a
name=a both --clear
name=new both --add --merge big --disable -f qcow2
name=a both --remove
for name in $'gr\xc3\xb6\xc3\x9fe' c big new; do
    [ "$(dirty ours.qcow2 "$name")" = "$(dirty qemu.qcow2 "$name")" ] ||
        fail "bits of $name differ"
done
[ "$(dirty ours.qcow2 big)" = '[[3145728,2097152],[62914560,65536]]' ]
qemu-img check -q ours.qcow2

name=opts
qemu-img bitmap --add --image-opts \
    driver=qcow2,file.driver=file,file.filename=qemu.qcow2 opts
nbdelta bitmap --add --object iothread,id=t0 --image-opts \
    driver=qcow2,file.driver=file,file.filename=ours.qcow2 opts
[ "$(seen ours.qcow2)" = "$(seen qemu.qcow2)" ]

# --- Words, several names, lists. ---

nbdelta create words.qcow2 64M
nbdelta bitmap add --disable -g 64k words.qcow2 x y z
nbdelta bitmap enable words.qcow2 y
qemu-io -f qcow2 -c 'write -q 1M 64k' words.qcow2
nbdelta bitmap merge words.qcow2 x y z
nbdelta bitmap merge -b other.qcow2 words.qcow2 z theirs
nbdelta bitmap list --output json words.qcow2 |
    jq -c 'map([.name, .count, .granularity, .recording, .persistent])' >listed
sort <(jq -c ".[]" listed) | diff - <(cat <<'END'
["x",65536,65536,false,true]
["y",65536,65536,true,true]
["z",2097152,65536,false,true]
END
)
nbdelta bitmap list words.qcow2 >listed
grep -qx '64 KiB  *2097152  disabled  *z' listed
nbdelta bitmap list words.qcow2 y >listed
[ "$(wc -l <listed)" = 2 ]
nbdelta bitmap disable words.qcow2 y z
nbdelta bitmap clear words.qcow2 y z
[ "$(dirty words.qcow2 z)" = '[]' ]
nbdelta bitmap remove words.qcow2 x y z
[ "$(nbdelta bitmap list words.qcow2)" = '' ]
[ "$(nbdelta bitmap list --output json words.qcow2)" = '[]' ]

# --- All or nothing, and what a script is told. ---

nbdelta bitmap add words.qcow2 x
refused 1 "Bitmap already exists: x" add words.qcow2 v x
refused 6 "Dirty bitmap 'w' not found" remove words.qcow2 x w
refused 6 "Dirty bitmap 'w' not found" list words.qcow2 w
refused 6 "Dirty bitmap 'w' not found" --clear --merge w words.qcow2 x
refused 6 "Dirty bitmap 'x' not found" merge -b other.qcow2 words.qcow2 x x
refused 1 "not inconsistent" repair words.qcow2 x
refused 1 "power of 2" add -g 3k words.qcow2 y
refused 1 "at most 2 GiB" add -g 4G words.qcow2 y
refused 1 "Bitmap name cannot be empty" add words.qcow2 ''
refused 1 "Bitmap name too long" add words.qcow2 "$(printf 'x%.0s' {1..1024})"
refused 6 "No such file" list nothing.img
refused 2 "Need at least one" words.qcow2 x
refused 2 "Need at least one" --output json
refused 2 "granularity only supported with --add" --clear -g 64k words.qcow2 x
refused 2 "only supported with --merge" --add -b other.qcow2 words.qcow2 y
refused 2 "-F only supported with -b" --add -F raw words.qcow2 y
refused 2 "Expecting filename and bitmap name" remove words.qcow2
refused 2 "to merge" merge words.qcow2 x
refused 2 "do not go with" list --add words.qcow2 x
refused 2 "only go with list" --add -U words.qcow2 y
refused 2 "for exports" list nbd://localhost/x
refused 2 "not a size" add -g many words.qcow2 y
truncate -s 1M plain.img
refused 1 "Can't store persistent bitmaps" add -f raw plain.img x
nbdelta create -o compat=0.10 old.qcow2 1M
refused 1 "in qcow2 v2 files" add old.qcow2 x
nbdelta create small.qcow2 1M
nbdelta bitmap add small.qcow2 x
refused 1 "different sizes" --merge theirs -b other.qcow2 small.qcow2 x
nbdelta create empty.qcow2 0
refused 1 "empty disk" add empty.qcow2 x
serve disk0=words.qcow2
rc=0
nbdelta bitmap remove words.qcow2 x 2>err || rc=$?
[ "$rc" = 5 ] || fail "in use: $rc, $(cat err)"
[ "$(nbdelta bitmap list -U words.qcow2 | wc -l)" = 2 ]
stop_server

# --- QEMU, killed, leaves bitmaps in use: listed with the reason, repaired. ---

qemu-img create -q -f qcow2 killed.qcow2 64M
for name in one two off; do
    qemu-img bitmap --add -g 4k killed.qcow2 $name
done
qemu-img bitmap --disable killed.qcow2 off
mkfifo commands
qemu-io -f qcow2 killed.qcow2 <commands >/dev/null &
qemu=$!
exec 3>commands
printf '%s\n' 'write -q 0 1M' flush >&3
# On disk: killed in the middle of its flush, QEMU leaks clusters.
has_flushed() {
    qemu-img info -U killed.qcow2 | grep -q in-use &&
        qemu-img map -U --output=json killed.qcow2 |
        jq -e '.[0].data and .[0].length == 1048576' >/dev/null &&
        qemu-img check -q -U killed.qcow2
}
wait_until "QEMU has written" has_flushed
kill -9 "$qemu"
wait "$qemu" 2>/dev/null || true
exec 3>&-
# The first to write mends the file's end.
nbdelta bitmap --add --remove killed.qcow2 new
rc=0
nbdelta bitmap list --output json killed.qcow2 >listed || rc=$?
[ "$rc" = 4 ] || fail "listing inconsistent ones: $rc"
jq -e 'all(.[] | select(.name != "off"); .inconsistent and
    (."inconsistent-reason" | contains("in use")))' listed >/dev/null
nbdelta bitmap list killed.qcow2 >listed || [ $? = 4 ]
grep -q 'inconsistent  *one: it is marked as in use' listed
refused 4 "is inconsistent and cannot be used" clear killed.qcow2 one
refused 4 "is inconsistent and cannot be used" --add --merge one killed.qcow2 n
refused 1 "already exists" add killed.qcow2 one
nbdelta bitmap repair killed.qcow2 one >out
grep -q "one: repaired: everything is dirty" out
[ "$(dirty killed.qcow2 one)" = '[[0,67108864]]' ]
nbdelta bitmap repair killed.qcow2 >out
! grep -q one: out || fail "repaired one again"
grep -q two: out
[ "$(nbdelta bitmap repair killed.qcow2)" = 'no bitmap is inconsistent' ]
seen killed.qcow2 | jq -e 'map({(.[0]): .[2]}) | add ==
    {"one": ["auto"], "two": ["auto"], "off": []}' >/dev/null ||
    fail "after repair: $(seen killed.qcow2)"
nbdelta bitmap list --output json killed.qcow2 |
    jq -e 'all(.[]; .granularity == 4096)' >/dev/null
qemu-img check -q killed.qcow2
