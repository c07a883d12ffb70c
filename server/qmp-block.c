/* SPDX-License-Identifier: BSD-3-Clause */

/* Nodes and their dirty bitmaps. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"
#include "export.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "qmp-dispatch.h"

/* --- Queries. --- */

struct collect {
    struct daemon *daemon;
    json_t *list;
};

static int out_of_memory(struct error **errp)
{
    return error_set(errp, ENOMEM, "Out of memory");
}

static int finish(struct qmp_call *call, json_t *list, int r,
                  struct error **errp)
{
    call->ret = list;
    return !list || r != 0 ? out_of_memory(errp) : 0;
}

static int add_name(struct export *e, void *opaque)
{
    struct collect *c = opaque;

    return json_array_append_new(c->list, json_string(e->name));
}

/* The names first: node_query() takes locks that come before the exports'. */
static int cmd_query_block(struct qmp_call *call, struct error **errp)
{
    struct daemon *d = call->daemon;
    struct collect c = {d, json_array()};
    json_t *devices = json_array();
    size_t i;
    json_t *name;
    int r = c.list ? exports_each(d->exports, add_name, &c) : -1;

    json_array_foreach (c.list, i, name) {
        struct node *n = qmp_find_node(d, json_string_value(name), NULL);

        if (r == 0 && n) {
            r = json_array_append_new(
                devices, json_pack("{s:O, s:b, s:b, s:o, s:s}", "device", name,
                                   "locked", 0, "removable", 0, "inserted",
                                   node_query(d->graph, n), "type", "unknown"));
        }
    }
    json_decref(c.list);
    return finish(call, devices, r, errp);
}

/* Newest first. */
static int add_node(struct node *n, void *opaque)
{
    struct collect *c = opaque;

    return json_array_insert_new(c->list, 0, node_query(c->daemon->graph, n));
}

static int cmd_query_nodes(struct qmp_call *call, struct error **errp)
{
    struct collect c = {call->daemon, json_array()};
    int r = c.list ? graph_each(call->daemon->graph, add_node, &c) : 0;
    size_t i;
    json_t *info;

    json_array_foreach (c.list, i, info) {
        if (qmp_bool(call, "flat", false)) {
            (void)json_object_del(json_object_get(info, "image"),
                                  "backing-image");
        }
    }
    return finish(call, c.list, r, errp);
}

static const struct qmp_arg nodes_args[] = {
    QMP_OPT("flat", BOOL),
    QMP_LAST,
};

/* --- Bitmaps. --- */

static const struct qmp_arg bitmap_args[] = {
    QMP_ARG("node", STR),
    QMP_ARG("name", STR),
    QMP_LAST,
};

static const struct qmp_arg bitmap_add_args[] = {
    QMP_ARG("node", STR),           QMP_ARG("name", STR),
    QMP_OPT("granularity", UINT32), QMP_OPT("persistent", BOOL),
    QMP_OPT("disabled", BOOL),      QMP_LAST,
};

static const struct qmp_arg merge_args[] = {
    QMP_ARG("node", STR),
    QMP_ARG("target", STR),
    QMP_ARG("bitmaps", STR_OR_OBJECT_ARRAY, .members = bitmap_args,
            .type_name = "BlockDirtyBitmapOrStr"),
    QMP_LAST,
};

static int cmd_bitmap_add(struct qmp_call *call, struct error **errp)
{
    const char *name = qmp_str(call, "name");
    uint64_t granularity = (uint64_t)qmp_int(call, "granularity", 0);
    struct node *n;
    struct bitmap *bm;
    int r;

    if (name[0] == '\0') {
        return error_set(errp, EINVAL, "Bitmap name cannot be empty");
    }
    n = qmp_find_node(call->daemon, qmp_str(call, "node"), errp);
    if (!n) {
        return -ENODEV;
    }
    if (qmp_has(call, "granularity") &&
        (granularity < 512 || !is_pow2(granularity))) {
        return error_set(errp, EINVAL,
                         "Granularity must be power of 2 and at least 512");
    }
    if (strlen(name) > BITMAP_NAME_MAX) {
        return error_set(errp, EINVAL, "Bitmap name too long: %.64s...", name);
    }
    bm = bitmap_find(n, name);
    if (bm) {
        bitmap_unref(bm);
        return error_set(errp, EEXIST, "Bitmap already exists: %s", name);
    }
    r = bitmap_add(call->daemon->graph, n, name, granularity,
                   qmp_bool(call, "persistent", false),
                   qmp_bool(call, "disabled", false), errp);
    if (r == -ENOTSUP) {
        error_prefix(errp, "Can't store persistent bitmaps to %s: ",
                     qmp_str(call, "node"));
    }
    return r;
}

/* As block_dirty_bitmap_* look it up: other texts than elsewhere. */
static int find_bitmap(struct qmp_call *call, const char *node,
                       const char *name, struct node **np, struct bitmap **bmp,
                       struct error **errp)
{
    struct node *n = qmp_find_node(call->daemon, node, NULL);

    if (!n) {
        return error_set(errp, ENODEV, "Node '%.200s' not found", node);
    }
    *bmp = bitmap_find(n, name);
    if (!*bmp) {
        return error_set(errp, ENOENT, "Dirty bitmap '%.1023s' not found",
                         name);
    }
    *np = n;
    return 0;
}

typedef int bitmap_fn(struct graph *g, struct node *n, const char *name,
                      struct error **errp);

static int on_bitmap(struct qmp_call *call, bitmap_fn *fn, struct error **errp)
{
    const char *name = qmp_str(call, "name");
    struct node *n = NULL;
    struct bitmap *bm = NULL;
    int r = find_bitmap(call, qmp_str(call, "node"), name, &n, &bm, errp);

    if (r < 0) {
        return r;
    }
    bitmap_unref(bm);
    return fn(call->daemon->graph, n, name, errp);
}

