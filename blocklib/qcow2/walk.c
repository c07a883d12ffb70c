/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The walk over a whole image: see walk.h.
 *
 *   1. header, refcount table and its blocks, snapshot table, bitmaps
 *   2. L1 tables: each entry becomes a user of an L2 table
 *   3. users are sorted by the place of the table, so all users of a table
 *      stand together, and each table is read once
 *
 * So many users that they would take much memory are gone through in several
 * rounds.
 */
#include "qcow2/walk.h"
#include "qcow2/l2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/bitmaps.h"

/* Users of L2 tables in a round. */
#define USERS_MAX (UINT32_C(4) << 20)

/* Bits of an L1 entry that are neither a place nor a flag. */
#define L1_RESERVED UINT64_C(0x7f000000000001ff)

#define NOT_ALIGNED "is at a place where none can be"
#define BEHIND_END  "lies behind the end of the file"
#define TOO_LARGE   "is larger than any may be"

/* An L1 entry that leads to an L2 table. */
struct user {
    uint64_t host;
    uint64_t entry; /* where it stands in the file */
    uint32_t index; /* in the L1 table */
    uint32_t disk;
};

struct walk {
    const struct qcow2_image *im;
    const struct qcow2_walker *w;
    struct user *users;
    size_t user_count;
    size_t user_room;
    struct qcow2_table table; /* the L2 table that is looked at */
};

/* --- The image --- */

int qcow2_image_read(struct node *file, struct qcow2_image *im,
                     struct error **errp)
{
    *im = (struct qcow2_image){.file = file, .file_size = node_size(file)};
    int r = qcow2_header_read_any(file, &im->h, errp);

    if (r < 0) {
        return r;
    }
    struct qcow2 *s = &im->shape;
    s->file = file;
    qcow2_take_shape(s, &im->h);
    return 0;
}

void qcow2_image_release(struct qcow2_image *im)
{
    qcow2_header_release(&im->h);
}

int qcow2_image_pread(const struct qcow2_image *im, void *buf, uint64_t bytes,
                      uint64_t host)
{
    uint64_t there = host < im->file_size ? min_u64(bytes, im->file_size - host)
                                          : 0;

    memset((char *)buf + there, 0, bytes - there);
    return there > 0 ? node_pread(im->file, buf, there, host, 0) : 0;
}

/* --- Telling --- */

static int tell(struct walk *k, const struct qcow2_ref *r)
{
    struct qcow2_ref told = *r;

    told.behind = r->wrong && strcmp(r->wrong, BEHIND_END) == 0;
    return k->w->refer(&told, k->w->opaque);
}

/* Why nothing can be there, or NULL.  A file may lack the end of its last
 * cluster, and one whole cluster that was never written. */
static const char *judge_place(const struct walk *k, uint64_t host,
                               uint64_t bytes)
{
    const struct qcow2_image *im = k->im;

    if (host == 0 || qcow2_in_cluster(&im->shape, host) != 0) {
        return NOT_ALIGNED;
    }
    return host > BLK_SIZE_MAX || bytes > BLK_SIZE_MAX - host ||
                   host + bytes > im->file_size + im->shape.cluster_size
               ? BEHIND_END
               : NULL;
}

/* The same of compressed bytes.  They may seem to be longer than they are. */
static const char *judge_packed(const struct walk *k,
                                const struct qcow2_run *packed)
{
    uint64_t size = k->im->shape.cluster_size;

    return judge_place(k, align_down(packed->host, size), size);
}

/* Tell of a table, judged by its place and its size. */
static int tell_table(struct walk *k, struct qcow2_ref *r, uint64_t max)
{
    r->times = 1;
    r->wrong = r->bytes > max ? TOO_LARGE : judge_place(k, r->host, r->bytes);
    return tell(k, r);
}

/* --- Refcounts --- */

static uint64_t reftable_bytes(const struct qcow2_image *im)
{
    return (uint64_t)im->h.reftable_clusters << im->h.cluster_bits;
}

static uint64_t reftable_max(const struct qcow2_image *im)
{
    return max_u64(QCOW2_MAX_REFTABLE_BYTES, im->shape.cluster_size);
}

