/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads and writes that librbd carries out while the thread that began them
 * does other things (core/flights.c). */
#include <errno.h>
#include <string.h>

#include "drivers/rbd.h"
#include "nbdelta/bytes.h"

/* In the room that each flight has. */
struct rbd_move {
    struct ceph_request q;
    struct iovec iov;
    struct moving *moving;
};

_Static_assert(sizeof(struct rbd_move) <= FLIGHT_ROOM, "room of a flight");

/* In a thread of librbd. */
static void moved(struct ceph_request *q, int64_t result)
{
    struct rbd_move *f = (struct rbd_move *)q;

    f->moving->landed(f->moving, (int)result);
}

static int rbd_flight_launch(struct node *n, struct moving *t)
{
    struct rbd *s = n->state;
    struct rbd_move *f = t->room;

    *f = (struct rbd_move){
        .q = {.op = t->write ? CEPH_WRITE : CEPH_READ,
              .offset = t->offset,
              .bytes = t->bytes,
              .iov = &f->iov,
              .iovcnt = 1,
              .done = moved},
        .iov = {t->buf, t->bytes},
        .moving = t,
    };
    if (t->write) {
        rbd_will_write(s);
    }
    return s->m->submit(s->image, &f->q) < 0 ? -EAGAIN : 0;
}

static int rbd_flight_end(struct node *n, struct moving *t, int moved_bytes)
{
    if (!t->write && moved_bytes >= 0 && (uint64_t)moved_bytes < t->bytes) {
        memset((char *)t->buf + moved_bytes, 0,
               t->bytes - (uint64_t)moved_bytes);
    }
    return rbd_result(n, moved_bytes);
}

const struct driver_flight rbd_flight = {
    .launch = rbd_flight_launch,
    .end = rbd_flight_end,
};
