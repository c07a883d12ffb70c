# SPDX-License-Identifier: BSD-3-Clause
"""What a result says: medians, ratios, and whether goals are met.

A ratio is that of one round, so what all candidates of a round have in common
is not in it.  A goal is `met` when the median of the ratios reaches it, `close`
when only the best round does (the goal lies within the spread), else `missed`.
"""
import statistics

from lab import own

METRICS = {'cpu_us': 'CPU', 'p50_us': 'p50', 'p99_us': 'p99',
           'max_us': 'worst', 'rss_mib': 'RSS', 'stall_ms': 'stall'}


def values(result, who, metric='value'):
    return [r[who][metric] for r in result.rounds
            if who in r and metric in r[who]]


def names(result):
    """Candidates in the order of the row, or of the first round."""
    there = list(result.rounds[0]) if result.rounds else []
    order = {w: i for i, w in enumerate(result.row.who)}
    return sorted(there, key=lambda w: order.get(w, 0))


def summary(numbers):
    return {'median': statistics.median(numbers), 'min': min(numbers),
            'max': max(numbers)}


def best_peer(result, goal):
    """The candidate that a goal is held against, or nothing."""
    if goal.of:
        return goal.of if values(result, goal.of, goal.metric) else None
    medians = {w: statistics.median(values(result, w, goal.metric))
               for w in names(result)
               if not own(w) and values(result, w, goal.metric)}
    if not medians:
        return None
    pick = min if result.row.most(goal) else max
    return pick(medians, key=medians.get)


def judge(result, goal):
    """{'ratio', 'min', 'max', 'of', 'verdict'...} or None where there is nobody
    to compare with."""
    ours = goal.ours or result.row.who[0]
    most = result.row.most(goal)
    if goal.of == 'absolute':
        peer, numbers = 'absolute', values(result, ours, goal.metric)
    else:
        peer = best_peer(result, goal)
        if peer is None:
            return None
        numbers = [r[ours][goal.metric] / r[peer][goal.metric]
                   for r in result.rounds
                   if ours in r and r[peer].get(goal.metric)]
    if not numbers:
        return None
    s = summary(numbers)
    reached = (lambda v: v <= goal.limit) if most else \
        (lambda v: v >= goal.limit)
    verdict = 'met' if reached(s['median']) else \
        'close' if reached(s['min' if most else 'max']) else 'missed'
    return {'metric': goal.metric, 'limit': goal.limit,
            'at': 'most' if most else 'least', 'ours': ours, 'of': peer,
            'ratio': s['median'], 'min': s['min'], 'max': s['max'],
            'verdict': verdict}


def pairs(result):
    """In a comparison of builds: the second one's to the first one's, of each
    candidate, by rounds."""
    there = names(result)
    told = []
    for first in (w for w in there if '@A' in w):
        second = first.replace('@A', '@B')
        for metric in ('value', 'cpu_us', 'p99_us'):
            numbers = [r[second][metric] / r[first][metric]
                       for r in result.rounds
                       if second in r and r[first].get(metric)]
            if numbers:
                told.append({'metric': metric, 'ours': second, 'of': first,
                             **summary(numbers)})
    return told


def as_json(result):
    """For the file of results: all rounds, and what follows from them."""
    row = result.row
    told = {'key': row.key, 'title': row.title, 'unit': row.unit,
            'better': row.better, 'without': result.without,
            'disturbed': result.disturbed}
    for why in ('failed', 'missing'):
        if getattr(result, why):
            return {**told, why: getattr(result, why)}
    told['candidates'] = {}
    for who in names(result):
        told['candidates'][who] = {
            metric: summary(values(result, who, metric))
            for metric in ('value', *METRICS, 'own_cpu_us')
            if values(result, who, metric)}
    told['goals'] = [j for j in (judge(result, g) for g in row.goals) if j]
    told['pairs'] = pairs(result)
    told['rounds'] = result.rounds
    return told
