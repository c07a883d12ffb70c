#!/bin/bash
# Images of other formats are refused by name wherever the format is guessed,
# and are raw bytes where the format is given as raw.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io

made=0

# check FORMAT FILE
check() {
    local format=$1 file=$2 before after command
    made=$((made + 1))
    before=$(md5sum "$file")
    serve_refused "format $format" -U s "vda=$file"
    serve_refused "-f raw" -U s -r "vda=$file"
    for command in info map 'bitmap list'; do
        # shellcheck disable=SC2086
        if nbdelta $command "$file" >out 2>&1; then
            fail "$command takes an image of format $format: $(cat out)"
        fi
        grep -q "format $format" out || fail "$command: $(cat out)"
    done
    # As a backing file whose format is not named, and in a layer below.
    nbdelta create -b "$file" -F raw over.qcow2
    python -c '
with open("over.qcow2", "r+b") as f:
    head = f.read(4096)
    at = head.index(b"\xe2\x79\x2a\xca") # the extension of the format
    f.seek(at)
    f.write(b"nope")
'
    serve_refused "format $format" -U s vda=over.qcow2
    if nbdelta create --track "$file" t.qcow2 2>err; then
        fail "an image of format $format is tracked as a raw disk"
    fi
    grep -q "format $format" err || fail "$(cat err)"
    # Its bytes.
    serve -f raw "vda=$file"
    stop_server
    nbdelta info -f raw "$file" >out
    after=$(md5sum "$file")
    [ "$before" = "$after" ] || fail "$format: the image has changed"
    rm -f over.qcow2
}

try() {
    local format=$1
    shift
    qemu-img create -q -f "$format" "$@" 16M >out 2>&1 || return 0
    check "$format" "${!#}"
}

try vmdk d.vmdk
try vmdk -o subformat=monolithicFlat flat.vmdk
try vdi d.vdi
try vhdx d.vhdx
try vpc d.vhd
try vpc -o subformat=fixed fixed.vhd
try qed d.qed
try parallels d.hds
try qcow d.qcow
try luks --object secret,id=k,data=abc -o key-secret=k d.luks
[ "$made" -gt 0 ] || skip "qemu-img makes none of these formats"

truncate -s 1M d.bochs d.cloop d.dmg
printf 'Bochs Virtual HD Image\0' | dd of=d.bochs conv=notrunc status=none
printf '#!/bin/sh\n#V2.0 Format\nmodprobe cloop' |
    dd of=d.cloop conv=notrunc status=none
printf 'koly\0\0\0\4\0\0\2\0' |
    dd of=d.dmg bs=1 seek=$(((1 << 20) - 512)) conv=notrunc status=none
check bochs d.bochs
check cloop d.cloop
check dmg d.dmg

# A target is not guessed to be raw either.
truncate -s 16M src.raw
serve -f raw vda=src.raw
cp d.bochs target
truncate -s 16M target
if qmp drive-backup device=vda sync=full mode=existing \
    target="$PWD/target" 2>err; then
    fail "a backup went over an image"
fi
grep -q 'format bochs' err || fail "$(cat err)"
if qmp blockdev-add node-name=t file.driver=file \
    file.filename="$PWD/target" 2>err; then
    fail "a node guessed an image to be raw"
fi
# A guest does not make its guessed disk one of these.
stop_server
serve vda=src.raw
if qemu-io -f raw -c "write -s d.bochs 0 512" "$(uri_of vda)" >out 2>&1; then
    fail "a guest turned its disk into an image"
fi
stop_server
