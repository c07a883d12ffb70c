#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""layers.py BUILD: hold what sources use against the table in HACKING.md.

The table under "Where things are" has a row for each room: a folder, or a
file (without its ending) that stands beside folders.  Its last column names
the rooms whose headers and functions it may use, besides its own; "all above"
stands for the rows of its part that come before it.

Two things are looked at: the headers that a source includes, and the symbols
that its object file takes from the object files of other rooms.  Public
headers (nbdelta/*.h) are for all; which rooms see private ones is what the
compiler's search path decides already.

Exit status 1 with a line for each use that the table does not allow, each
room without a row, and each row without a room.
"""
import collections
import glob
import os
import re
import subprocess
import sys

GROUPS = ("blocklib", "server", "plugin")


def read_table(path):
    """{room: rooms that it may use}"""
    rows = {}
    for line in open(path, encoding="utf-8"):
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        name = re.fullmatch(r"`((?:%s)[a-z0-9/-]*)`" % "|".join(GROUPS),
                            cells[0])
        if name and len(cells) == 3:
            below = {r for r in rows if r.split("/")[0] == cells[0][1:7]}
            rows[name.group(1)] = (below if cells[2] == "all above" else
                                   set(re.findall(r"`([a-z0-9/-]+)`",
                                                  cells[2])))
    return rows


def room_of(source, rows):
    """The longest row that the path is in; itself when there is none."""
    stem = os.path.splitext(source)[0]
    while stem and stem not in rows:
        stem = os.path.dirname(stem)
    return stem or os.path.dirname(source)


def sources():
    for group in GROUPS:
        for path in glob.glob(group + "/**/*.[ch]", recursive=True):
            if not path.startswith("blocklib/include/"):
                yield path


def included(source):
    """Private headers, as paths from the top."""
    for line in open(source, encoding="utf-8"):
        m = re.match(r'#include "([^"]+)"', line)
        if m and not m.group(1).startswith("nbdelta/"):
            base = source.split("/")[0]
            yield os.path.join(base, m.group(1))


def symbols(build):
    """(source, symbol, source that defines it)"""
    defined, wanted = {}, collections.defaultdict(list)
    for source in sources():
        obj = os.path.join(build, os.path.splitext(source)[0] + ".o")
        if not source.endswith(".c") or not os.path.exists(obj):
            continue
        out = subprocess.run(["nm", "-g", obj], check=True, text=True,
                             capture_output=True).stdout
        for line in out.splitlines():
            words = line.split()
            if len(words) == 2 and words[0] == "U":
                wanted[source].append(words[1])
            elif len(words) == 3:
                defined[words[2]] = source
    for source, names in wanted.items():
        for name in names:
            if name in defined and name != "main":
                yield source, name, defined[name]


def main():
    rows = read_table("HACKING.md")
    wrong, seen = [], set()

    def use(user, used, what):
        a, b = room_of(user, rows), room_of(used, rows)
        # Blocklib's rooms implement public headers, which all may use.
        if a.split("/")[0] != b.split("/")[0]:
            if b.split("/")[0] != "blocklib":
                wrong.append("%s uses %s of %s" % (user, what, used))
        elif a != b and b not in rows.get(a, ()):
            wrong.append("%s (%s) uses %s of %s" % (user, a, what, b))

    for source in sources():
        room = room_of(source, rows)
        seen.add(room)
        if room not in rows:
            wrong.append("%s is in no room that HACKING.md lists" % source)
        for header in included(source):
            if not os.path.exists(header):
                wrong.append("%s includes %s, which is not there" %
                             (source, header))
            else:
                use(source, header, os.path.basename(header))
    for user, name, used in symbols(sys.argv[1]):
        use(user, used, name)
    for room in sorted(set(rows) - seen):
        wrong.append("HACKING.md lists %s, which is not there" % room)
    print("\n".join(wrong) or "layers: %d rooms, none reaches up" % len(rows))
    return 1 if wrong else 0


sys.exit(main())
