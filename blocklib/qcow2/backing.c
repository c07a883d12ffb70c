/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Another backing file in the header of an image.
 *
 *   0            header, with offset and length of the backing file's name
 *   length       extensions: the backing format, others, an end marker
 *   then         the name, somewhere before the end of the first cluster
 *
 * A crash may let any part of a write happen, but a sector is written whole or
 * not at all.  So the new name goes to a place that is free, and then one write
 * of the first sector makes it count.  The format is in that sector as well.
 * If it cannot be there, the image names none for a moment (readers then look
 * what the file is), never a wrong one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/image-name.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/qcow2.h"

#define SECTOR  512
#define FMT_MAX 15

/* Where things are in the first cluster. */
struct layout {
    uint64_t fmt; /* the format extension, or 0 */
    uint32_t fmt_len;
    uint64_t end;  /* the end marker */
    uint64_t name; /* or 0 */
    uint64_t name_end;
};

struct change {
    struct qcow2 *s;
    unsigned char *head; /* the first cluster as it is on disk */
    struct layout at;
    const char *name;
    const char *fmt;
};

static void find_layout(const unsigned char *h, uint64_t size,
                        uint64_t header_length, struct layout *l)
{
    uint64_t at = header_length;

    *l = (struct layout){0};
    l->name = load_be64(h + 8);
    l->name_end = l->name ? l->name + load_be32(h + 16) : 0;
    uint64_t limit = l->name > header_length ? l->name : size;
    while (at + 8 <= limit) {
        uint32_t type = load_be32(h + at);
        uint64_t len = load_be32(h + at + 4);
        if (type == QCOW2_EXT_END || at + 8 + len > limit) {
            break;
        }
        if (type == QCOW2_EXT_BACKING_FMT) {
            l->fmt = at;
            l->fmt_len = (uint32_t)len;
        }
        at += 8 + align_up(len, 8);
    }
    l->end = at;
}

/* Write head[from, from + len) and wait until it is durable. */
static int put_head(struct change *c, uint64_t from, uint64_t len)
{
    int r = node_pwrite(c->s->file, c->head + from, len, from, 0);
    return r < 0 ? r : node_flush(c->s->file);
}

/* Can the extension that is there take the new format, in one sector? */
static bool fmt_fits(const struct change *c)
{
    const struct layout *l = &c->at;
    return c->fmt && l->fmt && l->fmt + 8 + FMT_MAX < SECTOR &&
           align_up(l->fmt_len, 8) == align_up(strlen(c->fmt), 8);
}

static int drop_fmt(struct change *c)
{
    store_be32(c->head + c->at.fmt, QCOW2_EXT_FILLER);
    return put_head(c, c->at.fmt, 4);
}

/* The bytes that a new format takes after the last extension. */
static uint64_t append_size(const struct change *c)
{
    return c->fmt && !fmt_fits(c) ? 8 + align_up(strlen(c->fmt), 8) : 0;
}

/* The new end marker and the text before the 8 bytes that make it count. */
static int append_fmt(struct change *c)
{
    unsigned char *ext = c->head + c->at.end;
    uint64_t len = append_size(c);

    memset(ext, 0, len + 8);
    memcpy(ext + 8, c->fmt, strlen(c->fmt));
    int r = put_head(c, c->at.end + 8, len);
    if (r == 0) {
        store_be32(ext, QCOW2_EXT_BACKING_FMT);
        store_be32(ext + 4, (uint32_t)strlen(c->fmt));
        r = put_head(c, c->at.end, 8);
    }
    return r;
}

/* A place for the name; 0: there is none that leaves the old one alone. */
static uint64_t find_place(const struct change *c)
{
    uint64_t len = strlen(c->name);
    uint64_t low = c->at.end + append_size(c) + 8;
    uint64_t high = align_up(max_u64(low, c->at.name_end), 8);

    if (c->at.name == 0 || low + len <= c->at.name) {
        return low + len <= c->s->cluster_size ? low : 0;
    }
    if (high + len <= c->s->cluster_size) {
        return high;
    }
    /* The whole cluster is one sector: it changes at once. */
    return c->s->cluster_size == SECTOR && low + len <= SECTOR ? low : 0;
}

static int set_name(struct change *c, uint64_t place)
{
    uint64_t len = place ? strlen(c->name) : 0;
    bool fits = place && fmt_fits(c);
    int r = 0;

    if (place) {
        memcpy(c->head + place, c->name, len);
        if (place + len > SECTOR) {
            r = put_head(c, place, len);
        }
    }
    if (r == 0 && c->at.fmt && !fits) {
        r = drop_fmt(c);
    }
    if (r < 0) {
        return r;
    }
    store_be64(c->head + 8, place);
    store_be32(c->head + 16, (uint32_t)len);
    if (fits) {
        unsigned char *ext = c->head + c->at.fmt;
        memset(ext + 8, 0, align_up(c->at.fmt_len, 8));
        memcpy(ext + 8, c->fmt, strlen(c->fmt));
        store_be32(ext + 4, (uint32_t)strlen(c->fmt));
    }
    r = put_head(c, 0, SECTOR);
    return r == 0 && place && append_size(c) > 0 ? append_fmt(c) : r;
}

static int change_head(struct change *c)
{
    struct qcow2 *s = c->s;
    uint64_t place = 0;

    int r = node_pread(s->file, c->head, s->cluster_size, 0, 0);
    if (r < 0) {
        return r;
    }
    find_layout(c->head, s->cluster_size,
                s->version >= 3 ? load_be32(c->head + 100) : 72, &c->at);
    if (c->name) {
        place = find_place(c);
        if (place == 0) {
            return -ENOSPC;
        }
    }
    return set_name(c, place);
}

int qcow2_change_backing(struct node *n, const char *name, const char *fmt,
                         struct error **errp)
{
    struct qcow2 *s = n->state;
    CLEANUP_FREE char *new_name = name ? image_name_write(name) : NULL;
    struct change c = {.s = s, .name = new_name, .fmt = name ? fmt : NULL};
    CLEANUP_FREE char *new_fmt = c.fmt ? strdup(c.fmt) : NULL;
    CLEANUP_FREE unsigned char *head = calloc(1, s->cluster_size);

    if (!head || (name && !new_name) || (c.fmt && !new_fmt)) {
        return error_nomem(errp);
    }
    c.head = head;
    /* A raw data file shows the whole disk. */
    int r = name && (s->raw || strlen(new_name) > QCOW2_MAX_BACKING_NAME ||
                     (fmt && strlen(fmt) > FMT_MAX))
                ? -EINVAL
                : qcow2_flush(n); /* the header's fields, too */
    if (r == 0) {
        r = change_head(&c);
    }
    if (r < 0) {
        return error_set(errp, -r, "Could not change backing file to '%s': %s",
                         name ? name : "", strerror(-r));
    }
    free(n->image_backing);
    free(n->image_backing_fmt);
    n->image_backing = new_name;
    n->image_backing_fmt = new_fmt;
    new_name = NULL;
    new_fmt = NULL;
    return 0;
}
