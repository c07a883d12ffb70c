#!/bin/bash
# The monitor for people, of --vm-compat: lines, a prompt, what commands say;
# and QMP in QEMU's way of many lines.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img

qemu-img create -q -f qcow2 base.qcow2 1M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
long=$(printf 'x%.0s' {1..5000})

human() {
    nbdelta serve --vm-compat --chardev stdio,id=c \
        --monitor chardev=c,mode=readline \
        --drive "file=disk.qcow2,id=d,if=none,node-name=n,throttling.iops-total=500" |
        tr -d '\r' >out
}

printf '%s\n' '' 'qemu-io d "write -P 5 0 64k"' 'info block d' \
    'drive_backup -f d copy.raw raw' 'info nothing' 'nonsense' 'drive_backup d' \
    'drive_backup none x' 'info block-jobs' 'system_reset' "$long" quit | human
sed -i -e 's/^QEMU .* monitor/QEMU monitor/' -e '/ops; /d' -e 's/xxx*/xx/' out
cat >expected <<'END'
QEMU monitor - type 'help' for more information
(qemu) 
(qemu) qemu-io d "write -P 5 0 64k"
wrote 65536/65536 bytes at offset 0
(qemu) info block d
d (n): disk.qcow2 (qcow2)
    Cache mode:       writeback
    Backing file:     base.qcow2 (chain depth: 1)
    I/O throttling:   bps=0 bps_rd=0 bps_wr=0 bps_max=0 bps_rd_max=0 bps_wr_max=0 iops=500 iops_rd=0 iops_wr=0 iops_max=0 iops_rd_max=0 iops_wr_max=0 iops_size=0 group=d
(qemu) drive_backup -f d copy.raw raw
Formatting 'copy.raw', fmt=raw size=1048576
(qemu) info nothing
unknown command: 'info nothing'
(qemu) nonsense
unknown command: 'nonsense'
(qemu) drive_backup d
drive_backup: usage: drive_backup [-n] [-f] [-c] device target [format]
(qemu) drive_backup none x
Error: Cannot find device='none' nor node-name='none'
(qemu) info block-jobs
No active jobs
(qemu) system_reset
(qemu) xx
unknown command: 'xx'
(qemu) quit
END
# The job may be there still, or not.
grep -v -e 'No active jobs' -e '^Type backup, device d: ' out >out.all || :
grep -v 'No active jobs' expected >expected.all
diff -u expected.all out.all || fail "not what QEMU says"
[ "$(stat -c %s copy.raw)" = 1048576 ] || fail "nothing was made"

# An end of lines without quit ends the session alone.
printf 'info block-jobs' | nbdelta serve --vm-compat --chardev stdio,id=c \
    --monitor chardev=c,mode=readline --qmp "$qmp_sock" --pidfile "$pidfile" \
    >out &
server=$!
wait_until "the server is ready" server_ready
qmp quit >/dev/null
wait "$server"
server=
serve_refused 'with --vm-compat only' --chardev stdio,id=c \
    --monitor chardev=c,mode=readline

printf '%s\n' '{"execute": "qmp_capabilities"}' '{"execute": "query-jobs"}' \
    '{"execute": "system_reset", "id": [18446744073709551615]}' \
    '{"execute": "quit", "id": "{}\"[]"}' |
    nbdelta serve --vm-compat --chardev stdio,id=c \
        --monitor chardev=c,pretty=on | tr -d '\r' >out
grep -A 3 'return' out | head -n 7 >some
cat >expected <<'END'
    "return": {
    }
}
{
    "return": [
    ]
}
END
diff -u expected some || fail "not as QEMU writes it"
grep -q '^        18446744073709551615$' out || fail "an id: $(cat out)"
grep -qF '"{}\"[]"' out || fail "a string has changed: $(cat out)"
grep -qF '"event": "RESET"' out || fail "no event: $(cat out)"
