#!/bin/bash
# Nodes for tests and limits, in a server: requests fail as the rules of a
# blkdebug node say; images grow through filters; a throttle group is used
# and cannot go before its nodes have gone.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io

# --- blkdebug: by options and by file name ---

qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-img create -q -f qcow2 other.qcow2 64M
cat >rules <<'RULES'
[inject-error]
event = "write_aio"
errno = "28"
once = "on"
RULES
serve vda=driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=disk.qcow2,file.inject-error.0.event=read_aio,file.inject-error.0.sector=1024 \
    vdb=blkdebug:rules:other.qcow2

io() {
    qemu-io -f raw "$(uri_of "$1")" -c "$2" >io.out 2>&1
}

io vda 'write -P 3 32M 5M' || fail "writing: $(cat io.out)"
io vda 'read -P 3 34M 1M' || fail "a sector that was not named: $(cat io.out)"
io vda 'read -P 3 32M 2M' && fail "the sector that was named did not fail"
grep -q 'Input/output error' io.out
io vdb 'write -P 4 0 64k' && fail "a write did not fail as the file says"
grep -q 'No space left on device' io.out
io vdb 'write -P 4 0 64k' || fail "the second write: $(cat io.out)"
stop_server
qemu-img check -q disk.qcow2 || fail "disk.qcow2 is damaged"
qemu-img check -q other.qcow2 || fail "other.qcow2 is damaged"
qemu-io -f qcow2 -r disk.qcow2 -c 'read -P 3 32M 5M' >io.out
qemu-io -f qcow2 -r other.qcow2 -c 'read -P 4 0 64k' >>io.out
! grep -q 'verification failed' io.out || fail "$(cat io.out)"

serve_refused 'blkdebug requires both config file and image path' \
    blkdebug:disk.qcow2

# --- throttle ---

mkimg disk.raw 1M
serve --object throttle-group,id=tg,limits.iops-total=1000 \
    --blockdev driver=file,node-name=f,filename=disk.raw \
    --blockdev driver=throttle,node-name=t,throttle-group=tg,file=f \
    vda=driver=raw,file=t
qemu-img compare -q -f raw -F raw "$(uri_of vda)" disk.raw
! qmp object-del id=tg >out 2>&1 || fail "a group that is used is gone"
grep -qF "object 'tg' is in use, can not be deleted" out || fail "$(cat out)"
! qmp object-add qom-type=throttle-group id=tg >out 2>&1 ||
    fail "two groups of one name"
qmp object-add qom-type=throttle-group id=other x-bps-total=4096
qmp blockdev-add driver=throttle node-name=t2 throttle-group=other \
    file.driver=null-co
! qmp object-del id=other >out 2>&1 || fail "a group that is used is gone"
qmp blockdev-del node-name=t2
qmp object-del id=other
! qmp blockdev-add driver=throttle node-name=t2 throttle-group=other \
    file.driver=null-co >out 2>&1 || fail "a node of a group that is gone"
grep -qF "Throttle group 'other' does not exist" out || fail "$(cat out)"
! qmp object-add '{"qom-type": "throttle-group", "id": "x", "limits":
    {"iops-total": 1, "iops-read": 1}}' >out 2>&1 || fail "$(cat out)"
grep -qF 'cannot be used at the same time' out || fail "$(cat out)"
stop_server

# --- the end, while requests are held up ---

cat >waits.py <<'END'
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
first = h.aio_pread(nbd.Buffer(65536), 0)
while not h.aio_command_completed(first):  # the others wait for long
    h.poll(-1)
for i in range(1, 4):
    h.aio_pread(nbd.Buffer(65536), i * 65536)
print("wait", flush=True)
try:
    while h.aio_in_flight():
        h.poll(-1)
except nbd.Error:
    pass
END
serve --object throttle-group,id=tg,x-bps-total=1 \
    --blockdev driver=file,node-name=f,filename=disk.raw \
    --blockdev driver=throttle,node-name=t,throttle-group=tg,file=f \
    vda=driver=raw,file=t
python waits.py "$(uri_of vda)" >said &
client=$!
wait_until "the client's reads wait" test -s said
nbdinfo --size "$(uri_of vda)" >/dev/null # after what came before
stop_server
wait "$client"
