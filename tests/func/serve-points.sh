#!/bin/bash
# A backup directory is an image for `nbdelta serve`: each disk of a point is an
# export, by the names of the page, read-only; it stays while it is served.
# With --overlay clients write to a file over any image.  Directories that name
# what is not in them are refused.
set -eu -o pipefail

# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img qemu-io nbdinfo nbdcopy jq

one=20261127T023000Z
two=20261128T023000Z
three=20261129T023000Z
size=5440000

uri_name() {
    echo "nbd+unix:///$1?socket=$sock"
}

# exports NAME...: these, and no others.
exports() {
    diff <(printf '%s\n' "$@") <(nbdinfo --list --json "$uri" |
        jq -r '.exports[]."export-name"' | sort) || fail "not the exports $*"
}

python "$SRCDIR/tests/func/store_dir.py" dir
chmod 700 dir

# --- All disks of the latest point ---
serve dir
exports vda vdb
for disk in vda vdb; do
    qemu-img compare -q -f raw -F qcow2 "$(uri_name $disk)" \
        dir/$disk/$three.qcow2
    nbdcopy "$(uri_name $disk)" $disk.raw
    qemu-img compare -q -f raw -F qcow2 $disk.raw dir/$disk/$three.qcow2
    [ "$(nbdinfo --size "$(uri_name $disk)")" -eq $size ] || fail 'another size'
    [ "$(nbdinfo --json "$(uri_name $disk)" |
        jq '.exports[0].is_read_only')" = true ] || fail 'not read-only'
done
! qemu-io -f raw -c 'write 0 64k' "$uri" >out 2>&1 || fail 'it was written to'
# It stays as long as it is served: of its chain nothing goes.
rc=0
nbdelta prune --keep-last 1 dir >out 2>&1 || rc=$?
[ $rc -eq 5 ] || fail "prune: $rc, $(cat out)"
grep -q 'is being read' out || fail "$(cat out)"
nbdelta verify dir
stop_server
cp -a dir pruned
nbdelta prune --keep-last 1 pruned
serve pruned
qemu-img compare -q -f raw -F qcow2 "$(uri_name vda)" dir/vda/$three.qcow2
stop_server

# --- Names, points; two directories and an image ---
qemu-img create -q -f qcow2 -F qcow2 -b "$PWD/dir/vda/$one.qcow2" image.qcow2
qemu-io -c 'write -P 9 128k 64k' image.qcow2 >out
# One disk, with a name that no node can have.
python - dir single <<'END'
import hashlib, json, os, shutil, sys
source, to = sys.argv[1:]
os.mkdir(to)
shutil.copy(source + "/nbdelta.json", to)
point = "20261127T023000Z"
with open(f"{source}/{point}.json", encoding="utf-8") as f:
    m = json.load(f)
del m["sha256"]
m["disks"] = m["disks"][:1]
m["disks"][0]["name"] = "0 disk"
shutil.copytree(source + "/vda", to + "/0 disk")
plain = json.dumps(m, indent=2, ensure_ascii=False)
m["sha256"] = hashlib.sha256(plain.encode()).hexdigest()
with open(f"{to}/{point}.json", "w", encoding="utf-8") as f:
    f.write(json.dumps(m, indent=2, ensure_ascii=False) + "\n")
END
serve old=dir@latest~2 dir@2026-11-28 own=single single image.qcow2
exports '0 disk' disk1 old.vda old.vdb own vda vdb
qemu-img compare -q -f raw -F qcow2 "$(uri_name old.vda)" dir/vda/$one.qcow2
qemu-img compare -q -f raw -F qcow2 "$(uri_name vda)" dir/vda/$two.qcow2
qemu-img compare -q -f raw -F qcow2 "$(uri_name own)" dir/vda/$one.qcow2
qemu-img compare -q -f raw -F qcow2 "$(uri_name 0%20disk)" dir/vda/$one.qcow2
qemu-img compare -q -U -f raw -F qcow2 "$(uri_name disk1)" image.qcow2
stop_server

# --- What clients write goes elsewhere ---
find dir -type f -exec sha256sum {} + >before
files_same() {
    sha256sum --quiet -c before || fail 'the backup has changed'
}
mkdir tmp
TMPDIR=$PWD/tmp serve --overlay temporary dir
[ -z "$(ls tmp)" ] || fail "it has a name: $(ls tmp)"
qemu-io -f raw -c 'write -P 7 64k 64k' -c 'read -P 7 64k 64k' \
    -c 'read -P 12 128k 64k' "$(uri_name vda)" >out || fail "$(cat out)"
stop_server
files_same

