/* SPDX-License-Identifier: BSD-3-Clause */
/* The life cycle of jobs, shown by jobs that do nothing until told. */
#include "../unit/job-util.h"
#include "job/job.h"
#include "nbdelta/cleanup.h"

#define CALLS_MAX 100

/* A job that works until somebody says how it ends. */
struct toy {
    struct job job;
    int ret; /* run returns it */
    int prepare_ret;
    bool *freed;
    char *calls; /* guarded by jobs->lock: "prepare commit clean" */

    mutex_t lock;
    cond_t moved;
    bool told;
    bool stopped;
    bool deaf; /* as one whose storage hangs */
};

static struct toy *toy_of(struct job *job)
{
    return list_entry(job, struct toy, job);
}

static void tell(struct toy *t, int ret)
{
    mutex_lock(&t->lock);
    t->told = true;
    t->ret = ret;
    cond_broadcast(&t->moved);
    mutex_unlock(&t->lock);
}

static int toy_run(struct job *job)
{
    struct toy *t = toy_of(job);

    mutex_lock(&t->lock);
    while (!t->told && !t->stopped) {
        cond_wait(&t->moved, &t->lock);
    }
    int r = t->told && !t->stopped ? t->ret : JOB_STOPPED;
    mutex_unlock(&t->lock);
    return r;
}

static void toy_kick(struct job *job, bool stop)
{
    struct toy *t = toy_of(job);

    mutex_lock(&t->lock);
    t->stopped = stop && !t->deaf;
    cond_broadcast(&t->moved);
    mutex_unlock(&t->lock);
}

static void note(struct job *job, const char *call)
{
    char *calls = toy_of(job)->calls;
    if (calls) {
        size_t len = strlen(calls);
        (void)snprintf(calls + len, CALLS_MAX - len, "%s", call);
    }
}

static int toy_prepare(struct job *job)
{
    note(job, "prepare ");
    return toy_of(job)->prepare_ret;
}

static void toy_commit(struct job *job)
{
    note(job, "commit ");
}

static void toy_abort(struct job *job)
{
    note(job, "abort ");
}

static void toy_clean(struct job *job)
{
    note(job, "clean ");
}

static void toy_progress(struct job *job, uint64_t *done, uint64_t *total)
{
    (void)job;
    *done = 11;
    *total = 22;
}

static void toy_free(struct job *job)
{
    struct toy *t = toy_of(job);

    if (t->freed) {
        *t->freed = true;
    }
    mutex_destroy(&t->lock);
    cond_destroy(&t->moved);
    free(t);
}

static const struct job_driver toy_driver = {
    .type = "backup",
    .run = toy_run,
    .prepare = toy_prepare,
    .commit = toy_commit,
    .abort = toy_abort,
    .clean = toy_clean,
    .kick = toy_kick,
    .progress = toy_progress,
    .free = toy_free,
};

struct world {
    struct graph *g;
    struct jobs *j;
    struct record rec;
};

static void world_begin(struct world *w)
{
    memset(w, 0, sizeof(*w));
    w->g = graph_new();
    w->j = jobs_new(w->g, record_event, &w->rec);
}

static void world_end(struct world *w)
{
    jobs_shutdown(w->j);
    jobs_free(w->j);
    graph_free(w->g);
    json_decref(w->rec.last);
}

/* In one go, as an action does. */
static int start_job(struct jobs *j, struct job *job, struct job_txn *txn)
    REQUIRES(j->lock)
{
    int r = job_enlist(j, job, txn, NULL);

    if (r == 0) {
        job_begin(j, job);
        job_go(j, job);
    }
    return r;
}

static struct toy *toy_start(struct world *w, const char *id,
                             struct job_txn *txn, bool finalize, bool dismiss)
{
    struct job_options o = {
        .id = id,
        .manual_finalize = finalize,
        .manual_dismiss = dismiss,
        .speed = 5,
    };
    struct toy *t = calloc(1, sizeof(*t));
    struct job_txn *own = txn ? NULL : job_txn_new();

    mutex_init(&t->lock, LOCK_TEST, NULL);
    cond_init(&t->moved);
    mutex_lock(&w->j->lock);
    ck_assert_int_eq(job_create(w->j, &t->job, &toy_driver, &o, NULL), 0);
    ck_assert_int_eq(start_job(w->j, &t->job, txn ? txn : own), 0);
    if (own) {
        job_txn_unref(own);
    }
    mutex_unlock(&w->j->lock);
    return t;
}

