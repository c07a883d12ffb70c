/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_PART_H
#define NBDELTA_SERVER_STORE_PART_H

/* POINT.qcow2.part: the image of a disk while it is made. */
#include <stdbool.h>
#include <stdint.h>

struct blk;
struct error;
struct graph;
struct node;
struct store;

/* Create it for a disk of @size bytes, over @parent's (a point's name; "": it
 * has none).  @compression: as image_create has it; NULL: none. */
int part_create(struct store *s, const char *disk, const char *point,
                uint64_t size, const char *parent, const char *compression,
                struct error **errp);

/* Is there one as part_create would make it?  Nothing that it names is
 * followed. */
bool part_fits(struct store *s, const char *disk, const char *point,
               uint64_t size, const char *parent);

/* A run was killed that wrote to it: give back clusters that nothing leads to.
 * False: it contradicts itself, or cannot be read. */
bool part_reclaim(struct store *s, const char *disk, const char *point);

/* Open it without its parent.  *bp has the permissions @perm (blk.h). */
int part_open(struct store *s, struct graph *g, const char *disk,
              const char *point, unsigned perm, struct node **np,
              struct blk **bp, struct error **errp);

/* Flush POINT.ENDING.part and have it replace POINT.ENDING, durably. */
int part_replace(struct store *s, const char *disk, const char *point,
                 const char *ending, struct error **errp);
/* Remove POINT.ENDING.part, if it is there. */
int part_drop(struct store *s, const char *disk, const char *point,
              const char *ending, struct error **errp);

#endif /* NBDELTA_SERVER_STORE_PART_H */
