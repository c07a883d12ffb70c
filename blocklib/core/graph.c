/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Nodes, edges, trees.
 *
 * A tree is a connected part of the graph under one rwlock: requests hold it
 * for reading, the control section that changes edges holds it for writing
 * ("drained").  Trees merge when an edge connects them:
 *
 *     tree 1: blk -> qcow2 -> file       node_attach(filter, TARGET, raw)
 *     tree 2: raw -> file               =>  all nodes in tree 1, tree 2 empty
 *
 * A thread that waits for the lock of an emptied tree finds on waking that its
 * node has moved, and tries again.  That is why the memory of trees is kept
 * until the graph is freed.  Only the thread that holds the control lock takes
 * a tree for writing, and a request holds one tree at a time, so the order in
 * which a section drains its trees does not matter.
 */
#include "core/graph.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/chain.h"
#include "core/dirty.h"
#include "core/graph-priv.h"
#include "core/throttle-group.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"

#define NS UINT64_C(1000000000)

_Thread_local const _Atomic bool *node_unwanted;
_Thread_local enum node_progress node_progress;

/* --- Trees --- */

static struct tree *tree_new(struct graph *g)
{
    struct tree *t = g->free_trees;

    if (t) {
        g->free_trees = t->next_free;
    } else {
        t = calloc(1, sizeof(*t));
        if (!t) {
            return NULL;
        }
        rwlock_init(&t->lock, LOCK_TREE, NULL);
        list_init(&t->nodes);
        list_append(&g->trees, &t->in_graph);
    }
    t->born_in = g->section;
    return t;
}

static void tree_recycle(struct graph *g, struct tree *t)
{
    t->next_free = g->free_trees;
    g->free_trees = t;
}

static void set_tree(struct node *n, struct tree *t)
{
    atomic_store(&n->tree, t);
    list_for_each (at, &n->parents) {
        struct edge *e = list_entry(at, struct edge, on_child);
        if (!e->parent) {
            atomic_store(&e->tree, t);
        }
    }
}

static void tree_merge(struct graph *g, struct tree *to, struct tree *from)
{
    list_for_each_safe (at, &from->nodes) {
        struct node *n = list_entry(at, struct node, in_tree);
        list_remove(at);
        list_append(&to->nodes, at);
        set_tree(n, to);
    }
    if (!from->drained) {
        tree_recycle(g, from);
    } /* else graph_unlock does it */
}

/* Lock the tree that a pointer leads to, while the pointer may change. */
static struct tree *tree_enter(struct tree *_Atomic *from, bool nowait)
    NO_LOCK_ANALYSIS
{
    for (;;) {
        struct tree *t = atomic_load(from);
        if (!nowait) {
            rwlock_rdlock(&t->lock);
        } else if (!rwlock_tryrdlock(&t->lock)) {
            return NULL;
        }
        if (t == atomic_load(from)) {
            return t;
        }
        rwlock_unlock(&t->lock);
    }
}

struct tree *node_enter(struct node *n, bool nowait)
{
    return tree_enter(&n->tree, nowait);
}

struct tree *edge_enter(struct edge *e, bool nowait)
{
    return tree_enter(&e->tree, nowait);
}

void node_leave(struct tree *t) NO_LOCK_ANALYSIS
{
    rwlock_unlock(&t->lock);
}

/* --- Control sections --- */

void graph_lock(struct graph *g) NO_LOCK_ANALYSIS
{
    mutex_lock(&g->lock);
    g->section++;
}

/* Nobody can be inside a tree that this section made: no blk leads there. */
static bool is_private(const struct graph *g, const struct tree *t)
{
    return t->born_in == g->section;
}

/* Let the users' requests go on that wait for their turn. */
static void kick_users(const struct node *n)
{
    list_for_each (at, &n->parents) {
        const struct edge *e = list_entry(at, struct edge, on_child);

        if (e->throttle) {
            throttle_group_kick(e->throttle);
        }
    }
}

