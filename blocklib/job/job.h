/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_JOB_H
#define NBDELTA_JOB_JOB_H

/*
 * Writing a kind of job
 * =====================
 *
 * A job is a struct of its own that begins with a struct job, a thread that
 * does the work, and a membership in a transaction: a group of jobs of which
 * all succeed or none does.
 *
 *   job_create      the struct; no client sees the job
 *   job_enlist      the job has a thread, an id and a status
 *   job_begin, job_go: it works
 *     run, exit     in its thread, without the lock
 *   (waiting)       until all jobs of the transaction are there
 *     prepare       may still fail
 *     commit | abort, clean
 *   (concluded, null) then, once the thread is gone, too: free
 */
#include "nbdelta/job.h"
#include "nbdelta/list.h"

enum job_status {
    JOB_STATUS_UNDEFINED,
    JOB_STATUS_CREATED,
    JOB_STATUS_RUNNING,
    JOB_STATUS_PAUSED,
    JOB_STATUS_READY,
    JOB_STATUS_STANDBY,
    JOB_STATUS_WAITING,
    JOB_STATUS_PENDING,
    JOB_STATUS_ABORTING,
    JOB_STATUS_CONCLUDED,
    JOB_STATUS_NULL,
    JOB_STATUS_MAX,
};

enum job_verb {
    JOB_VERB_CANCEL,
    JOB_VERB_PAUSE,
    JOB_VERB_RESUME,
    JOB_VERB_SET_SPEED,
    JOB_VERB_COMPLETE,
    JOB_VERB_FINALIZE,
    JOB_VERB_DISMISS,
    JOB_VERB_CHANGE,
};

/* Returned by run when kick or job_retries has stopped it.  run is called again
 * unless the job is cancelled. */
#define JOB_STOPPED 1

struct job {
    /* Set by job_create. */
    const struct job_driver *drv;
    struct jobs *jobs;
    char *id;
    bool manual_finalize;
    bool manual_dismiss;
    bool internal; /* a command waits for it (job_wait): clients see nothing of
                      it, and its id is for the log only */
    pthread_t thread;

    /* Guarded by jobs->lock. */
    enum job_status status;
    struct list in_jobs;    /* newest first */
    struct list in_txn;     /* newest first */
    struct list in_threads; /* until it is joined */
    struct job_txn *txn;
    unsigned refs; /* the registry's, the thread's */
    unsigned pause_count;
    bool user_paused;
    bool paused;    /* the thread has stopped for a pause */
    bool cancelled; /* by force: it shall fail */
    bool retrying;  /* an error was ignored: run waits a little */
    bool is_ready;
    bool ending; /* completed, or cancelled without force: it ends by itself */
    uint64_t begun_ns;  /* 0: not yet */
    uint64_t settle_ns; /* commands wait until then for the end or pause that a
                           command has asked for (jobs_settle); 0: none has */
    bool finished;      /* run and exit are done; ret is final, except for
                           a cancel or a failing prepare */
    bool sampled;       /* done and total are final */
    bool thread_done;
    int ret;
    struct error *error; /* the error of run with its own text, or NULL */
    uint64_t speed;
    uint64_t done;
    uint64_t total;
    const char *io_status;
    cond_t wake;
};

/* Members may be NULL, except type, run and free. */
struct job_driver {
    const char *type; /* "backup" */
    bool general;     /* no block job: the older verbs, queries and events do
                         not know it */

    /* Do the work, without the lock: 0, -errno or JOB_STOPPED. */
    int (*run)(struct job *job);

    /* The last step of the thread, without the lock; it is always called.  @r
     * is what run returned, or -ECANCELED.  Returns the job's result. */
    int (*exit)(struct job *job, int r);

    /* Called under the lock when all jobs of the transaction have come so far:
     * prepare for all jobs, then commit for all; or abort for all, prepared or
     * not.  clean comes after either. */
    int (*prepare)(struct job *job);
    void (*commit)(struct job *job);
    void (*abort)(struct job *job);
    void (*clean)(struct job *job);

    /* Under the lock, must not wait.  While @stop, run shall return soon. */
    void (*kick)(struct job *job, bool stop);
    /* Under the lock, after kick, when the job is cancelled by force: end the
     * requests of run that wait for what may never come (a connection). */
    void (*give_up)(struct job *job);
    void (*set_speed)(struct job *job, uint64_t speed);

    /* Under the lock, must not wait.  complete: the verb, when ready.
     * cancel, without force: false when a cancel is no failure to this job but
     * a way to end; the job then ends by itself. */
    int (*complete)(struct job *job, struct error **errp);
    bool (*cancel)(struct job *job);

    /* Under the lock: block-job-change.  NULL: there is nothing to change. */
    int (*change)(struct job *job, bool write_blocking, struct error **errp);
    /* Add what only this type has to @info, a BlockJobInfo. */
    void (*describe)(struct job *job, json_t *info);

    /* Does the job work on @n?  Under the lock; NULL: it uses no node. */
    bool (*uses)(struct job *job, const struct node *n);

    void (*progress)(struct job *job, uint64_t *done, uint64_t *total);

    void (*free)(struct job *job);
};

struct job_options {
    const char *id;
    bool manual_finalize;
    bool manual_dismiss;
    bool internal; /* the id may be any text, and need not be unique */
    uint64_t speed;
};

/* --- job.c --- */

/* -EINVAL: the id is ill-formed; -EEXIST: it is taken; -ESHUTDOWN. */
int job_check_id(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock);

/* Fill in @job, zeroed memory.  -ENOMEM, or what job_check_id says.  An
 * internal job ends by itself, or with the process. */
int job_create(struct jobs *j, struct job *job, const struct job_driver *drv,
               const struct job_options *o, struct error **errp)
    REQUIRES(j->lock);

/*
 * Add the job to @txn, start its thread, and tell clients that it is created.
 * The thread waits for the lock before it does anything, so that job_drop, in
 * the same hold of the lock, undoes this: clients see the job gone.
 * When job_enlist fails, the caller undoes its own part and calls job_unref.
 */
int job_enlist(struct jobs *j, struct job *job, struct job_txn *txn,
               struct error **errp) REQUIRES(j->lock);
void job_drop(struct jobs *j, struct job *job) REQUIRES(j->lock);

/* job_begin: the job begins in a drained section, running and then paused.
 * job_go: it is running, once all jobs that begin together have begun.  A job
 * that does not begin in a drained section needs job_go only. */
void job_begin(struct jobs *j, struct job *job) REQUIRES(j->lock);
void job_go(struct jobs *j, struct job *job) REQUIRES(j->lock);

void job_unref(struct jobs *j, struct job *job) REQUIRES(j->lock);

/* Wait until the job, one that dismisses itself, is gone.  Returns its result;
 * @errp has its text.  The caller has a reference.  Gives up the lock
 * meanwhile. */
int job_wait(struct jobs *j, struct job *job, struct error **errp)
    REQUIRES(j->lock);

/*
 * After an I/O error -@r of run: emit BLOCK_JOB_ERROR and decide by @on_error
 * what run shall do.  False: fail.  True: return JOB_STOPPED; then the job
 * pauses, or goes on, with run called again.
 */
bool job_retries(struct jobs *j, struct job *job, enum job_on_error on_error,
                 bool is_read, int r) REQUIRES(j->lock);

/* The job can be completed from now on: status ready, and BLOCK_JOB_READY. */
void job_ready(struct jobs *j, struct job *job) REQUIRES(j->lock);

struct graph *jobs_graph(struct jobs *j);

#endif /* NBDELTA_JOB_JOB_H */
