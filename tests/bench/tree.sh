#!/bin/bash
# tests/bench/tree.sh DIR RELEASE
#
# Have the peers of another Debian release in DIR/root: a tree that
# tests/peers.sh makes, with their packages.  The programs are started by the
# tree's own loader, so nothing stays mounted.
set -eu -o pipefail
packages='qemu-utils qemu-system-common nbdkit libnbd-bin'
missing=
for program in qemu-nbd qemu-storage-daemon qemu-img nbdkit; do
    [ -x "$1/root/usr/bin/$program" ] || missing=1
done
[ -n "$missing" ] || exit 0
echo "Making a tree of Debian $2 with its $packages, in $1"
rc=0
tests/peers.sh "$1" "$2" env DEBIAN_FRONTEND=noninteractive sh -c "
    apt-get -q update &&
    apt-get -q install -y --no-install-recommends $packages" \
    >"$1.log" 2>&1 || rc=$?
if [ $rc -ne 0 ]; then
    tail -n 3 "$1.log"
    echo "bench: there are no peers of Debian $2 without such a tree" >&2
    exit 1
fi
