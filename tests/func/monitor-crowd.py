# SPDX-License-Identifier: BSD-3-Clause
# The scenarios of monitor-crowd.sh.  Works in the current directory.
import json
import socket

from qmp_daemon import Daemon

ROOM = 64  # sessions of a monitor


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(path)
    return s


def negotiate(s):
    """Greeted, and served."""
    lines = s.makefile('r')
    assert 'QMP' in json.loads(lines.readline())
    s.sendall(b'{"execute": "qmp_capabilities"}\n')
    assert 'return' in json.loads(lines.readline())
    return lines


def is_served(s, lines):
    s.sendall(b'{"execute": "query-block-exports"}\n')
    return 'return' in json.loads(lines.readline())


with Daemon('nbdelta', '--chardev', 'socket,id=m2,path=two.sock,server=on,'
            'wait=off', '--monitor', 'chardev=m2') as d:
    first = connect('two.sock')
    lines = negotiate(first)
    crowd = [connect('two.sock') for _ in range(ROOM + 20)]
    other = connect('qmp.sock')
    assert is_served(other, negotiate(other))
    # The same monitor: silent clients make room, one after the other.
    late = connect('two.sock')
    assert is_served(late, negotiate(late))
    # A client that has negotiated stays.
    assert is_served(first, lines)
    for s in crowd:
        s.close()
    last = connect('two.sock')
    assert is_served(last, negotiate(last))
    d.ask('query-status')
