#!/bin/bash
# A monitor with role=backup: over TLS, `nbdelta backup` of its disks works by
# an identity that can do nothing else: no other command, no other disk, no
# write, and not even a read of the disk itself.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img certtool

make_pki pki
make_cert pki appliance 'cn = appliance' tls_www_client 'expiration_days = 30'
mkdir appliance
cp pki/ca-cert.pem appliance
cp pki/appliance-cert.pem appliance/client-cert.pem
cp pki/appliance-key.pem appliance/client-key.pem

file=path=f,server=on,wait=off
serve_refused "role=backup needs the names of its disks" \
    --chardev socket,id=c,$file --monitor c,role=backup
serve_refused "'disks' needs role=backup" \
    --chardev socket,id=c,$file --monitor c,disks.0=vda
serve_refused "does not accept value 'all'" \
    --chardev socket,id=c,$file --monitor c,role=all,disks.0=vda
python "$SRCDIR/tests/func/backup-role.py"
