#!/bin/bash
# Measure nbdelta and its peers in one run.  Only the ratios count.  The machine
# is never quiet, so the candidates take turns, ROUNDS times, and each result is
# the median, with the least and the most.
#
#   BUILD=build [ROUNDS=3] [SECONDS_EACH=2] [SIZE=1G] [ROWS='plugin*'] \
#       tests/bench/bench.sh
set -eu -o pipefail
PATH=/usr/bin:$PATH

BUILD=$(realpath "${BUILD:?}")
export BUILD
here=$(realpath "${0%/*}")
nbdelta=$BUILD/nbdelta
plugin=$BUILD/nbdkit-nbdelta-plugin.so
rounds=${ROUNDS:-3}
each=${SECONDS_EACH:-2}
size=${SIZE:-1G}
for tool in fio nbdcopy nbdkit qemu-nbd qemu-storage-daemon jq certtool \
    psktool; do
    command -v "$tool" >/dev/null ||
        { echo "bench: $tool is missing (make packages installs it)"; exit 1; }
done

work=$(mktemp -d "${TMPDIR:-/tmp}/nbdelta-bench.XXXXXX")
server=
stop() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        server=
    fi
    rm -f "$work/sock" "$work/qmp"
}
trap 'stop; rm -rf "$work"' EXIT
cd "$work"
uri="nbd+unix:///?socket=$work/sock"

wait_for() {
    local tries
    for ((tries = 0; tries < 200; tries++)); do
        [ -S "$1" ] && return
        sleep 0.05
    done
    echo "bench: the server did not start"
    exit 1
}

# The same with TLS: start_tls WHO KIND, with `x509` certificates or `psk`.
start_tls() {
    local creds=tls-creds-$2,id=t,dir=$work/keys,endpoint=server
    local addr=addr.type=unix,addr.path=$work/sock
    case $1 in
    nbdelta|q-s-d)
        local program=("$nbdelta" serve)
        [ "$1" = nbdelta ] || program=(qemu-storage-daemon)
        "${program[@]}" --object "$creds" --nbd-server "$addr,tls-creds=t" \
            --blockdev file,node-name=f,filename=disk.raw \
            --blockdev raw,node-name=disk,file=f \
            --export nbd,id=e,node-name=disk,name=disk & ;;
    qemu-nbd)
        qemu-nbd -t -e 0 -f raw -r --cache writeback -x disk -k "$work/sock" \
            --object "$creds" --tls-creds t disk.raw & ;;
    nbdkit)
        local how=(--tls-certificates="$work/keys" --tls-verify-peer)
        [ "$2" = x509 ] || how=(--tls-psk="$work/keys/keys.psk")
        nbdkit -f -U sock -r --tls=require "${how[@]}" file disk.raw & ;;
    esac
    server=$!
    wait_for sock
}

# An encrypted image: start_luks WHO.
start_luks() {
    local key=secret,id=s,data=bench
    local disk=driver=qcow2,node-name=disk,encrypt.key-secret=s,file=f
    local export=type=nbd,id=e,node-name=disk,name=,writable=on
    local addr=addr.type=unix,addr.path=$work/sock
    case $1 in
    nbdelta)
        "$nbdelta" serve --object $key --nbd-server "$addr" \
            --blockdev driver=file,node-name=f,filename=disk.luks \
            --blockdev "$disk" --export "$export" & ;;
    q-s-d)
        qemu-storage-daemon --object $key --nbd-server "$addr" \
            --blockdev driver=file,node-name=f,filename=disk.luks,aio=io_uring \
            --blockdev "$disk,encrypt.format=luks" --export "$export" & ;;
    esac
    server=$!
    wait_for sock
}

# disk.qcow2, and what it was a moment ago to be pulled, at $past.
start_past() {
    case $1 in
    nbdelta)
        "$nbdelta" serve -U sock --qmp qmp disk=disk.qcow2 & ;;
    q-s-d)
        rm -f scratch.qcow2
        qemu-img create -q -f qcow2 scratch.qcow2 "$size"
        qemu-storage-daemon \
            --blockdev file,node-name=f,filename=disk.qcow2,aio=io_uring \
            --blockdev qcow2,node-name=disk,file=f \
            --blockdev file,node-name=sf,filename=scratch.qcow2,aio=io_uring \
            --blockdev qcow2,node-name=scratch,file=sf \
            --blockdev copy-before-write,node-name=cbw,file=disk,target=scratch \
            --blockdev snapshot-access,node-name=past,file=cbw \
            --nbd-server addr.type=unix,addr.path="$work/sock" \
            --export nbd,id=e,node-name=cbw,name=,writable=on \
            --export nbd,id=p,node-name=past,name=past & ;;
    esac
    server=$!
    wait_for sock
    past="nbd+unix:///past?socket=$work/sock"
    if [ "$1" = nbdelta ]; then
        wait_for qmp
        past=$("$nbdelta" backup-begin qmp --scratch . --output json |
            jq -r '.disks[0].uri')
    fi
}

