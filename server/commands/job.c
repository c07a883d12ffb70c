/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands for jobs: job-*, and the older block-job-*. */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "commands/table.h"
#include "commands/types.h"
#include "daemon.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"

static int set_speed(int64_t speed, uint64_t *out, struct error **errp)
{
    if (speed < 0) {
        return error_set(errp, EINVAL,
                         "Parameter 'speed' expects a non-negative value");
    }
    *out = (uint64_t)speed;
    return 0;
}

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

static json_t *find_named_job(json_t *list, const char *key, const char *id)
{
    size_t i;
    json_t *job;

    json_array_foreach (list, i, job) {
        const char *name = json_string_value(json_object_get(job, key));

        if (name && strcmp(name, id) == 0) {
            return job;
        }
    }
    return NULL;
}

/* The job that the arguments name as "id" or, in block-job-*, as "device".  The
 * error has the words of either generation. */
static int need_job(struct qmp_call *call, const char *id, bool block,
                    struct error **errp) REQUIRES(call->daemon->jobs->lock)
{
    CLEANUP_JSON json_t *list = block ? jobs_query_block(call->daemon->jobs)
                                      : jobs_query(call->daemon->jobs);

    if (!list) {
        return error_nomem(errp);
    }
    if (find_named_job(list, block ? "device" : "id", id)) {
        return 0;
    }
    if (!block) {
        return error_set(errp, ENOENT, "Job not found");
    }
    call->class = QMP_DEVICE_NOT_ACTIVE;
    return error_set(errp, ENOENT, "Block job '%.200s' not found", id);
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
    return on_job(call, "device", true, job_complete, errp);
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
    return on_job(call, "id", false, job_complete, errp);
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
    return call->ret ? 0 : error_nomem(errp);
}

static int cmd_query_block_jobs(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    call->ret = jobs_query_block(call->daemon->jobs);
    return call->ret ? 0 : error_nomem(errp);
}

const struct qmp_command qmp_job_commands[] = {
    QMP_COMMAND("block-job-cancel", cmd_block_job_cancel, cancel_args),
    QMP_COMMAND("block-job-complete", cmd_block_job_complete, device_args),
    QMP_COMMAND("block-job-dismiss", cmd_block_job_dismiss, id_args),
    QMP_COMMAND("block-job-finalize", cmd_block_job_finalize, id_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMAND("block-job-pause", cmd_block_job_pause, device_args),
    QMP_COMMAND("block-job-resume", cmd_block_job_resume, device_args),
    QMP_COMMAND("block-job-set-speed", cmd_block_job_set_speed, speed_args),
    QMP_COMMAND("job-cancel", cmd_job_cancel, id_args),
    QMP_COMMAND("job-complete", cmd_job_complete, id_args),
    QMP_COMMAND("job-dismiss", cmd_job_dismiss, id_args),
    QMP_COMMAND("job-finalize", cmd_job_finalize, id_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMAND("job-pause", cmd_job_pause, id_args),
    QMP_COMMAND("job-resume", cmd_job_resume, id_args),
    QMP_COMMAND("query-block-jobs", cmd_query_block_jobs, NULL,
                .ret = &qmp_block_jobs_type),
    QMP_COMMAND("query-jobs", cmd_query_jobs, NULL, .ret = &qmp_jobs_type),
    QMP_COMMANDS_END,
};
