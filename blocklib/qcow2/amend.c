/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Other properties for an image that is there.  Everything is asked first, and
 * then done in this order:
 *
 *   1  the disk grows                   (before 2 only to version 2)
 *   2  to version 2: no cluster is a zero cluster any more; flush
 *   3  new parts of the header go to where nothing is; flush     rehead.c
 *   4  one write of the first sector switches to them; flush
 *   5  the disk grows                   (after 4, else)
 *
 * What a guest reads is the same all the time.  A crash before 4 is on disk
 * leaves the old properties, and afterwards the image has the new ones: all of
 * them, except that a new size is a step of its own.
 */
#include "qcow2/amend.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/image-name.h"
#include "core/opts.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "qcow2/encrypt.h"
#include "qcow2/rehead.h"

#define FMT_MAX 15

const char *const qcow2_amend_options[] = {
    "size",      "compat",        "backing_file",   "backing_fmt",
    "data_file", "data_file_raw", "lazy_refcounts", NULL,
};

/* What the image shall be. */
struct amend {
    struct qcow2 *s;
    const struct image_amend *how;
    uint64_t size;
    uint32_t version;
    bool lazy;
    bool raw;
    char *backing;     /* malloc()ed; NULL: none */
    char *backing_fmt; /* malloc()ed, or NULL */
    char *data_file;   /* malloc()ed, or NULL */
};

static void drop_amend(struct amend *a)
{
    free(a->backing);
    free(a->backing_fmt);
    free(a->data_file);
}

/* --- What is asked for --- */

/* A copy of @text; NULL, and no error, for NULL. */
static int copy_text(const char *text, char **copy, struct error **errp)
{
    *copy = text ? strdup(text) : NULL;
    return text && !*copy ? error_nomem(errp) : 0;
}

static int take_present(struct amend *a, struct error **errp)
{
    const struct qcow2 *s = a->s;

    a->size = s->node->size;
    a->version = s->version;
    a->lazy = s->compatible & QCOW2_COMPAT_LAZY;
    a->raw = s->raw;
    int r = copy_text(s->node->image_backing, &a->backing, errp);
    if (r == 0) {
        r = copy_text(s->node->image_backing_fmt, &a->backing_fmt, errp);
    }
    return r < 0 ? r : copy_text(s->data_name, &a->data_file, errp);
}

/* Replace *text by what the image shall say for @name; nothing for "". */
static int take_name(const char *name, char **text, struct error **errp)
{
    free(*text);
    *text = name[0] != '\0' ? image_name_write(name) : NULL;
    return name[0] != '\0' && !*text ? error_nomem(errp) : 0;
}

static int take_backing(struct amend *a, struct opts *o, struct error **errp)
{
    const char *name = NULL;
    const char *fmt = NULL;
    int r = opts_str(o, "backing_file", &name, errp);

    r = r < 0 ? r : opts_str(o, "backing_fmt", &fmt, errp);
    if (r == 0 && name) {
        r = take_name(name, &a->backing, errp);
    }
    if (r < 0 || (!name && !fmt)) {
        return r;
    }
    if (!a->backing && fmt) {
        return error_set(errp, EINVAL,
                         "Backing format cannot be used without backing file");
    }
    if (a->backing && !fmt) {
        return error_set(errp, EINVAL,
                         "backing_file needs backing_fmt: the format of the "
                         "backing file");
    }
    free(a->backing_fmt);
    return copy_text(a->backing ? fmt : NULL, &a->backing_fmt, errp);
}

static int take_data_file(struct amend *a, struct opts *o, struct error **errp)
{
    const char *name = NULL;
    bool raw = a->raw;
    int r = opts_str(o, "data_file", &name, errp);

    r = r < 0 ? r : opts_bool(o, "data_file_raw", &raw, errp);
    if (r == 0 && name && !a->s->external) {
        return error_set(errp, EINVAL,
                         "data-file can only be set for images that use an "
                         "external data file");
    }
    if (r == 0 && raw && !a->raw) {
        return error_set(errp, EINVAL,
                         "data-file-raw cannot be set on existing images");
    }
    a->raw = raw;
    return r == 0 && name ? take_name(name, &a->data_file, errp) : r;
}

