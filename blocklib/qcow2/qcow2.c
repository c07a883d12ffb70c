/* SPDX-License-Identifier: BSD-3-Clause */
/* The qcow2 driver: opening, closing, describing. */
#include "qcow2/qcow2.h"
#include "qcow2/bitmaps.h"
#include "qcow2/check.h"
#include "qcow2/copied.h"
#include "qcow2/encrypt.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/opts.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

/* L2 tables take at most so much memory unless l2-cache-size says otherwise:
 * enough for 256 GiB in clusters of 64 KiB. */
#define L2_CACHE_MAX  (32 * MiB)
#define L2_CACHE_MIN  4 /* tables */
#define REFBLOCKS_MAX (8 * MiB)
#define REFBLOCKS_MIN 8 /* tables */

void qcow2_state_init(struct qcow2 *s)
{
    range_lock_init(&s->range);
    mutex_init(&s->flush_lock, LOCK_QCOW2_FLUSH, s);
    mutex_init(&s->meta, LOCK_QCOW2_META, s);
    mutex_init(&s->unpacked.lock, LOCK_QCOW2_UNPACKED, NULL);
    list_init(&s->views);
    qcow2_copied_init(s);
    qcow2_snapshots_changed(s);
    qcow2_bitmaps_init(s);
}

void qcow2_state_free(struct qcow2 *s)
{
    qcow2_bitmaps_free(s);
    qcow2_snapshots_free(&s->snapshots);
    qcow2_overlap_free(s);
    qcow2_copied_free(s);
    qcow2_luks_free(s);
    qcow2_cache_free(s->l2);
    qcow2_cache_free(s->refblocks);
    free(s->l1);
    free(s->reftable);
    free(s->freed);
    free(s->unpacked.cluster);
    free(s->wanted);
    free(s->data_name);
    range_lock_destroy(&s->range);
    mutex_destroy(&s->flush_lock);
    mutex_destroy(&s->meta);
    mutex_destroy(&s->unpacked.lock);
}

/* --- Tables that are read whole --- */

/* So many entries are read at once. */
#define PIECE 8192

struct whole_table {
    const char *what;
    uint64_t offset;
    uint64_t entries;
    void (*put)(struct qcow2 *s, uint64_t index, uint64_t entry);
};

static void put_l1_entry(struct qcow2 *s, uint64_t index, uint64_t entry)
{
    atomic_init(&s->l1[index], entry);
}

static void put_reftable_entry(struct qcow2 *s, uint64_t index, uint64_t entry)
{
    s->reftable[index] = entry;
}

/* Entries of zero are not put, so that their pages are not touched: a hostile
 * image can claim the largest table, and have nothing in it. */
static int read_whole_table(struct qcow2 *s, const struct whole_table *t,
                            struct error **errp)
{
    CLEANUP_FREE unsigned char *be = malloc(PIECE * 8UL);

    if (!be) {
        return error_nomem(errp);
    }
    for (uint64_t i = 0; i < t->entries; i += PIECE) {
        uint64_t some = min_u64(t->entries - i, PIECE);
        int r = node_pread(s->file, be, some * 8, t->offset + i * 8, 0);

        if (r < 0) {
            return error_set(errp, -r, "cannot read the %s: %s", t->what,
                             strerror(-r));
        }
        for (uint64_t e = 0; e < some; e++) {
            uint64_t entry = load_be64(be + e * 8);
            if (entry != 0) {
                t->put(s, i + e, entry);
            }
        }
    }
    return 0;
}

static int read_tables(struct qcow2 *s, const struct qcow2_header *h,
                       struct error **errp)
{
    uint64_t entries = (uint64_t)h->reftable_clusters << s->cluster_bits >> 3;
    const struct whole_table l1 = {"L1 table", h->l1_offset, h->l1_size,
                                   put_l1_entry};
    const struct whole_table reftable = {"reference count table",
                                         h->reftable_offset, entries,
                                         put_reftable_entry};

