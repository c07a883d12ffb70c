/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The files of one disk, when a point of it goes.
 *
 *     before        next.qcow2 --over--> gone.qcow2 --over--> parent.qcow2
 *
 *     merge_run     what next.qcow2 decides is written into gone.qcow2, too;
 *                   next.sums.part has the hashes of that
 *     merge_rename  gone.qcow2     -->  next.qcow2, which is over parent.qcow2
 *                   next.sums.part -->  next.sums
 *                   gone.sums is removed
 *
 * A reader of next.qcow2 over a gone.qcow2 of which a part was overwritten
 * sees nothing of that: next.qcow2 decides there.  Both files are opened
 * without their parents, so what they decide is all that is seen.
 *
 * The hash of a unit of which only one of them decides anything stays as it
 * is: bytes that were damaged before differ from it afterwards, too.  The other
 * units are hashed anew, and so are looked at first (merge_check).
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/transfer.h"
#include "store/prune-priv.h"

#define FILE_MAX (POINT_NAME_MAX + 16)

/* Tables of an image are far less than that of its data. */
#define META_SHARE 256

struct layer {
    const char *point;
    bool base; /* it has no parent */
    struct node *node;
    struct blk *blk;
    struct sums *sums;
};

struct merge {
    struct store *store;
    const char *disk;
    uint64_t size; /* of the images */
    struct graph *graph;
    struct layer gone;
    struct layer next;
    void *buf; /* SUMS_UNIT */
};

/* --- Files --- */

int merge_has(struct store *s, const char *disk, const char *point,
              const char *ending, bool *there, struct error **errp)
{
    char file[FILE_MAX];
    struct stat st;
    int dir;
    int r = store_folder(s, disk, &dir, errp);

    if (r < 0) {
        return r;
    }
    (void)snprintf(file, sizeof(file), "%s.%s", point, ending);
    *there = fstatat(dir, file, &st, AT_SYMLINK_NOFOLLOW) == 0;
    return *there || errno == ENOENT
               ? 0
               : error_set(errp, errno, "cannot look at '%s/%s/%s': %s",
                           s->path, disk, file, strerror(errno));
}

static int remove_file(struct store *s, const char *disk, const char *point,
                       const char *ending, struct error **errp)
{
    char file[FILE_MAX];
    int dir;
    int r = store_folder(s, disk, &dir, errp);

    (void)snprintf(file, sizeof(file), "%s.%s", point, ending);
    return r < 0 ? r : dir_remove(dir, file, errp);
}

/* DIR/DISK/FROM.FROM_ENDING gets another name, if it is there. */
static int rename_file(struct store *s, const char *disk, const char *from,
                       const char *from_ending, const char *to,
                       const char *to_ending, struct error **errp)
{
    char old[FILE_MAX];
    char new[FILE_MAX];
    bool there = false;
    int dir = -1;
    int r = merge_has(s, disk, from, from_ending, &there, errp);

    if (r < 0 || !there) {
        return r;
    }
    r = store_folder(s, disk, &dir, errp);
    (void)snprintf(old, sizeof(old), "%s.%s", from, from_ending);
    (void)snprintf(new, sizeof(new), "%s.%s", to, to_ending);
    return r < 0 ? r : dir_rename(dir, old, new, errp);
}

static int flush_folder(struct store *s, const char *disk, struct error **errp)
{
    int dir = -1;
    int r = store_folder(s, disk, &dir, errp);

    return r < 0 ? r : dir_flush(dir, errp);
}

int merge_rename(struct store *s, const char *disk, const char *gone,
                 const char *next, struct error **errp)
{
    int r = 0;

    if (next[0]) {
        r = rename_file(s, disk, gone, "qcow2", next, "qcow2", errp);
        r = r < 0 ? r
                  : rename_file(s, disk, next, "sums.part", next, "sums", errp);
    }
    r = r < 0 ? r : remove_file(s, disk, gone, "qcow2", errp);
    r = r < 0 ? r : remove_file(s, disk, gone, "sums", errp);
    return r < 0 ? r : flush_folder(s, disk, errp);
}

uint64_t merge_disk_bytes(struct store *s, const char *disk, const char *point)
{
    static const char *const endings[] = {"qcow2", "sums"};
    char file[FILE_MAX];
    uint64_t bytes = 0;
    struct stat st;
    int dir;

    for (int i = 0; store_folder(s, disk, &dir, NULL) == 0 && i < 2; i++) {
        (void)snprintf(file, sizeof(file), "%s.%s", point, endings[i]);
        if (fstatat(dir, file, &st, AT_SYMLINK_NOFOLLOW) == 0) {
            bytes += (uint64_t)st.st_blocks * 512;
        }
    }
    return bytes;
}

