#!/bin/bash
# passphrase= of the nbdkit plugin: an encrypted image that QEMU has made is read
# and written, beside images that are not encrypted; a wrong passphrase and none
# are refused with the reason.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_plugin
need qemu-img qemu-io

printf 'open sesame\n' >key
printf 'open barley\n' >wrong
printf 'open sesame' >bytes # qemu-img takes the file as it is
secret=secret,id=s,file=bytes
nbdelta create --object $secret \
    -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1 d.qcow2 4M
qemu-img create -q -f qcow2 plain.qcow2 1M
truncate -s 1M raw.img

qemu() {
    qemu-io --object $secret --image-opts \
        driver=qcow2,encrypt.key-secret=s,file.filename=d.qcow2 "$@" >out
    ! grep -i 'failed\|error' out || fail "qemu-io $*"
}

qemu -c 'write -P 7 1M 64k'
serve_plugin passphrase=+key d.qcow2 plain.qcow2 raw.img backing=off
qemu-io -f raw -c 'read -P 7 1M 64k' -c 'read -P 0 2M 64k' \
    -c 'write -P 9 3M 1000' "$uri" >out
! grep -i 'failed\|error' out || fail "qemu-io of the plugin"
for name in disk1 disk2; do
    qemu-io -f raw -c 'write -P 1 0 1k' "nbd+unix:///$name?socket=$sock" >out
    ! grep -i 'failed\|error' out || fail "qemu-io of $name"
done
stop_plugin
qemu -c 'read -P 9 3M 1000' -c 'read -P 7 1M 64k'

plugin_refused 'key' d.qcow2
plugin_refused 'Invalid password' passphrase=+wrong d.qcow2
plugin_refused 'given twice' passphrase=+key passphrase=x d.qcow2
plugin_refused 'write passphrase=+FILE' key-secret=s d.qcow2
plugin_refused 'nowhere' passphrase=+nowhere d.qcow2
