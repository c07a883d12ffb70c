#!/bin/bash
# The examples of the man pages work, word for word, as one pastes them: block
# after block.  Daemons go to the background here; each is ended before the next
# one begins.  What needs systemd, nbdkit or a domain is run elsewhere
# (packaging/use-units.sh, one-file.sh, plugin-dirty.sh, recipes.sh).
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need jq nbdcopy nbdinfo psktool qemu-img

ended() {
    [ ! -e served.pid ]
}
end_daemon() {
    ended || kill "$(cat served.pid)" 2>/dev/null || true
    wait_until "the daemon has ended" ended
}
at_exit end_daemon

no_job() {
    [ "$(nbdelta qmp qmp.sock query-jobs)" = '[]' ]
}

nbdelta() {
    if [ "$1" = serve ]; then
        end_daemon
        command nbdelta "$@" --daemonize --pidfile "$PWD/served.pid" 2>>log ||
            fail "nbdelta $*: $(tail -n 3 log)"
    else
        command nbdelta "$@"
    fi
}

# block PAGE N: the text of the Nth example, as it is printed.  What is not in
# the current directory is there, and other hosts are Unix sockets.
block() {
    awk -v wanted="$2" '/^\.EX$/ { n++; next } /^\.EE$/ { on = 0; next }
        { on = n == wanted && (on || at != n) } on { at = n; print }' \
        "$SRCDIR/man/$1" |
        sed -e 's/\\-/-/g' -e 's/\\e/\\/g' -e "s/\\\\(aq/'/g" \
            -e "s|/backup/web|$PWD/backups|g" \
            -e "s|/var/lib/prometheus/node-exporter|$PWD|" \
            -e 's|-i 127.0.0.1 -p 10809|-U nbd.sock|' \
            -e 's|addr.type=inet,addr.host=::,addr.port=10809|addr.type=unix,addr.path=tls.sock|' \
            -e "s|nbd://host/vda|'nbd+unix:///vda?socket=nbd.sock'|" \
            -e 's|/run/vda.sock|nbd.sock|'
}

# paste PAGE N...
paste() {
    local page=$1 n text
    shift
    for n; do
        text=$(block "$page" "$n")
        [ "$text" ] || fail "$page has no example $n"
        echo "+ $page $n"
        eval "$text" || fail "$page, example $n"
    done
}

truncate -s 1M boot.img
paste nbdelta.1 1 2 3
wait_until "the daemon has ended" ended
[ "$(qemu-img info --output json inc.qcow2 | jq -r '."backing-filename"')" = \
    full.qcow2 ]
qemu-img compare inc.qcow2 disk.qcow2
rm -rf -- *.qcow2 backups

paste nbdelta-create.1 1
[ "$(qemu-img info --output json small.qcow2 | jq '."cluster-size"')" = \
    131072 ]

nbdelta serve -U nbd.sock --qmp qmp.sock overlay.qcow2
nbdelta qmp qmp.sock block-dirty-bitmap-add node=disk0 name=b0
paste nbdelta-info.1 1
paste nbdelta-map.1 1
nbdelta qmp qmp.sock block-dirty-bitmap-remove node=disk0 name=b0
paste nbdelta-qmp.1 1
wait_until "the daemon has ended" ended

nbdelta create disk.qcow2 1M
paste nbdelta-bitmap.1 1
paste nbdelta-resize.1 1
nbdelta create disk.qcow2 1M
paste nbdelta-amend.1 1
paste nbdelta-snapshot.1 1
nbdelta snapshot -c before disk.qcow2
paste nbdelta-snapshot.1 2
[ "$(nbdinfo --size 'nbd+unix:///old?socket=old.sock')" = 1048576 ]
end_daemon
nbdelta snapshot -d before disk.qcow2
paste nbdelta-rebase.1 1

# A backup directory, of two points.
mkdir dir
nbdelta serve -U nbd.sock --qmp qmp.sock vda=disk.qcow2
nbdelta backup qmp.sock backups
paste nbdelta-qmp-ref.7 1
nbdelta qmp qmp.sock backup-end id=b2 success=true
nbdelta backup qmp.sock backups
paste nbdelta-metrics.1 1
while sleep 0.2; do
    nbdelta qmp --wait qmp.sock drive-backup device=vda sync=full \
        format=qcow2 target=full.qcow2 >job.log 2>&1
done &
paste nbdelta-events.1 1 | tee events
kill $!
wait $! || true
wait_until "there is no job" no_job
grep -qx ended events
end_daemon
cp disk.qcow2 vda.qcow2
paste nbdelta-compare.1 1
paste nbdelta-measure.1 1
paste nbdelta-verify.1 1
nbdelta verify backups
paste nbdelta-points.1 1
[ -s web.prom ]
paste nbdelta-restore.1 1
cp disk.qcow2 data.img
cp disk.qcow2 root.qcow2
paste nbdelta-serve.1 1

# Nodes, and who may do what.
paste nbdelta-disks.7 1 2 3
end_daemon
nbdelta bitmap add disk.qcow2 b0
nbdelta snapshot -c monday disk.qcow2
nbdelta create -b full.qcow2 -F qcow2 inc.qcow2
command nbdelta serve --daemonize -U nbd.sock --pidfile other.pid \
    vda=disk.qcow2 2>>log
at_exit kill "$(cat other.pid)"
paste nbdelta-disks.7 4
rm inc.qcow2
paste nbdelta-disks.7 5
end_daemon
kill "$(cat other.pid)"
exit_commands=(end_daemon)
wait_until "the other one has ended" test ! -e other.pid
paste nbdelta-security.7 1
end_daemon
qemu-img compare -f raw -F qcow2 copy.raw disk.qcow2
if command -v certtool >/dev/null; then
    make_pki pki
    paste nbdelta-security.7 2
fi
cp disk.qcow2 upload.qcow2
paste nbdelta-security.7 3
end_daemon

qemu-img create -q -f qcow2 vda.qcow2 4M
qemu-img create -q -f qcow2 vdb.qcow2 4M
paste nbdelta-backup-begin.1 1 2
wait_until "the daemon has ended" ended
for disk in vda vdb; do
    qemu-img compare -q $disk.tue.qcow2 $disk.qcow2
done
