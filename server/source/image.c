/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An image that nobody uses.
 *
 * It is open, with its lock, from open to close.  So nobody writes to it
 * meanwhile: the disk is frozen, and what its bitmaps have stays the same.  The
 * new checkpoint's bitmap is made at the end, in one durable step, and a killed
 * run leaves nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"
#include "source/source.h"

struct image_source {
    struct node *node; /* NULL: not open */
    char *checkpoint;  /* that begins at the end; NULL: none */
};

/* --- Open --- */

static int open_node(struct source *s, const char *what, const char *format,
                     bool read_only, struct node **np, struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    int r = image_check_format(format, errp);

    r = r < 0 ? r : options_from_image(what, format, &options, errp);
    if (r == 0 && json_object_set_new(options, "read-only",
                                      json_boolean(read_only)) < 0) {
        r = error_nomem(errp);
    }
    return r < 0 ? r : graph_open(s->graph, options, np, errp);
}

/* "/dir/vda.qcow2" is the disk "vda". */
static char *disk_name(const char *what)
{
    const char *base = strrchr(what, '/');

    if (options_spelled_out(what)) {
        return strdup("disk");
    }
    char *name = strdup(base ? base + 1 : what);
    char *dot = name ? strrchr(name, '.') : NULL;
    if (dot && dot != name) {
        *dot = '\0';
    }
    return name;
}

static int open_image(struct source *s, const char *what,
                      const struct source_options *o, struct error **errp)
{
    struct image_source *i = calloc(1, sizeof(*i));
    CLEANUP_FREE char *name = disk_name(what);

    s->opaque = i;
    if (!i || !name) {
        return error_nomem(errp);
    }
    /* A file that may only be read keeps no checkpoint, but can be copied. */
    CLEANUP_ERROR struct error *err = NULL;
    int r = open_node(s, what, o->format, false, &i->node, &err);
    if (r == -EACCES || r == -EROFS || r == -EPERM || r == -EUCLEAN) {
        r = open_node(s, what, o->format, true, &i->node, &err);
    }
    if (r < 0) {
        i->node = NULL;
        return error_set(errp, -r, "%s", error_message(err));
    }
    return source_add_disk(s, name, NULL, node_size(i->node))
               ? 0
               : error_nomem(errp);
}

/* --- Begin and end --- */

/* NULL: d->bitmap has what has changed.  Otherwise why not. */
static const char *find_changes(struct node *n, struct source_disk *d)
{
    struct bitmap *bm = bitmap_find(n, d->since);
    const char *why = !node_keeps_bitmaps(n) ? "no-bitmaps"
                      : !bm                  ? "no-checkpoint"
                      : !bitmap_readable(bm) ? "bitmap-inconsistent"
                      : !bitmap_enabled(bm)  ? "bitmap-disabled"
                                             : NULL;

    if (why) {
        bitmap_unref(bm);
    } else {
        d->bitmap = bm;
    }
    return why;
}

static int begin_image(struct source *s, const char *checkpoint,
                       struct error **errp)
{
    struct image_source *i = s->opaque;
    struct source_disk *d = &s->disks[0];

    d->size = node_size(i->node);
    d->reason = d->since ? find_changes(i->node, d) : NULL;
    d->checkpoint = checkpoint && node_keeps_bitmaps(i->node) &&
                    !node_read_only(i->node);
    if (checkpoint && !d->checkpoint && !d->reason) {
        d->reason = "no-bitmaps";
    }
    const struct bitmap_ref ref = {i->node, checkpoint};
    if (d->checkpoint) {
        int r = bitmap_check_persistent(ref, errp);
        if (r < 0) {
            return r;
        }
        i->checkpoint = strdup(checkpoint);
    }
    d->options = json_pack("{s:s, s:s, s:b}", "driver", "raw", "file",
                           node_name(i->node), "read-only", 1);
    return d->options && (!d->checkpoint || i->checkpoint) ? 0
                                                           : error_nomem(errp);
}

