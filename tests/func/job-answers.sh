#!/bin/bash
# What a command has asked a job to do is done when the next command comes:
# after a cancel its nodes can be closed, after a pause it is paused.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need qemu-img

python "$SRCDIR/tests/func/job-answers.py" "$nbdelta"
