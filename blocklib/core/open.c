/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From options to nodes.
 *
 *   options of a node -> common keys (name, read-only, cache...)
 *                     -> driver, given or probed from the file child
 *                     -> driver's open takes its keys, opens its children
 *                     -> backing: from the options, or from the image by way
 *                        of the policy
 *                     -> nothing may be left over
 */
#include "core/open.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/blocker.h"
#include "core/chain.h"
#include "core/format.h"
#include "core/graph-priv.h"
#include "core/image-name.h"
#include "core/opts.h"
#include "core/toil.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

const struct driver *driver_find(const struct driver_table *t, const char *name)
{
    for (const struct driver *const *d = t->drivers; *d; d++) {
        if (strcmp((*d)->name, name) == 0) {
            return *d;
        }
    }
    return NULL;
}

/* What a node's options are opened with. */
struct context {
    struct graph *graph;
    struct node_flags inherited;
    unsigned depth;
    const struct named *named; /* what names the file, if an image does */
};

static int open_node(const struct context *ctx, const json_t *options,
                     struct node **nodep, struct error **errp);

/* --- Children --- */

static int child_by_name(struct graph *g, const char *name, struct node **nodep,
                         struct error **errp)
{
    struct node *child = graph_find_locked(g, name);
    if (!child) {
        return error_set(errp, ENOENT,
                         "Cannot find device='%s' nor node-name='%s'", name,
                         name);
    }
    node_ref(child);
    *nodep = child;
    return 0;
}

/* The child that @value describes, with a reference for the caller. */
static int open_or_find(const struct context *ctx, const json_t *value,
                        const char *key, struct node **nodep,
                        struct error **errp)
{
    if (json_is_string(value)) {
        return child_by_name(ctx->graph, json_string_value(value), nodep, errp);
    }
    if (json_is_object(value)) {
        return open_node(ctx, value, nodep, errp);
    }
    return error_set(errp, EINVAL,
                     "option '%s' must be an object or a node name", key);
}

/* Attach a node that was opened for @n; takes its reference. */
static int attach_opened(struct node *n, unsigned index, struct node *child,
                         const char *key, bool grow, struct error **errp)
{
    unsigned perm = PERM_READ;

    if ((n->drv->is_filter || n->flags.auto_read_only) && index == CHILD_FILE &&
        node_read_only(child)) {
        /* no more than what it filters */
        node_flags_set_read_only(&n->flags);
    }
    if (!n->flags.read_only) {
        perm |= PERM_WRITE | (grow ? PERM_RESIZE : 0);
    }
    int r = node_attach(n, index, child, key, perm,
                        n->flags.inactive ? PERM_ALL : PERM_READ, errp);
    if (r == 0) {
        n->child[index]->may_grow = grow;
        n->child[index]->inherits = !child->monitor_owned;
        if (grow && !n->flags.read_only) {
            node_set_growable(child, true);
        }
    }
    node_unref(child); /* the edge holds its own */
    return r;
}

int node_open_child(struct node *n, struct opts *opts, const char *key,
                    unsigned index, bool grow, struct error **errp)
{
    struct context ctx = {n->graph, n->flags, n->open_depth + 1, NULL};
    CLEANUP_JSON json_t *value = opts_take(opts, key);
    struct node *child = n->preopened;
    int r;

    if (child) {
        n->preopened = NULL;
    } else if (!value) {
        return error_set(errp, EINVAL,
                         "A block device must be specified for \"%s\"", key);
    } else {
        r = open_or_find(&ctx, value, key, &child, errp);
        if (r < 0) {
            return r;
        }
    }
    return attach_opened(n, index, child, key, grow, errp);
}

/* --- Files that the image names --- */

static int describe_backing(struct node *n, json_t **options,
                            struct error **errp)
{
    const char *image = node_filename(node_at_bottom(n));
    struct image_name nm;
    int r = image_name_parse(n->image_backing, image, "backing", &nm, errp);

