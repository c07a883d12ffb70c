/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Making, removing and applying internal snapshots.  Each is a change in three
 * parts: begin, while the guest goes on; act, while it is held up; and end,
 * while it goes on again.
 *
 *   make     begin  1  COPIED goes from all tables on disk
 *                   2  all references are counted once more (snapshot-make.c)
 *            act    3  all metadata, as in any flush
 *                   4  the snapshot's L1 table and a new snapshot table
 *                      -- flush --
 *                   5  the header leads to the new snapshot table, in one write
 *                      -- flush --
 *                   6  COPIED goes from the L1 table in memory
 *            end    7  the old snapshot table is free
 *
 *   remove   begin  0  counts are high enough (snapshot-counts.c)
 *                   1  a snapshot table without the snapshot  -- flush --
 *            act    2  the header leads to it, in one write   -- flush --
 *            end    3  the old table and the snapshot's L1 table are free
 *                   4  all references of the snapshot are dropped; what the
 *                      disk has alone gets COPIED (snapshot-drop.c)
 *
 *   apply    begin  0  as above
 *                   1  all references of the snapshot are counted once more
 *                   2  a new L1 table for the disk  -- flush --
 *            act    3  bitmaps that record get all bits
 *                   4  all metadata, as in any flush
 *                   5  the header has the new L1 table and the snapshot's size,
 *                      and leads to bitmaps of that length, in one write
 *                      -- flush --
 *            end    6  the old L1 table is free
 *                   7  all references of the old disk are dropped
 *
 * Counts are never lower than what is on disk needs, so a crash at any point
 * leaks, at worst.  A change that fails takes back what it has counted.  If
 * nobody can tell which table the header leads to, because it could not be
 * written and not be restored either, then nothing is taken back: both tables
 * stay true.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/driver.h"
#include "nbdelta/error.h"
#include "qcow2/alloc.h"
#include "qcow2/bitmaps.h"
#include "qcow2/snapshot-change.h"

#define ID_MAX 24

static void change_free(struct qcow2_change *c)
{
    qcow2_snapshots_free(&c->after);
    free(c->l1);
    free(c);
}

static void free_run(struct qcow2 *s, uint64_t host, uint64_t bytes)
    REQUIRES(s->meta)
{
    if (host != 0 && bytes > 0) {
        (void)qcow2_free_later(s, host, div_up(bytes, s->cluster_size));
    }
}

int qcow2_change_failed(const struct qcow2_change *c, int r,
                        struct error **errp)
{
    static const char *const verbs[] = {[INTERNAL_MAKE] = "make",
                                        [INTERNAL_REMOVE] = "remove",
                                        [INTERNAL_APPLY] = "apply"};
    const struct qcow2 *s = c->s;

    return r >= 0 ? r
           : r == -EOVERFLOW
               ? error_set(errp, EOVERFLOW,
                           "the reference counts of '%s' have %d bits, and "
                           "cannot tell of one snapshot more",
                           node_filename(s->node), 1 << s->refcount_order)
               : error_set(errp, -r, "cannot %s a snapshot of '%s': %s",
                           verbs[c->verb], node_filename(s->node),
                           strerror(-r));
}

/* --- Room in the file --- */

/* Clusters for a table of @kind. */
static int try_room(struct qcow2 *s, unsigned kind, uint64_t bytes,
                    uint64_t *host)
{
    uint64_t clusters = max_u64(div_up(bytes, s->cluster_size), 1);

    mutex_lock(&s->meta);
    int r = qcow2_alloc_exact(s, kind, clusters, host);
    if (r == 0) {
        r = qcow2_take_room(s, *host, clusters << s->cluster_bits);
        if (r < 0) {
            qcow2_alloc_undo(s, *host, clusters);
        }
    }
    mutex_unlock(&s->meta);
    return r;
}

static int take_table_room(struct qcow2 *s, unsigned kind, uint64_t bytes,
                           uint64_t *host)
{
    uint64_t seen = atomic_load(&s->released);
    int r;

    do {
        r = try_room(s, kind, bytes, host);
    } while (qcow2_try_again(s, &r, &seen));
    return r;
}

