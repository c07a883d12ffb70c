/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * file: regular files and block devices.
 *
 * Durability: `written` counts changes that are complete, `flushed` how many
 * of them a finished fdatasync has covered.  A flush that finds nothing new
 * returns at once; those that come while one runs share the next.  After a
 * failed fdatasync the kernel has dropped what it could not write, so every
 * later flush fails too.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/fs.h>

#include "core/imagelock.h"
#include "core/node.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "util/iov.h"

struct file {
    /* Set at open. */
    int fd;
    bool regular;
    uint32_t align;

    mutex_t flush_lock; /* one fdatasync at a time */

    /* Atomic. */
    _Atomic uint64_t written;
    _Atomic uint64_t flushed;
    _Atomic bool broken;       /* an fdatasync has failed */
    _Atomic bool no_zero_range;
    _Atomic bool no_punch;
    _Atomic bool no_holes;     /* lseek cannot tell them */
    _Atomic bool no_nowait;
};

/* --- Opening --- */

static uint32_t direct_alignment(int fd, const struct stat *st)
{
    int sector = 0;

    if (S_ISBLK(st->st_mode) && ioctl(fd, BLKSSZGET, &sector) == 0 &&
        sector > 0 && is_pow2((uint64_t)sector)) {
        return (uint32_t)sector;
    }
    return 4096;
}

static int find_size(struct node *n, const char *filename,
                     const struct stat *st, struct error **errp)
{
    struct file *s = n->state;
    off_t size = s->regular ? st->st_size : lseek(s->fd, 0, SEEK_END);

    if (size < 0 || (uint64_t)size > BLK_SIZE_MAX) {
        return error_set(errp, size < 0 ? errno : EFBIG,
                         "cannot tell the size of '%s'", filename);
    }
    n->size = (uint64_t)size;
    return 0;
}

static int open_fd(struct node *n, const char *filename, struct error **errp)
{
    struct file *s = n->state;
    int flags = O_CLOEXEC | (n->flags.read_only ? O_RDONLY : O_RDWR) |
                (n->flags.direct ? O_DIRECT : 0);
    struct stat st;

    /* A FIFO would block the open, a device might do anything. */
    if (stat(filename, &st) == 0 && !S_ISREG(st.st_mode) &&
        !S_ISBLK(st.st_mode)) {
        return error_set(errp, EINVAL,
                         "'%s' is neither a regular file nor a block device",
                         filename);
    }
    s->fd = open(filename, flags);
    if (s->fd < 0) {
        int code = errno;
        return error_set(errp, code, "Could not open '%s': %s%s", filename,
                         strerror(code),
                         code == EINVAL && n->flags.direct
                             ? " (the file system may not support "
                               "cache.direct=on)"
                             : "");
    }
    if (fstat(s->fd, &st) < 0) {
        return error_set(errp, errno, "cannot look at '%s': %s", filename,
                         strerror(errno));
    }
    s->regular = S_ISREG(st.st_mode);
    s->align = n->flags.direct ? direct_alignment(s->fd, &st) : 1;
    return find_size(n, filename, &st, errp);
}

static int take_options(struct node *n, struct opts *opts,
                        const char **filename, bool *locking,
                        struct error **errp)
{
    static const char *const lock_words[] = { "auto", "on", "off", NULL };
    static const char *const aio_words[] = { "threads", "native", "io_uring",
                                             NULL };
    unsigned lock = 0;
    unsigned aio = 0; /* taken for QEMU's sake: all I/O is synchronous here */
    int r;

    if ((r = opts_str(opts, "filename", filename, errp)) < 0 ||
        (r = opts_enum(opts, "locking", lock_words, &lock, errp)) < 0 ||
        (r = opts_enum(opts, "aio", aio_words, &aio, errp)) < 0) {
        return r;
    }
    if (!*filename) {
        return error_set(errp, EINVAL, "Parameter 'filename' is missing");
    }
    *locking = n->flags.locking && !n->flags.force_share && lock != 2;
    return 0;
}

static int file_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct file *s = n->state;
    const char *filename = NULL;
    bool locking;

    s->fd = -1;
    int r = take_options(n, opts, &filename, &locking, errp);
    if (r == 0) {
        r = open_fd(n, filename, errp);
    }
    if (r == 0 && locking) {
        r = image_lock(s->fd, filename, !n->flags.read_only, errp);
    }
    if (r < 0) {
        if (s->fd >= 0) {
            (void)close(s->fd);
        }
        return r;
    }
    mutex_init(&s->flush_lock);
    return 0;
}

