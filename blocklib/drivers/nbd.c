/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbd: an export of an NBD server, by way of libnbd.
 *
 * A protocol node of a fixed size.  Nothing of the export is in memory, so
 * requests that must not wait are sent back.  The status is asked for each
 * time, because others may write to the export.
 */
#include "drivers/nbd.h"

#include <errno.h>
#include <string.h>

#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "util/iov.h"

/* One request has at most so many bytes: most servers take that, and it may
 * have to be copied. */
#define TRANSFER_MAX (32 * MiB)
/* Zero and discard carry no data. */
#define LARGE_MAX (1 * GiB)
/* Numbers of an answer about a dirty map that are kept, and for how long. */
#define TOLD_MAX (128 * KiB)
#define TOLD_NS  UINT64_C(1000000000)
/* The block size of a server that states none.  QEMU's rule: see
 * min_block(). */
#define OLD_BLOCK 512

/* --- Opening --- */

static int apply_read_only(struct node *n, const struct remote_info *i,
                           struct error **errp)
{
    if (!i->read_only || node_read_only(n)) {
        return 0;
    }
    if (!n->flags.auto_read_only) {
        return error_set(errp, EACCES, "NBD export is read-only");
    }
    node_flags_set_read_only(&n->flags);
    return 0;
}

static void release(struct remote *r)
{
    remote_options_free(&r->options);
    free(r->told);
    cond_destroy(&r->changed);
    mutex_destroy(&r->lock);
}

static int remote_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct remote *r = n->state;

    r->node = n;
    mutex_init(&r->lock, LOCK_NBD, NULL);
    cond_init(&r->changed);
    r->yank = (struct yank){
        .name = n->name,
        .fn = remote_yank,
        .is_stuck = remote_is_stuck,
        .give_up = remote_give_up,
        .opaque = r,
    };
    int c = remote_options_take(n, opts, &r->options, errp);
    if (c == 0) {
        n->filename = remote_filename(&r->options, n->options);
        c = n->filename ? 0 : error_nomem(errp);
    }
    if (c < 0) {
        release(r);
        return c;
    }
    /* Register before waiting for a connection, so that a yank can end that,
     * too. */
    yank_register(n->graph, &r->yank);
    c = remote_connect(r, errp);
    if (c == 0 && (c = apply_read_only(n, &r->info, errp)) < 0) {
        remote_disconnect(r);
    }
    if (c < 0) {
        yank_unregister(n->graph, &r->yank);
        release(r);
        return c;
    }
    n->size = r->info.size;
    remote_connect_more(r);
    return 0;
}

static void remote_close(struct node *n)
{
    struct remote *r = n->state;

    yank_unregister(n->graph, &r->yank);
    remote_disconnect(r);
    release(r);
}

static int remote_reopen(struct node *n, const struct node_flags *to,
                         struct error **errp)
{
    const struct remote *r = n->state;

    return r->info.read_only && !to->read_only
               ? error_set(errp, EACCES,
                           "Can't reopen read-only NBD mount as read/write")
               : 0;
}

/*
 * The smallest block.  If the server states none, it is a byte if the server
 * has to know bytes (for the tail of an odd size, for extents); else a sector,
 * because the server may be an old one.
 */
static uint32_t min_block(const struct remote_info *i)
{
    if (i->min > 0) {
        return i->min;
    }
    return i->context || !is_aligned(i->size, OLD_BLOCK) ? 1 : OLD_BLOCK;
}

static void remote_limits(struct node *n, struct limits *lim)
{
    const struct remote_info *i = &((const struct remote *)n->state)->info;
    uint64_t max = i->max > 0 ? min_u64(i->max, TRANSFER_MAX) : TRANSFER_MAX;

    lim->align = min_block(i);
    lim->zero_align = lim->align;
    lim->max_transfer = (uint32_t)max_u64(align_down(max, lim->align),
                                          lim->align);
    if (i->pref > 0 && is_pow2(i->pref)) {
        lim->pref = (uint32_t)max_u64(i->pref, lim->align);
    }
    lim->fast_zero = i->can_zero && i->can_fast_zero;
    lim->zero_unmaps = i->can_trim || i->can_zero;
}

/* --- Requests --- */

struct request {
    void *buf;
    uint64_t offset;
    uint64_t bytes;
    uint32_t flags;
    uint64_t seen;       /* bytes that a read was given */
    const char *context; /* for status */
    uint32_t *told;      /* NULL, or all that the answer has; malloc()ed */
    size_t count;        /* of its numbers */
    bool whole;          /* all extents are wanted */
    uint64_t length;     /* of the first extent; 0: none yet */
    uint32_t state;      /* its flags */
};

