/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_POWER_CUT_H
#define NBDELTA_TESTS_POWER_CUT_H

/*
 * Images as a power cut may leave them: all writes of a recorder before some
 * flush are there, and those with FUA, and of what follows it an arbitrary
 * subset.
 */
#include "recorder.h"

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
    struct node *n = new_recorder(g, rec_driver(), "rec", like);
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
        sure[i] |= flush->fua;
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
    free(rec.flushed);
    rec.flushed = NULL;
    mutex_destroy(&rec.lock);
}

#endif /* NBDELTA_TESTS_POWER_CUT_H */
