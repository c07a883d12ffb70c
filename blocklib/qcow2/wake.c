/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An image that was inactive is read anew (core/activity.c).
 *
 *   old state     what the node shows while it is inactive; it stays until the
 *                 reopen is known to stay
 *   new state     as of an open, with the old one's options and key
 *
 * Which nodes the children are does not change: an image that has got another
 * backing file meanwhile is shown with the backing node it has here, as in
 * QEMU.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/error.h"
#include "qcow2/bitmaps.h"
#include "qcow2/check.h"

/* What the node had. */
struct qcow2_asleep {
    struct qcow2 *state;
    uint64_t size;
    uint32_t cluster_size;
    char *image_backing;
    char *image_backing_fmt;
};

/* --- Becoming inactive --- */

int qcow2_check_rest(struct qcow2 *s, struct error **errp)
{
    if (s->changing) {
        return error_set(errp, EBUSY, "a snapshot is being made or removed");
    }
    /* Everything is written.  What was in doubt before that is no more, or
     * nobody else may have the image. */
    return atomic_load(&s->node->bitmaps_doubt)
               ? error_set(errp, EIO,
                           "what '%s' says of its bitmaps is in doubt",
                           node_filename(s->node))
               : 0;
}

/* They are in the image, and others may change them there. */
void qcow2_bitmaps_leave(struct qcow2 *s)
{
    while (!list_empty(&s->bitmaps.list)) {
        struct qcow2_bitmap *qb = list_entry(s->bitmaps.list.next,
                                             struct qcow2_bitmap, in_image);
        struct bitmap *bm = qb->bm;

        qcow2_bitmap_free(qb); /* bm is stored nowhere, then */
        if (bm) {
            bitmap_drop(bm);
        }
    }
    bitmap_nest(s->node, NULL);
}

/* --- Becoming active --- */

static struct qcow2 *state_like(const struct qcow2 *old)
{
    struct qcow2 *s = calloc(1, sizeof(*s));

    if (s) {
        s->node = old->node;
        s->file = old->file;
        s->data = old->data;
        s->luks = old->luks;
        s->bitmaps.process_only = old->bitmaps.process_only;
        atomic_init(&s->overlap_checked, atomic_load(&old->overlap_checked));
        atomic_init(&s->keep_clusters, atomic_load(&old->keep_clusters));
        qcow2_state_init(s);
    }
    return s;
}

static void forget_state(struct qcow2 *s)
{
    qcow2_bitmaps_leave(s);
    s->luks = NULL; /* the other state has it */
    qcow2_state_free(s);
    free(s);
}

/* What cannot change while others have the image. */
static int check_same(const struct qcow2 *old, const struct qcow2_header *h,
                      struct error **errp)
{
    bool external = h->incompatible & QCOW2_INCOMPAT_DATA_FILE;

    if ((h->crypt == QCOW2_LUKS) != (old->luks != NULL) ||
        external != old->external) {
        return error_set(errp, EINVAL,
                         "another process has changed its encryption, or "
                         "whether it has a data file: close the node, and open "
                         "it again");
    }
    return 0;
}

static int check_names(const struct node *n, const struct qcow2 *s,
                       struct error **errp)
{
    list_for_each (at, &s->bitmaps.list) {
        const struct qcow2_bitmap *qb = list_entry(at, struct qcow2_bitmap,
                                                   in_image);
        list_for_each (other, &n->bitmaps) {
            const struct bitmap *bm = list_entry(other, struct bitmap, on_node);
            if (bm != qb->bm && bm->name && strcmp(bm->name, qb->name) == 0) {
                return error_set(
                    errp, EEXIST,
                    "Bitmap already exists: %s (also in the image)", bm->name);
            }
        }
    }
    return 0;
}

static int read_anew(struct qcow2 *s, const struct qcow2 *old, bool writable,
                     struct error **errp)
{
    struct node *n = s->node;
    struct qcow2_header h;
    int r = qcow2_header_read(s->file, &h, errp);

    if (r < 0) {
        return r;
    }
    r = check_same(old, &h, errp);
    if (r == 0 && writable) {
        r = qcow2_count_anew(s->file, &h, errp);
    }
    if (r == 0) {
        s->external = old->external;
        s->raw = h.autoclear & QCOW2_AUTOCLEAR_RAW;
        qcow2_files_changed(s);
        r = qcow2_read_all(s, &h, old, errp);
    }
    qcow2_header_release(&h);
    return r < 0 ? r : check_names(n, s, errp);
}

static void have_state_back(struct node *n, struct qcow2_asleep *a)
{
    free(n->image_backing);
    free(n->image_backing_fmt);
    n->image_backing = a->image_backing;
    n->image_backing_fmt = a->image_backing_fmt;
    n->size = a->size;
    n->cluster_size = a->cluster_size;
    n->state = a->state;
    free(a);
}

int qcow2_wake(struct node *n, bool writable, struct error **errp)
{
    struct qcow2 *old = n->state;
    struct qcow2_asleep *a = calloc(1, sizeof(*a));
    struct qcow2 *s = a ? state_like(old) : NULL;

    if (!s) {
        free(a);
        return error_nomem(errp);
    }
    *a = (struct qcow2_asleep){old, n->size, n->cluster_size, n->image_backing,
                               n->image_backing_fmt};
    n->image_backing = NULL;
    n->image_backing_fmt = NULL;
    n->state = s;
    atomic_store(&n->bitmaps_doubt, false);
    s->wanted = old->wanted;
    old->wanted = NULL;
    s->asleep = a;
    int r = read_anew(s, old, writable, errp);
    if (r < 0) {
        error_prefix(errp, "Could not open '%s': ", node_filename(s->file));
    }
    return r;
}

void qcow2_wake_commit(struct node *n)
{
    struct qcow2 *s = n->state;
    struct qcow2_asleep *a = s->asleep;

    if (a) {
        s->asleep = NULL;
        free(a->image_backing);
        free(a->image_backing_fmt);
        forget_state(a->state);
        free(a);
    }
}

void qcow2_wake_abort(struct node *n)
{
    struct qcow2 *s = n->state;

    if (s->asleep) {
        struct qcow2_asleep *a = s->asleep;

        s->asleep = NULL;
        qcow2_tightener_stop(s);
        have_state_back(n, a);
        forget_state(s);
    }
}
