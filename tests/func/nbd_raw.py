"""A small NBD client for tests that break the rules."""
import socket
import struct

OPT = struct.Struct(">QII")
REP = struct.Struct(">QIII")
REQ = struct.Struct(">IHHQQI")
XREQ = struct.Struct(">IHHQQQ")
MAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
REPMAGIC = 0x3E889045565A9
REQMAGIC = 0x25609513
XREQMAGIC = 0x21E41C71

(EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META,
 EXTENDED) = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
UNSUP, POLICY, INVALID, UNKNOWN, TOO_BIG, EXT_HEADER_REQD = (
    0x80000000 | n for n in (1, 2, 3, 6, 9, 10))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 1, 5, 22, 28, 75, 95


def string(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack(">I", len(s)) + s


def info_data(name, *infos):
    return string(name) + struct.pack(">H", len(infos)) + b"".join(
        struct.pack(">H", i) for i in infos)


def meta_data(name, *queries):
    return string(name) + struct.pack(">I", len(queries)) + b"".join(
        string(q) for q in queries)


class Client:
    def __init__(self, path, flags=3, greet=True):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(60)
        self.s.connect(path)
        self.structured = self.extended = False
        if greet:
            magic, opt, hs = struct.unpack(">QQH", self.recv(18))
            assert (magic, opt, hs) == (MAGIC, IHAVEOPT, 3)
            self.s.sendall(struct.pack(">I", flags))

    def recv(self, n):
        out = b""
        while len(out) < n:
            part = self.s.recv(n - len(out))
            if not part:
                raise EOFError(f"{len(out)} of {n} bytes")
            out += part
        return out

    def ended(self):
        """The server ends the connection; nothing comes before that."""
        try:
            return self.s.recv(1) == b""
        except ConnectionResetError:
            return True

    # --- Options ---

    def send_option(self, opt, data=b"", magic=IHAVEOPT):
        self.s.sendall(OPT.pack(magic, opt, len(data)) + data)

    def reply(self, opt):
        magic, option, kind, length = REP.unpack(self.recv(20))
        assert magic == REPMAGIC and option == opt, (magic, option, opt)
        return kind, self.recv(length)

    def option(self, opt, data=b""):
        """Kind of the last reply, and the data of those before it."""
        self.send_option(opt, data)
        out = []
        while True:
            kind, payload = self.reply(opt)
            if kind == ACK and opt in (STRUCTURED, EXTENDED):
                self.structured, self.extended = True, opt == EXTENDED
            if kind == ACK or kind & 0x80000000:
                return kind, out
            out.append((kind, payload))

    def go(self, name="", structured=True, contexts=(), extended=False):
        if structured and not self.structured:
            kind = self.option(EXTENDED if extended else STRUCTURED)[0]
            assert kind == ACK, hex(kind)
        self.contexts = {}
        if contexts:
            kind, out = self.option(SET_META, meta_data(name, *contexts))
            assert kind == ACK
            for _, p in out:
                self.contexts[struct.unpack(">I", p[:4])[0]] = p[4:].decode()
        kind, out = self.option(GO, info_data(name))
        assert kind == ACK, hex(kind)
        self.size, self.flags = struct.unpack(">QH", out[0][1][2:])
        return self

    # --- Requests ---

    def request(self, cmd, offset=0, length=0, flags=0, cookie=7, data=b"",
                bad=0, plain=False):
        """Bytes of a request.  A write gets the flag that it ought to have,
        unless it is to be @plain."""
        if not self.extended:
            return REQ.pack(REQMAGIC + bad, flags, cmd, cookie, offset,
                            length) + data
        flags |= PAYLOAD_LEN if cmd == WRITE and not plain else 0
        return XREQ.pack(XREQMAGIC + bad, flags, cmd, cookie, offset,
                         length) + data

    def send(self, *args, **kw):
        self.s.sendall(self.request(*args, **kw))

    def message(self):
        """(cookie, error, done, kind, payload): a simple reply, whose data
        the caller has to read, or a chunk."""
        magic = struct.unpack(">I", self.recv(4))[0]
        if magic == 0x67446698 and not self.extended:
            error, cookie = struct.unpack(">IQ", self.recv(12))
            return cookie, error, True, None, b""
        if self.extended:
            assert magic == 0x6E8A278C, hex(magic)
            flags, kind, cookie, self.origin, length = struct.unpack(
                ">HHQQQ", self.recv(28))
        else:
            assert magic == 0x668E33EF and self.structured, hex(magic)
            flags, kind, cookie, length = struct.unpack(">HHQI", self.recv(16))
        payload = self.recv(length)
        error = 0
        if kind & 0x8000:
            error, n = struct.unpack(">IH", payload[:6])
            assert 0 < n <= len(payload) - 6 and payload[6:].decode()
        return cookie, error, bool(flags & 1), kind, payload

    def result(self, cookie=7):
        """(error, chunks) of the only request in flight."""
        chunks = []
        while True:
            got, error, done, kind, payload = self.message()
            assert got == cookie, (got, cookie)
            if kind is not None and not kind & 0x8000 and kind:
                chunks.append((kind, payload))
            if done:
                return error, chunks

    def call(self, cmd, offset=0, length=0, flags=0, data=b""):
        self.send(cmd, offset, length, flags, data=data)
        result = self.result()
        assert not self.extended or self.origin == offset
        return result

    def error(self, *args, **kw):
        return self.call(*args, **kw)[0]

    def read(self, offset, length, flags=0):
        self.send(READ, offset, length, flags)
        if not self.structured:
            error = self.result()[0]
            return error or self.recv(length)
        error, chunks = self.result()
        if error:
            return error
        out, seen = bytearray(length), 0
        for kind, p in chunks:
            at = struct.unpack(">Q", p[:8])[0] - offset
            n = len(p) - 8 if kind == 1 else struct.unpack(">I", p[8:])[0]
            assert kind in (1, 2) and n > 0 and 0 <= at <= length - n
            out[at:at + n] = p[8:] if kind == 1 else bytes(n)
            seen += n
        assert seen == length
        return bytes(out)

    def alive(self):
        """The stream is in step."""
        return len(self.read(0, 512)) == 512

    def close(self):
        self.s.close()
