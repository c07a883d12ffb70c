"""TLS for the small client: over memory, so that one thread can send while
another receives."""
import os
import ssl
import threading

from nbd_raw import ACK, STARTTLS, Client


def context(pki, name="client", ca="ca-cert.pem"):
    """Of the files in `pki`: NAME-cert.pem and its key, if there are any."""
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # An end that was not told is an error.
    ctx.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0x80)
    ctx.load_verify_locations(os.path.join(pki, ca))
    if name:
        ctx.load_cert_chain(os.path.join(pki, name + "-cert.pem"),
                            os.path.join(pki, name + "-key.pem"))
    return ctx


class TlsSocket:
    def __init__(self, sock, ctx, host="localhost"):
        self.sock = sock
        self.inp, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.obj = ctx.wrap_bio(self.inp, self.out, server_hostname=host)
        self.lock = threading.Lock()  # of obj
        self.order = threading.Lock()  # records go out as they were made

    def _flush(self):
        with self.order:
            with self.lock:
                data = self.out.read()
            if data:
                self.sock.sendall(data)

    def _fill(self):
        data = self.sock.recv(65536)
        with self.lock:
            if data:
                self.inp.write(data)
            else:
                self.inp.write_eof()

    def handshake(self):
        while True:
            try:
                with self.lock:
                    self.obj.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except ssl.SSLError:
                self._flush()
                raise
            else:
                return self._flush()

    def recv(self, n):
        while True:
            try:
                with self.lock:
                    return self.obj.read(n)
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def read_told_end(self):
        """The other side says that it ends, and does not just go."""
        while True:
            try:
                with self.lock:
                    assert self.obj.read(1) == b"", "there is more"
                return
            except ssl.SSLZeroReturnError:
                return
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()

    def sendall(self, data):
        for i in range(0, len(data), 1 << 20):
            with self.lock:
                self.obj.write(data[i:i + (1 << 20)])
            self._flush()

    def shutdown(self, how):
        try:
            with self.lock:
                self.obj.unwrap()
        except ssl.SSLError:
            pass
        self._flush()

    def __getattr__(self, name):
        return getattr(self.sock, name)


def start_tls(client, ctx):
    """Upgrade a client that has been greeted."""
    client.send_option(STARTTLS)
    kind, data = client.reply(STARTTLS)
    assert (kind, data) == (ACK, b""), (hex(kind), data)
    client.s = TlsSocket(client.s, ctx)
    client.s.handshake()
    return client


def tls_client(path, ctx, **kw):
    return start_tls(Client(path, **kw), ctx)
