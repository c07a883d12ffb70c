/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS credentials: making them from options, and the set in a graph. */
#include "core/tls-creds.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph-priv.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

struct entry {
    struct tls_creds c;     /* its strings are in opts */
    struct opts *opts;      /* set at creation */
    struct list in_set;     /* guarded by the lock of the set */
    _Atomic unsigned users; /* the set is one */
};

void tls_creds_set_init(struct tls_creds_set *s)
{
    mutex_init(&s->lock, LOCK_TLS_CREDS, NULL);
    list_init(&s->list);
}

void tls_creds_put(const struct tls_creds *c)
{
    void *ours = (void *)(uintptr_t)c; /* only others must not change it */
    struct entry *e = c ? list_entry(ours, struct entry, c) : NULL;

    if (e && atomic_fetch_sub(&e->users, 1) == 1) {
        opts_free(e->opts);
        free(e);
    }
}

void tls_creds_set_destroy(struct tls_creds_set *s)
{
    list_for_each_safe (at, &s->list) {
        list_remove(at);
        tls_creds_put(&list_entry(at, struct entry, in_set)->c);
    }
    mutex_destroy(&s->lock);
}

/* --- Making. --- */

static int read_own(struct opts *o, struct tls_creds *c, struct error **errp)
{
    int r;

    if (c->kind == TLS_PSK) {
        r = opts_str(o, "username", &c->username, errp);
        if (r < 0) {
            return r;
        }
        if (c->server && c->username) {
            return error_set(errp, EINVAL,
                             "username should not be set when endpoint=server");
        }
        c->username = c->username ? c->username : "qemu";
    } else if (c->kind == TLS_X509) {
        if ((r = opts_bool(o, "sanity-check", &c->sanity_check, errp)) < 0 ||
            (r = opts_str(o, "passwordid", &c->passwordid, errp)) < 0) {
            return r;
        }
    }
    return 0;
}

static int read_creds(struct opts *o, struct tls_creds *c, struct error **errp)
{
    static const char *const types[] = {
        [TLS_ANON] = "tls-creds-anon",
        [TLS_PSK] = "tls-creds-psk",
        [TLS_X509] = "tls-creds-x509",
        NULL,
    };
    static const char *const endpoints[] = {"client", "server", NULL};
    unsigned kind = ARRAY_SIZE(types);
    unsigned endpoint = 0;
    int r;

    c->verify_peer = c->sanity_check = true;
    if ((r = opts_enum(o, "qom-type", types, &kind, errp)) < 0 ||
        (r = opts_enum(o, "endpoint", endpoints, &endpoint, errp)) < 0 ||
        (r = opts_str(o, "id", &c->id, errp)) < 0 ||
        (r = opts_str(o, "dir", &c->dir, errp)) < 0 ||
        (r = opts_str(o, "priority", &c->priority, errp)) < 0 ||
        (r = opts_bool(o, "verify-peer", &c->verify_peer, errp)) < 0) {
        return r;
    }
    if (!c->id || kind == ARRAY_SIZE(types)) {
        return error_set(errp, EINVAL, "Parameter '%s' is missing",
                         c->id ? "qom-type" : "id");
    }
    c->kind = (enum tls_kind)kind;
    c->server = endpoint == 1;
    if (!c->dir && c->kind != TLS_ANON) {
        return error_set(errp, EINVAL, "Missing 'dir' property value");
    }
    r = read_own(o, c, errp);
    return r < 0 ? r : opts_end(o, types[kind], errp);
}

static struct entry *find_creds(struct tls_creds_set *s, const char *id)
    REQUIRES(s->lock)
{
    list_for_each (at, &s->list) {
        struct entry *e = list_entry(at, struct entry, in_set);

        if (strcmp(e->c.id, id) == 0) {
            return e;
        }
    }
    return NULL;
}

static int add_creds(struct tls_creds_set *s, struct entry *e,
                     struct error **errp)
{
    int r = 0;

    mutex_lock(&s->lock);
    if (find_creds(s, e->c.id)) {
        r = error_set(errp, EEXIST,
                      "attempt to add duplicate property '%s' to object "
                      "(type 'container')",
                      e->c.id);
    } else {
        list_append(&s->list, &e->in_set);
    }
    mutex_unlock(&s->lock);
    return r;
}

int tls_creds_create(struct graph *g, const json_t *properties,
                     struct error **errp)
{
    if (!json_is_object(properties)) {
        return error_set(errp, EINVAL, "options must be a JSON object");
    }
    struct entry *e = calloc(1, sizeof(*e));
    if (!e || !(e->opts = opts_new(properties))) {
        free(e);
        return error_nomem(errp);
    }
    list_init(&e->in_set);
    atomic_init(&e->users, 1);
    int r = read_creds(e->opts, &e->c, errp);
    if (r == 0) {
        r = add_creds(&g->tls_creds, e, errp);
    }
    if (r < 0) {
        tls_creds_put(&e->c);
    }
    return r;
}

/* --- Finding. --- */

int tls_creds_delete(struct graph *g, const char *id, struct error **errp)
{
    struct tls_creds_set *s = &g->tls_creds;

    mutex_lock(&s->lock);
    struct entry *e = find_creds(s, id);
    if (e) {
        list_remove(&e->in_set);
    }
    mutex_unlock(&s->lock);
    if (!e) {
        return error_set(errp, ENOENT, "object '%s' not found", id);
    }
    tls_creds_put(&e->c);
    return 0;
}

int tls_creds_get(struct graph *g, const char *id, bool server,
                  const struct tls_creds **credsp, struct error **errp)
{
    struct tls_creds_set *s = &g->tls_creds;

    mutex_lock(&s->lock);
    struct entry *e = find_creds(s, id);
    bool fits = e && e->c.server == server;
    if (fits) {
        atomic_fetch_add(&e->users, 1);
    }
    mutex_unlock(&s->lock);
    if (!e) {
        return error_set(errp, ENOENT, "No TLS credentials with id '%s'", id);
    }
    if (!fits) {
        return error_set(errp, EINVAL,
                         "Expected TLS credentials for a %s endpoint",
                         server ? "server" : "client");
    }
    *credsp = &e->c;
    return 0;
}
