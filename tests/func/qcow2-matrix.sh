#!/bin/bash
# Random patterns through our server, read by QEMU, and the other way round,
# over pairs of cluster size, refcount width, backing file and compression, and
# over subclusters x data files x preallocation.  Each image passes qemu-img check
# and ours, and of subclusters qemu-img map says what our map does.
#
# One process, of QEMU or of ours, has all images, because what costs time is to
# start programs.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io qemu-storage-daemon

size=$((3 * 1024 * 1024 + 512))
names=()
maps=()

matrix() {
    python "$SRCDIR/tests/func/qcow2_matrix.py" "$@"
}

make_bases() {
    # One that ends before the overlay does, and one that is longer.
    qemu-img create -q -f qcow2 -o cluster_size=4k base-short.img 1M
    qemu-io -f qcow2 -c 'write -P 17 0 700k' base-short.img >/dev/null
    truncate -s 4M base-long.img
    qemu-io -f raw -c 'write -P 23 100k 3900k' base-long.img >/dev/null
}

backing_of() {
    case $1 in
    none) backing=() ;;
    short) backing=(-b base-short.img -F qcow2) ;;
    long) backing=(-b base-long.img -F raw) ;;
    esac
}

# make_image NAME WHO BACKING COMPRESSED OPTIONS
make_image() {
    backing_of "$3"
    if [ "$2" = OURS ]; then
        nbdelta create -o "$5" "${backing[@]}" "$1" "$size"
    elif [ "$4" = yes ]; then
        qemu-img convert -c -f raw -O qcow2 -o "$5" "$1.before" "$1"
    else
        qemu-img create -q -f qcow2 -o "$5" "${backing[@]}" "$1" "$size"
    fi
}

# save_maps NAME WHEN
save_maps() {
    qemu-img map --output=json -f qcow2 "$1" >"$1.$2.qemu"
    nbdelta map --output=json -f qcow2 "$1" >"$1.$2.ours"
    maps+=("$1.$2")
}

verify_image() {
    qemu-img check -q -f qcow2 "$1" || fail "$*: qemu-img check"
    nbdelta check "$1" >check.out || fail "$*: check: $(cat check.out)"
}

# What QEMU shows of all images.
verify_disks() {
    local args=() name
    for name in "${names[@]}"; do
        args+=(--blockdev "driver=qcow2,node-name=$name,read-only=on,file.driver=file,file.filename=$name"
            --export "nbd,id=$name,node-name=$name,name=$name")
    done
    qemu-storage-daemon --nbd-server "addr.type=unix,addr.path=$PWD/qemu.sock" \
        "${args[@]}" --pidfile qemu.pid &
    qemu=$!
    at_exit kill "$qemu"
    wait_until "qemu-storage-daemon is ready" test -s qemu.pid
    matrix verify "$PWD/qemu.sock"
}

make_bases
matrix plan
while read -r -a image; do
    make_image "${image[@]}"
    names+=("${image[0]}")
done <images
qemu-io <commands >/dev/null
subclusters=$(awk '$5 ~ /extended_l2/ { print $1 }' images)
for name in $subclusters; do
    save_maps "$name" before
done
exports=()
for name in "${names[@]}"; do
    exports+=("$name=$name")
done
serve "${exports[@]}"
matrix run "$sock"
stop_server
verify_disks
while read -r -a image; do
    verify_image "${image[@]}"
done <images
for name in $subclusters; do
    save_maps "$name" after
done
matrix maps "${maps[@]}"
