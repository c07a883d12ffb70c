#!/bin/bash
# The units for systemd are what systemd accepts, and their commands do what the
# file of a backup says: a point, then what prune does; a part of verify.  The
# daemon's unit serves the disks of its file, on its own sockets or systemd's.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need systemd-analyze systemd-socket-activate qemu-img qemu-io nbdinfo jq

mkdir conf
make -s --no-print-directory -C "$SRCDIR" O="$BUILD" DESTDIR="$PWD/root" \
    bindir="$BUILD" sysconfdir="$PWD/conf" plugindir=/plugins install-files
units=$PWD/root/usr/local/lib/systemd/system
mkdir -p conf/nbdelta/backup

for unit in "$units"/*; do
    name=${unit##*/}
    cp "$unit" "./${name/@/@web}"
done
cp root/usr/local/share/doc/nbdelta/backup.conf conf/nbdelta/backup/web.conf
# Of other units, and of pages that are not installed, we know nothing.
systemd-analyze verify --man=no ./nbdelta*@web.* >verified 2>&1 ||
    fail "$(cat verified)"
if grep nbdelta verified; then
    fail "systemd does not like it"
fi
# 100 is no protection at all.
systemd-analyze security --offline=true --threshold=45 --no-pager \
    ./nbdelta-*@web.service >exposed || fail "$(tail -n 3 exposed)"
systemd-analyze security --offline=true --threshold=25 --no-pager \
    ./nbdelta@web.service >exposed || fail "$(tail -n 3 exposed)"

# What systemd would run, word by word: as systemd.service(5) expands it.
cat >start.py <<'END'
import os, re, shlex, subprocess, sys
unit, name = sys.argv[1:]
lines = [line.strip() for line in open(unit)]


def values(key):
    return [line[len(key) + 1:] for line in lines if line.startswith(key + '=')]


env = dict(os.environ)
for assignment in values('Environment'):
    env.update(word.split('=', 1) for word in shlex.split(assignment))
for path in values('EnvironmentFile'):
    for line in open(path.replace('%i', name)):
        if line.strip() and line[0] not in '#;':
            key, value = line.strip().split('=', 1)
            env[key] = value
successes = [0] + [int(w) for v in values('SuccessExitStatus')
                   for w in v.split()]


def expand(word):
    word = re.sub('%(.?)', lambda m: {'i': name, '%': '%'}[m[1]], word)
    if re.fullmatch(r'\$[A-Z]+', word):
        return shlex.split(env.get(word[1:], ''))
    return [re.sub(r'\$\{([A-Z]+)\}|\$\$', lambda m: env.get(m[1], '')
                   if m[1] else '$', word)]


for line in values('ExecStart'):
    words = [w for word in shlex.split(line) for w in expand(word)]
    status = subprocess.run(words, env=env).returncode
    print(os.path.basename(words[0]), words[1], status, flush=True)
    if status not in successes:
        sys.exit(status)
END
start() {
    python start.py "$units/nbdelta${1:+-}$1@.service" web >out 2>err
}

count_points() {
    nbdelta points --output json 'the backups' | jq '.points | length'
}

qemu-img create -q -f qcow2 disk.qcow2 16M
qemu-io -c 'write -P 1 0 1M' disk.qcow2 >/dev/null
cat >conf/nbdelta/backup/web.conf <<END
# Two words in a name, and an option with two words.
SOURCE=$PWD/disk.qcow2
DIR=$PWD/the backups
OPTIONS=--hook="echo hooked; echo" --compress=zstd
END
start backup || fail "$(cat err)"
grep -q '^hooked' err
grep -q '^nbdelta prune 0' out || fail "$(cat out)"
qemu-io -c 'write -P 2 1M 1M' disk.qcow2 >/dev/null
start backup || fail "$(cat err)"
[ "$(count_points)" = 2 ]

# A disk has another size: a point, a warning, and no failure.
nbdelta bitmap list disk.qcow2 | grep -o 'nbdelta-[^ ]*' | while read -r b; do
    nbdelta bitmap remove disk.qcow2 "$b"
done
qemu-img resize -q disk.qcow2 32M
echo KEEP=--keep-last 1 >>conf/nbdelta/backup/web.conf
start backup || fail "$(cat err)"
grep -q '^nbdelta backup 3' out || fail "$(cat out)"
grep -q resized err || fail "$(cat err)"
[ "$(count_points)" = 1 ]

