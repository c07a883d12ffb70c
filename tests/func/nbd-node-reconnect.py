# SPDX-License-Identifier: BSD-3-Clause
# A remote disk whose server goes away and comes back, or does not.
import errno
import json
import os
import signal
import subprocess
import threading
import time

import nbd

HERE = os.getcwd()
FAR = HERE + "/far.sock"
NEAR = HERE + "/near.sock"
QMP = HERE + "/near.qmp"
SIZE = 8 << 20


def wait_for(what, condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not after %d s: %s" % (seconds, what)
        time.sleep(0.02)


class Far:
    """The far server: nbdkit on a file."""

    def __init__(self, *args, file="far.raw"):
        for name in ("far.pid", FAR):
            if os.path.exists(name):
                os.unlink(name)
        self.process = subprocess.Popen(
            ["nbdkit", "-f", "-U", FAR, "-P", "far.pid",
             *(a for a in args if a.startswith("-")), "file", file,
             *(a for a in args if not a.startswith("-"))],
            stderr=subprocess.DEVNULL)
        wait_for("nbdkit listens", lambda: os.path.exists("far.pid")
                 and os.path.getsize("far.pid") > 0)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.kill()


class Near:
    """nbdelta, with the far disk as its node 'far' and export 'far'."""

    def __init__(self, options, *args, driver="raw"):
        if os.path.exists("near.pid"):
            os.unlink("near.pid")
        disk = ("far=driver=%s,file.driver=nbd,file.server.type=unix,"
                "file.server.path=%s%s" % (driver, FAR, options))
        self.process = subprocess.Popen(
            ["nbdelta", "serve", "-U", NEAR, "--qmp", QMP, "--pidfile",
             "near.pid", disk, *args])
        wait_for("nbdelta is ready", self.ready)

    def ready(self):
        assert self.process.poll() is None, "nbdelta has ended"
        return os.path.exists("near.pid") and os.path.getsize("near.pid") > 0

    def client(self, export="far"):
        h = nbd.NBD()
        h.connect_uri("nbd+unix:///%s?socket=%s" % (export, NEAR))
        return h

    def qmp(self, *args):
        out = subprocess.run(["nbdelta", "qmp", QMP, *args], check=True,
                             stdout=subprocess.PIPE, timeout=30).stdout
        return json.loads(out) if out.strip() else None

    def state(self):
        return [n["image"]["format-specific"]["data"]
                for n in self.qmp("query-named-block-nodes")
                if n["drv"] == "nbd"][0]

    def __enter__(self):
        return self

    def __exit__(self, failure, *args):
        if failure:
            self.process.kill()
        else:
            self.process.terminate()
        try:
            status = self.process.wait(30)
        finally:
            self.process.kill()
        # 1: it could not flush what is out of reach.
        assert failure or status in (0, 1), "nbdelta ended with %d" % status


class Request(threading.Thread):
    """A request in its own thread and connection."""

    def __init__(self, near, call, *args, export="far"):
        super().__init__()
        self.h = near.client(export)
        self.call, self.args = call, args
        self.errno = None
        self.start()

    def run(self):
        begin = time.monotonic()
        try:
            getattr(self.h, self.call)(*self.args)
            self.errno = 0
        except nbd.Error as e:
            self.errno = errno.__dict__[e.errno]
        self.seconds = time.monotonic() - begin

    def end(self, seconds=30):
        self.join(seconds)
        assert not self.is_alive(), "the request has not ended"
        return self.errno


def pattern(n):
    return bytes([n]) * 65536


def fresh(size=SIZE, name="far.raw"):
    with open(name, "wb") as f:
        f.truncate(size)


def far_bytes(offset, size=65536, name="far.raw"):
    with open(name, "rb") as f:
        f.seek(offset)
        return f.read(size)


def requests_wait_and_are_done():
    fresh()
    far = Far()
    with Near(",file.reconnect-delay=60") as near:
        assert Request(near, "pwrite", pattern(1), 0).end() == 0
        far.kill()
        waiting = [Request(near, "pwrite", pattern(i), i << 16)
                   for i in range(2, 6)] + [Request(near, "pread", 512, 0)]
        time.sleep(0.5)
        assert all(r.is_alive() for r in waiting), "they do not wait"
        with Far():
            assert [r.end() for r in waiting] == [0] * 5
            assert Request(near, "flush").end() == 0
    assert all(far_bytes(i << 16) == pattern(i) for i in range(2, 6))


def what_is_under_way_is_done_again():
    fresh()
    far = Far("--filter=delay", "wdelay=3")
    with Near(",file.reconnect-delay=60,file.connections=3") as near:
        under_way = [Request(near, "pwrite", pattern(i), i << 16)
                     for i in range(1, 8)]
        time.sleep(0.5)
        far.kill()
        with Far():
            assert [r.end() for r in under_way] == [0] * 7
    assert all(far_bytes(i << 16) == pattern(i) for i in range(1, 8))


def without_a_delay_they_fail_at_once_and_later_ones_do_not():
    fresh()
    far = Far()
    with Near("") as near:
        far.kill()
        wait_for("the loss is seen", lambda: near.state()["connections"] == 0)
        assert "closed" in near.state()["error"]
        r = Request(near, "pread", 512, 0)
        assert r.end() == errno.EIO and r.seconds < 5
        with Far():
            wait_for("it is there again", lambda:
                     Request(near, "pread", 512, 0).end() == 0)
            assert near.state()["connections"] == 1
            assert "error" not in near.state()


def a_delay_ends():
    fresh()
    far = Far()
    with Near(",file.reconnect-delay=1") as near:
        far.kill()
        r = Request(near, "pwrite", pattern(1), 0)
        assert r.end() == errno.EIO and 0.9 < r.seconds < 20, r.seconds
        r = Request(near, "pwrite", pattern(1), 0)
        assert r.end() == errno.EIO and r.seconds < 0.9, r.seconds
        assert "Failed to connect" in near.state()["error"]
        with Far():
            wait_for("it is there again", lambda:
                     Request(near, "pwrite", pattern(1), 0).end() == 0)


def another_disk_is_not_taken():
    for args, why in [([], "another size"), (["-r"], "read-only"),
                      (["--filter=nozero"], "other commands")]:
        fresh()
        far = Far()
        with Near(",file.reconnect-delay=2") as near:
            far.kill()
            if not args:
                fresh(SIZE + 4096)
            with Far(*args):
                assert Request(near, "pwrite", pattern(1), 0).end() == errno.EIO
                assert why in near.state()["error"], near.state()
                assert far_bytes(0) == bytes(65536)


def a_drain_does_not_wait_and_loses_nothing():
    fresh()
    far = Far()
    with Near(",file.reconnect-delay=600") as near:
        far.kill()
        r = Request(near, "pwrite", pattern(7), 0)
        time.sleep(0.3)
        begin = time.monotonic()
        near.qmp("block-dirty-bitmap-add", "node=far", "name=b")
        near.qmp("block-dirty-bitmap-disable", "node=far", "name=b")
        near.qmp("block-dirty-bitmap-enable", "node=far", "name=b")
        assert time.monotonic() - begin < 20, "commands wait for the server"
        assert r.is_alive(), "it was given up: %s" % r.errno
        with Far():
            assert r.end() == 0
            assert far_bytes(0) == pattern(7)


def start_backup(near, **args):
    near.qmp("blockdev-backup", "job-id=job", "sync=full",
             *("%s=%s" % (k.replace("_", "-"), v) for k, v in args.items()))


def jobs(near):
    return near.qmp("query-jobs")


def target_of(name, options=""):
    return json.dumps({"driver": "raw", "node-name": name, "file": dict({
        "driver": "nbd", "server": {"type": "unix", "path": FAR}}, **options)})


def backups_outlive_it(source):
    """@source: the remote disk is the source; else the target."""
    fresh()
    near_file = "near.raw"
    with open("far.raw" if source else near_file, "wb") as f:
        f.write(os.urandom(SIZE))
    with open(near_file if source else "far.raw", "wb") as f:
        f.truncate(SIZE)
    far = Far()
    with Near(",file.reconnect-delay=60",
              "driver=raw,file.driver=file,file.filename=" + near_file) as near:
        way = dict(device="far", target="disk1") if source else dict(
            device="disk1", target="far")
        near.qmp("block-export-del", "id=disk1" if source else "id=far")
        start_backup(near, speed=1 << 20, auto_dismiss="false", **way)
        wait_for("some progress", lambda: jobs(near)[0]["current-progress"] > 0)
        far.kill()
        near.qmp("block-job-set-speed", "device=job", "speed=0")
        time.sleep(0.5)
        assert jobs(near)[0]["status"] == "running"
        with Far():
            wait_for("it is done",
                     lambda: jobs(near)[0]["status"] == "concluded")
            assert "error" not in jobs(near)[0], jobs(near)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw",
                    "far.raw", near_file], check=True)