/* Room for the new snapshot table, unless that is empty. */
static int take_room(struct qcow2_change *c)
{
    int r = c->after.count == 0
                ? 0
                : take_table_room(c->s, QCOW2_META_SNAPSHOT, c->after.bytes,
                                  &c->after.offset);

    c->table_bytes = r == 0 && c->after.count > 0 ? c->after.bytes : 0;
    return r;
}

static void give_room_back(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;

    mutex_lock(&s->meta);
    free_run(s, c->after.offset, c->table_bytes);
    free_run(s, c->l1_offset, c->l1_bytes);
    free_run(s, c->new_l1_offset, c->new_l1_bytes);
    mutex_unlock(&s->meta);
}

/* --- The header --- */

static int write_header(struct qcow2 *s, const struct qcow2_snapshots *t)
{
    unsigned char be[12];

    store_be32(be, t->count);
    store_be64(be + 4, t->offset);
    int r = node_pwrite(s->file, be, sizeof(be), QCOW2_HDR_SNAPSHOTS, 0);
    return r < 0 ? r : qcow2_flush_file(s);
}

/* Let the header lead to @to.  A failure leaves it leading to what memory has,
 * or in doubt. */
static int switch_table(struct qcow2_change *c,
                        const struct qcow2_snapshots *to)
{
    struct qcow2 *s = c->s;
    int r = write_header(s, to);

    if (r < 0) {
        c->in_doubt = write_header(s, &s->snapshots) < 0;
    }
    return r;
}

static void swap_tables(struct qcow2_change *c)
{
    struct qcow2_snapshots had = c->s->snapshots;

    c->s->snapshots = c->after;
    c->after = had;
    qcow2_snapshots_changed(c->s);
}

static int write_table(struct qcow2_change *c)
{
    return c->after.count == 0
               ? 0
               : node_pwrite(c->s->file, c->after.table, c->after.bytes,
                             c->after.offset, 0);
}

/* --- Make --- */

static int new_entry(struct qcow2_change *c, const char *name)
{
    const struct qcow2 *s = c->s;
    char id[ID_MAX];
    struct qcow2_snapshot sn = {
        .l1_offset = c->l1_offset,
        .l1_size = s->l1_size,
        .disk_size = s->node->size,
        .icount = QCOW2_SNAPSHOT_NO_ICOUNT,
        .id = id,
        .name = name,
        .name_len = (uint32_t)strlen(name),
    };

    (void)snprintf(id, sizeof(id), "%" PRIu64,
                   qcow2_snapshot_next_id(&s->snapshots));
    sn.id_len = (uint32_t)strlen(id);
    c->index = s->snapshots.count;
    return qcow2_snapshots_with(&s->snapshots, &sn, &c->after);
}

static int make_tables(struct qcow2_change *c, const char *name,
                       struct error **errp)
{
    struct qcow2 *s = c->s;
    uint64_t bytes = s->l1_size * UINT64_C(8);
    int r = take_table_room(s, QCOW2_META_INACTIVE_L1, bytes, &c->l1_offset);

    if (r == 0) {
        c->l1_bytes = max_u64(bytes, 1);
        r = new_entry(c, name);
    }
    if (r == 0) {
        r = take_room(c);
    }
    if (r == 0) {
        r = qcow2_flush(s->node);
    }
    return qcow2_change_failed(c, r, errp);
}

static int check_make(struct qcow2_change *c,
                      const struct internal_change *what, struct error **errp)
{
    struct qcow2 *s = c->s;

    if (what->only &&
        qcow2_snapshot_find(&s->snapshots, NULL, what->name) >= 0) {
        return error_set(errp, EEXIST,
                         "Snapshot with name '%.200s' already exists",
                         what->name);
    }
    c->l1_size = s->l1_size;
    c->l1 = calloc(s->l1_size + 1UL, sizeof(*c->l1));
    if (!c->l1) {
        return error_nomem(errp);
    }
    int r = qcow2_refs_fit(s);
    return qcow2_change_failed(c, r, errp);
}

