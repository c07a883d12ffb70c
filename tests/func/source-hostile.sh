#!/bin/bash
# Monitors that answer whatever they like: a source of backups says what is
# wrong, and ends.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

python "$SRCDIR/tests/func/source-hostile.py"

# Events without end in place of an answer.
python - "$nbdelta" <<'END'
import json
import resource
import socket
import subprocess
import sys
listener = socket.socket(socket.AF_UNIX)
listener.bind('flood.sock')
listener.listen()
p = subprocess.Popen(
    [sys.argv[1], 'qmp', 'flood.sock', 'query-status'],
    stderr=subprocess.PIPE, text=True)
# A client that keeps all of it would take that soon.
resource.prlimit(p.pid, resource.RLIMIT_CPU, (60, 60))
conn, _ = listener.accept()
with conn, conn.makefile('r') as lines:
    conn.sendall(b'{"QMP": {"version": {}}}\n')
    conn.sendall(json.dumps({'return': {}, 'id': json.loads(
        lines.readline())['id']}).encode() + b'\n')
    lines.readline()
    event = json.dumps({'event': 'E', 'data': {'text': 'x' * 1000}}).encode()
    try:
        while True:
            conn.sendall((event + b'\n') * 100)
    except (BrokenPipeError, ConnectionResetError):
        pass
said = p.stderr.read()
assert p.wait() == 1 and 'MiB of events came' in said, said
END