# A guest that writes while a backup is pulled: iops, or p99 in microseconds.
guest_writes() {
    local pull
    nbdcopy "$past" null: &
    pull=$!
    fio_iops randwrite 4k 16 >iops
    wait "$pull"
    case $1 in
    *iops) cat iops ;;
    *) jq '.jobs[0].write.clat_ns.percentile["99.000000"] / 1000' fio.json ;;
    esac
}

# start WHO FORMAT: serve disk.FORMAT on `sock`; WHO+N: with so many persistent
# bitmaps.
start() {
    local bitmaps=${1#*+}
    start_plain "${1%+*}" "$2"
    [ "$bitmaps" != "$1" ] || return 0
    wait_for qmp
    change_bitmaps add "$bitmaps" '"persistent": true,'
}

# change_bitmaps VERB COUNT [ARGUMENTS]
change_bitmaps() {
    local i
    for ((i = 0; i < $2; i++)); do
        "$nbdelta" qmp qmp "block-dirty-bitmap-$1" \
            "{${3-} \"node\": \"disk\", \"name\": \"b$i\"}" >/dev/null
    done
}

# snapshot.qcow2 by a QEMU that runs nothing: q-s-d makes no snapshots.
start_qemu() {
    qemu-system-x86_64 -M none -nodefaults -display none -S \
        -blockdev "file,node-name=f,filename=$work/snapshot.qcow2,aio=io_uring" \
        -blockdev qcow2,node-name=disk,file=f \
        -qmp "unix:$work/qmp,server=on,wait=off" 2>/dev/null &
    server=$!
    wait_for qmp
    "$nbdelta" qmp qmp nbd-server-start \
        "{\"addr\": {\"type\": \"unix\", \"data\": {\"path\": \"$work/sock\"}}}"
    "$nbdelta" qmp qmp block-export-add type=nbd id=e node-name=disk name= \
        writable=true
}

# Milliseconds that a guest waits at the most for a write while an internal
# snapshot is made.
worst_write() {
    local guest
    fio --name=b --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k \
        --iodepth=4 --size=256G --runtime=$((each + 3)) --time_based \
        --output-format=json --output=fio.json >/dev/null &
    guest=$!
    sleep 1.5
    "$nbdelta" qmp qmp blockdev-snapshot-internal-sync device=disk name=s \
        >/dev/null
    wait "$guest"
    jq '.jobs[0].write.clat_ns.max / 1e6' fio.json
}

# Milliseconds that a guest waits at the most while four bitmaps of a disk of 16
# TiB, with bits all over, are cleared, or while the disk grows and shrinks.
worst_change() {
    local guest i
    wait_for qmp
    change_bitmaps add 4 '"persistent": true, "granularity": 65536,'
    qemu-io -f raw "$uri" <touches >/dev/null
    sleep 5 # bits are made exact
    fio --name=b --ioengine=nbd --uri="$uri" --rw=randrw --bs=4k --iodepth=4 \
        --size=1G --runtime=$((each + 3)) --time_based \
        --output-format=json --output=fio.json >/dev/null &
    guest=$!
    sleep 1.5
    if [ "$1" = clear ]; then
        change_bitmaps clear 4
    else
        for i in 1 -1; do
            "$nbdelta" qmp qmp block_resize \
                "{\"node-name\": \"disk\", \"size\": $(((16384 + i) << 30))}" \
                >/dev/null
        done
    fi
    wait "$guest"
    jq '[.jobs[0] | .read, .write | .clat_ns.max] | max / 1e6' fio.json
}

start_plain() {
    case $2 in
    huge)
        rm -f huge.qcow2
        qemu-img create -q -f qcow2 -o cluster_size=2M huge.qcow2 16T ;;
    snapshot)
        cp --sparse=always order.qcow2 snapshot.qcow2
        if [ "$1" = qemu ]; then
            start_qemu >/dev/null
            return
        fi ;;
    past) start_past "$1"; return ;;
    luks) start_luks "$1"; return ;;
    tls-*) start_tls "$1" "${2#tls-}"; return ;;
    esac
    local file=disk.$2 format=$2
    case $2 in
    first) # nothing was written to it yet
        file=first.qcow2 format=qcow2
        qemu-img create -q -f qcow2 "$file" 10G ;;
    large|huge|order|shuffled|snapshot|dense|holes|empty)
        file=$2.qcow2 format=qcow2 ;;
    esac
    local bitmap=
    [ "$2" != dense ] || bitmap=b0
    case $1 in
    nbdelta)
        "$nbdelta" serve -U sock -f "$format" --qmp qmp disk="$file" & ;;
    qemu-nbd)
        qemu-nbd -t -e 0 -f "$format" --cache writeback -k "$work/sock" \
            ${bitmap:+--bitmap "$bitmap"} "$file" & ;;
    q-s-d)
        local export=type=nbd,id=e,node-name=disk,name=,writable=on
        qemu-storage-daemon \
            --blockdev driver=file,node-name=f,filename="$file",aio=io_uring \
            --blockdev driver="$format",node-name=disk,file=f \
            --nbd-server addr.type=unix,addr.path="$work/sock" \
            --export "$export${bitmap:+,bitmaps.0=$bitmap}" \
            --chardev socket,id=c,path="$work/qmp",server=on,wait=off \
            --monitor chardev=c & ;;
    nbdkit) nbdkit -f -U sock file "$file" & ;;
    plugin) nbdkit -f -U sock "$plugin" "$file" format="$2" & ;;
    esac
    server=$!
    wait_for sock
}

