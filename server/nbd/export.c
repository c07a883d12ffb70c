/* SPDX-License-Identifier: BSD-3-Clause */
/* The set of exports, and the thread that deletes them: see export.h. */
#include "nbd/export.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon.h"
#include "log/log.h"
#include "nbd/proto.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/internal-snapshot.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"
#include "net/tls-policy.h"

/* How long exports that are to be deleted wait for their disks to be drained;
 * how often the collector tries again. */
#define COLLECT_NS UINT64_C(1000000000)
#define STUCK_MS   1000

struct exports {
    struct daemon *daemon;
    job_event_fn *emit;
    void *opaque;
    export_error_fn *on_error; /* or NULL */
    void *error_opaque;
    int gone_fd; /* a kick: an export waits for exports_collect */
    cond_t collected;
    pthread_t thread; /* the collector */
    bool started;
    _Atomic bool stopping;
    _Atomic uint64_t serials; /* given out so far */

    mutex_t lock;
    struct list list; /* guarded by lock; oldest first */
};

struct exports *exports_new(struct daemon *d, job_event_fn *emit, void *opaque)
{
    struct exports *s = calloc(1, sizeof(*s));

    if (!s) {
        return NULL;
    }
    s->daemon = d;
    s->emit = emit;
    s->opaque = opaque;
    s->gone_fd = kick_new();
    if (s->gone_fd < 0) {
        free(s);
        return NULL;
    }
    mutex_init(&s->lock, LOCK_EXPORTS, NULL);
    cond_init(&s->collected);
    list_init(&s->list);
    return s;
}

void exports_on_error(struct exports *s, export_error_fn *fn, void *opaque)
{
    s->on_error = fn;
    s->error_opaque = opaque;
}

void export_tell_error(const struct exports *s, const struct export *e,
                       bool is_read, int error)
{
    if (s->on_error && !e->of_backup) {
        s->on_error(e, is_read, error, s->error_opaque);
    }
}

/* --- Rules. --- */

static char *copy_or_null(const char *text)
{
    return text ? strdup(text) : NULL;
}

int export_rules_add(struct export_rules *rs, struct tls_policy *policy,
                     const char *authz, const char *authz_writable)
{
    struct export_rule *grown = reallocarray(rs->at, rs->count + 1,
                                             sizeof(*grown));

    if (!grown) {
        return -ENOMEM;
    }
    rs->at = grown;
    struct export_rule *r = &rs->at[rs->count++];
    *r = (struct export_rule){tls_policy_ref(policy), copy_or_null(authz),
                              copy_or_null(authz_writable)};
    return !r->authz != !authz || !r->authz_writable != !authz_writable
               ? -ENOMEM
               : 0;
}

void export_rules_free(struct export_rules *rs)
{
    for (unsigned i = 0; i < rs->count; i++) {
        tls_policy_unref(rs->at[i].policy);
        free(rs->at[i].authz);
        free(rs->at[i].authz_writable);
    }
    free(rs->at);
    *rs = (struct export_rules){NULL, 0};
}

static int set_rules(struct export *e, const struct export_options *o)
{
    const struct export_rules *rs = o->rules;
    int r = 0;

    if (!rs || rs->count == 0) {
        return export_rules_add(&e->rules, NULL, o->authz, o->authz_writable);
    }
    for (unsigned i = 0; r == 0 && i < rs->count; i++) {
        r = export_rules_add(&e->rules, rs->at[i].policy, rs->at[i].authz,
                             rs->at[i].authz_writable);
    }
    return r;
}

static void export_free(struct exports *s, struct export *e)
{
    for (unsigned i = 0; i < e->bitmap_count; i++) {
        bitmap_release(s->daemon->graph, e->bitmaps[i].bitmap);
        free(e->bitmaps[i].name);
    }
    free(e->bitmaps);
    bitmap_unref(e->of_bitmap);
    free(e->of_snapshot);
    blk_free(e->blk);
    share_unref(e->share);
    free(e->id);
    free(e->name);
    free(e->description);
    export_rules_free(&e->rules);
    free(e->server_id);
    free(e);
}

void exports_free(struct exports *s)
{
    if (!s) {
        return;
    }
    list_for_each_safe (l, &s->list) {
        struct export *e = list_entry(l, struct export, in_set);

        list_remove(l);
        export_free(s, e);
    }
    cond_destroy(&s->collected);
    mutex_destroy(&s->lock);
    (void)close(s->gone_fd);
    free(s);
}

