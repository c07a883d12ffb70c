/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What commands do with jobs: the verbs, the queries, and how the next command
 * waits for what a verb has asked for.
 */
#include <errno.h>
#include <string.h>

#include "job/job-priv.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/mirror.h"

/* How long commands wait for what an earlier command has asked a job for. */
#define SETTLE_NS UINT64_C(2000000000)

#define S(name) (1U << JOB_STATUS_##name)

#define AT_WORK (S(CREATED) | S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY))

static const struct {
    const char *name;
    unsigned allowed;
} verbs[] = {
    [JOB_VERB_CANCEL] = {"cancel", AT_WORK | S(WAITING) | S(PENDING)},
    [JOB_VERB_PAUSE] = {"pause", AT_WORK},
    [JOB_VERB_RESUME] = {"resume", AT_WORK},
    [JOB_VERB_SET_SPEED] = {"set-speed", AT_WORK},
    [JOB_VERB_COMPLETE] = {"complete", S(READY) | S(STANDBY)},
    [JOB_VERB_FINALIZE] = {"finalize", S(PENDING)},
    [JOB_VERB_DISMISS] = {"dismiss", S(CONCLUDED)},
    [JOB_VERB_CHANGE] = {"change",
                         S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY)},
};

/* --- Settling --- */

/*
 * QEMU's jobs run in the loop that reads commands.  So what a command has asked
 * a job for is done before the next command is read, and clients delete a
 * target right after they have cancelled its job.  Here the job has a thread of
 * its own, and the next command waits for the job, for SETTLE_NS at most.
 */
void job_shall_settle(struct job *job)
{
    job->settle_ns = now_ns() + SETTLE_NS;
}

static bool is_settled(const struct job *job)
{
    return job->finished || (!job->cancelled && !job->ending &&
                             (job->pause_count == 0 || job->paused));
}

/* Until when there is a job to wait for; 0: there is none. */
static uint64_t unsettled_until(struct jobs *j, uint64_t now) REQUIRES(j->lock)
{
    uint64_t until = 0;

    list_for_each (at, &j->p->jobs) {
        const struct job *job = list_entry(at, struct job, in_jobs);
        if (job->settle_ns > now && !is_settled(job)) {
            until = max_u64(until, job->settle_ns);
        }
    }
    return until;
}

void jobs_settle(struct jobs *j)
{
    uint64_t now = now_ns();
    uint64_t until;

    while ((until = unsettled_until(j, now)) > now) {
        (void)cond_wait_ms(&j->p->changed, &j->lock,
                           (until - now) / 1000000 + 1);
        now = now_ns();
    }
}

/* --- Verbs --- */

static int find_job_for_verb(struct jobs *j, const char *id, enum job_verb verb,
                             struct job **jobp, struct error **errp)
    REQUIRES(j->lock)
{
    const struct job *job = *jobp = job_find(j, id);

    if (!job) {
        return error_set(errp, ENOENT, "Block job '%s' not found", id);
    }
    if (!(verbs[verb].allowed & (1U << job->status))) {
        return error_set(
            errp, EPERM,
            "Job '%s' in state '%s' cannot accept command verb '%s'", id,
            job_status_names[job->status], verbs[verb].name);
    }
    return 0;
}

int job_cancel(struct jobs *j, const char *id, bool force, struct error **errp)
{
    struct job *job;
    int r = find_job_for_verb(j, id, JOB_VERB_CANCEL, &job, errp);
    if (r < 0) {
        return r;
    }
    if (job->user_paused && !force) {
        return error_set(errp, EPERM,
                         "The block job for device '%s' is currently paused",
                         id);
    }
    if (!force && job->drv->cancel && !job->drv->cancel(job)) {
        job->ending = true;
        job_shall_settle(job);
        return 0;
    }
    job_cancel_async(j, job);
    if (job->finished) {
        struct job_txn *txn = job->txn;
        job_txn_ref(txn);
        job_txn_abort(j, txn, job);
        job_txn_unref(txn);
    }
    return 0;
}

/* Note the ids first: when one job is cancelled, others may go, and a job that
 * is only asked to end stays for a while. */
void jobs_cancel_on(struct jobs *j, const struct node *n)
{
    CLEANUP_JSON json_t *ids = json_array();
    size_t i;
    json_t *id;

    list_for_each (at, &j->p->jobs) {
        struct job *job = list_entry(at, struct job, in_jobs);

        if (!job->internal && !job->cancelled && job->drv->uses &&
            job->drv->uses(job, n)) {
            (void)json_array_append_new(ids, json_string(job->id));
        }
    }
    json_array_foreach (ids, i, id) {
        (void)job_cancel(j, json_string_value(id), false, NULL);
    }
}

bool jobs_use(struct jobs *j, const struct node *n,
              bool (*wanted)(const char *id, void *opaque), void *opaque)
{
    list_for_each (at, &j->p->jobs) {
        struct job *job = list_entry(at, struct job, in_jobs);

        if (job->txn && job->drv->uses && wanted(job->id, opaque) &&
            job->drv->uses(job, n)) {
            return true;
        }
    }
    return false;
}

