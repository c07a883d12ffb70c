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
 */
#include "core/reopen.h"

#include <errno.h>
#include <stdlib.h>

#include "core/graph-priv.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

struct edge_before {
    unsigned perm;
    bool grown; /* the child has become growable */
};

struct step {
    struct list link;
    struct node *node;
    struct node_flags from;
    struct node_flags to;
    struct edge_before before[CHILD_MAX];
    bool done;
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
        r = e && e->inherits && !stays_read_only(e->child, to)
                ? add_with_children(set, e->child, to, errp)
                : 0;
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

/* --- One step --- */

static int check_users(const struct node *n, struct error **errp)
{
    list_for_each (at, &n->parents) {
        if (list_entry(at, struct edge, on_child)->perm & WRITING) {
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

static void put_edges_back(struct step *s)
{
    for (size_t i = 0; i < ARRAY_SIZE(written); i++) {
        struct edge *e = s->node->child[written[i]];
        const struct edge_before *b = &s->before[written[i]];

        if (e) {
            set_perm(s->node, written[i], b->perm);
            if (b->grown) {
                node_set_growable(e->child, false);
            }
        }
    }
}

static int do_step(struct step *s, struct error **errp)
{
    struct node *n = s->node;
    int r = 0;

    s->from = n->flags;
    for (size_t i = 0; i < ARRAY_SIZE(written); i++) {
        const struct edge *e = n->child[written[i]];
        s->before[written[i]].perm = e ? e->perm : 0;
    }
    if (n->flags.read_only && !s->to.read_only) {
        for (size_t i = 0; i < ARRAY_SIZE(written) && r == 0; i++) {
            r = get_write_perm(s, written[i], errp);
        }
    } else if (s->to.read_only && !n->flags.read_only) {
        r = check_users(n, errp);
    }
    if (r == 0 && n->drv->reopen) {
        r = n->drv->reopen->prepare(n, &s->to, errp);
    }
    if (r < 0) {
        put_edges_back(s);
        return r;
    }
    for (size_t i = 0; i < ARRAY_SIZE(written) && s->to.read_only; i++) {
        const struct edge *e = n->child[written[i]];
        if (e) {
            set_perm(n, written[i], e->perm & ~(unsigned)WRITING);
        }
    }
    n->flags = s->to;
    s->done = true;
    return 0;
}

static void undo_step(struct step *s)
{
    const struct driver_reopen *drv = s->node->drv->reopen;

    if (drv && drv->abort) {
        drv->abort(s->node);
    }
    if (s->done) {
        s->node->flags = s->from;
        put_edges_back(s);
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
        const struct driver_reopen *drv = s->node->drv->reopen;

        if (!stay) {
            undo_step(s);
        } else if (drv && drv->commit) {
            drv->commit(s->node);
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

    if (n->flags.read_only == read_only) {
        return 0;
    }
    to.read_only = read_only;
    reopen_init(&set);
    int r = add_with_children(&set, n, &to, errp);
    if (r == 0) {
        r = reopen_apply(&set, errp);
    }
    reopen_finish(&set, r == 0);
    return r;
}
