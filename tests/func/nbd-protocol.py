"""Rule by rule: argv is the socket of a server with the exports rw (also
the default one; 4 MiB + 512, pattern below), ro (read-only) and big (qcow2,
16 TiB, empty), and a directory with certificates, if all of it shall go over
TLS."""
import struct
import sys

from nbd_raw import *  # noqa: F403
from nbd_tls import context, start_tls

sock = sys.argv[1]
tls = context(sys.argv[2]) if len(sys.argv) > 2 else None
SIZE = 4 * 2**20 + 512


def client(**kw):
    c = Client(sock, **kw)
    # One that offers no fixed newstyle cannot ask for TLS.
    fixed = kw.get("flags", 3) in (1, 3) and kw.get("greet", True)
    return start_tls(c, tls) if tls and fixed else c


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
    for opt, data in ((0, b""), (4, b"x"), (12, b""), (99, b"y" * 100000),
                      (0xFFFFFFFF, b"z" * 4096)):
        is_(c.option(opt, data)[0], UNSUP)
    is_(c.option(LIST)[0], ACK)


def test_tls_begins_once_or_never():
    c = client()
    is_(c.option(STARTTLS)[0], INVALID if tls else POLICY)
    is_(c.option(STARTTLS, b"x")[0], INVALID if tls else POLICY)
    is_(c.option(STARTTLS, bytes(100000))[0], TOO_BIG)
    is_(c.option(LIST)[0], ACK)


def test_options_with_data_that_have_none():
    c = client()
    is_(c.option(LIST, b"x")[0], INVALID)
    is_(c.option(STRUCTURED, b"x")[0], INVALID)
    is_(c.option(EXTENDED, b"x")[0], INVALID)
    is_(c.option(EXTENDED, bytes(100000))[0], TOO_BIG)
    kind, out = c.option(LIST)
    is_(kind, ACK)
    is_([p[4:] for _, p in out], [b"rw", b"ro", b"big", b"toldfor a human"])
    is_(struct.unpack(">I", out[3][1][:4])[0], 4)


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


def test_a_description_is_told_where_there_is_one():
    for name, told in (("told", b"for a human"), ("rw", None)):
        kind, out = client().option(INFO, info_data(name, 2))
        infos = {p[:2]: p[2:] for _, p in out}
        is_((kind, infos.get(b"\0\2")), (ACK, told))


def test_go_tells_what_info_told():
    for options in ((), (STRUCTURED,), (STRUCTURED, SET_META), (EXTENDED,),
                    (EXTENDED, SET_META)):
        c = client()
        for opt in options:
            is_(c.option(opt, meta_data("rw", "base:allocation")
                         if opt == SET_META else b"")[0], ACK)
        told = c.option(INFO, info_data("rw", 3, 1))
        is_(c.option(GO, info_data("rw", 3, 1)), told)
        check(c.alive())


def test_an_export_that_is_not_there_ends_nothing():
    c = client()
    is_(c.option(GO, info_data("nosuch"))[0], UNKNOWN)
    is_(c.option(INFO, info_data("nosuch"))[0], UNKNOWN)
    check(c.go("rw").alive())


def test_many_options():
    c = client()
    for _ in range(200):
        is_(c.option(LIST)[0], ACK)
        is_(c.option(INFO, info_data("rw", 0, 1, 2, 3))[0], ACK)
    check(c.go("rw").alive())
    # Also when they come all at once.
    c = client()
    c.s.sendall(OPT.pack(IHAVEOPT, LIST, 0) * 100)
    for _ in range(100):
        while c.reply(LIST)[0] != ACK:
            pass
    check(c.go("rw").alive())


def test_good_options_have_no_end_and_bad_ones_have():
    c = client()
    c.option(EXTENDED)
    for _ in range(1000):
        is_(c.option(INFO, info_data("rw", 0, 1, 2, 3))[0], ACK)
        is_(c.option(LIST_META, meta_data("rw", "base:"))[0], ACK)
    check(c.go("rw").alive())
    for opt, data in ((INFO, info_data("nosuch")), (LIST, b"x"), (99, b""),
                      (SET_META, meta_data("nosuch", "base:")), (LIST, b""),
                      (INFO, bytes(2**20))):
        c = client()
        seen = 0
        try:
            while seen < 2000:
                c.option(opt, data)
                seen += 1
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        check(10 < seen < 1100, opt, seen)


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
        is_(status_error(c), EINVAL)
        check(c.alive())