/* --- Adding. --- */

static struct export *find_by_id(struct exports *s, const char *id)
    REQUIRES(s->lock)
{
    list_for_each (l, &s->list) {
        struct export *e = list_entry(l, struct export, in_set);

        if (!e->of && strcmp(e->id, id) == 0) {
            return e;
        }
    }
    return NULL;
}

int exports_check_id(struct exports *s, const char *id, struct error **errp)
{
    mutex_lock(&s->lock);
    bool taken = find_by_id(s, id);
    mutex_unlock(&s->lock);
    return taken ? error_set(errp, EEXIST,
                             "Block export id '%s' is already in use", id)
                 : 0;
}

/* The name of an export that is going away is free. */
bool exports_has_name(struct exports *s, uint64_t server, const char *name)
{
    bool taken = false;

    mutex_lock(&s->lock);
    list_for_each (l, &s->list) {
        struct export *e = list_entry(l, struct export, in_set);

        taken |= e->server == server && !e->removed &&
                 strcmp(e->name, name) == 0;
    }
    mutex_unlock(&s->lock);
    return taken;
}

static int check_name(struct exports *s, uint64_t server, const char *name,
                      struct error **errp)
{
    if (strlen(name) > NBD_STRING_MAX) {
        return error_set(errp, EINVAL, "export name '%.64s...' too long", name);
    }
    return exports_has_name(s, server, name)
               ? error_set(errp, EEXIST,
                           "NBD server already has export named '%s'", name)
               : 0;
}

static int attach_disk(struct graph *g, struct export *e,
                       const struct export_options *o, struct error **errp)
{
    CLEANUP_FREE char *user = NULL;
    unsigned perm = PERM_READ | (e->writable ? PERM_WRITE : 0) |
                    (o->allow_inactive ? PERM_GIVES_UP : 0);

    if (asprintf(&user, "export '%s'", e->name) < 0) {
        user = NULL;
        return error_nomem(errp);
    }
    return blk_new(g, o->node, perm, PERM_ALL, user, &e->blk, errp);
}

int export_new(struct exports *s, const struct export_options *o,
               struct export **ep, struct error **errp)
{
    int r = exports_check_id(s, o->id, errp);

    r = r == 0 ? check_name(s, o->server, o->name, errp) : r;
    struct export *e = r == 0 ? calloc(1, sizeof(*e)) : NULL;

    if (!e) {
        return r < 0 ? r : error_nomem(errp);
    }
    e->server = o->server;
    e->id = strdup(o->id);
    e->name = strdup(o->name);
    e->description = copy_or_null(o->description);
    e->server_id = copy_or_null(o->server_id);
    e->writable = o->writable;
    e->writethrough = o->writethrough;
    e->allocation_depth = o->allocation_depth;
    e->all_bitmaps = o->all_bitmaps;
    e->is_default = o->is_default;
    e->of_backup = o->of_backup;
    e->serial = atomic_fetch_add(&s->serials, 1) + 1;
    e->share = share_new();
    e->refs = 1;
    list_init(&e->in_set);
    r = !e->id || !e->name || !e->share || !e->description != !o->description ||
                !e->server_id != !o->server_id || set_rules(e, o) < 0
            ? error_nomem(errp)
            : attach_disk(s->daemon->graph, e, o, errp);
    if (r < 0) {
        export_free(s, e);
        return r;
    }
    *ep = e;
    return 0;
}

/* Make room for one more bitmap.  -EEXIST: the name @as is taken. */
static int reserve_bitmap(struct export *e, const char *as, struct error **errp)
{
    struct export_bitmap *grown;

    for (unsigned i = 0; i < e->bitmap_count; i++) {
        if (strcmp(e->bitmaps[i].name, as) == 0) {
            return error_set(errp, EEXIST,
                             "Export '%s' already has a bitmap named '%s'",
                             e->id, as);
        }
    }
    grown = reallocarray(e->bitmaps, e->bitmap_count + 1, sizeof(*e->bitmaps));
    if (!grown) {
        return error_nomem(errp);
    }
    e->bitmaps = grown;
    return 0;
}

