/* SPDX-License-Identifier: BSD-3-Clause */
/* Devices of a guest that is not there: names for disks. */
#include <errno.h>

#include "commands/table.h"
#include "daemon.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qmp/monitor.h"
#include "vm/device.h"

/* The driver and its properties do not matter: there is no hardware. */
static const struct qmp_arg add_args[] = {
    QMP_ARG("driver", STR),
    QMP_OPT("id", STR),
    QMP_OPT("drive", STR),
    QMP_OTHERS,
};

static int need_vm(const struct daemon *d, struct error **errp)
{
    return d->vm_compat ? 0
                        : error_set(errp, ENOTSUP,
                                    "there are no devices without "
                                    "--vm-compat");
}

static int cmd_device_add(struct qmp_call *call, struct error **errp)
{
    int r = need_vm(call->daemon, errp);

    return r < 0 ? r
                 : devices_plug(call->daemon, qmp_str(call, "id"),
                                qmp_str(call, "drive"), errp);
}

static const struct qmp_arg del_args[] = {
    QMP_ARG("id", STR),
    QMP_LAST,
};

static int cmd_device_del(struct qmp_call *call, struct error **errp)
{
    struct daemon *d = call->daemon;
    const char *id = qmp_str(call, "id");
    int r = need_vm(d, errp);

    if (r < 0) {
        return r;
    }
    CLEANUP_JSON json_t *path = json_sprintf("/machine/peripheral/%s", id);
    CLEANUP_JSON json_t *data = json_pack("{s:O, s:s}", "path", path, "device",
                                          id);
    if (!data) {
        return error_nomem(errp);
    }
    r = devices_unplug(d, id, errp);
    if (r == 0) {
        monitors_emit("DEVICE_DELETED", data, d->monitors);
    } else {
        call->class = QMP_DEVICE_NOT_FOUND;
    }
    return r;
}

/* There is nothing that would begin anew. */
static int cmd_reset(struct qmp_call *call, struct error **errp)
{
    struct daemon *d = call->daemon;
    CLEANUP_JSON json_t *data = json_pack("{s:b, s:s}", "guest", 0, "reason",
                                          "host-qmp-system-reset");
    int r = data ? need_vm(d, errp) : error_nomem(errp);

    if (r == 0) {
        monitors_emit("RESET", data, d->monitors);
    }
    return r;
}

const struct qmp_command qmp_device_commands[] = {
    QMP_COMMAND("device_add", cmd_device_add, add_args),
    QMP_COMMAND("device_del", cmd_device_del, del_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMAND("system_reset", cmd_reset, NULL),
    QMP_COMMANDS_END,
};
