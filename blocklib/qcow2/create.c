/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Making an image:
 *
 *   header | refcount table | refcount blocks | L1 table | LUKS | L2 tables
 *
 * one after the other, every cluster counted once.  L2 tables are there only
 * for a data file that is preallocated, or raw: then each cluster has its
 * place in it already, and the tables never change again.  Without a data
 * file, what shall be preallocated is written through the driver itself.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/create.h"
#include "core/graph-priv.h"
#include "core/image-name.h"
#include "core/opts.h"
#include "core/toil.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/alloc.h"
#include "qcow2/create-plan.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"

#define HEADER_LENGTH 112

static const struct {
    unsigned char type;
    unsigned char bit;
    const char *name;
} feature_names[] = {
    {0, 0, "dirty bit"},
    {0, 1, "corrupt bit"},
    {0, 2, "external data file"},
    {0, 3, "compression type"},
    {0, 4, "extended L2 entries"},
    {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},
    {2, 1, "raw external data"},
};
#define FEATURE_ENTRY 48

/* --- The header cluster --- */

static unsigned char *put_extension(unsigned char *at, uint32_t type,
                                    const void *data, size_t len)
{
    store_be32(at, type);
    store_be32(at + 4, (uint32_t)len);
    memcpy(at + 8, data, len);
    return at + 8 + align_up(len, 8);
}

static unsigned char *put_features(unsigned char *at)
{
    unsigned char table[ARRAY_SIZE(feature_names) * FEATURE_ENTRY] = {0};

    for (size_t i = 0; i < ARRAY_SIZE(feature_names); i++) {
        unsigned char *e = table + i * FEATURE_ENTRY;
        e[0] = feature_names[i].type;
        e[1] = feature_names[i].bit;
        memcpy(e + 2, feature_names[i].name, strlen(feature_names[i].name));
    }
    return put_extension(at, 0x6803f857, table, sizeof(table));
}

static uint64_t l1_offset(const struct create_plan *p)
{
    return (1 + p->reftable + p->refblocks) * p->cluster_size;
}

static int fill_header(const struct create_plan *p, unsigned char *h,
                       struct error **errp)
{
    size_t length = p->version >= 3 ? HEADER_LENGTH : 72;
    size_t name = p->backing ? strlen(p->backing) : 0;
    size_t fmt = p->backing && p->backing_fmt ? strlen(p->backing_fmt) : 0;
    size_t features = 8 + ARRAY_SIZE(feature_names) * FEATURE_ENTRY;
    size_t data = p->data_name ? strlen(p->data_name) : 0;
    size_t fixed = length + (fmt ? 8 + align_up(fmt, 8) : 0) +
                   (data ? 8 + align_up(data, 8) : 0) +
                   (p->luks.on ? 8 + 16 : 0) + 8 + name;
    unsigned char *at = h + length;

