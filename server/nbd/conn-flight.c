/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests in flight: what has to wait for storage, and needs no thread.
 *
 *     request that must not wait --> -EAGAIN --> conn_fly --> begun
 *                                                   |
 *                       the pool, if it cannot fly <-
 *
 * The connection's thread begins them (nbdelta/flights.h), hands over all that
 * one recv brought at once, and replies when they have ended: it looks whenever
 * it waits for anything (conn_wait), and after each round of requests.  It is
 * inside the disk meanwhile, so it calls nothing of blocklib that may block.
 */
#include <errno.h>

#include "nbd/conn.h"
#include "nbdelta/flights.h"

/* After so many refusals in a row, only one request in so many is tried: the
 * disk may have another form by then. */
#define REFUSALS 16
#define SELDOM   64

/* The kernel did not take all: try again after so many milliseconds. */
#define AGAIN_MS 5

static bool may_try(struct conn *c)
{
    if (c->refusals >= REFUSALS && ++c->refusals % SELDOM != 0) {
        return false;
    }
    return c->flights || (c->flights = flights_new()) != NULL;
}

static int begin_read(struct conn *c, struct request *r)
{
    struct segment *s = segment_new(c, SEGMENT_MEDIUM);

    if (!s) {
        return -ENOMEM;
    }
    s->head = SEGMENT_PAYLOAD;
    s->tail = SEGMENT_PAYLOAD + (uint32_t)r->length;
    list_append(&r->payload, &s->link);
    int ret = blk_fly_read(c->flights, c->export->blk, segment_at(s, s->head),
                           r->length, r->offset, r);
    if (ret < 0) {
        segments_free(c, &r->payload);
    }
    return ret;
}

static struct segment *only_segment(const struct request *r)
{
    return list_entry(r->payload.next, struct segment, link);
}

static int begin_write(struct conn *c, struct request *r)
{
    struct segment *s = only_segment(r);

    return blk_fly_write(c->flights, c->export->blk, segment_at(s, s->head),
                         r->length, r->offset, r);
}

bool conn_fly(struct conn *c, struct request *r)
{
    bool read = r->type == NBD_CMD_READ;

    if (!(read || r->type == NBD_CMD_WRITE) || r->length > INLINE_MAX ||
        (r->flags & NBD_CMD_FLAG_FUA) || !may_try(c)) {
        return false;
    }
    if ((read ? begin_read(c, r) : begin_write(c, r)) < 0) {
        c->refusals += c->refusals < REFUSALS;
        return false;
    }
    c->refusals = 0;
    c->alone = false;
    request_count(r);
    return true;
}

static void reply(struct conn *c, struct request *r, int result)
{
    if (r->type != NBD_CMD_READ || result < 0) {
        conn_reply_result(c, r, result, true);
        return;
    }
    struct segment *s = only_segment(r);
    list_remove(&s->link);
    s->head -= (uint32_t)read_head_size(c);
    put_read_head(c, segment_at(s, s->head), r, (uint32_t)r->length, true);
    conn_queue(c, s);
}

void conn_land(struct conn *c)
{
    void *opaque;
    int result;

    while (c->flights && flights_next(c->flights, &opaque, &result)) {
        struct request *r = opaque;

        reply(c, r, result);
        request_uncount(r);
    }
}

void conn_land_all(struct conn *c)
{
    while (c->flights && flights_count(c->flights) > 0) {
        flights_wait(c->flights);
        conn_land(c);
    }
}

int conn_take_off(struct conn *c, int ms)
{
    bool all = !c->flights || flights_submit(c->flights);

    return all || (ms >= 0 && ms < AGAIN_MS) ? ms : AGAIN_MS;
}

int conn_flights_kick_fd(const struct conn *c)
{
    return c->flights ? flights_kick_fd(c->flights) : -1;
}

int conn_flights_fd(const struct conn *c)
{
    return c->flights ? flights_fd(c->flights) : -1;
}
