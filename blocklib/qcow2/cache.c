/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The metadata cache: a hash table of tables, and an LRU list of tables that
 * nobody has pinned.
 *
 *   missing -> loading -> clean <-> dirty        evicted: clean, unpinned
 *
 * A thread that finds a table loading waits.  A thread that finds it missing
 * loads it without holding the lock.
 */
#include "qcow2/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/node.h"
#include "util/iov.h"

/* No page of memory is smaller. */
#define PAGE 4096

struct qcow2_cache {
    /* Set at creation. */
    struct node *file;
    size_t table_size;
    size_t max;
    size_t buckets; /* power of two */
    unsigned shift; /* log2 of table_size */
    enum node_event load_event;
    enum node_event update_event;

    mutex_t lock;
    cond_t loaded;

    /* Guarded by lock. */
    struct qcow2_table **hash;
    struct list lru;
    size_t count;
    size_t dirty;
};

struct qcow2_cache *qcow2_cache_new(struct node *file, size_t table_size,
                                    size_t max)
{
    struct qcow2_cache *c = calloc(1, sizeof(*c));
    size_t buckets = 16;

    while (buckets < max * 2) {
        buckets *= 2;
    }
    struct qcow2_table **hash = calloc(buckets, sizeof(struct qcow2_table *));
    if (!c || !hash) {
        free(c);
        free(hash);
        return NULL;
    }
    c->file = file;
    c->table_size = table_size;
    c->shift = (unsigned)__builtin_ctzll(table_size);
    c->max = max;
    c->buckets = buckets;
    c->load_event = c->update_event = EVENT_NONE;
    c->hash = hash;
    mutex_init(&c->lock, LOCK_QCOW2_CACHE, NULL);
    cond_init(&c->loaded);
    list_init(&c->lru);
    return c;
}

void qcow2_cache_set_events(struct qcow2_cache *c, enum node_event load,
                            enum node_event update)
{
    c->load_event = load;
    c->update_event = update;
}

static void table_free(struct qcow2_table *t)
{
    free(t->data);
    free(t);
}

void qcow2_cache_set_file(struct qcow2_cache *c, struct node *file)
{
    c->file = file;
}

void qcow2_cache_free(struct qcow2_cache *c)
{
    if (!c) {
        return;
    }
    for (size_t i = 0; i < c->buckets; i++) {
        while (c->hash[i]) {
            struct qcow2_table *t = c->hash[i];
            c->hash[i] = t->hash_next;
            table_free(t);
        }
    }
    free(c->hash);
    cond_destroy(&c->loaded);
    mutex_destroy(&c->lock);
    free(c);
}

static struct qcow2_table **bucket(struct qcow2_cache *c, uint64_t offset)
{
    uint64_t key = (offset >> c->shift) * UINT64_C(0x9e3779b97f4a7c15);
    return &c->hash[(key >> 32) & (c->buckets - 1)];
}

static struct qcow2_table *find_locked(struct qcow2_cache *c, uint64_t offset)
    REQUIRES(c->lock)
{
    for (struct qcow2_table *t = *bucket(c, offset); t; t = t->hash_next) {
        if (t->offset == offset) {
            return t;
        }
    }
    return NULL;
}

static void unhash_locked(struct qcow2_cache *c, struct qcow2_table *t)
    REQUIRES(c->lock)
{
    struct qcow2_table **at = bucket(c, t->offset);
    while (*at != t) {
        at = &(*at)->hash_next;
    }
    *at = t->hash_next;
    c->count--;
}

static void pin_locked(struct qcow2_table *t)
{
    if (t->pins++ == 0) {
        list_remove(&t->lru);
    }
}

static void unpin_locked(struct qcow2_cache *c, struct qcow2_table *t)
    REQUIRES(c->lock)
{
    if (--t->pins == 0) {
        list_append(&c->lru, &t->lru);
    }
}

