"""Clients that stall, flood, die and come back.  argv: the socket and the
process of a server with the writable export `disk` of 64 MiB of data, and a
directory with certificates, if it wants TLS."""
import fcntl
import os
import struct
import sys
import termios
import time

from nbd_raw import *  # noqa: F403
from nbd_tls import context, start_tls

sock, pid = sys.argv[1], int(sys.argv[2])
tls = context(sys.argv[3]) if len(sys.argv) > 3 else None
MiB = 2**20


def check(ok, *what):
    if not ok:
        raise AssertionError(what)


def client(**kw):
    c = Client(sock, **kw)
    return start_tls(c, tls) if tls and kw.get("greet", True) else c


def fds():
    return len(os.listdir(f"/proc/{pid}/fd"))


def rss():
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024


def until(what, fn):
    end = time.monotonic() + 60
    while not fn():
        check(time.monotonic() < end, "not after a minute", what)
        time.sleep(0.05)


def stuck_client():
    """Asks for much and reads nothing."""
    c = client().go("disk")
    c.s.setblocking(False)
    try:
        for i in range(4):
            c.send(READ, 0, 32 * MiB, cookie=i)
            c.send(READ, 0, 64 * MiB - 512, cookie=i)
            c.send(READ, MiB, 4096, cookie=i)
            c.send(FLUSH, cookie=i)
    except BlockingIOError:
        pass
    return c


def test_handshake_has_an_end():
    """Begun at once, looked at by the last test."""
    silent = client(greet=False)
    slow = client()
    slow.s.sendall(OPT.pack(IHAVEOPT, LIST, 100) + b"x")
    return silent, slow


def test_a_stuck_client_has_its_share_of_memory(measure):
    before = rss()
    every = []
    for kw in ({}, {"structured": False}, {"extended": True}):
        c = client().go("disk", **kw)
        c.s.sendall(b"".join(c.request(READ, 0, 32 * MiB, DF if kw == {} else 0)
                             for _ in range(64)))
        every.append(c)
    time.sleep(1)
    if measure:
        check(rss() - before < 250 * MiB, rss() - before)
    for c in every:
        c.close()


def test_a_stuck_client_delays_nobody(keep):
    keep += [stuck_client() for _ in range(24)]
    c = client().go("disk")
    for i in range(20):
        check(len(c.read(i * MiB, MiB)) == MiB)
        check(c.error(WRITE, i * MiB, 4096, FUA, data=bytes([i]) * 4096) == 0)
        check(c.error(FLUSH) == 0)


def test_a_stuck_client_goes_and_leaves_nothing():
    before = fds()
    for c in [stuck_client() for _ in range(8)]:
        c.close()
    until("descriptors are closed", lambda: fds() <= before)


def test_death_in_the_middle():
    before = fds()
    head = REQ.pack(REQMAGIC, 0, WRITE, 1, 32 * MiB, 8 * MiB)
    for n in (1, 27, 28, 29, 4096, 100000, 8 * MiB):
        c = client().go("disk")
        c.s.sendall((head + bytes(8 * MiB))[:n])
        c.close()
    for n in (0, 3, 4, 10, 20, 40):
        c = client(greet=False)
        c.recv(18)
        c.s.sendall((struct.pack(">I", 3) + OPT.pack(IHAVEOPT, GO, 100)
                     + bytes(100))[:n])
        c.close()
    until("descriptors are closed", lambda: fds() <= before)
    check(client().go("disk").alive())


def test_old_writes_do_not_land_on_new_ones():
    at = 40 * MiB
    for i in range(60):
        old = client().go("disk")
        # Slow ones, of which many fit into the socket.
        block = REQ.pack(REQMAGIC, FUA, WRITE, 1, at, 4096) + b"o" * 4096
        old.s.setblocking(False)
        try:
            for _ in range(100):
                old.s.sendall(block)
        except BlockingIOError:
            pass
        old.close()
        # Perhaps by another name of the disk.
        new = client().go("again" if i % 2 else "disk")
        check(new.error(WRITE, at, 4096, data=b"n" * 4096) == 0)
        check(new.error(FLUSH) == 0)
        for _ in range(3):
            check(new.read(at, 4096) == b"n" * 4096, "an old write", i)
        new.send(DISC)
        check(new.ended())


def until_stuck(c):
    """The server has sent what the socket takes, and goes no further."""
    seen, since = 0, time.monotonic()
    while seen < MiB // 4 or time.monotonic() - since < 1:
        n = struct.unpack("i", fcntl.ioctl(c.s, termios.FIONREAD, bytes(4)))[0]
        if n != seen:
            seen, since = n, time.monotonic()
        time.sleep(0.05)


def test_what_a_stuck_client_has_asked_for_dies_with_it():
    """It comes back while the server thinks that it is only slow."""
    at = 41 * MiB
    for i in range(4):
        before = fds()
        old = client().go("disk", structured=i % 2 == 0)
        old.s.sendall(
            b"".join(old.request(READ, j * MiB, MiB) for j in range(12)) +
            b"".join(old.request(WRITE, at, 512, data=b"o" * 512)
                     for j in range(20)))
        until_stuck(old)
        new = client().go("disk")
        check(new.error(WRITE, at, 512, data=b"n" * 512) == 0)
        old.close()
        new.send(FLUSH)
        check(new.result()[0] == 0)
        until("the old connection is gone", lambda: fds() <= before + 2)
        check(new.read(at, 512) == b"n" * 512, "an old write", i)
        new.send(DISC)
        check(new.ended())
        new.close()


def test_many_idle_connections(measure):
    before, least = fds(), rss()
    idle = [client().go("disk") for _ in range(500)]
    for c in idle:
        check(len(c.read(0, 65536)) == 65536)
        check(c.error(WRITE, 50 * MiB, 65536, data=bytes(65536)) == 0)
    if measure:
        print("idle:", (rss() - least) // 500, "bytes each at first",
              file=sys.stderr)
        until("idle connections are small",
              lambda: rss() - least < 500 * 100 * 1024)
        print("idle:", (rss() - least) // 500, "bytes each", file=sys.stderr)
    for c in idle:
        check(c.alive())
        c.close()
    until("descriptors are closed", lambda: fds() <= before)


ends = test_handshake_has_an_end()
test_death_in_the_middle()
test_a_stuck_client_goes_and_leaves_nothing()
test_old_writes_do_not_land_on_new_ones()
test_what_a_stuck_client_has_asked_for_dies_with_it()
test_a_stuck_client_has_its_share_of_memory(not os.environ.get("SANITIZE"))
test_many_idle_connections(not os.environ.get("SANITIZE"))
for client_ in ends:
    try:
        client_.recv(1000)
    except (EOFError, ConnectionResetError):
        pass
stuck = []
test_a_stuck_client_delays_nobody(stuck)
print("stuck", flush=True)
sys.stdin.read()
