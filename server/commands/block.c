/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes: what there is, and their size. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "commands/role.h"
#include "commands/table.h"
#include "commands/throttle.h"
#include "commands/types.h"
#include "daemon.h"
#include "disk.h"
#include "nbd/export.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "vm/device.h"

/* --- Queries. --- */

struct collect {
    struct daemon *daemon;
    json_t *list;
};

static int return_list(struct qmp_call *call, json_t *list, int r,
                       struct error **errp)
{
    call->ret = list;
    return !list || r != 0 ? error_nomem(errp) : 0;
}

/* Once, also when several servers have an export of that name. */
static int collect_name(struct export *e, void *opaque)
{
    struct collect *c = opaque;
    size_t i;
    json_t *name;

    if (e->of_backup) {
        return 0;
    }
    json_array_foreach (c->list, i, name) {
        if (strcmp(json_string_value(name), e->name) == 0) {
            return 0;
        }
    }
    return json_array_append_new(c->list, json_string(e->name));
}

/* What a device shows: the node, and its limits. */
static json_t *inserted_of(struct daemon *d, struct blk *b)
{
    json_t *info = node_query(d->graph, node_shown(d->graph, blk_node(b)));
    CLEANUP_JSON json_t *limits = blk_query_throttle(b);

    throttle_show(info, limits);
    return info;
}

static int collect_device(const char *id, struct blk *b, const char *qdev,
                          void *opaque)
{
    struct collect *c = opaque;
    json_t *inserted = b ? inserted_of(c->daemon, b) : NULL;

    return json_array_append_new(
        c->list, json_pack("{s:s, s:s*, s:b, s:b, s:o*, s:s}", "device", id,
                           "qdev", qdev, "locked", 0, "removable", 0,
                           "inserted", inserted, "type", "unknown"));
}

struct limits_of {
    const char *name;
    json_t *limits;
};

static int find_limits(struct export *e, void *opaque)
{
    struct limits_of *l = opaque;

    if (e->of_backup || strcmp(e->name, l->name) != 0) {
        return 0;
    }
    l->limits = blk_query_throttle(export_disk(e));
    return 1;
}

/* Exports of one name have the same limits. */
static json_t *inserted_of_export(struct daemon *d, const char *name,
                                  struct node *n)
{
    struct limits_of l = {name, NULL};
    json_t *info = node_query(d->graph, n);

    (void)exports_each(d->exports, find_limits, &l);
    throttle_show(info, l.limits);
    json_decref(l.limits);
    return info;
}

static int match_disk(const char *id, struct blk *b, const char *qdev,
                      void *opaque)
{
    (void)id;
    (void)qdev;
    return b && blk_shows(b, opaque);
}

/* An export of a device's disk is another way to it, and no device. */
static bool is_of_device(const struct daemon *d, struct node *n)
{
    return d->devices && devices_each(d->devices, match_disk, n) != 0;
}

static int cmd_query_block(struct qmp_call *call, struct error **errp)
{
    struct daemon *d = call->daemon;
    struct collect c = {d, json_array()};
    json_t *devices = json_array();
    size_t i;
    json_t *name;
    int r = c.list ? exports_each(d->exports, collect_name, &c) : -1;

    if (r == 0 && d->devices) {
        struct collect backends = {d, devices};
        r = devices_each(d->devices, collect_device, &backends);
    }
    json_array_foreach (c.list, i, name) {
        struct node *n = disk_find_device(d, json_string_value(name), NULL);

        n = n ? node_shown(d->graph, n) : NULL;
        if (r == 0 && n && !is_of_device(d, n)) {
            r = json_array_append_new(
                devices,
                json_pack("{s:O, s:O, s:b, s:b, s:o, s:s}", "device", name,
                          "qdev", name, "locked", 0, "removable", 0, "inserted",
                          inserted_of_export(d, json_string_value(name), n),
                          "type", "unknown"));
        }
    }
    json_decref(c.list);
    return return_list(call, devices, r, errp);
}

/* The newest node comes first. */
static int collect_node(struct node *n, void *opaque)
{
    struct collect *c = opaque;

    return json_array_insert_new(c->list, 0, node_query(c->daemon->graph, n));
}

static int cmd_query_nodes(struct qmp_call *call, struct error **errp)
{
    struct collect c = {call->daemon, json_array()};
    int r = c.list ? graph_each(call->daemon->graph, collect_node, &c) : 0;
    size_t i;
    json_t *info;

    json_array_foreach (c.list, i, info) {
        if (qmp_bool(call, "flat", false)) {
            (void)json_object_del(json_object_get(info, "image"),
                                  "backing-image");
            (void)json_object_set_new(info, "backing_file_depth",
                                      json_integer(0));
        }
    }
    return return_list(call, c.list, r, errp);
}

static const struct qmp_arg nodes_args[] = {
    QMP_OPT("flat", BOOL),
    QMP_LAST,
};