    s->l1 = calloc(h->l1_size + 1UL, sizeof(*s->l1));
    s->reftable = calloc(entries, sizeof(*s->reftable));
    if (!s->l1 || !s->reftable) {
        return error_nomem(errp);
    }
    s->l1_size = h->l1_size;
    s->l1_offset = h->l1_offset;
    s->reftable_size = (uint32_t)entries;
    s->reftable_offset = h->reftable_offset;
    int r = read_whole_table(s, &l1, errp);
    if (r < 0) {
        return r;
    }
    node_event(s->file, EVENT_REFTABLE_LOAD);
    return read_whole_table(s, &reftable, errp);
}

/* --- Checks --- */

/* May this driver write to an image with this header? */
int qcow2_check_writable(const struct qcow2_header *h, struct error **errp)
{
    if (h->incompatible & QCOW2_INCOMPAT_CORRUPT) {
        return error_set(errp, EUCLEAN,
                         "qcow2: Image is corrupt; cannot be opened "
                         "read/write");
    }
    if (h->incompatible & QCOW2_INCOMPAT_DIRTY) {
        return error_set(errp, EUCLEAN,
                         "the image was not closed cleanly and its reference "
                         "counts are out of date: run 'nbdelta check -r all' "
                         "on it, or open it read-only");
    }
    return 0;
}

/* --- Opening --- */

static const char *const durability_words[] = {"power", "process", NULL};

static const struct option qcow2_options[] = {
    OPTION("file", NODE, .required = true),
    OPTION("backing", NODE_OR_NULL),
    OPTION("bitmap-durability", ENUM, .words = durability_words),
    OPTION("cache-size", UINT),
    OPTION("data-file", NODE),
    OPTION("discard-no-unref", BOOL),
    OPTION("encrypt", OBJECT, .members = qcow2_encrypt_options),
    OPTION("l2-cache-size", UINT),
    OPTION("lazy-refcounts", BOOL),
    OPTION("overlap-check", ENUM_OR_OBJECT, .words = qcow2_overlap_words,
           .members = qcow2_overlap_members, .type_name = "Qcow2OverlapChecks"),
    OPTION("pass-discard-other", BOOL),
    OPTION("pass-discard-request", BOOL),
    OPTION("pass-discard-snapshot", BOOL),
    OPTION("refcount-cache-size", UINT),
    OPTION("snapshot", STR),
    OPTIONS_END,
};

int qcow2_take_options(struct opts *o, uint64_t *l2_bytes,
                       uint64_t *refcount_bytes, unsigned *overlap, bool *keep,
                       struct error **errp)
{
    uint64_t total = 0;
    bool ignored = false;
    int r;

    /* lazy-refcounts: refcounts are always kept; discards always pass. */
    if ((r = opts_uint(o, "cache-size", INT64_MAX, &total, errp)) < 0 ||
        (r = opts_uint(o, "l2-cache-size", INT64_MAX, l2_bytes, errp)) < 0 ||
        (r = opts_uint(o, "refcount-cache-size", INT64_MAX, refcount_bytes,
                       errp)) < 0 ||
        (r = opts_bool(o, "lazy-refcounts", &ignored, errp)) < 0 ||
        (r = opts_bool(o, "discard-no-unref", keep, errp)) < 0 ||
        (r = opts_bool(o, "pass-discard-request", &ignored, errp)) < 0 ||
        (r = opts_bool(o, "pass-discard-snapshot", &ignored, errp)) < 0 ||
        (r = opts_bool(o, "pass-discard-other", &ignored, errp)) < 0 ||
        (r = qcow2_overlap_take(o, overlap, errp)) < 0) {
        return r;
    }
    if (total > 0 && *l2_bytes > 0 && *refcount_bytes > 0) {
        return error_set(errp, EINVAL,
                         "cache-size, l2-cache-size and refcount-cache-size "
                         "may not be set at the same time");
    }
    if (total > 0 && *l2_bytes > total) {
        return error_set(errp, EINVAL,
                         "l2-cache-size may not exceed cache-size");
    }
    if (total > 0 && *refcount_bytes > total) {
        return error_set(errp, EINVAL,
                         "refcount-cache-size may not exceed cache-size");
    }
    if (total > 0 && *l2_bytes == 0) {
        *l2_bytes = total > *refcount_bytes ? total - *refcount_bytes : 0;
    }
    return 0;
}

