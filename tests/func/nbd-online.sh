#!/bin/bash
# What changes while clients are there: exports that come and go, disks that
# grow and shrink.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img jq

qemu-img create -q -f qcow2 a.qcow2 8M
truncate -s 4M b.raw
serve a=a.qcow2 b=json:'{"driver": "raw", "file": {"driver": "file",
    "filename": "b.raw"}}'
export PYTHONDONTWRITEBYTECODE=1
python - "$SRCDIR/tests/func" "$sock" "$qmp_sock" <<'END'
import json
import subprocess
import sys
import threading
sys.path.insert(0, sys.argv[1])
from nbd_raw import *
sock, MiB = sys.argv[2], 2**20


def qmp(*args, ok=True):
    p = subprocess.run(["nbdelta", "qmp", sys.argv[3], *args],
                       capture_output=True, text=True)
    assert (p.returncode == 0) == ok, (args, p.stdout, p.stderr)
    return p.stderr if not ok else json.loads(p.stdout)


def client(name="a", **kw):
    return Client(sock).go(name, **kw)


def names():
    return {p[4:] for _, p in Client(sock).option(LIST)[1]}


# A disk grows: connected clients keep the old size, later ones have the new
# size.
every = [client(), client(structured=False),
         client(extended=True, contexts=["base:allocation"])]
qmp("block_resize", "node-name=a", f"size={16 * MiB}")
for c in every:
    assert c.size == 8 * MiB
    assert c.error(WRITE, 8 * MiB, 512, data=bytes(512)) == ENOSPC
    assert c.error(READ, 8 * MiB, 512) == EINVAL
    assert c.alive()
new = client()
assert new.size == 16 * MiB
assert new.error(WRITE, 15 * MiB, 512, data=b"n" * 512) == 0
assert new.read(15 * MiB, 512) == b"n" * 512

# It shrinks: what is not there any more cannot be used, and is no crash.
qmp("block_resize", "node-name=a", f"size={4 * MiB}")
for c in every + [new]:
    for cmd in (READ, TRIM, ZERO, CACHE):
        assert c.error(cmd, 4 * MiB, 512) != 0, cmd
    assert c.error(WRITE, 4 * MiB, 512, data=bytes(512)) != 0
    assert c.error(WRITE, 4 * MiB - 512, 1024, data=bytes(1024)) != 0
    assert c.error(READ, 3 * MiB, 2 * MiB) != 0
    assert c.alive()
assert every[2].error(STATUS, 4 * MiB, 512) != 0
assert client().size == 4 * MiB

# In the middle of I/O by many.
stop = threading.Event()
problems = []
def work(n):
    try:
        c = client()
        while not stop.is_set():
            at = n * 64 * 1024
            assert c.error(WRITE, at, 4096, data=bytes([n]) * 4096) == 0
            assert c.read(at, 4096) == bytes([n]) * 4096
            c.error(READ, 4 * MiB + at, 65536)
    except BaseException as e:
        problems.append(e)
threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
for t in threads:
    t.start()
for i in range(20):
    qmp("block_resize", "node-name=a", f"size={(4 + i % 2 * 8) * MiB}")
    qmp("block-export-add", "type=nbd", "id=x", "node-name=a", "name=x",
        "writable=true")
    x = client("x")
    assert names() == {b"a", b"b", b"x"}
    assert x.alive()
    if i % 2:
        assert "in use" in qmp("block-export-del", "id=x", ok=False)
        x.send(DISC)
        assert x.ended()
        x.close()
        # The connection may be gone a moment later than its socket.
        for _ in range(600):
            p = subprocess.run(["nbdelta", "qmp", sys.argv[3],
                                "block-export-del", "id=x"],
                               capture_output=True, text=True)
            if p.returncode == 0:
                break
            assert "in use" in p.stderr, p.stderr
    else:
        waits = Client(sock)
        qmp("block-export-del", "id=x", "mode=hard")
        assert x.ended()
        assert waits.option(GO, info_data("x"))[0] == UNKNOWN
    while "x" in {e["id"] for e in qmp("query-block-exports")}:
        pass
    assert names() == {b"a", b"b"}
stop.set()
for t in threads:
    t.join()
assert not problems, problems

# With requests under way, and by a client that takes no replies.
c = client("b")
c.s.setblocking(False)
try:
    for i in range(2000):
        c.send(READ, 0, 4 * MiB, cookie=i)
except BlockingIOError:
    pass
assert "in use" in qmp("block-export-del", "id=b", ok=False)
qmp("block-export-del", "id=b", "mode=hard")
assert names() == {b"a"}
assert client().alive()
END
stop_server
qemu-img check -q a.qcow2
