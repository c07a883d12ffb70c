/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Commands of qemu-io: words, options, then one request.  What starts with
 * "aio_" has a thread of its own, so that a request that is held up holds up
 * nobody; aio_flush and the end of the daemon wait for them.
 */
#include "qemu-io.h"

#include <errno.h>
#include <getopt.h>
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
#include "nbdelta/size.h"
#include "nbdelta/thread.h"

#define WORDS_MAX   32
#define PATTERN     0xcd
#define BREAK_MS    60000 /* a request that never comes is an error */
#define REQUEST_MAX (INT64_C(1) << 31)

struct io_tasks {
    mutex_t lock;
    cond_t changed;
    unsigned running; /* guarded by lock */
};

enum op { OP_READ, OP_WRITE, OP_FLUSH, OP_DISCARD, OP_TRUNCATE };

struct request {
    struct io_tasks *tasks;
    struct graph *g;
    struct blk *blk;
    const char *verb; /* in messages */
    enum op op;
    uint64_t offset;
    uint64_t bytes;
    int pattern; /* -1: none was given */
    unsigned flags;
    bool zero;
    bool quiet;
    bool dump;
    uint64_t check_from; /* read: where the pattern is to be, in the request */
    uint64_t check_len;
    struct timespec began;
};

/* --- Output --- */

static double seconds_since(const struct timespec *from)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - from->tv_sec) +
           (double)(now.tv_nsec - from->tv_nsec) / 1e9;
}

static void report(const struct request *q, const char *did)
{
    double s = seconds_since(&q->began);
    double per_second = s > 0 ? (double)q->bytes / s : 0;
    char size[32];
    char rate[32];

    if (q->quiet) {
        return;
    }
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", did,
           q->bytes, q->bytes, q->offset);
    printf("%s, 1 ops; 00:00:%05.2f (%s/sec and %.4f ops/sec)\n",
           size_human(q->bytes, size, sizeof(size)), s,
           size_human((uint64_t)per_second, rate, sizeof(rate)),
           s > 0 ? 1 / s : 0);
}

static void dump(uint64_t offset, const unsigned char *buf, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += 16) {
        uint64_t len = min_u64(16, bytes - at);

        printf("%08" PRIx64 ": ", offset + at);
        for (uint64_t i = 0; i < len; i++) {
            printf(" %02x", buf[at + i]);
        }
        printf("  ");
        for (uint64_t i = 0; i < len; i++) {
            unsigned char c = buf[at + i];
            (void)putchar(c >= 0x20 && c < 0x7f ? c : '.');
        }
        (void)putchar('\n');
    }
}

/* --- One request --- */

static void verify(const struct request *q, const unsigned char *buf)
{
    for (uint64_t i = 0; i < q->check_len; i++) {
        if (buf[q->check_from + i] != q->pattern) {
            printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64
                   " bytes\n",
                   q->offset + q->check_from, q->check_len);
            return;
        }
    }
}

static int do_read(const struct request *q)
{
    CLEANUP_FREE unsigned char *buf = malloc(q->bytes + 1);
    int r = buf ? blk_pread(q->blk, buf, q->bytes, q->offset, 0) : -ENOMEM;

    if (r == 0) {
        if (q->pattern >= 0) {
            verify(q, buf);
        }
        if (q->dump) {
            dump(q->offset, buf, q->bytes);
        }
        report(q, "read");
    }
    return r;
}

static int do_write(const struct request *q)
{
    int r;

    if (q->zero) {
        r = blk_zero(q->blk, q->offset, q->bytes, q->flags);
    } else {
        CLEANUP_FREE unsigned char *buf = malloc(q->bytes + 1);
        if (!buf) {
            return -ENOMEM;
        }
        memset(buf, q->pattern >= 0 ? q->pattern : PATTERN, q->bytes);
        r = blk_pwrite(q->blk, buf, q->bytes, q->offset, q->flags);
    }
    if (r == 0) {
        report(q, "wrote");
    }
    return r;
}

static int perform(const struct request *q)
{
    int r;

    switch (q->op) {
    case OP_READ:
        return do_read(q);
    case OP_WRITE:
        return do_write(q);
    case OP_DISCARD:
        r = blk_discard(q->blk, q->offset, q->bytes);
        if (r == 0) {
            report(q, "discard");
        }
        return r;
    case OP_TRUNCATE: {
        CLEANUP_ERROR struct error *err = NULL;
        if (blk_resize(q->blk, q->offset, &err) < 0) {
            printf("%s\n", error_message(err));
        }
        return 0;
    }
    case OP_FLUSH:
    default:
        return blk_flush(q->blk);
    }
}

