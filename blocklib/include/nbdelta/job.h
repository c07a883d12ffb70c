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
 * Events that a command causes therefore come before its reply.  Events of a
 * job's own progress never come in the middle of a command.
 */
#include <jansson.h>

#include "nbdelta/thread.h"
#include "nbdelta/types.h"

struct action;
struct job_txn;

/* --- job.c --- */

/*
 * All jobs of a process.  @emit is called under the monitor lock for every
 * event, in order; it must not block for long.  @data is borrowed: an object
 * with the members of QEMU's event of that @name, never NULL.
 */
struct jobs {
    mutex_t lock; /* the monitor lock: first of all locks */
    struct jobs_private *p;
};
typedef void job_event_fn(const char *name, json_t *data, void *opaque);

/* NULL: no memory. */
struct jobs *jobs_new(struct graph *g, job_event_fn *emit, void *opaque);

/* Cancel all jobs and wait until they are gone; later starts fail with
 * -ESHUTDOWN. */
void jobs_shutdown(struct jobs *j) EXCLUDES(j->lock);
void jobs_free(struct jobs *j); /* after jobs_shutdown; NULL is fine */

/*
 * Jobs that end together: all succeed, or none does.  The caller owns one
 * reference; NULL: no memory.  Hold the monitor lock for all three.
 */
struct job_txn *job_txn_new(void);
void job_txn_ref(struct job_txn *txn);
void job_txn_unref(struct job_txn *txn); /* NULL is fine */

/* What an I/O error does to a job: BlockdevOnError. */
enum job_on_error {
    ON_ERROR_REPORT, /* it fails */
    ON_ERROR_IGNORE, /* it tries again */
    ON_ERROR_STOP,   /* it pauses until it is resumed, then tries again */
    ON_ERROR_ENOSPC, /* stop when it is -ENOSPC, else report */
};

/* --- backup-start.c --- */

/* What a backup copies. */
enum backup_sync {
    SYNC_FULL,
    SYNC_TOP,    /* the content of the source's own layer */
    SYNC_NONE,   /* blocks that guests are about to change, until cancelled */
    SYNC_BITMAP, /* what the bitmap has dirty; "incremental" is this, too */
};

/* When the bitmap gives up the bits of what was copied. */
enum bitmap_mode {
    BITMAP_ON_SUCCESS, /* all at success, none at failure */
    BITMAP_NEVER,
    BITMAP_ALWAYS, /* all at success; at failure, what was copied by then */
};

/* What drive-backup takes.  Strings may be NULL where "or" says so. */
struct backup_options {
    const char *job_id; /* or NULL: the name of @device */
    struct node *source;
    const char *device; /* the name that the user wrote for the source */
    enum backup_sync sync;
    const char *bitmap; /* of the source, or NULL; see bitmap_mode */
    enum bitmap_mode bitmap_mode;
    enum job_on_error on_source_error;
    enum job_on_error on_target_error;
    struct node *target; /* an open node, or NULL to open target_file */
    const char *target_file;
    const char *format; /* of target_file, or NULL: that of the source */
    bool existing;      /* mode=existing: do not create target_file */
    uint64_t speed;     /* bytes a second, 0: unlimited */
    bool compress;
    bool manual_finalize;         /* auto-finalize=false */
    bool manual_dismiss;          /* auto-dismiss=false */
    const char *filter_node_name; /* or NULL */
    unsigned max_workers;         /* 0: default */
    uint64_t max_chunk;           /* bytes, 0: default */
    uint64_t min_cluster;         /* bytes copied as one, at least; a power of
                                     two, or 0 */
    bool discard_source;          /* discard in the source what was copied */
    uint64_t max_wait_ms; /* how long a guest's write waits for a copy; then
                             the job fails and the write goes on; 0: no
                             limit */
};

/* max_wait_ms of drive-backup and blockdev-backup, unless the user gives it. */
#define BACKUP_WAIT_MS UINT64_C(30000)

/*
 * A backup as an action (action.h): a point in time of the source, copied
 * while writes to the source go on.  *@o is copied; the caller keeps what it
 * points to until the action has run.  The job joins @txn; NULL: a transaction
 * of its own.  Error texts are QEMU's; -EEXIST: the job id is taken; -EBUSY: a
 * node or the bitmap is in use.
 *
 * A backup never fails requests of the source's users: when a copy that has to
 * come before a write fails, the write goes on and the job fails.  The bitmap
 * loses bits only as bitmap_mode says, and after the target is durable.  A
 * target_file is closed before clients can see the job's end.
 */
int backup_action(struct jobs *j, const struct backup_options *o,
                  struct job_txn *txn, struct action **ap, struct error **errp)
    REQUIRES(j->lock);

/* --- create.c --- */

/* What blockdev-create takes; image.h describes file and options. */
struct image_options {
    const char *job_id;
    const char *format;
    const char *filename; /* for image_create, or NULL */
    const json_t *file;   /* for image_format, or NULL */
    const json_t *options;
};

/* Create an image in a job, which is no block job and stays until job_dismiss.
 * Returns when the job runs.  Errors of creating the image are the job's.
 * Errors here: as of backup_action for the id. */
int job_create_image(struct jobs *j, const struct image_options *o,
                     struct error **errp) REQUIRES(j->lock);

/* --- verb.c --- */

/* Job verbs.  None waits for the job's thread.  -ENOENT: there is no such job;
 * -EPERM: the job is not in a state that allows the verb. */
int job_cancel(struct jobs *j, const char *id, bool force, struct error **errp)
    REQUIRES(j->lock);
/* Cancel all jobs that work on @n, without force. */
void jobs_cancel_on(struct jobs *j, const struct node *n) REQUIRES(j->lock);
/* Does a job work on @n, among the jobs for whose id @wanted returns true? */
bool jobs_use(struct jobs *j, const struct node *n,
              bool (*wanted)(const char *id, void *opaque), void *opaque)
    REQUIRES(j->lock);
int job_pause(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock);
int job_resume(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock);
int job_complete(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock);
int job_finalize(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock);
int job_dismiss(struct jobs *j, const char *id, struct error **errp)
    REQUIRES(j->lock);
int job_set_speed(struct jobs *j, const char *id, uint64_t speed,
                  struct error **errp) REQUIRES(j->lock);

/* Call it before a command: it waits, with the lock given up, until jobs have
 * ended or paused, as earlier commands have asked them to.  Two seconds after a
 * job was asked it is not waited for any more: its storage hangs. */
void jobs_settle(struct jobs *j) REQUIRES(j->lock);

/* JobInfo and BlockJobInfo arrays; new references. */
json_t *jobs_query(struct jobs *j) REQUIRES(j->lock);
json_t *jobs_query_block(struct jobs *j) REQUIRES(j->lock);

#endif /* NBDELTA_JOB_H */
