#!/bin/bash
# Zeroes of a backup are stored where something else could show through: in an
# increment that gets its backing file later, on a device, in a commit.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io

# A disk of sevens, backed up, of which parts are zeroes then.
begin() {
    rm -f ./*.img ./*.qcow2
    qemu-img create -q -f qcow2 disk.img 4M
    qemu-io -c 'write -P 7 0 4M' disk.img >/dev/null
    serve disk=disk.img
    qmp block-dirty-bitmap-add node=disk name=b
    qmp drive-backup device=disk sync=full format=qcow2 target="$PWD/full.qcow2" \
        --wait >/dev/null
    qemu-io -f raw -c 'write -z 0 512k' -c 'write -z -u 1M 512k' -c 'discard 2M 512k' \
        -c 'write -P 0 3M 64k' -c 'write -P 9 3584k 4k' "$(uri_of disk)" >/dev/null
}

job_is() {
    qmp query-jobs | grep -q "\"$1\""
}

no_jobs() {
    ! job_is commit
}

# The increment, on the full backup, is the disk.
is_whole() {
    stop_server
    qemu-img rebase -q -u -b full.qcow2 -F qcow2 "$1"
    qemu-img compare -q "$1" disk.img ||
        fail "$2: $(qemu-img compare "$1" disk.img)"
}

for more in '' compress=true; do
    begin
    # shellcheck disable=SC2086
    qmp drive-backup device=disk sync=incremental bitmap=b format=qcow2 \
        target="$PWD/inc.qcow2" $more --wait >/dev/null
    is_whole inc.qcow2 "new target $more"

    begin
    qemu-img create -q -f qcow2 inc.qcow2 4M
    # shellcheck disable=SC2086
    qmp drive-backup device=disk sync=incremental bitmap=b format=qcow2 \
        target="$PWD/inc.qcow2" mode=existing $more --wait >/dev/null
    is_whole inc.qcow2 "existing target $more"

    begin
    qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 inc.qcow2
    qmp blockdev-add '{"driver": "qcow2", "node-name": "t", "backing": null,
        "file": {"driver": "file", "filename": "inc.qcow2"}}'
    # shellcheck disable=SC2086
    qmp blockdev-backup device=disk sync=incremental bitmap=b target=t $more \
        job-id=j --wait >/dev/null
    is_whole inc.qcow2 "opened without its backing file $more"
done

# What was in a file is gone, too.
begin
head -c 4M /dev/zero | tr '\0' '\5' >old.raw
qmp drive-backup device=disk sync=full format=raw target="$PWD/old.raw" \
    --wait >/dev/null
stop_server
qemu-img compare -q -f raw old.raw disk.img || fail "a file that was there"

# A commit: zeroes of the top over data of what is below base, and where base is
# shorter than what it stands on.
for size in 4M 2M; do
    rm -f ./*.img ./*.qcow2
    qemu-img create -q -f qcow2 low.qcow2 4M
    qemu-io -c 'write -P 7 0 4M' low.qcow2 >/dev/null
    qemu-img create -q -f qcow2 -b low.qcow2 -F qcow2 base.qcow2 $size
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 4M
    qemu-io -c 'write -z 0 512k' -c 'write -z -u 1M 512k' -c 'write -z 3M 64k' \
        -c 'write -P 9 3584k 4k' top.qcow2 >/dev/null
    qemu-img convert -O raw top.qcow2 then.raw
    serve disk=top.qcow2
    qmp block-commit device=disk base="$PWD/base.qcow2" job-id=j
    wait_until 'the job is ready' job_is ready
    qmp job-complete id=j
    wait_until 'the job has ended' no_jobs
    stop_server
    qemu-img compare -q base.qcow2 then.raw ||
        fail "commit, base of $size: $(qemu-img compare base.qcow2 then.raw)"
done
