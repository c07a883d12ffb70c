"""Clients that break the rules of TLS.  argv: the socket of a server that
requires TLS, the socket of a server where it is optional, the process ID of the
first, and the directory with certificates.  Both have the export `disk`, 1 MiB.
"""
import os
import ssl
import struct
import sys
import time

from nbd_raw import *  # noqa: F403
from nbd_tls import TlsSocket, context, start_tls, tls_client

must, may, pid, pki = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
TLS_REQD = 0x80000005
good = context(pki)


def check(ok, *what):
    if not ok:
        raise AssertionError(what)


def is_(got, want):
    if got != want:
        raise AssertionError(f"{got!r} is not {want!r}")


def fds():
    return len(os.listdir(f"/proc/{pid}/fd"))


def until(what, fn):
    end = time.monotonic() + 60
    while not fn():
        check(time.monotonic() < end, "not after a minute", what)
        time.sleep(0.05)


def gone(c):
    """The connection ends, whatever comes before that."""
    try:
        while c.s.recv(65536):
            pass
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        pass
    return True


def test_nothing_goes_before_tls():
    c = Client(must)
    for opt in (LIST, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED, 4,
                99):
        for data in (b"", info_data("disk"), bytes(100000)):
            is_(c.option(opt, data), (TLS_REQD, []))
    check(start_tls(c, good).go("disk").alive())
    c = Client(must)
    is_(c.option(ABORT)[0], ACK)
    check(c.ended())


def test_export_name_cannot_be_refused():
    c = Client(must)
    c.send_option(EXPORT_NAME, b"disk")
    check(c.ended())


def test_who_cannot_ask_for_tls_gets_nothing():
    for flags in (0, 2):
        c = Client(must, flags=flags)
        try:
            c.send_option(LIST)
        except (BrokenPipeError, ConnectionResetError):
            continue
        check(c.ended())


def test_after_tls_it_is_not_required_again():
    c = tls_client(must, good)
    is_(c.option(STARTTLS)[0], INVALID)
    is_(c.option(99)[0], UNSUP)
    is_(c.option(INFO, info_data("nosuch"))[0], UNKNOWN)
    c.send_option(EXPORT_NAME, b"disk")
    is_(struct.unpack(">Q", c.recv(8))[0], 2**20)


def test_what_was_agreed_on_before_is_forgotten():
    for extended in (False, True):
        c = Client(may)
        is_(c.option(EXTENDED if extended else STRUCTURED)[0], ACK)
        contexts = meta_data("disk", "base:allocation")
        is_(c.option(SET_META, contexts)[0], ACK)
        start_tls(c, good)
        # Not without structured replies, which may be asked for again.
        is_(c.option(SET_META, contexts)[0], INVALID)
        is_(c.option(STRUCTURED)[0], ACK)
        is_(c.option(GO, info_data("disk"))[0], ACK)
        c.structured = True
        is_(c.error(STATUS, 0, 4096), EINVAL)
        is_(len(c.read(0, 4096)), 4096)


def test_an_injected_option_is_not_done():
    for more in (OPT.pack(IHAVEOPT, ABORT, 0), OPT.pack(IHAVEOPT, LIST, 0),
                 b"\x16"):
        c = Client(may)
        c.s.sendall(OPT.pack(IHAVEOPT, STARTTLS, 0) + more)
        out = b""
        try:
            while part := c.s.recv(1000):
                out += part
        except ConnectionResetError:
            pass
        is_(out, b"")


def test_plaintext_after_the_reply_is_no_tls():
    for more in (OPT.pack(IHAVEOPT, LIST, 0), bytes(65536), b"\xff" * 5,
                 b"\x16\x03\x01\xff\xff" + bytes(70000)):
        c = Client(must)
        is_(c.option(STARTTLS)[0], ACK)
        c.s.sendall(more)
        check(gone(c))


