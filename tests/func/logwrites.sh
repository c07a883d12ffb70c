#!/bin/bash
# blklogwrites: the log of the same requests is byte for byte QEMU's; it goes
# on where it ended; the disk can be played back from it; bad logs are refused
# in QEMU's words.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-io qemu-img

work=(-c 'write -q -P 1 0 64k' -c 'write -q -P 2 4096 512' -c flush
    -c 'write -q -z 8k 8k' -c 'discard -q 32k 4k' -c 'write -q -P 3 100k 1M'
    -c 'write -q -P 4 1000000 512' -c flush)

options() {
    echo "driver=raw,discard=unmap,file.driver=blklogwrites,$(:
        )file.discard=unmap,file.file.driver=file,file.file.discard=unmap,$(:
        )file.file.filename=$1.img,file.log.driver=file,$(:
        )file.log.filename=$1.log${2-}"
}

ours() {
    serve "disk0=$(options ours "${1-}")"
    qemu-io -f raw "$(uri_of disk0)" "${work[@]}" >/dev/null
    stop_server
}

theirs() {
    qemu-io --image-opts "$(options theirs "${1-}")" "${work[@]}" >/dev/null
}

# Several flushes in a row are one: QEMU leaves the others out.
same_logs() {
    python - "$SRCDIR/tests/func" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
import writelog

def shape(path):
    entries = []
    for e in writelog.read(path):
        entry = (e.flags, e.offset, e.length, e.data)
        if entries[-1:] != [entry]:
            entries.append(entry)
    return entries

a, b = shape('ours.log'), shape('theirs.log')
assert len(a) >= 8, len(a)
for x, y in zip(a, b):
    assert x == y, (x[:3], y[:3])
assert len(a) == len(b), (len(a), len(b))
disk = bytearray(2 << 20)
for e in writelog.read('ours.log'):
    writelog.put(disk, e)
with open('ours.img', 'rb') as f:
    now = bytearray(f.read())
# What is discarded may read as anything.
now[32768:36864] = disk[32768:36864] = bytes(4096)
assert disk == now
END
}

fresh() {
    truncate -s 0 ours.img theirs.img ours.log theirs.log
    truncate -s 2M ours.img theirs.img
}

fresh
ours
theirs
same_logs
head=$(cmp -n 16 ours.log theirs.log && cmp -i 24 -n 4 ours.log theirs.log)
[ -z "$head" ]
fresh
ours ,file.log-sector-size=4096
theirs ,file.log-sector-size=4096
same_logs
ours ,file.log-append=on
theirs ,file.log-append=on
python - "$SRCDIR/tests/func" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
import writelog
for name in 'ours.log', 'theirs.log':
    entries = writelog.read(name)
    assert len([e for e in entries if e.length == 1 << 20]) == 2
END

refused() {
    serve_refused "$1" -U "$sock" "disk0=$(options ours "$2")"
}

refused "log-append and log-sector-size are mutually exclusive" \
    ,file.log-append=on,file.log-sector-size=512
refused "Invalid log sector size 3000" ,file.log-sector-size=3000
refused "Invalid log sector size 16" ,file.log-sector-size=16
refused "Invalid log superblock update interval 0" \
    ,file.log-super-update-interval=0
printf 'x' | dd of=ours.log conv=notrunc status=none
refused "Invalid log superblock magic" ,file.log-append=on
printf 'rhswfsj\0\2' | dd of=ours.log conv=notrunc status=none
refused "Unsupported log version 2" ,file.log-append=on
printf '\1' | dd of=ours.log bs=1 seek=8 conv=notrunc status=none
printf '\20' | dd of=ours.log bs=1 seek=$((4096 + 16)) conv=notrunc status=none
refused "Invalid flags 0x10 in log entry 0" ,file.log-append=on
printf '\0' | dd of=ours.log bs=1 seek=$((4096 + 16)) conv=notrunc status=none
printf '\377%.0s' {1..8} |
    dd of=ours.log bs=1 seek=$((4096 + 8)) conv=notrunc status=none
refused "Invalid length in log entry 0" ,file.log-append=on
truncate -s 4096 ours.log
printf '\20' | dd of=ours.log bs=1 seek=23 conv=notrunc status=none
refused "Log entry 0 lies behind the end of the log" ,file.log-append=on

# A file that is cut: what comes back reads as zeroes, also when played back.
fresh
serve "disk0=$(options ours)"
qemu-io -f raw "$(uri_of disk0)" -c 'write -q -P 9 0 2M' >/dev/null
qmp block_resize device=disk0 size=1M >/dev/null
qmp block_resize device=disk0 size=2M >/dev/null
stop_server
python - "$SRCDIR/tests/func" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
import writelog

disk = bytearray(2 << 20)
for e in writelog.read('ours.log'):
    writelog.put(disk, e)
assert disk == b'\x09' * (1 << 20) + bytes(1 << 20)
END
