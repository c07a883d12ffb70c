/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * rbd: an image of Ceph, by way of a module with librbd (ceph/ceph.h).
 *
 *     client's thread   preadv ... REQ_NOWAIT -> -EAGAIN
 *                       rbd-flight.c: librbd moves the bytes, nobody waits
 *     pool's thread     preadv -> request -> waits
 *
 * A protocol node.  Nothing of the image is in memory here (librbd has a cache
 * of its own, unless cache.direct is on), and any number of requests is under
 * way at once.  Exclusive locks, object maps and the like are librbd's: it
 * takes the lock when the first write comes, and gives it when another client
 * asks for it.
 *
 * Space is thin always: zeroes free it.  Cutting an object short is all that a
 * zero or discard costs, so `unmap` makes no difference.
 */
#include "drivers/rbd.h"

#include <errno.h>
#include <string.h>

#include "core/opts.h"
#include "core/rbd-name.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/tell.h"
#include "util/iov.h"

/* One request of zeroes or discards touches so many objects at most: librbd
 * begins with all of them at once. */
#define OBJECTS_MAX 256

#define TRANSFER_MAX (32 * MiB)

/* --- Opening --- */

static int apply_read_only(struct node *n, const struct ceph_place *p,
                           struct error **errp)
{
    if (!p->snapshot || node_read_only(n)) {
        return 0;
    }
    if (!n->flags.auto_read_only) {
        return error_set(errp, EACCES, "rbd snapshots are read-only");
    }
    node_flags_set_read_only(&n->flags);
    return 0;
}

/* In a thread of librbd. */
static void header_changed(void *opaque)
{
    node_tell_size(opaque);
}

static int open_place(struct node *n, struct ceph_place *p, struct error **errp)
{
    struct rbd *s = n->state;
    uint64_t size = 0;
    int r = apply_read_only(n, p, errp);

    if (r < 0) {
        return r;
    }
    p->read_only = node_read_only(n);
    p->cache = !n->flags.direct;
    s->luks = p->luks;
    s->fixed = p->snapshot != NULL; /* it is taken by the next */
    r = rbd_open_image(n, p, &s->image, errp);
    if (r < 0) {
        return r;
    }
    if ((r = s->m->size(s->image, &size)) < 0) {
        s->m->close(s->image);
        return error_set(errp, -r, "error getting image info: %s",
                         strerror(-r));
    }
    s->object_size = s->m->object_size(s->image);
    s->size = size;
    n->size = size;
    n->cluster_size = (uint32_t)s->object_size;
    if (!s->fixed && s->m->watch(s->image, header_changed, n) < 0) {
        tell_event(TELL_WARNING,
                   "node '%s' is not told when its image gets another size",
                   node_name(n));
    }
    return 0;
}

static int rbd_node_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct rbd *s = n->state;
    struct ceph_place p = {0};
    int r = rbd_place_take(n->graph, opts, &p, errp);

    s->node = n;
    if (r == 0) {
        n->filename = rbd_name_of(n->options);
        r = n->filename ? rbd_module(&s->m, errp) : error_nomem(errp);
    }
    if (r == 0) {
        s->late = rbd_late_new();
        r = s->late ? 0 : error_nomem(errp);
    }
    if (r == 0) {
        mutex_init(&s->grow_lock, LOCK_RBD_GROW, NULL);
        r = open_place(n, &p, errp);
        if (r < 0) {
            mutex_destroy(&s->grow_lock);
            rbd_late_put(s->late);
        }
    }
    rbd_place_free(&p);
    return r;
}

static void rbd_node_close(struct node *n)
{
    struct rbd *s = n->state;

    if (s->fixed) {
        rbd_close_soon(n);
    } else {
        s->m->close(s->image);
    }
    rbd_late_put(s->late);
    mutex_destroy(&s->grow_lock);
}

static int rbd_reopen(struct node *n, const struct node_flags *to,
                      struct error **errp)
{
    const struct rbd *s = n->state;

    return !to->read_only && s->m->read_only(s->image)
               ? error_set(errp, EINVAL,
                           "Cannot change node '%s' to r/w when using RBD "
                           "snapshot",
                           node_name(n))
               : 0;
}

