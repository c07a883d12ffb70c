#!/bin/bash
# tests/packages.sh installs only what is missing, and does not use the network
# when nothing is missing.  Scripts of this test stand in for dpkg-query and
# apt-get.
set -eu -o pipefail

mkdir bin
cat >bin/dpkg-query <<'END'
#!/bin/bash
status=0
for word; do
    case $word in
    -*|*'$'*) ;;
    "$LACKING") status=1 ;;
    "$REMOVED") echo "config-files $word" ;;
    *) echo "installed $word" ;;
    esac
done
exit $status
END
cat >bin/apt-get <<'END'
#!/bin/bash
echo "$DEBIAN_FRONTEND $*" >>apt.log
END
cat >bin/id <<'END'
#!/bin/bash
echo "$PLAYED_UID"
END
cat >bin/sudo <<'END'
#!/bin/bash
echo sudo >>apt.log
exec "$@"
END
chmod +x bin/*
export PATH=$PWD/bin:$PATH LACKING=none REMOVED=none PLAYED_UID=0

packages() {
    rm -f apt.log
    "$SRCDIR/tests/packages.sh" "$@"
}

[ -z "$(packages build test dev)" ]
[ ! -e apt.log ]

LACKING=jq REMOVED=gcc packages build test >out
grep -qx 'Installing Debian packages: gcc jq' out
diff - apt.log <<END
noninteractive -q update
noninteractive -q install -y --no-install-recommends gcc jq
END

LACKING=zlib1g-dev PLAYED_UID=1000 packages build >out
diff - apt.log <<END
sudo
noninteractive -q update
sudo
noninteractive -q install -y --no-install-recommends zlib1g-dev
END

LACKING=valgrind packages build test
[ ! -e apt.log ]
if packages nosuch 2>/dev/null; then
    echo "a group that is not there was accepted"
    exit 1
fi
