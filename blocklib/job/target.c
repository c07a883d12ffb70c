/* SPDX-License-Identifier: BSD-3-Clause */
/* The file that a job writes to, of drive-backup and drive-mirror: it is made,
 * unless it is there, and opened. */
#include "job/target.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/chain.h"
#include "core/create.h"
#include "core/graph.h"
#include "core/remote-name.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

/* NULL: the format of an existing file is probed. */
static const char *target_format(const struct target_options *o)
{
    return o->format || o->existing ? o->format
                                    : chain_backing_format(o->source);
}

/* Images have whole sectors, disks in files may have any size. */
#define SECTOR 512

/* The node that the target shall leave reads to, or NULL. */
static struct node *backing_for(struct graph *g, const struct target_options *o)
{
    if (o->sync == SYNC_NONE) {
        return o->source;
    }
    if (o->sync != SYNC_TOP) {
        return NULL;
    }
    graph_lock(g);
    struct node *backing = node_child(node_skip_filters(o->source),
                                      CHILD_BACKING);
    graph_unlock(g);
    return backing;
}

/* An export is there already.  Make an image in it, unless it is raw. */
static int create_remote(struct graph *g, const struct target_options *o,
                         const json_t *options, struct error **errp)
{
    CLEANUP_JSON json_t *file = json_pack("{s:s}", "filename", o->file);
    const char *format = target_format(o);
    struct image_nodes left;

    if (strcmp(format, "raw") == 0) {
        return 0;
    }
    int r = file ? image_format(g, format, file, options, &left, errp)
                 : error_set(errp, EINVAL, "the target's name is not UTF-8");
    if (file) {
        image_release(g, &left);
    }
    return r;
}

/* A device or an export is not a file: it may have been written before. */
static bool is_file(const char *name)
{
    struct stat st;

    return !remote_is_name(name) && stat(name, &st) == 0 && S_ISREG(st.st_mode);
}

/* *zero: the target has zeroes of its own where nothing is written to it. */
static int create_target(struct graph *g, const struct target_options *o,
                         const struct node *backing, bool *zero,
                         struct file_make *how, struct error **errp)
{
    uint64_t size = node_size(o->source);
    bool raw = strcmp(target_format(o), "raw") == 0;
    CLEANUP_JSON json_t *options = json_pack(
        "{s:I}", "size", (json_int_t)(raw ? size : align_up(size, SECTOR)));
    int r = options ? 0 : -1;

    CLEANUP_FREE char *name = backing ? chain_backing_name(backing, errp)
                                      : NULL;

    if (backing && !name) {
        return -EINVAL;
    }
    if (r == 0 && backing) {
        r = json_object_set_new(options, "backing_file", json_string(name)) |
            json_object_set_new(options, "backing_fmt",
                                json_string(chain_backing_format(backing)));
    }
    if (r < 0) {
        return error_nomem(errp);
    }
    bool remote = remote_is_name(o->file);
    graph_lock(g);
    node_access(o->source, &how->access);
    graph_unlock(g);
    r = remote ? create_remote(g, o, options, errp)
               : image_create_as(graph_drivers(g), o->file, target_format(o),
                                 options, how, errp);

    /* A target whose unwritten parts show something else, now or after a change
     * of its backing file, has to have its zeroes stored. */
    *zero = r == 0 && o->sync == SYNC_FULL && (!raw || is_file(o->file));
    return r;
}

/* Set a key, as the source has it, unless the user has spelled it out. */
static int set_default_option(json_t *options, const char *key, json_t *value)
{
    if (json_object_get(options, key)) {
        json_decref(value);
        return 0;
    }
    return json_object_set_new(options, key, value);
}

/* @backing: a node that the image names, because we have made it so, or the
 * source.  @made: the file, if we have made it. */
static int open_target(struct graph *g, const struct target_options *o,
                       const struct node *backing, const struct file_make *made,
                       struct node **nodep, struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    const struct node_flags *flags = &o->source->flags;
    int r = options_from_image(o->file, target_format(o), &options, errp);

    if (r < 0) {
        return r;
    }
    json_t *cache = json_pack("{s:b, s:b}", "direct", (int)flags->direct,
                              "no-flush", (int)flags->no_flush);
    if (set_default_option(options, "discard", json_string("unmap")) < 0 ||
        set_default_option(options, "cache", cache) < 0) {
        return error_nomem(errp);
    }
    if ((backing && json_object_set_new(options, "backing",
                                        json_string(node_name(backing))) < 0) ||
        (o->node_name && json_object_set_new(options, "node-name",
                                             json_string(o->node_name)) < 0)) {
        return error_nomem(errp);
    }
    graph_lock(g);
    r = o->alone ? graph_open_alone(g, options, nodep, errp)
                 : graph_open_locked(g, options, nodep, errp);
    if (r == 0 && made) {
        r = node_check_made(*nodep, made, errp);
    }
    graph_unlock(g);
    return r;
}

int job_target_open(struct graph *g, const struct target_options *o,
                    struct node **nodep, bool *zero, struct error **errp)
{
    *zero = false;
    struct file_make made = {.access = FILE_ACCESS_ANY};
    struct node *backing = backing_for(g, o);
    bool local = !o->existing && !remote_is_name(o->file);
    if (!o->existing) {
        int r = create_target(g, o, backing, zero, &made, errp);
        if (r < 0) {
            return r;
        }
    } else if (o->sync != SYNC_NONE) {
        backing = NULL; /* open the backing file that the image names */
    }
    return open_target(g, o, backing, local ? &made : NULL, nodep, errp);
}