/* --- Opening --- */

static int make_writable(json_t *options, struct error **errp)
{
    json_t *file = json_object_get(options, "file");

    return json_object_set_new(options, "read-only", json_false()) < 0 ||
                   json_object_set_new(options, "discard",
                                       json_string("unmap")) < 0 ||
                   json_object_set_new(file, "read-only", json_false()) < 0 ||
                   json_object_set_new(file, "discard", json_string("unmap")) <
                       0
               ? error_nomem(errp)
               : 0;
}

int layer_open(struct store *s, struct graph *g, const char *disk,
               const char *point, bool write, struct node **np,
               struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    int r = store_layer_options(s, disk, point, &options, errp);

    r = r < 0 || !write ? r : make_writable(options, errp);
    if (r == 0) {
        graph_follow(g, FOLLOW_NONE);
        r = graph_open(g, options, np, errp);
    }
    if (r < 0) {
        error_prefix(errp, "point %s: ", point);
    }
    return r == -EAGAIN ? -EBUSY : r == -ENOENT ? -EUCLEAN : r;
}

static int check_layer(const struct merge *m, const struct layer *l,
                       struct error **errp)
{
    if (blk_size(l->blk) != m->size) {
        return error_set(errp, EUCLEAN,
                         "point %s: disk '%s' has %" PRIu64
                         " bytes, and the manifest says %" PRIu64,
                         l->point, m->disk, blk_size(l->blk), m->size);
    }
    if (node_cluster_size(l->node) != SUMS_CHUNK) {
        return error_set(errp, EUCLEAN,
                         "point %s: disk '%s' has clusters of %u bytes, which "
                         "is not what a backup has",
                         l->point, m->disk, node_cluster_size(l->node));
    }
    return 0;
}

static int read_sums(struct merge *m, struct layer *l, const char *hash,
                     struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;
    int r = store_open_file(m->store, m->disk, l->point, "sums", &fd, NULL,
                            errp);

    r = r < 0 ? r : sums_read(fd, m->size, hash, &l->sums, errp);
    if (r < 0) {
        error_prefix(errp, "point %s: disk '%s': ", l->point, m->disk);
    }
    return r == -ENOENT ? -EUCLEAN : r;
}

static int open_layer(struct merge *m, struct layer *l, bool write,
                      const char *hash, struct error **errp)
{
    int r = layer_open(m->store, m->graph, m->disk, l->point, write, &l->node,
                       errp);

    r = r < 0 ? r
              : blk_new(m->graph, l->node, PERM_READ, PERM_ALL, "prune",
                        &l->blk, errp);
    r = r < 0 ? r : check_layer(m, l, errp);
    return r < 0 ? r : read_sums(m, l, hash, errp);
}

static void close_layer(struct layer *l)
{
    blk_free(l->blk);
    l->blk = NULL;
    sums_free(l->sums);
    l->sums = NULL;
}

static void close_all(struct merge *m)
{
    close_layer(&m->gone);
    close_layer(&m->next);
    graph_free(m->graph);
    m->graph = NULL;
}

void merge_free(struct merge *m)
{
    if (m) {
        close_all(m);
        free(m->buf);
        free(m);
    }
}

int merge_open(struct store *s, const char *gone,
               const struct manifest_disk *disk, const char *next,
               struct merge **mp, struct error **errp)
{
    const struct store_point *p = store_named(s, next);
    const struct manifest_disk *above =
        p && p->manifest ? manifest_find(p->manifest, disk->name) : NULL;
    struct merge *m = above ? calloc(1, sizeof(*m)) : NULL;

    if (!m) {
        return above ? error_nomem(errp)
                     : error_set(errp, EUCLEAN,
                                 "the manifest of %s cannot be used", next);
    }
    m->store = s;
    m->disk = disk->name;
    m->size = image_bytes(disk->size);
    m->gone.point = gone;
    m->gone.base = disk->kind == DISK_FULL;
    m->next.point = next;
    m->graph = graph_new();
    m->buf = malloc(SUMS_UNIT);
    int r = m->graph && m->buf ? 0 : error_nomem(errp);
    r = r < 0 ? r : open_layer(m, &m->gone, true, disk->sums_hash, errp);
    r = r < 0 ? r : open_layer(m, &m->next, false, above->sums_hash, errp);
    if (r < 0) {
        merge_free(m);
        return r;
    }
    *mp = m;
    return 0;
}

