/* SPDX-License-Identifier: BSD-3-Clause */
/* Rings, by liburing: ring.h. */
#include "core/ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#ifdef HAVE_LIBURING
#include <liburing.h>
#include <time.h>

struct ring {
    struct io_uring uring;
};

static int init(struct io_uring *u, unsigned entries)
{
    int r = -EINVAL;

#if defined(IORING_SETUP_SINGLE_ISSUER) && defined(IORING_SETUP_COOP_TASKRUN)
    r = io_uring_queue_init(
        entries, u, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN);
#endif
    return r == -EINVAL ? io_uring_queue_init(entries, u, 0) : r;
}

int ring_test(void)
{
    struct io_uring u;
    int r = init(&u, 1);

    if (r == 0) {
        io_uring_queue_exit(&u);
    }
    return r;
}

/* The kernel has said that this process gets no ring, whenever it asks. */
static _Atomic bool refused;

struct ring *ring_new(void)
{
    struct ring *r = atomic_load(&refused) ? NULL : calloc(1, sizeof(*r));

    if (!r) {
        return NULL;
    }
    int err = init(&r->uring, RING_ENTRIES);
    if (err < 0) {
        if (err == -ENOSYS || err == -EPERM || err == -EINVAL) {
            atomic_store(&refused, true);
        }
        free(r);
        return NULL;
    }
    return r;
}

void ring_free(struct ring *r)
{
    if (r) {
        io_uring_queue_exit(&r->uring);
        free(r);
    }
}

int ring_fd(const struct ring *r)
{
    return r->uring.ring_fd;
}

void ring_queue(struct ring *r, const struct ring_op *op, void *token)
{
    struct io_uring_sqe *e = io_uring_get_sqe(&r->uring);

    if (!e) { /* more than RING_ENTRIES: a mistake of ours */
        abort();
    }
    if (op->write) {
        io_uring_prep_write(e, op->fd, op->buf, op->bytes, op->offset);
    } else {
        io_uring_prep_read(e, op->fd, op->buf, op->bytes, op->offset);
    }
    if (op->blocking) {
        e->flags |= IOSQE_ASYNC;
    }
    io_uring_sqe_set_data(e, token);
}

bool ring_submit(struct ring *r)
{
    if (io_uring_sq_ready(&r->uring) > 0) {
        (void)io_uring_submit(&r->uring);
    }
    return io_uring_sq_ready(&r->uring) == 0;
}

bool ring_next(struct ring *r, void **token, int *result)
{
    struct io_uring_cqe *e = NULL;

    if (io_uring_peek_cqe(&r->uring, &e) != 0) {
        return false;
    }
    *token = io_uring_cqe_get_data(e);
    *result = e->res;
    io_uring_cqe_seen(&r->uring, e);
    return true;
}

void ring_wait(struct ring *r)
{
    static const struct timespec pause = {.tv_nsec = 1000000};

    while (io_uring_cq_ready(&r->uring) == 0) {
        int n = io_uring_submit_and_wait(&r->uring, 1);
        if (n < 0 && n != -EINTR) { /* no memory: it will have some */
            (void)nanosleep(&pause, NULL);
        }
    }
}

#else /* without liburing */

int ring_test(void)
{
    return -ENOSYS;
}

struct ring *ring_new(void)
{
    return NULL;
}

void ring_free(struct ring *r)
{
    (void)r;
}

/* Without a ring nobody calls these. */

int ring_fd(const struct ring *r)
{
    (void)r;
    return -1;
}

void ring_queue(struct ring *r, const struct ring_op *op, void *token)
{
    (void)r;
    (void)op;
    (void)token;
    abort();
}

bool ring_submit(struct ring *r)
{
    (void)r;
    return true;
}

bool ring_next(struct ring *r, void **token, int *result)
{
    (void)r;
    (void)token;
    (void)result;
    return false;
}

void ring_wait(struct ring *r)
{
    (void)r;
}
#endif
