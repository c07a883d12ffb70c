#!/bin/bash
# One file comes out of a point of a backup, by the commands of nbdelta-restore's
# page: out of the full and out of the increment what was in the file then.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need mke2fs debugfs qemu-img nbdcopy
need_plugin
[ -z "${SANITIZE-}" ] || skip "nbdkit's filters are not instrumented"
nbdkit --filter=ext2 --filter=partition null --dump-plugin >/dev/null 2>&1 ||
    skip "nbdkit has no ext2 filter"
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

# The file is larger than a cluster, and its end is in the middle of a sector.
mkdir -p root/etc
head -c 200001 /dev/urandom >before
head -c 300003 /dev/urandom >now
cp before root/etc/hosts
truncate -s 32M disk.raw
mke2fs -q -t ext4 -d root -E offset=1048576 disk.raw 31M
# A table with one partition, from sector 2048 on.
python - <<'END'
import struct
with open('disk.raw', 'r+b') as f:
    f.seek(446)
    f.write(struct.pack('<B3sB3sII', 0, b'\0\2\0', 0x83, b'\xff\xff\xff',
                        2048, 31 * 2048))
    f.seek(510)
    f.write(b'\x55\xaa')
END

nbdelta create disk.qcow2 32M
# What a guest does: only what differs is written.
cat >update.py <<'END'
import sys
import nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
step = 1 << 16
with open('disk.raw', 'rb') as f:
    for at in range(0, h.get_size(), step):
        data = f.read(step)
        if h.pread(step, at) != data:
            h.pwrite(data, at)
h.flush()
h.shutdown()
END
serve vda=disk.qcow2
python update.py "$(uri_of vda)"
nbdelta backup "$qmp_sock" backups
debugfs -w -R 'rm /etc/hosts' 'disk.raw?offset=1048576' 2>/dev/null
debugfs -w -R 'write now /etc/hosts' 'disk.raw?offset=1048576' >/dev/null 2>&1
python update.py "$(uri_of vda)"
nbdelta backup "$qmp_sock" backups
stop_server
# The full first: its name is the earlier one.
points=("$PWD"/backups/vda/*.qcow2)
[ "${#points[@]}" = 2 ] || fail "these are not two points: ${points[*]}"
[ "$(stat -c %s "${points[1]}")" -lt "$(stat -c %s "${points[0]}")" ] ||
    fail "the increment is no smaller than the full"

# The examples of the section as they are printed, a command a line.
sed -n '/^\.SH ONE FILE/,/^\.SH SEE/p' "$SRCDIR/man/nbdelta-restore.1" |
    sed -n '/^\.EX$/,/^\.EE$/{/^\.E[XE]$/!p}' |
    sed -e 's/\\-/-/g' -e "s/\\\\(aq/'/g" -e 's/\\e/\\/g' |
    sed -e ':a' -e '/\\$/{N;s/\\\n *//;ba}' >commands
[ "$(wc -l <commands)" = 7 ] || fail "the page has: $(cat commands)"

fuse=
if [ -w /dev/fuse ] && command -v nbdfuse fusermount3 >/dev/null; then
    fuse=yes
fi
leave_disk() {
    ! mountpoint -q disk || fusermount3 -u disk
}
at_exit leave_disk

run_page() {
    local command
    while IFS= read -r command <&3; do
        case ${fuse:-no}:$command in
        *:point=*) export point=$1 ;;
        *:nbdkit*) eval "${command/ nbdelta / "$plugin" }" ;;
        no:*fuse*|no:*disk/vda*) ;;
        *' &')
            eval "$command"
            wait_until "the disk is there" test -e disk/vda ;;
        *) eval "$command" ;;
        esac
    done 3<commands
}

i=0
for file in before now; do
    (
        mkdir $file.dir
        cd $file.dir
        cp ../commands .
        run_page "${points[i]}"
        cmp hosts ../$file
        [ -z "$fuse" ] || cmp hosts.dumped ../$file
        qemu-img compare -q -f qcow2 -F qcow2 look.qcow2 "${points[i]}"
    ) </dev/null >$file.log 2>&1 || fail "$file: $(cat $file.log)"
    i=$((i + 1))
done
nbdelta verify backups
