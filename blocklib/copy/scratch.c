/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * scratch: temporary space, in memory first, then in a file that has no name.
 *
 *      unit (4 KiB)     0  1  2 ..  15 | 16 ..  31 | 32 ..  47
 *      group              a table      |   a run   |  nothing
 *      place            *     1        |  7 .. 22  |
 *                       |     |        |
 *                    memory   |        |
 *      file       slot 0, slot 1, ... 7 .. 22, ...
 *
 * Units are put into memory, which never blocks.  When half of it is used, a
 * thread moves the oldest units to slots of the file, many in one write.  A
 * group of which all units are in slots in a row needs no table.
 *
 *  1. A group and the places of its units are changed under the group's lock,
 *     held exclusively.  Reading holds it shared.
 *  2. `bytes` counts the units that are stored, and is raised before a unit is
 *     stored.  It is never more than the quota.
 *  3. What the thread has in hand (`busy`) does not change: a unit that is
 *     changed or dropped meanwhile leaves its old bytes to the thread (`gone`).
 *  4. When there is no memory left, or no thread, a unit goes to the file at
 *     once, and errors are the caller's.  The thread's own errors are nobody's:
 *     the units stay where they are.
 *
 * The file is made together with the node, so that a bad directory is found out
 * at once and not when the memory is full.
 */
#include "copy/scratch.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "copy/scratch-file.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "util/iov.h"

#define UNIT        SCRATCH_UNIT
#define GROUP_UNITS 16
#define GROUP       (GROUP_UNITS * UNIT)
#define LEAF_GROUPS 4096 /* 256 MiB */
#define LOCKS       64
#define SPILLED     64   /* units that the thread moves at once */
#define AGAIN_MS    1000 /* after the thread has failed */

/* Where a unit is: 0, its piece of memory, or its slot * 2 + 1. */
typedef uintptr_t place_t;

struct piece {
    struct list link; /* guarded by memory_lock; the oldest first */
    uint64_t unit;
    bool busy; /* guarded by memory_lock */
    bool gone; /* the same: the unit is not here any more */
    char data[UNIT];
};

struct table {
    place_t place[GROUP_UNITS];
};

/* Where a group is: 0, its table, or its first slot * 2 + 1. */
typedef uintptr_t group_t;

struct scratch {
    /* Set by scratch_new. */
    bool ready;
    struct scratch_file file;
    uint64_t quota;
    uint64_t memory;
    uint64_t leaves_count;

    rwlock_t locks[LOCKS]; /* group i has locks[i % LOCKS] */
    /* Guarded by the group's lock. */
    group_t *_Atomic *leaves; /* each of LEAF_GROUPS groups, or NULL */

    mutex_t memory_lock; /* after a group's lock */
    /* Guarded by memory_lock. */
    struct list pieces; /* that the thread does not have */
    cond_t wake;
    bool end;
    bool has_thread;
    pthread_t thread;

    /* Atomic. */
    _Atomic uint64_t bytes;
    _Atomic uint64_t in_memory; /* of these bytes */
    _Atomic bool in_file;
    _Atomic bool quota_was_hit;
};

/* A part of a request that lies in one unit. */
struct part {
    uint64_t unit;
    uint64_t offset; /* in the unit */
    uint64_t bytes;
    bool whole; /* as far as the node goes */
};

/* --- Places --- */

static struct piece *piece_at(place_t place)
{
    return place & 1 ? NULL : (struct piece *)place;
}

static uint64_t slot_at(uintptr_t place)
{
    return place >> 1;
}

static uintptr_t in_slot(uint64_t slot)
{
    return (uintptr_t)slot * 2 + 1;
}

static struct table *table_at(group_t group)
{
    return group & 1 ? NULL : (struct table *)group;
}

/* NULL: nothing of its leaf is stored. */
static group_t *group_of(const struct scratch *s, uint64_t group)
{
    group_t *leaf = atomic_load(&s->leaves[group / LEAF_GROUPS]);

    return leaf ? &leaf[group % LEAF_GROUPS] : NULL;
}

/* The place of a unit in its group. */
static place_t place_in(const group_t *group, uint64_t unit)
{
    const struct table *t = group ? table_at(*group) : NULL;

    return t                 ? t->place[unit % GROUP_UNITS]
           : group && *group ? in_slot(slot_at(*group) + unit % GROUP_UNITS)
                             : 0;
}

