/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_SMALL_DISK_H
#define NBDELTA_TESTS_SMALL_DISK_H

/*
 * A protocol driver with little room: a sparse file whose blocks count, on a
 * file system that has `capacity` of them; or a device, which ends at
 * `capacity` blocks.  A write that does not fit is done as far as it does.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/graph.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "util/iov.h"

#define SMALL_MAX   (8 * MiB)
#define SMALL_BLOCK UINT64_C(512)
#define SMALL_COUNT (SMALL_MAX / SMALL_BLOCK)

struct small {
    mutex_t lock;
    bool device;
    uint64_t capacity; /* blocks */
    uint64_t used;
    unsigned char bytes[SMALL_MAX];
    bool there[SMALL_COUNT];
    void (*on_write)(void); /* called with the lock before a write, or NULL */
    void (*on_read)(void);  /* the same without it */
    void (*on_discard)(uint64_t offset, uint64_t bytes);
    unsigned fail_at; /* so many writes and flushes from now fails; 0: none */
    unsigned shy_at;  /* so many reads and writes from now is answered -EAGAIN
                         if it must not wait; 0: none */
};

static struct small small;

static inline bool small_fails(void)
{
    return small.fail_at > 0 && --small.fail_at == 0;
}

static inline bool small_is_shy(unsigned flags)
{
    return small.shy_at > 0 && --small.shy_at == 0 && (flags & REQ_NOWAIT);
}

static inline int small_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                               const struct iovec *iov, int cnt, unsigned flags)
{
    (void)n;
    if (small.on_read) {
        small.on_read();
    }
    mutex_lock(&small.lock);
    bool shy = small_is_shy(flags);
    mutex_unlock(&small.lock);
    if (shy) {
        return -EAGAIN;
    }
    iov_fill(iov, cnt, 0, 0, bytes);
    if (offset < SMALL_MAX) {
        mutex_lock(&small.lock);
        iov_from_buf(iov, cnt, 0, small.bytes + offset,
                     min_u64(bytes, SMALL_MAX - offset));
        mutex_unlock(&small.lock);
    }
    return 0;
}

/* May the block be written? */
static inline bool small_take(uint64_t block)
{
    if (block >= (small.device ? small.capacity : SMALL_COUNT)) {
        return false;
    }
    if (!small.device && !small.there[block]) {
        if (small.used == small.capacity) {
            return false;
        }
        small.used++;
    }
    small.there[block] = true;
    return true;
}

static inline int small_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                                const struct iovec *iov, int cnt,
                                unsigned flags)
{
    uint64_t done = 0;

    (void)n;
    mutex_lock(&small.lock);
    if (small_is_shy(flags)) {
        mutex_unlock(&small.lock);
        return -EAGAIN;
    }
    if (small.on_write) {
        small.on_write();
    }
    if (small_fails()) {
        mutex_unlock(&small.lock);
        return -EIO;
    }
    while (done < bytes && small_take((offset + done) / SMALL_BLOCK)) {
        uint64_t at = offset + done;
        uint64_t len = min_u64(bytes - done, SMALL_BLOCK - at % SMALL_BLOCK);

        iov_to_buf(iov, cnt, done, small.bytes + at, len);
        done += len;
    }
    mutex_unlock(&small.lock);
    return done < bytes ? -ENOSPC : 0;
}

static inline int small_flush(struct node *n)
{
    (void)n;
    mutex_lock(&small.lock);
    bool fails = small_fails();
    mutex_unlock(&small.lock);
    return fails ? -EIO : 0;
}

static inline int small_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    (void)n;
    if (small.on_discard) {
        small.on_discard(offset, bytes);
    }
    mutex_lock(&small.lock);
    for (uint64_t at = align_up(offset, SMALL_BLOCK);
         at + SMALL_BLOCK <= min_u64(offset + bytes, SMALL_MAX) &&
         !small.device;
         at += SMALL_BLOCK) {
        small.used -= small.there[at / SMALL_BLOCK];
        small.there[at / SMALL_BLOCK] = false;
        memset(small.bytes + at, 0, SMALL_BLOCK);
    }
    mutex_unlock(&small.lock);
    return 0;
}

static inline int small_map(struct node *n, uint64_t offset, uint64_t bytes,
                            unsigned flags, struct mapping *m)
{
    uint64_t block = offset / SMALL_BLOCK;

    (void)flags;
    m->file = n;
    m->host = offset;
    m->length = min_u64(bytes, SMALL_BLOCK - offset % SMALL_BLOCK);
    mutex_lock(&small.lock);
    m->kind = block < SMALL_COUNT && (small.device || small.there[block])
                  ? MAP_DATA
                  : MAP_ZERO;
    mutex_unlock(&small.lock);
    return 0;
}

static inline void small_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->grows_zero = !small.device;
}

static const struct driver small_driver = {
    .name = "small",
    .is_protocol = true,
    .limits = small_limits,
    .map = small_map,
    .preadv = small_preadv,
    .pwritev = small_pwritev,
    .discard = small_discard,
    .flush = small_flush,
};

/* The bytes of a new image; the last one is kept. */
static inline size_t small_image(const char *options, unsigned char *to)
{
    static unsigned char bytes[1 * MiB];
    static const char *made;
    static size_t len;

    if (made != options) {
        CLEANUP_JSON json_t *o = json_loads(options, 0, NULL);
        char name[] = "small.qcow2";

        ck_assert_int_eq(image_create(name, "qcow2", o, NULL), 0);
        FILE *f = fopen(name, "rb");
        ck_assert_ptr_nonnull(f);
        len = fread(bytes, 1, sizeof(bytes), f);
        (void)fclose(f);
        (void)unlink(name);
        made = options;
    }
    memcpy(to, bytes, len);
    return len;
}

/* A new image on it, made with @options; the blocks that it needs. */
static inline uint64_t small_load(const char *options, bool device)
{
    memset(&small, 0, sizeof(small));
    mutex_init(&small.lock, LOCK_TEST, NULL);
    small.device = device;
    size_t len = small_image(options, small.bytes);
    small.used = div_up(len, SMALL_BLOCK);
    for (uint64_t i = 0; i < small.used; i++) {
        small.there[i] = true;
    }
    small.capacity = device ? SMALL_COUNT : small.used;
    return small.used;
}

/* Its qcow2 node; @size: of the file or device. */
static inline struct node *small_open(struct graph *g, uint64_t size)
{
    CLEANUP_JSON json_t *mem = json_pack("{s:s, s:I}", "driver", "mem", "size",
                                         (json_int_t)size);
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:s}", "driver", "qcow2",
                                       "file", "small", "discard", "unmap");
    CLEANUP_ERROR struct error *err = NULL;
    struct node *like;
    struct node *n;
    struct node *q;

    ck_assert_int_eq(graph_open(g, mem, &like, NULL), 0);
    graph_lock(g);
    ck_assert_int_eq(node_new(g, &small_driver, "small", like, &n, NULL), 0);
    n->flags.unmap = true;
    node_refresh_limits(n);
    graph_unlock(g);
    ck_assert_msg(graph_open(g, o, &q, &err) == 0, "%s", error_message(err));
    graph_lock(g);
    node_unref(n);
    graph_unlock(g);
    return q;
}

#endif /* NBDELTA_TESTS_SMALL_DISK_H */
