#!/bin/bash
# blockdev-create: files, and qcow2 images onto nodes of any kind, as jobs whose
# work real tools accept; what goes wrong is the job's error.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io jq

serve "other=driver=null-co,size=1M"

jobs=0
# The job's fate is in $fate: its error, or "done".
create() {
    jobs=$((jobs + 1))
    nbdelta qmp --wait "$qmp_sock" blockdev-create "{\"job-id\": \"c$jobs\", \"options\": $1}" \
        >out 2>err || true
    fate=$(qmp query-jobs | jq -r \
        ".[] | select(.id == \"c$jobs\" and .type == \"create\" and
         .status == \"concluded\" and .\"total-progress\" == 1 and
         .\"current-progress\" == 1) | .error // \"done\"")
    [ -n "$fate" ] || fail "no job for $1: $(cat err)"
    if [ "$fate" = "done" ]; then
        [ ! -s err ] || fail "$1: $(cat err)"
    else
        [ "$(cat err)" = "nbdelta: qmp: job 'c$jobs': $fate" ] ||
            fail "$1: $(cat err)"
    fi
    qmp job-dismiss id=c$jobs >/dev/null
}

makes() {
    create "$1"
    [ "$fate" = "done" ] || fail "$1: $fate"
}

fails() {
    create "$2"
    [ "$fate" = "$1" ] || fail "$2: $fate"
}

refused() {
    if qmp blockdev-create "$2" 2>err; then
        fail "not refused: $2"
    fi
    [ "$(cat err)" = "nbdelta: qmp: GenericError: $1" ] ||
        fail "$2: $(cat err)"
}

# FILTER is true of what qemu-img says of FILE.
is() {
    qemu-img info --output json "$1" >info.json
    jq -e "$2" info.json >/dev/null || fail "$1 is not $2: $(cat info.json)"
}

# --- Files ---

makes '{"driver": "file", "filename": "f.img", "size": 1234567}'
[ "$(stat -c '%s %b' f.img)" = "1234567 0" ] || fail "f.img: $(stat f.img)"
for how in falloc full; do
    makes "{\"driver\": \"file\", \"filename\": \"f.img\", \"size\": 1048576,
            \"preallocation\": \"$how\"}"
    [ "$(stat -c %s f.img)" = 1048576 ] || fail "$how: $(stat f.img)"
    [ "$(stat -c %b f.img)" -ge 2048 ] || fail "$how: $(stat f.img)"
done
fails "Could not create 'no/such': No such file or directory" \
    '{"driver": "file", "filename": "no/such", "size": 512}'

# --- qcow2 onto an open node, which has other things in it ---

qemu-io -f raw -c 'write -q -P 7 0 1M' f.img
qmp blockdev-add driver=file node-name=f filename=f.img >/dev/null
onto() {
    makes "{\"driver\": \"qcow2\", \"file\": \"f\", \"size\": 8388608$1}"
    qmp blockdev-del node-name=f >/dev/null
    qemu-img check -q f.img || fail "$1: $(qemu-img check f.img 2>&1)"
    qemu-io -c 'read -P 0 0 8M' f.img >io.out
    ! grep -q failed io.out || fail "$1: what was there is seen"
    is f.img "$2"
    truncate -s 0 f.img
    truncate -s 1M f.img
    qemu-io -f raw -c 'write -q -P 7 0 1M' f.img
    qmp blockdev-add driver=file node-name=f filename=f.img >/dev/null
}
onto '' '.format == "qcow2" and ."virtual-size" == 8388608 and
    ."cluster-size" == 65536 and ."format-specific".data.compat == "1.1" and
    ."actual-size" < 2097152'
onto ', "version": "v2"' '."format-specific".data.compat == "0.10"'
onto ', "cluster-size": 2097152, "refcount-bits": 1, "lazy-refcounts": true,
      "compression-type": "zstd"' \
    '."cluster-size" == 2097152 and (."format-specific".data |
     ."refcount-bits" == 1 and ."lazy-refcounts" and
     ."compression-type" == "zstd")'
onto ', "extended-l2": true' '."format-specific".data."extended-l2"'
onto ', "preallocation": "metadata"' 'true'
[ "$(qemu-img map --output json f.img | jq length)" -ge 1 ]
onto ', "preallocation": "falloc"' '."actual-size" >= 8388608'
onto ', "preallocation": "full", "cluster-size": 512' \
    '."actual-size" >= 8388608'

# All is allocated, too.
makes '{"driver": "qcow2", "file": "f", "size": 8388608,
        "preallocation": "metadata"}'