void graph_begin_drain(struct tree *t)
{
    atomic_fetch_add(&t->draining, 1);
    list_for_each (at, &t->nodes) {
        struct node *n = list_entry(at, struct node, in_tree);
        if (n->opened && n->drv->drain) {
            n->drv->drain(n);
        }
        kick_users(n);
    }
}

/* The tree's lock is held for writing now. */
static void note_drained(struct graph *g, struct tree *t)
{
    list_for_each (at, &t->nodes) {
        struct node *n = list_entry(at, struct node, in_tree);
        if (n->opened && n->drv->drained) {
            n->drv->drained(n);
        }
    }
    t->drained = true;
    t->next_drained = g->drained;
    g->drained = t;
}

static void drain_tree(struct graph *g, struct tree *t) NO_LOCK_ANALYSIS
{
    if (!t->drained && !is_private(g, t)) {
        graph_begin_drain(t);
        rwlock_wrlock(&t->lock);
        note_drained(g, t);
    }
}

/* --- Trees that cannot be drained --- */

/*
 * A drain that a control section would wait for is tried without a section, and
 * given up again at once.  So the order in which sections drain trees does not
 * matter.  Memory of trees stays, whatever happens to their nodes meanwhile.
 */

/* The longest that a try holds new requests of the tree back. */
#define TRY_MAX_MS 2000
#define TRY_MIN_MS 100
/* How long to wait while another thread tries. */
#define OTHERS_MS 5
/* The longest that a section waits where it need not. */
#define SECTION_MS 20

/* Could the tree be drained within @ms, since graph_begin_drain()?  One thread
 * tries at a time. */
static bool try_drain(struct tree *t, uint64_t ms) NO_LOCK_ANALYSIS
{
    bool calm = rwlock_wrlock_ms(&t->lock, ms);

    if (calm) {
        rwlock_unlock(&t->lock);
    }
    atomic_fetch_sub(&t->draining, 1);
    atomic_store(&t->tried, false);
    return calm;
}

static struct node *match_locked(struct graph *g, node_match_fn *fn,
                                 void *opaque)
{
    list_for_each (at, &g->nodes) {
        struct node *n = list_entry(at, struct node, in_graph);
        if (fn(n, opaque)) {
            return n;
        }
    }
    return NULL;
}

static void rest(uint64_t ms)
{
    struct timespec pause = {(time_t)(ms / 1000), (long)(ms % 1000 * 1000000)};

    (void)nanosleep(&pause, NULL);
}

/* Tries become longer and longer.  Between tries nothing is held for as long as
 * the last one took. */
int graph_settle_match(struct graph *g, node_match_fn *fn, void *opaque,
                       uint64_t limit_ns, struct error **errp)
{
    uint64_t begin = now_ns();

    for (uint64_t ms = TRY_MIN_MS;;) {
        char name[NODE_NAME_MAX + 1] = "";

        graph_lock(g);
        const struct node *n = match_locked(g, fn, opaque);
        struct tree *t = n ? atomic_load(&n->tree) : NULL;
        bool mine = t && !atomic_exchange(&t->tried, true);
        if (n) {
            (void)snprintf(name, sizeof(name), "%s", n->name);
        }
        if (mine) {
            graph_begin_drain(t);
        }
        graph_unlock(g);
        if (!t || (mine && try_drain(t, ms))) {
            return 0;
        }
        if (node_is_unwanted()) {
            return error_set(errp, ECANCELED, "nobody waits for node '%s'",
                             name);
        }
        if (now_ns() - begin >= limit_ns) {
            return error_set(errp, ETIMEDOUT,
                             "Node '%s' does not come to rest: requests have "
                             "been waiting for its storage for %u s",
                             name, (unsigned)((now_ns() - begin) / NS));
        }
        rest(mine ? ms : OTHERS_MS);
        ms = mine ? min_u64(2 * ms, TRY_MAX_MS) : ms;
    }
}

