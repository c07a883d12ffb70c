/* SPDX-License-Identifier: BSD-3-Clause */
/* All refcount blocks of an image in its file, read in the order of the file:
 * for check and repair. */
#include <errno.h>
#include <stdlib.h>

#include "nbdelta/cleanup.h"
#include "qcow2/check.h"

struct block {
    uint64_t host;
    uint64_t index; /* in the refcount table */
};

struct blocks {
    const struct qcow2_image *im;
    struct block *all;
    uint64_t count;
    uint64_t clusters;
    void *bytes;
};

static int by_place(const void *a, const void *b)
{
    const struct block *x = a;
    const struct block *y = b;

    return x->host != y->host ? (x->host > y->host ? 1 : -1)
                              : (x->index > y->index) - (x->index < y->index);
}

/* Can a block be there? */
static bool is_place(const struct qcow2_image *im, uint64_t host)
{
    return host != 0 && qcow2_in_cluster(&im->shape, host) == 0 &&
           host < im->file_size;
}

static int gather(struct blocks *b)
{
    CLEANUP_FREE uint64_t *table = NULL;
    uint64_t entries;
    uint64_t needed = div_up(b->clusters, UINT64_C(1)
                                              << b->im->shape.refblock_bits);
    int r = qcow2_image_reftable(b->im, &table, &entries);

    if (r < 0) {
        return r;
    }
    uint64_t all = max_u64(entries, needed);
    b->all = calloc(all + 1, sizeof(*b->all));
    if (!b->all) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < all; i++) {
        uint64_t host = i < entries && is_place(b->im, table[i]) ? table[i] : 0;

        if (host != 0 || i < needed) {
            b->all[b->count++] = (struct block){host, i};
        }
    }
    qsort(b->all, b->count, sizeof(*b->all), by_place);
    return 0;
}

static int visit(struct blocks *b, struct block *at, qcow2_refblock_fn *fn,
                 void *opaque)
{
    const struct qcow2 *s = &b->im->shape;
    struct qcow2_refblock block = {.first = at->index << s->refblock_bits,
                                   .count = UINT64_C(1) << s->refblock_bits,
                                   .host = at->host,
                                   .bytes = b->bytes};

    if (at->host == 0 ||
        qcow2_image_pread(b->im, b->bytes, s->cluster_size, at->host) < 0) {
        memset(b->bytes, 0, s->cluster_size);
        block.host = 0;
    }
    return fn(&block, opaque);
}

int qcow2_each_refblock(const struct qcow2_image *im, uint64_t clusters,
                        qcow2_refblock_fn *fn, void *opaque)
{
    struct blocks b = {.im = im, .clusters = clusters};
    int r = gather(&b);

    b.bytes = malloc(im->shape.cluster_size);
    if (r == 0 && !b.bytes) {
        r = -ENOMEM;
    }
    for (uint64_t i = 0; r == 0 && i < b.count; i++) {
        r = visit(&b, &b.all[i], fn, opaque);
    }
    free(b.bytes);
    free(b.all);
    return r;
}
