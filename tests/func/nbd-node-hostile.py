# SPDX-License-Identifier: BSD-3-Clause
# A server that does not keep to the protocol, and nbdelta as its client.
import errno
import json
import os
import socket
import struct
import subprocess
import threading
import time

import nbd

HERE = os.getcwd()
FAR = HERE + "/far.sock"
NEAR = HERE + "/near.sock"
QMP = HERE + "/near.qmp"

REPLY_MAGIC = 0x3e889045565a9
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO, STATUS = range(8)
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS = 0, 1, 2, 5
CHUNK_ERROR = 0x8001


class Gone(Exception):
    pass


class Server(threading.Thread):
    """What a well-behaved server does; each scenario overrides a part."""
    size = 1 << 20
    flags = 1 | 4 | 8 | 32 | 64  # flush, FUA, trim, zeroes
    blocks = (1, 4096, 32 << 20)
    structured = True
    contexts = True

    def __init__(self):
        super().__init__(daemon=True)
        if os.path.exists(FAR):
            os.unlink(FAR)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(FAR)
        self.listener.listen(8)
        self.count = 0
        self.start()

    def run(self):
        while True:
            try:
                s = self.listener.accept()[0]
            except OSError:
                return
            self.count += 1
            threading.Thread(target=self.serve, args=(s,), daemon=True).start()

    def stop(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def get(self, s, n):
        data = b""
        while len(data) < n:
            more = s.recv(n - len(data))
            if not more:
                raise Gone
            data += more
        return data

    def serve(self, s):
        try:
            self.talk(s)
        except (Gone, OSError):
            pass
        s.close()

    def talk(self, s):
        self.greet(s)
        while self.option(s):
            pass
        while self.request(s):
            pass

    def greet(self, s):
        s.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        self.get(s, 4)

    def answer(self, s, option, kind, data=b""):
        s.sendall(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) +
                  data)

    def option(self, s):
        _, option, length = struct.unpack(">8sII", self.get(s, 16))
        self.get(s, length)
        if option == 8 and self.structured:
            self.answer(s, option, 1)
        elif option == 10 and self.structured and self.contexts:
            self.answer(s, option, 4, struct.pack(">I", 7) + b"base:allocation")
            self.answer(s, option, 1)
        elif option in (6, 7):
            self.go(s, option)
            return option == 6
        else:
            self.answer(s, option, 0x80000001)
        return True

    def go(self, s, option):
        self.answer(s, option, 3,
                    struct.pack(">HQH", 0, self.size, self.flags))
        if self.blocks:
            self.answer(s, option, 3, struct.pack(">HIII", 3, *self.blocks))
        self.answer(s, option, 1)

    def request(self, s):
        _, flags, kind, cookie, offset, length = struct.unpack(
            ">IHHQQI", self.get(s, 28))
        if kind == WRITE:
            self.get(s, length)
        if kind == DISC:
            return False
        if kind == READ:
            self.read(s, cookie, offset, length)
        elif kind == STATUS:
            self.status(s, cookie, offset, length)
        else:
            self.other(s, cookie, kind)
        return True

    def simple(self, s, cookie, error=0, data=b""):
        s.sendall(struct.pack(">IIQ", 0x67446698, error, cookie) + data)

    def chunk(self, s, cookie, kind, data=b"", done=True):
        s.sendall(struct.pack(">IHHQI", 0x668e33ef, 1 if done else 0, kind,
                              cookie, len(data)) + data)

    def read(self, s, cookie, offset, length):
        if self.structured:
            self.chunk(s, cookie, CHUNK_DATA,
                       struct.pack(">Q", offset) + b"D" * length)
        else:
            self.simple(s, cookie, 0, b"D" * length)

    def status(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_STATUS, struct.pack(">III", 7, length, 0))

    def other(self, s, cookie, kind):
        self.simple(s, cookie)


def disk(options=""):
    return "driver=nbd,server.type=unix,server.path=%s%s" % (FAR, options)


# --- What goes wrong before there is a disk ---

class Silent(Server):
    def greet(self, s):
        self.get(s, 1)


class ClosesAtOnce(Server):
    def greet(self, s):
        raise Gone


