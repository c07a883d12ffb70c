/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Views: a node for each snapshot that somebody reads while the disk is in use.
 *
 *   view ---TARGET---> disk         no commit changes what is below it
 *    | \---BACKING---> what the disk is on
 *    \-----FILE------> the image    the snapshot's L1 table is in memory
 *
 * The view reads with the disk's own functions, from a state of its own: other
 * tables, other caches.  It never writes.  What a snapshot refers to does not
 * change, and was in the file before the header led to the snapshot.  So the
 * view needs to know nothing of what the disk has in memory.
 *
 * `views` of the disk is looked at under its meta lock before a snapshot is
 * removed.  Images that are opened with the option `snapshot` hold a mark on
 * the file instead (core/imagelock.h), because the disk may be in use
 * elsewhere.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph-priv.h"
#include "nbdelta/blk.h"
#include "nbdelta/error.h"
#include "qcow2/bitmaps.h"
#include "qcow2/encrypt.h"
#include "qcow2/snapshot-change.h"

/* Of one view: its L2 tables; and of all views in a graph: L1 tables. */
#define CACHE_BYTES (1 * MiB)
#define TABLES_MAX  (1 * GiB)

/* A snapshot that was found in an image. */
struct snapshot_found {
    uint64_t serial; /* of the table that it was found in */
    uint64_t size;
    uint64_t l1_offset;
    uint32_t l1_size;
    uint64_t *l1; /* as it is on disk */
};

struct view {
    struct qcow2 s;      /* what the driver's functions see */
    struct qcow2 *disk;  /* with a reference to the node */
    struct list of_disk; /* meta lock of the disk */
};

/* --- Who shows a snapshot? --- */

void qcow2_snapshots_changed(struct qcow2 *s)
{
    static _Atomic uint64_t serials;

    s->snapshots_serial = atomic_fetch_add(&serials, 1) + 1;
}

static struct view *find_view(struct qcow2 *disk, uint64_t l1_offset)
    REQUIRES(disk->meta)
{
    list_for_each (at, &disk->views) {
        struct view *v = list_entry(at, struct view, of_disk);

        if (v->s.l1_offset == l1_offset) {
            return v;
        }
    }
    return NULL;
}

/* A mark is the place of the snapshot's L1 table, in sectors: no two snapshots
 * have the same. */
static uint64_t mark_of(uint64_t l1_offset)
{
    return l1_offset / QCOW2_SECTOR;
}

/* The node that has the bytes of @n as they are, and its locks. */
static struct node *protocol_of(struct node *n)
{
    while (n && node_passes_perms(n)) {
        n = node_child(n, CHILD_FILE);
    }
    return n;
}

void qcow2_snapshot_mark(struct node *file, uint64_t l1_offset)
{
    struct node *n = protocol_of(file);

    if (n && n->drv->hold_mark) {
        n->drv->hold_mark(n, mark_of(l1_offset));
    }
}

bool qcow2_snapshot_shown(struct qcow2 *s, uint64_t l1_offset)
{
    struct node *n = protocol_of(s->file);

    mutex_lock(&s->meta);
    bool shown = find_view(s, l1_offset);
    mutex_unlock(&s->meta);
    return shown ||
           (n && n->drv->has_mark && n->drv->has_mark(n, mark_of(l1_offset)));
}

/* --- The node --- */

static void view_close(struct node *n)
{
    struct view *v = n->state;

    mutex_lock(&v->disk->meta);
    list_remove(&v->of_disk);
    mutex_unlock(&v->disk->meta);
    v->s.luks = NULL; /* it is the disk's */
    qcow2_state_free(&v->s);
    node_unref(v->disk->node);
}

static void view_file_changed(struct node *n)
{
    struct view *v = n->state;

    v->s.file = v->s.data = node_child(n, CHILD_FILE);
    qcow2_cache_set_file(v->s.l2, v->s.file);
    qcow2_cache_set_file(v->s.refblocks, v->s.file);
}

static const struct driver driver_snapshot_view = {
    .name = "snapshot-view",
    .passive = true,
    .state_size = sizeof(struct view),
    .close = view_close,
    .file_changed = view_file_changed,
    .limits = qcow2_limits,
    .map = qcow2_map,
    .map_many = qcow2_map_many,
    .map_put = qcow2_map_put,
    .preadv = qcow2_read_compressed,
    .decode = qcow2_decode,
};

static void take_state(struct view *v, struct node *n, struct qcow2 *disk)
{
    struct qcow2 *s = &v->s;

    qcow2_state_init(s);
    s->node = n;
    s->file = s->data = disk->file;
    s->version = disk->version;
    s->cluster_bits = disk->cluster_bits;
    s->cluster_size = disk->cluster_size;
    s->extended = disk->extended;
    s->sub_bits = disk->sub_bits;
    s->l2_bits = disk->l2_bits;
    s->refcount_order = disk->refcount_order;
    s->refblock_bits = disk->refblock_bits;
    s->compression = disk->compression;
    s->shows_snapshot = true;
    s->luks = disk->luks;
    v->disk = disk;
    node_ref(disk->node);
    n->flags.read_only = true;
    n->cluster_size = (uint32_t)s->cluster_size;
}

static int take_tables(struct view *v, const struct snapshot_found *found,
                       struct error **errp)
{
    struct qcow2 *s = &v->s;

