# SPDX-License-Identifier: BSD-3-Clause
"""A dirty map with many ranges is read whole, in few questions."""
import os
import socket
import sys
import threading

import nbd

from source_driver import Source

STEP = 10 * 65536
COUNT = 20000
sent = 0


def carry(a, b, count):
    global sent
    while True:
        data = a.recv(65536)
        if not data:
            b.shutdown(socket.SHUT_WR)
            return
        sent += len(data) if count else 0
        b.sendall(data)


def proxy(path, to):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def accept():
        while True:
            a, _ = listener.accept()
            b = socket.socket(socket.AF_UNIX)
            b.connect(to)
            for args in ((a, b, True), (b, a, False)):
                threading.Thread(target=carry, args=args, daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()


what = sys.argv[1]
if what == 'write':
    h = nbd.NBD()
    h.connect_uri(f'nbd+unix:///d?socket={sys.argv[2]}')
    for i in range(COUNT):
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(512)), i * STEP)
        while h.aio_in_flight() > 60:
            h.poll(-1)
    while h.aio_in_flight():
        h.poll(-1)
    h.shutdown()
else:
    proxy('proxy.sock', sys.argv[2])
    with Source(f'nbd+unix:///d?socket={os.getcwd()}/proxy.sock', 'id1',
                bitmap='b0') as s:
        disk = s.begin('-', 'd=x')['d']
    assert disk['ranges'] == [[i * STEP, 65536] for i in range(COUNT)], \
        len(disk['ranges'])
    # 28 bytes a question.
    print(sent, 'bytes were sent')
    assert sent < 28 * COUNT / 20, sent