static void run(struct request *q)
{
    (void)clock_gettime(CLOCK_MONOTONIC, &q->began);
    int r = perform(q);

    if (r < 0) {
        printf("%s failed: %s\n", q->verb, strerror(-r));
    }
    (void)fflush(stdout);
    blk_free(q->blk);
}

static void *aio_thread(void *opaque)
{
    struct request *q = opaque;
    struct io_tasks *t = q->tasks;

    run(q);
    free(q);
    mutex_lock(&t->lock);
    t->running--;
    cond_broadcast(&t->changed);
    mutex_unlock(&t->lock);
    return NULL;
}

static void start_aio(const struct request *q)
{
    struct request *own = malloc(sizeof(*own));
    pthread_t thread;

    if (own) {
        *own = *q;
        mutex_lock(&q->tasks->lock);
        q->tasks->running++;
        mutex_unlock(&q->tasks->lock);
        if (thread_start(&thread, "qemu-io", aio_thread, own) == 0) {
            (void)pthread_detach(thread);
            return;
        }
        mutex_lock(&q->tasks->lock);
        q->tasks->running--;
        mutex_unlock(&q->tasks->lock);
        free(own);
    }
    printf("%s failed: %s\n", q->verb, strerror(ENOMEM));
    blk_free(q->blk);
}

static void wait_for_aio(struct io_tasks *t)
{
    mutex_lock(&t->lock);
    while (t->running > 0) {
        cond_wait(&t->changed, &t->lock);
    }
    mutex_unlock(&t->lock);
}

struct io_tasks *io_tasks_new(void)
{
    struct io_tasks *t = calloc(1, sizeof(*t));

