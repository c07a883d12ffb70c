/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_BACKUP_COPY_H
#define NBDELTA_SERVER_CLI_BACKUP_COPY_H

/*
 * One disk of a backup run: its new file in the directory, and what goes into
 * it.
 *
 *   full        all of the disk
 *   increment   what the source says that has changed
 *               A sample of the rest can be compared with the parent (audit).
 *   compared    all is read, and what differs from the parent is copied.  Where
 *               the parent turns out to be damaged, the disk becomes a full.
 */
#include <stdbool.h>
#include <stdint.h>

#include "nbdelta/thread.h"
#include "nbdelta/transfer.h"
#include "source/source.h"
#include "store/compare.h"
#include "store/plan.h"
#include "store/store.h"
#include "store/sums.h"

struct copy_job {
    /* Set by the caller. */
    struct graph *graph;
    struct store *store;
    struct source *source;
    struct source_disk *disk; /* frozen */
    struct plan_disk *plan;   /* kind, and the parent; the kind may change */
    const char *parent;       /* the point's name, or "" */
    const char *point;        /* the new one's */
    const char *compression;  /* as image_create has it; NULL: none */
    bool resume;              /* the new file may be there, in part */
    double audit;             /* percent of what is clean; 0: none */
    bool no_fallback;         /* a compared disk does not become a full */

    /* From copy_prepare to copy_discard. */
    struct node *from;
    struct node *to;
    struct blk *file;  /* of `to` */
    struct node *sink; /* where compared bytes go: nowhere */
    struct sums *sums;
    struct compare *compare;
    uint8_t *had; /* for each chunk: it was in the file; or NULL */
    bool flushing GUARDED_BY(lock); /* the file, now and then */
    uint8_t *audited;               /* units of the audit, or NULL */
    struct compare_damage damage;   /* of the parent; no bytes: none */
    uint64_t data; /* bytes that are to be copied and are no zeroes, as far as
                      the source knows.  Of a compared disk 0: it checks that
                      there is room */

    mutex_t lock;
    cond_t wake;                                /* `pins` is 0 */
    bool ready;                                 /* both are there */
    struct transfer *transfer GUARDED_BY(lock); /* the one that runs, or NULL */
    unsigned pins GUARDED_BY(lock); /* somebody uses it from another thread */
    struct transfer_progress past GUARDED_BY(lock); /* of those before */
    uint64_t later GUARDED_BY(lock); /* bytes of one that follows */
    uint64_t rate GUARDED_BY(lock);  /* 0: no limit */
    bool stop GUARDED_BY(lock);

    /* From copy_finish on. */
    struct transfer_progress progress;
    uint64_t milliseconds;
    char sums_hash[HASH_TEXT_MAX];
};

/* Open the frozen disk, create the new file, and find out what is to be
 * copied.  Blocks.  After a failure, too, call copy_discard. */
int copy_prepare(struct copy_job *c, struct error **errp);

/* Are so many bytes free in the directory, and some more?  -ENOSPC. */
int copy_check_room(const struct store *s, uint64_t bytes, struct error **errp);

/*
 * Copy it.  Blocks.  Many jobs at once, each in a thread of its own: of the
 * store it touches files of its disk and point only.  c->plan says what was
 * done. -ECANCELED after copy_job_stop; -EUCLEAN: the parent is damaged, and
 * c->no_fallback.
 */
int copy_carry_out(struct copy_job *c, struct error **errp);

/* Between copy_prepare and copy_finish, at any time, in any thread.  `total`
 * grows when a compared disk knows what differs. */
void copy_job_stop(struct copy_job *c); /* now, and from now on */
void copy_job_set_rate(struct copy_job *c, uint64_t rate); /* bytes a second */
void copy_job_progress(struct copy_job *c, struct transfer_progress *p);

/* All is copied: write the hashes, close, give both files their names. */
int copy_finish(struct copy_job *c, struct error **errp);

/* Close what is open, and note what of the parent was found damaged.  With
 * @drop the files go. */
void copy_discard(struct copy_job *c, bool drop);

#endif /* NBDELTA_SERVER_CLI_BACKUP_COPY_H */
