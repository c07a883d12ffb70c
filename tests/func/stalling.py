# SPDX-License-Identifier: BSD-3-Clause
"""An NBD server that can be told to answer no more, for tests in Python."""
import socket
import struct
import threading

READ, WRITE, DISC, FLUSH = 0, 1, 2, 3


class Stalling:
    """A disk in memory at @path.  While `hold` is set, requests of the kinds in
    `kinds` (None: all) wait for their answer."""

    def __init__(self, path, size):
        self.path = path
        self.data = bytearray(size)
        self.kinds = None
        self.free = threading.Event()
        self.free.set()
        self.held = 0  # requests that wait, or have waited
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def options(self):
        return f'driver=nbd,server.type=unix,server.path={self.path}'

    def hold(self, *kinds):
        self.kinds = kinds or None
        self.free.clear()

    def go_on(self):
        self.free.set()

    def accept(self):
        while True:
            s = self.listener.accept()[0]
            threading.Thread(target=self.serve, args=(s,), daemon=True).start()

    @staticmethod
    def get(s, n):
        data = b''
        while len(data) < n:
            more = s.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def serve(self, s):
        try:
            s.sendall(b'NBDMAGICIHAVEOPT' + struct.pack('>H', 3))
            self.get(s, 4)
            while self.option(s):
                pass
            while self.request(s):
                pass
        except (OSError, EOFError):
            pass
        s.close()

    def option(self, s):
        _, option, length = struct.unpack('>8sII', self.get(s, 16))
        self.get(s, length)

        def answer(kind, data=b''):
            s.sendall(struct.pack('>QIII', 0x3e889045565a9, option, kind,
                                  len(data)) + data)
        if option not in (6, 7):
            answer(0x80000001)
            return True
        answer(3, struct.pack('>HQH', 0, len(self.data), 1 | 4 | 8))
        answer(1)
        return option == 6

    def request(self, s):
        _, _, kind, cookie, offset, length = struct.unpack(
            '>IHHQQI', self.get(s, 28))
        payload = self.get(s, length) if kind == WRITE else b''
        if kind == DISC:
            return False
        if not self.free.is_set() and (not self.kinds or kind in self.kinds):
            self.held += 1
            self.free.wait()
        if kind == WRITE:
            self.data[offset:offset + length] = payload
        answer = bytes(self.data[offset:offset + length]) if kind == READ \
            else b''
        s.sendall(struct.pack('>IIQ', 0x67446698, 0, cookie) + answer)
        return True
