/* SPDX-License-Identifier: BSD-3-Clause */
/* QOM objects, and I/O threads, which change nothing here. */
#include <errno.h>

#include "commands/table.h"
#include "daemon.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "objects/object.h"

static int cmd_object_add(struct qmp_call *call, struct error **errp)
{
    return objects_add(call->daemon->objects, call->args, errp);
}

static int cmd_object_del(struct qmp_call *call, struct error **errp)
{
    return objects_del(call->daemon->objects, qmp_str(call, "id"), errp);
}

static const struct qmp_arg del_args[] = {
    QMP_ARG("id", STR),
    QMP_LAST,
};

/* I/O threads change nothing: requests have their own. */
static int cmd_set_iothread(struct qmp_call *call, struct error **errp)
{
    const char *name = qmp_str(call, "node-name");

    return graph_find(call->daemon->graph, name)
               ? 0
               : error_set(errp, ENODEV,
                           "Failed to find node with node-name='%.200s'", name);
}

static const struct qmp_arg iothread_args[] = {
    QMP_ARG("node-name", STR),
    QMP_ARG("iothread", STR_OR_NULL),
    QMP_OPT("force", BOOL),
    QMP_LAST,
};

const struct qmp_command qmp_object_commands[] = {
    QMP_COMMAND("object-add", cmd_object_add, object_args),
    QMP_COMMAND("object-del", cmd_object_del, del_args),
    QMP_COMMAND("x-blockdev-set-iothread", cmd_set_iothread, iothread_args,
                .features = qmp_unstable),
    QMP_COMMANDS_END,
};
