#!/bin/bash
# nbdelta map: for an image, what qemu-img map prints.  For an export, also of a
# server of another make, base:allocation and dirty bitmaps.  Both as a picture.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"

same() {
    local keys='map({start, length, depth, present, zero, data, offset})'
    nbdelta map --output json "$@" | jq -c "${keys}[]" >ours
    qemu-img map --output json "$@" | jq -c "${keys}[]" >theirs
    diff theirs ours
}

qemu-img create -q -f qcow2 -o cluster_size=4k base.qcow2 20M
qemu-io -f qcow2 -c 'write -P 1 0 64k' -c 'write -P 1 68k 4k' \
    -c 'write -P 2 5M 1M' -c 'write -P 3 19M 1M' base.qcow2 >/dev/null
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 24M
qemu-io -f qcow2 -c 'write -P 4 5632k 1M' -c 'write -z 1M 128k' mid.qcow2 \
    >/dev/null
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 32M
qemu-io -f qcow2 -c 'write -P 5 0 64k' -c 'write -P 6 31M 64k' \
    -c 'write -z -u 128k 128k' top.qcow2 >/dev/null
same base.qcow2
same mid.qcow2
same top.qcow2

# Writes in reverse order lie in reverse order: nothing to join.
qemu-img create -q -f qcow2 mixed.qcow2 1M
qemu-io -f qcow2 -c 'write 192k 64k' -c 'write 128k 64k' -c 'write 64k 64k' \
    mixed.qcow2 >/dev/null
same mixed.qcow2

truncate -s 4M raw.img
qemu-io -f raw -c 'write -P 1 1M 1M' raw.img >/dev/null
same -f raw raw.img

truncate -s 0 empty.img
[ "$(nbdelta map --output json empty.img)" = '[]' ]

qemu-img convert -c -O qcow2 -f raw raw.img packed.qcow2
nbdelta map --output json packed.qcow2 |
    jq -e 'map(select(.data)) | length > 0 and all(.compressed)' >out

# Text: a heading, then a line for each range.
nbdelta map top.qcow2 >text
[ "$(tail -n +2 text | awk '{ sum += $2 } END { print sum }')" = 33554432 ]
grep -qE '^ +0 +65536  data +0  0x[0-9a-f]+ +top.qcow2$' text
grep -qE '^ +1048576 +131072  zero' text

refused() {
    local expected=$1 rc=0
    shift
    nbdelta map "$@" >out 2>message || rc=$?
    if [ "$rc" -eq 0 ] || ! grep -q "^nbdelta: map: .*$expected" message; then
        echo "nbdelta map $*: status $rc:"
        cat message
        exit 1
    fi
}
refused 'No such file' nosuch.qcow2
refused "no bitmap 'b0'" --bitmap b0 top.qcow2

# Where a chain leads is for the user to allow.
mkdir inner
qemu-img create -q -f qcow2 -b "$PWD/base.qcow2" -F qcow2 inner/over.qcow2
refused 'base.qcow2' inner/over.qcow2
nbdelta map --allow-path "$PWD" --output json inner/over.qcow2 >allowed
jq -e 'any(.depth == 1 and .data)' allowed >out
refused 'nosuchdir' --allow-path nosuchdir top.qcow2

# The chain, of which the server knows a bitmap.
qemu-img bitmap --add -g 64k top.qcow2 b0
qemu-io -f qcow2 -c 'write 3M 128k' -c 'write 3200k 64k' -c 'write 32704k 1k' \
    top.qcow2 >/dev/null
qemu-nbd -t -r -f qcow2 -x disk -B b0 -k "$PWD/sock" --pid-file "$PWD/pid" \
    top.qcow2 &
server=$!
for ((tries = 0; tries < 300; tries++)); do
    [ ! -e pid ] || break
    sleep 0.1
done
uri="nbd+unix:///disk?socket=$PWD/sock"
nbdelta map --bitmap b0 --output json "$uri" | jq -c '.[]' >dirty
diff - dirty <<END
{"start":0,"length":3145728,"dirty":false}
{"start":3145728,"length":196608,"dirty":true}
{"start":3342336,"length":30146560,"dirty":false}
{"start":33488896,"length":65536,"dirty":true}
END
# The image says the same; of one above it that says nothing.
nbdelta map --bitmap b0 --output json top.qcow2 | jq -c '.[]' | diff dirty -
qemu-img create -q -f qcow2 -b top.qcow2 -F qcow2 higher.qcow2
refused "'top.qcow2' below it tells nothing about this one" \
    -U --bitmap b0 higher.qcow2
nbdelta map --bitmap b0 top.qcow2 | grep -qE '^ +3145728 +196608  dirty$'
nbdelta map --bitmap b0 "$uri" | grep -qE '^ +3145728 +196608  dirty$'
refused "qemu:dirty-bitmap:b1" --bitmap b1 "$uri"

