/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What commands of qemu-io do and print.  Each command that starts with "aio_"
 * has a thread of its own, so that a request that is held up holds up nobody.
 * aio_flush and the end of the daemon wait for these threads.
 */
#include "vm/qemu-io.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nbdelta/blk.h"
#include "nbdelta/blkdebug.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/text.h"
#include "nbdelta/thread.h"
#include "vm/qemu-io-parse.h"

#define PATTERN  0xcd
#define POLL_MS  2
#define BREAK_MS 60000 /* a request that never comes is an error */

struct io_tasks {
    mutex_t lock;
    cond_t changed;
    unsigned running; /* guarded by lock */
};

struct io_request {
    struct io_tasks *tasks;
    struct jobs *jobs;
    struct graph *g;
    struct blk *blk; /* NULL: not needed */
    char *name;      /* of the node */
    struct io_args args;
    struct timespec began;
};

/* --- Output --- */

/* "512 bytes", "1.500 MiB": with a fraction of three digits, or none. */
static const char *size_text(double value, char *buf, size_t len)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB",
                                        "TiB",   "PiB", "EiB"};
    char number[64];
    size_t unit = 0;

    while (unit + 1 < ARRAY_SIZE(units) && value >= 1024) {
        value /= 1024;
        unit++;
    }
    (void)snprintf(number, sizeof(number), "%.*f", unit == 0 ? 6 : 3, value);
    char *fraction = strstr(number, ".000");
    if (fraction) {
        *fraction = '\0';
    }
    (void)snprintf(buf, len, "%s %s", number, units[unit]);
    return buf;
}

static void time_text(double s, bool fixed, char *buf, size_t len)
{
    unsigned whole = (unsigned)s;
    unsigned minutes = whole / 60;

    if (!fixed && whole == 0) {
        (void)snprintf(buf, len, "%05.2f sec", s);
    } else {
        (void)snprintf(buf, len, "%u:%02u:%05.2f", whole / 3600, minutes % 60,
                       s - minutes * 60.0);
    }
}

static double seconds_since(const struct timespec *from)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - from->tv_sec) +
           (double)(now.tv_nsec - from->tv_nsec) / 1e9;
}

static void print_result(const struct io_request *q, const char *did)
{
    const struct io_args *a = &q->args;
    double s = seconds_since(&q->began);
    double per_second = s > 0 ? 1 / s : 0;
    char size[80];
    char rate[80];
    char took[64];

    if (a->quiet) {
        return;
    }
    time_text(s, a->terse, took, sizeof(took));
    if (a->terse) {
        printf("%" PRIu64 ",1,%s,%.3f,%.3f\n", a->bytes, took,
               (double)a->bytes * per_second, per_second);
        return;
    }
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64
           "\n%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n",
           did, a->bytes, a->bytes, a->offset,
           size_text((double)a->bytes, size, sizeof(size)), took,
           size_text((double)a->bytes * per_second, rate, sizeof(rate)),
           per_second);
}

static void dump(uint64_t offset, const unsigned char *buf, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += 16) {
        uint64_t len = min_u64(16, bytes - at);

        printf("%08" PRIx64 ":  ", offset + at);
        for (uint64_t i = 0; i < len; i++) {
            printf("%02x ", buf[at + i]);
        }
        (void)putchar(' ');
        for (uint64_t i = 0; i < len; i++) {
            unsigned char c = buf[at + i];
            (void)putchar(c > 0x20 && c < 0x7f ? c : '.');
        }
        (void)putchar('\n');
    }
}

/* --- Requests --- */

static void verify_pattern(const struct io_args *a, const unsigned char *buf)
{
    for (uint64_t i = 0; i < a->check_len; i++) {
        if (buf[a->check_from + i] != a->pattern) {
            printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64
                   " bytes\n",
                   a->offset + a->check_from, a->check_len);
            return;
        }
    }
}

