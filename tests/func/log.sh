#!/bin/bash
# The log has a line for each event that somebody may ask for later: the start
# and the end, clients, jobs, backups; a guest's failed I/O (once, however
# often), a point in time that is lost, a bitmap that cannot be trusted.  No
# name in it steers a terminal.  It goes where --log says.
# shellcheck disable=SC2317  # functions that wait_until calls
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

need qemu-io jq
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

# Line $1 (an extended regular expression) is there $2 times, 1 by default.
told() {
    local n
    n=$(grep -cE "^nbdelta: [-0-9]+T[:0-9]+Z $1\$" log) || :
    [ "$n" -eq "${2-1}" ] || fail "$n times, not ${2-1}: '$1'; $(cat log)"
}

# A bitmap that was in use when its program ended.
nbdelta create used.qcow2 16M
nbdelta bitmap add used.qcow2 b0
serve used=used.qcow2 2>log
python - <<'END'
import os
import nbd
h = nbd.NBD()
h.connect_uri(f'nbd+unix:///used?socket={os.getcwd()}/nbd.sock')
h.pwrite(bytes(65536), 0)
END
stop_server
told "NBD server '' listens: .*"
told "monitor listens: .*"
told "export 'used' is there"
told "nbdelta [0-9.]+ is ready, process [0-9]+"
told "client user $(id -u) has come to export 'used'"
told "client user $(id -u) has left export 'used' after [0-9]+ s"
told "the end begins: signal SIGTERM of process [0-9]+, user $(id -u)"
told "export 'used' has gone"
told "all is closed"

# systemd reads levels: a start that fails is an error.
: >journal
stream=$(stat -c %d:%i journal)
for word in gone.qcow2 --gone; do
    JOURNAL_STREAM=$stream nbdelta serve -U "$sock" $word \
        2>journal && fail "$word is served"
    head -n 1 journal | grep -q "^<3>nbdelta: serve: .*$word" ||
        fail "$(cat journal)"
done
python - <<'END'
import struct
with open('used.qcow2', 'r+b') as f:
    head = f.read(65536)
    at, = struct.unpack_from('>L', head, 100)
    while struct.unpack_from('>L', head, at)[0] != 0x23852875:
        at += 8 + (struct.unpack_from('>L', head, at + 4)[0] + 7) // 8 * 8
    entry, = struct.unpack_from('>Q', head, at + 24)
    f.seek(entry + 12)
    f.write(struct.pack('>L', 3))
END

cat >fail.conf <<'END'
[inject-error]
event = "none"
iotype = "write"
errno = "28"
immediately = "off"
END
mkimg disk.raw 16M
mkimg source.raw 16M
truncate -s 16M full.raw target.raw
serve --blockdev driver=file,filename=full.raw,node-name=full-file \
    --blockdev driver=blkdebug,image=full-file,config=fail.conf,node-name=full \
    --blockdev driver=file,filename=target.raw,node-name=target-file \
    --blockdev driver=blkdebug,image=target-file,config=fail.conf,node-name=target \
    --blockdev driver=file,filename=source.raw,node-name=source \
    --export $'type=nbd,id=e,node-name=full,writable=on,name=n\e[31m\u009b\u202ed' \
    vda=driver=raw,file.driver=file,file.filename=disk.raw \
    used=used.qcow2 \
    2>log
told "bitmap 'b0' of node 'used' cannot be trusted: .*"

python - <<'END'
import os
import nbd
h = nbd.NBD()
h.set_export_name('n\x1b[31m\x9b\u202ed')
h.connect_unix(os.getcwd() + '/nbd.sock')
for i in range(50):
    try:
        h.pwrite(b'x' * 65536, 65536 * i)
    except nbd.Error:
        pass
    else:
        raise AssertionError('it can be written')
# That is no fault of the disk.
h.set_strict_mode(0)
try:
    h.pread(512, h.get_size())
except nbd.Error:
    pass
END
told "export 'n\?\[31m\?\?d': a client's write at 0 \(65536 bytes\) failed: No space left on device"

if qmp blockdev-backup job-id=j device=source target=target sync=full --wait \
    >/dev/null 2>&1; then
    fail "a backup to a full disk ends well"
fi
told "job 'j' \(backup\) failed: .*No space left on device.*"
qmp blockdev-backup job-id=k device=source target=target sync=full \
    on-target-error=stop >/dev/null
waits() {
    qmp query-block-jobs | jq -e '.[0]."io-status" == "nospace"' >/dev/null
}
wait_until "a job has stopped" waits
told "job 'k' \(backup\) waits for job-resume: a write failed: No space left on device"
qmp block-job-cancel device=k force=true >/dev/null
told "job 'k' \\(backup\\) begins"
gone() {
    qmp query-jobs | jq -e 'length == 0' >/dev/null
}
wait_until "the job is gone" gone
told "job 'k' \(backup\) was cancelled after [.0-9]+ s"
told "job 'k' \(backup\) failed: .*" 0 # the client that has cancelled it knows

nbdelta backup-begin "$qmp_sock" --disk vda --scratch .,quota=64k \
    --max-delay 1000 >/dev/null