/* A verb by its function; what it says is compared with @text. */
typedef int verb_fn(struct jobs *j, const char *id, struct error **errp);

static int cancel(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock)
{
    return job_cancel(j, id, true, errp);
}

static int soft_cancel(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock)
{
    return job_cancel(j, id, false, errp);
}

static int set_speed(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock)
{
    return job_set_speed(j, id, 1000, errp);
}

static void ck_verb(struct world *w, verb_fn *fn, const char *id, int expected,
                    const char *text)
{
    struct error *err = NULL;

    mutex_lock(&w->j->lock);
    int r = fn(w->j, id, &err);
    mutex_unlock(&w->j->lock);
    ck_assert_msg(r == expected, "%s: %d, %s", id, r, error_message(err));
    if (text) {
        ck_assert_str_eq(error_message(err), text);
    }
    error_free(err);
}

static void ck_refused(struct world *w, verb_fn *fn, const char *id,
                       const char *state, const char *verb)
{
    char text[200];

    (void)snprintf(text, sizeof(text),
                   "Job '%s' in state '%s' cannot accept command verb '%s'", id,
                   state, verb);
    ck_verb(w, fn, id, -EPERM, text);
}

START_TEST(a_good_job)
{
    struct world w;
    char calls[CALLS_MAX] = "";
    bool freed = false;

    world_begin(&w);
    struct toy *t = toy_start(&w, "j", NULL, false, false);
    ck_assert_str_eq(w.rec.text, "j:created j:running j:paused j:running");
    t->calls = calls;
    t->freed = &freed;
    tell(t, 0);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text,
                     "j:created j:running j:paused j:running j:waiting "
                     "j:pending j:BLOCK_JOB_COMPLETED j:concluded j:null");
    ck_assert_str_eq(calls, "prepare commit clean ");
    char *data = json_dumps(w.rec.last, JSON_COMPACT);
    ck_assert_str_eq(data, "{\"device\":\"j\",\"len\":22,\"offset\":11,"
                           "\"speed\":5,\"type\":\"backup\"}");
    free(data);
    world_end(&w);
    ck_assert(freed);
}
END_TEST

START_TEST(a_job_that_fails)
{
    struct world w;
    char calls[CALLS_MAX] = "";

    world_begin(&w);
    struct toy *t = toy_start(&w, "j", NULL, false, false);
    w.rec.text[0] = '\0';
    t->calls = calls;
    tell(t, -EIO);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text, "j:aborting j:BLOCK_JOB_COMPLETED "
                                 "j:concluded j:null");
    ck_assert_str_eq(calls, "abort clean ");
    char *data = json_dumps(w.rec.last, JSON_COMPACT);
    ck_assert_str_eq(data, "{\"device\":\"j\",\"len\":22,\"offset\":11,"
                           "\"speed\":5,\"type\":\"backup\","
                           "\"error\":\"Input/output error\"}");
    free(data);
    world_end(&w);
}
END_TEST

START_TEST(a_job_that_is_cancelled)
{
    struct world w;

    world_begin(&w);
    (void)toy_start(&w, "j", NULL, false, false);
    w.rec.text[0] = '\0';
    ck_verb(&w, soft_cancel, "j", 0, NULL);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text, "j:aborting j:BLOCK_JOB_CANCELLED "
                                 "j:concluded j:null");
    ck_assert_ptr_null(json_object_get(w.rec.last, "error"));
    ck_verb(&w, cancel, "j", -ENOENT, "Block job 'j' not found");
    world_end(&w);
}
END_TEST

START_TEST(finalize_and_dismiss_by_hand)
{
    struct world w;

    world_begin(&w);
    struct toy *t = toy_start(&w, "j", NULL, true, true);
    ck_refused(&w, job_finalize, "j", "running", "finalize");
    ck_refused(&w, job_dismiss, "j", "running", "dismiss");
    w.rec.text[0] = '\0';
    tell(t, 0);
    wait_for_event(w.j, &w.rec, "BLOCK_JOB_PENDING");
    ck_assert_str_eq(w.rec.text, "j:waiting j:pending j:BLOCK_JOB_PENDING");
    ck_assert_str_eq(last_str(&w.rec, "type"), "backup");
    ck_assert_str_eq(last_str(&w.rec, "id"), "j");
    ck_refused(&w, job_pause, "j", "pending", "pause");
    ck_refused(&w, job_resume, "j", "pending", "resume");
    ck_refused(&w, set_speed, "j", "pending", "set-speed");
    ck_refused(&w, job_dismiss, "j", "pending", "dismiss");
    w.rec.text[0] = '\0';
    ck_verb(&w, job_finalize, "j", 0, NULL);
    ck_assert_str_eq(w.rec.text, "j:BLOCK_JOB_COMPLETED j:concluded");
    ck_refused(&w, cancel, "j", "concluded", "cancel");
    ck_refused(&w, job_finalize, "j", "concluded", "finalize");
    ck_verb(&w, job_dismiss, "j", 0, NULL);
    ck_assert_str_eq(w.rec.text, "j:BLOCK_JOB_COMPLETED j:concluded j:null");
    world_end(&w);
}
END_TEST