static int make_checkpoint(struct source *s, const struct image_source *i,
                           struct error **errp)
{
    struct action *a;
    int r = bitmap_add_action((struct bitmap_ref){i->node, i->checkpoint}, 0,
                              true, false, &a, errp);

    return r < 0 ? r : action_run(s->graph, a, errp);
}

static int end_image(struct source *s, bool keep, struct error **errp)
{
    struct image_source *i = s->opaque;
    int r = keep && i->checkpoint ? make_checkpoint(s, i, errp) : 0;

    if (r == 0 || !keep) {
        free(i->checkpoint);
        i->checkpoint = NULL;
    }
    return r;
}

/* --- Checkpoints --- */

static int each_image_checkpoint(struct source *s, source_checkpoint_fn *fn,
                                 void *opaque, struct error **errp)
{
    const struct image_source *i = s->opaque;
    CLEANUP_BITMAPS struct bitmap_list list;

    if (bitmaps_get(i->node, &list) < 0) {
        return error_nomem(errp);
    }
    for (size_t k = 0; k < list.count; k++) {
        const struct bitmap_info *b = &list.at[k];
        int r = b->name && b->persistent && (b->recording || b->inconsistent)
                    ? fn(b->name, &s->disks[0],
                         b->inconsistent ? "bitmap-inconsistent" : NULL, opaque)
                    : 0;
        if (r != 0) {
            return r;
        }
    }
    return 0;
}

static int forget_image_checkpoint(struct source *s, const char *checkpoint,
                                   struct error **errp)
{
    const struct image_source *i = s->opaque;
    struct bitmap *bm = bitmap_find(i->node, checkpoint);
    struct action *a;

    if (!bm) {
        return 0;
    }
    bitmap_unref(bm);
    int r = bitmap_remove_action((struct bitmap_ref){i->node, checkpoint}, &a,
                                 errp);
    return r < 0 ? r : action_run(s->graph, a, errp);
}

/* --- Is it what it was? --- */

/* Of one file: it, and when it was changed.  A process that writes to it
 * cannot set back the time of its change. */
static int add_file(json_t *list, const char *path)
{
    struct stat st;

    if (!path || stat(path, &st) < 0 || !S_ISREG(st.st_mode)) {
        return -1;
    }
    return json_array_append_new(
        list, json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "file",
                        path, "device", (json_int_t)st.st_dev, "inode",
                        (json_int_t)st.st_ino, "size", (json_int_t)st.st_size,
                        "changed", (json_int_t)st.st_ctim.tv_sec, "ns",
                        (json_int_t)st.st_ctim.tv_nsec, "written",
                        (json_int_t)st.st_mtim.tv_sec, "written-ns",
                        (json_int_t)st.st_mtim.tv_nsec));
}

/* The image and all below it are files, and none has its data elsewhere. */
static json_t *identity_of_image(struct source *s)
{
    const struct image_source *i = s->opaque;
    CLEANUP_JSON json_t *info = node_image_info(s->graph, i->node);
    CLEANUP_JSON json_t *list = json_array();
    int r = list && info ? 0 : -1;

    for (const json_t *at = info; r == 0 && at;
         at = json_object_get(at, "backing-image")) {
        const json_t *data =
            json_object_get(json_object_get(at, "format-specific"), "data");
        const json_t *below = json_object_get(at, "backing-filename");

        r = add_file(list, json_string_value(json_object_get(at, "filename")));
        if (json_object_get(data, "data-file") ||
            (below && !json_object_get(at, "backing-image"))) {
            r = -1;
        }
    }
    return r == 0 ? json_incref(list) : NULL;
}

static void close_image(struct source *s)
{
    struct image_source *i = s->opaque;

    if (i) {
        source_reset_disks(s);
        if (i->node) {
            (void)graph_close(s->graph, i->node, NULL);
        }
        free(i->checkpoint);
        free(i);
    }
}

const struct source_ops source_image = {
    .name = "image",
    .open = open_image,
    .begin = begin_image,
    .end = end_image,
    .each_checkpoint = each_image_checkpoint,
    .forget = forget_image_checkpoint,
    .identity = identity_of_image,
    .close = close_image,
};
