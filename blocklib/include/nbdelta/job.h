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

struct action;
struct job_txn;

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

/* What an I/O error does to a job: BlockdevOnError. */
enum job_on_error {
    ON_ERROR_REPORT, /* it fails */
    ON_ERROR_IGNORE, /* it tries again */
    ON_ERROR_STOP,   /* it pauses until it is resumed, then tries again */
    ON_ERROR_ENOSPC, /* stop when it is -ENOSPC, else report */
};

enum backup_sync {
    SYNC_FULL,
    SYNC_TOP,    /* what the source's own layer has */
    SYNC_NONE,   /* only what is about to change, until it is cancelled */
    SYNC_BITMAP, /* what the bitmap has dirty; "incremental" is this, too */
};

/* When the bitmap gives up the bits of what was copied. */
enum bitmap_mode {
    BITMAP_ON_SUCCESS, /* all at success, none at failure */
    BITMAP_NEVER,
    BITMAP_ALWAYS, /* also at failure those that were copied by then */
};

/* What drive-backup takes.  Strings may be NULL where "or" says so. */
struct backup_options {
    const char *job_id;     /* or NULL: the name of @device */
    struct node *source;
    const char *device;     /* the name that the user wrote for the source */
    enum backup_sync sync;
    const char *bitmap;     /* or NULL; to be synchronised, see mode */
    enum bitmap_mode bitmap_mode;
    enum job_on_error on_source_error;
    enum job_on_error on_target_error;
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
    uint64_t max_wait_ms;   /* for a guest's write that waits for a copy; then
                               the job fails, and it goes on; 0: no limit */
};

/* What drive-backup and blockdev-backup take for that if nothing is said. */
#define BACKUP_WAIT_MS UINT64_C(30000)

/*
 * Jobs that end together: all succeed, or none does.  One reference; NULL: no
 * memory.
 */
struct job_txn *job_txn_new(void);
void job_txn_ref(struct job_txn *txn);
void job_txn_unref(struct job_txn *txn); /* NULL is fine */

/*
 * A backup as an action (action.h): a point in time of the source, copied
 * while writes to it go on.  @o is copied, what it points to must live until
 * the action has run.  @txn is that of the job, or NULL for one of its own.
 * All errors have the text that QEMU gives; -EEXIST: the job id is taken.
 *
 * The source's users are never failed by it: when a copy that has to come
 * before a write of theirs fails, the write goes on and the job fails.  The
 * bitmap loses its bits only when the job succeeds, after the target is
 * durable; a target_file is closed before the job's end can be seen.
 */
int backup_action(struct jobs *j, const struct backup_options *o,
                  struct job_txn *txn, struct action **ap, struct error **errp)
    REQUIRES(j->lock);

/* A backup that is alone; returns when it is running. */
int job_backup(struct jobs *j, const struct backup_options *o,
               struct error **errp) REQUIRES(j->lock);

/* What blockdev-create takes: image.h tells of each. */
struct image_options {
    const char *job_id;
    const char *format;
    const char *filename;  /* for image_create, or NULL */
    const json_t *file;    /* for image_format, or NULL */
    const json_t *options;
};

/* Create an image, in a job that is no block job and is to be dismissed.
 * What goes wrong with the image is the job's error. */
int job_create_image(struct jobs *j, const struct image_options *o,
                     struct error **errp) REQUIRES(j->lock);

/* Job verbs.  -ENOENT: no such job; -EPERM: not in this state. */
int job_cancel(struct jobs *j, const char *id, bool force,
               struct error **errp) REQUIRES(j->lock);
/* All that work on @n, without force. */
void jobs_cancel_on(struct jobs *j, const struct node *n) REQUIRES(j->lock);
/* Does one of them whose id @wanted says yes to work on @n? */
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

/* Before a command: wait, with the lock given up, until jobs have done what
 * earlier commands have asked of them, to end or to pause.  Two seconds after
 * they were asked nobody waits any more: their storage hangs. */
void jobs_settle(struct jobs *j) REQUIRES(j->lock);

/* JobInfo and BlockJobInfo arrays; new references. */
json_t *jobs_query(struct jobs *j) REQUIRES(j->lock);
json_t *jobs_query_block(struct jobs *j) REQUIRES(j->lock);

#endif /* NBDELTA_JOB_H */
