/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_RBD_PRIV_H
#define NBDELTA_SERVER_SOURCE_RBD_PRIV_H

/* Shared by rbd.c (images are opened, checkpoints) and rbd-instant.c (an
 * instant begins, is gone on with, ends). */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct error;
struct node;
struct rbd_source_name;
struct source;

struct rbd_disk {
    struct node *node;
    uint64_t snapshot; /* id of the new one, from begin or adopted; 0: none */
    uint64_t since;    /* id of the one before; 0: none */
};

struct rbd_source {
    struct rbd_source_name *names;
    struct rbd_disk *disks; /* as names, and s->disks */
    unsigned count;
    char *id;
    char *once; /* the snapshot's name where there is no checkpoint */

    /* An instant that has begun, or is adopted; else NULL. */
    char *checkpoint;
    char *snapshot; /* its name */
    json_t *identity;
    uint64_t patience_ns;
};

/* --- rbd.c --- */

typedef int rbd_image_fn(struct source *s, unsigned i, const char *name,
                         struct error **errp);

/* Call @fn for all images, for a few at once; @name is for it.  After a failure
 * for no further one.  The first error. */
int rbd_each_image(struct source *s, rbd_image_fn *fn, const char *name,
                   struct error **errp);

/* --- rbd-instant.c --- */

/* As those of struct source_ops. */
int rbd_begin(struct source *s, const char *checkpoint, struct error **errp);
int rbd_renew(struct source *s, struct error **errp);
int rbd_end(struct source *s, bool keep, struct error **errp);

/* Take the instant of @identity, which may be anything, for that of the next
 * begin; s->adopted says whether all of it is there.  If not, what there is of
 * it goes as any checkpoint that no point needs. */
void rbd_adopt(struct source *s, const json_t *identity);

/* There is no instant any more; with @undo its snapshots go. */
void rbd_drop_instant(struct source *s, bool undo);

/* Remove the snapshot @name of the image @i.  One that somebody has cloned
 * stays, and a warning says so. */
int rbd_remove_one(struct source *s, unsigned i, const char *name,
                   struct error **errp);

/* Is the snapshot @name of the image @i still the one with @id?  What was read
 * or told of one that is gone may be wrong: ask afterwards.  -EIO. */
int rbd_check_snapshot(struct source *s, unsigned i, const char *name,
                       uint64_t id, struct error **errp);

#endif /* NBDELTA_SERVER_SOURCE_RBD_PRIV_H */
