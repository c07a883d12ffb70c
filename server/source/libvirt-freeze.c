/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guard (guard.h) of a domain of libvirt, in a process of its own, with a
 * connection of its own.
 *
 * The connection is there before file systems stand still.  A thaw has a new
 * one where that does not answer: libvirt has one agent for a domain, and
 * carries out a thaw after the freeze that came before.
 */
#include <errno.h>
#include <libvirt/virterror.h>
#include <stdlib.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/thread.h"
#include "source/agent.h"
#include "source/guard.h"
#include "source/libvirt-priv.h"
#include "source/source.h"

#define LIMIT_S 60

struct domain {
    struct guard guard;
    struct libvirt_link *link;
    unsigned limit_ms;
};

static int look_fn(virDomainPtr d, struct libvirt_args *args)
{
    (void)args;
    return virDomainIsActive(d);
}

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

/* *code: libvirt's of a failure. */
static int call(struct domain *d, libvirt_fn *fn, unsigned limit_ms, int *code)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct libvirt_answer answer;

    libvirt_link_limit(d->link, limit_ms);
    int r = libvirt_call_once(d->link, fn, NULL, NULL, 0, &answer, &err);
    *code = answer.code;
    free(answer.text);
    return r < 0 ? guard_fail(&d->guard, -r, "%s", error_message(err)) : r;
}

/* Libvirt has not even asked the guest's agent. */
static bool was_not_asked(int code)
{
    return code == VIR_ERR_AGENT_UNRESPONSIVE ||
           code == VIR_ERR_ARGUMENT_UNSUPPORTED ||
           code == VIR_ERR_OPERATION_INVALID || code == VIR_ERR_NO_SUPPORT ||
           code == VIR_ERR_NO_DOMAIN;
}

static int64_t freeze(struct guard *g)
{
    struct domain *d = g->opaque;
    int code;
    int r = call(d, look_fn, d->limit_ms, &code);

    if (r < 0) {
        libvirt_link_renew(d->link);
        return r;
    }
    guard_begin_still(g);
    r = call(d, freeze_fn, AGENT_STILL_MS, &code);
    if (r < 0 && was_not_asked(code)) { /* one try, in case it was */
        (void)libvirt_call_once(d->link, thaw_fn, NULL, NULL, 0, NULL, NULL);
        g->still_until = 0;
    }
    return r;
}

/* A lost connection, and an agent that another call waits for, may come
 * back. */
static int thaw(struct guard *g, uint64_t end)
{
    struct domain *d = g->opaque;
    int code;

    libvirt_link_renew(d->link);
    int r = call(d, thaw_fn, (unsigned)guard_ms_until(end), &code);
    bool passing = r == -EBUSY || r == -ETIMEDOUT || r == -ECONNRESET ||
                   r == -ENOMEM || code == VIR_ERR_AGENT_UNRESPONSIVE;
    return r >= 0 ? 0 : passing ? r : -EREMOTEIO;
}

void libvirt_guard(const char *what, const struct source_options *o, int fd)
{
    struct domain d = {
        .guard = {.name = what, .parent = fd, .freeze = freeze, .thaw = thaw},
        .limit_ms = 1000 * (o->timeout_s > 0 ? o->timeout_s : LIMIT_S)};

    d.guard.opaque = &d;
    virSetErrorFunc(NULL, libvirt_stay_quiet);
    if (libvirt_link_new(o->connect, what, d.limit_ms, &d.link, NULL) == 0) {
        guard_serve(&d.guard);
        libvirt_link_free(d.link);
    }
}
