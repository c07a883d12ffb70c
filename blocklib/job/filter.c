/* SPDX-License-Identifier: BSD-3-Clause */
/* The filters of filter.h: how they are put above a node, and taken out. */
#include "job/filter.h"

#include <errno.h>

#include "core/blocker.h"
#include "nbdelta/error.h"

static int refuse_resize(struct node *n, uint64_t size, struct error **errp)
{
    (void)size;
    int r = node_check_jobs(node_child(n, CHILD_FILE), errp);
    return r < 0 ? r : -EBUSY;
}

const struct driver driver_commit_top = {
    .name = "commit_top",
    .is_filter = true,
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .resize = refuse_resize,
};

const struct driver driver_mirror_top = {
    .name = "mirror_top",
    .is_filter = true,
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .resize = refuse_resize,
};

/* As QEMU's, which also copies up what guests read.  Here they need not wait
 * for that: the job gets there anyway. */
const struct driver driver_stream_top = {
    .name = "copy-on-read",
    .is_filter = true,
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .resize = refuse_resize,
};

int jobfilter_insert(const struct driver *drv, struct node *n, const char *name,
                     struct node **filterp, struct error **errp)
{
    struct node *filter;
    int r = node_new(n->graph, drv, name, n, &filter, errp);

    if (r < 0) {
        return r;
    }
    filter->implicit = !name;
    r = node_attach(filter, CHILD_FILE, n, "file", PERM_READ, PERM_ALL, errp);
    if (r < 0) {
        node_unref(filter);
        return r;
    }
    node_refresh_limits(filter);
    node_replace(n, filter);
    *filterp = filter;
    return 0;
}

void jobfilter_remove(struct node *filter)
{
    graph_drain(filter->graph, filter);
    node_replace(filter, node_child(filter, CHILD_FILE));
    node_unref(filter);
}
