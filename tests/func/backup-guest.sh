#!/bin/bash
# Backups of a real guest, which writes to ext4 in QEMU without KVM: each point
# is a file system that needs no repair, and has all that was durable before the
# instant.  QEMU is killed, also in the middle of a backup, and the guest starts
# again from a restored point.
#
#   GUEST=DIR   where its kernel is, or is put (make crash has it); it takes a
#               minute or more, so without GUEST this is skipped
#   ROUNDS=N    of writing, backup, kill
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
[ -n "${GUEST-}" ] || skip "a guest takes a minute: make crash runs this"
need qemu-system-x86_64 qemu-img mkfs.ext4 e2fsck debugfs dumpe2fs
python "$SRCDIR/tests/func/backup-guest.py"