START_TEST(a_pending_job_can_be_cancelled)
{
    struct world w;

    world_begin(&w);
    struct toy *t = toy_start(&w, "j", NULL, true, false);
    tell(t, 0);
    wait_for_event(w.j, &w.rec, "BLOCK_JOB_PENDING");
    w.rec.text[0] = '\0';
    ck_verb(&w, cancel, "j", 0, NULL);
    ck_assert_str_eq(w.rec.text, "j:aborting j:BLOCK_JOB_CANCELLED "
                                 "j:concluded j:null");
    world_end(&w);
}
END_TEST

START_TEST(pause_and_resume)
{
    struct world w;

    world_begin(&w);
    struct toy *t = toy_start(&w, "j", NULL, false, false);
    ck_verb(&w, job_resume, "j", -EPERM,
            "Can't resume a job that was not paused");
    w.rec.text[0] = '\0';
    ck_verb(&w, job_pause, "j", 0, NULL);
    ck_verb(&w, job_pause, "j", -EPERM, "Job is already paused");
    wait_for_event(w.j, &w.rec, "paused");
    ck_verb(&w, soft_cancel, "j", -EPERM,
            "The block job for device 'j' is currently paused");
    tell(t, 0);
    ck_verb(&w, job_resume, "j", 0, NULL);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text, "j:paused j:running j:waiting j:pending "
                                 "j:BLOCK_JOB_COMPLETED j:concluded j:null");
    world_end(&w);
}
END_TEST

START_TEST(a_paused_job_can_be_cancelled_by_force)
{
    struct world w;

    world_begin(&w);
    (void)toy_start(&w, "j", NULL, false, false);
    w.rec.text[0] = '\0';
    ck_verb(&w, job_pause, "j", 0, NULL);
    wait_for_event(w.j, &w.rec, "paused");
    ck_verb(&w, cancel, "j", 0, NULL);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text,
                     "j:paused j:running j:aborting j:BLOCK_JOB_CANCELLED "
                     "j:concluded j:null");
    world_end(&w);
}
END_TEST

/* Two jobs in one transaction, d0 and then d1. */
static void pair(struct world *w, struct toy **d0, struct toy **d1)
{
    world_begin(w);
    struct job_txn *txn = job_txn_new();
    *d0 = toy_start(w, "d0", txn, false, false);
    *d1 = toy_start(w, "d1", txn, false, false);
    mutex_lock(&w->j->lock);
    job_txn_unref(txn);
    w->rec.text[0] = '\0';
    mutex_unlock(&w->j->lock);
}

START_TEST(a_transaction_commits_when_all_are_there)
{
    struct toy *d0;
    struct toy *d1;
    struct world w;

    pair(&w, &d0, &d1);
    tell(d0, 0);
    wait_for_event(w.j, &w.rec, "d0:waiting");
    tell(d1, 0);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text, "d0:waiting d1:waiting d1:pending d0:pending "
                                 "d1:BLOCK_JOB_COMPLETED d1:concluded d1:null "
                                 "d0:BLOCK_JOB_COMPLETED d0:concluded d0:null");
    world_end(&w);
}
END_TEST

START_TEST(a_failure_takes_back_the_transaction)
{
    struct toy *d0;
    struct toy *d1;
    struct world w;
    char calls[CALLS_MAX] = "";

    pair(&w, &d0, &d1);
    d0->calls = calls;
    tell(d0, 0);
    wait_for_event(w.j, &w.rec, "d0:waiting");
    tell(d1, -EIO);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text,
                     "d0:waiting d1:aborting d1:BLOCK_JOB_COMPLETED "
                     "d1:concluded d1:null d0:aborting "
                     "d0:BLOCK_JOB_CANCELLED d0:concluded d0:null");
    ck_assert_str_eq(calls, "abort clean ");
    world_end(&w);
}
END_TEST

