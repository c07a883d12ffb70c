#!/bin/bash
# 65535 bitmaps in an image, the most there can be: listed, changed and removed
# in bounded time and memory, also when none of them can be used.  Tables that
# are longer than what one refcount block counts.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img

most=65535

# Address space is no measure with a sanitizer.
bounded() {
    if [ -z "${SANITIZE-}" ]; then
        (ulimit -v 500000 && exec timeout 100 nbdelta bitmap "$@")
    else
        timeout 250 nbdelta bitmap "$@"
    fi
}

many() {
    python "$SRCDIR/tests/func/bitmap-many.py" many.qcow2 "$@"
}

count_is() {
    local count
    count=$(bounded list many.qcow2 | wc -l) || true
    [ "$count" = $(($1 + 1)) ] || fail "there are $count lines, not $1 and one"
}

many 200
qemu-img check -q many.qcow2
[ "$(qemu-img info many.qcow2 | grep -c 'name: b')" = 200 ]

many $most
count_is $most
rc=0
bounded add many.qcow2 more 2>err || rc=$?
[ "$rc" = 1 ] || fail "one more than the most: $rc"
grep -q "Maximum number of persistent bitmaps" err || fail "$(cat err)"
bounded remove many.qcow2 b000007 b065534
bounded add many.qcow2 more
count_is $((most - 1))
bounded list many.qcow2 more b000001 b000002 >listed
awk 'NR > 1 { print $3 }' listed | sort -n | tr '\n' ' ' |
    grep -qx '0 65536 67108864 ' || fail "$(cat listed)"

many $most broken
count_is $most
bounded remove many.qcow2 b000000
count_is $((most - 1))
many $most twins
count_is $most
bounded remove many.qcow2 twin
[ "$(bounded list many.qcow2)" = '' ]

# An L1 table of 256 clusters and more.
nbdelta create -o cluster_size=512 grows.qcow2 1M
serve disk0=grows.qcow2
qmp block_resize node-name=disk0 size=$((2 << 30)) >/dev/null
qemu-io -f raw -c 'write -q -P 7 2047M 1M' "$(uri_of disk0)"
stop_server
qemu-img check -q grows.qcow2
qemu-io -f qcow2 -c 'read -q -P 7 2047M 1M' grows.qcow2
