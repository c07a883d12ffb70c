/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sessions of backups that clients pull: see backup/session.h.
 *
 *   begin:  check -> one transaction (points in time, new bitmaps) -> exports
 *   end:    new bitmaps become persistent -> exports go -> points in time go
 *           -> dropped checkpoints go
 *
 * The order at the end has a reason: a crash before the first step leaves
 * nothing of the new checkpoint; a later crash leaves the new checkpoint and
 * perhaps a few old ones too many.
 *
 * The loss of a point in time is told from within a request, where no lock may
 * be taken.  So point_lost() wakes the thread of watch.c, which sends the
 * event.
 */
#include "backup/session.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "backup/checkpoint.h"
#include "backup/session-priv.h"
#include "backup/stored.h"
#include "daemon.h"
#include "log/log.h"
#include "nbd/export.h"
#include "nbd/server.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/point.h"
#include "nbdelta/storage-snapshot.h"
#include "net/tls-policy.h"
#include "qmp/monitor.h"

/* --- Life of a session's memory --- */

static void session_free(struct pulls *p, struct pull *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];
        free(d->name);
        free(d->since);
        free(d->context);
        free(d->export_id);
        free(d->export);
        free(d->uri);
        free(d->snapshot);
        export_rules_free(&d->rules);
    }
    list_remove(&s->link);
    cond_broadcast(&p->back);
    look_free(&s->look);
    free(s->id);
    free(s->checkpoint);
    free(s->server_id);
    free(s->owner);
    free(s);
}

static int copy_name(char **to, const char *text)
{
    *to = text ? strdup(text) : NULL;
    return text && !*to ? -ENOMEM : 0;
}

static int match_disk(struct export *e, void *opaque)
{
    struct pull_disk *d = opaque;

    if (!e->is_default || blk_disk(e->blk) != d->node) {
        return 0;
    }
    return copy_name(&d->name, e->id) < 0 ? -ENOMEM : 1;
}

/* An image of the command line has its name, whichever its node is now. */
static int name_disk(const struct pulls *p, struct pull_disk *d)
{
    int r = exports_each(p->daemon->exports, match_disk, d);

    return r == 0 ? copy_name(&d->name, node_name(d->node)) : r < 0 ? r : 0;
}

/* Ids begin anew with each daemon; this says which point in time it is. */
static int choose_instant(struct pull *s)
{
    uint64_t bits[2];

    if (getrandom(bits, sizeof(bits), 0) != (ssize_t)sizeof(bits)) {
        return -EIO;
    }
    (void)snprintf(s->instant, sizeof(s->instant), "%016" PRIx64 "%016" PRIx64,
                   bits[0], bits[1]);
    return 0;
}

static struct pull *session_new(struct pulls *p, const struct pull_options *o)
{
    struct pull *s = calloc(1, sizeof(*s) + o->count * sizeof(s->disks[0]));

    if (!s) {
        return NULL;
    }
    list_init(&s->link);
    s->look = *o->look;
    *o->look = (struct look){0};
    int r = choose_instant(s);
    s->expire_ns = o->expire * NS;
    s->renewed_at = now_ns();
    s->discard = o->discard;
    s->count = o->count;
    if (asprintf(&s->id, "b%" PRIu64, ++p->serial) < 0) {
        s->id = NULL;
        r = -ENOMEM;
    }
    r = r < 0 ? r : copy_name(&s->checkpoint, o->checkpoint);
    r = r < 0 ? r : copy_name(&s->server_id, o->server);
    r = r < 0 ? r : copy_name(&s->owner, o->owner);
    for (unsigned i = 0; r == 0 && i < o->count; i++) {
        struct node *n = point_source(p->daemon->graph, o->disks[i].node);
        s->disks[i].node = n;
        s->disks[i].stored = storage_has_snapshots(n);
        r = name_disk(p, &s->disks[i]);
    }
    if (r < 0) {
        session_free(p, s);
        return NULL;
    }
    return s;
}

/* --- Without the monitor lock --- */