# --- Transmission ---

def modes():
    return (client().go("rw"), client().go("rw", structured=False),
            client().go("rw", extended=True))


def test_bad_magic_ends_it():
    for c in modes():
        c.send(READ, 0, 512, bad=1)
        check(c.ended())
    plain, extended = client().go("rw"), client().go("rw", extended=True)
    plain.s.sendall(extended.request(READ, 0, 512))
    check(plain.ended())
    extended.s.sendall(plain.request(READ, 0, 512) + bytes(4))
    check(extended.ended())


def test_disc_waits_for_requests():
    for c in modes():
        c.s.sendall(
            c.request(WRITE, 2**20, 70000, FUA, 1, b"d" * 70000)
            + c.request(DISC, cookie=2))
        is_(c.result(1)[0], 0)
        check(c.ended())


def test_unknown_commands_and_flags():
    for c in modes():
        for cmd in (8, 9, 255, 65535):
            is_(c.error(cmd, 0, 512), EINVAL)
        for cmd in (READ, FLUSH, TRIM, CACHE, ZERO, STATUS):
            is_(c.error(cmd, 0, 0 if cmd == FLUSH else 512, 64), EINVAL)
        is_(c.error(READ, 0, 512, REQ_ONE), EINVAL)
        is_(c.error(TRIM, 0, 512, NO_HOLE), EINVAL)
        is_(c.error(FLUSH, 0, 0, DF), EINVAL)
        is_(c.error(FLUSH, 512, 0), EINVAL)
        is_(c.error(FLUSH, 0, 512), EINVAL)
        is_(c.error(WRITE, 0, 512, DF, data=bytes(512)), EINVAL)
        check(c.alive())
    is_(modes()[1].error(READ, 0, 512, DF), EINVAL)


def test_fua_on_all():
    for c in modes():
        check(len(c.read(0, 512, FUA)) == 512)
        is_(c.error(FLUSH, 0, 0, FUA), 0)
        is_(c.error(CACHE, 0, 512, FUA), 0)
        is_(c.error(TRIM, 3 * 2**20, 512, FUA), 0)
        is_(c.error(ZERO, 3 * 2**20, 512, FUA), 0)
        is_(c.error(WRITE, 3 * 2**20, 512, FUA, data=bytes(512)), 0)
        check(c.alive())
    c = client().go("rw", contexts=["base:allocation"])
    is_(c.error(STATUS, 0, 512, FUA), 0)


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
    for kw in ({}, {"structured": False}, {"extended": True}):
        c = client().go("ro", **kw)
        for n in (1, 512, 65536, 3 * 2**20):
            is_(c.error(WRITE, 0, n, data=b"w" * n), EPERM)
        is_(c.error(WRITE, SIZE, 512, data=bytes(512)), EPERM)
        is_(c.error(TRIM, 0, 512), EPERM)
        for flags in (0, FAST_ZERO, FUA | NO_HOLE | FAST_ZERO):
            is_(c.error(ZERO, 0, 512, flags), EPERM)
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
    for c in (client().go("rw"), client().go("rw", extended=True)):
        error, chunks = c.call(READ, 0, SIZE, DF)
        is_((error, len(chunks)), (0, 1))
        error, chunks = c.call(READ, 0, SIZE)
        kinds = {kind for kind, _ in chunks}
        is_((error, kinds), (0, {1, 2}))