    s->l1 = calloc(found->l1_size + 1UL, sizeof(*s->l1));
    if (!s->l1) {
        return error_nomem(errp);
    }
    for (uint32_t i = 0; i < found->l1_size; i++) {
        atomic_init(&s->l1[i], be64toh(found->l1[i]) & QCOW2_OFFSET_MASK);
    }
    s->l1_size = found->l1_size;
    s->l1_offset = found->l1_offset;
    s->node->size = found->size;
    return qcow2_make_caches(s, CACHE_BYTES, 0, errp);
}

static int attach(struct node *n, struct qcow2 *disk, struct error **errp)
{
    struct node *backing = node_child(disk->node, CHILD_BACKING);
    int r = node_attach(n, CHILD_TARGET, disk->node, "disk", 0, PERM_ALL, errp);

    if (r == 0) {
        r = node_attach(n, CHILD_FILE, disk->file, "file", PERM_READ, PERM_ALL,
                        errp);
    }
    if (r == 0 && backing) {
        r = node_attach(n, CHILD_BACKING, backing, "backing", PERM_READ,
                        PERM_ALL, errp);
    }
    return r;
}

static int check_room(const struct graph *g, const struct snapshot_found *found,
                      struct error **errp)
{
    uint64_t sum = 0;

    list_for_each (at, &g->nodes) {
        const struct node *n = list_entry(at, struct node, in_graph);

        if (n->drv == &driver_snapshot_view) {
            sum += ((const struct view *)n->state)->s.l1_size * UINT64_C(8);
        }
    }
    return sum > 0 && sum + found->l1_size * UINT64_C(8) > TABLES_MAX
               ? error_set(errp, EDQUOT,
                           "the snapshots that are shown hold tables of %u "
                           "MiB, and there is no room for another one",
                           (unsigned)(sum / MiB))
               : 0;
}

static int new_view(struct qcow2 *disk, const struct snapshot_found *found,
                    struct node **viewp, struct error **errp)
{
    struct node *n;
    int r = check_room(disk->node->graph, found, errp);

    r = r < 0 ? r
              : node_new(disk->node->graph, &driver_snapshot_view, NULL,
                         disk->node, &n, errp);
    if (r < 0) {
        return r;
    }
    struct view *v = n->state;
    take_state(v, n, disk);
    mutex_lock(&disk->meta);
    list_append(&disk->views, &v->of_disk);
    mutex_unlock(&disk->meta);
    r = take_tables(v, found, errp);
    if (r == 0) {
        r = attach(n, disk, errp);
    }
    if (r < 0) {
        node_unref(n);
        return r;
    }
    node_refresh_limits(n);
    *viewp = n;
    return 0;
}

/* --- Methods of driver_snapshots --- */

static int find(struct qcow2 *s, const char *which, struct qcow2_snapshot *sn,
                uint64_t *size, struct error **errp)
{
    int r = qcow2_snapshot_choose(&s->snapshots, which, sn, errp);

    return r < 0 ? r
                 : qcow2_snapshot_shape(s, qcow2_l2_span(s), s->node->size, sn,
                                        size, errp);
}

int qcow2_view_measure(struct node *n, const char *which, uint64_t *size,
                       struct error **errp)
{
    struct qcow2_snapshot sn;

    return find(n->state, which, &sn, size, errp);
}

int qcow2_view_look(struct node *n, const char *which,
                    struct snapshot_found **foundp, struct error **errp)
{
    struct qcow2 *s = n->state;
    struct qcow2_snapshot sn;
    uint64_t size;
    int r = find(s, which, &sn, &size, errp);

    if (r == 0 && (s->external || qcow2_is_locked(s))) {
        r = error_set(errp, ENOTSUP,
                      "the data of the image's snapshots cannot be read");
    }
    if (r < 0) {
        return r;
    }
    struct snapshot_found *f = calloc(1, sizeof(*f));
    if (f) {
        *f = (struct snapshot_found){
            .serial = s->snapshots_serial,
            .size = size,
            .l1_offset = sn.l1_offset,
            .l1_size = (uint32_t)div_up(size, qcow2_l2_span(s)),
        };
        f->l1 = calloc(f->l1_size + 1UL, sizeof(*f->l1));
    }
    if (!f || !f->l1) {
        qcow2_view_forget(f);
        return error_nomem(errp);
    }
    r = f->l1_size == 0
            ? 0
            : node_pread(s->file, f->l1, f->l1_size * sizeof(*f->l1),
                         f->l1_offset, 0);
    if (r < 0) {
        qcow2_view_forget(f);
        return error_set(errp, -r, "cannot read the snapshot's L1 table: %s",
                         strerror(-r));
    }
    *foundp = f;
    return 0;
}

void qcow2_view_forget(struct snapshot_found *found)
{
    if (found) {
        free(found->l1);
        free(found);
    }
}

int qcow2_view_show(struct node *n, struct snapshot_found *found,
                    struct node **viewp, struct error **errp)
{
    struct qcow2 *s = n->drv == &driver_qcow2 ? n->state : NULL;

    if (!s || s->snapshots_serial != found->serial) {
        return -EAGAIN;
    }
    mutex_lock(&s->meta);
    struct view *v = find_view(s, found->l1_offset);
    mutex_unlock(&s->meta);
    if (v && v->s.node->size == found->size) {
        node_ref(v->s.node);
        *viewp = v->s.node;
        return 0;
    }
    return new_view(s, found, viewp, errp);
}
