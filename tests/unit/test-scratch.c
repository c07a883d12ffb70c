/* SPDX-License-Identifier: BSD-3-Clause */
/* Scratch space against a model in memory. */
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../unit/job-util.h"
#include "copy/scratch.h"

#define UNIT UINT64_C(4096)
#define SIZE (16 * UNIT + 1000) /* the last unit is a partial one */

static struct graph *g;
static struct node *s;
static struct node *like;

static void setup(uint64_t quota, uint64_t memory)
{
    const struct scratch_options o = {
        .dir = ".", .quota = quota, .memory = memory};
    struct error *err = NULL;

    g = graph_new();
    like = disk_new(g, "like", SIZE);
    graph_lock(g);
    int r = scratch_new(g, like, &o, &s, &err);
    graph_unlock(g);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

static void teardown(void)
{
    graph_lock(g);
    node_unref(s);
    graph_unlock(g);
    graph_free(g);
}

static int put(int byte, uint64_t bytes, uint64_t offset)
{
    char *buf = malloc(bytes);
    memset(buf, byte, bytes);
    struct tree *t = node_enter(s, false);
    int r = node_pwrite(s, buf, bytes, offset, 0);
    node_leave(t);
    free(buf);
    return r;
}

static int drop(uint64_t bytes, uint64_t offset, bool discard)
{
    struct tree *t = node_enter(s, false);
    int r = discard ? node_discard(s, offset, bytes)
                    : node_zero(s, offset, bytes, REQ_MAY_UNMAP);
    node_leave(t);
    return r;
}

static void ck_is(const char *model)
{
    char *now = malloc(SIZE);
    struct tree *t = node_enter(s, false);
    ck_assert_int_eq(node_pread(s, now, SIZE, 0, 0), 0);
    node_leave(t);
    ck_assert_mem_eq(now, model, SIZE);
    free(now);
}

static struct scratch_usage usage(void)
{
    struct scratch_usage u;
    scratch_usage(s, &u);
    return u;
}

static void against_the_model(uint64_t memory)
{
    char *model = calloc(1, SIZE);
    unsigned seed = 1;

    setup(0, memory);
    for (int i = 0; i < 1000; i++) {
        uint64_t offset = (uint64_t)rand_r(&seed) % SIZE;
        uint64_t most = min_u64(SIZE - offset, 3 * UNIT);
        uint64_t bytes = 1 + (uint64_t)rand_r(&seed) % most;
        switch (rand_r(&seed) % 4) {
        case 0:
            ck_assert_int_eq(drop(bytes, offset, false), 0);
            memset(model + offset, 0, bytes);
            break;
        case 1: /* whole units, so that the content is known */
            offset = align_down(offset, UNIT);
            bytes = min_u64(UNIT, SIZE - offset);
            ck_assert_int_eq(drop(bytes, offset, true), 0);
            memset(model + offset, 0, bytes);
            break;
        default:
            ck_assert_int_eq(put(1 + i % 250, bytes, offset), 0);
            memset(model + offset, 1 + i % 250, bytes);
        }
        if (i % 20 == 0) {
            ck_is(model);
        }
    }
    ck_is(model);
    ck_assert_int_eq(drop(SIZE, 0, false), 0);
    ck_assert_uint_eq(usage().bytes, 0);
    ck_assert(usage().in_file == (memory < SIZE));
    teardown();
    free(model);
}

START_TEST(what_is_written_is_read)
{
    against_the_model(0);
    against_the_model(5 * UNIT);
    against_the_model(100 * UNIT);
}
END_TEST

START_TEST(the_quota_is_never_passed)
{
    setup(4 * UNIT + 5, 2 * UNIT);
    ck_assert_int_eq(put('a', 4 * UNIT, 0), 0);
    ck_assert_uint_eq(usage().bytes, 4 * UNIT);
    ck_assert_int_eq(put('b', 1, 8 * UNIT), -ENOSPC);
    ck_assert(usage().quota_was_hit);
    ck_assert_uint_eq(usage().bytes, 4 * UNIT);
    ck_assert_int_eq(put('b', 4 * UNIT, 0), 0); /* what is there, is there */
    ck_assert_int_eq(drop(UNIT, UNIT, true), 0);
    ck_assert_int_eq(put('b', 1, 8 * UNIT), 0);
    ck_assert_int_eq(put('b', 1, 9 * UNIT), -ENOSPC);
    teardown();
}
END_TEST

static int add_data(const struct extent *e, void *opaque)
{
    *(uint64_t *)opaque += e->flags & EXTENT_ZERO ? 0 : e->length;
    return 0;
}

START_TEST(status_tells_what_is_stored)
{
    uint64_t data = 0;

    setup(0, UNIT);
    ck_assert_int_eq(put('a', 10, 3 * UNIT), 0);
    ck_assert_int_eq(put('a', 10, SIZE - 10), 0);
    struct tree *t = node_enter(s, false);
    ck_assert_int_eq(node_extents(s, 0, SIZE, 0, add_data, &data), 0);
    node_leave(t);
    ck_assert_uint_eq(data, UNIT + 1000);
    teardown();
}
END_TEST

struct writer {
    pthread_t t;
    unsigned number;
};

/* Each has every fourth unit, writes it and gives it up, again and again. */
static void *write_thread(void *opaque)
{
    const struct writer *w = opaque;
    char buf[1000];

    for (int i = 0; i < 200; i++) {
        uint64_t at = ((uint64_t)(i % 4) * 4 + w->number) * UNIT;
        ck_assert_int_eq(put((int)(1 + w->number), UNIT, at), 0);
        struct tree *t = node_enter(s, false);
        ck_assert_int_eq(node_pread(s, buf, sizeof(buf), at + 500, 0), 0);
        node_leave(t);
        for (size_t k = 0; k < sizeof(buf); k++) {
            ck_assert_int_eq(buf[k], (int)(1 + w->number));
        }
        ck_assert_int_eq(drop(UNIT, at, true), 0);
    }
    return NULL;
}

START_TEST(threads_share_memory_and_slots)
{
    struct writer w[4];

    setup(0, 2 * UNIT);
    for (unsigned i = 0; i < 4; i++) {
        w[i].number = i;
        ck_assert_int_eq(thread_start(&w[i].t, "w", write_thread, &w[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        thread_join(w[i].t);
    }
    ck_assert_uint_eq(usage().bytes, 0);
    teardown();
}
END_TEST

static int put_now(int byte, uint64_t offset)
{
    char buf[UNIT];

    memset(buf, byte, sizeof(buf));
    struct tree *t = node_enter(s, false);
    int r = node_pwrite(s, buf, sizeof(buf), offset, REQ_NOWAIT);
    node_leave(t);
    return r;
}

/* The file cannot grow, so nothing leaves the memory. */
START_TEST(what_cannot_go_to_the_file_stays_in_memory)
{
    char *model = calloc(1, SIZE);
    struct rlimit old;

    setup(0, 4 * UNIT);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    (void)signal(SIGXFSZ, SIG_IGN);
    const struct rlimit none = {0, old.rlim_max};
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &none), 0);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(put_now('a' + i, (uint64_t)i * 2 * UNIT), 0);
        memset(model + (uint64_t)i * 2 * UNIT, 'a' + i, UNIT);
    }
    ck_assert_int_eq(put_now('x', UNIT), -EAGAIN);
    ck_assert_int_eq(put('x', UNIT, UNIT), -EFBIG);
    ck_is(model);
    ck_assert_uint_eq(usage().bytes, 4 * UNIT);
    ck_assert_int_eq(drop(UNIT, 0, true), 0);
    memset(model, 0, UNIT);
    int r;
    while ((r = put_now('y', 3 * UNIT)) == -EAGAIN) {
        (void)usleep(1000); /* the thread was trying again */
    }
    ck_assert_int_eq(r, 0);
    memset(model + 3 * UNIT, 'y', UNIT);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    ck_assert_int_eq(put('z', UNIT, UNIT), 0);
    memset(model + UNIT, 'z', UNIT);
    ck_is(model);
    teardown();
    free(model);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        what_is_written_is_read,
        the_quota_is_never_passed,
        status_tells_what_is_stored,
        threads_share_memory_and_slots,
        what_cannot_go_to_the_file_stays_in_memory,
    };
    return run_suite("scratch", tests, ARRAY_SIZE(tests));
}
