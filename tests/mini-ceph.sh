#!/bin/bash
# A Ceph cluster of one machine, for tests: a monitor and an OSD on a sparse
# file, on the loopback, of Debian's packages and without systemd.
#
#   mini-ceph.sh start DIR      make it there, and wait until the pool "rbd" can
#                               be used; DIR/ceph.conf is for clients
#   mini-ceph.sh run DIR mon|osd    start this one again (it must have ended)
#   mini-ceph.sh kill DIR mon|osd   kill -9
#   mini-ceph.sh stop DIR       end what it has started; DIR stays
#
# DIR/mon.pid and DIR/osd.pid have the processes.
set -eu -o pipefail

packages='ceph-mon ceph-osd ceph-common'
verb=${1:?} dir=$(realpath -m "${2:?}")
export CEPH_CONF=$dir/ceph.conf CEPH_ARGS=

say() { printf 'mini-ceph: %s\n' "$*" >&2; }

alive() {
    [ -s "$dir/$1.pid" ] && kill -0 "$(cat "$dir/$1.pid")" 2>/dev/null
}

give_up() {
    say "$*"
    tail -n 5 "$dir"/*.out "$dir"/*.log >&2 2>/dev/null || :
    stop
    exit 1
}

# until WHAT COMMAND...
until_it_works() {
    local what=$1 tries
    shift
    for ((tries = 0; tries < 300; tries++)); do
        if timeout 10 "$@" >/dev/null 2>&1; then
            return
        fi
        sleep 0.1
    done
    give_up "not after a minute: $what"
}

run() {
    case $1 in
    mon) set -- mon ceph-mon -f -i a ;;
    osd) set -- osd ceph-osd -f -i 0 ;;
    *) say "run what?"; exit 2 ;;
    esac
    local name=$1
    shift
    "$@" >>"$dir/$name.out" 2>&1 </dev/null &
    echo $! >"$dir/$name.pid"
    disown
}

# There is nothing to keep.
stop() {
    local name pid
    for name in osd mon; do
        alive "$name" || continue
        pid=$(cat "$dir/$name.pid")
        [ "$(cat "/proc/$pid/comm")" = "ceph-$name" ] || continue
        kill -KILL "$pid" || :
        rm -f "$dir/$name.pid"
    done
}

# The first of 20 ports that nobody uses.
free_ports() {
    local port=$((20000 + $$ * 20 % 20000)) tries i used
    used=$(awk 'NR > 1 { split($2, a, ":"); print a[2] }' \
        /proc/net/tcp /proc/net/tcp6 2>/dev/null)
    for ((tries = 0; tries < 100; tries++)); do
        for ((i = 0; i < 20; i++)); do
            if grep -qx "$(printf %04X $((port + i)))" <<<"$used"; then
                break
            fi
        done
        [ "$i" -lt 20 ] || break
        port=$((20000 + (port - 20000 + 20) % 20000))
    done
    echo "$port"
}

configure() {
    local port
    port=$(free_ports)
    cat >"$CEPH_CONF" <<END
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$port]
ms bind ipv6 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind port min = $((port + 1))
ms bind port max = $((port + 19))
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = $dir/keyring
run dir = $dir
admin socket = $dir/\$name.\$pid.asok
log file = $dir/\$name.log
mon cluster log file = $dir/cluster.log
log to stderr = false
crash dir = $dir
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon data avail warn = 2
mon data avail crit = 1
rbd default features = 61
[mon]
mon data = $dir/mon
mon initial members = a
paxos propose interval = .1
paxos min wait = .02
mon tick interval = 1
mon osd down out interval = 3600
[osd]
osd data = $dir/osd
osd objectstore = bluestore
bluestore fsck on mkfs = false
bluestore block size = 8589934592
osd memory target = 1073741824
osd class update on start = true
osd fast shutdown = true
osd heartbeat interval = 1
osd heartbeat grace = 10
END
}

make_keys() {
    ceph-authtool -C "$dir/keyring" --gen-key -n mon. --cap mon 'allow *'
    ceph-authtool "$dir/keyring" --gen-key -n client.admin \
        --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    ceph-authtool "$dir/keyring" --gen-key -n osd.0 \
        --cap mon 'allow profile osd' --cap mgr 'allow profile osd' \
        --cap osd 'allow *'
}

start() {
    local fsid port
    if [ -e "$dir/ceph.conf" ]; then
        say "'$dir' has a cluster already"
        exit 2
    fi
    for package in $packages; do
        command -v "${package/#ceph-common/rbd}" >/dev/null || {
            say "Debian's package $package is not installed"
            exit 77
        }
    done
    mkdir -p "$dir"/{mon,osd}
    configure
    make_keys >"$dir/keys.out"
    fsid=$(sed -n 's/^fsid = //p' "$CEPH_CONF")
    port=$(sed -n 's/^mon host = .*:\([0-9]*\)\]/\1/p' "$CEPH_CONF")
    monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$port]" \
        "$dir/monmap" >"$dir/monmap.out"
    ceph-mon --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring" \
        >"$dir/mkfs.out" 2>&1 || give_up "ceph-mon --mkfs"
    run mon
    until_it_works "the monitor answers" ceph --connect-timeout 5 mon stat
    local uuid
    uuid=$(cat /proc/sys/kernel/random/uuid)
    ceph osd new "$uuid" 0 >>"$dir/mkfs.out" 2>&1 || give_up "ceph osd new"
    ceph-osd --mkfs -i 0 --osd-uuid "$uuid" >>"$dir/mkfs.out" 2>&1 ||
        give_up "ceph-osd --mkfs"
    run osd
    until_it_works "the OSD is up" sh -c 'ceph osd stat | grep "1 up"'
    ceph osd pool create rbd 8 8 >/dev/null 2>&1 || give_up "no pool"
    rbd pool init rbd || give_up "the pool cannot be used"
}

case $verb in
start) start ;;
run) run "${3:?}" ;;
kill) kill -KILL "$(cat "$dir/${3:?}.pid")" ;;
stop) stop ;;
*) say "start, run, kill or stop?"; exit 2 ;;
esac
