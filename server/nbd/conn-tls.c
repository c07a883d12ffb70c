/* SPDX-License-Identifier: BSD-3-Clause */
/* STARTTLS, and which exports a client may open. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log/log.h"
#include "nbd/conn.h"
#include "nbd/server.h"
#include "nbdelta/error.h"
#include "net/tls.h"

/* What holds for this client: a client that cannot ask for TLS gets none. */
static enum tls_mode tls_mode_of(const struct conn *c)
{
    return c->fixed ? tls_policy_mode(c->policy) : TLS_OFF;
}

/* Send all that has been replied in the clear, before TLS begins. */
static int send_pending(struct conn *c)
{
    conn_flush(c);
    while (!c->alone) {
        int ms = conn_time_left(c);
        if (ms == 0 || atomic_load(&c->stopping)) {
            return -ETIMEDOUT;
        }
        (void)conn_wait(c, false, ms);
        conn_flush(c);
    }
    return c->hung_up ? -ECONNRESET : 0;
}

static int finish_tls_handshake(struct conn *c, struct error **errp)
{
    int r;

    while ((r = tls_handshake(c->io.tls, errp)) == -EAGAIN) {
        int ms = conn_time_left(c);
        if (ms == 0 || atomic_load(&c->stopping)) {
            return -ETIMEDOUT;
        }
        mutex_lock(&c->lock);
        c->stalled = tls_unsent(c->io.tls);
        mutex_unlock(&c->lock);
        (void)conn_wait(c, true, ms);
    }
    return r;
}

/* TLS is open: may this client stay? */
static int check_tls_identity(const struct conn *c)
{
    static struct log_limit limit = {.every_s = 1};
    const char *who = tls_identity(c->io.tls);

    if (!c->policy->authz || server_allows(c->server, c->policy->authz, who)) {
        return 0;
    }
    tls_end(c->io.tls, true);
    log_seldom(&limit, TELL_WARNING, "a TLS client is not authorized: %s",
               who ? who : "nobody");
    return -EACCES;
}

/* Forget all that was negotiated in the clear: it may be an attacker's doing.
 */
static void forget_negotiated(struct conn *c)
{
    c->structured = false;
    c->extended = false;
    conn_forget_contexts(c);
}

int conn_option_starttls(struct conn *c, const struct option *o)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (c->io.tls) {
        return handshake_error(c, o->type, NBD_REP_ERR_INVALID,
                               "TLS already enabled");
    }
    if (tls_mode_of(c) == TLS_OFF) {
        return handshake_error(c, o->type, NBD_REP_ERR_POLICY,
                               "TLS not configured");
    }
    if (o->len > 0) {
        return handshake_error(c, o->type, NBD_REP_ERR_INVALID,
                               "this option has no data");
    }
    /* A client waits for our reply: bytes that came before it are not its own.
     */
    if (c->input_at < c->input_end) {
        return -EPROTO;
    }
    forget_negotiated(c);
    int r = handshake_reply(c, o->type, NBD_REP_ACK, NULL, 0);
    if (r < 0 || (r = send_pending(c)) < 0) {
        return r;
    }
    c->io.tls = tls_new(c->policy->keys, c->io.fd, NULL);
    if (!c->io.tls) {
        return -ENOMEM;
    }
    r = finish_tls_handshake(c, &err);
    if (err) {
        static struct log_limit limit = {.every_s = 1};

        log_seldom(&limit, TELL_WARNING, "a client is turned away: %s",
                   error_message(err));
    }
    return r < 0 ? r : check_tls_identity(c);
}

bool conn_needs_tls(const struct conn *c, uint32_t option)
{
    return tls_mode_of(c) == TLS_REQUIRE && !c->io.tls &&
           option != NBD_OPT_STARTTLS && option != NBD_OPT_ABORT;
}

/* --- Exports. --- */

static bool is_allowed(const struct conn *c, const char *authz)
{
    return !authz || (c->io.tls &&
                      server_allows(c->server, authz, tls_identity(c->io.tls)));
}

/* Has the client done what @p asks for?  A policy that came with an export,
 * perhaps from another server, asks no less here than there. */
static bool meets_policy(const struct conn *c, const struct tls_policy *p)
{
    return tls_policy_mode(p) != TLS_REQUIRE ||
           (c->io.tls && is_allowed(c, p->authz));
}

static const struct export_rules *rules_of(const struct export *e)
{
    return e->of ? &e->of->rules : &e->rules;
}

bool conn_may_open(const struct conn *c, const struct export *e)
{
    const struct export_rules *rs = rules_of(e);
    bool may = false;

    for (unsigned i = 0; i < rs->count && !may; i++) {
        may = is_allowed(c, rs->at[i].authz) &&
              meets_policy(c, rs->at[i].policy);
    }
    return may;
}

bool conn_may_write(const struct conn *c, const struct export *e)
{
    const struct export_rules *rs = rules_of(e);
    bool may = false;

    for (unsigned i = 0; i < rs->count && !may; i++) {
        may = is_allowed(c, rs->at[i].authz) &&
              meets_policy(c, rs->at[i].policy) &&
              is_allowed(c, rs->at[i].authz_writable);
    }
    return e->writable && may;
}

static bool may_open(const struct export *e, void *opaque)
{
    return conn_may_open(opaque, e);
}

/* As exports_find().  A view is made anew for each option.  It takes the serial
 * of the last view of that name, because what the client has negotiated for
 * that one holds for it, too. */
static struct export *find_named(struct conn *c, const char *name)
{
    struct export *e = exports_find(c->exports, server_serial(c->server), name,
                                    may_open, c);

    if (!e || !e->of) {
        return e;
    }
    if (c->view.of == e->of->serial && strcmp(c->view.name, name) == 0) {
        e->serial = c->view.serial;
    } else {
        free(c->view.name);
        c->view.name = strdup(name);
        c->view.of = c->view.name ? e->of->serial : 0;
        c->view.serial = e->serial;
    }
    return e;
}

struct export *conn_find_export(struct conn *c, const char *name,
                                bool *needs_tls)
{
    struct export *e = find_named(c, name);
    bool denied = e && !conn_may_open(c, e);

    if (needs_tls) {
        *needs_tls = denied && !c->io.tls && tls_mode_of(c) != TLS_OFF;
    }
    if (denied) {
        export_unref(c->exports, e);
        e = NULL;
    }
    return e;
}
