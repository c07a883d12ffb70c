#!/bin/bash
# packaging/check-systemd.sh DIR RELEASE
#
# Build and install nbdelta in a tree of Debian RELEASE, start the tree's systemd
# there as process 1 of namespaces of its own, and have it run the units
# (packaging/use-units.sh).
#
#   DIR/root    the tree (tests/peers.sh makes it), kept for the next time
#   DIR/build   what is built in it
#
#     this machine's systemd                 the tree's
#       cgroup of this shell  ------------->   /sys/fs/cgroup of its own
#       /proc/sys, /sys       -- read-only ->  /proc/sys, /sys
#       null, zero, ... of /dev  -- bind --->  /dev of its own
#       network                                only lo
#
# Nothing of this machine is told what happens there: no unit, no log, no time,
# no module.  All of it ends with this script.
#
# Skipped (with the reason) where there can be no such thing.
set -eu -o pipefail
[ $# = 2 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
dir=$1 release=$2
root=$dir/root

skip() {
    printf 'skipped: %s\n' "$*"
    exit 0
}

# --- What the tree has. ---

rc=0
tests/peers.sh "$dir" "$release" true || rc=$?
[ $rc -ne 77 ] || exit 0
[ $rc -eq 0 ]
unshare --mount --pid --fork --net --uts --ipc --cgroup true 2>/dev/null ||
    skip "no namespaces for a systemd here"
cgroups=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$cgroups" ] || skip "no file system of cgroups, version 2, is mounted"

in_tree() {
    tests/peers.sh "$dir" "$release" "$@"
}
make_tree() {
    in_tree make --no-print-directory CC=gcc SANITIZE= O="$dir/build" "$@"
}
in_tree tests/packages.sh build units
make_tree -j"$(nproc)"
make_tree install >"$dir/install.log"
cp packaging/use-units.sh "$root/root/"

# --- Its systemd. ---

group=$cgroups$(sed -n 's/^0:://p' /proc/self/cgroup)/nbdelta-units.$$
leader=
finish() {
    if [ "$leader" ]; then
        kill -KILL "$leader" 2>/dev/null || true # and its child with it
        wait "$leader" 2>/dev/null || true
    fi
    find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
}
trap finish EXIT
mkdir -p "$group" 2>/dev/null || skip "no cgroup can be made in ${group%/*}"

boot() {
    echo "$BASHPID" >"$group/cgroup.procs"
    # shellcheck disable=SC2016  # for the inner shell
    exec unshare --mount --pid --fork --kill-child --net --uts --ipc --cgroup \
        --propagation private -- bash -eu -c '
        cd "$1"
        mount --bind . .
        cd "$1"
        mount -t proc proc proc
        mount --bind proc/sys proc/sys
        mount -o remount,ro,bind proc/sys
        mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
        mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
        mount -t tmpfs -o mode=755,nosuid tmpfs dev
        for d in null zero full random urandom tty; do
            touch "dev/$d"
            mount --bind "/dev/$d" "dev/$d"
        done
        mkdir dev/pts dev/shm
        mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
        mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
        ln -s pts/ptmx dev/ptmx
        ln -s /proc/self/fd dev/fd
        mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
        pivot_root . mnt
        umount -l mnt
        drop=-sys_time,-sys_module,-sys_rawio,-mknod,-syslog,-audit_control
        exec setpriv --bounding-set="$drop" env -i container=nbdelta \
            PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init
        ' bash "$root" </dev/null
}
# What a run that failed has left.
rm -rf "$root/var/log/journal" "$root"/etc/nbdelta/*.conf \
    "$root"/etc/nbdelta/backup/*.conf "$root"/etc/systemd/system/*.wants/nbdelta*
boot >"$dir/boot.log" 2>&1 &
leader=$!

# Process 1 of the tree's systemd, as its number is here.
init() {
    ps -o pid= -o comm= --ppid "$leader" | sed -n 's/^ *\([0-9]*\) systemd$/\1/p'
}
inside() {
    nsenter --all --target "$(init)" env -i LC_ALL=C.UTF-8 \
        PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
started() {
    [ "$(init)" ] && inside test -S /run/systemd/private
}
for ((i = 0; i < 600; i++)); do
    if started || [ ! -e "/proc/$leader" ]; then
        break
    fi
    sleep 0.1
done
if ! started; then
    cat "$dir/boot.log"
    echo "FAIL  systemd of $release does not start"
    exit 1
fi
inside systemctl is-system-running --wait || true
inside bash /root/use-units.sh
inside systemctl poweroff
wait "$leader" || true
leader=

# What make install has brought goes.
make_tree uninstall >"$dir/uninstall.log"
if find "$root/usr/local" "$root/etc" -name "*nbdelta*" | grep .; then
    echo "FAIL  this is left after make uninstall"
    exit 1
fi
echo "Units with the systemd of $release: ok"
