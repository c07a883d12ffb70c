/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writes that are durable when they return (REQ_FUA).
 *
 * The kernel writes back the range and nothing else (RWF_DSYNC), so this takes
 * as long as the range, however much of the file is still to be written.  An
 * fdatasync takes as long as all of that.
 *
 * Linux tells each open file once of an error of writing back.  So these writes
 * have a descriptor of their own: an fdatasync of the other one, which may take
 * long, takes no error from them.  Of two of them at once either may get the
 * error of both.  So one that succeeds waits for the others that had begun by
 * then, which are short, too, and looks whether one of them has met an error.
 */
#include "drivers/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/door.h"
#include "nbdelta/bytes.h"
#include "util/iov.h"

/* One that is under way, on its thread's stack. */
struct sync_run {
    struct list link;
    uint64_t number;
};

static int open_own(const struct node *n)
{
    const struct file *s = n->state;
    struct door d = {s->fd, AT_FDCWD, n->filename, {0}};
    int flags = fcntl(s->fd, F_GETFL);

    if (flags < 0 || fstat(s->fd, &d.st) < 0) {
        return SYNC_NONE;
    }
    int fd = door_open(&d, O_RDWR | (flags & O_DIRECT));
    return fd < 0 ? SYNC_NONE : fd;
}

/* Several threads may open one at the same time: the first one counts. */
static int sync_fd(struct node *n)
{
    struct file *s = n->state;
    int fd = atomic_load(&s->sync.fd);

    if (fd == SYNC_UNKNOWN) {
        int mine = open_own(n);
        if (atomic_compare_exchange_strong(&s->sync.fd, &fd, mine)) {
            fd = mine;
        } else if (mine >= 0) {
            (void)close(mine);
        }
    }
    return fd >= 0 ? fd : s->fd;
}

void file_sync_close(struct file *s)
{
    int fd = atomic_exchange(&s->sync.fd, SYNC_UNKNOWN);

    if (fd >= 0) {
        (void)close(fd);
    }
}

void file_sync_init(struct file *s)
{
    struct sync *y = &s->sync;

    atomic_store(&y->fd, SYNC_UNKNOWN);
    mutex_init(&y->lock, LOCK_FILE_SYNC, NULL);
    cond_init(&y->ended);
    mutex_lock(&y->lock);
    list_init(&y->running);
    mutex_unlock(&y->lock);
}

void file_sync_destroy(struct file *s)
{
    file_sync_close(s);
    mutex_destroy(&s->sync.lock);
    cond_destroy(&s->sync.ended);
}

static int write_range(struct file *s, int fd, const struct iovec *iov, int cnt,
                       uint64_t offset, uint64_t bytes)
{
    struct iovec copy[IOV_MAX_INNER];
    struct iovec *at = copy;

    memcpy(copy, iov, (size_t)cnt * sizeof(*iov));
    for (uint64_t done = 0; done < bytes;) {
        ssize_t put = file_write_some(fd, at, cnt, offset + done, RWF_DSYNC);
        if (put < 0) {
            /* Was it not the write that failed but the writing back, of this
             * or of older data?  No fdatasync would tell. */
            if (file_write_some(fd, at, cnt, offset + done, 0) > 0) {
                atomic_store(&s->broken, true);
            }
            return (int)put;
        }
        done += (uint64_t)put;
        file_advance(&at, &cnt, (size_t)put);
    }
    return 0;
}

static bool is_running(const struct sync *y, uint64_t last) REQUIRES(y->lock)
{
    return !list_empty(&y->running) &&
           list_entry(y->running.next, struct sync_run, link)->number <= last;
}

static void begin_run(struct sync *y, struct sync_run *run)
{
    mutex_lock(&y->lock);
    run->number = ++y->begun;
    list_append(&y->running, &run->link);
    mutex_unlock(&y->lock);
}

/* After a success, wait for the others that had begun by now. */
static void end_run(struct sync *y, struct sync_run *run, int r)
{
    mutex_lock(&y->lock);
    list_remove(&run->link);
    cond_broadcast(&y->ended);
    for (uint64_t last = y->begun; r == 0 && is_running(y, last);) {
        cond_wait(&y->ended, &y->lock);
    }
    mutex_unlock(&y->lock);
}

int file_write_sync(struct node *n, uint64_t offset, uint64_t bytes,
                    const struct iovec *iov, int cnt)
{
    struct file *s = n->state;
    struct sync_run run;
    int fd = sync_fd(n);

    begin_run(&s->sync, &run);
    int r = write_range(s, fd, iov, cnt, offset, bytes);
    end_run(&s->sync, &run, r);
    return r == 0 && atomic_load(&s->broken) ? -EIO : r;
}
