# SPDX-License-Identifier: BSD-3-Clause
"""Rows, and how they are measured.

    for each round:
        for each candidate, another one first each time:
            what the row reads is in the page cache? else it is read in
            run it; how much CPU did others take meanwhile?
        others took more than OTHERS of one CPU? then the round is repeated, up
        to REPEATS times, and the quietest of these counts
"""
from contextlib import nullcontext
from dataclasses import dataclass, field
import os
import time

import machine
from lab import Missing, own, package_of
from peers import kind

OTHERS = 0.10
REPEATS = 2


@dataclass
class Goal:
    """What ours shall be to another: at least (or at most) `limit` times the
    best peer's median.  `ours`: this candidate, not the first one.  `of`: this
    candidate, or 'absolute', which makes `limit` a value.  `most`: at most,
    where that does not follow from the metric."""
    limit: float
    metric: str = 'value'
    ours: str = ''
    of: str = ''
    most: bool = None


@dataclass
class Row:
    """`run(lab, who, state)` gives a dictionary: `value`, in `unit`; `cpu_us`,
    `p50_us`, `p99_us`, `max_us` where there are such.  `state(lab)` is a
    context that all rounds share; it may have before_round(k).  `hot(lab)` has
    the paths that must be in the page cache."""
    key: str
    title: str
    unit: str
    who: list
    run: callable
    better: str = 'more'          # or 'less'
    goals: list = field(default_factory=list)
    state: callable = None
    hot: callable = None
    one_cpu: bool = False
    rounds: int = 0               # at the most; 0: as many as are asked for
    needs: list = field(default_factory=list)
    group: str = ''

    def most(self, goal):
        """A goal is an upper limit."""
        if goal.most is not None:
            return goal.most
        return self.better == 'less' if goal.metric == 'value' else True


@dataclass
class Result:
    row: Row
    rounds: list = field(default_factory=list)  # of {who: sample}
    without: list = field(default_factory=list)  # candidates that are missing
    failed: str = ''
    missing: str = ''             # what it needs, and is not here
    disturbed: int = 0            # rounds that others disturbed in the end


def candidates(lab, row):
    """The row's candidates that are here; in a comparison of builds each of
    ours once for each build, and no peers."""
    builds = [b for b in lab.programs.builds if b]
    if not builds:
        return [w for w in row.who if lab.programs.has(w)]
    names = []
    for who in (w for w in row.who if own(w)):
        program, plus, rest = who.partition('+')
        names += [f'{program}@{b}{plus}{rest}' for b in builds]
    return [w for w in names if lab.programs.has(w)]


def one(lab, row, who, state):
    if row.hot:
        for path in row.hot(lab):
            machine.make_resident(path)
    os.sync()
    lab.cpus = {min(os.sched_getaffinity(0))} if row.one_cpu else None
    before, begin = machine.Cpu(), time.monotonic()
    try:
        sample = row.run(lab, who, state)
    finally:
        lab.cpus = None
    seconds = time.monotonic() - begin
    others = machine.Cpu().others_since(before)
    return {**sample, 'others': round(others / seconds, 4)}


def one_round(lab, row, names, state, number):
    if hasattr(state, 'before_round'):
        state.before_round(number)
    first = number % len(names)
    return {who: one(lab, row, who, state)
            for who in names[first:] + names[:first]}


def disturbance(samples):
    return max(s['others'] for s in samples.values())


def measure(lab, row, rounds, repeats=REPEATS):
    """All rounds of a row: a Result."""
    names = candidates(lab, row)
    result = Result(row, without=[w for w in row.who if w not in names]
                    if '' in lab.programs.builds else [])
    missing = [n for n in row.needs if not lab.programs.has(n)]
    if missing or not any(own(w) for w in names):
        raise Missing('it needs ' + ', '.join(map(package_of,
                                                  missing or row.who[:1])))
    with (row.state or (lambda lab: nullcontext()))(lab) as state:
        number = 0
        for _ in range(min(rounds, row.rounds or rounds)):
            tries = []
            while not tries or (disturbance(tries[-1]) > OTHERS and
                                len(tries) <= repeats):
                tries.append(one_round(lab, row, names, state, number))
                number += 1
            best = min(tries, key=disturbance)
            result.disturbed += disturbance(best) > OTHERS
            result.rounds.append(best)
    return result