int qcow2_check_keep(const struct qcow2 *s, bool keep, struct error **errp)
{
    return keep && s->version < 3
               ? error_set(errp, EINVAL,
                           "discard-no-unref is only supported since qcow2 "
                           "version 3")
               : 0;
}

int qcow2_make_caches(struct qcow2 *s, uint64_t l2_bytes,
                      uint64_t refcount_bytes, struct error **errp)
{
    uint64_t blocks_max = max_u64(s->reftable_size, REFBLOCKS_MIN);
    uint64_t l2 = (l2_bytes ? l2_bytes : L2_CACHE_MAX) >> s->cluster_bits;
    uint64_t blocks = (refcount_bytes ? refcount_bytes : REFBLOCKS_MAX) >>
                      s->cluster_bits;

    /* This minimum is for small disks, too: half of the cache may be dirty, and
     * then that is all tables of such a disk. */
    l2 = max_u64(l2, L2_CACHE_MIN);
    blocks = min_u64(max_u64(blocks, REFBLOCKS_MIN), blocks_max);
    s->l2_bytes = l2_bytes;
    s->refcount_bytes = refcount_bytes;
    s->l2 = qcow2_cache_new(s->file, s->cluster_size, l2);
    s->refblocks = qcow2_cache_new(s->file, s->cluster_size, blocks);
    if (!s->l2 || !s->refblocks) {
        return error_nomem(errp);
    }
    qcow2_cache_set_events(s->l2, EVENT_L2_LOAD, EVENT_L2_UPDATE);
    qcow2_cache_set_events(s->refblocks, EVENT_REFBLOCK_LOAD,
                           EVENT_REFBLOCK_UPDATE_PART);
    return 0;
}

/* Clear the features that a writer that does not know them has to clear. */
int qcow2_clear_autoclear(struct qcow2 *s, const struct qcow2_header *h,
                          struct error **errp)
{
    uint64_t known = (s->bitmaps.ext.count > 0 ? QCOW2_AUTOCLEAR_BITMAPS : 0) |
                     (s->raw ? QCOW2_AUTOCLEAR_RAW : 0);
    unsigned char be[8];

    if (h->version < 3 || (h->autoclear & ~known) == 0) {
        return 0;
    }
    store_be64(be, h->autoclear & known);
    int r = node_pwrite(s->file, be, sizeof(be), QCOW2_HDR_AUTOCLEAR, 0);
    if (r == 0) {
        r = node_flush(s->file);
    }
    return r < 0 ? error_set(errp, -r, "cannot write the image's header: %s",
                             strerror(-r))
                 : 0;
}

static void take_header(struct qcow2 *s, struct qcow2_header *h)
{
    struct node *n = s->node;

    qcow2_take_shape(s, h);
    s->compression = h->compression;
    s->compatible = h->compatible;
    s->incompatible = h->incompatible;
    atomic_init(&s->corrupt, (h->incompatible & QCOW2_INCOMPAT_CORRUPT) != 0);
    s->file_grows_zero = s->file->limits.grows_zero;
    s->virgin = align_up(node_size(s->file), s->cluster_size);
    n->size = h->size;
    n->cluster_size = (uint32_t)s->cluster_size;
    n->image_backing = h->backing;
    n->image_backing_fmt = h->backing_fmt;
    s->data_name = h->data_file;
    h->backing = NULL;
    h->backing_fmt = NULL;
    h->data_file = NULL;
}

static int open_data(struct qcow2 *s, const struct qcow2_header *h,
                     struct opts *opts, struct error **errp)
{
    s->external = h->incompatible & QCOW2_INCOMPAT_DATA_FILE;
    s->raw = h->autoclear & QCOW2_AUTOCLEAR_RAW;
    if (!s->external) {
        s->data = s->file;
        return opts_has(opts, "data-file")
                   ? error_set(errp, EINVAL,
                               "'data-file' can only be set for images with "
                               "an external data file")
                   : 0;
    }
    int r = node_open_data(s->node, opts, h->data_file, errp);
    s->data = node_child(s->node, CHILD_DATA);
    return r;
}

