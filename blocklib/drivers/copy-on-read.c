/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * copy-on-read: what is read gets into the image, and need not be fetched from
 * the images below a second time.
 *
 *      read --> copy-on-read --FILE--> image --BACKING--> ... bottom --> ...
 *                                      |  ^                    |
 *                     it has that -----+  +--- copied up ------+
 *
 * A read looks what the image leaves to others.  That is read in whole clusters
 * and copied up (core/copy-up.h); everything else passes.  With `bottom`, only
 * what the images down to that one have is copied up.  They are counted at each
 * read, so the chain may change meanwhile; where bottom is in it no more, or
 * the image has become read-only, nothing is copied up.
 */
#include <errno.h>
#include <limits.h>

#include "core/chain.h"
#include "core/copy-up.h"
#include "core/graph-priv.h"
#include "core/graph.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "util/iov.h"

/* So much is copied up at once. */
#define CHUNK (1 * MiB)

struct copy_on_read {
    struct node *bottom; /* with a reference; NULL: all images count */
};

/* --- Reading --- */

static struct copy_up_scope scope_of(const struct node *n)
{
    const struct copy_on_read *s = n->state;
    struct node *file = node_child(n, CHILD_FILE);

    if (node_skip_filters(file)->flags.read_only ||
        (s->bottom && !chain_contains(file, s->bottom))) {
        return (struct copy_up_scope){.layers = 0};
    }
    if (!s->bottom) {
        return (struct copy_up_scope){.layers = UINT_MAX, .all = true};
    }
    const struct node *below = chain_next(s->bottom);
    return (struct copy_up_scope){
        .layers = copy_up_layers(file, below),
        .hidden = below ? node_size(below) : 0,
    };
}

/* The part of the image that begins where was asked, and is alike. */
struct part {
    struct copy_up_scope scope;
    uint64_t bytes;
    bool wanted;
};

static int note_part(const struct extent *e, void *opaque)
{
    struct part *p = opaque;
    bool wanted = copy_up_wants(&p->scope, e);

    if (p->bytes > 0 && wanted != p->wanted) {
        return 1;
    }
    p->wanted = wanted;
    p->bytes += e->length;
    return 0;
}

/* Read [offset, offset + bytes), less than a chunk, in whole clusters, copy
 * these up, and take what was asked for. */
static int read_up(struct node *n, uint64_t offset, uint64_t bytes,
                   const struct iovec *iov, int cnt, uint64_t at)
{
    struct node *file = node_child(n, CHILD_FILE);
    uint64_t unit = max_u64(node_skip_filters(file)->cluster_size, 1);
    uint64_t start = align_down(offset, unit);
    uint64_t end = min_u64(align_up(offset + bytes, unit), node_size(file));
    CLEANUP_FREE char *buf = buf_alloc(end - start);

    if (!buf) {
        return -ENOMEM;
    }
    int r = node_pread(file, buf, end - start, start, 0);
    if (r == 0) {
        bool zero = bytes_are_zero(buf, end - start);
        r = node_copy_up(file, start, end - start, zero ? NULL : buf, 0);
    }
    if (r == 0) {
        iov_from_buf(iov, cnt, at, buf + (offset - start), bytes);
    }
    return r;
}

/* Pass a part of a read on. */
static int read_through(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, uint64_t at,
                        unsigned flags)
{
    struct iovec part[IOV_MAX_INNER];
    int parts = iov_slice(part, iov, cnt, at, bytes);

    return node_preadv(node_child(n, CHILD_FILE), offset, bytes, part, parts,
                       flags);
}

static int cor_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                      const struct iovec *iov, int cnt, unsigned flags)
{
    struct node *file = node_child(n, CHILD_FILE);
    struct part p = {.scope = scope_of(n)};
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0; done += p.bytes) {
        p.bytes = 0;
        r = node_extents(file, offset + done, bytes - done, flags & REQ_NOWAIT,
                         note_part, &p);
        if (r < 0) {
            return r;
        }
        if (p.wanted && (flags & REQ_NOWAIT)) {
            return -EAGAIN;
        }
        p.bytes = p.wanted ? min_u64(p.bytes, CHUNK) : p.bytes;
        r = p.wanted ? read_up(n, offset + done, p.bytes, iov, cnt, done)
                     : read_through(n, offset + done, p.bytes, iov, cnt, done,
                                    flags);
    }
    return r;
}

/* --- Control --- */

static const struct option cor_options[] = {
    OPTION("file", NODE, .required = true),
    OPTION("bottom", STR),
    OPTIONS_END,
};

static int find_bottom(struct node *n, const char *name, struct error **errp)
{
    struct copy_on_read *s = n->state;
    struct node *bottom = graph_find_locked(n->graph, name);

    if (!bottom) {
        return error_set(errp, EINVAL, "Bottom node '%s' not found", name);
    }
    if (bottom->drv->is_filter) {
        return error_set(errp, EINVAL, "Bottom node '%s' is a filter", name);
    }
    if (!chain_contains(node_child(n, CHILD_FILE), bottom)) {
        return error_set(errp, EINVAL,
                         "Bottom node '%s' is not in the chain of '%s'", name,
                         node_name(node_child(n, CHILD_FILE)));
    }
    node_ref(bottom);
    s->bottom = bottom;
    return 0;
}

static int cor_open(struct node *n, struct opts *opts, struct error **errp)
{
    const char *name = NULL;
    int r;

    if ((r = node_open_child(n, opts, "file", CHILD_FILE, false, errp)) < 0 ||
        (r = opts_str(opts, "bottom", &name, errp)) < 0) {
        return r;
    }
    struct node *file = node_child(n, CHILD_FILE);
    if (file->flags.read_only) {
        return error_set(errp, EACCES, "Block node is read-only");
    }
    n->size = node_size(file);
    return name ? find_bottom(n, name, errp) : 0;
}

static void cor_close(struct node *n)
{
    const struct copy_on_read *s = n->state;

    if (s->bottom) {
        node_unref(s->bottom);
    }
}

static int cor_resize(struct node *n, uint64_t size, struct error **errp)
{
    return node_resize(node_child(n, CHILD_FILE), size, errp);
}

const struct driver driver_copy_on_read = {
    .name = "copy-on-read",
    .options = cor_options,
    .is_filter = true,
    .state_size = sizeof(struct copy_on_read),
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .open = cor_open,
    .close = cor_close,
    .resize = cor_resize,
    .preadv = cor_preadv,
};