/* What has to be asked of storage for @s takes its time. */
static void go_away(struct pulls *p, struct pull *s)
{
    s->away = true;
    look_begin(p->daemon);
}

/* And others may change it again. */
static void is_back(struct pulls *p, struct pull *s)
{
    s->away = false;
    cond_broadcast(&p->back);
    pulls_wake(p);
}

static bool has_stored(const struct pull *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        if (s->disks[i].stored) {
            return true;
        }
    }
    return false;
}

/* --- Checks --- */

/* Does the bitmap belong to a session that has not ended and may forget it? */
static bool is_pending(const struct pulls *p, const struct node *n,
                       const char *checkpoint)
{
    list_for_each (at, &p->sessions) {
        const struct pull *s = pull_of(at);
        if (!s->checkpoint || strcmp(s->checkpoint, checkpoint) != 0) {
            continue;
        }
        for (unsigned i = 0; i < s->count; i++) {
            const struct pull_disk *d = &s->disks[i];
            if ((d->fresh || d->taken) && d->node == n) {
                return true;
            }
        }
    }
    return false;
}

/* Decide whether it can be told what has changed since @since. */
static int choose_mode(const struct pulls *p, const struct pull *s,
                       struct pull_disk *d, const char *since,
                       struct error **errp)
{
    if (since) {
        d->reason = is_pending(p, d->node, since)
                        ? "checkpoint-pending"
                        : checkpoint_missing(p->daemon, d->node, since,
                                             look_of(&s->look, d->node),
                                             &d->since_bitmap);
    }
    return since && !d->reason && copy_name(&d->since, since) < 0
               ? error_nomem(errp)
               : 0;
}

/* How many sessions have the disk?  Sessions that are ending count, too. */
static unsigned sessions_of(const struct pulls *p, const struct node *n)
{
    unsigned count = 0;

    list_for_each (at, &p->sessions) {
        const struct pull *s = pull_of(at);
        for (unsigned i = 0; i < s->count; i++) {
            count += s->disks[i].node == n;
        }
    }
    return count;
}

static int check_disk(const struct pulls *p, const struct pull *s, unsigned i,
                      struct error **errp)
{
    const struct pull_disk *d = &s->disks[i];

    for (unsigned k = 0; k < i; k++) {
        if (s->disks[k].node == d->node) {
            return error_set(errp, EINVAL, "Node '%s' is given twice", d->name);
        }
    }
    if (sessions_of(p, d->node) >= PULLS_PER_DISK) {
        return error_set(errp, EBUSY,
                         "'%s' has %d backups that were not ended: end one of "
                         "them first (query-backups)",
                         d->name, PULLS_PER_DISK);
    }
    return s->checkpoint && node_keeps_bitmaps(d->node)
               ? bitmap_check_persistent(
                     (struct bitmap_ref){d->node, s->checkpoint}, errp)
               : 0;
}

/* The error when the disk cannot be exported incrementally. */
static int not_incremental(const struct pull *s, const struct pull_disk *d,
                           const char *since, struct error **errp)
{
    CLEANUP_FREE char *names =
        since ? checkpoint_names(d->node, look_of(&s->look, d->node)) : NULL;

    if (!since) {
        return error_set(errp, EINVAL,
                         "'%s' has no 'since' and would be exported as a whole",
                         d->name);
    }
    return error_set(errp, ENOENT,
                     "What has changed on '%s' since '%.200s' cannot be told: "
                     "%s (its checkpoints: %s)",
                     d->name, since, d->reason, names ? names : "unknown");
}

/* An increment was asked for. */
static void tell_mode(const struct pull_disk *d, const char *since)
{
    if (since && d->reason) {
        log_line(TELL_WARNING,
                 "disk '%.200s' is backed up as a whole, not since '%.200s': "
                 "%s",
                 d->name, since, d->reason);
    }
}

