/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon.h"
#include "object.h"
#include "qmp-dispatch.h"

static int cmd_add(struct qmp_call *call, struct error **errp)
{
    return objects_add(call->daemon->objects, call->args, errp);
}

static int cmd_del(struct qmp_call *call, struct error **errp)
{
    return objects_del(call->daemon->objects, qmp_str(call, "id"), errp);
}

static const struct qmp_arg del_args[] = {
    QMP_ARG("id", STR),
    QMP_LAST,
};

const struct qmp_command qmp_object_commands[] = {
    QMP_COMMAND("object-add", cmd_add, object_args),
    QMP_COMMAND("object-del", cmd_del, del_args),
    QMP_COMMANDS_END,
};
