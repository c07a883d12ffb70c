#!/bin/bash
# What QEMU's storage daemon 7.2 crashes on, loses or refuses: here it is
# answered, and the server goes on.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need jq
python -c 'import nbd' 2>/dev/null || skip "python has no libnbd"

nbdelta create disk.qcow2 4M
serve "disk=driver=qcow2,node-name=disk,file.driver=file,\
file.filename=$PWD/disk.qcow2" \
    "bad=driver=blkdebug,node-name=bad,image.driver=mem,image.size=1M,\
inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.once=on"

# COMMAND JSON: it is refused with the text $1.
refused() {
    if qmp "$2" "$3" 2>err; then
        fail "not refused: $2 $3"
    fi
    [ "$(cat err)" = "nbdelta: qmp: GenericError: $1" ] ||
        fail "$2 $3: $(cat err)"
}

# It aborts on these.
refused "Value '-1' is out of range for parameter 'size'" blockdev-add \
    '{"driver": "null-co", "node-name": "n", "size": -1}'
[ "$(qmp blockdev-reopen '{"options": []}')" = '{}' ] || fail "reopen of none"
qmp block-dirty-bitmap-add node=disk name=b0 >/dev/null
[ "$(qmp block-dirty-bitmap-merge \
    '{"node": "disk", "target": "b0", "bitmaps": []}')" = '{}' ] ||
    fail "merge of none"
refused "Dirty bitmap 'no' not found" transaction '{"actions": [
    {"type": "block-dirty-bitmap-disable",
     "data": {"node": "disk", "name": "b0"}},
    {"type": "block-dirty-bitmap-enable",
     "data": {"node": "disk", "name": "no"}}]}'
qmp query-named-block-nodes | jq -e 'any(.[]."dirty-bitmaps"[]?;
    .name == "b0" and .recording)' >/dev/null || fail "not rolled back"

# A disk that is exported can be resized; later clients see the new size.
qmp block_resize node-name=disk size=8M >/dev/null
python - "$(uri_of disk)" "$(uri_of bad)" <<'EOF'
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
assert h.get_size() == 8 << 20
h.shutdown()

# A read that fails is an error of that read; the client stays.
h = nbd.NBD()
h.connect_uri(sys.argv[2])
try:
    h.pread(512, 0)
    raise SystemExit('no error')
except nbd.Error as e:
    assert e.errno == 'EIO', e
assert h.pread(512, 0) == bytes(512)
h.shutdown()
EOF

# One greeting, and nothing that is sent before it is lost; a long request is
# read in one go.
python - "$qmp_sock" <<'EOF'
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
long = 'x' * (2 << 20)
s.sendall(b'{"execute": "qmp_capabilities", "id": 0}' + b''.join(
    json.dumps({'execute': 'query-version', 'id': i}).encode()
    for i in range(1, 50)))
s.sendall(json.dumps({'execute': 'query-version', 'id': long}).encode())
f = s.makefile()
assert 'QMP' in json.loads(f.readline())
got = [json.loads(f.readline()) for _ in range(51)]
assert [m['id'] for m in got] == list(range(50)) + [long], got[0]
assert all('return' in m for m in got)
EOF

# It leaves no socket behind: stop_server looks.
stop_server
