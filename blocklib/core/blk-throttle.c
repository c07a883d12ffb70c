/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Limits of a user: its requests wait for their turn in a group.
 *
 * They wait in the tree, as those of a throttle node do, so that a drain lets
 * them go, and the group of an edge changes only while its tree is drained.
 * Groups are the ones that throttle nodes use, by the same names.  One that is
 * made here goes with its last user.
 */
#include <errno.h>
#include <string.h>

#include "core/blk-priv.h"
#include "core/throttle-group.h"
#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

static void change_group(struct blk *b, struct throttle_group *to)
{
    struct throttle_group *old = b->root.throttle;

    graph_drain(b->graph, b->root.child);
    b->root.throttle = to;
    if (old) {
        throttle_group_put(old);
    }
}

/* Control section. */
static int limit(struct blk *b, const char *group,
                 const struct throttle_config *c, struct error **errp)
{
    struct throttle_group *t = b->root.throttle;

    if (!throttle_limits_something(c)) {
        if (t) {
            change_group(b, NULL);
        }
        return 0;
    }
    if (!t || (group && strcmp(throttle_group_name(t), group) != 0)) {
        t = throttle_group_get_new(b->graph, group);
        if (!t) {
            return error_nomem(errp);
        }
        change_group(b, t);
    }
    throttle_group_set(t, c);
    return 0;
}

int blk_set_throttle(struct blk *b, const char *group, const json_t *limits,
                     struct error **errp)
{
    struct throttle_config c;
    int r = throttle_read(limits, &c, errp);

    if (r == 0) {
        graph_lock(b->graph);
        r = limit(b, group, &c, errp);
        graph_unlock(b->graph);
    }
    return r;
}

void blk_share_throttle(struct blk *b, const struct blk *of)
{
    graph_lock(b->graph);
    struct throttle_group *t = of->root.throttle;
    if (t) {
        change_group(b, throttle_group_ref(t));
    }
    graph_unlock(b->graph);
}

json_t *blk_query_throttle(struct blk *b)
{
    json_t *info = NULL;

    graph_lock(b->graph);
    if (b->root.throttle) {
        info = throttle_group_info(b->root.throttle);
    }
    graph_unlock(b->graph);
    return info;
}

bool blk_is_throttled(struct blk *b)
{
    graph_lock(b->graph);
    bool is = b->root.throttle != NULL;
    graph_unlock(b->graph);
    return is;
}
