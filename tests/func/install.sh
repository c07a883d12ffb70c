#!/bin/bash
# make install puts the files where DESTDIR and prefix say, all of them below
# the prefix of an ordinary user; uninstall takes them away.  What is built has
# what Debian has its packages built with.  make dist gives the same bytes each
# time, also from what it has made; packages are of the Makefile's version.
set -eu -o pipefail

# Without building: other tests run what is there.
mk() {
    make -s --no-print-directory -C "$SRCDIR" O="$BUILD" \
        DESTDIR="$PWD/root" prefix=/opt/nbd "$@"
}

{
    echo ./opt/nbd/bin/nbdelta
    echo ./opt/nbd/lib/nbdkit/plugins/nbdkit-nbdelta-plugin.so
    if [ -e "$BUILD/nbdelta-source-libvirt.so" ]; then
        echo ./opt/nbd/lib/nbdelta/nbdelta-source-libvirt.so
    fi
    if [ -e "$BUILD/nbdelta-block-rbd.so" ]; then
        echo ./opt/nbd/lib/nbdelta/nbdelta-block-rbd.so
    fi
    echo ./opt/nbd/share/bash-completion/completions/nbdelta
    echo ./opt/nbd/share/zsh/site-functions/_nbdelta
    echo ./opt/nbd/share/fish/vendor_completions.d/nbdelta.fish
    for page in "$SRCDIR"/man/*.1; do
        echo "./opt/nbd/share/man/man1/${page##*/}"
    done
    for page in "$SRCDIR"/man/*.5; do
        echo "./opt/nbd/share/man/man5/${page##*/}"
    done
    for page in "$SRCDIR"/man/*.7; do
        echo "./opt/nbd/share/man/man7/${page##*/}"
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

# It tells where it looks for its modules, and whether these are there.
config() {
    NBDELTA_MODULES=$1 root/opt/nbd/bin/nbdelta --dump-config >config
    shift
    printf '%s\n' "$@" | while read -r line; do
        grep -qxF -e "$line" config || { cat config; exit 1; }
    done
}
if [ -e "$BUILD/nbdelta-source-libvirt.so" ]; then
    config "$PWD/root/opt/nbd/lib/nbdelta" module_libvirt=yes
fi
mkdir other
echo "no module" >other/nbdelta-source-libvirt.so
config "$PWD/other" "moduledir=$PWD/other" module_libvirt=no name=nbdelta \
    "binary=$PWD/root/opt/nbd/bin/nbdelta"
value() {
    make -s --no-print-directory -C "$SRCDIR" O="$BUILD" "value-$1"
}
config '' "$(value prefix)" "$(value moduledir)" "$(value plugindir)" \
    "$(value sysconfdir)" "$(value mandir)"
sort -c config
if grep -v -x '[a-z_]*=.*' config; then
    exit 1
fi

[ -d root/opt/nbd/etc/nbdelta/backup ]
[ "$(stat -c %a root/opt/nbd/lib/systemd/system/nbdelta-backup@.timer)" = 644 ]
if grep -r '@[a-z]*dir@' root --include='*nbdelta-*@*' \
    --include=backup.conf; then
    echo "a path is missing"
    exit 1
fi

mk uninstall
[ -z "$(find root -mindepth 1)" ]

# nbdkit's own prefix has nbdkit's own directory.
system() {
    make -s --no-print-directory -C "$SRCDIR" O="$BUILD" \
        DESTDIR="$PWD/root" prefix=/usr "$@"
}
plugins=$(pkg-config nbdkit --variable=plugindir)
system install-files
[ -e "root$plugins/nbdkit-nbdelta-plugin.so" ]
[ -d root/etc/nbdelta/backup ]
touch root/etc/nbdelta/vda.conf
system uninstall
[ "$(find root -type f)" = root/etc/nbdelta/vda.conf ]

# Each file is in one package of rpm, and each line of these has a file.
spec=$SRCDIR/packaging/rpm/nbdelta.spec
system install-files libdir=/usr/lib64 plugindir=/usr/lib64/nbdkit/plugins
for file in LICENSE README.md NEWS SECURITY.md; do
    [ -s "$SRCDIR/$file" ]
