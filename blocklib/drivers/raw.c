/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * raw: a window on the file child.
 *
 *   node:  0 ............. size
 *   child:   offset ....... offset + size
 *
 * When the format was only guessed to be raw, the first bytes are watched: a
 * guest that writes the header of another format there could make the next
 * open follow the file names in it.  What counts is the result: writes to
 * those bytes come one by one, and each is looked at with what is there.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/create_file.h"
#include "core/event.h"
#include "core/node.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "util/iov.h"

#define MAGIC_MAX 8 /* no header is known by more */

/* Goes through pwritev: a whole block, so that aligned I/O remains so. */
#define WATCHED 4096

struct raw {
    uint64_t offset;
    bool fixed; /* a size was given: it does not follow the file's */
    struct range_lock head; /* writes to the first bytes, when watched */
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
                         "the offset %" PRIu64
                         " is larger than the file (%" PRIu64 " bytes)",
                         s->offset, all);
    }
    s->fixed = size != UINT64_MAX;
    if (s->fixed && size > all - s->offset) {
        return error_set(errp, EINVAL,
                         "offset %" PRIu64 " and size %" PRIu64
                         " exceed the file (%" PRIu64 " bytes)",
                         s->offset, size, all);
    }
    n->size = s->fixed ? size : all - s->offset;
    range_lock_init(&s->head);
    return 0;
}

static void raw_close(struct node *n)
{
    struct raw *s = n->state;

    range_lock_destroy(&s->head);
}

static void raw_limits(struct node *n, struct limits *lim)
{
    const struct limits *below = &node_child(n, CHILD_FILE)->limits;

    lim->pref = below->pref;
    lim->fast_zero = below->fast_zero;
    lim->zero_unmaps = below->zero_unmaps;
}

static int raw_map(struct node *n, uint64_t offset, uint64_t bytes,
                   unsigned flags, struct mapping *m)
{
    const struct raw *s = n->state;

    m->kind = MAP_DATA;
    m->length = bytes;
    if ((flags & MAP_WRITE) && n->probed && offset < WATCHED) {
        m->kind = MAP_OPAQUE;
        m->length = min_u64(bytes, WATCHED - offset);
    }
    m->file = node_child(n, CHILD_FILE);
    m->host = s->offset + offset;
    return 0;
}

/* Does @head begin like an image of some format but raw? */
static bool looks_like_image(const char *head)
{
    static const char magic[][9] = {"QFI\xfb",  "COWD",     "KDMV",
                                    "conectix", "vhdxfile", "<<< "};

    for (size_t i = 0; i < ARRAY_SIZE(magic); i++) {
        if (memcmp(head, magic[i], strlen(magic[i])) == 0) {
            return true;
        }
    }
    return memcmp(head, "QED\0", 4) == 0;
}

/* Would the disk begin like an image after this write? */
static int check_head(struct node *n, uint64_t offset, uint64_t bytes,
                      const struct iovec *iov, int cnt)
{
    const struct raw *s = n->state;
    char head[MAGIC_MAX] = {0};
    int r = node_pread(node_child(n, CHILD_FILE), head,
                       min_u64(node_size(n), MAGIC_MAX), s->offset, 0);
    if (r < 0) {
        return r;
    }
    iov_to_buf(iov, cnt, 0, head + offset, min_u64(bytes, MAGIC_MAX - offset));
    return looks_like_image(head) ? -EPERM : 0;
}

/* Only the first block of a guessed image comes here. */
static int raw_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    struct raw *s = n->state;
    struct range_req req;

    if (offset < MAGIC_MAX && (flags & REQ_NOWAIT)) {
        return -EAGAIN;
    }
    int r = node_event_in_request(node_child(n, CHILD_FILE), EVENT_WRITE_AIO,
                                  flags);
    if (r < 0) {
        return r;
    }
    if (offset >= MAGIC_MAX) {
        return node_pwritev(node_child(n, CHILD_FILE), s->offset + offset,
                            bytes, iov, cnt, flags);
    }
    range_lock(&s->head, &req, 0, MAGIC_MAX, true);
    r = check_head(n, offset, bytes, iov, cnt);
    if (r == 0) {
        r = node_pwritev(node_child(n, CHILD_FILE), s->offset + offset, bytes,
                         iov, cnt, flags);
    }
    range_unlock(&s->head, &req);
    return r;
}

static int raw_resize(struct node *n, uint64_t size, struct error **errp)
{
    const struct raw *s = n->state;

    if (s->fixed) {
        return error_set(errp, ENOTSUP,
                         "a raw node with a fixed size cannot be resized");
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

static int raw_create(const char *filename, struct opts *opts,
                      struct error **errp)
{
    static const char *const words[] = {"off", "falloc", "full", NULL};
    static const enum file_room room[] = {ROOM_NONE, ROOM_RESERVED,
                                          ROOM_WRITTEN};
    unsigned preallocation = 0;
    uint64_t size = 0;
    int r;

    if ((r = opts_uint(opts, "size", BLK_SIZE_MAX, &size, errp)) < 0 ||
        (r = opts_enum(opts, "preallocation", words, &preallocation, errp)) <
            0 ||
        (r = opts_end(opts, "raw image creation", errp)) < 0) {
        return r;
    }
    return file_create_plain(filename, size, room[preallocation], errp);
}

const struct driver driver_raw = {
    .name = "raw",
    .passes_perms = true,
    .state_size = sizeof(struct raw),
    .open = raw_open,
    .close = raw_close,
    .limits = raw_limits,
    .size_over = raw_size_over,
    .resize = raw_resize,
    .create = raw_create,
    .create_options = raw_create_options,
    .map = raw_map,
    .pwritev = raw_pwritev,
};
