/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The life cycle of jobs.
 *
 *                    cancel, failure
 *      created ---+------------------------------------------+
 *         |       |                                          |
 *      running ---+--- paused (and back)                     |
 *         |       |                                          |
 *      waiting ---+    until all of the transaction wait     |
 *         |       |                                          |
 *      pending ---+    until job-finalize, if asked for      v
 *         |                                               aborting
 *     concluded <--------------------------------------------+
 *         |            until job-dismiss, if asked for
 *       null           gone
 *
 * Everything here happens under the monitor lock, in the thread that comes
 * last: a job's, or a command's.  A job's thread takes the lock to change its
 * status, and releases it while it works.
 *
 * A transaction that fails is taken apart in the order of its list, newest job
 * first.  A job that is still at work stops the walk, and its thread resumes
 * the walk when the work is done.  So nobody waits for a thread under the lock.
 */
#include "job/job-priv.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/list.h"
#include "nbdelta/tell.h"

#define RETRY_MS 100

struct job_txn {
    /* Guarded by jobs->lock. */
    struct list jobs;
    unsigned refs; /* the creator's and each job's */
    bool aborting;
};

const char *const job_status_names[JOB_STATUS_MAX] = {
    [JOB_STATUS_UNDEFINED] = "undefined", [JOB_STATUS_CREATED] = "created",
    [JOB_STATUS_RUNNING] = "running",     [JOB_STATUS_PAUSED] = "paused",
    [JOB_STATUS_READY] = "ready",         [JOB_STATUS_STANDBY] = "standby",
    [JOB_STATUS_WAITING] = "waiting",     [JOB_STATUS_PENDING] = "pending",
    [JOB_STATUS_ABORTING] = "aborting",   [JOB_STATUS_CONCLUDED] = "concluded",
    [JOB_STATUS_NULL] = "null",
};

#define S(name) (1U << JOB_STATUS_##name)

/* Where each status may lead to. */
static const unsigned transitions[JOB_STATUS_MAX] = {
    [JOB_STATUS_UNDEFINED] = S(CREATED),
    [JOB_STATUS_CREATED] = S(RUNNING) | S(ABORTING) | S(NULL),
    [JOB_STATUS_RUNNING] = S(PAUSED) | S(READY) | S(WAITING) | S(ABORTING),
    [JOB_STATUS_PAUSED] = S(RUNNING),
    [JOB_STATUS_READY] = S(STANDBY) | S(WAITING) | S(ABORTING),
    [JOB_STATUS_STANDBY] = S(READY),
    [JOB_STATUS_WAITING] = S(PENDING) | S(ABORTING),
    [JOB_STATUS_PENDING] = S(ABORTING) | S(CONCLUDED),
    [JOB_STATUS_ABORTING] = S(ABORTING) | S(CONCLUDED),
    [JOB_STATUS_CONCLUDED] = S(NULL),
};

/* --- Events --- */

/* Tell clients of @job.  Takes over @data.  NULL: there was no memory for it,
 * and the event is lost. */
static void send_event(struct jobs *j, const struct job *job, const char *name,
                       json_t *data) REQUIRES(j->lock)
{
    const struct jobs_private *p = j->p;

    if (data && !job->internal) {
        p->emit(name, data, p->opaque);
    }
    json_decref(data);
}

static void set_status(struct jobs *j, struct job *job, enum job_status status)
    REQUIRES(j->lock)
{
    assert(transitions[job->status] & (1U << status));
    job->status = status;
    send_event(j, job, "JOB_STATUS_CHANGE",
               json_pack("{s:s, s:s}", "status", job_status_names[status], "id",
                         job->id));
}

void job_get_progress(struct job *job, uint64_t *done, uint64_t *total)
{
    *done = job->done;
    *total = job->total;
    if (!job->sampled && job->drv->progress) {
        job->drv->progress(job, done, total);
    }
}

static bool stops_on(enum job_on_error on_error, int r)
{
    return on_error == ON_ERROR_STOP ||
           (on_error == ON_ERROR_ENOSPC && r == -ENOSPC);
}

