/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta with arming switched off.  It is linked with
 * --wrap=qcow2_bitmap_arm, so that the driver calls the function in this file.
 * For tests only: a campaign of crashes has to catch it, or it shows nothing.
 */
#include <stdbool.h>
#include <stdint.h>

struct bitmap;
struct node;

int __wrap_qcow2_bitmap_arm(struct node *n, struct bitmap *bm, uint64_t offset,
                            uint64_t bytes, bool nowait);

int __wrap_qcow2_bitmap_arm(struct node *n, struct bitmap *bm, uint64_t offset,
                            uint64_t bytes, bool nowait)
{
    (void)n;
    (void)bm;
    (void)offset;
    (void)bytes;
    (void)nowait;
    return 0;
}
