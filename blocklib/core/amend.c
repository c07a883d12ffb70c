/* SPDX-License-Identifier: BSD-3-Clause */
/* Other properties for an image: what does not depend on the format. */
#include <errno.h>

#include "core/blocker.h"
#include "core/driver.h"
#include "core/graph-priv.h"
#include "core/opts.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"

int image_amend(struct graph *g, struct node *image, const json_t *options,
                const struct image_amend *how, struct error **errp)
{
    const struct driver_image *im = image->drv->image;

    if (!im || !im->amend) {
        return error_set(errp, ENOTSUP,
                         "Format driver '%s' does not support option amendment",
                         node_driver(image));
    }
    struct opts *opts = opts_new(options);
    if (!opts) {
        return error_nomem(errp);
    }
    graph_lock(g);
    graph_drain(g, image);
    int r = node_check_jobs(image, errp);
    if (r == 0) {
        r = im->amend(image, opts, how, errp);
    }
    graph_unlock(g);
    opts_free(opts);
    return r;
}