bool job_retries(struct jobs *j, struct job *job, enum job_on_error on_error,
                 bool is_read, int r)
{
    bool stops = stops_on(on_error, r);
    bool ignores = on_error == ON_ERROR_IGNORE;

    send_event(j, job, "BLOCK_JOB_ERROR",
               json_pack("{s:s, s:s, s:s}", "device", job->id, "operation",
                         is_read ? "read" : "write", "action",
                         stops     ? "stop"
                         : ignores ? "ignore"
                                   : "report"));
    if (stops) {
        tell_event(TELL_ERROR,
                   "job '%.200s' (%s) waits for job-resume: a %s failed: %s",
                   job->id, job->drv->type, is_read ? "read" : "write",
                   strerror(-r));
        if (!job->user_paused) {
            job->user_paused = true;
            job->pause_count++;
        }
        if (strcmp(job->io_status, "ok") == 0) {
            job->io_status = r == -ENOSPC ? "nospace" : "failed";
        }
    }
    job->retrying = ignores;
    return stops || ignores;
}

/* The data that all block job events share. */
static json_t *job_data(const struct job *job)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:s}", "device", job->id, "len",
                     (json_int_t)job->total, "offset", (json_int_t)job->done,
                     "speed", (json_int_t)job->speed, "type", job->drv->type);
}

static void take_sample(struct job *job)
{
    job_get_progress(job, &job->done, &job->total);
}

void job_ready(struct jobs *j, struct job *job)
{
    job->is_ready = true;
    set_status(j, job, JOB_STATUS_READY);
    take_sample(job);
    send_event(j, job, "BLOCK_JOB_READY", job_data(job));
}

static const char *error_text(const struct job *job)
{
    return job->error ? error_message(job->error) : strerror(-job->ret);
}

void job_add_error(const struct job *job, json_t *info)
{
    if (info && job->ret < 0) {
        (void)json_object_set_new(info, "error", json_string(error_text(job)));
    }
}

/* The user who has cancelled a job knows that it fails. */
static void tell_end(const struct job *job)
{
    double seconds = job->begun_ns > 0
                         ? (double)(now_ns() - job->begun_ns) / 1000000000
                         : 0;

    if (job->ret < 0 && !job->cancelled) {
        tell_event(TELL_ERROR, "job '%.200s' (%s) failed: %s", job->id,
                   job->drv->type, error_text(job));
    } else if (job->ret < 0) {
        tell_event(TELL_INFO, "job '%.200s' (%s) was cancelled after %.1f s",
                   job->id, job->drv->type, seconds);
    } else if (job->drv->general) {
        tell_event(TELL_INFO, "job '%.200s' (%s) has ended after %.1f s",
                   job->id, job->drv->type, seconds);
    } else {
        tell_event(TELL_INFO,
                   "job '%.200s' (%s) has ended: %" PRIu64 " bytes in %.1f s",
                   job->id, job->drv->type, job->done, seconds);
    }
}

static void emit_end(struct jobs *j, struct job *job) REQUIRES(j->lock)
{
    json_t *data = job_data(job);

    if (job->cancelled) {
        send_event(j, job, "BLOCK_JOB_CANCELLED", data);
        return;
    }
    job_add_error(job, data);
    send_event(j, job, "BLOCK_JOB_COMPLETED", data);
}

/* --- Transactions --- */

struct job_txn *job_txn_new(void)
{
    struct job_txn *txn = calloc(1, sizeof(*txn));

    if (txn) {
        list_init(&txn->jobs);
        txn->refs = 1;
    }
    return txn;
}

void job_txn_ref(struct job_txn *txn)
{
    txn->refs++;
}

void job_txn_unref(struct job_txn *txn)
{
    if (txn && --txn->refs == 0) {
        assert(list_empty(&txn->jobs));
        free(txn);
    }
}

#define in_txn_of(at) list_entry(at, struct job, in_txn)

/* --- The end of a job --- */

void job_unref(struct jobs *j, struct job *job)
{
    assert(job->jobs == j);
    if (--job->refs == 0) {
        cond_destroy(&job->wake);
        free(job->id);
        error_free(job->error);
        job->drv->free(job);
    }
}

void job_forget(struct jobs *j, struct job *job)
{
    set_status(j, job, JOB_STATUS_NULL);
    list_remove(&job->in_jobs);
    cond_broadcast(&j->p->changed);
    job_unref(j, job);
}

