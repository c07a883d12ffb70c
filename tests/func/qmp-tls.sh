#!/bin/bash
# A monitor over TCP, with TLS, on either end of the connection.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need certtool

make_pki pki
make_pki other
make_cert pki bob 'cn = bob' tls_www_client 'expiration_days = 30'
python "$SRCDIR/tests/func/qmp-tls.py" "$nbdelta" pki other

tcp=socket,id=c,host=127.0.0.1,port=1
creds=tls-creds-x509,id=t,dir=pki,endpoint=server
serve_refused "No TLS credentials with id 'x'" --chardev $tcp,tls-creds=x
serve_refused "Expected TLS credentials for a client endpoint" \
    --object $creds --chardev $tcp,tls-creds=t
serve_refused "'tls_authz' option requires 'tls_creds' option" \
    --chardev $tcp,tls-authz=z
serve_refused "Cannot find QAuthZ object ID z" --object $creds \
    --chardev $tcp,server=on,wait=off,tls-creds=t,tls-authz=z
