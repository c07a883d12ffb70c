/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_PRUNE_PRIV_H
#define NBDELTA_SERVER_STORE_PRUNE_PRIV_H

/* Shared by prune.c (the order of all steps), prune-plan.c (which points go,
 * and what that gives back), prune-journal.c (the journal), prune-merge.c (the
 * files of one disk) and prune-manifest.c (what manifests say afterwards). */
#include "store/prune.h"
#include "store/store-priv.h"
#include "store/sums-priv.h"

/* A point that goes. */
struct removal {
    struct manifest *gone;
    /* Of each disk of it, the point that the disk is merged into; "": no point
     * was made over it, and its files just go. */
    char (*next)[POINT_NAME_MAX];
};
void removal_free(struct removal *r); /* NULL is fine */
static inline void removal_cleanup(struct removal **r)
{
    removal_free(*r);
}
#define CLEANUP_REMOVAL __attribute__((cleanup(removal_cleanup)))

/* Find all next points of @gone, which is the removal's from then on, also
 * after an error.  -EBUSY: a pending point needs it; -EUCLEAN: two points were
 * made over it, or one that is not of the same disk. */
int removal_new(const struct store *s, struct manifest *gone,
                struct removal **rp, struct error **errp);

/* --- prune-journal.c --- */

/* Durable when it returns 0. */
int journal_write(const struct store *s, const struct removal *r,
                  struct error **errp);
int journal_remove(const struct store *s, struct error **errp);
/* From the bytes of the file; asks what the manifests of @s say. */
int journal_parse(const struct store *s, const char *text, size_t length,
                  struct removal **rp, struct error **errp);
/* -ENOENT: there is none; -EUCLEAN: it is damaged, or tells of something else
 * than the manifests. */
int journal_read(const struct store *s, struct removal **rp,
                 struct error **errp);

/* --- prune-merge.c --- */

struct merge;

/*
 * Open the files of @disk of the point @gone, for writing, and of @next.
 * @disk stays the caller's.  -EBUSY: somebody has one of them open; -EUCLEAN:
 * they are not what the manifests say.
 */
int merge_open(struct store *s, const char *gone,
               const struct manifest_disk *disk, const char *next,
               struct merge **mp, struct error **errp);
void merge_free(struct merge *m); /* NULL is fine */

/* Before anything is changed: are those units whole that get a hash anew, and
 * is there room?  -EUCLEAN, -ENOSPC. */
int merge_check(struct merge *m, struct error **errp);

/* Before merge_open: give back what leaked in the file of @point, the older
 * one, when a merge was killed.  Durable.  -EUCLEAN: the file contradicts
 * itself. */
int merge_reclaim(struct store *s, const char *point, const char *disk,
                  struct error **errp);

/* Write all that the next file decides into the older one, make its hashes,
 * and close both.  Durable when it returns 0.  May be done again. */
int merge_run(struct merge *m, struct error **errp);

/* Give the files of a disk that was merged their names, or what is left of
 * that.  Durable when it returns 0. */
int merge_rename(struct store *s, const char *disk, const char *gone,
                 const char *next, struct error **errp);

/* Is DIR/DISK/POINT.ENDING there? */
int merge_has(struct store *s, const char *disk, const char *point,
              const char *ending, bool *there, struct error **errp);

/* Open a disk's file of a point without its parents, as a node of @g. */
int layer_open(struct store *s, struct graph *g, const char *disk,
               const char *point, bool write, struct node **np,
               struct error **errp);

/* The bytes that a disk's files of a point take; 0: they are not there. */
uint64_t merge_disk_bytes(struct store *s, const char *disk, const char *point);

/* --- prune-plan.c --- */

/* Why the i-th point has to stay, whatever rules say: KEEP_UNREADABLE,
 * KEEP_NEEDED; or 0. */
unsigned prune_must_keep(const struct store *s, unsigned i);

/* --- prune-manifest.c --- */

/* Have the manifests tell of the merged files; each is durable in its turn, the
 * next point's before the ones that were made over it. */
int manifests_update(struct store *s, const struct removal *r,
                     struct error **errp);

#endif /* NBDELTA_SERVER_STORE_PRUNE_PRIV_H */
