/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Old data in new clusters, and flushes that fail.
 *
 *   old cluster   |aaaaaaaa|      durable; the entry on disk leads there
 *   new cluster   |aaaaGGaa|      G: the guest's, a: copied (write.c)
 *
 * When a flush fails, storage may have lost the new cluster.  The guest is
 * told, and writes G again, in place.  Nobody but us knows that a has to be
 * written again, too.  The entry must not lead there on disk before that.
 *
 *  1. What was copied is noted before the entry changes in memory, and until a
 *     round of flush.c has succeeded that began after that.
 *  2. A flush of the file or the data file that fails may have lost all that is
 *     noted, or was copied by then.  No round succeeds then before all of it is
 *     mended.
 *  3. Mending writes what the new cluster reads as, to the same place.  That
 *     needs no room.  Meanwhile the guest's writes do not go past the range
 *     lock: map() has no place for them to overwrite (`mending`), and
 *     writes that have one already are waited for (tickets).
 *  4. The caller may hold a range, or a write may hang.  Then mending gives up
 *     soon, and the flush fails.
 */
#include "qcow2/copied.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nbdelta/cleanup.h"
#include "qcow2/bitmaps.h"
#include "qcow2/l2.h"
#include "util/iov.h"

/* Write back when so much is noted. */
#define MANY 131072
/* The longest wait for writes of the guest. */
#define PATIENCE_MS 2000

void qcow2_copied_init(struct qcow2 *s)
{
    mutex_init(&s->copied.lock, LOCK_QCOW2_MEND, s);
}

void qcow2_copied_free(struct qcow2 *s)
{
    mutex_destroy(&s->copied.lock);
    free(s->copied.list);
}

int qcow2_copied_note(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                      uint64_t losses)
{
    struct qcow2_copied *c = &s->copied;

    if (bytes == 0) {
        return 0;
    }
    if (c->count == c->room) {
        size_t room = c->room ? c->room * 2 : 64;
        struct qcow2_copy *more = realloc(c->list, room * sizeof(*more));
        if (!more) {
            return -ENOMEM;
        }
        c->list = more;
        c->room = room;
    }
    c->list[c->count++] = (struct qcow2_copy){offset, bytes};
    if (losses != qcow2_copied_losses(s)) {
        qcow2_copied_lost(s); /* the others may be mended already */
    }
    return 0;
}

bool qcow2_copied_many(const struct qcow2 *s)
{
    return s->copied.count > MANY;
}

void qcow2_copied_durable(struct qcow2 *s, size_t count)
{
    struct qcow2_copied *c = &s->copied;

    if (count > 0) {
        c->count -= count;
        memmove(c->list, c->list + count, c->count * sizeof(*c->list));
    }
}

/* --- Mending --- */

static void rest(uint64_t *waited)
{
    struct timespec ms = {.tv_nsec = 1000000};

    (void)nanosleep(&ms, NULL);
    ++*waited;
}

/* Until no write is under way that began before `mending`. */
static int wait_for_writes(struct qcow2 *s, uint64_t *waited)
{
    for (unsigned turns = 0; turns < 2;) {
        mutex_lock(&s->meta);
        uint64_t next = atomic_load(&s->epoch) + 1;
        bool calm = atomic_load(&s->users[next & 1]) == 0;
        if (calm) {
            atomic_store(&s->epoch, next);
        }
        mutex_unlock(&s->meta);
        turns += calm;
        if (!calm && *waited >= PATIENCE_MS) {
            return -EIO;
        }
        if (!calm) {
            rest(waited);
        }
    }
    return 0;
}

/* What is at @offset now, and for how many of @bytes; NORMAL, or nothing that
 * was copied. */
static int look_up(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                   struct qcow2_at *at)
{
    struct qcow2_table *t = NULL;

    *at = (struct qcow2_at){.kind = QCOW2_KIND_UNALLOCATED, .bytes = bytes};
    if (offset / qcow2_l2_span(s) >= s->l1_size) {
        return 0;
    }
    int r = qcow2_l2_get(s, offset, false, &t);
    if (r < 0 || !t) {
        return r;
    }
    qcow2_l2_look(s, t, offset, bytes, at);
    qcow2_cache_put(s->l2, t);
    return qcow2_l2_check(s, at);
}

static int write_same(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    CLEANUP_FREE char *buf = buf_alloc(bytes);

    if (!buf) {
        return -ENOMEM;
    }
    int r = node_pread(s->data, buf, bytes, host, 0);
    return r < 0 ? r : node_pwrite(s->data, buf, bytes, host, 0);
}

/* Encrypted or not: the bytes are taken as they lie there. */
static int mend_locked(struct qcow2 *s, const struct qcow2_copy *c)
{
    struct qcow2_at at;
    int r = 0;

    for (uint64_t done = 0; done < c->bytes && r == 0; done += at.bytes) {
        r = look_up(s, c->offset + done, c->bytes - done, &at);
        if (r == 0 && at.kind == QCOW2_KIND_NORMAL) {
            r = write_same(s, at.host, at.bytes);
        }
    }
    return r;
}

static int mend_one(struct qcow2 *s, const struct qcow2_copy *c,
                    uint64_t *waited)
{
    struct range_req req;

    while (!range_trylock(&s->range, &req, c->offset, c->bytes, true)) {
        if (*waited >= PATIENCE_MS) {
            return -EIO;
        }
        rest(waited);
    }
    int r = mend_locked(s, c);
    range_unlock(&s->range, &req);
    return r;
}

static int mend_all(struct qcow2 *s, const struct qcow2_copy *list,
                    size_t count)
{
    uint64_t waited = 0;

    atomic_store(&s->copied.mending, true);
    int r = wait_for_writes(s, &waited);
    for (size_t i = 0; i < count && r == 0; i++) {
        r = mend_one(s, &list[i], &waited);
    }
    atomic_store(&s->copied.mending, false);
    return r;
}

static int mend(struct qcow2 *s) REQUIRES(s->copied.lock)
{
    uint64_t losses = qcow2_copied_losses(s);

    mutex_lock(&s->meta);
    size_t count = s->copied.count;
    CLEANUP_FREE struct qcow2_copy *list = malloc((count + 1) * sizeof(*list));
    if (list && count > 0) {
        memcpy(list, s->copied.list, count * sizeof(*list));
    }
    mutex_unlock(&s->meta);
    int r = !list ? -ENOMEM : count > 0 ? mend_all(s, list, count) : 0;
    if (r == 0) {
        atomic_store(&s->copied.mended, losses);
    }
    return r;
}

int qcow2_copied_mend(struct qcow2 *s)
{
    if (!qcow2_copied_are_lost(s)) {
        return 0;
    }
    mutex_lock(&s->copied.lock);
    int r = qcow2_copied_are_lost(s) ? mend(s) : 0;
    mutex_unlock(&s->copied.lock);
    return r;
}
