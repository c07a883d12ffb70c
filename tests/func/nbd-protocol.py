"""Rule by rule: argv is the socket of a server with the exports rw (also
the default one; 4 MiB + 512, pattern below) and ro (read-only)."""
import struct
import sys

from nbd_raw import *  # noqa: F403

sock = sys.argv[1]
SIZE = 4 * 2**20 + 512


def client(**kw):
    return Client(sock, **kw)


def check(ok, *what):
    if not ok:
        raise AssertionError(what)


def is_(got, want):
    if got != want:
        raise AssertionError(f"{got!r} is not {want!r}")


# --- Handshake ---

def test_unknown_client_flags_end_it():
    check(client(flags=4).ended())
    check(client(flags=0x80000001).ended())


def test_bad_option_magic_ends_it():
    c = client()
    c.send_option(LIST, magic=IHAVEOPT + 1)
    check(c.ended())


def test_unknown_options_are_refused_and_skipped():
    c = client()
    for opt, data in ((0, b""), (4, b"x"), (11, b""), (99, b"y" * 100000),
                      (0xFFFFFFFF, b"z" * 4096), (STARTTLS, b"")):
        is_(c.option(opt, data)[0], UNSUP)
    is_(c.option(LIST)[0], ACK)


def test_options_with_data_that_have_none():
    c = client()
    is_(c.option(LIST, b"x")[0], INVALID)
    is_(c.option(STRUCTURED, b"x")[0], INVALID)
    kind, out = c.option(LIST)
    is_(kind, ACK)
    is_([p[4:] for _, p in out], [b"rw", b"ro"])


def test_abort_is_acknowledged():
    for data in (b"", b"bye"):
        c = client()
        is_(c.option(ABORT, data)[0], ACK)
        check(c.ended())


def test_export_name():
    for flags, n in ((3, 10), (1, 134), (0, 134), (2, 10)):
        c = client(flags=flags)
        c.send_option(EXPORT_NAME, b"rw")
        size, _ = struct.unpack(">QH", c.recv(n)[:10])
        is_(size, SIZE)
        check(c.alive())
    for name in (b"nosuch", b"x" * 4097, b"rw\0", b"x" * 100000):
        c = client()
        try:
            c.send_option(EXPORT_NAME, name)
        except BrokenPipeError:
            continue  # it did not even wait for the end of it
        check(c.ended())


def test_info_and_go_malformed():
    c = client()
    good = info_data("rw", 0)
    for opt in (INFO, GO):
        for data in (b"", b"\0\0\0", good[:-1], good + b"\0", good[:6],
                     struct.pack(">I", 0xFFFFFFFF) + b"rw\0\0",
                     struct.pack(">I", 3) + b"rw\0\0",
                     string("rw") + struct.pack(">HH", 2, 0),
                     info_data("rw\0"), info_data("x" * 4097)):
            kind = c.option(opt, data)[0]
            check(kind in (INVALID, TOO_BIG), data[:20], hex(kind))
        is_(c.option(opt, info_data("nosuch"))[0], UNKNOWN)
        is_(c.option(opt, info_data("x" * 4096))[0], UNKNOWN)
    check(c.go("rw").alive())


def test_infos():
    c = client()
    kind, out = c.option(INFO, info_data("", 1, 2, 3, 0, 77))
    is_(kind, ACK)
    infos = {struct.unpack(">H", p[:2])[0]: p[2:] for _, p in out}
    is_(len(infos), len(out))
    is_(infos[1], b"rw")
    least, pref, most = struct.unpack(">III", infos[3])
    check(least == 1 and pref >= 512 and pref & (pref - 1) == 0)
    is_(most, 32 * 2**20)
    kind, out = c.option(INFO, info_data("rw"))
    is_([p[:2] for _, p in out], [b"\0\0"])


def test_flags():
    rw, ro = client().go("rw").flags, client().go("ro").flags
    is_(rw & 2, 0)
    is_(ro & 2, 2)
    is_(ro & (1 << 5 | 1 << 6 | 1 << 11), 0)
    is_(rw & 1 << 7, 1 << 7)
    is_(client().go("rw", structured=False).flags & 1 << 7, 0)


def test_contexts_need_structured_replies():
    c = client()
    is_(c.option(SET_META, meta_data("rw", "base:allocation"))[0], INVALID)