    if (r < 0) {
        return r;
    }
    const char *fmt = nm.driver ? nm.driver : n->image_backing_fmt;
    *options = json_pack("{s:o, s:s*}", "file", options_of_file(nm.path),
                         "driver", fmt);
    if (!*options) {
        r = error_set(errp, EINVAL,
                      "image '%s' names a backing file that is not UTF-8",
                      image);
    }
    image_name_free(&nm);
    return r;
}

int node_open_data(struct node *n, struct opts *opts, const char *named,
                   struct error **errp)
{
    struct context ctx = {n->graph, n->flags, n->open_depth + 1, NULL};
    const char *image = node_filename(node_at_bottom(n));
    const struct named by = {n, true};
    CLEANUP_JSON json_t *options = NULL;
    struct image_name nm;
    struct node *child;
    int r;

    if (n->graph->without_data) {
        json_decref(opts_take(opts, "data-file"));
        return 0;
    }
    if (opts_has(opts, "data-file")) {
        return node_open_child(n, opts, "data-file", CHILD_DATA, true, errp);
    }
    if (!named) {
        return error_set(errp, EINVAL,
                         "'data-file' is required for this image");
    }
    r = image_name_parse(named, image, "data-file", &nm, errp);
    if (r < 0) {
        return r;
    }
    options = options_of_file(nm.path);
    image_name_free(&nm);
    if (!options) {
        return error_set(errp, EINVAL,
                         "image '%s' names a data file that is not UTF-8",
                         image);
    }
    ctx.named = &by;
    r = open_node(&ctx, options, &child, errp);
    return r < 0 ? r
                 : attach_opened(n, CHILD_DATA, child, "data-file", true, errp);
}

static int attach_backing(struct node *n, struct node *backing,
                          struct error **errp)
{
    return node_attach(n, CHILD_BACKING, backing, "backing", PERM_READ,
                       PERM_ALL, errp);
}

/* Are these options for the backing file that the image names, without saying
 * which file it is? */
static bool completes_backing(const struct node *n, const json_t *value)
{
    return n->image_backing && json_is_object(value) &&
           !json_object_get(value, "driver") &&
           !json_object_get(value, "file") &&
           !json_object_get(value, "filename");
}

static int open_backing(struct node *n, struct opts *opts, struct error **errp)
{
    struct context ctx = {n->graph, n->flags, n->open_depth + 1, NULL};
    const struct named by = {n, false};
    bool given = opts_has(opts, "backing");
    CLEANUP_JSON json_t *value = opts_take(opts, "backing");
    struct node *backing;

    bool left = n->graph->without_backing && !given;
    if (json_is_null(value) || left || (!given && !n->image_backing)) {
        return 0;
    }
    if (!given || completes_backing(n, value)) {
        json_t *more = value;

        ctx.named = &by;
        value = NULL;
        int r = describe_backing(n, &value, errp);
        if (r == 0 && more && json_object_update(value, more) < 0) {
            r = error_nomem(errp);
        }
        json_decref(more);
        if (r < 0) {
            return r;
        }
    }
    node_flags_set_read_only(&ctx.inherited);
    int r = open_or_find(&ctx, value, "backing", &backing, errp);
    if (r < 0) {
        if (n->open_depth == 0) { /* once, not once for each layer */
            error_prefix(errp, "Could not open backing file: ");
        }
        return r;
    }
    r = attach_backing(n, backing, errp);
    if (r == 0) {
        n->child[CHILD_BACKING]->inherits = !backing->monitor_owned;
    }
    node_unref(backing);
    return r;
}

int node_open_backing(struct node *n, struct error **errp)
{
    CLEANUP_JSON json_t *none = json_object();
    struct opts *opts = none ? opts_new(none) : NULL;
    int r = opts ? open_backing(n, opts, errp) : error_nomem(errp);

    opts_free(opts);
    return r;
}

/* --- Keys that every node takes --- */

static const char *const discard_words[] = {"ignore", "off", "unmap", "on",
                                            NULL};
static const char *const detect_words[] = {"off", "on", "unmap", NULL};