/* Somebody was killed who wrote to it.  Nothing is written to a file whose
 * refcounts are too low: that would overwrite data. */
int merge_reclaim(struct store *s, const char *point, const char *disk,
                  struct error **errp)
{
    const struct image_check_options o = {.repair = IMAGE_REPAIR_LEAKS};
    CLEANUP_JSON json_t *options = NULL;
    struct image_check c = {0};
    struct node *file = NULL;
    struct graph *g = graph_new();
    int r = g ? store_layer_options(s, disk, point, &options, errp)
              : error_nomem(errp);

    r = r < 0 ? r : make_writable(options, errp);
    r = r < 0 ? r
              : graph_open(g, json_object_get(options, "file"), &file, errp);
    r = r < 0 ? r : image_check(g, file, "qcow2", &o, &c, errp);
    if (r == 0 && c.corruptions > 0) {
        r = error_set(errp, EUCLEAN,
                      "the image contradicts itself, and may be repaired by "
                      "nbdelta check -r all");
    }
    if (r < 0) {
        error_prefix(errp, "point %s: disk '%s': ", point, disk);
    }
    graph_free(g);
    return r == -EAGAIN ? -EBUSY
           : r == -EIO || r == -EINVAL || r == -ENOENT || r == -ENOTSUP
               ? -EUCLEAN
               : r;
}

/* --- Before anything is changed --- */

/* Does the unit get a hash anew?  In a base, all of each unit is decided. */
static bool is_shared(const struct merge *m, uint64_t unit)
{
    return sums_find(m->next.sums, unit) &&
           (m->gone.base || sums_find(m->gone.sums, unit));
}

static int check_unit(struct merge *m, const struct layer *l, uint64_t unit,
                      struct error **errp)
{
    const uint8_t *want = sums_find(l->sums, unit);
    uint8_t hash[HASH_BYTES];
    bool any = false;
    int r = sums_compute(l->blk, unit, l->base, m->buf, hash, &any, NULL);

    if (r < 0) {
        return error_set(errp, -r,
                         "point %s: cannot read disk '%s' at %" PRIu64 ": %s",
                         l->point, m->disk, unit * SUMS_UNIT, strerror(-r));
    }
    if (any != (want != NULL) || (any && memcmp(hash, want, HASH_BYTES) != 0)) {
        return error_set(errp, EUCLEAN,
                         "point %s: disk '%s' is damaged in the %" PRIu64
                         " bytes at %" PRIu64,
                         l->point, m->disk, sums_unit_bytes(m->size, unit),
                         unit * SUMS_UNIT);
    }
    return 0;
}

static int check_units(struct merge *m, struct error **errp)
{
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < sums_count(m->next.sums); i++) {
        uint64_t unit = sums_unit(m->next.sums, i);

        if (is_shared(m, unit)) {
            r = check_unit(m, &m->gone, unit, errp);
            r = r < 0 ? r : check_unit(m, &m->next, unit, errp);
        }
    }
    return r;
}

struct need {
    uint64_t bytes;
};

/* For blk_extents. */
static int add_need(const struct extent *e, void *opaque)
{
    struct need *n = opaque;

    n->bytes += e->flags & EXTENT_ALLOCATED && e->flags & EXTENT_DATA
                    ? e->length
                    : 0;
    return 0;
}

/* The older file grows by all that the next one has, at worst; that one's room
 * is given back afterwards. */
static int check_room(struct merge *m, struct error **errp)
{
    struct need n = {.bytes = 0};
    struct statvfs fs;
    uint64_t file = 0;
    int r = blk_extents(m->next.blk, 0, m->size, 0, add_need, &n);

    if (r < 0 || fstatvfs(m->store->dir, &fs) < 0) {
        r = r < 0 ? r : -errno;
        return error_set(errp, -r, "point %s: cannot look at disk '%s': %s",
                         m->next.point, m->disk, strerror(-r));
    }
    if (node_disk_bytes(m->graph, m->next.node, &file)) {
        n.bytes = min_u64(n.bytes, file);
    }
    n.bytes += n.bytes / META_SHARE + MiB;
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    return n.bytes <= room
               ? 0
               : error_set(errp, ENOSPC,
                           "merging disk '%s' of %s into %s needs up to "
                           "%" PRIu64 " bytes for a while, and there are "
                           "%" PRIu64,
                           m->disk, m->gone.point, m->next.point, n.bytes,
                           room);
}