int export_add_bitmap_as(struct exports *s, struct export *e, struct node *n,
                         const char *name, bool below, const char *as,
                         struct error **errp)
{
    struct graph *g = s->daemon->graph;
    struct export_bitmap b = {NULL, NULL};
    int r = reserve_bitmap(e, as, errp);

    if (r < 0 || (r = bitmap_hold(g, n, name, below, &b.bitmap, errp)) < 0) {
        return r;
    }
    /* What clients see must not change under them, unless it is on purpose. */
    if (below && !e->writable && bitmap_enabled(b.bitmap) &&
        !node_read_only(bitmap_node(b.bitmap))) {
        r = error_set(errp, EINVAL,
                      "Enabled bitmap '%s' incompatible with readonly export",
                      name);
    } else if (!(b.name = strdup(as))) {
        r = error_nomem(errp);
    }
    if (r < 0) {
        bitmap_release(g, b.bitmap);
        return r;
    }
    e->bitmaps[e->bitmap_count++] = b;
    return 0;
}

void export_tell(const struct export *e)
{
    log_line(TELL_INFO, "export '%.200s' is there%s", e->name,
             e->writable ? "" : ", read-only");
}

void export_publish(struct exports *s, struct export *e)
{
    mutex_lock(&s->lock);
    e->idle_since = now_ns();
    list_append(&s->list, &e->in_set);
    mutex_unlock(&s->lock);
    export_tell(e);
}

void export_drop(struct exports *s, struct export *e)
{
    export_free(s, e);
}

/* --- Views. --- */

/* A bitmap that @e offers, with a reference, or NULL. */
static struct bitmap *offered_bitmap(struct export *e, const char *name)
{
    for (unsigned i = 0; i < e->bitmap_count; i++) {
        if (strcmp(e->bitmaps[i].name, name) == 0) {
            bitmap_ref(e->bitmaps[i].bitmap);
            return e->bitmaps[i].bitmap;
        }
    }
    return e->all_bitmaps ? blk_bitmap_find(e->blk, name) : NULL;
}

static bool take_bitmap(struct export *view, const char *which)
{
    view->of_bitmap = offered_bitmap(view->of, which);
    return view->of_bitmap;
}

static bool take_snapshot(struct export *view, const char *which)
{
    view->of_snapshot = strdup(which);
    view->allocation_depth = view->of->allocation_depth;
    return view->of_snapshot &&
           blk_snapshot_size(view->of->blk, which, &view->of_size, NULL) == 0;
}

/* What follows the name of an export in that of a view, and what it takes from
 * the rest.  False: there is no such view. */
static const struct view_kind {
    const char *mark;
    bool (*take)(struct export *view, const char *which);
} view_kinds[] = {
    {"@dirty=", take_bitmap},
    {"@snapshot=", take_snapshot},
};

/* A view @name of @of, or NULL.  Takes the reference to @of. */
static struct export *view_alloc(struct exports *s, struct export *of,
                                 const char *name, const struct view_kind *kind,
                                 const char *which)
{
    struct export *e = calloc(1, sizeof(*e));

    if (e) {
        e->name = strdup(name);
        e->of = of;
        e->share = share_ref(of->share);
    }
    if (!e || !e->name || !kind->take(e, which)) {
        if (e) {
            export_free(s, e);
        }
        export_unref(s, of);
        return NULL;
    }
    e->serial = atomic_fetch_add(&s->serials, 1) + 1;
    e->refs = 1;
    e->removed = true; /* nobody finds it */
    list_init(&e->in_set);
    return e;
}

int export_open_view(struct exports *s, struct export *e, struct error **errp)
{
    CLEANUP_FREE char *user = NULL;

    if (asprintf(&user, "export '%s'", e->name) < 0) {
        user = NULL;
        return error_nomem(errp);
    }
    int r = e->of_snapshot
                ? blk_snapshot_view(s->daemon->graph, e->of->blk,
                                    e->of_snapshot, user, &e->blk, errp)
                : blk_dirty_view(s->daemon->graph, e->of->blk, e->of_bitmap,
                                 e->of->all_bitmaps, user, &e->blk, errp);
    if (r == 0) {
        export_publish(s, e);
    }
    return r;
}

bool export_is_one_disk(const struct export *e)
{
    return !e->of_bitmap; /* each has bits of its own */
}

struct blk *export_disk(const struct export *e)
{
    return e->blk ? e->blk : e->of->blk;
}

