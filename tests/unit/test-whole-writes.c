/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A drain that comes during a request sees the request whole or not at all.  A
 * request that may not wait, and would have to, has changed nothing.
 *
 * Below the format, a filter answers the k-th change with -EAGAIN, or waits for
 * the drain there and makes room for it.  k goes from 1 to the last change.
 */
#include <unistd.h>

#include "job-util.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/image.h"

#define CLUSTER (4 * KiB)
#define SIZE    (64 * CLUSTER)
#define MAX     (24 * CLUSTER)

/* --- The filter --- */

struct moody {
    mutex_t lock;
    cond_t moved;
    bool shy;      /* -EAGAIN, else it waits for a drain */
    int left;      /* requests until it counts; 0: it has, or never will */
    bool reached;  /* one stands there */
    bool finished; /* the test's request */
    uint32_t max_transfer;
    uint32_t align;
};

static struct moody mood;

static int moody_turn(struct node *n, unsigned flags)
{
    mutex_lock(&mood.lock);
    bool mine = mood.left > 0 && --mood.left == 0;
    if (mine) {
        mood.reached = true;
        cond_broadcast(&mood.moved);
    }
    mutex_unlock(&mood.lock);
    if (!mine) {
        return 0;
    }
    if (mood.shy) {
        return flags & REQ_NOWAIT ? -EAGAIN : 0;
    }
    while (!node_is_draining(n)) {
        nap();
    }
    return node_shall_restart(n) ? -ERESTART : 0;
}

static int moody_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                         const struct iovec *iov, int cnt, unsigned flags)
{
    int r = moody_turn(n, flags);
    return r < 0 ? r
                 : node_pwritev(node_child(n, CHILD_FILE), offset, bytes, iov,
                                cnt, flags);
}

static int moody_zero(struct node *n, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    int r = moody_turn(n, flags);
    return r < 0 ? r
                 : node_zero(node_child(n, CHILD_FILE), offset, bytes, flags);
}

static int moody_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    int r = moody_turn(n, 0);
    return r < 0 ? r : node_discard(node_child(n, CHILD_FILE), offset, bytes);
}

static void moody_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->max_transfer = mood.max_transfer;
    lim->align = mood.align;
    lim->zero_align = mood.align;
}

static const struct driver driver_moody = {
    .name = "moody",
    .is_filter = true,
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .limits = moody_limits,
    .pwritev = moody_pwritev,
    .zero = moody_zero,
    .discard = moody_discard,
};

/* --- A disk above it --- */

static const struct {
    const char *format;
    uint32_t cluster;
    uint32_t max_transfer;
    uint32_t align;
} disks[] = {
    {"qcow2", CLUSTER, 1 * GiB, 1},
    {"qcow2", CLUSTER, 2 * CLUSTER, 1},
    {"qcow2", CLUSTER, 2 * CLUSTER, 512},
    {"qcow2", 512, 1 * GiB, 1}, /* requests cross tables */
    {"raw", CLUSTER, 2 * CLUSTER, 1},
    {"raw", CLUSTER, 2 * CLUSTER, 512},
};

struct disk {
    struct graph *g;
    struct node *n;
    struct blk *b;
    char dir[40];
    char file[60];
    const char *format;
};

