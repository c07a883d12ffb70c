#!/bin/bash
# `nbdelta backup` of domains of libvirt where something is not as it should be:
# what is lost, what changes its name, which process dies in the middle.  Each
# case says which exit status and word it has; the point that follows is right,
# others' checkpoints are untouched.
#
#   LIBVIRT_CASES='...'   which (default: a few; make crash has all)
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_libvirt

cases=${LIBVIRT_CASES-renamed no_bitmaps}
[ "$cases" != all ] || cases=
# shellcheck disable=SC2086  # a list of words
python "$SRCDIR/tests/func/backup-libvirt-cases.py" $cases