static int check_disks(const struct pulls *p, struct pull *s,
                       const struct pull_options *o, struct error **errp)
{
    for (unsigned i = 0; i < s->count; i++) {
        int r = check_disk(p, s, i, errp);

        if (r < 0) {
            return r;
        }
        s->disks[i].whole = o->disks[i].whole;
        r = choose_mode(p, s, &s->disks[i], o->disks[i].since, errp);
        if (r < 0) {
            return r;
        }
        tell_mode(&s->disks[i], o->disks[i].since);
        if (o->incremental && !s->disks[i].since) {
            return not_incremental(s, &s->disks[i], o->disks[i].since, errp);
        }
    }
    return 0;
}

/* --- The instant --- */

static void point_lost(void *opaque)
{
    pulls_wake(opaque);
}

static int add_point(struct pulls *p, struct pull_disk *d,
                     const struct pull_options *o, struct list *actions,
                     struct error **errp)
{
    const struct point_options po = {
        .node = d->node,
        .since = d->since,
        .whole = d->whole,
        .context = d->context,
        .scratch = o->scratch,
        .quota = o->quota,
        .keep_free = o->keep_free,
        .max_delay_ms = o->max_delay_ms,
        .break_guest_write = o->break_guest_write,
        .once = o->once,
        .lost = point_lost,
        .opaque = p,
    };
    struct action *a;
    int r = point_action(p->daemon->graph, &po, &d->point, &a, errp);

    return r < 0 ? r : actions_add(actions, a, errp);
}

static int add_fresh(const struct pull *s, struct pull_disk *d,
                     struct list *actions, struct error **errp)
{
    struct action *a;
    int r = bitmap_add_action((struct bitmap_ref){d->node, s->checkpoint}, 0,
                              false, false, &a, errp);

    if (r == 0) {
        r = actions_add(actions, a, errp);
    }
    d->has_fresh = r == 0;
    return r;
}

static int take_instant(struct pulls *p, struct pull *s,
                        const struct pull_options *o, struct error **errp)
{
    struct list actions;
    int r = 0;

    list_init(&actions);
    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];

        if (d->since && asprintf(&d->context, "backup-%s", d->name) < 0) {
            d->context = NULL;
            r = error_nomem(errp);
        }
        if (r == 0 && !d->stored) {
            r = add_point(p, d, o, &actions, errp);
        }
    }
    for (unsigned i = 0; r == 0 && s->checkpoint && i < s->count; i++) {
        if (!s->disks[i].stored) {
            r = add_fresh(s, &s->disks[i], &actions, errp);
        }
    }
    r = r < 0 ? r : stored_add(p, s, &actions, errp);
    if (r < 0) {
        actions_cancel(&actions);
    } else {
        r = actions_run_timed(p->daemon->graph, &actions, &s->drained_ns, errp);
    }
    if (r < 0) { /* what there was went with its action */
        for (unsigned i = 0; i < s->count; i++) {
            s->disks[i].point = NULL;
            s->disks[i].has_fresh = false;
        }
    }
    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        s->disks[i].taken = s->disks[i].stored;
    }
    return r;
}

/* Nobody else changes or removes the new bitmaps meanwhile. */
static void hold_fresh(struct pulls *p, struct pull *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];
        if (d->has_fresh && !d->fresh) {
            (void)bitmap_hold(p->daemon->graph, d->node, s->checkpoint, false,
                              &d->fresh, NULL);
        }
    }
}

static void release_fresh(struct pulls *p, struct pull *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];
        if (d->fresh) {
            bitmap_release(p->daemon->graph, d->fresh);
            d->fresh = NULL;
        }
    }
}

/* Disk by disk: an error on one does not keep the others. */
static void remove_fresh(struct pulls *p, struct pull *s)
{
    release_fresh(p, s);
    for (unsigned i = 0; i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];
        const struct bitmap_ref ref = {d->node, s->checkpoint};
        struct action *a;
        if (d->has_fresh && bitmap_remove_action(ref, &a, NULL) == 0) {
            (void)action_run(p->daemon->graph, a, NULL);
        }
        d->has_fresh = false;
    }
}

/* A snapshot goes when nobody reads it any more, and its disk is still there.
 */
