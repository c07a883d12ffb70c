/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images of Ceph, in use or not, with nobody's help
 * =================================================
 *
 *     image  ---o----------------o-----> guests
 *               |   diff         |
 *            snapshot of      snapshot of
 *            `since`          the new checkpoint: a view of it is read
 *
 * A checkpoint is a snapshot on each image, of the name that it has where our
 * daemon makes it.  So what begin makes is there at once, and end has to remove
 * it or leave it.  Nothing is kept
 * elsewhere: who has the directory can go on, from any host.
 *
 * A killed run leaves its snapshots.  They are adopted while all of them have
 * the ids that they had: an id is never given twice.
 *
 * Each image is open from open to close, for all that is asked of it.  Clusters
 * are far away and images may be many, so they are asked side by side.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log/log.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/options.h"
#include "nbdelta/storage-snapshot.h"
#include "source/rbd-names.h"
#include "source/rbd-priv.h"
#include "source/side-by-side.h"
#include "source/source.h"

/* --- All images, side by side --- */

struct errand {
    struct source *s;
    rbd_image_fn *fn;
    const char *name; /* of a snapshot, or NULL */
};

static int run_errand(void *opaque, unsigned i, struct error **errp)
{
    const struct errand *e = opaque;

    return e->fn(e->s, i, e->name, errp);
}

int rbd_each_image(struct source *s, rbd_image_fn *fn, const char *name,
                   struct error **errp)
{
    const struct rbd_source *x = s->opaque;
    struct errand e = {s, fn, name};
    const struct side_by_side all = {
        .count = x->count, .fn = run_errand, .opaque = &e, .stop_fd = -1};

    return side_by_side_run(&all, errp);
}

/* --- Open --- */

#define NEEDS_WRITES \
    "a backup makes a snapshot of the image, which can only be read"

static int open_image(struct source *s, unsigned i, const char *name,
                      struct error **errp)
{
    struct rbd_source *x = s->opaque;

    (void)name;
    int r = graph_open(s->graph, x->names[i].options, &x->disks[i].node, errp);
    if (r < 0) {
        x->disks[i].node = NULL;
        error_prefix(errp, "disk '%s': %s", x->names[i].disk,
                     r == -EPERM ? NEEDS_WRITES ": " : "");
        return r;
    }
    return storage_has_snapshots(x->disks[i].node)
               ? 0
               : error_set(errp, EACCES, "disk '%s': " NEEDS_WRITES,
                           x->names[i].disk);
}

/* Opens wait for a cluster that does not answer. */
static void stop_opening(void *opaque)
{
    const struct errand *e = opaque;

    graph_stop_waiting(e->s->graph);
}

static int open_images(struct source *s, struct error **errp)
{
    const struct rbd_source *x = s->opaque;
    struct errand e = {s, open_image, NULL};
    const struct side_by_side all = {.count = x->count,
                                     .fn = run_errand,
                                     .stop = stop_opening,
                                     .opaque = &e,
                                     .stop_fd = s->stop_fd};

    return side_by_side_run(&all, errp);
}

/* What the image is called without the way to it. */
static char *place_of(const json_t *options)
{
    CLEANUP_JSON json_t *place = json_object();
    static const char *const keys[] = {"pool", "namespace", "image"};

    for (size_t i = 0; place && i < ARRAY_SIZE(keys); i++) {
        json_t *value = json_object_get(options, keys[i]);

        if (value && json_object_set(place, keys[i], value) < 0) {
            return NULL;
        }
    }
    return place ? options_to_rbd_name(place) : NULL;
}

static int add_disks(struct source *s, struct error **errp)
{
    struct rbd_source *x = s->opaque;

    for (unsigned i = 0; i < x->count; i++) {
        CLEANUP_FREE char *place = place_of(x->names[i].options);

        for (unsigned k = 0; place && k < i; k++) {
            if (s->disks[k].image && strcmp(s->disks[k].image, place) == 0) {
                return error_set(errp, EINVAL, "'%s' and '%s' are both '%s'",
                                 s->disks[k].name, x->names[i].disk, place);
            }
        }
        if (!place || !source_add_disk(s, x->names[i].disk, place,
                                       node_size(x->disks[i].node))) {
            return error_nomem(errp);
        }
    }
    return 0;
}