static void note_failure(struct jobs *j, struct job *job) REQUIRES(j->lock)
{
    if (job->ret == 0 && job->cancelled) {
        job->ret = -ECANCELED;
    }
    if (job->ret < 0 && job->status != JOB_STATUS_ABORTING) {
        set_status(j, job, JOB_STATUS_ABORTING);
    }
}

static void leave_txn(struct job *job)
{
    struct job_txn *txn = job->txn;

    list_remove(&job->in_txn);
    job->txn = NULL;
    job_txn_unref(txn);
}

static void conclude(struct jobs *j, struct job *job) REQUIRES(j->lock)
{
    const struct job_driver *drv = job->drv;

    assert(job->txn);
    note_failure(j, job);
    take_sample(job);
    job->sampled = true;
    tell_end(job);
    if (job->ret < 0 && drv->abort) {
        drv->abort(job);
    } else if (job->ret == 0 && drv->commit) {
        drv->commit(job);
    }
    if (drv->clean) {
        drv->clean(job);
    }
    if (!drv->general) {
        emit_end(j, job);
    }
    leave_txn(job);
    set_status(j, job, JOB_STATUS_CONCLUDED);
    if (!job->manual_dismiss) {
        job_forget(j, job);
    }
}

/* The status of a job while it is at work. */
static enum job_status work_status(const struct job *job)
{
    return job->is_ready ? JOB_STATUS_READY : JOB_STATUS_RUNNING;
}

void job_unpause(struct jobs *j, struct job *job)
{
    if (job->paused) {
        job->paused = false;
        set_status(j, job, work_status(job));
    }
    cond_broadcast(&job->wake);
}

void job_cancel_async(struct jobs *j, struct job *job)
{
    job->cancelled = true;
    job_shall_settle(job);
    job->user_paused = false;
    job->pause_count = 0;
    if (!job->finished && job->drv->kick) {
        job->drv->kick(job, true);
    }
    if (!job->finished && job->drv->give_up) {
        job->drv->give_up(job);
    }
    job_unpause(j, job);
}

void job_txn_abort(struct jobs *j, struct job_txn *txn, const struct job *cause)
{
    if (!txn->aborting) {
        txn->aborting = true;
        list_for_each (at, &txn->jobs) {
            if (in_txn_of(at) != cause) {
                job_cancel_async(j, in_txn_of(at));
            }
        }
    }
    while (!list_empty(&txn->jobs)) {
        struct job *first = in_txn_of(txn->jobs.next);
        if (!first->finished) {
            return;
        }
        conclude(j, first);
    }
}

void job_txn_commit(struct jobs *j, struct job_txn *txn)
{
    list_for_each (at, &txn->jobs) {
        struct job *job = in_txn_of(at);
        job->ret = job->drv->prepare ? job->drv->prepare(job) : 0;
        if (job->ret < 0) {
            note_failure(j, job);
            job_txn_abort(j, txn, job);
            return;
        }
    }
    while (!list_empty(&txn->jobs)) {
        conclude(j, in_txn_of(txn->jobs.next));
    }
}

static void txn_wait(struct jobs *j, struct job *job, struct job_txn *txn)
    REQUIRES(j->lock)
{
    bool manual = false;

    set_status(j, job, JOB_STATUS_WAITING);
    list_for_each (at, &txn->jobs) {
        if (!in_txn_of(at)->finished) {
            return;
        }
    }
    list_for_each (at, &txn->jobs) {
        struct job *other = in_txn_of(at);
        set_status(j, other, JOB_STATUS_PENDING);
        if (other->manual_finalize) {
            manual = true;
            send_event(j, other, "BLOCK_JOB_PENDING",
                       json_pack("{s:s, s:s}", "type", other->drv->type, "id",
                                 other->id));
        }
    }
    if (!manual) {
        job_txn_commit(j, txn);
    }
}

static void finish_job(struct jobs *j, struct job *job, int ret)
    REQUIRES(j->lock)
{
    struct job_txn *txn = job->txn;

    job->finished = true;
    job->ret = ret;
    cond_broadcast(&j->p->changed);
    note_failure(j, job);
    txn->refs++;
    if (job->ret < 0 || txn->aborting) {
        job_txn_abort(j, txn, job);
    } else {
        txn_wait(j, job, txn);
    }
    job_txn_unref(txn);
}

/* --- The thread --- */