static const struct option cache_options[] = {
    OPTION("direct", BOOL),
    OPTION("no-flush", BOOL),
    OPTIONS_END,
};
const struct option graph_node_options[] = {
    OPTION("node-name", STR),
    OPTION("active", BOOL),
    OPTION("auto-read-only", BOOL),
    OPTION("cache", OBJECT, .members = cache_options),
    OPTION("detect-zeroes", ENUM, .words = detect_words),
    OPTION("discard", ENUM, .words = discard_words),
    OPTION("force-share", BOOL),
    OPTION("read-only", BOOL),
    OPTIONS_END,
};

int node_take_flags(struct opts *o, struct node_flags *f, struct error **errp)
{
    unsigned discard = f->unmap ? 2 : 0;
    unsigned detect = DETECT_OFF;
    bool active = !f->inactive;
    int r;

    f->read_only = node_flags_read_only(f);
    f->writes_later = false;
    if ((r = opts_bool(o, "active", &active, errp)) < 0 ||
        (r = opts_bool(o, "read-only", &f->read_only, errp)) < 0 ||
        (r = opts_bool(o, "auto-read-only", &f->auto_read_only, errp)) < 0 ||
        (r = opts_bool(o, "force-share", &f->force_share, errp)) < 0 ||
        (r = opts_bool(o, "cache.direct", &f->direct, errp)) < 0 ||
        (r = opts_bool(o, "cache.no-flush", &f->no_flush, errp)) < 0 ||
        (r = opts_enum(o, "discard", discard_words, &discard, errp)) < 0 ||
        (r = opts_enum(o, "detect-zeroes", detect_words, &detect, errp)) < 0) {
        return r;
    }
    f->unmap = discard >= 2;
    f->detect_zeroes = (uint8_t)detect;
    if (detect == DETECT_UNMAP && !f->unmap) {
        return error_set(errp, EINVAL,
                         "setting detect-zeroes to unmap is not allowed "
                         "without setting discard operation to unmap");
    }
    if (f->force_share && !f->read_only) {
        return error_set(errp, EINVAL,
                         "force-share=on can only be used with read-only "
                         "images");
    }
    node_flags_set_active(f, active);
    return 0;
}

/* --- Probing --- */

/* Open the file child before the node. */
static int open_file_first(const struct context *ctx, struct opts *opts,
                           struct node_flags flags, struct node **filep,
                           struct error **errp)
{
    struct context child_ctx = {ctx->graph, flags, ctx->depth + 1, ctx->named};
    CLEANUP_JSON json_t *value = opts_take(opts, "file");

    return value ? open_or_find(&child_ctx, value, "file", filep, errp)
                 : error_set(errp, EINVAL, "Parameter 'driver' is missing");
}

int node_probe(struct node *file, const char **driver, struct error **errp)
{
    char head[FORMAT_BYTES] = {0};
    char tail[FORMAT_BYTES] = {0};
    uint64_t size = node_size(file);
    int r = 0;

    if (size > 0) {
        r = node_pread(file, head, min_u64(size, FORMAT_BYTES), 0, 0);
    }
    if (r == 0 && size > FORMAT_BYTES) {
        r = node_pread(file, tail, FORMAT_BYTES, size - FORMAT_BYTES, 0);
    }
    if (r < 0) {
        return error_set(errp, -r, "cannot read '%s' to find its format: %s",
                         node_filename(file), strerror(-r));
    }
    const struct driver_table *t = graph_drivers(file->graph);
    *driver = format_probe(t, head, tail);
    return driver_find(t, *driver)
               ? 0
               : error_set(errp, ENOTSUP,
                           "'%s' looks like an image of format %s, which is "
                           "not known here: format 'raw' (-f raw) takes its "
                           "bytes as they are, qemu-nbd or nbdkit can serve "
                           "the disk in it",
                           node_filename(file), *driver);
}

/* --- One node --- */

