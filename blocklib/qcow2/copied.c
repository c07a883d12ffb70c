/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Old data in new clusters, and flushes that fail: what is noted.
 *
 *   old cluster   |aaaaaaaa|      durable; the entry on disk leads there
 *   new cluster   |aaaaGGaa|      G: the guest's, a: copied (write.c)
 *
 * When a flush fails, storage may have lost the new cluster, and may even read
 * as it did before.  The guest is told, and writes G again, in place.  Nobody
 * but us knows that a has to be copied again, too (copied-mend.c).  The entry
 * must not lead there on disk before that.
 *
 *  1. What was copied is noted with where it came from, before the entry
 *     changes in memory, and until a round of flush.c has succeeded that began
 *     after that.  The old cluster keeps its bytes so long: it belongs to a
 *     snapshot, or is in limbo, which the same round ends (alloc.c).  The new
 *     one is not reused so long, for the same reason.
 *  2. The guest overwrites a in place:  |aaaaGGGa|.  These bytes are cut out of
 *     the note before that, and are the guest's to write again.
 *  3. Notes are in the order of copying.  A copy of a copy comes after it.
 *
 * Writes in place take no lock where nothing is noted.  A slot has the number
 * of the newest note of its clusters; numbers grow, and those up to `gone` have
 * ended:
 *
 *   slots  | 7 | 0 | 9 |      list  | 6 | 7 | 8 | 9 |      gone: 5
 *            |                        ^   |
 *            +----------------------- | --+ older
 */
#include "qcow2/copied.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/l2.h"

/* Write back when so much is noted. */
#define MANY  32768
#define SLOTS 4096 /* a power of two */

/* Notes for what a cluster needs at most: one for each subcluster, or for the
 * cluster, and one for what is behind the disk's end. */
#define FOR_PARTS (32 + 1)
#define FOR_WHOLE (1 + 1)

void qcow2_copied_init(struct qcow2 *s)
{
    mutex_init(&s->copied.lock, LOCK_QCOW2_COPIED, s);
}

static void free_more(struct qcow2_copied *c, struct qcow2_copy *note)
{
    while (note->more) {
        struct qcow2_copy *next = note->more->more;

        free(note->more);
        note->more = next;
        c->cuts--;
    }
}

void qcow2_copied_free(struct qcow2 *s)
{
    struct qcow2_copied *c = &s->copied;

    for (size_t i = 0; i < atomic_load(&c->count); i++) {
        free_more(c, &c->list[i]);
    }
    mutex_destroy(&c->lock);
    free(c->list);
    free(c->slots);
}

static _Atomic uint64_t *slot_of(const struct qcow2 *s, uint64_t cluster)
{
    return &s->copied.slots[cluster & (SLOTS - 1)];
}

int qcow2_copied_reserve(struct qcow2 *s, uint64_t clusters)
{
    struct qcow2_copied *c = &s->copied;
    uint64_t more = clusters * (s->extended ? FOR_PARTS : FOR_WHOLE);
    int r = 0;

    mutex_lock(&c->lock);
    size_t needed = atomic_load(&c->count) + more;
    if (!c->slots) {
        c->slots = calloc(SLOTS, sizeof(*c->slots));
    }
    if (needed > c->room) {
        size_t room = max_u64(needed, 2 * c->room);
        struct qcow2_copy *list = realloc(c->list, room * sizeof(*list));

        c->room = list ? room : c->room;
        c->list = list ? list : c->list;
    }
    if (!c->slots || needed > c->room) {
        r = -ENOMEM;
    }
    mutex_unlock(&c->lock);
    return r;
}

/* Where do the bytes from copy->offset on come from, and how many do? */
static void find_source(const struct qcow2 *s, const struct qcow2_table *t,
                        struct qcow2_copy *copy)
{
    uint64_t size = s->node->size;
    struct qcow2_at at;

    if (copy->offset >= size) {
        copy->source = QCOW2_FROM_ZEROES;
        return;
    }
    copy->bytes = min_u64(copy->bytes, size - copy->offset);
    qcow2_l2_look(s, t, copy->offset, copy->bytes, &at);
    copy->bytes = at.bytes;
    switch (at.kind) {
    case QCOW2_KIND_UNALLOCATED:
    case QCOW2_KIND_UNALLOCATED_ALLOC:
        copy->source = node_child(s->node, CHILD_BACKING) ? QCOW2_FROM_BACKING
                                                          : QCOW2_FROM_ZEROES;
        break;
    case QCOW2_KIND_ZERO_PLAIN:
    case QCOW2_KIND_ZERO_ALLOC:
        copy->source = QCOW2_FROM_ZEROES;
        break;
    case QCOW2_KIND_NORMAL:
        copy->source = QCOW2_FROM_PLACE;
        copy->from = (struct qcow2_run){at.host, at.bytes};
        break;
    case QCOW2_KIND_COMPRESSED:
        copy->source = QCOW2_FROM_PACKED;
        copy->from = at.packed;
        break;
    }
}