/* --- Statistics. --- */

/* @stats is consumed. */
static int add_stats(json_t *list, json_t *name, const char *qdev,
                     json_t *stats)
{
    if (json_object_set(stats, "device", name) < 0 ||
        (qdev && json_object_set_new(stats, "qdev", json_string(qdev)) < 0)) {
        json_decref(stats);
        return -1;
    }
    return json_array_append_new(list, stats);
}

static int collect_device_stats(const char *id, struct blk *b, const char *qdev,
                                void *opaque)
{
    struct collect *c = opaque;
    CLEANUP_JSON json_t *name = json_string(id);

    return add_stats(c->list, name, qdev,
                     b ? blk_query_stats(b) : blk_no_stats());
}

static int collect_id(struct export *e, void *opaque)
{
    struct collect *c = opaque;

    return e->of_backup ? 0
                        : json_array_append_new(c->list, json_string(e->id));
}

/* Again names are collected first. */
static int add_export_stats(struct daemon *d, json_t *list)
{
    struct collect ids = {d, json_array()};
    int r = ids.list ? exports_each(d->exports, collect_id, &ids) : -1;
    size_t i;
    json_t *id;

    json_array_foreach (ids.list, i, id) {
        struct export *e = exports_find_id(d->exports, json_string_value(id));

        if (e) {
            CLEANUP_JSON json_t *name = json_string(e->name);

            r |= add_stats(list, name, NULL, blk_query_stats(e->blk));
            export_unref(d->exports, e);
        }
    }
    json_decref(ids.list);
    return r;
}

static int collect_node_stats(struct node *n, void *opaque)
{
    struct collect *c = opaque;

    return json_array_append_new(c->list,
                                 node_query_stats(c->daemon->graph, n));
}

static const struct qmp_arg stats_args[] = {
    QMP_OPT("query-nodes", BOOL),
    QMP_LAST,
};

static int cmd_query_stats(struct qmp_call *call, struct error **errp)
{
    struct daemon *d = call->daemon;
    struct collect c = {d, json_array()};
    int r = 0;

    if (qmp_bool(call, "query-nodes", false)) {
        r = graph_each(d->graph, collect_node_stats, &c);
        return return_list(call, c.list, r, errp);
    }
    if (d->devices) {
        r = devices_each(d->devices, collect_device_stats, &c);
    }
    return return_list(call, c.list, r | add_export_stats(d, c.list), errp);
}

/* Jobs have no edges here: what they use has users of their own. */
static int cmd_query_graph(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    CLEANUP_JSON json_t *jobs = jobs_query_block(call->daemon->jobs);
    json_t *graph = graph_query(call->daemon->graph);
    json_t *nodes = json_object_get(graph, "nodes");
    size_t i;
    json_t *job;
    int r = 0;

    json_array_foreach (jobs, i, job) {
        r |= json_array_append_new(
            nodes,
            json_pack("{s:O, s:s, s:I}", "name", json_object_get(job, "device"),
                      "type", "block-job", "id",
                      (json_int_t)json_array_size(nodes) + 1));
    }
    return return_list(call, graph, r, errp);
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

    if (device) {
        n = disk_find_node(call->daemon, device, NULL);
    }
    if (!n && name) {
        n = graph_find(call->daemon->graph, name);
    }
    if (!n) {
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

/* --- Media. --- */

static const struct qmp_arg eject_args[] = {
    QMP_OPT("device", STR, .features = qmp_deprecated),
    QMP_OPT("id", STR),
    QMP_OPT("force", BOOL),
    QMP_LAST,
};

static int cmd_eject(struct qmp_call *call, struct error **errp)
{
    const char *device = qmp_str(call, "device");
    const char *id = qmp_str(call, "id");

    if (!device == !id) {
        return error_set(errp, EINVAL, "Need exactly one of 'device' and 'id'");
    }
    int r = devices_eject(call->daemon, device ? device : id, errp);
    if (r == -ENODEV) {
        call->class = QMP_DEVICE_NOT_FOUND;
    }
    return r;
}

const struct qmp_command qmp_block_commands[] = {
    QMP_COMMAND("block_resize", cmd_resize, resize_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMAND("eject", cmd_eject, eject_args, .drains = QMP_DRAINS_NAMED),
    QMP_COMMAND("query-block", cmd_query_block, NULL, .ret = &qmp_block_type,
                .backup = &role_block),
    QMP_COMMAND("query-blockstats", cmd_query_stats, stats_args,
                .ret = &qmp_stats_type),
    QMP_COMMAND("query-named-block-nodes", cmd_query_nodes, nodes_args,
                .ret = &qmp_nodes_type),
    QMP_COMMAND("x-debug-query-block-graph", cmd_query_graph, NULL,
                .ret = &qmp_graph_type, .features = qmp_unstable),
    QMP_COMMANDS_END,
};
