#!/usr/bin/python3
"""Write 1, 2, 3... to the beginning of each of several disks in turn.

in_turns.py URI...: a value is on one disk before it is on the next, so at one
instant no disk is ahead of one before it, and none is behind by two.
"""

import sys

import nbd


def main():
    """Write until somebody ends it."""
    disks = []
    for uri in sys.argv[1:]:
        disks.append(nbd.NBD())
        disks[-1].connect_uri(uri)
    value = 0
    while True:
        value += 1
        for disk in disks:
            disk.pwrite(value.to_bytes(4, "little") * 128, 0)


if __name__ == "__main__":
    main()