static bool has_name(const struct node *n, void *opaque)
{
    return strcmp(n->name, opaque) == 0;
}

int graph_settle(struct graph *g, const char *name, uint64_t limit_ns,
                 struct error **errp)
{
    return graph_settle_match(g, has_name, (void *)(uintptr_t)name, limit_ns,
                              errp);
}

/* --- Control sections, continued --- */

void graph_drain(struct graph *g, struct node *n)
{
    drain_tree(g, atomic_load(&n->tree));
}

/* As a section that drains, but it ends soon where the tree does not come to
 * rest. */
static bool lock_drained_soon(struct graph *g, const struct node *n)
    NO_LOCK_ANALYSIS
{
    graph_lock(g);
    struct tree *t = atomic_load(&n->tree);

    graph_begin_drain(t);
    if (rwlock_wrlock_ms(&t->lock, SECTION_MS)) {
        note_drained(g, t);
        return true;
    }
    atomic_fetch_sub(&t->draining, 1);
    graph_unlock(g);
    return false;
}

static bool is_node(const struct node *n, void *opaque)
{
    return n == opaque;
}

int graph_lock_drained(struct graph *g, struct node *n)
{
    if (lock_drained_soon(g, n)) {
        return 0;
    }
    int r = graph_settle_match(g, is_node, n, UINT64_MAX, NULL);
    if (r == 0) {
        graph_lock(g);
        graph_drain(g, n);
    }
    return r;
}

void graph_unlock(struct graph *g) NO_LOCK_ANALYSIS
{
    while (g->drained) {
        struct tree *t = g->drained;
        g->drained = t->next_drained;
        t->drained = false;
        atomic_fetch_sub(&t->draining, 1);
        rwlock_unlock(&t->lock);
        if (list_empty(&t->nodes)) {
            tree_recycle(g, t);
        }
    }
    mutex_unlock(&g->lock);
}

/* --- Nodes --- */

static struct node *find_node_locked(struct graph *g, const char *name)
{
    list_for_each (at, &g->nodes) {
        struct node *n = list_entry(at, struct node, in_graph);
        if (strcmp(n->name, name) == 0) {
            return n;
        }
    }
    return NULL;
}

struct node *graph_find_locked(struct graph *g, const char *name)
{
    return find_node_locked(g, name);
}

struct node *graph_find(struct graph *g, const char *name)
{
    graph_lock(g);
    struct node *n = find_node_locked(g, name);
    graph_unlock(g);
    return n;
}

void graph_ref(struct graph *g, struct node *n)
{
    graph_lock(g);
    node_ref(n);
    graph_unlock(g);
}

void graph_unref(struct graph *g, struct node *n)
{
    graph_lock(g);
    node_unref(n);
    graph_unlock(g);
}

int graph_each(struct graph *g, int (*fn)(struct node *n, void *opaque),
               void *opaque)
{
    size_t count = 0;
    size_t room = 0;
    struct node **nodes = NULL;
    int r = 0;

    graph_lock(g);
    list_for_each (at, &g->nodes) {
        room++;
    }
    if (room > 0) {
        nodes = malloc(room * sizeof(*nodes));
        r = nodes ? 0 : -ENOMEM;
    }
    if (nodes) {
        list_for_each (at, &g->nodes) {
            nodes[count++] = list_entry(at, struct node, in_graph);
        }
    }
    graph_unlock(g);
    for (size_t i = 0; i < count && r == 0; i++) {
        r = fn(nodes[i], opaque);
    }
    free(nodes);
    return r;
}

int node_alloc(struct graph *g, const struct driver *drv, const char *name,
               struct node **nodep, struct error **errp)
{
    char generated[32];