/* Find the snapshot, and say that it is read: for others, who may remove it.
 * That they have not done so before it was said is looked at once more. */
static int hold_snapshot(struct qcow2 *s, const char *which,
                         struct qcow2_snapshot *sn, struct error **errp)
{
    struct qcow2_header h;
    struct qcow2_snapshots now;
    int r = qcow2_snapshot_choose(&s->snapshots, which, sn, errp);

    if (r < 0) {
        return r;
    }
    qcow2_snapshot_mark(s->file, sn->l1_offset);
    r = qcow2_header_read(s->file, &h, errp);
    if (r < 0) {
        return r;
    }
    r = qcow2_snapshots_load(s->file, &h, &now, errp);
    qcow2_header_release(&h);
    if (r < 0) {
        return r;
    }
    bool same = now.bytes == s->snapshots.bytes &&
                memcmp(now.table, s->snapshots.table, now.bytes) == 0;
    qcow2_snapshots_free(&now);
    return same ? 0
                : error_set(errp, EBUSY,
                            "the image's snapshots have changed meanwhile: try "
                            "again");
}

/* Take the snapshot that @which means for the disk. */
static int show_snapshot(struct qcow2 *s, struct qcow2_header *h,
                         const char *which, struct error **errp)
{
    struct qcow2_snapshot sn;
    uint64_t size;

    if (!s->node->flags.read_only) {
        return error_set(errp, EACCES,
                         "a snapshot can only be opened read-only");
    }
    int r = hold_snapshot(s, which, &sn, errp);
    s->cluster_size = UINT64_C(1) << h->cluster_bits;
    if (r == 0) {
        r = qcow2_snapshot_shape(s, qcow2_header_span(h), h->size, &sn, &size,
                                 errp);
    }
    if (r < 0) {
        return r;
    }
    s->shows_snapshot = true;
    h->size = size;
    h->l1_size = sn.l1_size;
    h->l1_offset = sn.l1_offset;
    h->bitmaps.count = 0; /* they tell of the disk as it is now */
    return 0;
}

static int open_snapshots(struct qcow2 *s, struct qcow2_header *h,
                          const char *which, struct error **errp)
{
    int r = qcow2_snapshots_load(s->file, h, &s->snapshots, errp);

    if (r == 0 && !s->node->flags.read_only) {
        r = qcow2_snapshots_check(h, &s->snapshots, errp);
    }
    return r == 0 && which ? show_snapshot(s, h, which, errp) : r;
}

static int open_with_header(struct qcow2 *s, struct qcow2_header *h,
                            const char *snapshot, uint64_t l2_bytes,
                            uint64_t refcount_bytes, struct error **errp)
{
    bool writable = !s->node->flags.read_only;
    int r = writable ? qcow2_check_writable(h, errp) : 0;

    if (r < 0) {
        return r;
    }
    r = open_snapshots(s, h, snapshot, errp);
    if (r < 0) {
        return r;
    }
    take_header(s, h);
    r = qcow2_check_keep(s, atomic_load(&s->keep_clusters), errp);
    if (r == 0) {
        r = read_tables(s, h, errp);
    }
    if (r == 0) {
        r = qcow2_make_caches(s, l2_bytes, refcount_bytes, errp);
    }
    if (r == 0 && (!s->node->flags.inactive || s->asleep)) {
        r = qcow2_bitmaps_load(s, h, errp);
    }
    if (r == 0 && writable && qcow2_overlap_load(s) < 0) {
        r = error_nomem(errp);
    }
    if (r == 0 && writable) {
        r = qcow2_clear_autoclear(s, h, errp);
    }
    return r;
}

int qcow2_read_all(struct qcow2 *s, struct qcow2_header *h,
                   const struct qcow2 *old, struct error **errp)
{
    return open_with_header(s, h, NULL, old->l2_bytes, old->refcount_bytes,
                            errp);
}