    if (fixed > p->cluster_size) {
        return error_set(errp, EINVAL,
                         "%s file name too long for the header "
                         "of %" PRIu64 " bytes",
                         data > name ? "Data" : "Backing", p->cluster_size);
    }
    store_be32(h, QCOW2_MAGIC);
    store_be32(h + 4, p->version);
    store_be32(h + 20, p->cluster_bits);
    store_be64(h + 24, p->size);
    store_be32(h + 32, p->luks.on ? QCOW2_LUKS : QCOW2_PLAIN);
    store_be32(h + 36, (uint32_t)p->l1_entries);
    store_be64(h + 40, l1_offset(p));
    store_be64(h + 48, p->cluster_size);
    store_be32(h + 56, (uint32_t)p->reftable);
    if (p->version >= 3) {
        store_be64(h + QCOW2_HDR_INCOMPAT,
                   (p->compression ? QCOW2_INCOMPAT_COMPRESSION : 0) |
                       (data ? QCOW2_INCOMPAT_DATA_FILE : 0) |
                       (p->extended ? QCOW2_INCOMPAT_EXTL2 : 0));
        store_be64(h + 80, p->lazy ? QCOW2_COMPAT_LAZY : 0);
        store_be64(h + QCOW2_HDR_AUTOCLEAR,
                   p->data_raw ? QCOW2_AUTOCLEAR_RAW : 0);
        store_be32(h + 96, p->refcount_order);
        store_be32(h + 100, HEADER_LENGTH);
        h[104] = (unsigned char)p->compression;
    }
    if (fmt) {
        at = put_extension(at, QCOW2_EXT_BACKING_FMT, p->backing_fmt, fmt);
    }
    if (data) {
        at = put_extension(at, QCOW2_EXT_DATA_FILE, p->data_name, data);
    }
    if (p->luks.on) {
        unsigned char place[16];
        store_be64(place, l1_offset(p) + p->l1 * p->cluster_size);
        store_be64(place + 8, qcow2_create_luks_bytes(&p->luks));
        at = put_extension(at, QCOW2_EXT_LUKS, place, sizeof(place));
    }
    if (p->version >= 3 && fixed + features <= p->cluster_size) {
        at = put_features(at);
    }
    at += 8; /* the end of the extensions: zeroes */
    if (name) {
        store_be64(h + 8, (uint64_t)(at - h));
        store_be32(h + 16, (uint32_t)name);
        memcpy(at, p->backing, name);
    }
    return 0;
}

/* --- The bytes of the whole image, except L2 tables --- */

struct image {
    unsigned char *bytes; /* malloc()ed */
    uint64_t len;
};

static int make_image(struct create_plan *p, struct image *im,
                      struct error **errp)
{
    uint64_t l1 = 1 + p->reftable + p->refblocks;
    uint64_t luks = l1 + p->l1;
    uint64_t used = luks + p->luks_clusters;
    uint64_t per_block = p->cluster_size * 8 >> p->refcount_order;
    unsigned char *bytes = calloc(used, p->cluster_size);
    if (!bytes) {
        return error_nomem(errp);
    }
    int r = fill_header(p, bytes, errp);
    if (r == 0) {
        r = qcow2_create_luks_make(&p->luks, p->secrets,
                                   bytes + luks * p->cluster_size, errp);
    }
    if (r < 0) {
        free(bytes);
        return r;
    }
    unsigned char *reftable = bytes + p->cluster_size;
    unsigned char *blocks = reftable + p->reftable * p->cluster_size;
    for (uint64_t b = 0; b < p->refblocks; b++) {
        store_be64(reftable + b * 8, (1 + p->reftable + b) * p->cluster_size);
    }
    for (uint64_t c = 0; c < used + p->l2; c++) {
        qcow2_refcount_store(blocks + c / per_block * p->cluster_size,
                             p->refcount_order, c % per_block, 1);
    }
    /* Write an L1 table of zeroes, too: a block device is not all zeroes. */
    for (uint64_t t = 0; t < p->l2; t++) {
        store_be64(bytes + l1 * p->cluster_size + t * 8,
                   (used + t) * p->cluster_size | QCOW2_COPIED);
    }
    *im = (struct image){bytes, used * p->cluster_size};
    return 0;
}

/* Write bytes of the image to where it shall be. */
typedef int put_fn(void *to, const void *bytes, uint64_t len, uint64_t offset);

/* Write L2 tables that map each cluster to its guest offset in the data file.
 * Subclusters have a place, and no data; but a raw data file has all. */
