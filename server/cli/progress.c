/* SPDX-License-Identifier: BSD-3-Clause */
/* A thread that shows how far an operation is: see progress.h. */
#include "cli/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/cli.h"
#include "nbdelta/text.h"
#include "nbdelta/thread.h"

#define FIRST_MS 500
#define EVERY_MS 200
#define JSON_MS  1000

struct progress {
    /* Set at creation. */
    char *what;
    progress_fn *fn;          /* of a terminal */
    progress_bytes_fn *bytes; /* of JSON */
    void *opaque;
    pthread_t thread;

    mutex_t lock;
    cond_t stopped;
    bool stop GUARDED_BY(lock);
};

/* False: it is time to go. */
static bool pause_ms(struct progress *p, uint64_t ms)
{
    uint64_t end = now_ns() + ms * 1000000;

    mutex_lock(&p->lock);
    while (!p->stop && now_ns() < end) {
        (void)cond_wait_ms(&p->stopped, &p->lock, ms);
    }
    bool stop = p->stop;
    mutex_unlock(&p->lock);
    return !stop;
}

static void *show(void *arg)
{
    struct progress *p = arg;
    bool shown = false;

    for (uint64_t ms = FIRST_MS; pause_ms(p, ms); ms = EVERY_MS) {
        double done = p->fn(p->opaque);
        fprintf(stderr, "\r%s: %5.1f %%", p->what ? p->what : "?",
                done < 0   ? 0
                : done > 1 ? 100
                           : done * 100);
        shown = true;
    }
    if (shown) {
        fputs("\r\033[K", stderr);
    }
    return NULL;
}

static void tell_json(struct progress *p)
{
    uint64_t done = 0;
    uint64_t total = 0;

    p->bytes(p->opaque, &done, &total);
    (void)fprintf(stderr, "{\"done\": %" PRIu64 ", \"total\": %" PRIu64 "}\n",
                  done, total);
}

static void *show_json(void *arg)
{
    struct progress *p = arg;

    while (pause_ms(p, JSON_MS)) {
        tell_json(p);
    }
    tell_json(p);
    return NULL;
}

/* @like is copied, except its thread. */
static struct progress *start(const struct progress *like,
                              void *(*thread)(void *))
{
    struct progress *p = calloc(1, sizeof(*p));

    if (!p) {
        free(like->what);
        return NULL;
    }
    p->what = like->what;
    p->fn = like->fn;
    p->bytes = like->bytes;
    p->opaque = like->opaque;
    mutex_init(&p->lock, LOCK_PROGRESS, NULL);
    cond_init(&p->stopped);
    if (thread_start(&p->thread, "progress", thread, p) < 0) {
        cond_destroy(&p->stopped);
        mutex_destroy(&p->lock);
        free(p->what);
        free(p);
        return NULL;
    }
    return p;
}

struct progress *progress_start(const char *what, progress_fn *fn, void *opaque)
{
    if (!isatty(STDERR_FILENO)) {
        return NULL;
    }
    const struct progress p = {
        .what = text_printable(what),
        .fn = fn,
        .opaque = opaque,
    };
    return start(&p, show);
}

struct progress *progress_start_json(progress_bytes_fn *fn, void *opaque)
{
    const struct progress p = {.bytes = fn, .opaque = opaque};

    return start(&p, show_json);
}

void progress_stop(struct progress *p)
{
    if (!p) {
        return;
    }
    mutex_lock(&p->lock);
    p->stop = true;
    cond_signal(&p->stopped);
    mutex_unlock(&p->lock);
    thread_join(p->thread);
    cond_destroy(&p->stopped);
    mutex_destroy(&p->lock);
    free(p->what);
    free(p);
}
