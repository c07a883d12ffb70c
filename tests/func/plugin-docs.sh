#!/bin/bash
# --help of the plugin, its man page and its code have the same parameters.
# --dump-plugin shows its callbacks.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_plugin
[ -z "${SANITIZE-}" ] || skip "nbdkit needs the runtime for --help, too"

manual=$SRCDIR/man/nbdkit-nbdelta-plugin.1
nbdkit "$plugin" --help | sed -n '/^plugin: nbdelta/,$p' |
    sed -n -e 's/^\[\{0,1\}\([a-z-]*\)=.*/\1/p' | sort >help
awk '/^\.SH / { on = $0 == ".SH PARAMETERS" } on' "$manual" | grep -A1 '^\.TP' |
    sed -n -e 's/\\//g' -e 's/^\.B[RI]* \([a-z-]*\)=.*/\1/p' | sort >page
sed -n -e 's/.*strcmp(key, "\([a-z-]*\)") == 0.*/\1/p' \
    "$SRCDIR/plugin/config.c" "$SRCDIR/plugin/plugin.c" | sort >code
[ "$(wc -l <help)" -ge 10 ] || fail "--help lists $(wc -l <help) parameters"
diff help page || fail "--help <, man page >"
diff help code || fail "--help <, code >"

# Each is taken; all words of the help are, too.
truncate -s 1M disk.img
while read -r key; do
    plugin_refused "$key=" disk.img "$key=" "$key="
done < <(grep -vx -e file -e blockdev -e allow-path help)
for word in cache=writeback cache=writethrough cache=none cache=directsync \
    cache=unsafe direct=on direct=off discard=ignore discard=unmap \
    backing=off backing=on format=raw; do
    grep -q -e "${word#*=}" <(nbdkit "$plugin" --help; cat "$manual")
    [ "$word" != backing=on ] || continue
    nbdkit -f -U - "$plugin" disk.img "$word" --run true 2>err ||
        grep -q 'Invalid argument' err || fail "$word: $(cat err)"
done

nbdkit --dump-plugin "$plugin" >dump
for line in name=nbdelta magic_config_key=file max_thread_model=parallel \
    thread_model=parallel errno_is_preserved=1 api_version=2 \
    "version=$(sed -n 's/^VERSION := //p' "$SRCDIR/Makefile")"; do
    grep -qx "$line" dump || fail "--dump-plugin does not show $line"
done
grep -qx 'nbdelta_drivers=.*\bqcow2\b.*' dump
for callback in after_fork cleanup list_exports default_export open close \
    export_description get_size block_size can_write can_flush can_trim \
    can_zero can_fast_zero can_fua can_multi_conn can_cache can_extents pread \
    pwrite zero trim flush cache extents; do
    grep -qx "has_$callback=1" dump || fail "there is no $callback"
done