def extents(c, offset, length, flags=0, data=b""):
    """Of each context.  With @data as payload, @length is in it."""
    error, chunks = c.call(STATUS, offset, len(data) or length, flags, data)
    is_(error, 0)
    out = {}
    for kind, p in chunks:
        if c.extended:
            is_(kind, 6)
            is_(len(p), 8 + 16 * struct.unpack(">I", p[4:8])[0])
            ext = list(struct.iter_unpack(">QQ", p[8:]))
        else:
            is_(kind, 5)
            ext = list(struct.iter_unpack(">II", p[4:]))
        check(ext and all(n > 0 for n, _ in ext))
        check(sum(n for n, _ in ext) <= length)
        check(all(a[1] != b[1] for a, b in zip(ext, ext[1:])), "not joined")
        out[c.contexts[struct.unpack(">I", p[:4])[0]]] = ext
    is_(len(out), len(chunks))
    return out


def test_status_of_several_contexts():
    for extended in (False, True):
        c = client().go("rw", extended=extended, contexts=[
            "qemu:allocation-depth", "base:allocation", "base:allocation",
            "x-y:z"])
        is_(set(c.contexts.values()),
            {"base:allocation", "qemu:allocation-depth"})
        got = extents(c, 0, SIZE)
        is_(set(got), set(c.contexts.values()))
        is_(sum(n for n, _ in got["base:allocation"]), SIZE)
        for offset, n in ((0, SIZE), (1, 1000), (5000, 2**20)):
            one = extents(c, offset, n, REQ_ONE)
            for ext in one.values():
                is_(len(ext), 1)
        check(c.alive())


# --- Extended headers ---

def test_extended_headers_are_for_good():
    c = client()
    is_(c.option(STRUCTURED)[0], ACK)
    is_(c.option(STRUCTURED)[0], INVALID)
    is_(c.option(EXTENDED)[0], ACK)
    is_(c.option(EXTENDED)[0], INVALID)
    is_(c.option(STRUCTURED)[0], EXT_HEADER_REQD)
    c.send_option(EXPORT_NAME, b"rw")
    check(c.ended())
    # Either of them lets contexts be negotiated.
    c = client()
    is_(c.option(EXTENDED)[0], ACK)
    kind, out = c.option(SET_META, meta_data("rw", "base:allocation"))
    is_((kind, len(out)), (ACK, 1))
    is_(c.option(GO, info_data("rw"))[0], ACK)
    check(c.alive())


def test_the_payload_of_status_is_offered_where_it_makes_sense():
    offer = 1 << 12
    contexts = ["base:allocation"]
    is_(client().go("rw", contexts=contexts).flags & offer, 0)
    is_(client().go("rw", extended=True).flags & offer, 0)
    c = client().go("rw", extended=True, contexts=contexts)
    is_(c.flags & offer, offer)
    c = client()
    c.option(EXTENDED)
    c.option(SET_META, meta_data("ro", *contexts))
    kind, out = c.option(GO, info_data("rw"))
    is_((kind, struct.unpack(">H", out[0][1][10:])[0] & offer), (ACK, 0))
    # A client that asks with INFO is told, and gets the same answer with GO.
    for between, want in (((), offer), ((LIST,), 0)):
        c = client()
        c.option(EXTENDED)
        kind, out = c.option(INFO, info_data("rw"))
        is_((kind, struct.unpack(">H", out[0][1][10:])[0] & offer),
            (ACK, offer))
        for opt in between:
            c.option(opt)
        is_(c.go("rw").flags & offer, want)


def test_only_a_write_has_a_payload():
    c = client().go("rw", extended=True, contexts=["base:allocation"])
    for cmd in (READ, FLUSH, TRIM, CACHE, ZERO, 8, 65535):
        for n in (1, 512, 100000):
            is_(c.error(cmd, 0, n, PAYLOAD_LEN, data=b"p" * n), EINVAL)
    is_(c.error(TRIM, 0, 0, PAYLOAD_LEN), EINVAL)
    is_(c.error(WRITE, SIZE, 70000, data=bytes(70000)), ENOSPC)
    check(c.alive())
    for cmd in (READ, ZERO, STATUS):
        c = client().go("rw", extended=True, contexts=["base:allocation"])
        c.send(cmd, 0, 32 * 2**20 + 1, PAYLOAD_LEN)
        check(c.ended())
    for c in modes()[:2]:
        is_(c.error(READ, 0, 512, PAYLOAD_LEN), EINVAL)
        is_(c.error(WRITE, 0, 512, PAYLOAD_LEN, data=bytes(512)), EINVAL)
        check(c.alive())


