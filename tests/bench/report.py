# SPDX-License-Identifier: BSD-3-Clause
"""Results for people, and what a check says of them."""
import json
import sys

from goals import METRICS
from lab import package_of

VERDICTS = {'met': 'met', 'close': 'within the spread', 'missed': 'MISSED'}


def number(v):
    if v == 0:
        return '0'
    digits = 0 if abs(v) >= 100 else 1 if abs(v) >= 10 else \
        2 if abs(v) >= 1 else 3
    return f'{v:.{digits}f}'


def candidate_line(who, metrics, rounds):
    v = metrics['value']
    text = f'    {who:18} {number(v["median"]):>8}'
    if rounds > 1:
        text += f' ({number(v["min"])}-{number(v["max"])})'.ljust(18)
    for metric, word in METRICS.items():
        if metric in metrics:
            unit = metric.rpartition('_')[2].replace('mib', 'MiB')
            text += f'  {word} {number(metrics[metric]["median"])} {unit}'
    return text


def goal_line(goal):
    what = '' if goal['metric'] == 'value' else \
        METRICS[goal['metric']] + ' '
    of = '' if goal['of'] == 'absolute' else f' of {goal["of"]}'
    sign = '<=' if goal['at'] == 'most' else '>='
    return (f'    {goal["ours"]}: {what}{number(goal["ratio"])}{of} '
            f'({number(goal["min"])}-{number(goal["max"])}); goal {sign} '
            f'{number(goal["limit"])}: {VERDICTS[goal["verdict"]]}')


def print_row(row, out=None):
    """@row: as in the file of results."""
    out = out or sys.stdout
    print(f'{row["key"]}: {row["title"]}; {row["unit"]}, {row["better"]} is '
          'better', file=out)
    for why, words in (('failed', 'no result'), ('missing', 'left out')):
        if why in row:
            print(f'    {words}: {row[why]}', file=out, flush=True)
            return
    for who, metrics in row['candidates'].items():
        print(candidate_line(who, metrics, len(row['rounds'])), file=out)
    for goal in row['goals']:
        print(goal_line(goal), file=out)
    for pair in row['pairs']:
        what = METRICS.get(pair['metric'], row['unit'])
        print(f'    {pair["ours"]}: {what} {number(pair["median"])} of '
              f'{pair["of"]} ({number(pair["min"])}-{number(pair["max"])})',
              file=out)
    if row.get('without'):
        print(f'    without {", ".join(map(package_of, row["without"]))}: not '
              'installed', file=out)
    if row.get('disturbed'):
        print(f'    {row["disturbed"]} of {len(row["rounds"])} rounds: others '
              'took CPU meanwhile', file=out)
    out.flush()


def print_head(head, out=None):
    out = out or sys.stdout
    machine = head['machine']
    changed = ' with changes' if machine['changed'] else ''
    print(f'nbdelta at {machine["commit"][:12]}{changed}; Linux '
          f'{machine["kernel"]}, {machine["cpus"]} CPUs ({machine["cpu"]}), '
          f'{machine["memory_mib"] >> 10} GiB, {machine["file_system"]}',
          file=out)
    print('peers: ' + '; '.join(v for v in head['peers'].values() if v),
          file=out)
    print(f'disks of {head["size"] >> 20} MiB, {head["rounds"]} rounds of '
          f'{head["seconds"]} s; median (least-most)', file=out, flush=True)


def verdicts(document):
    """{verdict: [key and metric]}, and rows without a result at 'failed'."""
    found = {'met': [], 'close': [], 'missed': [], 'failed': []}
    for row in document['rows']:
        if 'failed' in row:
            found['failed'].append(row['key'])
        for goal in row.get('goals', []):
            name = row['key']
            if goal['metric'] != 'value':
                name += f' ({METRICS[goal["metric"]]})'
            found[goal['verdict']].append(name)
    return found


def print_summary(document, out=None):
    out = out or sys.stdout
    found = verdicts(document)
    print(f'goals: {len(found["met"])} met, {len(found["close"])} within the '
          f'spread, {len(found["missed"])} missed', file=out)
    for verdict, word in (('close', 'within the spread'), ('missed', 'missed'),
                          ('failed', 'no result')):
        if found[verdict]:
            print(f'{word}: {", ".join(found[verdict])}', file=out)
    out.flush()


def check(document):
    """The exit status of a check: 1 where a goal is missed, 2 where a row has
    failed.  What is not installed is no failure."""
    found = verdicts(document)
    return 1 if found['missed'] else 2 if found['failed'] else 0


def load(path):
    with open(path, encoding='utf-8') as f:
        return json.load(f)


def save(document, path):
    with open(path, 'w', encoding='utf-8') as f:
        json.dump(document, f, indent=1)
        f.write('\n')