int qcow2_image_reftable(const struct qcow2_image *im, uint64_t **table,
                         uint64_t *count)
{
    uint64_t bytes = reftable_bytes(im);
    uint64_t host = im->h.reftable_offset;

    *table = NULL;
    *count = 0;
    if (bytes == 0 || bytes > reftable_max(im) || host == 0 ||
        qcow2_in_cluster(&im->shape, host) != 0 || host >= im->file_size) {
        return 0;
    }
    uint64_t *t = malloc(bytes);
    if (!t) {
        return -ENOMEM;
    }
    int r = qcow2_image_pread(im, t, bytes, host);
    if (r < 0) {
        free(t);
        return r;
    }
    for (uint64_t i = 0; i < bytes / 8; i++) {
        t[i] = be64toh(t[i]);
    }
    *table = t;
    *count = bytes / 8;
    return 0;
}

static int walk_refcounts(struct walk *k)
{
    const struct qcow2_image *im = k->im;
    CLEANUP_FREE uint64_t *table = NULL;
    uint64_t count;
    struct qcow2_ref r = {.owner = QCOW2_OWN_REFTABLE,
                          .host = im->h.reftable_offset,
                          .bytes = reftable_bytes(im),
                          .entry = QCOW2_HDR_REFTABLE};
    int result = qcow2_image_reftable(im, &table, &count);

    if (result == 0) {
        result = tell_table(k, &r, reftable_max(im));
    }
    if (result == 0 && !r.wrong && !table) {
        r.wrong = "is missing";
        result = tell(k, &r);
    }
    for (uint64_t i = 0; result == 0 && i < count; i++) {
        struct qcow2_ref b = {.owner = QCOW2_OWN_REFBLOCK,
                              .host = table[i],
                              .bytes = im->shape.cluster_size,
                              .entry = im->h.reftable_offset + i * 8};

        if (table[i] != 0) {
            result = tell_table(k, &b, im->shape.cluster_size);
        }
    }
    return result;
}

/* --- L2 tables --- */

static int by_place(const void *a, const void *b)
{
    const struct user *x = a;
    const struct user *y = b;

    return x->host != y->host   ? (x->host > y->host ? 1 : -1)
           : x->disk != y->disk ? (x->disk > y->disk ? 1 : -1)
                                : x->index > y->index;
}

/* The part of the disk that entry @index of an L1 table is for. */
static uint64_t guest_of(const struct walk *k, uint32_t index)
{
    return (uint64_t)index * qcow2_l2_span(&k->im->shape);
}

/* Tell what entry @at of the table is, which @count users have, at guest
 * @offset in it. */
static int tell_entry(struct walk *k, const struct user *u, uint32_t count,
                      uint64_t offset, const struct qcow2_at *at)
{
    const struct qcow2 *s = &k->im->shape;
    bool packed = at->kind == QCOW2_KIND_COMPRESSED;
    struct qcow2_ref r = {
        .owner = packed ? QCOW2_OWN_PACKED : QCOW2_OWN_DATA,
        .host = packed ? at->packed.host : at->host,
        .bytes = packed ? at->packed.bytes : s->cluster_size,
        .entry = u->host + qcow2_l2_place(s, offset),
        .guest = guest_of(k, u->index) + offset,
        .guest_bytes = s->cluster_size,
        .disk = u->disk,
        .times = count,
        .copied = at->copied,
        .external = s->external,
    };

    r.wrong = at->wrong     ? NOT_ALIGNED
              : s->external ? NULL
              : packed      ? judge_packed(k, &at->packed)
                            : judge_place(k, r.host, r.bytes);
    if (!r.wrong) {
        return tell(k, &r);
    }
    int result = 0;
    r.times = 1;
    r.kept = ~qcow2_l2_data_parts(s, &k->table, offset);
    for (uint32_t i = 0; result == 0 && i < count; i++) {
        r.guest = guest_of(k, u[i].index) + offset;
        r.disk = u[i].disk;
        result = tell(k, &r);
    }
    return result;
}

/* Tell of an entry that has bits which its kind does not have; all of its
 * users where something is lost by that. */
static int tell_odd(struct walk *k, const struct user *u, uint32_t count,
                    uint64_t offset, const char *odd, uint32_t lost)
{
    int result = 0;

    for (uint32_t i = 0; result == 0 && i < (lost ? count : 1); i++) {
        const struct qcow2_ref r = {
            .owner = QCOW2_OWN_DATA,
            .entry = u->host + qcow2_l2_place(&k->im->shape, offset),
            .guest = guest_of(k, u[i].index) + offset,
            .guest_bytes = k->im->shape.cluster_size,
            .disk = u[i].disk,
            .kept = ~lost,
            .wrong = odd,
        };
        result = tell(k, &r);
    }
    return result;
}

