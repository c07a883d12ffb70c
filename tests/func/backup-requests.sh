#!/bin/bash
# What `nbdelta backup` asks an NBD server for: reads of 256 KiB at most, which
# QEMU has memory at hand for, and what is where only once for what is alike.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdkit

head -c 16M /dev/urandom >disk.raw
nbdkit -f -U "$PWD/source.sock" --filter=log file disk.raw logfile=log 2>nbdkit.log &
nbdkit=$!
at_exit sh -c "kill $nbdkit 2>/dev/null || :"
wait_until 'nbdkit listens' listens "$PWD/source.sock"
nbdelta backup "nbd+unix:///?socket=$PWD/source.sock" dir
nbdelta verify dir

largest=0
reads=0
while read -r count; do
    reads=$((reads + 1))
    [ $((count)) -le $largest ] || largest=$((count))
done < <(sed -n 's/.* Read id=.* count=\(0x[0-9a-f]*\) .*/\1/p' log)
[ "$reads" -ge 64 ] || fail "$reads reads: $(head -n 40 log)"
[ "$largest" -eq 262144 ] || fail "the largest read has $largest bytes"
questions=$(grep -c ' Extents id=' log || :)
if [ "$questions" -lt 1 ] || [ "$questions" -gt 8 ]; then
    fail "$questions questions: $(head -n 40 log)"
fi
