/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading the bitmap of another server: see far-bits.h. */
#include "job/far-bits.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/graph.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"

/* So much is asked for at once. */
#define ASK_MAX (1 * GiB)

/* Images have whole sectors, so one end may be longer by less than that. */
#define SECTOR 512

static bool passes_bytes(const struct node *n)
{
    return n->drv->is_filter || strcmp(n->drv->name, "raw") == 0;
}

struct node *far_export(struct node *n)
{
    while (n && passes_bytes(n)) {
        n = node_child(n, CHILD_FILE);
    }
    return n && n->options && strcmp(n->drv->name, "nbd") == 0 ? n : NULL;
}

/* Options for a second node of the export, which shows the bitmap; NULL: no
 * memory. */
static json_t *view_options(struct node *n, const char *name)
{
    char context[sizeof("qemu:dirty-bitmap:") + BITMAP_NAME_MAX];

    (void)snprintf(context, sizeof(context), "qemu:dirty-bitmap:%s", name);
    graph_lock(n->graph);
    json_t *o = json_deep_copy(n->options);
    graph_unlock(n->graph);
    (void)json_object_del(o, "node-name");
    (void)json_object_del(o, "auto-read-only");
    if (json_object_set_new(o, "x-dirty-bitmap", json_string(context)) < 0 ||
        json_object_set_new(o, "read-only", json_true()) < 0) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static int check_size(uint64_t size, const struct hbitmap *bits,
                      struct error **errp)
{
    uint64_t disk = hbitmap_size(bits);

    return align_up(size, SECTOR) == align_up(disk, SECTOR)
               ? 0
               : error_set(errp, EINVAL,
                           "the export has %" PRIu64 " bytes, the disk "
                           "%" PRIu64,
                           size, disk);
}

struct asking {
    struct hbitmap *bits;
    uint64_t next; /* all before it is known */
};

/* Of such a node, what is dirty is what is not data (drivers/nbd.c). */
static int take_extent(const struct extent *e, void *opaque)
{
    struct asking *a = opaque;

    if (!(e->flags & EXTENT_DATA)) {
        hbitmap_set(a->bits, e->offset, e->length);
    }
    a->next = e->offset + e->length;
    return 0;
}

static int ask(struct node *view, const _Atomic bool *stop,
               struct hbitmap *bits, struct error **errp)
{
    struct asking a = {.bits = bits};
    uint64_t end = min_u64(node_size(view), hbitmap_size(bits));
    int r = check_size(node_size(view), bits, errp);

    if (r < 0) {
        return r;
    }
    node_unwanted = stop;
    while (r == 0 && a.next < end && !atomic_load(stop)) {
        struct tree *t = node_enter(view, false);
        r = node_extents(view, a.next, min_u64(ASK_MAX, end - a.next), 0,
                         take_extent, &a);
        node_leave(t);
        r = r == -ERESTART ? 0 : r;
    }
    node_unwanted = NULL;
    if (atomic_load(stop)) {
        return error_set(errp, ECANCELED, "the job was cancelled");
    }
    if (end < hbitmap_size(bits)) {
        hbitmap_set(bits, end, hbitmap_size(bits) - end);
    }
    return r < 0 ? error_set(errp, -r, "%s", strerror(-r)) : 0;
}

static int look(struct node *n, const char *name, const _Atomic bool *stop,
                struct hbitmap *bits, struct error **errp)
{
    CLEANUP_JSON json_t *options = view_options(n, name);
    struct node *view;

    if (!options) {
        return error_nomem(errp);
    }
    graph_lock(n->graph);
    int r = graph_open_locked(n->graph, options, &view, errp);
    graph_unlock(n->graph);
    if (r < 0) {
        return r;
    }
    r = ask(view, stop, bits, errp);
    graph_lock(n->graph);
    node_unref(view);
    graph_unlock(n->graph);
    return r;
}

int far_bits_add(struct node *n, const char *name, const _Atomic bool *stop,
                 struct hbitmap *bits, struct error **errp)
{
    int r = look(n, name, stop, bits, errp);

    if (r < 0) {
        error_prefix(errp, "bitmap '%s' of '%s': ", name, node_filename(n));
    }
    return r;
}
