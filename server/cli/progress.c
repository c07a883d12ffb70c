/* SPDX-License-Identifier: BSD-3-Clause */
/* A thread that shows how far an operation is: see progress.h. */
#include "cli/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/cli.h"
#include "nbdelta/text.h"
#include "nbdelta/thread.h"

#define FIRST_MS 500
#define EVERY_MS 200

struct progress {
    /* Set at creation. */
    char *what;
    progress_fn *fn;
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

struct progress *progress_start(const char *what, progress_fn *fn, void *opaque)
{
    if (!isatty(STDERR_FILENO)) {
        return NULL;
    }
    struct progress *p = calloc(1, sizeof(*p));
    if (!p) {
        return NULL;
    }
    p->what = text_printable(what);
    p->fn = fn;
    p->opaque = opaque;
    mutex_init(&p->lock, LOCK_PROGRESS, NULL);
    cond_init(&p->stopped);
    if (thread_start(&p->thread, "progress", show, p) < 0) {
        cond_destroy(&p->stopped);
        mutex_destroy(&p->lock);
        free(p->what);
        free(p);
        return NULL;
    }
    return p;
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
