/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_POWER_CUT_H
#define NBDELTA_TESTS_POWER_CUT_H

/*
 * A protocol driver that records every write and flush, and images as a power
 * cut may leave them: all writes before some flush are there, and of those
 * after it an arbitrary subset.
 *
 * Two files can be recorded in one log: what is at DATA_AT of the disk is the
 * second one, a data file, with flushes of its own.
 *
 * A request can be made to fail (rec_fail).  What was written before a flush
 * that has failed may be lost although a later one succeeds.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/graph.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/secret.h"
#include "util/iov.h"

#ifndef DISK_MAX /* a crash is a copy of it all */
#define DISK_MAX (64 * MiB)
#endif
#define DATA_AT (DISK_MAX / 2)
#define LOG_MAX 65536

struct record {
    uint64_t offset;
    uint64_t bytes; /* 0: a flush, of the file at that offset */
    unsigned char *data;
    bool failed; /* a flush, that was not done */
};

enum fault_kind { FAULT_WRITE, FAULT_FLUSH, FAULT_READ };

struct fault {
    enum fault_kind kind;
    unsigned countdown; /* the request that fails is the last of so many; 0:
                           none does */
    int error;          /* negative */
    bool done;          /* it is done all the same */
    bool from;          /* and so do all that follow, of its kind */
};

struct recorder {
    mutex_t lock; /* of the log and the disk */
    unsigned char *disk;
    bool garbage;  /* what was never written does not read as zeroes */
    bool has_data; /* there are two files */
    bool encrypted;
    struct record log[LOG_MAX];
    unsigned count;
    uint64_t top; /* nothing was written behind it */
    struct fault fault;
};

static struct recorder rec;

/* Until rec_fail((struct fault){0}). */
static inline void rec_fail(struct fault f)
{
    mutex_lock(&rec.lock);
    rec.fault = f;
    mutex_unlock(&rec.lock);
}

/* What a request has to return; *done says whether to do it. */
static inline int rec_fault(enum fault_kind kind, bool *done)
{
    struct fault *f = &rec.fault;

    *done = true;
    if (f->countdown == 0 || f->kind != kind) {
        return 0;
    }
    if (f->countdown > 1) {
        f->countdown--;
        return 0;
    }
    if (!f->from) {
        f->countdown = 0;
    }
    *done = f->done;
    return f->error;
}

static inline int rec_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                             const struct iovec *iov, int cnt, unsigned flags)
{
    (void)n;
    (void)flags;
    ck_assert_uint_le(offset + bytes, DISK_MAX);
    mutex_lock(&rec.lock);
    bool done;
    int error = rec_fault(FAULT_READ, &done);
    iov_from_buf(iov, cnt, 0, rec.disk + offset, bytes);
    mutex_unlock(&rec.lock);
    return error;
}

static inline struct record *next_record(void)
{
    ck_assert_uint_lt(rec.count, LOG_MAX);
    return &rec.log[rec.count++];
}

static inline int rec_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                              const struct iovec *iov, int cnt, unsigned flags)
{
    (void)n;
    (void)flags;
    ck_assert_uint_le(offset + bytes, DISK_MAX);
    mutex_lock(&rec.lock);
    bool done;
    int error = rec_fault(FAULT_WRITE, &done);
    if (done) {
        struct record *r = next_record();
        *r = (struct record){offset, bytes, malloc(bytes), false};
        ck_assert_ptr_nonnull(r->data);
        iov_to_buf(iov, cnt, 0, r->data, bytes);
        memcpy(rec.disk + offset, r->data, bytes);
        rec.top = max_u64(rec.top, offset + bytes);
    }
    mutex_unlock(&rec.lock);
    return error;
}

static inline int flush_at(uint64_t offset)
{
    mutex_lock(&rec.lock);
    bool done;
    int error = rec_fault(FAULT_FLUSH, &done);
    *next_record() = (struct record){.offset = offset, .failed = !done};
    mutex_unlock(&rec.lock);
    return error;
}

static inline int rec_flush(struct node *n)
{
    (void)n;
    return flush_at(0);
}

static inline void rec_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->grows_zero = !rec.garbage;
}

static inline int rec_data_preadv(struct node *n, uint64_t offset,
                                  uint64_t bytes, const struct iovec *iov,
                                  int cnt, unsigned flags)
{
    return rec_preadv(n, DATA_AT + offset, bytes, iov, cnt, flags);
}

static inline int rec_data_pwritev(struct node *n, uint64_t offset,
                                   uint64_t bytes, const struct iovec *iov,
                                   int cnt, unsigned flags)
{
    return rec_pwritev(n, DATA_AT + offset, bytes, iov, cnt, flags);
}

static inline int rec_data_flush(struct node *n)
{
    (void)n;
    return flush_at(DATA_AT);
}

static const struct driver data_recorder_driver = {
    .name = "data-recorder",
    .is_protocol = true,
    .limits = rec_limits,
    .preadv = rec_data_preadv,
    .pwritev = rec_data_pwritev,
    .flush = rec_data_flush,
};

static const struct driver recorder_driver = {
    .name = "recorder",
    .is_protocol = true,
    .limits = rec_limits,
    .preadv = rec_preadv,
    .pwritev = rec_pwritev,
    .flush = rec_flush,
};

/* --- A qcow2 node over the recorder --- */

