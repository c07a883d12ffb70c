/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_H
#define NBDELTA_JOB_H

/*
 * Jobs: long-running work with QEMU's life cycle
 * ==============================================
 *
 *   created -> running <-> paused -> waiting -> pending -> concluded -> null
 *                 |            \         \          \          ^
 *                 +-------------+---------+----------+> aborting
 *
 * One lock, the monitor lock, orders everything that a QMP client can see:
 * command handlers run under it, and so does every change of a job's status.
 * Events that a command causes therefore come before its reply, and those of
 * the job's own progress never in the middle of one.
 */
#include <jansson.h>

#include "nbdelta/thread.h"
#include "nbdelta/types.h"

/*
 * All jobs of a process.  @emit is called under the monitor lock for every
 * event, in order; it must not block for long.  @data is borrowed and has
 * the members of QEMU's event of that @name; it is never NULL.
 */
struct jobs {
    mutex_t lock; /* the monitor lock: first of all locks */
    struct jobs_private *p;
};
typedef void job_event_fn(const char *name, json_t *data, void *opaque);

struct jobs *jobs_new(struct graph *g, job_event_fn *emit, void *opaque);

/* Cancel all jobs and wait until they are gone; later starts fail with
 * -ESHUTDOWN.  Without the lock. */
void jobs_shutdown(struct jobs *j) EXCLUDES(j->lock);
void jobs_free(struct jobs *j); /* after jobs_shutdown; NULL is fine */

enum backup_sync { SYNC_FULL, SYNC_TOP, SYNC_NONE, SYNC_INCREMENTAL };

/* What drive-backup takes.  Strings may be NULL where "or" says so. */
struct backup_options {
    const char *job_id;     /* or NULL: the name of @device */
    struct node *source;
    const char *device;     /* the name that the user wrote for the source */
    enum backup_sync sync;
    const char *bitmap;     /* for SYNC_INCREMENTAL, else NULL */
    struct node *target;    /* an open node, or NULL to open target_file */
    const char *target_file;
    const char *format;     /* of target_file, or NULL: that of the source */
    bool existing;          /* mode=existing: do not create target_file */
    uint64_t speed;         /* bytes a second, 0: unlimited */
    bool compress;
    bool manual_finalize;   /* auto-finalize=false */
    bool manual_dismiss;    /* auto-dismiss=false */
    const char *filter_node_name; /* or NULL */
    unsigned max_workers;   /* 0: default */
    uint64_t max_chunk;     /* bytes, 0: default */
};

/*
 * Start a backup: a point in time of the source, copied while writes to it
 * go on.  Returns when it is running.  All errors have the text that QEMU
 * gives; -EEXIST: the job id is taken; -ENOTSUP: SYNC_NONE, SYNC_TOP of a
 * disk that has a backing file, compress.
 *
 * The source's users are never failed by it: when a copy that has to come
 * before a write of theirs fails, the write goes on and the job fails.  The
 * bitmap loses its bits only when the job succeeds, after the target is
 * durable; a target_file is closed before the job's end can be seen.
 */
int job_backup(struct jobs *j, const struct backup_options *o,
               struct error **errp) REQUIRES(j->lock);

/* Job verbs.  -ENOENT: no such job; -EPERM: not in this state. */
int job_cancel(struct jobs *j, const char *id, bool force,
               struct error **errp) REQUIRES(j->lock);
int job_pause(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock);
int job_resume(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock);
int job_finalize(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock);
int job_dismiss(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock);
int job_set_speed(struct jobs *j, const char *id, uint64_t speed,
                  struct error **errp) REQUIRES(j->lock);

/* JobInfo and BlockJobInfo arrays; new references. */
json_t *jobs_query(struct jobs *j) REQUIRES(j->lock);
json_t *jobs_query_block(struct jobs *j) REQUIRES(j->lock);

#endif /* NBDELTA_JOB_H */
