#!/bin/bash
# query-blockstats counts what clients did, and what failed; and
# x-debug-query-block-graph draws the nodes, users and edges that there are.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-img jq
python -c 'import nbd' 2>/dev/null || skip "python has no libnbd"

qemu-img create -q -f qcow2 base.qcow2 8M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
serve "disk=driver=qcow2,node-name=disk,discard=unmap,\
file.driver=file,file.node-name=top-file,file.filename=$PWD/top.qcow2" \
    "bad=driver=blkdebug,node-name=bad,image.driver=mem,image.size=1M,\
inject-error.0.event=none,inject-error.0.iotype=write,inject-error.0.errno=28,\
inject-error.1.event=none,inject-error.1.iotype=read"

client() {
    python - "$(uri_of "$1")" <<EOF
import sys, nbd
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
def fails(f, *args):
    try:
        f(*args)
    except nbd.Error:
        return
    raise SystemExit(f'{f}{args} did not fail')
$2
h.shutdown()
EOF
}

# The counters of export $1 are those of the JSON $2, and others are not there.
counted() {
    qmp query-blockstats >stats
    jq -e --arg name "$1" --argjson want "$2" '
        [.[] | select(.device == $name)] | length == 1 and (.[0].stats |
        with_entries(select(.key | test("_(bytes|operations)$")))
        | with_entries(select(.value != 0)) == $want)' stats >/dev/null ||
        fail "$1 is not $2: $(jq -c . stats)"
}

counted disk '{}'
jq -e 'all(.[]; .stats | has("idle_time_ns") | not) and
       [.[].device] == ["disk", "bad"]' stats >/dev/null ||
    fail "before anything: $(cat stats)"

client disk '
for i in range(100):
    h.pread(4096, i * 4096)
h.pwrite(b"x" * 65536, 1 << 20)
h.pwrite(b"x" * 65536, 2 << 20)
h.zero(1 << 20, 4 << 20)
h.flush()
h.trim(65536, 2 << 20)
h.flush()
'
counted disk '{"rd_operations": 100, "rd_bytes": 409600,
    "wr_operations": 3, "wr_bytes": 1179648, "flush_operations": 2,
    "unmap_operations": 1, "unmap_bytes": 65536}'
jq -e '.[0].stats | .rd_total_time_ns > 0 and .wr_total_time_ns > 0 and
    .flush_total_time_ns > 0 and .unmap_total_time_ns > 0 and
    .wr_highest_offset == 5242880 and .idle_time_ns > 0 and
    .idle_time_ns < 3600000000000 and .account_invalid and .account_failed and
    .rd_merged + .wr_merged + .unmap_merged == 0' stats >/dev/null ||
    fail "times: $(jq -c . stats)"

# Latencies: of what waits each one, of what is done in memory about all.  The
# first write waits, because it needs a table.
jq -e '.[0].stats | def counted: .bins | add;
    (.wr_latency_histogram | counted) >= 1 and
    (.wr_latency_histogram | counted) <= 24 and
    (.flush_latency_histogram | counted) == 2 and
    (.rd_latency_histogram | counted) > 40 and
    (.rd_latency_histogram | counted) < 200 and
    (has("unmap_latency_histogram") | not) and
    all(.rd_latency_histogram, .wr_latency_histogram, .flush_latency_histogram;
        (.boundaries | length) + 1 == (.bins | length) and
        .boundaries[0] == 4096 and .boundaries == (.boundaries | unique))' \
    stats >/dev/null || fail "latencies: $(jq -c . stats)"

# What is below: the file, and the backing chain.
jq -e '.[0] | ."node-name" == "disk" and
    .parent."node-name" == "top-file" and
    .parent."driver-specific".driver == "file" and
    .parent."driver-specific"."discard-nb-ok" >= 1 and
    .parent."driver-specific"."discard-bytes-ok" == 65536 and
    .parent.stats.wr_highest_offset > 65536 and
    .backing.parent."driver-specific"."discard-nb-ok" == 0' stats >/dev/null ||
    fail "below: $(jq -c . stats)"

client bad '
for i in range(3):
    fails(h.pread, 512, 0)
fails(h.pwrite, b"x" * 512, 0)
'
counted bad '{"failed_rd_operations": 3, "failed_wr_operations": 1}'

# By nodes: each once, without what is below but the file.
qmp query-blockstats query-nodes=on >stats
jq -e '([.[]."node-name"] | sort | unique | length) == 6 and length == 6 and
    all(.[]; (has("backing") or has("device")) | not) and
    any(.[]; ."node-name" == "disk" and .stats.wr_highest_offset == 5242880 and
        .parent."node-name" == "top-file" and .stats.rd_operations == 0)' \
    stats >/dev/null || fail "nodes: $(jq -c . stats)"

# --- The graph ---

qmp x-debug-query-block-graph >graph
jq -e '(.nodes | length) == 8 and ([.nodes[].id] | unique | length) == 8 and
    (.nodes | map({(.id | tostring): .}) | add) as $n |
    def edge($p; $c): .edges[] |
        select($n[.parent | tostring].name == $p and
               $n[.child | tostring].name == $c);
    ([edge("disk"; "disk")] | length == 1 and .[0].name == "root" and
        .[0].perm == ["write", "consistent-read"]) and
    (edge("disk"; "top-file") | .name == "file" and
        .perm == ["resize", "write", "consistent-read"] and
        ."shared-perm" == ["write-unchanged", "consistent-read"]) and
    ([.edges[] | select(.name == "backing") | .perm] == [["consistent-read"]])
    and ([.nodes[] | select(.type == "block-backend").name] | sort) ==
        ["bad", "disk"]' graph >/dev/null || fail "graph: $(jq -c . graph)"

# A job is in it.
qmp drive-backup device=disk target=out.qcow2 sync=none job-id=copy >/dev/null
qmp x-debug-query-block-graph >graph
jq -e '[.nodes[] | select(.type == "block-job").name] == ["copy"] and
    ([.nodes[].id] | unique | length) == (.nodes | length)' graph >/dev/null ||
    fail "graph with a job: $(jq -c . graph)"
stop_server
