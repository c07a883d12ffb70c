/* SPDX-License-Identifier: BSD-3-Clause */
/* Stream jobs, on chains whose base is in memory: base <- low <- mid <- top. */
#include "job-util.h"

#include "core/chain.h"
#include "core/copy-up.h"
#include "nbdelta/chain.h"
#include "nbdelta/image.h"

#define SIZE  (4 * MiB)
#define BLOCK 4096

static struct graph *g;
static struct jobs *j;
static struct record rec;
static struct node *base; /* a trap over memory */
static struct node *low;
static struct node *mid;
static struct node *top;
static struct blk *user; /* of top */

/* A new qcow2 node on top of @backing. */
static struct node *image_new(const char *name, const char *backing,
                              uint64_t size, json_t *options)
{
    char file[64];
    struct node *n;
    struct error *err = NULL;

    (void)snprintf(file, sizeof(file), "%s.qcow2", name);
    json_t *o = json_pack("{s:I}", "size", (json_int_t)size);
    (void)json_object_update(o, options);
    json_decref(options);
    ck_assert_int_eq(image_create(file, "qcow2", o, NULL), 0);
    json_decref(o);
    o = json_pack("{s:s, s:s, s:s, s:{s:s, s:s}}", "driver", "qcow2",
                  "node-name", name, "backing", backing, "file", "driver",
                  "file", "filename", file);
    int r = graph_open(g, o, &n, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    json_decref(o);
    return n;
}

static void fill(struct node *n, uint64_t offset, int byte, size_t bytes)
{
    struct blk *b;
    char *buf = malloc(bytes);

    memset(buf, byte, bytes);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "fill", &b, NULL), 0);
    ck_assert_int_eq(byte ? blk_pwrite(b, buf, bytes, offset, 0)
                          : blk_zero(b, offset, bytes, REQ_MAY_UNMAP),
                     0);
    blk_free(b);
    free(buf);
}

static void put(uint64_t offset, int byte, size_t bytes)
{
    char *buf = malloc(bytes);

    memset(buf, byte, bytes);
    ck_assert_int_eq(blk_pwrite(user, buf, bytes, offset, 0), 0);
    free(buf);
}

/* All that the user sees; malloc()ed. */
static char *all(void)
{
    char *buf = malloc(blk_size(user));

    ck_assert_int_eq(blk_pread(user, buf, blk_size(user), 0, 0), 0);
    return buf;
}

static void ck_all(const char *expected)
{
    char *now = all();

    for (uint64_t at = 0; at < SIZE; at++) {
        ck_assert_msg(now[at] == expected[at], "byte %llu is %d, not %d",
                      (unsigned long long)at, now[at], expected[at]);
    }
    free(now);
}

/* All of them have something to say; low is short. */
static void chain_new(const char *options_of_top)
{
    g = graph_new();
    j = jobs_new(g, record_event, &rec);
    base = disk_new(g, "base", SIZE);
    disk_fill(base, SIZE);
    low = image_new("low", "base", SIZE / 2, json_object());
    fill(low, 8192, 'l', 100000);
    fill(low, 300000, 0, 300000);
    mid = image_new("mid", "low", SIZE,
                    json_pack("{s:i}", "cluster_size", 512));
    fill(mid, 90001, 'm', 70000);
    fill(mid, SIZE - 70000, 0, 3000);
    fill(mid, SIZE - 65536, 'M', 512);
    top = image_new("top", "mid", SIZE, json_loads(options_of_top, 0, NULL));
    ck_assert_int_eq(
        blk_new(g, top, PERM_READ | PERM_WRITE, PERM_ALL, "test", &user, NULL),
        0);
    put(50000, 't', 100);
}

static void teardown(void)
{
    blk_free(user);
    jobs_shutdown(j);
    jobs_free(j);
    graph_free(g);
    json_decref(rec.last);
    user = NULL;
    memset(&rec, 0, sizeof(rec));
}

static struct stream_options options(struct node *n)
{
    return (struct stream_options){
        .job_id = "j",
        .node = n,
        .device = node_name(n),
        .base_node_name = "?",
        .bottom_name = "?",
    };
}

static int start(const struct stream_options *o, struct error **errp)
{
    mutex_lock(&j->lock);
    int r = job_stream(j, o, errp);
    mutex_unlock(&j->lock);
    return r;
}

