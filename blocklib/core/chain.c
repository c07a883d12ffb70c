/* SPDX-License-Identifier: BSD-3-Clause */
/* Backing chains: length, files, and the names of these in images. */
#include "core/chain.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/blocker.h"
#include "core/format.h"
#include "core/graph-priv.h"
#include "core/graph.h"
#include "core/image-name.h"
#include "core/reopen.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

struct node *chain_next(const struct node *n)
{
    return node_child(n, n->drv->is_filter ? CHILD_FILE : CHILD_BACKING);
}

/* The number of nodes that are opened for @n: its images, and the file of the
 * last one. */
static unsigned opened_for(const struct node *n)
{
    unsigned count = 0;

    while (n) {
        n = node_skip_filters(n);
        count += n->drv->is_protocol ? 2 : 1; /* it is named as raw */
        const struct node *next = node_child(n, CHILD_BACKING);
        if (!next && !n->drv->is_protocol) {
            count++;
        }
        n = next;
    }
    return count;
}

int chain_check_room(const struct node *n, struct error **errp)
{
    return opened_for(n) > CHAIN_MAX
               ? error_set(errp, ELOOP,
                           "more than %d images would be stacked, which nobody "
                           "could open",
                           CHAIN_MAX)
               : 0;
}

bool chain_contains(struct node *top, const struct node *n)
{
    while (top && top != n) {
        top = chain_next(top);
    }
    return top != NULL;
}

int chain_set_read_only(struct node *n, bool read_only, struct error **errp)
{
    struct node *below = n->drv->is_filter ? node_child(n, CHILD_FILE) : NULL;
    int r = below && !read_only ? chain_set_read_only(below, false, errp) : 0;

    if (r == 0) {
        r = node_set_read_only(n, read_only, errp);
    }
    if (r == 0 && below && read_only) {
        r = chain_set_read_only(below, true, errp);
    }
    return r;
}

char *chain_backing_name(const struct node *n, struct error **errp)
{
    const char *name = node_filename(n);
    CLEANUP_FREE char *cwd = NULL;
    char *full = NULL;

    if (name[0] == '/' || strncmp(name, "json:", 5) == 0) {
        full = strdup(name);
    } else if ((cwd = getcwd(NULL, 0)) &&
               asprintf(&full, "%s/%s", cwd, name) < 0) {
        full = NULL;
    }
    if (!full) {
        (void)error_set(errp, errno,
                        "cannot find the path of '%s', to name it in another "
                        "image: %s",
                        name, strerror(errno));
    }
    return full;
}

const char *chain_backing_format(const struct node *n)
{
    n = node_skip_filters(n);
    return n->drv->is_protocol ? FORMAT_OF_BYTES : node_driver(n);
}

static bool same_file(const char *a, const char *b)
{
    CLEANUP_FREE char *real_a = a ? realpath(a, NULL) : NULL;
    CLEANUP_FREE char *real_b = b ? realpath(b, NULL) : NULL;

    return real_a && real_b && strcmp(real_a, real_b) == 0;
}

/* Is @backing the file that @image names, and not one given in its place? */
static bool is_own_backing(const struct node *image, const struct node *backing)
{
    CLEANUP_FREE char *path = image->image_backing
                                  ? image_name_path(image->image_backing,
                                                    node_filename(image))
                                  : NULL;
    return same_file(path, node_filename(backing));
}

/* Is @name a name for @backing, as seen from @image? */
static bool is_named(const struct node *image, const struct node *backing,
                     const char *name)
{
    if (strcmp(name, node_filename(backing)) == 0) {
        return true;
    }
    if (!is_own_backing(image, backing)) {
        return false;
    }
    if (strcmp(name, image->image_backing) == 0) {
        return true;
    }
    CLEANUP_FREE char *path = path_beside(node_filename(image), name);
    return same_file(path, node_filename(backing));
}

struct node *chain_find_file(struct node *top, const char *name)
{
    struct node *n = node_skip_filters(top);
    struct node *backing;

    while ((backing = node_skip_filters(node_child(n, CHILD_BACKING)))) {
        if (is_named(n, backing, name)) {
            return backing;
        }
        n = backing;
    }
    return NULL;
}

int chain_set_backing(struct node *n, struct node *backing, struct error **errp)
{
    struct edge *old = node_take_child(n, CHILD_BACKING);
    int r = backing ? node_attach(n, CHILD_BACKING, backing, "backing",
                                  old->perm, old->shared, errp)
                    : 0;

    if (r < 0) {
        node_put_child(n, CHILD_BACKING, old);
        return r;
    }
    if (backing) {
        n->child[CHILD_BACKING]->inherits = old->inherits &&
                                            !backing->monitor_owned;
    }
    edge_free(old);
    return 0;
}

int chain_set_backing_name(struct node *n, const char *name, const char *fmt,
                           struct error **errp)
{
    bool read_only = n->flags.read_only;

    if (!n->drv->image || !n->drv->image->change_backing) {
        return error_set(errp, ENOTSUP,
                         "Could not change backing file to '%s': format '%s' "
                         "has none",
                         name ? name : "", node_driver(n));
    }
    int r = node_set_read_only(n, false, errp);
    if (r < 0) {
        return r;
    }
    r = n->drv->image->change_backing(n, name, fmt, errp);
    if (read_only) {
        int back = node_set_read_only(n, true, r < 0 ? NULL : errp);
        r = r < 0 ? r : back;
    }
    return r;
}

static int change_backing_locked(struct node *top, const char *device,
                                 struct node *image, const char *name,
                                 struct error **errp)
{
    const struct node *backing = node_child(image, CHILD_BACKING);

    list_for_each (at, &top->parents) {
        if (list_entry(at, struct edge, on_child)->parent) {
            return error_set(errp, EINVAL, "Need a root block node");
        }
    }
    if (!backing) {
        return error_set(errp, EINVAL,
                         "not allowing backing file change on an image "
                         "without a backing file");
    }
    int r = node_check_jobs(top, errp);
    if (r < 0) {
        return r;
    }
    if (!chain_contains(top, image)) {
        return error_set(errp, EINVAL,
                         "'%s' and image file are not in the same chain",
                         device);
    }
    return chain_set_backing_name(image, name, chain_backing_format(backing),
                                  errp);
}

int chain_change_backing(struct graph *g, struct node *top, const char *device,
                         struct node *image, const char *name,
                         struct error **errp)
{
    graph_lock(g);
    graph_drain(g, image);
    int r = change_backing_locked(top, device, image, name, errp);
    graph_unlock(g);
    return r;
}

int image_set_backing(struct graph *g, struct node *image, const char *name,
                      const char *fmt, struct error **errp)
{
    graph_lock(g);
    graph_drain(g, image);
    int r = node_check_jobs(image, errp);
    if (r == 0) {
        r = chain_set_backing_name(image, name, fmt, errp);
    }
    graph_unlock(g);
    return r;
}

char *image_backing_path(const struct node *image, const char *name)
{
    return image_name_path(name, node_filename(image));
}
