#!/bin/bash
# Many clients: with max-connections=0 only descriptors are a limit, and a
# client beyond that is disconnected at once.  The log names clients that have
# to wait for a place.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

truncate -s 1M disk.raw
ulimit -n 128 # (128 - a quarter) / 2 connections
serve --log-level=warning disk=disk.raw --nbd-server \
    id=few,addr.type=unix,addr.path=few.sock,max-connections=2 2>log
python - "$SRCDIR/tests/func" "$nbdelta" <<'END'
import subprocess
import sys
import time
sys.path.insert(0, sys.argv[1])
from nbd_raw import *
crowd = [Client("nbd.sock").go("disk") for _ in range(48)]
for _ in range(3):
    assert Client("nbd.sock", greet=False).ended()
assert all(c.alive() for c in crowd)
subprocess.run([sys.argv[2], "qmp", "qmp.sock", "query-block-exports"],
               check=True, stdout=subprocess.DEVNULL)
for c in crowd[::2]:
    c.send(DISC)
    assert c.ended()
    c.close()
for _ in range(600):
    c = Client("nbd.sock", greet=False)
    if len(c.s.recv(1)) == 1:
        break
    time.sleep(0.05)
else:
    raise SystemExit("a place that was given up is not free")
few = [Client("few.sock") for _ in range(2)]
waits = Client("few.sock", greet=False)
for _ in range(600):
    if "max-connections is 2" in open("log").read():
        break
    time.sleep(0.05)
else:
    raise SystemExit("nobody is told that a client waits")
few[0].close()
assert len(waits.recv(18)) == 18
END
grep -q "NBD server '': a client is turned away: there are no descriptors" log ||
    fail "$(cat log)"
[ "$(wc -l <log)" -eq 2 ] || fail "$(cat log)"
stop_server
