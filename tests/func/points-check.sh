#!/bin/bash
# `nbdelta points --check` prints one line and exits as plugins of Nagios do,
# for each thing that may be wrong with a backup directory; `--metrics` writes
# what Prometheus can parse, whole or not at all.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

one=20261127T023000Z
two=20261128T023000Z
three=20261129T023000Z

# check STATUS TEXT ARG...: the line is one, has the form, and has the text.
check() {
    local want=$1 text=$2 rc=0
    local words=(OK WARNING CRITICAL UNKNOWN)
    shift 2
    nbdelta points --check "$@" >out 2>err || rc=$?
    [ "$rc" -eq "$want" ] || fail "$*: exits with $rc, not $want: $(cat out)"
    [ "$(wc -l <out)" -eq 1 ] || fail "$*: not one line: $(cat out)"
    grep -q "^NBDELTA ${words[want]} - [^|]*" out || fail "$*: $(cat out)"
    [ "$want" -eq 3 ] ||
        grep -qE ' \|( [a-z_]+=([0-9]+s?|U);([0-9:]*;){2}[0-9]+){6}$' out ||
        fail "$*: no performance data: $(cat out)"
    grep -qF -- "$text" out || fail "$*: no '$text': $(cat out)"
}

# The latest point is ten hours old, the others are older by days.
python "$SRCDIR/tests/func/store_dir.py" dir \
    $(($(date +%s) - 2 * 86400 - 36000))

check 0 '3 points, the latest of ' dir
check 0 ' (10 h ago)' --max-age 11h dir
check 2 'the latest point is 10 h old' --max-age 599min dir
check 0 points=3 --max-verify-age 3d dir
check 1 'not verified for 2 d' --max-verify-age 2d dir
check 2 'the latest point is 10 h old' --max-age 9h --max-verify-age 1d dir
grep -q ' age=36[0-9]*s;;32400;0 verify_age=2[0-9]*s;86400;;0 ' out ||
    fail "$(cat out)"
nbdelta verify dir
check 0 '' --max-verify-age 1h dir

# UNKNOWN, and never "critical", is a command that makes no sense.
for words in '' 'dir dir' '--max-age 5 dir' '--max-age 5x dir' \
    '--max-age 99999w dir' '--max-age 0h dir' '--max-verify-age h dir' \
    '--bad dir' '--output json dir' 'nowhere' '/' 'dir --max-age'; do
    # shellcheck disable=SC2086  # words
    check 3 '' $words
done
check 3 "cannot open directory 'no/where'" 'no|where'

# CRITICAL: damage that a verification has found, a manifest that cannot be
# read, files that are not there, no point at all.
cp -a dir broken
printf x | dd of=broken/vda/$two.sums bs=1 seek=20 conv=notrunc status=none
check 0 '' broken
nbdelta verify --quick broken >out 2>&1 && fail 'the damage is not found'
check 2 "1 point is damaged (1 range); point $two: it is damaged" broken
rm -r broken
cp -a dir broken
printf x | dd of=broken/$two.json bs=1 seek=20 conv=notrunc status=none
check 2 '1 manifest cannot be used; 1 point is incomplete; ' broken
rm broken/$two.json
mkfifo broken/$two.json
check 2 'not a regular file' broken
rm -r broken
for file in vda/$one.qcow2 vdb/$three.sums $one.json; do
    cp -a dir broken
    rm "broken/$file"
    check 2 'incomplete; point ' broken
    # Not while a prune changes them.
    echo '{}' >broken/prune.json
    check 0 '' broken
    touch -d '3 days ago' broken/prune.json
    check 1 'a prune did not end' broken
    rm -r broken
done
cp -a dir broken
rm broken/2026*
check 2 'there is no point | age=U;' broken
rm -r broken
python "$SRCDIR/tests/func/store_dir.py" future $(($(date +%s) + 7200))
check 1 'of the future' --max-age 1h future

# Metrics.
name=$'q"b\\s\nn'
mv dir "$name"
check 0 '' --metrics all.prom "$name"
[ "$(stat -c %a all.prom)" = 644 ] || fail "all.prom: $(stat -c %a all.prom)"
(umask 077 && nbdelta points --metrics quiet.prom "$name") >out 2>&1
[ ! -s out ] || fail "not quiet: $(cat out)"
[ "$(stat -c %a quiet.prom)" = 644 ] || fail 'the mode is of the umask'
cmp all.prom quiet.prom
PYTHONPATH=$SRCDIR/tests/func python - all.prom "$name" <<'END'
import sys
import prom_text
values = {(name, dict(labels).get("disk")): value for (name, labels), value in
          prom_text.values(sys.argv[1], "nbdelta_backup_",
                           ("directory", sys.argv[2])).items()}
assert values["readable", None] == 1 and values["points", None] == 3
assert values["damages", None] == values["unreadable_points", None] == 0
assert values["disk_full", "vda"] == 0 and values["disk_full", "vdb"] == 1
assert values["disk_seconds", "vda"] == 1.5
assert values["disk_size_bytes", "vdb"] == 5 * 2**20 + 3 * 2**16 + 512
assert (values["latest_point_timestamp_seconds", None] -
        values["oldest_point_timestamp_seconds", None]) == 172800
assert values["verified_timestamp_seconds", None] > 1.7e9
END
if command -v promtool >/dev/null; then
    promtool check metrics <all.prom || fail 'promtool does not like it'
fi
grep -q '^nbdelta_backup_readable{directory="nowhere"} 0$' \
    <(nbdelta points --metrics no.prom nowhere 2>err || cat no.prom) ||
    fail "$(cat no.prom err)"
grep -q "cannot open directory 'nowhere'" err || fail "$(cat err)"
check 3 'cannot write' --metrics no/where.prom "$name"
check 3 'cannot write' --metrics "$name" "$name"
if [ -w /dev/full ]; then
    ln -s /dev/full full.prom # is replaced, not followed
    check 0 '' --metrics full.prom "$name"
    [ ! -L full.prom ] || fail 'a link was followed'
    [ -f full.prom ] || fail 'there is no file'
fi
[ -z "$(find . -name '*.tmp')" ] || fail "left: $(find . -name '*.tmp')"
for words in '--max-age 1h dir' '--metrics x --output json dir' \
    '--metrics x' '--metrics x dir dir'; do
    rc=0
    # shellcheck disable=SC2086  # words
    nbdelta points $words >out 2>&1 || rc=$?
    [ "$rc" -eq 2 ] || fail "points $words: $rc"
done