START_TEST(a_failure_ends_those_that_are_still_at_work)
{
    struct toy *d0;
    struct toy *d1;
    struct world w;

    pair(&w, &d0, &d1);
    tell(d0, -ENOSPC);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text,
                     "d0:aborting d1:aborting d1:BLOCK_JOB_CANCELLED "
                     "d1:concluded d1:null d0:BLOCK_JOB_COMPLETED "
                     "d0:concluded d0:null");
    ck_assert_str_eq(last_str(&w.rec, "error"), "No space left on device");
    world_end(&w);
}
END_TEST

START_TEST(a_failing_prepare_takes_back_the_transaction)
{
    struct toy *d0;
    struct toy *d1;
    struct world w;
    char calls[CALLS_MAX] = "";

    pair(&w, &d0, &d1);
    d0->prepare_ret = -EIO;
    d1->calls = calls;
    tell(d1, 0);
    tell(d0, 0);
    wait_for_jobs(w.j);
    ck_assert_str_eq(calls, "prepare abort clean ");
    ck_assert_ptr_nonnull(
        strstr(w.rec.text, "d0:aborting d1:aborting d1:BLOCK_JOB_CANCELLED"));
    world_end(&w);
}
END_TEST

START_TEST(ids_are_checked)
{
    static const struct {
        const char *id;
        int r;
        const char *text;
    } cases[] = {
        {"j", -EEXIST, "Job ID 'j' already in use"},
        {"", -EINVAL, "Invalid job ID ''"},
        {"#block1", -EINVAL, "Invalid job ID '#block1'"},
        {"a b", -EINVAL, "Invalid job ID 'a b'"},
        {"k-1._", 0, NULL},
    };
    struct world w;

    world_begin(&w);
    (void)toy_start(&w, "j", NULL, false, false);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct error *err = NULL;
        mutex_lock(&w.j->lock);
        int r = job_check_id(w.j, cases[i].id, &err);
        mutex_unlock(&w.j->lock);
        ck_assert_int_eq(r, cases[i].r);
        if (cases[i].text) {
            ck_assert_str_eq(error_message(err), cases[i].text);
        }
        error_free(err);
    }
    world_end(&w);
}
END_TEST

START_TEST(queries_list_the_newest_first)
{
    struct world w;

    world_begin(&w);
    (void)toy_start(&w, "a", NULL, true, false);
    (void)toy_start(&w, "b", NULL, false, true);
    mutex_lock(&w.j->lock);
    json_t *jobs = jobs_query(w.j);
    json_t *block = jobs_query_block(w.j);
    mutex_unlock(&w.j->lock);
    json_t *expected =
        json_pack("[{s:s,s:s,s:s,s:i,s:i},{s:s,s:s,s:s,s:i,s:i}]", "id", "b",
                  "type", "backup", "status", "running", "current-progress", 11,
                  "total-progress", 22, "id", "a", "type", "backup", "status",
                  "running", "current-progress", 11, "total-progress", 22);
    ck_assert(json_equal(jobs, expected));
    json_decref(expected);
    expected = json_pack("{s:s,s:s,s:i,s:i,s:b,s:b,s:i,s:s,s:b,s:s,s:b,s:b}",
                         "type", "backup", "device", "a", "len", 22, "offset",
                         11, "busy", 1, "paused", 0, "speed", 5, "io-status",
                         "ok", "ready", 0, "status", "running", "auto-finalize",
                         0, "auto-dismiss", 1);
    ck_assert(json_equal(json_array_get(block, 1), expected));
    json_decref(expected);
    json_decref(jobs);
    json_decref(block);
    world_end(&w);
}
END_TEST

static void *tell_later(void *opaque)
{
    struct timespec ts = {0, 50000000};

    (void)nanosleep(&ts, NULL);
    trap_gate(opaque, false);
    return NULL;
}

static json_t *status_of_the_only_job(struct jobs *j)
{
    CLEANUP_JSON json_t *list = jobs_query(j);
    const json_t *first = json_array_get(list, 0);

    return first ? json_incref(json_object_get(first, "status")) : NULL;
}

/* What a job's thread does at the next command, after what the last one asked
 * for: held up at a gate, and then not. */
