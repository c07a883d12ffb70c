/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests in flight: map, then have the kernel move.
 *
 *     blk_fly_read             enters the tree with the first one in flight
 *       qcow2    map -> DATA(file, host)      the mapping is held
 *       file     driver's flight->begin       a descriptor
 *     ring_queue ... flights_submit           the kernel reads
 *     ring_next
 *       file     driver's flight->end         the result; or the rest, again
 *       qcow2    map_put                      what is held is let go
 *     flights_next             leaves the tree with the last one in flight
 *
 * On the way down each layer adds what has to stay as it is until the bytes
 * have been moved (`struct hold`).  A layer that wants to see the request, or
 * would have to wait, ends the attempt: everything is let go, and nothing has
 * happened.  So a flight is what io.c does with REQ_NOWAIT when all of the
 * range is one piece, cut in two before the bytes move.
 *
 * The tree is held by the thread, not by each request.  It is not entered again
 * and again while a drain waits: no new flight begins then, so the last of
 * those in flight leaves it.
 */
#include "nbdelta/flights.h"

#include <errno.h>
#include <poll.h>
#include <stdalign.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/blk-priv.h"
#include "core/dirty.h"
#include "core/event.h"
#include "core/ring.h"
#include "nbdelta/bytes.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"

/* Something that a layer keeps until the end. */
struct hold {
    struct node *node;
    bool is_range; /* a shared part of node->rmw; else a mapping */
    union {
        struct mapping map;
        struct range_req range;
    };
};

/* Requests that go through more layers do not fly. */
#define HOLDS_MAX 8

/* The kernel did not take all: try again after so many milliseconds. */
#define AGAIN_MS 5

struct flight {
    struct list link; /* while it is free */
    struct blk *blk;
    void *opaque;
    uint64_t bytes;
    struct stats_timer timer;
    struct node *file; /* whose bytes are moved, by `fd` */
    int fd;
    struct moving moving;
    struct hold holds[HOLDS_MAX];
    unsigned held;

    /* Of one that something else than the kernel moves. */
    struct flights *of;
    struct list on_landed;
    int moved;
    alignas(max_align_t) char room[FLIGHT_ROOM];
};

struct flights {
    struct ring *ring; /* from the first flight on */
    struct tree *tree; /* entered while count > 0 */
    unsigned count;
    struct list free;

    /* Of flights that something else than the kernel moves. */
    unsigned launched; /* a part of count */
    int kick;          /* raised when `landed` becomes longer than nothing; -1
                          before the first one */
    mutex_t lock;
    struct list landed; /* lock */
};

struct flights *flights_new(void)
{
    struct flights *fs = calloc(1, sizeof(*fs));

    if (fs) {
        list_init(&fs->free);
        list_init(&fs->landed);
        mutex_init(&fs->lock, LOCK_FLIGHTS, NULL);
        fs->kick = -1;
    }
    return fs;
}

void flights_free(struct flights *fs)
{
    if (fs) {
        list_for_each_safe (at, &fs->free) {
            free(list_entry(at, struct flight, link));
        }
        ring_free(fs->ring);
        if (fs->kick >= 0) {
            (void)close(fs->kick);
        }
        mutex_destroy(&fs->lock);
        free(fs);
    }
}

/* --- Holding --- */

static struct hold *hold_new(struct flight *f, struct node *n, bool is_range)
{
    if (f->held == HOLDS_MAX) {
        return NULL;
    }
    struct hold *h = &f->holds[f->held];
    h->node = n;
    h->is_range = is_range;
    return h;
}

static void let_go(struct flight *f)
{
    while (f->held > 0) {
        struct hold *h = &f->holds[--f->held];

        if (h->is_range) {
            range_unlock(&h->node->rmw, &h->range);
        } else {
            node_map_put(h->node, &h->map);
        }
    }
}

static int hold_range(struct flight *f, struct node *n, uint64_t offset)
{
    struct hold *h = hold_new(f, n, true);

    if (!h || !range_trylock(&n->rmw, &h->range, offset, f->bytes, false)) {
        return -EAGAIN;
    }
    f->held++;
    return 0;
}

/* Map all of the range as one piece, and hold the mapping. */
static int hold_mapping(struct flight *f, struct node *n, uint64_t offset,
                        unsigned flags, struct mapping **m)
{
    struct hold *h = hold_new(f, n, false);

    if (!h || node_map(n, offset, f->bytes, flags | MAP_NOWAIT, &h->map) < 0) {
        return -EAGAIN;
    }
    f->held++;
    *m = &h->map;
    return h->map.length == f->bytes && !h->map.coded ? 0 : -EAGAIN;
}

/* --- The way down --- */

static bool fits(const struct node *n, const struct flight *f, uint64_t offset)
{
    return is_aligned(offset | f->bytes, n->limits.align) &&
           f->bytes <= n->limits.max_transfer &&
           range_inside(offset, f->bytes, n->size);
}

