/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guest's file systems stand still for at most 10 s.
 *
 * A thread thaws them when the time is over, whatever the others wait for: it
 * has a connection of its own.
 */
#include <errno.h>
#include <libvirt/virterror.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"
#include "source/libvirt-priv.h"
#include "source/source.h"

#define FREEZE_MS 10000

struct libvirt_freeze {
    struct libvirt_link *link;
    pthread_t thread;
    int kick; /* the caller thaws */
    int r;    /* of the thaw by the thread */
    bool late;
};

static int freeze_fn(virDomainPtr d, struct libvirt_args *args)
{
    (void)args;
    return virDomainFSFreeze(d, NULL, 0, 0);
}

static int thaw_fn(virDomainPtr d, struct libvirt_args *args)
{
    (void)args;
    return virDomainFSThaw(d, NULL, 0, 0);
}

static void *guard(void *opaque)
{
    struct libvirt_freeze *f = opaque;
    struct pollfd p = {.fd = f->kick, .events = POLLIN};
    uint64_t end = now_ns() + (uint64_t)FREEZE_MS * 1000000;
    uint64_t now;
    int r = 0;

    while (r <= 0 && (now = now_ns()) < end) {
        r = poll(&p, 1, (int)((end - now) / 1000000) + 1);
    }
    if (r <= 0) {
        f->late = true;
        f->r = libvirt_call(f->link, thaw_fn, NULL, NULL, 0, NULL, NULL);
    }
    return NULL;
}

static void free_freeze(struct libvirt_freeze *f)
{
    libvirt_link_free(f->link);
    (void)close(f->kick);
    free(f);
}

/* The guard watches from before the first file system stands still. */
static int start_guard(struct libvirt_source *l, struct error **errp)
{
    struct libvirt_freeze *f = calloc(1, sizeof(*f));

    if (!f || (f->kick = kick_new()) < 0) {
        free(f);
        return error_nomem(errp);
    }
    int r = libvirt_link_new(l->uri, l->domain, l->limit_ms, &f->link, errp);
    if (r == 0) {
        r = thread_start(&f->thread, "thaw", guard, f);
        r = r < 0 ? error_set(errp, -r, "cannot start a thread") : 0;
    }
    if (r < 0) {
        free_freeze(f);
        return r;
    }
    l->freeze = f;
    return 0;
}

/* true: the guard has thawed. */
static bool stop_guard(struct libvirt_source *l)
{
    struct libvirt_freeze *f = l->freeze;

    l->freeze = NULL;
    kick_raise(f->kick);
    thread_join(f->thread);
    bool late = f->late;
    free_freeze(f);
    return late;
}

static int thaw(struct libvirt_source *l, struct error **errp)
{
    if (!l->freeze) {
        return 0;
    }
    bool late = stop_guard(l);
    int r = libvirt_call(l->link, thaw_fn, NULL, NULL, 0, NULL,
                         late ? NULL : errp);
    return late ? error_set(errp, ETIMEDOUT,
                            "the guest's file systems were thawed after %d s, "
                            "before the backup had begun",
                            FREEZE_MS / 1000)
                : r;
}

int libvirt_freeze(struct source *s, bool freeze, struct error **errp)
{
    struct libvirt_source *l = s->opaque;

    if (!freeze) {
        return thaw(l, errp);
    }
    if (l->freeze) {
        return 0;
    }
    int r = start_guard(l, errp);
    if (r < 0) {
        return r;
    }
    libvirt_link_limit(l->link, FREEZE_MS);
    r = libvirt_call(l->link, freeze_fn, NULL, NULL, 0, NULL, errp);
    libvirt_link_limit(l->link, l->limit_ms);
    if (r < 0) { /* some may stand still */
        libvirt_link_renew(l->link);
        (void)thaw(l, NULL);
        return r;
    }
    return 0;
}
