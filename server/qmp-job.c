/* SPDX-License-Identifier: BSD-3-Clause */

/* Backup, and the verbs of jobs in both generations. */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "daemon.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "qmp-dispatch.h"

/* --- drive-backup. --- */

static const char *const sync_words[] = {"top",         "full",   "none",
                                         "incremental", "bitmap", NULL};
static const char *const bitmap_mode_words[] = {"on-success", "never", "always",
                                                NULL};
static const char *const on_error_words[] = {"report", "ignore", "enospc",
                                             "stop",   "auto",   NULL};
static const char *const mode_words[] = {"existing", "absolute-paths", NULL};

static const struct qmp_arg perf_args[] = {
    QMP_OPT("use-copy-range", BOOL),
    QMP_OPT("max-workers", INT),
    QMP_OPT("max-chunk", INT),
    QMP_LAST,
};

static const struct qmp_arg drive_backup_args[] = {
    QMP_OPT("job-id", STR),
    QMP_ARG("device", STR),
    QMP_ARG("sync", ENUM, .words = sync_words),
    QMP_OPT("speed", INT),
    QMP_OPT("bitmap", STR),
    QMP_OPT("bitmap-mode", ENUM, .words = bitmap_mode_words),
    QMP_OPT("compress", BOOL),
    QMP_OPT("on-source-error", ENUM, .words = on_error_words),
    QMP_OPT("on-target-error", ENUM, .words = on_error_words),
    QMP_OPT("auto-finalize", BOOL),
    QMP_OPT("auto-dismiss", BOOL),
    QMP_OPT("filter-node-name", STR),
    QMP_OPT("x-perf", OBJECT, .members = perf_args),
    QMP_ARG("target", STR),
    QMP_OPT("format", STR),
    QMP_OPT("mode", ENUM, .words = mode_words),
    QMP_LAST,
};

/* QEMU's rules on which bitmap goes with which way to sync. */
static int check_bitmap(struct qmp_call *call, struct node *source,
                        struct error **errp)
{
    const char *sync = qmp_str(call, "sync");
    const char *name = qmp_str(call, "bitmap");
    const char *mode = qmp_str(call, "bitmap-mode");
    bool incremental = strcmp(sync, "incremental") == 0;
    struct bitmap *bm;

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
    bm = bitmap_find(source, name);
    if (!bm) {
        return error_set(errp, ENOENT, "Bitmap '%.1023s' could not be found",
                         name);
    }
    bitmap_unref(bm);
    if (!mode && !incremental) {
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

/* What QEMU has and job_backup has not. */
static int check_lacking(struct qmp_call *call, struct error **errp)
{
    static const char *const on_error[] = {"on-source-error",
                                           "on-target-error"};
    const char *mode = qmp_str(call, "bitmap-mode");
    const char *sync = qmp_str(call, "sync");

    for (size_t i = 0; i < 2; i++) {
        const char *word = qmp_str(call, on_error[i]);

        if (word && strcmp(word, "report") != 0) {
            return error_set(errp, ENOTSUP,
                             "Parameter '%s' does not support '%s', only "
                             "'report'",
                             on_error[i], word);
        }
    }
    if (mode && strcmp(mode, "on-success") != 0) {
        return error_set(errp, ENOTSUP,
                         "Parameter 'bitmap-mode' does not support '%s', only "
                         "'on-success'",
                         mode);
    }
    if (qmp_has(call, "bitmap") && strcmp(sync, "incremental") != 0 &&
        strcmp(sync, "bitmap") != 0) {
        return error_set(errp, ENOTSUP,
                         "A bitmap is not supported with sync mode '%s'", sync);
    }
    return 0;
}

static bool id_well_formed(const char *id)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz"
                                  "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char rest[] = "abcdefghijklmnopqrstuvwxyz"
                               "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                               "0123456789-._";

    return id[0] != '\0' && strchr(letters, id[0]) &&
           strspn(id, rest) == strlen(id);
}

static bool known_format(const char *name)
{
    const char *const *names = graph_driver_names();

    while (*names && strcmp(*names, name) != 0) {
        names++;
    }
    return *names != NULL;
}

static enum backup_sync sync_value(const char *word)
{
    if (strcmp(word, "full") == 0) {
        return SYNC_FULL;
    }
    if (strcmp(word, "top") == 0) {
        return SYNC_TOP;
    }
    /* "bitmap" with "on-success" is what "incremental" says in short. */
    return strcmp(word, "none") == 0 ? SYNC_NONE : SYNC_INCREMENTAL;
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
    return 0;
}

static int set_speed(int64_t speed, uint64_t *out, struct error **errp)
{
    if (speed < 0) {
        return error_set(errp, EINVAL,
                         "Parameter 'speed' expects a non-negative value");
    }
    *out = (uint64_t)speed;
    return 0;
}

static int backup_options(struct qmp_call *call, struct backup_options *o,
                          struct error **errp)
{
    const char *mode = qmp_str(call, "mode");
    int r;