/* All entries of the table that is in memory. */
static int walk_entries(struct walk *k, const struct user *u, uint32_t count)
{
    const struct qcow2 *s = &k->im->shape;
    int result = 0;

    for (uint64_t at = 0; result == 0 && at < qcow2_l2_span(s);
         at += s->cluster_size) {
        struct qcow2_at e;
        uint32_t lost;
        const char *odd = qcow2_l2_odd(s, &k->table, at, &lost);

        qcow2_l2_look(s, &k->table, guest_of(k, u->index) + at, s->cluster_size,
                      &e);
        if (odd) {
            result = tell_odd(k, u, count, at, odd, lost);
        }
        if (result == 0 && e.kind != QCOW2_KIND_UNALLOCATED &&
            e.kind != QCOW2_KIND_ZERO_PLAIN) {
            result = tell_entry(k, u, count, at, &e);
        }
    }
    return result;
}

/* One L2 table and all of its users. */
static int walk_table(struct walk *k, const struct user *u, uint32_t count)
{
    const struct qcow2 *s = &k->im->shape;
    const struct qcow2_ref r = {
        .owner = QCOW2_OWN_L2,
        .host = u->host,
        .bytes = s->cluster_size,
        .entry = u->entry,
        .guest = guest_of(k, u->index),
        .guest_bytes = qcow2_l2_span(s),
        .disk = u->disk,
    };

    k->table.offset = u->host;
    int result = qcow2_image_pread(k->im, k->table.data, s->cluster_size,
                                   u->host);
    if (result == 0) {
        result = walk_entries(k, u, count);
    }
    return result == 0 && k->w->table ? k->w->table(&r, &k->table, k->w->opaque)
                                      : result;
}

/* All tables that the round has users of. */
static int walk_users(struct walk *k)
{
    int result = 0;

    if (k->user_count > 0) {
        qsort(k->users, k->user_count, sizeof(*k->users), by_place);
    }
    for (size_t i = 0, next; result == 0 && i < k->user_count; i = next) {
        for (next = i + 1;
             next < k->user_count && k->users[next].host == k->users[i].host;) {
            next++;
        }
        result = walk_table(k, &k->users[i], (uint32_t)(next - i));
    }
    k->user_count = 0;
    return result;
}

static int add_user(struct walk *k, const struct user *u)
{
    int result = k->user_count == USERS_MAX ? walk_users(k) : 0;

    if (result == 0 && k->user_count == k->user_room) {
        size_t room = k->user_room ? k->user_room * 2 : 1024;
        struct user *more = realloc(k->users, room * sizeof(*more));

        if (!more) {
            return -ENOMEM;
        }
        k->users = more;
        k->user_room = room;
    }
    if (result == 0) {
        k->users[k->user_count++] = *u;
    }
    return result;
}

/* --- L1 tables --- */

static int walk_l1_entry(struct walk *k, uint32_t disk, uint64_t table,
                         uint32_t index, uint64_t entry)
{
    struct user u = {.host = entry & QCOW2_OFFSET_MASK,
                     .entry = table + index * UINT64_C(8),
                     .index = index,
                     .disk = disk};
    struct qcow2_ref r = {.owner = QCOW2_OWN_L2,
                          .host = u.host,
                          .bytes = k->im->shape.cluster_size,
                          .entry = u.entry,
                          .guest = guest_of(k, index),
                          .guest_bytes = qcow2_l2_span(&k->im->shape),
                          .disk = disk,
                          .copied = entry & QCOW2_COPIED};

    int result = 0;
    if (u.host != 0 && (result = tell_table(k, &r, r.bytes)) == 0 && !r.wrong) {
        result = add_user(k, &u);
    }
    if (result == 0 && !r.wrong &&
        ((entry & L1_RESERVED) || (u.host == 0 && entry != 0))) {
        r.bytes = 0;
        r.wrong = "is named by an entry with bits that none has";
        result = tell(k, &r);
    }
    return result;
}