def a_cancelled_job_does_not_wait(source):
    fresh()
    fresh(name="near.raw")
    with open("far.raw" if source else "near.raw", "wb") as f:
        f.write(os.urandom(SIZE))
    far = Far()
    with Near(",file.reconnect-delay=600",
              "driver=raw,file.driver=file,file.filename=near.raw") as near:
        way = dict(device="far", target="disk1") if source else dict(
            device="disk1", target="far")
        near.qmp("block-export-del", "id=disk1" if source else "id=far")
        start_backup(near, speed=1 << 20, **way)
        wait_for("some progress", lambda: jobs(near)[0]["current-progress"] > 0)
        far.kill()
        near.qmp("block-job-set-speed", "device=job", "speed=0")
        time.sleep(0.5)
        assert jobs(near), "the job has ended"
        near.qmp("block-job-cancel", "device=job", "force=true")
        wait_for("the job has ended", lambda: not jobs(near), 20)


def guests_outlive_a_target(source=False):
    """A guest's write that has to be copied first waits for the target."""
    fresh()
    with open("near.raw", "wb") as f:
        f.write(os.urandom(SIZE))
    before = far_bytes(1 << 20, name="near.raw")
    far = Far()
    with Near(",file.reconnect-delay=600",
              "driver=raw,file.driver=file,file.filename=near.raw") as near:
        near.qmp("block-export-del", "id=far")
        start_backup(near, speed=65536, auto_dismiss="false", device="disk1",
                     target="far")
        far.kill()
        r = Request(near, "pwrite", pattern(9), 1 << 20, export="disk1")
        time.sleep(0.3)
        near.qmp("block-dirty-bitmap-add", "node=disk1", "name=b")
        assert r.is_alive()
        with Far():
            assert r.end() == 0
            near.qmp("block-job-set-speed", "device=job", "speed=0")
            wait_for("it is done",
                     lambda: jobs(near)[0]["status"] == "concluded")
            assert "error" not in jobs(near)[0], jobs(near)
    assert far_bytes(1 << 20) == before
    assert far_bytes(1 << 20, name="near.raw") == pattern(9)


def opening_waits():
    fresh()
    disk = "driver=nbd,server.type=unix,server.path=%s,open-timeout=" % FAR
    if os.path.exists(FAR):
        os.unlink(FAR)
    for seconds in (0, 1):
        begin = time.monotonic()
        r = subprocess.run(["nbdelta", "map", disk + str(seconds)],
                           stderr=subprocess.PIPE, timeout=60)
        took = time.monotonic() - begin
        assert r.returncode == 6 and b"Failed to connect" in r.stderr, r
        assert seconds <= took < seconds + 10, took
    p = subprocess.Popen(["nbdelta", "map", disk + "60"],
                         stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    assert p.poll() is None
    with Far():
        assert p.wait(60) == 0


requests_wait_and_are_done()
what_is_under_way_is_done_again()
without_a_delay_they_fail_at_once_and_later_ones_do_not()
a_delay_ends()
another_disk_is_not_taken()
a_drain_does_not_wait_and_loses_nothing()
for remote_source in (False, True):
    backups_outlive_it(remote_source)
    a_cancelled_job_does_not_wait(remote_source)
guests_outlive_a_target()
opening_waits()