static int qcow2_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct qcow2 *s = n->state;
    struct qcow2_header h;
    uint64_t l2_bytes = 0;
    uint64_t refcount_bytes = 0;
    unsigned level = 0;
    unsigned overlap;
    const char *snapshot = NULL;
    bool keep = false;

    int r = qcow2_take_options(opts, &l2_bytes, &refcount_bytes, &overlap,
                               &keep, errp);
    atomic_init(&s->overlap_checked, overlap);
    atomic_init(&s->keep_clusters, keep);
    if (r == 0) {
        r = opts_enum(opts, "bitmap-durability", durability_words, &level,
                      errp);
    }
    if (r == 0) {
        r = opts_str(opts, "snapshot", &snapshot, errp);
    }
    s->bitmaps.process_only = level == 1;
    if (r == 0) {
        r = node_open_child(n, opts, "file", CHILD_FILE, true, errp);
    }
    if (r < 0) {
        return r;
    }
    s->node = n;
    s->file = node_child(n, CHILD_FILE);
    qcow2_state_init(s);
    r = qcow2_header_read(s->file, &h, errp);
    if (r < 0) {
        error_prefix(errp, "Could not open '%s': ", node_filename(s->file));
        qcow2_state_free(s);
        return r;
    }
    r = qcow2_luks_open(s, &h, opts, errp); /* it may have to begin again */
    if (r == 0 && !n->flags.read_only) {
        r = qcow2_count_anew(s->file, &h, errp);
    }
    if (r == 0) {
        r = open_data(s, &h, opts, errp);
    }
    if (r == 0) {
        qcow2_files_changed(s);
        r = open_with_header(s, &h, snapshot, l2_bytes, refcount_bytes, errp);
    }
    qcow2_header_release(&h);
    if (r < 0) {
        error_prefix(errp, "Could not open '%s': ", node_filename(s->file));
        qcow2_state_free(s);
    }
    return r;
}

/* The file ends where the last cluster ends, also when the last bytes were
 * never written: other readers want whole clusters. */
void qcow2_round_up_file(struct qcow2 *s)
{
    struct node *file = s->file;

    if (file->drv->resize && file->growable && s->virgin > node_size(file) &&
        s->file_grows_zero) {
        (void)node_resize(file, s->virgin, NULL);
    }
}

static void qcow2_close(struct node *n)
{
    struct qcow2 *s = n->state;

    s->bitmaps.closing = true;
    qcow2_tightener_stop(s);
    if (!n->flags.read_only) {
        (void)qcow2_bitmaps_settle(s);
        /* Flush twice: the first releases freed clusters, the second writes
         * that. */
        if (qcow2_flush(n) == 0) {
            (void)qcow2_flush(n);
        }
        qcow2_round_up_file(s);
    }
    qcow2_state_free(s);
}

void qcow2_limits(struct node *n, struct limits *lim)
{
    const struct qcow2 *s = n->state;

    if (s->raw && s->data) { /* it does as it is told, without us */
        lim->zero_align = s->data->limits.zero_align;
        lim->pref = (uint32_t)s->cluster_size;
        lim->fast_zero = s->data->limits.fast_zero;
        lim->zero_unmaps = s->data->limits.zero_unmaps;
        return;
    }
    if (s->luks) { /* a sector is encrypted as a whole */
        lim->align = 512;
    }
    lim->zero_align = (uint32_t)qcow2_sub_size(s);
    lim->pref = (uint32_t)s->cluster_size;
    lim->fast_zero = s->version >= 3;
    lim->zero_unmaps = true;
}

