#!/bin/bash
# A backup of a domain of libvirt that is killed while it copies is gone on with
# by the next run, as long as the domain has the backup job that it left, also
# when libvirt's daemon has started anew.  When the job is gone, all begins
# again, with one line that says so.  Nothing is left but the last point's
# checkpoint.
set -eu -o pipefail
# shellcheck source=tests/func/lib.sh
. "$SRCDIR/tests/func/lib.sh"
need_libvirt

python "$SRCDIR/tests/func/backup-resume-libvirt.py"