static int open_rbd(struct source *s, const char *what,
                    const struct source_options *o, struct error **errp)
{
    struct rbd_source *x = calloc(1, sizeof(*x));
    unsigned count = 0;

    s->opaque = x;
    if (x) {
        x->patience_ns = (o->timeout_s ? o->timeout_s : 60) *
                         UINT64_C(1000000000);
    }
    if (!x || !(x->id = strdup(o->id)) ||
        asprintf(&x->once, "nbdelta.once.%s", o->id) < 0) {
        return error_nomem(errp);
    }
    int r = rbd_source_parse(what, &x->names, errp);
    if (r < 0) {
        return r;
    }
    while (x->names[count].disk) {
        count++;
    }
    x->disks = calloc(count, sizeof(*x->disks));
    if (!x->disks) {
        return error_nomem(errp);
    }
    x->count = count;
    r = open_images(s, errp);
    r = r < 0 ? r : add_disks(s, errp);
    if (r == 0 && o->adopt && !o->adopt_done) {
        rbd_adopt(s, o->adopt);
    }
    return r;
}

/* --- What has changed --- */

/* How @view differs from the checkpoint before. */
static int tell_diff(struct source *s, const struct source_disk *d,
                     struct node *view,
                     int (*fn)(uint64_t offset, uint64_t bytes, void *opaque),
                     void *opaque, struct error **errp)
{
    const struct rbd_source *x = s->opaque;
    CLEANUP_FREE char *before = storage_checkpoint_name(d->since);
    CLEANUP_ERROR struct error *err = NULL;
    unsigned i = (unsigned)(d - s->disks);
    enum storage_diff_how how = STORAGE_DIFF_FAST;

    if (!before) {
        return error_nomem(errp);
    }
    int r = storage_diff(view, before, fn, opaque, &how, &err);
    if (r == 0 || r == -ENOENT) {
        r = rbd_check_snapshot(s, i, before, x->disks[i].since, errp);
    } else if (err) {
        (void)error_set(errp, -r, "%s", error_message(err));
    }
    if (r == 0 && how == STORAGE_DIFF_INVALID) {
        log_line(TELL_WARNING,
                 "disk '%s': an object map is marked as invalid, so all of "
                 "its objects were asked what has changed ('rbd object-map "
                 "rebuild' of the image and of its snapshots mends that)",
                 d->name);
    }
    return r;
}

static int each_dirty_rbd(struct source *s, const struct source_disk *d,
                          struct node *n,
                          int (*fn)(uint64_t offset, uint64_t bytes,
                                    void *opaque),
                          void *opaque, struct error **errp)
{
    struct node *view = n;
    int r = n ? 0 : graph_open(s->graph, d->options, &view, errp);

    if (r < 0) {
        return r;
    }
    r = tell_diff(s, d, view, fn, opaque, errp);
    if (!n) {
        graph_forget(s->graph, view);
    }
    return r;
}

/* --- Checkpoints --- */

static int each_rbd_checkpoint(struct source *s, source_checkpoint_fn *fn,
                               void *opaque, struct error **errp)
{
    const struct rbd_source *x = s->opaque;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < x->count; i++) {
        CLEANUP_STORAGE struct storage_snapshots list = {0};

        r = storage_snapshots_get(x->disks[i].node, &list, errp);
        for (size_t k = 0; r == 0 && k < list.count; k++) {
            CLEANUP_FREE char *is = storage_checkpoint_of(list.at[k].name);
            bool adopted = s->adopted && !s->begun && is &&
                           strcmp(is, x->checkpoint) == 0;

            r = !is || adopted ? 0 : fn(is, &s->disks[i], NULL, opaque);
        }
    }
    return r;
}

static int forget_rbd_checkpoint(struct source *s, const char *checkpoint,
                                 struct error **errp)
{
    CLEANUP_FREE char *name = storage_checkpoint_name(checkpoint);

    return name ? rbd_each_image(s, rbd_remove_one, name, errp)
                : error_nomem(errp);
}

/* --- */

static json_t *identity_of_instant(struct source *s)
{
    const struct rbd_source *x = s->opaque;

    return json_incref(x->identity);
}

static void close_rbd(struct source *s)
{
    struct rbd_source *x = s->opaque;

    if (!x) {
        return;
    }
    rbd_drop_instant(s, s->adopted); /* where begin did not come */
    for (unsigned i = 0; i < x->count; i++) {
        if (x->disks[i].node) {
            (void)graph_close(s->graph, x->disks[i].node, NULL);
        }
    }
    rbd_source_free(x->names);
    free(x->disks);
    free(x->once);
    free(x->id);
    free(x);
}

const struct source_ops source_rbd = {
    .name = "rbd",
    .open = open_rbd,
    .begin = rbd_begin,
    .renew = rbd_renew,
    .end = rbd_end,
    .each_checkpoint = each_rbd_checkpoint,
    .forget = forget_rbd_checkpoint,
    .each_dirty = each_dirty_rbd,
    .identity = identity_of_instant,
    .close = close_rbd,
};
