/* SPDX-License-Identifier: BSD-3-Clause */
/* Requests: librbd carries out any number at once. */
#include <errno.h>

#include "ceph/priv.h"

static int begin(struct ceph_image *i, const struct ceph_request *q,
                 rbd_completion_t c)
{
    switch (q->op) {
    case CEPH_READ:
        return rbd_aio_readv(i->rbd, q->iov, q->iovcnt, q->offset, c);
    case CEPH_WRITE:
        return rbd_aio_writev(i->rbd, q->iov, q->iovcnt, q->offset, c);
    case CEPH_ZERO:
        return rbd_aio_write_zeroes(i->rbd, q->offset, q->bytes, c, 0, 0);
    case CEPH_DISCARD:
        return rbd_aio_discard(i->rbd, q->offset, q->bytes, c);
    case CEPH_FLUSH:
        return rbd_aio_flush(i->rbd, c);
    }
    return -EINVAL;
}

/* A request that waits for its end has no function to call. */
static void ended(rbd_completion_t c, void *arg)
{
    struct ceph_request *q = arg;
    int64_t r = rbd_aio_get_return_value(c);

    taken_over(q);
    rbd_aio_release(c);
    q->done(q, image_result(q->image, r));
}

int image_submit(struct ceph_image *i, struct ceph_request *q)
{
    rbd_completion_t c;

    q->image = i;
    handed_over(q);
    int r = rbd_aio_create_completion(q, ended, &c);

    if (r == 0 && (r = begin(i, q, c)) < 0) {
        rbd_aio_release(c);
    }
    return r;
}

int64_t image_request(struct ceph_image *i, struct ceph_request *q)
{
    rbd_completion_t c;
    int64_t r = rbd_aio_create_completion(NULL, NULL, &c);

    if (r < 0) {
        return r;
    }
    r = begin(i, q, c);
    if (r == 0) {
        (void)rbd_aio_wait_for_complete(c);
        r = rbd_aio_get_return_value(c);
    }
    rbd_aio_release(c);
    return image_result(i, r);
}
