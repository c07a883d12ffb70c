#!/bin/bash
# Images encrypted with LUKS, which QEMU or we have made: we read what it writes, and it
# reads what we write, over ciphers and cluster sizes.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io jq

printf 'open sesame' >key
printf 'open barley' >wrong
secret=secret,id=s,file=key

# The options of a node for an image.
opts() { # IMAGE
    echo "driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename=$1"
}

# QEMU measures how fast it is, and gives up where that takes no time.
qemu_image() { # OPTIONS SIZE
    local try
    for try in 1 2 3 4 5 6 7 8 9 10; do
        rm -f disk.qcow2
        if qemu-img create -q -f qcow2 --object $secret -o \
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=20,$1" \
            disk.qcow2 "$2" 2>err; then
            return
        fi
        grep -q 'CPU usage' err || fail "qemu-img create -o $1: $(cat err)"
    done
    fail "qemu-img create -o $1: failed $try times"
}

make_image() { # OPTIONS SIZE
    rm -f disk.qcow2
    nbdelta create --object $secret \
        -o "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1,$1" \
        disk.qcow2 "$2"
}

qemu() { # COMMANDS on standard input
    qemu-io --object $secret --image-opts "$(opts disk.qcow2)" "$@" >out
    ! grep -i 'failed\|error' out || fail "$what: qemu-io"
}

serve_disk() {
    serve --object $secret \
        --blockdev "node-name=d,discard=unmap,$(opts disk.qcow2)" \
        --export id=d,type=nbd,node-name=d,name=,writable=on
}

ours() { # COMMANDS on standard input
    qemu-io -f raw "$uri" "$@" >out
    ! grep -i 'failed\|error' out || fail "$what: ours"
}

both_directions() {
    # A cluster's part, a zero cluster, and requests that are not aligned.
    qemu <<-'EOF'
	write -P 7 0 64k
	write -P 9 100k 5k
	write -P 3 1M 3M
	write -z 2M 64k
	EOF
    serve_disk
    ours <<-'EOF'
	read -P 7 0 64k
	read -P 0 64k 36k
	read -P 9 100k 5k
	read -P 9 104345 100
	read -P 0 105k 919k
	read -P 3 1M 1M
	read -P 0 2M 64k
	read -P 3 2112k 1984k
	write -P 5 3M 128k
	write -P 6 6200k 1k
	write -P 8 7001000 7
	write -P 1 1M 3
	write -z 3200k 64k
	discard 3300k 64k
	flush
	read -P 8 7001000 7
	read -P 0 7001007 100
	EOF
    stop_server
    qemu -r <<-'EOF'
	read -P 7 0 64k
	read -P 9 100k 5k
	read -P 1 1M 3
	read -P 3 1048579 1000
	read -P 5 3M 128k
	read -P 0 3200k 64k
	read -P 0 6144k 56k
	read -P 6 6200k 1k
	read -P 0 6201k 100k
	read -P 8 7001000 7
	read -P 0 7001007 100k
	EOF
    nbdelta check -q disk.qcow2 || fail "$what: nbdelta check"
    qemu-img check -q --object $secret --image-opts "$(opts disk.qcow2)" ||
        fail "$what: qemu-img check"
}

# QEMU makes two, which takes it a second each; luks-create.sh has more.
for what in cluster_size=512,encrypt.hash-alg=sha1,encrypt.cipher-alg=aes-128 \
    encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256
do
    qemu_image "$what" 8M
    both_directions
done
for what in cluster_size=2M,encrypt.cipher-alg=aes-192,encrypt.hash-alg=sha512 \
    compat=0.10,encrypt.ivgen-alg=plain cluster_size=4k,data_file=data; do
    make_image "$what" 8M
    both_directions
done

# --- Without the key ---

what=info
make_image "encrypt.cipher-alg=aes-192" 8M
qemu -c 'write -P 1 0 1M'
[ "$(nbdelta info --output json disk.qcow2 | jq .encrypted)" = true ]
# detached-header: since QEMU 9.
specific='."format-specific" | del(.data.encrypt."detached-header")'
diff <(qemu-img info --output json disk.qcow2 | jq -S "$specific") \
    <(nbdelta info --output json disk.qcow2 | jq -S "$specific") ||
    fail "info differs from qemu-img's"
