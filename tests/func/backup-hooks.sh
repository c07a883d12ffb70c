#!/bin/bash
# Hooks of `nbdelta backup`: when they run, what they get, that they inherit
# nothing of ours, that one which fails, hangs or is interrupted makes no point,
# and that a second signal kills it.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io

cat >hook <<'END'
#!/bin/bash
# hook WHEN: note it, then do what the file do-WHEN says.
echo "$1 $NBDELTA_WHEN ${NBDELTA_POINT:+point} $NBDELTA_DIR $NBDELTA_SOURCE" >>log
[ -z "$NBDELTA_ERROR" ] || echo "error: $NBDELTA_ERROR" >>log
if [ -e "do-$1" ]; then . "./do-$1"; fi
END
chmod +x hook
qemu-img create -q -f qcow2 disk.qcow2 4M
qemu-io -f qcow2 disk.qcow2 -c 'write -P 1 0 1M' >/dev/null
dir=$PWD/dir

backup() {
    : >log
    rc=0
    nbdelta backup --hook=./hook "$@" disk.qcow2 dir >out 2>said || rc=$?
}
points() {
    find dir -maxdepth 1 -name '*Z.json' | wc -l
}
child_has_gone() {
    ! kill -0 "$(cat child)" 2>/dev/null
}
logged() {
    [ "$(cut -d' ' -f1 log | grep -v error | tr '\n' ' ')" = "$1 " ] ||
        fail "not '$1': $(cat log)"
}

# What it gets.
cat >do-frozen <<'END'
grep SigBlk /proc/self/status >signals
grep SigIgn /proc/self/status >>signals
ls /proc/$$/fd >fds
echo "printed" && readlink /proc/$$/fd/0 >stdin
END
backup
[ "$rc" = 0 ] || fail "hooks: $rc, $(cat said)"
logged "before frozen after"
grep -qx "before before point $dir disk.qcow2" log || fail "$(cat log)"
[ "$(points)" = 1 ] || fail "no point"
[ "$(cat said)" = printed ] || fail "its output: $(cat said)"
[ ! -s out ] || fail "its output is on stdout"
grep -q 'SigBlk:.0*$' signals || fail "signals are blocked: $(cat signals)"
printf '#!/bin/bash\nls /proc/$$/fd >plain\n' >without && chmod +x without && ./without
cmp -s plain fds || fail "descriptors: $(cat fds), without us $(cat plain)"
[ "$(cat stdin)" = /dev/null ] || fail "its input"
rm do-*

# One that fails: no point; the last one changes nothing.
for when in before frozen; do
    echo 'exit 9' >"do-$when"
    backup
    [ "$rc" = 1 ] || fail "$when fails: $rc"
    grep -q "hook ($when) failed: status 9" said || fail "$(cat said)"
    grep -q "error: the hook ($when) failed" log || fail "$(cat log)"
    [ "$(points)" = 1 ] || fail "a point after a failed hook"
    rm "do-$when"
done
logged "before frozen failed"
echo 'exit 9' >do-after
backup
[ "$rc" = 0 ] || fail "after: $rc"
grep -q "hook (after) failed" said || fail "$(cat said)"
[ "$(points)" = 2 ] || fail "no second point"
rm do-after

# One that hangs has its limit, with all that it has started.
echo 'trap "echo told >>log" TERM; sleep 600 & echo $! >child; wait; wait' >do-before
backup --hook-timeout=1
[ "$rc" = 1 ] || fail "hangs: $rc"
grep -q "ended after 1 s" said || fail "$(cat said)"
grep -q told log || fail "it did not get SIGTERM"
wait_until "its child has gone" child_has_gone

# A signal ends it; `failed` still runs.
hook_runs() {
    grep -q before log 2>/dev/null && [ -s child ]
}
start() {
    rm -f child log
    nbdelta backup --hook=./hook disk.qcow2 dir 2>said &
    run=$!
    wait_until "the hook runs" hook_runs
}
echo 'echo $$ >child; sleep 600' >do-before
start
kill -INT "$run"
rc=0
wait "$run" || rc=$?
[ "$rc" = 7 ] || fail "interrupted: $rc, $(cat said)"
grep -q "interrupted" said || fail "$(cat said)"
logged "before failed"

# Two of them end both at once, though it does not listen.
echo 'trap "touch told" TERM; echo $$ >child; while :; do sleep 600; done' >do-before
start
kill -TERM "$run"
wait_until "the hook was told" test -e told
kill -TERM "$run"
rc=0
wait "$run" 2>/dev/null || rc=$?
[ "$rc" = 143 ] || fail "killed: $rc"
wait_until "the hook has gone" child_has_gone
rm do-before
backup
[ "$rc" = 0 ] || fail "the run after a killed one: $rc, $(cat said)"
qemu-img compare -q "$(find dir/disk -name '*.qcow2' | sort | tail -n 1)" disk.qcow2

# A dry run has none.
backup --dry-run
[ ! -s log ] || fail "a dry run runs hooks"
