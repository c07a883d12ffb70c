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
    for page in "$SRCDIR"/man/*.5; do
        echo "./opt/nbd/share/man/man5/${page##*/}"
    done
    for unit in "$SRCDIR"/systemd/nbdelta*@*.in; do
        unit=${unit##*/}
        echo "./opt/nbd/lib/systemd/system/${unit%.in}"
    done
    echo ./opt/nbd/lib/sysusers.d/nbdelta.conf
    echo ./opt/nbd/lib/tmpfiles.d/nbdelta.conf
    echo ./opt/nbd/share/doc/nbdelta/backup.conf
    echo ./opt/nbd/share/doc/nbdelta/serve.conf
} | sort >expected

mk install-files
(cd root && find . -type f | sort) | diff expected -
[ -x root/opt/nbd/bin/nbdelta ]
cmp "$BUILD/nbdelta" root/opt/nbd/bin/nbdelta
root/opt/nbd/bin/nbdelta --version |
    grep -F "$(sed -n 's/^VERSION := //p' "$SRCDIR/Makefile")"

[ -d root/etc/nbdelta/backup ]
[ "$(stat -c %a root/opt/nbd/lib/systemd/system/nbdelta-backup@.timer)" = 644 ]
if grep -r '@[a-z]*dir@' root --include='*nbdelta-*@*' \
    --include=backup.conf; then
    echo "a path is missing"
    exit 1
fi

mk uninstall
[ -z "$(find root -type f)" ]
