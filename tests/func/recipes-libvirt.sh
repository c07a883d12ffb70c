#!/bin/bash
# The scripts of nbdelta-recipes(7) for domains of libvirt work as they stand.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_libvirt

python "$SRCDIR/tests/func/recipes-libvirt.py"
