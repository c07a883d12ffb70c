/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What has changed in an image of Ceph since a snapshot.
 *
 *     object maps      |        |########|        |########|########|
 *     these, asked                 ##  #           #        ########
 *     told                         ##  #           #        ########
 *
 * Object maps tell in one step which objects have changed at all, and each of
 * these is asked what has changed in it.  Without maps that are valid all
 * objects are asked.  They are asked in parts, so that each part has a limit.
 */
#include <errno.h>
#include <stdlib.h>

#include "drivers/rbd.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

/* Objects that one call asks. */
#define PART_OBJECTS 2048

/* --- In the thread of a call --- */

static int add_extent(uint64_t offset, uint64_t bytes, void *opaque)
{
    struct rbd_call *c = opaque;
    struct rbd_extent *last = c->extent_count > 0
                                  ? &c->extents[c->extent_count - 1]
                                  : NULL;

    if (last && offset == last->offset + last->bytes) {
        last->bytes += bytes;
        return 0;
    }
    if (!c->extents || c->extent_count == c->extent_room) {
        size_t room = c->extent_room > 0 ? 2 * c->extent_room : 64;
        struct rbd_extent *more = realloc(c->extents, room * sizeof(*more));

        if (!more) {
            return -ENOMEM;
        }
        c->extents = more;
        c->extent_room = room;
    }
    c->extents[c->extent_count++] = (struct rbd_extent){offset, bytes};
    return 0;
}

static int do_diff(struct rbd_call *c)
{
    return c->m->diff(c->image, c->name, c->offset, c->bytes, c->whole,
                      add_extent, c);
}

static int do_maps(struct rbd_call *c)
{
    return c->m->maps(c->image, c->name, &c->maps);
}

/* --- In parts --- */

struct diff {
    struct node *n;
    const char *from;
    storage_diff_fn *fn;
    void *opaque;
    uint64_t size;
    uint64_t part;
    bool told; /* a result that is the caller's own */
};

/* *calls: the call, with what it has found; free it. */
static int ask(const struct diff *d, uint64_t offset, uint64_t bytes,
               bool whole, struct rbd_call **cp)
{
    struct rbd_call *c = rbd_call_new(d->n, do_diff, d->from, NULL);

    if (!c) {
        return -ENOMEM;
    }
    c->offset = offset;
    c->bytes = bytes;
    c->whole = whole;
    int r = rbd_call_run(c, RBD_DIFF_S);
    if (r < 0) {
        rbd_call_free(c);
        return r;
    }
    *cp = c;
    return 0;
}

static int tell_exactly(struct diff *d, uint64_t offset, uint64_t end)
{
    int r = 0;

    while (r == 0 && offset < end) {
        uint64_t to = min_u64(end, align_down(offset, d->part) + d->part);
        struct rbd_call *c = NULL;

        r = ask(d, offset, to - offset, false, &c);
        for (size_t i = 0; r == 0 && i < c->extent_count; i++) {
            r = d->fn(c->extents[i].offset, c->extents[i].bytes, d->opaque);
            d->told = r != 0;
        }
        rbd_call_free(c);
        offset = to;
    }
    return r;
}

static int tell_by_maps(struct diff *d)
{
    struct rbd_call *c = NULL;
    int r = ask(d, 0, d->size, true, &c);

    for (size_t i = 0; r == 0 && i < c->extent_count; i++) {
        const struct rbd_extent *e = &c->extents[i];

        r = tell_exactly(d, e->offset, min_u64(e->offset + e->bytes, d->size));
    }
    rbd_call_free(c);
    return r;
}

static int look_at_maps(const struct diff *d, enum ceph_maps *maps)
{
    struct rbd_call *c = rbd_call_new(d->n, do_maps, d->from, NULL);
    int r = c ? rbd_call_run(c, RBD_CALL_S) : -ENOMEM;

    *maps = r < 0 ? CEPH_MAPS_NONE : c->maps;
    rbd_call_free(c);
    return r;
}

int rbd_diff(struct node *n, const char *from, storage_diff_fn *fn,
             void *opaque, enum storage_diff_how *how, struct error **errp)
{
    const struct rbd *s = n->state;
    struct diff d = {
        .n = n,
        .from = from,
        .fn = fn,
        .opaque = opaque,
        .size = node_size(n),
        .part = PART_OBJECTS * s->object_size,
    };
    enum ceph_maps maps;
    int r = look_at_maps(&d, &maps);

    *how = maps == CEPH_MAPS_VALID     ? STORAGE_DIFF_FAST
           : maps == CEPH_MAPS_INVALID ? STORAGE_DIFF_INVALID
                                       : STORAGE_DIFF_ASKED;
    if (r == 0) {
        r = maps == CEPH_MAPS_VALID ? tell_by_maps(&d)
                                    : tell_exactly(&d, 0, d.size);
    }
    return r == 0 || d.told ? r
                            : rbd_error(n, r, "tell what has changed since",
                                        from ? from : "nothing", errp);
}