nbdelta info disk.qcow2 >out
grep -q 'payload offset' out || fail "info for people has no encryption"
nbdelta check disk.qcow2 >out || fail "check needs no key"

# Places in an encrypted image are of no use.
diff <(qemu-img map --output json --object $secret --image-opts \
    "$(opts disk.qcow2)" | jq -c '.[] | [.start, .length, .zero, .offset]') \
    <(nbdelta map --output json --object $secret "$(opts disk.qcow2)" |
        jq -c '.[] | [.start, .length, .zero, .offset]') ||
    fail "map differs from qemu-img's"

refused() { # TEXT NODE-OPTIONS OBJECT...
    local text=$1 options=$2
    shift 2
    serve_refused "$text" "$@" --blockdev "node-name=d,$options"
}
plain=driver=qcow2,file.driver=file,file.filename=disk.qcow2
refused "'encrypt.key-secret' is required" $plain
refused "No secret with id 's'" "$(opts disk.qcow2)"
refused "Invalid password, cannot unlock any keyslot" "$(opts disk.qcow2)" \
    --object secret,id=s,file=wrong
refused "options specify 'aes'" "$(opts disk.qcow2),encrypt.format=aes" \
    --object $secret
qemu-img create -q -f qcow2 plain.qcow2 1M
refused "No encryption in image header" "$(opts plain.qcow2)" --object $secret
qemu-img create -q -f qcow2 --object $secret \
    -o encrypt.format=aes,encrypt.key-secret=s old.qcow2 1M 2>err
refused "qemu-img convert" "$(opts old.qcow2)" --object $secret

# --- Chains, and QMP ---

what=chain
qemu -c 'write -P 2 1M 1M'
mv disk.qcow2 base.qcow2
make_image "cluster_size=4k,backing_file=base.qcow2,backing_fmt=qcow2" 8M
chain="$(opts disk.qcow2),backing.encrypt.key-secret=s"
serve --object "secret,id=s,format=base64,data=$(base64 <key)" \
    --blockdev "node-name=d,$chain" \
    --export id=d,type=nbd,node-name=d,name=,writable=on
ours -c 'read -P 1 0 1M' -c 'write -P 3 1500000 1000' -c 'read -P 2 1M 451424' \
    -c 'read -P 3 1500000 1000' -c 'read -P 2 1501000 596152'
qmp blockdev-add '{"node-name": "n", "driver": "qcow2", "read-only": true,
    "encrypt": {"format": "luks", "key-secret": "nosuch"},
    "file": {"driver": "file", "filename": "plain.qcow2"}}' >out 2>&1 &&
    fail "a plain image was opened with a key"
grep -q 'No encryption in image header' out || fail "QMP said $(cat out)"
qmp query-named-block-nodes | jq -e '.[] | select(."node-name" == "d") |
    .encrypted and .image.encrypted' >out || fail "the node is not encrypted"
# The secret may go while the image is open.
qmp object-del '{"id": "s"}' >out
ours -c 'read -P 3 1500000 1000'
stop_server

# --- A header that asks for 2^32 iterations ends with the process ---

printf '\377\377\377\377' | dd of=base.qcow2 bs=1 conv=notrunc status=none \
    seek=$(($(nbdelta info --output json base.qcow2 >/dev/null
        od -An -v -tx1 base.qcow2 -N 4096 | tr -d ' \n' |
            sed 's/.*0537be7700000010\(.\{16\}\).*/0x\1/') + 212))
nbdelta serve --object $secret --blockdev "node-name=d,$(opts base.qcow2)" &
server=$!
sleep 1
kill -0 "$server" || fail "2^32 iterations were done at once"
stopped() {
    ! kill -0 "$server" 2>/dev/null
}
kill -TERM "$server"
wait_until "the server ends" stopped
server=
