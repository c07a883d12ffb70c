/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Two disks are compared: see disk-compare.h.
 *
 *     ranges of disk 0   |data     |zero|data        |hole ...
 *     ranges of disk 1   |data|zero     |data|zero         ...
 *     pieces             |both|0   |    |both|0      |          <= PIECE each
 *                          \    \_________ read by threads, in their order
 *
 * It goes by rounds.  A round asks both disks for their ranges, makes pieces of
 * what has to be read, and has threads read and compare them.  What both say
 * is zeroes is not read.  The first thing met, a difference or an error, is the
 * one with the smallest offset: threads that have pieces before it go on, and
 * nothing behind it is begun.
 */
#include "cli/disk-compare.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/thread.h"

#define PIECE       MiB
#define PIECES_MAX  4096 /* of a round */
#define RUNS_MAX    65536
#define THREADS_MAX 8

/* Neighbours that are alike. */
struct run {
    uint64_t end;
    unsigned flags; /* enum extent_flags */
};

struct runs {
    struct run *run; /* RUNS_MAX of them */
    unsigned count;
    unsigned next;
};

struct piece {
    uint64_t offset;
    uint32_t bytes;
    bool read[2]; /* else it is zeroes */
};

struct round {
    struct disk_compare *c;
    struct runs runs[2];
    struct piece *piece; /* PIECES_MAX of them */
    unsigned count;
    _Atomic unsigned taken;

    mutex_t lock;
    uint64_t met GUARDED_BY(lock); /* nothing is met: UINT64_MAX */
    enum disk_difference difference GUARDED_BY(lock);
    int error GUARDED_BY(lock);
    int failed GUARDED_BY(lock);
};

static void note(struct round *r, uint64_t offset, enum disk_difference d,
                 int error, int failed)
{
    mutex_lock(&r->lock);
    if (offset < r->met) {
        r->met = offset;
        r->difference = d;
        r->error = error;
        r->failed = failed;
    }
    mutex_unlock(&r->lock);
}

static uint64_t met(struct round *r)
{
    mutex_lock(&r->lock);
    uint64_t at = r->met;
    mutex_unlock(&r->lock);
    return at;
}

/* --- Ranges --- */

static int add_run(struct runs *s, uint64_t end, unsigned flags)
{
    if (s->count > 0 && s->run[s->count - 1].flags == flags) {
        s->run[s->count - 1].end = end;
        return 0;
    }
    if (s->count == RUNS_MAX) {
        return 1;
    }
    s->run[s->count++] = (struct run){end, flags};
    return 0;
}

static int add_extent(const struct extent *e, void *opaque)
{
    return add_run(opaque, e->offset + e->length,
                   e->flags & (EXTENT_DATA | EXTENT_ZERO | EXTENT_ALLOCATED));
}

/* What the disk is from @offset on, at least a part of it. */
static int find_runs(struct runs *s, struct blk *b, uint64_t offset,
                     uint64_t end)
{
    uint64_t size = blk_size(b);
    int r = 0;

    s->count = s->next = 0;
    if (offset < size) {
        r = blk_extents(b, offset, size - offset, 0, add_extent, s);
    }
    /* Behind its end it is zeroes. */
    return r == 0 && size < end ? add_run(s, end, EXTENT_ZERO) : r;
}

/* --- Pieces --- */

/* Of the ranges at @offset that end at @end. */
static void add_pieces(struct round *r, uint64_t offset, uint64_t end,
                       const unsigned flags[2], uint64_t *next)
{
    bool read[2] = {!(flags[0] & EXTENT_ZERO), !(flags[1] & EXTENT_ZERO)};

    while (offset < end && (read[0] || read[1])) {
        uint64_t stop = min_u64(end, align_down(offset, PIECE) + PIECE);

        if (r->count == PIECES_MAX) {
            *next = offset;
            return;
        }
        r->piece[r->count++] = (struct piece){
            .offset = offset,
            .bytes = (uint32_t)(stop - offset),
            .read = {read[0], read[1]},
        };
        offset = stop;
    }
    *next = end;
}

/* The pieces of a round that begins at *offset, and where the next begins. */
static void make_pieces(struct round *r, uint64_t *offset)
{
    struct runs *a = &r->runs[0];
    struct runs *b = &r->runs[1];

    r->count = 0;
    while (a->next < a->count && b->next < b->count) {
        const struct run *x = &a->run[a->next];
        const struct run *y = &b->run[b->next];
        const unsigned flags[2] = {x->flags, y->flags};
        uint64_t end = min_u64(x->end, y->end);

        if (r->c->strict && x->flags != y->flags) {
            note(r, *offset, DISKS_STATUS_DIFFERS, 0, -1);
            return;
        }
        add_pieces(r, *offset, end, flags, offset);
        if (*offset < end) {
            return;
        }
        a->next += x->end == end;
        b->next += y->end == end;
    }
}