START_TEST(the_next_command_sees_what_the_last_one_asked_for)
{
    enum { CANCEL, FORCE, PAUSE, MAX };

    for (int verb = 0; verb < MAX; verb++) {
        struct graph *g = graph_new();
        struct record rec = {.last = NULL};
        struct jobs *j = jobs_new(g, record_event, &rec);
        struct node *src = disk_new(g, "src", 64 * KiB);
        struct node *dst = disk_new(g, "dst", 64 * KiB);
        struct backup_options o = {.source = src, .target = dst, .device = "b"};
        pthread_t t;

        disk_fill(src, 64 * KiB);
        trap_gate(trap_of(src), true);
        mutex_lock(&j->lock);
        ck_assert_int_eq(start_backup(j, &o, NULL), 0);
        mutex_unlock(&j->lock);
        trap_wait(trap_of(src), 1);
        ck_assert_int_eq(thread_start(&t, "later", tell_later, trap_of(src)),
                         0);
        mutex_lock(&j->lock);
        ck_assert_int_eq(verb == PAUSE
                             ? job_pause(j, "b", NULL)
                             : job_cancel(j, "b", verb == FORCE, NULL),
                         0);
        jobs_settle(j);
        json_t *status = status_of_the_only_job(j);
        if (verb == PAUSE) {
            ck_assert_str_eq(json_string_value(status), "paused");
        } else {
            ck_assert_ptr_null(status);
            ck_assert_int_eq(graph_close(g, dst, NULL), 0);
        }
        mutex_unlock(&j->lock);
        json_decref(status);
        thread_join(t);
        jobs_shutdown(j);
        jobs_free(j);
        graph_free(g);
        json_decref(rec.last);
    }
}
END_TEST

START_TEST(a_job_that_hangs_is_waited_for_once)
{
    struct world w;
    uint64_t start;

    world_begin(&w);
    struct toy *t = toy_start(&w, "a", NULL, false, false);
    mutex_lock(&t->lock);
    t->deaf = true;
    mutex_unlock(&t->lock);
    mutex_lock(&w.j->lock);
    ck_assert_int_eq(job_cancel(w.j, "a", true, NULL), 0);
    start = now_ns();
    jobs_settle(w.j);
    ck_assert_uint_lt(now_ns() - start, UINT64_C(60000000000));
    start = now_ns();
    jobs_settle(w.j);
    ck_assert_uint_lt(now_ns() - start, UINT64_C(1000000000));
    mutex_unlock(&w.j->lock);
    tell(t, 0);
    world_end(&w);
}
END_TEST

START_TEST(shutdown_ends_jobs_in_any_state)
{
    struct world w;

    world_begin(&w);
    (void)toy_start(&w, "running", NULL, false, false);
    (void)toy_start(&w, "paused", NULL, false, false);
    ck_verb(&w, job_pause, "paused", 0, NULL);
    wait_for_event(w.j, &w.rec, "paused:paused");
    tell(toy_start(&w, "pending", NULL, true, true), 0);
    wait_for_event(w.j, &w.rec, "BLOCK_JOB_PENDING");
    tell(toy_start(&w, "concluded", NULL, false, true), 0);
    wait_for_event(w.j, &w.rec, "concluded:concluded");
    jobs_shutdown(w.j);
    mutex_lock(&w.j->lock);
    json_t *list = jobs_query(w.j);
    ck_assert_uint_eq(json_array_size(list), 0);
    json_decref(list);
    ck_assert_int_eq(job_check_id(w.j, "late", NULL), -ESHUTDOWN);
    mutex_unlock(&w.j->lock);
    ck_assert_ptr_nonnull(strstr(w.rec.text, "pending:BLOCK_JOB_CANCELLED"));
    world_end(&w);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_good_job,
        a_job_that_fails,
        a_job_that_is_cancelled,
        finalize_and_dismiss_by_hand,
        a_pending_job_can_be_cancelled,
        pause_and_resume,
        a_paused_job_can_be_cancelled_by_force,
        a_transaction_commits_when_all_are_there,
        a_failure_takes_back_the_transaction,
        a_failure_ends_those_that_are_still_at_work,
        a_failing_prepare_takes_back_the_transaction,
        ids_are_checked,
        queries_list_the_newest_first,
        the_next_command_sees_what_the_last_one_asked_for,
        a_job_that_hangs_is_waited_for_once,
        shutdown_ends_jobs_in_any_state,
    };
    return run_suite("job", tests, ARRAY_SIZE(tests));
}