    if (!name) {
        (void)snprintf(generated, sizeof(generated), "#block%" PRIu64,
                       g->next_name++);
        name = generated;
    } else if (!text_is_id(name) || strlen(name) > NODE_NAME_MAX) {
        return error_set(errp, EINVAL, "Invalid node-name: '%s'", name);
    } else if (find_node_locked(g, name)) {
        return error_set(errp, EEXIST, "Duplicate nodes with node-name='%s'",
                         name);
    }
    struct node *n = calloc(1, sizeof(*n));
    char *copy = strdup(name);
    void *state = calloc(1, drv->state_size ? drv->state_size : 1);
    struct tree *t = tree_new(g);
    if (!n || !copy || !state || !t) {
        free(n);
        free(copy);
        free(state);
        if (t) {
            tree_recycle(g, t);
        }
        return error_nomem(errp);
    }
    n->drv = drv;
    n->graph = g;
    n->name = copy;
    n->state = state;
    n->refs = 1;
    n->limits = (struct limits){1, 1, 1 * GiB, 4096, .far = false};
    list_init(&n->parents);
    list_init(&n->bitmaps);
    range_lock_init(&n->rmw);
    node_flushes_init(&n->flushes);
    atomic_init(&n->tree, t);
    list_append(&t->nodes, &n->in_tree);
    list_append(&g->nodes, &n->in_graph);
    *nodep = n;
    return 0;
}

int node_new(struct graph *g, const struct driver *drv, const char *name,
             struct node *like, struct node **nodep, struct error **errp)
{
    struct node *n;
    int r = node_alloc(g, drv, name, &n, errp);
    if (r < 0) {
        return r;
    }
    n->flags = like->flags;
    node_flags_set_active(&n->flags, true);
    n->size = node_size(like);
    n->filename = strdup(node_filename(like));
    if (!n->filename) {
        node_unref(n);
        return error_nomem(errp);
    }
    n->opened = true;
    *nodep = n;
    return 0;
}

void node_ref(struct node *n)
{
    n->refs++;
}

void node_unref(struct node *n)
{
    assert(n->refs > 0);
    if (--n->refs > 0) {
        return;
    }
    if (!n->drv->passive) {
        graph_drain(n->graph, n);
    }
    if (n->opened) {
        if (!n->flags.read_only && !n->drv->is_filter) {
            (void)node_flush(n);
        }
        if (n->drv->close) {
            n->drv->close(n);
        }
    }
    bitmap_release_all(n);
    for (unsigned i = 0; i < CHILD_MAX; i++) {
        node_detach(n, i);
    }
    if (n->preopened) {
        node_unref(n->preopened);
    }
    assert(list_empty(&n->parents));
    struct tree *t = atomic_load(&n->tree);
    list_remove(&n->in_tree);
    list_remove(&n->in_graph);
    if (list_empty(&t->nodes) && !t->drained) {
        tree_recycle(n->graph, t);
    }
    range_lock_destroy(&n->rmw);
    node_flushes_destroy(&n->flushes);
    json_decref(n->options);
    free(n->name);
    free(n->state);
    free(n->filename);
    free(n->image_backing);
    free(n->image_backing_fmt);
    free(n);
}

/* --- Edges --- */

/*
 * Users come and go without a drain, so filters that throttle or hold up
 * requests of others let none of them go.  No request reads the lists of
 * parents, or what parents want, which the control lock guards.  Requests of
 * the user itself have not begun, or have ended.
 */

int edge_link(struct edge *e, struct error **errp)
{
    struct node *child = e->child;

    int r = edge_check(e, child, e->perm, errp);

    if (r < 0) {
        return r;
    }
    if (e->parent && !e->parent->drv->passive) {
        graph_drain(child->graph, child);
    }
    list_append(&child->parents, &e->on_child);
    edge_begin_flushes(e);
    atomic_store(&e->tree, atomic_load(&child->tree));
    node_ref(child);
    node_hand_down_perms(child);
    return 0;
}

void edge_unlink(struct edge *e)
{
    list_remove(&e->on_child);
    node_hand_down_perms(e->child);
    node_unref(e->child);
}

