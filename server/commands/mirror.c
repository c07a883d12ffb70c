/* SPDX-License-Identifier: BSD-3-Clause */
/* Mirrors: a second disk of the same content, and the change over to it. */
#include "nbdelta/mirror.h"

#include <errno.h>
#include <string.h>

#include "commands/table.h"
#include "commands/types.h"
#include "daemon.h"
#include "disk.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "vm/formatting.h"

static const char *const sync_words[] = {"top",         "full",   "none",
                                         "incremental", "bitmap", NULL};
static const char *const mode_words[] = {"existing", "absolute-paths", NULL};
static const char *const copy_mode_words[] = {"background", "write-blocking",
                                              NULL};

/* What the two have in common. */
#define COMMON_ARGS                                                           \
    QMP_OPT("job-id", STR), QMP_ARG("device", STR), QMP_ARG("target", STR),   \
        QMP_OPT("replaces", STR), QMP_ARG("sync", ENUM, .words = sync_words), \
        QMP_OPT("speed", INT), QMP_OPT("granularity", UINT32),                \
        QMP_OPT("buf-size", INT),                                             \
        QMP_OPT("on-source-error", ENUM, .words = qmp_on_error_words),        \
        QMP_OPT("on-target-error", ENUM, .words = qmp_on_error_words),        \
        QMP_OPT("copy-mode", ENUM, .words = copy_mode_words),                 \
        QMP_OPT("bitmaps", BOOL), QMP_OPT("auto-finalize", BOOL),             \
        QMP_OPT("auto-dismiss", BOOL)

static const struct qmp_arg drive_mirror_args[] = {
    COMMON_ARGS,
    QMP_OPT("format", STR),
    QMP_OPT("node-name", STR),
    QMP_OPT("mode", ENUM, .words = mode_words),
    QMP_OPT("unmap", BOOL),
    QMP_LAST,
};

static const struct qmp_arg blockdev_mirror_args[] = {
    COMMON_ARGS,
    QMP_OPT("filter-node-name", NEW_NODE),
    QMP_LAST,
};

static int sync_value(const char *word, enum backup_sync *sync,
                      struct error **errp)
{
    *sync = SYNC_FULL;
    if (strcmp(word, "top") == 0) {
        *sync = SYNC_TOP;
    } else if (strcmp(word, "none") == 0) {
        *sync = SYNC_NONE;
    } else if (strcmp(word, "full") != 0) {
        return error_set(errp, EINVAL, "Sync mode '%s' not supported", word);
    }
    return 0;
}

static bool is_write_blocking(const struct qmp_call *call)
{
    const char *word = qmp_str(call, "copy-mode");

    return word && strcmp(word, "write-blocking") == 0;
}

static int common_options(struct qmp_call *call, struct mirror_options *o,
                          struct error **errp)
{
    int64_t speed = qmp_int(call, "speed", 0);
    int64_t buffer = qmp_int(call, "buf-size", 0);

    *o = (struct mirror_options){
        .job_id = disk_job_id(call->daemon, qmp_str(call, "job-id"),
                              qmp_str(call, "device")),
        .device = qmp_str(call, "device"),
        .source = disk_find_device(call->daemon, qmp_str(call, "device"), errp),
        .replaces = qmp_str(call, "replaces"),
        .write_blocking = is_write_blocking(call),
        .bitmaps = qmp_bool(call, "bitmaps", false),
        .granularity = (uint64_t)qmp_int(call, "granularity", 0),
        .buffer_bytes = (uint64_t)buffer,
        .on_source_error = qmp_on_error_value(qmp_str(call, "on-source-error")),
        .on_target_error = qmp_on_error_value(qmp_str(call, "on-target-error")),
        .speed = (uint64_t)speed,
        .manual_finalize = !qmp_bool(call, "auto-finalize", true),
        .manual_dismiss = !qmp_bool(call, "auto-dismiss", true),
    };
    if (!o->source) {
        return -ENODEV;
    }
    int r = sync_value(qmp_str(call, "sync"), &o->sync, errp);
    if (r < 0) {
        return r;
    }
    if (buffer < 0) {
        return error_set(errp, EINVAL, "Invalid parameter 'buf-size'");
    }
    return speed < 0 ? error_set(errp, EINVAL,
                                 "Parameter 'speed' expects a non-negative "
                                 "value")
                     : 0;
}

static int cmd_drive_mirror(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    const char *mode = qmp_str(call, "mode");
    struct mirror_options o;
    int r = common_options(call, &o, errp);

    if (r < 0) {
        return r;
    }
    o.target_file = qmp_str(call, "target");
    o.node_name = qmp_str(call, "node-name");
    o.existing = mode && strcmp(mode, "existing") == 0;
    o.keep_space = !qmp_bool(call, "unmap", true);
    r = qmp_format_value(qmp_str(call, "format"), &o.format, errp);
    if (r < 0) {
        return r;
    }
    if (o.replaces && !o.node_name) {
        return error_set(errp, EINVAL,
                         "a node-name must be provided when replacing a named "
                         "node of the graph");
    }
    r = job_mirror(call->daemon->jobs, &o, errp);
    if (r == 0 && !o.existing) {
        vm_tell_formatting(call->daemon, o.target_file,
                           o.format ? o.format : node_driver(o.source),
                           o.source,
                           o.sync == SYNC_TOP    ? node_backing(o.source)
                           : o.sync == SYNC_NONE ? o.source
                                                 : NULL);
    }
    return r;
}

static int cmd_blockdev_mirror(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    struct mirror_options o;
    int r = common_options(call, &o, errp);

    if (r < 0) {
        return r;
    }
    o.target = disk_find_node(call->daemon, qmp_str(call, "target"), errp);
    o.filter_node_name = qmp_str(call, "filter-node-name");
    return o.target ? job_mirror(call->daemon->jobs, &o, errp) : -ENODEV;
}

/* --- block-job-change --- */

static const char *const type_words[] = {"mirror", NULL};

static const struct qmp_arg change_args[] = {
    QMP_ARG("id", STR),
    QMP_ARG("type", ENUM, .words = type_words),
    QMP_ARG("copy-mode", ENUM, .words = copy_mode_words),
    QMP_LAST,
};

static int cmd_change(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    int r = job_change_mirror(call->daemon->jobs, qmp_str(call, "id"),
                              is_write_blocking(call), errp);

    if (r == -ENOENT) {
        call->class = QMP_DEVICE_NOT_ACTIVE;
    }
    return r;
}

const struct qmp_command qmp_mirror_commands[] = {
    QMP_COMMAND("block-job-change", cmd_change, change_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMAND("blockdev-mirror", cmd_blockdev_mirror, blockdev_mirror_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMAND("drive-mirror", cmd_drive_mirror, drive_mirror_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMANDS_END,
};
