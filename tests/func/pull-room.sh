#!/bin/bash
# A backup whose scratch is full: many guests' writes wait for room.  The client
# that pulls can still make room, by discards.  No write fails, and nothing is
# lost.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need fio jq
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

mkimg disk.raw 64M
cp disk.raw then.raw
mkdir scratch
serve vda=disk.raw
nbdelta backup-begin "$qmp_sock" --disk vda --scratch scratch,quota=2M \
    --max-delay 120000 --discard --output json >begun
past=$(jq -r '.disks[0].uri' begun)
id=$(jq -r .id begun)

# More requests at once than the server has threads.
fio --name=guest --ioengine=nbd --uri="$(uri_of vda)" --rw=randwrite --bs=4k \
    --numjobs=6 --iodepth=16 --size=64M --time_based --runtime=600 \
    --group_reporting >fio.log 2>&1 &
guest=$!
end_guest() {
    if [ -n "$guest" ]; then
        kill -INT "$guest" 2>/dev/null
        wait "$guest"
        guest=
    fi
}
at_exit end_guest

full() {
    qmp query-backups | jq -e '.[0].disks[0].scratch |
        .bytes == .quota' >/dev/null
}
wait_until "the scratch is full" full

cat >pull.py <<'END'
import sys
import nbd

h = nbd.NBD()
h.connect_uri(sys.argv[1])
step = 1 << 20
with open('then.raw', 'rb') as then:
    for at in range(0, h.get_size(), step):
        assert bytes(h.pread(step, at)) == then.read(step), at
        h.trim(step, at)
END
python pull.py "$past"
qmp query-backups | jq -e '.[0].disks[0] | .lost == null and
    .left == 0 and .scratch.bytes == 0 and .copied > .scratch.quota' \
    >/dev/null || fail "$(qmp query-backups)"
kill -0 "$guest" || fail "the guest has gone: $(cat fio.log)"
end_guest || :
if grep -qi error fio.log; then
    fail "a write has failed: $(cat fio.log)"
fi
nbdelta backup-end "$qmp_sock" "$id" >/dev/null
[ -z "$(ls -A scratch)" ] || fail "something is left in the scratch directory"
stop_server