static int perform_read(const struct io_request *q)
{
    const struct io_args *a = &q->args;
    CLEANUP_FREE unsigned char *buf = malloc(a->bytes + 1);
    int r = buf ? blk_pread(q->blk, buf, a->bytes, a->offset, 0) : -ENOMEM;

    if (r == 0) {
        if (a->pattern >= 0) {
            verify_pattern(a, buf);
        }
        if (a->dump && !a->quiet) {
            dump(a->offset, buf, a->bytes);
        }
        print_result(q, "read");
    }
    return r;
}

/* Fill @buf with the start of a file, again and again.  False: it was said
 * why not. */
static bool fill_from_file(unsigned char *buf, uint64_t bytes, const char *name)
{
    CLEANUP_FREE char *shown = text_printable(name);
    FILE *f = fopen(name, "re");
    size_t len = f ? fread(buf, 1, bytes, f) : 0;

    if (!f || ferror(f)) {
        printf("%s: %s\n", shown ? shown : "?", strerror(errno));
    } else if (len == 0 && bytes > 0) {
        printf("%s: file is empty\n", shown ? shown : "?");
    }
    if (f) {
        (void)fclose(f);
    }
    for (uint64_t at = len; len > 0 && at < bytes; at++) {
        buf[at] = buf[at - len];
    }
    return len > 0 || (f && bytes == 0);
}

static int perform_write(const struct io_request *q)
{
    const struct io_args *a = &q->args;
    int r;

    if (a->zero) {
        r = blk_zero(q->blk, a->offset, a->bytes, a->flags);
    } else {
        CLEANUP_FREE unsigned char *buf = malloc(a->bytes + 1);
        if (!buf) {
            return -ENOMEM;
        }
        if (!a->file) {
            memset(buf, a->pattern >= 0 ? a->pattern : PATTERN, a->bytes);
        } else if (!fill_from_file(buf, a->bytes, a->file)) {
            return 0;
        }
        r = blk_pwrite(q->blk, buf, a->bytes, a->offset, a->flags);
    }
    if (r == 0) {
        print_result(q, "wrote");
    }
    return r;
}

static int perform_discard(const struct io_request *q)
{
    int r = blk_discard(q->blk, q->args.offset, q->args.bytes);

    if (r == 0) {
        print_result(q, "discard");
    }
    return r;
}

/* A range that is not inside of the disk is EIO, as in QEMU's block layer. */
static int perform_on_range(const struct io_request *q)
{
    const struct io_args *a = &q->args;
    uint64_t size = blk_size(q->blk);

    if (a->offset > size || a->bytes > size - a->offset) {
        return -EIO;
    }
    return a->op == IO_READ    ? perform_read(q)
           : a->op == IO_WRITE ? perform_write(q)
                               : perform_discard(q);
}

static int perform_truncate(const struct io_request *q)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (blk_resize(q->blk, q->args.offset, &err) < 0) {
        printf("%s\n", error_message(err));
    }
    return 0;
}

/* --- What is allocated in the top layer --- */

struct runs {
    uint64_t allocated; /* bytes */
    struct extent run;  /* neighbours that are alike so far */
    bool print;
};

static bool in_top(const struct extent *e)
{
    return (e->flags & EXTENT_ALLOCATED) && e->depth == 0;
}

static void print_run(const struct extent *e)
{
    char length[80];
    char offset[80];

    if (e->length > 0) {
        printf("%s (0x%" PRIx64 ") bytes %s at offset %s (0x%" PRIx64 ")\n",
               size_text((double)e->length, length, sizeof(length)), e->length,
               in_top(e) ? "    allocated" : "not allocated",
               size_text((double)e->offset, offset, sizeof(offset)), e->offset);
    }
}

static int count_extent(const struct extent *e, void *opaque)
{
    struct runs *r = opaque;

    r->allocated += in_top(e) ? e->length : 0;
    if (r->run.length > 0 && in_top(&r->run) == in_top(e)) {
        r->run.length += e->length;
        return 0;
    }
    if (r->print) {
        print_run(&r->run);
    }
    r->run = *e;
    return 0;
}

