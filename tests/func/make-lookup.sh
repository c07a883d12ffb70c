#!/bin/bash
# make names the Debian package of a library that is missing.  Goals that build
# nothing do not look for libraries.
set -eu -o pipefail

cat >pkg-config <<'END'
#!/bin/bash
case " $* " in
*\ --exists*\ libnbd\ *) exit 1 ;;
*) exec /usr/bin/env PATH="$REAL_PATH" pkg-config "$@" ;;
esac
END
chmod +x pkg-config
export REAL_PATH=$PATH

mk() {
    make -s --no-print-directory -C "$SRCDIR" O="$PWD/out" \
        PKG_CONFIG="$PWD/pkg-config" "$@"
}

if mk all >message 2>&1; then
    echo "built without libnbd"
    exit 1
fi
grep -qx "nbdelta: the library 'libnbd' not found: install the Debian package\
 'libnbd-dev'" message
grep -q "'tests/packages.sh build' installs all" message
[ "$(grep -c 'not found' message)" -eq 1 ]

if mk PKG_CONFIG=no-such-program all >message 2>&1; then
    exit 1
fi
grep -q "install the Debian package 'pkgconf'" message
if mk CC=no-such-compiler all >message 2>&1; then
    exit 1
fi
grep -q "install the Debian package 'gcc'" message

mk help >message # grep -q would leave before make has written all
grep -q 'make check' message
mk -n clean >message
[ ! -e out ]
