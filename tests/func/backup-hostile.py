#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""backup-hostile.py GOOD ROUNDS SEED: backup directories that somebody else
has written.

Each round changes a copy of the directory GOOD in some ways: JSON values of
every wrong type, with the manifest's own hash made right again; random bytes;
files that are cut, long, links, pipes, folders.  Then each command that takes
a directory runs.  None crashes, hangs, takes much memory, ends with a status
that its page does not have, or changes anything beside the directory.
"""
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time

NBDELTA = os.path.join(os.environ["BUILD"], "nbdelta")
SANITIZED = bool(os.environ.get("SANITIZE"))
LIMIT = 120 if SANITIZED else 60  # seconds, on a machine that is busy
MEMORY = 300 << 20
POINT = "20261127T023000Z"

VALUES = [None, True, False, 0, 1, -1, 3.5, 1e308, 2**31, 2**53, 2**63 - 1,
          "", "x", "../x", "../../outside/secret", "/etc/passwd", ".", "..",
          "vda", "a" * 5000, "a" * 2000000, "\u0000", "\n", "\u202e", "full",
          "increment", "20261128T023000Z", "20261127T023000Z",
          "99991231T235959Z", "20261301T000000Z", "0" * 64, "f" * 64, [], {},
          [[]], [{}], {"a": None}, [None] * 2000, ["vda"] * 1001]
RAW = ["", "{", "[" * 100000, '{"a":' * 100000, "\0" * 4096, "\xff\xfe",
       "1e999999999", "9" * 100000, '{"nbdelta-point": 1, "nbdelta-point": 1}',
       " " * 3000000, "null", "true", '"x"']


def sign(value):
    """The text of a manifest, with the hash that it should have."""
    value.pop("sha256", None)
    plain = json.dumps(value, indent=2, ensure_ascii=False)
    value["sha256"] = hashlib.sha256(
        plain.encode("utf-8", "surrogatepass")).hexdigest()
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def places(value, path=()):
    """All places in a JSON value."""
    yield path
    items = (value.items() if isinstance(value, dict) else
             enumerate(value) if isinstance(value, list) else ())
    for key, below in items:
        yield from places(below, path + (key,))


class Round:
    def __init__(self, good, rng):
        self.rng = rng
        self.said = []
        shutil.rmtree("dir", ignore_errors=True)
        shutil.copytree(good, "dir", symlinks=True)
        self.files = sorted(os.path.join(d, f)
                            for d, _, fs in os.walk("dir") for f in fs)

    def say(self, *words):
        self.said.append(" ".join(str(w)[:80] for w in words))

    def file(self, ending=""):
        return self.rng.choice([f for f in self.files if f.endswith(ending) and
                                os.path.isfile(f) and not os.path.islink(f)] or
                               self.files)

    def write(self, path, text):
        with open(path, "w", encoding="utf-8", errors="surrogatepass") as f:
            f.write(text)

    def json_value(self):
        path = self.file(self.rng.choice(
            ["Z.json", "Z.json", "Z.json", "nbdelta.json", "prune.json",
             ".verified"]))
        try:
            with open(path, encoding="utf-8") as f:
                value = json.load(f)
        except (OSError, ValueError, RecursionError):
            return
        inner = None
        if path.endswith("prune.json") and self.rng.random() < 0.5:
            try:
                inner, value = value, json.loads(value["manifest"])
            except (KeyError, TypeError, ValueError, RecursionError):
                return
        inside = list(places(value))[1:]
        if not inside:
            return
        place = self.rng.choice(inside)
        at = value
        for key in place[:-1]:
            at = at[key]
        how = self.rng.random()
        if how < 0.15:
            del at[place[-1]]
        elif how < 0.25 and isinstance(at, dict):
            at["more"] = self.rng.choice(VALUES)
        elif how < 0.35 and isinstance(at, list):
            at.extend(at * self.rng.choice([1, 3, 400]))
        else:
            at[place[-1]] = self.rng.choice(VALUES)
        self.say("json", path, place)
        signed = (isinstance(value, dict) and "nbdelta-point" in value and
                  self.rng.random() < 0.9)
        text = sign(value) if signed else json.dumps(value)
        if inner:
            inner["manifest"] = text
            text = json.dumps(inner)
        self.write(path, text)

    def raw(self):
        path = self.file(self.rng.choice(["json", "verified", "sums"]))
        self.say("raw", path)
        self.write(path, self.rng.choice(RAW))

    def bytes(self):
        path = self.file(self.rng.choice(["qcow2", "qcow2", "sums", ""]))
        size = os.path.getsize(path)
        with open(path, "r+b") as f:
            for _ in range(self.rng.choice([1, 1, 4, 40])):
                # Most of what matters of an image is in its first clusters.
                at = self.rng.randrange(max(1, min(size, self.rng.choice(
                    [120, 600, 5 << 16, size]))))
                f.seek(at)
                f.write(self.rng.choice([
                    bytes([self.rng.randrange(256)]), b"\xff" * 8,
                    b"\0" * 8, (1 << 62).to_bytes(8, "big"),
                    self.rng.randbytes(self.rng.choice([4, 64]))]))
        self.say("bytes", path)

    def length(self):
        path = self.file()
        size = self.rng.choice([0, 1, 31, 100, 65536, 100 << 20, 1 << 40])
        self.say("length", path, size)
        os.truncate(path, size)

    def kind(self):
        path = self.file()
        os.unlink(path)
        how = self.rng.choice(["gone", "link", "loop", "fifo", "folder",
                               "socket", "device"])
        self.say(how, path)
        if how == "link":
            os.symlink(os.path.abspath("outside/secret"), path)
        elif how == "device":
            os.symlink("/dev/zero", path)
        elif how == "loop":
            os.symlink(os.path.basename(path), path)
        elif how == "fifo":
            os.mkfifo(path)
        elif how == "folder":
            os.mkdir(path)
        elif how == "socket":
            s = socket.socket(socket.AF_UNIX)
            s.bind(path)
            s.close()

    def folder(self):
        disk = self.rng.choice(["dir/vda", "dir/vdb"])
        if os.path.islink(disk) or not os.path.isdir(disk):
            return
        self.say("folder", disk)
        shutil.move(disk, "moved")
        how = self.rng.randrange(3)
        if how == 0:
            os.symlink(os.path.abspath("moved"), disk)
        elif how == 1:
            os.mkfifo(disk)
        self.files = [f for f in self.files if not f.startswith(disk)]

    def junk(self):
        self.say("junk")
        for i in range(self.rng.choice([1, 50])):
            name = self.rng.choice([
                f"tmp.{i}.1", "a\nb", "20261128T023000Z.json.pending", "..x",
                f"2026{i % 12 + 1:02}11T000000Z.json", "\x1b[2J", "-rf",
                "20261127T023000Z.qcow2.part", "lost+found", "é" * 60])
            where = os.path.join(self.rng.choice(["dir", "dir/vda"]), name)
            try:
                shutil.copyfile(self.file(), where)
            except OSError:
                pass

    def change(self):
        for _ in range(self.rng.choice([1, 1, 2, 4])):
            self.rng.choice([self.json_value, self.json_value, self.json_value,
                             self.bytes, self.bytes, self.raw, self.length,
                             self.kind, self.folder, self.junk])()


def tree(top):
    """What there is below, with its bytes."""
    found = []
    for d, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(d, name)
            st = os.lstat(path)
            what = ""
            if stat.S_ISREG(st.st_mode):
                with open(path, "rb") as f:
                    what = hashlib.sha256(f.read()).hexdigest()
            found.append((path, st.st_mode, st.st_mtime_ns, what))
    return sorted(found)


class Failed(Exception):
    pass


def run(words, statuses):
    """Run a command; its status is one of these."""
    with open("out", "wb") as out, \
            subprocess.Popen([NBDELTA, *words], stdin=subprocess.DEVNULL,
                             stdout=out, stderr=out) as p:
        end = time.monotonic() + LIMIT
        while True:
            pid, status, usage = os.wait4(p.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                p.kill()
                p.wait()
                raise Failed(f"{words}: hangs")
            time.sleep(0.002)
        p.returncode = os.waitstatus_to_exitcode(status)
    with open("out", "rb") as f:
        said = f.read(2000).decode(errors="replace")
    if p.returncode not in statuses:
        raise Failed(f"{words}: status {p.returncode}: {said}")
    if p.returncode and not said:
        raise Failed(f"{words}: status {p.returncode}, and no word")
    if not SANITIZED and usage.ru_maxrss * 1024 > MEMORY:
        raise Failed(f"{words}: takes {usage.ru_maxrss} KiB")


def serve():
    """It refuses to start, or serves and ends in order."""
    with open("out", "wb") as out, \
            subprocess.Popen([NBDELTA, "serve", "-U", "sock", "--pidfile",
                              "pid", "dir"], stdout=out, stderr=out) as p:
        end = time.monotonic() + LIMIT
        while p.poll() is None and not os.path.exists("pid"):
            if time.monotonic() > end:
                p.kill()
                raise Failed("serve: hangs")
            time.sleep(0.005)
        if p.poll() is None:
            p.send_signal(signal.SIGTERM)
        try:
            status = p.wait(LIMIT)
        except subprocess.TimeoutExpired as e:
            p.kill()
            raise Failed("serve: does not end") from e
        if status not in (0, 1, 4, 5, 6):
            with open("out", encoding="utf-8", errors="replace") as f:
                raise Failed(f"serve: status {status}: {f.read(2000)}")


def commands():
    run(["points", "dir"], {0, 1, 4, 6})
    run(["points", "--output", "json", "dir"], {0, 1, 4, 6})
    run(["points", "--check", "--max-age", "1h", "--metrics", "m.prom", "dir"],
        {0, 1, 2, 3})
    run(["verify", "--quick", "dir"], {0, 1, 4, 5, 6})
    run(["verify", "dir"], {0, 1, 4, 5, 6})
    for target in ("o.raw", "o.qcow2"):
        for extra in ([], ["--partial"]):
            run(["restore", *extra, "dir", "vda=" + target], {0, 1, 4, 5, 6})
            if os.path.exists(target):
                os.unlink(target)
    run(["restore", f"dir@{POINT}", "vdb=o.raw"], {0, 1, 4, 5, 6})
    if os.path.exists("o.raw"):
        os.unlink("o.raw")
    serve()
    run(["prune", "--keep-last", "1", "--dry-run", "dir"], {0, 1, 4, 5, 6})
    run(["backup", "--dry-run", "image.qcow2", "dir"], {0, 1, 3, 4, 5, 6})
    run(["prune", "--keep-last", "1", "dir"], {0, 1, 4, 5, 6})
    run(["verify", "--quick", "dir"], {0, 1, 4, 5, 6})


def main():
    good, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if not SANITIZED:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 40, 2 << 40))
    os.mkdir("outside")
    with open("outside/secret", "w", encoding="utf-8") as f:
        f.write("secret\n")
    for i in range(rounds):
        shutil.rmtree("moved", ignore_errors=True)
        r = Round(good, random.Random(seed * 1000003 + i))
        r.change()
        before = tree("outside") + tree("moved")
        try:
            commands()
            if before != tree("outside") + tree("moved"):
                raise Failed("something beside the directory has changed")
        except Failed as e:
            print(f"round {i} of seed {seed}: {e}\nchanged: {r.said}")
            sys.exit(1)


main()
