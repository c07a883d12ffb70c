#!/bin/bash
# packaging/deb.sh NAME.tar.gz VERSION DIR
#
# Build the Debian packages, source and binary, from an archive of the sources,
# and leave them in DIR.  The packages that the build needs are installed
# already (tests/packages.sh build deb).
set -eu -o pipefail
[ $# = 3 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
archive=$(realpath "$1") version=$2 dir=$3

changelog=$(dpkg-parsechangelog -l packaging/debian/changelog -S Version)
if [ "${changelog%-*}" != "$version" ]; then
    echo "nbdelta: deb: packaging/debian/changelog is of $changelog, the" \
        "Makefile of $version" >&2
    exit 1
fi
rm -rf "$dir"
mkdir -p "$dir"
cd "$dir"
cp "$archive" "nbdelta_$version.orig.tar.gz"
tar -xf "$archive"
cd "nbdelta-$version"
cp -r packaging/debian debian
# The make that runs this one is none of the package's business.
env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS -u MAKEOVERRIDES \
    dpkg-buildpackage --unsigned-source --unsigned-changes
cd ..
rm -rf "nbdelta-$version"
