/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writes past the page cache.
 *
 * A copy writes bytes that nobody reads soon (REQ_UNCACHED).  In the page cache
 * they would take the room of what guests read, each would be copied once more,
 * and most of them would have to be written back when the copy is flushed.  So
 * large writes of this kind go through a second descriptor:
 *
 *     REQ_UNCACHED, large, aligned ---> uncached.fd (O_DIRECT) ---+
 *     all else ----------------------> fd ---> page cache --------+--> file
 *
 * The kernel keeps both true: it writes back and drops what the page cache has
 * of a range before it writes past it.  Durable is what a flush has covered, as
 * ever.
 *
 * Only file systems that tell their alignment (STATX_DIOALIGN) are written to
 * in this way.  They are local.  A network file system would have its server
 * commit each write by itself.  Small writes are better off in the page cache,
 * which makes large ones of them: each write that makes a file longer waits for
 * the one before.
 */
#include "drivers/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/door.h"
#include "nbdelta/bytes.h"
#include "util/iov.h"

#define LARGE (256 * KiB)

/* Whole pages, so that none is written both ways at once. */
#define PAGE 4096

static bool can_be_direct(int fd)
{
    struct statx x;

    return statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) == 0 &&
           (x.stx_mask & STATX_DIOALIGN) && x.stx_dio_offset_align > 0 &&
           x.stx_dio_offset_align <= PAGE && x.stx_dio_mem_align <= PAGE;
}

static int open_direct(const struct node *n)
{
    const struct file *s = n->state;
    struct door d = {s->fd, AT_FDCWD, n->filename, {0}};

    if (s->align > 1 || !can_be_direct(s->fd) || fstat(s->fd, &d.st) < 0) {
        return UNCACHED_NEVER;
    }
    int fd = door_open(&d, O_RDWR | O_DIRECT);
    return fd < 0 ? UNCACHED_NEVER : fd;
}

/* The descriptor, or a negative number.  Several threads may open one at the
 * same time: the first one counts. */
static int direct_fd(struct node *n)
{
    struct file *s = n->state;
    int fd = atomic_load(&s->uncached_fd);

    if (fd != UNCACHED_UNKNOWN) {
        return fd;
    }
    int mine = open_direct(n);
    if (atomic_compare_exchange_strong(&s->uncached_fd, &fd, mine)) {
        return mine;
    }
    if (mine >= 0) {
        (void)close(mine);
    }
    return fd;
}

void file_uncached_end(struct file *s)
{
    int fd = atomic_exchange(&s->uncached_fd, UNCACHED_UNKNOWN);

    if (fd >= 0) {
        (void)close(fd);
    }
}

static bool is_worth_it(uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt)
{
    uintptr_t all = 0;

    for (int i = 0; i < cnt; i++) {
        all |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    }
    return bytes >= LARGE && is_aligned(offset | bytes | all, PAGE);
}

int file_write_uncached(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt)
{
    struct iovec copy[IOV_MAX_INNER];
    struct iovec *at = copy;
    int fd = is_worth_it(offset, bytes, iov, cnt) ? direct_fd(n) : -1;

    if (fd < 0) {
        return -ENOTSUP;
    }
    memcpy(copy, iov, (size_t)cnt * sizeof(*iov));
    for (uint64_t done = 0; done < bytes;) {
        ssize_t put = pwritev(fd, at, cnt, (off_t)(offset + done));
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {
            return -ENOTSUP; /* not this file, or not its last block */
        }
        if (put <= 0) {
            return put < 0 ? file_write_error(errno) : -EIO;
        }
        done += (uint64_t)put;
        file_advance(&at, &cnt, (size_t)put);
    }
    return 0;
}