/* Write the L1 table of the snapshot, as it is now. */
static int write_l1(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;
    uint64_t *be = malloc(c->l1_size * sizeof(*be) + 1);

    if (!be) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < c->l1_size; i++) {
        c->l1[i] = atomic_load(&s->l1[i]);
        be[i] = htobe64(c->l1[i] & ~QCOW2_COPIED);
    }
    int r = c->l1_size == 0 ? 0
                            : node_pwrite(s->file, be, c->l1_size * sizeof(*be),
                                          c->l1_offset, 0);
    free(be);
    return r;
}

static int act_make(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;
    struct timespec now;
    int r = c->making.broken < 0       ? c->making.broken
            : s->l1_size != c->l1_size ? -EIO
                                       : 0;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    qcow2_snapshot_date(&c->after, c->index, (uint32_t)now.tv_sec,
                        (uint32_t)now.tv_nsec);
    if (r == 0) {
        r = qcow2_flush(s->node);
    }
    if (r == 0) {
        r = write_l1(c);
    }
    if (r == 0) {
        r = write_table(c);
    }
    if (r == 0) {
        r = qcow2_flush_file(s);
    }
    if (r == 0) {
        r = switch_table(c, &c->after);
    }
    if (r == 0 || c->in_doubt) {
        qcow2_make_share(c);
    }
    return r;
}

/* --- Remove --- */

static int read_l1(struct qcow2_change *c, const struct qcow2_snapshot *sn,
                   struct error **errp)
{
    struct qcow2 *s = c->s;

    if (!qcow2_snapshot_has_l1(s, sn)) {
        return error_set(errp, EUCLEAN,
                         "Snapshot L1 table is at a place where none can be: "
                         "run 'nbdelta check' on the image");
    }
    c->l1_size = sn->l1_size;
    c->l1_offset = sn->l1_offset;
    c->l1 = calloc(sn->l1_size + 1UL, sizeof(*c->l1));
    if (!c->l1) {
        return error_nomem(errp);
    }
    int r = sn->l1_size == 0
                ? 0
                : node_pread(s->file, c->l1, sn->l1_size * sizeof(*c->l1),
                             sn->l1_offset, 0);
    for (uint32_t i = 0; i < sn->l1_size; i++) {
        c->l1[i] = be64toh(c->l1[i]);
    }
    return r < 0
               ? error_set(errp, -r, "cannot read the snapshot's L1 table: %s",
                           strerror(-r))
               : 0;
}

static int check_shown(struct qcow2_change *c, struct error **errp)
{
    return qcow2_snapshot_shown(c->s, c->l1_offset)
               ? error_set(errp, EBUSY,
                           "the snapshot is in use: somebody reads it")
               : 0;
}

/* Whether somebody reads the snapshot is asked when the header does not lead to
 * it any more: a reader that comes later does not find it. */
static int act_remove(struct qcow2_change *c, struct error **errp)
{
    int r = switch_table(c, &c->after);

    if (r < 0) {
        return qcow2_change_failed(c, r, errp);
    }
    r = check_shown(c, errp);
    if (r < 0 && switch_table(c, &c->s->snapshots) < 0) {
        c->in_doubt = true;
    }
    return r;
}

static int check_remove(struct qcow2_change *c, struct internal_change *what,
                        struct error **errp)
{
    struct qcow2_snapshot sn;

    qcow2_snapshot_get(&c->s->snapshots, c->index, &sn);
    what->info = qcow2_snapshot_describe(&sn);
    int r = read_l1(c, &sn, errp);
    return r < 0 ? r : check_shown(c, errp);
}