    if (t) {
        mutex_init(&t->lock);
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

/* --- Words --- */

static bool take_number(const char *text, uint64_t *out)
{
    if (size_parse(text, out) < 0) {
        printf("non-numeric length argument -- %s\n", text);
        return false;
    }
    return true;
}

static bool take_pattern(const char *text, int *out)
{
    char *end;
    long v = strtol(text, &end, 0);

    if (*end || end == text || v < 0 || v > 255) {
        printf("%s is not a valid pattern byte\n", text);
        return false;
    }
    *out = (int)v;
    return true;
}

/* Options, then offset and lengths.  False: it was said what is wrong. */
static bool take_options(struct request *q, const char *known, int argc,
                         char **argv)
{
    uint64_t check_from = 0;
    uint64_t check_len = 0;
    int c;

    optind = 0;
    opterr = 0;
    while ((c = getopt(argc, argv, known)) != -1) {
        switch (c) {
        case 'P':
            if (!take_pattern(optarg, &q->pattern)) {
                return false;
            }
            break;
        case 's':
        case 'l':
            if (!take_number(optarg, c == 's' ? &check_from : &check_len)) {
                return false;
            }
            break;
        case 'q':
            q->quiet = true;
            break;
        case 'v':
            q->dump = true;
            break;
        case 'f':
            q->flags |= REQ_FUA;
            break;
        case 'z':
            q->zero = true;
            break;
        case 'u':
            q->flags |= REQ_MAY_UNMAP;
            break;
        case 'n':
            q->flags |= REQ_NO_FALLBACK;
            break;
        case 'C': /* a report in another form */
        case 'p':
            break;
        default:
            printf("%s: invalid option\n", argv[0]);
            return false;
        }
    }
    if (q->zero && q->pattern >= 0) {
        printf("-z and -P cannot be specified at the same time\n");
        return false;
    }
    q->check_from = check_from;
    q->check_len = check_len;
    return true;
}

static bool take_range(struct request *q, int argc, char **argv)
{
    if (argc < 2) {
        printf("bad argument count %d to %s, expected at least 2 arguments\n",
               argc, q->verb);
        return false;
    }
    if (!take_number(argv[0], &q->offset)) {
        return false;
    }
    for (int i = 1; i < argc; i++) {
        uint64_t more;

        if (!take_number(argv[i], &more)) {
            return false;
        }
        q->bytes += more;
    }
    if (q->bytes > REQUEST_MAX && !q->zero && q->op != OP_DISCARD) {
        printf("length cannot exceed %" PRIu64 ", given %s\n",
               (uint64_t)REQUEST_MAX, argv[1]);
        return false;
    }
    if (q->check_from > q->bytes || q->check_len > q->bytes - q->check_from) {
        printf("pattern verification range exceeds end of read data\n");
        return false;
    }
    if (q->check_len == 0) {
        q->check_len = q->bytes - q->check_from;
    }
    return true;
}

/* --- Commands --- */

static const struct verb {
    const char *name;
    const char *alias;
    const char *options; /* NULL: takes no range */
    enum op op;
    bool aio;
} verbs[] = {
    {"read", "r", "CP:l:pqs:v", OP_READ, false},
    {"readv", NULL, "CP:qv", OP_READ, false},
    {"write", "w", "CfnpP:quz", OP_WRITE, false},
    {"writev", NULL, "CfqP:", OP_WRITE, false},
    {"aio_read", NULL, "CP:qv", OP_READ, true},
    {"aio_write", NULL, "CfP:quz", OP_WRITE, true},
    {"discard", "d", "Cq", OP_DISCARD, false},
    {"flush", "f", NULL, OP_FLUSH, false},
    {"truncate", "t", NULL, OP_TRUNCATE, false},
};

static const struct verb *find_verb(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
        if (strcmp(verbs[i].name, name) == 0 ||
            (verbs[i].alias && strcmp(verbs[i].alias, name) == 0)) {
            return &verbs[i];
        }
    }
    return NULL;
}

static unsigned perms_of(enum op op)
{
    return op == OP_TRUNCATE ? PERM_WRITE | PERM_RESIZE
           : op == OP_READ   ? PERM_READ
           : op == OP_FLUSH  ? 0
                             : PERM_WRITE;
}

static void do_verb(struct io_tasks *t, struct graph *g, struct node *n,
                    const struct verb *v, int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct request q = {
        .tasks = t,
        .g = g,
        .verb = v->name,
        .op = v->op,
        .pattern = -1,
    };

    if (v->options && (!take_options(&q, v->options, argc, argv) ||
                       !take_range(&q, argc - optind, argv + optind))) {
        return;
    }
    if (v->op == OP_TRUNCATE &&
        (argc < 2 || !take_number(argv[argc - 1], &q.offset))) {
        return;
    }
    if (blk_new(g, n, perms_of(v->op), PERM_ALL, "qemu-io", &q.blk, &err) < 0) {
        printf("%s\n", error_message(err));
    } else if (v->aio) {
        start_aio(&q);
    } else {
        run(&q);
    }
}

static void do_sleep(const char *ms)
{
    uint64_t n = 0;

    if (ms && take_number(ms, &n)) {
        struct timespec ts = {(time_t)(n / 1000), (long)(n % 1000 * 1000000)};
        (void)nanosleep(&ts, NULL);
    }
}

/* Breakpoints of a blkdebug node below @n. */
static bool do_break(struct node *n, int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = 0;

    if (strcmp(argv[0], "break") == 0 && argc == 3) {
        r = blkdebug_break(n, argv[1], argv[2], &err);
    } else if (strcmp(argv[0], "remove_break") == 0 && argc == 2) {
        r = blkdebug_remove_break(n, argv[1], &err);
    } else if (strcmp(argv[0], "resume") == 0 && argc == 2) {
        r = blkdebug_resume(n, argv[1], &err);
    } else if (strcmp(argv[0], "wait_break") == 0 && argc == 2) {
        (void)blkdebug_wait_break(n, argv[1], BREAK_MS);
    } else {
        return false;
    }
    if (r < 0) {
        printf("Could not %s: %s\n", argv[0], error_message(err));
    }
    return true;
}

static void do_words(struct io_tasks *t, struct graph *g, struct node *n,
                     int argc, char **argv)
{
    const struct verb *v = find_verb(argv[0]);
    char size[32];

    if (v) {
        do_verb(t, g, n, v, argc, argv);
    } else if (strcmp(argv[0], "aio_flush") == 0) {
        wait_for_aio(t);
    } else if (strcmp(argv[0], "length") == 0 || strcmp(argv[0], "l") == 0) {
        printf("%s\n", size_human(node_size(n), size, sizeof(size)));
    } else if (strcmp(argv[0], "sleep") == 0) {
        do_sleep(argv[1]);
    } else if (!do_break(n, argc, argv)) {
        printf("command \"%s\" not found\n", argv[0]);
    }
}

void io_command(struct io_tasks *t, struct graph *g, struct node *n,
                const char *command)
{
    CLEANUP_FREE char *text = strdup(command);
    char *words[WORDS_MAX + 1] = {NULL};
    char *rest = text;
    char *word;
    int count = 0;

    while (text && count < WORDS_MAX &&
           (word = strtok_r(rest, " \t\n", &rest))) {
        words[count++] = word;
    }
    if (count > 0) {
        do_words(t, g, n, count, words);
        (void)fflush(stdout);
    }
}
