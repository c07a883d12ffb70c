/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images whose writer had lazy refcounts, and did not close them: the header
 * says that refcounts may be lower than they have to be.  Before we write, they
 * are counted anew.  That takes time, and an open over QMP holds the monitor
 * for it, so an image with many tables is left to `nbdelta check`.
 */
#include <errno.h>
#include <inttypes.h>

#include "nbdelta/error.h"
#include "nbdelta/tell.h"
#include "qcow2/check.h"

/* Bytes of L2 tables that are read in a second, on slow storage, too. */
#define TABLES_MAX (64 * MiB)

static void tell_lost(const struct image_finding *f, void *opaque)
{
    const struct node *file = opaque;

    if (f->fault == IMAGE_LOST) {
        tell_event(TELL_ERROR, "repair of '%.200s': %s", node_filename(file),
                   f->text);
    }
}

/* At most; a disk is not allocated everywhere. */
static uint64_t table_bytes(const struct qcow2_header *h)
{
    return min_u64(h->l1_size * (UINT64_C(1) << h->cluster_bits),
                   div_up(h->size, UINT64_C(1) << h->cluster_bits) * 8);
}

int qcow2_count_anew(struct node *file, struct qcow2_header *h,
                     struct error **errp)
{
    const struct image_check_options o = {
        .repair = IMAGE_REPAIR_ALL, .found = tell_lost, .opaque = file};
    struct image_check c;

    if (!(h->incompatible & QCOW2_INCOMPAT_DIRTY) ||
        table_bytes(h) > TABLES_MAX) {
        return 0;
    }
    int r = qcow2_check(file, &o, &c, errp);
    if (r < 0) {
        error_prefix(errp, "the image was not closed cleanly: ");
    }
    if (r == 0 && c.corruptions > 0) {
        r = error_set(errp, EUCLEAN,
                      "the image was not closed cleanly, and cannot be "
                      "repaired: 'nbdelta check' tells what is wrong");
    }
    qcow2_header_release(h);
    if (r < 0) {
        return r;
    }
    tell_event(TELL_INFO,
               "'%.200s' was not closed cleanly: its reference counts were "
               "counted anew (%" PRIu64 " corrected)",
               node_filename(file), c.corruptions_fixed + c.leaks_fixed);
    return qcow2_header_read(file, h, errp);
}