static int put_l2(const struct create_plan *p, uint64_t start, put_fn *put,
                  void *to)
{
    enum qcow2_kind kind = p->extended && !p->data_raw
                               ? QCOW2_KIND_UNALLOCATED_ALLOC
                               : QCOW2_KIND_NORMAL;
    const struct qcow2_header h = {
        .version = p->version,
        .cluster_bits = p->cluster_bits,
        .incompatible = QCOW2_INCOMPAT_DATA_FILE |
                        (p->extended ? QCOW2_INCOMPAT_EXTL2 : 0),
    };
    CLEANUP_FREE void *table = malloc(p->cluster_size);
    struct qcow2_table l2 = {.data = table};
    struct qcow2 shape = {0};
    int r = table ? 0 : -ENOMEM;

    qcow2_take_shape(&shape, &h);

    for (uint64_t t = 0; t < p->l2 && r == 0; t++) {
        qcow2_l2_fill(&shape, &l2, t * qcow2_plan_span(p), p->size, kind);
        r = put(to, table, p->cluster_size, start + t * p->cluster_size);
    }
    return r;
}

static int put_image(const struct create_plan *p, const struct image *im,
                     put_fn *put, void *to, struct error **errp)
{
    int r = put(to, im->bytes, im->len, 0);

    if (r == 0) {
        r = put_l2(p, im->len, put, to);
    }
    return r < 0 ? error_set(errp, -r, "cannot write the new image: %s",
                             strerror(-r))
                 : 0;
}

/* --- Preallocation, through the driver itself --- */

/* Make the file as long as the image in it.  Drained. */
static int finish_node(struct node *n)
{
    struct qcow2 *s = n->state;
    struct node *file = node_child(n, CHILD_FILE);
    int r = qcow2_flush(n);

    mutex_lock(&s->meta);
    uint64_t end = s->virgin;
    mutex_unlock(&s->meta);
    if (r == 0 && node_size(file) < end) {
        r = node_resize(file, end, NULL);
    }
    return r < 0 ? r : node_flush(n);
}

/* Open the new image, whose key is known. */
static int open_new(struct graph *g, json_t *options,
                    const struct create_plan *p, struct node **np,
                    struct error **errp)
{
    struct toil *key = p->luks.on ? qcow2_create_luks_known(&p->luks) : NULL;
    struct list toils;

    *np = NULL;
    list_init(&toils);
    if (key) {
        list_append(&toils, &key->in_set);
    }
    int r = p->luks.on && (!key ||
                           json_object_set_new(options, "encrypt",
                                               json_pack("{s:s}", "key-secret",
                                                         p->luks.secret)) < 0)
                ? error_nomem(errp)
                : 0;
    if (r == 0) {
        graph_lock(g);
        g->toils = &toils;
        r = graph_open_locked(g, options, np, errp);
        g->toils = NULL;
        graph_unlock(g);
    }
    toil_free_all(&toils);
    return r;
}

/* Preallocate in the image on @file, which describes the node as for
 * blockdev-add.  The caller closes *np when it is not NULL.  @how: the file has
 * just been made, or NULL. */
static int preallocate(struct graph *g, json_t *file,
                       const struct create_plan *p, const struct file_make *how,
                       struct node **np, struct error **errp)
{
    CLEANUP_JSON json_t *options = json_pack("{s:s, s:O}", "driver",
                                             driver_qcow2.name, "file", file);
    int r = options ? open_new(g, options, p, np, errp) : error_nomem(errp);

    if (r == 0 && how) {
        r = node_check_made(*np, how, errp);
    }
    if (r < 0) {
        return r;
    }
    r = node_preallocate(*np, 0, (*np)->size, p->preallocation);
    if (r == 0) {
        graph_lock(g);
        graph_drain(g, *np);
        r = finish_node(*np);
        graph_unlock(g);
    }
    return r < 0 ? error_set(errp, -r, "cannot preallocate '%s': %s",
                             node_filename(*np), strerror(-r))
                 : 0;
}

static bool has_more(const struct create_plan *p)
{
    return p->preallocation != PRE_OFF && p->size > 0 && !p->data_file;
}

/* --- Into a file --- */

static int put_to_file(void *to, const void *bytes, uint64_t len,
                       uint64_t offset)
{
    return file_create_write(*(int *)to, bytes, len, offset);
}

