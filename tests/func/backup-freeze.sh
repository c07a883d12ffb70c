#!/bin/bash
# `nbdelta backup --freeze=SOCKET`: the guest's agent freezes before the instant
# and thaws after it, for 10 s at most, whatever the agent, a hook, a source or
# kill -9 does.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

qemu-img create -q -f qcow2 disk.qcow2 4M
qemu-io -f qcow2 disk.qcow2 -c 'write -P 1 0 1M' >/dev/null
qemu-img create -q -f qcow2 live.qcow2 4M
serve vda=live.qcow2
agents=(deaf=deaf hang=hang endless=endless hook=good source="stop:$server"
    good=good rubbish=rubbish order=good refuse=refuse killed=good
    interrupted=hang)
# Each has a folder of its own.
for name in "${agents[@]%%=*}" nobody; do
    mkdir "$name"
    cp disk.qcow2 "$name"
done
/usr/bin/python3 -SE "$SRCDIR/tests/func/fake_agent.py" "${agents[@]}" &
agent=$!
at_exit kill "$agent"
wait_until "the agents listen" test -e agents-ready

# In the folder $1; its status goes to rc.
backup() {
    local rc=0
    (cd "$1" && exec "$nbdelta" backup --freeze=ga.sock "${@:2}") \
        >"$1/out" 2>"$1/said" || rc=$?
    echo "$rc" >"$1/rc"
}
commands() {
    [ "$(cut -d' ' -f1 "$1/state" 2>/dev/null | tr '\n' ' ')" = "$2" ] ||
        fail "$1: the agent was told $(cat "$1/state"), not $2; $(cat "$1/said")"
}
# Milliseconds between the first freeze and the first thaw.
still_ms() {
    awk '$1 == "freeze" && !f { f = $2 } $1 == "thaw" && !t { t = $2 }
        END { printf "%d\n", (t - f) * 1000 }' "$1/state"
}
# failed FOLDER WHY [STATUS]
failed() {
    [ "$(cat "$1/rc")" = "${3-1}" ] || fail "$1: $(cat "$1/rc"), $(cat "$1/said")"
    grep -q "$2" "$1/said" || fail "$1: $(cat "$1/said")"
    [ -z "$(find "$1/dir" -name '*.json' ! -name nbdelta.json)" ] ||
        fail "$1: a point"
}
is_thawed() {
    grep -q thaw "$1/state"
}

# These take their time, side by side.
backup deaf disk.qcow2 dir &
backup hang disk.qcow2 dir &
backup endless disk.qcow2 dir &
cat >hang-when-frozen <<'END'
#!/bin/bash
[ "$1" != frozen ] || sleep 600
END
chmod +x hang-when-frozen
backup hook --hook="$PWD/hang-when-frozen" disk.qcow2 dir &
backup source "$qmp_sock" dir &
slow=$(jobs -p | grep -vxF "$(printf '%s\n' "$agent" "$server")")

# An agent that does what it is told.
for mode in good rubbish; do
    # shellcheck disable=SC2016
    backup "$mode" --hook='cat state >seen; :' --output=json disk.qcow2 dir
    [ "$(cat "$mode/rc")" = 0 ] || fail "$mode: $(cat "$mode/said")"
    commands "$mode" "freeze thaw "
    jq -e '.agent | test("^2 file systems frozen for [0-9]+ ms$")' \
        "$mode"/dir/*Z.json >/dev/null || fail "$mode: $(cat "$mode"/dir/*Z.json)"
    jq -e '.agent | startswith("2 file systems")' "$mode/out" >/dev/null
done

# The hook runs while they stand still.
cat >order/hook <<'END'
#!/bin/bash
cp state "seen-$1" 2>/dev/null || : >"seen-$1"
END
chmod +x order/hook
backup order --hook=./hook disk.qcow2 dir
[ ! -s order/seen-before ] || fail "frozen before the hook"
[ "$(cut -d' ' -f1 order/seen-frozen)" = freeze ] || fail "order: frozen"
grep -q thaw order/seen-after || fail "order: after"

# One that refuses may have frozen some; what it says cannot hurt a terminal.
backup refuse disk.qcow2 dir
failed refuse "guest-fsfreeze-freeze: failed to freeze"
commands refuse "freeze thaw "
! grep -q $'\x1b' refuse/said || fail "an escape"

# kill -9 while they stand still.
cat >killed/hook <<'END'
#!/bin/bash
[ "$1" != frozen ] || { kill -9 "$(cat tool)"; sleep 2; }
END
chmod +x killed/hook
(cd killed && echo "$BASHPID" >tool &&
    exec "$nbdelta" backup --freeze=ga.sock --hook=./hook disk.qcow2 dir) \
    >killed/said 2>&1 || true
wait_until "killed: thawed" is_thawed killed

# Nobody is there.
backup nobody disk.qcow2 dir
failed nobody "cannot connect" 6

# Ctrl-C while no answer comes.
(cd interrupted && exec "$nbdelta" backup --freeze=ga.sock disk.qcow2 dir) \
    >interrupted/said 2>&1 &
run=$!
wait_until "interrupted: it is asked" test -s interrupted/state
kill -INT "$run"
rc=0
wait "$run" || rc=$?
[ "$rc" = 7 ] || fail "interrupted: $rc"
commands interrupted "freeze thaw "
[ "$(still_ms interrupted)" -lt 9000 ] || fail "interrupted: $(still_ms interrupted)"

# shellcheck disable=SC2086
wait $slow
failed deaf "does not answer"
[ ! -e deaf/state ] || fail "deaf: something was sent that freezes"
failed endless "agent"
[ ! -e endless/state ] || fail "endless: something was sent that freezes"
failed hang "does not answer"
commands hang "freeze thaw "
[ "$(still_ms hang)" -ge 9900 ] || fail "hang: $(still_ms hang) ms"
failed hook "hook (frozen) was ended after 5 s"
commands hook "freeze thaw "
failed source "thawed before"
commands source "freeze thaw "
qmp query-backups | jq -e 'length == 0' >/dev/null || fail "source: a session"
stop_server
