#!/bin/bash
# The plugin in a real nbdkit: content and extents of images are what
# qemu-img says, writes are refused, mistakes are told.
set -eu -o pipefail

plugin=$BUILD/nbdkit-nbdelta-plugin.so

# nbdkit is not instrumented itself, so that it needs the runtime first.  Leaks
# of nbdkit are none of ours.
preload=
case ${SANITIZE-}:${CC-cc} in
:*) ;;
*:*clang*)
    echo "nbdkit cannot load what clang has instrumented"
    exit 77 ;;
*address*) preload=$(${CC-cc} -print-file-name=libasan.so) ;;
*thread*) preload=$(${CC-cc} -print-file-name=libtsan.so) ;;
esac
export ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS-}"

server=
stop() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" || true
        server=
    fi
    rm -f sock pid
}
trap stop EXIT

nbdkit_plugin() {
    if [ -n "$preload" ]; then
        env LD_PRELOAD="$preload" nbdkit "$@"
    else
        nbdkit "$@"
    fi
}

uri="nbd+unix:///?socket=$PWD/sock"
serve() {
    local tries
    stop
    nbdkit_plugin -f -U sock -P pid "$plugin" "$@" &
    server=$!
    for ((tries = 0; tries < 300; tries++)); do
        if [ -e pid ]; then
            return
        fi
        kill -0 "$server" || { echo "nbdkit has ended"; exit 1; }
        sleep 0.1
    done
    echo "nbdkit is not ready after 30 s"
    exit 1
}

# Ranges with their NBD type, neighbours joined.
# shellcheck disable=SC2016  # $e is jq's
join='reduce .[] as $e ([]; if length > 0 and .[-1].type == $e.type
    then .[-1].length += $e.length else . + [$e] end) | .[]
    | "\(.offset) \(.length) \(.type)"'
qemu_map() {
    qemu-img map --output json "$@" | jq -r "map({offset: .start, length,
        type: ((if .data then 0 else 1 end) + (if .zero then 2 else 0 end))})
        | $join"
}
our_map() {
    nbdinfo --map --json "$uri" | jq -r "$join"
}

compare() {
    rm -f out.img
    nbdcopy "$uri" out.img
    qemu-img compare "$@" -F raw "${image:?}" out.img
}

qemu-img create -q -f qcow2 base.qcow2 48M
qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 20M 3M' \
    -c 'write -P 3 47M 1M' base.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 64M
qemu-io -f qcow2 -c 'write -P 4 512k 1M' -c 'write -z 21M 1M' \
    -c 'write -P 5 63M 4k' -c 'write -P 6 10000001 77' top.qcow2 >/dev/null

image=top.qcow2
serve "$image"
[ "$(nbdinfo --size "$uri")" = $((64 << 20)) ]
diff <(qemu_map top.qcow2) <(our_map)
compare -f qcow2
nbdinfo --can multi-conn "$uri"
nbdinfo --is read-only "$uri"
nbdinfo --can cache "$uri"
if qemu-io -f raw -c 'write 0 4k' "$uri"; then
    echo "a write was not refused"
    exit 1
fi

# Compressed clusters, and a raw image with holes that is not probed.
image=packed.qcow2
qemu-img convert -c -O qcow2 top.qcow2 packed.qcow2
serve file=packed.qcow2 format=qcow2
compare -f qcow2

image=disk.img
truncate -s 8M disk.img
qemu-io -f raw -c 'write -P 7 1M 64k' disk.img >/dev/null
serve disk.img format=raw
compare -f raw
serve "json:{\"driver\": \"raw\", \"file\": {\"driver\": \"file\",
    \"filename\": \"$PWD/disk.img\"}}"
compare -f raw
stop

# Under a runtime that was loaded first even nbdkit's own plugins hang at the
# exit that follows a failed start.
refused() {
    local expected=$1
    shift
    [ -z "$preload" ] || return 0
    if nbdkit_plugin -f -U sock "$plugin" "$@" >message 2>&1 </dev/null; then
        echo "not refused: $*"
        exit 1
    fi
    grep -F -- "$expected" message || { cat message; exit 1; }
}
refused "nosuch.qcow2" nosuch.qcow2
refused "which image" format=raw
refused "unknown parameter 'bogus'" disk.img bogus=1
refused "'nosuch'" format=nosuch disk.img
mkdir elsewhere
qemu-img create -q -f qcow2 -b "$PWD/disk.img" -F raw elsewhere/over.qcow2
refused "$PWD/disk.img" elsewhere/over.qcow2
image=elsewhere/over.qcow2
serve elsewhere/over.qcow2 allow-path="$PWD"
compare -f qcow2
