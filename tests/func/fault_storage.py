# SPDX-License-Identifier: BSD-3-Clause
"""Storage that fails when it is told to, and what a power cut leaves of it.

An NBD server in this process offers *disks*; each is an export of its name.
All of a campaign's disks share one log, and one Fault: the k-th request of a
kind, on whichever disk, fails in one of these ways (ERRORS).
"""
import os
import socket
import struct
import threading

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO = range(7)
KINDS = {'write': (WRITE, ZERO), 'flush': (FLUSH,), 'discard': (TRIM,)}
SECTOR = 512

# What becomes of the request: is it done, what is answered (None: the
# connection is closed instead), and do those of its kind after it fail, too?
ERRORS = {
    'EIO': (False, 5, False),
    'ENOSPC': (False, 28, False),
    'EIO-torn': ('half', 5, False),     # a part of it is done
    'EIO-done': (True, 5, False),       # it is done all the same
    'EIO-from': (False, 5, True),
    'ENOSPC-from': (False, 28, True),
    'lost': (False, None, False),       # the connection
    'lost-done': (True, None, False),
    'lost-from': (False, None, True),   # and there is no other one
    'again': (False, None, False),      # the node connects anew, and repeats
    'again-done': (True, None, False),
}
# Those after which a node has to be as if nothing had happened.
REPEATED = ('again', 'again-done')


class Fault:
    """Of no kind: nothing fails."""

    def __init__(self, kind=None, k=0, error=None):
        self.kind = kind
        self.kinds = KINDS.get(kind, ())
        self.k = k
        self.error = error
        self.active = False
        self.hit = False
        self.counts = dict.fromkeys(KINDS, 0)

    def refuses(self, kind):
        """The row of ERRORS for this request, None if it is left alone."""
        if not self.active:
            return None
        for name, kinds in KINDS.items():
            self.counts[name] += kind in kinds
        if self.hit and ERRORS[self.error][2] and (
                kind in self.kinds or self.error == 'lost-from'):
            return ERRORS[self.error]
        if kind in self.kinds and not self.hit:
            self.k -= 1
            if self.k == 0:
                self.hit = True
                return ERRORS[self.error]
        return None