/* What cannot be changed, except by making another image. */
static int refuse_fixed(const struct amend *a, struct opts *o,
                        struct error **errp)
{
    static const char *const fixed[] = {
        "cluster_size",     "preallocation", "extended_l2",
        "compression_type", "encryption",
    };
    static const char *const slots[] = {
        "encrypt.format",     "encrypt.key-secret", "encrypt.state",
        "encrypt.new-secret", "encrypt.old-secret", "encrypt.keyslot",
        "encrypt.iter-time",  "encrypt.cipher-alg", "encrypt.hash-alg",
    };
    uint64_t bits = UINT64_C(1) << a->s->refcount_order;
    uint64_t now = bits;
    int r = opts_uint(o, "refcount_bits", 1024, &bits, errp);

    if (r == 0 && bits != now) {
        return error_set(errp, ENOTSUP,
                         "refcount_bits cannot be changed here: 'qemu-img "
                         "amend' does that, or a copy of the image");
    }
    for (size_t i = 0; i < ARRAY_SIZE(fixed) && r == 0; i++) {
        if (opts_has(o, fixed[i])) {
            r = error_set(errp, ENOTSUP,
                          "%s cannot be changed, except by a copy of the image "
                          "('qemu-img convert')",
                          fixed[i]);
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(slots) && r == 0; i++) {
        if (opts_has(o, slots[i])) {
            r = error_set(
                errp, ENOTSUP,
                "%s: keys of an encrypted image are not changed here; "
                "'qemu-img amend' does that",
                slots[i]);
        }
    }
    return r;
}

static int take_options(struct amend *a, struct opts *o, struct error **errp)
{
    static const char *const compat[] = {"0.10", "1.1", "v2", "v3", NULL};
    unsigned version = a->version >= 3;
    int r = take_present(a, errp);

    r = r < 0 ? r : refuse_fixed(a, o, errp);
    r = r < 0 ? r : opts_uint(o, "size", BLK_SIZE_MAX, &a->size, errp);
    version = a->version >= 3;
    r = r < 0 ? r : opts_enum(o, "compat", compat, &version, errp);
    a->version = version % 2 ? 3 : 2;
    a->lazy &= a->version >= 3;
    r = r < 0 ? r : opts_bool(o, "lazy_refcounts", &a->lazy, errp);
    r = r < 0 ? r : take_backing(a, o, errp);
    r = r < 0 ? r : take_data_file(a, o, errp);
    return r < 0 ? r : opts_end(o, "amending a qcow2 image", errp);
}

/* --- Can the image be that? --- */

static int check_up(const struct qcow2 *s, struct error **errp)
{
    for (uint32_t i = 0; i < s->snapshots.count; i++) {
        struct qcow2_snapshot sn;

        qcow2_snapshot_get(&s->snapshots, i, &sn);
        if (sn.disk_size == UINT64_MAX) {
            return error_set(errp, ENOTSUP,
                             "compat=1.1: snapshot '%.*s' does not tell the "
                             "size of its disk",
                             (int)sn.name_len, sn.name);
        }
    }
    return 0;
}

static int check_size(const struct amend *a, struct error **errp)
{
    if (!is_aligned(a->size, 512)) {
        return error_set(errp, EINVAL,
                         "The new size must be a multiple of 512");
    }
    return a->size < a->s->node->size
               ? error_set(errp, EINVAL,
                           "The disk would lose what is behind its new end: "
                           "'nbdelta resize --shrink' does that")
               : 0;
}

static int check_names(const struct amend *a, struct error **errp)
{
    if (a->backing && (a->raw || a->s->raw)) {
        return error_set(errp, EINVAL,
                         "Backing file and data-file-raw cannot be used at the "
                         "same time");
    }
    if (a->backing && strlen(a->backing) > QCOW2_MAX_BACKING_NAME) {
        return error_set(errp, EINVAL, "Backing file name too long");
    }
    return a->backing_fmt && strlen(a->backing_fmt) > FMT_MAX
               ? error_set(errp, EINVAL, "Backing format too long")
               : 0;
}

static int check_amend(const struct amend *a, struct error **errp)
{
    struct qcow2 *s = a->s;
    bool moves = a->size != s->node->size || a->version < s->version;
    int r = check_size(a, errp);

    if (r < 0) {
        return r;
    }
    if (atomic_load(&s->corrupt)) {
        return error_set(errp, EIO, "image '%s' is corrupt",
                         node_filename(s->node));
    }
    if (moves && (!s->data || qcow2_is_locked(s))) {
        return error_set(errp, ENOMEDIUM, "the data file is not open");
    }
    if (a->lazy && a->version < 3) {
        return error_set(errp, EINVAL,
                         "Lazy refcounts only supported with compatibility "
                         "level 1.1 and above (use compat=1.1 or greater)");
    }
    r = r < 0 ? r : check_names(a, errp);
    if (r == 0 && a->version > s->version) {
        r = check_up(s, errp);
    }
    return r == 0 && a->version < s->version ? qcow2_check_old(s, a->size, errp)
                                             : r;
}

/* --- The header --- */

static int put_head(struct qcow2 *s, const struct qcow2_rehead *h)
{
    int r = 0;

    if (h->tail != 0) {
        r = node_pwrite(s->file, h->new + h->tail, h->tail_bytes, h->tail, 0);
        r = r < 0 ? r : node_flush(s->file);
    }
    r = r < 0 ? r : node_pwrite(s->file, h->new, QCOW2_HEAD_SECTOR, 0, 0);
    return r < 0 ? r : node_flush(s->file);
}

static int switch_header(struct amend *a)
{
    struct qcow2 *s = a->s;
    CLEANUP_FREE unsigned char *old = malloc(s->cluster_size);
    CLEANUP_FREE unsigned char *new = malloc(s->cluster_size);
    struct qcow2_rehead h = {
        .old = old,
        .new = new,
        .size = s->cluster_size,
        .version = a->version,
        .backing = a->backing,
        .backing_fmt = a->backing_fmt,
        .data_file = a->data_file,
    };
    int r = old && new ? node_pread(s->file, old, s->cluster_size, 0, 0)
                       : -ENOMEM;

    if (r < 0) {
        return r;
    }
    if (s->version >= 3) {
        h.compatible = load_be64(old + QCOW2_HDR_COMPAT);
        h.autoclear = load_be64(old + QCOW2_HDR_AUTOCLEAR);
    }
    h.compatible = a->lazy ? h.compatible | QCOW2_COMPAT_LAZY
                           : h.compatible & ~QCOW2_COMPAT_LAZY;
    h.autoclear &= a->raw ? UINT64_MAX : ~QCOW2_AUTOCLEAR_RAW;
    r = qcow2_rehead(&h);
    r = r < 0 ? r : put_head(s, &h);
    if (r == 0) {
        s->version = a->version;
        s->compatible = a->version >= 3 ? h.compatible : 0;
        s->raw = a->raw;
    }
    return r;
}

/* The image on disk is as memory has it, and nothing is in limbo. */
static int write_back(struct qcow2 *s)
{
    int r = qcow2_flush(s->node);

    return r < 0 ? r : qcow2_flush(s->node);
}

static int change_header(struct amend *a, struct error **errp)
{
    struct qcow2 *s = a->s;
    struct node *n = s->node;
    int r = a->version < s->version ? qcow2_expand_zeroes(s, a->how) : 0;

    r = r < 0 ? r : write_back(s);
    r = r < 0 ? r : switch_header(a);
    if (r < 0) {
        return error_set(errp, -r, "cannot amend '%s': %s", node_filename(n),
                         r == -ENOSPC ? "no room in its header or file"
                                      : strerror(-r));
    }
    free(n->image_backing);
    free(n->image_backing_fmt);
    n->image_backing = a->backing;
    n->image_backing_fmt = a->backing_fmt;
    a->backing = a->backing_fmt = NULL;
    return 0;
}

static int grow(struct amend *a, struct error **errp)
{
    struct node *n = a->s->node;

    return a->size > n->size ? node_resize(n, a->size, errp) : 0;
}

int qcow2_amend(struct node *n, struct opts *opts,
                const struct image_amend *how, struct error **errp)
{
    struct qcow2 *s = n->state;
    struct amend a = {.s = s, .how = how};
    int r = take_options(&a, opts, errp);

    r = r < 0 ? r : check_amend(&a, errp);
    bool down = a.version < s->version;
    if (r == 0 && down) {
        r = grow(&a, errp);
    }
    r = r < 0 ? r : change_header(&a, errp);
    r = r < 0 ? r : grow(&a, errp);
    drop_amend(&a);
    return r;
}