qemu-img map --output json -U f.img |
    jq -e 'all(.[]; .depth == 0 and .offset)' >/dev/null ||
    fail "not preallocated: $(qemu-img map --output json -U f.img)"

# A backing file is named, not looked at; without a format, too.
makes '{"driver": "qcow2", "file": "f", "size": 1048576,
        "backing-file": "/no/such", "backing-fmt": "raw"}'
qmp blockdev-del node-name=f >/dev/null
is f.img '."backing-filename" == "/no/such" and
    ."backing-filename-format" == "raw"'

# --- Nodes that are no files, and such as are opened for it ---

qmp blockdev-add '{"driver": "mem", "node-name": "m", "size": 0}' >/dev/null
makes '{"driver": "qcow2", "file": "m", "size": 1048576}'
qmp blockdev-add '{"driver": "qcow2", "node-name": "mq", "file": "m"}' \
    >/dev/null
[ "$(qmp query-named-block-nodes | jq '.[] | select(."node-name" == "mq") |
    .image."virtual-size"')" = 1048576 ]
fails "Permission conflict on node 'm': permissions 'write, resize' are both \
required by an unnamed block device (uses node 'm' as 'root' child) and \
unshared by node 'mq' (uses node 'm' as 'file' child)." \
    '{"driver": "qcow2", "file": "m", "size": 1048576}'

truncate -s 0 g.img
makes '{"driver": "qcow2", "size": 65536, "preallocation": "metadata", "file":
        {"driver": "blkdebug", "image": {"driver": "file",
                                         "filename": "g.img"}}}'
is g.img '.format == "qcow2" and ."virtual-size" == 65536'
qemu-img check -q g.img
fails "cannot write the new image: No space left on device" \
    '{"driver": "qcow2", "size": 65536, "file": {"driver": "blkdebug",
      "image": {"driver": "file", "filename": "g.img"},
      "inject-error": [{"event": "none", "iotype": "write", "errno": 28}]}}'
[ "$(qmp query-named-block-nodes | jq length)" = 3 ] ||
    fail "nodes are left: $(qmp query-named-block-nodes)"

# --- What cannot be ---

fails "Cannot find device='no' nor node-name='no'" \
    '{"driver": "qcow2", "file": "no", "size": 65536}'
qmp blockdev-add driver=file node-name=f filename=f.img >/dev/null
f() {
    fails "$1" "{\"driver\": \"qcow2\", \"file\": \"f\", \"size\": $2}"
}
f "Image size must be a multiple of 512 bytes" 1000
f "Cluster size must be a power of two between 512 and 2048k" \
    '1024, "cluster-size": 63'
f "Refcount width must be a power of two and may not exceed 64 bits" \
    '1024, "refcount-bits": 7'
f "Lazy refcounts only supported with compatibility level 1.1 and above (use \
version=v3 or greater)" '1024, "version": "v2", "lazy-refcounts": true'
f "Different refcount widths than 16 bits require compatibility level 1.1 or \
above (use version=v3 or greater)" '1024, "version": "v2", "refcount-bits": 8'
f "Backing format cannot be used without backing file" \
    '1024, "backing-fmt": "raw"'
f "Backing file and preallocation can only be used at the same time if \
extended_l2 is on" \
    '1024, "backing-file": "x", "preallocation": "full"'
refused "Driver does not support blockdev-create" \
    '{"job-id": "j", "options": {"driver": "raw"}}'
refused "Parameter 'options.size' is missing" \
    '{"job-id": "j", "options": {"driver": "qcow2", "file": "f"}}'
refused "Parameter 'options.size' is unexpected" \
    '{"job-id": "j", "options": {"driver": "null-co", "size": 1}}'
refused "Invalid job ID '1'" \
    '{"job-id": "1", "options": {"driver": "file", "filename": "x", "size": 1}}'
[ ! -e x ] || fail "a file was made without a job"

# --- It is no block job ---

qmp blockdev-create '{"job-id": "j", "options":
    {"driver": "file", "filename": "x", "size": 1}}' >/dev/null
[ "$(qmp query-block-jobs)" = '[]' ] || fail "a block job"
if qmp block-job-dismiss id=j 2>err; then
    fail "dismissed as a block job"
fi
[ "$(cat err)" = "nbdelta: qmp: DeviceNotActive: Block job 'j' not found" ] ||
    fail "block-job-dismiss: $(cat err)"
is_done() {
    [ "$(qmp query-jobs | jq -r '.[0].status')" = concluded ]
}
wait_until "the job is done" is_done
refused "Job ID 'j' already in use" '{"job-id": "j", "options":
    {"driver": "file", "filename": "x", "size": 1}}'
stop_server
