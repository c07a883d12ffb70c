#!/bin/bash
# The library defines no global name outside of our prefixes, and nothing in
# libnbd's name space, except for what stands in for its functions; plugin and
# modules export their entry points alone.
set -eu -o pipefail

prefixes='action actions backup bitmap bitmaps blk blkdebug buf cbw chain
    commit cond copy door driver edge error far fd fdset file flights follow
    format graph hbitmap image iov job jobfilter jobs kdf lazy luks
    mirror module mutex node now option options opts path point policy
    qcow2 range rbd reopen remote ring rwlock scratch secret sector size
    snapshot stats storage stream tell text thread throttle tls toil transfer
    yank'

# Names that the compiler's instrumentation adds start with "__".
nm -A -g --defined-only "$BUILD/libnbdelta.a" |
    awk 'NF == 3 && $3 !~ /^__/ && !(/:gnutls.o:/ && $3 ~ /^gnutls_/) &&
        !(/:libnbd.o:/ && $3 ~ /^nbd_/) { print $3 }' | sort -u >names
[ -s names ]
# shellcheck disable=SC2086  # a list of words
grep -vE "^($(tr -s ' \n' '|' <<<$prefixes | sed 's/|$//'))_" names >others ||
    true
if [ -s others ]; then
    echo "outside of our prefixes:"
    cat others
    exit 1
fi

# Nor may the server, which uses libnbd, define such names.
nm -g --defined-only "$BUILD/libserver.a" |
    awk 'NF == 3 && $3 ~ /^nbd_/ { print $3; found = 1 } END { exit found }'

nm -D --defined-only "$BUILD/nbdkit-nbdelta-plugin.so" |
    awk 'NF == 3 && $3 !~ /^__/ { print $3 }' >exported
diff <(echo plugin_init) exported

for module in "$BUILD"/nbdelta-source-*.so "$BUILD"/nbdelta-block-*.so; do
    [ -e "$module" ] || continue
    nm -D --defined-only "$module" |
        awk 'NF == 3 && $3 !~ /^__/ { print $3 }' | sort >exported
    diff <(printf '%s\n' nbdelta_module nbdelta_module_version) exported
done
