#!/bin/bash
# `nbdelta backup` of a domain of libvirt at another host, which is this one: by
# ssh, with a tunnel, and by TCP with TLS; what is cut in the middle ends on both
# sides or goes on (LIBVIRT_CASES=all, of make crash, has more of it).
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_libvirt
need ssh ssh-keygen virt-ssh-helper certtool
[ -x /usr/sbin/sshd ] || skip "sshd is not installed"

make_pki pki
make_pki other
python "$SRCDIR/tests/func/backup-libvirt-remote.py"
