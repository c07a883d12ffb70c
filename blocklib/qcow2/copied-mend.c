/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Old data in new clusters, and flushes that fail: copying it again.
 *
 *  1. A flush of the file or the data file that fails may have lost all that is
 *     noted (copied.c), or was copied by then.  No round of flush.c succeeds
 *     then before all of it is mended.
 *  2. Mending copies it again from where it came from, to the same place.  That
 *     needs no room.  What the new cluster reads as is not asked: storage that
 *     has lost it may read as it did before.
 *  3. Meanwhile the guest's writes do not go past the range lock: map() has no
 *     place for them to overwrite (`mending`), and writes that have one already
 *     are waited for (tickets).
 *  4. The caller may hold a range, or a write may hang.  Then mending gives up
 *     soon, and the flush fails.
 *  5. No round ends meanwhile (flush_lock), so the old clusters are there.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nbdelta/cleanup.h"
#include "qcow2/copied.h"
#include "qcow2/encrypt.h"
#include "util/iov.h"

/* The longest wait for writes of the guest. */
#define PATIENCE_MS 2000

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

/* What is at a place of the data file, as the guest sees it. */
static int read_place(struct qcow2 *s, uint64_t host, uint64_t bytes, char *buf)
{
    struct iovec v = {buf, bytes};
    int r = node_pread(s->data, buf, bytes, host, 0);

    return r == 0 && s->luks ? qcow2_decode(s->node, host, &v, 1) : r;
}

/* Without a backing file there is nothing to go by any more. */
static int read_backing(struct qcow2 *s, const struct qcow2_copy *p, char *buf)
{
    struct node *backing = node_child(s->node, CHILD_BACKING);
    uint64_t size = backing ? node_size(backing) : 0;
    uint64_t inside = p->offset < size ? min_u64(p->bytes, size - p->offset)
                                       : 0;

    if (!backing) {
        return read_place(s, p->host, p->bytes, buf);
    }
    memset(buf + inside, 0, p->bytes - inside);
    return inside > 0 ? node_pread(backing, buf, inside, p->offset, 0) : 0;
}

static int read_source(struct qcow2 *s, const struct qcow2_copy *p, char *buf)
{
    switch (p->source) {
    case QCOW2_FROM_ZEROES:
        memset(buf, 0, p->bytes);
        return 0;
    case QCOW2_FROM_BACKING:
        return read_backing(s, p, buf);
    case QCOW2_FROM_PLACE:
        return read_place(s, p->from.host, p->bytes, buf);
    case QCOW2_FROM_PACKED:
        return qcow2_read_packed(s, &p->from, qcow2_in_cluster(s, p->offset),
                                 p->bytes, buf);
    case QCOW2_FROM_ITSELF:
        break;
    }
    return read_place(s, p->host, p->bytes, buf);
}

static int copy_again(struct qcow2 *s, const struct qcow2_copy *p)
{
    CLEANUP_FREE char *buf = buf_alloc(p->bytes + 1);
    struct iovec v = {buf, p->bytes};

    if (!buf) {
        return -ENOMEM;
    }
    int r = p->bytes > 0 ? read_source(s, p, buf) : 0;
    return r < 0 || p->bytes == 0
               ? r
               : qcow2_write_data(s, p->host, p->bytes, &v, 1, 0);
}

/* The note is looked at when nobody can overwrite a part of it. */
static int mend_one(struct qcow2 *s, size_t index, uint64_t *waited)
    REQUIRES(s->flush_lock)
{
    struct qcow2_copied *c = &s->copied;
    struct range_req req;

    mutex_lock(&c->lock);
    uint64_t start = align_down(c->list[index].offset, s->cluster_size);
    mutex_unlock(&c->lock);
    while (!range_trylock(&s->range, &req, start, s->cluster_size, true)) {
        if (*waited >= PATIENCE_MS) {
            return -EIO;
        }
        rest(waited);
    }
    mutex_lock(&c->lock);
    const struct qcow2_copy note = c->list[index];
    mutex_unlock(&c->lock);
    int r = 0;
    for (const struct qcow2_copy *p = &note; p && r == 0; p = p->more) {
        r = copy_again(s, p);
    }
    range_unlock(&s->range, &req);
    return r;
}

int qcow2_copied_mend(struct qcow2 *s)
{
    struct qcow2_copied *c = &s->copied;
    uint64_t losses = qcow2_copied_losses(s);
    size_t count = atomic_load(&c->count);
    uint64_t waited = 0;
    int r = 0;

    if (!qcow2_copied_are_lost(s)) {
        return 0;
    }
    if (count > 0) {
        atomic_store(&c->mending, true);
        r = wait_for_writes(s, &waited);
        for (size_t i = 0; i < count && r == 0; i++) {
            r = mend_one(s, i, &waited);
        }
        atomic_store(&c->mending, false);
    }
    if (r == 0) {
        atomic_store(&c->mended, losses);
    }
    return r;
}
