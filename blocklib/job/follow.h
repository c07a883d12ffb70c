/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_FOLLOW_H
#define NBDELTA_JOB_FOLLOW_H

/*
 * Following a disk that goes on changing
 * ======================================
 *
 * What a commit of the active layer and a mirror have in common: the copy's set
 * is filled again and again with what guests have written since, until there is
 * little of it (the job is ready) and a verb ends the job.
 *
 *      set (copy) -> empty?  take the bits -> set -> ...
 *                             |
 *                 little of it: ready, then look now and then
 *
 * Bits are taken in a drained section, while no request is in flight.  So the
 * data under a bit that is taken can be read, and a later write sets a new bit.
 * The last ones are taken and copied in the drained section in which the job
 * ends (follow_last).
 */
#include "copy/copy.h"
#include "core/dirty.h"
#include "job/job.h"
#include "nbdelta/thread.h"

struct follow {
    /* Set before the start, by the job. */
    struct job *job;
    struct graph *graph;
    struct copy *copy;
    struct node *source;
    enum job_on_error on_error[2]; /* by enum copy_side */
    uint64_t granularity;          /* the copy's cluster */
    /* Flush the target: 0 or -errno.  In the job's thread. */
    int (*flush)(struct follow *f);
    /* Drained: the source may have changed its size since the last call.  NULL:
     * nothing depends on it. */
    int (*sized)(struct follow *f);

    /* Control lock, drained. */
    struct bitmap *dirty; /* of the source; NULL: the copy has `late` bits */

    /* The job's thread, and then prepare. */
    bool ready;
    uint64_t little;     /* see follow.c */
    uint64_t drained_ns; /* how long guests were held up by the last look */

    mutex_t lock;
    cond_t wake;
    bool stop;     /* GUARDED_BY(lock) */
    bool complete; /* end, and lead users to the target */
    bool end;      /* end as it is */
};

void follow_init(struct follow *f);
void follow_destroy(struct follow *f);

/* Copy what the set has, and follow until a verb ends the job: 0, -errno or
 * JOB_STOPPED, as run of a job. */
int follow_run(struct follow *f);

/* Copy what the set has.  Returns as follow_run. */
int follow_copy_set(struct follow *f);

/* An I/O error on @side: what the user wants to happen, JOB_STOPPED or @r. */
int follow_failed(struct follow *f, enum copy_side side, int r);

/* In the drained section at the end: copy what was written since the last
 * pass. */
int follow_last(struct follow *f);

/* What was written since the last pass, as a copy of the bits; NULL: no memory.
 * In a drained section. */
struct hbitmap *follow_share_bits(struct follow *f);

/* Shall run return? */
bool follow_is_stopped(struct follow *f);

/* Has a verb asked for users to be led to the target? */
bool follow_completes(struct follow *f);

/* Verbs, under the monitor lock. */
void follow_kick(struct follow *f, bool stop);
void follow_ask_for_end(struct follow *f, bool complete);

#endif /* NBDELTA_JOB_FOLLOW_H */