static void qcow2_describe(struct node *n, json_t *info)
{
    const struct qcow2 *s = n->state;

    /* Version 2 has no bits for some of these; the order is qemu-img's. */
    bool v3 = s->version >= 3;
    json_t *data = json_pack(
        "{s:s, s:s, s:o*, s:o*, s:i, s:o*, s:o*, s:o*, s:o*, s:o*}", "compat",
        v3 ? "1.1" : "0.10", "compression-type",
        s->compression == QCOW2_ZSTD ? "zstd" : "zlib", "lazy-refcounts",
        v3 ? json_boolean(s->compatible & QCOW2_COMPAT_LAZY) : NULL, "bitmaps",
        list_empty(&s->bitmaps.list) ? NULL : qcow2_bitmaps_describe(s),
        "refcount-bits", 1 << s->refcount_order, "encrypt",
        s->luks ? qcow2_luks_describe(s) : NULL, "data-file",
        s->data_name ? json_string(s->data_name) : NULL, "data-file-raw",
        s->external ? json_boolean(s->raw) : NULL, "corrupt",
        v3 ? json_boolean(atomic_load(&s->corrupt)) : NULL, "extended-l2",
        v3 ? json_boolean(s->extended) : NULL);
    (void)json_object_set_new(
        info, "format-specific",
        json_pack("{s:s, s:o}", "type", "qcow2", "data", data));
    if (s->snapshots.count > 0) {
        (void)json_object_set_new(info, "snapshots",
                                  qcow2_snapshots_describe(&s->snapshots));
    }
    if (s->luks) {
        (void)json_object_set_new(info, "encrypted", json_true());
    }
    (void)json_object_set_new(
        info, "dirty-flag",
        json_boolean(s->incompatible & QCOW2_INCOMPAT_DIRTY));
}

/* Version 1 is another format, "qcow". */
static bool qcow2_probe(const void *head, const void *tail)
{
    const unsigned char *h = head;

    (void)tail;
    return load_be32(h) == QCOW2_MAGIC && load_be32(h + 4) != 1;
}

static const struct driver_reopen qcow2_reopen_methods = {
    .options = qcow2_reopen_options,
    .take = qcow2_reopen_take,
    .prepare = qcow2_reopen,
    .commit = qcow2_reopen_commit,
    .abort = qcow2_reopen_abort,
};

/* What a crash would make of the bitmaps: QEMU tells no such thing. */
static void qcow2_stats(struct node *n, json_t *own)
{
    (void)json_object_set_new(
        own, "armed-bytes",
        json_integer((json_int_t)qcow2_armed_bytes(n->state)));
}

static const struct driver_image qcow2_image = {
    .probe = qcow2_probe,
    .create = qcow2_create,
    .create_options = qcow2_create_options,
    .measure = qcow2_measure,
    .format = qcow2_format,
    .change_backing = qcow2_change_backing,
    .amend = qcow2_amend,
    .amend_options = qcow2_amend_options,
    .check = qcow2_check,
    .make_room = qcow2_make_room,
    .leave_range = qcow2_leave_range,
    .leave_end = qcow2_leave_end,
};

static const struct driver_bitmaps qcow2_bitmaps = {
    .store = qcow2_store_bitmaps,
    .store_ahead = qcow2_store_ahead,
    .store_behind = qcow2_store_behind,
    .check = qcow2_check_bitmap,
    .relaxed = qcow2_bitmap_relaxed,
    .gone = qcow2_bitmap_gone,
    .arm = qcow2_bitmap_arm,
    .heal = qcow2_bitmap_heal,
};

const struct driver driver_qcow2 = {
    .name = "qcow2",
    .options = qcow2_options,
    .has_backing = true,
    .state_size = sizeof(struct qcow2),
    .open = qcow2_open,
    .close = qcow2_close,
    .reopen = &qcow2_reopen_methods,
    .image = &qcow2_image,
    .bitmaps = &qcow2_bitmaps,
    .snapshots = &qcow2_snapshot_methods,
    .file_changed = qcow2_file_changed,
    .limits = qcow2_limits,
    .resize = qcow2_resize,
    .describe = qcow2_describe,
    .stats = qcow2_stats,
    .map = qcow2_map,
    .map_many = qcow2_map_many,
    .map_put = qcow2_map_put,
    .preadv = qcow2_read_compressed,
    .decode = qcow2_decode,
    .write_coded = qcow2_write_coded,
    .pwritev = qcow2_pwritev,
    .copy_up = qcow2_copy_up,
    .clone = qcow2_clone,
    .zero = qcow2_zero,
    .zero_part = qcow2_zero_part,
    .discard = qcow2_discard,
    .write_compressed = qcow2_write_compressed,
    .flush = qcow2_flush_to_disk,
};
