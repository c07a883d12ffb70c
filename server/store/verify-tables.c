/* SPDX-License-Identifier: BSD-3-Clause */
/* The tables of a point's image, held against each other: a refcount that is
 * too low loses data by the next merge, and no hash of the disk tells. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "store/verify-priv.h"

struct looking {
    const struct verify *v;
    char first[200]; /* what is wrong; "": nothing */
};

/* What leaks is no damage. */
static void note_finding(const struct image_finding *f, void *opaque)
{
    struct looking *l = opaque;

    if (f->fault == IMAGE_CORRUPT && !l->first[0]) {
        (void)snprintf(l->first, sizeof(l->first),
                       "the image contradicts itself: %.150s", f->text);
    }
}

static bool is_stopped(void *opaque)
{
    const struct looking *l = opaque;

    return verify_stopped(l->v);
}

static int look(struct graph *g, struct node *file, struct looking *l,
                struct error **errp)
{
    const struct image_check_options o = {
        .found = note_finding, .stop = is_stopped, .opaque = l};
    struct image_check c = {0};
    int r = image_check(g, file, "qcow2", &o, &c, errp);

    if (r == 0 && c.corruptions > 0 && !l->first[0]) {
        (void)snprintf(l->first, sizeof(l->first),
                       "the image contradicts itself");
    }
    return r;
}

int verify_tables(struct verify *v, const char *point, const char *disk,
                  struct error **errp)
{
    struct looking l = {.v = v};
    CLEANUP_JSON json_t *options = NULL;
    struct graph *g = graph_new();
    struct node *file = NULL;
    int r = g ? store_layer_options(v->store, disk, point, &options, errp)
              : error_nomem(errp);

    r = r < 0 ? r
              : graph_open(g, json_object_get(options, "file"), &file, errp);
    r = r < 0 ? r : look(g, file, &l, errp);
    if (g) {
        graph_close_all(g);
        graph_free(g);
    }
    return r < 0         ? r
           : !l.first[0] ? 0
                         : error_set(errp, EUCLEAN, "%s", l.first);
}
