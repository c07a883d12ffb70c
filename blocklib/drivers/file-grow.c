/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Blocks ahead for a file that grows.
 *
 * ext4 takes each new block of a file by itself, which is a third of what a
 * write to the page cache costs.  Blocks that are reserved already cost it
 * nothing.  So a file that grows without holes, as an image does whose clusters
 * are filled, gets blocks behind its end: as many as have come without holes,
 * up to 64 MiB at a time:
 *
 *     | data                    | reserved          |
 *     |              base..added|                   upto
 *                   a window    size
 *
 * The size stays as it is, and the blocks read as zeroes.  What is not used is
 * given back when the file is closed.  After kill -9 it stays with the file
 * until that is opened, grows and is closed.
 *
 * A file that grows with holes gets nothing: its holes keep it small.  Other
 * file systems get nothing either.  XFS does the same by itself; elsewhere
 * reserved blocks may cost more than they save.  And the disk must have plenty
 * of room left, for others want it, too.
 *
 * All of this is advice.  Lost updates of several threads do no harm.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/magic.h>

#include "drivers/file.h"
#include "nbdelta/bytes.h"

/* What is written is looked at in windows of so many bytes. */
#define WINDOW   (1 * MiB)
#define STEP_MAX (64 * MiB)

/* The disk has at least so many times as much room left as is reserved. */
#define ROOM_LEFT 16

static bool can_reserve(const struct node *n)
{
    const struct file *s = n->state;
    struct statfs fs;

    return !n->flags.read_only && s->regular && s->locked && s->align == 1 &&
           fstatfs(s->fd, &fs) == 0 && fs.f_type == EXT4_SUPER_MAGIC;
}

void file_grow_begin(struct node *n, uint64_t size)
{
    struct file *s = n->state;
    struct growth *w = &s->growth;

    atomic_store(&w->base, size);
    atomic_store(&w->added, 0);
    atomic_store(&w->step, 0);
    atomic_store(&w->upto, 0);
    atomic_store(&w->able, can_reserve(n));
}

void file_grow_end(struct node *n)
{
    struct file *s = n->state;
    struct stat st;

    atomic_store(&s->growth.able, false);
    /* To cut a file at its size frees what is behind that. */
    if (atomic_exchange(&s->growth.upto, 0) > 0 && fstat(s->fd, &st) == 0 &&
        ftruncate(s->fd, st.st_size) < 0) {
        return; /* the file keeps the blocks */
    }
}

static bool has_room(const struct file *s, uint64_t bytes)
{
    struct statfs fs;

    return fstatfs(s->fd, &fs) == 0 &&
           fs.f_bavail >= bytes * ROOM_LEFT / (uint64_t)fs.f_bsize;
}

static void reserve(struct file *s, uint64_t from, uint64_t to)
{
    if (!has_room(s, to - from)) {
        return;
    }
    atomic_store(&s->growth.upto, to);
    if (fallocate(s->fd, FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from)) <
            0 &&
        errno != EINTR) {
        atomic_store(&s->growth.able, false);
    }
}

/* The window is over, at @end. */
static void look_back(struct file *s, uint64_t base, uint64_t end)
{
    struct growth *w = &s->growth;
    uint64_t added = atomic_exchange(&w->added, 0);
    bool dense = added >= (end - base) / 8 * 7;
    uint64_t step = min_u64(atomic_load(&w->step) + (end - base), STEP_MAX);

    step = dense ? step : 0;
    atomic_store(&w->step, step);
    uint64_t from = max_u64(atomic_load(&w->upto), end);
    if (from < end + step / 2) {
        reserve(s, from, end + step);
    }
}

void file_grows(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct file *s = n->state;
    struct growth *w = &s->growth;
    uint64_t end = offset + bytes;
    uint64_t base = atomic_load_explicit(&w->base, memory_order_relaxed);

    if (end <= base || !atomic_load_explicit(&w->able, memory_order_relaxed)) {
        return;
    }
    atomic_fetch_add(&w->added, bytes);
    if (end > n->size && end - base >= WINDOW &&
        atomic_compare_exchange_strong(&w->base, &base, end)) {
        look_back(s, base, end);
    }
}
