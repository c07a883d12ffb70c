/* SPDX-License-Identifier: BSD-3-Clause */

/* Backing chains: overlays. */
#include <errno.h>
#include <string.h>

#include "daemon.h"
#include "nbdelta/chain.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/snapshot.h"
#include "qmp-dispatch.h"

static const char *const mode_words[] = {"existing", "absolute-paths", NULL};

static const struct qmp_arg snapshot_sync_args[] = {
    QMP_OPT("device", STR),
    QMP_OPT("node-name", STR),
    QMP_ARG("snapshot-file", STR),
    QMP_OPT("snapshot-node-name", STR),
    QMP_OPT("format", STR),
    QMP_OPT("mode", ENUM, .words = mode_words),
    QMP_LAST,
};

static const struct qmp_arg snapshot_args[] = {
    QMP_ARG("node", STR),
    QMP_ARG("overlay", STR),
    QMP_LAST,
};

static const struct qmp_arg change_backing_args[] = {
    QMP_ARG("device", STR),
    QMP_ARG("image-node-name", STR),
    QMP_ARG("backing-file", STR),
    QMP_LAST,
};

/* The node of a device or, where that says nothing, of a node's name. */
static struct node *find_either(struct qmp_call *call, const char *device,
                                const char *name, struct error **errp)
{
    struct node *n = NULL;

    if (device) {
        n = qmp_find_device(call->daemon, device, NULL);
    }
    if (!n && name) {
        n = graph_find(call->daemon->graph, name);
    }
    if (!n) {
        (void)error_set(errp, ENODEV,
                        "Cannot find device='%.200s' nor node-name='%.200s'",
                        device ? device : "", name ? name : "");
    }
    return n;
}

static int snapshot_sync(struct qmp_call *call, struct job_txn *txn,
                         struct action **ap, struct error **errp)
{
    const char *name = qmp_str(call, "node-name");
    const char *mode = qmp_str(call, "mode");
    struct snapshot_options o = {
        .overlay_file = qmp_str(call, "snapshot-file"),
        .node_name = qmp_str(call, "snapshot-node-name"),
        .format = qmp_str(call, "format"),
        .existing = mode && strcmp(mode, "existing") == 0,
    };

    (void)txn;
    o.node = find_either(call, qmp_str(call, "device"), name, errp);
    if (!o.node) {
        return -ENODEV;
    }
    if (name && !o.node_name) {
        return error_set(errp, EINVAL, "New overlay node-name missing");
    }
    return snapshot_action(&o, ap, errp);
}

static int snapshot(struct qmp_call *call, struct job_txn *txn,
                    struct action **ap, struct error **errp)
{
    const char *name = qmp_str(call, "node");
    const char *overlay = qmp_str(call, "overlay");
    struct snapshot_options o = {0};

    (void)txn;
    o.node = find_either(call, name, name, errp);
    if (!o.node) {
        return -ENODEV;
    }
    o.overlay = find_either(call, overlay, overlay, errp);
    return o.overlay ? snapshot_action(&o, ap, errp) : -ENODEV;
}

static int cmd_change_backing(struct qmp_call *call, struct error **errp)
{
    const char *device = qmp_str(call, "device");
    struct node *top = qmp_find_device(call->daemon, device, errp);
    struct node *image;

    if (!top) {
        return -ENODEV;
    }
    image = find_either(call, NULL, qmp_str(call, "image-node-name"), errp);
    if (!image) {
        return -ENODEV;
    }
    return chain_change_backing(call->daemon->graph, top, device, image,
                                qmp_str(call, "backing-file"), errp);
}

const struct qmp_command qmp_chain_commands[] = {
    QMP_ACTION("blockdev-snapshot", snapshot, snapshot_args),
    QMP_ACTION("blockdev-snapshot-sync", snapshot_sync, snapshot_sync_args),
    QMP_COMMAND("change-backing-file", cmd_change_backing, change_backing_args),
    QMP_COMMANDS_END,
};
