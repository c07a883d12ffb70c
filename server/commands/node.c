/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes come and go. */
#include <errno.h>
#include <string.h>

#include "commands/table.h"
#include "daemon.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"

static int check_names(json_t *options, struct error **errp)
{
    const char *name = member_str(options, "node-name");
    const char *key;
    json_t *value;
    int r = name && strlen(name) > QMP_NODE_NAME_MAX
                ? error_set(errp, EINVAL, "Node name too long")
                : 0;

    json_object_foreach (options, key, value) {
        r = r == 0 && json_is_object(value) ? check_names(value, errp) : r;
    }
    return r;
}

static int cmd_blockdev_add(struct qmp_call *call, struct error **errp)
{
    struct node *n;

    if (!qmp_has(call, "node-name")) {
        return error_set(errp, EINVAL,
                         "'node-name' must be specified for the root node");
    }
    int r = check_names(call->args, errp);
    return r < 0 ? r : graph_open(call->daemon->graph, call->args, &n, errp);
}

static int cmd_blockdev_del(struct qmp_call *call, struct error **errp)
{
    const char *name = qmp_str(call, "node-name");
    struct node *n = graph_find(call->daemon->graph, name);

    if (!n) {
        return error_set(errp, ENODEV,
                         "Failed to find node with node-name='%.200s'", name);
    }
    return graph_close(call->daemon->graph, n, errp);
}

static int cmd_set_active(struct qmp_call *call, struct error **errp)
{
    return graph_set_active(call->daemon->graph, qmp_str(call, "node-name"),
                            qmp_bool(call, "active", true), errp);
}

static int cmd_set_threshold(struct qmp_call *call, struct error **errp)
{
    const char *name = qmp_str(call, "node-name");
    struct node *n = graph_find(call->daemon->graph, name);

    if (!n) {
        return error_set(errp, ENODEV, "Device '%.200s' not found", name);
    }
    node_set_threshold(n, (uint64_t)qmp_int(call, "write-threshold", 0));
    return 0;
}

/* What else there is depends on the driver, which checks it. */
const struct qmp_arg qmp_node_args[] = {
    QMP_ARG("driver", ENUM, .words_of = graph_driver_names),
    QMP_OPT("node-name", STR),
    QMP_NODE_OPTIONS,
};

static const struct qmp_arg del_args[] = {
    QMP_ARG("node-name", STR),
    QMP_LAST,
};

static const struct qmp_arg active_args[] = {
    QMP_OPT("node-name", STR),
    QMP_ARG("active", BOOL),
    QMP_LAST,
};

static const struct qmp_arg threshold_args[] = {
    QMP_ARG("node-name", STR),
    QMP_ARG("write-threshold", SIZE),
    QMP_LAST,
};

const struct qmp_command qmp_node_commands[] = {
    QMP_COMMAND("block-set-write-threshold", cmd_set_threshold, threshold_args),
    QMP_COMMAND("blockdev-add", cmd_blockdev_add, qmp_node_args),
    QMP_COMMAND("blockdev-del", cmd_blockdev_del, del_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMAND("blockdev-set-active", cmd_set_active, active_args,
                .drains = QMP_DRAINS_NODES),
    QMP_COMMANDS_END,
};
