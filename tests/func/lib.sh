# Common helpers of functional tests; to be sourced.
# shellcheck shell=bash
#
#   need COMMAND...         skip the test when one of them is missing
#   skip WHY, fail WHY      end the test
#   serve [OPTION...] [NAME=]IMAGE...
#                           start `nbdelta serve` on the socket $sock and wait
#                           until clients can connect; sets server, uri, qmp_sock
#   serve_refused TEXT ARG...   `nbdelta serve ARG...` fails and says TEXT
#   stop_server             stop it in order; it must exit with 0
#   serve_plugin [PARAMETER...]
#                           the same with the plugin in nbdkit, which takes
#                           the options in the array nbdkit_options
#   need_libvirt            skip the test when there can be no domains
#   need_plugin             skip the test when nbdkit cannot load it
#   stop_plugin, kill_server    stop it in order; kill -9 any of them
#   plugin_refused TEXT PARAMETER...    nbdkit does not start and says TEXT
#   uri_of NAME             the URI of an export
#   qmp COMMAND ...         `nbdelta qmp` to the server
#   fake_monitor            start a monitor at fake.sock that says what ./answers
#                           has (fake_monitor.py)
#   mkimg FILE SIZE [SEED]  a raw image with areas of pseudo-random data
#   hold_image QEMU_IO_ARG...   a qemu-io that has an image open until the test
#                           ends; sets holder
#   at_exit COMMAND...      run it when the test ends
#   wait_until WHAT COMMAND...  until COMMAND succeeds, for half a minute
#   listens PATH            does a server listen at PATH, as it was bound?
#   python FILE ARG...      the interpreter that has libnbd
#   make_pki DIR            a CA, the server "localhost" and the client "alice"
#   make_cert DIR NAME LINE...  NAME-cert.pem and its key, from template lines

# shellcheck disable=SC2034  # for the tests that source this
nbdelta=$BUILD/nbdelta
PATH=$BUILD:$PATH
export NBDELTA_MODULES=$BUILD
sock=$PWD/nbd.sock
qmp_sock=$PWD/qmp.sock
pidfile=$PWD/nbdelta.pid
uri="nbd+unix:///?socket=$sock"
server=
exit_commands=()

fail() {
    printf '%s: %s\n' "${0##*/}" "$*"
    exit 1
}

skip() {
    printf '%s\n' "$*"
    exit 77
}

need() {
    local command
    for command in "$@"; do
        command -v "$command" >/dev/null || skip "$command is not installed"
    done
}

at_exit() {
    exit_commands=("$(printf '%q ' "$@")" "${exit_commands[@]}")
}

on_exit() {
    local rc=$? command
    trap - EXIT
    set +e
    for command in "${exit_commands[@]}"; do
        eval "$command"
    done
    if [ -n "$server" ]; then
        kill -TERM "$server" 2>/dev/null
        wait "$server"
    fi
    exit "$rc"
}
trap on_exit EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
# The command that ends a test under "set -e" may have said nothing itself.
set -E
trap 'printf "%s:%s: %s: status %s\n" "${BASH_SOURCE[0]##*/}" "$LINENO" \
    "$BASH_COMMAND" "$?" >&2' ERR

wait_until() {
    local what=$1 tries
    shift
    for ((tries = 0; tries < 600; tries++)); do
        if "$@"; then
            return
        fi
        sleep 0.05
    done
    fail "not after 30 s: $what"
}

# It has a line once the server listens; the socket's file is there before.
listens() {
    grep -q "^[^ ]* [^ ]* [^ ]* 00010000 .* $1\$" /proc/net/unix
}

hold_image() {
    stdbuf -oL qemu-io "$@" -c 'read 0 512' -c 'sleep 100000' >holder.out 2>&1 &
    holder=$!
    at_exit kill "$holder"
    # It is asked, not the image: whoever tries the image's lock takes it.
    wait_until "qemu-io has opened its image" test -s holder.out
    kill -0 "$holder" || fail "$(cat holder.out)"
}

server_ready() {
    kill -0 "$server" 2>/dev/null || fail "the server has ended"
    [ -s "$pidfile" ]
}

serve() {
    [ -z "$server" ] || fail "a server is running already"
    rm -f "$pidfile"
    nbdelta serve -U "$sock" --qmp "$qmp_sock" --pidfile "$pidfile" "$@" &
    server=$!
    wait_until "the server is ready" server_ready
}

stop_server() {
    local rc=0
    kill -TERM "$server"
    wait "$server" || rc=$?
    server=
    [ "$rc" -eq 0 ] || fail "the server ended with $rc"
    [ ! -e "$sock" ] || fail "the server has left its socket"
    [ ! -e "$pidfile" ] || fail "the server has left its pidfile"
}

serve_refused() {
    local text=$1 rc=0
    shift
    timeout 60 nbdelta serve "$@" >refused.out 2>&1 || rc=$?
    [ "$rc" -ne 0 ] || fail "nbdelta serve $*: not refused"
    grep -qF -e "$text" refused.out ||
        fail "nbdelta serve $*: said '$(cat refused.out)', not '$text'"
}

