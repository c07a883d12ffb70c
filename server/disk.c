/* SPDX-License-Identifier: BSD-3-Clause */
/* Names that users give to disks: see disk.h. */
#include "disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"
#include "nbd/export.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "vm/device.h"

struct find_export {
    const char *name;
    struct node *node;
};

static int match_export(struct export *e, void *opaque)
{
    struct find_export *f = opaque;

    if (!e->of_backup &&
        (strcmp(e->name, f->name) == 0 || strcmp(e->id, f->name) == 0)) {
        f->node = blk_node(e->blk);
        return 1;
    }
    return 0;
}

/* The node of the block backend or export @name. */
static struct node *find_exported(struct daemon *d, const char *name)
{
    struct find_export f = {.name = name};
    const struct blk *b = d->devices ? devices_find(d->devices, name) : NULL;

    if (b) {
        return blk_node(b);
    }

    (void)exports_each(d->exports, match_export, &f);
    return f.node;
}

static int match_image(struct export *e, void *opaque)
{
    struct find_export *f = opaque;

    if (e->is_default && strcmp(e->id, f->name) == 0) {
        f->node = blk_disk_named(e->blk, f->name);
        return 1;
    }
    return 0;
}

/* The node that clients of the image @name of the command line see now:
 * snapshots and commits take them from the node of that name to another one. */
static struct node *find_image(struct daemon *d, const char *name)
{
    struct find_export f = {.name = name};

    (void)exports_each(d->exports, match_image, &f);
    return f.node;
}

/* The first of the two nodes that is there; if none is, NULL and an error. */
static struct node *either(struct node *n, struct node *other, const char *name,
                           struct error **errp)
{
    if (!n && !other) {
        (void)error_set(errp, ENODEV,
                        "Cannot find device='%.200s' nor node-name='%.200s'",
                        name, name);
    }
    return n ? n : other;
}

struct node *disk_find_node(struct daemon *d, const char *name,
                            struct error **errp)
{
    struct node *n = find_image(d, name);

    return either(n ? n : graph_find(d->graph, name), find_exported(d, name),
                  name, errp);
}

struct node *disk_find_device(struct daemon *d, const char *name,
                              struct error **errp)
{
    return either(find_exported(d, name), graph_find(d->graph, name), name,
                  errp);
}

/* --- A device gets another node --- */

struct movers {
    const char *name;
    const struct node *to;
    struct blk **users;
    unsigned count;
    struct error **errp;
};

static int collect_mover(struct export *e, void *opaque)
{
    struct movers *m = opaque;

    if (e->of_backup || strcmp(e->name, m->name) != 0) {
        return 0;
    }
    if (node_size(m->to) != blk_size(e->blk)) {
        return error_set(m->errp, EINVAL,
                         "Node '%.200s' has another size than export '%.200s', "
                         "and clients know that",
                         node_name(m->to), e->name);
    }
    struct blk **more = realloc(m->users, (m->count + 1) * sizeof(*more));
    if (!more) {
        return error_nomem(m->errp);
    }
    m->users = more;
    more[m->count++] = e->blk;
    return 0;
}

int disk_set_node(struct daemon *d, const char *name, struct node *n,
                  struct error **errp)
{
    struct movers m = {.name = name, .to = n, .errp = errp};

    if (d->devices && devices_has(d->devices, name)) {
        return devices_set_disk(d, name, n, errp);
    }
    int r = exports_each(d->exports, collect_mover, &m);
    if (r == 0 && m.count == 0) {
        r = error_set(errp, ENODEV, "Device '%.200s' not found", name);
    }
    if (r == 0) {
        r = blk_move(m.users, m.count, n, errp);
    }
    free(m.users);
    return r;
}

const char *disk_job_id(struct daemon *d, const char *id, const char *device)
{
    if (id) {
        return id;
    }
    return find_exported(d, device) ? device : "";
}

bool disk_has_bitmap(struct node *n, const char *name)
{
    struct bitmap *bm = bitmap_find(n, name);

    bitmap_unref(bm);
    return bm != NULL;
}

/* --- All that a command mentions. --- */

struct search {
    struct daemon *daemon;
    const json_t *names;
    bool exports;
    json_t *nodes; /* what was found: names of nodes */
};

static bool is_mentioned(const struct search *s, const char *name)
{
    return !s->names || json_object_get(s->names, name) != NULL;
}

static void note_node(const struct search *s, const struct node *n)
{
    (void)json_object_set_new(s->nodes, node_name(n), json_true());
}

static int search_export(struct export *e, void *opaque)
{
    const struct search *s = opaque;

    if (!e->of && (is_mentioned(s, e->id) || is_mentioned(s, e->name) ||
                   (s->exports && !e->of_backup))) {
        note_node(s, blk_node(e->blk));
    }
    return 0;
}

static bool names_job(const char *id, void *opaque)
{
    return is_mentioned(opaque, id);
}

static int note_used_node(struct node *n, void *opaque)
{
    struct search *s = opaque;
    struct jobs *j = s->daemon->jobs;

    mutex_is_held(&j->lock);
    if (is_mentioned(s, node_name(n)) || jobs_use(j, n, names_job, s)) {
        note_node(s, n);
    }
    return 0;
}

static void note_devices(const struct search *s)
{
    const char *name;
    json_t *value;

    json_object_foreach ((json_t *)(uintptr_t)s->names, name, value) {
        const struct blk *b = devices_find(s->daemon->devices, name);
        if (b) {
            note_node(s, blk_node(b));
        }
    }
}

void disk_find_nodes(struct daemon *d, const json_t *names, bool exports,
                     json_t *nodes)
{
    struct search s = {d, names, exports, nodes};

    if (names) {
        (void)exports_each(d->exports, search_export, &s);
    }
    (void)graph_each(d->graph, note_used_node, &s);
    note_devices(&s);
}
