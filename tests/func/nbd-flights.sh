#!/bin/bash
# Requests in flight: exports of files past the page cache, by io_uring and by
# threads; clients that vanish, points in time, and the end with requests on
# their way.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

truncate -s 8M probe
dd if=probe of=/dev/null bs=4k count=1 iflag=direct status=none 2>/dev/null ||
    skip "this file system has no O_DIRECT"

# Built without liburing, or the kernel has none.
why='aio=io_uring cannot be had here: \(Function not\|Operation not permitted\)'
if ! nbdelta map driver=file,filename=probe,aio=io_uring >/dev/null 2>err; then
    grep -q "$why" err || fail "$(cat err)"
    skip "$(cat err)"
fi

# An option that cannot be had is an error; nothing asked for is none.
without=$BUILD/tests/func/without-rings
if "$without" true; then
    if "$without" "$nbdelta" serve -U "$sock" --blockdev \
        driver=file,node-name=f,filename=probe,aio=io_uring 2>err; then
        fail "aio=io_uring where it is forbidden"
    fi
    grep -q 'aio=io_uring cannot be had here: Operation not permitted' err ||
        fail "$(cat err)"
fi

python "$SRCDIR/tests/func/nbd-flights.py" "$nbdelta" "$without"
