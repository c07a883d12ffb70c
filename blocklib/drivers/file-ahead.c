/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reading ahead for files that are written to.
 *
 * The kernel's own read-ahead fills large folios, and a small write into a
 * large folio takes ten times as long as one into a page (ext4).  So the kernel
 * is told that the file is read at random, which ends its read-ahead.  This
 * file asks for bytes that are read in order: WILLNEED brings single pages.
 *
 *     ---- reads ---->|next          |upto       |next + window
 *     |  read already |  on its way  |  missing  |
 *
 * What is missing is asked for as soon as it is an eighth of the window: the
 * device always has something to do, and no read waits until a whole window has
 * been submitted.  The window is as large as what the stream has read so far,
 * within limits.  So a stream that ends has asked for no more in vain than it
 * has read, and a reader that goes elsewhere begins with a small window.
 *
 * Some kernels cut a WILLNEED to what their own read-ahead of the device would
 * be, without a word.  So it is given in pieces.
 *
 * Requests overtake one another, so requests near `next` count as a stream.
 * One stream is remembered, for a reader that waits for each answer.  A reader
 * with many requests on the way needs no help.  Lost updates of several threads
 * do no harm, because all of this is advice.
 */
#include <fcntl.h>

#include "drivers/file.h"
#include "nbdelta/bytes.h"

#define NEAR       (1 * MiB)
#define WINDOW_MIN (512 * KiB)
#define WINDOW_MAX (8 * MiB)
#define PIECE      (256 * KiB)
#define STREAK     3 /* reads in order make a stream */

static bool wants_advice(const struct node *n, const struct file *s)
{
    return !n->flags.read_only && s->align == 1;
}

void file_advise(const struct node *n)
{
    const struct file *s = n->state;

    if (wants_advice(n, s)) {
        (void)posix_fadvise(s->fd, 0, 0, POSIX_FADV_RANDOM);
    }
}

static bool is_near(uint64_t a, uint64_t b)
{
    return a < b ? b - a <= NEAR : a - b <= NEAR;
}

static void ask_for(const struct file *s, uint64_t from, uint64_t end)
{
    for (uint64_t at = from; at < end; at += PIECE) {
        (void)posix_fadvise(s->fd, (off_t)at, (off_t)min_u64(PIECE, end - at),
                            POSIX_FADV_WILLNEED);
    }
}

/* The stream has been read up to @end. */
static void follow(struct file *s, uint64_t end)
{
    struct ahead *a = &s->ahead;
    uint64_t read = end - min_u64(atomic_load(&a->begin), end);
    uint64_t window = min_u64(max_u64(read, WINDOW_MIN), WINDOW_MAX);
    uint64_t upto = atomic_load(&a->upto);
    uint64_t from = max_u64(upto, end);
    uint64_t want = end + window;

    if (want >= from + window / 8 &&
        atomic_compare_exchange_strong(&a->upto, &upto, want)) {
        ask_for(s, from, want);
    }
}

void file_was_read(struct node *n, uint64_t offset, uint64_t bytes, bool waited)
{
    struct file *s = n->state;
    struct ahead *a = &s->ahead;
    bool streams = atomic_load_explicit(&a->streak, memory_order_relaxed) >=
                   STREAK;

    if (!(waited || streams) || !wants_advice(n, s)) {
        return;
    }
    uint64_t next = atomic_load(&a->next);
    if (is_near(offset, next)) {
        atomic_store(&a->next, max_u64(next, offset + bytes));
        if (!streams) {
            atomic_fetch_add(&a->streak, 1);
        } else {
            follow(s, max_u64(next, offset + bytes));
        }
    } else if (waited) { /* what is in memory needs nothing */
        atomic_store(&a->next, offset + bytes);
        atomic_store(&a->upto, 0);
        atomic_store(&a->begin, offset);
        atomic_store(&a->streak, 0);
    }
}
