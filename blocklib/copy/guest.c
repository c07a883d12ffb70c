/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guest's side of the copy engine: what happens before a write.
 *
 * The guest's own thread copies what needs no waiting: from the page cache into
 * a scratch's memory, or into that of the target.  Without a limit of time it
 * copies all else, too.  With a limit it posts an errand, because I/O that has
 * begun cannot be given up:
 *
 *      guest                               errand threads
 *        post ------------------> queue --> take the range, copy
 *        wait <----------------------------- done
 *          | time is up
 *          +- no thread has begun it: take it back
 *          +- else leave it; it ends alone, and copy_settle waits for it
 *
 * An errand that was left may end at any time, and does no harm then.  Either
 * the guest's write has failed, so that its cluster is as it was, or the point
 * in time is broken (invariant 4 in copy.c).
 *
 * Errands hold no tree lock of their own.  A guest that waits holds it.  A
 * drain first lets all guests out, and then settles the errands that they left.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "copy/priv.h"
#include "nbdelta/bytes.h"

#define ERRAND_THREADS 16

/* An errand that takes longer is something to tell (thread_wait_begin). */
#define PATIENCE_NS UINT64_C(5000000)

/* How often a guest looks whether there is anything left to wait for. */
#define LOOK_NS UINT64_C(250000000)

struct errand {
    struct list link; /* in the queue, until a thread begins it */
    uint64_t offset;
    uint64_t end;
    bool begun;
    bool done;
    bool keeps; /* the guest's request keeps the tree: its node_progress */
    _Atomic bool left; /* by the guest: its thread frees it */
    int result;
    enum copy_side side;
    cond_t ended;
};

struct errands {
    struct copy *copy;
    mutex_t lock; /* innermost */
    /* Guarded by lock. */
    cond_t posted;
    cond_t idle;
    cond_t room;
    struct list queue;
    unsigned queued;
    unsigned busy;
    unsigned waiting; /* threads with nothing to do */
    unsigned count;
    unsigned rooms;   /* how often room was made, and 1 for the start */
    unsigned full_at; /* the value of rooms at the last try that found none */
    bool turn;        /* one write tries whether there is room; others would
                         read for nothing what they cannot put */
    bool end;
    pthread_t threads[ERRAND_THREADS];
};

#define errand_of(at) list_entry(at, struct errand, link)

/* Copy in this thread.  The range is whole clusters. */
static int copy_here(struct copy *c, uint64_t offset, uint64_t end,
                     enum copy_side *side)
{
    struct range_req req;
    void *buf = copy_buffer_get(c);

    *side = COPY_READ;
    if (!buf) {
        return -ENOMEM;
    }
    range_lock(&c->in_hand, &req, offset, end - offset, true);
    int r = copy_range_locked(c, offset, end, buf, side);
    range_unlock(&c->in_hand, &req);
    copy_buffer_put(c, buf);
    return r;
}

/* The same, except that nothing is waited for: -EAGAIN. */
static int copy_now(struct copy *c, uint64_t offset, uint64_t end)
{
    struct range_req req;

    if (!c->quick || end - offset > c->buffer_size ||
        !range_trylock(&c->in_hand, &req, offset, end - offset, true)) {
        return -EAGAIN;
    }
    void *buf = copy_buffer_get(c);
    int r = buf ? copy_range_now(c, offset, end, buf) : -EAGAIN;
    range_unlock(&c->in_hand, &req);
    copy_buffer_put(c, buf);
    return r;
}

/* --- Errand threads --- */

static void end_errand_locked(struct errands *e, struct errand *t, int r)
    REQUIRES(e->lock)
{
    e->busy--;
    if (e->busy == 0) {
        cond_broadcast(&e->idle);
    }
    if (t->left) {
        cond_destroy(&t->ended);
        free(t);
        return;
    }
    t->result = r;
    t->done = true;
    cond_signal(&t->ended);
}

static struct errand *next_errand_locked(struct errands *e) REQUIRES(e->lock)
{
    while (list_empty(&e->queue) && !e->end) {
        e->waiting++;
        cond_wait(&e->posted, &e->lock);
        e->waiting--;
    }
    if (list_empty(&e->queue)) {
        return NULL;
    }
    struct errand *t = errand_of(e->queue.next);
    list_remove(&t->link);
    e->queued--;
    t->begun = true;
    e->busy++;
    return t;
}