/* Take a clean table that nobody uses out of the cache; NULL: there is none. */
static struct qcow2_table *evict_locked(struct qcow2_cache *c) REQUIRES(c->lock)
{
    list_for_each (at, &c->lru) {
        struct qcow2_table *t = list_entry(at, struct qcow2_table, lru);
        if (!t->dirty) {
            list_remove(at);
            unhash_locked(c, t);
            return t;
        }
    }
    return NULL;
}

/* A new table for @offset, hashed and pinned; content undefined. */
static struct qcow2_table *add_locked(struct qcow2_cache *c, uint64_t offset)
    REQUIRES(c->lock)
{
    struct qcow2_table *t = c->count >= c->max ? evict_locked(c) : NULL;

    if (!t) {
        t = calloc(1, sizeof(*t));
        if (!t) {
            return NULL;
        }
        t->data = buf_alloc(c->table_size);
        if (!t->data) {
            free(t);
            return NULL;
        }
        list_init(&t->lru);
    }
    t->offset = offset;
    t->pins = 1;
    t->dirty = false;
    t->loading = false;
    t->has_room = false;
    struct qcow2_table **at = bucket(c, offset);
    t->hash_next = *at;
    *at = t;
    c->count++;
    return t;
}

/* Read a table that is marked as loading.  Threads that wait for it learn the
 * outcome by looking again. */
static int load_table(struct qcow2_cache *c, struct qcow2_table *t)
    EXCLUDES(c->lock)
{
    node_event(c->file, c->load_event);
    int r = node_pread(c->file, t->data, c->table_size, t->offset, 0);
    mutex_lock(&c->lock);
    t->loading = false;
    if (r < 0) {
        unhash_locked(c, t);
        table_free(t);
    }
    cond_broadcast(&c->loaded);
    mutex_unlock(&c->lock);
    return r;
}

int qcow2_cache_get(struct qcow2_cache *c, uint64_t offset, bool nowait,
                    struct qcow2_table **tp)
{
    mutex_lock(&c->lock);
    struct qcow2_table *t = find_locked(c, offset);
    while (t && t->loading && !nowait) {
        cond_wait(&c->loaded, &c->lock);
        t = find_locked(c, offset);
    }
    if (t && !t->loading) {
        pin_locked(t);
        mutex_unlock(&c->lock);
        *tp = t;
        return 0;
    }
    if (nowait) {
        mutex_unlock(&c->lock);
        return -EAGAIN;
    }
    t = add_locked(c, offset);
    if (t) {
        t->loading = true;
    }
    mutex_unlock(&c->lock);
    if (!t) {
        return -ENOMEM;
    }
    int r = load_table(c, t);
    if (r == 0) {
        *tp = t;
    }
    return r;
}

int qcow2_cache_new_table(struct qcow2_cache *c, uint64_t offset,
                          struct qcow2_table **tp)
{
    mutex_lock(&c->lock);
    struct qcow2_table *t = find_locked(c, offset);
    while (t && t->loading) { /* a damaged image refers to a free cluster */
        cond_wait(&c->loaded, &c->lock);
        t = find_locked(c, offset);
    }
    if (t) {
        pin_locked(t);
    } else {
        t = add_locked(c, offset);
    }
    if (t) {
        memset(t->data, 0, c->table_size);
        c->dirty += !t->dirty;
        t->dirty = true;
    }
    mutex_unlock(&c->lock);
    *tp = t;
    return t ? 0 : -ENOMEM;
}

void qcow2_cache_put(struct qcow2_cache *c, struct qcow2_table *t)
{
    mutex_lock(&c->lock);
    unpin_locked(c, t);
    mutex_unlock(&c->lock);
}

void qcow2_cache_mark_dirty(struct qcow2_cache *c, struct qcow2_table *t)
{
    mutex_lock(&c->lock);
    c->dirty += !t->dirty;
    t->dirty = true;
    mutex_unlock(&c->lock);
}