run_fio() {
    fio --name=b --ioengine=nbd --uri="$uri" --rw="$1" --bs="$2" \
        --iodepth="$3" --size="$size" --runtime="$each" --time_based \
        --output-format=json --output=fio.json >/dev/null
}
fio_iops() {
    run_fio "$@"
    jq '.jobs[0] | .read.iops + .write.iops' fio.json
}

# Microseconds of the server's CPU for a request: steadier than requests a
# second.  What was never written is written before.
cpu_us() {
    awk -v hz="$(getconf CLK_TCK)" '{ printf "%d", ($14 + $15) / hz * 1e6 }' \
        "/proc/$server/stat"
}
fio_cpu() {
    local before
    run_fio "$@"
    before=$(cpu_us)
    run_fio "$@"
    jq --argjson us "$(($(cpu_us) - before))" \
        '.jobs[0] | $us / (.read.total_ios + .write.total_ios)' fio.json
}

# The first touch of each 4 MiB of a new disk of 10 GiB, one after the other
# at random: seconds, or flushes to the disk.
first_touches() {
    fio --name=b --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k \
        --iodepth=1 --size=10G --number_ios=2560 --output=fio.txt >/dev/null
}

# 1 GiB in clusters that are new, anywhere in 10 GiB.
allocate() {
    fio --name=b --ioengine=nbd --uri="$uri" --rw=randwrite --bs=64k \
        --iodepth=16 --size=10G --number_ios=16384 --output=fio.txt >/dev/null
}

count_flushes() {
    local tracer
    strace -f -p "$server" -e trace=fsync,fdatasync -o trace 2>/dev/null &
    tracer=$!
    sleep 1
    first_touches
    kill "$tracer"
    wait "$tracer" 2>/dev/null || true
    grep -c 'sync(' trace || true
}

seconds() {
    local from
    from=$(date +%s%N)
    "$@" >/dev/null
    awk -v a="$from" -v b="$(date +%s%N)" 'BEGIN { print (b - a) / 1e9 }'
}

# nbdcopy is what takes keys in a URI: pull WHAT, all of it or so many 4K.
tls_pull() {
    local query="socket=$work/sock"
    case $1 in
    *-x509) query="nbds+unix:///disk?$query&tls-certificates=$work/keys" ;;
    *) query="nbds+unix://user@/disk?$query&tls-psk-file=$work/keys/keys.psk" ;;
    esac
    case $1 in
    tls-1m-*) seconds nbdcopy --connections=1 --requests=8 \
        --request-size=1048576 "$query" null: ;;
    *) seconds nbdcopy --connections=1 --requests=1 --request-size=4096 \
        "$query" null: ;;
    esac
}

