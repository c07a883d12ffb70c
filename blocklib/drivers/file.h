/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_DRIVERS_FILE_H
#define NBDELTA_DRIVERS_FILE_H

/* Between file.c and drivers/file-*.c. */
#include "core/node.h"
#include "nbdelta/list.h"

/* Bytes of the file that are all data or all a hole. */
struct run {
    uint64_t start;
    uint64_t end;
    bool hole;
};

/* A reader that goes through the file: drivers/file-ahead.c. */
struct ahead {
    _Atomic uint64_t begin; /* where the stream began */
    _Atomic uint64_t next;  /* where it will go on */
    _Atomic uint64_t upto;  /* what is asked for ends here */
    _Atomic unsigned streak;
};

/* How the file grows: drivers/file-grow.c. */
struct growth {
    _Atomic bool able;
    _Atomic uint64_t base;  /* where the window begins */
    _Atomic uint64_t added; /* bytes written behind that */
    _Atomic uint64_t step;  /* what to reserve at once; 0: holes came last */
    _Atomic uint64_t upto;  /* what is reserved ends there; 0: nothing is */
};

/* Writes past the page cache: drivers/file-uncached.c. */
struct uncached {
    _Atomic int fd; /* with O_DIRECT; or one of these */
#define UNCACHED_UNKNOWN (-1)
#define UNCACHED_NEVER   (-2)

    mutex_t lock;
    struct list waiting GUARDED_BY(lock);
    bool busy GUARDED_BY(lock); /* one of them writes */

    /* Writes by way of the page cache. */
    _Atomic unsigned others;  /* under way */
    _Atomic unsigned company; /* so many more writes shall expect some */
    _Atomic bool gives_way;   /* `busy`, and waits until there are no others */
    cond_t none;
};

/* Writes that are durable at once: drivers/file-sync.c. */
struct sync {
    _Atomic int fd; /* of their own, or one of these */
#define SYNC_UNKNOWN (-1)
#define SYNC_NONE    (-2)

    mutex_t lock;
    cond_t ended;
    uint64_t begun GUARDED_BY(lock);      /* number of the last one */
    struct list running GUARDED_BY(lock); /* oldest first */
};

struct file {
    /* Set at open; changed by a reopen, which has drained the tree. */
    int fd;
    bool regular;
    bool locked;                /* nobody else writes to the file */
    uint32_t align;             /* of O_DIRECT, else 1 */
    uint32_t zero_align;        /* what fallocate takes */
    bool flies;                 /* I/O may do without threads */
    struct file_before *before; /* while it is not sure that a reopen stays */
    struct fdset_use *use;      /* of a set (core/fdset.h), or NULL */
    uint64_t *marks;            /* that it holds (core/imagelock.h) */
    size_t mark_count;

    mutex_t flush_lock; /* one fdatasync at a time */

    mutex_t status_lock;
    struct run last GUARDED_BY(status_lock); /* what status found last */
    uint64_t last_changes GUARDED_BY(status_lock);

    /* Atomic. */
    _Atomic uint64_t changes;
    _Atomic uint64_t flushed;
    _Atomic bool broken; /* an fdatasync has failed */
    _Atomic bool no_zero_range;
    _Atomic bool no_punch;
    _Atomic bool no_holes; /* lseek cannot tell them */
    _Atomic bool no_nowait;
    _Atomic bool no_clone;
    struct ahead ahead;
    struct growth growth;
    struct uncached uncached;
    struct sync sync;
    _Atomic uint64_t discards; /* and how much by them */
    _Atomic uint64_t discarded;
    _Atomic uint64_t discards_failed;
};

/* Drop @done bytes from the front of (*iov, *cnt), which is the caller's own
 * copy. */
void file_advance(struct iovec **iov, int *cnt, size_t done);

/* The error that @code, the errno of a write, stands for.  A limit on the size
 * of files (RLIMIT_FSIZE, or the file system's limit) is a lack of room to the
 * writer. */
int file_write_error(int code);

/* Find the alignment that O_DIRECT (if @direct) and fallocate want for
 * s->fd. */
int file_find_alignment(struct file *s, bool direct, const char *filename,
                        struct error **errp);

/* Have n->size be that of s->fd. */
int file_find_size(struct node *n, const char *filename, struct error **errp);

/* -EACCES when @fd is a block device that is read-only: such a one can be
 * opened for writing all the same. */
int file_check_writable(int fd, const char *filename, struct error **errp);

/* Close @fd, an open file of @n, and give back @use, which it is of (or NULL).
 */
void file_close_fd(struct node *n, int fd, struct fdset_use *use);

int file_flush(struct node *n);

/* Count a change that is complete; also a failed one, which may have been done
 * in part. */
static inline void file_count_change(struct file *s)
{
    atomic_fetch_add(&s->changes, 1);
}

/* The file system cannot tell whether a read would have to wait. */
static inline bool file_waits_always(const struct file *s)
{
    return atomic_load(&s->no_nowait);
}

extern const struct driver_flight file_flight;

/* Tell the kernel how s->fd is used.  Set n->flags and s->align before. */
void file_advise(const struct node *n);

/* Note that the range was read.  @waited: it may not have been in memory. */
void file_was_read(struct node *n, uint64_t offset, uint64_t bytes,
                   bool waited);

/* The range is about to be written by way of the page cache. */
void file_grows(struct node *n, uint64_t offset, uint64_t bytes);
/* Begin to look at it, with the flags as they are, and @size; and give back
 * what was reserved, before any of these changes.  No request is in the node.
 */
void file_grow_begin(struct node *n, uint64_t size);
void file_grow_end(struct node *n);

/* Write the range past the page cache.  -ENOTSUP: that is not possible or not
 * worth it, and the caller writes all of it; others: the write has failed. */
int file_write_uncached(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt);

/* A write by way of the page cache begins, and ends if that returned true. */
bool file_uncached_meet(struct file *s);
void file_uncached_part(struct file *s);

void file_uncached_init(struct file *s);
void file_uncached_destroy(struct file *s);
/* Before s->fd becomes another one.  No request is in the node. */
void file_uncached_close(struct file *s);

/* pwritev2(2), once; bytes, more than none, or an error. */
ssize_t file_write_some(int fd, const struct iovec *iov, int cnt,
                        uint64_t offset, int flags);

/* Write the range durably, whatever else of the file is not. */
int file_write_sync(struct node *n, uint64_t offset, uint64_t bytes,
                    const struct iovec *iov, int cnt);

void file_sync_init(struct file *s);
void file_sync_destroy(struct file *s);
/* Before s->fd becomes another one.  No request is in the node. */
void file_sync_close(struct file *s);

int file_reopen(struct node *n, const struct node_flags *to,
                struct error **errp);
void file_reopen_commit(struct node *n);
void file_reopen_abort(struct node *n);

#endif /* NBDELTA_DRIVERS_FILE_H */
