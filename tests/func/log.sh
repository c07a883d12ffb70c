#!/bin/bash
# The log has a line for each event that no client waits for: a guest's failed
# I/O (once, however often), a failed job, a backup's point in time that is
# lost, a bitmap that cannot be trusted.  No name in it steers a terminal.
# shellcheck disable=SC2317  # functions that wait_until calls
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-io jq
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

# Line $1 (an extended regular expression) is there $2 times, 1 by default.
told() {
    local n
    n=$(grep -cE "^nbdelta: [-0-9]+T[:0-9]+Z $1\$" log) || :
    [ "$n" -eq "${2-1}" ] || fail "$n times, not ${2-1}: '$1'; $(cat log)"
}

# A bitmap that was in use when its program ended.
nbdelta create used.qcow2 16M
nbdelta bitmap add used.qcow2 b0
serve used=used.qcow2 2>log
python - <<'END'
import os
import nbd
h = nbd.NBD()
h.connect_uri(f'nbd+unix:///used?socket={os.getcwd()}/nbd.sock')
h.pwrite(bytes(65536), 0)
END
[ ! -s log ] || fail "without a reason: $(cat log)"
stop_server
python - <<'END'
import struct
with open('used.qcow2', 'r+b') as f:
    head = f.read(65536)
    at, = struct.unpack_from('>L', head, 100)
    while struct.unpack_from('>L', head, at)[0] != 0x23852875:
        at += 8 + (struct.unpack_from('>L', head, at + 4)[0] + 7) // 8 * 8
    entry, = struct.unpack_from('>Q', head, at + 24)
    f.seek(entry + 12)
    f.write(struct.pack('>L', 3))
END

cat >fail.conf <<'END'
[inject-error]
event = "none"
iotype = "write"
errno = "28"
immediately = "off"
END
mkimg disk.raw 16M
mkimg source.raw 16M
truncate -s 16M full.raw target.raw
serve --blockdev driver=file,filename=full.raw,node-name=full-file \
    --blockdev driver=blkdebug,image=full-file,config=fail.conf,node-name=full \
    --blockdev driver=file,filename=target.raw,node-name=target-file \
    --blockdev driver=blkdebug,image=target-file,config=fail.conf,node-name=target \
    --blockdev driver=file,filename=source.raw,node-name=source \
    --export $'type=nbd,id=e,node-name=full,writable=on,name=n\e[31m\u009b\u202ed' \
    vda=driver=raw,file.driver=file,file.filename=disk.raw \
    used=used.qcow2 \
    2>log
told "bitmap 'b0' of node 'used' cannot be trusted: .*"

python - <<'END'
import os
import nbd
h = nbd.NBD()
h.set_export_name('n\x1b[31m\x9b\u202ed')
h.connect_unix(os.getcwd() + '/nbd.sock')
for i in range(50):
    try:
        h.pwrite(b'x' * 65536, 65536 * i)
    except nbd.Error:
        pass
    else:
        raise AssertionError('it can be written')
# That is no fault of the disk.
h.set_strict_mode(0)
try:
    h.pread(512, h.get_size())
except nbd.Error:
    pass
END
told "export 'n\?\[31m\?\?d': a client's write at 0 \(65536 bytes\) failed: No space left on device"

if qmp blockdev-backup job-id=j device=source target=target sync=full --wait \
    >/dev/null 2>&1; then
    fail "a backup to a full disk ends well"
fi
told "job 'j' \(backup\) failed: .*No space left on device.*"
qmp blockdev-backup job-id=k device=source target=target sync=full \
    on-target-error=stop >/dev/null
waits() {
    qmp query-block-jobs | jq -e '.[0]."io-status" == "nospace"' >/dev/null
}
wait_until "a job has stopped" waits
told "job 'k' \(backup\) waits for job-resume: a write failed: No space left on device"
qmp block-job-cancel device=k force=true >/dev/null
gone() {
    qmp query-jobs | jq -e 'length == 0' >/dev/null
}
wait_until "the job is gone" gone
told "job 'k' \(backup\) failed: .*" 0 # the client that has cancelled it knows

nbdelta backup-begin "$qmp_sock" --disk vda --scratch .,quota=64k \
    --max-delay 1000 >/dev/null
told "backup 'b1' begun, disks: 1"
python - <<'END'
import os
import nbd
h = nbd.NBD()
h.connect_uri(f'nbd+unix:///vda?socket={os.getcwd()}/nbd.sock')
h.pwrite(b'y' * (8 << 20), 0)
END
told "a point in time of node 'vda' is lost: quota \(No space left on device\)"
nbdelta backup-end "$qmp_sock" b1 --failed
told "backup 'b1' ended: failed"
stop_server
[ "$(grep -vc '^nbdelta: 20' log)" -eq 0 ] || fail "others: $(cat log)"
LC_ALL=C grep -q $'[\x01-\x09\x0b-\x1f\x7f-\xff]' log && fail "controls: $(cat log)"
exit 0
