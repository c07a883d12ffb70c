/* SPDX-License-Identifier: BSD-3-Clause */
/* Overlays, commit jobs and reopening, on chains whose base is in memory. */
#include "job-util.h"

#include "core/chain.h"
#include "job/filter.h"
#include "nbdelta/action.h"
#include "nbdelta/chain.h"
#include "nbdelta/image.h"
#include "nbdelta/snapshot.h"

#define SIZE (4 * MiB)

static struct graph *g;
static struct jobs *j;
static struct record rec;
static struct node *base; /* a trap over memory */
static struct blk *user;  /* writes to the top */

static void setup(uint64_t base_size)
{
    g = graph_new();
    j = jobs_new(g, record_event, &rec);
    base = disk_new(g, "base", base_size);
    disk_fill(base, base_size);
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

/* A new qcow2 node on top of @backing (NULL: none). */
static struct node *image_new(const char *name, const char *backing,
                              uint64_t size, bool read_only)
{
    char file[64];
    struct node *n;
    struct error *err = NULL;

    (void)snprintf(file, sizeof(file), "%s.qcow2", name);
    json_t *o = json_pack("{s:I}", "size", (json_int_t)size);
    ck_assert_int_eq(image_create(file, "qcow2", o, NULL), 0);
    json_decref(o);
    o = json_pack("{s:s, s:s, s:b, s:s?, s:{s:s, s:s}}", "driver", "qcow2",
                  "node-name", name, "read-only", (int)read_only, "backing",
                  backing, "file", "driver", "file", "filename", file);
    int r = graph_open(g, o, &n, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    json_decref(o);
    return n;
}

static void attach_user(struct node *n)
{
    struct error *err = NULL;
    int r = blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &user,
                    &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

static void put(uint64_t offset, int byte, size_t bytes)
{
    char *buf = malloc(bytes);
    memset(buf, byte, bytes);
    ck_assert_int_eq(blk_pwrite(user, buf, bytes, offset, 0), 0);
    free(buf);
}

static void ck_byte(uint64_t offset, int byte)
{
    unsigned char c;
    ck_assert_int_eq(blk_pread(user, &c, 1, offset, 0), 0);
    ck_assert_int_eq(c, byte);
}

/* All that the user sees; malloc()ed. */
static char *all(void)
{
    char *buf = malloc(blk_size(user));
    ck_assert_int_eq(blk_pread(user, buf, blk_size(user), 0, 0), 0);
    return buf;
}

static int overlay(struct node *n, struct node *over, struct error **errp)
{
    struct snapshot_options o = {.node = n, .overlay = over};
    struct action *a;

    ck_assert_int_eq(snapshot_action(&o, &a, errp), 0);
    return action_run(g, a, errp);
}

/* --- Overlays --- */

START_TEST(users_move_to_the_overlay)
{
    setup(SIZE);
    struct node *over = image_new("over", NULL, SIZE, false);
    struct error *err = NULL;

    attach_user(base);
    ck_assert_int_eq(overlay(base, over, &err), 0);
    ck_assert_ptr_eq(blk_node(user), over);
    ck_assert_ptr_eq(node_backing(over), base);
    ck_assert(node_read_only(base));
    ck_byte(4096, 2);
    put(4096, 99, 10);
    ck_byte(4096, 99);
    ck_byte(4106, 2);
    char *below = disk_read(base);
    ck_assert_int_eq(below[4096], 2);
    free(below);

    /* A second one; the first is in the middle then. */
    ck_assert_int_eq(overlay(base, image_new("x", NULL, SIZE, false), &err),
                     -EBUSY);
    ck_assert_str_eq(error_message(err), "Node 'base' is busy: node is used "
                                         "as backing hd of 'over'");
    error_free(err);
    teardown();
}
END_TEST

START_TEST(what_cannot_be_an_overlay_is_refused)
{
    setup(SIZE);
    struct node *with = image_new("with", "base", SIZE, false);
    struct node *ro = image_new("ro", NULL, SIZE, true);
    struct node *other = disk_new(g, "other", SIZE);
    struct error *err = NULL;

    attach_user(with);
    ck_assert_int_eq(overlay(with, with, &err), -EBUSY);
    ck_assert_str_eq(error_message(err), "The overlay is already in use");
    ck_assert_int_eq(overlay(with, other, &err), -EINVAL);
    ck_assert_str_eq(error_message(err), "Filters cannot be used as overlays");
    ck_assert_int_eq(overlay(other, image_new("b", "with", SIZE, false), &err),
                     -EINVAL);
    ck_assert_str_eq(error_message(err),
                     "The overlay already has a backing image");
    /* The user writes. */
    ck_assert_int_eq(overlay(with, ro, &err), -EBUSY);
    ck_assert_int_eq(node_backing(ro) == NULL, 1);
    ck_assert_ptr_eq(blk_node(user), with);
    put(0, 5, 1);
    error_free(err);
    teardown();
}
END_TEST

static int fail_act(struct action *a, struct error **errp)
{
    (void)a;
    return error_set(errp, EIO, "no");
}

static void fail_free(struct action *a)
{
    (void)a;
}

START_TEST(a_failing_transaction_takes_the_overlay_off)
{
    static const struct action_ops fail_ops = {.act = fail_act,
                                               .free = fail_free};
    setup(SIZE);
    struct node *over = image_new("over", NULL, SIZE, false);
    struct snapshot_options o = {.node = base, .overlay = over};
    struct action failing = {.ops = &fail_ops};
    struct action *a;
    struct list list;

    attach_user(base);
    ck_assert_int_eq(snapshot_action(&o, &a, NULL), 0);
    list_init(&list);
    list_append(&list, &a->link);
    list_append(&list, &failing.link);
    ck_assert_int_eq(actions_run(g, &list, NULL), -EIO);
    ck_assert_ptr_eq(blk_node(user), base);
    ck_assert_ptr_null(node_backing(over));
    ck_assert(!node_read_only(base));
    put(0, 77, 512);
    ck_byte(0, 77);
    ck_assert_int_eq(graph_close(g, over, NULL), 0);
    teardown();
}
END_TEST

/* --- Commit --- */

static struct commit_options options(struct node *root)
{
    return (struct commit_options){
        .job_id = "j",
        .root = root,
        .device = node_name(root),
    };
}

static int start(const struct commit_options *o, struct error **errp)
{
    mutex_lock(&j->lock);
    int r = job_commit(j, o, errp);
    mutex_unlock(&j->lock);
    return r;
}

static void verb(int (*fn)(struct jobs *, const char *, struct error **))
{
    struct error *err = NULL;
    mutex_lock(&j->lock);
    int r = fn(j, "j", &err);
    mutex_unlock(&j->lock);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

/* base <- low <- top; all have something to say. */
static struct node *chain_new(uint64_t base_size)
{
    setup(base_size);
    struct node *low = image_new("low", "base", SIZE, false);
    attach_user(low);
    put(8192, 'l', 100000);
    put(SIZE - 70000, 'L', 60000);
    ck_assert_int_eq(blk_zero(user, 300000, 300000, REQ_MAY_UNMAP), 0);
    struct node *top = image_new("top", NULL, SIZE, false);
    ck_assert_int_eq(overlay(low, top, NULL), 0);
    put(50000, 't', 100000);
    return top;
}

START_TEST(below_the_active_layer_the_chain_gets_shorter)
{
    struct node *top = chain_new(SIZE / 2);
    struct node *low = node_backing(top);
    char *before = all();
    struct commit_options o = options(top);
    struct error *err = NULL;

    o.top_node = low;
    int r = start(&o, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    wait_for_event(j, &rec, "j:null");
    ck_assert_str_eq(rec.text,
                     "j:created j:running j:waiting "
                     "j:pending j:BLOCK_JOB_COMPLETED j:concluded j:null");
    ck_assert_int_eq(last_int(&rec, "len"), SIZE);
    ck_assert_int_eq(last_int(&rec, "offset"), SIZE);
    ck_assert_ptr_eq(node_backing(top), base);
    ck_assert_uint_eq(node_size(base), SIZE); /* it has grown */
    char *after = all();
    ck_assert_int_eq(memcmp(before, after, SIZE), 0);
    /* What low said is in base, below what top says. */
    char *below = disk_read(base);
    ck_assert_int_eq(below[60000], 'l');
    ck_assert_int_eq(below[300000], 0);
    ck_assert_int_eq(below[SIZE - 20000], 'L');
    /* low is left alone, and may be closed. */
    ck_assert_int_eq(graph_close(g, low, NULL), 0);
    free(below);
    free(after);
    free(before);
    teardown();
}
END_TEST

static void commit_active(bool complete)
{
    struct node *top = chain_new(SIZE);
    struct commit_options o = options(top);

    graph_lock(g);
    graph_drain(g, base);
    ck_assert_int_eq(chain_set_read_only(base, true, NULL), 0);
    graph_unlock(g);
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_event(j, &rec, "j:ready j:BLOCK_JOB_READY");
    ck_assert_int_eq(last_int(&rec, "len"), last_int(&rec, "offset"));
    put(1000000, 'n', 5000);
    ck_assert_int_eq(blk_zero(user, 8192, 4096, REQ_MAY_UNMAP), 0);
    char *before = all();
    if (complete) {
        verb(job_complete);
    } else {
        mutex_lock(&j->lock);
        ck_assert_int_eq(job_cancel(j, "j", false, NULL), 0);
        mutex_unlock(&j->lock);
    }
    wait_for_event(j, &rec,
                   "j:waiting j:pending j:BLOCK_JOB_COMPLETED j:concluded "
                   "j:null");
    ck_disk_is(base, before);
    ck_assert_ptr_eq(blk_node(user), complete ? base : top);
    ck_assert_int_eq(node_read_only(base), !complete);
    ck_assert_int_eq(last_int(&rec, "len"), last_int(&rec, "offset"));
    put(0, 'z', 1);
    ck_byte(0, 'z');
    free(before);
    teardown();
}

START_TEST(the_active_layer_gives_way_to_base)
{
    commit_active(true);
}
END_TEST

START_TEST(cancelled_when_ready_it_leaves_the_chain)
{
    commit_active(false);
}
END_TEST

START_TEST(writes_during_the_first_pass_are_not_lost)
{
    struct node *top = chain_new(SIZE);
    struct commit_options o = options(top);
    struct trap *t = trap_of(base);

    trap_gate(t, true);
    ck_assert_int_eq(start(&o, NULL), 0);
    trap_wait(t, 1); /* a chunk of the job is on its way to base */
    put(9000, 'n', 10);
    put(55000, 'm', 10);
    trap_gate(t, false);
    wait_for_event(j, &rec, "j:BLOCK_JOB_READY");
    verb(job_complete);
    wait_for_event(j, &rec, "j:null");
    ck_assert_ptr_eq(blk_node(user), base);
    ck_byte(9005, 'n');
    ck_byte(55005, 'm');
    ck_byte(60000, 't');
    teardown();
}
END_TEST

#define BLOCK 4096

struct writer {
    pthread_t thread;
    _Atomic bool stop;
    unsigned char model[SIZE / BLOCK]; /* what each block shall hold */
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
                blk_zero(user, block * BLOCK, 4 * BLOCK, REQ_MAY_UNMAP), 0);
            memset(w->model + block, 0, 4);
        } else {
            put(block * BLOCK, byte, BLOCK);
            w->model[block] = (unsigned char)byte;
        }
    }
    return NULL;
}

/* A filter that takes its time between the dirty bit, which is set before it
 * is called, and the data. */
static int slow_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    nap();
    return node_pwritev(node_child(n, CHILD_FILE), offset, bytes, iov, cnt,
                        flags);
}

static const struct driver driver_slow = {
    .name = "slow",
    .is_filter = true,
    .flags_zero = REQ_MAY_UNMAP,
    .pwritev = slow_pwritev,
};

/* Up and down again, as long as it takes to lose something. */
START_TEST(a_busy_writer_loses_nothing)
{
    static struct writer w;
    char name[16];

    setup(SIZE);
    attach_user(base);
    ck_assert_int_eq(blk_zero(user, 0, SIZE, 0), 0);
    ck_assert_int_eq(thread_start(&w.thread, "writer", write_all_the_time, &w),
                     0);
    for (int i = 0; i < 5; i++) {
        (void)snprintf(name, sizeof(name), "over%d", i);
        struct node *over = image_new(name, NULL, SIZE, false);
        ck_assert_int_eq(overlay(base, over, NULL), 0);
        for (int n = 0; n < 20; n++) {
            nap();
        }
        struct node *slow;
        graph_lock(g);
        graph_drain(g, over);
        ck_assert_int_eq(
            jobfilter_insert(&driver_slow, over, "slow", &slow, NULL), 0);
        graph_unlock(g);
        struct commit_options o = options(slow);
        ck_assert_int_eq(start(&o, NULL), 0);
        wait_for_event(j, &rec, "j:BLOCK_JOB_READY");
        for (int n = 0; n < 300; n++) {
            nap();
        }
        verb(job_complete);
        wait_for_event(j, &rec, "j:null");
        ck_assert_ptr_eq(blk_node(user), base);
        graph_lock(g);
        node_unref(slow);
        graph_unlock(g);
        ck_assert_int_eq(graph_close(g, over, NULL), 0);
    }
    w.stop = true;
    thread_join(w.thread);
    char *now = all();
    for (uint64_t i = 0; i < SIZE; i += BLOCK / 2) {
        ck_assert_msg((unsigned char)now[i] == w.model[i / BLOCK],
                      "byte %llu is %d, not %d", (unsigned long long)i, now[i],
                      w.model[i / BLOCK]);
    }
    free(now);
    teardown();
}
END_TEST

START_TEST(an_error_stops_it_and_it_goes_on)
{
    struct node *top = chain_new(SIZE);
    struct commit_options o = options(top);

    o.on_error = ON_ERROR_STOP;
    trap_of(base)->write_error = -ENOSPC;
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_event(j, &rec, "j:BLOCK_JOB_ERROR j:paused");
    ck_assert_str_eq(last_str(&rec, "operation"), "write");
    ck_assert_str_eq(last_str(&rec, "action"), "stop");
    trap_of(base)->write_error = 0;
    char *before = all();
    verb(job_resume);
    wait_for_event(j, &rec, "j:BLOCK_JOB_READY");
    verb(job_complete);
    wait_for_event(j, &rec, "j:null");
    ck_disk_is(base, before);
    free(before);
    teardown();
}
END_TEST

static void fail_below(struct node *top, _Atomic int *where)
{
    struct node *low = node_backing(top);
    struct commit_options o = options(top);
    char *before = all();

    o.top_node = low;
    *where = -EIO;
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_event(j, &rec, "j:null");
    ck_assert_str_eq(last_str(&rec, "error"), "Input/output error");
    ck_assert_ptr_eq(node_backing(top), low);
    ck_assert(node_read_only(low));
    char *after = all();
    ck_assert_int_eq(memcmp(before, after, SIZE), 0);
    /* Nothing is blocked any more. */
    *where = 0;
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_jobs(j);
    ck_assert_ptr_eq(node_backing(top), base);
    free(before);
    free(after);
    teardown();
}

START_TEST(an_error_of_writing_leaves_the_chain)
{
    struct node *top = chain_new(SIZE);
    fail_below(top, &trap_of(base)->write_error);
}
END_TEST

START_TEST(an_error_of_the_last_flush_leaves_the_chain)
{
    struct node *top = chain_new(SIZE);
    fail_below(top, &trap_of(base)->flush_error);
}
END_TEST

START_TEST(who_reads_base_without_sharing_is_not_disturbed)
{
    struct node *top = chain_new(SIZE);
    struct commit_options o = options(top);
    struct error *err = NULL;
    struct blk *reader;

    ck_assert_int_eq(
        blk_new(g, base, PERM_READ, PERM_READ, "reader", &reader, NULL), 0);
    ck_assert_int_eq(start(&o, &err), -EBUSY);
    ck_assert_ptr_nonnull(strstr(error_message(err), "unshared by reader"));
    error_free(err);
    ck_assert_str_eq(rec.text, "");
    ck_assert_ptr_eq(blk_node(user), top);
    blk_free(reader);
    ck_assert_int_eq(start(&o, NULL), 0);
    wait_for_event(j, &rec, "j:BLOCK_JOB_READY");
    teardown(); /* which cancels it */
}
END_TEST

/* --- Reopening --- */

static int reopen(const char *json, struct error **errp)
{
    json_t *list = json_loads(json, 0, NULL);
    ck_assert_ptr_nonnull(list);
    int r = graph_reopen(g, list, errp);
    json_decref(list);
    return r;
}

START_TEST(a_file_child_becomes_another_node)
{
    setup(SIZE);
    struct node *n;
    struct error *err = NULL;
    json_t *o = json_loads("{\"driver\":\"raw\",\"node-name\":\"r\","
                           "\"file\":\"base\"}",
                           0, NULL);

    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    json_decref(o);
    struct node *other = disk_new(g, "other", SIZE);
    disk_write(other, 0, 'o', 100);
    attach_user(n);
    ck_byte(0, 1);
    int r = reopen("[{\"driver\":\"raw\",\"node-name\":\"r\","
                   "\"file\":\"other\"}]",
                   &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    ck_byte(0, 'o');
    put(50, 'p', 10);
    char *now = disk_read(other);
    ck_assert_int_eq(now[55], 'p');
    free(now);

    /* A user that does not share writing. */
    struct blk *b;
    ck_assert_int_eq(blk_new(g, base, PERM_READ, PERM_READ, "reader", &b, NULL),
                     0);
    ck_assert_int_eq(reopen("[{\"driver\":\"raw\",\"node-name\":\"r\","
                            "\"file\":\"base\"}]",
                            &err),
                     -EBUSY);
    ck_byte(0, 'o');
    put(50, 'q', 10);
    blk_free(b);
    error_free(err);
    teardown();
}
END_TEST

START_TEST(a_qcow2_image_goes_on_in_another_file_node)
{
    setup(SIZE);
    struct node *top = image_new("top", "base", SIZE, false);
    struct node *file;
    struct error *err = NULL;

    attach_user(top);
    put(100000, 'a', 1000);
    /* The same file once more: only one of the two may lock it. */
    json_t *o = json_loads("{\"driver\":\"file\",\"node-name\":\"again\","
                           "\"filename\":\"top.qcow2\",\"locking\":\"off\"}",
                           0, NULL);
    ck_assert_int_eq(graph_open(g, o, &file, NULL), 0);
    json_decref(o);
    int r = reopen("[{\"driver\":\"qcow2\",\"node-name\":\"top\","
                   "\"file\":\"again\",\"backing\":\"base\"}]",
                   &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    put(200000, 'b', 1000);
    ck_byte(100500, 'a');
    ck_byte(200500, 'b');
    ck_byte(4096, 2);
    teardown();
}
END_TEST

START_TEST(a_list_is_done_as_a_whole_or_not_at_all)
{
    setup(SIZE);
    struct node *one = image_new("one", "base", SIZE, false);
    struct node *two = image_new("two", NULL, SIZE, true);
    struct error *err = NULL;

    attach_user(one);
    put(0, 'x', 10);
    ck_assert_int_lt(
        reopen("[{\"driver\":\"qcow2\",\"node-name\":\"two\",\"backing\":"
               "\"base\",\"file\":{\"driver\":\"file\",\"filename\":"
               "\"two.qcow2\"}},"
               "{\"driver\":\"qcow2\",\"node-name\":\"one\",\"backing\":null,"
               "\"read-only\":true,\"l2-cache-size\":131072,\"file\":{"
               "\"driver\":\"file\",\"filename\":\"one.qcow2\"}}]",
               &err),
        0);
    ck_assert_str_eq(error_message(err), "Read-only block node 'one' cannot "
                                         "support read-write users");
    ck_assert(node_read_only(two));
    ck_assert_ptr_null(node_backing(two));
    ck_assert_ptr_eq(node_backing(one), base);
    put(4096, 'y', 10);
    ck_byte(0, 'x');
    ck_byte(4100, 'y');
    ck_byte(8192, 3);
    error_free(err);
    teardown();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        users_move_to_the_overlay,
        what_cannot_be_an_overlay_is_refused,
        a_failing_transaction_takes_the_overlay_off,
        below_the_active_layer_the_chain_gets_shorter,
        the_active_layer_gives_way_to_base,
        cancelled_when_ready_it_leaves_the_chain,
        writes_during_the_first_pass_are_not_lost,
        a_busy_writer_loses_nothing,
        an_error_stops_it_and_it_goes_on,
        an_error_of_writing_leaves_the_chain,
        an_error_of_the_last_flush_leaves_the_chain,
        who_reads_base_without_sharing_is_not_disturbed,
        a_file_child_becomes_another_node,
        a_qcow2_image_goes_on_in_another_file_node,
        a_list_is_done_as_a_whole_or_not_at_all,
    };
    return run_suite("chain", tests, ARRAY_SIZE(tests));
}
