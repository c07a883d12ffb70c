/* SPDX-License-Identifier: BSD-3-Clause */
/* Following jobs of a daemon to their end: see qmp-wait.h. */
#include "cli/qmp-wait.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/progress.h"
#include "client/qmp-client.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define PROGRESS_MS 500

struct followed {
    char *id;
    bool own;
    bool ended;
    bool halted;       /* it is ready, or pending */
    json_t *event;     /* the last that tells how far it has come, or NULL */
    json_t *info;      /* of query-jobs, the last, or NULL */
    const char *where; /* what failed, in words, or NULL */
};

struct waiter {
    struct qmp_client *qmp;
    enum wait_until until;
    struct followed *jobs;
    unsigned count;
    bool quiet;
    bool detach;    /* a signal leaves own jobs as they are */
    bool stopping;  /* a signal has come: own jobs are to be cancelled, or,
                       with detach, left */
    bool cancelled; /* they have been asked to */
    _Atomic unsigned permille; /* how much is done; for the progress thread */
};

struct waiter *waiter_new(struct qmp_client *c)
{
    struct waiter *w = calloc(1, sizeof(*w));

    if (w) {
        w->qmp = c;
    }
    return w;
}

void waiter_detach(struct waiter *w)
{
    w->detach = true;
}

void waiter_hush(struct waiter *w)
{
    w->quiet = true;
}

void waiter_free(struct waiter *w)
{
    for (unsigned i = 0; w && i < w->count; i++) {
        free(w->jobs[i].id);
        json_decref(w->jobs[i].event);
        json_decref(w->jobs[i].info);
    }
    if (w) {
        free(w->jobs);
        free(w);
    }
}

/* --- Signals. --- */

/* False: it is the second signal, or there is nothing to be undone. */
static bool note_signal(struct waiter *w, bool own)
{
    if (w->stopping || !own) {
        return false;
    }
    w->stopping = true;
    if (!w->detach) {
        (void)cli_failed("qmp",
                         "interrupted (%s): what the command has started is "
                         "cancelled; a second signal leaves it as it is",
                         strsignal(w->qmp->signo));
    }
    return true;
}

int waiter_run(struct waiter *w, const char *command, json_t *args, bool starts,
               json_t **reply, struct error **errp)
{
    int r = qmp_client_send(w->qmp, command, args, errp);

    while (r == 0) {
        r = qmp_client_reply(w->qmp, reply, errp);
        if (r != -EINTR || !note_signal(w, starts)) {
            break;
        }
        r = 0;
    }
    return r;
}

/* --- Which jobs. --- */

static bool same(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0;
}