int job_pause(struct jobs *j, const char *id, struct error **errp)
{
    struct job *job;
    int r = find_job_for_verb(j, id, JOB_VERB_PAUSE, &job, errp);
    if (r < 0) {
        return r;
    }
    if (job->user_paused) {
        return error_set(errp, EPERM, "Job is already paused");
    }
    job->user_paused = true;
    job->pause_count++;
    job_shall_settle(job);
    if (!job->finished && job->drv->kick) {
        job->drv->kick(job, true);
    }
    return 0;
}

int job_resume(struct jobs *j, const char *id, struct error **errp)
{
    struct job *job;
    int r = find_job_for_verb(j, id, JOB_VERB_RESUME, &job, errp);
    if (r < 0) {
        return r;
    }
    if (!job->user_paused) {
        return error_set(errp, EPERM, "Can't resume a job that was not paused");
    }
    job->user_paused = false;
    if (--job->pause_count > 0) {
        return 0;
    }
    job->io_status = "ok";
    if (job->drv->kick && !job->cancelled) {
        job->drv->kick(job, false);
    }
    job_unpause(j, job);
    return 0;
}

int job_complete(struct jobs *j, const char *id, struct error **errp)
{
    struct job *job;
    int r = find_job_for_verb(j, id, JOB_VERB_COMPLETE, &job, errp);
    if (r < 0) {
        return r;
    }
    if (job->cancelled || !job->drv->complete) {
        return error_set(errp, EPERM,
                         "The active block job '%s' cannot be completed", id);
    }
    r = job->drv->complete(job, errp);
    if (r == 0) {
        job->ending = true;
        job_shall_settle(job);
    }
    return r;
}

int job_finalize(struct jobs *j, const char *id, struct error **errp)
{
    struct job *job;
    int r = find_job_for_verb(j, id, JOB_VERB_FINALIZE, &job, errp);

    if (r == 0) {
        struct job_txn *txn = job->txn;
        job_txn_ref(txn);
        job_txn_commit(j, txn);
        job_txn_unref(txn);
    }
    return r;
}

int job_dismiss(struct jobs *j, const char *id, struct error **errp)
{
    struct job *job;
    int r = find_job_for_verb(j, id, JOB_VERB_DISMISS, &job, errp);

    if (r == 0) {
        job_forget(j, job);
    }
    return r;
}

int job_set_speed(struct jobs *j, const char *id, uint64_t speed,
                  struct error **errp)
{
    struct job *job;
    int r = find_job_for_verb(j, id, JOB_VERB_SET_SPEED, &job, errp);

    if (r == 0) {
        job->speed = speed;
        if (!job->finished && job->drv->set_speed) {
            job->drv->set_speed(job, speed);
        }
    }
    return r;
}

int job_change_mirror(struct jobs *j, const char *id, bool write_blocking,
                      struct error **errp)
{
    struct job *job;
    int r = find_job_for_verb(j, id, JOB_VERB_CHANGE, &job, errp);

    if (r < 0) {
        return r;
    }
    return job->drv->change
               ? job->drv->change(job, write_blocking, errp)
               : error_set(errp, ENOTSUP, "Job type does not support change");
}

/* --- Queries --- */

json_t *jobs_query(struct jobs *j)
{
    json_t *list = json_array();

    list_for_each (at, &j->p->jobs) {
        struct job *job = list_entry(at, struct job, in_jobs);
        uint64_t done;
        uint64_t total;

        if (job->internal) {
            continue;
        }
        job_get_progress(job, &done, &total);
        json_t *info = json_pack(
            "{s:I, s:s, s:I, s:s, s:s}", "current-progress", (json_int_t)done,
            "status", job_status_names[job->status], "total-progress",
            (json_int_t)total, "type", job->drv->type, "id", job->id);
        job_add_error(job, info);
        (void)json_array_append_new(list, info);
    }
    return list;
}

json_t *jobs_query_block(struct jobs *j)
{
    json_t *list = json_array();

    list_for_each (at, &j->p->jobs) {
        struct job *job = list_entry(at, struct job, in_jobs);
        uint64_t done;
        uint64_t total;

        if (job->drv->general || job->internal) {
            continue;
        }
        job_get_progress(job, &done, &total);
        json_t *info = json_pack(
            "{s:b, s:s, s:I, s:b, s:b, s:s, s:b, s:I, s:b, s:s, s:s, s:I}",
            "auto-finalize", (int)!job->manual_finalize, "io-status",
            job->io_status, "offset", (json_int_t)done, "paused",
            (int)(job->pause_count > 0), "busy",
            (int)(!job->finished && !job->paused && !job->is_ready), "status",
            job_status_names[job->status], "auto-dismiss",
            (int)!job->manual_dismiss, "len", (json_int_t)total, "ready",
            (int)(job->status == JOB_STATUS_READY), "type", job->drv->type,
            "device", job->id, "speed", (json_int_t)job->speed);
        if (info && job->drv->describe) {
            job->drv->describe(job, info);
        }
        job_add_error(job, info);
        (void)json_array_append_new(list, info);
    }
    return list;
}
