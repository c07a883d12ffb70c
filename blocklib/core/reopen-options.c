/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * blockdev-reopen: from options to changes.
 *
 *   read     each object against what its node was opened with; children that
 *            inherit from the node are read in the same way.  The result is
 *            flags for nodes, and edges that shall lead elsewhere.
 *   do       in one drained section: take off the edges that change, attach
 *            the new ones, change the flags, check what the new edges need
 *   undo     backwards; taking an edge off keeps it, so that cannot fail
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph-priv.h"
#include "core/open.h"
#include "core/opts.h"
#include "core/reopen.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

/* Another child; or the same one, and only n's options are new. */
struct change {
    struct list link;
    struct node *n;
    unsigned index;
    struct node *to;  /* with a reference; NULL: none */
    struct edge *old; /* taken off */
    bool attached;
};

struct fresh {
    struct list link;
    struct node *n;
    json_t *options;
};

struct work {
    struct graph *graph;
    struct reopen flags;
    struct list changes;
    struct list fresh;
};

/* How the options of a node are to be understood. */
struct source {
    const json_t *options;
    const struct node_flags *inherited; /* NULL: nobody to inherit from */
    bool keep; /* what is not given stays, instead of returning to default */
};

static int read_node(struct work *w, struct node *n, const struct source *src,
                     struct error **errp);

static int cannot_change(const char *prefix, const char *key,
                         struct error **errp)
{
    return error_set(errp, EINVAL, "Cannot change the option '%s%s%s'", prefix,
                     prefix[0] ? "." : "", key);
}

/* --- Children --- */

static int plan_child(struct work *w, struct node *n, unsigned index,
                      struct node *to, struct error **errp)
{
    static const char *const words[] = {"file", "backing"};
    struct node *old = node_child(n, index);

    if (old && old->drv->is_filter && old->job_count > 0 &&
        old->name[0] == '#') {
        return error_set(errp, EPERM, "Cannot replace implicit %s child of %s",
                         words[index], n->name);
    }
    if (old && old->job_count > 0 && n->job_count > 0) {
        return error_set(errp, EPERM,
                         "Cannot change frozen '%s' link from '%s' to '%s'",
                         words[index], n->name, old->name);
    }
    if (n->drv->is_filter && !old) {
        return error_set(errp, EINVAL,
                         "'%s' is a %s filter node that does not support a %s "
                         "child",
                         n->name, n->drv->name, words[index]);
    }
    struct change *c = calloc(1, sizeof(*c));
    if (!c) {
        return error_nomem(errp);
    }
    c->n = n;
    node_ref(n);
    c->index = index;
    c->to = to;
    if (to) {
        node_ref(to);
    }
    list_append(&w->changes, &c->link);
    return 0;
}

static int find_child(struct work *w, const char *name, struct node **np,
                      struct error **errp)
{
    *np = graph_find_locked(w->graph, name);
    return *np ? 0
               : error_set(errp, ENOENT,
                           "Cannot find device='' nor node-name='%s'", name);
}

/* Refuse the first key in an object, for a child that does not inherit. */
static int refuse_object(const char *key, const json_t *value,
                         struct error **errp)
{
    const char *sub;
    json_t *v;

    json_object_foreach ((json_t *)(uintptr_t)value, sub, v) {
        return cannot_change(key, sub, errp);
    }
    return cannot_change("", key, errp);
}

static int read_child(struct work *w, struct node *n, unsigned index,
                      const char *key, const json_t *value, bool keep,
                      const struct node_flags *flags, struct error **errp)
{
    const struct edge *e = n->child[index];
    struct node *child = e ? e->child : NULL;
    struct source src = {NULL, flags, keep};
    CLEANUP_JSON json_t *none = json_object();
    struct node *to = NULL;
    int r = 0;

    if (json_is_object(value)) {
        if (!child || !e->inherits) {
            return refuse_object(key, value, errp);
        }
        src.options = value;
        src.keep = false;
        return read_node(w, child, &src, errp);
    }
    if (json_is_string(value)) {
        r = find_child(w, json_string_value(value), &to, errp);
    } else if (value && (!json_is_null(value) || index != CHILD_BACKING)) {
        r = error_set(errp, EINVAL,
                      "Invalid parameter type for '%s', expected: BlockdevRef",
                      key);
    }
    if (r < 0) {
        return r;
    }
    if (value && to != child) {
        return plan_child(w, n, index, to, errp);
    }
    if (!child || !e->inherits) {
        return 0;
    }
    src.options = none;
    src.keep = keep || value;
    return none ? read_node(w, child, &src, errp) : error_nomem(errp);
}

/* --- One node --- */

static bool is_listed(const char *const *list, const char *key)
{
    while (list && *list && strcmp(*list, key) != 0) {
        list++;
    }
    return list && *list;
}