static int make_data_file(const struct create_plan *p,
                          const struct file_make *how, struct error **errp)
{
    struct file_make data = {.access = how->access};
    enum file_room room = p->preallocation == PRE_FULL     ? ROOM_WRITTEN
                          : p->preallocation == PRE_FALLOC ? ROOM_RESERVED
                                                           : ROOM_NONE;

    return p->data_file && !p->data_exists
               ? file_create_plain(p->data_file, p->size, room, &data, errp)
               : 0;
}

static int preallocate_file(const struct driver_table *t, const char *filename,
                            const struct create_plan *p,
                            const struct file_make *how, struct error **errp)
{
    CLEANUP_JSON json_t *file = options_of_file(filename);
    struct graph *g = graph_new_with(t);
    struct node *n = NULL;
    int r = g && file ? preallocate(g, file, p, how, &n, errp)
                      : error_nomem(errp);

    if (n) {
        graph_lock(g);
        node_unref(n);
        graph_unlock(g);
    }
    graph_free(g);
    return r;
}

static int write_file(const struct driver_table *t, const char *filename,
                      const struct image *im, const struct create_plan *p,
                      struct file_make *how, struct error **errp)
{
    bool existed;
    int fd;
    int r = file_create_begin(filename, !p->data_exists, how, &fd, &existed,
                              errp);

    if (r < 0) {
        return r;
    }
    r = put_image(p, im, put_to_file, &fd, errp);
    if (r == 0) {
        r = make_data_file(p, how, errp);
    }
    r = file_create_finish(filename, fd, existed, r, errp);
    if (r == 0 && has_more(p)) {
        r = preallocate_file(t, filename, p, how, errp);
        if (r < 0 && !existed) {
            (void)unlink(filename);
        }
    }
    return r;
}

int qcow2_create(const struct driver_table *t, const char *filename,
                 struct opts *opts, struct file_make *how, struct error **errp)
{
    struct create_plan p = {.secrets = how->secrets};
    struct image im = {0};
    int r = qcow2_plan_make(opts, &p, errp);

    if (r == 0) {
        r = make_image(&p, &im, errp);
    }
    if (r == 0) {
        r = write_file(t, filename, &im, &p, how, errp);
    }
    free(im.bytes);
    qcow2_plan_drop(&p);
    return r;
}

/* --- Onto a node --- */

static int put_to_node(void *to, const void *bytes, uint64_t len,
                       uint64_t offset)
{
    return blk_pwrite(to, bytes, len, offset, 0);
}

static int write_node(struct graph *g, struct node *file,
                      const struct create_plan *p, const struct image *im,
                      struct error **errp)
{
    uint64_t end = im->len + (p->l2 << p->cluster_bits);
    struct blk *b;
    int r = blk_new(g, file, PERM_WRITE | PERM_RESIZE, PERM_ALL,
                    "an unnamed block device", &b, errp);

    if (r < 0) {
        return r;
    }
    if (blk_size(b) < end) {
        r = blk_resize(b, end, errp);
    }
    if (r == 0) {
        r = put_image(p, im, put_to_node, b, errp);
    }
    if (r == 0) {
        r = blk_flush(b);
        r = r < 0 ? error_set(errp, -r, "cannot flush the new image: %s",
                              strerror(-r))
                  : 0;
    }
    blk_free(b);
    return r;
}

int qcow2_format(struct graph *g, struct node *file, struct opts *opts,
                 struct node **opened, struct error **errp)
{
    CLEANUP_JSON json_t *name = json_string(node_name(file));
    struct create_plan p = {.exact = true, .secrets = g};
    struct image im = {0};
    int r = name ? qcow2_plan_make(opts, &p, errp) : error_nomem(errp);

    if (r == 0) {
        r = make_image(&p, &im, errp);
    }
    if (r == 0) {
        r = write_node(g, file, &p, &im, errp);
    }
    free(im.bytes);
    if (r == 0 && has_more(&p)) {
        r = preallocate(g, name, &p, NULL, opened, errp);
    }
    qcow2_plan_drop(&p);
    return r;
}