/* --- Threads --- */

static int read_piece(struct round *r, const struct piece *p, uint8_t *buf[2])
{
    for (int i = 0; i < 2; i++) {
        int e = p->read[i]
                    ? blk_pread(r->c->disk[i], buf[i], p->bytes, p->offset, 0)
                    : 0;
        if (e < 0) {
            note(r, p->offset, DISKS_SAME, e, i);
            return e;
        }
    }
    return 0;
}

static void compare_piece(struct round *r, const struct piece *p,
                          uint8_t *buf[2])
{
    const uint8_t *alone = p->read[0] ? buf[0] : buf[1];
    bool both = p->read[0] && p->read[1];
    uint32_t i = 0;

    if (both ? memcmp(buf[0], buf[1], p->bytes) == 0
             : bytes_are_zero(alone, p->bytes)) {
        return;
    }
    while (both ? buf[0][i] == buf[1][i] : alone[i] == 0) {
        i++;
    }
    note(r, p->offset + i, DISKS_DIFFER, 0, -1);
}

static void *compare_pieces(void *opaque)
{
    struct round *r = opaque;
    CLEANUP_FREE uint8_t *first = malloc(PIECE);
    CLEANUP_FREE uint8_t *second = malloc(PIECE);
    uint8_t *buf[2] = {first, second};
    unsigned i;

    if (!first || !second) {
        note(r, 0, DISKS_SAME, -ENOMEM, -1);
        return NULL;
    }
    while ((i = r->taken++) < r->count) {
        const struct piece *p = &r->piece[i];

        if (p->offset >= met(r)) {
            break;
        }
        if (read_piece(r, p, buf) == 0) {
            compare_piece(r, p, buf);
        }
        r->c->done += p->bytes;
    }
    return NULL;
}

/* The caller's thread is one of them. */
static void run_threads(struct round *r)
{
    pthread_t threads[THREADS_MAX - 1];
    unsigned n = 0;

    r->taken = 0;
    while (n < THREADS_MAX - 1 && n + 1 < r->count &&
           thread_start(&threads[n], "compare", compare_pieces, r) == 0) {
        n++;
    }
    compare_pieces(r);
    while (n > 0) {
        thread_join(threads[--n]);
    }
}

/* --- */

static void go_round(struct round *r, uint64_t *offset, uint64_t end)
{
    for (int i = 0; i < 2; i++) {
        int e = find_runs(&r->runs[i], r->c->disk[i], *offset, end);

        if (e < 0) {
            note(r, *offset, DISKS_SAME, e, i);
            return;
        }
    }
    make_pieces(r, offset);
    if (r->count > 0) {
        run_threads(r);
    }
    r->c->done = *offset;
}

static int compare_all(struct round *r, int *failed, struct error **errp)
{
    struct disk_compare *c = r->c;
    uint64_t end = max_u64(blk_size(c->disk[0]), blk_size(c->disk[1]));
    uint64_t offset = 0;

    while (offset < end && met(r) == UINT64_MAX) {
        go_round(r, &offset, end);
    }
    mutex_lock(&r->lock);
    c->difference = r->difference;
    c->offset = r->met;
    *failed = r->failed;
    int e = r->error;
    mutex_unlock(&r->lock);
    return e == -ENOMEM && *failed < 0 ? error_nomem(errp)
           : e < 0 ? error_set(errp, -e, "cannot read offset %" PRIu64 ": %s",
                               c->offset, strerror(-e))
                   : 0;
}

int disk_compare(struct disk_compare *c, int *failed, struct error **errp)
{
    struct round r = {
        .c = c,
        .runs[0].run = calloc(RUNS_MAX, sizeof(struct run)),
        .runs[1].run = calloc(RUNS_MAX, sizeof(struct run)),
        .piece = calloc(PIECES_MAX, sizeof(struct piece)),
        .met = UINT64_MAX,
        .failed = -1,
    };
    int e;

    mutex_init(&r.lock, LOCK_COMPARE, NULL);
    *failed = -1;
    e = r.runs[0].run && r.runs[1].run && r.piece
            ? compare_all(&r, failed, errp)
            : error_nomem(errp);
    mutex_destroy(&r.lock);
    free(r.runs[0].run);
    free(r.runs[1].run);
    free(r.piece);
    return e;
}