static void rbd_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->max_transfer = TRANSFER_MAX;
    lim->fast_zero = true;
    lim->zero_unmaps = true;
    lim->grows_zero = true;
    lim->far = true;
}

/* --- Requests --- */

static void tell_of_loss(struct node *n, const char *what)
{
    struct rbd *s = n->state;

    if (!atomic_exchange(&s->told_of_loss, true)) {
        tell_event(TELL_ERROR, "node '%s': %s", node_name(n), what);
    }
}

int rbd_result(struct node *n, int64_t r)
{
    /* A connection that its cluster has shut out cannot change anything any
     * more, and another one may have what it had: reading it would be wrong,
     * too. */
    if (r == -ESHUTDOWN) {
        tell_of_loss(n, "the cluster has put this connection on its blocklist "
                        "('ceph osd blocklist ls'): all requests fail until "
                        "the node is closed and opened again");
        return -EIO;
    }
    if (r == -ENOENT) {
        tell_of_loss(n, "somebody has removed the image, or the snapshot that "
                        "it shows: requests fail");
        return -EIO;
    }
    if (r == -EDQUOT) { /* the pool's quota */
        return -ENOSPC;
    }
    return r < 0 ? (int)r : 0;
}

static int rbd_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                      const struct iovec *iov, int cnt, unsigned flags)
{
    struct rbd *s = n->state;
    struct ceph_request q = {CEPH_READ, offset, bytes, iov, cnt, NULL, NULL};

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    int64_t got = s->m->request(s->image, &q);
    if (got >= 0 && (uint64_t)got < bytes) {
        iov_fill(iov, cnt, (uint64_t)got, 0, bytes - (uint64_t)got);
    }
    return rbd_result(n, got);
}

/*
 * Librbd writes nothing past an image's end.  It costs a round trip to make an
 * image longer, so it grows by whole objects, and the node ends before it.
 */
static int grow_to(struct rbd *s, uint64_t end)
{
    int r = 0;

    mutex_lock(&s->grow_lock);
    if (end > s->size) {
        uint64_t size = align_up(end, s->object_size);

        r = s->m->resize(s->image, size);
        s->size = r == 0 ? size : s->size;
    }
    mutex_unlock(&s->grow_lock);
    return r;
}

static int rbd_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    struct rbd *s = n->state;
    struct ceph_request q = {CEPH_WRITE, offset, bytes, iov, cnt, NULL, NULL};
    int r = 0;

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    if (n->growable && offset + bytes > n->size) {
        r = grow_to(s, offset + bytes);
    }
    rbd_will_write(s);
    return rbd_result(n, r < 0 ? r : s->m->request(s->image, &q));
}

static int in_parts(struct node *n, enum ceph_op op, uint64_t offset,
                    uint64_t bytes)
{
    struct rbd *s = n->state;
    uint64_t end = offset + bytes;
    uint64_t part = OBJECTS_MAX * s->object_size;
    int r = 0;

    rbd_will_write(s);
    while (r == 0 && offset < end) {
        uint64_t to = min_u64(end, align_down(offset, part) + part);
        struct ceph_request q = {
            .op = op, .offset = offset, .bytes = to - offset};

        r = rbd_result(n, s->m->request(s->image, &q));
        offset = to;
        if (r == 0 && offset < end) {
            node_request_changed();
        }
    }
    return r;
}

static int rbd_zero(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned flags)
{
    struct rbd *s = n->state;
    int r = 0;

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    if (n->growable && offset + bytes > n->size) {
        r = grow_to(s, offset + bytes);
    }
    return r < 0 ? rbd_result(n, r) : in_parts(n, CEPH_ZERO, offset, bytes);
}

static int rbd_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    return in_parts(n, CEPH_DISCARD, offset, bytes);
}

/* A flush needs the exclusive lock, and waits 30 s for that of a client that
 * has died.  So there is none where there is nothing to flush. */
static int rbd_flush(struct node *n)
{
    struct rbd *s = n->state;
    struct ceph_request q = {.op = CEPH_FLUSH};

    return n->flags.no_flush || !atomic_load(&s->written)
               ? 0
               : rbd_result(n, s->m->request(s->image, &q));
}

