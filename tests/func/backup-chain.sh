#!/bin/bash
# A chain of 400 points, one over the other, is read, served and pruned, also
# where the soft limit of descriptors is lower than that; --progress=json tells
# how far it is.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io nbdcopy jq

python "$SRCDIR/tests/func/store_chain.py" dir 400 disk.raw
[ "$(ulimit -Hn)" = unlimited ] || [ "$(ulimit -Hn)" -ge 1000 ] ||
    skip "descriptors are limited to $(ulimit -Hn)"
ulimit -Sn 128

progress() { # COMMAND...: its lines grow up to the total, which is not 0
    nbdelta "$@" --progress=json 2>lines
    jq -es 'length > 0 and .[-1].total > 0 and .[-1].done == .[-1].total and
        ([.[].done] == ([.[].done] | sort))' lines >out || fail "$(cat lines)"
}

progress verify dir
progress restore dir vda=out.raw
cmp out.raw disk.raw
[ "$(jq -s '.[-1].total' lines)" -eq $((8 << 20)) ] || fail "$(cat lines)"
for command in 'verify dir' 'restore dir vda=x.raw'; do
    rc=0
    # shellcheck disable=SC2086  # words
    nbdelta $command --progress=bar >out 2>&1 || rc=$?
    [ $rc -eq 2 ] || fail "$command: $rc"
done

# What is there already is read, and only what differs is written.
printf x | dd of=out.raw bs=1 seek=3000000 conv=notrunc status=none
nbdelta restore --force dir vda=out.raw
cmp out.raw disk.raw

nbdelta points --check --max-age 2d dir >out || fail "$(cat out)"
grep -q '400 points' out || fail "$(cat out)"
serve dir
nbdcopy "$uri" served.raw
cmp served.raw disk.raw
stop_server

# Over NBD, to a server with several connections.
qemu-img create -q -f qcow2 target.qcow2 8M
serve target.qcow2
nbdelta restore dir "vda=$uri"
stop_server
qemu-img compare -q -f qcow2 -F raw target.qcow2 disk.raw

nbdelta prune --keep-daily 7 --keep-weekly 4 --keep-monthly 12 \
    --keep-yearly 3 --dry-run dir >out
grep -qE '^(36[0-9]|37[0-9]|38[0-9]) of 400 points would go' out ||
    fail "$(tail -n 1 out)"
nbdelta prune --keep-last 396 dir
nbdelta verify --quick dir
nbdelta restore dir vda=after.raw
cmp after.raw disk.raw