static int begin_remove(struct qcow2_change *c, struct error **errp)
{
    struct qcow2 *s = c->s;
    int r = qcow2_snapshots_without(&s->snapshots, c->index, &c->after);

    if (r == 0) {
        r = take_room(c);
    }
    if (r == 0) {
        r = qcow2_flush(s->node);
    }
    if (r == 0) {
        r = write_table(c);
    }
    if (r == 0) {
        r = qcow2_flush_file(s);
    }
    return qcow2_change_failed(c, r, errp);
}

/* --- Apply --- */

static int check_apply(struct qcow2_change *c, struct error **errp)
{
    struct qcow2_snapshot sn;

    qcow2_snapshot_get(&c->s->snapshots, c->index, &sn);
    int r = read_l1(c, &sn, errp);
    return r < 0 ? r : qcow2_apply_check(c, &sn, errp);
}

/* A place for the new L1 table comes first. */
static int begin_apply(struct qcow2_change *c, struct error **errp)
{
    uint64_t bytes = max_u64(c->l1_needed * UINT64_C(8), 1);
    int r = take_table_room(c->s, QCOW2_META_L1, bytes, &c->new_l1_offset);

    if (r < 0) {
        return qcow2_change_failed(c, r, errp);
    }
    c->new_l1_bytes = bytes;
    return 1;
}

static int go_on_applying(struct qcow2_change *c, struct error **errp)
{
    int r = qcow2_apply_raise(c);

    r = r == 0 ? qcow2_apply_write(c) : r;
    return qcow2_change_failed(c, r, errp);
}

/* --- The three parts --- */

static int check_image(struct qcow2 *s, const struct internal_change *what,
                       struct error **errp)
{
    if (s->node->flags.read_only) {
        return error_set(errp, EACCES, "'%s' is read-only",
                         node_filename(s->node));
    }
    if (s->external) {
        return error_set(errp, ENOTSUP,
                         "an image with an external data file has no internal "
                         "snapshots");
    }
    if (atomic_load(&s->corrupt)) {
        return error_set(errp, EIO, "image '%s' is corrupt",
                         node_filename(s->node));
    }
    if (s->changing) {
        return error_set(errp, EBUSY,
                         "another snapshot of '%s' is being made or removed",
                         node_filename(s->node));
    }
    if (what->verb == INTERNAL_MAKE && strlen(what->name) > INTERNAL_NAME_MAX) {
        return error_set(errp, EINVAL,
                         "the name of a snapshot has at most %d bytes",
                         INTERNAL_NAME_MAX);
    }
    return 0;
}

static int find(struct qcow2_change *c, const struct internal_change *what,
                struct error **errp)
{
    int64_t i = qcow2_snapshot_find(&c->s->snapshots, what->id, what->name);

    if (i < 0 && what->verb == INTERNAL_APPLY && !what->id) {
        i = qcow2_snapshot_find(&c->s->snapshots, what->name, NULL);
    }
    if (i < 0) {
        return error_set(errp, ENOENT,
                         "Snapshot with id '%.200s' and name '%.200s' does not "
                         "exist",
                         what->id ? what->id : "(null)",
                         what->name ? what->name : "(null)");
    }
    c->index = (uint32_t)i;
    return 0;
}

static int first_step(struct qcow2 *s, struct internal_change *what,
                      struct error **errp)
{
    int r = check_image(s, what, errp);
    struct qcow2_change *c = r < 0 ? NULL : calloc(1, sizeof(*c));

    if (!c) {
        return r < 0 ? r : error_nomem(errp);
    }
    what->state = c;
    s->changing = true;
    c->s = s;
    c->verb = what->verb;
    if (what->verb == INTERNAL_MAKE) {
        r = check_make(c, what, errp);
        return r < 0 ? r : 1;
    }
    r = find(c, what, errp);
    if (r == 0) {
        r = what->verb == INTERNAL_REMOVE ? check_remove(c, what, errp)
                                          : check_apply(c, errp);
    }
    return r < 0 ? r : 1;
}

