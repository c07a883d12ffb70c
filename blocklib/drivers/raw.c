/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * raw: a window on the file child.
 *
 *   node:  0 ............. size
 *   child:   offset ....... offset + size
 *
 * When the format was only guessed to be raw, the first bytes and the last are
 * watched: a guest that writes the header of another format there could make
 * the next open follow the file names in it, or fail.  The result counts:
 * writes to these bytes come one by one, and each is checked together with the
 * bytes that are there.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/create-file.h"
#include "core/event.h"
#include "core/format.h"
#include "core/graph.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "util/iov.h"

/* So many bytes at each end go through pwritev: whole blocks, so that aligned
 * I/O remains aligned. */
#define WATCHED 4096

struct raw {
    uint64_t offset;
    bool fixed; /* a size was given: it does not follow the file's */
    struct range_lock watch; /* writes to bytes that a format is known by */
};

static const struct option raw_options[] = {
    OPTION("file", NODE, .required = true),
    OPTION("offset", UINT),
    OPTION("size", UINT),
    OPTIONS_END,
};

static int raw_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct raw *s = n->state;
    uint64_t size = UINT64_MAX;
    int r;

    if ((r = opts_uint(opts, "offset", BLK_SIZE_MAX, &s->offset, errp)) < 0 ||
        (r = opts_uint(opts, "size", BLK_SIZE_MAX, &size, errp)) < 0 ||
        (r = node_open_child(n, opts, "file", CHILD_FILE, false, errp)) < 0) {
        return r;
    }
    uint64_t all = node_size(node_child(n, CHILD_FILE));
    if (s->offset > all) {
        return error_set(errp, EINVAL,
                         "Offset (%" PRIu64 ") cannot be greater than size of "
                         "the containing file (%" PRIu64 ")",
                         s->offset, all);
    }
    s->fixed = size != UINT64_MAX;
    if (s->fixed && size > all - s->offset) {
        return error_set(errp, EINVAL,
                         "The sum of offset (%" PRIu64 ") and size (%" PRIu64
                         ") has to be smaller or equal to the  actual size of "
                         "the containing file (%" PRIu64 ")",
                         s->offset, size, all);
    }
    n->size = s->fixed ? size : all - s->offset;
    range_lock_init(&s->watch);
    return 0;
}

static const struct node *raw_shows_all(const struct node *n)
{
    const struct raw *s = n->state;

    return s->offset == 0 && !s->fixed ? node_child(n, CHILD_FILE) : NULL;
}

static void raw_close(struct node *n)
{
    struct raw *s = n->state;

    range_lock_destroy(&s->watch);
}

static void raw_limits(struct node *n, struct limits *lim)
{
    const struct limits *below = &node_child(n, CHILD_FILE)->limits;

    lim->pref = below->pref;
    lim->fast_zero = below->fast_zero;
    lim->zero_unmaps = below->zero_unmaps;
    lim->far = below->far;
}

/* The offset where the last watched bytes begin. */
static uint64_t watched_tail(const struct node *n)
{
    uint64_t size = node_size(n);

    return size > FORMAT_BYTES ? align_down(size - FORMAT_BYTES, WATCHED) : 0;
}

static int raw_map(struct node *n, uint64_t offset, uint64_t bytes,
                   unsigned flags, struct mapping *m)
{
    const struct raw *s = n->state;

    m->kind = MAP_DATA;
    m->length = bytes;
    if ((flags & MAP_WRITE) && n->probed) {
        uint64_t tail = watched_tail(n);
        bool in_head = offset < WATCHED;
        uint64_t end = in_head ? WATCHED : offset < tail ? tail : UINT64_MAX;

        m->kind = in_head || offset >= tail ? MAP_OPAQUE : MAP_DATA;
        m->length = min_u64(bytes, end - offset);
    }
    m->file = node_child(n, CHILD_FILE);
    m->host = s->offset + offset;
    return 0;
}

/* A range that is about to be written. */
struct change {
    uint64_t offset;
    uint64_t bytes;
    const struct iovec *iov;
    int cnt;
};

static bool touches(const struct change *c, uint64_t start, uint64_t end)
{
    return c->offset < end && c->offset + c->bytes > start;
}

/* Read [start, start + len) as it will be after the change. */
static int read_changed(struct node *n, const struct change *c, uint64_t start,
                        uint64_t len, char *buf)
{
    const struct raw *s = n->state;
    int r = len > 0 ? node_pread(node_child(n, CHILD_FILE), buf, len,
                                 s->offset + start, 0)
                    : 0;

    if (r == 0 && touches(c, start, start + len)) {
        uint64_t from = max_u64(c->offset, start);
        uint64_t to = min_u64(c->offset + c->bytes, start + len);

        iov_to_buf(c->iov, c->cnt, from - c->offset, buf + (from - start),
                   to - from);
    }
    return r;
}