static int rbd_resize(struct node *n, uint64_t size, struct error **errp)
{
    struct rbd *s = n->state;

    mutex_lock(&s->grow_lock);
    int r = s->m->resize(s->image, size);
    s->size = r == 0 ? size : s->size;
    mutex_unlock(&s->grow_lock);
    r = rbd_result(n, r);
    return r < 0
               ? error_set(errp, -r, "Failed to resize file: %s", strerror(-r))
               : 0;
}

static int rbd_size_there(struct node *n, uint64_t *size)
{
    struct rbd *s = n->state;

    mutex_lock(&s->grow_lock);
    int r = s->m->size(s->image, size);
    if (r == 0) {
        r = *size == s->size ? -EAGAIN : 0;
        s->size = *size;
    }
    mutex_unlock(&s->grow_lock);
    return r;
}

static int rbd_check_alone(struct node *n, struct error **errp)
{
    struct rbd *s = n->state;

    return s->m->check_alone(s->image, errp);
}

/* --- Status --- */

static void fill_in(struct node *n, uint64_t offset, uint64_t bytes, bool zero,
                    struct mapping *m)
{
    *m = (struct mapping){
        .kind = zero ? MAP_ZERO : MAP_DATA,
        .length = bytes,
        .file = n,
        .host = offset,
        .host_zero = zero,
    };
}

#define EXTENTS_MAX 64

static int rbd_map_many(struct node *n, uint64_t offset, uint64_t bytes,
                        unsigned flags, struct mapping *m, unsigned *count)
{
    struct rbd *s = n->state;
    struct ceph_extent e[EXTENTS_MAX];
    unsigned found = *count < EXTENTS_MAX ? *count : EXTENTS_MAX;

    if (!(flags & MAP_STATUS)) {
        fill_in(n, offset, bytes, false, &m[0]);
        *count = 1;
        return 0;
    }
    if (flags & MAP_NOWAIT) {
        return -EAGAIN;
    }
    int r = s->m->extents(s->image, offset, bytes, e, &found);
    if (r < 0 && r != -ESHUTDOWN) { /* data is always a true answer */
        e[0] = (struct ceph_extent){bytes, false};
        found = 1;
        r = 0;
    }
    *count = found;
    for (unsigned i = 0; r == 0 && i < found; i++) {
        fill_in(n, offset, e[i].bytes, e[i].zero, &m[i]);
        offset += e[i].bytes;
    }
    return rbd_result(n, r);
}

static int rbd_map(struct node *n, uint64_t offset, uint64_t bytes,
                   unsigned flags, struct mapping *m)
{
    unsigned one = 1;

    return rbd_map_many(n, offset, bytes, flags, m, &one);
}

/* --- The rest --- */

static void rbd_describe(struct node *n, json_t *info)
{
    const struct rbd *s = n->state;
    json_t *data = json_object();

    if (s->luks != CEPH_PLAIN) {
        (void)json_object_set_new(
            data, "encryption-format",
            json_string(s->luks == CEPH_LUKS1 ? "luks" : "luks2"));
    }
    (void)json_object_set_new(
        info, "format-specific",
        json_pack("{s:s,s:o}", "type", "rbd", "data", data));
}

static const struct driver_reopen reopen_methods = {
    .prepare = rbd_reopen,
};

const struct driver driver_rbd = {
    .name = "rbd",
    .options = rbd_node_options,
    .is_protocol = true,
    .state_size = sizeof(struct rbd),
    .image = &rbd_image_methods,
    .reopen = &reopen_methods,
    .flight = &rbd_flight,
    .storage = &rbd_storage,
    .open = rbd_node_open,
    .close = rbd_node_close,
    .limits = rbd_limits,
    .resize = rbd_resize,
    .size_there = rbd_size_there,
    .check_alone = rbd_check_alone,
    .describe = rbd_describe,
    .map = rbd_map,
    .map_many = rbd_map_many,
    .preadv = rbd_preadv,
    .pwritev = rbd_pwritev,
    .zero = rbd_zero,
    .discard = rbd_discard,
    .flush = rbd_flush,
};
