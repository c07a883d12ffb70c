#!/bin/bash
# The commands that work on a backup directory have one table of exit statuses.
# Each page has the same words, and each command ends as they say.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img jq flock

commands=(backup points verify restore prune)
for command in "${commands[@]}"; do
    page=$SRCDIR/man/nbdelta-$command.1
    awk '/^\.SH/ { on = $0 == ".SH EXIT STATUS" } on' "$page" |
        awk '{ print } /^\.B 6/ { getline; print; exit }' >"$command.words"
    diff backup.words "$command.words" ||
        fail "$page has other words than nbdelta-backup.1"
done
[ "$(grep -c '^\.B [0-6]$' backup.words)" = 7 ] || fail "$(cat backup.words)"

# ends STATUS COMMAND...
ends() {
    local wanted=$1 status=0
    shift
    nbdelta "$@" >out 2>&1 </dev/null || status=$?
    [ "$status" = "$wanted" ] ||
        fail "nbdelta $*: ended with $status, not $wanted: $(cat out)"
}

qemu-img create -q -f qcow2 a.qcow2 4M
qemu-img create -q -f qcow2 b.qcow2 4M
mkdir other
touch other/file

for command in "${commands[@]}"; do
    ends 2 "$command"
    ends 2 "$command" --no-such-option DIR
done
ends 2 backup a.qcow2
ends 2 prune backups

ends 0 backup a.qcow2 backups
ends 0 points backups
ends 0 verify backups
ends 0 restore backups a=restored.qcow2
ends 0 prune --keep-last 1 backups

ends 1 backup nosuch.qcow2 backups
ends 1 backup a.qcow2 other
ends 1 points other
ends 1 verify other
ends 1 restore other
ends 1 prune --keep-last 1 other

# It has another size.
nbdelta bitmap list --output json a.qcow2 | jq -r '.[].name' |
    while read -r bitmap; do nbdelta bitmap remove a.qcow2 "$bitmap"; done
qemu-img resize -q a.qcow2 8M
ends 1 backup --no-fallback a.qcow2 backups
ends 3 backup a.qcow2 backups

ends 6 points backups@1999
ends 6 points backups@2
ends 6 verify backups@1999
ends 6 restore backups@1999
ends 6 restore backups nosuchdisk

# Somebody has the directory, the image, the target.
exec 9>>backups/lock
flock 9
ends 5 backup a.qcow2 backups
ends 5 prune --keep-last 1 backups
exec 9>&-
serve busy=b.qcow2
ends 5 backup b.qcow2 more
ends 5 restore --force backups a=b.qcow2
stop_server

newest=$(find backups -name '*.json' | grep Z | sort | tail -n 1)
name=$(basename "$newest" .json)
sed -i 's/"sha256": "./"sha256": "!/' "$newest"
ends 4 points backups
ends 4 verify backups
ends 4 restore "backups@$name"
