#!/bin/bash
# A target that reads as zeroes gets no zeroes; any other one does.  Blkdebug
# refuses all zeroes that are written, so the job fails when there are some.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

truncate -s 8M source.raw blank.raw
qemu-io -f raw -c 'write -P 1 1M 64k' source.raw >/dev/null
nbdelta create blank.qcow2 8M
cp blank.raw used.raw
cp blank.qcow2 used.qcow2
cp blank.qcow2 over.qcow2
qemu-img rebase -u -f qcow2 -F raw -b blank.raw over.qcow2
for f in raw qcow2; do
    qemu-io -f "$f" -c 'write -P 2 7M 64k' "used.$f" >/dev/null
done
serve vda=source.raw

add() { # NODE FORMAT DRIVER-OF-FILE: the image NODE.FORMAT
    local file="{\"driver\": \"file\", \"filename\": \"$1.$2\"}" more=
    [ "$1" != over ] || more=', "backing": null'
    [ "$3" = file ] || file="{\"driver\": \"blkdebug\", \"image\": $file,
        \"inject-error\": [{\"event\": \"none\", \"iotype\": \"write-zeroes\"}]}"
    qmp blockdev-add "{\"driver\": \"$2\", \"node-name\": \"t\",
        \"file\": $file, \"discard\": \"unmap\"$more}" >out
}
state() {
    qmp query-jobs >jobs.out
    jq -r '.[] | .status + (.error // "")' jobs.out
}
has_come() {
    case $(state) in ready | concluded*) ;; *) false ;; esac
}
mirror() { # what the job is in the end: ready, or concluded and the error
    qmp blockdev-mirror "{\"job-id\": \"m\", \"device\": \"vda\",
        \"target\": \"t\", \"sync\": \"full\", \"auto-dismiss\": false,
        \"copy-mode\": \"${1:-background}\"}" >out
    wait_until "the mirror comes to something" has_come
    state
}
is_done() {
    case $(state) in concluded*) ;; *) false ;; esac
}
finish() {
    [ "$(state)" != ready ] || qmp block-job-cancel device=m
    wait_until "the mirror ends" is_done
    qmp job-dismiss id=m >out
    qmp blockdev-del node-name=t >out
}

has_holes() { # zeroes of a qcow2 image that are nowhere
    qemu-img map --output=json -f qcow2 blank.qcow2 >map.out
    [ "$(jq 'any(.data) and all(.data or .present == false)' map.out)" = true ]
}

for f in raw qcow2; do
    for how in background write-blocking; do
        add blank "$f" blkdebug
        [ "$(mirror $how)" = ready ] || fail "$f, $how: $(cat jobs.out)"
        finish
        qemu-img compare -q -U -f raw -F "$f" source.raw "blank.$f"
        [ "$f" = raw ] || has_holes || fail "$how: zeroes: $(cat map.out)"
        # Now it has data, and is not blank any more.
        add blank "$f" file
        [ "$(mirror)" = ready ] || fail "$f, again: $(cat jobs.out)"
        # What is written once is zeroed when the source is.
        qemu-io -f raw -c 'write -P 3 3M 64k' "nbd+unix:///vda?socket=$sock" \
            >/dev/null
        qemu-io -f raw -c 'write -z 3M 64k' "nbd+unix:///vda?socket=$sock" \
            >/dev/null
        finish
        qemu-img compare -q -U -f raw -F "$f" source.raw "blank.$f"
        rm "blank.$f"
        if [ "$f" = raw ]; then
            truncate -s 8M blank.raw
        else
            nbdelta create blank.qcow2 8M
        fi
    done
    if [ "$f" = raw ]; then
        add used raw blkdebug
        case $(mirror) in
        concluded?*) ;;
        *) fail "no zeroes: $(cat jobs.out)" ;;
        esac
        finish
    fi
    add used "$f" file
    [ "$(mirror)" = ready ] || fail "$f: $(cat jobs.out)"
    finish
    qemu-img compare -q -U -f raw -F "$f" source.raw "used.$f"
done

# Over a file below, which is not open here, zeroes have to be there.
add over qcow2 file
[ "$(mirror)" = ready ] || fail "over a file: $(cat jobs.out)"
finish
qemu-img map --output=json -f qcow2 over.qcow2 >map.out
[ "$(jq 'all(.depth == 0)' map.out)" = true ] || fail "holes: $(cat map.out)"
stop_server