static void verb(int (*fn)(struct jobs *, const char *, struct error **))
{
    mutex_lock(&j->lock);
    ck_assert_int_eq(fn(j, "j", NULL), 0);
    mutex_unlock(&j->lock);
}

static void ck_refused(const struct stream_options *o, int why,
                       const char *text)
{
    struct error *err = NULL;

    ck_assert_int_eq(start(o, &err), why);
    ck_assert_ptr_nonnull(strstr(error_message(err), text));
    error_free(err);
}

/* --- What is copied --- */

/* Kinds of top: plain, subclusters, no ZERO entries, clusters of all sizes. */
static const char *const kinds[] = {
    "{}",
    "{\"extended_l2\": true}",
    "{\"compat\": \"0.10\"}",
    "{\"cluster_size\": 4096}",
    "{\"cluster_size\": 2097152}",
};

/* With @below as the new backing node, whatever it is that base has there now
 * does not shine through. */
static void stream_to(int kind, struct node **below)
{
    chain_new(kinds[kind]);
    struct stream_options o = options(top);
    char *before = all();
    struct error *err = NULL;

    o.base_node = below ? *below : NULL;
    int r = start(&o, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    wait_for_event(j, &rec, "j:null");
    ck_assert_str_eq(rec.text,
                     "j:created j:running j:waiting "
                     "j:pending j:BLOCK_JOB_COMPLETED j:concluded j:null");
    ck_assert_str_eq(last_str(&rec, "type"), "stream");
    int expected = o.base_node && o.base_node == mid ? 0 : SIZE;
    ck_assert_int_eq(last_int(&rec, "len"), expected);
    ck_assert_int_eq(last_int(&rec, "offset"), expected);
    ck_assert_ptr_eq(node_backing(top), o.base_node);
    ck_all(before);
    put(SIZE / 2, 'z', 3);
    free(before);
    teardown();
}

START_TEST(the_whole_chain_is_copied)
{
    stream_to(_i, NULL);
}
END_TEST

START_TEST(down_to_base_it_is_copied)
{
    stream_to(_i, &base);
    stream_to(_i, &low);
    stream_to(_i, &mid); /* nothing */
}
END_TEST

static int count_own(const struct extent *e, void *opaque)
{
    uint64_t *own = opaque;

    *own += e->depth == 0 && (e->flags & EXTENT_ALLOCATED) ? e->length : 0;
    return 0;
}

START_TEST(what_base_has_is_left_there)
{
    chain_new("{}");
    struct stream_options o = options(top);
    uint64_t own = 0;

    o.bottom = mid;
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_event(j, &rec, "j:null");
    ck_assert_ptr_eq(node_backing(top), low);
    ck_assert_int_eq(blk_extents(user, 0, SIZE, 0, count_own, &own), 0);
    /* Clusters: 0; 1 and 2 of mid; the last but one and what is before it; and
     * zeroes, where low is too short. */
    ck_assert_uint_lt(own, SIZE / 2 + 384 * KiB);
    ck_assert_uint_ge(own, 192 * KiB);
    teardown();
}
END_TEST

START_TEST(an_image_in_the_middle_gets_it_too)
{
    chain_new("{}");
    struct stream_options o = options(mid);
    char *before = all();

    graph_lock(g);
    graph_drain(g, mid);
    ck_assert_int_eq(chain_set_read_only(mid, true, NULL), 0);
    graph_unlock(g);
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_event(j, &rec, "j:null");
    ck_assert_ptr_eq(node_backing(top), mid);
    ck_assert_ptr_null(node_backing(mid));
    ck_assert(node_read_only(mid));
    ck_all(before);
    free(before);
    teardown();
}
END_TEST

START_TEST(no_bitmap_is_told)
{
    chain_new("{}");
    struct stream_options o = options(top);
    struct action *a;

    ck_assert_int_eq(bitmap_add_action((struct bitmap_ref){top, "b"}, 65536,
                                       false, false, &a, NULL),
                     0);
    ck_assert_int_eq(action_run(g, a, NULL), 0);
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_event(j, &rec, "j:null");
    json_t *list = bitmap_query(top);
    ck_assert_int_eq(
        json_integer_value(json_object_get(json_array_get(list, 0), "count")),
        0);
    json_decref(list);
    teardown();
}
END_TEST

/* --- Guests --- */

struct writer {
    pthread_t thread;
    _Atomic bool stop;
    unsigned char model[SIZE / BLOCK]; /* what a block that was written has */
};

static void *write_all_the_time(void *opaque)
{
    struct writer *w = opaque;
    uint64_t seed = 7;

    while (!w->stop) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        uint64_t block = (seed >> 33) % (SIZE / BLOCK - 4);
        int byte = (int)(seed >> 20 & 0x7f) + 1;
        if (byte < 20) {
            ck_assert_int_eq(
                blk_zero(user, block * BLOCK, BLOCK, REQ_MAY_UNMAP), 0);
        } else {
            put(block * BLOCK, byte, BLOCK);
        }
        w->model[block] = byte < 20 ? 0 : (unsigned char)byte;
    }
    return NULL;
}