static int walk_l1(struct walk *k, uint32_t disk, uint64_t at, uint64_t host,
                   uint32_t entries)
{
    CLEANUP_FREE uint64_t *l1 = NULL;
    struct qcow2_ref r = {.owner = QCOW2_OWN_L1,
                          .host = host,
                          .bytes = entries * UINT64_C(8),
                          .entry = at,
                          .disk = disk};

    if (entries == 0) {
        return 0;
    }
    int result = tell_table(k, &r, QCOW2_MAX_L1_BYTES);
    if (result != 0 || r.wrong) {
        return result;
    }
    l1 = malloc(r.bytes);
    if (!l1) {
        return -ENOMEM;
    }
    result = qcow2_image_pread(k->im, l1, r.bytes, host);
    for (uint32_t i = 0; result == 0 && i < entries; i++) {
        result = walk_l1_entry(k, disk, host, i, be64toh(l1[i]));
    }
    return result;
}

static int walk_active(struct walk *k)
{
    const struct qcow2_header *h = &k->im->h;
    uint64_t needed = div_up(h->size, qcow2_l2_span(&k->im->shape));
    int result = walk_l1(k, QCOW2_ACTIVE, QCOW2_HDR_L1 + 4, h->l1_offset,
                         h->l1_size);

    if (result == 0 && needed > h->l1_size) {
        struct qcow2_ref r = {.owner = QCOW2_OWN_L1,
                              .host = h->l1_offset,
                              .disk = QCOW2_ACTIVE,
                              .wrong = "is too short for the disk"};

        r.guest = h->l1_size * qcow2_l2_span(&k->im->shape);
        r.guest_bytes = h->size - r.guest;
        result = tell(k, &r);
    }
    return result;
}

/* --- Snapshots --- */

/* One entry of the snapshot table, at *at, which moves behind it.  *wrong: it
 * cannot be read. */
static int walk_snapshot(struct walk *k, uint32_t disk, uint64_t *at,
                         const char **wrong)
{
    unsigned char head[QCOW2_SNAPSHOT_HEAD];

    if (*at + sizeof(head) > k->im->file_size) {
        *wrong = "goes on behind the end of the file";
        return 0;
    }
    int r = node_pread(k->im->file, head, sizeof(head), *at, 0);
    if (r < 0) {
        return r;
    }
    uint64_t size = qcow2_snapshot_size(head);
    if (size == 0) {
        *wrong = "has an entry that is larger than any may be";
        return 0;
    }
    uint64_t entry = *at;
    *at += size;
    return walk_l1(k, disk, entry, load_be64(head), load_be32(head + 8));
}

static int walk_snapshots(struct walk *k)
{
    const struct qcow2_header *h = &k->im->h;
    uint64_t at = h->snapshots_offset;
    struct qcow2_ref r = {.owner = QCOW2_OWN_SNAPSHOTS,
                          .host = at,
                          .entry = QCOW2_HDR_SNAPSHOTS + 4,
                          .times = 1};
    int result = 0;

    if (h->snapshots == 0) { /* QEMU opens no image with such a place */
        r.wrong = qcow2_in_cluster(&k->im->shape, at) != 0 || at > BLK_SIZE_MAX
                      ? NOT_ALIGNED
                      : NULL;
        return r.wrong ? tell(k, &r) : 0;
    }
    r.wrong = h->snapshots > QCOW2_SNAPSHOTS_MAX
                  ? TOO_LARGE
                  : judge_place(k, at, QCOW2_SNAPSHOT_HEAD);
    for (uint32_t i = 0; result == 0 && !r.wrong && i < h->snapshots; i++) {
        result = walk_snapshot(k, i + 1, &at, &r.wrong);
        r.readable += !r.wrong;
    }
    r.bytes = at - r.host;
    return result == 0 ? tell(k, &r) : result;
}

/* --- Bitmaps --- */

