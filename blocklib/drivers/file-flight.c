/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Files of which the kernel moves bytes while the thread does other things
 * (core/flights.c): what may have to wait for storage, and nothing else.
 *
 * With O_DIRECT these are all reads and writes.  Through the page cache these
 * are reads; writes do not wait.  A file system that cannot tell whether a read
 * would wait is left to threads, because the kernel would use some, too.
 */
#include <errno.h>
#include <string.h>

#include "drivers/file.h"
#include "nbdelta/bytes.h"

static int file_flight_begin(struct node *n, bool write)
{
    struct file *s = n->state;

    if (!s->flies || (s->align == 1 && (write || file_waits_always(s)))) {
        return -EAGAIN;
    }
    return s->fd;
}

static int end_read(struct node *n, struct moving *t, int moved)
{
    struct file *s = n->state;
    uint64_t got = (uint64_t)moved;

    t->buf = (char *)t->buf + got;
    t->offset += got;
    t->bytes -= got;
    if (t->bytes == 0) {
        file_was_read(n, t->offset - got, got, true);
        return 0;
    }
    /* The end of the file; maybe inside of a block of O_DIRECT. */
    if (got == 0 || !is_aligned(got, s->align)) {
        memset(t->buf, 0, t->bytes);
        return 0;
    }
    return MOVE_MORE;
}

static int end_write(struct node *n, struct moving *t, int moved)
{
    int r = moved == 0 ? -EIO : moved < 0 ? file_write_error(-moved) : moved;

    if (r > 0) {
        t->buf = (char *)t->buf + r;
        t->offset += (uint64_t)r;
        t->bytes -= (uint64_t)r;
        if (t->bytes > 0) {
            return MOVE_MORE;
        }
    }
    file_count_change(n->state);
    return r < 0 ? r : 0;
}

static int file_flight_end(struct node *n, struct moving *t, int moved)
{
    if (moved == -EINTR || moved == -EAGAIN) {
        return MOVE_MORE;
    }
    if (t->write) {
        return end_write(n, t, moved);
    }
    return moved < 0 ? moved : end_read(n, t, moved);
}

const struct driver_flight file_flight = {
    .begin = file_flight_begin,
    .end = file_flight_end,
};