START_TEST(a_busy_writer_loses_nothing)
{
    static struct writer w;

    chain_new(kinds[_i]);
    struct stream_options o = options(top);
    char *before = all();

    memset(w.model, 255, sizeof(w.model));
    w.stop = false;
    ck_assert_int_eq(thread_start(&w.thread, "writer", write_all_the_time, &w),
                     0);
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_event(j, &rec, "j:null");
    w.stop = true;
    thread_join(w.thread);
    for (uint64_t i = 0; i < SIZE / BLOCK; i++) {
        if (w.model[i] != 255) {
            memset(before + i * BLOCK, w.model[i], BLOCK);
        }
    }
    ck_assert_ptr_null(node_backing(top));
    ck_all(before);
    free(before);
    teardown();
}
END_TEST

/* What is on its way up when the guest writes there is old. */
START_TEST(a_write_while_base_is_read_is_not_overwritten)
{
    chain_new("{}");
    struct node *solo = image_new("solo", "base", SIZE, json_object());
    struct stream_options o = options(solo);
    struct trap *t = trap_of(base);

    blk_free(user);
    ck_assert_int_eq(
        blk_new(g, solo, PERM_READ | PERM_WRITE, PERM_ALL, "test", &user, NULL),
        0);
    char *before = all();
    trap_gate(t, true);
    ck_assert_int_eq(start(&o, NULL), 0);
    trap_wait(t, 4);          /* all of it is on its way */
    put(3 * MiB, 'n', 65536); /* whole clusters: base is not asked */
    put(1 * MiB, 'o', 131072);
    ck_assert_int_eq(blk_zero(user, 3 * MiB + 65536, 65536, REQ_MAY_UNMAP), 0);
    trap_gate(t, false);
    wait_for_event(j, &rec, "j:null");
    ck_assert_ptr_null(node_backing(solo));
    memset(before + 3 * MiB, 'n', 65536);
    memset(before + 3 * MiB + 65536, 0, 65536);
    memset(before + 1 * MiB, 'o', 131072);
    ck_all(before);
    free(before);
    teardown();
}
END_TEST

/* --- Errors --- */

START_TEST(an_error_stops_it_and_it_goes_on)
{
    chain_new("{}");
    struct stream_options o = options(top);
    char *before = all();

    o.on_error = ON_ERROR_STOP;
    trap_of(base)->read_error = -EIO;
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_event(j, &rec, "j:BLOCK_JOB_ERROR j:paused");
    ck_assert_str_eq(last_str(&rec, "operation"), "read");
    ck_assert_str_eq(last_str(&rec, "action"), "stop");
    trap_of(base)->read_error = 0;
    verb(job_resume);
    wait_for_event(j, &rec, "j:null");
    ck_assert_ptr_null(node_backing(top));
    ck_all(before);
    free(before);
    teardown();
}
END_TEST

/* With @ignored it goes to the end, and keeps its backing node nonetheless. */
static void fail_with(enum job_on_error on_error, _Atomic int *where)
{
    struct stream_options o = options(top);
    char *before = all();

    o.on_error = on_error;
    *where = -EIO;
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_event(j, &rec, "j:null");
    ck_assert_str_eq(last_str(&rec, "error"), "Input/output error");
    ck_assert_int_eq(last_int(&rec, "offset") == SIZE,
                     on_error == ON_ERROR_IGNORE);
    *where = 0;
    ck_assert_ptr_eq(node_backing(top), mid);
    ck_all(before);
    /* Nothing is blocked any more. */
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_jobs(j);
    ck_assert_ptr_null(node_backing(top));
    ck_all(before);
    free(before);
    teardown();
}

START_TEST(an_error_leaves_the_chain)
{
    chain_new("{}");
    fail_with(ON_ERROR_REPORT, &trap_of(base)->read_error);
}
END_TEST

