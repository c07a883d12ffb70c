#!/bin/bash
# Backups outlive nbdelta: the commands of nbdelta-backup's page copy a backup
# directory, and restore from the copy with QEMU's tools alone.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io rsync flock

mkdir -p backup offsite
qemu-img create -q -f qcow2 disk.qcow2 16M
serve vda=disk.qcow2
for i in 1 2 3; do
    qemu-io -f raw -c "write -P $i ${i}M 2M" "$(uri_of vda)" >/dev/null
    nbdelta backup "$qmp_sock" backup/web
done
stop_server

# The page's examples as they are printed, for this directory.
points=(backup/web/vda/*.qcow2)
[ "${#points[@]}" = 3 ] || fail "${points[*]}"
name=${points[2]##*/}
sed -n '/^\.SH COPIES/,/^\.SH EXIT/p' "$SRCDIR/man/nbdelta-backup.1" |
    sed -n '/^\.EX$/,/^\.EE$/{/^\.E[XE]$/!p}' |
    sed -e 's/\\-/-/g' -e 's/\\e/\\/g' -e "s|/mnt/offsite|$PWD/offsite|" |
    sed -e "s/20261129T023000Z.qcow2/$name/" >examples
[ "$(grep -c '^[a-z]' examples)" = 5 ] || fail "$(cat examples)"
grep rsync examples | sed "s|/backup/web|$PWD/backup/web|g" >copy
grep -v rsync examples | sed "s|/backup/web|$PWD/offsite/web|g" >restore

bash -eux copy
rm -r backup
PATH=$(printf %s "$PATH" | tr : '\n' | grep -vxF "$BUILD" | paste -sd:) \
    bash -eux -c 'if command -v nbdelta; then exit 1; fi; . ./restore' >log
grep -q "${points[0]##*/}" log
qemu-img compare -q -f raw -F qcow2 vda.raw disk.qcow2
qemu-img compare -q -f qcow2 -F qcow2 vda.qcow2 disk.qcow2

[ "$(stat -c %a offsite/web)" = 700 ]
[ -z "$(find offsite/web -type f ! -perm 600)" ]
nbdelta verify offsite/web
nbdelta restore offsite/web vda=again.qcow2
qemu-img compare -q again.qcow2 disk.qcow2
