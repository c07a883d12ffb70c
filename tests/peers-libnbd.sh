#!/bin/bash
# tests/peers-libnbd.sh DIR    libnbd's own interoperability tests against us
#
# Runs in the tree of tests/peers.sh, as root: takes the source package of the
# libnbd that is installed there to DIR, and runs its tests of servers with
# `nbdelta serve` (BUILD) in place of qemu-nbd.
# nbdelta contains none of libnbd's code.
set -eu -o pipefail
: "${BUILD:?}"
dir=$(realpath -m "$1")
shift
here=$(dirname "$(dirname "$(realpath "$0")")")
export NBDELTA=$BUILD/nbdelta

# What of its tests has a server that we can stand in for.  structured-read
# wants qemu-nbd's chunks, in which a hole of 512 bytes has one of its own; ours
# have such small ones among the data.
tests=(interop-qemu-nbd interop-qemu-nbd-tls-certs interop-qemu-nbd-tls-psk
    list-exports-qemu-nbd socket-activation-qemu-nbd dirty-bitmap.sh
    block-status-64.sh interop-qemu-block-size.sh opt-extended-headers.sh
    block-status-payload.sh strict-mode-auto-flag.sh)

build() {
    local line
    line=$(awk '$1 == "deb" { print $2, $3, $4; exit }' /etc/apt/sources.list)
    echo "deb-src $line" >/etc/apt/sources.list.d/src.list
    apt-get -q update
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y \
        --no-install-recommends bzip2 dpkg-dev gawk libxml2-dev perl
    rm -rf libnbd
    apt-get -q source --download-only libnbd
    mkdir libnbd
    tar -C libnbd --strip-components=1 -xf libnbd_*.orig.tar.gz
    cd libnbd
    ./configure --disable-python --disable-ocaml --disable-golang \
        --disable-rust --disable-fuse --disable-ublk \
        QEMU_NBD="$here/tests/iotests/qemu-nbd"
    make -C common/utils
    make -C lib
    make -C tests functions.sh pki/stamp-pki keys.psk
}

mkdir -p "$dir"
cd "$dir"
if [ "${1-}" = --build ]; then
    build
    exit
fi
if [ ! -e built ]; then
    # In a shell of its own: errexit does not hold within a condition.
    if ! "$here/tests/peers-libnbd.sh" "$dir" --build </dev/null >log 2>&1; then
        tail -n 20 log
        echo "skipped: libnbd's tests cannot be had or built here"
        exit 77
    fi
    touch built
fi
cd libnbd/interop
make check TESTS="${tests[*]}"
