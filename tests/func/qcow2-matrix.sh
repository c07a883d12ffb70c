#!/bin/bash
# Random patterns through our server, read by QEMU, and the other way round,
# over cluster size x refcount width x backing file x compression.  Each image
# passes qemu-img check.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io nbdcopy

size=$((3 * 1024 * 1024 + 512))
RANDOM=${SEED:-7}

# Commands for qemu-io that write, zero and trim at random.
random_commands() {
    local i at len max=$size
    for ((i = 0; i < 14; i++)); do
        at=$(((RANDOM * 32768 + RANDOM) % (max / 512) * 512))
        len=$(((RANDOM % 300 + 1) * 512))
        [ $((at + len)) -le "$max" ] || len=$((max - at))
        case $((RANDOM % 5)) in
        0) echo "write -z $at $len" ;;
        1) echo "write -z -u $at $len" ;;
        *) echo "write -P $((RANDOM % 255 + 1)) $at $len" ;;
        esac
    done
    echo flush
}

make_backing() {
    rm -f base.img
    case $1 in
    none) backing=() ;;
    short) # a qcow2 that ends before the overlay does
        qemu-img create -q -f qcow2 -o cluster_size=4k base.img 1M
        qemu-io -f qcow2 -c 'write -P 17 0 700k' base.img >/dev/null
        backing=(-b base.img -F qcow2) ;;
    long) # a raw file that is longer
        truncate -s 4M base.img
        qemu-io -f raw -c 'write -P 23 100k 3900k' base.img >/dev/null
        backing=(-b base.img -F raw) ;;
    esac
}

check_image() {
    qemu-img check -q -f qcow2 disk.qcow2 || fail "$what: qemu-img check"
}

# We write, QEMU reads.
ours_to_qemu() {
    rm -f disk.qcow2
    "$nbdelta" create -o "$options" "${backing[@]}" disk.qcow2 "$size"
    qemu-img convert -f qcow2 -O raw disk.qcow2 model.raw
    random_commands >commands
    serve disk=disk.qcow2
    qemu-io -f raw "$uri" <commands >/dev/null
    qemu-io -f raw model.raw <commands >/dev/null
    qemu-img compare -q -f raw -F raw "$uri" model.raw ||
        fail "$what: the export differs from what was written"
    stop_server
    check_image
    qemu-img compare -q -f qcow2 -F raw disk.qcow2 model.raw ||
        fail "$what: QEMU reads something else than was written"
}

# QEMU writes, we read, and overwrite (compressed clusters, too).
qemu_to_ours() {
    rm -f disk.qcow2
    if [ "$compress" = yes ]; then
        qemu-io -f raw -c "write -P 99 64k 1M" model.raw >/dev/null
        qemu-img convert -c -f raw -O qcow2 -o "$options" model.raw disk.qcow2
    else
        qemu-img create -q -f qcow2 -o "$options" "${backing[@]}" disk.qcow2 \
            "$size"
        random_commands >commands
        qemu-io -f qcow2 disk.qcow2 <commands >/dev/null
        qemu-img convert -f qcow2 -O raw disk.qcow2 model.raw
    fi
    random_commands >commands
    serve disk=disk.qcow2
    nbdcopy "$uri" ours.raw
    cmp ours.raw model.raw || fail "$what: we read something else than QEMU"
    qemu-io -f raw "$uri" <commands >/dev/null
    stop_server
    qemu-io -f raw model.raw <commands >/dev/null
    check_image
    qemu-img compare -q -f qcow2 -F raw disk.qcow2 model.raw ||
        fail "$what: overwriting went wrong"
}

combination() {
    what="$options, backing $1, compressed $compress"
    make_backing "$1"
    ours_to_qemu
    qemu_to_ours
}

for cluster in 512 4k 64k 2M; do
    for bits in 1 16 64; do
        options=cluster_size=$cluster,refcount_bits=$bits
        compress=no
        for back in none short long; do
            combination $back
        done
        # Compressed clusters share host clusters: they need refcounts > 1.
        if [ "$bits" != 1 ]; then
            compress=yes
            combination none
            options+=,compression_type=zstd
            combination none
        fi
    done
    options=cluster_size=$cluster,compat=0.10
    compress=no
    combination short
    combination none
    compress=yes
    combination none
done
