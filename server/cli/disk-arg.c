/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk that a command reads: see disk-arg.h. */
#include "cli/disk-arg.h"

#include <errno.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/options.h"
#include "store/manifest.h"
#include "store/name.h"

/* --- Points --- */

static int find_disk(const struct disk_arg *d, const struct store_point *p,
                     const struct manifest_disk **diskp, struct error **errp)
{
    const struct manifest *m = p->manifest;

    if (!m) {
        return error_set(errp, EUCLEAN,
                         "the manifest of point %s cannot be used: %s", p->name,
                         p->why);
    }
    if (!d->disk && m->count != 1) {
        return error_set(errp, EINVAL,
                         "point %s has %u disks: say which (--disk)", p->name,
                         m->count);
    }
    *diskp = d->disk ? manifest_find(m, d->disk) : &m->disks[0];
    return *diskp ? 0
                  : error_set(errp, ENOENT, "point %s has no disk '%s'",
                              p->name, d->disk);
}

static int open_point(struct graph *g, struct disk_arg *d, const char *dir,
                      const char *word, struct node **np, struct error **errp)
{
    const struct manifest_disk *disk = NULL;
    const struct store_point *p = NULL;
    CLEANUP_JSON json_t *options = NULL;
    int r = store_open(dir, STORE_READ, "nbdelta", &d->store, errp);

    r = r < 0 ? r : store_find_point(d->store, word, &p, errp);
    r = r < 0 ? r : store_hold_chain(d->store, p->name, &d->holds, errp);
    r = r < 0 ? r : find_disk(d, p, &disk, errp);
    r = r < 0 ? r
              : store_chain_options(d->store, disk->name, p->name, &options,
                                    errp);
    if (r < 0) {
        return r;
    }
    if (json_object_set_new(options, "read-only", json_true()) < 0) {
        return error_nomem(errp);
    }
    /* Its files name nothing that is not in the options. */
    graph_follow(g, FOLLOW_NONE);
    return graph_open(g, options, np, errp);
}

/* --- */

static int open_image(struct graph *g, const struct disk_arg *d,
                      struct node **np, struct error **errp)
{
    const struct image_open o = {
        .image = d->arg,
        .format = d->format,
        .force_share = d->force_share,
        .image_opts = d->image_opts,
        .no_bitmaps = !d->with_bitmaps,
        .snapshot = d->snapshot,
    };

    graph_follow(g, FOLLOW_BESIDE);
    return image_open(g, &o, np, errp);
}

int disk_arg_open(struct graph *g, const char *user, struct disk_arg *d,
                  struct error **errp)
{
    CLEANUP_FREE char *dir = NULL;
    const char *word = NULL;
    struct node *n = NULL;
    int r = !d->image_opts && !options_spelled_out(d->arg) &&
                    point_name_is_directory(d->arg, &dir, &word)
                ? open_point(g, d, dir, word, &n, errp)
                : open_image(g, d, &n, errp);

    return r < 0 ? r : blk_new(g, n, PERM_READ, PERM_ALL, user, &d->blk, errp);
}

void disk_arg_close(struct disk_arg *d)
{
    blk_free(d->blk);
    d->blk = NULL;
}

void disk_arg_release(struct disk_arg *d)
{
    holds_release(&d->holds);
    store_close(d->store);
    d->store = NULL;
}