class ClosesAfterGreeting(Server):
    def option(self, s):
        raise Gone


class ClosesInAnOption(Server):
    def answer(self, s, option, kind, data=b""):
        s.sendall(struct.pack(">QI", REPLY_MAGIC, option))
        raise Gone


class NoServer(Server):
    def greet(self, s):
        s.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
        raise Gone


class WrongReplyMagic(Server):
    def answer(self, s, option, kind, data=b""):
        s.sendall(struct.pack(">QIII", 1, option, kind, len(data)) + data)


class EndlessReply(Server):
    def answer(self, s, option, kind, data=b""):
        s.sendall(struct.pack(">QIII", REPLY_MAGIC, option, kind, 0xffffffff))
        while True:
            s.sendall(b"x" * 65536)


class TooLarge(Server):
    size = (1 << 64) - 1


class ShortInfo(Server):
    def go(self, s, option):
        self.answer(s, option, 3, struct.pack(">HI", 0, 1))
        self.answer(s, option, 1)


class NoInfo(Server):
    def go(self, s, option):
        self.answer(s, option, 1)


class NoSuchExport(Server):
    def go(self, s, option):
        self.answer(s, option, 0x80000006, b"go \x1b[31maway")
        while self.option(s):
            pass


def opening_fails():
    for kind in (Silent, ClosesAtOnce, ClosesAfterGreeting, ClosesInAnOption,
                 NoServer, WrongReplyMagic, EndlessReply, TooLarge, ShortInfo,
                 NoInfo, NoSuchExport):
        server = kind()
        timeout = ",open-timeout=1" if kind is Silent else ""
        r = subprocess.run(["nbdelta", "map", disk(timeout)], timeout=60,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        server.stop()
        assert r.returncode in (1, 6), (kind, r)
        assert r.stderr.startswith(b"nbdelta: map: "), (kind, r)
        assert r.stderr.count(b"\n") == 1 and b"\x1b" not in r.stderr, (kind, r)


# --- What goes wrong while it is used ---

class WrongMagic(Server):
    def read(self, s, cookie, offset, length):
        s.sendall(b"\0" * 4096)


class WrongCookie(Server):
    def read(self, s, cookie, offset, length):
        super().read(s, cookie + 1000, offset, length)


class ClosesInARead(Server):
    def read(self, s, cookie, offset, length):
        s.sendall(struct.pack(">IHHQI", 0x668e33ef, 1, 1, cookie, length + 8) +
                  struct.pack(">Q", offset) + b"D" * (length // 2))
        raise Gone


class SimpleInStructured(Server):
    def read(self, s, cookie, offset, length):
        self.simple(s, cookie, 0, b"D" * length)


class StructuredInSimple(Server):
    structured = False

    def read(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_DATA,
                   struct.pack(">Q", offset) + b"D" * length)


class HalfARead(Server):
    def read(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_DATA,
                   struct.pack(">Q", offset) + b"D" * (length // 2))


class NothingOfARead(Server):
    def read(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_NONE)


class ReadElsewhere(Server):
    def read(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_DATA,
                   struct.pack(">Q", offset + 4096) + b"D" * length)


class HoleElsewhere(Server):
    def read(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_HOLE,
                   struct.pack(">QI", offset, 0xfffffff0))


class ErrorOfARead(Server):
    def read(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_DATA,
                   struct.pack(">Q", offset) + b"D" * (length // 2), False)
        self.chunk(s, cookie, CHUNK_ERROR, struct.pack(">IH", 5, 0))


class EndlessChunk(Server):
    def read(self, s, cookie, offset, length):
        s.sendall(struct.pack(">IHHQI", 0x668e33ef, 1, 1, cookie, 0xfffffff0))
        while True:
            s.sendall(b"x" * 65536)


def client():
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.connect_uri("nbd+unix:///?socket=" + NEAR)
    return h


class Near:
    def __init__(self, options=""):
        if os.path.exists("near.pid"):
            os.unlink("near.pid")
        self.process = subprocess.Popen(
            ["nbdelta", "serve", "-U", NEAR, "--pidfile",
             "near.pid", "--qmp", QMP, "driver=raw,file.node-name=far,file." +
             disk(options).replace(",", ",file.")])
        end = time.monotonic() + 30
        while not os.path.exists("near.pid") or \
                os.path.getsize("near.pid") == 0:
            assert self.process.poll() is None and time.monotonic() < end
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, failure, *args):
        if failure:
            self.process.kill()
        self.process.terminate()
        try:
            status = self.process.wait(30)
        finally:
            self.process.kill()
        # 1: it could not flush what is out of reach.
        assert failure or status in (0, 1), "nbdelta ended with %d" % status


def failure(call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        return errno.__dict__[e.errno]
    return 0


def reads_fail():
    for kind in (WrongMagic, WrongCookie, ClosesInARead, SimpleInStructured,
                 StructuredInSimple, HalfARead, NothingOfARead, ReadElsewhere,
                 HoleElsewhere, ErrorOfARead, EndlessChunk):
        server = kind()
        with Near():
            h = client()
            e = failure(h.pread, 65536, 0)
            assert e == errno.EIO, (kind, e)
            # Another connection serves what this server can.
            end = time.monotonic() + 30
            while failure(h.pwrite, b"x" * 512, 0) != 0:
                assert time.monotonic() < end, kind
                time.sleep(0.02)
        server.stop()


def a_delay_is_not_for_ever():
    """Each new connection is lost with its first request."""
    server = ClosesInARead()
    with Near(",reconnect-delay=1"):
        begin = time.monotonic()
        assert failure(client().pread, 65536, 0) == errno.EIO
        assert time.monotonic() - begin < 20
        assert server.count < 30, "%d connections" % server.count
    server.stop()


class ShutsDown(Server):
    """The first connection says so to a write, and leaves reads alone."""

    def talk(self, s):
        self.first = self.count == 1
        super().talk(s)

    def read(self, s, cookie, offset, length):
        if not self.first:
            super().read(s, cookie, offset, length)

    def other(self, s, cookie, kind):
        self.simple(s, cookie, 108 if self.first and kind == WRITE else 0)


def who_shuts_down_is_left():
    server = ShutsDown()
    with Near(",reconnect-delay=60"):
        got = []
        reader = threading.Thread(
            target=lambda: got.append(client().pread(512, 0)))
        reader.start()
        time.sleep(0.5)
        assert not got
        assert failure(client().pwrite, b"x" * 512, 0) == 0
        reader.join(30)
        assert got == [b"D" * 512]
        assert server.count == 2
    server.stop()


class NeverAnswers(Server):
    def read(self, s, cookie, offset, length):
        pass


class Monitor:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(QMP)
        self.socket.settimeout(30)
        self.lines = self.socket.makefile("r")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def send(self, command, **arguments):
        self.socket.sendall(json.dumps(
            {"execute": command, "arguments": arguments}).encode())

    def reply(self):
        answer = {"event": None}
        while "event" in answer:
            answer = json.loads(self.lines.readline())
        return answer

    def ask(self, command, **arguments):
        self.send(command, **arguments)
        return self.reply()


def a_yank_frees_what_hangs():
    far, nobody = ({"type": "block-node", "node-name": n}
                   for n in ("far", "nobody"))
    server = NeverAnswers()
    with Near(",reconnect-delay=600"):
        one, two, three = Monitor(), Monitor(), Monitor()
        assert two.ask("query-yank")["return"] == [far]
        got = []
        h = client()
        reader = threading.Thread(
            target=lambda: got.append(failure(h.pread, 512, 0)))
        reader.start()
        time.sleep(0.5)
        # It holds the monitor, and waits for the request to end.
        one.send("block-dirty-bitmap-add", node="disk0", name="b")
        two.send("yank", instances=[far, nobody])
        time.sleep(0.5)
        assert not got
        three.send("yank", instances=[far])
        reader.join(30)
        assert got == [errno.EIO]
        assert one.reply() == {"return": {}}
        assert two.reply()["error"] == {"class": "DeviceNotFound",
                                        "desc": "Instance not found"}
        assert three.reply() == {"return": {}}
        assert failure(client().pread, 512, 0) == errno.EIO
        assert server.count == 1
    server.stop()


class Errors(Server):
    code = 0

    def other(self, s, cookie, kind):
        self.simple(s, cookie, self.code if kind == WRITE else 0)


def errors_are_told():
    server = Errors()
    with Near():
        h = client()
        for code, e in ((28, errno.ENOSPC), (5, errno.EIO), (12, errno.ENOMEM),
                        (22, errno.EINVAL), (1, errno.EPERM),
                        (0xffffffff, errno.EINVAL)):
            server.code = code
            got = failure(h.pwrite, b"x" * 512, 0)
            assert got == e, (code, got, e)
        server.code = 0
        assert failure(h.pwrite, b"x" * 512, 0) == 0
    server.stop()


# --- Extents ---

class WrongContext(Server):
    def status(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_STATUS, struct.pack(">III", 9, length, 3))


class NoExtents(Server):
    def status(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_NONE)


class EmptyExtent(Server):
    def status(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_STATUS, struct.pack(">III", 7, 0, 3))


class OddExtents(Server):
    def status(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_STATUS, struct.pack(">IIH", 7, length, 3))


class LongExtent(Server):
    def status(self, s, cookie, offset, length):
        self.chunk(s, cookie, CHUNK_STATUS,
                   struct.pack(">III", 7, 0xfffffff0, 3))


def extents_are_checked():
    for kind, good in ((WrongContext, False), (NoExtents, False),
                       (EmptyExtent, False), (OddExtents, False),
                       (LongExtent, None), (Server, True)):
        server = kind()
        r = subprocess.run(["nbdelta", "map", disk()], timeout=60,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        server.stop()
        if good is None:    # libnbd 1.22 takes no extent beyond the request
            good = b"Protocol error" not in r.stderr
        assert (r.returncode == 0) == good, (kind, r)
        if good:
            assert r.stdout.count(b"\n") == 2 and b"1048576" in r.stdout, r


# --- Odd limits ---

class OddBlocks(Server):
    blocks = (3, 5000, 7)


class HugeBlocks(Server):
    blocks = (1 << 31, 1 << 31, 1 << 31)


class NoRoom(Server):
    size = 0


class SmallBlocks(Server):
    """It takes no more than 64 KiB at once, without data neither."""
    blocks = (1, 4096, 65536)
    longest = 0

    def request(self, s):
        _, flags, kind, cookie, offset, length = struct.unpack(
            ">IHHQQI", self.get(s, 28))
        if kind == WRITE:
            self.get(s, length)
        if kind == DISC:
            return False
        if kind in (ZERO, TRIM):
            self.simple(s, cookie, 22 if length > 65536 else 0)
            if length <= 65536:
                self.longest = max(self.longest, length)
            return True
        if length > 65536 and kind in (READ, WRITE):
            return False
        if kind == READ:
            self.read(s, cookie, offset, length)
        elif kind == STATUS:
            self.status(s, cookie, offset, length)
        else:
            self.other(s, cookie, kind)
        return True


class NoBlocks(Server):
    blocks = None
    structured = False


def odd_limits_are_served():
    for kind in (OddBlocks, NoBlocks):
        server = kind()
        with Near():
            h = client()
            assert h.pread(1000, 77) == b"D" * 1000, kind
            assert failure(h.pwrite, b"x" * 1000, 77) == 0, kind
        server.stop()
    server = SmallBlocks()
    with Near():
        h = client()
        assert failure(h.zero, 1 << 20, 0) == 0
        assert server.longest == 65536
        assert failure(h.pwrite, b"x" * (1 << 20), 0) == 0
        assert h.pread(1 << 20, 0) == b"D" * (1 << 20)
    server.stop()
    for kind in (HugeBlocks, NoRoom):
        server = kind()
        r = subprocess.run(["nbdelta", "map", disk()], timeout=60,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert r.returncode in (0, 1), (kind, r)
        server.stop()


opening_fails()
reads_fail()
a_delay_is_not_for_ever()
who_shuts_down_is_left()
a_yank_frees_what_hangs()
errors_are_told()
extents_are_checked()
odd_limits_are_served()