static void end_points(struct pulls *p, struct pull *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        point_stop(s->disks[i].point); /* NULL is fine */
    }
    if (has_stored(s)) {
        go_away(p, s);
        stored_drop(s);
        look_end(p->daemon);
    }
    for (unsigned i = 0; i < s->count; i++) {
        point_end(s->disks[i].point);
        s->disks[i].point = NULL;
    }
}

/* --- Exports --- */

/* A server that lasts as long as the session. */
static int open_own_server(struct pulls *p, struct pull *s, const json_t *addr,
                           struct error **errp)
{
    struct server_options o = {.id = s->id};
    int r = pull_own_policy(s, &o.policy, errp);

    r = r < 0 ? r : server_open(p->daemon->servers, &o, &s->server, errp);
    tls_policy_unref(o.policy);
    s->own_server = r == 0;
    return r < 0 ? r : server_listen(s->server, addr, errp);
}

/* A server of the session's own, or one that runs already. */
static int choose_server(struct pulls *p, struct pull *s,
                         const struct pull_options *o, struct error **errp)
{
    int r = 0;

    if (o->listen && o->server) {
        return error_set(errp, EINVAL,
                         "'listen' and 'server' exclude each other");
    }
    if (o->listen) {
        r = open_own_server(p, s, o->listen, errp);
    } else {
        s->server = server_find(p->daemon->servers, o->server, errp);
        r = s->server ? 0 : -ENOENT;
    }
    return r < 0 ? r : pull_check_rules(s, errp);
}

static void leave_server(struct pull *s)
{
    if (s->own_server) {
        server_close(s->server);
    }
    server_unref(s->server);
    s->server = NULL;
}

/* The name of the export: @asked, or the disk's name, or NAME@SESSION where
 * that is taken. */
static int choose_name(struct pulls *p, const struct pull *s,
                       struct pull_disk *d, const char *asked)
{
    struct exports *exports = p->daemon->exports;

    if (asked ||
        !exports_has_name(exports, server_serial(s->server), d->name)) {
        return copy_name(&d->export, asked ? asked : d->name);
    }
    if (asprintf(&d->export, "%s@%s", d->name, s->id) < 0) {
        d->export = NULL;
        return -ENOMEM;
    }
    return 0;
}

static int export_point(struct pulls *p, struct pull *s, struct pull_disk *d,
                        const char *asked, struct error **errp)
{
    struct exports *exports = p->daemon->exports;
    struct node *n = point_node(d->point);
    CLEANUP_FREE char *id = NULL;
    struct export *e;

    if (choose_name(p, s, d, asked) < 0 ||
        asprintf(&id, "%s:%s", s->id, d->name) < 0) {
        return error_nomem(errp);
    }
    const struct export_options o = {
        .server = server_serial(s->server),
        .server_id = s->own_server ? s->id : s->server_id,
        .id = id,
        .name = d->export,
        .node = n,
        .writable = s->discard, /* that is all that the node takes */
        .of_backup = true,
        .rules = &d->rules,
    };
    int r = export_new(exports, &o, &e, errp);
    if (r < 0) {
        return r;
    }
    r = d->context ? export_add_bitmap(exports, e, n, d->context, false, errp)
                   : 0;
    if (r < 0) {
        export_drop(exports, e);
        return r;
    }
    export_publish(exports, e);
    d->export_id = id;
    id = NULL;
    d->uri = server_uri(s->server, d->export);
    return 0;
}

/* New clients do not find the exports any more; clients that are there have to
 * go. */
static void remove_exports(struct pulls *p, struct pull *s)
{
    struct daemon *d = p->daemon;
    struct export *e;

    for (unsigned i = 0; i < s->count; i++) {
        const char *id = s->disks[i].export_id;
        if (id && exports_remove(d->exports, id, false, &e, NULL) == 0) {
            servers_end_export(d->servers, e);
            export_unref(d->exports, e);
        }
    }
    mutex_is_held(&d->jobs->lock);
    for (unsigned i = 0; i < s->count; i++) {
        if (s->disks[i].export_id) {
            exports_settle_one(d->exports, d->jobs, s->disks[i].export_id);
        }
    }
}

/* --- Estimates, before anything is pulled --- */

