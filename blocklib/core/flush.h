/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_FLUSH_H
#define NBDELTA_CORE_FLUSH_H

/*
 * Flushes that failed, and who was told (flush.c has the picture)
 * ===============================================================
 *
 * Each node counts the flushes of it that failed.  Each edge, of a parent or of
 * a user, knows up to which of them its owner was told.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "nbdelta/list.h"
#include "nbdelta/thread.h"

struct edge;
struct node;

/* How many flushes failed, times 4096, and the errno of the last one.  It grows
 * with each failure. */
typedef _Atomic uint64_t flush_mark;

#define FLUSH_NONE (UINT64_C(1) << 12) /* no flush failed yet */
#define FLUSH_OWED UINT64_C(0)         /* seen: something has to be told */

/* Of a node. */
struct flushes {
    mutex_t lock;
    cond_t ended;
    uint64_t begun;      /* number of the last one that began; lock */
    struct list running; /* of struct flush_run, oldest first; lock */
    flush_mark failed;   /* the lock, for a change */
    flush_mark told;     /* the last of these that any owner was told */
};

/* One that is under way. */
struct flush_run {
    struct list link;
    uint64_t number;
};

void node_flushes_init(struct flushes *f);
void node_flushes_destroy(struct flushes *f);

/* A count to compare with later: it differs if a flush of @n has failed. */
uint64_t node_flush_failures(const struct node *n);

/* Flush, and fail with the error of any flush of @n that has failed since
 * node_flush_failures() gave @since.  Blocks. */
int node_flush_since(struct node *n, uint64_t since);

/* Has a flush of @n failed since then?  Or one of a node below, of which a
 * flush of @n would tell? */
bool node_flush_has_failed(const struct node *n, uint64_t since);

/*
 * Before guests are held up for something that flushes: flush, with @flush,
 * until a flush is short, or is no shorter for the ones before it.  What a
 * guest writes during one is left for the next.  In a request; blocks for up to
 * four times as long as one flush does.  *began: when the last one began that
 * has succeeded; NULL is fine.  -errno: the first one that has failed.
 */
int node_flush_ahead(struct node *n, int (*flush)(struct node *n),
                     uint64_t *began);

/* Does a write with REQ_FUA make durable what it writes, and nothing else?
 * Where it does not it is a flush. */
bool node_has_fua(const struct node *n);

/* Flush the child for the owner of the edge.  It fails, once, too, if a flush
 * of another caller has failed.  Blocks. */
int edge_flush(struct edge *e);

/* For a driver: call the two around a request that is no flush and whose error
 * may be one that storage tells no second time (FUA).  node_flush_end() waits
 * as flushes do. */
void node_flush_begin(struct node *n, struct flush_run *run);
void node_flush_end(struct node *n, struct flush_run *run, int r);

/* Control lock, drained if a request could use the edge. */

/* The edge is new.  It starts with what nobody was told. */
void edge_begin_flushes(struct edge *e);
/* Its child becomes another one: what is owed stays owed. */
void edge_move_flushes(struct edge *e, const struct node *to);

#endif /* NBDELTA_CORE_FLUSH_H */
