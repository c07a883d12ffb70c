#!/bin/bash
# `nbdelta --complete` knows commands, options, words, and the names that are in
# images, exports, monitors and backup directories.  bash, zsh and fish put
# these into a command line as they are: no name is evaluated, and none is shown
# that could do more than be read.  Nothing is written, and what does not answer
# is waited for a moment only.
# shellcheck disable=SC2016,SC2088  # names that look like expansions
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

# offers EXPECTED WORD...: what can stand for the last WORD, in the order of
# bytes, with '|' between.  Where the shell completes files that is FILES:HEAD.
# Notes it; all are compared at the end.
offers() {
    printf '%s\n' "$1" >>wanted
    shift
    printf '>>> %s\n' "$*" >>got
    nbdelta --complete "$@" >>got 2>>said || fail "nbdelta --complete $*: $?"
}

compare_offers() {
    [ ! -s said ] || fail "there are messages: $(cat said)"
    python3 - <<'END'
import sys

with open("got", "rb") as f:
    got = [each.split(b"\n") for each in f.read().split(b">>> ")[1:]]
with open("wanted", "rb") as f:
    wanted = f.read().split(b"\n")[:-1]
assert len(got) == len(wanted)
for (words, *lines), expected in zip(got, wanted):
    lines = [line.replace(b"\tfiles\t", b"FILES:")
             .replace(b"\tdirectories\t", b"DIRS:").split(b"\t")[0]
             for line in lines[:-1]]
    offered = b"|".join(sorted(lines))
    if offered != expected:
        sys.exit(f"--complete {words}: offers {offered}, not {expected}")
END
}

# has WORD WORD...: among what can stand for the last WORD there is the first.
has() {
    local wanted=$1
    shift
    nbdelta --complete "$@" | cut -f1 | grep -qxF -e "$wanted" ||
        fail "nbdelta --complete $*: does not offer $wanted"
}

# A busy machine may take its time to answer.
export NBDELTA_COMPLETE_TIMEOUT=60000

names=('two words' "o'clock" 'q"t' '$(touch evil)' '`touch evil`' ';touch evil'
    '!!' '~' 'naïve' '*' 'b=c:d@e')
nbdelta create disk.qcow2 16M
nbdelta bitmap add disk.qcow2 plain "${names[@]}" {0..5}-hostile
nbdelta bitmap --add disk.qcow2 -- --remove
nbdelta snapshot -c 'first one' disk.qcow2
python - <<'END'
with open("disk.qcow2", "r+b") as f:
    data = f.read()
    for i, bad in enumerate([b"\n", b"\t", b"\x1b[1m", b"\x9b", b"\xc2\x9b",
                             b"\xe2\x80\xae"]):
        name = b"%d-hostile" % i
        assert name in data
        data = data.replace(name, name[:-len(bad)] + bad)
    f.seek(0)
    f.write(data)