int merge_check(struct merge *m, struct error **errp)
{
    int r = check_room(m, errp);

    return r < 0 ? r : check_units(m, errp);
}

/* --- Merging --- */

struct filling {
    struct transfer *transfer;
    bool compressed;
    bool any;
};

/* For blk_extents: put what the next file decides into the set. */
static int fill_set(const struct extent *e, void *opaque)
{
    struct filling *f = opaque;

    if ((e->flags & EXTENT_ALLOCATED) &&
        !(e->flags & EXTENT_COMPRESSED) == !f->compressed) {
        transfer_add(f->transfer, e->offset, e->length);
        f->any = true;
    }
    return 0;
}

/* What is compressed stays so, and nothing else becomes it.  Clusters of data
 * are shared with the next file where the file system can do that: they take no
 * more room, and no time. */
static int copy_clusters(struct merge *m, bool compressed, struct error **errp)
{
    const struct transfer_options o = {.compress = compressed,
                                       .share = !compressed};
    struct filling f = {.compressed = compressed};
    int r = transfer_new(m->graph, m->next.node, m->gone.node, &o, &f.transfer,
                         errp);

    if (r < 0) {
        return r;
    }
    r = blk_extents(m->next.blk, 0, m->size, 0, fill_set, &f);
    if (r < 0) {
        (void)error_set(errp, -r, "point %s: cannot look at disk '%s': %s",
                        m->next.point, m->disk, strerror(-r));
    } else if (f.any) {
        r = transfer_run(f.transfer, NULL, errp);
    }
    transfer_free(f.transfer);
    return r;
}

static int keep_hash(struct sums *to, const struct layer *l, uint64_t i)
{
    return sums_add(to, sums_unit(l->sums, i), sums_hash(l->sums, i));
}

static int new_hash(struct merge *m, struct sums *to, uint64_t unit)
{
    uint8_t hash[HASH_BYTES];
    bool any = false;
    int r = sums_compute(m->gone.blk, unit, m->gone.base, m->buf, hash, &any,
                         NULL);

    return r < 0 || !any ? r : sums_add(to, unit, hash);
}

static int merge_sums(struct merge *m, struct sums *to)
{
    const struct sums *gone = m->gone.sums;
    const struct sums *next = m->next.sums;
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < sums_count(gone); i++) {
        r = sums_find(next, sums_unit(gone, i)) ? 0
                                                : keep_hash(to, &m->gone, i);
    }
    for (uint64_t i = 0; r == 0 && i < sums_count(next); i++) {
        r = is_shared(m, sums_unit(next, i))
                ? new_hash(m, to, sums_unit(next, i))
                : keep_hash(to, &m->next, i);
    }
    sums_sort(to);
    return r;
}

static int write_sums(struct merge *m, struct error **errp)
{
    CLEANUP_SUMS struct sums *to = calloc(1, sizeof(*to));
    CLEANUP_CLOSE int fd = -1;
    char hash[HASH_TEXT_MAX];

    if (!to) {
        return error_nomem(errp);
    }
    to->size = m->size;
    to->base = m->gone.base;
    int r = merge_sums(m, to);
    if (r < 0) {
        return error_set(errp, -r, "cannot hash disk '%s' of point %s: %s",
                         m->disk, m->next.point, strerror(-r));
    }
    r = remove_file(m->store, m->disk, m->next.point, "sums.part", errp);
    r = r < 0 ? r
              : store_create_file(m->store, m->disk, m->next.point, "sums.part",
                                  &fd, errp);
    return r < 0 ? r : sums_write(to, fd, hash, errp);
}

static int flush_image(struct merge *m, struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;
    int r = store_open_file(m->store, m->disk, m->gone.point, "qcow2", &fd,
                            NULL, errp);

    if (r == 0 && fsync(fd) < 0) {
        r = error_set(errp, errno, "cannot flush disk '%s' of point %s: %s",
                      m->disk, m->gone.point, strerror(errno));
    }
    return r;
}

int merge_run(struct merge *m, struct error **errp)
{
    int r = copy_clusters(m, false, errp);

    r = r < 0 ? r : copy_clusters(m, true, errp);
    r = r < 0 ? r : write_sums(m, errp);
    close_all(m);
    r = r < 0 ? r : flush_image(m, errp);
    return r < 0 ? r : flush_folder(m->store, m->disk, errp);
}
