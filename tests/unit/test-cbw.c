/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy-before-write filter: what it keeps, and how it comes and goes. */
#include "../unit/job-util.h"
#include "copy/copy-before-write.h"

#define CLUSTER (64 * KiB)
#define SIZE    (32 * CLUSTER)

struct point {
    struct node *dst;
    struct node *filter;
    struct copy *c;
    char *then;
};

static bool quick; /* guests' threads copy what needs no waiting */

static struct copy *copy_all(uint64_t size)
{
    struct copy_options o = {
        .size = size,
        .cluster = CLUSTER,
        .quick = quick,
    };
    struct copy *c = copy_new(&o);

    ck_assert_ptr_nonnull(c);
    copy_add(c, 0, size);
    return c;
}

static void insert(struct graph *g, struct node *src, struct point *p,
                   const char *name)
{
    p->dst = disk_new(g, name, node_size(src));
    p->c = copy_all(node_size(src));
    p->then = disk_read(src);
    graph_lock(g);
    graph_drain(g, src);
    ck_assert_int_eq(cbw_insert(g, src, p->dst, p->c, NULL, &p->filter, NULL),
                     0);
    graph_unlock(g);
}

static void take_out(struct graph *g, struct point *p)
{
    graph_lock(g);
    cbw_remove(p->filter);
    graph_unlock(g);
    copy_free(p->c);
    free(p->then);
}

static struct blk *guest_new(struct graph *g, struct node *n)
{
    struct blk *b;
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "guest", &b, NULL), 0);
    return b;
}

static void outlives(void)
{
    enum copy_side side;
    struct graph *g = graph_new();
    struct node *src = disk_new(g, "src", SIZE);
    struct blk *guest = guest_new(g, src);
    struct point p;

    disk_fill(src, SIZE);
    insert(g, src, &p, "dst");
    disk_scribble(guest, 1, 60);
    ck_assert_int_eq(copy_run(p.c, &side), 0);
    disk_scribble(guest, 2, 20);
    ck_disk_is(p.dst, p.then);
    take_out(g, &p);
    blk_free(guest);
    graph_free(g);
}

START_TEST(the_point_in_time_outlives_what_a_guest_does)
{
    outlives();
    quick = true;
    outlives();
}
END_TEST

struct scribbler {
    struct blk *b;
    unsigned seed;
};

static void *scribble_thread(void *opaque)
{
    struct scribbler *s = opaque;
    disk_scribble(s->b, s->seed, 200);
    return NULL;
}

static void race(void)
{
    for (unsigned round = 0; round < 5; round++) {
        enum copy_side side;
        struct graph *g = graph_new();
        struct node *src = disk_new(g, "src", SIZE);
        struct blk *guest = guest_new(g, src);
        struct scribbler s[3];
        pthread_t t[3];
        struct point p;

        disk_fill(src, SIZE);
        insert(g, src, &p, "dst");
        for (unsigned i = 0; i < 3; i++) {
            s[i] = (struct scribbler){guest, 10 * round + i};
            ck_assert_int_eq(thread_start(&t[i], "s", scribble_thread, &s[i]),
                             0);
        }
        ck_assert_int_eq(copy_run(p.c, &side), 0);
        for (unsigned i = 0; i < 3; i++) {
            thread_join(t[i]);
        }
        ck_disk_is(p.dst, p.then);
        take_out(g, &p);
        blk_free(guest);
        graph_free(g);
    }
}

START_TEST(guests_and_workers_race_and_nothing_is_lost)
{
    race();
    quick = true;
    race();
}
END_TEST

/* Data are copied at once.  Zeroes are not, as the target has other bytes. */
START_TEST(what_needs_no_waiting_is_copied_at_once)
{
    enum copy_side side;
    struct graph *g = graph_new();
    struct node *src = disk_new(g, "src", SIZE);
    struct blk *guest = guest_new(g, src);
    struct point p;

    quick = true;
    disk_fill(src, SIZE);
    ck_assert_int_eq(blk_zero(guest, 0, CLUSTER, 0), 0);
    insert(g, src, &p, "dst");
    disk_fill(p.dst, SIZE);
    ck_assert_int_eq(blk_pwrite(guest, "x", 1, CLUSTER, REQ_NOWAIT), 0);
    ck_assert_uint_eq(copy_counters(p.c)->written, CLUSTER);
    ck_assert_int_eq(blk_pwrite(guest, "x", 1, 0, REQ_NOWAIT), -EAGAIN);
    ck_assert_int_eq(blk_pwrite(guest, "x", 1, 0, 0), 0);
    ck_assert_int_eq(copy_run(p.c, &side), 0);
    ck_disk_is(p.dst, p.then);
    take_out(g, &p);
    blk_free(guest);
    graph_free(g);
}
END_TEST