/* The room that the files of the chain take, at most the size of the disk. */
static uint64_t allocated(struct graph *g, struct node *n)
{
    uint64_t size = node_size(n);
    uint64_t sum = 0;

    for (; n && sum < size; n = node_backing(n)) {
        uint64_t bytes;

        sum += node_disk_bytes(g, n, &bytes) ? bytes : size;
    }
    return min_u64(sum, size);
}

static uint64_t estimate(struct pulls *p, const struct pull_disk *d)
{
    struct bitmap *bm = d->context
                            ? bitmap_find(point_node(d->point), d->context)
                            : NULL;
    uint64_t size = node_size(point_node(d->point));
    uint64_t bytes = bm ? min_u64(bitmap_count(bm), size)
                        : allocated(p->daemon->graph, d->node);

    bitmap_unref(bm);
    return bytes;
}

/* --- Begin --- */

json_t *pull_describe_disk(const struct pull_disk *d)
{
    CLEANUP_FREE char *context = NULL;

    if (d->context &&
        asprintf(&context, "qemu:dirty-bitmap:%s", d->context) < 0) {
        context = NULL;
    }
    return json_pack("{s:s, s:s, s:s*, s:s*, s:I, s:I, s:s, s:s*}", "node",
                     d->name, "export", d->export, "uri", d->uri, "context",
                     context, "size",
                     (json_int_t)node_size(point_node(d->point)), "estimate",
                     (json_int_t)d->estimate, "mode",
                     d->since ? "incremental" : "full", "reason", d->reason);
}

static json_t *describe_disks(const struct pull *s)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < s->count; i++) {
        (void)json_array_append_new(list, pull_describe_disk(&s->disks[i]));
    }
    return list;
}

json_t *pull_describe(const struct pull *s)
{
    return json_pack("{s:s, s:s, s:s*, s:I, s:o}", "id", s->id, "instant",
                     s->instant, "checkpoint", s->checkpoint, "drained-us",
                     (json_int_t)(s->drained_ns / 1000), "disks",
                     describe_disks(s));
}

static int export_all(struct pulls *p, struct pull *s,
                      const struct pull_options *o, struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];

        d->estimate = estimate(p, d);
        r = export_point(p, s, d, o->disks[i].export, errp);
    }
    return r;
}

/* Whatever it takes, nobody else waits for it. */
static int open_stored(struct pulls *p, struct pull *s,
                       const struct pull_options *o, struct error **errp)
{
    if (!has_stored(s)) {
        return 0;
    }
    go_away(p, s);
    int r = stored_open(s, errp);
    look_end(p->daemon);
    if (r == 0 && atomic_load(&p->stopping)) {
        r = error_set(errp, ESHUTDOWN, "The daemon is about to end");
    }
    /* The server may be another one by now, or none. */
    if (r == 0 && !s->own_server) {
        server_unref(s->server);
        s->server = server_find(p->daemon->servers, o->server, errp);
        r = s->server ? pull_check_rules(s, errp) : -ENOENT;
    }
    return r;
}

static int begin_session(struct pulls *p, struct pull *s,
                         const struct pull_options *o, struct error **errp)
{
    int r = check_disks(p, s, o, errp);

    if (r < 0 || (r = pull_gather_rules(p, s, o->authz, errp)) < 0 ||
        (r = choose_server(p, s, o, errp)) < 0 ||
        (r = stored_prepare(s, errp)) < 0 ||
        (r = take_instant(p, s, o, errp)) < 0) {
        return r;
    }
    s->ending = true; /* there is nothing to be found yet */
    list_append(&p->sessions, &s->link);
    hold_fresh(p, s);
    r = open_stored(p, s, o, errp);
    r = r < 0 ? r : export_all(p, s, o, errp);
    if (r < 0) {
        remove_fresh(p, s);
        remove_exports(p, s);
        end_points(p, s);
        return r;
    }
    s->ending = false;
    is_back(p, s);
    return 0;
}

