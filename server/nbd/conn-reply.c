/* SPDX-License-Identifier: BSD-3-Clause */
/* Segments, replies, and sending them; which thread sends: see conn.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbd/conn.h"
#include "nbdelta/bytes.h"

/* The longest reply without data, in bytes. */
#define REPLY_MAX 256

/* --- Segments. --- */

static const struct {
    uint32_t size;
    unsigned keep; /* so many are kept for reuse */
} classes[SEGMENT_CLASSES] = {
    [SEGMENT_SMALL] = {sizeof(struct segment) + REPLY_MAX, REQUESTS_MAX},
    [SEGMENT_MEDIUM] = {SEGMENT_PAYLOAD + INLINE_MAX, HELD_MAX / PIECE_SIZE},
    [SEGMENT_LARGE] = {SEGMENT_PAYLOAD + PIECE_SIZE, HELD_MAX / PIECE_SIZE},
};

static void segment_release(struct segment *s)
{
    if (s->class == SEGMENT_SMALL) {
        free(s);
    } else {
        pages_free(s, s->size);
    }
}

struct segment *segment_new(struct conn *c, enum segment_class class)
{
    struct segment *s = NULL;

    mutex_lock(&c->lock);
    if (!list_empty(&c->free_segments[class])) {
        s = list_entry(c->free_segments[class].next, struct segment, link);
        list_remove(&s->link);
        c->free_count[class]--;
    }
    mutex_unlock(&c->lock);
    if (!s) {
        s = class == SEGMENT_SMALL ? malloc(classes[class].size)
                                   : pages_new(classes[class].size);
        if (!s) {
            return NULL;
        }
        s->class = class;
        s->size = classes[class].size;
        list_init(&s->link);
    }
    s->head = s->tail = sizeof(*s);
    return s;
}

/* The segment that was used last comes first, because its memory is in the
 * processor's cache. */
static void segment_free_locked(struct conn *c, struct segment *s)
    REQUIRES(c->lock)
{
    list_remove(&s->link);
    if (c->free_count[s->class] < classes[s->class].keep) {
        list_append(c->free_segments[s->class].next, &s->link);
        c->free_count[s->class]++;
    } else {
        segment_release(s);
    }
}

void segment_free(struct conn *c, struct segment *s)
{
    if (s) {
        mutex_lock(&c->lock);
        segment_free_locked(c, s);
        mutex_unlock(&c->lock);
    }
}

static void segments_free_locked(struct conn *c, struct list *l)
    REQUIRES(c->lock)
{
    while (!list_empty(l)) {
        segment_free_locked(c, list_entry(l->next, struct segment, link));
    }
}

void segments_free(struct conn *c, struct list *segments)
{
    mutex_lock(&c->lock);
    segments_free_locked(c, segments);
    mutex_unlock(&c->lock);
}

void conn_trim(struct conn *c)
{
    segment_free(c, c->batch);
    c->batch = NULL;
    flights_free(c->flights);
    c->flights = NULL;
    c->refusals = 0;
    transport_trim(&c->io);
    mutex_lock(&c->lock);
    for (unsigned i = 0; i < SEGMENT_CLASSES; i++) {
        list_for_each_safe (l, &c->free_segments[i]) {
            list_remove(l);
            segment_release(list_entry(l, struct segment, link));
        }
        c->free_count[i] = 0;
    }
    list_for_each_safe (l, &c->free_requests) {
        list_remove(l);
        free(list_entry(l, struct request, link));
    }
    mutex_unlock(&c->lock);
}

/* --- Replies. --- */

