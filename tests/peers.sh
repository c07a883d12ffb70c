#!/bin/bash
# tests/peers.sh DIR RELEASE COMMAND...
#
# Run a command in a tree of another Debian release, which has its QEMU,
# libnbd and nbdkit: make a tree in DIR unless it is there, then run COMMAND in
# it, in this folder, which it sees at the same path.  What COMMAND installs
# stays in the tree for the next time.
#
# Exit status: the status of COMMAND; or 77 when no tree can be made here, and
# the last line says why.
#
#     this machine's /                 DIR/root, for COMMAND its /
#       SRCDIR  <------- bind --------   SRCDIR
#       /proc, /dev, /sys  <- rbind --   /proc, /dev, /sys
#                                        /tmp, /usr, ...  its own
#
# The mounts are in a mount namespace of this run, and end with it.
set -eu -o pipefail

usage() {
    sed -n '2s/^# //p' "$0" >&2
    exit 2
}
skip() {
    printf 'skipped: %s\n' "$*"
    exit 77
}
[ $# -ge 3 ] || usage
dir=$(realpath -m "$1") release=$2
shift 2
here=$PWD
root=$dir/root

# The mirror that this machine's own packages come from, in either format.
mirror() {
    {
        cat /etc/apt/sources.list.d/*.sources || true
        cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list || true
    } 2>/dev/null | awk '$1 == "URIs:" || $1 == "deb" {
        for (i = 2; i <= NF; i++)
            if ($i ~ /^https?:.*\/debian\/*$/) { print $i; exit } }'
}

make_tree() {
    local conf from script=/usr/share/debootstrap/scripts/$release part=$dir/part
    from=$(mirror)
    [ -n "$from" ] || skip "no Debian mirror in the sources of apt"
    # An older debootstrap does not know the name of a newer release.
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    mkdir -p "$dir"
    rm -rf "$part"
    debootstrap --variant=minbase "$release" "$part" "$from" "$script" \
        >"$dir/debootstrap.log" 2>&1 ||
        skip "debootstrap: $(tail -n 1 "$dir/debootstrap.log")"
    # What this machine needs to reach the mirror, the tree needs, too.  Files
    # of packages come with these.
    cp /etc/resolv.conf "$part/etc/resolv.conf" 2>/dev/null || true
    grep -l '^Acquire' /etc/apt/apt.conf.d/* 2>/dev/null |
        while read -r conf; do
            dpkg-query -S "$conf" >/dev/null 2>&1 ||
                cp "$conf" "$part/etc/apt/apt.conf.d/"
        done
    printf '#!/bin/sh\nexit 101\n' >"$part/usr/sbin/policy-rc.d"
    chmod +x "$part/usr/sbin/policy-rc.d"
    mv "$part" "$root"
}

if [ -z "${PEERS_INSIDE-}" ]; then
    [ "$(id -u)" -eq 0 ] || skip "a tree of Debian $release needs root"
    command -v debootstrap >/dev/null || skip "debootstrap is not installed"
    unshare -m true 2>/dev/null || skip "no mount namespaces here"
    [ -d "$root" ] || make_tree
    PEERS_INSIDE=1 exec unshare -m --propagation private -- \
        "$0" "$dir" "$release" "$@"
fi
unset PEERS_INSIDE
# Tests that have mounts of their own need a / that is a mount.
mount --bind "$root" "$root"
mkdir -p "$root$here"
mount --bind "$here" "$root$here"
for m in proc dev sys; do
    mount --rbind "/$m" "$root/$m"
done
# No mount of a test reaches this machine's /dev or /sys.
mount --make-rprivate "$root/dev"
exec chroot "$root" /usr/bin/env -C "$here" TMPDIR=/tmp "$@"