int pulls_begin(struct pulls *p, const struct pull_options *o, json_t **reply,
                struct error **errp)
{
    if (atomic_load(&p->stopping)) {
        return error_set(errp, ESHUTDOWN, "The daemon is about to end");
    }
    int r = pulls_start_thread(p, errp);
    struct pull *s = r < 0 ? NULL : session_new(p, o);
    r = r < 0 ? r : s ? begin_session(p, s, o, errp) : error_nomem(errp);
    if (r < 0) {
        if (s) {
            leave_server(s);
            session_free(p, s);
        }
        return r;
    }
    log_line(TELL_INFO, "backup '%.200s' begun, disks: %u", s->id, s->count);
    *reply = pull_describe(s);
    return *reply ? 0 : error_nomem(errp);
}

/* --- End --- */

static bool can_drop(const struct pulls *p, const struct pull *s,
                     struct node *n, const char *name)
{
    return checkpoint_exists(n, name, look_of(&s->look, n)) &&
           !is_pending(p, n, name);
}

static int check_success(const struct pulls *p, struct pull *s,
                         const json_t *drop, struct error **errp)
{
    size_t i;
    json_t *item;
    int r = look_ask(&s->look, errp);

    if (r < 0) {
        return r;
    }
    for (unsigned k = 0; k < s->count; k++) {
        struct pull_disk *d = &s->disks[k];
        if (d->stored) {
            point_check(d->point, look_of(&s->look, d->node));
        }
        const char *why = point_lost_why(d->point);
        if (why) {
            return error_set(errp, EIO,
                             "The point in time of '%s' was lost (%s): the "
                             "backup can only be ended as failed",
                             s->disks[k].name, why);
        }
    }
    json_array_foreach (drop, i, item) {
        const char *name = json_string_value(item);
        bool pending = false;
        bool found = false;

        if (s->checkpoint && strcmp(name, s->checkpoint) == 0) {
            return error_set(errp, EINVAL, "'%s' is the new checkpoint", name);
        }
        for (unsigned k = 0; k < s->count; k++) {
            found |= can_drop(p, s, s->disks[k].node, name);
            pending |= is_pending(p, s->disks[k].node, name);
        }
        /* One that is gone is what was asked for: else a script that was
         * interrupted after that could never end its backup. */
        if (!found && pending) {
            return error_set(errp, ENOENT, "There is no checkpoint '%s'", name);
        }
    }
    return 0;
}

static int add_persist(const struct pull *s, const struct pull_disk *d,
                       struct list *actions, struct error **errp)
{
    struct action *a;
    int r = bitmap_persist_action((struct bitmap_ref){d->node, s->checkpoint},
                                  &a, errp);

    return r < 0 ? r : actions_add(actions, a, errp);
}

/* The new checkpoint becomes durable on all disks or none.  After a failure the
 * session goes on. */
static int persist_fresh(struct pulls *p, struct pull *s, struct error **errp)
{
    struct list actions;
    int r = 0;

    list_init(&actions);
    release_fresh(p, s);
    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        const struct pull_disk *d = &s->disks[i];
        if (d->has_fresh && node_keeps_bitmaps(d->node)) {
            r = add_persist(s, d, &actions, errp);
        }
    }
    if (r < 0) {
        actions_cancel(&actions);
    } else {
        r = actions_run(p->daemon->graph, &actions, errp);
    }
    if (r < 0) {
        hold_fresh(p, s);
    }
    return r;
}

static void drop_singly(struct pulls *p, const char *name, const json_t *nodes)
{
    size_t i;
    json_t *node;

    json_array_foreach (nodes, i, node) {
        CLEANUP_JSON json_t *one = json_pack("[O]", node);
        if (one) {
            (void)checkpoint_delete(p->daemon, name, one, NULL);
        }
    }
}

/* Too many checkpoints are no harm: what cannot go now can later. */
static void drop_old(struct pulls *p, const struct pull *s, const json_t *drop)
{
    size_t i;
    json_t *item;

    json_array_foreach (drop, i, item) {
        const char *name = json_string_value(item);
        CLEANUP_JSON json_t *nodes = json_array();
        for (unsigned k = 0; k < s->count; k++) {
            const struct node *n = s->disks[k].node;
            if (can_drop(p, s, s->disks[k].node, name)) {
                (void)json_array_append_new(nodes, json_string(node_name(n)));
            }
        }
        /* All at once; where one cannot go, the others by themselves. */
        if (json_array_size(nodes) > 0 &&
            checkpoint_delete(p->daemon, name, nodes, NULL) < 0) {
            drop_singly(p, name, nodes);
        }
    }
}

