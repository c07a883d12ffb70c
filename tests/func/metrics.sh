#!/bin/bash
# `nbdelta metrics` tells what monitors of nbdelta and of QEMU answer, in a form
# that Prometheus takes; a monitor that lies cannot make it something else.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need jq qemu-io
python -c 'import nbd' 2>/dev/null || skip "python has no libnbd"

linted=
lint() {
    if command -v promtool >/dev/null; then
        promtool check metrics <"$1" || fail "promtool does not like $1"
        linted=yes
    fi
}
# has FILE MONITOR LINE...: FILE is right, and these Python expressions are true
# of one(NAME, LABEL=VALUE...), which is the only sample that has these labels,
# and of some(...), which is a list.
has() {
    lint "$1"
    PYTHONPATH=$SRCDIR/tests/func python - "$@" <<'END' || fail "$(cat "$1")"
import sys
import prom_text
all = prom_text.values(sys.argv[1], 'nbdelta_', ('monitor', sys.argv[2]))
def some(name, **labels):
    return [v for (n, have), v in all.items()
            if n == name and labels.items() <= dict(have).items()]
def one(name, **labels):
    found = some(name, **labels)
    assert len(found) == 1, (name, labels, found)
    return found[0]
for expression in sys.argv[3:]:
    assert eval(expression), expression
END
}

# shows MONITOR LINE...: they are true of what it answers now.
shows() {
    nbdelta metrics "$1" >out.prom
    has out.prom "$@"
}

# The page has all names, and no others.
tr -d '\n' <"$SRCDIR/server/cli/monitor-metrics.c" |
    grep -oE '"[a-z_]+", *PROM_' | cut -d'"' -f2 | sort >names
sed -n '/^\.SH METRICS/,/^\.SH TEXT/p' "$SRCDIR/man/nbdelta-metrics.1" |
    sed -n '/^\.TP/{n;p}' | grep -oE '[a-z]+(_[a-z]+)+|\bup\b' | sort -u >told
diff names told || fail "names of metrics <, nbdelta-metrics.1 >"

# --- nbdelta. ---

name=$'d"i\\sk'
nbdelta create disk.qcow2 64M
serve "vda=disk.qcow2" "bad=driver=blkdebug,node-name=bad,image.driver=mem,\
image.size=1M,inject-error.0.event=none,inject-error.0.iotype=write"
qmp -q block-dirty-bitmap-add node=vda name="$name" persistent=true
nbdelta backup-begin "$qmp_sock" --disk vda >begun
python - "$(uri_of vda)" "$(uri_of bad)" <<'END'
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b'x' * 65536, 1 << 20)
h.pwrite(b'x' * 65536, 2 << 20)
for i in range(20):
    h.pread(4096, i << 16)
h.flush()
h.shutdown()
h = nbd.NBD()
h.connect_uri(sys.argv[2])
try:
    h.pwrite(b'x' * 512, 0)
    raise SystemExit('not refused')
except nbd.Error:
    pass
h.shutdown()
END
shows "$qmp_sock" \
    'one("up") == 1' \
    'one("monitor_info", version="7.2.22") == 1' \
    'one("disk_operations_total", device="vda", operation="read") == 20' \
    'one("disk_bytes_total", device="vda", operation="read") == 81920' \
    'one("disk_operations_total", device="vda", operation="write") == 2' \
    'one("disk_operations_total", device="vda", operation="flush") == 1' \
    'one("disk_operation_seconds_total", device="vda", operation="write") > 0' \
    'one("disk_latency_seconds_count", device="vda", operation="write") >= 1' \
    'one("disk_latency_seconds_sum", device="vda", operation="flush") > 0' \
    'one("disk_latency_seconds_count", device="bad", operation="write") == 0' \
    'one("disk_errors_total", device="bad", operation="write") == 1' \
    'one("disk_errors_total", device="vda", operation="write") == 0' \
    'one("bitmap_dirty_bytes", node="vda", bitmap="d\"i\\sk") == 131072' \
    'one("bitmap_persistent", bitmap="d\"i\\sk") == 1' \
    'one("disk_armed_bytes", device="vda") in (0, 4 << 20)' \
    'not some("disk_armed_bytes", device="bad")' \
    'one("node_size_bytes", node="vda", driver="qcow2") == 1 << 26' \
    'one("node_corrupt", node="vda") == 0' \
    'one("export_shutting_down", export="vda") == 0' \
    'one("pull_scratch_bytes", backup="b1", node="vda") >= 0' \
    'one("pull_copied_bytes_total", backup="b1") >= 0' \
    'one("pull_left_bytes", backup="b1") == 1 << 26' \
    'one("pull_lost", backup="b1") == 0' \
    'one("pull_guest_delay_seconds_count", backup="b1") >= 0' \
    'one("backup_expires_seconds", backup="b1") > 80000' \
    'one("export_clients", export="vda") >= 0' \
    'len(some("server_clients")) == 1' \
    'some("server_turned_away_clients_total") == [0]' \
    'not some("job_progress_current")'
