#!/bin/bash
# NAME@snapshot=SNAP over NBD: an internal snapshot of a disk that a guest writes
# to, in the snapshot's size, with its own block status, by all names that QEMU
# has for it.  A snapshot that somebody reads is not removed: neither under a
# client, nor under another process that has the image open without locks.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io nbdinfo jq
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

view() { # DISK SNAP
    printf 'nbd+unix:///%s@snapshot=%s?socket=%s\n' "$1" "$2" "$sock"
}
reads_as() { # DISK SNAP RAW
    qemu-img compare -f raw -F raw "$(view "$1" "$2")" "$3" >out ||
        fail "$1@snapshot=$2 is not $3: $(cat out)"
}
refused() { # TEXT COMMAND...
    local text=$1
    shift
    if "$@" >out 2>&1; then fail "$*: not refused"; fi
    grep -qF "$text" out || fail "$*: said '$(cat out)', not '$text'"
}

### What a view shows.

# Data, zeroes and compressed clusters, over a backing file that is shorter.
qemu-img create -q -f qcow2 base.qcow2 3M
qemu-io -c 'write -P 1 1M 2M' base.qcow2 >out
qemu-img create -q -f qcow2 -o cluster_size=16k -b base.qcow2 -F qcow2 \
    d.qcow2 8M
qemu-io -c 'write -P 2 0 1M' -c 'write -z 2M 64k' -c 'write -c -P 3 4M 128k' \
    -c 'write -P 4 7M 512' d.qcow2 >out
qemu-img snapshot -c 'a,b' d.qcow2
qemu-img convert -O raw d.qcow2 one.raw
qemu-img snapshot -c 1x d.qcow2
qemu-img resize -q d.qcow2 12M

key=secret,id=s,file=key
printf 'a passphrase' >key
luks=encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10
nbdelta create --object $key -o $luks luks.qcow2 2M

opened=driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename=
serve --object $key d=d.qcow2 "luks=${opened}luks.qcow2"
for name in 1 a,b snapshot.id=1 snapshot.name=a,,b \
    snapshot.id=1,snapshot.name=a,,b snapshot.name=a,,b,snapshot.id=1; do
    reads_as d "$name" one.raw
done
for name in 3 a,,b a snapshot.id=2,snapshot.name=a,,b snapshot.id=a,,b \
    snapshot.nam=1x snapshot.name=a,b snapshot.; do
    if nbdinfo --size "$(view d "$name")" >out 2>&1; then
        fail "there is no snapshot $name: $(cat out)"
    fi
done
[ "$(nbdinfo --size "$(view d 1x)")" = $((8 << 20)) ]
[ "$(nbdinfo --size "$(uri_of d)")" = $((12 << 20)) ]
nbdinfo --is readonly "$(view d 1)" || fail "a view can be written to"
nbdinfo --list --json "$(uri_of '')" >out
[ "$(jq -c '[.exports[]."export-name"]' out)" = '["d","luks"]' ]

# Status is that of the snapshot, as map of the image has it.
kinds() { jq -c '.[] | . as $e | range(.start; .start + .length; 16384) |
    [., $e.data, $e.zero]'; }
diff <(nbdelta map -U --snapshot snapshot.id=1 --output json d.qcow2 | kinds) \
    <(nbdelta map --output json "$(view d 1)" | kinds)

# A guest writes and trims; the disk grows, and gets another snapshot.
qemu-io -f raw -c 'write -P 9 0 4M' -c 'discard 4M 2M' -c 'write -P 9 6M 6M' \
    "$(uri_of d)" >out
qmp blockdev-snapshot-internal-sync device=d name=later >out
qmp block_resize node-name=d size=$((16 << 20)) >out
reads_as d 1 one.raw
reads_as d 1x one.raw
qemu-img convert -f raw -O raw "$(uri_of d)" now.raw
truncate -s 12M now.raw
reads_as d later now.raw

# Encrypted: each snapshot is decrypted.
qemu-io -f raw -c 'write -P 5 0 1M' "$(uri_of luks)" >out
qemu-img convert -f raw -O raw "$(uri_of luks)" luks.raw
qmp blockdev-snapshot-internal-sync device=luks name=s >out
qemu-io -f raw -c 'write -P 6 0 1M' "$(uri_of luks)" >out
reads_as luks s luks.raw

### What is shown is not removed.

python - "$(view d 1)" "$(view d later)" "$nbdelta" "$qmp_sock" one.raw <<'END'
import subprocess
import sys
import nbd
uri, other, program, qmp, raw = sys.argv[1:]
want = open(raw, 'rb').read()
busy = 'the snapshot is in use'


def remove(which):
    r = subprocess.run([program, 'qmp', qmp,
                        'blockdev-snapshot-delete-internal-sync', 'device=d',
                        which], capture_output=True, text=True)
    return r.stdout + r.stderr


def opened(at):
    h = nbd.NBD()
    h.connect_uri(at)
    return h


def same(h):
    assert h.pread(8 << 20, 0) == want


a, b, later = opened(uri), opened(uri), opened(other)
assert a.can_multi_conn() and a.is_read_only()
said = remove('id=1')
assert busy in said, said
same(a)
a.shutdown()
said = remove('id=1')
assert busy in said, said
same(b)
assert 'error' not in remove('name=1x')
same(b)
b.shutdown()
said = remove('id=1')
while busy in said: # until the server has seen that the client has gone
    said = remove('id=1')
assert 'a,b' in said, said
try:
    opened(uri)
except nbd.Error:
    pass
else:
    sys.exit('what was removed is shown')
assert later.pread(1, 0) == b'\t'
later.shutdown()
END
stop_server
nbdelta check -q d.qcow2
qemu-img check -q d.qcow2

# Another process reads it, and has no locks.
other=
end_other() {
    [ -z "$other" ] || kill "$other"
    other=
}
nbdelta snapshot -c kept d.qcow2
nbdelta serve -U other.sock --pidfile other.pid 'old=json:{"driver": "qcow2",
    "snapshot": "later", "read-only": true, "file": {"driver": "file",
    "filename": "d.qcow2", "locking": "off"}}' &
other=$!
at_exit end_other
wait_until "the other server is ready" test -e other.pid
old="nbd+unix:///old?socket=other.sock"
refused "the snapshot is in use" nbdelta snapshot -d later d.qcow2
serve d=d.qcow2
refused "the snapshot is in use" \
    qmp blockdev-snapshot-delete-internal-sync device=d name=later
qmp blockdev-snapshot-delete-internal-sync device=d name=kept >out
qemu-io -f raw -c 'write -P 1 0 12M' "$(uri_of d)" >out
qemu-img compare -f raw -F raw "$old" now.raw >out
pid=$other
end_other
wait "$pid" || true
qmp blockdev-snapshot-delete-internal-sync device=d name=later >out
stop_server
nbdelta check -q d.qcow2
qemu-img check -q d.qcow2
