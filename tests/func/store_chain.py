#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""store_chain.py DIR COUNT RAW: a backup directory with a chain of COUNT points
of one disk, a night each, made without nbdelta; RAW is the disk at the end.

Each increment has one cluster of 64 KiB.  qemu-img makes one of them; the
others are copies, with the cluster at another place of the disk.
"""
import hashlib
import json
import os
import struct
import subprocess
import sys
import time

CHUNK = 64 << 10
SIZE = 8 << 20
ID = "00112233445566ff"
PARENT = "20000101T000000Z"


def image(name, *args):
    """The bytes of an image whose first cluster is full of 0xa5."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", *args,
                    name, str(SIZE)], check=True)
    subprocess.run(["qemu-io", "-c", f"write -P 0xa5 0 {CHUNK}",
                    "json:" + json.dumps({
                        "driver": "qcow2", "backing": None,
                        "file": {"driver": "file", "filename": name}})],
                   check=True, stdout=subprocess.DEVNULL)
    with open(name, "rb") as f:
        data = bytearray(f.read())
    os.unlink(name)
    return data


def place(data, chunk, byte):
    """Have the image's cluster at another place, full of another byte."""
    data = bytearray(data)
    l1, = struct.unpack_from(">Q", data, 40)
    l2 = struct.unpack_from(">Q", data, l1)[0] & 0x00fffffffffffe00
    entry = data[l2:l2 + 8]
    host = struct.unpack(">Q", entry)[0] & 0x00fffffffffffe00
    data[l2:l2 + 8] = bytes(8)
    data[l2 + 8 * chunk:l2 + 8 * chunk + 8] = entry
    data[host:host + CHUNK] = bytes([byte]) * CHUNK
    return data


def sums(chunk, byte):
    record = struct.pack(">II", chunk % 16, 1)
    record += hashlib.sha256(bytes([byte]) * CHUNK).digest()
    return record


def main():
    directory, count, raw = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    base = image("template")
    inc = image("template", "-F", "qcow2", "-b", PARENT + ".qcow2")
    os.makedirs(directory + "/vda", 0o700)
    with open(directory + "/nbdelta.json", "w", encoding="utf-8") as f:
        json.dump({"nbdelta-directory": 1, "id": ID, "options": {}}, f)
    disk = bytearray(SIZE)
    last, last_sums = None, None
    start = int(time.time()) - count * 86400
    for i in range(count):
        when = start + i * 86400
        point = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(when))
        chunk, byte = i * 7 % (SIZE // CHUNK), i % 255 + 1
        data = place(inc if last else base, chunk, byte)
        if last:
            at = data.index(PARENT.encode())
            data[at:at + len(PARENT)] = last.encode()
        path = f"{directory}/vda/{point}"
        with open(path + ".qcow2", "wb") as f:
            f.write(data)
        # In a base all chunks are decided.
        records = b"".join(
            sums(c, byte) if c == chunk % 16 else struct.pack(">II", c, 2) +
            bytes(32) for c in range(16)) if not last else sums(chunk, byte)
        text = (b"nbdelta-sums 1\n" + struct.pack(">QQQ", SIZE, 1, chunk // 16) +
                hashlib.sha256(records).digest())
        with open(path + ".sums", "wb") as f:
            f.write(text)
        own = hashlib.sha256(text).hexdigest()
        manifest = {
            "nbdelta-point": 1, "name": point, "directory": ID, "time": when,
            "source": "chain", "source-version": None, "program": "chain",
            "agent": None, "definition": None, "disks": [{
                "name": "vda", "size": SIZE,
                "kind": "increment" if last else "full",
                "reason": None if last else "new-disk", "parent": last,
                "parent-sums": last_sums, "checkpoint": None, "image": None,
                "read": CHUNK, "written": CHUNK, "zero": 0, "milliseconds": 1,
                "sums": own}]}
        plain = json.dumps(manifest, indent=2)
        manifest["sha256"] = hashlib.sha256(plain.encode()).hexdigest()
        with open(f"{directory}/{point}.json", "w", encoding="utf-8") as f:
            f.write(json.dumps(manifest, indent=2) + "\n")
        disk[chunk * CHUNK:(chunk + 1) * CHUNK] = bytes([byte]) * CHUNK
        last, last_sums = point, own
    with open(raw, "wb") as f:
        f.write(disk)


main()