void qcow2_cache_forget(struct qcow2_cache *c, uint64_t offset)
{
    mutex_lock(&c->lock);
    struct qcow2_table *t = find_locked(c, offset);
    if (t) {
        c->dirty -= t->dirty;
        t->dirty = false;
        if (t->pins == 0) {
            list_remove(&t->lru);
            unhash_locked(c, t);
            table_free(t);
        }
    }
    mutex_unlock(&c->lock);
}

static int by_offset(const void *a, const void *b)
{
    const struct qcow2_dirty *x = a;
    const struct qcow2_dirty *y = b;
    return x->table->offset < y->table->offset   ? -1
           : x->table->offset > y->table->offset ? 1
                                                 : 0;
}

static size_t count_dirty(struct qcow2_cache *c)
{
    mutex_lock(&c->lock);
    size_t dirty = c->dirty;
    mutex_unlock(&c->lock);
    return dirty;
}

/* Memory for @count copies, all of it there. */
static int grow_set(const struct qcow2_cache *c, struct qcow2_dirty_set *set,
                    size_t count)
{
    if (count <= set->room) {
        return 0;
    }
    struct qcow2_dirty *more = realloc(set->list, count * sizeof(*more));
    if (!more) {
        return -ENOMEM;
    }
    for (set->list = more; set->room < count; set->room++) {
        char *copy = buf_alloc(c->table_size);

        if (!copy) {
            return -ENOMEM;
        }
        for (size_t at = 0; at < c->table_size; at += PAGE) {
            *(volatile char *)(copy + at) = 0;
        }
        more[set->room].copy = copy;
    }
    return 0;
}

void qcow2_cache_make_room(struct qcow2_cache *c, struct qcow2_dirty_set *set)
{
    (void)grow_set(c, set, count_dirty(c));
}

/* Take all dirty tables; there is room for them. */
static void take_dirty(struct qcow2_cache *c, struct qcow2_dirty_set *set)
{
    mutex_lock(&c->lock);
    for (size_t i = 0; i < c->buckets && c->dirty > 0; i++) {
        for (struct qcow2_table *t = c->hash[i]; t; t = t->hash_next) {
            if (t->dirty) {
                set->list[set->count++].table = t;
                pin_locked(t);
                t->dirty = false;
                c->dirty--;
            }
        }
    }
    mutex_unlock(&c->lock);
}

/* The meta lock keeps the number of dirty tables, and what is in them.  The
 * cache's own is not held meanwhile, because all requests take that. */
int qcow2_cache_collect(struct qcow2_cache *c, struct qcow2_dirty_set *set)
{
    int r = grow_set(c, set, count_dirty(c));

    if (r < 0) {
        return r;
    }
    take_dirty(c, set);
    if (set->count > 0) {
        qsort(set->list, set->count, sizeof(*set->list), by_offset);
    }
    for (size_t i = 0; i < set->count; i++) {
        memcpy(set->list[i].copy, set->list[i].table->data, c->table_size);
    }
    return 0;
}

int qcow2_cache_write(struct qcow2_cache *c, const struct qcow2_dirty_set *set)
{
    int r = 0;

    for (size_t i = 0; i < set->count && r == 0; i++) {
        node_event(c->file, c->update_event);
        r = node_pwrite(c->file, set->list[i].copy, c->table_size,
                        set->list[i].table->offset, 0);
    }
    return r;
}

void qcow2_cache_release(struct qcow2_cache *c, struct qcow2_dirty_set *set,
                         bool failed)
{
    mutex_lock(&c->lock);
    for (size_t i = 0; i < set->count; i++) {
        struct qcow2_table *t = set->list[i].table;
        if (failed) {
            c->dirty += !t->dirty;
            t->dirty = true;
        }
        unpin_locked(c, t);
    }
    mutex_unlock(&c->lock);
    for (size_t i = 0; i < set->room; i++) {
        free(set->list[i].copy);
    }
    free(set->list);
    *set = (struct qcow2_dirty_set){0};
}

bool qcow2_cache_pressed(struct qcow2_cache *c)
{
    mutex_lock(&c->lock);
    bool pressed = c->dirty > c->max / 2;
    mutex_unlock(&c->lock);
    return pressed;
}