qmp -q blockdev-add driver=null-co node-name=target size=1M
qmp -q blockdev-backup device=bad target=target sync=full job-id=j speed=4096
(umask 077 && nbdelta metrics "$qmp_sock" --output all.prom) >out 2>&1
[ ! -s out ] || fail "not quiet: $(cat out)"
[ "$(stat -c %a all.prom)" = 644 ] || fail 'the mode is of the umask'
has all.prom "$qmp_sock" \
    'one("job_progress_target", job="j", type="backup") >= 0' \
    'one("job_status", job="j", status="running") == 1' \
    'one("job_limit_bytes_per_second", job="j") == 4096' \
    'one("job_failed", job="j") == 0' \
    'one("guest_delay_seconds_count", node="bad") >= 0' \
    'one("guest_delay_seconds_count", node="vda") > 0' \
    'one("guest_delay_max_seconds", node="vda") > 0'
armed() {
    qemu-io -f raw -c 'write 1M 64k' "$(uri_of vda)" >out
    nbdelta metrics "$qmp_sock" | grep -q \
        '^nbdelta_disk_armed_bytes{.*device="vda".*} 4194304$'
}
wait_until 'a region is armed' armed # it is not for long
stop_server

# Clients, and their limits.
nbdelta serve --qmp "$qmp_sock" --pidfile "$pidfile" --nbd-server \
    "id=s1,addr.type=unix,addr.path=$sock,max-connections-per-address=2" \
    --nbd-server "id=s2,addr.type=unix,addr.path=s2.sock,max-connections=9" \
    --blockdev driver=null-co,node-name=n,size=1M \
    --export nbd,id=e1,node-name=n,server=s1 \
    --export nbd,id=e2,node-name=n,server=s2 &
server=$!
wait_until "the server is ready" server_ready
python - "$sock" "$qmp_sock" "$nbdelta" <<'END'
import subprocess, sys, nbd
uri = 'nbd+unix:///n?socket=' + sys.argv[1]
clients = [nbd.NBD(), nbd.NBD()]
for h in clients:
    h.connect_uri(uri)
try:
    nbd.NBD().connect_uri(uri)
    raise SystemExit('the third is let in')
except nbd.Error:
    pass
subprocess.run([sys.argv[3], 'metrics', sys.argv[2], '-o', 'out.prom'], check=True)
for h in clients:
    h.shutdown()
END
has out.prom "$qmp_sock" \
    'one("export_clients", export="e1") == 2' \
    'one("export_clients", export="e2") == 0' \
    'one("export_shutting_down", export="e1", server="s1") == 0' \
    'one("server_clients", server="s1") == 2' \
    'one("server_clients", server="s2") == 0' \
    'one("server_turned_away_clients_total", server="s1") == 1' \
    'one("server_limit_clients", server="s2") == 9' \
    'one("server_limit_clients_per_address", server="s1") == 2'
stop_server

# --- The file; a monitor that does not answer. ---

down() {
    rc=0
    nbdelta metrics --output down.prom "$1" 2>err || rc=$?
    [ "$rc" -eq "${3-1}" ] || fail "$1: exits with $rc"
    has down.prom "$1" 'one("up") == 0' 'len(all) == 1'
    grep -qF "$2" err || fail "$(cat err)"
}
down "$qmp_sock" 'No such file or directory' 6
told() {
    local rc=0
    nbdelta metrics "${@:3}" >out 2>err || rc=$?
    [ "$rc" -eq "$1" ] || fail "${*:3}: exits with $rc"
    grep -qF -- "$2" err || fail "${*:3}: $(cat err)"
}
told 2 'one socket'
told 2 'one socket' a b
told 2 'no option' --bad a
echo '{}' >answers
fake_monitor
told 1 'cannot write' fake.sock --output no/where.prom
told 1 'cannot write' fake.sock --output .
cp all.prom kept.prom
said=$( (ulimit -f 0; nbdelta metrics fake.sock -o kept.prom || true) 2>&1)
grep -qF "cannot write 'kept.prom': File too large" <<<"$said" || fail "$said"
cmp all.prom kept.prom || fail 'an error has changed the file'
[ -z "$(find . -name '*.tmp')" ] || fail "left: $(find . -name '*.tmp')"

# --- Monitors that lie. ---

shows fake.sock 'one("up") == 1' 'len(all) == 1' # it knows nothing
python - >answers <<'END'
import json
evil = 'a"} 1\nnbdelta_up{monitor="x\\"} 7 \x1b[2J\x85\u202e\U000e0041'
stat = {'rd_operations': -1, 'wr_operations': 'x', 'flush_operations': 1e300,
        'unmap_operations': 2**63 - 1, 'rd_bytes': True, 'wr_bytes': [],
        'rd_total_time_ns': 5, 'idle_time_ns': None,
        'rd_latency_histogram': {'boundaries': [10, 10], 'bins': [1, 2, 3]},
        'wr_latency_histogram': {'boundaries': [10, 50], 'bins': [1, 2, 3]},
        'flush_latency_histogram': {'boundaries': [10, 50], 'bins': [1, 2]},
        'unmap_latency_histogram': {'boundaries': {}, 'bins': [1]}}
