#!/bin/bash
# packaging/check-packages.sh NAME.tar.gz VERSION RELEASE DIR
#
# Build the Debian packages in a tree of RELEASE, have lintian look at them, and
# install, use and purge them in a fresh one (packaging/use-packages.sh).
#
#   DIR/root         the fresh tree: debootstrap's, kept for the next time
#   DIR/build/root   a copy, with what the build needs; kept, too
#   DIR/use/root     a copy, for the packages; made anew each time
#   DIR/out          the packages
#
# Skipped (with the reason) where there can be no trees: tests/peers.sh.
set -eu -o pipefail
[ $# = 4 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
archive=$1 version=$2 release=$3 dir=$4

tree() {
    [ -d "$dir/$1/root" ] || {
        mkdir -p "$dir/$1"
        cp -a --reflink=auto "$dir/root" "$dir/$1/root.part"
        mv "$dir/$1/root.part" "$dir/$1/root"
    }
}
in_tree() {
    tests/peers.sh "$dir/$1" "$release" "${@:2}"
}

rc=0
tests/peers.sh "$dir" "$release" true || rc=$?
[ $rc -ne 77 ] || exit 0
[ $rc -eq 0 ]

tree build
in_tree build tests/packages.sh build deb
# No network but lo, as where Debian builds.
# shellcheck disable=SC2016  # for perl
lo_up='socket(S, AF_INET, SOCK_DGRAM, 0) or die;
    $up = pack("a16 s x22", "lo", 0x41);
    ioctl(S, 0x8914, $up) or die;
    exec @ARGV'
in_tree build unshare --net perl -MSocket -e "$lo_up" \
    packaging/deb.sh "$archive" "$version" "$dir/out"
in_tree build lintian --allow-root --info --fail-on error,warning \
    "$(echo "$dir"/out/*.changes)"

rm -rf "$dir/use"
tree use
in_tree use packaging/use-packages.sh "$dir/out"
rm -rf "$dir/use"
echo "Packages for $release: $dir/out"