static void file_close(struct node *n)
{
    struct file *s = n->state;

    mutex_destroy(&s->flush_lock);
    (void)close(s->fd);
}

static void file_limits(struct node *n, struct limits *lim)
{
    const struct file *s = n->state;

    lim->align = lim->zero_align = s->align;
    lim->grows_zero = s->regular;
    lim->fast_zero = true;
    lim->zero_unmaps = true;
}

/* --- Reading and writing --- */

/* Drop @done bytes from the front of (*iov, *cnt), which is the caller's own
 * copy. */
static void advance(struct iovec **iov, int *cnt, size_t done)
{
    while (*cnt > 0 && done >= (*iov)->iov_len) {
        done -= (*iov)->iov_len;
        (*iov)++;
        (*cnt)--;
    }
    if (*cnt > 0) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + done;
        (*iov)->iov_len -= done;
    }
}

/* Is the error that of a read that would have had to wait? */
static bool would_wait(struct file *s, int code)
{
    if (code == EOPNOTSUPP) {
        atomic_store(&s->no_nowait, true);
        return true;
    }
    return code == EAGAIN;
}

static int file_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                       const struct iovec *iov, int cnt, unsigned flags)
{
    struct file *s = n->state;
    bool nowait = flags & REQ_NOWAIT;
    struct iovec copy[IOV_MAX_INNER];
    struct iovec *at = copy;

    if (nowait && (s->align > 1 || atomic_load(&s->no_nowait))) {
        return -EAGAIN;
    }
    memcpy(copy, iov, (size_t)cnt * sizeof(*iov));
    for (uint64_t done = 0; done < bytes;) {
        ssize_t got = preadv2(s->fd, at, cnt, (off_t)(offset + done),
                              nowait ? RWF_NOWAIT : 0);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return nowait && would_wait(s, errno) ? -EAGAIN : -errno;
        }
        if (got == 0) { /* past the end of the file */
            iov_fill(at, cnt, 0, 0, bytes - done);
            return 0;
        }
        done += (uint64_t)got;
        advance(&at, &cnt, (size_t)got);
    }
    return 0;
}

static int file_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    struct file *s = n->state;
    bool sync = (flags & REQ_FUA) && !n->flags.no_flush;
    struct iovec copy[IOV_MAX_INNER];
    struct iovec *at = copy;

    if ((flags & REQ_NOWAIT) && (s->align > 1 || sync)) {
        return -EAGAIN;
    }
    if (sync && atomic_load(&s->broken)) {
        return -EIO;
    }
    memcpy(copy, iov, (size_t)cnt * sizeof(*iov));
    for (uint64_t done = 0; done < bytes;) {
        ssize_t put = pwritev2(s->fd, at, cnt, (off_t)(offset + done),
                               sync ? RWF_DSYNC : 0);
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put <= 0) {
            return put < 0 ? -errno : -EIO;
        }
        done += (uint64_t)put;
        advance(&at, &cnt, (size_t)put);
    }
    atomic_fetch_add(&s->written, 1);
    return 0;
}

static int sync_locked(struct file *s) REQUIRES(s->flush_lock)
{
    uint64_t covers = atomic_load(&s->written);

    if (fdatasync(s->fd) < 0) {
        int r = -errno;
        atomic_store(&s->broken, true);
        return r;
    }
    atomic_store(&s->flushed, covers);
    return 0;
}

static int file_flush(struct node *n)
{
    struct file *s = n->state;
    uint64_t want = atomic_load(&s->written);
    int r = 0;

    if (n->flags.no_flush) {
        return 0;
    }
    if (atomic_load(&s->broken)) {
        return -EIO;
    }
    if (atomic_load(&s->flushed) >= want) {
        return 0;
    }
    mutex_lock(&s->flush_lock);
    if (atomic_load(&s->broken)) {
        r = -EIO;
    } else if (atomic_load(&s->flushed) < want) {
        r = sync_locked(s);
    }
    mutex_unlock(&s->flush_lock);
    return r;
}