static place_t place_of(const struct scratch *s, uint64_t unit)
{
    return place_in(group_of(s, unit / GROUP_UNITS), unit);
}

/* Threads may need groups of one leaf at the same time.  NULL: no memory. */
static group_t *group_for(struct scratch *s, uint64_t group)
{
    group_t *_Atomic *at = &s->leaves[group / LEAF_GROUPS];
    group_t *leaf = atomic_load(at);

    if (!leaf) {
        group_t *fresh = calloc(LEAF_GROUPS, sizeof(*fresh));
        if (!fresh) {
            return NULL;
        }
        if (atomic_compare_exchange_strong(at, &leaf, fresh)) {
            leaf = fresh;
        } else {
            free(fresh);
        }
    }
    return &leaf[group % LEAF_GROUPS];
}

/* The unit's place, to be changed.  NULL: no memory. */
static place_t *place_for(struct scratch *s, uint64_t unit)
{
    group_t *group = group_for(s, unit / GROUP_UNITS);

    if (group && !table_at(*group)) {
        struct table *t = calloc(1, sizeof(*t));
        if (!t) {
            return NULL;
        }
        for (unsigned i = 0; i < GROUP_UNITS; i++) {
            t->place[i] = place_in(group, i);
        }
        *group = (group_t)t;
    }
    return group ? &table_at(*group)->place[unit % GROUP_UNITS] : NULL;
}

/* A table that says nothing, or no more than where the first unit is, goes. */
static void tidy_group(struct scratch *s, uint64_t unit)
{
    group_t *group = group_of(s, unit / GROUP_UNITS);
    struct table *t = table_at(*group);
    place_t first = t->place[0];
    bool row = first & 1;
    bool empty = first == 0;

    for (unsigned i = 1; i < GROUP_UNITS && (row || empty); i++) {
        empty &= t->place[i] == 0;
        row &= t->place[i] == in_slot(slot_at(first) + i);
    }
    if (empty || row) {
        *group = first;
        free(t);
    }
}

/* --- Memory --- */

/* Add a unit to a sum, if it stays within @most. */
static bool reserve(_Atomic uint64_t *sum, uint64_t most)
{
    uint64_t now = atomic_load(sum);

    do {
        if (now + UNIT > most) {
            return false;
        }
    } while (!atomic_compare_exchange_weak(sum, &now, now + UNIT));
    return true;
}

static bool is_pressed(const struct scratch *s)
{
    return atomic_load(&s->in_memory) > s->memory / 2;
}

static void *spill_thread(void *opaque);

static void add_piece(struct scratch *s, struct piece *p)
{
    mutex_lock(&s->memory_lock);
    list_append(&s->pieces, &p->link);
    if (is_pressed(s)) {
        if (!s->has_thread) {
            s->has_thread = thread_start(&s->thread, "scratch", spill_thread,
                                         s) == 0;
        }
        cond_signal(&s->wake);
    }
    mutex_unlock(&s->memory_lock);
}

/* NULL: there is no room in memory. */
static struct piece *piece_new(struct scratch *s, uint64_t unit)
{
    if (!reserve(&s->in_memory, s->memory)) {
        return NULL;
    }
    struct piece *p = malloc(sizeof(*p));
    if (!p) {
        atomic_fetch_sub(&s->in_memory, UNIT);
        return NULL;
    }
    p->unit = unit;
    p->busy = p->gone = false;
    return p;
}

static void piece_free(struct scratch *s, struct piece *p)
{
    free(p);
    atomic_fetch_sub(&s->in_memory, UNIT);
}

/* The unit is not in this piece any more. */
static void leave_piece(struct scratch *s, struct piece *p)
{
    mutex_lock(&s->memory_lock);
    bool busy = p->busy;
    p->gone = true;
    if (!busy) {
        list_remove(&p->link);
    }
    mutex_unlock(&s->memory_lock);
    if (!busy) {
        piece_free(s, p);
    }
}

/* --- The thread --- */

