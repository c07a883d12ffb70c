/* SPDX-License-Identifier: BSD-3-Clause */
/* The filter of a mirror: see mirror-top.h. */
#include "copy/mirror-top.h"

#include <errno.h>

#include "core/blocker.h"
#include "core/graph-priv.h"
#include "nbdelta/error.h"

struct mirror_top {
    struct copy *copy; /* set once it is in place */
    struct node *source;
    struct node *target;
};

static struct copy *copy_of(const struct node *n)
{
    const struct mirror_top *s = n->state;

    return s->copy;
}

/* --- Write-blocking: else these are not called (`blind` in core/node.h) --- */

static int mirror_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                          const struct iovec *iov, int iovcnt, unsigned flags)
{
    return copy_write_both(copy_of(n), offset, bytes, iov, iovcnt, flags);
}

static int mirror_zero(struct node *n, uint64_t offset, uint64_t bytes,
                       unsigned flags)
{
    return copy_write_both(copy_of(n), offset, bytes, NULL, 0, flags);
}

static int mirror_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    return copy_discard_both(copy_of(n), offset, bytes);
}

/* --- Always --- */

static int refuse_resize(struct node *n, uint64_t size, struct error **errp)
{
    (void)size;
    return error_set(errp, EBUSY,
                     "Node '%s' is busy: block device is in use by block job: "
                     "mirror",
                     node_name(node_child(n, CHILD_FILE)));
}

/* A write past the filter would not get to the target. */
static void mirror_child_perms(const struct node *n, struct perms *p)
{
    if (!n->blind) {
        p->shared &= PERM_READ;
    }
}

static void set_ends(struct node *n)
{
    if (copy_of(n)) {
        copy_set_ends(copy_of(n), n, node_child(n, CHILD_FILE),
                      node_child(n, CHILD_TARGET));
    }
}

static const struct driver driver_mirror = {
    .name = "mirror_top",
    .is_filter = true,
    .state_size = sizeof(struct mirror_top),
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .child_perms = mirror_child_perms,
    .file_changed = set_ends,
    .resize = refuse_resize,
    .pwritev = mirror_pwritev,
    .zero = mirror_zero,
    .discard = mirror_discard,
};

/* --- Coming and going --- */

static int attach_ends(struct node *n, struct node *source, struct node *target,
                       struct error **errp)
{
    int r = node_attach(n, CHILD_FILE, source, "file", PERM_READ, PERM_ALL,
                        errp);

    return r < 0 ? r
                 : node_attach(n, CHILD_TARGET, target, "target", PERM_WRITE, 0,
                               errp);
}

int mirror_top_insert(struct node *source, struct node *target,
                      struct copy *copy, const char *name,
                      struct node **filterp, struct error **errp)
{
    struct node *n;
    int r;

    if ((r = node_check_jobs(source, errp)) < 0 ||
        (r = node_check_jobs(target, errp)) < 0 ||
        (r = node_new(source->graph, &driver_mirror, name, source, &n, errp)) <
            0) {
        return r;
    }
    n->blind = true;
    n->implicit = !name;
    r = attach_ends(n, source, target, errp);
    if (r < 0) {
        node_unref(n);
        return r;
    }
    *(struct mirror_top *)n->state = (struct mirror_top){copy, source, target};
    node_refresh_limits(n);
    graph_drain(n->graph, n);
    node_replace(source, n);
    set_ends(n);
    node_block(n, "mirror");
    node_block(source, "mirror");
    node_block(target, "mirror");
    *filterp = n;
    return 0;
}

int mirror_top_block_writes(struct node *filter, struct hbitmap *late,
                            struct error **errp)
{
    filter->blind = false;
    int r = node_check_perms(filter, errp);
    if (r < 0) {
        filter->blind = true;
        return r;
    }
    node_hand_down_perms(filter);
    copy_begin_both(copy_of(filter), late);
    return 0;
}

void mirror_top_retire(struct node *filter)
{
    struct edge *target = filter->child[CHILD_TARGET];

    filter->blind = true;
    node_hand_down_perms(filter);
    target->perm = 0;
    target->shared = PERM_ALL;
    node_hand_down_perms(target->child);
}

void mirror_top_remove(struct node *filter)
{
    struct mirror_top *s = filter->state;

    graph_drain(filter->graph, filter);
    copy_set_ends(s->copy, NULL, NULL, NULL);
    s->copy = NULL;
    filter->blind = true;
    node_replace(filter, node_child(filter, CHILD_FILE));
    node_unblock(s->source); /* its users may have the target by now */
    node_unblock(s->target);
    node_detach(filter, CHILD_TARGET);
    node_unref(filter);
}
