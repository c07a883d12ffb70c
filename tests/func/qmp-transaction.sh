#!/bin/bash
# transaction: all actions at one instant or none; grouped jobs end together.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img qemu-io jq

transaction() {
    local properties=$1
    shift
    qmp transaction "$(jq -cn --argjson p "$properties" \
        '{actions: $ARGS.positional | map(fromjson), properties: $p}' \
        --args "$@")"
}

refused() {
    local text=$1
    shift
    if transaction "$@" 2>err; then
        fail "not refused: $*"
    fi
    [ "$(cat err)" = "nbdelta: qmp: GenericError: $text" ] || fail "$* says: $(cat err)"
}

add() {
    jq -cn --arg node "$1" --arg name "$2" \
        '{type: "block-dirty-bitmap-add", data: $ARGS.named}'
}

change() {
    jq -cn --arg type "block-dirty-bitmap-$1" --arg node "$2" --arg name "$3" \
        '{$type, data: {$node, $name}}'
}

backup() {
    jq -cn --arg device "$1" --arg target "$2" --arg bitmap "$3" '
        {type: "drive-backup", data: {"job-id": $device, $device, $target,
         format: "qcow2", mode: "existing", sync: "incremental", $bitmap,
         "auto-dismiss": false}}'
}

bitmaps() {
    qmp query-named-block-nodes | jq -c '[.[] | select(."node-name" |
        startswith("vd")) | {(."node-name"): ."dirty-bitmaps"}] | add'
}

job_is() {
    [ "$(qmp query-jobs | jq -r --arg i "$1" \
        '.[] | select(.id == $i) | .status + ":" + (.error // "")')" = "$2" ]
}

write_both() {
    qemu-io -f raw -c "write -q -P $1 $2 64k" "$(uri_of vda)"
    qemu-io -f raw -c "write -q -P $1 $2 64k" "$(uri_of vdb)"
}

for disk in vda vdb; do
    nbdelta create $disk.qcow2 8M
done
serve vda=vda.qcow2 vdb=vdb.qcow2

# Bitmaps on both at once; then something that fails last undoes everything.
transaction '{}' "$(add vda b)" "$(add vdb b)"
write_both 1 0
before=$(bitmaps)
[ "$(jq -c '[.[][0].count]' <<<"$before")" = '[65536,65536]' ]
refused "Transaction aborted using Abort action" '{}' "$(change clear vda b)" \
    "$(add vda c)" "$(change disable vdb b)" "$(change remove vdb b)" \
    "$(add vdb b)" '{"type": "abort", "data": {}}'
[ "$(bitmaps)" = "$before" ]
refused "Dirty bitmap 'none' not found" '{}' "$(change clear vda b)" \
    "$(change enable vdb none)"
[ "$(bitmaps)" = "$before" ]

# Bad requests are found before anything happens.
refused "Parameter 'actions[1].data.name' is missing" '{}' \
    "$(change clear vda b)" '{"type": "block-dirty-bitmap-add",
    "data": {"node": "vda"}}'
refused "Parameter 'type' does not accept value 'quit'" '{}' \
    '{"type": "quit", "data": {}}'
refused "Action 'block-dirty-bitmap-clear' does not support transaction \
property completion-mode = grouped" '{"completion-mode": "grouped"}' \
    "$(change clear vda b)"
[ "$(bitmaps)" = "$before" ]

# A group of which one cannot write: neither bitmap loses a bit.
for disk in vda vdb; do
    qemu-img create -q -f qcow2 $disk-1.qcow2 8M
done
qemu-img create -q -f qcow2 small.qcow2 4M
refused "Source and target image have different sizes" \
    '{"completion-mode": "grouped"}' "$(backup vda vda-1.qcow2 b)" \
    "$(backup vdb small.qcow2 b)"
[ "$(bitmaps)" = "$before" ]
[ "$(qmp query-jobs)" = '[]' ]

# One that can.
transaction '{"completion-mode": "grouped"}' "$(backup vda vda-1.qcow2 b)" \
    "$(backup vdb vdb-1.qcow2 b)"
wait_until "vda is done" job_is vda concluded:
wait_until "vdb is done" job_is vdb concluded:
[ "$(jq -c '[.[][0].count]' <<<"$(bitmaps)")" = '[0,0]' ]
for disk in vda vdb; do
    qmp job-dismiss id=$disk >/dev/null
    qemu-img compare -U -q $disk-1.qcow2 $disk.qcow2
done

# A bitmap and the backup that uses it, and several into one.
write_both 2 1M
transaction '{}' "$(add vda sum)" '{"type": "block-dirty-bitmap-merge",
    "data": {"node": "vda", "target": "sum", "bitmaps": ["b",
             {"node": "vdb", "name": "b"}]}}' "$(change clear vda b)" \
    "$(backup vda vda-1.qcow2 sum)"
wait_until "vda is done" job_is vda concluded:
qmp job-dismiss id=vda >/dev/null
[ "$(jq -c '[.vda[] | {(.name): .count}] | add' <<<"$(bitmaps)")" = \
    '{"sum":0,"b":0}' ]
refused "Dirty bitmap 'none' not found" '{}' \
    '{"type": "block-dirty-bitmap-merge", "data": {"node": "vdb",
      "target": "b", "bitmaps": [{"node": "vda", "name": "b"}, "none"]}}'
transaction '{}' '{"type": "block-dirty-bitmap-merge", "data": {
    "node": "vdb", "target": "b", "bitmaps": []}}'
[ "$(jq -c '[.vdb[].count]' <<<"$(bitmaps)")" = '[65536]' ]
stop_server
qemu-img compare -q vda-1.qcow2 vda.qcow2
