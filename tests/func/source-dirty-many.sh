#!/bin/bash
# What has changed is asked for in few questions, however many ranges it has.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
python -c 'import nbd' 2>/dev/null || skip "python3-libnbd is not installed"

serve --blockdev driver=null-co,node-name=n,size=64G \
    --export type=nbd,id=e,node-name=n,name=d,writable=on
qmp block-dirty-bitmap-add node=n name=b0 granularity=65536 >/dev/null
python "$SRCDIR/tests/func/source-dirty-many.py" write "$sock"
qmp block-dirty-bitmap-disable node=n name=b0 >/dev/null
qmp block-export-del id=e >/dev/null
qmp block-export-add '{"type": "nbd", "id": "e2", "node-name": "n",
    "name": "d", "bitmaps": ["b0"]}' >/dev/null
python "$SRCDIR/tests/func/source-dirty-many.py" read "$sock"