static void *errand_thread(void *opaque)
{
    struct errands *e = opaque;
    struct errand *t;

    mutex_lock(&e->lock);
    while ((t = next_errand_locked(e))) {
        mutex_unlock(&e->lock);
        enum copy_side side;
        node_progress = t->keeps ? PROGRESS_CHANGED : PROGRESS_NONE;
        node_unwanted = &t->left;
        int r = copy_here(e->copy, t->offset, t->end, &side);
        node_unwanted = NULL;
        mutex_lock(&e->lock);
        t->side = side;
        end_errand_locked(e, t, r);
    }
    mutex_unlock(&e->lock);
    return NULL;
}

/* --- The guest, with a limit --- */

/* False: there is no thread for the errand, and none can be made. */
static bool post_errand_locked(struct errands *e, struct errand *t)
    REQUIRES(e->lock)
{
    if (e->queued >= e->waiting && e->count < ERRAND_THREADS &&
        thread_start(&e->threads[e->count], "errand", errand_thread, e) == 0) {
        e->count++;
    }
    if (e->count == 0) {
        return false;
    }
    list_append(&e->queue, &t->link);
    e->queued++;
    cond_signal(&e->posted);
    return true;
}

static bool wait_until(cond_t *cond, struct errands *e, uint64_t deadline)
    REQUIRES(e->lock)
{
    uint64_t now = now_ns();

    return now < deadline &&
           (cond_wait_ms(cond, &e->lock, div_up(deadline - now, 1000000)),
            true);
}

/* Returns now and then, because nobody wakes a guest when the point in time is
 * lost.  False: waiting is over. */
static bool wait_a_little(struct errands *e, struct errand *t,
                          uint64_t deadline) REQUIRES(e->lock)
{
    uint64_t look = min_u64(deadline, now_ns() + LOOK_NS);

    (void)wait_until(&t->ended, e, look);
    return now_ns() < deadline && !copy_is_broken(e->copy);
}

static int await_errand_locked(struct errands *e, struct errand *t,
                               uint64_t deadline, enum copy_side *side)
    REQUIRES(e->lock)
{
    uint64_t soon = min_u64(deadline, now_ns() + PATIENCE_NS);

    while (!t->done && wait_until(&t->ended, e, soon)) {
    }
    if (!t->done) {
        thread_wait_begin();
        while (!t->done && wait_a_little(e, t, deadline)) {
        }
        thread_wait_end();
    }
    if (!t->done && t->begun) {
        t->left = true;
        return -ETIMEDOUT;
    }
    int r = t->done ? t->result : -ETIMEDOUT;
    if (t->done) {
        *side = t->side;
    } else {
        list_remove(&t->link);
        e->queued--;
    }
    cond_destroy(&t->ended);
    free(t);
    return r;
}

static int send_errand(struct errands *e, uint64_t offset, uint64_t end,
                       uint64_t deadline, enum copy_side *side)
{
    struct errand *t = calloc(1, sizeof(*t));

    *side = COPY_WRITE;
    if (!t) {
        return -ENOMEM;
    }
    t->offset = offset;
    t->end = end;
    t->keeps = node_progress == PROGRESS_CHANGED;
    cond_init(&t->ended);
    mutex_lock(&e->lock);
    bool posted = post_errand_locked(e, t);
    int r = posted ? await_errand_locked(e, t, deadline, side) : 0;
    mutex_unlock(&e->lock);
    if (!posted) {
        cond_destroy(&t->ended);
        free(t);
        r = copy_here(e->copy, offset, end, side);
    }
    return r;
}

static unsigned rooms_of(struct errands *e)
{
    mutex_lock(&e->lock);
    unsigned rooms = e->rooms;
    mutex_unlock(&e->lock);
    return rooms;
}

/* A write has tried when room had been made @rooms times: in vain (@full), or
 * not. */
static void note_try_for_room(struct errands *e, unsigned rooms, bool full,
                              bool had_turn)
{
    mutex_lock(&e->lock);
    if (full && rooms > e->full_at) {
        e->full_at = rooms;
    }
    if (had_turn) {
        e->turn = false;
        cond_broadcast(&e->room);
    }
    mutex_unlock(&e->lock);
}

/* Wait for room, and for the turn to try it.  False: time is up, or there is a
 * drain.  A drain keeps out the readers that make room, so the request comes
 * back after it. */
static bool await_room(struct errands *e, uint64_t deadline)
{
    thread_wait_begin();
    mutex_lock(&e->lock);
    while ((e->rooms == e->full_at || e->turn) &&
           !node_is_draining(e->copy->source) &&
           wait_until(&e->room, e, deadline)) {
    }
    bool mine = e->rooms != e->full_at && !e->turn;
    e->turn |= mine;
    mutex_unlock(&e->lock);
    thread_wait_end();
    return mine;
}

