#!/bin/bash
# The commands of README.md work as they stand, one after the other, in an
# empty directory; and what they make is what README says.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdcopy nbdinfo qemu-img qemu-nbd psktool

# A step that fails leaves daemons behind.  Each has a monitor here.
stop_daemons() {
    local socket
    for socket in *qmp; do
        [ ! -S "$socket" ] || nbdelta qmp "$socket" quit
    done
}
at_exit stop_daemons

# The plugin is not installed.
"$SRCDIR/tests/readme-commands.sh" "$SRCDIR/README.md" |
    sed -e "s|nbdkit -U - nbdelta|nbdkit -U - $plugin|" >commands
[ "$(grep -c '^nbdelta ' commands)" -ge 30 ] || fail "where are the commands?"

# As they are pasted: one after the other, whatever is on standard input.
if ! command -v nbdkit >/dev/null || [ -n "${SANITIZE-}" ]; then
    sed -i '/^nbdkit /d' commands
fi
bash -eux commands </dev/null

for copy in copy.raw disk.copy; do
    qemu-img compare -f raw -F qcow2 $copy disk.qcow2
done
qemu-img compare -f qcow2 -F qcow2 inc1.qcow2 disk.qcow2
cmp <(head -c 1M data.img) <(head -c 1M copy.raw)
qemu-img check -q restored.qcow2
qemu-img compare -f qcow2 -F qcow2 vda.tue.qcow2 disk.qcow2
qemu-img compare -f raw -F qcow2 remote.img disk.qcow2
qemu-img compare -f raw -F qcow2 vdb.raw vdb.qcow2
qemu-img compare -f raw -F qcow2 disk.raw tracked-full.qcow2
