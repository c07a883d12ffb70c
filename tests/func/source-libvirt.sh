#!/bin/bash
# Disks of libvirt's domains as a source of backups: full, increments, what
# outlives a crash of each party, and what is said where it cannot work.
# Libvirt and QEMU are the real ones; the guests never run.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img

tool=$BUILD/tests/func/source-tool

# The programs start without modules, and say which one they lack.
rc=0
NBDELTA_MODULES=$PWD/none "$tool" libvirt:vm abc >out || rc=$?
[ "$rc" -eq 1 ] || fail "a module that is not there was loaded"
grep -F "nbdelta's module for libvirt is not installed" out
mkdir bad
echo "no module" >bad/nbdelta-source-libvirt.so
NBDELTA_MODULES=$PWD/bad "$tool" libvirt:vm abc >out || true
grep -F "nbdelta's module for libvirt cannot be loaded" out
if ldd "$nbdelta" | grep libvirt; then
    fail "nbdelta itself needs libvirt"
fi

need_libvirt
python "$SRCDIR/tests/func/source-libvirt.py"
