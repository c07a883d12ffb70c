/* SPDX-License-Identifier: BSD-3-Clause */
/* Backing chains: overlays are put on, and committed into images below.  And
 * snapshots inside of an image. */
#include <errno.h>
#include <string.h>

#include "commands/table.h"
#include "commands/types.h"
#include "daemon.h"
#include "disk.h"
#include "nbdelta/action.h"
#include "nbdelta/chain.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/internal-snapshot.h"
#include "nbdelta/snapshot.h"
#include "vm/formatting.h"

static const char *const mode_words[] = {"existing", "absolute-paths", NULL};

static const struct qmp_arg snapshot_sync_args[] = {
    QMP_OPT("device", STR),
    QMP_OPT("node-name", STR),
    QMP_ARG("snapshot-file", STR),
    QMP_OPT("snapshot-node-name", NEW_NODE),
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

static const struct qmp_arg commit_args[] = {
    QMP_OPT("job-id", STR),
    QMP_ARG("device", STR),
    QMP_OPT("base-node", STR),
    QMP_OPT("base", STR, .features = qmp_deprecated),
    QMP_OPT("top-node", STR),
    QMP_OPT("top", STR, .features = qmp_deprecated),
    QMP_OPT("backing-file", STR),
    QMP_OPT("backing-mask-protocol", BOOL),
    QMP_OPT("speed", INT),
    QMP_OPT("on-error", ENUM, .words = qmp_on_error_words),
    QMP_OPT("filter-node-name", NEW_NODE),
    QMP_OPT("auto-finalize", BOOL),
    QMP_OPT("auto-dismiss", BOOL),
    QMP_LAST,
};

static const struct qmp_arg stream_args[] = {
    QMP_OPT("job-id", STR),
    QMP_ARG("device", STR),
    QMP_OPT("base", STR),
    QMP_OPT("base-node", STR),
    QMP_OPT("backing-file", STR),
    QMP_OPT("backing-mask-protocol", BOOL),
    QMP_OPT("bottom", STR),
    QMP_OPT("speed", INT),
    QMP_OPT("on-error", ENUM, .words = qmp_on_error_words),
    QMP_OPT("filter-node-name", NEW_NODE),
    QMP_OPT("auto-finalize", BOOL),
    QMP_OPT("auto-dismiss", BOOL),
    QMP_LAST,
};

/* The node of a device or, where there is none, the node called @name. */
static struct node *find_device_or_node(struct qmp_call *call,
                                        const char *device, const char *name,
                                        struct error **errp)
{
    struct node *n = NULL;

    if (device) {
        n = disk_find_device(call->daemon, device, NULL);
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
    o.needs_name = name != NULL;
    o.node = find_device_or_node(call, qmp_str(call, "device"), name, errp);
    int r = o.node ? snapshot_action(&o, ap, errp) : -ENODEV;
    if (r == 0 && !o.existing) {
        vm_tell_formatting(call->daemon, o.overlay_file, o.format, o.node,
                           o.node);
    }
    return r;
}

static int snapshot(struct qmp_call *call, struct job_txn *txn,
                    struct action **ap, struct error **errp)
{
    const char *name = qmp_str(call, "node");
    const char *overlay = qmp_str(call, "overlay");
    struct snapshot_options o = {0};

    (void)txn;
    o.node = find_device_or_node(call, name, name, errp);
    if (!o.node) {
        return -ENODEV;
    }
    o.overlay = find_device_or_node(call, overlay, overlay, errp);
    return o.overlay ? snapshot_action(&o, ap, errp) : -ENODEV;
}

static int cmd_change_backing(struct qmp_call *call, struct error **errp)
{
    const char *device = qmp_str(call, "device");
    struct node *top = disk_find_device(call->daemon, device, errp);
    struct node *image;

    if (!top) {
        return -ENODEV;
    }
    image = find_device_or_node(call, NULL, qmp_str(call, "image-node-name"),
                                errp);
    if (!image) {
        return -ENODEV;
    }
    return chain_change_backing(call->daemon->graph, top, device, image,
                                qmp_str(call, "backing-file"), errp);
}

/* A node by the argument @key, if it is there. */
static int find_arg(struct qmp_call *call, const char *key, struct node **np,
                    struct error **errp)
{
    const char *name = qmp_str(call, key);

    *np = name ? find_device_or_node(call, NULL, name, errp) : NULL;
    return name && !*np ? -ENODEV : 0;
}

/* "backing-mask-protocol" changes nothing here, as in block-stream. */
static int cmd_commit(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    int64_t speed = qmp_int(call, "speed", 0);
    struct commit_options o = {
        .job_id = disk_job_id(call->daemon, qmp_str(call, "job-id"),
                              qmp_str(call, "device")),
        .device = qmp_str(call, "device"),
        .top = qmp_str(call, "top"),
        .base = qmp_str(call, "base"),
        .backing_file = qmp_str(call, "backing-file"),
        .filter_node_name = qmp_str(call, "filter-node-name"),
        .on_error = qmp_on_error_value(qmp_str(call, "on-error")),
        .speed = (uint64_t)speed,
        .manual_finalize = !qmp_bool(call, "auto-finalize", true),
        .manual_dismiss = !qmp_bool(call, "auto-dismiss", true),
    };
    int r;

    /* This comes first: clients find out by this error what is supported. */
    o.root = disk_find_device(call->daemon, o.device, NULL);
    if (!o.root) {
        call->class = QMP_DEVICE_NOT_FOUND;
        return error_set(errp, ENODEV, "Device '%.200s' not found", o.device);
    }
    if ((r = find_arg(call, "top-node", &o.top_node, errp)) < 0 ||
        (r = find_arg(call, "base-node", &o.base_node, errp)) < 0) {
        return r;
    }
    if (speed < 0) {
        return error_set(errp, EINVAL,
                         "Parameter 'speed' expects a non-negative value");
    }
    return job_commit(call->daemon->jobs, &o, errp);
}

static int check_one_base(const struct stream_options *o, struct error **errp)
{
    const char *one = o->base ? "base" : "bottom";
    const char *other = o->base_node_name ? "base-node" : "bottom";

    if (!!o->base + !!o->base_node_name + !!o->bottom_name > 1) {
        return error_set(errp, EINVAL,
                         "'%s' and '%s' cannot be specified at the same time",
                         one, other);
    }
    return 0;
}

/* "backing-mask-protocol" changes nothing: an image never names a protocol as
 * the format of its backing file. */
static int cmd_stream(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    int64_t speed = qmp_int(call, "speed", 0);
    struct stream_options o = {
        .job_id = disk_job_id(call->daemon, qmp_str(call, "job-id"),
                              qmp_str(call, "device")),
        .device = qmp_str(call, "device"),
        .base = qmp_str(call, "base"),
        .base_node_name = qmp_str(call, "base-node"),
        .bottom_name = qmp_str(call, "bottom"),
        .backing_file = qmp_str(call, "backing-file"),
        .filter_node_name = qmp_str(call, "filter-node-name"),
        .on_error = qmp_on_error_value(qmp_str(call, "on-error")),
        .speed = (uint64_t)speed,
        .manual_finalize = !qmp_bool(call, "auto-finalize", true),
        .manual_dismiss = !qmp_bool(call, "auto-dismiss", true),
    };
    int r = check_one_base(&o, errp);

    if (r < 0) {
        return r;
    }
    o.node = find_device_or_node(call, o.device, o.device, errp);
    if (!o.node) {
        return -ENODEV;
    }
    if ((r = find_arg(call, "base-node", &o.base_node, errp)) < 0 ||
        (r = find_arg(call, "bottom", &o.bottom, errp)) < 0) {
        return r;
    }
    if (speed < 0) {
        return error_set(errp, EINVAL,
                         "Parameter 'speed' expects a non-negative value");
    }
    return job_stream(call->daemon->jobs, &o, errp);
}

static const struct qmp_arg reopen_args[] = {
    QMP_ARG("options", OBJECTS, .members = qmp_node_args),
    QMP_LAST,
};

static int cmd_reopen(struct qmp_call *call, struct error **errp)
{
    return graph_reopen(call->daemon->graph,
                        json_object_get(call->args, "options"), errp);
}

/* --- Internal snapshots --- */

static const struct qmp_arg make_internal_args[] = {
    QMP_ARG("device", STR),
    QMP_ARG("name", STR),
    QMP_LAST,
};

static const struct qmp_arg delete_internal_args[] = {
    QMP_ARG("device", STR),
    QMP_OPT("id", STR),
    QMP_OPT("name", STR),
    QMP_LAST,
};

static int make_internal(struct qmp_call *call, struct job_txn *txn,
                         struct action **ap, struct error **errp)
{
    const char *device = qmp_str(call, "device");
    struct internal_options o = {
        .verb = INTERNAL_MAKE,
        .name = qmp_str(call, "name"),
        .only = true,
    };

    (void)txn;
    o.node = find_device_or_node(call, device, device, errp);
    if (!o.node) {
        return -ENODEV;
    }
    if (node_read_only(o.node)) {
        return error_set(errp, EACCES, "Device '%.200s' is read only", device);
    }
    return o.name[0] == '\0' ? error_set(errp, EINVAL, "Name is empty")
                             : snapshot_internal_action(&o, ap, errp);
}

static int cmd_delete_internal(struct qmp_call *call, struct error **errp)
{
    const char *device = qmp_str(call, "device");
    struct internal_options o = {
        .verb = INTERNAL_REMOVE,
        .id = qmp_str(call, "id"),
        .name = qmp_str(call, "name"),
        .info = &call->ret,
    };
    struct action *a;

    o.node = find_device_or_node(call, device, device, errp);
    if (!o.node) {
        return -ENODEV;
    }
    if (!o.id && !o.name) {
        return error_set(errp, EINVAL, "Name or id must be provided");
    }
    int r = snapshot_internal_action(&o, &a, errp);
    return r < 0 ? r : action_run(call->daemon->graph, a, errp);
}

const struct qmp_command qmp_chain_commands[] = {
    QMP_COMMAND("block-commit", cmd_commit, commit_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMAND("block-stream", cmd_stream, stream_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMAND("blockdev-reopen", cmd_reopen, reopen_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_ACTION("blockdev-snapshot", snapshot, snapshot_args),
    QMP_COMMAND("blockdev-snapshot-delete-internal-sync", cmd_delete_internal,
                delete_internal_args, .ret = &qmp_snapshot_type,
                .drains = QMP_DRAINS_NAMED),
    QMP_ACTION("blockdev-snapshot-internal-sync", make_internal,
               make_internal_args),
    QMP_ACTION("blockdev-snapshot-sync", snapshot_sync, snapshot_sync_args),
    QMP_COMMAND("change-backing-file", cmd_change_backing, change_backing_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMANDS_END,
};
