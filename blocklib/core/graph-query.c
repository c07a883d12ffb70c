/* SPDX-License-Identifier: BSD-3-Clause */
/* The whole graph in the words of x-debug-query-block-graph. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph-priv.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

/* The state of a drawing.  Users and nodes get numbers in the order in which
 * they are seen. */
struct drawing {
    json_t *nodes;
    json_t *edges;
    const void **seen;
    size_t count;
    size_t room;
};

static json_int_t number(struct drawing *d, const void *what)
{
    size_t i = 0;

    while (i < d->count && d->seen[i] != what) {
        i++;
    }
    if (i == d->count && d->count < d->room) {
        d->seen[d->count++] = what;
    }
    return (json_int_t)i + 1;
}

/* The names of permissions, greatest first, as QEMU lists them. */
static json_t *perm_list(unsigned perm, bool unchanged)
{
    json_t *list = json_array();

    if (perm & PERM_RESIZE) {
        (void)json_array_append_new(list, json_string("resize"));
    }
    if (unchanged) {
        (void)json_array_append_new(list, json_string("write-unchanged"));
    }
    if (perm & PERM_WRITE) {
        (void)json_array_append_new(list, json_string("write"));
    }
    if (perm & PERM_READ) {
        (void)json_array_append_new(list, json_string("consistent-read"));
    }
    return list;
}

/* QEMU has a permission to write unchanged data: no edge here wants it, and
 * every edge shares it. */
static void draw_edge(struct drawing *d, const void *parent,
                      const struct edge *e)
{
    json_int_t from = number(d, parent);

    (void)json_array_insert_new(
        d->edges, 0,
        json_pack("{s:s, s:I, s:o, s:o, s:I}", "name", e->role, "parent", from,
                  "shared-perm", perm_list(e->shared, true), "perm",
                  perm_list(e->perm, false), "child", number(d, e->child)));
}

static void draw_node(struct drawing *d, const void *what, const char *type,
                      const char *name)
{
    json_t *text = json_string(name);

    (void)json_array_insert_new(d->nodes, 0,
                                json_pack("{s:o, s:s, s:I}", "name",
                                          text ? text : json_string(""), "type",
                                          type, "id", number(d, what)));
}

/* The quoted name in the text for a user, or nothing. */
static char *user_name(const struct edge *e)
{
    const char *from = strchr(e->user, '\'');
    const char *to = from ? strrchr(from + 1, '\'') : NULL;

    return to ? strndup(from + 1, (size_t)(to - from) - 1) : strdup("");
}

static void draw_users(struct drawing *d, const struct node *n)
{
    list_for_each (at, &n->parents) {
        const struct edge *e = list_entry(at, struct edge, on_child);

        if (!e->parent) {
            CLEANUP_FREE char *name = user_name(e);
            draw_node(d, e, "block-backend", name ? name : "");
            draw_edge(d, e, e);
        }
    }
}

static void draw(struct graph *g, struct drawing *d)
{
    list_for_each (at, &g->nodes) {
        draw_users(d, list_entry(at, struct node, in_graph));
    }
    list_for_each (at, &g->nodes) {
        struct node *n = list_entry(at, struct node, in_graph);

        draw_node(d, n, "block-driver", n->name);
        for (unsigned i = CHILD_MAX; i-- > 0;) {
            if (n->child[i]) {
                draw_edge(d, n, n->child[i]);
            }
        }
    }
}

static size_t count_all(const struct graph *g)
{
    size_t count = 0;

    list_for_each (at, &g->nodes) {
        const struct node *n = list_entry(at, struct node, in_graph);

        count++;
        list_for_each (to, &n->parents) {
            count += !list_entry(to, struct edge, on_child)->parent;
        }
    }
    return count;
}

json_t *graph_query(struct graph *g)
{
    struct drawing d = {json_array(), json_array(), NULL, 0, 0};

    graph_lock(g);
    d.room = count_all(g);
    d.seen = calloc(d.room + 1, sizeof(*d.seen));
    if (d.seen) {
        draw(g, &d);
    }
    graph_unlock(g);
    free(d.seen);
    return json_pack("{s:o, s:o}", "edges", d.edges, "nodes", d.nodes);
}