    o->job_id = qmp_str(call, "job-id");
    o->device = qmp_str(call, "device");
    o->sync = sync_value(qmp_str(call, "sync"));
    o->bitmap = qmp_str(call, "bitmap");
    o->target_file = qmp_str(call, "target");
    o->format = qmp_str(call, "format");
    o->existing = mode && strcmp(mode, "existing") == 0;
    o->compress = qmp_bool(call, "compress", false);
    o->manual_finalize = !qmp_bool(call, "auto-finalize", true);
    o->manual_dismiss = !qmp_bool(call, "auto-dismiss", true);
    o->filter_node_name = qmp_str(call, "filter-node-name");

    o->source = qmp_find_node(call->daemon, o->device, errp);
    if (!o->source) {
        return -ENODEV;
    }
    if (o->job_id && !id_well_formed(o->job_id)) {
        return error_set(errp, EINVAL, "Invalid job ID '%.200s'", o->job_id);
    }
    if (o->format && !known_format(o->format)) {
        return error_set(errp, EINVAL, "Unknown file format '%.200s'",
                         o->format);
    }
    r = check_bitmap(call, o->source, errp);
    if (r == 0) {
        r = check_lacking(call, errp);
    }
    if (r == 0) {
        r = set_speed(qmp_int(call, "speed", 0), &o->speed, errp);
    }
    if (r == 0) {
        r = perf_options(json_object_get(call->args, "x-perf"), o, errp);
    }
    return r;
}

static int cmd_drive_backup(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    struct backup_options o = {.sync = SYNC_FULL};
    int r = backup_options(call, &o, errp);

    return r < 0 ? r : job_backup(call->daemon->jobs, &o, errp);
}

/* --- Verbs. --- */

static const struct qmp_arg id_args[] = {
    QMP_ARG("id", STR),
    QMP_LAST,
};

static const struct qmp_arg device_args[] = {
    QMP_ARG("device", STR),
    QMP_LAST,
};

static const struct qmp_arg cancel_args[] = {
    QMP_ARG("device", STR),
    QMP_OPT("force", BOOL),
    QMP_LAST,
};

static const struct qmp_arg speed_args[] = {
    QMP_ARG("device", STR),
    QMP_ARG("speed", INT),
    QMP_LAST,
};

static json_t *find_job(json_t *list, const char *id)
{
    size_t i;
    json_t *job;

    json_array_foreach (list, i, job) {
        const char *name = json_string_value(json_object_get(job, "id"));

        if (name && strcmp(name, id) == 0) {
            return job;
        }
    }
    return NULL;
}

/* The job that the arguments name, checked to exist; in the words of either
 * generation, the one that says "device" and that says "id". */
static int need_job(struct qmp_call *call, const char *id, bool block,
                    struct error **errp) REQUIRES(call->daemon->jobs->lock)
{
    CLEANUP_JSON json_t *list = jobs_query(call->daemon->jobs);