def test_a_write_has_its_payload_whether_or_not_it_says_so():
    c = client().go("rw", extended=True)
    at = 3 * 2**20
    for flags in (0, FUA, PAYLOAD_LEN, PAYLOAD_LEN | FUA):
        for n in (0, 1, 512, 4096, 16384, 16385, 65536, 65537, 2**20):
            data = bytes([n % 251 + 1]) * n
            c.send(WRITE, at, n, flags, data=data, plain=True)
            is_(c.result()[0], 0)
            check(n == 0 or c.read(at, n) == data, n, flags)
    c.error(ZERO, at, 2**20)


# What a request carries, if it is taken for one, would change the disk.
def poison(c, n):
    one = c.request(WRITE, 2 * 2**20, 512, data=b"P" * 512, cookie=666)
    return (one * (n // len(one) + 1))[:n]


def refused(c, longest):
    """(request without its payload, its payload's bytes, error or None: it is
    served): all kinds of requests, with what can be wrong with them."""
    big = 32 * 2**20
    for cmd in (*range(10), 255, 65535):
        if cmd == DISC:
            continue
        for flags in (0, FUA, DF, REQ_ONE, NO_HOLE, FAST_ZERO, 64, 0x8000,
                      PAYLOAD_LEN, PAYLOAD_LEN | FUA, PAYLOAD_LEN | DF,
                      PAYLOAD_LEN | 0x4000):
            for offset, n in ((0, 0), (0, 1), (4096, 512), (SIZE, 12),
                              (SIZE - 1, 5000), (2**64 - 1, 70000),
                              (2**63, 512)):
                has = cmd == WRITE or (c.extended and flags & PAYLOAD_LEN)
                if cmd in (WRITE, TRIM, ZERO) and c.flags & 2 == 0 \
                        and offset <= SIZE - n:
                    offset = 3 * 2**20
                yield cmd, flags, offset, n, n if has else 0
    # The longest payload that is read away.
    if longest:
        yield WRITE, 0, SIZE, big, big
    if longest and c.extended:
        for cmd in (READ, TRIM, 8, 65535, STATUS):
            yield cmd, PAYLOAD_LEN, 0, big, big


def test_a_refused_request_is_read_away_to_its_end():
    for name in ("rw", "ro"):
        for kw in ({}, {"structured": False}, {"extended": True},
                   {"contexts": ["base:allocation"]},
                   {"contexts": ["base:allocation"], "extended": True}):
            c = client().go(name, **kw)
            before = c.read(2 * 2**20, 2**20)
            for cmd, flags, offset, n, payload in refused(
                    c, name == "rw" and "contexts" not in kw):
                c.send(cmd, offset, n, flags, data=poison(c, payload),
                       plain=True)
                error, _ = c.result()
                if cmd == READ and not error and not c.structured:
                    c.recv(n)
                if cmd not in (WRITE, TRIM, ZERO) or name == "ro" or \
                        offset + n > SIZE:
                    check(c.alive(), cmd, flags, offset, n)
                if error == 0:
                    check(cmd < 8 and not flags & 0xc000)
            check(c.alive())
            check(c.read(2 * 2**20, 2**20) == before)


def test_64_bit_lengths():
    c = client().go("rw", extended=True, contexts=["base:allocation"])
    for n in (2**32, 2**32 + 512, 2**63, 2**64 - 1):
        for cmd in (READ, TRIM, CACHE, STATUS):
            is_(c.error(cmd, 0, n), EINVAL)
        is_(c.error(ZERO, 0, n), ENOSPC)
    is_(c.error(READ, 0, 2**32 + 512), EINVAL)
    check(c.alive())
    BIG = 16 * 2**40
    c = client().go("big", extended=True, contexts=[
        "base:allocation", "qemu:allocation-depth"])
    is_(c.size, BIG)
    is_(c.error(READ, 0, BIG), EOVERFLOW)
    is_(c.error(WRITE, 5 * 2**40, 512, data=b"5" * 512), 0)
    got = extents(c, 0, BIG)
    is_(got["qemu:allocation-depth"],
        [(5 * 2**40, 0), (65536, 1), (11 * 2**40 - 65536, 0)])
    is_(got["base:allocation"],
        [(5 * 2**40, 3), (65536, 0), (11 * 2**40 - 65536, 3)])
    is_(extents(c, 0, BIG, REQ_ONE)["base:allocation"], [(5 * 2**40, 3)])
    is_(c.error(CACHE, 0, BIG), 0)
    is_(c.error(ZERO, 9 * 2**39, 2**40, FUA | FAST_ZERO), 0)
    is_(c.read(5 * 2**40, 512), bytes(512))
    is_(c.error(WRITE, 5 * 2**40, 512, data=b"5" * 512), 0)
    is_(c.error(ZERO, 5 * 2**40 - 512, 2**32 + 1024, FUA), 0)
    is_(c.read(5 * 2**40, 512), bytes(512))
    is_(c.error(TRIM, 0, BIG, FUA), 0)
    # A client with compact headers sees the same in 32 bits.
    c = client().go("big", contexts=["base:allocation"])
    is_(extents(c, 5 * 2**40, 2**32 - 512),
        {"base:allocation": [(2**32 - 512, 3)]})


def pick(length, *ids):
    return struct.pack(">Q", length) + b"".join(
        struct.pack(">I", i) for i in ids)


def test_status_of_some_contexts():
    c = client().go("rw", extended=True, contexts=[
        "base:allocation", "qemu:allocation-depth"])
    ids = {name: i for i, name in c.contexts.items()}
    every = extents(c, 0, SIZE)
    for names in (["base:allocation"], ["qemu:allocation-depth"],
                  ["qemu:allocation-depth", "base:allocation"]):
        got = extents(c, 0, SIZE, PAYLOAD_LEN,
                      pick(SIZE, *(ids[name] for name in names)))
        is_(got, {name: every[name] for name in names})
    one = ids["base:allocation"]
    is_(extents(c, 4096, 512, PAYLOAD_LEN | REQ_ONE, pick(512, one)),
        {"base:allocation": [(512, 0)]})
    for data in (pick(SIZE), pick(SIZE, 99), pick(SIZE, one, one),
                 pick(SIZE, one, 0), pick(SIZE, *ids.values(), one),
                 pick(SIZE, one) + b"x", pick(SIZE)[:4], b"x" * 100000,
                 pick(SIZE + 1, one), pick(2**64 - 1, one), pick(0, one)):
        is_(c.error(STATUS, 0, len(data), PAYLOAD_LEN, data=data), EINVAL)
        check(c.alive())
    is_(c.error(STATUS, 0, 0, PAYLOAD_LEN), EINVAL)
    # In portions.
    for byte in c.request(STATUS, 0, 12, PAYLOAD_LEN, data=pick(SIZE, one)):
        c.s.sendall(bytes([byte]))
    error, chunks = c.result()
    is_((error, len(chunks)), (0, 1))
    check(c.alive())
    # Nothing was negotiated; or it is not extended.
    c = client().go("rw", extended=True)
    is_(c.error(STATUS, 0, 12, PAYLOAD_LEN, data=pick(SIZE, 1)), EINVAL)
    check(c.alive())
    c = client().go("rw", contexts=["base:allocation"])
    is_(c.error(STATUS, 0, 12, PAYLOAD_LEN), EINVAL)
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
                out += c.request(WRITE, 2**20 + at, n,
                                 FUA if i % 9 == 2 else 0, i,
                                 bytes([i % 256]) * n)
            elif i % 100 == 0:
                todo[i] = 0
                out += c.request(FLUSH, cookie=i)
            else:
                todo[i] = n
                out += c.request(READ, at, n, cookie=i)
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
            elif n == 0:
                is_((kind, payload), (0, b""))
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
