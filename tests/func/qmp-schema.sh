#!/bin/bash
# query-qmp-schema is complete, describes what is returned and emitted, and
# agrees with the schema of QEMU's storage daemon.  The man pages have each
# command, argument and event of it.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img jq

mkimg base.raw 8M
qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2
truncate -s 1M free.raw
serve disk=top.qcow2
theirs=$(command -v qemu-storage-daemon || true)
python "$SRCDIR/tests/func/qmp-schema.py" "$qmp_sock" "$SRCDIR/man" "$theirs"

# tests/run gets to see all of that.
for said in '"ret-type": "query-block"' '"arg-type": "JOB_STATUS_CHANGE"'; do
    grep -q "^{$said, \"value\": " "$NBDELTA_QMP_RECORD" ||
        fail "nobody has recorded $said"
done

# What can be emitted is described.
grep -rhoE '"((BACKUP|BLOCK|JOB|DEVICE|NODE)_[A-Z_]+|RESET|SHUTDOWN)"' "$SRCDIR"/blocklib/*/*.c \
    "$SRCDIR"/server/{nbd/export,backup/session,backup/watch,commands/core,commands/device,serve/notices}.c | tr -d '"' | sort -u >emitted
[ -s emitted ]
qmp query-qmp-schema | jq -r '.[] | select(."meta-type" == "event").name' |
    sort >described
diff emitted described || fail "events that are emitted <, described >"
