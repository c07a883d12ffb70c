/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changing the flags of open nodes.  A step is one node.  Permissions come
 * before the work that needs them:
 *
 *   becomes writable    file and data child (their own steps)
 *                       edges to them get PERM_WRITE
 *                       driver's reopen, which may write
 *   becomes read-only   driver's reopen, which writes back
 *                       edges lose PERM_WRITE
 *                       file and data child (their own steps)
 *
 * A node that becomes inactive becomes read-only, and lets everybody write to
 * its children.  So users let go of their permissions first, and have them
 * again when all else has been done for a node that becomes active.
 */
#include "core/reopen.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/dirty.h"
#include "core/graph-priv.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

struct edge_before {
    unsigned perm;
    unsigned shared;
    bool grown; /* the child has become growable */
};

struct step {
    struct list link;
    struct node *node;
    struct node_flags from;
    struct node_flags to;
    struct edge_before before[CHILD_MAX];
    uint64_t size; /* before it */
    bool begun;
    bool grown; /* and so are its bitmaps */
};

/* Children that are written to as their parent is. */
static const unsigned written[] = {CHILD_FILE, CHILD_DATA};

#define WRITING (PERM_WRITE | PERM_RESIZE)

void reopen_init(struct reopen *set)
{
    list_init(&set->steps);
}

int reopen_add_one(struct reopen *set, struct node *n,
                   const struct node_flags *to, struct error **errp)
{
    struct step *s = calloc(1, sizeof(*s));

    if (!s) {
        return error_nomem(errp);
    }
    s->node = n;
    s->to = *to;
    list_append(&set->steps, &s->link);
    return 0;
}

static int add_with_children(struct reopen *set, struct node *n,
                             const struct node_flags *to, struct error **errp);

/* Do a child's own options say that it is read-only, whatever its parent is? */
static bool stays_read_only(const struct node *child,
                            const struct node_flags *to)
{
    return !to->read_only && child->options &&
           json_is_true(json_object_get(child->options, "read-only"));
}

/* Add steps for the children that inherit. */
static int add_children(struct reopen *set, struct node *n,
                        const struct node_flags *to, struct error **errp)
{
    int r = 0;

    for (size_t i = 0; i < ARRAY_SIZE(written) && r == 0; i++) {
        const struct edge *e = n->child[written[i]];
        struct node_flags below = *to;

        if (e && e->inherits && !stays_read_only(e->child, to)) {
            node_flags_set_active(&below, node_active(e->child));
            r = add_with_children(set, e->child, &below, errp);
        }
    }
    return r;
}

/* Add steps for @n and the children that inherit. */
static int add_with_children(struct reopen *set, struct node *n,
                             const struct node_flags *to, struct error **errp)
{
    bool below_first = n->flags.read_only && !to->read_only;
    int r = below_first ? add_children(set, n, to, errp) : 0;

    if (r == 0) {
        r = reopen_add_one(set, n, to, errp);
    }
    return r == 0 && !below_first ? add_children(set, n, to, errp) : r;
}

/* --- Users of a node that becomes inactive, or active --- */

static bool rests(const struct step *s)
{
    return !s->from.inactive && s->to.inactive;
}

static bool wakes(const struct step *s)
{
    return s->from.inactive && !s->to.inactive;
}

static void have_users_give_up(struct node *n)
{
    list_for_each (at, &n->parents) {
        edge_give_up(list_entry(at, struct edge, on_child));
    }
    node_hand_down_perms(n);
}

static void let_users_have_again(struct node *n)
{
    list_for_each (at, &n->parents) {
        edge_have_again(list_entry(at, struct edge, on_child));
    }
    node_hand_down_perms(n);
}

static int check_users_again(const struct node *n, struct error **errp)
{
    int r = 0;

    list_for_each (at, &n->parents) {
        const struct edge *e = list_entry(at, struct edge, on_child);
        r = r < 0 ? r : edge_check(e, n, e->perm | e->given_up, errp);
    }
    return r;
}

/* An inactive node does not mind who writes to its children. */
static void set_shared(struct node *n, unsigned shared)
{
    for (size_t i = 0; i < ARRAY_SIZE(written); i++) {
        struct edge *e = n->child[written[i]];
        if (e && !node_passes_perms(n)) {
            e->shared = shared;
            node_hand_down_perms(e->child);
        }
    }
}

static int check_edges(const struct node *n, struct error **errp)
{
    int r = 0;

    for (size_t i = 0; i < ARRAY_SIZE(written); i++) {
        const struct edge *e = n->child[written[i]];
        r = r < 0 || !e ? r : edge_check(e, e->child, e->perm, errp);
    }
    return r;
}

/* --- One step --- */

static int check_users(const struct step *s, struct error **errp)
{
    const struct node *n = s->node;

    list_for_each (at, &n->parents) {
        bool writes = list_entry(at, struct edge, on_child)->perm & WRITING;
        if (writes && rests(s)) {
            return error_set(errp, EPERM, "%s", strerror(EPERM));
        }
        if (writes) {
            return error_set(errp, EBUSY,
                             "Read-only block node '%s' cannot support "
                             "read-write users",
                             node_name(n));
        }
    }
    return 0;
}

/* Set the permission of an edge; a child that passes permissions on hands it
 * down. */
static void set_perm(struct node *n, unsigned index, unsigned perm)
{
    struct edge *e = n->child[index];

    if (!node_passes_perms(n)) {
        e->perm = perm;
        node_hand_down_perms(e->child);
    }
}