/* What the option for the file child is called: "image" in some filters. */
static const char *file_key(const struct node *n)
{
    return n->child[CHILD_FILE] ? n->child[CHILD_FILE]->role : "file";
}

/* Is @key handled elsewhere?  Flags and children are. */
static bool is_common(const struct node *n, const char *key)
{
    static const char *const keys[] = {
        "read-only",     "auto-read-only", "discard", "cache",
        "detect-zeroes", "node-name",      NULL,
    };
    return is_listed(keys, key) || strcmp(key, file_key(n)) == 0 ||
           (n->child[CHILD_DATA] && strcmp(key, "data-file") == 0) ||
           (n->drv->has_backing && strcmp(key, "backing") == 0);
}

static int check_unchanged(const struct node *n, const char *key,
                           const json_t *value, struct error **errp)
{
    const json_t *old = json_object_get(n->options, key);
    const char *text = json_string_value(value);
    bool same = old && json_equal(old, value);

    if (text && strcmp(key, "driver") == 0) {
        same = strcmp(text, n->drv->name) == 0;
    } else if (text && strcmp(key, "node-name") == 0) {
        same = strcmp(text, n->name) == 0;
    } else if (!old && strcmp(key, "active") == 0) {
        same = json_is_true(value); /* the default */
    }
    return same ? 0 : cannot_change("", key, errp);
}

static bool may_change(const struct driver *drv, const char *key)
{
    return drv->reopen && is_listed(drv->reopen->options, key);
}

static int check_rest(const struct node *n, const json_t *options, bool keep,
                      struct error **errp)
{
    const char *key;
    json_t *value;
    int r = 0;

    json_object_foreach ((json_t *)(uintptr_t)options, key, value) {
        bool free_to_change = (is_common(n, key) &&
                               strcmp(key, "node-name") != 0) ||
                              may_change(n->drv, key);
        if (!free_to_change) {
            r = check_unchanged(n, key, value, errp);
        }
        if (r < 0) {
            return r;
        }
    }
    json_object_foreach (n->options, key, value) {
        if (!keep && !json_object_get(options, key) && !is_common(n, key) &&
            strcmp(key, "driver") != 0 && !may_change(n->drv, key)) {
            return error_set(errp, EINVAL,
                             "Option '%s' cannot be reset to its default "
                             "value",
                             key);
        }
    }
    return 0;
}

static int read_flags(struct node *n, const json_t *options,
                      const struct node_flags *inherited,
                      struct node_flags *flags, struct error **errp)
{
    *flags = (struct node_flags){.locking = n->flags.locking};
    if (inherited) {
        *flags = *inherited;
    }
    struct opts *opts = opts_new(options);
    if (!opts) {
        return error_nomem(errp);
    }
    opts_describe(opts, graph_node_options, NULL);
    int r = node_take_flags(opts, flags, errp);
    opts_free(opts);
    if (r == 0 && flags->force_share != n->flags.force_share) {
        r = cannot_change("", "force-share", errp);
    }
    node_flags_set_active(flags, node_active(n));
    return r;
}

/* Take the options that the driver allows to change. */
static int take_new_options(struct node *n, const json_t *options,
                            struct error **errp)
{
    CLEANUP_JSON json_t *own = json_object();
    const char *const *keys = n->drv->reopen->options;
    int r = own ? 0 : -ENOMEM;

    for (; r == 0 && *keys; keys++) {
        json_t *value = json_object_get(options, *keys);
        if (value && json_object_set(own, *keys, value) < 0) {
            r = -ENOMEM;
        }
    }
    struct opts *opts = r == 0 ? opts_new(own) : NULL;
    if (!opts) {
        return error_nomem(errp);
    }
    opts_describe(opts, NULL, n->drv->options);
    r = n->drv->reopen->take(n, opts, errp);
    opts_free(opts);
    return r;
}

static int remember(struct work *w, struct node *n, const json_t *options,
                    struct error **errp)
{
    list_for_each (at, &w->fresh) {
        if (list_entry(at, struct fresh, link)->n == n) {
            return error_set(errp, EINVAL,
                             "Node '%s' is to be reopened more than once",
                             n->name);
        }
    }
    struct fresh *f = calloc(1, sizeof(*f));
    if (!f) {
        return error_nomem(errp);
    }
    f->n = n;
    node_ref(n);
    f->options = json_deep_copy(options);
    list_append(&w->fresh, &f->link);
    return f->options ? 0 : error_nomem(errp);
}

static int read_backing(struct work *w, struct node *n, const json_t *options,
                        bool keep, const struct node_flags *flags,
                        struct error **errp)
{
    const json_t *value = json_object_get(options, "backing");
    struct node_flags below = *flags;