/* The bitmap whose entry in the directory stands at @entry in the file. */
static int walk_bitmap_bits(struct walk *k, const struct qcow2_bitmap *qb,
                            uint64_t entry_at)
{
    CLEANUP_FREE uint64_t *table = NULL;
    struct qcow2_ref r = {.owner = QCOW2_OWN_BITMAP_TABLE,
                          .host = qb->table_offset,
                          .bytes = qb->table_size * UINT64_C(8),
                          .entry = entry_at};
    int result = 0;

    if (qb->table_size == 0 ||
        (result = tell_table(k, &r, QCOW2_BITMAP_TABLE_MAX * UINT64_C(8))) !=
            0 ||
        r.wrong) {
        return result;
    }
    table = malloc(r.bytes);
    if (!table) {
        return -ENOMEM;
    }
    result = qcow2_image_pread(k->im, table, r.bytes, r.host);
    for (uint32_t i = 0; result == 0 && i < qb->table_size; i++) {
        uint64_t entry = be64toh(table[i]);
        struct qcow2_ref bits = {.owner = QCOW2_OWN_BITMAP,
                                 .host = entry & QCOW2_OFFSET_MASK,
                                 .bytes = k->im->shape.cluster_size,
                                 .entry = r.host + i * UINT64_C(8)};

        if (entry != QCOW2_BITMAP_ZEROES && entry != QCOW2_BITMAP_ONES) {
            result = tell_table(k, &bits, bits.bytes);
        }
    }
    return result;
}

/* The directory is in memory.  *wrong: it is none. */
static int walk_directory(struct walk *k, const unsigned char *dir,
                          const char **wrong)
{
    const struct qcow2_bitmaps_ext *x = &k->im->h.bitmaps;
    uint64_t at = x->dir_offset;
    struct list list;
    int result = 0;

    list_init(&list);
    int parsed = qcow2_bitmap_dir_parse(dir, x->dir_size, x->count, &list);
    if (parsed < 0) {
        *wrong = "contradicts itself";
        result = parsed == -ENOMEM ? -ENOMEM : 0;
    }
    list_for_each (e, &list) {
        const struct qcow2_bitmap *qb = list_entry(e, struct qcow2_bitmap,
                                                   in_image);

        if (parsed == 0 && result == 0) {
            result = walk_bitmap_bits(k, qb, at);
        }
        at += qcow2_bitmap_entry_size(qb);
    }
    while (!list_empty(&list)) {
        qcow2_bitmap_free(list_entry(list.next, struct qcow2_bitmap, in_image));
    }
    return result;
}

static int walk_bitmaps(struct walk *k)
{
    const struct qcow2_header *h = &k->im->h;
    CLEANUP_FREE unsigned char *dir = NULL;
    struct qcow2_ref r = {.owner = QCOW2_OWN_BITMAP_DIR,
                          .host = h->bitmaps.dir_offset,
                          .bytes = h->bitmaps.dir_size,
                          .entry = h->bitmaps.entry};

    /* Without the bit a program that knows nothing of them has written: they
     * are void. */
    if (!h->has_bitmaps || !(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS) ||
        h->bitmaps.count == 0) {
        return 0;
    }
    int result = tell_table(k, &r, QCOW2_BITMAP_DIR_MAX);
    if (result != 0 || r.wrong) {
        return result;
    }
    dir = malloc(r.bytes);
    if (!dir) {
        return -ENOMEM;
    }
    result = qcow2_image_pread(k->im, dir, r.bytes, r.host);
    if (result == 0) {
        result = walk_directory(k, dir, &r.wrong);
    }
    r.times = 0;
    return result == 0 && r.wrong ? tell(k, &r) : result;
}

/* --- Encryption --- */

/* The LUKS header, with its key slots. */
static int walk_luks(struct walk *k)
{
    const struct qcow2_header *h = &k->im->h;
    struct qcow2_ref r = {.owner = QCOW2_OWN_LUKS,
                          .host = h->luks_offset,
                          .bytes = h->luks_bytes};

    return h->crypt == QCOW2_LUKS && h->has_luks
               ? tell_table(k, &r, QCOW2_MAX_LUKS_BYTES)
               : 0;
}

/* --- The whole --- */

int qcow2_walk(const struct qcow2_image *im, const struct qcow2_walker *w)
{
    struct walk k = {.im = im, .w = w};
    const struct qcow2_ref header = {
        .owner = QCOW2_OWN_HEADER, .bytes = im->shape.cluster_size, .times = 1};

    k.table.data = malloc(im->shape.cluster_size);
    int result = k.table.data ? tell(&k, &header) : -ENOMEM;
    if (result == 0) {
        result = walk_refcounts(&k);
    }
    if (result == 0) {
        result = walk_luks(&k);
    }
    if (result == 0) {
        result = walk_bitmaps(&k);
    }
    if (result == 0) {
        result = walk_active(&k);
    }
    if (result == 0) {
        result = walk_snapshots(&k);
    }
    if (result == 0) {
        result = walk_users(&k);
    }
    free(k.table.data);
    free(k.users);
    return result;
}
