/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_JOB_PRIV_H
#define NBDELTA_JOB_JOB_PRIV_H

/* What job.c (the life cycle) and verb.c (what commands do with jobs) share. */
#include "job/job.h"

struct jobs_private {
    struct graph *graph;
    job_event_fn *emit;
    void *opaque;

    /* Guarded by jobs->lock. */
    struct list jobs;    /* jobs that clients see; newest first */
    struct list threads; /* jobs whose threads are not joined yet */
    cond_t changed; /* a job is gone, finished or paused, or a thread done */
    bool closing;
};

/* --- job.c, for verb.c --- */

extern const char *const job_status_names[JOB_STATUS_MAX];

/* The job of that id, or NULL. */
struct job *job_find(struct jobs *j, const char *id) REQUIRES(j->lock);

void job_get_progress(struct job *job, uint64_t *done, uint64_t *total);

/* Add "error" to @info if the job has failed. */
void job_add_error(const struct job *job, json_t *info);

/* A job that is paused works again; its thread follows. */
void job_unpause(struct jobs *j, struct job *job) REQUIRES(j->lock);

/* Make the job fail as soon as it can.  It is at work, or waits for the other
 * jobs of its transaction. */
void job_cancel_async(struct jobs *j, struct job *job) REQUIRES(j->lock);

/* End all jobs of @txn.  job_txn_abort: without success, because of @cause.
 * job_txn_commit: with success, unless the prepare of a job fails.  The caller
 * holds a reference to @txn. */
void job_txn_abort(struct jobs *j, struct job_txn *txn, const struct job *cause)
    REQUIRES(j->lock);
void job_txn_commit(struct jobs *j, struct job_txn *txn) REQUIRES(j->lock);

/* The job, concluded or dropped, is gone.  Tell clients, and drop the list's
 * reference. */
void job_forget(struct jobs *j, struct job *job) REQUIRES(j->lock);

/* --- verb.c, for job.c --- */

/* Let the next commands wait for the job (jobs_settle). */
void job_shall_settle(struct job *job);

#endif /* NBDELTA_JOB_JOB_PRIV_H */
