/* SPDX-License-Identifier: BSD-3-Clause */
/* Backups: alone or in a transaction. */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "commands/table.h"
#include "commands/types.h"
#include "daemon.h"
#include "disk.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "vm/formatting.h"

static const char *const sync_words[] = {"top",         "full",   "none",
                                         "incremental", "bitmap", NULL};
static const char *const bitmap_mode_words[] = {"on-success", "never", "always",
                                                NULL};
static const char *const mode_words[] = {"existing", "absolute-paths", NULL};

static const struct qmp_arg perf_args[] = {
    QMP_OPT("use-copy-range", BOOL),
    QMP_OPT("max-workers", INT),
    QMP_OPT("max-chunk", INT),
    QMP_OPT("min-cluster-size", SIZE),
    QMP_LAST,
};

/* What the two have in common. */
#define COMMON_ARGS                                                        \
    QMP_OPT("job-id", STR), QMP_ARG("device", STR),                        \
        QMP_ARG("sync", ENUM, .words = sync_words), QMP_OPT("speed", INT), \
        QMP_OPT("bitmap", STR),                                            \
        QMP_OPT("bitmap-mode", ENUM, .words = bitmap_mode_words),          \
        QMP_OPT("compress", BOOL),                                         \
        QMP_OPT("on-source-error", ENUM, .words = qmp_on_error_words),     \
        QMP_OPT("on-target-error", ENUM, .words = qmp_on_error_words),     \
        QMP_OPT("auto-finalize", BOOL), QMP_OPT("auto-dismiss", BOOL),     \
        QMP_OPT("filter-node-name", NEW_NODE),                             \
        QMP_OPT("discard-source", BOOL), QMP_OPT("cbw-timeout", UINT32),   \
        QMP_OPT("x-perf", OBJECT, .members = perf_args,                    \
                .features = qmp_unstable)

static const struct qmp_arg drive_backup_args[] = {
    COMMON_ARGS,
    QMP_ARG("target", STR),
    QMP_OPT("format", STR),
    QMP_OPT("mode", ENUM, .words = mode_words),
    QMP_LAST,
};

static const struct qmp_arg blockdev_backup_args[] = {
    COMMON_ARGS,
    QMP_ARG("target", STR),
    QMP_LAST,
};

/* QEMU's rules on which bitmap goes with which way to sync. */
static int check_bitmap_use(const char *sync, const char *mode,
                            struct error **errp)
{
    if (!mode && strcmp(sync, "incremental") != 0) {
        return error_set(errp, EINVAL,
                         "Bitmap sync mode must be given when providing a "
                         "bitmap");
    }
    if (strcmp(sync, "none") == 0) {
        return error_set(errp, EINVAL,
                         "sync mode 'none' does not produce meaningful bitmap "
                         "outputs");
    }
    if (mode && strcmp(mode, "never") == 0 && strcmp(sync, "bitmap") != 0) {
        return error_set(errp, EINVAL,
                         "Bitmap sync mode 'never' has no meaningful effect "
                         "when combined with sync mode '%s'",
                         sync);
    }
    return 0;
}

static int check_bitmap_arguments(const struct qmp_call *call,
                                  struct node *source, struct error **errp)
{
    const char *sync = qmp_str(call, "sync");
    const char *name = qmp_str(call, "bitmap");
    const char *mode = qmp_str(call, "bitmap-mode");
    bool incremental = strcmp(sync, "incremental") == 0;

    if (!name && (incremental || strcmp(sync, "bitmap") == 0)) {
        return error_set(errp, EINVAL,
                         "must provide a valid bitmap name for '%s' sync mode",
                         sync);
    }
    if (incremental && mode && strcmp(mode, "on-success") != 0) {
        return error_set(errp, EINVAL,
                         "Bitmap sync mode must be 'on-success' when using "
                         "sync mode 'incremental'");
    }
    if (!name) {
        return mode ? error_set(errp, EINVAL,
                                "Cannot specify bitmap sync mode without a "
                                "bitmap")
                    : 0;
    }
    /* One that lacks is said first; in a transaction, an action before this
     * may add it. */
    if (check_bitmap_use(sync, mode, NULL) < 0 &&
        !disk_has_bitmap(source, name)) {
        return error_set(errp, ENOENT, "Bitmap '%s' could not be found", name);
    }
    return check_bitmap_use(sync, mode, errp);
}

/* The place of @word, which has been checked, among @words; 0 without one. */
static unsigned place(const char *word, const char *const *words)
{
    for (unsigned i = 0; word && words[i]; i++) {
        if (strcmp(words[i], word) == 0) {
            return i;
        }
    }
    return 0;
}