static int perform_alloc(const struct io_request *q)
{
    const struct io_args *a = &q->args;
    struct runs runs = {.print = false};
    uint64_t size = blk_size(q->blk);
    uint64_t bytes = a->offset < size ? min_u64(a->bytes, size - a->offset) : 0;
    int r = bytes > 0
                ? blk_extents(q->blk, a->offset, bytes, 0, count_extent, &runs)
                : 0;
    char offset[80];

    if (r < 0) {
        printf("is_allocated failed: %s\n", strerror(-r));
    } else {
        printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n",
               runs.allocated, bytes,
               size_text((double)a->offset, offset, sizeof(offset)));
    }
    return 0;
}

static int perform_map(const struct io_request *q)
{
    struct runs runs = {.print = true};
    uint64_t size = blk_size(q->blk);
    int r = size > 0 ? blk_extents(q->blk, 0, size, 0, count_extent, &runs) : 0;

    print_run(&runs.run);
    if (r < 0) {
        printf("Failed to get allocation status: %s\n", strerror(-r));
    }
    return 0;
}

/* --- The rest --- */

static void print_info(const struct node *n)
{
    uint32_t cluster = node_cluster_size(n);
    char size[80];

    printf("format name: %s\n", node_driver(n));
    if (cluster > 0) {
        printf("cluster size: %s\n",
               size_text((double)cluster, size, sizeof(size)));
    }
}

static void remove_break(struct node *n, const char *tag)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_FREE char *shown = text_printable(tag);
    int r = blkdebug_remove_break(n, tag, &err);

    if (r < 0) {
        printf("Could not remove breakpoint %s: %s\n", shown ? shown : "?",
               strerror(-r));
    }
}

/* Do a command that needs no requests; nothing is attached for it.  False: the
 * command needs one. */
static bool do_at_once(struct node *n, const struct io_args *a)
{
    CLEANUP_ERROR struct error *err = NULL;
    char size[80];
    int r;

    switch (a->op) {
    case IO_NOTHING:
        return true;
    case IO_LENGTH:
        printf("%s\n", size_text((double)node_size(n), size, sizeof(size)));
        return true;
    case IO_INFO:
        print_info(n);
        return true;
    case IO_BREAK:
        r = blkdebug_break(n, a->event, a->tag, &err);
        if (r < 0) {
            printf("Could not set breakpoint: %s\n", strerror(-r));
        }
        return true;
    case IO_REMOVE_BREAK:
        remove_break(n, a->tag);
        return true;
    case IO_RESUME:
        r = blkdebug_resume(n, a->tag, &err);
        if (r < 0) {
            printf("Could not resume request: %s\n", strerror(-r));
        }
        return true;
    default:
        return false;
    }
}

static void sleep_ms(uint64_t ms)
{
    struct timespec ts = {(time_t)(ms / 1000), (long)(ms % 1000 * 1000000)};

    while (nanosleep(&ts, &ts) < 0 && errno == EINTR) {
    }
}

/* The node may go meanwhile, so it is looked up again and again. */
static void wait_for_break(const struct io_request *q)
{
    bool over = false;

    for (uint64_t ms = 0; !over && ms < BREAK_MS; ms += POLL_MS) {
        mutex_lock(&q->jobs->lock);
        struct node *n = graph_find(q->g, q->name);
        over = !n || blkdebug_is_suspended(n, q->args.tag);
        mutex_unlock(&q->jobs->lock);
        if (!over) {
            sleep_ms(POLL_MS);
        }
    }
}

static void wait_for_aio(struct io_tasks *t)
{
    mutex_lock(&t->lock);
    while (t->running > 0) {
        cond_wait(&t->changed, &t->lock);
    }
    mutex_unlock(&t->lock);
}

static int perform(const struct io_request *q)
{
    switch (q->args.op) {
    case IO_READ:
    case IO_WRITE:
    case IO_DISCARD:
        return perform_on_range(q);
    case IO_FLUSH:
        return blk_flush(q->blk);
    case IO_TRUNCATE:
        return perform_truncate(q);
    case IO_ALLOC:
        return perform_alloc(q);
    case IO_MAP:
        return perform_map(q);
    case IO_SLEEP:
        sleep_ms(q->args.bytes);
        return 0;
    case IO_WAIT_BREAK:
        wait_for_break(q);
        return 0;
    default:
        wait_for_aio(q->tasks);
        return 0;
    }
}