/* Count each part of a read's answer, because a missing part is an error. */
static int chunk(void *opaque, const void *buf, size_t count, uint64_t offset,
                 unsigned status, int *error)
{
    struct request *q = opaque;

    (void)buf;
    (void)offset;
    (void)error;
    if (status != LIBNBD_READ_ERROR) {
        q->seen += count;
    }
    return 0;
}

static int64_t issue_read(struct nbd_handle *h, nbd_completion_callback done,
                          void *opaque)
{
    struct request *q = opaque;
    nbd_chunk_callback each = {.callback = chunk, .user_data = q};

    q->seen = 0;
    return nbd_aio_pread_structured(h, q->buf, q->bytes, q->offset, each, done,
                                    0);
}

static int64_t issue_write(struct nbd_handle *h, nbd_completion_callback done,
                           void *opaque)
{
    const struct request *q = opaque;
    return nbd_aio_pwrite(h, q->buf, q->bytes, q->offset, done, q->flags);
}

static int64_t issue_zero(struct nbd_handle *h, nbd_completion_callback done,
                          void *opaque)
{
    const struct request *q = opaque;
    return nbd_aio_zero(h, q->bytes, q->offset, done, q->flags);
}

static int64_t issue_trim(struct nbd_handle *h, nbd_completion_callback done,
                          void *opaque)
{
    const struct request *q = opaque;
    return nbd_aio_trim(h, q->bytes, q->offset, done, 0);
}

static int64_t issue_cache(struct nbd_handle *h, nbd_completion_callback done,
                           void *opaque)
{
    const struct request *q = opaque;
    return nbd_aio_cache(h, q->bytes, q->offset, done, 0);
}

static int64_t issue_flush(struct nbd_handle *h, nbd_completion_callback done,
                           void *opaque)
{
    (void)opaque;
    return nbd_aio_flush(h, done, 0);
}

/* Without memory the first one has to do. */
static void keep_all(struct request *q, const uint32_t *entries, size_t count)
{
    size_t keep = count < TOLD_MAX ? count : TOLD_MAX;

    q->told = malloc(keep * sizeof(*q->told));
    q->count = q->told ? keep / 2 * 2 : 0;
    if (q->told) {
        memcpy(q->told, entries, q->count * sizeof(*q->told));
    }
}

static int extents(void *opaque, const char *context, uint64_t offset,
                   uint32_t *entries, size_t count, int *error)
{
    struct request *q = opaque;

    (void)offset;
    (void)error;
    if (q->length == 0 && strcmp(context, q->context) == 0 && count >= 2) {
        q->length = entries[0];
        q->state = entries[1];
        if (q->whole) {
            keep_all(q, entries, count);
        }
    }
    return 0;
}

static int64_t issue_status(struct nbd_handle *h, nbd_completion_callback done,
                            void *opaque)
{
    struct request *q = opaque;
    nbd_extent_callback each = {.callback = extents, .user_data = q};

    q->length = 0;
    free(q->told);
    q->told = NULL;
    q->count = 0;
    return nbd_aio_block_status(h, q->bytes, q->offset, each, done,
                                q->whole ? 0 : LIBNBD_CMD_FLAG_REQ_ONE);
}

/* --- Reading and writing --- */

/* The one buffer of a request, or a bounce buffer; NULL: no memory. */
static void *flat(const struct iovec *iov, uint64_t bytes, char **bounce)
{
    if (iov->iov_len >= bytes) {
        return iov->iov_base;
    }
    *bounce = buf_alloc(bytes);
    return *bounce;
}

/* The bytes of the range inside the export; its last block may stick out. */
static uint64_t bytes_inside_export(const struct remote *r, uint64_t offset,
                                    uint64_t bytes)
{
    return offset < r->info.size ? min_u64(bytes, r->info.size - offset) : 0;
}

static int remote_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                         const struct iovec *iov, int cnt, unsigned flags)
{
    struct remote *r = n->state;
    CLEANUP_FREE char *bounce = NULL;
    struct request q = {.offset = offset,
                        .bytes = bytes_inside_export(r, offset, bytes)};
    int c = 0;

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    if (q.bytes > 0) {
        q.buf = flat(iov, q.bytes, &bounce);
        c = q.buf ? remote_request(r, issue_read, &q) : -ENOMEM;
    }
    if (c == 0 && q.seen != q.bytes) {
        c = -EIO;
    }
    if (c == 0 && bounce) {
        iov_from_buf(iov, cnt, 0, bounce, q.bytes);
    }
    if (c == 0 && q.bytes < bytes) {
        iov_fill(iov, cnt, q.bytes, 0, bytes - q.bytes);
    }
    return c;
}