    if (!n->drv->has_backing) {
        return 0;
    }
    if (!value && !keep && (n->child[CHILD_BACKING] || n->image_backing)) {
        return error_set(errp, EINVAL, "backing is missing for '%s'", n->name);
    }
    node_flags_set_read_only(&below);
    return read_child(w, n, CHILD_BACKING, "backing", value, keep, &below,
                      errp);
}

static int read_file(struct work *w, struct node *n, const json_t *options,
                     bool keep, const struct node_flags *flags,
                     struct error **errp)
{
    const char *key = file_key(n);
    const json_t *value = json_object_get(options, key);
    const char *name = json_string_value(value);

    if (n->drv->is_protocol ||
        (name && strcmp(key, "file") != 0 &&
         strcmp(name, node_child(n, CHILD_FILE)->name) != 0)) {
        return value ? cannot_change("", key, errp) : 0;
    }
    return read_child(w, n, CHILD_FILE, key, value, keep, flags, errp);
}

/* Read the options of the data child, which stays the same node.  Its own
 * options may change.  A child that was opened because the image names it has
 * no options that a user could repeat. */
static int read_data(struct work *w, struct node *n, const json_t *options,
                     bool keep, const struct node_flags *flags,
                     struct error **errp)
{
    const json_t *value = json_object_get(options, "data-file");
    const char *name = json_string_value(value);
    const struct node *child = node_child(n, CHILD_DATA);

    if (!child) {
        return 0;
    }
    if (name && strcmp(name, child->name) != 0) {
        return cannot_change("", "data-file", errp);
    }
    keep |= !json_object_get(n->options, "data-file");
    return read_child(w, n, CHILD_DATA, "data-file", value, keep, flags, errp);
}

static int read_written(struct work *w, struct node *n, const json_t *options,
                        bool keep, const struct node_flags *flags,
                        struct error **errp)
{
    int r = read_file(w, n, options, keep, flags, errp);

    return r < 0 ? r : read_data(w, n, options, keep, flags, errp);
}

static int read_complete(struct work *w, struct node *n, const json_t *options,
                         const struct source *src, struct error **errp)
{
    struct node_flags flags;
    int r;

    if ((r = check_rest(n, options, src->keep, errp)) < 0 ||
        (r = read_flags(n, options, src->inherited, &flags, errp)) < 0 ||
        (r = remember(w, n, options, errp)) < 0) {
        return r;
    }
    bool child_first = n->flags.read_only && !flags.read_only;
    if (child_first) {
        r = read_written(w, n, options, src->keep, &flags, errp);
    }
    if (r == 0) {
        r = reopen_add_one(&w->flags, n, &flags, errp);
    }
    if (r == 0 && n->drv->reopen && n->drv->reopen->take) {
        r = take_new_options(n, options, errp);
    }
    if (r == 0 && !child_first) {
        r = read_written(w, n, options, src->keep, &flags, errp);
    }
    return r < 0 ? r : read_backing(w, n, options, src->keep, &flags, errp);
}

static int read_node(struct work *w, struct node *n, const struct source *src,
                     struct error **errp)
{
    CLEANUP_JSON json_t *options = json_deep_copy(src->options);

    if (!options || !n->options ||
        (src->keep && json_object_update_missing(options, n->options) < 0)) {
        return n->options ? error_nomem(errp)
                          : error_set(errp, EINVAL,
                                      "Block format '%s' used by node '%s' "
                                      "does not support reopening files",
                                      n->drv->name, n->name);
    }
    if (src->keep) { /* the children as they are now, not as they were */
        (void)json_object_del(options, file_key(n));
        (void)json_object_del(options, "backing");
        (void)json_object_del(options, "data-file");
    }
    graph_drain(w->graph, n);
    return read_complete(w, n, options, src, errp);
}

static int read_item(struct work *w, const json_t *item, struct error **errp)
{
    const char *name = json_string_value(json_object_get(item, "node-name"));
    struct source src = {item, NULL, false};

    if (!name) {
        return error_set(errp, EINVAL, "node-name not specified");
    }
    struct node *n = graph_find_locked(w->graph, name);
    return n ? read_node(w, n, &src, errp)
             : error_set(errp, ENOENT,
                         "Failed to find node with node-name='%s'", name);
}

/* --- Doing it --- */

static unsigned wanted_perm(const struct change *c)
{
    bool writes = c->index == CHILD_FILE && !c->n->flags.read_only;

    return PERM_READ |
           (writes ? PERM_WRITE | (c->old->may_grow ? PERM_RESIZE : 0) : 0);
}

static void tell_driver(struct node *n, unsigned index)
{
    if (index == CHILD_FILE && n->drv->file_changed) {
        n->drv->file_changed(n);
    }
}

