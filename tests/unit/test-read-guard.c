/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A node whose backing node is about to change: the old bytes are copied up
 * before, at the worst moment.  What is read, and what is told of it, is the
 * old state.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/node.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

#define SIZE    (1 * MiB)
#define CLUSTER (64 * KiB)

static struct graph *g;
static struct node *n;
static struct blk *b;
static char old[CLUSTER];

/* At which question the range is copied up; then it is not held any more. */
static unsigned moment;
static unsigned questions;

static uint64_t run(const void *opaque, uint64_t offset, uint64_t end,
                    bool *held)
{
    (void)opaque;
    if (questions++ == moment) {
        ck_assert_int_eq(node_pwrite(n, old, CLUSTER, 0, 0), 0);
    }
    *held = questions <= moment;
    return end - offset;
}

static const struct read_guard guard = {run, NULL};

static void make_image(const char *name, const char *backing)
{
    CLEANUP_JSON json_t *o =
        json_pack("{s:I, s:s*, s:s*}", "size", (json_int_t)SIZE, "backing_file",
                  backing, "backing_fmt", backing ? "qcow2" : NULL);

    ck_assert_int_eq(image_create(name, "qcow2", o, NULL), 0);
}

static void setup(void)
{
    CLEANUP_JSON json_t *o = NULL;
    CLEANUP_ERROR struct error *err = NULL;

    /* The backing node has changed by the time that it is looked at: it has
     * zeroes where the old bytes were. */
    make_image("lower.qcow2", NULL);
    make_image("upper.qcow2", "lower.qcow2");
    memset(old, 0xaa, sizeof(old));
    ck_assert_int_eq(options_from_image("upper.qcow2", "qcow2", &o, NULL), 0);
    g = graph_new();
    ck_assert_msg(graph_open(g, o, &n, &err) == 0, "%s", error_message(err));
    ck_assert_ptr_nonnull(node_child(n, CHILD_BACKING));
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
    graph_lock(g);
    graph_drain(g, n);
    n->guard = &guard;
    graph_unlock(g);
    questions = 0;
}

static void teardown(void)
{
    blk_free(b);
    graph_free(g);
    (void)unlink("lower.qcow2");
    (void)unlink("upper.qcow2");
}

START_TEST(old_bytes_are_read)
{
    char is[CLUSTER];

    moment = (unsigned)_i;
    ck_assert_int_eq(blk_pread(b, is, CLUSTER, 0, 0), 0);
    ck_assert_uint_gt(questions, moment);
    ck_assert_mem_eq(is, old, CLUSTER);
}
END_TEST

static int add_data(const struct extent *e, void *opaque)
{
    *(uint64_t *)opaque += e->flags & EXTENT_ZERO ? 0 : e->length;
    return 0;
}

START_TEST(old_bytes_are_told_of)
{
    uint64_t data = 0;

    moment = (unsigned)_i;
    ck_assert_int_eq(blk_extents(b, 0, CLUSTER, 0, add_data, &data), 0);
    ck_assert_uint_gt(questions, moment);
    ck_assert_uint_eq(data, CLUSTER);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("read-guard");
    TCase *tc = tcase_create("all");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, old_bytes_are_read, 0, 2);
    tcase_add_loop_test(tc, old_bytes_are_told_of, 0, 2);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
