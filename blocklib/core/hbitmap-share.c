/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Copies that share their bits until one of them changes, leaf by leaf.
 *
 *      level[0] of h     [    ][own ][    ][    ]      fresh; never seen by the
 *                                                      copy
 *      shared of h         |   NULL    |     |
 *                          v           v     v
 *      a store           [ .. ][ .. ][ .. ][ .. ]      level[0] of h before
 *                          ^     ^     ^     ^
 *      shared of the copy  |     |     |     |
 *
 * To share, the words of a bitmap become a store: memory that nobody writes any
 * more.  The bitmap gets fresh memory, which costs nothing before it is
 * touched, and both look into the store.  A leaf that is to change is copied to
 * the same place in one's own memory first.  So sharing costs a pointer for
 * each leaf that has bits, and setting a bit cannot fail for want of memory.
 *
 * Readers may be in a leaf of a store when a setter has moved the leaf.  So a
 * bitmap lets go of a store only when no other thread uses the bitmap: when it
 * is shared again, emptied or freed.
 *
 * A store whose other users have gone is dead weight.  When the bitmap is
 * shared the next time, such stores and its own memory become one (settle):
 * the one with the most leaves, and the others' leaves are copied there.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/hbitmap-priv.h"
#include "nbdelta/bytes.h"

#define LEAF_BITS (LEAF_WORDS * WORD_BITS)

/* Words of level 0 that several bitmaps read. */
struct hbitmap_memory {
    _Atomic unsigned refs;
    word_t *words;
    size_t bytes;
};

/* A bitmap's reference to such memory. */
struct hbitmap_store {
    struct hbitmap_memory *memory;
    uint64_t leaves; /* that are there, when they were counted */
};

static uint64_t leaves_of(const struct hbitmap *h)
{
    return div_up(h->words[0], LEAF_WORDS);
}

static void memory_unref(struct hbitmap_memory *m)
{
    if (atomic_fetch_sub(&m->refs, 1) == 1) {
        hbitmap_release(m->words, m->bytes);
        free(m);
    }
}

static bool has_leaf(const struct hbitmap_store *s, const word_t *leaf)
{
    const struct hbitmap_memory *m = s->memory;

    return leaf >= m->words && leaf < m->words + m->bytes / sizeof(word_t);
}

/* --- Moving leaves --- */

/* The last page of memory is there as a whole. */
static void copy_leaf(word_t *to, const word_t *from)
{
    memcpy((void *)(uintptr_t)to, (const void *)(uintptr_t)from, LEAF_BYTES);
}

void hbitmap_own_leaf(struct hbitmap *h, uint64_t leaf)
{
    mutex_lock(&h->own_lock);
    const word_t *from = atomic_load(&h->shared[leaf]);
    if (from) {
        copy_leaf(&h->level[0][leaf * LEAF_WORDS], from);
        atomic_store(&h->shared[leaf], NULL);
    }
    mutex_unlock(&h->own_lock);
}

static void disown_some(struct hbitmap *h, uint64_t leaf, uint64_t end)
{
    for (; leaf < end; leaf++) {
        atomic_store_explicit(&h->shared[leaf], NULL, memory_order_relaxed);
    }
}

void hbitmap_disown(struct hbitmap *h, uint64_t leaf)
{
    if (h->shared) {
        disown_some(h, leaf, h->shared_count);
    }
}

void hbitmap_overwrite(struct hbitmap *h, uint64_t first, uint64_t last)
{
    (void)own_word(h, first);
    (void)own_word(h, last);
    if (h->shared) {
        disown_some(h, first / LEAF_WORDS + 1, last / LEAF_WORDS);
    }
}

void hbitmap_drop_stores(struct hbitmap *h)
{
    while (h->store_count > 0) {
        memory_unref(h->stores[--h->store_count].memory);
    }
    free(h->stores);
    hbitmap_release(h->shared, h->shared_count * sizeof(*h->shared));
    h->stores = NULL;
    h->shared = NULL;
    h->shared_count = 0;
    atomic_store(&h->emptied, false);
}

