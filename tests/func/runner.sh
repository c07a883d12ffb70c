#!/bin/bash
# tests/run: what it counts, says and cleans up.
set -eu -o pipefail

runner=$SRCDIR/tests/run
mkdir build tests tmp
test_named() {
    { echo '#!/bin/bash'; cat; } >"tests/$1"
    chmod +x "tests/$1"
}
run() {
    local rc=0
    TMPDIR=$PWD/tmp BUILD=$PWD/build SRCDIR=$PWD JOBS=2 WRAPPER='' \
        "$runner" "$@" >out || rc=$?
    [ -z "$(ls tmp)" ] || { echo "left in TMPDIR:"; ls tmp; exit 1; }
    return "$rc"
}

# shellcheck disable=SC2016  # for the test to expand
test_named good.sh <<<'[ -z "$(ls -A)" ]; echo hello; touch file'
test_named skipped.sh <<<'echo one; echo "no such device"; exit 77'
test_named bad.sh <<<'echo "the reason"; exit 3'
test_named slow.sh <<<'sleep 1000'
# shellcheck disable=SC2016
test_named leaves.sh <<<'setsid sleep 1000 & echo $! >"$SRCDIR/leaves.pid"'

run tests/good.sh tests/skipped.sh
diff - <(sort out) <<END
1 passed, 0 failed, 1 skipped
ok    good
skip  skipped: no such device
END
[ "$(tail -n 1 out)" = '1 passed, 0 failed, 1 skipped' ]
grep -qx hello build/tests/good.log

if run tests/good.sh tests/bad.sh "$PWD/tests/skipped.sh"; then
    echo "the failure of a test is not told"
    exit 1
fi
grep -q '^FAIL  bad (exit 3)' out
grep -qx '      the reason' out
[ "$(tail -n 1 out)" = '1 passed, 1 failed, 1 skipped' ]

if TEST_TIMEOUT=1 run tests/slow.sh; then
    echo "there is no time limit"
    exit 1
fi
grep -q '^FAIL  slow (not done after' out

# What a test leaves running is ended, and the test fails.
if run tests/leaves.sh; then
    echo "a process was left running and nobody complained"
    exit 1
fi
grep -q 'left running: .*sleep 1000' out
# Dead, though perhaps nobody has buried it yet.
if grep -q sleep "/proc/$(cat leaves.pid)/cmdline" 2>/dev/null; then
    echo "the process that was left is still there"
    exit 1
fi

# A reply that query-qmp-schema does not describe fails the test that got it.
ln -s "$BUILD/nbdelta" build/nbdelta
# shellcheck disable=SC2016
test_named says.sh <<'END'
echo '{"ret-type": "query-name", "value": {}}' >>"$NBDELTA_QMP_RECORD"
END
run tests/says.sh
# shellcheck disable=SC2016
test_named odd.sh <<'END'
echo '{"ret-type": "query-name", "value": {"odd": 1}}' >>"$NBDELTA_QMP_RECORD"
END
if run tests/odd.sh; then
    echo "a reply was not as described and nobody complained"
    exit 1
fi
grep -q "query-name: not described: {'odd'}" out

# A test that cannot be started has failed.
if run tests/nosuch.sh; then
    exit 1
fi
[ "$(tail -n 1 out)" = '0 passed, 1 failed, 0 skipped' ]
