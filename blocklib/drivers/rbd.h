/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_DRIVERS_RBD_H
#define NBDELTA_DRIVERS_RBD_H

/* Inside of the rbd driver: between rbd.c and rbd-*.c. */
#include "ceph/ceph.h"
#include "core/node.h"
#include "nbdelta/option.h"
#include "nbdelta/storage-snapshot.h"
#include "nbdelta/thread.h"

struct file_make;
struct opts;

struct rbd_late;

struct rbd {
    struct node *node;
    const struct ceph_module *m;
    struct ceph_image *image;
    struct rbd_late *late;
    uint64_t object_size;
    enum ceph_luks luks;
    bool fixed; /* it is a snapshot: nothing changes it, and nothing is told */

    mutex_t grow_lock; /* held while the image grows */
    uint64_t size;     /* grow_lock: as we know it, of the image */

    /* Atomic. */
    _Atomic bool told_of_loss; /* of the right to use it, or of the image */
    _Atomic bool written;      /* a change has begun: there may be a flush */
};

/* --- Options (rbd-options.c) --- */

extern const struct option rbd_node_options[];

/* Take all options of an image.  Secrets are those of @g.  Call
 * rbd_place_free() after a failure, too. */
int rbd_place_take(struct graph *g, struct opts *opts, struct ceph_place *p,
                   struct error **errp);
void rbd_place_free(struct ceph_place *p);

/* --- The module, and opening by it (rbd-open.c) --- */

/* The module's functions.  -ENOTSUP: it cannot be had. */
int rbd_module(const struct ceph_module **m, struct error **errp);

/* The image at *@p, which is taken.  -EINPROGRESS: later (core/toil.h). */
int rbd_open_image(struct node *n, struct ceph_place *p,
                   struct ceph_image **imagep, struct error **errp);

/* --- Requests in flight (rbd-flight.c) --- */

extern const struct driver_flight rbd_flight;

/* Before a request that changes the image. */
static inline void rbd_will_write(struct rbd *s)
{
    if (!atomic_load_explicit(&s->written, memory_order_relaxed)) {
        atomic_store(&s->written, true);
    }
}

/* What a request has returned, as errors of requests are told. */
int rbd_result(struct node *n, int64_t r);

/* --- Calls with a limit (rbd-call.c) --- */

/* Seconds for one call: of what changes or looks, and of a part of a diff. */
#define RBD_CALL_S 10
#define RBD_DIFF_S 60

struct rbd_extent {
    uint64_t offset;
    uint64_t bytes;
};

/* A call of the module that may never return, in a thread of its own. */
struct rbd_call {
    /* What to do, with these arguments.  The strings are copies. */
    int (*work)(struct rbd_call *c);
    void (*late)(struct rbd_call *c); /* in its thread: it has succeeded, and
                                         nobody waits any more; or NULL */
    const struct ceph_module *m;
    struct ceph_image *image;
    struct rbd_late *count;
    char *name;
    char *to;
    uint64_t offset;
    uint64_t bytes;
    uint64_t client;
    bool whole;

    /* Results, which are the caller's to read when it has ended. */
    struct ceph_snapshot *list;
    size_t list_count;
    struct rbd_extent *extents;
    size_t extent_count;
    size_t extent_room;
    enum ceph_maps maps;

    mutex_t lock;
    cond_t ended_cond;

    /* Guarded by lock. */
    unsigned refs; /* the caller and the thread */
    bool ended;
    bool given_up;
    int result;
};

/* How many calls go on that nobody waits for any more.  NULL: no memory. */
struct rbd_late *rbd_late_new(void);
void rbd_late_put(struct rbd_late *l); /* NULL is fine */
bool rbd_late_any(const struct rbd_late *l);

/* NULL: no memory.  @name and @to may be NULL. */
struct rbd_call *rbd_call_new(struct node *n, int (*work)(struct rbd_call *c),
                              const char *name, const char *to);
void rbd_call_free(struct rbd_call *c); /* NULL is fine */

/* Begin, and wait until now_ns() is @until: what `work` has returned, or
 * -ETIMEDOUT, and it goes on.  A call is begun once. */
int rbd_call_begin(struct rbd_call *c);
int rbd_call_wait(struct rbd_call *c, uint64_t until);

/* Both. */
int rbd_call_run(struct rbd_call *c, unsigned seconds);

/* Close the image of @n, which is `fixed`.  If the cluster does not answer
 * within a second the end comes later: somebody has locks. */
void rbd_close_soon(struct node *n);

/* --- Snapshots (rbd-snapshot.c, rbd-diff.c) --- */

extern const struct driver_storage rbd_storage;

/* The error @r of something that was done to @n, in words: @what, then why. */
int rbd_error(struct node *n, int r, const char *what, const char *name,
              struct error **errp);

int rbd_diff(struct node *n, const char *from, storage_diff_fn *fn,
             void *opaque, enum storage_diff_how *how, struct error **errp);

/* --- New images (rbd-create.c) --- */

extern const struct driver_image rbd_image_methods;

#endif /* NBDELTA_DRIVERS_RBD_H */
