/* SPDX-License-Identifier: BSD-3-Clause */
/* Who may do what with a node, beside all others who use it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/graph_priv.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

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

static int conflict(const struct node *child, unsigned perm,
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

int edge_check(const struct edge *e, const struct node *child, unsigned perm,
               struct error **errp)
{
    if ((perm & (PERM_WRITE | PERM_RESIZE)) && child->flags.read_only) {
        return error_set(errp, EACCES, "Block node is read-only");
    }
    list_for_each (at, &child->parents) {
        const struct edge *other = list_entry(at, struct edge, on_child);
        unsigned taken = perm & ~other->shared;
        unsigned given = other->perm & ~e->shared;

        if (other == e) {
            continue;
        }
        if (taken) {
            return conflict(child, taken, e, other, errp);
        }
        if (given) {
            return conflict(child, given, other, e, errp);
        }
    }
    return 0;
}
