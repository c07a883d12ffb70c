#!/bin/bash
# A listing may be of any length: clients of all kinds see every export.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo qemu-nbd

truncate -s 1M disk.raw
serve e0=disk.raw
python - "$qmp_sock" <<'END'
import json
import socket
import sys
qmp = socket.socket(socket.AF_UNIX)
qmp.connect(sys.argv[1])
lines = qmp.makefile('r')


def ask(command, **arguments):
    qmp.sendall(json.dumps({'execute': command,
                            'arguments': arguments}).encode())
    assert 'return' in json.loads(lines.readline())


lines.readline()
ask('qmp_capabilities')
for i in range(1, 700):
    ask('block-export-add', type='nbd', id=f'e{i}', name=f'e{i}',
        **{'node-name': 'e0'})
END
nbdinfo --list --json "$uri" >list
python - <<'END'
import json
assert len(json.load(open('list'))['exports']) == 700
END
[ "$(qemu-nbd --list -k "$sock" | grep -c '^ export:')" -eq 700 ] ||
    fail "qemu-nbd --list does not show all"
stop_server