/* The json: name of a node whose file child has only the options @file. */
static char *json_filename_above(const struct node *n, const char *file)
{
    char *name;

    return asprintf(&name, "json:{\"driver\":\"%s\",\"file\":%s}", n->drv->name,
                    file) < 0
               ? NULL
               : name;
}

static int set_filename(struct node *n, const char *filename,
                        const json_t *options)
{
    struct node *file = node_child(n, CHILD_FILE);

    if (n->filename) {
        return 0; /* the driver has a better name */
    }
    if (filename) {
        n->filename = strdup(filename);
    } else if (file && strncmp(node_filename(file), "json:", 5) == 0) {
        n->filename = json_filename_above(n, node_filename(file) + 5);
    } else if (file) {
        n->filename = strdup(node_filename(file));
    } else {
        CLEANUP_FREE char *text = json_dumps(options, JSON_COMPACT);
        if (!text || asprintf(&n->filename, "json:%s", text) < 0) {
            n->filename = NULL;
        }
    }
    return n->filename ? 0 : -ENOMEM;
}

static int open_driver(struct node *n, struct opts *opts, const json_t *options,
                       struct error **errp)
{
    opts_describe(opts, graph_node_options, n->drv->options);
    const char *filename =
        json_string_value(json_object_get(options, "filename"));
    int r = n->drv->open(n, opts, errp);
    if (r < 0) {
        return r;
    }
    n->opened = true;
    if (set_filename(n, n->drv->is_protocol ? filename : NULL, options) < 0) {
        return error_nomem(errp);
    }
    node_refresh_limits(n);
    if (n->drv->has_backing) {
        r = open_backing(n, opts, errp);
        if (r < 0) {
            return r;
        }
    }
    CLEANUP_FREE char *what = NULL;
    if (asprintf(&what, "driver '%s'", n->drv->name) < 0) {
        what = NULL;
    }
    return opts_end(opts, what ? what : n->drv->name, errp);
}

static int open_with_opts(const struct context *ctx, struct opts *opts,
                          const json_t *options, struct node **nodep,
                          struct error **errp)
{
    struct node_flags flags = ctx->inherited;
    const char *driver = NULL;
    const char *name = NULL;
    struct node *file = NULL;
    struct node *n;
    int r;

    if ((r = opts_str(opts, "driver", &driver, errp)) < 0 ||
        (r = opts_str(opts, "node-name", &name, errp)) < 0 ||
        (r = node_take_flags(opts, &flags, errp)) < 0) {
        return r;
    }
    bool probed = !driver;
    if (probed && opts_has(opts, "filename") && !opts_has(opts, "file")) {
        driver = PROTOCOL_OF_FILES;
        probed = false;
    }
    /* The policy is asked about a file that an image names when the file is
     * opened. */
    if (probed || (ctx->named && opts_has(opts, "file"))) {
        r = open_file_first(ctx, opts, flags, &file, errp);
        if (r < 0) {
            return r;
        }
    }
    r = probed ? node_probe(file, &driver, errp) : 0;
    const struct driver *drv = driver_find(graph_drivers(ctx->graph),
                                           driver ? driver : "");
    if (r >= 0) {
        r = drv ? node_alloc(ctx->graph, drv, name, &n, errp)
                : error_set(errp, EINVAL, "Unknown driver '%s'", driver);
    }
    if (r < 0) {
        if (file) {
            node_unref(file);
        }
        return r;
    }
    n->flags = flags;
    n->preopened = file;
    n->probed = probed;
    n->open_depth = ctx->depth;
    n->options = json_deep_copy(options);
    n->named = drv->is_protocol ? ctx->named : NULL;
    r = open_driver(n, opts, options, errp);
    n->named = NULL;
    if (r < 0) {
        node_unref(n);
        return r;
    }
    *nodep = n;
    return 0;
}