/* Merge two trees into the one that other threads may wait for, if there is
 * such. */
static void merge_trees_of(struct node *a, struct node *b)
{
    struct tree *x = atomic_load(&a->tree);
    struct tree *y = atomic_load(&b->tree);

    if (x == y) {
        return;
    }
    if (is_private(a->graph, x)) {
        tree_merge(a->graph, y, x);
    } else {
        tree_merge(a->graph, x, y);
    }
}

int node_attach(struct node *n, unsigned index, struct node *child,
                const char *role, unsigned perm, unsigned shared,
                struct error **errp)
{
    assert(!n->child[index]);
    if (node_is_below(child, n)) {
        return error_set(errp, EINVAL,
                         "Making '%s' a %s child of '%s' would create a cycle",
                         child->name, role, n->name);
    }
    if (child->flags.inactive && !n->flags.inactive) {
        return error_set(errp, EPERM,
                         "Inactive '%s' can't be a %s child of active '%s'",
                         child->name, role, n->name);
    }
    if (index == CHILD_BACKING) {
        int r = chain_check_room(child, errp);
        if (r < 0) {
            return r;
        }
    }
    struct edge *e = calloc(1, sizeof(*e));
    if (!e) {
        return error_nomem(errp);
    }
    *e = (struct edge){
        .child = child,
        .parent = n,
        .role = role,
        .perm = perm,
        .shared = shared,
    };
    if (index == CHILD_FILE && node_passes_perms(n)) {
        edge_inherit_perms(e);
    }
    int r = edge_link(e, errp);
    if (r < 0) {
        free(e);
        return r;
    }
    graph_drain(n->graph, n);
    merge_trees_of(n, child);
    n->child[index] = e;
    return 0;
}

/*
 * An edge of @n is gone.  The part that is not connected any more gets a tree
 * of its own again, so that draining one does not hold back the other.  @gone,
 * unless NULL, is about to be freed, and needs none.
 */
static void mark_connected(struct node *n)
{
    if (n->visited) {
        return;
    }
    n->visited = true;
    for (unsigned i = 0; i < CHILD_MAX; i++) {
        if (n->child[i]) {
            mark_connected(n->child[i]->child);
        }
    }
    list_for_each (at, &n->parents) {
        struct edge *e = list_entry(at, struct edge, on_child);
        if (e->parent) {
            mark_connected(e->parent);
        }
    }
}

static void tree_split(struct graph *g, struct node *n, const struct node *gone)
{
    struct tree *old = atomic_load(&n->tree);
    bool whole = true;

    list_for_each (at, &old->nodes) {
        list_entry(at, struct node, in_tree)->visited = false;
    }
    mark_connected(n);
    list_for_each (at, &old->nodes) {
        const struct node *other = list_entry(at, struct node, in_tree);
        whole &= other->visited || other == gone;
    }
    struct tree *t = whole ? NULL : tree_new(g);
    if (!t) {
        return; /* connected, or no memory: then they stay together */
    }
    t->born_in = 0; /* users of its nodes may come at any moment */
    drain_tree(g, old);
    drain_tree(g, t);
    list_for_each_safe (at, &old->nodes) {
        struct node *moved = list_entry(at, struct node, in_tree);
        if (moved->visited) {
            list_remove(at);
            list_append(&t->nodes, at);
            set_tree(moved, t);
        }
    }
}

void node_detach(struct node *n, unsigned index)
{
    struct edge *e = n->child[index];

    if (!e) {
        return;
    }
    if (n->refs > 0) { /* else no request is in it */
        graph_drain(n->graph, n);
    }
    n->child[index] = NULL;
    list_remove(&e->on_child);
    node_hand_down_perms(e->child);
    if (e->child->refs > 1) {
        tree_split(n->graph, e->child, n->refs > 0 ? NULL : n);
    }
    node_unref(e->child);
    free(e);
}

