#!/bin/bash
# packaging/use-units.sh
#
# As root, under a systemd that may be spoilt (packaging/check-systemd.sh): use
# the units as nbdelta-serve(1), nbdelta-backup(1) and their templates say.
set -eu -o pipefail
shopt -s lastpipe

unit=nbdelta@web.service
fail() {
    echo "FAIL  $*"
    systemctl status --no-pager --full "nbdelta*" || true
    journalctl --no-pager -n 60 -u 'nbdelta*' || true
    exit 1
}
trap 'fail "line $LINENO"' ERR
ok() {
    echo "ok    $*"
}
is() {
    [ "$1" = "$2" ] || fail "'$1' is not '$2'"
}
wait_until() {
    local what=$1 i
    shift
    for ((i = 0; i < 300; i++)); do
        if "$@"; then
            return 0
        fi
        sleep 0.1
    done
    fail "never: $what"
}
prop() {
    systemctl show "$unit" -p "$1" --value
}
state_is() {
    [ "$(prop ActiveState)" = "$1" ]
}
restarted() {
    [ "$(prop NRestarts)" = "$1" ] && state_is active
}
# priorities UNIT: each message, behind its number
priorities() {
    journalctl --sync
    journalctl --no-pager -o json -u "$1" |
        jq -r 'select(.SYSLOG_IDENTIFIER == "nbdelta" or
            ._COMM == "nbdelta") | .PRIORITY + " " + .MESSAGE'
}
conf() {
    sed "s|/NAME/|/web/|g" "$docs/serve.conf" >/etc/nbdelta/web.conf
}
docs=$(nbdelta --dump-config | sed -n 's/^docdir=//p')

systemd-sysusers
systemd-tmpfiles --create nbdelta.conf
is "$(stat -c '%U:%G %a' /var/lib/nbdelta)" 'nbdelta:nbdelta 750'
is "$(stat -c '%U:%G %a' /run/nbdelta)" 'root:root 755'
systemctl daemon-reload
ok "sysusers.d and tmpfiles.d"

# --- The daemon, on its own sockets. ---

