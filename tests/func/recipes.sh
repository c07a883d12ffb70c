#!/bin/bash
# The scripts of nbdelta-recipes(7) work as they stand, each in an empty
# directory, and what they make is there.  RECIPE_ROUNDS=N pastes each N times.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need nbdinfo nbdcopy qemu-img qemu-system-x86_64 psktool mke2fs jq

page=$SRCDIR/man/nbdelta-recipes.7

# The script of a section, as it is printed.
script() {
    awk -v section="$1" -f "$SRCDIR/tests/func/recipe.awk" "$page" |
        sed "s|--filter=ext2 nbdelta|--filter=ext2 $plugin|"
}

# A script that fails leaves daemons behind.
stop_daemons() {
    local socket pid
    for socket in */q*.sock */*/q.sock */*.qmp; do
        [ ! -S "$socket" ] || nbdelta qmp -q "$socket" quit
    done
    for pid in */*.pid; do
        [ ! -e "$pid" ] || kill "$(cat "$pid")" 2>/dev/null || true
    done
}
at_exit stop_daemons

points() {
    find "$1" -maxdepth 1 -name '*Z.json' | wc -l
}

same() {
    qemu-img compare -q "$1" "$2" || fail "$1 is not $2"
}

look() {
    case $1 in
    *'EACH NIGHT') [ "$(points backups)" = 1 ] ;;
    *'OF QEMU') [ "$(points guest)" = 2 ] ;;
    'MANY DISKS'*)
        same vda.1.qcow2 vda.qcow2
        same vdb.1.qcow2 vdb.qcow2 ;;
    *'THAT MOVES'*)
        [ "$(points backups)" = 2 ]
        jq -se '.[1].disks[0].kind == "increment"' backups/*Z.json >out
        same here/disk.qcow2 there/disk.qcow2 ;;
    *'ANOTHER HOST')
        wait_until "the daemon has ended" test ! -e serve.pid
        [ "$(points backups)" = 1 ] ;;
    'BACK FROM'*)
        same new.qcow2 disk.qcow2 ;;
    *'AT ONCE')
        same new.qcow2 lost.raw
        qemu-img info --output json new.qcow2 >info.json
        jq -e 'has("backing-filename") | not' info.json >out ;;
    'ONE FILE'*) [ "$(cat hosts.found)" = '192.0.2.1 web' ] ;;
    'AFTER A CRASH' | 'A RAW DISK')
        [ "$(points backups)" = 2 ]
        jq -se '.[1].disks[0].kind == "increment"' backups/*Z.json >out ;;
    *) fail "what has '$1' to do?" ;;
    esac
}

paste() {
    mkdir "$2"
    cd "$2"
    script "$1" >pasted
    [ -s pasted ] || fail "'$1' has no script"
    bash -eu <pasted >log 2>&1 || fail "'$1': $(tail -n 5 log)"
    look "$1"
    cd ..
    rm -rf "$2"
}

sections=()
while IFS= read -r section; do
    case $section in
    NAME | DESCRIPTION | 'SEE ALSO' | AUTHORS | LICENSE) ;;
    *LIBVIRT | *VIRTNBDBACKUP*) ;; # recipes-libvirt.sh
    *CEPH) ;;                      # rbd-backup.sh
    'ONE FILE'*)
        # The filter needs a plugin that it can load.
        if [ -z "${SANITIZE-}" ] && command -v nbdkit >/dev/null; then
            sections+=("$section")
        fi ;;
    *) sections+=("$section") ;;
    esac
done < <(sed -n 's/^\.SH //p' "$page")
[ "${#sections[@]}" -ge 7 ] || fail "${#sections[@]} recipes"
for section in "${sections[@]}"; do
    for ((i = 0; i < ${RECIPE_ROUNDS:-1}; i++)); do
        paste "$section" here
    done
    echo "$section"
done
