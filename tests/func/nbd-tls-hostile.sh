#!/bin/bash
# What nbd-hostile.sh shows holds for clients that speak TLS, too.
OVER_TLS=yes exec "$SRCDIR/tests/func/nbd-hostile.sh"
