#!/bin/bash
# A client with one request at a time is polled.  It is not when it asks for
# nothing, with --poll-max=0, and where there is one processor.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

mkimg disk.raw 1M
cat >client.py <<'END'
import os
import sys
import time
sys.path.insert(0, sys.argv[1])
from nbd_raw import *
pid = sys.argv[2]


def cpu():
    with open(f"/proc/{pid}/stat") as f:
        words = f.read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


c = Client("nbd.sock").go("disk")
for i in range(500):
    c.read(0, 512)
before = cpu()
time.sleep(0.5)
assert cpu() - before < 0.1, "an idle client is polled"
c.send(DISC)
assert c.ended()
END

# times_polled LOG OPTION...: what a client comes to
times_polled() {
    local log=$1
    shift
    serve --log-level=debug "$@" disk=disk.raw 2>"$log"
    python client.py "$SRCDIR/tests/func" "$server"
    stop_server
    sed -n 's/.* was polled for \([0-9]*\) times.*/\1/p' "$log"
}

serve_refused "'10001' is no number of microseconds" --poll-max=10001 disk.raw
polled=$(times_polled off --poll-max=0)
[ -z "$polled" ] || fail "polled for $polled times although it is off"
polled=$(times_polled on --poll-max=10000)
if [ "$(nproc)" -eq 1 ]; then
    [ -z "$polled" ] || fail "polled for $polled times on one processor"
    exit 0
fi
[ -n "$polled" ] || fail "not polled: $(cat on)"
taskset -p -c "$(taskset -p -c $$ | sed 's/.*: //; s/[-,].*//')" $$ >/dev/null
polled=$(times_polled one --poll-max=10000)
[ -z "$polled" ] || fail "polled for $polled times on one processor"