static int open_node(const struct context *ctx, const json_t *options,
                     struct node **nodep, struct error **errp)
{
    if (ctx->depth > CHAIN_MAX) {
        return error_set(errp, ELOOP,
                         "more than %d images are stacked: does one name "
                         "itself as its backing file?",
                         CHAIN_MAX);
    }
    CLEANUP_JSON json_t *full = NULL;
    int r = options_expand(options, &full, errp);
    if (r < 0) {
        return r;
    }
    struct opts *opts = opts_new(full);
    if (!opts) {
        return error_nomem(errp);
    }
    r = open_with_opts(ctx, opts, full, nodep, errp);
    opts_free(opts);
    return r;
}

/* --- The public side --- */

int graph_open_locked(struct graph *g, const json_t *options,
                      struct node **nodep, struct error **errp)
{
    struct context ctx = {.graph = g, .inherited = {.locking = true}};

    if (!json_is_object(options)) {
        return error_set(errp, EINVAL, "options must be a JSON object");
    }
    return open_node(&ctx, options, nodep, errp);
}

int graph_open_alone(struct graph *g, const json_t *options,
                     struct node **nodep, struct error **errp)
{
    g->without_backing = true;
    int r = graph_open_locked(g, options, nodep, errp);
    g->without_backing = false;
    return r;
}

static int open_with_toils(struct graph *g, const json_t *options,
                           struct list *toils, struct node **nodep,
                           struct error **errp)
{
    graph_lock(g);
    g->toils = toils;
    int r = graph_open_locked(g, options, nodep, errp);
    g->toils = NULL;
    if (r == 0) {
        (*nodep)->monitor_owned = true;
    }
    graph_unlock(g);
    return r;
}

int graph_open(struct graph *g, const json_t *options, struct node **nodep,
               struct error **errp)
{
    struct error *err = NULL;
    struct list toils;
    int toil = 0;
    int r;

    list_init(&toils);
    do {
        r = open_with_toils(g, options, &toils, nodep, &err);
    } while (r < 0 && toil_run_all(g, &toils, &toil, &err) && toil == 0);
    toil_free_all(&toils);
    if (r == 0 || !errp) {
        error_free(err);
    } else {
        *errp = err;
    }
    return r < 0 && toil < 0 ? toil : r;
}

/* Could @n be closed if @users of its users, and @views, were gone?  The checks
 * have QEMU's order. */
static int check_closable(const struct node *n, unsigned users, unsigned views,
                          struct error **errp)
{
    unsigned count = 0;

    list_for_each (at, &n->parents) {
        count += !list_entry(at, struct edge, on_child)->parent;
    }
    if (count > users) {
        return error_set(errp, EBUSY, "Node %s is in use", n->name);
    }
    int r = node_check_unblocked(n, errp);
    if (r < 0) {
        return r;
    }
    if (!n->monitor_owned) {
        return error_set(errp, EPERM, "Node %s is not owned by the monitor",
                         n->name);
    }
    return n->refs > 1 + count + views
               ? error_set(errp, EBUSY, "Block device %s is in use", n->name)
               : 0;
}

int graph_close(struct graph *g, struct node *n, struct error **errp)
{
    graph_lock(g);
    int r = check_closable(n, 0, 0, errp);
    if (r == 0) {
        n->monitor_owned = false;
        node_unref(n);
    }
    graph_unlock(g);
    return r;
}

/* Views of bitmaps (drivers/dirty-view.c). */
static unsigned count_views(const struct node *n)
{
    unsigned count = 0;

    list_for_each (at, &n->parents) {
        const struct edge *e = list_entry(at, struct edge, on_child);
        count += e->parent && e->parent->drv->passive;
    }
    return count;
}

int graph_check_close(struct graph *g, const struct node *n, unsigned users,
                      struct error **errp)
{
    graph_lock(g);
    int r = node_check_jobs(n, errp); /* before the job's own users count */
    if (r == 0) {
        r = check_closable(n, users, count_views(n), errp);
    }
    graph_unlock(g);
    return r;
}

void graph_forget(struct graph *g, struct node *n)
{
    graph_lock(g);
    n = node_skip_job_filters(n);
    if (n->monitor_owned) {
        n->monitor_owned = false;
        node_unref(n);
    }
    graph_unlock(g);
}