static int remote_flush(struct node *n)
{
    struct remote *r = n->state;

    return n->flags.no_flush || !r->info.can_flush
               ? 0
               : remote_request(r, issue_flush, NULL);
}

/* Storage tells once that it has lost something.  So a write with FUA that
 * fails may be a flush that has failed.  If there is no room, that may be said
 * of these bytes or of what was written before.  The server writes these first,
 * so if they fail without FUA, too, nothing was flushed. */
static int write_fua(struct node *n, struct request *q)
{
    struct request plain = *q;
    struct flush_run run;

    plain.flags = 0;
    node_flush_begin(n, &run);
    int c = remote_request(n->state, issue_write, q);
    bool no_flush = c == -ENOSPC &&
                    remote_request(n->state, issue_write, &plain) == -ENOSPC;
    node_flush_end(n, &run, no_flush ? -EAGAIN : c);
    return c;
}

static int remote_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                          const struct iovec *iov, int cnt, unsigned flags)
{
    struct remote *r = n->state;
    CLEANUP_FREE char *bounce = NULL;
    bool fua = (flags & REQ_FUA) && !n->flags.no_flush;
    uint64_t end = align_up(r->info.size, n->limits.align);
    struct request q = {.offset = offset,
                        .bytes = bytes_inside_export(r, offset, bytes)};

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    if (q.bytes == 0 || offset + bytes > (n->growable ? r->info.size : end)) {
        return -ENOSPC;
    }
    q.flags = fua && r->info.can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
    q.buf = flat(iov, q.bytes, &bounce);
    if (!q.buf) {
        return -ENOMEM;
    }
    if (bounce) {
        iov_to_buf(iov, cnt, 0, bounce, q.bytes);
    }
    int c = q.flags ? write_fua(n, &q) : remote_request(r, issue_write, &q);
    return c == 0 && fua && !r->info.can_fua ? remote_flush(n) : c;
}

/* --- Space --- */

/* Does the server refuse a request without data that exceeds the maximum? */
static bool refuses_large(struct node *n, const struct request *q, int c)
{
    struct remote *r = n->state;

    if ((c != -EINVAL && c != -EOVERFLOW) ||
        q->bytes <= n->limits.max_transfer) {
        return false;
    }
    atomic_store(&r->no_large_zero, true);
    return true;
}

/* Do a request in parts that the server takes. */
static int in_parts(struct node *n, issue_fn *issue, uint64_t offset,
                    uint64_t bytes, uint32_t flags)
{
    struct remote *r = n->state;
    uint64_t end = offset + bytes_inside_export(r, offset, bytes);

    while (offset < end) {
        bool small = atomic_load(&r->no_large_zero);
        struct request q = {
            .offset = offset,
            .bytes = min_u64(end - offset,
                             small ? n->limits.max_transfer : LARGE_MAX),
            .flags = flags,
        };
        int c = remote_request(r, issue, &q);
        if (c < 0 && !refuses_large(n, &q, c)) {
            return c;
        }
        offset += c == 0 ? q.bytes : 0;
        if (c == 0 && offset < end) {
            node_request_changed();
        }
    }
    return 0;
}

static int remote_zero(struct node *n, uint64_t offset, uint64_t bytes,
                       unsigned flags)
{
    const struct remote *r = n->state;
    uint32_t how = flags & REQ_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;

    if (!r->info.can_zero) {
        return -ENOTSUP;
    }
    if (flags & REQ_NO_FALLBACK) {
        how |= LIBNBD_CMD_FLAG_FAST_ZERO;
    }
    return in_parts(n, issue_zero, offset, bytes, how);
}

static int remote_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    const struct remote *r = n->state;

    return r->info.can_trim ? in_parts(n, issue_trim, offset, bytes, 0) : 0;
}

static void remote_prefetch(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct remote *r = n->state;
    struct request q = {.offset = offset};
    uint64_t end = offset + bytes_inside_export(r, offset, bytes);

    for (; r->info.can_cache && q.offset < end; q.offset += q.bytes) {
        q.bytes = min_u64(end - q.offset, n->limits.max_transfer);
        if (remote_request(r, issue_cache, &q) < 0) {
            return; /* it was a hint */
        }
    }
}

