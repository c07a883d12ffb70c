/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bitmaps of many disks in one transaction: no disk waits for the flushes of
 * another.  Here each flush waits until all disks are in one.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bitmap-util.h"
#include "core/graph.h"
#include "nbdelta/action.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"

#define DISKS   12
#define WAIT_MS 20000

static struct {
    mutex_t lock;
    cond_t moved;
    bool on;
    unsigned inside;
    unsigned round;
    unsigned alone; /* flushes that waited for the others in vain */
} meet;

static int meeting_flush(struct node *n)
{
    mutex_lock(&meet.lock);
    if (meet.on) {
        unsigned round = meet.round;
        if (++meet.inside == DISKS) {
            meet.inside = 0;
            meet.round++;
            cond_broadcast(&meet.moved);
        }
        while (meet.round == round && meet.inside > 0) {
            if (!cond_wait_ms(&meet.moved, &meet.lock, WAIT_MS)) {
                meet.alone++;
                meet.on = false;
                meet.inside = 0;
                cond_broadcast(&meet.moved);
            }
        }
    }
    mutex_unlock(&meet.lock);
    return node_flush(node_child(n, CHILD_FILE));
}

static int pass_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    return node_preadv(node_child(n, CHILD_FILE), offset, bytes, iov, cnt,
                       flags);
}

static int pass_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    return node_pwritev(node_child(n, CHILD_FILE), offset, bytes, iov, cnt,
                        flags);
}

static const struct driver meeting_driver = {
    .name = "meeting",
    .is_filter = true,
    .preadv = pass_preadv,
    .pwritev = pass_pwritev,
    .flush = meeting_flush,
};

static struct graph *g;
static struct node *disks[DISKS];

static struct node *open_disk(unsigned i)
{
    char file[16];
    char name[16];
    struct node *like;
    struct node *n;
    struct node *q;

    (void)snprintf(file, sizeof(file), "d%u.qcow2", i);
    (void)snprintf(name, sizeof(name), "meet%u", i);
    CLEANUP_JSON json_t *size = json_pack("{s:i}", "size", 64 << 20);
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s}", "driver", "file",
                                       "filename", file);
    CLEANUP_JSON json_t *qo = json_pack("{s:s, s:s}", "driver", "qcow2", "file",
                                        name);
    ck_assert_int_eq(image_create(file, "qcow2", size, NULL), 0);
    /* Room for what bitmaps need, as filters do not grow. */
    ck_assert_int_eq(truncate(file, 4 << 20), 0);
    ck_assert_int_eq(graph_open(g, o, &like, NULL), 0);
    graph_lock(g);
    ck_assert_int_eq(node_new(g, &meeting_driver, name, like, &n, NULL), 0);
    ck_assert_int_eq(node_attach(n, CHILD_FILE, like, "file",
                                 PERM_READ | PERM_WRITE, PERM_ALL, NULL),
                     0);
    node_refresh_limits(n);
    n->monitor_owned = true;
    graph_unlock(g);
    ck_assert_int_eq(graph_open(g, qo, &q, NULL), 0);
    return q;
}

static void begin(void)
{
    g = graph_new();
    for (unsigned i = 0; i < DISKS; i++) {
        disks[i] = open_disk(i);
    }
    mutex_init(&meet.lock);
    cond_init(&meet.moved);
}

static void end(void)
{
    char file[16];

    graph_free(g);
    for (unsigned i = 0; i < DISKS; i++) {
        (void)snprintf(file, sizeof(file), "d%u.qcow2", i);
        (void)unlink(file);
    }
}

typedef int (*maker)(struct bitmap_ref ref, struct action **ap);

static int run_all(maker make)
{
    struct list list;
    struct action *a;

    list_init(&list);
    for (unsigned i = 0; i < DISKS; i++) {
        ck_assert_int_eq(make((struct bitmap_ref){disks[i], "b"}, &a), 0);
        list_append(&list, &a->link);
    }
    meet.on = true;
    int r = actions_run(g, &list, NULL);
    meet.on = false;
    return r;
}

static int make_add(struct bitmap_ref ref, struct action **ap)
{
    return bitmap_add_action(ref, 0, true, false, ap, NULL);
}

static int make_clear(struct bitmap_ref ref, struct action **ap)
{
    return bitmap_clear_action(ref, ap, NULL);
}

static int make_remove(struct bitmap_ref ref, struct action **ap)
{
    return bitmap_remove_action(ref, ap, NULL);
}

START_TEST(disks_are_flushed_side_by_side)
{
    begin();
    ck_assert_int_eq(run_all(make_add), 0);
    ck_assert_int_eq(run_all(make_clear), 0);
    ck_assert_int_eq(run_all(make_remove), 0);
    ck_assert_uint_gt(meet.round, 3);
    ck_assert_uint_eq(meet.alone, 0);
    end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bitmap-disks");
    TCase *tc = tcase_create("disks");

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, disks_are_flushed_side_by_side);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
