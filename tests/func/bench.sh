#!/bin/bash
# `make bench`: a row is measured, told and kept; goals are judged; the check
# fails for a goal that is missed.  Nothing is asserted about speed.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-nbd qemu-img

bench() {
    python "$SRCDIR/tests/bench/bench.py" "$@"
}
mkdir tmp
export TMPDIR=$PWD/tmp
row='read-4k-qd16-raw'
small=(--rows "$row" --quick --size 16M)

# What is measured has peers, rates, CPU and percentiles, and leaves nothing.
bench run "${small[@]}" --seconds 0.1 --json out.json >table
grep -q "^$row: 4K random read, QD 16, raw; K/s, more is better" table
grep -Eq '^    nbdelta +[0-9.]+ +CPU [0-9.]+ us +p50 [0-9.]+ us' table
grep -Eq '^    nbdelta: [0-9.]+ of .*; goal >= 1.60: (met|MISSED)$' table
grep -Eq '^goals: ' table
[ -z "$(ls tmp)" ] || fail "left behind: $(ls tmp)"
python - out.json <<'END'
import json
import sys
with open(sys.argv[1], encoding='utf-8') as f:
    told = json.load(f)
assert told['machine']['kernel'] and told['machine']['cpus'] > 0
assert told['peers']['nbdelta'].startswith('nbdelta ')
assert 'qemu-nbd' in told['peers']['qemu-nbd']
row, = told['rows']
assert len(row['rounds']) == told['rounds'] == 1
for who in ('nbdelta', 'qemu-nbd'):
    m = row['candidates'][who]
    for name in ('value', 'cpu_us', 'p50_us', 'p99_us', 'max_us'):
        assert m[name]['min'] <= m[name]['median'] <= m[name]['max'], m
    assert m['value']['median'] > 0
    assert m['p50_us']['median'] <= m['p99_us']['median'], m
    assert row['rounds'][0][who]['others'] >= 0
assert row['goals'][0]['limit'] == 1.6, row['goals']
END
bench run --rows list >told
grep -q "^$row " told
! bench run --rows nonsense 2>refused || fail "there is such a row?"
grep -q "no row has a key like 'nonsense'" refused

# An interrupt ends all that it has started.
measures() {
    compgen -G 'tmp/nbdelta-bench.*/sock' >/dev/null
}
for signal in INT TERM; do
    env --default-signal=INT /usr/bin/python3 "$SRCDIR/tests/bench/bench.py" \
        run "${small[@]}" --seconds 60 >table 2>&1 &
    running=$!
    wait_until "it measures" measures
    kill -$signal $running
    wait $running && fail "it was interrupted"
done
[ -z "$(ls tmp)" ] || fail "left behind: $(ls tmp)"

# Goals: rounds that were made up.
python - "$SRCDIR/tests/bench" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
# pylint: disable=wrong-import-position
import goals
import report
from measure import Goal, Result, Row


def judged(ours, theirs, goal, better='more', metric='value'):
    row = Row('k', 't', 'u', ['nbdelta', 'q-s-d', 'nbdkit'], None, better)
    rounds = [{'nbdelta': {metric: a}, 'q-s-d': {metric: b},
               'nbdkit': {metric: b / 2 if better == 'more' else b * 2}}
              for a, b in zip(ours, theirs)]
    return goals.judge(Result(row, rounds), goal)


def verdict(*what, **how):
    return judged(*what, **how)['verdict']


even = [10, 10, 10]
assert verdict([20, 21, 22], even, Goal(2.0)) == 'met'
assert verdict([18, 19, 20], even, Goal(2.0)) == 'close'
assert verdict([17, 18, 19], even, Goal(2.0)) == 'missed'
assert verdict([4, 5, 6], even, Goal(0.5), better='less') == 'met'
assert verdict([5, 6, 7], even, Goal(0.5), better='less') == 'close'
assert verdict([6, 7, 8], even, Goal(0.5), better='less') == 'missed'
# The ratio is that of each round: what both have in common is not in it.
assert verdict([20, 200, 40], [10, 100, 20], Goal(2.0)) == 'met'
assert judged([20, 200, 40], [10, 100, 20], Goal(2.0))['max'] == 2.0
# The best peer, by the metric's own direction.
assert judged(even, even, Goal(1.0))['of'] == 'q-s-d'
cpu = {'metric': 'cpu_us'}
assert judged(even, even, Goal(1.0, 'cpu_us'), **cpu)['of'] == 'nbdkit'
assert verdict([9, 9, 9], even, Goal(0.8, 'cpu_us'), **cpu) == 'missed'
assert verdict(even, even, Goal(9, of='absolute'), better='less') == 'missed'
assert verdict(even, even, Goal(11, of='absolute'), better='less') == 'met'
assert judged(even, even, Goal(1.0, of='nobody')) is None

row = {'key': 'k', 'title': 't', 'unit': 'u', 'better': 'more',
       'candidates': {}, 'pairs': [], 'rounds': []}
for name, said, failed in (('met', 'met', ()), ('close', 'close', ()),
                           ('missed', 'missed', ()),
                           ('failed', 'met', {'failed': 'it is broken'})):
    goal = {'metric': 'value', 'verdict': said}
    report.save({'rows': [{**row, 'goals': [goal]},
                          {**row, 'goals': [], **dict(failed)}]},
                name + '.json')
END
bench judge --results met.json >told
bench judge --results close.json >told
grep -q '^within the spread: k$' told
for name in missed failed; do
    ! bench judge --results $name.json >told || fail "$name: not noticed"
done
bench judge --results missed.json >told || [ $? -eq 1 ]
grep -q '^missed: k$' told

# The chart has what was measured.
python "$SRCDIR/tests/bench/chart.py" out.json >chart.svg
python - <<'END'
import xml.etree.ElementTree as tree
tree.parse('chart.svg')
END

# The client: what it writes it finds again, and each piece is touched once.
load="timeout 20 $BUILD/tests/bench/nbd-load -s $sock"
qemu-img create -q -f qcow2 disk.qcow2 16M
serve disk.qcow2
$load -p write -1 -b 64K -d 16 -o - >out.json
python -c 'import json; assert json.load(open("out.json"))["requests"] == 256'
$load -r -v -b 4K -d 64 -c 3 -n 5000 >out
$load -v -b 1M -d 4 -n 64 >out
! $load -r -v -P 2 -n 100 >out 2>&1 || fail "other bytes were not noticed"
grep -q 'other bytes than were written' out
stop_server
qemu-img map -f qcow2 --output json disk.qcow2 | grep -q '"data": true'
[ "$(qemu-img map -f qcow2 --output json disk.qcow2 |
    grep -c '"data": false')" -eq 0 ] || fail "a piece was left out"
