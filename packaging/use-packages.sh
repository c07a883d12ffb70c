#!/bin/bash
# packaging/use-packages.sh DIR
#
# As root, in a tree that can be spoilt: install the Debian packages of DIR,
# run their tests (packaging/debian/tests), purge them, and find nothing left.
# What the packages and the tests depend on is installed before, and stays.
set -eu -o pipefail
[ $# = 1 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
debs=()
names=()
for deb in "$1"/*.deb; do
    case $deb in *-dbgsym_*) continue ;; esac
    debs+=("$(realpath "$deb")")
    names+=("$(dpkg-deb -f "$deb" Package)")
done
tests=packaging/debian/tests

# Depends: of packages and of tests, without our own.
wanted() {
    local deb
    for deb in "${debs[@]}"; do
        dpkg-deb -f "$deb" Depends
    done
    sed -n 's/^Depends: *//p' "$tests/control"
}
ours=$(IFS='|'; echo "${names[*]}")
mapfile -t depends < <(wanted | tr ',' '\n' | sed 's/^ *//; s/ *$//' |
    grep -v -E "^($ours)( |$)" | sort -u)
apt-get -q update
apt-get -q satisfy -y --no-install-recommends "${depends[@]}"

# Names of files, without what belongs to apt, dpkg, man-db and passwd, and what
# comes and goes; then users and groups.
state() {
    find / -xdev \( -path /tmp -o -path /var/tmp -o -path /proc -o -path /sys \
        -o -path /dev -o -path /run/systemd -o -path /var/log \
        -o -path /var/cache -o -path "$PWD" -o -path /var/lib/apt \
        -o -path '/var/lib/dpkg/*-old' \
        -o -path '/etc/*-' -o -path /etc/.pwd.lock \) -prune -o -print
    cut -d: -f1 /etc/passwd | sed 's/^/user /'
    cut -d: -f1 /etc/group | sed 's/^/group /'
    dpkg-query -W -f '${Package} ${db:Status-Status}\n'
}
state | sort >/tmp/before

apt-get -q install -y --no-install-recommends "${debs[@]}"
mapfile -t all < <(sed -n 's/^Tests: *//p' "$tests/control")
for test in "${all[@]}"; do
    AUTOPKGTEST_TMP=$(mktemp -d)
    export AUTOPKGTEST_TMP
    "$tests/$test" >"/tmp/$test.log" 2>&1 || {
        tail -n 40 "/tmp/$test.log"
        echo "FAIL  $test"
        exit 1
    }
    rm -rf "$AUTOPKGTEST_TMP"
    echo "ok    $test"
done

# Again, over themselves: nothing that the scripts do is wrong the second time.
apt-get -q install -y --reinstall "${debs[@]}"
apt-get -q purge -y "${names[@]}"
state | sort >/tmp/after
if ! diff /tmp/before /tmp/after; then
    echo "This (>) is left after the purge."
    exit 1
fi

# An administrator's disk stays, and so does its owner.
apt-get -q install -y "${debs[@]}"
echo disk >/var/lib/nbdelta/disk
chown nbdelta: /var/lib/nbdelta/disk
apt-get -q purge -y "${names[@]}"
[ "$(stat -c %U /var/lib/nbdelta/disk)" = nbdelta ]
