#!/bin/bash
# Encrypted images in all commands: those that look at data take the passphrase
# by --object, the others need none; and such a disk grows and shrinks.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

printf 'open sesame' >key
printf 'open barley' >wrong
secret=secret,id=s,file=key

opts() { # IMAGE
    echo "driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename=$1"
}

make_image() { # OPTIONS IMAGE [SIZE]
    nbdelta create --object $secret -o \
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1,$1" "${@:2}"
}

qemu() { # IMAGE ARG...
    qemu-io --object $secret --image-opts "$(opts "$1")" "${@:2}" >out
    [ ! -s out ] || fail "$what: $(cat out)"
}

sound() { # IMAGE
    nbdelta check -q "$1"
    qemu-img check -q --object $secret --image-opts "$(opts "$1")" ||
        fail "$what: qemu-img check"
}

# COMMAND with the key; without it, and with a wrong one, it is refused.
with_key() { # COMMAND ARG...
    what=$*
    if nbdelta "${@:1:1}" --object secret,id=s,file=wrong "${@:2}" >out 2>err
    then
        fail "$what: done with a wrong key"
    fi
    grep -q 'Invalid password' err || fail "$what: $(cat err)"
    if nbdelta "$@" >out 2>err; then
        fail "$what: done without a key"
    fi
    grep -q 'No secret with id' err || fail "$what: $(cat err)"
    nbdelta "${@:1:1}" --object $secret "${@:2}" >out
}

# --- Sizes ---

for options in cluster_size=64k cluster_size=512,data_file=data; do
    rm -f disk data
    make_image $options disk 8M
    what=$options
    qemu disk -c 'write -q -P 1 0 3000k' -c 'write -q -P 2 8000k 192k'
    with_key resize -q --image-opts "$(opts disk)" 12M
    qemu disk -c 'read -q -P 1 0 3000k' -c 'read -q -P 2 8000k 192k' \
        -c 'read -q -P 0 8M 4M'
    sound disk
    nbdelta resize -q --object $secret --image-opts --preallocation metadata \
        "$(opts disk)" +1M
    qemu disk -c 'read -q -P 2 8000k 192k' -c 'read -q -P 0 8M 5M'
    sound disk
    nbdelta resize -q --object $secret --image-opts --shrink "$(opts disk)" 1001k
    sound disk
    nbdelta resize -q --object $secret --image-opts "$(opts disk)" 4M
    qemu disk -c 'read -q -P 1 0 1001k' -c 'read -q -P 0 1001k 3095k'
done

what=block_resize
serve --object $secret --blockdev "node-name=d,$(opts disk)" \
    --export id=d,type=nbd,node-name=d,name=,writable=on
qmp block_resize node-name=d size=6291456 >out
qemu-io -f raw -c 'read -q -P 0 4M 2M' -c 'write -q -P 4 5M 1M' "$uri" >out
[ ! -s out ] || fail "$(cat out)"
# An encrypted node takes other options, and keeps its key.
qmp blockdev-reopen "{\"options\": [{\"driver\": \"qcow2\", \"node-name\": \"d\",
    \"cache-size\": 2097152, \"encrypt\": {\"key-secret\": \"s\"},
    \"data-file\": $(qmp query-named-block-nodes | jq '[.[] | select(.file ==
        "data" and .drv == "file")][0]."node-name"'),
    \"file\": $(qmp query-named-block-nodes | jq '[.[] | select(.file == "disk"
        and .drv == "file")][0]."node-name"')}]}" >out
qemu-io -f raw -c 'read -q -P 4 5M 1M' -c 'write -q -P 5 5M 1M' "$uri" >out
[ ! -s out ] || fail "$(cat out)"
stop_server
qemu disk -c 'read -q -P 1 0 1001k' -c 'read -q -P 5 5M 1M'

# --- The others ---

rm -f disk data
make_image cluster_size=4k disk 8M
qemu disk -c 'write -q -P 1 0 1M'
with_key snapshot --image-opts -c s1 "$(opts disk)"
nbdelta snapshot -l disk | grep -q s1
qemu disk -c 'write -q -P 7 0 64k'
nbdelta snapshot --object $secret --image-opts -a s1 "$(opts disk)"
qemu disk -c 'read -q -P 1 0 1M'
nbdelta snapshot --object $secret --image-opts -d s1 "$(opts disk)"
with_key compare --image-opts "$(opts disk)" "$(opts disk)"
with_key map "$(opts disk)"
with_key measure --image-opts -O qcow2 "$(opts disk)"
qemu-img convert -O qcow2 --object $secret --image-opts "$(opts disk)" base
make_image cluster_size=4k,backing_file=base,backing_fmt=qcow2 top
with_key rebase --image-opts -b '' "$(opts top)"
[ "$(nbdelta info --output json top | jq '."backing-filename"')" = null ]
nbdelta compare -q --object $secret --image-opts "$(opts disk)" "$(opts top)"
with_key amend --image-opts -o size=9M "$(opts top)"

# Not needed, and taken all the same.
nbdelta info --object $secret --image-opts "$(opts top)" >out
grep -q 'encrypted: yes' out
nbdelta check -q --object $secret --image-opts "$(opts top)"
nbdelta check -q top
nbdelta amend -o lazy_refcounts=on top
sound top