static enum backup_sync sync_value(const char *word)
{
    static const enum backup_sync values[] = {SYNC_TOP, SYNC_FULL, SYNC_NONE,
                                              SYNC_BITMAP, SYNC_BITMAP};

    return values[place(word, sync_words)];
}

static enum bitmap_mode bitmap_mode_value(const char *word)
{
    static const enum bitmap_mode values[] = {BITMAP_ON_SUCCESS, BITMAP_NEVER,
                                              BITMAP_ALWAYS};

    return values[place(word, bitmap_mode_words)];
}

static int perf_options(const json_t *perf, struct backup_options *o,
                        struct error **errp)
{
    const json_t *workers = json_object_get(perf, "max-workers");
    const json_t *chunk = json_object_get(perf, "max-chunk");

    if (workers) {
        json_int_t v = json_integer_value(workers);

        if (v < 1 || v > INT_MAX) {
            return error_set(errp, EINVAL,
                             "max-workers must be between 1 and %d", INT_MAX);
        }
        o->max_workers = (unsigned)v;
    }
    if (chunk) {
        if (json_integer_value(chunk) < 0) {
            return error_set(errp, EINVAL,
                             "max-chunk must be zero (which means no limit) "
                             "or positive");
        }
        o->max_chunk = (uint64_t)json_integer_value(chunk);
    }
    o->min_cluster =
        (uint64_t)json_integer_value(json_object_get(perf, "min-cluster-size"));
    return 0;
}

static int common_options(struct qmp_call *call, struct backup_options *o,
                          struct error **errp)
{
    int64_t speed = qmp_int(call, "speed", 0);
    *o = (struct backup_options){
        .job_id = disk_job_id(call->daemon, qmp_str(call, "job-id"),
                              qmp_str(call, "device")),
        .device = qmp_str(call, "device"),
        .source = disk_find_node(call->daemon, qmp_str(call, "device"), errp),
        .sync = sync_value(qmp_str(call, "sync")),
        .bitmap = qmp_str(call, "bitmap"),
        .bitmap_mode = bitmap_mode_value(qmp_str(call, "bitmap-mode")),
        .on_source_error = qmp_on_error_value(qmp_str(call, "on-source-error")),
        .on_target_error = qmp_on_error_value(qmp_str(call, "on-target-error")),
        .speed = (uint64_t)speed,
        .compress = qmp_bool(call, "compress", false),
        .manual_finalize = !qmp_bool(call, "auto-finalize", true),
        .manual_dismiss = !qmp_bool(call, "auto-dismiss", true),
        .filter_node_name = qmp_str(call, "filter-node-name"),
        .discard_source = qmp_bool(call, "discard-source", false),
        .max_wait_ms = (uint64_t)qmp_int(call, "cbw-timeout",
                                         BACKUP_WAIT_MS / 1000) *
                       1000,
    };
    if (!o->source) {
        return -ENODEV;
    }
    int r = check_bitmap_arguments(call, o->source, errp);
    if (r < 0) {
        return r;
    }
    if (speed < 0) {
        return error_set(errp, EINVAL,
                         "Parameter 'speed' expects a non-negative value");
    }
    return perf_options(json_object_get(call->args, "x-perf"), o, errp);
}

static int drive_backup(struct qmp_call *call, struct job_txn *txn,
                        struct action **ap, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    const char *mode = qmp_str(call, "mode");
    struct backup_options o;
    int r = common_options(call, &o, errp);

    if (r < 0) {
        return r;
    }
    o.target_file = qmp_str(call, "target");
    o.existing = mode && strcmp(mode, "existing") == 0;
    r = qmp_format_value(qmp_str(call, "format"), &o.format, errp);
    r = r < 0 ? r : backup_action(call->daemon->jobs, &o, txn, ap, errp);
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

static int blockdev_backup(struct qmp_call *call, struct job_txn *txn,
                           struct action **ap, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    struct backup_options o;
    int r = common_options(call, &o, errp);

    if (r < 0) {
        return r;
    }
    o.target = disk_find_node(call->daemon, qmp_str(call, "target"), errp);
    return o.target ? backup_action(call->daemon->jobs, &o, txn, ap, errp)
                    : -ENODEV;
}

const struct qmp_command qmp_backup_commands[] = {
    QMP_ACTION("blockdev-backup", blockdev_backup, blockdev_backup_args,
               .is_job = true),
    QMP_ACTION("drive-backup", drive_backup, drive_backup_args, .is_job = true,
               .features = qmp_deprecated),
    QMP_COMMANDS_END,
};