static int copy_in_time(struct copy *c, uint64_t offset, uint64_t end,
                        uint64_t deadline, enum copy_side *side)
{
    struct errands *e = c->errands;
    bool turn = false;

    for (;;) {
        unsigned rooms = rooms_of(e);
        int r = send_errand(e, offset, end, deadline, side);
        bool full = r == -ENOSPC && c->policy.wait_room;

        note_try_for_room(e, rooms, full, turn);
        if (!full) {
            return r;
        }
        turn = await_room(e, deadline);
        if (!turn) {
            return node_shall_restart(c->source) ? -ERESTART : r;
        }
    }
}

/* --- A write --- */

static void count_wait(struct copy_counters *k, uint64_t ns)
{
    uint64_t us = ns / 1000;
    unsigned i = us == 0 ? 0 : 64U - (unsigned)__builtin_clzll(us);
    uint64_t max = atomic_load(&k->wait_max_ns);

    atomic_fetch_add(&k->waits[min_u64(i, COPY_BUCKETS - 1)], 1);
    atomic_fetch_add(&k->wait_ns, ns);
    while (max < ns &&
           !atomic_compare_exchange_weak(&k->wait_max_ns, &max, ns)) {
    }
}

/* What was copied a moment ago may not be discarded yet (discard_source). */
static int await_discard(struct copy *c, uint64_t from, uint64_t end,
                         unsigned flags)
{
    struct range_req req;

    if (!(flags & REQ_NOWAIT)) {
        range_lock(&c->in_hand, &req, from, end - from, true);
    } else if (!range_trylock(&c->in_hand, &req, from, end - from, true)) {
        return -EAGAIN;
    }
    range_unlock(&c->in_hand, &req);
    return 0;
}

int copy_before_write(struct copy *c, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    uint64_t from = align_down(offset, c->cluster);
    uint64_t end = min_u64(c->size, align_up(offset + bytes, c->cluster));
    uint64_t start;
    uint64_t len;

    if (from >= end || atomic_load(&c->broken)) {
        return 0;
    }
    if (!copy_set_next(&c->todo, from, end, &start, &len)) {
        hbitmap_set(c->written, from, end - from);
        return c->discard_source ? await_discard(c, from, end, flags) : 0;
    }
    enum copy_side side = COPY_READ;
    uint64_t begin = now_ns();
    uint64_t deadline = begin + c->policy.max_wait_ms * 1000000;
    enum node_progress progress = node_progress;
    if (progress == PROGRESS_UNTOUCHED) { /* it stays so after the copy */
        node_progress = PROGRESS_NONE;
    }
    int r = copy_now(c, from, end);
    if (r < 0 && !(flags & REQ_NOWAIT)) {
        r = c->errands ? copy_in_time(c, from, end, deadline, &side)
                       : copy_here(c, from, end, &side);
    }
    node_progress = progress;
    if (r < 0 && (flags & REQ_NOWAIT)) {
        return -EAGAIN;
    }

    count_wait(&c->counters, now_ns() - begin);
    if (r == 0) {
        hbitmap_set(c->written, from, end - from);
    } else if (r != -ERESTART && !c->policy.break_write) {
        copy_break_with(c, r, side);
        r = 0;
    }
    return r;
}

void copy_hurry(struct copy *c)
{
    struct errands *e = c->errands;

    if (e) {
        mutex_lock(&e->lock);
        cond_broadcast(&e->room);
        mutex_unlock(&e->lock);
    }
}

void copy_settle(struct copy *c)
{
    struct errands *e = c->errands;

    if (e) {
        mutex_lock(&e->lock);
        while (e->busy > 0) {
            cond_wait(&e->idle, &e->lock);
        }
        mutex_unlock(&e->lock);
    }
}

void copy_errands_room(struct errands *e)
{
    mutex_lock(&e->lock);
    e->rooms++;
    cond_broadcast(&e->room);
    mutex_unlock(&e->lock);
}

struct errands *copy_errands_new(struct copy *c)
{
    struct errands *e = calloc(1, sizeof(*e));

    if (e) {
        e->copy = c;
        e->rooms = 1;
        mutex_init(&e->lock, LOCK_ERRANDS, NULL);
        cond_init(&e->posted);
        cond_init(&e->idle);
        cond_init(&e->room);
        list_init(&e->queue);
    }
    return e;
}

void copy_errands_free(struct errands *e)
{
    if (!e) {
        return;
    }
    mutex_lock(&e->lock);
    e->end = true;
    cond_broadcast(&e->posted);
    unsigned count = e->count;
    mutex_unlock(&e->lock);
    while (count > 0) {
        thread_join(e->threads[--count]);
    }
    mutex_destroy(&e->lock);
    cond_destroy(&e->posted);
    cond_destroy(&e->idle);
    cond_destroy(&e->room);
    free(e);
}