# Our client drives both daemons: they speak the same QMP.
q_s_d_backup() {
    "$nbdelta" qmp qmp blockdev-add "{\"driver\": \"qcow2\",
        \"node-name\": \"t\", \"discard\": \"unmap\", \"file\": {
        \"driver\": \"file\", \"filename\": \"$work/target.qcow2\"}}"
    "$nbdelta" qmp qmp blockdev-backup job-id=j device=disk target=t \
        sync=full --wait
}
our_backup() {
    "$nbdelta" qmp qmp drive-backup device=disk sync=full format=qcow2 \
        mode=existing target="$work/target.qcow2" --wait
}

# Into an export of another server.
remote_backup() {
    "$nbdelta" qmp qmp blockdev-add "{\"driver\": \"nbd\",
        \"node-name\": \"t\", \"discard\": \"unmap\", \"server\": {
        \"type\": \"unix\", \"path\": \"$work/far\"}}"
    "$nbdelta" qmp qmp blockdev-backup job-id=j device=disk target=t \
        sync=full --wait
}

measure() {
    case $2 in
    cpu:*)
        local shape=${2#cpu:}
        # shellcheck disable=SC2086  # operation, block size, depth
        fio_cpu ${shape//:/ } ;;
    allocate) seconds allocate ;;
    cold) # what the server has read in is written to
        sync "disk.$3"
        dd if="disk.$3" iflag=nocache count=0 status=none
        nbdcopy "$uri" null:
        fio_iops randwrite 4k 64 ;;
    touches) seconds first_touches ;;
    flushes) count_flushes ;;
    load)
        stop
        if [ "$1" = nbdelta ]; then # `info` looks at no bits
            seconds "$nbdelta" bitmap list "$3.qcow2"
        else
            seconds qemu-img info "$3.qcow2"
        fi ;;
    list:*) # the first time, tables are read in
        "$BUILD/tests/bench/nbd-status" sock '' "${2#list:}" >/dev/null
        "$BUILD/tests/bench/nbd-status" sock '' "${2#list:}" | cut -d ' ' -f 1 ;;
    check)
        stop
        if [ "$1" = nbdelta ]; then
            seconds "$nbdelta" check -q "$3.qcow2"
        else
            seconds qemu-img check -q "$3.qcow2"
        fi ;;
    worst-write) worst_write ;;
    worst-*) worst_change "${2#worst-}" ;;
    end)
        qemu-io -f raw "$uri" <touches >/dev/null
        seconds stop ;;
    randread*|randwrite*)
        # shellcheck disable=SC2086  # operation, block size, depth
        fio_iops ${2//:/ } ;;
    pull) seconds nbdcopy "$uri" null: ;;
    guest-*) guest_writes "$2" ;;
    tls-*) tls_pull "$2" ;;
    backup)
        rm -f target.qcow2
        qemu-img create -q -f qcow2 target.qcow2 "$size"
        if [ "$1" = nbdelta ]; then
            seconds our_backup
        else
            seconds q_s_d_backup
        fi ;;
    remote)
        rm -f target.raw
        truncate -s "$size" target.raw
        qemu-nbd -t -f raw --discard=unmap -k "$work/far" target.raw &
        local far=$!
        wait_for "$work/far"
        seconds remote_backup
        kill "$far"
        wait "$far" || true ;;
    esac
}

# row TITLE WHAT FORMAT CANDIDATE...: the first candidate is ours.  With `goal`
# set, that is what its ratio to the best of the others shall be.
row() {
    local title=$1 what=$2 format=$3 who round
    shift 3
    # shellcheck disable=SC2053  # a pattern
    [[ $title == ${ROWS-*} ]] || return 0
    rm -f result.*
    for ((round = 0; round < rounds; round++)); do
        for who in "$@"; do
            start "$who" "$format"
            measure "$who" "$what" "$format" >>"result.$who"
            if [[ $who = *+* ]]; then
                change_bitmaps remove "${who#*+}"
            fi
            stop
        done
    done
    printf '%-34s' "$title"
    for who in "$@"; do
        sort -g "result.$who" | awk -v who="$who" '
            { v[NR] = $1 }
            function f(x) {
                if (x >= 1000)
                    return sprintf("%.1fK", x / 1000)
                return sprintf("%.2f", x)
            }
            END { m = v[int((NR + 1) / 2)]
                  printf " %s %s (%s-%s)", who, f(m), f(v[1]), f(v[NR])
                  print m > "median." who }'
    done
    echo
    printf '%-34s' "  $1 / each"
    for who in "${@:2}"; do
        awk -v a="$(cat "median.$1")" -v b="$(cat "median.$who")" \
            -v who="$who" 'BEGIN { printf " %s %.2f", who, a / b }'
    done
    [ -z "${goal-}" ] || printf ' (goal: %s)' "$goal"
    echo
}