static void run_request(struct io_request *q)
{
    (void)clock_gettime(CLOCK_MONOTONIC, &q->began);
    int r = perform(q);

    if (r < 0) {
        printf("%s failed: %s\n", q->args.verb, strerror(-r));
    }
    (void)fflush(stdout);
}

static void request_free(struct io_request *q)
{
    blk_free(q->blk);
    free(q->name);
    io_args_clear(&q->args);
    free(q);
}

static void task_ended(struct io_tasks *t)
{
    mutex_lock(&t->lock);
    t->running--;
    cond_broadcast(&t->changed);
    mutex_unlock(&t->lock);
}

static void *aio_thread(void *opaque)
{
    struct io_request *q = opaque;
    struct io_tasks *t = q->tasks;

    run_request(q);
    request_free(q);
    task_ended(t);
    return NULL;
}

static void start_aio(struct io_request *q)
{
    struct io_tasks *t = q->tasks;
    pthread_t thread;

    mutex_lock(&t->lock);
    t->running++;
    mutex_unlock(&t->lock);
    if (thread_start(&thread, "qemu-io", aio_thread, q) == 0) {
        (void)pthread_detach(thread);
        return;
    }
    printf("%s failed: %s\n", q->args.verb, strerror(ENOMEM));
    (void)fflush(stdout);
    request_free(q);
    task_ended(t);
}

void io_perform(struct io_request *q)
{
    if (q->args.aio) {
        start_aio(q);
    } else {
        run_request(q);
        request_free(q);
    }
}

static unsigned perms_of(enum io_op op)
{
    switch (op) {
    case IO_READ:
    case IO_ALLOC:
    case IO_MAP:
        return PERM_READ;
    case IO_WRITE:
    case IO_DISCARD:
        return PERM_WRITE;
    case IO_TRUNCATE:
        return PERM_WRITE | PERM_RESIZE;
    default:
        return 0;
    }
}

/* Only requests need a blk. */
static int attach_request(struct io_request *q, struct node *n,
                          struct error **errp)
{
    enum io_op op = q->args.op;

    if (op == IO_SLEEP || op == IO_AIO_FLUSH || op == IO_WAIT_BREAK) {
        q->name = strdup(node_name(n));
        return q->name ? 0 : error_nomem(errp);
    }
    return blk_new(q->g, n, perms_of(op), PERM_ALL, "qemu-io", &q->blk, errp);
}

int io_prepare(const struct io_context *c, struct node *n, struct blk *device,
               const char *command, struct io_request **qp, struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct io_request *q = calloc(1, sizeof(*q));

    *qp = NULL;
    if (!q) {
        return error_nomem(errp);
    }
    q->tasks = c->tasks;
    q->jobs = c->jobs;
    q->g = c->graph;
    int r = io_parse(command, &q->args, &err);
    bool done = r < 0 || do_at_once(n, &q->args);
    if (r < 0) {
        printf("%s\n", err ? error_message(err) : strerror(-r));
    }
    (void)fflush(stdout);
    r = done ? 0 : attach_request(q, n, errp);
    if (done || r < 0) {
        request_free(q);
        return r;
    }
    if (device && q->blk) {
        blk_share_throttle(q->blk, device);
    }
    *qp = q;
    return 0;
}

struct io_tasks *io_tasks_new(void)
{
    struct io_tasks *t = calloc(1, sizeof(*t));

    if (t) {
        mutex_init(&t->lock, LOCK_IO_TASKS, NULL);
        cond_init(&t->changed);
    }
    return t;
}

void io_tasks_free(struct io_tasks *t)
{
    if (t) {
        wait_for_aio(t);
        mutex_destroy(&t->lock);
        cond_destroy(&t->changed);
        free(t);
    }
}