# Nothing is said where nothing is wrong.
start verify || fail "$(cat err out)"
[ ! -s err ]
jq -e '.parts | length == 7 and max > 0' 'the backups'/*.verified >/dev/null ||
    fail "$(cat 'the backups'/*.verified)"

# A source that is not there fails the unit, and no point goes.
sed -i 's/disk.qcow2/gone.qcow2/' conf/nbdelta/backup/web.conf
if start backup; then
    fail "a source that is not there is no failure"
fi
if grep prune out; then
    fail "prune after a failure"
fi
rm conf/nbdelta/backup/web.conf

# --- The daemon. ---

sed -e "s|^DISKS=.*|DISKS=vda=$PWD/disk.qcow2|" -e "s|/run/nbdelta/NAME|$PWD|g" \
    root/usr/local/share/doc/nbdelta/serve.conf >conf/nbdelta/web.conf
start '' &
server=$!
answers() {
    nbdelta qmp "$PWD/qmp.sock" query-status >/dev/null 2>&1
}
wait_until "the monitor answers" answers
[ "$(nbdinfo --size "nbd+unix:///vda?socket=$PWD/nbd.sock")" = 33554432 ]
nbdelta qmp "$PWD/qmp.sock" quit
wait "$server" || fail "$(cat err)"
server=

systemd-socket-activate -l "$PWD/web.nbd" -l "$PWD/web.qmp" --fdname=nbd:qmp \
    "$BUILD/nbdelta" serve "vda=$PWD/disk.qcow2" 2>activated &
server=$!
wait_until "it listens" listens "$PWD/web.qmp"
[ "$(nbdinfo --size "nbd+unix:///vda?socket=$PWD/web.nbd")" = 33554432 ]
nbdelta qmp "$PWD/web.qmp" quit
wait "$server" || fail "$(cat activated)"
server=

# As the units do it: another process, of root, has called listen(); another
# user, a /tmp of its own.  A backup meets the daemon beside the monitor's socket.
if [ "$(id -u)" -ne 0 ] || ! unshare -m true 2>/dev/null; then
    exit 0
fi
run=$(mktemp -d /tmp/nbdelta-run.XXXXXX) # a socket's path is short
at_exit rm -rf "$run"
chmod 755 "$run"
mkdir -m 1777 "$run/tmp"
export TMPDIR=$run/tmp
qemu-img create -q -f qcow2 "$run/vda.qcow2" 16M
chown 65534:65534 "$run/vda.qcow2"
cp "$BUILD/nbdelta" "$run/nbdelta"
# shut_in COMMANDS DISK: the daemon, in a mount namespace with these mounts
shut_in() {
    # shellcheck disable=SC2016  # for the inner shell
    systemd-socket-activate -l "$run/web.nbd" -l "$run/web.qmp" \
        --fdname=nbd:qmp unshare -m --propagation private -- bash -eu -c '
            mount --bind "$1" "$1"
            mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
            eval "$2"
            (LISTEN_PID=$BASHPID exec setpriv --reuid=65534 --regid=65534 \
                --clear-groups "$1/nbdelta" serve "$3")
            ' bash "$run" "$1" "$2" 2>activated &
    server=$!
    wait_until "it listens" listens "$run/web.qmp"
}
let_out() {
    nbdelta qmp "$run/web.qmp" quit
    wait "$server" || fail "$(cat activated)"
    server=
    [ -z "$(find "$run" -mindepth 1 -name 'nbdelta-*')" ] ||
        fail "$(find "$run")"
    rm -f "$run"/web.*
}
shut_in : "vda=$run/vda.qcow2"
for nbd in '' '' --nbd=; do
    nbdelta backup ${nbd:+"$nbd"} "$run/web.qmp" private ||
        fail "$(cat activated)"
done
[ "$(nbdelta points --output json private | jq '.points | length')" = 3 ]
let_out

# Where both have no directory that it may write to, the message says more.
# shellcheck disable=SC2016  # for the inner shell
shut_in 'mount -o remount,ro,bind "$1"' vda=driver=mem,size=1M
if nbdelta backup "$run/web.qmp" shut 2>err; then
    fail "a directory that only one of them has"
fi
grep -q 'cannot bind the socket .*another TMPDIR.* --nbd)' err ||
    fail "$(cat err)"
nbdelta backup --nbd= "$run/web.qmp" shut || fail "$(cat activated)"
let_out
