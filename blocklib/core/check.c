/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking an image: what does not depend on the format. */
#include <errno.h>
#include <string.h>

#include "core/driver.h"
#include "core/graph-priv.h"
#include "core/open.h"
#include "nbdelta/blk.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"

static void let_grow(struct graph *g, struct node *file, bool grow)
{
    graph_lock(g);
    node_set_growable(file, grow);
    graph_unlock(g);
}

static int check_in_request(struct node *file, const char *format,
                            const struct image_check_options *o,
                            struct image_check *c, struct error **errp)
{
    int r = format ? 0 : node_probe(file, &format, errp);
    const struct driver *drv =
        r == 0 ? driver_find(graph_drivers(file->graph), format) : NULL;

    if (r < 0) {
        return r;
    }
    if (!drv || !drv->image || !drv->image->check) {
        return error_set(errp, ENOTSUP,
                         "This image format does not support checks");
    }
    *c = (struct image_check){0};
    r = drv->image->check(file, o, c, errp);
    c->format = drv->name;
    return r;
}

int image_check(struct graph *g, struct node *file, const char *format,
                const struct image_check_options *o, struct image_check *c,
                struct error **errp)
{
    bool writes = o->repair != IMAGE_REPAIR_NONE;
    struct blk *b;

    int r = blk_new(g, file,
                    PERM_READ | (writes ? PERM_WRITE | PERM_RESIZE : 0),
                    writes ? 0 : PERM_ALL, "a check", &b, errp);
    if (r < 0) {
        return r;
    }
    let_grow(g, file, writes);
    struct tree *tree = node_enter(file, false);
    r = check_in_request(file, format, o, c, errp);
    node_leave(tree);
    let_grow(g, file, false);
    blk_free(b);
    return r;
}
