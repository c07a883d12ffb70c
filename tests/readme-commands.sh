#!/bin/bash
# tests/readme-commands.sh README.md
#
# Print every block of commands of README, as they stand, except the ones that
# build, or need a domain of libvirt (backup-libvirt.py runs these).  The TCP
# port may be taken by others: a Unix socket stands for it.
set -eu -o pipefail

awk '/^```$/ { on = !on; block = ""; if (!on) print ""; next }
     on && block == "" && / libvirt:/ { block = "libvirt" }
     on && block == "" { block = /^make / ? "build" : "run" }
     on && block == "run"' "$1" |
    sed -e 's|-i 0\.0\.0\.0|-U tls.sock|' \
        -e 's|nbds://alice@localhost/vda?|nbds+unix://alice@/vda?socket=tls.sock\&|'
