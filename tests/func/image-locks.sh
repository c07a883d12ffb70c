#!/bin/bash
# Image locks: QEMU's programs and ours keep each other off an image that one
# of them writes to, in both directions; readers share; no lock survives its
# process.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io qemu-nbd nbdinfo

qemu=
end_qemu() {
    if [ -n "$qemu" ]; then
        kill "${1--TERM}" "$qemu" 2>/dev/null || true
        wait "$qemu" || true
        qemu=
    fi
}
at_exit end_qemu

# A QEMU that has the image open until end_qemu.
qemu_opens() {
    rm -f qemu.pid qemu.sock
    qemu-nbd -t -k "$PWD/qemu.sock" --pid-file "$PWD/qemu.pid" "$@" &
    qemu=$!
    wait_until "qemu-nbd is ready" test -s qemu.pid
}

# $1: what must be said; then the command that must fail.
refused() {
    local text=$1
    shift
    if "$@" >message 2>&1 </dev/null; then
        fail "not refused: $*"
    fi
    grep -q -e "$text" message || {
        cat message
        fail "'$*' does not say '$text'"
    }
}

theirs='Failed to get .*lock'
ours='Failed to get .*lock: is another process using the image .*'

# $1: format, $2: image.  As long as QEMU writes to it:
we_stay_out() {
    refused "$ours$2" nbdelta info -f "$1" "$2"
    refused "$ours$2" nbdelta map -f "$1" "$2"
    refused "$ours$2" nbdelta create -f "$1" "$2" 1M
    serve_refused 'Failed to get' -U other.sock -f "$1" "$2"
    serve_refused 'Failed to get' -U other.sock -r -f "$1" "$2"
    # With a promise not to mind, one may look.
    nbdelta info -U -f "$1" "$2" >out
    grep -q '^virtual size: 8 MiB' out
}

# As long as we write to it:
they_stay_out() {
    we_stay_out "$1" "$2"
    refused "$theirs" qemu-io -f "$1" -c 'write 0 512' "$2"
    # For raw bytes, QEMU does not mind if they change while it looks.
    [ "$1" = raw ] || refused "$theirs" qemu-img info -f "$1" "$2"
    refused "$theirs" qemu-img create -q -f "$1" "$2" 1M
    refused "$theirs" qemu-img resize -q -f "$1" "$2" 1M
    refused "$theirs" qemu-nbd -t -k "$PWD/qemu2.sock" -f "$1" "$2"
    qemu-img info -U -f "$1" "$2" >out
    grep -q '^virtual size: 8 MiB' out
}

# As long as somebody reads it:
readers_get_in() {
    qemu-io -r -f "$1" -c 'read -P 7 1M 64k' "$2" >out
    grep -q '^read 65536/65536' out || fail "qemu-io: $(cat out)"
    qemu-img info -f "$1" "$2" >out
    nbdelta info -f "$1" "$2" >out
    nbdelta map -f "$1" "$2" >out
    refused "$ours$2" nbdelta create -f "$1" "$2" 1M
    serve_refused 'Failed to get' -U other.sock -f "$1" "$2"
}

free_again() {
    qemu-io -f "$1" -c 'write 2M 512' "$2" >out
    grep -q '^wrote 512/512' out || fail "qemu-io: $(cat out)"
    nbdelta info -f "$1" "$2" >out
}

for format in qcow2 raw; do
    image=disk.$format
    qemu-img create -q -f "$format" "$image" 8M
    qemu-io -f "$format" -c 'write -P 7 1M 64k' "$image" >out
    sha256sum "$image" >before

    qemu_opens -f "$format" "$image"
    we_stay_out "$format" "$image"
    end_qemu
    sha256sum --quiet -c before
    free_again "$format" "$image"

    qemu_opens -r -f "$format" "$image"
    readers_get_in "$format" "$image"
    serve -r -f "$format" "$image"
    readers_get_in "$format" "$image"
    end_qemu
    readers_get_in "$format" "$image"
    refused "$theirs" qemu-io -f "$format" -c 'write 0 512' "$image"
    refused "$theirs" qemu-img create -q -f "$format" "$image" 1M
    stop_server
    free_again "$format" "$image"

    sha256sum "$image" >before
    serve -f "$format" "$image"
    they_stay_out "$format" "$image"
    [ "$(nbdinfo --size "$uri")" = $((8 << 20)) ]
    kill -KILL "$server"
    wait "$server" || true
    server=
    rm -f "$sock" "$qmp_sock" "$pidfile"
    sha256sum --quiet -c before
    free_again "$format" "$image"

    serve -f "$format" "$image"
    refused "$theirs" qemu-io -f "$format" -c 'write 0 512' "$image"
    stop_server
    free_again "$format" "$image"

    qemu_opens -f "$format" "$image"
    refused "$ours$image" nbdelta info "$image"
    end_qemu -KILL
    free_again "$format" "$image"
done

# A backing file can be read by any number of overlays and other programs, and
# cannot be written to.
qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 one.qcow2
qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 two.qcow2
serve one.qcow2
qemu_opens -f qcow2 two.qcow2
nbdelta info disk.qcow2 >out
qemu-img info disk.qcow2 >out
refused "$theirs" qemu-io -f qcow2 -c 'write 0 512' disk.qcow2
serve_refused "disk.qcow2" -U other.sock disk.qcow2
end_qemu
stop_server
qemu_opens -f qcow2 disk.qcow2
serve_refused "${ours%%.\**}" -U other.sock one.qcow2
end_qemu

# A server that does not lock keeps nobody out.
serve "driver=qcow2,file.driver=file,file.filename=two.qcow2,file.locking=off"
qemu-img info two.qcow2 >out
stop_server
[ ! -e other.sock ] || fail "a server that was refused has left its socket"