static struct node *open_as(struct graph *g, json_t *options)
{
    struct error *err = NULL;
    struct node *n;
    int r = graph_open(g, options, &n, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    json_decref(options);
    return n;
}

static void write_at(struct disk *d, uint64_t cluster, int byte)
{
    char buf[CLUSTER];

    memset(buf, byte, sizeof(buf));
    ck_assert_int_eq(blk_pwrite(d->b, buf, sizeof(buf), cluster * CLUSTER, 0),
                     0);
}

/* Clusters that are there, in two orders, and some that are not. */
static void fill(struct disk *d)
{
    for (uint64_t i = 0; i < 4; i++) {
        write_at(d, i, 1 + (int)i);
    }
    for (uint64_t i = 12; i-- > 6;) {
        write_at(d, i, 1 + (int)i);
    }
    for (uint64_t i = 12; i < 40; i += 2) {
        write_at(d, i, 1 + (int)i);
    }
    for (uint64_t i = 40; i < 60; i++) {
        write_at(d, i, 1 + (int)i);
    }
}

static void begin(struct disk *d, size_t at)
{
    const char *format = disks[at].format;
    CLEANUP_JSON json_t *o = json_pack("{s:I}", "size", (json_int_t)SIZE);
    struct node *m;

    if (strcmp(format, "qcow2") == 0) {
        (void)json_object_set_new(o, "cluster_size",
                                  json_integer(disks[at].cluster));
    }
    mood = (struct moody){.max_transfer = disks[at].max_transfer,
                          .align = disks[at].align};
    mutex_init(&mood.lock, LOCK_TEST, NULL);
    cond_init(&mood.moved);
    d->format = format;
    strcpy(d->dir, "/tmp/test-whole-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(d->dir));
    (void)snprintf(d->file, sizeof(d->file), "%s/disk", d->dir);
    ck_assert_int_eq(image_create(d->file, format, o, NULL), 0);
    d->g = graph_new();
    struct node *f = open_as(d->g,
                             json_pack("{s:s, s:s, s:s, s:{s:b}}", "driver",
                                       "file", "filename", d->file, "discard",
                                       "unmap", "cache", "no-flush", 1));
    graph_lock(d->g);
    ck_assert_int_eq(node_new(d->g, &driver_moody, "m", f, &m, NULL), 0);
    m->options = json_object();
    ck_assert_int_eq(node_attach(m, CHILD_FILE, f, "file",
                                 PERM_READ | PERM_WRITE | PERM_RESIZE, PERM_ALL,
                                 NULL),
                     0);
    node_refresh_limits(m);
    m->monitor_owned = true;
    graph_unlock(d->g);
    d->n = open_as(d->g,
                   json_pack("{s:s, s:s, s:s, s:s}", "driver", format, "file",
                             "m", "node-name", "disk", "discard", "unmap"));
    ck_assert_int_eq(
        blk_new(d->g, d->n, PERM_ALL, PERM_ALL, "guest", &d->b, NULL), 0);
    fill(d);
}

static void end(struct disk *d)
{
    blk_free(d->b);
    graph_free(d->g);
    ck_assert_int_eq(unlink(d->file), 0);
    ck_assert_int_eq(rmdir(d->dir), 0);
    mutex_destroy(&mood.lock);
    cond_destroy(&mood.moved);
}

static void arm_mood(bool shy, int k)
{
    mutex_lock(&mood.lock);
    mood.shy = shy;
    mood.left = k;
    mood.reached = false;
    mood.finished = false;
    mutex_unlock(&mood.lock);
}

/* True: somebody stands there; false: the request has ended. */
static bool wait_for_mood(void)
{
    mutex_lock(&mood.lock);
    while (!mood.reached && !mood.finished) {
        cond_wait(&mood.moved, &mood.lock);
    }
    bool reached = mood.reached;
    mutex_unlock(&mood.lock);
    return reached;
}

/* --- Requests --- */

enum kind { WRITE, ZERO, DISCARD };

struct request {
    struct disk *d;
    enum kind kind;
    uint64_t offset;
    uint64_t bytes;
    unsigned flags;
    int byte;
    int result;
};

static void issue(struct request *q)
{
    static char buf[MAX];

    switch (q->kind) {
    case WRITE:
        memset(buf, q->byte, q->bytes);
        q->result = blk_pwrite(q->d->b, buf, q->bytes, q->offset, q->flags);
        break;
    case ZERO:
        q->result = blk_zero(q->d->b, q->offset, q->bytes, q->flags);
        break;
    case DISCARD:
        q->result = blk_discard(q->d->b, q->offset, q->bytes);
        break;
    }
}

static void *issue_thread(void *opaque)
{
    issue(opaque);
    mutex_lock(&mood.lock);
    mood.finished = true;
    cond_broadcast(&mood.moved);
    mutex_unlock(&mood.lock);
    return NULL;
}

static void read_all(struct disk *d, char *buf)
{
    ck_assert_int_eq(blk_pread(d->b, buf, SIZE, 0, 0), 0);
}

static const struct {
    enum kind kind;
    uint64_t offset;
    uint64_t bytes;
    unsigned flags;
} requests[] = {
    {WRITE, 3 * CLUSTER, 2 * CLUSTER, 0},         /* allocated, and not */
    {WRITE, 3 * CLUSTER + 512, 2 * CLUSTER, 0},   /* the same, not aligned */
    {WRITE, 7 * CLUSTER, 4 * CLUSTER, 0},         /* in the other order */
    {WRITE, 14 * CLUSTER + 100, 9 * CLUSTER, 0},  /* one by one */
    {WRITE, 14 * CLUSTER, 20 * CLUSTER, REQ_FUA}, /* more than can be mapped */
    {WRITE, 42 * CLUSTER, 12 * CLUSTER, 0},       /* one piece, but large */
    {WRITE, 7 * CLUSTER, 4 * CLUSTER, REQ_NOWAIT},
    {WRITE, 42 * CLUSTER, 12 * CLUSTER, REQ_NOWAIT},
    {ZERO, 2 * CLUSTER + 512, 8 * CLUSTER, 0},
    {ZERO, 2 * CLUSTER + 512, 8 * CLUSTER, REQ_MAY_UNMAP},
    {ZERO, 41 * CLUSTER + 512, 10 * CLUSTER + 512, REQ_MAY_UNMAP},
    {DISCARD, 6 * CLUSTER, 24 * CLUSTER, 0},
};

#define DISKS    (sizeof(disks) / sizeof(disks[0]))
#define REQUESTS (sizeof(requests) / sizeof(requests[0]))

static struct request request_of(struct disk *d, size_t i, int byte)
{
    return (struct request){.d = d,
                            .kind = requests[i].kind,
                            .offset = requests[i].offset,
                            .bytes = requests[i].bytes,
                            .flags = requests[i].flags,
                            .byte = byte};
}

/* --- A drain at the k-th change --- */

/* False: there is no k-th one. */
static bool drain_at(struct disk *d, size_t i, int k)
{
    static char before[SIZE];
    static char seen[SIZE];
    static char after[SIZE];
    struct request q = request_of(d, i, 200 + k % 50);
    pthread_t t;

    read_all(d, before);
    arm_mood(false, k);
    ck_assert_int_eq(thread_start(&t, "guest", issue_thread, &q), 0);
    bool reached = wait_for_mood();
    if (reached) {
        graph_lock(d->g);
        graph_drain(d->g, d->n);
        ck_assert_int_eq(node_pread(d->n, seen, SIZE, 0, 0), 0);
        graph_unlock(d->g);
    }
    thread_join(t);
    ck_assert(q.result == 0 || (q.flags & REQ_NOWAIT && q.result == -EAGAIN));
    read_all(d, after);
    ck_assert_msg(!reached || memcmp(seen, before, SIZE) == 0 ||
                      memcmp(seen, after, SIZE) == 0,
                  "%s %u/%u, request %zu: half of it is there at change %d",
                  d->format, mood.max_transfer, mood.align, i, k);
    return reached;
}

START_TEST(a_drain_sees_all_of_a_request_or_nothing)
{
    for (size_t at = 0; at < DISKS; at++) {
        for (size_t i = 0; i < REQUESTS; i++) {
            int k = 1;
            bool more = true;

            while (more) { /* each time a disk that is as it was */
                struct disk d;
                begin(&d, at);
                more = drain_at(&d, i, k++);
                end(&d);
            }
        }
    }
}
END_TEST

/* --- Without waiting --- */

static bool refuse_at(struct disk *d, size_t i, int k)
{
    static char before[SIZE];
    static char after[SIZE];
    struct request q = request_of(d, i, 200);

    q.flags |= REQ_NOWAIT;
    read_all(d, before);
    arm_mood(true, k);
    issue(&q);
    bool reached = mood.reached;
    read_all(d, after);
    if (q.result < 0) {
        ck_assert_int_eq(q.result, -EAGAIN);
        ck_assert_msg(memcmp(before, after, SIZE) == 0,
                      "%s %u/%u, request %zu: EAGAIN at change %d, and it has "
                      "changed something",
                      d->format, mood.max_transfer, mood.align, i, k);
    } else {
        for (uint64_t b = q.offset; b < q.offset + q.bytes; b++) {
            ck_assert_int_eq((unsigned char)after[b], q.byte);
        }
    }
    return reached;
}

START_TEST(what_would_have_to_wait_changes_nothing)
{
    for (size_t at = 0; at < DISKS; at++) {
        for (size_t i = 0; i < REQUESTS; i++) {
            int k = 1;
            bool more = requests[i].kind == WRITE;

            while (more) {
                struct disk d;
                begin(&d, at);
                more = refuse_at(&d, i, k++);
                end(&d);
            }
        }
    }
}
END_TEST

START_TEST(pieces_that_are_there_are_written_without_waiting)
{
    struct disk d;
    char buf[4 * CLUSTER];

    memset(buf, 99, sizeof(buf));
    begin(&d, 0);
    ck_assert_int_eq(blk_pread(d.b, buf, CLUSTER, 0, 0), 0); /* its table */
    ck_assert_int_eq(blk_pwrite(d.b, buf, sizeof(buf), 7 * CLUSTER, REQ_NOWAIT),
                     0);
    end(&d);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_drain_sees_all_of_a_request_or_nothing,
        what_would_have_to_wait_changes_nothing,
        pieces_that_are_there_are_written_without_waiting,
    };
    return run_suite("whole-writes", tests, sizeof(tests) / sizeof(tests[0]));
}
