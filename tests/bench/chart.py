#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""An SVG chart of files of results.

    chart.py RESULTS.json... >CHART.svg

One group for each row of PICTURE that has a result: a bar for each candidate,
as long as its value is of the row's largest, and the value beside it.  Of a row
that is in several files, the last one counts.
"""
import sys
from xml.sax.saxutils import escape

import report
from lab import own

PICTURE = ['read-4k-qd64-raw', 'read-4k-qd64-qcow2', 'read-4k-qd1-raw',
           'write-4k-qd64-qcow2', 'alloc-4k', 'alloc-64k', 'stream-read-qcow2',
           'tls-x509-1m', 'direct-read-4k-qd64-raw', 'first-touch-begin',
           'backup-full', 'backup-inc-10', 'block-status-1m', 'list-bitmap']
WIDTH, LABEL, BAR, LINE, GAP, TOP = 760, 150, 420, 17, 34, 52
OURS, THEIRS = '#1f6feb', '#9aa4af'


def text(x, y, words, **style):
    more = ''.join(f' {k.replace("_", "-")}="{v}"' for k, v in style.items())
    return f'<text x="{x}" y="{y}"{more}>{escape(words)}</text>'


def group(row, y):
    """The lines of a row, and where the next one begins."""
    told = {who: m for who, m in row['candidates'].items()
            if not who.endswith('+without')}  # where nothing goes on
    most = max(m['value']['median'] for m in told.values())
    better = 'less is better' if row['better'] == 'less' else 'more is better'
    out = [text(8, y, f'{row["title"]} ({row["unit"]}, {better})',
                font_weight='600')]
    for who, metrics in told.items():
        y += LINE
        value = metrics['value']
        length = max(1, round(BAR * value['median'] / most, 1))
        out += [text(LABEL - 8, y + 4, who, text_anchor='end'),
                f'<rect x="{LABEL}" y="{y - 6}" width="{length}" height="11" '
                f'fill="{OURS if own(who) else THEIRS}"/>',
                text(LABEL + length + 6, y + 4,
                     report.number(value['median']))]
    return out, y + GAP


def chart(document):
    rows = {r['key']: r for r in document['rows'] if 'candidates' in r}
    body, y = [], TOP + 28
    for key in PICTURE:
        if key in rows:
            lines, y = group(rows[key], y)
            body += lines
    machine, peers = document['machine'], document['peers']
    head = [text(8, 20, 'nbdelta and its peers', font_size='16',
                 font_weight='600'),
            text(8, 38, f'{document["time"][:10]}, {document["commits"]}, '
                 f'{machine["cpus"]} CPUs ({machine["cpu"]}), Linux '
                 f'{machine["kernel"].split("-")[0]}, disks of '
                 f'{document["sizes"]} GiB, medians of {document["rounds"]} '
                 'rounds', fill='#57606a'),
            text(8, 54, '; '.join(short(v) for k, v in peers.items()
                                  if k in ('q-s-d', 'qemu-nbd', 'nbdkit')),
                 fill='#57606a')]
    return '\n'.join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" '
        f'viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="12" '
        'fill="#1f2328">',
        '<!-- SPDX-License-Identifier: BSD-3-Clause -->',
        f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>',
        *head, *body, '</svg>', ''])


def short(version):
    """Without Debian's revision, and without a path."""
    return version.partition(' (')[0].rpartition('/')[2]


def main(documents):
    sizes = sorted({d['size'] for d in documents})
    commits = dict.fromkeys(d['machine']['commit'][:8] for d in documents)
    sys.stdout.write(chart({
        **documents[0], 'rows': [r for d in documents for r in d['rows']],
        'commits': ' and '.join(commits),
        'sizes': ' and '.join(f'{s / (1 << 30):g}' for s in sizes)}))


if __name__ == '__main__':
    main([report.load(path) for path in sys.argv[1:]])