uint64_t export_size(const struct export *e)
{
    return !e->blk && e->of_snapshot ? e->of_size : blk_size(export_disk(e));
}

/* --- Finding. --- */

/* The export whose name are these @len bytes, with a reference, or NULL. */
static struct export *find_by_name(struct exports *s, uint64_t server,
                                   const char *name, size_t len)
{
    struct export *found = NULL;

    mutex_lock(&s->lock);
    list_for_each (l, &s->list) {
        struct export *e = list_entry(l, struct export, in_set);

        if (e->removed || e->server != server) {
            continue;
        }
        if (strlen(e->name) == len && memcmp(e->name, name, len) == 0) {
            found = e;
            break;
        }
        if (!found && len == 0 && e->is_default) {
            found = e;
        }
    }
    if (found) {
        found->refs++;
    }
    mutex_unlock(&s->lock);
    return found;
}

/* As exports_find(), for one kind of view. */
static struct export *find_view(struct exports *s, uint64_t server,
                                const char *name, const struct view_kind *kind,
                                may_open_fn *may_open, void *opaque)
{
    struct export *e = NULL;

    /* A name may have anything in it, also the mark. */
    for (const char *p = name; !e && (p = strstr(p, kind->mark)); p++) {
        struct export *of = find_by_name(s, server, name, (size_t)(p - name));

        if (of && !may_open(of, opaque)) {
            return of;
        }
        e = of ? view_alloc(s, of, name, kind, p + strlen(kind->mark)) : NULL;
    }
    return e;
}

struct export *exports_find(struct exports *s, uint64_t server,
                            const char *name, may_open_fn *may_open,
                            void *opaque)
{
    struct export *e = find_by_name(s, server, name, strlen(name));

    for (size_t i = 0; !e && i < ARRAY_SIZE(view_kinds); i++) {
        e = find_view(s, server, name, &view_kinds[i], may_open, opaque);
    }
    return e;
}

struct export *exports_find_id(struct exports *s, const char *id)
{
    mutex_lock(&s->lock);
    struct export *e = find_by_id(s, id);
    if (e) {
        e->refs++;
    }
    mutex_unlock(&s->lock);
    return e;
}

unsigned exports_clients(struct exports *s, const char *id)
{
    mutex_lock(&s->lock);
    const struct export *e = find_by_id(s, id);
    unsigned clients = e && !e->removed ? e->refs - 1 : 0;
    mutex_unlock(&s->lock);
    return clients;
}

uint64_t exports_idle_ns(struct exports *s, const char *id)
{
    mutex_lock(&s->lock);
    const struct export *e = find_by_id(s, id);
    unsigned unused = e && e->removed ? 0 : 1; /* the set's reference */
    uint64_t ns = !e                  ? UINT64_MAX
                  : e->refs == unused ? now_ns() - e->idle_since
                                      : 0;
    mutex_unlock(&s->lock);
    return ns;
}

/* Wake the collector, if nobody uses @e any more. */
static void tell_unused(struct exports *s, const struct export *e)
{
    if (e->refs == 0 && e->visits == 0 && !e->stuck) {
        kick_raise(s->gone_fd);
    }
}

/* The lock is not held during @fn, which may wait for storage.  A visit keeps
 * the export, and its place in the list, and does not count as a client. */
static int visit_all(struct exports *s, bool removed_too,
                     int (*fn)(struct export *e, void *opaque), void *opaque)
{
    int r = 0;

    mutex_lock(&s->lock);
    for (struct list *l = s->list.next; r == 0 && l != &s->list;) {
        struct export *e = list_entry(l, struct export, in_set);

        if (e->ending || (e->removed && !removed_too)) {
            l = l->next;
            continue;
        }
        e->visits++;
        mutex_unlock(&s->lock);
        r = fn(e, opaque);
        mutex_lock(&s->lock);
        l = l->next;
        e->visits--;
        tell_unused(s, e);
    }
    mutex_unlock(&s->lock);
    return r;
}

int exports_each(struct exports *s, int (*fn)(struct export *e, void *opaque),
                 void *opaque)
{
    return visit_all(s, false, fn, opaque);
}

struct on_node {
    const struct node *node;
    unsigned count;
};

static int count_on_node(struct export *e, void *opaque)
{
    struct on_node *o = opaque;

    o->count += blk_node(e->blk) == o->node;
    return 0;
}

