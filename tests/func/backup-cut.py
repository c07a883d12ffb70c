# SPDX-License-Identifier: BSD-3-Clause
"""Between a client and a server: backup-cut.py SOCKET BYTES MODE

Listens at a TCP port, written to the file `port`, and carries to the Unix
socket.  After BYTES from the server the file `cut` is there, and all connections are
cut.  MODE: once (new ones are carried), or gone (nobody listens any more).
"""
import os
import signal
import socket
import sys
import threading

to, limit, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
lock = threading.Lock()
open_sockets = set()
passed = 0
listener = socket.create_server(('127.0.0.1', 0))


def cut():
    with open('cut', 'w', encoding='ascii'):
        pass
    if mode == 'gone':
        listener.shutdown(socket.SHUT_RDWR)
    for s in list(open_sockets):
        try:
            s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def carry(a, b, count):
    global passed
    try:
        while data := a.recv(65536):
            b.sendall(data)
            with lock:
                before = passed
                passed += len(data) if count else 0
                if before < limit <= passed:
                    cut()
    except OSError:
        pass
    for s in (a, b):
        try:
            s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def accept():
    while True:
        try:
            a, _ = listener.accept()
        except OSError:
            return
        b = socket.socket(socket.AF_UNIX)
        b.connect(to)
        with lock:
            open_sockets.update((a, b))
        for args in ((a, b, False), (b, a, True)):
            threading.Thread(target=carry, args=args, daemon=True).start()


threading.Thread(target=accept, daemon=True).start()
with open('port.new', 'w', encoding='ascii') as f:
    f.write(str(listener.getsockname()[1]))
os.rename('port.new', 'port')
signal.pause()