/* --- The table --- */

int hbitmap_grow_shared(struct hbitmap *h, uint64_t words)
{
    uint64_t count = div_up(words, LEAF_WORDS);

    if (count <= h->shared_count) {
        return 0;
    }
    leaf_t *fresh = hbitmap_memory(count * sizeof(*fresh));
    if (!fresh) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < h->shared_count; i++) {
        atomic_init(&fresh[i], atomic_load(&h->shared[i]));
    }
    hbitmap_release(h->shared, h->shared_count * sizeof(*fresh));
    h->shared = fresh;
    h->shared_count = count;
    return 0;
}

/* Room for @more stores. */
static int reserve_stores(struct hbitmap *h, unsigned more)
{
    struct hbitmap_store *stores =
        reallocarray(h->stores, h->store_count + more, sizeof(*stores));

    if (!stores) {
        return -ENOMEM;
    }
    h->stores = stores;
    return 0;
}

/* --- Settling --- */

/* May the leaf have bits?  The words of level 1 above it say so. */
static bool may_have_bits(const struct hbitmap *h, uint64_t leaf)
{
    uint64_t end = min_u64((leaf + 1) * LEAF_WORDS / WORD_BITS, h->words[1]);
    uint64_t any = 0;

    for (uint64_t i = leaf * LEAF_WORDS / WORD_BITS; i < end; i++) {
        any |= atomic_load(&h->level[1][i]);
    }
    return any != 0;
}

/* The store that has the leaf; store_count: none. */
static unsigned store_of(const struct hbitmap *h, const word_t *leaf)
{
    unsigned k = 0;

    while (k < h->store_count && !has_leaf(&h->stores[k], leaf)) {
        k++;
    }
    return k;
}

/* How many leaves are in each store, and in level[0]. */
static uint64_t count_leaves(struct hbitmap *h)
{
    uint64_t own = 0;

    for (unsigned k = 0; k < h->store_count; k++) {
        h->stores[k].leaves = 0;
    }
    for (uint64_t i = 0; i < leaves_of(h); i++) {
        const word_t *leaf = h->shared ? atomic_load(&h->shared[i]) : NULL;

        if (leaf) {
            h->stores[store_of(h, leaf)].leaves++;
        } else {
            own += may_have_bits(h, i);
        }
    }
    return own;
}

static bool is_sole(const struct hbitmap_store *s)
{
    return atomic_load(&s->memory->refs) == 1;
}

/* Exchange level[0] and a store.  Leaves without bits have none in either. */
static void exchange(struct hbitmap *h, struct hbitmap_store *s)
{
    word_t *words = s->memory->words;

    for (uint64_t i = 0; i < leaves_of(h); i++) {
        const word_t *leaf = atomic_load(&h->shared[i]);

        if (leaf && has_leaf(s, leaf)) {
            atomic_store(&h->shared[i], NULL);
        } else if (!leaf && may_have_bits(h, i)) {
            atomic_store(&h->shared[i], &h->level[0][i * LEAF_WORDS]);
        }
    }
    s->memory->words = h->level[0];
    h->level[0] = words;
}

/* Make the store with the most leaves level[0], if it has more of them. */
static void choose_home(struct hbitmap *h)
{
    uint64_t most = count_leaves(h);
    struct hbitmap_store *best = NULL;

    for (unsigned k = 0; k < h->store_count; k++) {
        struct hbitmap_store *s = &h->stores[k];

        if (is_sole(s) && s->leaves > most && s->memory->bytes == h->bytes[0]) {
            best = s;
            most = s->leaves;
        }
    }
    if (best && !atomic_load(&h->emptied)) {
        exchange(h, best);
    }
}

