#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Instructions of the server for one request of each hot path, by callgrind.

    instructions.py check|update [--build DIR] [--file FILE] [PATH...]

They hardly depend on the machine, so a path that has grown shows where the
clock is noisy.  The server runs twice, with few requests and with many: what
the second run needs more, by the requests that it has more, is the count.  What
a server does while it waits is none of it.  So it does not poll, and requests
come 64 at a time where they can: the client is always ahead.

`check` compares with the file, and fails when a path needs TOLERANCE more.
"""
import argparse
import json
import os
import re
import sys

import craft
from lab import Failed, Lab, Programs
from peers import Disk, Server, daemon_words

TOLERANCE = 0.10
HERE = os.path.dirname(os.path.realpath(__file__))
MIB = 1 << 20


class Count:
    """A server under callgrind, for one run."""

    def __init__(self, lab, disk):
        self.lab = lab
        self.out = lab.path('callgrind.out')
        words = ['valgrind', '--tool=callgrind', '-q',
                 '--callgrind-out-file=' + self.out,
                 *daemon_words(lab, 'nbdelta', disk), '--poll-max=0']
        self.server = Server(lab, 'nbdelta', words, lab.path('sock'),
                             lab.path('qmp'))

    def __enter__(self):
        return self.server

    def __exit__(self, *what):
        self.server.stop()

    def instructions(self):
        with open(self.out, encoding='ascii', errors='replace') as f:
            for line in f:
                found = re.match(r'(summary|totals): (\d+)', line)
                if found:
                    return int(found.group(2))
        raise Failed('callgrind has no totals')


def by_load(image, *shape, few=2000, many=10000, bitmap=False):
    """Instructions for a request of nbd-load."""
    def run(lab):
        counts = []
        for n in (few, many):
            c = Count(lab, Disk(image(lab), 'raw' if image is raw else 'qcow2'))
            with c as s:
                if bitmap:
                    s.ask('block-dirty-bitmap-add', node='disk', name='b')
                s.load('-d', '64', '-n', str(n), *shape)
            counts.append(c.instructions())
        return (counts[1] - counts[0]) / (many - few)
    return run


def raw(lab):
    path = lab.path('count.raw')
    if not os.path.exists(path):
        with open(path, 'wb') as f:
            f.write(b'x' * (64 * MIB))
    return path


def full(lab):
    """All clusters are there."""
    path = lab.path('count.qcow2')
    if not os.path.exists(path):
        lab.img('convert', '-f', 'raw', '-O', 'qcow2', raw(lab), path)
    return path


def new(lab):
    return lab.images.new('new.qcow2', '4G')


def status(lab):
    """Of an extent, in lists of 25K and of 100K."""
    counts = []
    for n in (25000, 100000):
        path = lab.images.new('holes.qcow2', n * 65536)
        craft.holes(path)
        c = Count(lab, Disk(path, 'qcow2', read_only=True))
        with c as s:
            lab.run([lab.tool('nbd-status'), s.sock, '', 'base:allocation'])
        counts.append(c.instructions())
    return (counts[1] - counts[0]) / 75000


READ, WRITE = ('-r', '-b', '4K'), ('-p', 'write', '-r', '-b', '4K')
ONCE = ('-p', 'write', '-1', '-g', '64K')
PATHS = {
    'read-4k-raw': by_load(raw, *READ),
    'read-4k-qcow2': by_load(full, *READ),
    'write-4k-raw': by_load(raw, *WRITE),
    'write-4k-qcow2': by_load(full, *WRITE),
    'write-4k-qcow2-bitmap': by_load(full, *WRITE, bitmap=True),
    'write-64k-new-clusters': by_load(new, *ONCE, '-b', '64K', few=1000,
                                      many=4000),
    'write-4k-new-clusters': by_load(new, *ONCE, '-b', '4K', few=1000,
                                     many=4000),
    'block-status-extent': status,
}


def main():
    p = argparse.ArgumentParser()
    p.add_argument('verb', choices=['check', 'update'])
    p.add_argument('--build', default=os.environ.get('BUILD', 'build'))
    p.add_argument('--file', default=HERE + '/instructions.json')
    p.add_argument('paths', nargs='*', default=[])
    options = p.parse_args()
    known = {}
    if os.path.exists(options.file):
        with open(options.file, encoding='utf-8') as f:
            known = json.load(f)
    programs = Programs({'': os.path.realpath(options.build)})
    lab = Lab(programs, 64 * MIB, 1, True)
    grown = []
    try:
        for name in options.paths or PATHS:
            count = round(PATHS[name](lab))
            before = known.get(name)
            change = f'{100 * (count / before - 1):+6.1f} %' if before else ''
            print(f'{name:26} {count:8} instructions {change}', flush=True)
            if before and count > before * (1 + TOLERANCE):
                grown.append(name)
            known[name] = count
    finally:
        lab.close()
    if options.verb == 'update':
        with open(options.file, 'w', encoding='utf-8') as f:
            json.dump(known, f, indent=1, sort_keys=True)
            f.write('\n')
        return 0
    if grown:
        print(f'grown by more than {100 * TOLERANCE:.0f} %: {", ".join(grown)}')
    return 1 if grown else 0


if __name__ == '__main__':
    sys.exit(main())