/* After the first step of what drops a disk. */
static int go_on_dropping(struct qcow2_change *c, struct error **errp)
{
    if (!c->counted) {
        int r = qcow2_counts_check(c, errp);

        c->counted = r == 0;
        return r < 0 ? r : 1;
    }
    return c->verb == INTERNAL_REMOVE ? begin_remove(c, errp)
           : c->new_l1_bytes == 0     ? begin_apply(c, errp)
                                      : go_on_applying(c, errp);
}

static int change_begin(struct node *n, struct internal_change *what,
                        struct error **errp)
{
    struct qcow2 *s = n->state;

    if (!what->state) {
        return first_step(s, what, errp);
    }
    if (what->verb != INTERNAL_MAKE) {
        return go_on_dropping(what->state, errp);
    }
    int r = qcow2_make_begin(what->state, errp);
    return r != 0 ? r : make_tables(what->state, what->name, errp);
}

static int change_act(struct node *n, struct internal_change *what,
                      struct error **errp)
{
    struct qcow2_change *c = what->state;
    int r;

    (void)n;
    if (c->verb == INTERNAL_REMOVE) {
        r = act_remove(c, errp);
    } else {
        r = c->verb == INTERNAL_MAKE ? act_make(c) : qcow2_apply_act(c);
        r = qcow2_change_failed(c, r, errp);
    }

    if (r == 0 && c->verb != INTERNAL_APPLY) {
        swap_tables(c);
    }
    return r;
}

static void change_undo(struct node *n, struct internal_change *what)
{
    struct qcow2_change *c = what->state;

    (void)n;
    if (c->verb == INTERNAL_APPLY) { /* it is alone in its transaction */
        return;
    }
    if (switch_table(c, &c->after) < 0) {
        /* It is as if it had not been undone. */
        c->in_doubt = true;
        return;
    }
    swap_tables(c);
    if (c->verb == INTERNAL_MAKE && qcow2_snapshot_shown(c->s, c->l1_offset)) {
        c->in_doubt = true; /* so what it refers to stays as it is */
    } else if (c->verb == INTERNAL_MAKE) {
        qcow2_make_undo(c);
    }
}

/* The old snapshot table is free, and what else only the old header led to. */
static void free_old(struct qcow2_change *c)
{
    struct qcow2 *s = c->s;

    mutex_lock(&s->meta);
    free_run(s, c->after.offset, c->after.bytes);
    if (c->verb != INTERNAL_MAKE) {
        free_run(s, c->l1_offset, c->l1_size * UINT64_C(8));
    }
    mutex_unlock(&s->meta);
    c->after.offset = 0;
    c->begun = false;
}

static int end_some(struct qcow2_change *c, bool done)
{
    int r = 0;

    if (c->in_doubt) {
        return 0;
    }
    if (!done && c->verb == INTERNAL_MAKE) {
        r = qcow2_make_abort(c);
    }
    if (!done && c->verb == INTERNAL_APPLY && c->new_l1_bytes > 0) {
        r = qcow2_apply_abort(c);
    }
    if (!done && r <= 0) {
        give_room_back(c);
    }
    if (done &&
        (c->after.offset != 0 || (c->verb == INTERNAL_APPLY && c->begun))) {
        free_old(c);
    }
    if (done && c->verb != INTERNAL_MAKE) {
        r = qcow2_drop_disk(c);
    }
    return r;
}

static int change_end(struct node *n, struct internal_change *what, bool done)
{
    struct qcow2_change *c = what->state;

    if (!c) {
        return 0;
    }
    qcow2_counts_end(c);
    int r = end_some(c, done);
    if (r > 0) {
        return r;
    }
    /* The first flush releases what was freed, the second one writes that. */
    for (int i = 0; r == 0 && i < 2; i++) {
        r = qcow2_flush(n);
    }
    c->s->changing = false;
    change_free(c);
    what->state = NULL;
    return r;
}

const struct driver_snapshots qcow2_snapshot_methods = {
    .begin = change_begin,
    .act = change_act,
    .undo = change_undo,
    .end = change_end,
    .look = qcow2_view_look,
    .show = qcow2_view_show,
    .forget = qcow2_view_forget,
    .measure = qcow2_view_measure,
};