/* Take the oldest pieces. */
static int take_pieces(struct scratch *s, struct piece **taken)
    REQUIRES(s->memory_lock)
{
    int count = 0;

    while (count < SPILLED && !list_empty(&s->pieces)) {
        struct piece *p = list_entry(s->pieces.next, struct piece, link);

        list_remove(&p->link);
        p->busy = true;
        taken[count++] = p;
    }
    return count;
}

/* The unit is in a slot now, if it is still what the piece has. */
static void place_piece(struct scratch *s, struct piece *p, uint64_t slot)
    NO_LOCK_ANALYSIS
{
    rwlock_t *lock = &s->locks[p->unit / GROUP_UNITS % LOCKS];

    rwlock_wrlock(lock);
    mutex_lock(&s->memory_lock);
    bool gone = p->gone;
    mutex_unlock(&s->memory_lock);
    if (!gone) {
        *place_for(s, p->unit) = in_slot(slot); /* it has a table */
        tidy_group(s, p->unit);
    }
    rwlock_unlock(lock);
    if (gone) {
        scratch_slots_free(&s->file, slot, 1);
    }
    piece_free(s, p);
}

/* They stay in memory. */
static void return_pieces(struct scratch *s, struct piece **taken, int count)
{
    for (int i = count - 1; i >= 0; i--) {
        struct piece *p = taken[i];

        mutex_lock(&s->memory_lock);
        p->busy = false;
        bool gone = p->gone;
        if (!gone) {
            list_insert_before(s->pieces.next, &p->link);
        }
        mutex_unlock(&s->memory_lock);
        if (gone) {
            piece_free(s, p);
        }
    }
}

static bool spill(struct scratch *s, struct piece **taken, int count)
{
    struct iovec v[SPILLED];
    uint64_t slot;
    int done = 0;

    while (done < count) {
        int n = (int)scratch_slots_take(&s->file, (uint64_t)(count - done),
                                        &slot);
        assert(n <= count - done);
        for (int i = 0; i < n; i++) {
            v[i] = (struct iovec){taken[done + i]->data, UNIT};
        }
        if (n > 0) {
            atomic_store(&s->in_file, true);
        }
        if (n == 0 || scratch_file_writev(&s->file, v, n, slot * UNIT) < 0) {
            if (n > 0) {
                scratch_slots_free(&s->file, slot, (uint64_t)n);
            }
            return_pieces(s, taken + done, count - done);
            return false;
        }
        for (int i = 0; i < n; i++) {
            place_piece(s, taken[done + i], slot + (uint64_t)i);
        }
        done += n;
    }
    return true;
}

static void *spill_thread(void *opaque)
{
    struct scratch *s = opaque;
    struct piece *taken[SPILLED];

    mutex_lock(&s->memory_lock);
    while (!s->end) {
        int count = is_pressed(s) ? take_pieces(s, taken) : 0;
        if (count == 0) {
            cond_wait(&s->wake, &s->memory_lock);
            continue;
        }
        mutex_unlock(&s->memory_lock);
        bool good = spill(s, taken, count);
        mutex_lock(&s->memory_lock);
        if (!good && !s->end) {
            (void)cond_wait_ms(&s->wake, &s->memory_lock, AGAIN_MS);
        }
    }
    mutex_unlock(&s->memory_lock);
    return NULL;
}

/* --- One unit; hold its group's lock --- */

static int read_part(struct scratch *s, const struct part *p,
                     const struct iovec *iov, int cnt, uint64_t done,
                     bool nowait)
{
    place_t place = place_of(s, p->unit);
    const struct piece *piece = piece_at(place);
    char buf[UNIT];

    if (place == 0) {
        iov_fill(iov, cnt, done, 0, p->bytes);
        return 0;
    }
    if (piece) {
        iov_from_buf(iov, cnt, done, piece->data + p->offset, p->bytes);
        return 0;
    }
    if (nowait) {
        return -EAGAIN;
    }
    int r = scratch_file_read(&s->file, buf, p->bytes,
                              slot_at(place) * UNIT + p->offset);
    if (r == 0) {
        iov_from_buf(iov, cnt, done, buf, p->bytes);
    }
    return r;
}

/* The bytes of the part, or zeroes (iov NULL). */
static void take_bytes(char *to, const struct part *p, const struct iovec *iov,
                       int cnt, uint64_t done)
{
    if (iov) {
        iov_to_buf(iov, cnt, done, to, p->bytes);
    } else {
        memset(to, 0, p->bytes);
    }
}