print(json.dumps({
    'query-version': {'qemu': {'major': [], 'minor': 1}, 'package': evil},
    'query-name': 7,
    'query-block': [{'device': 'n', 'io-status': 7,
                     'inserted': {'bps': 0, 'iops': 5, 'bps_rd': '7'}}],
    'query-block-exports': {'error': {'class': 'GenericError', 'desc': 'no'}},
    'query-blockstats': [{'device': evil, 'stats': stat}] * 2 +
        [{'device': evil + 'b' * 5000, 'stats': stat}, 7, None, {'stats': []},
         {'device': '', 'qdev': {}, 'node-name': 'n', 'stats': {'rd_bytes': 3}}],
    'query-named-block-nodes': [
        {'node-name': evil, 'drv': 9, 'ro': 1,
         'image': {'virtual-size': 4}, 'dirty-bitmaps': [
             {'name': evil, 'count': 7, 'busy': 'on'}, {'count': 8}, 9, {}]},
        {'node-name': 7, 'image': 8}, {'dirty-bitmaps': {'a': 1}}],
    'query-jobs': {'id': 'x'},
    'query-block-jobs': [{'device': 'j', 'type': 't', 'speed': 0,
                          'io-status': 'nospace'}],
    'query-backups': [{'id': 'b', 'disks': [{'node': 'n', 'lost': 'quota'}, 1]}]}))
END
shows fake.sock \
    'one("up") == 1' \
    'one("query_refused", command="query-block-exports") == 1' \
    'not some("disk_operations_total", operation="read")' \
    'not some("disk_operations_total", operation="write")' \
    'some("disk_operations_total", operation="flush") == [1e300] * 2' \
    'some("disk_operations_total", operation="unmap") == [float(2**63 - 1)] * 2' \
    'not some("disk_bytes_total", operation="write")' \
    'one("disk_bytes_total", node="n", operation="read") == 3' \
    'len(some("disk_latency_seconds_count")) == 2' \
    'one("bitmap_dirty_bytes") == 7' \
    'not some("bitmap_busy") and not some("node_read_only")' \
    'one("device_limit_operations_per_second", device="n") == 5' \
    'not some("device_limit_bytes_per_second")' \
    'one("job_io_error", job="j") == 1' \
    'one("pull_lost", backup="b", node="n") == 1' \
    'max(len(v) for _, have in all for _, v in have) < 1200'
grep -q 'a\\"} 1\\nnbdelta_up{monitor=\\"x\\\\\\"} 7 \\\\x1b\[2J\\\\x85\\\\u202e' \
    out.prom || fail "$(cat out.prom)"

echo '{"query-blockstats": [], "after": "{\"QMP\": 1} nonsense"}' >answers
down fake.sock "keyword 'nonsense'"
jq -n '{endless: ("{\"event\": \"" + "x" * 9999 + "\"}")}' >answers
down fake.sock 'nbdelta: metrics: ' # "16 MiB of events", or "within 10 s"

# --- QEMU. ---

if command -v qemu-system-x86_64 >/dev/null; then
    truncate -s 1M q.raw
    qemu-img create -q -f qcow2 q.qcow2 1M
    qemu-system-x86_64 -M pc -nodefaults -display none -S -daemonize \
        -pidfile qemu.pid -qmp "unix:$PWD/q.sock,server=on,wait=off" \
        -blockdev "qcow2,node-name=n0,file.driver=file,file.filename=$PWD/q.qcow2" \
        -device virtio-blk-pci,drive=n0,id=disk0 \
        -drive "if=none,id=d1,file=$PWD/q.raw,format=raw,bps_rd=1048576"
    at_exit kill "$(cat qemu.pid)"
    nbdelta qmp -q q.sock block-latency-histogram-set \
        '{"id": "/machine/peripheral/disk0/virtio-backend",
          "boundaries": [1000, 1000000]}'
    nbdelta qmp -q q.sock block-dirty-bitmap-add node=n0 name=b0
    for io in 'aio_write 0 64k' aio_flush; do
        nbdelta qmp -q q.sock human-monitor-command \
            command-line="qemu-io d1 \"$io\""
    done
    shows q.sock \
        'one("up") == 1 and one("monitor_info") == 1' \
        'one("disk_operations_total", device="d1", operation="write") == 1' \
        'one("disk_bytes_total", device="d1", operation="write") == 65536' \
        'one("disk_operations_total", node="n0", operation="read") >= 0' \
        'one("disk_latency_seconds_bucket", node="n0", operation="read",
             le="0.001") >= 0' \
        'one("bitmap_dirty_bytes", node="n0", bitmap="b0") == 0' \
        'one("node_size_bytes", node="n0", driver="qcow2") == 1 << 20' \
        'one("device_limit_read_bytes_per_second", device="d1") == 1048576' \
        'one("device_io_error", qdev="/machine/peripheral/disk0/virtio-backend"
             ) == 0' \
        'not some("query_refused")'
fi
[ -n "$linted" ] ||
    skip "passed, without promtool (package prometheus), which is not installed"