done
sed -n '/^%files/,/^%changelog/p' "$spec" |
    sed -n -e 's/^%dir //' -e 's/%{name}/nbdelta/g' \
        -e 's|%{_unitdir}|/usr/lib/systemd/system|' \
        -e 's|%{_sysusersdir}|/usr/lib/sysusers.d|' \
        -e 's|%{_tmpfilesdir}|/usr/lib/tmpfiles.d|' \
        -e 's|%{nbdkit_plugindir}|/usr/lib64/nbdkit/plugins|' \
        -e 's|%{_libdir}|/usr/lib64|' -e 's|%{_bindir}|/usr/bin|' \
        -e 's|%{_docdir}|/usr/share/doc|' -e 's|%{_mandir}|/usr/share/man|' \
        -e 's|%{_datadir}|/usr/share|' -e 's|%{_sysconfdir}|/etc|' \
        -e '/^[%/]/p' | grep -v -x '%\(files\|license\|doc\|changelog\).*' >lines
if [ ! -e "$BUILD/nbdelta-source-libvirt.so" ]; then
    sed -i '/lib64.nbdelta/d' lines
fi
while read -r line; do
    # shellcheck disable=SC2086  # a pattern
    ls -d root$line
done <lines | sort >packaged
{
    find root -type f ! -name vda.conf
    echo root/etc/nbdelta
    echo root/etc/nbdelta/backup
    [ ! -e root/usr/lib64/nbdelta ] || echo root/usr/lib64/nbdelta
} | sort | diff - packaged
system uninstall libdir=/usr/lib64 plugindir=/usr/lib64/nbdkit/plugins

# A user who may write nowhere else, and has other files there.  Root gets a
# world that can be read only.
user() {
    local inner=(make -s --no-print-directory -C "$SRCDIR" O="$BUILD"
        prefix="$PWD/home/.local" DESTDIR= "$@")
    if [ "$(id -u)" -ne 0 ]; then
        "${inner[@]}"
        return
    fi
    # shellcheck disable=SC2016  # for the inner shell
    unshare -m --propagation private -- sh -eu -c 'mount --bind home home
        mount -o remount,ro,bind /
        "$@"' sh "${inner[@]}"
}
if [ "$(id -u)" -ne 0 ] || unshare -m true 2>/dev/null; then
    mkdir -p home/.local/bin
    touch home/.local/bin/other
    find home | sort >before
    user install-files
    home/.local/bin/nbdelta --version
    [ -e home/.local/lib/nbdkit/plugins/nbdkit-nbdelta-plugin.so ]
    user uninstall
    find home | sort | diff before -
fi

flags=$(cat "$BUILD/.flags")
if [ -z "${SANITIZE-}" ] && ! grep -q -e -O0 <<<"$flags" &&
    command -v dpkg-buildflags >/dev/null; then
    for kind in CFLAGS CPPFLAGS LDFLAGS; do
        DEB_BUILD_MAINT_OPTIONS=hardening=+all dpkg-buildflags --get $kind |
            tr ' ' '\n' |
            sed -e 's/\(-prefix-map=\).*/\1/' -e 's/,-z,/ -z,/'
    done | grep -v -e -Werror=implicit-function | while read -r wanted more; do
        # Ours may come as one: -Wl,-z,relro,-z,now
        if ! grep -q -F -e "$wanted" <<<"$flags" ||
            ! grep -q -F -e "$more" <<<"$flags"; then
            echo "dpkg-buildflags has $wanted $more, and these have not: $flags"
            exit 1
        fi
    done
fi
for file in nbdelta nbdkit-nbdelta-plugin.so; do
    readelf -hld "$BUILD/$file" >elf
    grep -q GNU_RELRO elf
    grep -qw -e BIND_NOW -e NOW elf
    grep -q 'Type: *DYN' elf
    grep -A1 GNU_STACK elf | grep -q 'RW  '
done

# The same archive for everybody: another umask, other times of
# files, another folder without git.
version=$(value VERSION)
version=${version#*=}
dist() {
    make -s --no-print-directory -C "$1" O="$PWD/$2" dist >"$2.log" 2>&1 ||
        { cat "$2.log"; exit 1; }
    sha256sum <"$2/nbdelta-$version.tar.gz"
}
first=$(dist "$SRCDIR" one)
[ "$(umask 077; dist "$SRCDIR" two)" = "$first" ]
tar -xf "one/nbdelta-$version.tar.gz"
echo CC=none >"nbdelta-$version/config.mak"
mkdir "nbdelta-$version/build"
echo built >"nbdelta-$version/build/nbdelta"
[ "$(umask 077; dist "$PWD/nbdelta-$version" three)" = "$first" ]
grep -q "^nbdelta ($version-" "$SRCDIR/packaging/debian/changelog"
grep -q "^Version: *$version\$" "$SRCDIR/packaging/rpm/nbdelta.spec"
grep -q "^nbdelta $version\b" "$SRCDIR/NEWS"