static int cmd_bitmap_remove(struct qmp_call *call, struct error **errp)
{
    return on_bitmap(call, bitmap_remove, errp);
}

static int cmd_bitmap_clear(struct qmp_call *call, struct error **errp)
{
    return on_bitmap(call, bitmap_clear, errp);
}

static int enable(struct graph *g, struct node *n, const char *name,
                  struct error **errp)
{
    return bitmap_enable(g, n, name, true, errp);
}

static int disable(struct graph *g, struct node *n, const char *name,
                   struct error **errp)
{
    return bitmap_enable(g, n, name, false, errp);
}

static int cmd_bitmap_enable(struct qmp_call *call, struct error **errp)
{
    return on_bitmap(call, enable, errp);
}

static int cmd_bitmap_disable(struct qmp_call *call, struct error **errp)
{
    return on_bitmap(call, disable, errp);
}

struct merge {
    struct node *target;
    const char *name;
    struct bitmap **sources;
    size_t count;
};

/* All that can be wrong with a source is found before the first merge, so
 * that the target gets all of them or none. */
static int find_source(struct qmp_call *call, struct merge *m,
                       const json_t *item, struct error **errp)
{
    const char *node = qmp_str(call, "node");
    const char *name = json_string_value(item);
    struct node *n = NULL;
    struct bitmap *bm = NULL;
    int r;

    if (!name) {
        node = json_string_value(json_object_get(item, "node"));
        name = json_string_value(json_object_get(item, "name"));
    }
    r = find_bitmap(call, node, name, &n, &bm, errp);
    if (r < 0) {
        return r;
    }
    m->sources[m->count++] = bm;
    if (!bitmap_readable(bm)) {
        return error_set(errp, EINVAL,
                         "Bitmap '%s' is inconsistent and cannot be used",
                         name);
    }
    if (node_size(n) != node_size(m->target)) {
        return error_set(errp, EINVAL,
                         "Bitmaps are of different sizes (destination size is "
                         "%llu, source size is %llu) and can't be merged",
                         (unsigned long long)node_size(m->target),
                         (unsigned long long)node_size(n));
    }
    return 0;
}

static int merge_all(struct qmp_call *call, struct merge *m,
                     struct error **errp)
{
    const json_t *list = json_object_get(call->args, "bitmaps");
    size_t i;
    json_t *item;
    int r = 0;

    json_array_foreach (list, i, item) {
        r = find_source(call, m, item, errp);
        if (r < 0) {
            return r;
        }
    }
    for (i = 0; r == 0 && i < m->count; i++) {
        r = bitmap_merge(call->daemon->graph, m->target, m->name, m->sources[i],
                         errp);
    }
    return r;
}

static int cmd_bitmap_merge(struct qmp_call *call, struct error **errp)
{
    struct merge m = {.name = qmp_str(call, "target")};
    struct bitmap *bm = NULL;
    size_t n = json_array_size(json_object_get(call->args, "bitmaps"));
    int r = find_bitmap(call, qmp_str(call, "node"), m.name, &m.target, &bm,
                        errp);

    if (r < 0) {
        return r;
    }
    bitmap_unref(bm);
    m.sources = calloc(n + 1, sizeof(struct bitmap *));
    if (!m.sources) {
        return out_of_memory(errp);
    }
    r = merge_all(call, &m, errp);
    while (m.count > 0) {
        bitmap_unref(m.sources[--m.count]);
    }
    free(m.sources);
    return r;
}

/* --- Size. --- */

static const struct qmp_arg resize_args[] = {
    QMP_OPT("device", STR),
    QMP_OPT("node-name", STR),
    QMP_ARG("size", INT),
    QMP_LAST,
};

static int cmd_resize(struct qmp_call *call, struct error **errp)
{
    const char *device = qmp_str(call, "device");
    const char *name = qmp_str(call, "node-name");
    int64_t size = qmp_int(call, "size", 0);
    struct node *n = NULL;
    struct blk *b;
    int r;

    if (device || name) {
        n = qmp_find_node(call->daemon, device ? device : name, NULL);
    }
    if (!n || (device && name)) {
        return error_set(errp, ENODEV,
                         "Cannot find device='%.200s' nor node-name='%.200s'",
                         device ? device : "", name ? name : "");
    }
    if (size < 0) {
        return error_set(errp, EINVAL, "Parameter 'size' expects a >0 size");
    }
    r = blk_new(call->daemon->graph, n, PERM_RESIZE, PERM_ALL, "block_resize",
                &b, errp);
    if (r < 0) {
        return r;
    }
    r = blk_resize(b, (uint64_t)size, errp);
    blk_free(b);
    return r;
}

const struct qmp_command qmp_block_commands[] = {
    {"block-dirty-bitmap-add", cmd_bitmap_add, bitmap_add_args},
    {"block-dirty-bitmap-clear", cmd_bitmap_clear, bitmap_args},
    {"block-dirty-bitmap-disable", cmd_bitmap_disable, bitmap_args},
    {"block-dirty-bitmap-enable", cmd_bitmap_enable, bitmap_args},
    {"block-dirty-bitmap-merge", cmd_bitmap_merge, merge_args},
    {"block-dirty-bitmap-remove", cmd_bitmap_remove, bitmap_args},
    {"block_resize", cmd_resize, resize_args},
    {"query-block", cmd_query_block, NULL},
    {"query-named-block-nodes", cmd_query_nodes, nodes_args},
    {NULL, NULL, NULL},
};