    if (!list) {
        return error_set(errp, ENOMEM, "Out of memory");
    }
    if (find_job(list, id)) {
        return 0;
    }
    if (!block) {
        return error_set(errp, ENOENT, "Job not found");
    }
    call->class = QMP_DEVICE_NOT_ACTIVE;
    return error_set(errp, ENOENT, "Block job '%.200s' not found", id);
}

/* Backups are never ready for it: so says each state. */
static int complete(struct qmp_call *call, const char *id, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    CLEANUP_JSON json_t *list = jobs_query(call->daemon->jobs);
    const json_t *job = find_job(list, id);
    const char *status = json_string_value(json_object_get(job, "status"));

    return error_set(errp, EPERM,
                     "Job '%.200s' in state '%s' cannot accept command verb "
                     "'complete'",
                     id, status ? status : "null");
}

typedef int verb_fn(struct jobs *j, const char *id, struct error **errp);

static int on_job(struct qmp_call *call, const char *arg, bool block,
                  verb_fn *fn, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    const char *id = qmp_str(call, arg);
    int r = need_job(call, id, block, errp);

    return r < 0 ? r : fn(call->daemon->jobs, id, errp);
}

static int cmd_block_job_cancel(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    const char *id = qmp_str(call, "device");
    int r = need_job(call, id, true, errp);

    return r < 0 ? r
                 : job_cancel(call->daemon->jobs, id,
                              qmp_bool(call, "force", false), errp);
}

static int cmd_block_job_set_speed(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    const char *id = qmp_str(call, "device");
    uint64_t speed = 0;
    int r = need_job(call, id, true, errp);

    if (r == 0) {
        r = set_speed(qmp_int(call, "speed", 0), &speed, errp);
    }
    return r < 0 ? r : job_set_speed(call->daemon->jobs, id, speed, errp);
}

static int cmd_job_cancel(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    const char *id = qmp_str(call, "id");
    int r = need_job(call, id, false, errp);

    return r < 0 ? r : job_cancel(call->daemon->jobs, id, true, errp);
}

static int cmd_block_job_complete(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    const char *id = qmp_str(call, "device");
    int r = need_job(call, id, true, errp);

    return r < 0 ? r : complete(call, id, errp);
}

static int cmd_block_job_pause(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    return on_job(call, "device", true, job_pause, errp);
}

static int cmd_block_job_resume(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    return on_job(call, "device", true, job_resume, errp);
}

static int cmd_block_job_finalize(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    return on_job(call, "id", true, job_finalize, errp);
}

static int cmd_block_job_dismiss(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    return on_job(call, "id", true, job_dismiss, errp);
}

static int cmd_job_complete(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    const char *id = qmp_str(call, "id");
    int r = need_job(call, id, false, errp);

    return r < 0 ? r : complete(call, id, errp);
}

static int cmd_job_pause(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    return on_job(call, "id", false, job_pause, errp);
}

static int cmd_job_resume(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    return on_job(call, "id", false, job_resume, errp);
}

static int cmd_job_finalize(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    return on_job(call, "id", false, job_finalize, errp);
}

static int cmd_job_dismiss(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    return on_job(call, "id", false, job_dismiss, errp);
}

static int cmd_query_jobs(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    call->ret = jobs_query(call->daemon->jobs);
    return call->ret ? 0 : error_set(errp, ENOMEM, "Out of memory");
}

static int cmd_query_block_jobs(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    call->ret = jobs_query_block(call->daemon->jobs);
    return call->ret ? 0 : error_set(errp, ENOMEM, "Out of memory");
}

const struct qmp_command qmp_job_commands[] = {
    {"block-job-cancel", cmd_block_job_cancel, cancel_args},
    {"block-job-complete", cmd_block_job_complete, device_args},
    {"block-job-dismiss", cmd_block_job_dismiss, id_args},
    {"block-job-finalize", cmd_block_job_finalize, id_args},
    {"block-job-pause", cmd_block_job_pause, device_args},
    {"block-job-resume", cmd_block_job_resume, device_args},
    {"block-job-set-speed", cmd_block_job_set_speed, speed_args},
    {"drive-backup", cmd_drive_backup, drive_backup_args},
    {"job-cancel", cmd_job_cancel, id_args},
    {"job-complete", cmd_job_complete, id_args},
    {"job-dismiss", cmd_job_dismiss, id_args},
    {"job-finalize", cmd_job_finalize, id_args},
    {"job-pause", cmd_job_pause, id_args},
    {"job-resume", cmd_job_resume, id_args},
    {"query-block-jobs", cmd_query_block_jobs, NULL},
    {"query-jobs", cmd_query_jobs, NULL},
    {NULL, NULL, NULL},
};
