/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Calls of libvirt that end in time: see libvirt-call.h.
 *
 *   caller                          thread
 *   task, with a copy of all -----> connects, if need be
 *   waits for the kick              calls libvirt
 *   takes the answer <------------- raises the kick
 *
 * Task and peer (a connection) have a count of their users: the last one frees
 * them.  So a thread that comes back late touches nothing of the caller's.
 */
#include "source/libvirt-call.h"

#include <libvirt/virterror.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/kick.h"
#include "nbdelta/text.h"
#include "nbdelta/thread.h"

#define CLOSE_MS 2000

/* A connection; only the threads of calls look inside, one at a time. */
struct peer {
    atomic_uint users;
    virConnectPtr conn;
    virDomainPtr domain;
};

struct libvirt_link {
    char *uri; /* or NULL */
    char *domain;
    int limit_ms;
    struct peer *peer; /* NULL: not connected yet */
    bool connected;    /* it was, once */
    bool silent;       /* a call was not answered */
};

struct task {
    atomic_uint users; /* caller and thread */
    int kick;
    char *uri;
    char *name;
    char *a;
    char *b;
    struct peer *peer;
    libvirt_fn *fn; /* NULL: only to give up the peer */
    struct libvirt_args args;

    int r;
    int code;
    char *message;
    bool lost; /* the connection is */
};

/* --- Peers and tasks --- */

static void put_peer(struct peer *p)
{
    if (!p || atomic_fetch_sub(&p->users, 1) > 1) {
        return;
    }
    if (p->domain) {
        (void)virDomainFree(p->domain);
    }
    if (p->conn) {
        (void)virConnectClose(p->conn);
    }
    free(p);
}

static void put_task(struct task *t)
{
    if (!t || atomic_fetch_sub(&t->users, 1) > 1) {
        return;
    }
    put_peer(t->peer);
    if (t->kick >= 0) {
        (void)close(t->kick);
    }
    free(t->uri);
    free(t->name);
    free(t->a);
    free(t->b);
    free(t->args.text);
    free(t->message);
    free(t);
}

static bool copy_text(char **to, const char *from)
{
    *to = from ? strdup(from) : NULL;
    return !from || *to;
}

static struct task *new_task(struct libvirt_link *l, libvirt_fn *fn,
                             const char *a, const char *b, unsigned flags)
{
    struct task *t = calloc(1, sizeof(*t));

    if (!t) {
        return NULL;
    }
    t->users = 1;
    t->fn = fn;
    t->kick = kick_new();
    if (!l->peer) {
        l->peer = calloc(1, sizeof(*l->peer));
        if (l->peer) {
            l->peer->users = 1;
        }
    }
    if (t->kick < 0 || !l->peer || !copy_text(&t->uri, l->uri) ||
        !copy_text(&t->name, l->domain) || !copy_text(&t->a, a) ||
        !copy_text(&t->b, b)) {
        put_task(t);
        return NULL;
    }
    t->peer = l->peer;
    atomic_fetch_add(&l->peer->users, 1);
    t->args = (struct libvirt_args){.a = t->a, .b = t->b, .flags = flags};
    return t;
}

/* --- The thread --- */

/* A domain may have a name that looks like a UUID. */
static virDomainPtr find_domain(virConnectPtr conn, const char *name)
{
    virDomainPtr d = virDomainLookupByName(conn, name);

    if (!d && virGetLastErrorCode() == VIR_ERR_NO_DOMAIN &&
        strlen(name) == VIR_UUID_STRING_BUFLEN - 1) {
        d = virDomainLookupByUUIDString(conn, name);
    }
    return d;
}

static int connect_peer(struct peer *p, const struct task *t)
{
    if (!p->conn) {
        p->conn = virConnectOpen(t->uri);
    }
    if (p->conn && !p->domain) {
        p->domain = find_domain(p->conn, t->name);
    }
    return p->domain ? 0 : -1;
}

static void note_failure(struct task *t)
{
    const virError *why = t->args.why ? t->args.why : virGetLastError();
    const char *message = why && why->message ? why->message : "unknown error";

    t->code = why ? why->code : VIR_ERR_INTERNAL_ERROR;
    t->message = text_printable(message);
    virFreeError(t->args.why);
    t->lost = !t->peer->conn || virConnectIsAlive(t->peer->conn) != 1;
}

static void *run_task(void *opaque)
{
    struct task *t = opaque;

    if (t->fn) {
        t->r = connect_peer(t->peer, t);
        t->r = t->r < 0 ? t->r : t->fn(t->peer->domain, &t->args);
        if (t->r < 0) {
            note_failure(t);
        }
    }
    put_peer(t->peer);
    t->peer = NULL;
    kick_raise(t->kick);
    put_task(t);
    return NULL;
}

/* --- The caller --- */

static int errno_of(int code)
{
    switch (code) {
    case VIR_ERR_NO_DOMAIN:
    case VIR_ERR_NO_DOMAIN_CHECKPOINT:
    case VIR_ERR_NO_DOMAIN_BACKUP:
        return ENOENT;
    case VIR_ERR_CHECKPOINT_INCONSISTENT:
        return ESTALE;
    case VIR_ERR_OPERATION_TIMEOUT:
    case VIR_ERR_BLOCK_COPY_ACTIVE:
        return EBUSY;
    case VIR_ERR_AUTH_FAILED:
    case VIR_ERR_AUTH_CANCELLED:
    case VIR_ERR_AUTH_UNAVAILABLE:
    case VIR_ERR_ACCESS_DENIED:
    case VIR_ERR_OPERATION_DENIED:
        return EACCES;
    case VIR_ERR_NO_SUPPORT:
    case VIR_ERR_OPERATION_UNSUPPORTED:
    case VIR_ERR_CONFIG_UNSUPPORTED:
    case VIR_ERR_ARGUMENT_UNSUPPORTED:
        return ENOTSUP;
    case VIR_ERR_NO_MEMORY:
        return ENOMEM;
    default:
        return EIO;
    }
}

