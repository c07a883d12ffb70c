/* SPDX-License-Identifier: BSD-3-Clause */
/* throttle: a filter whose requests keep to the limits of a group. */
#include <errno.h>

#include "core/graph.h"
#include "core/opts.h"
#include "core/throttle-group.h"
#include "nbdelta/error.h"

struct throttle_node {
    struct throttle_group *group;
};

static int wait_turn(struct node *n, bool write, uint64_t bytes, unsigned flags)
{
    const struct throttle_node *s = n->state;
    return throttle_group_wait(s->group, n, write, bytes, flags);
}

static int throttle_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                           const struct iovec *iov, int cnt, unsigned flags)
{
    int r = wait_turn(n, false, bytes, flags);
    return r < 0 ? r
                 : node_preadv(node_child(n, CHILD_FILE), offset, bytes, iov,
                               cnt, flags);
}

static int throttle_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                            const struct iovec *iov, int cnt, unsigned flags)
{
    int r = wait_turn(n, true, bytes, flags);
    return r < 0 ? r
                 : node_pwritev(node_child(n, CHILD_FILE), offset, bytes, iov,
                                cnt, flags);
}

static int throttle_zero(struct node *n, uint64_t offset, uint64_t bytes,
                         unsigned flags)
{
    int r = wait_turn(n, true, bytes, flags);
    return r < 0 ? r
                 : node_zero(node_child(n, CHILD_FILE), offset, bytes, flags);
}

static int throttle_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    int r = wait_turn(n, true, bytes, 0);
    return r < 0 ? r : node_discard(node_child(n, CHILD_FILE), offset, bytes);
}

static void throttle_drain(struct node *n)
{
    const struct throttle_node *s = n->state;

    throttle_group_kick(s->group);
}

/* When the user gives up, no request waits for a limit any more. */
static void throttle_cancel(struct node *n)
{
    const struct throttle_node *s = n->state;

    throttle_group_release(s->group);
}

static const struct option throttle_options[] = {
    OPTION("file", NODE, .required = true),
    OPTION("throttle-group", STR, .required = true),
    OPTIONS_END,
};

static int throttle_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct throttle_node *s = n->state;
    const char *name = NULL;
    int r;

    if ((r = node_open_child(n, opts, "file", CHILD_FILE, false, errp)) < 0 ||
        (r = opts_str(opts, "throttle-group", &name, errp)) < 0) {
        return r;
    }
    if (!name) {
        return error_set(errp, EINVAL, "Please specify a throttle group");
    }
    s->group = throttle_group_get(n->graph, name);
    if (!s->group) {
        return error_set(errp, ENOENT, "Throttle group '%s' does not exist",
                         name);
    }
    n->size = node_size(node_child(n, CHILD_FILE));
    return 0;
}

static void throttle_close(struct node *n)
{
    const struct throttle_node *s = n->state;
    throttle_group_put(s->group);
}

static int throttle_resize(struct node *n, uint64_t size, struct error **errp)
{
    return node_resize(node_child(n, CHILD_FILE), size, errp);
}

const struct driver driver_throttle = {
    .name = "throttle",
    .options = throttle_options,
    .is_filter = true,
    .state_size = sizeof(struct throttle_node),
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .open = throttle_open,
    .close = throttle_close,
    .resize = throttle_resize,
    .preadv = throttle_preadv,
    .pwritev = throttle_pwritev,
    .zero = throttle_zero,
    .discard = throttle_discard,
    .drain = throttle_drain,
    .cancel = throttle_cancel,
};
