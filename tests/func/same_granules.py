#!/usr/bin/python3
"""Do two lists of ranges touch the same granules?

same_granules.py OURS THEIRS GRANULARITY: OURS has lines OFFSET LENGTH, THEIRS is
what `rbd diff --format json` has printed.
"""

import json
import sys


def granules(ranges, size):
    """The numbers of all granules that the ranges touch."""
    found = set()
    for offset, length in ranges:
        found.update(range(offset // size, (offset + length - 1) // size + 1))
    return found


def main():
    """Compare."""
    size = int(sys.argv[3])
    with open(sys.argv[1], encoding="utf-8") as file:
        ours = [tuple(map(int, line.split())) for line in file]
    with open(sys.argv[2], encoding="utf-8") as file:
        theirs = [(e["offset"], e["length"]) for e in json.load(file)]
    return granules(ours, size) != granules(theirs, size)


if __name__ == "__main__":
    sys.exit(main())
