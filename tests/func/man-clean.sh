#!/bin/bash
# groff has nothing to say about the man pages.  It warns, but exits 0.
set -eu -o pipefail

failed=
for page in "$SRCDIR"/man/*.[157]; do
    groff -man -ww -z "$page" 2>warnings
    if [ -s warnings ]; then
        cat warnings
        failed=yes
    fi
done
[ -z "$failed" ]