/* --- Status --- */

/*
 * A reader of a dirty map reads all of it in order, and it stands still
 * meanwhile.  So the rest of an answer serves for the next questions: each part
 * once, and not for long.
 */
static bool recall(struct remote *r, struct request *q)
{
    mutex_lock(&r->lock);
    bool known = r->told_next < r->told_end && r->told_at == q->offset &&
                 now_ns() - r->told_ns < TOLD_NS && r->told[r->told_next] > 0;
    if (known) {
        uint64_t length = min_u64(r->told[r->told_next], q->bytes);
        q->length = length;
        q->state = r->told[r->told_next + 1];
        r->told[r->told_next] -= (uint32_t)length;
        r->told_next += r->told[r->told_next] == 0 ? 2 : 0;
        r->told_at += length;
    }
    mutex_unlock(&r->lock);
    return known;
}

/* Takes what @q was told. */
static void remember(struct remote *r, struct request *q)
{
    mutex_lock(&r->lock);
    free(r->told);
    r->told = q->told;
    r->told_next = 0;
    r->told_end = q->count;
    r->told_at = q->offset;
    r->told_ns = now_ns();
    mutex_unlock(&r->lock);
    q->told = NULL;
}

static int ask_status(struct remote *r, struct request *q)
{
    if (q->whole && recall(r, q)) {
        return 0;
    }
    int c = remote_request(r, issue_status, q);
    if (c == 0 && q->told) {
        remember(r, q);
        (void)recall(r, q);
    }
    free(q->told);
    return c;
}

static int remote_map(struct node *n, uint64_t offset, uint64_t bytes,
                      unsigned flags, struct mapping *m)
{
    struct remote *r = n->state;
    struct request q = {
        .offset = offset,
        .bytes = min_u64(bytes_inside_export(r, offset, bytes), LARGE_MAX),
        .context = r->options.context,
        .whole = r->options.dirty_bitmap,
    };

    m->kind = MAP_DATA;
    m->file = n;
    m->host = offset;
    m->length = bytes;
    if (!(flags & MAP_STATUS) || !r->info.context || q.bytes == 0) {
        return 0;
    }
    if (flags & MAP_NOWAIT) {
        return -EAGAIN;
    }
    int c = ask_status(r, &q);
    if (c < 0) {
        return c;
    }
    if (q.length == 0) {
        return -EIO; /* an answer without an extent */
    }
    m->length = min_u64(q.length, q.bytes);
    if (r->options.dirty_bitmap) {
        m->no_data = q.state & LIBNBD_STATE_HOLE;
    }
    if (!r->options.dirty_bitmap && (q.state & LIBNBD_STATE_ZERO)) {
        m->kind = MAP_ZERO;
        m->host_zero = true;
    }
    return 0;
}

/* --- The rest --- */

static void remote_drain(struct node *n)
{
    remote_kick(n->state, false);
}

static void remote_cancel(struct node *n)
{
    remote_kick(n->state, true);
}

static void remote_describe(struct node *n, json_t *info)
{
    struct remote *r = n->state;
    unsigned up = 0;

    mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->count; i++) {
        up += r->links[i].state == LINK_UP;
    }
    json_t *data = json_pack("{s:i,s:b,s:b}", "connections", (int)up,
                             "multi-conn", (int)r->info.multi_conn,
                             "rotational", (int)r->info.rotational);
    if (data && r->why) {
        (void)json_object_set_new(data, "error",
                                  json_string(error_message(r->why)));
    }
    mutex_unlock(&r->lock);
    (void)json_object_set_new(
        info, "format-specific",
        json_pack("{s:s,s:o}", "type", "nbd", "data", data));
}

static const struct driver_reopen remote_reopen_methods = {
    .prepare = remote_reopen,
};

const struct driver driver_nbd = {
    .name = "nbd",
    .options = remote_node_options,
    .is_protocol = true,
    .no_details = true,
    .state_size = sizeof(struct remote),
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP | REQ_NO_FALLBACK,
    .open = remote_open,
    .close = remote_close,
    .reopen = &remote_reopen_methods,
    .limits = remote_limits,
    .describe = remote_describe,
    .map = remote_map,
    .preadv = remote_preadv,
    .pwritev = remote_pwritev,
    .zero = remote_zero,
    .discard = remote_discard,
    .flush = remote_flush,
    .drain = remote_drain,
    .cancel = remote_cancel,
    .prefetch = remote_prefetch,
};