static void pause_point(struct jobs *j, struct job *job) REQUIRES(j->lock)
{
    if (job->pause_count == 0 || job->cancelled) {
        return;
    }
    job->paused = true;
    cond_broadcast(&j->p->changed);
    set_status(j, job, job->is_ready ? JOB_STATUS_STANDBY : JOB_STATUS_PAUSED);
    /* The thread that clears `paused` changes the status, too. */
    while (job->paused) {
        cond_wait(&job->wake, &j->lock);
    }
}

/* Wait before the next try: ignored errors must not make a flood of events. */
static void retry_point(struct jobs *j, struct job *job) REQUIRES(j->lock)
{
    if (job->retrying) {
        job->retrying = false;
        (void)cond_wait_ms(&job->wake, &j->lock, RETRY_MS);
    }
}

static bool is_used_by_job(const struct node *n, void *opaque)
{
    struct job *job = opaque;

    return job->drv->uses(job, n);
}

/* The end of a job drains its nodes under the lock.  Wait for them before,
 * without the lock, so that storage that hangs holds up no other command. */
static void settle_nodes_of(struct jobs *j, struct job *job)
{
    if (job->drv->uses) {
        (void)graph_settle_match(j->p->graph, is_used_by_job, job, UINT64_MAX,
                                 NULL);
    }
}

/* Work and end; releases the lock meanwhile. */
static void work_to_the_end(struct jobs *j, struct job *job) REQUIRES(j->lock)
{
    int r = JOB_STOPPED;

    while (r == JOB_STOPPED) {
        retry_point(j, job);
        pause_point(j, job);
        if (job->cancelled) {
            r = -ECANCELED;
            break;
        }
        mutex_unlock(&j->lock);
        r = job->drv->run(job);
        mutex_lock(&j->lock);
    }
    mutex_unlock(&j->lock);
    r = job->drv->exit ? job->drv->exit(job, r) : r;
    settle_nodes_of(j, job);
    mutex_lock(&j->lock);
    finish_job(j, job, r);
}

static void *job_thread(void *opaque)
{
    struct job *job = opaque;
    struct jobs *j = job->jobs;

    mutex_lock(&j->lock);
    if (job->txn) { /* else the job was dropped */
        work_to_the_end(j, job);
    }
    job->thread_done = true;
    cond_broadcast(&j->p->changed);
    mutex_unlock(&j->lock);
    return NULL;
}

/* Join the threads that are done.  They only have to return, so joining does
 * not wait for long. */
static void join_done_threads(struct jobs *j) REQUIRES(j->lock)
{
    list_for_each_safe (at, &j->p->threads) {
        struct job *job = list_entry(at, struct job, in_threads);
        if (job->thread_done) {
            thread_join(job->thread);
            list_remove(at);
            job_unref(j, job);
        }
    }
}

/* --- The start of a job --- */

static bool id_is_valid(const char *id)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz"
                                  "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

    return id[0] != '\0' && strchr(letters, id[0]) &&
           id[strspn(id, "abcdefghijklmnopqrstuvwxyz"
                         "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")] == '\0';
}

struct job *job_find(struct jobs *j, const char *id)
{
    list_for_each (at, &j->p->jobs) {
        struct job *job = list_entry(at, struct job, in_jobs);
        if (!job->internal && strcmp(job->id, id) == 0) {
            return job;
        }
    }
    return NULL;
}

static int check_open(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock)
{
    return j->p->closing ? error_set(errp, ESHUTDOWN,
                                     "job '%s' cannot start: shutting down", id)
                         : 0;
}

int job_check_id(struct jobs *j, const char *id, struct error **errp)
{
    if (!id_is_valid(id)) {
        return error_set(errp, EINVAL, "Invalid job ID '%s'", id);
    }
    if (job_find(j, id)) {
        return error_set(errp, EEXIST, "Job ID '%s' already in use", id);
    }
    return check_open(j, id, errp);
}

int job_create(struct jobs *j, struct job *job, const struct job_driver *drv,
               const struct job_options *o, struct error **errp)
{
    join_done_threads(j);
    int r = o->internal ? check_open(j, o->id, errp)
                        : job_check_id(j, o->id, errp);
    if (r < 0) {
        return r;
    }
    job->id = strdup(o->id);
    if (!job->id) {
        return error_nomem(errp);
    }
    job->drv = drv;
    job->jobs = j;
    job->manual_finalize = o->manual_finalize;
    job->manual_dismiss = o->manual_dismiss;
    job->internal = o->internal;
    job->speed = o->speed;
    job->io_status = "ok";
    job->refs = 1;
    list_init(&job->in_jobs);
    list_init(&job->in_txn);
    list_init(&job->in_threads);
    cond_init(&job->wake);
    return 0;
}