struct edge *node_take_child(struct node *n, unsigned index)
{
    struct edge *e = n->child[index];

    if (e) {
        graph_drain(n->graph, n);
        n->child[index] = NULL;
        list_remove(&e->on_child);
        node_hand_down_perms(e->child);
        tree_split(n->graph, e->child, NULL);
    }
    return e;
}

void node_put_child(struct node *n, unsigned index, struct edge *e)
{
    assert(!n->child[index]);
    if (e) {
        graph_drain(n->graph, n);
        graph_drain(n->graph, e->child);
        list_append(&e->child->parents, &e->on_child);
        merge_trees_of(n, e->child);
        n->child[index] = e;
        node_hand_down_perms(e->child);
    }
}

void edge_free(struct edge *e)
{
    if (e) {
        node_unref(e->child);
        free(e);
    }
}

void node_replace(struct node *from, struct node *to)
{
    graph_drain(from->graph, from);
    graph_drain(from->graph, to);
    assert(atomic_load(&from->tree) == atomic_load(&to->tree));
    list_for_each_safe (at, &from->parents) {
        struct edge *e = list_entry(at, struct edge, on_child);
        if (e->parent && node_is_below(to, e->parent)) {
            continue;
        }
        list_remove(at);
        list_append(&to->parents, at);
        edge_move_flushes(e, to);
        __atomic_store_n(&e->child, to, __ATOMIC_RELEASE); /* see blk_node */
        node_ref(to);
        assert(from->refs > 1);
        from->refs--;
        if (e->parent && e->parent->drv->file_changed) {
            e->parent->drv->file_changed(e->parent);
        }
    }
    node_hand_down_perms(from);
    node_hand_down_perms(to);
}