static int write_slot(struct scratch *s, uint64_t slot, char *buf,
                      uint64_t offset, uint64_t bytes)
{
    const struct iovec v = {buf, bytes};

    atomic_store(&s->in_file, true);
    return scratch_file_writev(&s->file, &v, 1, slot * UNIT + offset);
}

/* Change a unit that is in memory; the thread may be reading it. */
static int write_piece(struct scratch *s, struct piece *old,
                       const struct part *p, const struct iovec *iov, int cnt,
                       uint64_t done)
{
    mutex_lock(&s->memory_lock);
    bool busy = old->busy;
    if (!busy) {
        list_remove(&old->link); /* the thread does not begin it now */
    }
    mutex_unlock(&s->memory_lock);
    if (!busy) {
        take_bytes(old->data + p->offset, p, iov, cnt, done);
        add_piece(s, old);
        return 0;
    }
    struct piece *new = malloc(sizeof(*new));
    if (!new) {
        return -ENOMEM;
    }
    atomic_fetch_add(&s->in_memory, UNIT); /* one of them goes soon */
    memcpy(new->data, old->data, UNIT);
    new->unit = p->unit;
    new->busy = new->gone = false;
    take_bytes(new->data + p->offset, p, iov, cnt, done);
    *place_for(s, p->unit) = (place_t) new;
    leave_piece(s, old);
    add_piece(s, new);
    return 0;
}

static int write_stored(struct scratch *s, place_t place, const struct part *p,
                        const struct iovec *iov, int cnt, uint64_t done,
                        bool nowait)
{
    struct piece *piece = piece_at(place);
    char buf[UNIT];

    if (piece) {
        return write_piece(s, piece, p, iov, cnt, done);
    }
    if (nowait) {
        return -EAGAIN;
    }
    take_bytes(buf, p, iov, cnt, done);
    return write_slot(s, slot_at(place), buf, p->offset, p->bytes);
}

/* Put a new unit into a slot at once. */
static int write_new_slot(struct scratch *s, place_t *at, const struct part *p,
                          const struct iovec *iov, int cnt, uint64_t done)
{
    char buf[UNIT] = {0};
    uint64_t slot;

    if (scratch_slots_take(&s->file, 1, &slot) == 0) {
        atomic_store(&s->quota_was_hit, true);
        return -ENOSPC;
    }
    take_bytes(buf + p->offset, p, iov, cnt, done);
    int r = write_slot(s, slot, buf, 0, UNIT);
    if (r < 0) {
        scratch_slots_free(&s->file, slot, 1);
        return r;
    }
    *at = in_slot(slot);
    tidy_group(s, p->unit);
    return 0;
}

static int write_new(struct scratch *s, const struct part *p,
                     const struct iovec *iov, int cnt, uint64_t done,
                     bool nowait)
{
    place_t *at = place_for(s, p->unit);
    struct piece *piece = at ? piece_new(s, p->unit) : NULL;

    if (!at) {
        return -ENOMEM;
    }
    if (!piece) {
        int r = nowait ? -EAGAIN : write_new_slot(s, at, p, iov, cnt, done);
        if (r < 0) {
            tidy_group(s, p->unit);
        }
        return r;
    }
    if (!p->whole) {
        memset(piece->data, 0, UNIT);
    }
    take_bytes(piece->data + p->offset, p, iov, cnt, done);
    *at = (place_t)piece;
    add_piece(s, piece);
    return 0;
}

static int write_part(struct scratch *s, const struct part *p,
                      const struct iovec *iov, int cnt, uint64_t done,
                      bool nowait)
{
    place_t place = place_of(s, p->unit);

    if (place) {
        return write_stored(s, place, p, iov, cnt, done, nowait);
    }
    bool room = reserve(&s->bytes, s->quota);
    atomic_store(&s->quota_was_hit, !room);
    if (!room) {
        return -ENOSPC;
    }
    int r = write_new(s, p, iov, cnt, done, nowait);
    if (r < 0) {
        atomic_fetch_sub(&s->bytes, UNIT);
    }
    return r;
}

