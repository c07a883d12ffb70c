/* SPDX-License-Identifier: BSD-3-Clause */
/* Cutting off servers that never answer.  These commands do not take the
 * monitor lock, because its holder may wait for what is to be yanked. */
#include <errno.h>
#include <string.h>

#include "commands/table.h"
#include "daemon.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/yank.h"

static const char *const types[] = {"block-node", "chardev", "migration", NULL};

static const struct qmp_arg node_args[] = {
    QMP_ARG("node-name", STR),
    QMP_LAST,
};
static const struct qmp_arg chardev_args[] = {
    QMP_ARG("id", STR),
    QMP_LAST,
};
static const struct qmp_variant variants[] = {
    {"block-node", node_args},
    {"chardev", chardev_args},
    {"migration", NULL},
    {NULL, NULL},
};
static const struct qmp_arg instance_args[] = {
    QMP_ARG("type", ENUM, .words = types),
    QMP_VARIANTS("type", variants),
};
static const struct qmp_arg yank_args[] = {
    QMP_ARG("instances", OBJECTS, .members = instance_args),
    QMP_LAST,
};

static const struct qmp_arg instances_type = QMP_ARG("", OBJECTS,
                                                     .members = instance_args);

/* The node that an instance names, or NULL. */
static const char *instance_node(const json_t *instance)
{
    const char *type = json_string_value(json_object_get(instance, "type"));

    return type && strcmp(type, "block-node") == 0
               ? json_string_value(json_object_get(instance, "node-name"))
               : NULL;
}

/* Yank all of @instances or, if one of them is not there, none. */
static int yank_all(struct graph *g, const json_t *instances)
{
    size_t count = json_array_size(instances);

    for (size_t i = 0; i < count; i++) {
        const char *name = instance_node(json_array_get(instances, i));
        if (!name || !graph_can_yank(g, name)) {
            return -ENOENT;
        }
    }
    for (size_t i = 0; i < count; i++) {
        graph_yank(g, instance_node(json_array_get(instances, i)));
    }
    return 0;
}

static int cmd_yank(struct qmp_call *call, struct error **errp)
{
    if (yank_all(call->daemon->graph,
                 json_object_get(call->args, "instances")) < 0) {
        call->class = QMP_DEVICE_NOT_FOUND;
        return error_set(errp, ENOENT, "Instance not found");
    }
    return 0;
}

static int cmd_query_yank(struct qmp_call *call, struct error **errp)
{
    CLEANUP_JSON json_t *names = graph_yank_names(call->daemon->graph);
    size_t i;
    json_t *name;

    call->ret = json_array();
    json_array_foreach (names, i, name) {
        if (json_array_append_new(call->ret,
                                  json_pack("{s:s, s:O}", "type", "block-node",
                                            "node-name", name)) < 0) {
            return error_nomem(errp);
        }
    }
    return 0;
}

const struct qmp_command qmp_yank_commands[] = {
    QMP_COMMAND("query-yank", cmd_query_yank, NULL, .ret = &instances_type,
                .lockless = true),
    QMP_COMMAND("yank", cmd_yank, yank_args, .lockless = true),
    QMP_COMMANDS_END,
};