static void file_prefetch(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct file *s = n->state;

    if (s->align == 1) {
        (void)posix_fadvise(s->fd, (off_t)offset, (off_t)bytes,
                            POSIX_FADV_WILLNEED);
    }
}

/* --- Space --- */

/* fallocate, where "not possible" is remembered in *lacking. */
static int space(struct file *s, int mode, uint64_t offset, uint64_t bytes,
                 _Atomic bool *lacking)
{
    if (atomic_load(lacking)) {
        return -ENOTSUP;
    }
    for (;;) {
        if (fallocate(s->fd, mode, (off_t)offset, (off_t)bytes) == 0) {
            atomic_fetch_add(&s->written, 1);
            return 0;
        }
        if (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENODEV) {
            atomic_store(lacking, true);
            return -ENOTSUP;
        }
        if (errno != EINTR) {
            return -errno;
        }
    }
}

static int punch(struct file *s, uint64_t offset, uint64_t bytes)
{
    return space(s, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes,
                 &s->no_punch);
}

static int file_zero(struct node *n, uint64_t offset, uint64_t bytes,
                     unsigned flags)
{
    struct file *s = n->state;
    int r = -ENOTSUP;

    if (flags & REQ_MAY_UNMAP) {
        r = punch(s, offset, bytes);
    }
    if (r == -ENOTSUP) {
        r = space(s, FALLOC_FL_ZERO_RANGE, offset, bytes, &s->no_zero_range);
    }
    return r;
}

static int file_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    int r = punch(n->state, offset, bytes);
    return r == -ENOTSUP ? 0 : r; /* a hint */
}

static int file_resize(struct node *n, uint64_t size, struct error **errp)
{
    struct file *s = n->state;

    if (!s->regular) {
        return error_set(errp, ENOTSUP, "block devices cannot be resized");
    }
    if (ftruncate(s->fd, (off_t)size) < 0) {
        return error_set(errp, errno,
                         "cannot change the size of '%s' to %" PRIu64 ": %s",
                         node_filename(n), size, strerror(errno));
    }
    atomic_fetch_add(&s->written, 1);
    return 0;
}

/* --- Status --- */

/* Data or hole at @offset, and where that ends. */
static bool find_hole(struct file *s, uint64_t offset, uint64_t end,
                      bool *hole, uint64_t *next)
{
    off_t data = lseek(s->fd, (off_t)offset, SEEK_DATA);

    if (data < 0 && errno == ENXIO) { /* nothing but a hole to the end */
        *hole = true;
        *next = end;
        return true;
    }
    if (data < 0) {
        return false;
    }
    *hole = (uint64_t)data > offset;
    *next = (uint64_t)data;
    if (!*hole) {
        off_t stop = lseek(s->fd, data, SEEK_HOLE);
        if (stop <= data) {
            return false;
        }
        *next = (uint64_t)stop;
    }
    return true;
}

static int file_map(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned flags, struct mapping *m)
{
    struct file *s = n->state;
    uint64_t end = offset + bytes;
    uint64_t next = end;
    bool hole = false;

    if ((flags & MAP_STATUS) && s->regular && !atomic_load(&s->no_holes) &&
        !find_hole(s, offset, end, &hole, &next)) {
        atomic_store(&s->no_holes, true);
        next = end;
        hole = false;
    }
    m->kind = hole ? MAP_ZERO : MAP_DATA;
    m->file = n;
    m->host = offset;
    m->host_zero = hole;
    m->length = min_u64(next, end) - offset;
    return 0;
}

static void file_describe(struct node *n, json_t *info)
{
    const struct file *s = n->state;
    struct stat st;

    if (fstat(s->fd, &st) == 0) {
        (void)json_object_set_new(info, "actual-size",
                                  json_integer(st.st_blocks * 512));
    }
}

const struct driver driver_file = {
    .name = "file",
    .is_protocol = true,
    .state_size = sizeof(struct file),
    .flags_write = REQ_FUA,
    .open = file_open,
    .close = file_close,
    .limits = file_limits,
    .resize = file_resize,
    .describe = file_describe,
    .map = file_map,
    .preadv = file_preadv,
    .pwritev = file_pwritev,
    .zero = file_zero,
    .discard = file_discard,
    .flush = file_flush,
    .prefetch = file_prefetch,
};
