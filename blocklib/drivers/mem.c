/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mem: a disk in memory, in chunks that exist once they are written.
 *
 *   table:  [ * | NULL | * | ... ]      one pointer per 64 KiB of disk
 *
 * Chunk i is guarded, pointer and bytes, by locks[i % LOCKS]: shared for
 * reading, exclusive for changing.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/node.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "util/iov.h"

#define CHUNK (64 * KiB)
#define LOCKS 64
#define MAX   (64 * GiB) /* its table takes 8 MiB, untouched until used */

struct mem {
    char **table; /* of MAX / CHUNK pointers */
    rwlock_t locks[LOCKS];
    _Atomic uint64_t used; /* from this chunk on there never was one */
};

static const struct option mem_options[] = {
    OPTION("size", UINT, .required = true),
    OPTIONS_END,
};

static int mem_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct mem *s = n->state;
    uint64_t size = UINT64_MAX;
    int r = opts_uint(opts, "size", MAX, &size, errp);

    if (r < 0) {
        return r;
    }
    if (size == UINT64_MAX) {
        return error_set(errp, EINVAL, "Parameter 'size' is missing");
    }
    s->table = calloc(MAX / CHUNK, sizeof(*s->table));
    if (!s->table) {
        return error_nomem(errp);
    }
    for (unsigned i = 0; i < LOCKS; i++) {
        rwlock_init(&s->locks[i], LOCK_MEM, NULL);
    }
    n->size = size;
    return 0;
}

static void mem_close(struct node *n)
{
    struct mem *s = n->state;

    for (uint64_t i = 0; i < s->used; i++) {
        free(s->table[i]);
    }
    free(s->table);
    for (unsigned i = 0; i < LOCKS; i++) {
        rwlock_destroy(&s->locks[i]);
    }
}

static void mem_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->grows_zero = true;
    lim->fast_zero = true;
    lim->zero_unmaps = true;
}

enum access { READ, WRITE, ZERO };

static char *new_chunk(struct mem *s, uint64_t index)
{
    char *chunk = calloc(1, CHUNK);
    uint64_t used = s->used;

    while (chunk && used <= index &&
           !atomic_compare_exchange_weak(&s->used, &used, index + 1)) {
    }
    return chunk;
}

/* Read one chunk's part of a request: @bytes bytes at @offset of the disk, and
 * at @done of the iov. */
static void read_chunk(struct mem *s, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, uint64_t done)
{
    uint64_t index = offset / CHUNK;
    rwlock_t *lock = &s->locks[index % LOCKS];

    rwlock_rdlock(lock);
    const char *chunk = s->table[index];
    if (chunk) {
        iov_from_buf(iov, cnt, done, chunk + offset % CHUNK, bytes);
    }
    rwlock_unlock(lock);
    if (!chunk) {
        iov_fill(iov, cnt, done, 0, bytes);
    }
}

static int write_chunk(struct mem *s, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, uint64_t done)
{
    uint64_t index = offset / CHUNK;
    rwlock_t *lock = &s->locks[index % LOCKS];

    rwlock_wrlock(lock);
    if (!s->table[index]) {
        s->table[index] = new_chunk(s, index);
    }
    char *chunk = s->table[index];
    if (chunk) {
        iov_to_buf(iov, cnt, done, chunk + offset % CHUNK, bytes);
    }
    rwlock_unlock(lock);
    return chunk ? 0 : -ENOMEM;
}

static void zero_chunk(struct mem *s, uint64_t offset, uint64_t bytes)
{
    uint64_t index = offset / CHUNK;
    rwlock_t *lock = &s->locks[index % LOCKS];

    rwlock_wrlock(lock);
    if (bytes == CHUNK) {
        free(s->table[index]);
        s->table[index] = NULL;
    } else if (s->table[index]) {
        memset(s->table[index] + offset % CHUNK, 0, bytes);
    }
    rwlock_unlock(lock);
}