fallocate -l "$size" disk.raw
fio --name=fill --filename=disk.raw --rw=write --bs=1M --size="$size" \
    --refill_buffers --output=/dev/null
qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
cat disk.raw disk.qcow2 >/dev/null

echo "I/O per second (more is better); $rounds rounds, load $(cut -d' ' -f1 /proc/loadavg)"
for depth in 1 16 64; do
    row "4K random read, QD $depth, raw" randread:4k:$depth raw \
        nbdelta qemu-nbd q-s-d nbdkit
    row "4K random read, QD $depth, qcow2" randread:4k:$depth qcow2 \
        nbdelta qemu-nbd q-s-d
done
row "4K random write, QD 64, qcow2" randwrite:4k:64 qcow2 \
    nbdelta qemu-nbd q-s-d
row "4K random write, QD 64, cache was cold" cold qcow2 \
    nbdelta qemu-nbd q-s-d
for count in 1 4; do
    row "4K random write, QD 64, $count bitmaps" randwrite:4k:64 qcow2 \
        nbdelta "nbdelta+$count" q-s-d "q-s-d+$count"
done
"$nbdelta" create --object secret,id=s,data=bench \
    -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=100 \
    disk.luks "$size"
qemu-img convert -n -f raw --target-image-opts --object secret,id=s,data=bench \
    disk.raw driver=qcow2,encrypt.key-secret=s,file.filename=disk.luks
for what in randread:4k:16 randwrite:4k:16 randread:1m:4 randwrite:1m:4; do
    row "LUKS, $what" $what luks nbdelta q-s-d
done
row "nbdcopy pull of $size, LUKS" pull luks nbdelta q-s-d
rm disk.luks
row "4K random write, QD 16, qcow2" randwrite:4k:16 qcow2 nbdelta q-s-d
row "  while its past is pulled" guest-iops past nbdelta q-s-d
for depth in 1 16; do
    row "plugin: 4K random read, QD $depth, raw" randread:4k:$depth raw \
        plugin nbdkit nbdelta
    row "plugin: 4K random read, QD $depth, qcow2" randread:4k:$depth qcow2 \
        plugin qemu-nbd nbdelta
    row "plugin: 4K random write, QD $depth, raw" randwrite:4k:$depth raw \
        plugin nbdkit nbdelta
    row "plugin: 4K random write, QD $depth, qcow2" randwrite:4k:$depth qcow2 \
        plugin qemu-nbd nbdelta
done
echo "Microseconds of CPU a request (less is better)"
row "4K random write, QD 64, 1, 4 bitmaps" cpu:randwrite:4k:64 qcow2 \
    nbdelta nbdelta+1 nbdelta+4 q-s-d q-s-d+4
echo "Microseconds (less is better)"
row "p99 of these writes, then" guest-p99 past nbdelta q-s-d
echo "Seconds (less is better)"
row "plugin: nbdcopy pull of $size, raw" pull raw plugin nbdkit nbdelta
row "plugin: nbdcopy pull of $size, qcow2" pull qcow2 plugin qemu-nbd nbdelta
row "nbdcopy pull of $size, raw" pull raw nbdelta qemu-nbd q-s-d nbdkit
row "nbdcopy pull of $size, qcow2" pull qcow2 nbdelta qemu-nbd q-s-d
row "full backup of $size to qcow2" backup qcow2 nbdelta q-s-d
row "full backup of $size to a remote disk" remote qcow2 nbdelta q-s-d

row "1 GiB in new clusters, 64K, QD 16" allocate first nbdelta qemu-nbd q-s-d

# Bitmaps of disks that were never written to: `first` is made anew each time.
row "2560 first touches of 10 GiB" touches first nbdelta nbdelta+1 nbdelta+4
if command -v strace >/dev/null; then
    echo "Flushes for that"
    row "2560 first touches of 10 GiB" flushes first \
        nbdelta nbdelta+1 nbdelta+4
fi

# A disk of 16 TiB, with a bit set in each 32 GiB: 32 MiB of bits in the file.
qemu-img create -q -f qcow2 large.qcow2 16T
qemu-img bitmap --add large.qcow2 b0
for ((i = 0; i < 512; i++)); do
    echo "write -q $((i * 32 + 5))G 4k"