int node_check_replace(const struct node *from, const struct node *to,
                       struct error **errp)
{
    list_for_each (at, &from->parents) {
        struct edge *e = list_entry(at, struct edge, on_child);
        if (e->parent && node_is_below(to, e->parent)) {
            continue;
        }
        int r = edge_check(e, to, e->perm, errp);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static void wake_waiting(struct node *n)
{
    if (n->opened && n->drv->drain) {
        n->drv->drain(n);
    }
    for (unsigned i = 0; i < CHILD_MAX; i++) {
        if (n->child[i]) {
            wake_waiting(n->child[i]->child);
        }
    }
}

void graph_wake_waiting(struct graph *g, struct node *n)
{
    graph_lock(g);
    wake_waiting(n);
    graph_unlock(g);
}

void graph_give_up(struct graph *g)
{
    graph_stop_waiting(g);
    graph_lock(g);
    list_for_each (at, &g->nodes) {
        struct node *n = list_entry(at, struct node, in_graph);
        list_for_each (e, &n->parents) {
            struct throttle_group *t =
                list_entry(e, struct edge, on_child)->throttle;
            if (t) {
                throttle_group_release(t);
            }
        }
        if (n->opened && n->drv->cancel) {
            n->drv->cancel(n);
        }
    }
    graph_unlock(g);
}

bool node_is_below(const struct node *top, const struct node *n)
{
    if (top == n) {
        return true;
    }
    for (unsigned i = 0; i < CHILD_MAX; i++) {
        if (top->child[i] && node_is_below(top->child[i]->child, n)) {
            return true;
        }
    }
    return false;
}

bool node_writes_to(const struct node *top, const struct node *n)
{
    if (top == n) {
        return true;
    }
    for (unsigned i = 0; i < CHILD_MAX; i++) {
        if (i != CHILD_BACKING && top->child[i] &&
            node_writes_to(top->child[i]->child, n)) {
            return true;
        }
    }
    return false;
}

void node_refresh_limits(struct node *n)
{
    struct node *file = node_child(n, CHILD_FILE);
    struct limits l = {1, 1, 1 * GiB, 4096, .far = false};

    if (!file && !n->drv->is_protocol) {
        return; /* it gets another child, or the old one back */
    }
    if (n->drv->is_filter && file) {
        l = file->limits;
    } else if (file) {
        l.pref = file->limits.pref;
    }
    n->limits = l;
    if (n->drv->limits) {
        n->drv->limits(n, &n->limits);
    }
}

void node_refresh_above(struct node *n)
{
    list_for_each (at, &n->parents) {
        struct node *parent = list_entry(at, struct edge, on_child)->parent;
        if (!parent) {
            continue;
        }
        if (node_child(parent, CHILD_FILE) == n) {
            node_follow_size(parent);
        }
        node_refresh_limits(parent);
        node_refresh_above(parent);
    }
}

void node_set_growable(struct node *n, bool growable)
{
    struct node *end = node_skip_filters(n);

    if (!end->drv->is_protocol) {
        return;
    }
    end->growable = growable;
    for (; n != end; n = node_child(n, CHILD_FILE)) {
        n->growable = growable;
    }
}

/* --- Facts --- */

void graph_on_corruption(struct graph *g, corruption_fn *fn, void *opaque)
{
    g->on_corruption = fn;
    g->corruption_opaque = opaque;
}

void node_tell_corruption(const struct node *n, const struct corruption *c)
{
    if (n->graph->on_corruption) {
        n->graph->on_corruption(c, n->graph->corruption_opaque);
    }
}

const char *node_name(const struct node *n)
{
    return n->name;
}

const char *node_driver(const struct node *n)
{
    return n->drv->name;
}

uint64_t node_size(const struct node *n)
{
    return n->size;
}

bool node_read_only(const struct node *n)
{
    return node_flags_read_only(&n->flags);
}

bool node_active(const struct node *n)
{
    return !n->flags.inactive;
}

const char *node_filename(const struct node *n)
{
    return n->filename ? n->filename : "";
}

struct node *node_backing(const struct node *n)
{
    n = node_skip_filters(n);
    return node_child(n, CHILD_BACKING);
}

/* --- The graph itself --- */

struct graph *graph_new_with(const struct driver_table *t)
{
    struct graph *g = calloc(1, sizeof(*g));

    if (g) {
        g->drivers = t;
        mutex_init(&g->lock, LOCK_CONTROL, NULL);
        list_init(&g->nodes);
        list_init(&g->trees);
        list_init(&g->throttle_groups);
        list_init(&g->view_bits);
        tls_creds_set_init(&g->tls_creds);
        secret_set_init(&g->secrets);
        yank_set_init(&g->yanks);
        fdset_table_init(&g->fdsets);
    }
    return g;
}

const struct driver_table *graph_drivers(const struct graph *g)
{
    return g->drivers;
}

void graph_close_all(struct graph *g)
{
    graph_lock(g);
    for (bool again = true; again;) {
        again = false;
        list_for_each (at, &g->nodes) {
            struct node *n = list_entry(at, struct node, in_graph);
            if (n->monitor_owned) {
                n->monitor_owned = false;
                node_unref(n);
                again = true;
                break; /* the list has changed */
            }
        }
    }
    assert(list_empty(&g->nodes));
    graph_unlock(g);
}

void graph_free(struct graph *g)
{
    if (!g) {
        return;
    }
    graph_close_all(g);
    throttle_groups_free(&g->throttle_groups);
    list_for_each_safe (at, &g->trees) {
        struct tree *t = list_entry(at, struct tree, in_graph);
        rwlock_destroy(&t->lock);
        free(t);
    }
    for (size_t i = 0; i < g->allowed_count; i++) {
        free(g->allowed[i]);
    }
    free(g->allowed);
    tls_creds_set_destroy(&g->tls_creds);
    secret_set_destroy(&g->secrets);
    yank_set_destroy(&g->yanks);
    fdset_table_destroy(&g->fdsets);
    mutex_destroy(&g->lock);
    free(g);
}