/* @n is a protocol. */
static int begin_in_file(struct flight *f, struct node *n, uint64_t offset)
{
    if (!n->drv->flight ||
        !is_aligned((uintptr_t)f->moving.buf, n->limits.align)) {
        return -EAGAIN;
    }
    f->file = n;
    f->moving.offset = offset;
    if (n->drv->flight->launch) {
        return 0;
    }
    f->fd = n->drv->flight->begin(n, f->moving.write);
    return f->fd < 0 ? -EAGAIN : 0;
}

/* One layer down.  In *n and *offset: where the bytes are. */
static int step_of_read(struct flight *f, struct node **n, uint64_t *offset)
{
    struct node *file = node_child(*n, CHILD_FILE);
    struct node *backing = node_child(*n, CHILD_BACKING);
    struct mapping *m;

    if (hold_mapping(f, *n, *offset, 0, &m) < 0) {
        return -EAGAIN;
    }
    if (m->kind == MAP_DATA) {
        *n = m->file;
        *offset = m->host;
        return node_event_in_request(file, EVENT_READ_AIO, REQ_NOWAIT);
    }
    if (m->kind != MAP_UNALLOCATED || !backing ||
        !range_inside(*offset, f->bytes, backing->size)) {
        return -EAGAIN;
    }
    *n = backing;
    return node_event_in_request(file, EVENT_READ_BACKING_AIO, REQ_NOWAIT);
}

static int begin_read(struct flight *f, struct node *n, uint64_t offset)
{
    int r = 0;

    while (r == 0) {
        if (!fits(n, f, offset)) {
            return -EAGAIN;
        }
        if (n->drv->is_protocol) {
            return begin_in_file(f, n, offset);
        }
        if (n->drv->is_filter) {
            if (n->drv->preadv) {
                return -EAGAIN;
            }
            n = node_child(n, CHILD_FILE);
        } else {
            r = n->guard ? -EAGAIN : step_of_read(f, &n, &offset);
        }
    }
    return r;
}

static int step_of_write(struct flight *f, struct node **n, uint64_t *offset)
{
    struct node *file = node_child(*n, CHILD_FILE);
    struct mapping *m;

    if (hold_mapping(f, *n, *offset, MAP_WRITE, &m) < 0 ||
        m->kind != MAP_DATA) {
        return -EAGAIN;
    }
    *n = m->file;
    *offset = m->host;
    return node_event_in_request(file, EVENT_WRITE_AIO, REQ_NOWAIT);
}

/* As node_pwritev(): dirty bits are set first. */
static int begin_write(struct flight *f, struct node *n, uint64_t offset)
{
    int r = 0;

    while (r == 0) {
        if (n->flags.read_only || n->flags.detect_zeroes != DETECT_OFF ||
            !fits(n, f, offset) ||
            bitmap_mark(n, offset, f->bytes, REQ_NOWAIT) < 0) {
            return -EAGAIN;
        }
        node_note_write(n, offset + f->bytes);
        if (n->drv->is_filter) {
            if (!node_passes_writes(n)) {
                return -EAGAIN;
            }
            n = node_child(n, CHILD_FILE);
            continue;
        }
        if (n->limits.align > 1 && hold_range(f, n, offset) < 0) {
            return -EAGAIN;
        }
        if (n->drv->is_protocol) {
            return begin_in_file(f, n, offset);
        }
        r = step_of_write(f, &n, &offset);
    }
    return r;
}

/* --- Begin --- */

static struct flight *flight_new(struct flights *fs)
{
    if (fs->count == RING_ENTRIES) {
        return NULL;
    }
    if (list_empty(&fs->free)) {
        return malloc(sizeof(struct flight));
    }
    struct flight *f = list_entry(fs->free.next, struct flight, link);
    list_remove(&f->link);
    return f;
}

static bool enter(struct flights *fs, struct blk *b)
{
    if (fs->count == 0) {
        fs->tree = edge_enter(&b->root, true);
        return fs->tree != NULL;
    }
    return atomic_load(&b->root.tree) == fs->tree &&
           atomic_load(&fs->tree->draining) == 0;
}

static void leave(struct flights *fs)
{
    if (fs->count == 0) {
        node_leave(fs->tree);
        fs->tree = NULL;
    }
}

static void queue(struct flights *fs, struct flight *f, bool blocking)
{
    const struct moving *t = &f->moving;
    const struct ring_op op = {t->write, blocking,           f->fd,
                               t->buf,   (uint32_t)t->bytes, t->offset};

    ring_queue(fs->ring, &op, f);
}

/* In a thread of whatever has moved the bytes. */
static void flight_landed(struct moving *t, int moved)
{
    struct flight *f = list_entry(t, struct flight, moving);
    struct flights *fs = f->of;

    f->moved = moved;
    /* The list may be freed as soon as somebody has found the last flight. */
    mutex_lock(&fs->lock);
    bool first = list_empty(&fs->landed);
    list_append(&fs->landed, &f->on_landed);
    if (first) {
        kick_raise(fs->kick);
    }
    mutex_unlock(&fs->lock);
}