done >touches
qemu-io -f qcow2 large.qcow2 <touches >/dev/null
goal='<= 0.6' row "load a bitmap of 16 TiB, few bits" load large nbdelta q-s-d
row "stop after touches all over it" end large nbdelta q-s-d
cp --sparse=always large.qcow2 dense.qcow2
python3 "$here/images.py" dense dense.qcow2
goal='<= 0.6' row "load a bitmap of 16 TiB, dense" load dense nbdelta q-s-d

# Listing, by a client that costs next to nothing.
goal='<= 0.35' row "list 5.3M extents of that bitmap" \
    list:qemu:dirty-bitmap:b0 dense nbdelta qemu-nbd q-s-d
rm dense.qcow2
qemu-img create -q -f qcow2 holes.qcow2 64G
python3 "$here/images.py" holes holes.qcow2
goal='<= 0.25' row "block status of 1M extents" list:base:allocation holes \
    nbdelta qemu-nbd q-s-d
qemu-img create -q -f qcow2 empty.qcow2 16T
goal='<= 0.4' row "block status of empty 16 TiB" list:base:allocation empty \
    nbdelta qemu-nbd q-s-d

# 4M clusters.  Shuffled, they take qemu-img 7.2 more than eight minutes.
qemu-img create -q -f qcow2 -o preallocation=metadata order.qcow2 256G
row "check of 4M clusters in order" check order nbdelta q-s-d
cp --sparse=always order.qcow2 shuffled.qcow2
python3 "$here/shuffle-clusters.py" shuffled.qcow2
row "check of 4M clusters, shuffled" check shuffled nbdelta
rm shuffled.qcow2
echo "Milliseconds (less is better)"
row "worst wait while bitmaps clear" worst-clear huge nbdelta q-s-d
# q-s-d does not resize a disk that it exports.
row "worst wait while the disk resizes" worst-resize huge nbdelta
rm -f huge.qcow2
if command -v qemu-system-x86_64 >/dev/null; then
    row "worst write while a snapshot is made" worst-write snapshot \
        nbdelta qemu
fi
rm -f order.qcow2 snapshot.qcow2

mkdir keys
psktool -u user -p keys/keys.psk >/dev/null 2>&1
key_pair() {
    printf '%s\n' "${@:2}" signing_key 'expiration_days = 2' >template
    certtool --generate-privkey --ecc --outfile "keys/$1-key.pem" 2>/dev/null
    if [ "$1" = ca ]; then
        certtool --generate-self-signed --load-privkey keys/ca-key.pem \
            --template template --outfile keys/ca-cert.pem 2>/dev/null
    else
        certtool --generate-certificate --load-privkey "keys/$1-key.pem" \
            --load-ca-privkey keys/ca-key.pem --template template \
            --load-ca-certificate keys/ca-cert.pem \
            --outfile "keys/$1-cert.pem" 2>/dev/null
    fi
}
key_pair ca 'cn = bench' ca cert_signing_key
key_pair server 'cn = localhost' tls_www_server
key_pair client 'cn = user' tls_www_client
for kind in x509 psk; do
    row "TLS $kind, pull, 1M x 8" tls-1m-$kind tls-$kind \
        nbdelta qemu-nbd q-s-d nbdkit
done
truncate -s 16M disk.raw
for kind in x509 psk; do
    row "TLS $kind, pull of 16M, 4K x 1" tls-4k-$kind tls-$kind \
        nbdelta qemu-nbd nbdkit
done

# Backups of a QEMU, in a directory of their own.  ROWS='QEMU*' measures only
# these.
# shellcheck disable=SC2053  # a pattern
if [[ 'QEMU: backups' == ${ROWS-*} ]]; then
    mkdir qemu
    cd qemu
    PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 \
        "$here/qemu_rows.py" "$(numfmt --from=iec "$size")" "$rounds"
    cd ..
fi

# Backups of a domain of libvirt, in a directory of their own.  ROWS='libvirt*'
# measures only these.
# shellcheck disable=SC2053  # a pattern
if [[ 'libvirt: backups' == ${ROWS-*} ]] && [ "$(id -u)" -eq 0 ] &&
    [ -e "$BUILD/nbdelta-source-libvirt.so" ]; then
    mkdir libvirt
    cd libvirt
    NBDELTA_MODULES=$BUILD PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 \
        "$here/libvirt_rows.py" "$(numfmt --from=iec "$size")" "$rounds" ||
        [ $? -eq 77 ]
    cd ..
fi
