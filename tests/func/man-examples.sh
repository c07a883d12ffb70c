#!/bin/bash
# The examples of the man pages work, word for word.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

# The text between .EX and .EE as it is printed.
examples() {
    sed -n '/^\.EX$/,/^\.EE$/{/^\.E[XE]$/!p}' "$SRCDIR/man/$1.1" |
        sed -e 's/\\-/-/g' -e 's/\\e/\\/g'
}

wait_for() {
    local tries
    for ((tries = 0; tries < 300; tries++)); do
        if [ -e "$1" ]; then
            return
        fi
        kill -0 "$server" || { echo "the server has ended"; exit 1; }
        sleep 0.1
    done
    echo "no $1 after 30 s"
    exit 1
}

run() {
    local line
    echo "+ $1"
    case $1 in
    *' &')
        eval "$1"
        server=$!
        wait_for nbd.sock
        wait_for qmp.sock ;;
    *)
        eval "$1" ;;
    esac
}

# Lines that end with \ go on.
run_page() {
    local line whole=
    while IFS= read -r line <&3; do
        whole+=$line
        case $whole in
        *\\) whole=${whole%\\} ;;
        *) run "$whole"; whole= ;;
        esac
    done 3< <(examples "$1")
}

truncate -s 1M boot.img
run_page nbdelta
wait "$server"
server=
[ "$(qemu-img info --output json inc.qcow2 | jq -r '."backing-filename"')" = \
    full.qcow2 ]
qemu-img compare inc.qcow2 disk.qcow2
rm -f -- *.qcow2 *.sock

run_page nbdelta-create
[ "$(qemu-img info --output json small.qcow2 | jq '."cluster-size"')" = \
    131072 ]

nbdelta serve -U nbd.sock --qmp qmp.sock overlay.qcow2 &
server=$!
wait_for qmp.sock
wait_for nbd.sock
nbdelta qmp qmp.sock block-dirty-bitmap-add node=disk0 name=b0
run_page nbdelta-info
run_page nbdelta-map
nbdelta qmp qmp.sock block-dirty-bitmap-remove node=disk0 name=b0
run_page nbdelta-qmp
wait "$server"
server=

nbdelta create disk.qcow2 1M
run_page nbdelta-bitmap
run_page nbdelta-resize
nbdelta create disk.qcow2 1M

qemu-img create -q -f qcow2 vda.qcow2 4M
qemu-img create -q -f qcow2 vdb.qcow2 4M
rm -f -- *.sock
run_page nbdelta-backup-begin
wait "$server"
server=
for disk in vda vdb; do
    qemu-img compare -q $disk.tue.qcow2 $disk.qcow2
done