/* Would the disk look like an image after this write? */
static int check_watched(struct node *n, const struct change *c)
{
    uint64_t size = node_size(n);
    char head[FORMAT_BYTES] = {0};
    char tail[FORMAT_BYTES] = {0};
    int r = read_changed(n, c, 0, min_u64(size, FORMAT_BYTES), head);

    if (r == 0 && size > FORMAT_BYTES) {
        r = read_changed(n, c, size - FORMAT_BYTES, FORMAT_BYTES, tail);
    }
    if (r < 0) {
        return r;
    }
    return strcmp(format_probe(graph_drivers(n->graph), head, tail),
                  driver_raw.name) == 0
               ? 0
               : -EPERM;
}

/* Only writes to watched blocks of a guessed image come here. */
static int raw_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    const struct change c = {offset, bytes, iov, cnt};
    struct raw *s = n->state;
    uint64_t size = node_size(n);
    struct range_req req;
    bool matters = touches(&c, 0, FORMAT_BYTES) ||
                   touches(&c, size - min_u64(size, FORMAT_BYTES), size);

    if (matters && (flags & REQ_NOWAIT)) {
        return -EAGAIN;
    }
    int r = node_event_in_request(node_child(n, CHILD_FILE), EVENT_WRITE_AIO,
                                  flags);
    if (r < 0) {
        return r;
    }
    if (!matters) {
        return node_pwritev(node_child(n, CHILD_FILE), s->offset + offset,
                            bytes, iov, cnt, flags);
    }
    range_lock(&s->watch, &req, 0, 1, true);
    r = check_watched(n, &c);
    if (r == 0) {
        r = node_pwritev(node_child(n, CHILD_FILE), s->offset + offset, bytes,
                         iov, cnt, flags);
    }
    range_unlock(&s->watch, &req);
    return r;
}

static int raw_resize(struct node *n, uint64_t size, struct error **errp)
{
    const struct raw *s = n->state;

    if (s->fixed) {
        return error_set(errp, ENOTSUP, "Cannot resize fixed-size raw disks");
    }
    return node_resize(node_child(n, CHILD_FILE), s->offset + size, errp);
}

static uint64_t raw_size_over(const struct node *n, uint64_t below)
{
    const struct raw *s = n->state;
    uint64_t all = below > s->offset ? below - s->offset : 0;

    return s->fixed ? min_u64(n->size, all) : all;
}

static const char *const raw_create_options[] = {"size", "preallocation", NULL};

static int take_creation(struct opts *opts, uint64_t *size,
                         enum file_room *room, struct error **errp)
{
    static const char *const words[] = {"off", "falloc", "full", NULL};
    static const enum file_room rooms[] = {ROOM_NONE, ROOM_RESERVED,
                                           ROOM_WRITTEN};
    unsigned preallocation = 0;
    int r;

    *size = 0;
    if ((r = opts_uint(opts, "size", UINT64_MAX, size, errp)) < 0 ||
        (r = opts_enum(opts, "preallocation", words, &preallocation, errp)) <
            0 ||
        (r = opts_end(opts, "raw image creation", errp)) < 0) {
        return r;
    }
    if (*size > BLK_SIZE_MAX) { /* ftruncate would say that */
        r = *size > INT64_MAX ? EINVAL : EFBIG;
        return error_set(errp, r, "Could not resize file: %s", strerror(r));
    }
    *room = rooms[preallocation];
    return 0;
}

static int raw_create(const struct driver_table *t, const char *filename,
                      struct opts *opts, struct file_make *how,
                      struct error **errp)
{
    enum file_room room;
    uint64_t size;
    int r = take_creation(opts, &size, &room, errp);

    (void)t;
    return r < 0 ? r : file_create_plain(filename, size, room, how, errp);
}

/* Holes count, too. */
static int raw_measure(struct opts *opts, const struct measure_source *source,
                       struct image_measure *m, struct error **errp)
{
    enum file_room room;
    uint64_t size;
    int r = take_creation(opts, &size, &room, errp);

    (void)source;
    m->required = m->fully_allocated = align_up(size, 512);
    return r;
}

static const struct driver_image raw_image = {
    .create = raw_create,
    .measure = raw_measure,
    .create_options = raw_create_options,
};

const struct driver driver_raw = {
    .name = "raw",
    .options = raw_options,
    .passes_perms = true,
    .state_size = sizeof(struct raw),
    .open = raw_open,
    .close = raw_close,
    .limits = raw_limits,
    .shows_all = raw_shows_all,
    .size_over = raw_size_over,
    .resize = raw_resize,
    .image = &raw_image,
    .map = raw_map,
    .pwritev = raw_pwritev,
};