static int zero_part(struct scratch *s, const struct part *p)
{
    place_t place = place_of(s, p->unit);

    if (!place) {
        return 0;
    }
    if (!p->whole) {
        return write_stored(s, place, p, NULL, 0, 0, false);
    }
    place_t *at = place_for(s, p->unit);
    if (!at) {
        return -ENOMEM;
    }
    *at = 0;
    tidy_group(s, p->unit);
    if (piece_at(place)) {
        leave_piece(s, piece_at(place));
    } else {
        scratch_slots_free(&s->file, slot_at(place), 1);
    }
    atomic_fetch_sub(&s->bytes, UNIT);
    return 0;
}

/* --- Requests --- */

enum what { READ, WRITE, ZERO };

static int do_part(struct scratch *s, enum what what, const struct part *p,
                   const struct iovec *iov, int cnt, uint64_t done, bool nowait)
    NO_LOCK_ANALYSIS
{
    rwlock_t *lock = &s->locks[p->unit / GROUP_UNITS % LOCKS];
    int r;

    if (what == READ) {
        rwlock_rdlock(lock);
        r = read_part(s, p, iov, cnt, done, nowait);
    } else {
        rwlock_wrlock(lock);
        r = what == WRITE ? write_part(s, p, iov, cnt, done, nowait)
                          : zero_part(s, p);
    }
    rwlock_unlock(lock);
    return r;
}

/* Bytes from @offset on of which nothing is stored, as far as that can be seen
 * at a glance. */
static uint64_t empty_run(const struct scratch *s, uint64_t offset)
{
    uint64_t leaf = offset / (LEAF_GROUPS * GROUP);

    return atomic_load(&s->leaves[leaf])
               ? 0
               : (leaf + 1) * LEAF_GROUPS * GROUP - offset;
}

static int each_part(struct node *n, enum what what, uint64_t offset,
                     uint64_t bytes, const struct iovec *iov, int cnt,
                     bool nowait)
{
    struct scratch *s = n->state;
    uint64_t size = n->size;
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0;) {
        uint64_t at = offset + done;
        struct part p = {.unit = at / UNIT, .offset = at % UNIT};
        uint64_t skip = what == ZERO ? empty_run(s, at) : 0;

        p.bytes = min_u64(bytes - done, UNIT - p.offset);
        p.whole = p.offset == 0 && (p.bytes == UNIT || at + p.bytes == size);
        r = skip > 0 ? 0 : do_part(s, what, &p, iov, cnt, done, nowait);
        done += max_u64(skip, p.bytes);
    }
    return r;
}

static int scratch_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                          const struct iovec *iov, int cnt, unsigned flags)
{
    return each_part(n, READ, offset, bytes, iov, cnt, flags & REQ_NOWAIT);
}

/* What must not wait may be put in part.  Only the copy engine writes here, and
 * puts the same bytes again. */
static int scratch_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                           const struct iovec *iov, int cnt, unsigned flags)
{
    return each_part(n, WRITE, offset, bytes, iov, cnt, flags & REQ_NOWAIT);
}

static int scratch_zero(struct node *n, uint64_t offset, uint64_t bytes,
                        unsigned flags)
{
    (void)flags;
    return each_part(n, ZERO, offset, bytes, NULL, 0, false);
}

static int scratch_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    return each_part(n, ZERO, offset, bytes, NULL, 0, false);
}

/* Is the unit at @offset stored, and how far are units of its group the same,
 * at most to @end? */
static uint64_t run_in_group(struct scratch *s, uint64_t offset, uint64_t end,
                             bool *stored) NO_LOCK_ANALYSIS
{
    uint64_t unit = offset / UNIT;
    rwlock_t *lock = &s->locks[unit / GROUP_UNITS % LOCKS];

    rwlock_rdlock(lock);
    *stored = place_of(s, unit) != 0;
    do {
        unit++;
    } while (unit % GROUP_UNITS != 0 && unit * UNIT < end &&
             (place_of(s, unit) != 0) == *stored);
    rwlock_unlock(lock);
    return min_u64(unit * UNIT, end) - offset;
}