START_TEST(an_ignored_error_leaves_the_chain)
{
    chain_new("{}");
    fail_with(ON_ERROR_IGNORE, &trap_of(base)->read_error);
}
END_TEST

/* --- Others --- */

START_TEST(others_are_kept_off)
{
    chain_new("{}");
    struct stream_options o = options(top);
    struct trap *t = trap_of(base);
    struct error *err = NULL;
    struct blk *b;

    ck_assert_int_eq(blk_new(g, mid, PERM_WRITE, PERM_ALL, "w", &b, NULL), 0);
    ck_refused(&o, -EBUSY, "unshared by stream job 'j'");
    ck_assert_str_eq(rec.text, "");
    blk_free(b);
    trap_gate(t, true);
    ck_assert_int_eq(start(&o, NULL), 0);
    trap_wait(t, 1);
    ck_assert_int_eq(blk_new(g, low, PERM_WRITE, PERM_ALL, "w", &b, &err),
                     -EBUSY);
    ck_assert_ptr_nonnull(strstr(error_message(err), "stream job 'j'"));
    error_free(err);
    o.job_id = "k";
    ck_refused(&o, -EBUSY, "in use by block job: stream");
    struct stream_options below = options(low);
    below.job_id = "k";
    ck_refused(&below, -EBUSY, "in use by block job: stream");
    trap_gate(t, false);
    wait_for_jobs(j);
    ck_assert_int_eq(graph_close(g, mid, NULL), 0);
    ck_assert_int_eq(graph_close(g, low, NULL), 0);
    teardown();
}
END_TEST

START_TEST(two_at_once_in_one_chain)
{
    chain_new("{}");
    struct stream_options upper = options(top);
    struct stream_options lower = options(low);
    char *before = all();

    upper.bottom = mid;
    lower.job_id = "k";
    lower.speed = 65536; /* the start of the other one drains the chain */
    ck_assert_int_eq(start(&lower, NULL), 0);
    ck_assert_int_eq(start(&upper, NULL), 0);
    mutex_lock(&j->lock);
    ck_assert_int_eq(job_set_speed(j, "k", 0, NULL), 0);
    mutex_unlock(&j->lock);
    wait_for_jobs(j);
    ck_assert_ptr_eq(node_backing(top), low);
    ck_assert_ptr_null(node_backing(low));
    ck_all(before);
    free(before);
    teardown();
}
END_TEST

START_TEST(what_is_no_chain_is_refused)
{
    chain_new("{}");
    struct stream_options o = options(mid);

    o.base_node = top;
    o.base_node_name = "top";
    ck_refused(&o, -EINVAL, "Node 'top' is not a backing image of 'mid'");
    o = options(mid);
    o.bottom = top;
    o.bottom_name = "top";
    ck_refused(&o, -EINVAL, "Node 'top' is not in a chain starting from 'mid'");
    o.bottom = base;
    o.bottom_name = "base";
    ck_refused(&o, -EINVAL, "Node 'base' is a filter, use a non-filter");
    o = options(top);
    o.base = "none";
    ck_refused(&o, -ENOENT, "Can't find 'none' in the backing chain");
    o = options(top);
    o.backing_file = "x";
    ck_refused(&o, -EINVAL, "backing file specified, but streaming the entire");
    ck_assert_str_eq(rec.text, "");
    teardown();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("stream");
    TCase *tc = tcase_create("stream");
    const int all_kinds = (int)(sizeof(kinds) / sizeof(kinds[0]));

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, the_whole_chain_is_copied, 0, all_kinds);
    tcase_add_loop_test(tc, down_to_base_it_is_copied, 0, all_kinds);
    tcase_add_test(tc, what_base_has_is_left_there);
    tcase_add_test(tc, an_image_in_the_middle_gets_it_too);
    tcase_add_test(tc, no_bitmap_is_told);
    tcase_add_loop_test(tc, a_busy_writer_loses_nothing, 0, all_kinds);
    tcase_add_test(tc, a_write_while_base_is_read_is_not_overwritten);
    tcase_add_test(tc, an_error_stops_it_and_it_goes_on);
    tcase_add_test(tc, an_error_leaves_the_chain);
    tcase_add_test(tc, an_ignored_error_leaves_the_chain);
    tcase_add_test(tc, others_are_kept_off);
    tcase_add_test(tc, two_at_once_in_one_chain);
    tcase_add_test(tc, what_is_no_chain_is_refused);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
