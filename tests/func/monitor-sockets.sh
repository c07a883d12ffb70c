#!/bin/bash
# Where QMP monitors can be: sockets that listen or connect, TCP, inherited
# descriptors, standard input and output; several at once.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need jq

# Standard input and output: one greeting, then a reply for each command, and
# the end after quit.
nbdelta serve --chardev stdio,id=c --monitor chardev=c,mode=control \
    >out <<'END'
{'execute': 'qmp_capabilities'}
{'execute': 'query-name', 'id': 1}
{'execute': 'quit', 'id': 2}
END
[ "$(jq -c 'keys' out | tr '\n' ' ')" = \
    '["QMP"] ["return"] ["id","return"] ["id","return"] ' ] || fail "$(cat out)"

# The same in many lines, as options in JSON, and from a file.
echo "{'execute': 'qmp_capabilities'}{'execute': 'quit'}" >in
nbdelta serve --chardev '{"backend": "stdio", "id": "c"}' \
    --monitor '{"chardev": "c", "pretty": true}' <in >out
[ "$(jq -s 'length' out)" = 3 ] || fail "$(cat out)"
[ "$(wc -l <out)" -gt 10 ] || fail "not pretty: $(cat out)"

# The end of input ends the session, not the daemon.
(
    echo "{'execute': 'qmp_capabilities'}"
) | nbdelta serve --chardev stdio,id=c --monitor c --qmp "$qmp_sock" \
    --pidfile "$pidfile" >out &
server=$!
wait_until "the server is ready" server_ready
qmp query-name
qmp quit
wait "$server"
server=
[ "$(jq -s 'length' out)" = 2 ] || fail "$(cat out)"

# What goes nowhere, and to a file, where the greeting is.
nbdelta serve --chardev null,id=n --monitor n --chardev file,id=f,path=log \
    --monitor f --qmp "$qmp_sock" --pidfile "$pidfile" &
server=$!
wait_until "the server is ready" server_ready
qmp quit
wait "$server"
server=
jq -e '.QMP' log >out

python "$SRCDIR/tests/func/monitor-sockets.py" "$nbdelta"

# The short form of booleans, as QEMU takes it: with a warning.
nbdelta serve --chardev "socket,id=m,path=$qmp_sock,server,nowait" \
    --monitor m,pretty --pidfile "$pidfile" 2>err &
server=$!
wait_until "the server is ready" server_ready
[ "$(qmp query-tpm | jq -c .)" = "[]" ] || fail "query-tpm is not answered"
for command in query-tpm-models query-tpm-types query-kvm query-uuid; do
    qmp $command >/dev/null
done
qmp quit
wait "$server"
server=
for word in "'server' is deprecated: write server=on" \
    "'nowait' is deprecated: write wait=off" \
    "'pretty' is deprecated: write pretty=on"; do
    grep -qF "$word" err || fail "no warning: $word; $(cat err)"
done

# What is refused, and why.
serve_refused "chardev \"c\" not found" --monitor c
serve_refused "Device 'c' is in use" --chardev null,id=c --monitor c \
    --monitor c
serve_refused "'c' already exists" --chardev null,id=c --chardev null,id=c
serve_refused 'mode=readline' --chardev null,id=c --monitor c,mode=readline
serve_refused "does not accept value 'x'" --chardev null,id=c --monitor c,mode=x
serve_refused "'id' is missing" --chardev null
serve_refused "does not accept value 'tape'" --chardev tape,id=c
serve_refused "'x' is unexpected" --chardev null,id=c,x=y
serve_refused "give one of" --chardev socket,id=c
serve_refused "give one of" --chardev socket,id=c,path=a,fd=3
serve_refused "no port" --chardev socket,id=c,host=localhost
serve_refused "Failed to connect to 'nosuch'" --chardev socket,id=c,path=nosuch
serve_refused "expects 'on' or 'off'" \
    --chardev socket,id=c,path=a,server=maybe
serve_refused "'reconnect'" \
    --chardev socket,id=c,path=a,server=on,wait=off,reconnect=1
serve_refused "'wait'" --chardev socket,id=c,path=a,wait=off
serve_refused "is not a socket" --chardev socket,id=c,fd=1
serve_refused "number of a descriptor" --chardev socket,id=c,fd=x
serve_refused "'tls_creds' option is incompatible with 'unix' address type" \
    --chardev socket,id=c,path=a,tls-creds=t,server=on,wait=off
serve_refused "stdio" --chardev stdio,id=a --chardev stdio,id=b
serve_refused "stdio" --daemonize --chardev stdio,id=a