static void *run_thread(void *opaque)
{
    struct point *p = opaque;
    enum copy_side side;
    ck_assert_int_eq(copy_run(p->c, &side), 0);
    return NULL;
}

static void *write_thread(void *opaque)
{
    ck_assert_int_eq(blk_pwrite(opaque, "x", 1, 5, 0), 0);
    return NULL;
}

START_TEST(a_guest_waits_for_the_worker_that_has_its_cluster)
{
    struct graph *g = graph_new();
    struct node *src = disk_new(g, "src", CLUSTER);
    struct blk *guest = guest_new(g, src);
    struct point p;
    pthread_t worker;
    pthread_t writer;

    disk_fill(src, CLUSTER);
    insert(g, src, &p, "dst");
    trap_gate(trap_of(src), true);
    ck_assert_int_eq(thread_start(&worker, "run", run_thread, &p), 0);
    trap_wait(trap_of(src), 1);
    ck_assert_int_eq(thread_start(&writer, "write", write_thread, guest), 0);
    for (int i = 0; i < 20; i++) {
        nap();
    }
    ck_assert_int_eq(trap_of(src)->writes, 0);
    trap_gate(trap_of(src), false);
    thread_join(worker);
    thread_join(writer);
    /* Had it not waited, it would have read the cluster itself. */
    ck_assert_int_eq(trap_of(src)->reads, 1);
    ck_disk_is(p.dst, p.then);
    take_out(g, &p);
    blk_free(guest);
    graph_free(g);
}
END_TEST

START_TEST(guests_wait_for_one_another_in_a_cluster)
{
    struct graph *g = graph_new();
    struct node *src = disk_new(g, "src", CLUSTER);
    struct blk *guest = guest_new(g, src);
    struct point p;
    pthread_t writer[2];

    disk_fill(src, CLUSTER);
    insert(g, src, &p, "dst");
    trap_gate(trap_of(src), true);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(thread_start(&writer[i], "write", write_thread, guest),
                         0);
    }
    trap_wait(trap_of(src), 1);
    for (int i = 0; i < 20; i++) {
        nap();
    }
    trap_gate(trap_of(src), false);
    thread_join(writer[0]);
    thread_join(writer[1]);
    ck_assert_int_eq(trap_of(src)->reads, 1);
    ck_disk_is(p.dst, p.then);
    take_out(g, &p);
    blk_free(guest);
    graph_free(g);
}
END_TEST

START_TEST(users_move_to_the_filter_and_back)
{
    struct graph *g = graph_new();
    struct node *src = disk_new(g, "src", SIZE);
    struct blk *guest = guest_new(g, src);
    struct blk *other;
    struct error *err = NULL;
    struct point p;
    char now[100];

    disk_fill(src, SIZE);
    insert(g, src, &p, "dst");
    ck_assert_ptr_eq(blk_node(guest), p.filter);
    ck_assert_uint_eq(node_size(p.filter), SIZE);
    ck_assert_int_eq(blk_pread(guest, now, 100, 4096, 0), 0);
    ck_assert_mem_eq(now, p.then + 4096, 100);
    /* A write past the filter would harm the point in time. */
    ck_assert_int_eq(
        blk_new(g, src, PERM_WRITE, PERM_ALL, "other", &other, &err), -EBUSY);
    ck_assert_ptr_nonnull(strstr(error_message(err), "Permission conflict"));
    error_free(err);
    /* Nobody else writes to the target. */
    ck_assert_int_eq(
        blk_new(g, p.dst, PERM_WRITE, PERM_ALL, "other", &other, NULL), -EBUSY);
    take_out(g, &p);
    ck_assert_ptr_eq(blk_node(guest), src);
    ck_assert_int_eq(
        blk_new(g, src, PERM_WRITE, PERM_ALL, "other", &other, NULL), 0);
    blk_free(other);
    ck_assert_int_eq(blk_pwrite(guest, "x", 1, 0, 0), 0);
    blk_free(guest);
    graph_free(g);
}
END_TEST