static _Thread_local uint64_t seed;
static inline uint64_t rnd(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % below;
}

/* Encrypted images take the secret "s". */
static inline void add_secret(struct graph *g)
{
    ck_assert_int_eq(secret_create(g, "s", "sesame", 6, NULL), 0);
}

static inline void add_key(json_t *o)
{
    if (rec.encrypted) {
        (void)json_object_set_new(o, "encrypt",
                                  json_pack("{s:s}", "key-secret", "s"));
    }
}

static inline uint64_t load_new_image(const char *options)
{
    CLEANUP_JSON json_t *o = json_loads(options, 0, NULL);
    struct graph *g = graph_new();
    struct stat st;

    add_secret(g);
    ck_assert_int_eq(image_create_with(g, "new.qcow2", "qcow2", o, NULL), 0);
    graph_free(g);
    FILE *f = fopen("new.qcow2", "rb");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fstat(fileno(f), &st), 0);
    rec.disk = malloc(DISK_MAX);
    ck_assert_ptr_nonnull(rec.disk);
    memset(rec.disk, rec.garbage ? 0xa5 : 0, DISK_MAX);
    ck_assert_uint_eq(fread(rec.disk, 1, (size_t)st.st_size, f),
                      (size_t)st.st_size);
    (void)fclose(f);
    (void)unlink("new.qcow2");
    rec.count = 0;
    rec.top = rec.garbage ? DISK_MAX : (uint64_t)st.st_size;
    rec.fault = (struct fault){0};
    mutex_init(&rec.lock, LOCK_TEST, NULL);
    return (uint64_t)st.st_size;
}

/* A node of @drv, with a reference. */
static inline struct node *new_recorder(struct graph *g,
                                        const struct driver *drv,
                                        const char *name, struct node *like)
{
    struct node *n;

    graph_lock(g);
    ck_assert_int_eq(node_new(g, drv, name, like, &n, NULL), 0);
    node_refresh_limits(n);
    graph_unlock(g);
    return n;
}

static inline void drop(struct graph *g, struct node *n)
{
    graph_lock(g);
    node_unref(n);
    graph_unlock(g);
}

/* With an option more, if @key is not NULL. */
static inline struct node *open_recorded_with(struct graph *g, uint64_t size,
                                              const char *key,
                                              const char *value)
{
    CLEANUP_JSON json_t *mem = json_pack("{s:s, s:I}", "driver", "mem", "size",
                                         (json_int_t)size);
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s}", "driver", "qcow2", "file",
                                       "rec");
    struct node *like;
    struct node *data = NULL;
    struct node *q;

    if (rec.has_data) {
        (void)json_object_set_new(o, "data-file", json_string("rec-data"));
    }
    add_key(o);
    if (key) {
        (void)json_object_set_new(o, key, json_string(value));
    }
    ck_assert_int_eq(graph_open(g, mem, &like, NULL), 0);
    struct node *n = new_recorder(g, &recorder_driver, "rec", like);
    if (rec.has_data) {
        data = new_recorder(g, &data_recorder_driver, "rec-data", like);
    }
    ck_assert_int_eq(graph_open(g, o, &q, NULL), 0);
    drop(g, n);
    if (data) {
        drop(g, data);
    }
    return q;
}

static inline struct node *open_recorded(struct graph *g, uint64_t size)
{
    return open_recorded_with(g, size, NULL, NULL);
}

/* --- Cutting the power --- */

static inline bool is_data(const struct record *r)
{
    return rec.has_data && r->offset >= DATA_AT;
}

/* Of the first @point records, the ones that are on disk for certain. */
static inline bool *durable_records(unsigned point)
{
    bool *sure = calloc(point + 1UL, sizeof(*sure));
    unsigned from[2] = {0, 0};

    ck_assert_ptr_nonnull(sure);
    for (unsigned i = 0; i < point; i++) {
        const struct record *flush = &rec.log[i];
        unsigned *first = &from[is_data(flush)];

        if (flush->bytes > 0) {
            continue;
        }
        for (unsigned k = *first; k < i; k++) {
            sure[k] |= !flush->failed && is_data(&rec.log[k]) == is_data(flush);
        }
        *first = i;
    }
    return sure;
}

/* The power is cut after @point records. */
static inline unsigned char *crashed_image_at(const unsigned char *before,
                                              unsigned point)
{
    unsigned char *disk = calloc(1, DISK_MAX);
    CLEANUP_FREE bool *sure = durable_records(point);

    ck_assert_ptr_nonnull(disk);
    memcpy(disk, before, rec.top);
    for (unsigned i = 0; i < point; i++) {
        const struct record *r = &rec.log[i];
        if (r->bytes > 0 && (sure[i] || rnd(2))) {
            memcpy(disk + r->offset, r->data, r->bytes);
        }
    }
    return disk;
}

static inline unsigned char *crashed_image(const unsigned char *before,
                                           unsigned *cut)
{
    *cut = (unsigned)rnd(rec.count + 1);
    return crashed_image_at(before, *cut);
}

static inline void forget_records(void)
{
    for (unsigned i = 0; i < rec.count; i++) {
        free(rec.log[i].data);
    }
    free(rec.disk);
    mutex_destroy(&rec.lock);
}

#endif /* NBDELTA_TESTS_POWER_CUT_H */