static void tell_end(struct pulls *p, const struct pull *s, const char *result)
{
    CLEANUP_JSON json_t *data = json_pack("{s:s, s:s}", "id", s->id, "result",
                                          result);

    monitors_emit("BACKUP_ENDED", data, p->daemon->monitors);
    log_line(strcmp(result, "success") == 0 ? TELL_INFO : TELL_WARNING,
             "backup '%.200s' ended: %s", s->id, result);
}

/* After its checkpoint is settled, one way or the other. */
static void finish_session(struct pulls *p, struct pull *s, const char *result)
{
    s->ending = true;
    remove_exports(p, s);
    leave_server(s);
    end_points(p, s);
    tell_end(p, s, result);
    session_free(p, s);
}

void pull_fail(struct pulls *p, struct pull *s, const char *result)
{
    remove_fresh(p, s);
    finish_session(p, s, result);
}

struct pull *pull_find(const struct pulls *p, const char *id)
{
    list_for_each (at, &p->sessions) {
        struct pull *s = pull_of(at);
        if (!s->ending && strcmp(s->id, id) == 0) {
            return s;
        }
    }
    return NULL;
}

int pulls_renew(struct pulls *p, const char *id, struct error **errp)
{
    struct pull *s = pull_find(p, id);

    if (!s) {
        return error_set(errp, ENOENT, "There is no backup '%.200s'", id);
    }
    s->renewed_at = now_ns();
    return 0;
}

bool pulls_has(const struct pulls *p, const char *id, const char *owner)
{
    const struct pull *s = pull_find(p, id);

    return s && s->owner && strcmp(s->owner, owner) == 0;
}

void pulls_name_nodes(const struct pulls *p, const char *id, json_t *names)
{
    const struct pull *s = pull_find(p, id);

    for (unsigned i = 0; s && i < s->count; i++) {
        (void)json_object_set_new(names, node_name(s->disks[i].node),
                                  json_true());
    }
}

/* The snapshots become checkpoints, or are again what they were. */
static int keep_stored(struct pulls *p, struct pull *s, struct error **errp)
{
    if (!has_stored(s)) {
        return 0;
    }
    go_away(p, s);
    int r = stored_keep(s, errp);
    if (r == 0 && (r = look_settle(&s->look, errp)) < 0) {
        stored_back(s);
    }
    look_end(p->daemon);
    return r;
}

static void unkeep_stored(struct pulls *p, struct pull *s)
{
    go_away(p, s);
    stored_back(s);
    look_end(p->daemon);
}

static int end_with_success(struct pulls *p, struct pull *s, const json_t *drop,
                            struct error **errp)
{
    int r = check_success(p, s, drop, errp);

    if (r < 0 || (r = keep_stored(p, s, errp)) < 0) {
        return r;
    }
    r = persist_fresh(p, s, errp);
    if (r < 0) {
        unkeep_stored(p, s);
        return r;
    }
    drop_old(p, s, drop);
    finish_session(p, s, "success");
    return 0;
}

int pulls_end(struct pulls *p, const char *id, bool success, const json_t *drop,
              struct error **errp)
{
    struct pull *s;

    mutex_is_held(&p->daemon->jobs->lock);
    while ((s = pull_find(p, id)) && s->away) {
        cond_wait(&p->back, &p->daemon->jobs->lock);
    }
    if (!s) {
        return error_set(errp, ENOENT, "There is no backup '%.200s'", id);
    }
    if (!success) {
        pull_fail(p, s, "failed");
        return 0;
    }
    s->away = true; /* others see it, and leave it alone, until the end */
    int r = end_with_success(p, s, drop, errp);
    if (r < 0) {
        is_back(p, s);
    }
    return r;
}