nbdelta map --output json "$uri" |
    jq -c 'map({offset: .start, length, zero, data})[]' >ours
nbdinfo --map --json "$uri" | jq -c 'map({offset, length,
    zero: (.type >= 2), data: (.type % 2 == 0)})[]' >theirs
diff theirs ours
nbdelta map "$uri" | grep -qE '^ +0 +65536  data$'

# A picture: the characters differ, so that it can be read without colours.
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 '<&>.qcow2' 32M
nbdelta bitmap add -g 64k '<&>.qcow2' 'b<'
qemu-io -f qcow2 -c 'write 1M 1M' -c 'write -z 2M 1M' -c 'write 12M 1k' \
    '<&>.qcow2' >/dev/null
columns=80
picture() {
    COLUMNS=$columns nbdelta map --rows 2 --output "$@"
}
picture picture '<&>.qcow2' >text
sed -n '3,4p' text | tr -d ' ' >rows
# The base has data at 0, 5 and 19 MiB, and 20 MiB of it are there at all.
dots() {
    printf '%*s' "$1" '' | tr ' ' .
}
diff - rows <<END
0B....####0000$(dots 8)====$(dots 40)
16MiB$(dots 12)====$(dots 48)
END
grep -qE '^#  data +1.06 MiB +3.3 %$' text
grep -qE '^=  in a backing file +2.07 MiB' text
picture picture --bitmap 'b<' '<&>.qcow2' >marked
grep -q '^Bitmap: b<$' marked
sed -n '4p' marked | grep -q "....DDDDDDDD........====$(dots 24)d$(dots 15)\$"
grep -qE '^D  dirty +2.06 MiB' marked
columns=40
picture picture '<&>.qcow2' | awk 'length > 48 { exit 1 }'
columns=

# ansi has colours, whatever the terminal is; picture where they can be seen.
[ "$(NO_COLOR=1 picture ansi '<&>.qcow2' | sed -e 's/\x1b\[[0-9;]*m//g')" = \
    "$(NO_COLOR=1 picture picture '<&>.qcow2')" ]
NO_COLOR=1 picture ansi '<&>.qcow2' | grep -q $'\x1b\\[0;32m####'
python3 - "$nbdelta" '<&>.qcow2' <<'END'
import fcntl, os, pty, struct, sys, termios

def shown(columns, **env):
    child, tty = pty.fork()
    if child == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ,
                    struct.pack("HHHH", 25, columns, 0, 0))
        env = {"PATH": os.environ["PATH"], "TERM": "xterm", **env}
        os.execve(sys.argv[1], ["nbdelta", "map", "--output", "picture",
                                sys.argv[2]], env)
    text = b""
    try:
        while part := os.read(tty, 4096):
            text += part
    except OSError:
        pass
    os.close(tty)
    assert os.waitpid(child, 0)[1] == 0, text
    return text

wide = shown(150)
assert b"\33[0;32m#" in wide
plain = shown(150, NO_COLOR="1")
assert b"\33" not in plain
assert b"\33" not in shown(150, TERM="dumb")
row = [line for line in plain.split(b"\r\n") if line.startswith(b"      0 B")]
assert len(row[0]) == 11 + 128, row
assert b"\n      0 B  " + 64 * b"." not in shown(150, COLUMNS="70")
END

# SVG is one file of XML, which tells in words what it shows.
nbdelta map --rows 1 --output svg --bitmap 'b<' '<&>.qcow2' >picture.svg
if command -v xmllint >/dev/null; then
    xmllint --noout picture.svg
fi
python3 - picture.svg <<'END'
import sys
import xml.etree.ElementTree as tree

svg = tree.parse(sys.argv[1]).getroot()
space = "{http://www.w3.org/2000/svg}"
assert svg.tag == space + "svg" and svg.get("role") == "img"
assert svg.findtext(space + "title").startswith("<&>.qcow2: 32 MiB, ")
told = svg.findtext(space + "desc")
assert "data: 1.06 MiB, 3.3 %." in told and "(bitmap b<)" in told, told
kinds = {path.get("class") for path in svg.iter(space + "path")}
assert kinds == {"data", "below", "zero", "hole", "partly", "dirty"}, kinds
END
if grep -e href -e '<script' -e '@import' picture.svg; then
    fail "the picture needs other files"
fi
picture svg empty.img | grep -q '</svg>'

# Of an export, too.
picture picture --bitmap b0 "$uri" >text
grep -qE '^D  dirty +256 KiB' text
grep -qE '^#  data ' text
for wrong in '--rows 0' '--rows 201' '--rows 5x' '--output ascii'; do
    # shellcheck disable=SC2086  # two words
    refused 'must be' --output svg $wrong top.qcow2
done
refused 'for pictures' --rows 3 -U top.qcow2
refused "no bitmap 'b1'" --output svg -U --bitmap b1 top.qcow2
[ ! -s out ]
