#!/bin/bash
# A user that may not read all files of a disk cannot read a copy of the disk,
# however the copy is made.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img stat

umask 022

# is MODE FILE...
is() {
    local mode=$1 file
    shift
    for file in "$@"; do
        [ "$(stat -c %a "$file")" = "$mode" ] ||
            fail "'$file' has mode $(stat -c %a "$file"), not $mode"
    done
}

# copies MODE IMAGE: by jobs and snapshots of a daemon that serves it.
copies() {
    local mode=$1 image=$2
    serve vda="$image"
    qmp drive-backup device=vda sync=full format=qcow2 \
        target="$PWD/b.qcow2" --wait >out
    qmp drive-backup device=vda sync=full format=raw \
        target="$PWD/b.raw" --wait >out
    qmp blockdev-snapshot-sync device=vda snapshot-file="$PWD/o.qcow2" >out
    qmp drive-backup device=vda sync=top format=qcow2 \
        target="$PWD/t.qcow2" --wait >out
    is "$mode" b.qcow2 b.raw o.qcow2 t.qcow2
    stop_server
    rm -f b.qcow2 b.raw o.qcow2 t.qcow2
}

nbdelta create v.qcow2 4M
is 644 v.qcow2
copies 644 v.qcow2
chmod 600 v.qcow2
copies 600 v.qcow2
chmod 640 v.qcow2
copies 640 v.qcow2

# What is below counts, and where the data are.
chmod 600 v.qcow2
nbdelta create -b v.qcow2 -F qcow2 over.qcow2
is 600 over.qcow2
chmod 644 over.qcow2
copies 600 over.qcow2
truncate -s 4M d.raw
chmod 600 d.raw
nbdelta create --track d.raw tracked.qcow2
is 600 tracked.qcow2
chmod 644 tracked.qcow2
serve vda=tracked.qcow2
qmp drive-backup device=vda sync=full format=qcow2 target="$PWD/b.qcow2" \
    --wait >out
is 600 b.qcow2
stop_server
rm b.qcow2

# What is made for a purpose that is not known, and of what is in no file.
serve vda=driver=mem,size=4M
qmp blockdev-create job-id=c options.driver=file options.size=4M \
    options.filename="$PWD/c.raw" >out
wait_until "the file is there" test -e c.raw
is 600 c.raw
qmp drive-backup device=vda sync=full format=qcow2 target="$PWD/b.qcow2" \
    --wait >out
is 600 b.qcow2
stop_server

# A group of others is nobody of ours; links of others lead nowhere.
if [ "$(id -u)" -eq 0 ]; then
    chmod 640 v.qcow2
    chgrp 12345 v.qcow2
    copies 600 v.qcow2
    echo precious >precious
    ln -s precious mine.qcow2
    ln -s precious theirs.qcow2
    chown -h 12345 theirs.qcow2
    serve vda=v.qcow2
    for verb in "drive-backup sync=full format=qcow2 target=" \
        "blockdev-snapshot-sync snapshot-file="; do
        # shellcheck disable=SC2086
        if qmp ${verb%% *} device=vda ${verb#* }"$PWD/theirs.qcow2" 2>err; then
            fail "$verb has followed a link of somebody else"
        fi
        grep -q 'somebody else' err || fail "$(cat err)"
        [ "$(cat precious)" = precious ]
    done
    stop_server
    if nbdelta create theirs.qcow2 1M 2>err; then
        fail "create has followed a link of somebody else"
    fi
    nbdelta create mine.qcow2 1M
    qemu-img check -q precious
fi