mkdir overlays
serve --overlay overlays w=dir@latest~1 image.qcow2
exports disk0 w.vda w.vdb
qemu-io -f raw -c 'write -P 8 64k 64k' "$(uri_name w.vda)" >out
qemu-io -f raw -c 'write -P 8 64k 64k' "$(uri_name disk0)" >out
stop_server
files_same
[ "$(stat -c %a overlays/w.vda.qcow2)" = 600 ] || fail 'others can read it'
for file in overlays/*; do
    qemu-img check -q "$file"
done
qemu-io -r -c 'read -P 8 64k 64k' -c 'read -P 11 128k 64k' \
    overlays/w.vda.qcow2 >out || fail "$(cat out)"
qemu-io -r -c 'read -P 8 64k 64k' -c 'read -P 9 128k 64k' \
    overlays/disk0.qcow2 >out || fail "$(cat out)"
# They go on, over the same points only.
serve --overlay overlays w=dir@$two
qemu-io -f raw -c 'read -P 8 64k 64k' -c 'write -P 9 0 64k' \
    "$(uri_name w.vda)" >out || fail "$(cat out)"
stop_server
serve_refused "is not an overlay of '$PWD/dir/vda/$three.qcow2', but of" \
    -U "$sock" --overlay overlays w=dir
qemu-io -r -c 'read -P 9 0 64k' overlays/w.vda.qcow2 >out || fail "$(cat out)"
# One file is for one disk.
serve --overlay mine.qcow2 single
qemu-io -f raw -c 'write -P 5 0 64k' "$uri" >out
stop_server
qemu-io -r -c 'read -P 5 0 64k' mine.qcow2 >out || fail "$(cat out)"
serve_refused 'a file is for one disk' -U "$sock" --overlay other.qcow2 dir
serve_refused 'a file is for one disk' -U "$sock" --overlay mine.qcow2 \
    single image.qcow2
[ ! -e other.qcow2 ] || fail 'a file was made'
serve_refused 'cannot create' -U "$sock" --overlay no/where.qcow2 single
serve_refused '--overlay goes without -r' -r --overlay temporary dir
serve_refused '--overlay is for images' --blockdev null-co,node-name=a \
    --overlay temporary
serve_refused 'temporary needs none' -U "$sock" --overlay x.qcow2 \
    driver=null-co,size=1M
serve --overlay temporary driver=null-co,size=1M,read-zeroes=on
qemu-io -f raw -c 'write -P 5 0 64k' -c 'read -P 5 0 64k' "$uri" >out
stop_server

# --- What is refused ---
serve_refused "no point '2025'" -U "$sock" dir@2025
serve_refused 'not a backup directory' -U "$sock" .
serve_refused "two disks have the name 'vda'" -U "$sock" dir dir@latest~1
echo root:secret >secret
hostile() { # TEXT: dir is refused, and read nowhere else
    serve_refused "$1" -U "$sock" dir
    rm -rf dir
    cp -a whole dir
}
cp -a dir whole
# An image's own backing name is not followed: the chain is the manifests'.
qemu-img rebase -u -F raw -b "$PWD/secret" dir/vda/$three.qcow2
serve dir
qemu-img compare -q -f raw -F qcow2 "$(uri_name vda)" whole/vda/$three.qcow2
stop_server
rm dir/vda/$two.qcow2
ln -s "$PWD/whole/vda/$two.qcow2" dir/vda/$two.qcow2
hostile 'it is a symbolic link'
rm -r dir/vda
ln -s "$PWD/whole/vda" dir/vda
hostile "cannot open folder '$PWD/dir/vda'"
rm dir/vda/$two.qcow2
mkfifo dir/vda/$two.qcow2
hostile 'not a regular file'
rm dir/vda/$three.qcow2
qemu-img create -q -f qcow2 -o data_file="$PWD/secret.raw",data_file_raw=on \
    dir/vda/$three.qcow2 $size
hostile "'vda'"
rm dir/vda/$three.qcow2
(cd dir/vda && qemu-img create -q -f qcow2 -o data_file=beside.raw \
    $three.qcow2 $size)
hostile "'vda'"
sed -i 's/"nbdelta-directory": 1/"nbdelta-directory": 2/' dir/nbdelta.json
hostile 'has format 2, and this nbdelta knows 1'
printf x | dd of=dir/$two.json bs=1 seek=200 conv=notrunc status=none
hostile 'its parent 20261128T023000Z'
echo '{"next": ["'$two'"]}' >dir/prune.json
hostile "'nbdelta prune' or 'nbdelta backup' goes on with it"
[ -z "$(ls tmp)" ] || fail "left: $(ls tmp)"