class Content:
    """Bytes, of which few are no zeroes; copies share what is alike."""

    PAGE = 16384
    HOLE = bytes(PAGE)

    def __init__(self, size, pages=None):
        self.size = size
        self.pages = dict(pages or {})

    @classmethod
    def of(cls, data):
        found = cls(len(data))
        found.write(0, data)
        return found

    def copy(self):
        return Content(self.size, self.pages)

    def read(self, offset, length):
        page, skip = divmod(offset, self.PAGE)
        pages = -(-(skip + length) // self.PAGE)
        data = b''.join(self.pages.get(page + i, self.HOLE)
                        for i in range(pages))
        return data[skip:skip + length]

    def write(self, offset, data, punch=False):
        """Zeroes take room, too, unless they @punch holes."""
        at = 0
        while at < len(data):
            page, skip = divmod(offset + at, self.PAGE)
            part = data[at:at + self.PAGE - skip]
            at += len(part)
            if len(part) < self.PAGE:
                old = self.pages.get(page, self.HOLE)
                part = old[:skip] + part + old[skip + len(part):]
            if punch and part == self.HOLE:
                self.pages.pop(page, None)
            else:
                self.pages[page] = bytes(part)

    def grows_by(self, offset, data):
        """How many pages more it would have."""
        first = offset // self.PAGE
        last = (offset + len(data) - 1) // self.PAGE
        return sum(page not in self.pages for page in range(first, last + 1))

    def used(self):
        """Up to the last byte that matters, and some zeroes."""
        top = (max(self.pages, default=0) + 1) * self.PAGE + (1 << 17)
        return self.read(0, min(top, self.size))


class Disk:
    def __init__(self, log, name, content):
        self.log = log
        self.name = name
        self.base = content.copy()
        self.data = content.copy()
        self.room = None  # bytes that may still be taken, of a thin one

    def full(self, offset, data):
        if self.room is None:
            return False
        more = self.data.grows_by(offset, data) * Content.PAGE
        if more <= self.room:
            self.room -= more
            return False
        return True

    def perform(self, kind, offset, length, data, how):
        if kind == FLUSH:
            self.log.append((self, None, how is not False))
        elif kind in (WRITE, ZERO, TRIM):
            data = data or bytes(length)
            if how == 'half':
                data = data[:len(data) // 2 // SECTOR * SECTOR]
            if how:
                self.data.write(offset, data, kind != WRITE)
                self.log.append((self, offset, data))


def cut_power(disks, log, rng, moment=None):
    """{disk: Content} as they may be when the power fails at a moment of the
    log.  What was written before a flush that succeeded is there; of the rest,
    and of what a flush has failed for, any sectors are."""
    pending = {disk: [] for disk in disks}
    sure = set()
    entries = log[:moment]
    for i, (disk, offset, data) in enumerate(entries):
        if offset is not None:
            pending[disk].append(i)
        else:
            if data:
                sure.update(pending[disk])
            pending[disk] = []
    images = {disk: disk.base.copy() for disk in disks}
    chance = rng.choice([0, 0.3, 0.7, 1])
    for i, (disk, offset, data) in enumerate(entries):
        if offset is None:
            continue
        if i in sure or rng.random() < chance:
            images[disk].write(offset, data)
        elif len(data) > SECTOR and rng.random() < 0.3:
            for at in range(0, len(data), SECTOR):
                if rng.random() < 0.5:
                    images[disk].write(offset + at, data[at:at + SECTOR])
    return images


class Storage:
    """The server; disks come and go by name."""

    FLAGS = 1 | 4 | 8 | 32 | 64 | 256  # flush, FUA, trim, zeroes, cache

    def __init__(self, path):
        self.path = os.path.abspath(path)
        self.disks = {}
        self.log = []
        self.fault = Fault()
        self.lock = threading.Lock()  # of all of it
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(50)
        threading.Thread(target=self._accept, daemon=True).start()

    def add(self, name, content):
        disk = Disk(self.log, name, content)
        with self.lock:
            self.disks[name] = disk
        return disk

    def forget(self):
        """A new case: no disks, an empty log."""
        with self.lock:
            self.disks.clear()
            self.log = []
            self.fault = Fault()

    def node(self, name, **more):
        return {'driver': 'nbd', 'export': name, **more,
                'server': {'type': 'unix', 'path': self.path}}

    def moment(self):
        with self.lock:
            return len(self.log)

    def _accept(self):
        while True:
            peer, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(peer,),
                             daemon=True).start()

    def _serve(self, peer):
        stream = peer.makefile('rb')

        def get(n):
            data = stream.read(n) if n else b''
            if len(data) < n:
                raise EOFError
            return data

        try:
            disk = self._greet(peer, get)
            while disk and self._answer(peer, get, disk):
                pass
        except (OSError, EOFError):
            pass
        finally:
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            stream.close()
            peer.close()

    def _greet(self, peer, get):
        peer.sendall(b'NBDMAGICIHAVEOPT' + struct.pack('>H', 3))
        get(4)
        while True:
            _, option, length = struct.unpack('>8sII', get(16))
            data = get(length)

            def answer(kind, payload=b''):
                peer.sendall(struct.pack('>QIII', 0x3e889045565a9, option,
                                         kind, len(payload)) + payload)

            if option == 2:
                answer(1)
                return None
            if option not in (6, 7):
                answer(0x80000001)
                continue
            name = data[4:4 + struct.unpack('>I', data[:4])[0]].decode()
            disk = self.disks.get(name)
            with self.lock:
                gone = (self.fault.active and self.fault.hit and
                        self.fault.error == 'lost-from')
            if disk is None or gone:
                answer(0x80000006)
                continue
            answer(3, struct.pack('>HQH', 0, disk.data.size, self.FLAGS))
            answer(1)
            if option == 7:
                return disk

    def _answer(self, peer, get, disk):
        """One request.  False: no more on this connection."""
        _, flags, kind, cookie, offset, length = struct.unpack(
            '>IHHQQI', get(28))
        data = get(length) if kind == WRITE else b''
        if kind == DISC:
            return False
        out = b''
        with self.lock:
            if self.disks.get(disk.name) is not disk:
                return False
            done, error, _ = self.fault.refuses(kind) or (True, 0, False)
            if kind == READ:
                out = disk.data.read(offset, length)
            elif offset + length > disk.data.size or (
                    kind == WRITE and done and disk.full(offset, data)):
                error = error or 28
            elif done or error is not None:  # else it never came here
                disk.perform(kind, offset, length, data, done)
                if flags & 1 and kind in (WRITE, ZERO) and not error:
                    disk.perform(FLUSH, 0, 0, b'', True)
        if error is None:
            return False
        peer.sendall(struct.pack('>IIQ', 0x67446698, error, cookie) +
                     (b'' if error else out))
        return True