rm -rf /var/lib/nbdelta/* /root/backups /var/backups/web
runuser -u nbdelta -- nbdelta create /var/lib/nbdelta/vda.qcow2 64M
conf
systemctl enable --now "$unit" 2>/dev/null
is "$(prop StatusText)" '1 exports, 0 connections'
nbd='nbd+unix:///vda?socket=/run/nbdelta/web/nbd.sock'
qmp=/run/nbdelta/web/qmp.sock
is "$(nbdinfo --size "$nbd")" 67108864
is "$(stat -c '%U' "/proc/$(prop MainPID)")" nbdelta
ok "nbdelta@web.service starts, and tells its status"

nbdelta backup "$qmp" /root/backups
head -c 8M /dev/urandom >/tmp/data
nbdcopy --flush /tmp/data "$nbd"
kill -KILL "$(prop MainPID)"
wait_until "it is started again" restarted 1
nbdelta backup "$qmp" /root/backups
nbdelta points --output json /root/backups |
    jq -r '[.points[].disks[0] | .kind] | join(" ")' | read -r kinds
is "$kinds" 'full increment'
nbdelta restore /root/backups vda=/tmp/restored.raw
cmp -n 8388608 /tmp/data /tmp/restored.raw
ok "kill -9, another start, and the bitmap is valid"

systemctl stop "$unit" 2>/dev/null
is "$(prop Result) $(prop ExecMainStatus)" 'success 0'
[ ! -e /run/nbdelta/web ]
nbdelta bitmap list --output json /var/lib/nbdelta/vda.qcow2 |
    jq -e 'length > 0 and all(.[]; .inconsistent != true)' >/dev/null
nbdelta check /var/lib/nbdelta/vda.qcow2 >/dev/null
priorities "$unit" >/tmp/log
grep -q '^6 nbdelta .* is ready' /tmp/log
grep -q '^6 the end begins: signal SIGTERM' /tmp/log
ok "stop in order"

sed -i 's/vda.qcow2/gone.qcow2/' /etc/nbdelta/web.conf
if systemctl start "$unit" 2>/dev/null; then
    fail "a disk that is not there"
fi
systemctl stop "$unit" 2>/dev/null
systemctl reset-failed "$unit"
priorities "$unit" >/tmp/log
grep -q "^3 .*gone.qcow2': No such file" /tmp/log || fail "$(cat /tmp/log)"
ok "a start that fails is an error in the journal"

# --- The watchdog. ---

conf
mkdir -p /run/systemd/system/nbdelta@.service.d
printf '[Service]\nWatchdogSec=2\n' \
    >/run/systemd/system/nbdelta@.service.d/watchdog.conf
systemctl daemon-reload
systemctl start "$unit"
before=$(prop NRestarts)
sleep 5
restarted "$before"
systemd-socket-activate -l /run/nbdelta/silent sleep 60 2>/dev/null &
silent=$!
wait_until "somebody says nothing" test -S /run/nbdelta/silent
chmod 666 /run/nbdelta/silent
nbdelta qmp "$qmp" blockdev-add driver=nbd node-name=n server.type=unix \
    server.path=/run/nbdelta/silent >/dev/null 2>&1 || true
wait_until "it is started again" restarted $((before + 1))
kill "$silent"
rm -r /run/systemd/system/nbdelta@.service.d /run/nbdelta/silent
systemctl disable --now "$unit" 2>/dev/null
systemctl daemon-reload
nbdelta bitmap list --output json /var/lib/nbdelta/vda.qcow2 |
    jq -e 'length > 0 and all(.[]; .inconsistent != true)' >/dev/null
ok "the watchdog ends a daemon whose monitor hangs, and no other"

# --- The daemon, on sockets of systemd: nbdelta-serve(1). ---

echo DISKS=vda=/var/lib/nbdelta/vda.qcow2 >/etc/nbdelta/web.conf
systemctl enable --now nbdelta@web.socket nbdelta-qmp@web.socket 2>/dev/null
is "$(stat -c '%U:%G %a' /run/nbdelta/web.nbd)" 'nbdelta:nbdelta 660'
is "$(stat -c '%U:%G %a' /run/nbdelta/web.qmp)" 'nbdelta:nbdelta 600'
state_is inactive
is "$(nbdinfo --size 'nbd+unix:///vda?socket=/run/nbdelta/web.nbd')" 67108864
state_is active
nbdelta qmp -q /run/nbdelta/web.qmp quit
wait_until "it has ended" state_is inactive
nbdelta qmp -q /run/nbdelta/web.qmp query-status
state_is active
if setpriv --reuid=65534 --regid=65534 --clear-groups \
    nbdinfo --size 'nbd+unix:///vda?socket=/run/nbdelta/web.nbd' 2>/dev/null
then
    fail "everybody may connect"
fi
ok "nbdelta@web.socket and nbdelta-qmp@web.socket start it"

# --- A backup each night. ---

sed -e 's|^SOURCE=.*|SOURCE=/run/nbdelta/web.qmp|' -e 's|^#KEEP|KEEP|' \
    "$docs/backup.conf" >/etc/nbdelta/backup/web.conf
systemctl stop "$unit" 2>/dev/null
systemctl start nbdelta-backup@web # and the daemon
systemctl start nbdelta-backup@web
systemctl start nbdelta-verify@web
is "$(nbdelta points --output json /var/backups/web | jq '.points | length')" 2
systemctl enable --now nbdelta-backup@web.timer nbdelta-verify@web.timer \
    2>/dev/null
is "$(systemctl list-timers --no-legend 'nbdelta-*' | wc -l)" 2
systemctl disable --now nbdelta-backup@web.timer nbdelta-verify@web.timer \
    2>/dev/null
ok "nbdelta-backup@web and nbdelta-verify@web, and their timers"

systemctl disable --now nbdelta@web.socket nbdelta-qmp@web.socket 2>/dev/null
systemctl stop "$unit" 2>/dev/null
if systemctl start nbdelta-backup@web 2>/dev/null; then
    fail "a source that is not there"
fi
priorities nbdelta-backup@web.service | grep -q '^4 .*No such file'
systemctl reset-failed
[ ! -e /run/nbdelta/web.qmp ] && [ ! -e /run/nbdelta/web.nbd ]
ok "a backup that fails"

systemd-analyze security --no-pager --threshold=30 "$unit" >/tmp/log ||
    fail "$(tail -n 2 /tmp/log)"
ok "$(sed -n 's/^.*Overall/Overall/p' /tmp/log)"
rm -rf /etc/nbdelta/web.conf /etc/nbdelta/backup/web.conf /var/lib/nbdelta/* \
    /root/backups /var/backups/web /tmp/data /tmp/restored.raw /tmp/log
