/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_BACKUP_UTIL_H
#define NBDELTA_TESTS_BACKUP_UTIL_H

/* A world with a disk to back up, a target for it, and a guest. */
#include <unistd.h>

#include "bitmap-util.h"
#include "job-util.h"

#define CLUSTER (64 * KiB)
#define SIZE    (64 * CLUSTER)

struct world {
    struct graph *g;
    struct jobs *j;
    struct record rec;
    struct node *src;
    struct node *dst;
    struct blk *guest;
    char dir[40];
    char file[60]; /* for targets, in dir */
};

static inline void begin(struct world *w)
{
    memset(w, 0, sizeof(*w));
    w->g = graph_new();
    w->j = jobs_new(w->g, record_event, &w->rec);
    w->src = disk_new(w->g, "src", SIZE);
    w->dst = disk_new(w->g, "dst", SIZE);
    disk_fill(w->src, SIZE);
    ck_assert_int_eq(
        blk_new(w->g, w->src, PERM_ALL, PERM_ALL, "guest", &w->guest, NULL), 0);
    strcpy(w->dir, "/tmp/test-backup-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(w->dir));
    (void)snprintf(w->file, sizeof(w->file), "%s/target", w->dir);
}

static inline void end(struct world *w)
{
    jobs_shutdown(w->j);
    jobs_free(w->j);
    /* All is as it was before: no filter, nobody on the target. */
    ck_assert_ptr_eq(blk_node(w->guest), w->src);
    blk_free(w->guest);
    ck_assert_uint_eq(w->dst->refs, 1);
    ck_assert_uint_eq(w->src->refs, 1);
    graph_free(w->g);
    json_decref(w->rec.last);
    (void)unlink(w->file);
    ck_assert_int_eq(rmdir(w->dir), 0);
}

static inline int start(struct world *w, struct backup_options o,
                        const char *text)
{
    struct error *err = NULL;

    o.source = w->src;
    if (!o.target && !o.target_file) {
        o.target = w->dst;
    }
    if (!o.device) {
        o.device = "b";
    }
    mutex_lock(&w->j->lock);
    int r = start_backup(w->j, &o, &err);
    mutex_unlock(&w->j->lock);
    if (text) {
        ck_assert_str_eq(error_message(err), text);
    } else {
        ck_assert_msg(r == 0, "%s", error_message(err));
    }
    error_free(err);
    return r;
}

static inline void add_bitmap(struct world *w)
{
    ck_assert_int_eq(bitmap_add(w->g, w->src, "m", 4096, false, false, NULL),
                     0);
}

static inline uint64_t dirty_bytes(struct world *w)
{
    struct bitmap *bm = bitmap_find(w->src, "m");
    uint64_t count = bitmap_count(bm);
    bitmap_unref(bm);
    return count;
}

static inline void guest_write(struct world *w, uint64_t offset, int byte,
                               size_t bytes)
{
    char *buf = malloc(bytes);
    memset(buf, byte, bytes);
    ck_assert_int_eq(blk_pwrite(w->guest, buf, bytes, offset, 0), 0);
    free(buf);
}

static inline void speed_up(struct world *w, const char *id)
{
    mutex_lock(&w->j->lock);
    ck_assert_int_eq(job_set_speed(w->j, id, 0, NULL), 0);
    mutex_unlock(&w->j->lock);
}

#endif /* NBDELTA_TESTS_BACKUP_UTIL_H */