unsigned exports_on_node(struct exports *s, const struct node *n)
{
    struct on_node o = {n, 0};

    (void)visit_all(s, true, count_on_node, &o);
    return o.count;
}

/* What exports_query() gathers, and from where. */
struct query {
    struct exports *set;
    json_t *list;
};

static int append_info(struct export *e, void *opaque)
{
    const struct query *q = opaque;

    mutex_lock(&q->set->lock);
    bool removed = e->removed;
    mutex_unlock(&q->set->lock);
    return e->of ? 0
                 : json_array_insert_new(
                       q->list, 0,
                       json_pack("{s:s, s:b, s:s, s:s, s:s*}", "node-name",
                                 node_name(blk_node(e->blk)), "shutting-down",
                                 (int)removed, "type", "nbd", "id", e->id,
                                 "server", e->server_id));
}

json_t *exports_query(struct exports *s)
{
    json_t *list = json_array();
    struct query q = {s, list};

    if (!list || visit_all(s, true, append_info, &q) < 0) {
        json_decref(list);
        return NULL;
    }
    return list;
}

static int append_clients(struct export *e, void *opaque)
{
    const struct query *q = opaque;

    mutex_lock(&q->set->lock);
    unsigned clients = e->refs - (e->removed ? 0 : 1);
    mutex_unlock(&q->set->lock);
    return e->of ? 0
                 : json_array_insert_new(q->list, 0,
                                         json_pack("{s:s, s:i}", "id", e->id,
                                                   "clients", (int)clients));
}

json_t *exports_query_clients(struct exports *s)
{
    json_t *list = json_array();
    struct query q = {s, list};

    if (!list || visit_all(s, true, append_clients, &q) < 0) {
        json_decref(list);
        return NULL;
    }
    return list;
}

/* --- Removing. --- */

static void export_unref_locked(struct exports *s, struct export *e)
    REQUIRES(s->lock)
{
    e->idle_since = now_ns();
    e->refs--;
    tell_unused(s, e);
}

void export_unref(struct exports *s, struct export *e)
{
    /* A view that was not opened has one reference. */
    if (e && e->of && !e->blk) {
        struct export *of = e->of;

        export_free(s, e);
        e = of;
    }
    if (e) {
        mutex_lock(&s->lock);
        export_unref_locked(s, e);
        mutex_unlock(&s->lock);
    }
}

int exports_remove(struct exports *s, const char *id, bool safe,
                   struct export **ep, struct error **errp)
{
    int r = 0;

    mutex_lock(&s->lock);
    struct export *e = find_by_id(s, id);
    if (!e) {
        r = error_set(errp, ENOENT, "Export '%.200s' is not found", id);
    } else if (e->removed) {
        r = error_set(errp, EALREADY, "Export '%s' is already shutting down",
                      id);
    } else if (safe && e->refs > 1) {
        r = error_set(errp, EBUSY, "export '%s' still in use", id);
    } else {
        e->removed = true; /* the set's reference is the caller's now */
        *ep = e;
    }
    mutex_unlock(&s->lock);
    return r;
}

bool export_is_removed(struct exports *s, const struct export *e)
{
    mutex_lock(&s->lock);
    bool removed = e->of ? e->of->removed : e->removed;
    mutex_unlock(&s->lock);
    return removed;
}

void exports_remove_all(struct exports *s, uint64_t server)
{
    mutex_lock(&s->lock);
    list_for_each (l, &s->list) {
        struct export *e = list_entry(l, struct export, in_set);

        if (!e->removed && (server == 0 || e->server == server)) {
            e->removed = true;
            export_unref_locked(s, e);
        }
    }
    mutex_unlock(&s->lock);
}

/* The newest export that nobody uses; from now on nobody begins to visit it.
 * Exports that go together go from the last to the first, as in QEMU.  NULL:
 * there is none. */
static struct export *take_unused(struct exports *s)
{
    struct export *gone = NULL;

    mutex_lock(&s->lock);
    list_for_each_reverse (l, &s->list) {
        struct export *e = list_entry(l, struct export, in_set);

        if (e->refs == 0 && e->visits == 0 && !e->stuck && !e->ending) {
            gone = e;
            gone->ending = true;
            break;
        }
    }
    mutex_unlock(&s->lock);
    return gone;
}