static int on_chunk(struct mem *s, enum access action, uint64_t offset,
                    uint64_t bytes, const struct iovec *iov, int cnt,
                    uint64_t done)
{
    switch (action) {
    case READ:
        read_chunk(s, offset, bytes, iov, cnt, done);
        return 0;
    case WRITE:
        return write_chunk(s, offset, bytes, iov, cnt, done);
    case ZERO:
        zero_chunk(s, offset, bytes);
        return 0;
    }
    return -EINVAL;
}

static int each_chunk(struct node *n, enum access action, uint64_t offset,
                      uint64_t bytes, const struct iovec *iov, int cnt)
{
    int r = 0;

    if (!range_inside(offset, bytes, MAX)) {
        return -ENOSPC;
    }
    for (uint64_t done = 0; done < bytes && r == 0;) {
        uint64_t at = offset + done;
        uint64_t len = min_u64(bytes - done, CHUNK - at % CHUNK);
        r = on_chunk(n->state, action, at, len, iov, cnt, done);
        done += len;
    }
    return r;
}

static int mem_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                      const struct iovec *iov, int cnt, unsigned flags)
{
    (void)flags;
    return each_chunk(n, READ, offset, bytes, iov, cnt);
}

static int mem_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    (void)flags;
    return each_chunk(n, WRITE, offset, bytes, iov, cnt);
}

/* Memory is not shared.  A disk here stands for a file that can share. */
static int mem_clone(struct node *n, uint64_t offset, uint64_t bytes,
                     struct node *from, uint64_t at)
{
    CLEANUP_FREE char *buf = from->drv == n->drv ? malloc(CHUNK) : NULL;
    int r = 0;

    if (!buf) {
        return -ENOTSUP;
    }
    for (uint64_t done = 0; r == 0 && done < bytes; done += CHUNK) {
        struct iovec v = {buf, min_u64(bytes - done, CHUNK)};

        r = each_chunk(from, READ, at + done, v.iov_len, &v, 1);
        r = r < 0 ? r : each_chunk(n, WRITE, offset + done, v.iov_len, &v, 1);
    }
    return r;
}

static int mem_zero(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned flags)
{
    (void)flags;
    return each_chunk(n, ZERO, offset, bytes, NULL, 0);
}

static int mem_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    return each_chunk(n, ZERO, offset, bytes, NULL, 0);
}

static bool chunk_exists(struct mem *s, uint64_t index)
{
    rwlock_t *lock = &s->locks[index % LOCKS];

    rwlock_rdlock(lock);
    bool exists = s->table[index] != NULL;
    rwlock_unlock(lock);
    return exists;
}

static int mem_map(struct node *n, uint64_t offset, uint64_t bytes,
                   unsigned flags, struct mapping *m)
{
    struct mem *s = n->state;
    uint64_t at = align_down(offset, CHUNK) + CHUNK;
    bool exists = chunk_exists(s, offset / CHUNK);

    while ((flags & MAP_STATUS) && at < offset + bytes &&
           chunk_exists(s, at / CHUNK) == exists) {
        at += CHUNK;
    }
    m->kind = exists ? MAP_DATA : MAP_ZERO;
    m->file = n;
    m->host = offset;
    m->length = min_u64(bytes, at - offset);
    return 0;
}

static int mem_resize(struct node *n, uint64_t size, struct error **errp)
{
    if (size > MAX) {
        return error_set(errp, EFBIG, "a disk in memory has at most 64 GiB");
    }
    /* Clear the rest, so that it reads as zeroes when the disk grows again. */
    return size < n->size ? each_chunk(n, ZERO, size,
                                       align_up(n->size, CHUNK) - size, NULL, 0)
                          : 0;
}

static int mem_flush(struct node *n)
{
    (void)n;
    return 0;
}

const struct driver driver_mem = {
    .name = "mem",
    .options = mem_options,
    .is_protocol = true,
    .state_size = sizeof(struct mem),
    .flags_write = REQ_FUA, /* there is nothing below to wait for */
    .open = mem_open,
    .close = mem_close,
    .limits = mem_limits,
    .resize = mem_resize,
    .map = mem_map,
    .preadv = mem_preadv,
    .pwritev = mem_pwritev,
    .clone = mem_clone,
    .zero = mem_zero,
    .discard = mem_discard,
    .flush = mem_flush,
};
