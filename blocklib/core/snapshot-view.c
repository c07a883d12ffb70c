/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Views of internal snapshots, whatever the format is (struct
 * driver_snapshots).
 *
 *   client of the view      client of the disk
 *         |                        |
 *        blk                      blk
 *         |                        |
 *         |                  filters, if any
 *         |                        |
 *       view --------------------> disk
 *
 * Reading what a view needs is a request of its own, because it waits for
 * storage.  The view is opened in a control section after that.
 */
#include <errno.h>

#include "core/driver.h"
#include "core/graph-priv.h"
#include "nbdelta/blk.h"
#include "nbdelta/error.h"
#include "nbdelta/internal-snapshot.h"

/* The node whose snapshots are meant. */
static int find_disk(struct node *n, struct node **diskp, struct error **errp)
{
    const struct node *top = n;

    while (!n->drv->snapshots && node_passes_perms(n) &&
           node_child(n, CHILD_FILE)) {
        n = node_child(n, CHILD_FILE);
    }
    *diskp = n;
    return n->drv->snapshots
               ? 0
               : error_set(errp, ENOTSUP, "'%s' has no internal snapshots",
                           node_filename(top));
}

static int look(struct blk *b, const char *which,
                const struct driver_snapshots **drv,
                struct snapshot_found **found, struct error **errp)
{
    struct node *disk;
    struct tree *t = blk_enter(b, &disk);
    int r = find_disk(disk, &disk, errp);

    if (r == 0) {
        *drv = disk->drv->snapshots;
        r = (*drv)->look(disk, which, found, errp);
    }
    node_leave(t);
    return r;
}

static int show(struct graph *g, struct blk *b, struct snapshot_found *found,
                struct node **view, struct error **errp)
{
    struct node *disk;

    graph_lock(g);
    int r = find_disk(blk_node(b), &disk, errp);
    r = r < 0 ? r : disk->drv->snapshots->show(disk, found, view, errp);
    graph_unlock(g);
    return r;
}

int blk_snapshot_view(struct graph *g, struct blk *b, const char *which,
                      const char *user, struct blk **viewp, struct error **errp)
{
    struct node *n = NULL;
    int r;

    do {
        const struct driver_snapshots *drv = NULL;
        struct snapshot_found *found;

        r = look(b, which, &drv, &found, errp);
        if (r == 0) {
            r = show(g, b, found, &n, errp);
            drv->forget(found);
        }
    } while (r == -EAGAIN);
    if (r < 0) {
        return r;
    }
    r = blk_new(g, n, PERM_READ, PERM_ALL, user, viewp, errp);
    graph_lock(g);
    node_unref(n);
    graph_unlock(g);
    return r;
}

int blk_snapshot_size(struct blk *b, const char *which, uint64_t *size,
                      struct error **errp)
{
    struct node *disk;
    struct tree *t = blk_enter(b, &disk);
    int r = find_disk(disk, &disk, errp);

    r = r < 0 ? r : disk->drv->snapshots->measure(disk, which, size, errp);
    node_leave(t);
    return r;
}