def test_contexts_malformed():
    c = client()
    c.option(STRUCTURED)
    good = meta_data("rw", "base:allocation")
    for opt in (LIST_META, SET_META):
        for data in (b"", b"\0\0", good[:-1], good + b"x", good[:8],
                     good + string("base:allocation"),
                     string("rw") + struct.pack(">I", 0xFFFFFFFF),
                     meta_data("rw", "x" * 4097 + ":")):
            kind = c.option(opt, data)[0]
            check(kind in (INVALID, TOO_BIG), opt, data[:20], hex(kind))
        is_(c.option(opt, meta_data("nosuch", "base:"))[0], UNKNOWN)
        is_(c.option(opt, meta_data("rw", "x-other:y")), (ACK, []))
    kind = c.option(LIST_META, meta_data("rw", *["base:x"] * 60000))[0]
    is_(kind, TOO_BIG)
    check(c.go("rw").alive())


def test_contexts_listed():
    c = client()
    c.option(STRUCTURED)

    def names(opt, *queries):
        kind, out = c.option(opt, meta_data("rw", *queries))
        is_(kind, ACK)
        return [p[4:].decode() for _, p in out]

    every = names(LIST_META)
    check({"base:allocation", "qemu:allocation-depth"} <= set(every))
    is_(names(LIST_META, "base:"), ["base:allocation"])
    is_(names(LIST_META, "base:", "base:allocation", "base:"),
        ["base:allocation"])
    is_(names(LIST_META, "qemu:")[:1], ["qemu:allocation-depth"])
    is_(names(LIST_META, "base:alloc"), [])
    is_(names(SET_META, "base:"), [])
    is_(names(SET_META, "qemu:dirty-bitmap:"), [])
    is_(names(SET_META), [])


def status_error(c):
    return c.error(STATUS, 0, 512)


def test_contexts_are_replaced_also_by_failure():
    for data in (b"", meta_data("nosuch", "base:allocation"),
                 meta_data("rw"), meta_data("ro", "base:allocation")):
        c = client()
        c.option(STRUCTURED)
        is_(c.option(SET_META, meta_data("rw", "base:allocation"))[0], ACK)
        c.option(SET_META, data)
        is_(c.option(GO, info_data("rw"))[0], ACK)
        c.structured = True
        is_(status_error(c), EINVAL)
        check(c.alive())


# --- Transmission ---

def modes():
    return (client().go("rw"), client().go("rw", structured=False))


def test_bad_magic_ends_it():
    for c in modes():
        c.send(READ, 0, 512, magic=REQMAGIC + 1)
        check(c.ended())


def test_disc_waits_for_requests():
    for c in modes():
        c.s.sendall(
            REQ.pack(REQMAGIC, FUA, WRITE, 1, 2**20, 70000) + b"d" * 70000
            + REQ.pack(REQMAGIC, 0, DISC, 2, 0, 0))
        is_(c.result(1)[0], 0)
        check(c.ended())


def test_unknown_commands_and_flags():
    for c in modes():
        for cmd in (8, 9, 255, 65535):
            is_(c.error(cmd, 0, 512), EINVAL)
        for cmd in (READ, FLUSH, TRIM, CACHE, ZERO, STATUS):
            is_(c.error(cmd, 0, 0 if cmd == FLUSH else 512, 32), EINVAL)
        is_(c.error(READ, 0, 512, REQ_ONE), EINVAL)
        is_(c.error(TRIM, 0, 512, NO_HOLE), EINVAL)
        is_(c.error(FLUSH, 0, 0, DF), EINVAL)
        is_(c.error(FLUSH, 512, 0), EINVAL)
        is_(c.error(FLUSH, 0, 512), EINVAL)
        is_(c.error(WRITE, 0, 512, DF, data=bytes(512)), EINVAL)
        check(c.alive())
    is_(modes()[1].error(READ, 0, 512, DF), EINVAL)


def test_past_the_end():
    for c in modes():
        for offset, n in ((SIZE, 1), (SIZE - 1, 2), (2**64 - 1, 1),
                          (2**63, 512), (2**64 - 512, 512), (0, SIZE + 1)):
            is_(c.error(READ, offset, n), EINVAL)
            is_(c.error(TRIM, offset, n), EINVAL)
            is_(c.error(CACHE, offset, n), EINVAL)
            is_(c.error(ZERO, offset, n), ENOSPC)
            is_(c.error(WRITE, offset, n, data=bytes(n)), ENOSPC)
        check(c.alive())
    c = client().go("rw", contexts=["base:allocation"])
    is_(c.error(STATUS, SIZE, 1), EINVAL)
    is_(c.error(STATUS, SIZE - 1, 2), EINVAL)
    check(c.alive())


def test_read_only():
    for structured in (True, False):
        c = client().go("ro", structured=structured)
        for n in (1, 512, 65536, 3 * 2**20):
            is_(c.error(WRITE, 0, n, data=b"w" * n), EPERM)
        is_(c.error(WRITE, SIZE, 512, data=bytes(512)), EPERM)
        is_(c.error(TRIM, 0, 512), EPERM)
        is_(c.error(ZERO, 0, 512), EPERM)
        is_(c.error(FLUSH), 0)
        check(c.alive())