static void add(struct qcow2 *s, const struct qcow2_copy *copy)
{
    struct qcow2_copied *c = &s->copied;
    _Atomic uint64_t *slot = slot_of(s, copy->host >> s->cluster_bits);

    mutex_lock(&c->lock);
    size_t count = atomic_load(&c->count);
    c->list[count] = *copy;
    c->list[count].older = atomic_load(slot);
    atomic_store(&c->count, count + 1);
    atomic_store(slot, atomic_load(&c->gone) + count + 1);
    mutex_unlock(&c->lock);
}

void qcow2_copied_note(struct qcow2 *s, const struct qcow2_table *t,
                       uint64_t offset, uint64_t bytes, uint64_t host,
                       uint64_t losses)
{
    struct qcow2_copy copy;

    for (uint64_t done = 0; done < bytes; done += copy.bytes) {
        copy = (struct qcow2_copy){
            .offset = offset + done,
            .host = host + done,
            .bytes = bytes - done,
        };
        find_source(s, t, &copy);
        add(s, &copy);
    }
    if (bytes > 0 && losses != qcow2_copied_losses(s)) {
        qcow2_copied_lost(s); /* the others may be mended already */
    }
}

/* --- Overwriting --- */

static void skip(struct qcow2_copy *p, uint64_t bytes)
{
    if (bytes == p->bytes) { /* it stays in its cluster */
        p->bytes = 0;
        return;
    }
    p->offset += bytes;
    p->host += bytes;
    p->bytes -= bytes;
    if (p->source == QCOW2_FROM_PLACE) {
        p->from.host += bytes;
    }
}

/* Cut [@from, @end) of the data file out of a piece. */
static void cut_piece(struct qcow2_copied *c, struct qcow2_copy *p,
                      uint64_t from, uint64_t end) REQUIRES(c->lock)
{
    uint64_t p_end = p->host + p->bytes;

    if (end <= p->host || from >= p_end) {
        return;
    }
    if (from <= p->host) {
        skip(p, min_u64(end, p_end) - p->host);
    } else if (end >= p_end) {
        p->bytes = from - p->host;
    } else {
        struct qcow2_copy *rest = c->cuts < MANY ? malloc(sizeof(*rest)) : NULL;

        if (!rest) {
            p->source = QCOW2_FROM_ITSELF;
            return;
        }
        *rest = *p;
        skip(rest, end - p->host);
        p->bytes = from - p->host;
        p->more = rest;
        c->cuts++;
    }
}

static void cut_note(struct qcow2_copied *c, struct qcow2_copy *note,
                     uint64_t from, uint64_t end) REQUIRES(c->lock)
{
    struct qcow2_copy *next;

    for (struct qcow2_copy *p = note; p; p = next) {
        next = p->more;
        cut_piece(c, p, from, end);
    }
}

/* In the notes of one cluster. */
static void cut_cluster(struct qcow2 *s, uint64_t cluster, uint64_t from,
                        uint64_t end)
{
    struct qcow2_copied *c = &s->copied;

    mutex_lock(&c->lock);
    uint64_t gone = atomic_load(&c->gone);
    uint64_t number = atomic_load(slot_of(s, cluster));
    while (number > gone) {
        struct qcow2_copy *note = &c->list[number - gone - 1];

        cut_note(c, note, from, end);
        number = note->older;
    }
    mutex_unlock(&c->lock);
}

static void cut_all(struct qcow2_copied *c, uint64_t from, uint64_t end)
{
    mutex_lock(&c->lock);
    for (size_t i = 0; i < atomic_load(&c->count); i++) {
        cut_note(c, &c->list[i], from, end);
    }
    mutex_unlock(&c->lock);
}

void qcow2_copied_overwrite(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    struct qcow2_copied *c = &s->copied;

    if (atomic_load(&c->count) == 0 || bytes == 0) {
        return;
    }
    uint64_t first = host >> s->cluster_bits;
    uint64_t last = (host + bytes - 1) >> s->cluster_bits;
    if (last - first >= SLOTS) {
        cut_all(c, host, host + bytes);
        return;
    }
    for (uint64_t i = first; i <= last; i++) {
        if (atomic_load(slot_of(s, i)) > atomic_load(&c->gone)) {
            cut_cluster(s, i, host, host + bytes);
        }
    }
}

/* --- Ending --- */

bool qcow2_copied_many(const struct qcow2 *s)
{
    return atomic_load(&s->copied.count) > MANY;
}

void qcow2_copied_durable(struct qcow2 *s, size_t count)
{
    struct qcow2_copied *c = &s->copied;

    if (count == 0) {
        return;
    }
    mutex_lock(&c->lock);
    size_t left = atomic_load(&c->count) - count;
    for (size_t i = 0; i < count; i++) {
        free_more(c, &c->list[i]);
    }
    memmove(c->list, c->list + count, left * sizeof(*c->list));
    atomic_store(&c->count, left);
    atomic_fetch_add(&c->gone, count);
    mutex_unlock(&c->lock);
}