static void settle(struct hbitmap *h)
{
    choose_home(h);
    for (uint64_t i = 0; h->shared && i < leaves_of(h); i++) {
        const word_t *leaf = atomic_load(&h->shared[i]);

        if (leaf && is_sole(&h->stores[store_of(h, leaf)])) {
            hbitmap_own_leaf(h, i);
        }
    }
    (void)count_leaves(h);
    for (unsigned k = h->store_count; k-- > 0;) {
        if (h->stores[k].leaves == 0) {
            memory_unref(h->stores[k].memory);
            h->stores[k] = h->stores[--h->store_count];
        }
    }
}

/* --- Sharing --- */

/* Copy the words of a level under the bits of the level above.  What a level
 * has over words that have no bits costs nothing. */
static void copy_level(struct hbitmap *to, const struct hbitmap *from,
                       unsigned level)
{
    for (uint64_t i = 0; i < from->words[level + 1]; i++) {
        uint64_t there = atomic_load(&from->level[level + 1][i]);

        for (; there != 0; there &= there - 1) {
            uint64_t k = i * WORD_BITS + (uint64_t)__builtin_ctzll(there);
            uint64_t word = atomic_load(&from->level[level][k]);
            atomic_store_explicit(&to->level[level][k], word,
                                  memory_order_relaxed);
        }
    }
}

static void copy_levels(struct hbitmap *to, const struct hbitmap *from)
{
    to->level[to->top][0] = atomic_load(&from->level[from->top][0]);
    for (unsigned level = 1; level < from->top; level++) {
        copy_level(to, from, level);
    }
}

/* Make the bitmap's own memory a store, and give it fresh memory.  -ENOMEM:
 * nothing has changed. */
static int make_store(struct hbitmap *h)
{
    struct hbitmap_memory *m = calloc(1, sizeof(*m));
    word_t *fresh = hbitmap_memory(h->bytes[0]);

    if (!m || !fresh || reserve_stores(h, 1) < 0 ||
        hbitmap_grow_shared(h, h->words[0]) < 0) {
        free(m);
        hbitmap_release(fresh, h->bytes[0]);
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < leaves_of(h); i++) {
        if (!atomic_load(&h->shared[i]) && may_have_bits(h, i)) {
            atomic_store(&h->shared[i], &h->level[0][i * LEAF_WORDS]);
        }
    }
    *m = (struct hbitmap_memory){1, h->level[0], h->bytes[0]};
    h->stores[h->store_count++] = (struct hbitmap_store){m, 0};
    h->level[0] = fresh;
    return 0;
}

/* Have @copy look into the stores of @h, which has all its leaves there. */
static int look_into_stores(struct hbitmap *copy, const struct hbitmap *h)
{
    if (reserve_stores(copy, h->store_count) < 0 ||
        hbitmap_grow_shared(copy, h->words[0]) < 0) {
        return -ENOMEM;
    }
    for (unsigned k = 0; k < h->store_count; k++) {
        atomic_fetch_add(&h->stores[k].memory->refs, 1);
        copy->stores[copy->store_count++] = h->stores[k];
    }
    for (uint64_t i = 0; i < leaves_of(h); i++) {
        atomic_store(&copy->shared[i], atomic_load(&h->shared[i]));
    }
    copy_levels(copy, h);
    atomic_store(&copy->set_bits, atomic_load(&h->set_bits));
    return 0;
}

static bool can_share(const struct hbitmap *h, const struct hbitmap *copy)
{
    return h->bytes[0] >= MAP_MIN && copy->words[0] == h->words[0] &&
           atomic_load(&h->set_bits) > 0;
}

struct hbitmap *hbitmap_share(struct hbitmap *h)
{
    struct hbitmap *copy = hbitmap_new(h->size, hbitmap_granularity(h));

    if (!copy) {
        return NULL;
    }
    if (!can_share(h, copy)) {
        hbitmap_fill(copy, h);
        return copy;
    }
    settle(h);
    bool own = count_leaves(h) > 0;
    if ((own && make_store(h) < 0) || look_into_stores(copy, h) < 0) {
        hbitmap_free(copy);
        return NULL;
    }
    return copy;
}
