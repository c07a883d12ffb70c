#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""store_dir.py DIR [TIME]: a backup directory made without nbdelta.

Images come from qemu-img and qemu-io, hashes and manifests from Python, by
what the headers of server/store say.  Three points of two disks:

    20261127T023000Z   vda full       vdb full
    20261128T023000Z   vda increment  vdb increment
    20261129T023000Z   vda increment  vdb full (resized)

The clock of the first one said TIME (seconds since 1970), and a day more each
time.
"""
import hashlib
import json
import os
import struct
import subprocess
import sys

UNIT = 1 << 20
CHUNK = 64 << 10
SIZE = 5 * UNIT + 3 * CHUNK + 512
ID = "0123456789abcdef"
POINTS = ["20261127T023000Z", "20261128T023000Z", "20261129T023000Z"]


def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


class Image:
    """A file, and which chunks it decides: {chunk: byte that fills it}."""

    def __init__(self, path, parent, writes):
        args = ["-u", "-F", "qcow2", "-b", parent + ".qcow2"] if parent else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *args, path, str(SIZE))
        self.base = not parent
        self.chunks = {}
        words = []
        for chunk, count, byte in writes:
            start = chunk * CHUNK
            length = min(count * CHUNK, SIZE - start)
            words += ["-c", f"write -P {byte} {start} {length}" if byte else
                      f"write -z {start} {length}"]
            for i in range(chunk, chunk + count):
                self.chunks[i] = byte
        if words:
            # Without its parent, which the image alone does not need.
            run("qemu-io", *words, "json:" + json.dumps({
                "driver": "qcow2", "backing": None,
                "file": {"driver": "file", "filename": path}}))

    def unit_hash(self, unit):
        records = b""
        data = False
        for i in range(UNIT // CHUNK):
            chunk = unit * (UNIT // CHUNK) + i
            length = min(SIZE - chunk * CHUNK, CHUNK)
            if length <= 0 or not (self.base or chunk in self.chunks):
                continue
            byte = self.chunks.get(chunk, 0)
            records += struct.pack(">II", i, 1 if byte else 2)
            records += (hashlib.sha256(bytes([byte]) * length).digest()
                        if byte else bytes(32))
            data = data or byte
        if not records or (self.base and not data):
            return None
        return hashlib.sha256(records).digest()

    def sums(self):
        entries = []
        for unit in range(-(-SIZE // UNIT)):
            value = self.unit_hash(unit)
            if value:
                entries.append(struct.pack(">Q", unit) + value)
        return (b"nbdelta-sums 1\n" + struct.pack(">QQ", SIZE, len(entries)) +
                b"".join(entries))


def sign(manifest):
    plain = json.dumps(manifest, indent=2, ensure_ascii=False)
    manifest["sha256"] = hashlib.sha256(plain.encode()).hexdigest()
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def add_disk(directory, disks, name, point, parent, reason, writes):
    folder = os.path.join(directory, name)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, point)
    image = Image(path + ".qcow2", parent, writes)
    sums = image.sums()
    with open(path + ".sums", "wb") as f:
        f.write(sums)
    value = hashlib.sha256(sums).hexdigest()
    disks.append({
        "name": name, "size": SIZE, "kind": "increment" if parent else "full",
        "reason": reason, "parent": parent or None,
        "parent-sums": add_disk.last[name] if parent else None,
        "checkpoint": f"nbdelta-{ID}-{point}", "image": None,
        "read": SIZE,
        "written": len(image.chunks) * CHUNK, "zero": 0, "milliseconds": 1500,
        "sums": value})
    add_disk.last[name] = value


add_disk.last = {}


def main():
    directory = sys.argv[1]
    time = int(sys.argv[2]) if len(sys.argv) > 2 else 1795746600
    os.mkdir(directory, 0o700)
    with open(os.path.join(directory, "nbdelta.json"), "w") as f:
        json.dump({"nbdelta-directory": 1, "id": ID, "options": {}}, f)
    full = [(0, 16, 1), (33, 4, 2), (80, 4, 3)]
    for i, point in enumerate(POINTS):
        disks = []
        parent = POINTS[i - 1] if i else None
        add_disk(directory, disks, "vda", point, parent,
                 None if i else "new-disk",
                 [(1, 2, 10 + i), (32, 1, 0), (79, 2, 20 + i)] if i else full)
        add_disk(directory, disks, "vdb", point, parent if i == 1 else None,
                 [ "new-disk", None, "resized"][i],
                 [] if i == 1 else full)
        text = sign({
            "nbdelta-point": 1, "name": point, "directory": ID,
            "time": time + 86400 * i, "source": "libvirt:w\u00e9b",
            "source-version": None, "program": "store_dir.py", "agent": None,
            "definition": None, "disks": disks})
        with open(os.path.join(directory, point + ".json"), "w",
                  encoding="utf-8") as f:
            f.write(text)


main()