START_TEST(a_target_above_the_source_is_refused)
{
    struct graph *g = graph_new();
    struct node *src = disk_new(g, "src", CLUSTER);
    struct copy *c = copy_all(CLUSTER);
    struct node *filter;

    graph_lock(g);
    graph_drain(g, src);
    ck_assert_int_eq(
        cbw_insert(g, node_child(src, CHILD_FILE), src, c, NULL, &filter, NULL),
        -ENOTSUP);
    graph_unlock(g);
    copy_free(c);
    graph_free(g);
}
END_TEST

static void two_points(bool first_goes_first)
{
    enum copy_side side;
    struct graph *g = graph_new();
    struct node *src = disk_new(g, "src", SIZE);
    struct blk *guest = guest_new(g, src);
    struct point a;
    struct point b;

    disk_fill(src, SIZE);
    insert(g, src, &a, "a");
    disk_scribble(guest, 1, 20);
    insert(g, src, &b, "b");
    disk_scribble(guest, 2, 20);
    ck_assert_int_eq(copy_run(a.c, &side), 0);
    ck_assert_int_eq(copy_run(b.c, &side), 0);
    disk_scribble(guest, 3, 20);
    ck_disk_is(a.dst, a.then);
    ck_disk_is(b.dst, b.then);
    take_out(g, first_goes_first ? &a : &b);
    disk_scribble(guest, 4, 20);
    take_out(g, first_goes_first ? &b : &a);
    ck_assert_ptr_eq(blk_node(guest), src);
    blk_free(guest);
    graph_free(g);
}

START_TEST(two_points_in_time_of_one_disk)
{
    two_points(true);
    two_points(false);
}
END_TEST

START_TEST(no_size_changes_below_a_point_in_time)
{
    enum copy_side side;
    struct error *err = NULL;
    struct graph *g = graph_new();
    struct node *src = disk_new(g, "src", SIZE);
    struct blk *guest = guest_new(g, node_child(src, CHILD_FILE));
    struct point p;

    /* The trap has no part in resizing: straight to the memory. */
    src = node_child(src, CHILD_FILE);
    p.dst = disk_new(g, "dst", SIZE);
    p.c = copy_all(SIZE);
    graph_lock(g);
    graph_drain(g, src);
    ck_assert_int_eq(cbw_insert(g, src, p.dst, p.c, NULL, &p.filter, NULL), 0);
    graph_unlock(g);
    ck_assert_int_eq(blk_resize(guest, SIZE / 2, &err), -EBUSY);
    error_free(err);
    ck_assert_int_eq(blk_resize(guest, 2 * SIZE, NULL), -EBUSY);
    ck_assert_uint_eq(blk_size(guest), SIZE);
    ck_assert_int_eq(blk_pwrite(guest, "x", 1, SIZE - 1, 0), 0);
    ck_assert_int_eq(copy_run(p.c, &side), 0);
    ck_assert_int_eq(blk_resize(guest, SIZE / 2, NULL), -EBUSY);
    char *zeroes = calloc(1, SIZE);
    ck_disk_is(p.dst, zeroes);
    free(zeroes);
    graph_lock(g);
    cbw_remove(p.filter);
    graph_unlock(g);
    copy_free(p.c);
    ck_assert_int_eq(blk_resize(guest, 2 * SIZE, NULL), 0);
    ck_assert_uint_eq(blk_size(guest), 2 * SIZE);
    blk_free(guest);
    graph_free(g);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        the_point_in_time_outlives_what_a_guest_does,
        guests_and_workers_race_and_nothing_is_lost,
        what_needs_no_waiting_is_copied_at_once,
        a_guest_waits_for_the_worker_that_has_its_cluster,
        guests_wait_for_one_another_in_a_cluster,
        users_move_to_the_filter_and_back,
        a_target_above_the_source_is_refused,
        two_points_in_time_of_one_disk,
        no_size_changes_below_a_point_in_time,
    };
    return run_suite("cbw", tests, ARRAY_SIZE(tests));
}