/* Take @e off the list, so that nobody comes to use it again, and free it. */
static void delete_export(struct exports *s, struct export *e)
{
    struct export *of = e->of;

    mutex_lock(&s->lock);
    list_remove(&e->in_set);
    mutex_unlock(&s->lock);
    if (of) {
        export_free(s, e);
        export_unref(s, of);
        return;
    }
    CLEANUP_JSON json_t *data = json_pack("{s:s}", "id", e->id);

    log_line(TELL_INFO, "export '%.200s' has gone", e->name);
    export_free(s, e);
    s->emit("BLOCK_EXPORT_DELETED", data, s->opaque);
}

/* Giving up bitmaps drains the disk.  Requests of other users of the disk may
 * hang: then the export stays, for the collector. */
void exports_collect(struct exports *s, struct jobs *j)
{
    uint64_t end = now_ns() + COLLECT_NS;
    struct export *e;

    mutex_is_held(&j->lock);
    kick_clear(s->gone_fd);
    while ((e = take_unused(s))) {
        uint64_t now = now_ns();
        uint64_t left = end > now ? end - now : 0;

        if (e->bitmap_count == 0 || blk_settle(e->blk, left)) {
            delete_export(s, e);
        } else {
            mutex_lock(&s->lock);
            e->ending = false;
            e->stuck = true;
            mutex_unlock(&s->lock);
        }
    }
    cond_broadcast(&s->collected);
}

struct look {
    struct exports *set;
    bool left;
};

/* Try to drain the disk of an export that was stuck, without the monitor lock.
 */
static int retry_stuck(struct export *e, void *opaque)
{
    struct look *look = opaque;
    struct exports *s = look->set;

    mutex_lock(&s->lock);
    bool stuck = e->stuck;
    mutex_unlock(&s->lock);
    if (!stuck) {
        return 0;
    }
    bool calm = blk_settle(e->blk, 0);
    mutex_lock(&s->lock);
    e->stuck = !calm;
    mutex_unlock(&s->lock);
    look->left |= !calm;
    return 0;
}

/* Delete exports that were removed once their last clients have gone. */
static void *collector_thread(void *opaque)
{
    struct exports *s = opaque;
    struct jobs *j = s->daemon->jobs;
    struct pollfd fd = {.fd = s->gone_fd, .events = POLLIN};

    while (!atomic_load(&s->stopping)) {
        struct look look = {s, false};

        (void)visit_all(s, true, retry_stuck, &look);
        if (poll(&fd, 1, look.left ? STUCK_MS : -1) >= 0 &&
            !atomic_load(&s->stopping)) {
            mutex_lock(&j->lock);
            exports_collect(s, j);
            mutex_unlock(&j->lock);
        }
    }
    return NULL;
}

int exports_start(struct exports *s, struct error **errp)
{
    int r = thread_start(&s->thread, "exports", collector_thread, s);

    if (r < 0) {
        return error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
    }
    s->started = true;
    return 0;
}

void exports_stop(struct exports *s)
{
    if (s->started) {
        atomic_store(&s->stopping, true);
        kick_raise(s->gone_fd);
        thread_join(s->thread);
        s->started = false;
    }
}

static bool has_removed(struct exports *s, uint64_t server)
{
    bool found = false;

    mutex_lock(&s->lock);
    list_for_each (l, &s->list) {
        const struct export *e = list_entry(l, struct export, in_set);

        e = e->of ? e->of : e;
        found |= e->removed && (server == 0 || e->server == server);
    }
    mutex_unlock(&s->lock);
    return found;
}

static bool is_removed(struct exports *s, const char *id)
{
    mutex_lock(&s->lock);
    const struct export *e = find_by_id(s, id);
    bool removed = e && e->removed;
    mutex_unlock(&s->lock);
    return removed;
}

#define PAUSE_MS 5

void exports_pause(struct exports *s, struct jobs *j)
{
    (void)cond_wait_ms(&s->collected, &j->lock, PAUSE_MS);
    exports_collect(s, j);
}

void exports_settle_one(struct exports *s, struct jobs *j, const char *id)
{
    exports_collect(s, j);
    while (is_removed(s, id)) {
        cond_wait(&s->collected, &j->lock);
        exports_collect(s, j);
    }
}

void exports_settle(struct exports *s, struct jobs *j, uint64_t server)
{
    exports_collect(s, j);
    while (has_removed(s, server)) {
        cond_wait(&s->collected, &j->lock);
        exports_collect(s, j);
    }
}
