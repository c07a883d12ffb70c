/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The rules of a backup's exports: a client that may open the disk may open its
 * backup, and nobody else may.
 *
 * When the backup begins, its exports take over the rules of all exports that
 * the disk has at that time.  With each rule comes what the server of its
 * export asks of clients.  A disk without exports has no rules: there the
 * backup's server decides alone.
 *
 * A backup that was begun from a monitor with role=backup may be read by the
 * clients of that monitor, too.  They need not be let in to the disk itself.
 */
#include <errno.h>
#include <string.h>

#include "backup/session-priv.h"
#include "daemon.h"
#include "nbd/export.h"
#include "nbd/server.h"
#include "nbdelta/blk.h"
#include "nbdelta/error.h"
#include "net/tls-policy.h"
#include "net/tls.h"

struct gather {
    struct daemon *daemon;
    struct pull_disk *disk;
};

/* The rules of @e, and its server's. */
static int take_rules(struct export *e, void *opaque)
{
    const struct gather *g = opaque;
    struct export_rules *to = &g->disk->rules;
    int r = 0;

    if (e->of || e->of_backup || !blk_shows(e->blk, g->disk->node)) {
        return 0;
    }
    struct tls_policy *p = servers_policy(g->daemon->servers, e);
    for (unsigned i = 0; r == 0 && i < e->rules.count; i++) {
        r = export_rules_add(to, p, e->rules.at[i].authz,
                             e->rules.at[i].authz_writable);
    }
    tls_policy_unref(p);
    return r;
}

int pull_gather_rules(struct pulls *p, struct pull *s, const char *authz,
                      struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        struct gather g = {p->daemon, &s->disks[i]};

        r = exports_each(p->daemon->exports, take_rules, &g);
        if (r == 0 && authz) {
            r = export_rules_add(&s->disks[i].rules, NULL, authz, NULL);
        }
    }
    return r < 0 ? error_nomem(errp) : 0;
}

/* *keys: the keys of all servers that the session's disks are on.  *mixed: one
 * of these servers does not require TLS.  -EINVAL: they have different keys. */
static int common_keys(const struct pull *s, struct tls_keys **keys,
                       bool *mixed, struct error **errp)
{
    for (unsigned i = 0; i < s->count; i++) {
        const struct export_rules *rs = &s->disks[i].rules;

        for (unsigned k = 0; k < rs->count; k++) {
            const struct tls_policy *p = rs->at[k].policy;

            *mixed |= tls_policy_mode(p) != TLS_REQUIRE;
            if (p && *keys && *keys != p->keys) {
                return error_set(errp, EINVAL,
                                 "The disks are on servers with different TLS "
                                 "credentials: name one of them as 'server'");
            }
            *keys = p ? p->keys : *keys;
        }
    }
    return 0;
}

int pull_own_policy(const struct pull *s, struct tls_policy **pp,
                    struct error **errp)
{
    struct tls_keys *keys = NULL;
    bool mixed = false;
    int r = common_keys(s, &keys, &mixed, errp);

    *pp = NULL;
    if (r < 0 || !keys) {
        return r;
    }
    /* Each export has its rules beside. */
    *pp = tls_policy_new(mixed ? TLS_ON : TLS_REQUIRE, keys, NULL);
    return *pp ? 0 : error_nomem(errp);
}

/* Can any client of @s fulfil the rule @r? */
static bool can_meet(const struct export_rule *r, const struct server *s,
                     bool tls)
{
    bool identity = r->authz || (tls_policy_mode(r->policy) == TLS_REQUIRE &&
                                 r->policy->authz);

    return (tls || tls_policy_mode(r->policy) != TLS_REQUIRE) &&
           (!identity || server_can_identify(s));
}

int pull_check_rules(const struct pull *s, struct error **errp)
{
    struct tls_policy *p = server_policy(s->server);
    bool tls = tls_policy_mode(p) != TLS_OFF;

    tls_policy_unref(p);
    for (unsigned i = 0; i < s->count; i++) {
        const struct export_rules *rs = &s->disks[i].rules;
        bool any = rs->count == 0;

        for (unsigned k = 0; k < rs->count; k++) {
            any |= can_meet(&rs->at[k], s->server, tls);
        }
        if (!any) {
            return error_set(errp, EACCES,
                             "'%s' is exported for certain clients only, by "
                             "TLS; nobody could open its backup on a server "
                             "that cannot ask them for as much",
                             s->disks[i].name);
        }
    }
    return 0;
}
