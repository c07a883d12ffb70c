/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_JOB_UTIL_H
#define NBDELTA_TESTS_JOB_UTIL_H

/*
 * What the tests of jobs share: disks in memory, below a filter that can do
 * mischief, and a record of events.
 */
#include <check.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph.h"
#include "job/job.h"
#include "mischief.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/job.h"

/* --- Disks --- */

/* A disk in memory, and above it a trap that has the name. */
static inline struct node *disk_new(struct graph *g, const char *name,
                                    uint64_t size)
{
    json_t *o = json_pack("{s:s, s:I, s:s}", "driver", "mem", "size",
                          (json_int_t)size, "discard", "unmap");
    struct node *mem;
    struct node *n;
    struct error *err = NULL;

    int r = graph_open(g, o, &mem, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    json_decref(o);
    graph_lock(g);
    ck_assert_int_eq(node_new(g, &driver_trap, name, mem, &n, NULL), 0);
    n->options = json_object(); /* it is no job's */
    ck_assert_int_eq(node_attach(n, CHILD_FILE, mem, "file",
                                 PERM_READ | PERM_WRITE | PERM_RESIZE, PERM_ALL,
                                 NULL),
                     0);
    node_refresh_limits(n);
    n->monitor_owned = true;
    struct trap *t = n->state;
    mutex_init(&t->lock, LOCK_TEST, NULL);
    cond_init(&t->moved);
    graph_unlock(g);
    return n;
}

static inline struct trap *trap_of(struct node *n)
{
    return n->state;
}

/* All of a disk, past the traps. */
static inline char *disk_read(struct node *n)
{
    char *buf = malloc(node_size(n) + 1);
    struct tree *t = node_enter(n, false);
    ck_assert_int_eq(
        node_pread(node_child(n, CHILD_FILE), buf, node_size(n), 0, 0), 0);
    node_leave(t);
    return buf;
}

static inline void disk_write(struct node *n, uint64_t offset, int byte,
                              size_t bytes)
{
    char *buf = malloc(bytes);
    memset(buf, byte, bytes);
    struct tree *t = node_enter(n, false);
    ck_assert_int_eq(
        node_pwrite(node_child(n, CHILD_FILE), buf, bytes, offset, 0), 0);
    node_leave(t);
    free(buf);
}

/* Each 4 KiB block of [0, bytes) gets a byte of its own. */
static inline void disk_fill(struct node *n, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += 4096) {
        disk_write(n, at, (int)(1 + at / 4096 % 250),
                   min_u64(4096, bytes - at));
    }
}

static inline void ck_disk_is(struct node *n, const char *expected)
{
    char *now = disk_read(n);
    uint64_t at = 0;

    while (at < node_size(n) && now[at] == expected[at]) {
        at++;
    }
    ck_assert_msg(at == node_size(n), "'%s' differs at byte %llu", node_name(n),
                  (unsigned long long)at);
    free(now);
}

/* Writes, zeroes and discards all over a disk; @seed makes them differ. */
static inline void disk_scribble(struct blk *b, unsigned seed, int count)
{
    uint64_t size = blk_size(b);
    uint64_t max = 192 * KiB;
    char *buf = malloc(max);

    for (int i = 0; i < count; i++) {
        uint64_t offset = (uint64_t)rand_r(&seed) % size;
        uint64_t most = min_u64(size - offset, max);
        uint64_t bytes = 1 + (uint64_t)rand_r(&seed) % most;
        int r;
        switch (rand_r(&seed) % 4) {
        case 0:
            r = blk_zero(b, offset, bytes, REQ_MAY_UNMAP);
            break;
        case 1:
            r = blk_discard(b, offset, bytes);
            break;
        default:
            memset(buf, 128 + i % 100, bytes);
            r = blk_pwrite(b, buf, bytes, offset, i % 2 ? REQ_FUA : 0);
        }
        ck_assert_int_eq(r, 0);
    }
    free(buf);
}

/* --- Events --- */

struct record {
    char text[4096]; /* "ID:created ID:running ..." */
    json_t *last;    /* data of the last event but status changes */
    void (*look)(const char *name, void *opaque); /* or NULL */
    void *opaque;
};

static inline void record_event(const char *name, json_t *data, void *opaque)
{
    struct record *rec = opaque;
    const char *id = json_string_value(json_object_get(data, "device"));
    const char *what = name;

    if (strcmp(name, "JOB_STATUS_CHANGE") == 0) {
        what = json_string_value(json_object_get(data, "status"));
    } else {
        json_decref(rec->last);
        rec->last = json_incref(data);
    }
    if (!id) {
        id = json_string_value(json_object_get(data, "id"));
    }
    size_t len = strlen(rec->text);
    (void)snprintf(rec->text + len, sizeof(rec->text) - len, "%s%s:%s",
                   len ? " " : "", id, what);
    if (rec->look) {
        rec->look(name, rec->opaque);
    }
}

static inline json_int_t last_int(const struct record *rec, const char *key)
{
    return json_integer_value(json_object_get(rec->last, key));
}

static inline const char *last_str(const struct record *rec, const char *key)
{
    return json_string_value(json_object_get(rec->last, key));
}

/* --- Waiting --- */

static inline void nap(void)
{
    struct timespec ts = {0, 1000000};
    (void)nanosleep(&ts, NULL);
}

/* Until @text is the end of the record. */
static inline void wait_for_event(struct jobs *j, struct record *rec,
                                  const char *text)
{
    for (;;) {
        mutex_lock(&j->lock);
        size_t len = strlen(rec->text);
        bool there = len >= strlen(text) &&
                     strcmp(rec->text + len - strlen(text), text) == 0;
        mutex_unlock(&j->lock);
        if (there) {
            return;
        }
        nap();
    }
}

static inline void wait_for_jobs(struct jobs *j)
{
    for (size_t count = 1; count > 0;) {
        mutex_lock(&j->lock);
        json_t *list = jobs_query(j);
        count = json_array_size(list);
        json_decref(list);
        mutex_unlock(&j->lock);
        if (count > 0) {
            nap();
        }
    }
}

static inline int run_suite(const char *name, const TTest *const *tests,
                            size_t count)
{
    Suite *s = suite_create(name);
    TCase *tc = tcase_create(name);
    tcase_set_timeout(tc, 120);
    for (size_t i = 0; i < count; i++) {
        tcase_add_test(tc, tests[i]);
    }
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* A backup that is alone; it is running when this returns 0. */
static inline int start_backup(struct jobs *j, const struct backup_options *o,
                               struct error **errp) REQUIRES(j->lock)
{
    struct action *a;
    int r = backup_action(j, o, NULL, &a, errp);

    return r < 0 ? r : action_run(jobs_graph(j), a, errp);
}

#endif /* NBDELTA_TESTS_JOB_UTIL_H */