static int take_off(struct change *c, struct error **errp)
{
    int r = c->index == CHILD_FILE && !c->n->flags.read_only ? node_flush(c->n)
                                                             : 0;

    if (r < 0) {
        return error_set(errp, -r, "cannot flush '%s': %s", c->n->name,
                         strerror(-r));
    }
    if (c->to) {
        graph_drain(c->n->graph, c->to);
    }
    c->old = node_take_child(c->n, c->index);
    return 0;
}

static int attach(struct change *c, struct error **errp)
{
    bool file = c->index == CHILD_FILE;

    if (!c->to) {
        return 0;
    }
    int r = node_attach(c->n, c->index, c->to, file ? "file" : "backing",
                        PERM_READ, c->old ? c->old->shared : PERM_ALL, errp);
    if (r == 0) {
        c->attached = true;
        c->n->child[c->index]->may_grow = c->old && c->old->may_grow;
        tell_driver(c->n, c->index);
    }
    return r;
}

/* A smaller child makes the nodes above smaller, where jobs may be at work. */
static int check_size(const struct change *c, struct error **errp)
{
    return c->index == CHILD_FILE && c->to && c->old &&
                   node_size(c->to) < node_size(c->old->child)
               ? node_check_shrink(c->n, errp)
               : 0;
}

/* Check a new edge with the flags that the nodes shall have. */
static int check_new_edge(struct change *c, struct error **errp)
{
    struct edge *e = c->n->child[c->index];

    if (!e) {
        return 0;
    }
    unsigned perm = wanted_perm(c);
    if (!node_passes_perms(c->n) || c->index != CHILD_FILE) {
        int r = edge_check(e, e->child, perm, errp);
        if (r < 0) {
            return r;
        }
        e->perm = perm;
        node_hand_down_perms(e->child);
    }
    if (perm & PERM_RESIZE) {
        node_set_growable(e->child, true);
    }
    return 0;
}

#define change_of(at) list_entry(at, struct change, link)

static int do_changes(struct work *w, struct error **errp)
{
    int r = 0;

    list_for_each (at, &w->changes) {
        r = r < 0 ? r : take_off(change_of(at), errp);
    }
    list_for_each (at, &w->changes) {
        r = r < 0 ? r : attach(change_of(at), errp);
    }
    if (r == 0) {
        r = reopen_apply(&w->flags, errp);
    }
    list_for_each (at, &w->changes) {
        r = r < 0 ? r : check_new_edge(change_of(at), errp);
        r = r < 0 ? r : check_size(change_of(at), errp);
    }
    return r;
}

static void undo_changes(struct work *w)
{
    for (struct list *at = w->changes.prev; at != &w->changes; at = at->prev) {
        struct change *c = change_of(at);
        if (c->attached) {
            node_detach(c->n, c->index);
        }
    }
    for (struct list *at = w->changes.prev; at != &w->changes; at = at->prev) {
        struct change *c = change_of(at);
        if (c->old) {
            node_put_child(c->n, c->index, c->old);
            c->old = NULL;
            tell_driver(c->n, c->index);
        }
    }
}

static void free_work(struct work *w, bool stay)
{
    list_for_each_safe (at, &w->changes) {
        struct change *c = change_of(at);
        list_remove(at);
        node_refresh_limits(c->n);
        node_follow_size(c->n);
        node_refresh_above(c->n);
        edge_free(c->old);
        if (c->to) {
            node_unref(c->to);
        }
        node_unref(c->n);
        free(c);
    }
    list_for_each_safe (at, &w->fresh) {
        struct fresh *f = list_entry(at, struct fresh, link);
        list_remove(at);
        if (stay) {
            json_decref(f->n->options);
            f->n->options = f->options;
        } else {
            json_decref(f->options);
        }
        node_unref(f->n);
        free(f);
    }
}

static int reopen_locked(struct work *w, const json_t *list,
                         struct error **errp)
{
    size_t i;
    json_t *item;
    int r = reopen_check_types(graph_drivers(w->graph), list, errp);

    json_array_foreach (list, i, item) {
        r = r < 0 ? r : read_item(w, item, errp);
    }
    if (r == 0) {
        r = do_changes(w, errp);
    }
    reopen_finish(&w->flags, r == 0);
    if (r < 0) {
        undo_changes(w);
    }
    free_work(w, r == 0);
    return r;
}

int graph_reopen(struct graph *g, const json_t *list, struct error **errp)
{
    struct work w = {.graph = g};

    reopen_init(&w.flags);
    list_init(&w.changes);
    list_init(&w.fresh);
    graph_lock(g);
    int r = reopen_locked(&w, list, errp);
    graph_unlock(g);
    return r;
}
