#!/bin/bash
# Images that claim the largest tables that the format allows, with entries that
# lead to as many places: opening one for writing takes no more memory than its
# L1 table (32 MiB at most) and 16 MiB for the set of metadata clusters.  With
# the largest snapshot table and refcount table on top it takes those, too (16
# and 8 MiB).  Up to 2 MiB more are the daemon's.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
[ -z "${SANITIZE-}" ] || skip "a sanitizer has memory of its own"

image() {
    python "$SRCDIR/tests/func/qcow2-memory.py" "$@"
}

# Set peak: KiB.
measure_peak() {
    image "$1" image
    serve --log-level=error d=image
    peak=$(awk '/^VmHWM/ { print $2 }' "/proc/$server/status")
    stop_server
    rm image
}

measure_peak plain
plain=$peak
for shape in $(image); do
    most=$((50 * 1024))
    [ "$shape" != everything ] || most=$((74 * 1024))
    measure_peak "$shape"
    [ $((peak - plain)) -le "$most" ] ||
        fail "$shape: $((peak - plain)) KiB, and $most are the limit"
    echo "$shape: $((peak - plain)) KiB"
done
