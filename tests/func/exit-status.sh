#!/bin/bash
# All commands have one table of exit statuses, which is in nbdelta.1.  Their
# pages refer to it, and each command ends as it says: what is wrong in the same
# way ends with the same status, whichever command meets it.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq flock

exit_section() {
    awk '/^\.SH/ { on = $0 == ".SH EXIT STATUS" } on' "$1"
}
[ "$(exit_section "$SRCDIR/man/nbdelta.1" | sed -n 's/^\.B \([0-9]\)$/\1/p' |
    xargs)" = '0 1 2 3 4 5 6 7 8' ] || fail "nbdelta.1 has another table"

# ends STATUS COMMAND...
ends() {
    local wanted=$1 status=0
    shift
    nbdelta "$@" >out 2>&1 </dev/null || status=$?
    [ "$status" = "$wanted" ] ||
        fail "nbdelta $*: ended with $status, not $wanted: $(cat out)"
}

# --- All commands: the command line ---

mapfile -t commands < <(nbdelta --help |
    sed -n 's/^  \([a-z-]\{2,\}\)  *[^ ].*/\1/p')
[ "${#commands[@]}" -ge 20 ] || fail "${commands[*]}"
for command in "${commands[@]}"; do
    usage=2
    case $command in
    check) usage=1 ;; # as qemu-img has it, and so are the others of these
    compare) ;;
    *) [ "$(exit_section "$SRCDIR/man/nbdelta-$command.1" |
        sed -n '2,4p' | xargs)" = \
        'As .BR nbdelta (1) has it for all commands.' ] ||
        fail "nbdelta-$command.1 does not refer to nbdelta(1)" ;;
    esac
    ends 0 "$command" --help
    ends $usage "$command"
    ends $usage "$command" --no-such-option x
done
ends 2 --no-such-option
ends 2 no-such-command

# --- Commands that open an image ---

for name in a b free; do
    qemu-img create -q -f qcow2 $name.qcow2 4M
done
qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 over.qcow2
mkdir other
touch other/file
qemu-img create -q -f qcow2 damaged.qcow2 4M
qemu-io -c 'write 0 64k' damaged.qcow2 >io
printf '\0\0\0\0\0\0\0\2' |
    dd of=damaged.qcow2 bs=8 seek=9 conv=notrunc status=none # its features

# image_commands IMAGE: how each command is told to open IMAGE, a line each
image_commands() {
    sed "s|IMAGE|$1|g" <<'END2'
serve -U s IMAGE
create IMAGE 8M
info IMAGE
check IMAGE
compare IMAGE free.qcow2
resize IMAGE 8M
map IMAGE
measure -O qcow2 IMAGE
snapshot -l IMAGE
snapshot -c s1 IMAGE
bitmap list IMAGE
bitmap add IMAGE b1
amend -o lazy_refcounts=on IMAGE
rebase -u -b free.qcow2 -F qcow2 IMAGE
backup IMAGE busy
END2
}
# All other commands are these.
others='backup-begin backup-end points verify restore prune qmp events metrics'
for command in "${commands[@]}"; do
    grep -q "^$command " <(image_commands x) ||
        grep -qw -e "$command" <<<"$others" ||
        fail "'$command' is in no list of this test"
done

serve busy=b.qcow2
while read -r -a words; do
    ends 5 "${words[@]}"
    [[ $(cat out) = *'another process'* ]] || fail "${words[*]}: $(cat out)"
done < <(image_commands b.qcow2)
stop_server

while read -r -a words; do
    case ${words[0]} in
    create) continue ;;
    check) ends 1 "${words[@]}" ;;
    compare) ends 2 "${words[@]}" ;;
    *) ends 6 "${words[@]}" ;;
    esac
done < <(image_commands nosuch.qcow2)

# What is in an image, and is not there.
ends 6 snapshot -d nosuch a.qcow2
ends 6 snapshot -a nosuch a.qcow2
ends 6 bitmap remove a.qcow2 nosuch
ends 6 bitmap list a.qcow2 nosuch
ends 6 map --bitmap nosuch a.qcow2
ends 6 map --snapshot nosuch a.qcow2
ends 0 bitmap add a.qcow2 there
ends 1 bitmap add a.qcow2 there
ends 0 bitmap remove a.qcow2 there

# An image that is marked as corrupt is not written to.
while read -r -a words; do
    case ${words[0]}\ ${words[1]} in
    resize*|amend*|rebase*|'snapshot -c'|'bitmap add') ends 4 "${words[@]}" ;;
    esac
done < <(image_commands damaged.qcow2)

# --- Commands that work on a backup directory ---

ends 2 backup a.qcow2
ends 2 prune backups
ends 0 backup a.qcow2 backups
ends 0 points backups
ends 0 verify backups
ends 0 restore backups a=restored.qcow2
ends 0 prune --keep-last 1 backups

ends 1 backup a.qcow2 other
for dir in other nosuch; do
    ends 6 points $dir
    ends 6 verify $dir
    ends 6 restore $dir
    ends 6 prune --keep-last 1 $dir
done

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
ends 2 compare backups@1999 a.qcow2

# Somebody has the directory, the image, the target.
exec 9>>backups/lock
flock 9
ends 5 backup a.qcow2 backups
ends 5 prune --keep-last 1 backups
exec 9>&-
serve busy=b.qcow2
ends 5 restore --force backups a=b.qcow2
stop_server

newest=$(find backups -name '*.json' | grep Z | sort | tail -n 1)
name=$(basename "$newest" .json)
sed -i 's/"sha256": "./"sha256": "!/' "$newest"
ends 4 points backups
ends 4 verify backups
ends 4 restore "backups@$name"

# --- Commands that talk to a daemon ---

ends 6 qmp nosuch.qmp query-status
ends 6 events nosuch.qmp
ends 6 metrics nosuch.qmp
ends 6 backup-begin nosuch.qmp --disk vda
ends 6 backup-end nosuch.qmp b1
serve vda=free.qcow2
ends 0 qmp qmp.sock query-status
ends 3 events --until SHUTDOWN --timeout 0 qmp.sock
ends 0 metrics qmp.sock
ends 1 qmp qmp.sock block_resize device=nosuch size=1M
ends 1 backup-begin qmp.sock --disk nosuch
ends 1 backup-end qmp.sock b1
stop_server
