# A cluster for functional tests; to be sourced after lib.sh.
# shellcheck shell=bash
#
#   need_ceph           start a cluster, which ends with the test; or skip it.
#                       Sets cluster and CEPH_CONF
#   rbd_of IMAGE        the name of an image in its pool
#   ceph_daemon VERB mon|osd    "kill" or "run" it
#   quick_locks, slow_locks     locks of a client that is killed, and that begins
#                       after this, are free after 3 s; or 30 s again, because one
#                       that is slow loses its locks, too

# LeakSanitizer crashes in the thread-local memory of a library that is loaded
# late, and big (GCC 12; "Tracer caught signal 11").
export LSAN_OPTIONS="use_tls=0:print_suppressions=0:${LSAN_OPTIONS-}"
export TSAN_OPTIONS="suppressions=$SRCDIR/tests/tsan-ceph.supp:${TSAN_OPTIONS-}"

need_ceph() {
    local rc=0
    [ -e "$BUILD/nbdelta-block-rbd.so" ] ||
        skip "built without librbd-dev: there is no module for rbd"
    need ceph rbd
    cluster=$PWD/ceph
    at_exit end_ceph
    "$SRCDIR/tests/mini-ceph.sh" start "$cluster" >ceph.out 2>&1 || rc=$?
    [ "$rc" -ne 77 ] || skip "$(tail -n 1 ceph.out)"
    [ "$rc" -eq 0 ] || fail "no cluster: $(cat ceph.out)"
    export CEPH_CONF=$cluster/ceph.conf
    qemu-img info "$(rbd_of none)" >ceph.out 2>&1 || :
    ! grep -q 'Unknown protocol' ceph.out ||
        skip "QEMU has no driver rbd (Debian's package qemu-block-extra)"
}

# A server that is left would wait for its cluster.
end_ceph() {
    if [ -n "$server" ]; then
        kill_server
    fi
    "$SRCDIR/tests/mini-ceph.sh" stop "$cluster"
}

rbd_of() { printf 'rbd:rbd/%s:conf=%s' "$1" "$CEPH_CONF"; }

ceph_daemon() { "$SRCDIR/tests/mini-ceph.sh" "$1" "$cluster" "$2"; }

quick_locks() { ceph config set osd osd_client_watch_timeout 3; }
slow_locks() { ceph config rm osd osd_client_watch_timeout; }