kill_server() {
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
    server=
    rm -f "$sock" "$qmp_sock" "$pidfile"
}

plugin=$BUILD/nbdkit-nbdelta-plugin.so
nbdkit_options=()

# nbdkit is not instrumented itself, so that it needs the runtime first.  Leaks
# of nbdkit are none of ours.
plugin_preload() {
    case ${SANITIZE-}:${CC-cc} in
    :*) ;;
    *address*) ${CC-cc} -print-file-name=libasan.so ;;
    *thread*) ${CC-cc} -print-file-name=libtsan.so ;;
    esac
}

need_libvirt() {
    [ -e "$BUILD/nbdelta-source-libvirt.so" ] || skip "built without libvirt"
    need libvirtd virsh qemu-system-x86_64 qemu-img mount
}

need_plugin() {
    need nbdkit
    case ${SANITIZE-}:${CC-cc} in
    ?*:*clang*) skip "nbdkit cannot load what clang has instrumented" ;;
    esac
}

run_nbdkit() {
    local preload
    preload=$(plugin_preload)
    if [ -n "$preload" ]; then
        ASAN_OPTIONS="detect_leaks=0:${ASAN_OPTIONS-}" LD_PRELOAD=$preload \
            exec nbdkit "$@"
    fi
    exec nbdkit "$@"
}

serve_plugin() {
    [ -z "$server" ] || fail "a server is running already"
    rm -f "$pidfile" "$sock"
    run_nbdkit -f -U "$sock" -P "$pidfile" "${nbdkit_options[@]}" "$plugin" \
        "$@" &
    server=$!
    wait_until "nbdkit is ready" server_ready
}

stop_plugin() {
    local rc=0
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" || rc=$?
    server=
    [ "$rc" -eq 0 ] || fail "nbdkit ended with $rc"
    rm -f "$sock" "$pidfile"
}

# Under a runtime that was loaded first even nbdkit's own plugins hang at the
# exit that follows a failed start.
plugin_refused() {
    local text=$1 rc=0
    shift
    [ -z "${SANITIZE-}" ] || return 0
    timeout 60 nbdkit -f -U "$sock" "${nbdkit_options[@]}" "$plugin" "$@" \
        >refused.out 2>&1 </dev/null || rc=$?
    [ "$rc" -ne 0 ] || fail "nbdkit nbdelta $*: not refused"
    grep -qF -e "$text" refused.out ||
        fail "nbdkit nbdelta $*: said '$(cat refused.out)', not '$text'"
}

uri_of() {
    printf 'nbd+unix:///%s?socket=%s\n' "$1" "$sock"
}

qmp() {
    nbdelta qmp "$qmp_sock" "$@"
}

fake_monitor() {
    rm -f fake.sock
    PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 \
        "$SRCDIR/tests/func/fake_monitor.py" "$PWD/fake.sock" answers &
    at_exit kill $!
    wait_until "the monitor is there" listens "$PWD/fake.sock"
}

mkimg() {
    local file=$1 size=$2 seed=${3-1}
    truncate -s "$size" "$file"
    # A third of it is data, in pieces with holes between.
    awk -v size="$(stat -c %s "$file")" -v seed="$seed" 'BEGIN {
        srand(seed)
        for (at = 0; at < size && n++ < 2000; at += step) {
            len = int((1 + rand() * 31)) * 4096
            if (at + len > size)
                len = int((size - at) / 512) * 512
            if (len > 0)
                print "write -P " int(1 + rand() * 255), at, len
            step = int(1 + rand() * 95) * 4096
        }
    }' | qemu-io -f raw "$file" >/dev/null
}

python() {
    PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 "$@"
}

# The CA signs itself.
make_cert() {
    local dir=$1 name=$2 how=(--generate-certificate
        --load-ca-certificate "$1/ca-cert.pem"
        --load-ca-privkey "$1/ca-key.pem")
    shift 2
    if [ "$name" = ca ]; then
        how=(--generate-self-signed)
    fi
    printf '%s\n' "$@" signing_key >"$dir/template"
    certtool --generate-privkey --ecc --outfile "$dir/$name-key.pem" 2>/dev/null
    certtool "${how[@]}" --load-privkey "$dir/$name-key.pem" \
        --template "$dir/template" --outfile "$dir/$name-cert.pem" \
        2>"$dir/certtool.err" || fail "certtool: $(cat "$dir/certtool.err")"
}

make_pki() {
    mkdir -p "$1"
    make_cert "$1" ca 'cn = CA of the tests' ca cert_signing_key \
        'expiration_days = 30'
    make_cert "$1" server 'cn = localhost' 'dns_name = localhost' \
        'ip_address = 127.0.0.1' tls_www_server 'expiration_days = 30'
    make_cert "$1" client 'cn = alice' tls_www_client 'expiration_days = 30'
}