static const char *member(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static const char *event_member(const json_t *event, const char *key)
{
    return member(json_object_get(event, "data"), key);
}

static bool event_is(const json_t *event, const char *name)
{
    return same(member(event, "event"), name);
}

static struct followed *find_followed(struct waiter *w, const char *id)
{
    for (unsigned i = 0; i < w->count; i++) {
        if (same(w->jobs[i].id, id)) {
            return &w->jobs[i];
        }
    }
    return NULL;
}

static int follow_job(struct waiter *w, const char *id, bool own)
{
    struct followed *jobs;

    if (find_followed(w, id)) {
        return 0;
    }
    jobs = reallocarray(w->jobs, w->count + 1, sizeof(*jobs));
    if (!jobs) {
        return -ENOMEM;
    }
    w->jobs = jobs;
    jobs[w->count] = (struct followed){.id = strdup(id), .own = own};
    if (!jobs[w->count].id) {
        return -ENOMEM;
    }
    w->count++;
    return 0;
}

int waiter_add(struct waiter *w, const char *id)
{
    return follow_job(w, id, false);
}

/* The id that a job with these arguments has. */
static const char *job_id(const json_t *args)
{
    const char *id = member(args, "job-id");

    return id ? id : member(args, "device");
}

static bool was_created(const struct waiter *w, const char *id)
{
    size_t i;
    json_t *event;

    json_array_foreach (w->qmp->events, i, event) {
        if (event_is(event, "JOB_STATUS_CHANGE") &&
            same(event_member(event, "status"), "created") &&
            same(event_member(event, "id"), id)) {
            return true;
        }
    }
    return false;
}

/* Other clients start jobs, too: a job is ours if it has our arguments. */
static void add_created(struct waiter *w, const json_t *args)
{
    const char *id = job_id(args);

    if (id && was_created(w, id)) {
        (void)follow_job(w, id, true);
    }
}

/* Follow the job that the arguments name; nobody has created it just now. */
static void add_named(struct waiter *w, const json_t *args)
{
    const char *id = member(args, "id");

    id = id ? id : job_id(args);
    if (id) {
        (void)follow_job(w, id, false);
    }
}

unsigned waiter_add_own(struct waiter *w, json_t *args)
{
    json_t *actions = json_object_get(args, "actions");
    size_t i;
    json_t *action;

    add_created(w, args);
    json_array_foreach (actions, i, action) {
        add_created(w, json_object_get(action, "data"));
    }
    if (w->count == 0) {
        add_named(w, args);
    }
    return w->count;
}

/* --- How far they are. --- */

static void set_event(struct followed *f, json_t *event)
{
    json_decref(f->event);
    f->event = json_incref(event);
}

static void note_error(struct followed *f, const json_t *event)
{
    bool is_read = same(event_member(event, "operation"), "read");

    f->where = is_read ? " (while reading from the source)"
                       : " (while writing to the target)";
    if (same(event_member(event, "action"), "stop")) {
        (void)cli_failed("qmp",
                         "job '%s' has stopped%s and waits for job-resume",
                         f->id, f->where);
    }
}

static void note_event(struct waiter *w, json_t *event)
{
    const char *id = event_member(event, "id");
    struct followed *f = find_followed(w,
                                       id ? id : event_member(event, "device"));

    if (!f) {
        return;
    }
    if (event_is(event, "JOB_STATUS_CHANGE")) {
        const char *status = event_member(event, "status");

        f->ended |= same(status, "concluded") || same(status, "null");
        f->halted = f->halted && !same(status, "aborting");
    } else if (event_is(event, "BLOCK_JOB_ERROR")) {
        note_error(f, event);
    } else if (event_is(event, "BLOCK_JOB_READY") ||
               event_is(event, "BLOCK_JOB_PENDING")) {
        f->halted = true;
        set_event(f, event);
    } else if (event_is(event, "BLOCK_JOB_COMPLETED") ||
               event_is(event, "BLOCK_JOB_CANCELLED")) {
        set_event(f, event);
    }
}

static void follow_kept(struct waiter *w)
{
    size_t i;
    json_t *event;

    json_array_foreach (w->qmp->events, i, event) {
        note_event(w, event);
    }
    (void)json_array_clear(w->qmp->events);
}

/* Has the job come as far as we wait for?  A job that was asked to end has to
 * end. */
static bool is_done(const struct waiter *w, const struct followed *f)
{
    bool cancelling = w->cancelled && f->own;

    return f->ended || (f->halted && w->until == WAIT_READY && !cancelling);
}

static bool all_have_come(const struct waiter *w)
{
    for (unsigned i = 0; i < w->count; i++) {
        if (!is_done(w, &w->jobs[i])) {
            return false;
        }
    }
    return true;
}

static bool any_own(const struct waiter *w)
{
    for (unsigned i = 0; i < w->count; i++) {
        if (w->jobs[i].own && !w->jobs[i].ended) {
            return true;
        }
    }
    return false;
}

static void note_info(struct followed *f, json_t *info)
{
    const char *status = member(info, "status");

    json_decref(f->info);
    f->info = json_incref(info);
    f->ended |= same(status, "concluded");
    f->halted |= same(status, "ready") || same(status, "standby") ||
                 same(status, "pending");
}

static json_t *find_info(const json_t *jobs, const char *id)
{
    size_t i;
    json_t *job;

    json_array_foreach (jobs, i, job) {
        if (same(member(job, "id"), id)) {
            return job;
        }
    }
    return NULL;
}

/* Ask how far the jobs are. */
static int poll_jobs(struct waiter *w, struct error **errp)
{
    CLEANUP_JSON json_t *reply = NULL;
    double done = 0;
    double total = 0;
    int r = waiter_run(w, "query-jobs", NULL, any_own(w), &reply, errp);

    if (r < 0) {
        return r;
    }
    follow_kept(w);
    for (unsigned i = 0; i < w->count; i++) {
        struct followed *f = &w->jobs[i];
        json_t *info = find_info(json_object_get(reply, "return"), f->id);

        if (info) {
            note_info(f, info);
            done +=
                json_number_value(json_object_get(info, "current-progress"));
            total += json_number_value(json_object_get(info, "total-progress"));
        } else if (!f->ended) {
            return error_set(errp, ENOENT, "there is no job '%s'", f->id);
        }
    }
    if (total > 0) {
        atomic_store(&w->permille, (unsigned)(done * 1000 / total));
    }
    return 0;
}

/* --- Waiting. --- */

static double how_far(void *opaque)
{
    struct waiter *w = opaque;

    return atomic_load(&w->permille) / 1000.0;
}

/* A job that cannot be cancelled has ended, or is about to. */
static int cancel_own(struct waiter *w, struct error **errp)
{
    int r = 0;

    w->cancelled = true;
    for (unsigned i = 0; r == 0 && i < w->count; i++) {
        CLEANUP_JSON json_t *reply = NULL;
        CLEANUP_JSON json_t *args = json_pack("{s:s}", "id", w->jobs[i].id);

        if (w->jobs[i].own && !w->jobs[i].ended) {
            r = waiter_run(w, "job-cancel", args, true, &reply, errp);
            follow_kept(w);
        }
    }
    return r;
}

static int follow_all(struct waiter *w, bool show, struct error **errp)
{
    int r = 0;

    while (r >= 0) {
        json_t *event = NULL;

        if (w->stopping && !w->detach && !w->cancelled &&
            (r = cancel_own(w, errp)) < 0) {
            break;
        }
        if (all_have_come(w)) {
            break;
        }
        if (w->stopping && w->detach) {
            return -EINTR;
        }
        r = qmp_client_receive(w->qmp, show ? PROGRESS_MS : -1, &event, errp);
        if (r > 0) {
            note_event(w, event);
            json_decref(event);
        } else if (r == 0) {
            r = poll_jobs(w, errp);
        } else if (r == -EINTR && note_signal(w, any_own(w))) {
            r = 0;
        }
    }
    return r < 0 ? r : 0;
}

/* Only block jobs have events; query-jobs knows how other jobs ended. */
static bool all_have_events(const struct waiter *w)
{
    for (unsigned i = 0; i < w->count; i++) {
        if (!w->jobs[i].event) {
            return false;
        }
    }
    return true;
}

static int come_as_far(struct waiter *w, struct error **errp)
{
    struct progress *p;
    int r;

    follow_kept(w);
    /* The jobs must be there now, or have ended in events that we have seen. */
    r = all_have_come(w) ? 0 : poll_jobs(w, errp);
    if (r < 0) {
        return r;
    }
    p = w->quiet ? NULL : progress_start(w->jobs[0].id, how_far, w);
    r = follow_all(w, p != NULL, errp);
    progress_stop(p);
    return r < 0 || all_have_events(w) ? r : poll_jobs(w, errp);
}

/* --- Telling. --- */

/* Print how a job ended.  The last event tells it or, for jobs without events,
 * query-jobs. */
static int report_end(const struct waiter *w, const struct followed *f)
{
    const json_t *last = f->event ? f->event : f->info;
    const char *why = f->event ? event_member(f->event, "error")
                               : member(f->info, "error");

    if (!last) {
        return cli_failed("qmp", "job '%s' ended without a result", f->id);
    }
    if (!w->quiet) {
        cli_print_json(last);
    }
    if (f->event && event_is(f->event, "BLOCK_JOB_CANCELLED")) {
        (void)cli_failed("qmp", "job '%s': cancelled", f->id);
        return w->cancelled ? CLI_INTERRUPTED : EXIT_FAILURE;
    }
    if (!f->ended && f->event && !w->quiet) {
        (void)cli_failed("qmp", "job '%s' is %s and goes on", f->id,
                         event_is(f->event, "BLOCK_JOB_READY") ? "ready"
                                                               : "pending");
    }
    return why ? cli_failed("qmp", "job '%s': %s%s", f->id, why,
                            f->where ? f->where : "")
               : EXIT_SUCCESS;
}

/* The failure of one job counts more than the cancelling of others. */
static int report_all(const struct waiter *w)
{
    int status = EXIT_SUCCESS;

    for (unsigned i = 0; i < w->count; i++) {
        int one = report_end(w, &w->jobs[i]);

        status = one == EXIT_SUCCESS || status == EXIT_FAILURE ? status : one;
    }
    return status;
}

static int leave_unknown(const struct waiter *w, int r, const struct error *err)
{
    (void)cli_failed("qmp", "%s",
                     r == -EINTR ? "interrupted" : error_message(err));
    for (unsigned i = 0; i < w->count; i++) {
        if (w->jobs[i].ended) {
            (void)report_end(w, &w->jobs[i]);
        } else {
            (void)cli_failed("qmp", "job '%s' %s", w->jobs[i].id,
                             r == -EINTR ? "goes on"
                                         : "may go on: its end is not known");
        }
    }
    return CLI_UNKNOWN;
}

int waiter_wait(struct waiter *w, enum wait_until until)
{
    CLEANUP_ERROR struct error *err = NULL;

    w->until = until;
    int r = come_as_far(w, &err);
    if (r == -EINTR || r == -ECONNRESET) {
        return leave_unknown(w, r, err);
    }
    return r < 0 ? cli_error("qmp", err) : report_all(w);
}
