/* SPDX-License-Identifier: BSD-3-Clause */
/* How large will a new image be?  What does not depend on the format. */
#include "core/measure.h"

#include <errno.h>
#include <string.h>

#include "core/create.h"
#include "core/driver.h"
#include "core/node.h"
#include "core/opts.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"

/* --- What the disk has --- */

struct count {
    uint64_t unit;
    uint64_t end; /* of the last unit that is counted */
    uint64_t bytes;
};

static int count_extent(const struct extent *e, void *opaque)
{
    struct count *c = opaque;
    uint64_t from = max_u64(align_down(e->offset, c->unit), c->end);
    uint64_t to = align_up(e->offset + e->length, c->unit);

    if ((e->flags & EXTENT_DATA) && !(e->flags & EXTENT_ZERO) && from < to) {
        c->bytes += to - from;
        c->end = to;
    }
    return 0;
}

int image_measure_data(const struct measure_source *source, uint64_t unit,
                       uint64_t *bytes, struct error **errp)
{
    struct count c = {.unit = unit};
    struct blk *b = source->disk;
    int r = blk_extents(b, 0, blk_size(b), 0, count_extent, &c);

    *bytes = c.bytes;
    return r < 0
               ? error_set(errp, -r, "cannot find out where there are data: %s",
                           strerror(-r))
               : 0;
}

/* --- */

/* What the disk's image has, and could have. */
static int look_at_bitmaps(struct measure_source *source)
{
    struct node *n = blk_node(source->disk);
    const struct driver_bitmaps *b = n->drv->bitmaps;
    int r = b ? bitmaps_get(n, &source->bitmaps) : 0;

    source->keeps_bitmaps = b && (source->bitmaps.count > 0 ||
                                  b->check(n, "0", 64 * KiB, NULL) == 0);
    return r;
}

static int measure(const struct driver *drv, json_t *options, struct blk *disk,
                   struct image_measure *m, struct error **errp)
{
    struct measure_source source = {.disk = disk};
    struct opts *opts = disk && look_at_bitmaps(&source) < 0
                            ? NULL
                            : opts_new(options);
    int r = opts ? drv->image->measure(opts, disk ? &source : NULL, m, errp)
                 : error_nomem(errp);

    if (opts) {
        opts_free(opts);
    }
    bitmaps_free(&source.bitmaps);
    return r;
}

int image_measure_with(const struct driver_table *t, const char *format,
                       const json_t *options, struct blk *disk,
                       struct image_measure *m, struct error **errp)
{
    const struct driver *drv = driver_find(t, format);
    CLEANUP_JSON json_t *complete = json_deep_copy(options);

    *m = (struct image_measure){.required = 0};
    if (!drv) {
        return error_set(errp, EINVAL, "Unknown file format '%s'", format);
    }
    if (!drv->image || !drv->image->measure) {
        return error_set(errp, ENOTSUP,
                         "Block driver '%s' does not support size measurement",
                         format);
    }
    if (!complete ||
        (disk &&
         json_object_set_new(complete, "size",
                             json_integer((json_int_t)blk_size(disk))) < 0)) {
        return error_nomem(errp);
    }
    return measure(drv, complete, disk, m, errp);
}