def test_clients_die_in_the_handshake():
    before = fds()

    class Recorder:
        """Sends what comes before the limit, and then dies."""
        def __init__(self, sock, left):
            self.sock, self.left = sock, left

        def sendall(self, data):
            self.sock.sendall(data[:self.left])
            self.left -= len(data)
            if self.left <= 0:
                raise EOFError

        def recv(self, n):
            return self.sock.recv(n)

    for left in (1, 4, 5, 6, 100, 200, 300, 600, 900):
        c = Client(must)
        is_(c.option(STARTTLS)[0], ACK)
        t = TlsSocket(Recorder(c.s, left), good)
        try:
            t.handshake()
            t.sendall(b"x" * 100)
        except (EOFError, ssl.SSLError, ConnectionResetError):
            pass
        c.s.close()
    until("descriptors are closed", lambda: fds() <= before)


def test_options_in_small_pieces():
    c = Client(must)
    for byte in OPT.pack(IHAVEOPT, STARTTLS, 0):
        c.s.sendall(bytes([byte]))
    is_(c.reply(STARTTLS), (ACK, b""))
    c.s = TlsSocket(c.s, good)
    c.s.handshake()
    for byte in OPT.pack(IHAVEOPT, LIST, 0):
        c.s.sendall(bytes([byte]))  # a record each
    is_([k for k, _ in (c.reply(LIST), c.reply(LIST))], [SERVER, ACK])


def test_versions_and_ciphers():
    def with_(version, ciphers=None):
        ctx = context(pki)
        ctx.minimum_version = ctx.maximum_version = version
        if ciphers:
            ctx.set_ciphers(ciphers)
        c = tls_client(must, ctx)
        is_(len(c.go("disk").read(0, 2**20)), 2**20)
        return c.s.obj.cipher()[0]

    v = ssl.TLSVersion
    is_(with_(v.TLSv1_3), "TLS_AES_128_GCM_SHA256")
    for name in ("ECDHE-ECDSA-AES128-GCM-SHA256",
                 "ECDHE-ECDSA-AES256-GCM-SHA384",
                 "ECDHE-ECDSA-CHACHA20-POLY1305"):
        is_(with_(v.TLSv1_2, name), name)
    ctx = context(pki)
    ctx.minimum_version = v.TLSv1
    ctx.maximum_version = v.TLSv1_1
    ctx.set_ciphers("ALL:@SECLEVEL=0")
    try:
        tls_client(must, ctx)
        check(False, "TLS 1.1 is refused")
    except (ssl.SSLError, ConnectionResetError, EOFError):
        pass


def refused(ctx):
    """With TLS 1.3 a client learns that by what it reads."""
    c = Client(must)
    try:
        start_tls(c, ctx)
        c.s.sendall(OPT.pack(IHAVEOPT, LIST, 0))
        check(c.s.recv(1) == b"", "it was let in")
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        pass


def test_bad_certificates():
    for name in (None, "expired", "early", "revoked", "stranger"):
        refused(context(pki, name))
    check(tls_client(must, good).go("disk").alive())


def test_the_end_is_told():
    c = tls_client(must, good).go("disk")
    for i in range(20):
        c.send(READ, 0, 65536, cookie=i)
    c.send(DISC)
    for i in range(20):
        is_(len(c.result(i)[1]), 1)
    try:
        c.s.read_told_end()
    except ssl.SSLError as e:
        check(False, e)


def slow():
    """A handshake that never gets anywhere, byte by byte."""
    c = Client(must)
    is_(c.option(STARTTLS)[0], ACK)
    c.s.sendall(b"\x16\x03\x01\x02\x00\x01")
    silent = Client(must)
    is_(silent.option(STARTTLS)[0], ACK)
    return c, silent


waiting = slow()
before = fds()
for name, fn in list(globals().items()):
    if name.startswith("test_"):
        try:
            fn()
        except BaseException:
            print(f"{name}:", flush=True)
            raise
end = time.monotonic() + 30
for client in waiting:
    try:
        client.s.sendall(b"\0")
        check(gone(client))
    except (BrokenPipeError, ConnectionResetError):
        pass
check(time.monotonic() < end, "a slow handshake had no end")
until("descriptors are closed", lambda: fds() <= before)
