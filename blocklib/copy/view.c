/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The reader's side of the copy engine: reading the point in time.
 *
 *      visible   1 1 1 1 0 0 1 1      what was in the set, less discards
 *      todo      1 1 0 1 0 0 0 1      not copied yet
 *      read      F F T F - - T F      FILE, TARGET, or -EACCES
 *
 * A reader holds up nobody.  A cluster that was to do before it was read from
 * FILE, and is to do afterwards, had not changed meanwhile (invariant 3 in
 * copy.c).  A cluster that is not to do any more is in TARGET by now.  None
 * comes back, so trying again ends.  A reader sees that a point in time is
 * broken before it can read the guest's write.
 */
#include <errno.h>
#include <stdatomic.h>

#include "copy/priv.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/bytes.h"
#include "util/iov.h"

static int lost_error(const struct copy *c)
{
    return c->policy.lost_errno ? c->policy.lost_errno : -EACCES;
}

/* Find the end that has the range's begin (*held: the source), and how many
 * bytes it has. */
static int find_part(const struct copy *c, uint64_t offset, uint64_t *bytes,
                     bool *held)
{
    bool visible = false;

    if (atomic_load(&c->broken)) {
        return lost_error(c);
    }
    if (offset >= c->size || !c->shown) {
        return -EACCES;
    }
    uint64_t end = offset + min_u64(*bytes, c->size - offset);
    uint64_t len = copy_set_run(&c->visible, offset, end, &visible);
    if (!visible) {
        return -EACCES;
    }
    *bytes = copy_set_run(&c->todo, offset, offset + len, held);
    return 0;
}

/* Call it after find_part and reading: cuts *bytes to the part that is still at
 * that end. */
static int keep_true(const struct copy *c, uint64_t offset, uint64_t *bytes,
                     bool held)
{
    bool now = held;
    int r = find_part(c, offset, bytes, &now);

    if (r == 0 && now != held) {
        *bytes = 0;
    }
    return r;
}

static struct node *side_of(const struct copy *c, bool held)
{
    return held ? c->source : c->target;
}

int copy_view_preadv(struct copy *c, uint64_t offset, uint64_t bytes,
                     const struct iovec *iov, int cnt, unsigned flags)
{
    for (uint64_t done = 0; done < bytes;) {
        struct iovec part[IOV_MAX_INNER];
        uint64_t at = offset + done;
        uint64_t len = bytes - done;
        bool held = false;
        int r = find_part(c, at, &len, &held);

        if (r < 0) {
            return r;
        }
        struct node *n = side_of(c, held);
        int parts = iov_slice(part, iov, cnt, done, len);
        r = range_inside(at, len, node_size(n))
                ? node_preadv(n, at, len, part, parts, flags)
                : -EIO; /* somebody has cut the node off */
        int lost = keep_true(c, at, &len, held);
        if (lost < 0 || (len > 0 && r < 0)) {
            return lost < 0 ? lost : r;
        }
        done += len;
        atomic_fetch_add(&c->counters.pulled, len);
    }
    if (c->policy.once) {
        (void)copy_view_discard(c, offset, bytes);
    }
    return 0;
}

struct first_extent {
    uint64_t length;
    bool zero;
};

static int take_first_extent(const struct extent *e, void *opaque)
{
    struct first_extent *f = opaque;

    f->length = e->length;
    f->zero = e->flags & EXTENT_ZERO;
    return 1;
}

int copy_view_map(struct copy *c, uint64_t offset, uint64_t bytes,
                  unsigned flags, struct mapping *m)
{
    for (;;) {
        struct first_extent f = {.length = 0};
        uint64_t len = bytes;
        bool held = false;
        int r = find_part(c, offset, &len, &held);

        if (r < 0) {
            return r;
        }
        struct node *n = side_of(c, held);
        r = range_inside(offset, len, node_size(n))
                ? node_extents(n, offset, len,
                               flags & MAP_NOWAIT ? REQ_NOWAIT : 0,
                               take_first_extent, &f)
                : -EIO;
        len = r < 0 ? len : f.length;
        int lost = keep_true(c, offset, &len, held);
        if (lost < 0 || (len > 0 && r < 0)) {
            return lost < 0 ? lost : r;
        }
        if (len > 0) {
            m->kind = f.zero ? MAP_ZERO : MAP_OPAQUE;
            m->length = len;
            return 0;
        }
    }
}

static void forget_locked(struct copy *c, uint64_t from, uint64_t end)
{
    uint64_t start;
    uint64_t len;

    while (from < end && copy_set_next(&c->visible, from, end, &start, &len)) {
        copy_set_take(&c->visible, start, len);
        copy_set_take(&c->todo, start, len);
        atomic_fetch_add(&c->counters.discarded, len);
        from = start + len;
    }
}

int copy_view_discard(struct copy *c, uint64_t offset, uint64_t bytes)
{
    uint64_t from = align_up(offset, c->cluster);
    uint64_t end = min_u64(offset + bytes, c->size);
    struct range_req req;

    if (end < c->size) {
        end = align_down(end, c->cluster);
    }
    if (from >= end || !c->shown) {
        return 0;
    }
    range_lock(&c->in_hand, &req, from, end - from, true);
    forget_locked(c, from, end);
    int r = node_discard(side_of(c, false), from, end - from);
    range_unlock(&c->in_hand, &req);
    if (c->errands) {
        copy_errands_room(c->errands);
    }
    return r;
}

static void tell_bits(const struct copy *c, uint64_t count, bitmap_fn *tell,
                      void *opaque)
{
    const struct bitmap_info info = {.granularity = c->cluster, .count = count};

    tell(&info, opaque);
}

void copy_tell_bits(const struct copy *c, bitmap_fn *tell, void *opaque)
{
    tell_bits(c, c->shown ? copy_visible(c) : align_up(c->size, c->cluster),
              tell, opaque);
    tell_bits(c, hbitmap_count(c->written), tell, opaque);
    tell_bits(c, copy_set_count(&c->todo, c->size, c->cluster), tell, opaque);
}

int copy_show(struct copy *c)
{
    if (!c->todo.gone) {
        c->todo.gone = hbitmap_new(c->size, c->cluster);
    }
    c->visible.gone = hbitmap_new(c->size, c->cluster);
    if (!c->todo.gone || !c->visible.gone) {
        return -ENOMEM;
    }
    c->visible.base = c->todo.base;
    c->shown = true;
    return 0;
}

uint64_t copy_visible(const struct copy *c)
{
    return c->shown ? copy_set_count(&c->visible, c->size, c->cluster) : 0;
}

const struct copy_counters *copy_counters(const struct copy *c)
{
    return &c->counters;
}

json_t *copy_query_delay(const struct copy *c)
{
    const struct copy_counters *k = &c->counters;
    json_t *boundaries = json_array();
    json_t *bins = json_array();

    for (unsigned i = 0; i < COPY_BUCKETS; i++) {
        uint64_t waits = atomic_load(&k->waits[i]);

        if (i < COPY_BUCKETS - 1) {
            (void)json_array_append_new(boundaries,
                                        json_integer(INT64_C(1000) << i));
        }
        (void)json_array_append_new(bins, json_integer((json_int_t)waits));
    }
    return json_pack("{s:o, s:o, s:I, s:I}", "boundaries", boundaries, "bins",
                     bins, "max-ns", (json_int_t)atomic_load(&k->wait_max_ns),
                     "total-ns", (json_int_t)atomic_load(&k->wait_ns));
}