void put_simple(char *p, uint32_t error, uint64_t cookie)
{
    store_be32(p, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(p + 4, error);
    store_be64(p + 8, cookie);
}

char *put_chunk(const struct conn *c, char *p, const struct request *rq,
                uint16_t flags, uint16_t type, uint32_t length)
{
    store_be32(p, c->extended ? NBD_EXTENDED_REPLY_MAGIC
                              : NBD_STRUCTURED_REPLY_MAGIC);
    store_be16(p + 4, flags);
    store_be16(p + 6, type);
    store_be64(p + 8, rq->cookie);
    if (c->extended) {
        store_be64(p + 16, rq->origin);
        store_be64(p + 24, length);
    } else {
        store_be32(p + 16, length);
    }
    return p + chunk_size(c);
}

/* Put a whole reply without data at @p: success when @error is 0, else a
 * failure with @text.  It takes at most REPLY_MAX bytes. */
static size_t put_reply(const struct conn *c, char *p, const struct request *rq,
                        uint32_t error, const char *text)
{
    if (error == 0 &&
        (c->extended || (c->structured && rq->type == NBD_CMD_READ))) {
        (void)put_chunk(c, p, rq, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, 0);
        return chunk_size(c);
    }
    if (!c->structured || error == 0) {
        put_simple(p, error, rq->cookie);
        return NBD_SIMPLE_REPLY_SIZE;
    }
    size_t len = strnlen(text, REPLY_MAX - NBD_EXTENDED_CHUNK_SIZE - 6);
    p = put_chunk(c, p, rq, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR,
                  (uint32_t)(6 + len));
    store_be32(p, error);
    store_be16(p + 4, (uint16_t)len);
    memcpy(p + 6, text, len);
    return chunk_size(c) + 6 + len;
}

char *batch_room(struct conn *c, size_t n)
{
    while (c->batch && c->batch->size - c->batch->tail < n) {
        conn_queue_batch(c);
        conn_push(c);
        conn_throttle(c, 0); /* replies of flights may begin another one */
    }
    if (!c->batch) {
        c->batch = segment_new(c, SEGMENT_LARGE);
    }
    return c->batch ? segment_at(c->batch, c->batch->tail) : NULL;
}

void batch_use(struct conn *c, size_t n)
{
    c->batch->tail += (uint32_t)n;
}

void conn_reply(struct conn *c, const struct request *rq, uint32_t error,
                const char *text, bool batch)
{
    if (batch) {
        char *p = batch_room(c, REPLY_MAX);
        if (p) {
            batch_use(c, put_reply(c, p, rq, error, text));
            return;
        }
    } else {
        struct segment *s = segment_new(c, SEGMENT_SMALL);
        if (s) {
            s->tail += (uint32_t)put_reply(c, segment_at(s, s->head), rq, error,
                                           text);
            conn_queue(c, s);
            conn_push(c);
            return;
        }
    }
    conn_break(c);
}

/* --- Sending. --- */

static void queue_locked(struct conn *c, struct segment *s) REQUIRES(c->lock)
{
    if (c->broken) {
        segment_free_locked(c, s);
        return;
    }
    list_append(&c->out, &s->link);
    c->out_bytes += s->tail - s->head;
    conn_account_locked(c, false);
}

void conn_queue(struct conn *c, struct segment *s)
{
    mutex_lock(&c->lock);
    queue_locked(c, s);
    mutex_unlock(&c->lock);
}

void conn_queue_list(struct conn *c, struct list *segments)
{
    mutex_lock(&c->lock);
    while (!list_empty(segments)) {
        struct segment *s = list_entry(segments->next, struct segment, link);

        list_remove(&s->link);
        queue_locked(c, s);
    }
    mutex_unlock(&c->lock);
}

void conn_queue_batch(struct conn *c)
{
    if (c->batch && c->batch->tail > c->batch->head) {
        conn_queue(c, c->batch);
        c->batch = NULL;
    }
}

/* A client that has taken so many bytes has done something. */
#define MOVED_MIN ((size_t)256 << 10)

/* @n bytes from the front of `out` have been sent. */
static void sent_locked(struct conn *c, size_t n) REQUIRES(c->lock)
{
    c->out_bytes -= n;
    c->moved += n;
    conn_account_locked(c, c->moved >= MOVED_MIN);
    c->moved = c->moved >= MOVED_MIN ? 0 : c->moved;
    while (n > 0) {
        struct segment *s = list_entry(c->out.next, struct segment, link);
        size_t part = min_u64(n, s->tail - s->head);

        s->head += (uint32_t)part;
        n -= part;
        if (s->head == s->tail) {
            segment_free_locked(c, s);
        }
    }
}

#define SEND_IOV 64

static int gather_locked(struct conn *c, struct iovec *iov) REQUIRES(c->lock)
{
    int n = 0;

    list_for_each (l, &c->out) {
        struct segment *s = list_entry(l, struct segment, link);

        iov[n++] = (struct iovec){segment_at(s, s->head), s->tail - s->head};
        if (n == SEND_IOV) {
            break;
        }
    }
    return n;
}

static void break_locked(struct conn *c) REQUIRES(c->lock)
{
    c->broken = true;
    /* The thread that is sending has the front of `out` in use, and frees it.
     */
    if (!c->sending) {
        segments_free_locked(c, &c->out);
        c->out_bytes = 0;
        conn_account_locked(c, false);
    }
}

/* Send once; the lock is given up meanwhile.  False: no more can be sent now.
 */
static bool send_some_locked(struct conn *c) REQUIRES(c->lock)
{
    struct iovec iov[SEND_IOV];
    int cnt = gather_locked(c, iov);

    mutex_unlock(&c->lock);
    ssize_t n = transport_send(&c->io, iov, cnt);
    mutex_lock(&c->lock);
    if (n >= 0) {
        sent_locked(c, (size_t)n);
        return true;
    }
    if (n == -EINTR) {
        return true;
    }
    if (n == -EAGAIN) {
        c->stalled = true;
        conn_account_locked(c, false);
    } else {
        c->broken = true;
    }
    return false;
}

/* Send until all is sent, or the socket takes no more.  True: the connection's
 * own thread has to be woken. */
static bool push_locked(struct conn *c) REQUIRES(c->lock)
{
    if (c->sending || c->stalled) {
        return false;
    }
    c->sending = true;
    while ((!list_empty(&c->out) || transport_unsent(&c->io)) && !c->broken &&
           send_some_locked(c)) {
    }
    c->sending = false;
    if (c->broken) {
        break_locked(c);
    }
    return c->stalled || (c->throttled && c->out_bytes <= OUT_HIGH / 2);
}

void conn_push(struct conn *c)
{
    mutex_lock(&c->lock);
    bool look = push_locked(c);
    mutex_unlock(&c->lock);
    if (look && !pthread_equal(pthread_self(), c->self)) {
        conn_kick(c);
    }
}

void conn_break(struct conn *c)
{
    mutex_lock(&c->lock);
    break_locked(c);
    mutex_unlock(&c->lock);
}