END
nbdelta bitmap list --output json disk.qcow2 >listed
[ "$(grep -c '"name": "[0-5]-' listed)" = 6 ] # they are there
mkdir dir
touch dir/file 'xx file'
nbdelta create vda.qcow2 1M
nbdelta backup vda.qcow2 bk >/dev/null
cksum disk.qcow2 >sum
touch said got wanted before
find . | sort >before

# Words of the command line.
offers 'backup|backup-begin|backup-end' back
has serve ''
has --version ''
has serve help ''
offers '' nothing ''
offers '' --version ''
offers 'human|json' info --output ''
offers '--output=human|--output=json' info disk.qcow2 --output=
offers '--outp=json' info --outp=j
offers '-fqcow2' map -fq
offers '-f' map -f
offers 'qcow2|raw' map -Uf ''
offers '--force-share|--format' map --fo
offers 'FILES:' map -- --fo
offers 'FILES:' check ''
offers 'DIRS:' prune ''
offers 'FILES:|null|stderr|syslog' serve --log ''
offers 'debug|error|info|warning' serve --log-level ''
offers 'none' serve --follow n
offers '--wait=end|--wait=ready' qmp --wait=
offers 'FILES:|add' bitmap a
offers 'FILES:' bitmap remove ''
offers 'preallocation=' create -o pre
offers 'compat=1.1,preallocation=falloc' create -o compat=1.1,preallocation=fal
offers 'FILES:backing_file=' create -o backing_file=
offers '' amend -o preall
offers 'FILES:|nbd+unix://' info nbd+u
offers 'FILES:nbd+unix:///x?socket=' info 'nbd+unix:///x?socket='
offers 'DIRS:vda=|FILES:vda=' serve vda=
offers '' resize disk.qcow2 ''
offers 'FILES:|libvirt:' backup lib
offers 'FILES:|rbd:' backup rb
offers 'DIRS:|rbd:' backup rbd:vms/web rb
nbdelta --complete >/dev/null && fail "no word was missed"
nbdelta --complete=ksh x >/dev/null && fail "there is no such shell"

# Names in images; those that nobody can type are left out, and so is one that
# would be an option.
plain=$(printf '%s\n' plain "${names[@]}" | LC_ALL=C sort | paste -sd'|')
all=$(printf '%s\n' plain --remove "${names[@]}" | LC_ALL=C sort | paste -sd'|')
offers "$plain" bitmap remove disk.qcow2 ''
offers "$all" map disk.qcow2 --bitmap ''
offers '--remove' bitmap remove -- disk.qcow2 -
offers 'two words' map disk.qcow2 --bitmap t
offers '--bitmap=two words' map disk.qcow2 --bitmap=t
offers 'plain' bitmap merge -b disk.qcow2 other.qcow2 x pl
offers 'first one' map disk.qcow2 --snapshot ''
offers 'first one' snapshot disk.qcow2 -d ''
offers '' snapshot disk.qcow2 -c ''
offers '' map disk.qcow2 -f raw --bitmap ''
HOME=$PWD offers 'plain' map '~/disk.qcow2' --bitmap pl
mkfifo fifo
offers '' map fifo --bitmap ''
offers '' map /dev/tty --bitmap ''
offers '' map nothing --bitmap ''
rm fifo

# Names in backup directories.
point=$(basename bk/*Z.json .json)
offers "bk@$point|bk@latest" restore bk@
offers "bk/@latest" points bk/@l
offers 'DIRS:|bk@' verify bk
offers 'vda' restore bk ''
offers 'FILES:vda=' restore "bk@$point" vda=
offers 'vda' compare bk@latest --disk ''
offers '' restore bk@2000 ''

# All that was by reading.
find . | sort | diff before - || fail "files came"
cksum disk.qcow2 | diff sum -

# Of what runs.
serve --log-level error vda=disk.qcow2
offers "$all" map disk.qcow2 --bitmap ''
offers "plain" map "$(uri_of vda)" --bitmap pl
offers 'block-dirty-bitmap-merge' qmp "$qmp_sock" block-dirty-bitmap-m
offers 'JOB_STATUS_CHANGE' events "$qmp_sock" --until JOB
offers 'BLOCK_JOB_READY' qmp "$qmp_sock" help BLOCK_JOB_R
offers 'node-name=' qmp "$qmp_sock" blockdev-add node
offers 'driver=qcow2' qmp "$qmp_sock" blockdev-add driver=qc
offers '' qmp "$qmp_sock" blockdev-add driver=null-co fil
offers 'file.|file=' qmp "$qmp_sock" blockdev-add driver=qcow2 fil
offers 'file.filename=' qmp "$qmp_sock" blockdev-add driver=qcow2 \
    file.driver=file file.fi
offers 'FILES:file.filename=' qmp "$qmp_sock" blockdev-add driver=qcow2 \
    file.driver=file file.filename=
offers 'disks.0.' qmp "$qmp_sock" backup-begin disks
offers 'disks.0.node=' qmp "$qmp_sock" backup-begin disks.0.n
offers 'once=false|once=true' qmp "$qmp_sock" backup-begin once=
offers '' qmp "$qmp_sock" backup-begin once=true onc
offers 'vda' backup-begin "$qmp_sock" --disk ''
offers 'vda,since=plain' backup-begin "$qmp_sock" --disk vda,since=pl
id=$(nbdelta backup-begin "$qmp_sock" --disk vda \
    --output json | jq -r .id)
offers "$id" backup-end "$qmp_sock" ''
offers 'plain' backup-end "$qmp_sock" "$id" --drop pl
nbdelta backup-end "$qmp_sock" "$id" --failed

if command -v qemu-storage-daemon >/dev/null; then
    qemu-storage-daemon \
        --chardev socket,id=m,path="$PWD/qemu.sock",server=on,wait=off \
        --monitor chardev=m &
    qemu=$!
    at_exit kill $qemu
    wait_until "QEMU's monitor" listens "$PWD/qemu.sock"
    offers 'block-export-add' qmp qemu.sock block-export-a
    offers 'addr.data.abstract=|addr.data.path=|addr.data.tight=' \
        qmp qemu.sock nbd-server-start addr.type=unix addr.data.
fi

# What a monitor says is not trusted, nor waited for.
jq -n '{"query-named-block-nodes": [{"node-name": "good"},
    {"node-name": "bad\u001b[1m"}, {"node-name": "bad\nx"},
    {"node-name": 1}, 2],
    "query-qmp-schema": [{"name": "c", "meta-type": "command", "arg-type": "1"},
    {"name": "1", "meta-type": "object", "members":
        [{"name": "again", "type": "1"}, {"name": "es\u001bc", "type": "9"}]}],
    "ignore": ["query-jobs"]}' >answers
fake_monitor
offers 'good' backup-begin fake.sock --disk ''
offers 'again.again.again.' qmp fake.sock c again.again.
# Only what does not answer is given up soon.
export NBDELTA_COMPLETE_TIMEOUT=2000
offers '' qmp fake.sock --wait-job ''
python3 - "$PWD/hung.sock" <<'END' &
import socket, sys, time
with socket.socket(socket.AF_UNIX) as s:
    s.bind(sys.argv[1])
    s.listen()
    time.sleep(600)
END
hung=$!
at_exit kill $hung
wait_until "a server that hangs" listens "$PWD/hung.sock"
# A shell has the answer when the pipe is closed, which a child would keep open.
SECONDS=0
offers 'help' qmp hung.sock ''
offers '' map 'nbd+unix:///?socket=hung.sock' --bitmap ''
[ $SECONDS -lt 30 ] || fail "the shell waited for $SECONDS s"
export NBDELTA_COMPLETE_TIMEOUT=60000
stop_server

compare_offers

# Real shells, on a terminal.
lines=('nbdelta ser' 'nbdelta info --outp' 'nbdelta info --output=j'
    'nbdelta info --output j' 'nbdelta map di' 'nbdelta map d'
    'nbdelta map disk.qcow2 --bitmap=tw'
    'nbdelta map disk.qcow2 --bitmap "two w'
    "nbdelta map disk.qcow2 --bitmap '\$" 'nbdelta map disk.qcow2 --bitmap \`'
    'nbdelta map disk.qcow2 --bitmap \;' 'nbdelta map disk.qcow2 --bitmap b=c'
    'nbdelta map disk.qcow2 --bitmap=t"wo"'
    "nbdelta map disk.qcow2 --bitmap 'o" 'nbdelta map disk.qcow2 --bitmap 0'
    'nbdelta info nbd+u' 'nbdelta map xx' 'nbdelta serve vda=x'
    'nbdelta prune di')
cat >expected <<'END'
nbdelta serve |
nbdelta info --output |
nbdelta info --output=json |
nbdelta info --output json |
nbdelta map di|
nbdelta map di|
nbdelta map disk.qcow2 --bitmap=two\ words |
nbdelta map disk.qcow2 --bitmap "two words" |
nbdelta map disk.qcow2 --bitmap '$(touch evil)' |
nbdelta map disk.qcow2 --bitmap \`touch\ evil\` |
nbdelta map disk.qcow2 --bitmap \;touch\ evil |
nbdelta map disk.qcow2 --bitmap b=c:d@e |
nbdelta map disk.qcow2 --bitmap=two\ words |
nbdelta map disk.qcow2 --bitmap 'o'\''clock' |
nbdelta map disk.qcow2 --bitmap 0|
nbdelta info nbd+unix://|
nbdelta map xx\ file |
nbdelta serve vda=xx\ file |
nbdelta prune dir/|
END
cat >bash.rc <<END
. '$SRCDIR/completion/nbdelta.bash'
END
cat >zsh.rc <<END
fpath=('$SRCDIR/completion' \$fpath)
autoload -Uz compinit
compinit -u -D
END
seen=
for shell in bash zsh; do
    if ! command -v $shell >/dev/null; then
        echo "$shell is not installed"
        continue
    fi
    seen="$seen $shell"
    python "$SRCDIR/tests/func/shell_tab.py" $shell "./$shell.rc" \
        "${lines[@]}" >got
    diff expected got || fail "$shell completes otherwise"
done
if command -v fish >/dev/null; then
    seen="$seen fish"
    # fish lists words without quotes, and puts them in as they are needed.
    cat >expected <<END
nbdelta ser|serve
nbdelta info --output=j|--output=json
nbdelta map disk.qcow2 --bitmap \\$|\$(touch evil)
nbdelta map disk.qcow2 --bitmap "tw|two words
nbdelta map disk.qcow2 --bitmap=tw|--bitmap=two words
nbdelta map disk.qcow2 --bitmap 0
nbdelta map xx|xx file
nbdelta serve vda=x|vda=xx file
nbdelta prune di|dir/
nbdelta restore bk@|bk@$point|bk@latest
END
    cut -d'|' -f1 expected >lines
    HOME=$PWD fish --no-config -c '
        source $SRCDIR/completion/nbdelta.fish
        while read -l line
            string join "|" -- $line \
                (complete -C $line | string replace -r "\t.*" "")
        end <lines' >got
    diff expected got || fail "fish completes otherwise"
else
    echo "fish is not installed"
fi
echo "seen:$seen"

[ ! -e evil ] || fail "a name was carried out"