static int scratch_map(struct node *n, uint64_t offset, uint64_t bytes,
                       unsigned flags, struct mapping *m)
{
    struct scratch *s = n->state;
    uint64_t end = offset + bytes;
    bool stored = false;

    (void)flags;
    m->length = 0;
    while (m->length < bytes) {
        uint64_t at = offset + m->length;
        uint64_t empty = min_u64(empty_run(s, at), end - at);
        bool next = false;
        uint64_t run = empty ? empty : run_in_group(s, at, end, &next);

        if (m->length > 0 && next != stored) {
            break;
        }
        stored = next;
        m->length += run;
    }
    m->kind = stored ? MAP_DATA : MAP_ZERO;
    m->file = n;
    m->host = offset;
    return 0;
}

/* No scratch outlives the process. */
static int scratch_flush(struct node *n)
{
    (void)n;
    return 0;
}

static void scratch_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->pref = UNIT;
    lim->zero_align = UNIT;
    lim->fast_zero = true;
    lim->zero_unmaps = true;
}

static void free_group(group_t group)
{
    struct table *t = table_at(group);

    for (unsigned i = 0; t && i < GROUP_UNITS; i++) {
        free(piece_at(t->place[i]));
    }
    free(t);
}

static void scratch_close(struct node *n)
{
    struct scratch *s = n->state;

    if (!s->ready) {
        return;
    }
    mutex_lock(&s->memory_lock);
    s->end = true;
    cond_signal(&s->wake);
    bool has_thread = s->has_thread;
    mutex_unlock(&s->memory_lock);
    if (has_thread) {
        thread_join(s->thread);
    }
    for (uint64_t i = 0; i < s->leaves_count; i++) {
        group_t *leaf = s->leaves[i];
        for (unsigned k = 0; leaf && k < LEAF_GROUPS; k++) {
            free_group(leaf[k]);
        }
        free(leaf);
    }
    free(s->leaves);
    cond_destroy(&s->wake);
    mutex_destroy(&s->memory_lock);
    for (unsigned i = 0; i < LOCKS; i++) {
        rwlock_destroy(&s->locks[i]);
    }
    scratch_file_close(&s->file);
}

static const struct driver driver_scratch = {
    .name = "scratch",
    .is_protocol = true,
    .state_size = sizeof(struct scratch),
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .close = scratch_close,
    .limits = scratch_limits,
    .map = scratch_map,
    .preadv = scratch_preadv,
    .pwritev = scratch_pwritev,
    .zero = scratch_zero,
    .discard = scratch_discard,
    .flush = scratch_flush,
};

/* --- Making one --- */

static int set_up_scratch(struct node *n, const struct scratch_options *o,
                          struct error **errp)
{
    struct scratch *s = n->state;
    int r = scratch_file_open(&s->file, o->dir, o->keep_free, errp);

    if (r < 0) {
        return r;
    }
    s->quota = o->quota ? o->quota : UINT64_MAX - UNIT;
    s->memory = o->memory;
    s->leaves_count = div_up(n->size, LEAF_GROUPS * GROUP);
    s->leaves = calloc(s->leaves_count + 1, sizeof(*s->leaves));
    if (!s->leaves) {
        scratch_file_close(&s->file);
        return error_nomem(errp);
    }
    mutex_init(&s->memory_lock, LOCK_SCRATCH_MEMORY, NULL);
    cond_init(&s->wake);
    list_init(&s->pieces);
    for (unsigned i = 0; i < LOCKS; i++) {
        rwlock_init(&s->locks[i], LOCK_SCRATCH_UNIT, NULL);
    }
    s->ready = true;
    return 0;
}

int scratch_new(struct graph *g, struct node *like,
                const struct scratch_options *o, struct node **np,
                struct error **errp)
{
    struct node *n;
    int r = node_new(g, &driver_scratch, NULL, like, &n, errp);

    if (r < 0) {
        return r;
    }
    n->flags = (struct node_flags){.unmap = true};
    node_refresh_limits(n);
    r = set_up_scratch(n, o, errp);
    if (r < 0) {
        node_unref(n);
        return r;
    }
    *np = n;
    return 0;
}

void scratch_usage(const struct node *n, struct scratch_usage *u)
{
    const struct scratch *s = n->state;

    *u = (struct scratch_usage){
        .bytes = atomic_load(&s->bytes),
        .in_file = atomic_load(&s->in_file),
        .quota_was_hit = atomic_load(&s->quota_was_hit),
        .kept_free = s->file.kept_free,
    };
}
