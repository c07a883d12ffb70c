/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How large will an image be?
 *
 *   fully allocated   what the plan of the image says, with all its clusters
 *   required          the same without clusters of data that nobody will write:
 *                     so all L2 tables and refcounts count, whatever is there
 */
#include "core/measure.h"
#include "nbdelta/image.h"
#include "qcow2/bitmaps.h"
#include "qcow2/create-plan.h"

/* Bytes for all persistent bitmaps of a disk of @size bytes, with all of their
 * bits stored. */
static uint64_t bitmaps_bytes(const struct create_plan *p,
                              const struct bitmap_list *list)
{
    uint64_t bytes = 0;
    uint64_t dir = 0;

    for (size_t i = 0; i < list->count; i++) {
        const struct bitmap_info *b = &list->at[i];
        uint64_t bits = div_up(p->size, b->granularity);
        uint64_t clusters = div_up(div_up(bits, 8), p->cluster_size);

        if (b->persistent && b->name) {
            bytes += clusters * p->cluster_size +
                     align_up(clusters * 8, p->cluster_size);
            dir += qcow2_bitmap_entry_bytes(0, strlen(b->name));
        }
    }
    return bytes + align_up(dir, p->cluster_size);
}

static int measure_plan(const struct create_plan *p,
                        const struct measure_source *source,
                        struct image_measure *m, struct error **errp)
{
    uint64_t all = align_up(p->size, p->cluster_size);
    bool written = p->preallocation == PRE_FALLOC ||
                   p->preallocation == PRE_FULL;
    uint64_t data = 0;
    int r = 0;

    if (written || (source && p->backing)) {
        data = all; /* nobody knows what the backing file has in common */
    } else if (source) {
        r = image_measure_data(source, p->cluster_size, &data, errp);
    }
    m->fully_allocated = qcow2_plan_full(p);
    m->required = m->fully_allocated - all + data;
    m->has_bitmaps = source && source->keeps_bitmaps && p->version >= 3;
    if (m->has_bitmaps) {
        m->bitmaps = bitmaps_bytes(p, &source->bitmaps);
    }
    return r;
}

int qcow2_measure(struct opts *opts, const struct measure_source *source,
                  struct image_measure *m, struct error **errp)
{
    struct create_plan p = {.exact = false};
    int r = qcow2_plan_make(opts, &p, errp);

    if (r == 0) {
        r = measure_plan(&p, source, m, errp);
    }
    qcow2_plan_drop(&p);
    return r;
}
