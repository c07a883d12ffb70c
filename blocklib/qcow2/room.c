/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Room in the file for what is still in memory.
 *
 * A write is acknowledged when its data are in the file, and its tables are
 * written later (flush.c).  These writes must not fail for want of room, or
 * all that was acknowledged since the last flush would be lost.  So tables
 * have blocks behind them before anything in them is changed:
 *
 *   a new table        zeroes are written to its cluster when it is made
 *   one that was read  is written as it is, if the file has a hole there
 *   L1, refcount table the page that an entry is the first one in is written;
 *                      pages between that are holes stay holes
 *
 * Clusters in limbo are room, too: a request that finds no room flushes, and
 * tries again when that has given clusters back (qcow2_try_again).
 */
#include <errno.h>
#include <time.h>

#include "nbdelta/cleanup.h"
#include "qcow2/alloc.h"
#include "qcow2/qcow2.h"
#include "util/iov.h"

/* The smallest hole that a file can have. */
#define SECTOR UINT64_C(512)

#define PAGE QCOW2_TABLE_PAGE

/* How long to wait for requests that move bytes of clusters in limbo. */
#define WAIT_MS 1000

static const unsigned char zeroes[64 * KiB] __attribute__((aligned(4096)));

int qcow2_take_room(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0;) {
        uint64_t len = min_u64(bytes - done, sizeof(zeroes));

        r = node_pwrite(s->file, zeroes, len, host + done, 0);
        done += len;
    }
    return r;
}

/* Has the file a hole in the range?  True if nobody knows. */
static bool has_hole(struct node *n, uint64_t host, uint64_t bytes)
{
    bool hole = false;

    n = node_skip_filters(n);
    while (bytes > 0 && !hole) {
        struct mapping m;

        if (node_map(n, host, bytes, MAP_STATUS, &m) < 0) {
            return true;
        }
        hole = m.kind != MAP_DATA ||
               (m.file != n && has_hole(m.file, m.host, m.length));
        host += m.length;
        bytes -= m.length;
        node_map_put(n, &m);
    }
    return hole;
}

bool qcow2_is_hole(struct node *file, uint64_t host, uint64_t bytes)
{
    struct node *n = node_skip_filters(file);
    bool hole = true;

    while (bytes > 0 && hole) {
        struct mapping m;

        if (node_map(n, host, bytes, MAP_STATUS, &m) < 0) {
            return false;
        }
        hole = m.kind == MAP_ZERO;
        host += m.length;
        bytes -= m.length;
        node_map_put(n, &m);
    }
    return hole;
}

int qcow2_keep_room(struct qcow2 *s, struct qcow2_table *t)
{
    const unsigned char *bytes = t->data;
    bool maybe = false;

    if (t->has_room) {
        return 0;
    }
    for (uint64_t at = 0; at < s->cluster_size && !maybe; at += SECTOR) {
        maybe = bytes_are_zero(bytes + at, SECTOR);
    }
    int r = maybe && has_hole(s->file, t->offset, s->cluster_size)
                ? node_pwrite(s->file, bytes, s->cluster_size, t->offset, 0)
                : 0;
    t->has_room = r == 0;
    return r;
}

int qcow2_keep_entry_room(struct qcow2 *s, uint64_t table_offset,
                          const _Atomic uint64_t *table, uint64_t entries,
                          uint64_t index)
{
    uint64_t from = align_down(index, PAGE / 8);
    uint64_t to = min_u64(from + PAGE / 8, entries);
    unsigned kind = table == s->l1 ? QCOW2_META_L1 : QCOW2_META_REFTABLE;
    int r = qcow2_overlap_check(s, kind, table_offset + from * 8,
                                (to - from) * 8);

    if (r < 0) {
        return r;
    }
    for (uint64_t i = from; i < to; i++) {
        if (atomic_load(&table[i]) != 0) {
            return 0; /* another request has been here */
        }
    }
    return qcow2_take_room(s, table_offset + from * 8, (to - from) * 8);
}

/* Is there something in limbo that may still become free? */
static bool has_limbo(struct qcow2 *s)
{
    mutex_lock(&s->meta);
    bool some = s->freed_count > 0;
    mutex_unlock(&s->meta);
    return some;
}

/* Flush until something has been released since *seen. */
static int reclaim(struct qcow2 *s, uint64_t *seen)
{
    struct timespec ms = {.tv_nsec = 1000000};

    for (unsigned i = 0; i < WAIT_MS; i++) {
        uint64_t now = atomic_load(&s->released);
        if (now != *seen) {
            *seen = now;
            return 0;
        }
        if (!has_limbo(s)) {
            return -ENOSPC;
        }
        int r = qcow2_flush(s->node); /* at no cost when nothing has changed */
        if (r < 0) {
            return r;
        }
        if (atomic_load(&s->released) == *seen) {
            (void)nanosleep(&ms, NULL);
        }
    }
    return -ENOSPC;
}

bool qcow2_try_again(struct qcow2 *s, int *r, uint64_t *seen)
{
    if (*r == -EINPROGRESS) {
        return true;
    }
    if (*r != -ENOSPC) {
        return false;
    }
    *r = reclaim(s, seen);
    return *r == 0;
}
