#!/bin/bash
# packaging/dist.sh NAME FILE.tar.gz
#
# Write the sources of this folder to an archive, below NAME/.  The bytes are a
# function of the files' names, contents and x bits, and of one time: that of
# the commit, or SOURCE_DATE_EPOCH.  Files are those that git knows; in an
# unpacked archive, all but what is built.
set -eu -o pipefail
export LC_ALL=C
[ $# = 2 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
name=$1 file=$2

if [ -e .git ] && command -v git >/dev/null; then
    if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
        echo "nbdelta: dist: there are changes that are not committed" >&2
    fi
    epoch=$(git log -1 --format=%ct)
    list() { git ls-files -z; }
else
    # The archive gave all its files one time.
    epoch=$(stat -c %Y Makefile)
    list() {
        find . \( -path './build*' -o -path ./config.mak -o -path ./debian \
            -o -name .git -o -name __pycache__ \) -prune -o -type f \
            -printf '%P\0'
    }
fi
epoch=${SOURCE_DATE_EPOCH:-$epoch}

mkdir -p "$(dirname "$file")"
list | sort -z | tar --create --format=gnu --mtime="@$epoch" \
    --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    --transform="s|^|$name/|" --no-recursion --null --verbatim-files-from \
    --files-from=- |
    gzip -9 -n >"$file.part"
mv "$file.part" "$file"