static int launch(struct flights *fs, struct flight *f)
{
    if (fs->kick < 0 && (fs->kick = kick_new()) < 0) {
        return -EAGAIN;
    }
    f->of = fs;
    f->moving.landed = flight_landed;
    f->moving.room = f->room;
    if (f->file->drv->flight->launch(f->file, &f->moving) < 0) {
        return -EAGAIN;
    }
    fs->launched++;
    return 0;
}

/* Have the bytes moved. */
static int take_off(struct flights *fs, struct flight *f)
{
    if (f->file->drv->flight->launch) {
        return launch(fs, f);
    }
    if (!fs->ring && !(fs->ring = ring_new())) {
        return -EAGAIN;
    }
    queue(fs, f, false);
    return 0;
}

/* In the tree. */
static int begin(struct flights *fs, struct flight *f, unsigned perm,
                 uint64_t offset)
{
    struct node *n = f->blk->root.child;

    if ((f->blk->root.perm & perm) != perm || f->blk->root.throttle ||
        !range_inside(offset, f->bytes, n->size)) {
        return -EAGAIN;
    }
    stats_begin(&f->timer, 0);
    int r = f->moving.write ? begin_write(f, n, offset)
                            : begin_read(f, n, offset);
    if (r == 0) {
        r = take_off(fs, f);
    }
    if (r < 0) {
        let_go(f);
        return -EAGAIN;
    }
    fs->count++;
    return 0;
}

static int fly(struct flights *fs, struct blk *b, bool write, void *buf,
               uint64_t bytes, uint64_t offset, void *opaque)
{
    struct flight *f = bytes > 0 && bytes <= UINT32_MAX / 2 ? flight_new(fs)
                                                            : NULL;
    int r = -EAGAIN;

    if (!f) {
        return -EAGAIN;
    }
    f->blk = b;
    f->opaque = opaque;
    f->bytes = bytes;
    f->held = 0;
    f->moving = (struct moving){.write = write, .buf = buf, .bytes = bytes};
    if (enter(fs, b)) {
        r = begin(fs, f, write ? PERM_WRITE : PERM_READ, offset);
        leave(fs);
    }
    if (r < 0) {
        list_append(&fs->free, &f->link);
    }
    return r;
}

int blk_fly_read(struct flights *fs, struct blk *b, void *buf, uint64_t bytes,
                 uint64_t offset, void *opaque)
{
    return fly(fs, b, false, buf, bytes, offset, opaque);
}

int blk_fly_write(struct flights *fs, struct blk *b, void *buf, uint64_t bytes,
                  uint64_t offset, void *opaque)
{
    return fly(fs, b, true, buf, bytes, offset, opaque);
}

/* --- End --- */

unsigned flights_count(const struct flights *fs)
{
    return fs->count;
}

bool flights_submit(struct flights *fs)
{
    return !fs->ring || ring_submit(fs->ring);
}

int flights_fd(const struct flights *fs)
{
    return fs->count > fs->launched ? ring_fd(fs->ring) : -1;
}

int flights_kick_fd(const struct flights *fs)
{
    return fs->launched > 0 ? fs->kick : -1;
}

static void land(struct flights *fs, struct flight *f, int r)
{
    let_go(f);
    stats_end(&f->blk->stats, f->moving.write ? STATS_WRITE : STATS_READ,
              f->bytes, &f->timer, r);
    list_append(fs->free.next, &f->link); /* it is in the processor's cache */
    fs->count--;
    leave(fs);
}

static struct flight *next_landed(struct flights *fs)
{
    struct flight *f = NULL;

    mutex_lock(&fs->lock);
    if (!list_empty(&fs->landed)) {
        f = list_entry(fs->landed.next, struct flight, on_landed);
        list_remove(&f->on_landed);
        if (list_empty(&fs->landed)) {
            kick_clear(fs->kick);
        }
    }
    mutex_unlock(&fs->lock);
    return f;
}

bool flights_next(struct flights *fs, void **opaque, int *result)
{
    struct flight *l = fs->launched > 0 ? next_landed(fs) : NULL;
    void *token;
    int moved;

    if (l) {
        fs->launched--;
        *opaque = l->opaque;
        *result = l->file->drv->flight->end(l->file, &l->moving, l->moved);
        land(fs, l, *result);
        return true;
    }
    while (fs->count > fs->launched && ring_next(fs->ring, &token, &moved)) {
        struct flight *f = token;
        int r = f->file->drv->flight->end(f->file, &f->moving, moved);

        if (r == MOVE_MORE) {
            queue(fs, f, true);
            continue;
        }
        land(fs, f, r);
        *opaque = f->opaque;
        *result = r;
        return true;
    }
    return false;
}

void flights_wait(struct flights *fs)
{
    if (fs->launched == 0) {
        ring_wait(fs->ring);
        return;
    }
    bool ring = fs->count > fs->launched;
    struct pollfd fds[2] = {{.fd = fs->kick, .events = POLLIN},
                            {.fd = flights_fd(fs), .events = POLLIN}};
    bool all = !ring || ring_submit(fs->ring);
    (void)poll(fds, 2, all ? -1 : AGAIN_MS);
}