def test_oversized():
    for c in modes():
        is_(c.error(READ, 0, 2**32 - 1), EINVAL)
        check(c.alive())
        c.send(WRITE, 0, 32 * 2**20 + 1)
        check(c.ended())


def test_zero_length():
    for c in modes():
        for cmd in (READ, WRITE, TRIM, CACHE, ZERO):
            is_(c.error(cmd, 4096, 0), 0)
        check(c.alive())
    c = client().go("rw", contexts=["base:allocation"])
    is_(c.error(STATUS, 0, 0), EINVAL)
    check(c.alive())


def test_status_without_contexts():
    for c in modes():
        is_(status_error(c), EINVAL)
        check(c.alive())


def test_reads_of_all_sizes():
    data = open("rw.raw", "rb").read()
    for c in modes():
        for offset, n in ((0, 1), (511, 2), (3, 65536), (1, 65537),
                          (0, 262144), (4095, 300001), (0, SIZE),
                          (SIZE - 1, 1)):
            for flags in ((0, DF) if c.structured else (0,)):
                is_(c.read(offset, n, flags) == data[offset:offset + n], True)


def test_df_gives_one_chunk():
    c = client().go("rw")
    error, chunks = c.call(READ, 0, SIZE, DF)
    is_((error, len(chunks)), (0, 1))
    error, chunks = c.call(READ, 0, SIZE)
    kinds = {kind for kind, _ in chunks}
    is_((error, kinds), (0, {1, 2}))


def extents(c, offset, length, flags=0):
    error, chunks = c.call(STATUS, offset, length, flags)
    is_(error, 0)
    out = {}
    for kind, p in chunks:
        is_(kind, 5)
        ext = [struct.unpack(">II", p[i:i + 8]) for i in range(4, len(p), 8)]
        check(ext and all(n > 0 for n, _ in ext))
        check(sum(n for n, _ in ext) <= length)
        check(all(a[1] != b[1] for a, b in zip(ext, ext[1:])), "not joined")
        out[c.contexts[struct.unpack(">I", p[:4])[0]]] = ext
    is_(len(out), len(chunks))
    return out


def test_status_of_several_contexts():
    c = client().go("rw", contexts=["qemu:allocation-depth", "base:allocation",
                                    "base:allocation", "x-y:z"])
    is_(set(c.contexts.values()), {"base:allocation", "qemu:allocation-depth"})
    got = extents(c, 0, SIZE)
    is_(set(got), set(c.contexts.values()))
    is_(sum(n for n, _ in got["base:allocation"]), SIZE)
    for offset, n in ((0, SIZE), (1, 1000), (5000, 2**20)):
        one = extents(c, offset, n, REQ_ONE)
        for ext in one.values():
            is_(len(ext), 1)
    check(c.alive())


def test_fast_zero_and_no_hole():
    for c in modes():
        for flags in (0, NO_HOLE, FUA, FUA | NO_HOLE, FAST_ZERO,
                      FAST_ZERO | NO_HOLE):
            check(c.error(ZERO, 3 * 2**20, 65536, flags)
                  in ((0, ENOTSUP) if flags & FAST_ZERO else (0,)))
        is_(c.error(TRIM, 3 * 2**20, 65536, FUA), 0)
        is_(c.error(CACHE, 0, SIZE), 0)
        check(c.alive())


def test_a_flood_of_requests_is_answered_once_each():
    for c in modes():
        todo = {}
        out = b""
        for i in range(2000):
            n = (i % 7 + 1) * 512
            at = i * 512 % (2**20)
            if i % 3 == 2:
                todo[i] = 0
                out += REQ.pack(REQMAGIC, FUA if i % 9 == 2 else 0, WRITE, i,
                                2**20 + at, n) + bytes([i % 256]) * n
            elif i % 100 == 0:
                todo[i] = 0
                out += REQ.pack(REQMAGIC, 0, FLUSH, i, 0, 0)
            else:
                todo[i] = n
                out += REQ.pack(REQMAGIC, 0, READ, i, at, n)
        # In portions that respect no boundary.
        import threading
        def feed():
            for i in range(0, len(out), 9973):
                c.s.sendall(out[i:i + 9973])
        t = threading.Thread(target=feed)
        t.start()
        while todo:
            cookie, error, done, kind, payload = c.message()
            is_(error, 0)
            n = todo.pop(cookie)
            if kind is None:
                c.recv(n)
            else:
                is_(kind, 1)
                is_(len(payload) - 8, n)
        t.join()
        check(c.alive())


for name, fn in list(globals().items()):
    if name.startswith("test_"):
        try:
            fn()
        except BaseException:
            print(f"{name}:", flush=True)
            raise