static int get_write_perm(struct step *s, unsigned index, struct error **errp)
{
    struct edge *e = s->node->child[index];

    if (!e) {
        return 0;
    }
    unsigned perm = e->perm | PERM_WRITE | (e->may_grow ? PERM_RESIZE : 0);
    int r = node_passes_perms(s->node) ? 0
                                       : edge_check(e, e->child, perm, errp);
    if (r < 0) {
        return r;
    }
    set_perm(s->node, index, perm);
    if (e->may_grow && !e->child->growable) {
        node_set_growable(e->child, true);
        s->before[index].grown = true;
    }
    return 0;
}

static int get_write_perms(struct step *s, struct error **errp)
{
    int r = 0;

    for (size_t i = 0; i < ARRAY_SIZE(written) && r == 0; i++) {
        r = get_write_perm(s, written[i], errp);
    }
    return r;
}

static void put_edges_back(struct step *s)
{
    for (size_t i = 0; i < ARRAY_SIZE(written); i++) {
        struct edge *e = s->node->child[written[i]];
        const struct edge_before *b = &s->before[written[i]];

        if (e) {
            if (!node_passes_perms(s->node)) {
                e->shared = b->shared;
            }
            set_perm(s->node, written[i], b->perm);
            if (b->grown) {
                node_set_growable(e->child, false);
            }
        }
    }
}

/* What has to be before the driver does its work. */
static int ready_for(struct step *s, struct error **errp)
{
    struct node *n = s->node;
    int r = 0;

    if (s->to.inactive && !s->to.read_only) {
        return error_set(errp, EPERM,
                         "Permission 'write' unavailable on inactive node");
    }
    if (rests(s)) {
        have_users_give_up(n);
    } else if (wakes(s)) {
        set_shared(n, PERM_READ);
        r = check_edges(n, errp);
    }
    if (r == 0 && n->flags.read_only && !s->to.read_only) {
        r = get_write_perms(s, errp);
    } else if (r == 0 && s->to.read_only && !n->flags.read_only) {
        r = check_users(s, errp);
    }
    return r;
}

static void drop_write_perms(struct step *s)
{
    struct node *n = s->node;

    for (size_t i = 0; i < ARRAY_SIZE(written) && s->to.read_only; i++) {
        const struct edge *e = n->child[written[i]];
        if (e) {
            set_perm(n, written[i], e->perm & ~(unsigned)WRITING);
        }
    }
    if (rests(s)) {
        set_shared(n, PERM_ALL);
    }
}

static int do_step(struct step *s, struct error **errp)
{
    struct node *n = s->node;

    s->from = n->flags;
    s->size = n->size;
    s->begun = true;
    for (size_t i = 0; i < ARRAY_SIZE(written); i++) {
        const struct edge *e = n->child[written[i]];
        s->before[written[i]].perm = e ? e->perm : 0;
        s->before[written[i]].shared = e ? e->shared : 0;
    }
    int r = ready_for(s, errp);
    if (r == 0 && n->drv->reopen) {
        r = n->drv->reopen->prepare(n, &s->to, errp);
    }
    if (r < 0) {
        return r;
    }
    drop_write_perms(s);
    n->flags = s->to;
    s->grown = n->size > s->size;
    if (s->grown) {
        r = bitmap_resize_all(n, s->size, n->size, errp);
    }
    if (r == 0 && wakes(s)) {
        r = check_users_again(n, errp);
    }
    return r;
}

static void undo_step(struct step *s)
{
    const struct driver_reopen *drv = s->node->drv->reopen;

    if (drv && drv->abort) {
        drv->abort(s->node);
    }
    if (s->begun) {
        s->node->flags = s->from;
        put_edges_back(s);
        if (s->grown) { /* they shrink, which cannot fail */
            (void)bitmap_resize_all(s->node, s->size, s->size, NULL);
        }
        if (rests(s)) {
            let_users_have_again(s->node);
        }
    }
}

/* It stays. */
static void end_step(struct step *s)
{
    const struct driver_reopen *drv = s->node->drv->reopen;

    if (drv && drv->commit) {
        drv->commit(s->node);
    }
    if (wakes(s)) {
        let_users_have_again(s->node);
    }
    if (s->node->size < s->size) {
        (void)bitmap_resize_all(s->node, s->size, s->node->size, NULL);
    }
}

/* --- The set --- */

int reopen_apply(struct reopen *set, struct error **errp)
{
    list_for_each (at, &set->steps) {
        int r = do_step(list_entry(at, struct step, link), errp);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

void reopen_finish(struct reopen *set, bool stay)
{
    for (struct list *at = set->steps.prev; at != &set->steps; at = at->prev) {
        struct step *s = list_entry(at, struct step, link);

        if (stay) {
            end_step(s);
        } else {
            undo_step(s);
        }
    }
    list_for_each_safe (at, &set->steps) {
        struct step *s = list_entry(at, struct step, link);

        node_refresh_limits(s->node);
        node_refresh_above(s->node);
        list_remove(at);
        free(s);
    }
}

int node_set_read_only(struct node *n, bool read_only, struct error **errp)
{
    struct node_flags to = n->flags;
    struct reopen set;

    if (node_read_only(n) == read_only) {
        return 0;
    }
    if (read_only) {
        node_flags_set_read_only(&to);
    } else {
        to.read_only = false;
    }
    reopen_init(&set);
    int r = add_with_children(&set, n, &to, errp);
    if (r == 0) {
        r = reopen_apply(&set, errp);
    }
    reopen_finish(&set, r == 0);
    return r;
}
