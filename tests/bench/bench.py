#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measure nbdelta beside its peers, in one run: only ratios count.

    rows_*.py   the rows: what is measured, its candidates, what the goal is
    measure.py  rounds: turns, the page cache, what others do meanwhile
    peers.py    servers; qmp.py, lab.py, images.py, craft.py: what these need
    goals.py    medians, ratios, verdicts; report.py: for people; chart.py: SVG
    compare.py  two revisions; instructions.py: counts by callgrind
"""
import argparse
import fnmatch
import os
import signal
import sys
import time
import traceback

import compare
import goals
import machine
import measure
import report
from lab import Failed, Lab, Missing, Programs
from qmp import Refused

HERE = os.path.dirname(os.path.realpath(__file__))
SOURCE = os.path.dirname(os.path.dirname(HERE))
FULL = {'size': 4 << 30, 'rounds': 5, 'seconds': 2.0}
QUICK = {'size': 512 << 20, 'rounds': 1, 'seconds': 0.5}


def table():
    # pylint: disable=import-outside-toplevel
    import rows_backup
    import rows_ceph
    import rows_chain
    import rows_growth
    import rows_io
    import rows_meta
    import rows_mirror
    rows = []
    for module in (rows_io, rows_meta, rows_backup, rows_chain, rows_mirror,
                   rows_growth, rows_ceph):
        rows += module.all_rows()
    assert len({r.key for r in rows}) == len(rows)
    return rows


def chosen(rows, patterns):
    """Rows whose key one of the patterns matches, in the order of the table."""
    wanted = [r for r in rows
              if any(fnmatch.fnmatchcase(r.key, p) for p in patterns.split())]
    if not wanted:
        raise SystemExit(f"bench: no row has a key like '{patterns}' "
                         "(`make bench W=list` lists them)")
    return wanted


def bytes_of(text):
    shift = {'K': 10, 'M': 20, 'G': 30, 'T': 40}
    unit = text[-1:].upper()
    return int(text[:-1]) << shift[unit] if unit in shift else int(text)


def head_of(lab, options):
    kinds = ('nbdelta', 'q-s-d', 'qemu-nbd', 'nbdkit', 'nbdcopy',
             'virtnbdbackup')
    return {'format': 1, 'time': time.strftime('%Y-%m-%dT%H:%M:%SZ',
                                               time.gmtime()),
            'machine': machine.describe(lab.dir, SOURCE),
            'peers': {k: lab.programs.version(k) for k in kinds
                      if lab.programs.has(k)},
            'tree': os.path.basename(lab.programs.tree or ''),
            'size': options.size, 'rounds': options.rounds,
            'seconds': options.seconds, 'quick': options.quick}


def measure_row(lab, row, options):
    try:
        repeats = 0 if options.quick else measure.REPEATS
        result = measure.measure(lab, row, options.rounds, repeats)
    except Missing as e:
        result = measure.Result(row, missing=str(e))
    except (Failed, Refused, OSError, AssertionError) as e:
        if os.environ.get('BENCH_DEBUG'):
            traceback.print_exc()
        result = measure.Result(row, failed=f'{type(e).__name__}: {e}')
    for process in lab.running[:]:
        lab.stop(process)
    return goals.as_json(result)


def run(options, builds):
    rows = chosen(table(), options.rows)
    lab = Lab(Programs(builds, options.tree), options.size, options.seconds,
              options.quick)
    try:
        document = {**head_of(lab, options), 'rows': []}
        report.print_head(document)
        for row in rows:
            document['rows'].append(measure_row(lab, row, options))
            report.print_row(document['rows'][-1])
            if options.json:  # a run that is cut off keeps what it has
                report.save(document, options.json)
        report.print_summary(document)
        return document
    finally:
        lab.close()


def parse():
    p = argparse.ArgumentParser(description='Measure nbdelta and its peers.')
    p.add_argument('verb', choices=['run', 'check', 'list', 'compare', 'judge'])
    p.add_argument('--rows', default='*', help='patterns of keys of rows')
    p.add_argument('--build', default=os.environ.get('BUILD', 'build'))
    p.add_argument('--tree', help="a tree with another Debian's peers")
    p.add_argument('--size', type=bytes_of, help='of disks (4G)')
    p.add_argument('--rounds', type=int, help='of each row (5)')
    p.add_argument('--seconds', type=float, help='of each sample of I/O (2)')
    p.add_argument('--quick', action='store_true',
                   help='512M, one round of half a second: only to see that it '
                        'works')
    p.add_argument('--json', help='write all results to this file')
    p.add_argument('--results', help='judge: a file that --json wrote')
    p.add_argument('--a', help='compare: a revision')
    p.add_argument('--b', help='compare: another one')
    options = p.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main():
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.verb == 'list' or options.rows == 'list':
        for row in table():
            print(f'{row.key:32} {row.title}')
        return 0
    if options.verb == 'judge':
        document = report.load(options.results)
        report.print_summary(document)
        return report.check(document)
    if options.verb == 'compare':
        with compare.builds(SOURCE, options.a, options.b) as builds:
            run(options, builds)
        return 0
    document = run(options, {'': os.path.realpath(options.build)})
    return report.check(document) if options.verb == 'check' else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
