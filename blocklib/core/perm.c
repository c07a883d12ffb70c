/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Permissions: what a user or parent does with a node, and lets others do.
 *
 *     export: write          cbw (nobody uses it)
 *        |                    |
 *     throttle: write         |      The edges of filters, and of raw, want
 *        |                    |      what is wanted of these nodes themselves.
 *        +----> source <------+
 *
 * Formats keep the permissions that they took when they were opened: they have
 * metadata to write.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/graph-priv.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

#define PERM_CHANGES ((unsigned)PERM_WRITE | PERM_RESIZE)

static const struct {
    unsigned perm;
    const char *name;
} names[] = {
    {PERM_READ, "consistent read"},
    {PERM_WRITE, "write"},
    {PERM_RESIZE, "resize"},
};

static void list_names(unsigned perm, char *buf, size_t len)
{
    buf[0] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (perm & names[i].perm) {
            size_t used = strlen(buf);
            (void)snprintf(buf + used, len - used, "%s%s", used > 0 ? ", " : "",
                           names[i].name);
        }
    }
}

static int perm_conflict(const struct node *child, unsigned perm,
                         const struct edge *needs, const struct edge *denies,
                         struct error **errp)
{
    char list[60];

    list_names(perm, list, sizeof(list));
    return error_set(
        errp, EBUSY,
        "Permission conflict on node '%s': permissions '%s' are both required "
        "by %s%s%s (uses node '%s' as '%s' child) and unshared by %s%s%s "
        "(uses node '%s' as '%s' child).",
        child->name, list, needs->parent ? "node '" : "",
        needs->parent ? needs->parent->name : needs->user,
        needs->parent ? "'" : "", child->name, needs->role,
        denies->parent ? "node '" : "",
        denies->parent ? denies->parent->name : denies->user,
        denies->parent ? "'" : "", child->name, denies->role);
}

static bool passes_on(const struct node *n)
{
    return node_passes_perms(n) && n->child[CHILD_FILE];
}

/* What @n does with its file child.  @e, unless NULL, counts as a parent that
 * wants *@p, even if it is not linked yet. */
static struct perms passed_on(const struct node *n, const struct edge *e,
                              const struct perms *p)
{
    struct perms sum = {.perm = 0, .shared = PERM_ALL, .used = e != NULL};

    if (e) {
        sum.perm = p->perm;
        sum.shared = p->shared;
    }
    list_for_each (at, &n->parents) {
        const struct edge *parent = list_entry(at, struct edge, on_child);
        if (!e || parent != e) {
            sum.perm |= parent->perm;
            sum.shared &= parent->shared;
            sum.used = true;
        }
    }
    if (n->drv->child_perms) {
        n->drv->child_perms(n, &sum);
    }
    return sum;
}

static int check_perms(const struct edge *e, const struct node *child,
                       const struct perms *p, struct error **errp)
{
    if ((p->perm & PERM_CHANGES) && node_flags_read_only(&child->flags)) {
        return error_set(errp, EACCES, "Block node is read-only");
    }
    if ((p->perm & PERM_CHANGES) && child->flags.inactive) {
        char list[60];

        list_names(p->perm & PERM_CHANGES, list, sizeof(list));
        return error_set(errp, EPERM,
                         "Permission '%s' unavailable on inactive node", list);
    }
    list_for_each (at, &child->parents) {
        const struct edge *other = list_entry(at, struct edge, on_child);
        unsigned taken = p->perm & ~other->shared;
        unsigned given = other->perm & ~p->shared;

        if (other == e) {
            continue;
        }
        if (taken) {
            return perm_conflict(child, taken, e, other, errp);
        }
        if (given) {
            return perm_conflict(child, given, other, e, errp);
        }
    }
    if (!passes_on(child)) {
        return 0;
    }
    const struct edge *next = child->child[CHILD_FILE];
    const struct perms more = passed_on(child, e, p);
    return check_perms(next, next->child, &more, errp);
}

int edge_check(const struct edge *e, const struct node *child, unsigned perm,
               struct error **errp)
{
    const struct perms p = {.perm = perm, .shared = e->shared};

    return check_perms(e, child, &p, errp);
}

int node_check_perms(const struct node *n, struct error **errp)
{
    if (!passes_on(n)) {
        return 0;
    }
    const struct edge *e = n->child[CHILD_FILE];
    const struct perms p = passed_on(n, NULL, NULL);
    return check_perms(e, e->child, &p, errp);
}

void node_hand_down_perms(struct node *n)
{
    while (passes_on(n)) {
        struct edge *e = n->child[CHILD_FILE];
        const struct perms p = passed_on(n, NULL, NULL);

        e->perm = p.perm;
        e->shared = p.shared;
        n = e->child;
    }
}

void edge_inherit_perms(struct edge *e)
{
    const struct perms p = passed_on(e->parent, NULL, NULL);

    e->perm = p.perm;
    e->shared = p.shared;
}

void edge_give_up(struct edge *e)
{
    if (e->gives_up) {
        e->given_up |= e->perm & PERM_CHANGES;
        e->perm &= ~PERM_CHANGES;
    }
}

void edge_have_again(struct edge *e)
{
    e->perm |= e->given_up;
    e->given_up = 0;
}
