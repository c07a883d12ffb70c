#!/bin/bash
# What a command has asked of a job is there for the next command: its nodes can
# be closed after a cancel, it is paused after a pause.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img

python "$SRCDIR/tests/func/job-answers.py" "$nbdelta"
