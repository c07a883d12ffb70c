/* SPDX-License-Identifier: BSD-3-Clause */
/* The version of QEMU for which clients take us. */
#include "qmp/version.h"

/* Our monitor behaves like the monitor of this QEMU.  Managers look at the
 * number to know what they may ask for. */
enum { LIKE_MAJOR = 7, LIKE_MINOR = 2, LIKE_MICRO = 22 };
const char qmp_like_version[] = "7.2.22";

json_t *qmp_version(void)
{
    return json_pack("{s:{s:i, s:i, s:i}, s:s}", "qemu", "micro", LIKE_MICRO,
                     "minor", LIKE_MINOR, "major", LIKE_MAJOR, "package",
                     "nbdelta " NBDELTA_VERSION);
}
