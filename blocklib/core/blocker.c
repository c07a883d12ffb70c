/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes that must not be rearranged: the counts of jobs, and the checks. */
#include "core/blocker.h"

#include <assert.h>
#include <errno.h>

#include "core/chain.h"
#include "nbdelta/error.h"

void node_block(struct node *n, const char *type)
{
    n->job_type = type;
    n->job_count++;
}

void node_unblock(struct node *n)
{
    assert(n->job_count > 0);
    n->job_count--;
}

int node_check_jobs(const struct node *n, struct error **errp)
{
    if (n->job_count > 0) {
        return error_set(errp, EBUSY,
                         "Node '%s' is busy: block device is in use by block "
                         "job: %s",
                         node_name(n), n->job_type);
    }
    return 0;
}

int chain_check_jobs(const struct node *from, const struct node *below,
                     struct error **errp)
{
    int r = 0;

    for (const struct node *n = from; r == 0 && n && n != below;
         n = chain_next(n)) {
        r = node_check_jobs(n, errp);
    }
    return r;
}

int node_check_unblocked(const struct node *n, struct error **errp)
{
    int r = node_check_jobs(n, errp);

    if (r < 0) {
        return r;
    }
    list_for_each (at, &n->parents) {
        const struct edge *e = list_entry(at, struct edge, on_child);
        if (e->parent && e == e->parent->child[CHILD_BACKING]) {
            return error_set(errp, EBUSY,
                             "Node '%s' is busy: node is used as backing hd "
                             "of '%s'",
                             node_name(n), node_name(e->parent));
        }
    }
    return 0;
}