told "backup 'b1' begun, disks: 1"
python - <<'END'
import os
import nbd
h = nbd.NBD()
h.connect_uri(f'nbd+unix:///vda?socket={os.getcwd()}/nbd.sock')
h.pwrite(b'y' * (8 << 20), 0)
END
told "a point in time of node 'vda' is lost: quota \(No space left on device\)"
nbdelta backup-end "$qmp_sock" b1 --failed
told "backup 'b1' ended: failed"
qmp blockdev-create job-id=c options.driver=file options.filename=new.raw \
    options.size=1M --wait >/dev/null
told "job 'c' \(create\) has ended after [.0-9]+ s"
nbdelta backup-begin "$qmp_sock" --disk vda,since=mon >/dev/null || :
told "disk 'vda' is backed up as a whole, not since 'mon': new-disk"
nbdelta backup-end "$qmp_sock" b2
qmp quit >/dev/null
wait "$server"
server=
told "the end begins: QMP's quit"
[ "$(grep -vc '^nbdelta: 20' log)" -eq 0 ] || fail "others: $(cat log)"
LC_ALL=C grep -q $'[\x01-\x09\x0b-\x1f\x7f-\xff]' log && fail "controls: $(cat log)"

# --- Where it goes. ---

# A file that was renamed goes on under its old name until the next line.
serve --log=daemon.log used=used.qcow2
[ "$(stat -c %a daemon.log)" = 640 ]
mv daemon.log log
told "nbdelta [0-9.]+ is ready, process $server"
nbdinfo --size "$uri" >/dev/null
stop_server
told "client .*" 0
mv daemon.log log
told "client user .* has come to export 'used'"
told "all is closed"
echo before >daemon.log
serve --log=daemon.log --log-level=error used=used.qcow2
stop_server
[ "$(cat daemon.log)" = before ] || fail "too much, or not added: $(cat daemon.log)"
serve --log=null used=used.qcow2 2>log
stop_server
[ ! -s log ] || fail "--log=null: $(cat log)"
serve_refused "cannot open the log 'no/such': No such file" --log=no/such used.qcow2
serve_refused "--log-level is 'error', 'warning', 'info' or 'debug', not 'all'" \
    --log-level=all used.qcow2

# Commands at debug, without what they are given.
serve --log-level=debug used=used.qcow2 2>log
qmp object-add qom-type=secret id=s data=tell-nobody >/dev/null
qmp query-job 2>/dev/null || :
stop_server
told "monitor: object-add"
told "monitor: no command: The command query-job has not been found"
grep -q tell-nobody log && fail "a secret is in the log"

# Who a client is for TLS.
if command -v psktool >/dev/null; then
    psktool -u alice -p keys.psk >/dev/null 2>&1
    serve --tls-psk=keys.psk used=used.qcow2 2>log
    nbdinfo --size \
        "nbds+unix://alice@/used?socket=$sock&tls-psk-file=$PWD/keys.psk" >/dev/null
    stop_server
    told "client user $(id -u) \(alice\) has come to export 'used'"
fi

# In the background: syslog, unless standard error was asked for.
nbdelta serve --daemonize --log=stderr -U "$sock" --pidfile "$pidfile" \
    used=used.qcow2 2>log
kill "$(cat "$pidfile")"
ended() {
    [ ! -e "$pidfile" ]
}
wait_until "it has ended" ended
all_is_told() {
    grep -q 'all is closed$' log
}
wait_until "all is told" all_is_told
if [ "$(id -u)" -ne 0 ] || ! unshare -m true 2>/dev/null; then
    skip "a /dev/log of one's own needs root"
fi
cat >syslog.py <<'END'
# As syslogd: the datagrams of /dev/log, a line each; it has a /dev of its own.
import socket
import sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind('/dev/log')
with open(sys.argv[1], 'wb', buffering=0) as out:
    out.write(b'ready\n')
    while True:
        got = s.recv(65536)
        out.write(got + b'\n')
        if b'all is closed' in got:
            break
END
mkdir dev
cat >in_namespace <<'END'
set -eu
mount -t tmpfs none "$PWD/dev"
for name in null zero full random urandom tty; do
    : >"dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
ln -s /proc/self/fd dev/fd
mount --move "$PWD/dev" /dev
/usr/bin/python3 syslog.py syslog &
until grep -qs ready syslog; do sleep 0.05; done
"$@"
kill "$(cat "$pidfile")"
wait
END
export pidfile
unshare -m --propagation private sh in_namespace "$nbdelta" serve --daemonize \
    -U "$sock" --pidfile "$pidfile" used=used.qcow2
grep -qE "^<30>[A-Z][a-z]{2} [ 0-9][0-9] [:0-9]{8} nbdelta\[[0-9]+\]: client" \
    syslog && fail "a client that was not there"
grep -qE "^<30>[A-Z][a-z]{2} [ 0-9][0-9] [:0-9]{8} nbdelta\[[0-9]+\]: nbdelta [0-9.]+ is ready" \
    syslog || fail "syslog has $(cat syslog)"
grep -q 'all is closed$' syslog
exit 0
