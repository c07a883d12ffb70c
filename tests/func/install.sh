#!/bin/bash
# make install puts the files where DESTDIR and prefix say; uninstall takes
# them away.
set -eu -o pipefail

# Without building: other tests run what is there.
mk() {
    make -s --no-print-directory -C "$SRCDIR" O="$BUILD" \
        DESTDIR="$PWD/root" prefix=/opt/nbd "$@"
}

plugins=$(pkg-config nbdkit --variable=plugindir)
{
    echo ./opt/nbd/bin/nbdelta
    echo "./${plugins#/}/nbdkit-nbdelta-plugin.so"
    if [ -e "$BUILD/nbdelta-source-libvirt.so" ]; then
        echo ./opt/nbd/lib/nbdelta/nbdelta-source-libvirt.so
    fi
    echo ./opt/nbd/share/bash-completion/completions/nbdelta
    for page in "$SRCDIR"/man/*.1; do
        echo "./opt/nbd/share/man/man1/${page##*/}"
    done
} | sort >expected

mk install-files
(cd root && find . -type f | sort) | diff expected -
[ -x root/opt/nbd/bin/nbdelta ]
cmp "$BUILD/nbdelta" root/opt/nbd/bin/nbdelta
root/opt/nbd/bin/nbdelta --version |
    grep -F "$(sed -n 's/^VERSION := //p' "$SRCDIR/Makefile")"

mk uninstall
[ -z "$(find root -type f)" ]