static void forget_peer(struct libvirt_link *l)
{
    put_peer(l->peer);
    l->peer = NULL;
}

/* 0: the task is done. */
static int wait_for_task(struct libvirt_link *l, const struct task *t,
                         struct error **errp)
{
    struct pollfd p = {.fd = t->kick, .events = POLLIN};
    uint64_t end = now_ns() + (uint64_t)l->limit_ms * 1000000;
    int r;

    do {
        uint64_t now = now_ns();
        r = poll(&p, 1, now < end ? (int)((end - now) / 1000000) + 1 : 0);
    } while (r < 0 && errno == EINTR);
    if (r > 0) {
        kick_clear(t->kick); /* what the thread wrote before is seen */
        return 0;
    }
    l->silent = true;
    forget_peer(l);
    return error_set(errp, ETIMEDOUT,
                     "libvirt, or the domain '%s', does not answer within %d s",
                     l->domain, l->limit_ms / 1000);
}

static int take_answer(struct libvirt_link *l, struct task *t,
                       struct libvirt_answer *answer, struct error **errp)
{
    if (answer) {
        *answer = (struct libvirt_answer){
            .text = t->args.text, .number = t->args.number, .code = t->code};
        t->args.text = NULL;
    }
    if (t->lost) {
        forget_peer(l);
    }
    if (t->r >= 0) {
        l->connected = true;
        return t->r;
    }
    int e = errno_of(t->code);
    return error_set(errp, e == EIO && t->lost ? ECONNRESET : e,
                     "'%s': libvirt says: %s", l->domain,
                     t->message ? t->message : "?");
}

/* The thread's share of @t is its own. */
static int start_task(struct task *t, struct error **errp)
{
    pthread_t thread;

    atomic_fetch_add(&t->users, 1);
    int r = thread_start(&thread, "libvirt", run_task, t);
    if (r < 0) {
        put_task(t);
        return error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
    }
    (void)pthread_detach(thread);
    return 0;
}

int libvirt_call_once(struct libvirt_link *l, libvirt_fn *fn, const char *a,
                      const char *b, unsigned flags,
                      struct libvirt_answer *answer, struct error **errp)
{
    if (answer) {
        *answer = (struct libvirt_answer){0};
    }
    if (l->silent) {
        return error_set(errp, ETIMEDOUT,
                         "'%s': libvirt has not answered before", l->domain);
    }
    struct task *t = new_task(l, fn, a, b, flags);
    if (!t) {
        return error_nomem(errp);
    }
    int r = start_task(t, errp);
    r = r < 0 ? r : wait_for_task(l, t, errp);
    r = r < 0 ? r : take_answer(l, t, answer, errp);
    put_task(t);
    return r;
}

/* The daemon may be starting anew. */
int libvirt_call(struct libvirt_link *l, libvirt_fn *fn, const char *a,
                 const char *b, unsigned flags, struct libvirt_answer *answer,
                 struct error **errp)
{
    const struct timespec nap = {.tv_nsec = 200000000};
    uint64_t end = now_ns() + (uint64_t)l->limit_ms * 1000000;

    for (;;) {
        CLEANUP_ERROR struct error *err = NULL;
        int r = libvirt_call_once(l, fn, a, b, flags, answer, &err);

        if (r >= 0) {
            return r;
        }
        if (r != -ECONNRESET || !l->connected || now_ns() >= end) {
            return error_set(errp, -r, "%s", error_message(err));
        }
        (void)nanosleep(&nap, NULL);
    }
}

/* --- Links --- */

int libvirt_link_new(const char *uri, const char *domain, unsigned limit_ms,
                     struct libvirt_link **lp, struct error **errp)
{
    struct libvirt_link *l = calloc(1, sizeof(*l));

    if (!l || !copy_text(&l->uri, uri) || !copy_text(&l->domain, domain)) {
        libvirt_link_free(l);
        return error_nomem(errp);
    }
    l->limit_ms = (int)limit_ms;
    *lp = l;
    return 0;
}

/* The daemon is told, too, and may not answer: so a thread closes it. */
static void close_peer(struct libvirt_link *l)
{
    struct task *t = l->peer ? new_task(l, NULL, NULL, NULL, 0) : NULL;

    if (t && start_task(t, NULL) == 0) {
        forget_peer(l);
        l->limit_ms = CLOSE_MS;
        (void)wait_for_task(l, t, NULL);
    }
    put_task(t);
}

void libvirt_link_free(struct libvirt_link *l)
{
    if (l) {
        close_peer(l);
        free(l->uri);
        free(l->domain);
        free(l);
    }
}

void libvirt_link_renew(struct libvirt_link *l)
{
    l->silent = false;
}

void libvirt_link_limit(struct libvirt_link *l, unsigned limit_ms)
{
    l->limit_ms = (int)limit_ms;
}