int job_enlist(struct jobs *j, struct job *job, struct job_txn *txn,
               struct error **errp)
{
    struct jobs_private *p = j->p;
    int r = job->internal ? check_open(j, job->id, errp)
                          : job_check_id(j, job->id, errp);

    if (r < 0) {
        return r;
    }
    r = thread_start(&job->thread, job->drv->type, job_thread, job);
    if (r < 0) {
        return error_set(errp, -r, "cannot start a thread for job '%s': %s",
                         job->id, strerror(-r));
    }
    job->refs++;
    list_append(&p->threads, &job->in_threads);
    list_insert_before(p->jobs.next, &job->in_jobs);
    list_insert_before(txn->jobs.next, &job->in_txn);
    job->txn = txn;
    txn->refs++;
    if (job->drv->set_speed) {
        job->drv->set_speed(job, job->speed);
    }
    set_status(j, job, JOB_STATUS_CREATED);
    return 0;
}

void job_drop(struct jobs *j, struct job *job)
{
    leave_txn(job);
    job_forget(j, job);
}

static void note_begin(struct job *job)
{
    job->begun_ns = now_ns();
    tell_event(TELL_INFO, "job '%.200s' (%s) begins", job->id, job->drv->type);
}

/* Clients see what QEMU's drain at the start of a job shows them. */
void job_begin(struct jobs *j, struct job *job)
{
    note_begin(job);
    set_status(j, job, JOB_STATUS_RUNNING);
    set_status(j, job, JOB_STATUS_PAUSED);
}

void job_go(struct jobs *j, struct job *job)
{
    if (job->begun_ns == 0) {
        note_begin(job);
    }
    set_status(j, job, JOB_STATUS_RUNNING);
}

int job_wait(struct jobs *j, struct job *job, struct error **errp)
{
    while (job->status != JOB_STATUS_NULL) {
        cond_wait(&j->p->changed, &j->lock);
    }
    return job->ret < 0 ? error_set(errp, -job->ret, "%s", error_text(job)) : 0;
}

/* --- All jobs --- */

struct jobs *jobs_new(struct graph *g, job_event_fn *emit, void *opaque)
{
    struct jobs *j = calloc(1, sizeof(*j));
    struct jobs_private *p = calloc(1, sizeof(*p));

    if (!j || !p) {
        free(j);
        free(p);
        return NULL;
    }
    p->graph = g;
    p->emit = emit;
    p->opaque = opaque;
    list_init(&p->jobs);
    list_init(&p->threads);
    cond_init(&p->changed);
    mutex_init(&j->lock, LOCK_MONITOR, NULL);
    j->p = p;
    return j;
}

struct graph *jobs_graph(struct jobs *j)
{
    return j->p->graph;
}

/* End one job, or ask one to end.  False: all jobs are on their way. */
static bool shut_down_one(struct jobs *j) REQUIRES(j->lock)
{
    list_for_each (at, &j->p->jobs) {
        struct job *job = list_entry(at, struct job, in_jobs);
        if (job->status == JOB_STATUS_CONCLUDED) {
            job_forget(j, job);
            return true;
        }
        if (!job->cancelled && job->status != JOB_STATUS_ABORTING) {
            if (job->internal) { /* no verb finds it */
                job_cancel_async(j, job);
            } else {
                (void)job_cancel(j, job->id, true, NULL);
            }
            return true;
        }
    }
    return false;
}

void jobs_shutdown(struct jobs *j)
{
    mutex_lock(&j->lock);
    j->p->closing = true;
    for (;;) {
        join_done_threads(j);
        if (shut_down_one(j)) {
            continue;
        }
        if (list_empty(&j->p->jobs) && list_empty(&j->p->threads)) {
            break;
        }
        cond_wait(&j->p->changed, &j->lock);
    }
    mutex_unlock(&j->lock);
}

void jobs_free(struct jobs *j)
{
    if (j) {
        cond_destroy(&j->p->changed);
        mutex_destroy(&j->lock);
        free(j->p);
        free(j);
    }
}
