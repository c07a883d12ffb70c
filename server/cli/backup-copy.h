/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_BACKUP_COPY_H
#define NBDELTA_SERVER_CLI_BACKUP_COPY_H

/* One disk of a backup run: its new file in the directory, and what goes into
 * it. */
#include <stdbool.h>
#include <stdint.h>

#include "nbdelta/transfer.h"
#include "source/source.h"
#include "store/plan.h"
#include "store/store.h"
#include "store/sums.h"

struct copy_job {
    /* Set by the caller. */
    struct graph *graph;
    struct store *store;
    struct source *source;
    struct source_disk *disk;     /* frozen */
    const struct plan_disk *plan; /* kind, and the parent */
    const char *parent;           /* the point's name, or "" */
    const char *point;            /* the new one's */
    const char *compression;      /* as image_create has it; NULL: none */

    /* From copy_prepare to copy_discard. */
    struct node *from;
    struct node *to;
    struct blk *file; /* of `to` */
    struct transfer *transfer;
    struct sums *sums;
    uint64_t set;  /* bytes that are to be copied */
    uint64_t data; /* of these: bytes that are no zeroes, as far as the source
                      knows */

    /* From copy_finish on. */
    struct transfer_progress progress;
    uint64_t milliseconds;
    char sums_hash[HASH_TEXT_MAX];
};

/* Open the frozen disk, create the new file, and find out what is to be
 * copied.  Blocks.  After a failure, too, call copy_discard. */
int copy_prepare(struct copy_job *c, struct error **errp);

/* Copy it.  Blocks.  Many jobs at once, each in a thread of its own: it leaves
 * the store alone.  -ECANCELED after copy_job_stop. */
int copy_carry_out(struct copy_job *c, struct error **errp);

/* Between copy_prepare and copy_finish, at any time, in any thread. */
void copy_job_stop(struct copy_job *c); /* now, and from now on */
void copy_job_set_rate(struct copy_job *c, uint64_t rate); /* bytes a second */
uint64_t copy_job_done(const struct copy_job *c); /* bytes, of c->set */

/* All is copied: write the hashes, close, give both files their names. */
int copy_finish(struct copy_job *c, struct error **errp);

/* Close what is open.  With @drop the files go. */
void copy_discard(struct copy_job *c, bool drop);

#endif /* NBDELTA_SERVER_CLI_BACKUP_COPY_H */
