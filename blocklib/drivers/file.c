/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * file: regular files and block devices.
 *
 * Durability: `changes` counts the changes that are complete, `flushed` how
 * many of them a finished fdatasync has covered.  A flush that finds nothing
 * new returns at once; flushes that come while one runs share the next.  The
 * kernel reports only once that it could not write something back, and forgets
 * it then.  So after such a report every later flush fails.
 *
 * Status: the last answer about data and holes is kept.  It was true for the
 * `changes` that were read before the kernel was asked, and is used only
 * while that number stands: a change that is complete has been counted.
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

#include "core/door.h"
#include "core/fdset.h"
#include "core/graph.h"
#include "core/imagelock.h"
#include "core/opts.h"
#include "core/ring.h"
#include "drivers/file.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "util/iov.h"

/* Core's own buffers have no larger alignment (buf_alloc). */
#define DIRECT_ALIGN_MAX 4096

/* --- Opening --- */

static uint32_t sector_size(int fd)
{
    int sector = 0;

    if (ioctl(fd, BLKSSZGET, &sector) == 0 && sector > 0 &&
        is_pow2((uint64_t)sector)) {
        return (uint32_t)sector;
    }
    return DIRECT_ALIGN_MAX;
}

/* What O_DIRECT wants of offsets and of memory. */
static uint32_t direct_alignment(int fd, bool regular)
{
    struct statx x;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) == 0 &&
        (x.stx_mask & STATX_DIOALIGN) && is_pow2(x.stx_dio_offset_align) &&
        is_pow2(x.stx_dio_mem_align)) {
        return x.stx_dio_offset_align > x.stx_dio_mem_align
                   ? x.stx_dio_offset_align
                   : x.stx_dio_mem_align;
    }
    return regular ? DIRECT_ALIGN_MAX : sector_size(fd);
}

int file_find_alignment(struct file *s, bool direct, const char *filename,
                        struct error **errp)
{
    s->align = direct ? direct_alignment(s->fd, s->regular) : 1;
    if (s->align > DIRECT_ALIGN_MAX) {
        return error_set(errp, ENOTSUP,
                         "cache.direct=on would need an alignment of %" PRIu32
                         " bytes for '%s'",
                         s->align, filename);
    }
    s->zero_align = s->align;
    if (!s->regular) {
        uint32_t sector = sector_size(s->fd);
        s->zero_align = sector > s->align ? sector : s->align;
    }
    return 0;
}

int file_find_size(struct node *n, const char *filename, struct error **errp)
{
    const struct file *s = n->state;
    struct stat st;
    bool found = fstat(s->fd, &st) == 0;
    off_t size = found && s->regular ? st.st_size
                 : found             ? lseek(s->fd, 0, SEEK_END)
                                     : -1;

    if (size < 0 || (uint64_t)size > BLK_SIZE_MAX) {
        int code = size < 0 ? errno : EFBIG;
        return error_set(errp, code, "cannot use the size of '%s': %s",
                         filename, strerror(code));
    }
    n->size = (uint64_t)size;
    return 0;
}

static int check_kind(const struct node *n, const struct stat *st,
                      const char *filename, struct error **errp)
{
    if (n->drv == &driver_host_device && !S_ISBLK(st->st_mode)) {
        return S_ISCHR(st->st_mode)
                   ? error_set(errp, EINVAL, "'%s' is no block device",
                               filename)
                   : error_set(errp, EINVAL,
                               "'host_device' driver requires '%s' to be "
                               "either a character or block device",
                               filename);
    }
    if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode)) {
        return error_set(errp, EINVAL,
                         "'%s' is neither a regular file nor a block device",
                         filename);
    }
    return 0;
}

int file_check_writable(int fd, const char *filename, struct error **errp)
{
    int read_only = 0;

    if (ioctl(fd, BLKROGET, &read_only) == 0 && read_only) {
        return error_set(errp, EACCES,
                         "Could not open '%s': The device is not writable: %s",
                         filename, strerror(EACCES));
    }
    return 0;
}

/* Names of files that are not there, and may be meant otherwise. */
static const char *hint_for(const char *filename)
{
    const char *port = strrchr(filename, ':');

    if (strstr(filename, "://")) {
        return " (no URIs are opened except those of NBD)";
    }
    return port && port[1] && port[strspn(port + 1, "0123456789") + 1] == '\0'
               ? " (an NBD server is nbd://HOST:PORT)"
               : "";
}

/* Find the file, and check its type before it is opened: opening a device of
 * another kind may have an effect on it. */
static int find_at_door(struct node *n, const char *filename, struct door *d,
                        struct error **errp)
{
    int r;

    if (n->named) {
        r = policy_find(n->named, filename, !n->flags.read_only, d,
                        &n->only_read, errp);
    } else {
        r = door_find(d, filename);
        r = r < 0 ? error_set(errp, -r, "Could not open '%s': %s%s", filename,
                              strerror(-r),
                              r == -ENOENT ? hint_for(filename) : "")
                  : 0;
    }
    if (r < 0) {
        return r;
    }
    r = check_kind(n, &d->st, filename, errp);
    if (r < 0) {
        door_close(d);
    }
    return r;
}

/* Take a descriptor out of a set. */
static int open_of_set(struct node *n, const char *filename, int direct,
                       struct error **errp)
{
    struct file *s = n->state;
    struct stat st;

    s->fd = fdset_dup(n->graph, filename,
                      (n->flags.read_only ? O_RDONLY : O_RDWR) | direct,
                      &s->use, errp);
    if (s->fd == -EACCES && n->flags.auto_read_only && !n->flags.read_only) {
        s->fd = fdset_dup(n->graph, filename, O_RDONLY | direct, &s->use, errp);
        n->flags.read_only = s->fd >= 0;
    }
    if (s->fd < 0) {
        return s->fd;
    }
    return fstat(s->fd, &st) < 0 ? -errno : check_kind(n, &st, filename, errp);
}

static int open_file(struct node *n, const char *filename, int direct,
                     struct error **errp)
{
    struct file *s = n->state;
    struct door d;
    int r = find_at_door(n, filename, &d, errp);

    if (r < 0) {
        return r;
    }
    s->fd = door_open(&d, (n->flags.read_only ? O_RDONLY : O_RDWR) | direct);
    door_close(&d);
    if (s->fd < 0) {
        int code = -s->fd;
        return error_set(
            errp, code, "Could not open '%s': %s%s", filename, strerror(code),
            code == EINVAL && direct ? " (the file system may not support "
                                       "cache.direct=on)"
            : code == EACCES && !n->flags.read_only
                ? " (for writing; it may be open to reading)"
                : "");
    }
    return 0;
}

static int open_fd(struct node *n, const char *filename, struct error **errp)
{
    struct file *s = n->state;
    int direct = n->flags.direct ? O_DIRECT : 0;
    struct stat st;
    /* An image's name for another means no set. */
    int r = !n->named && fdset_is_name(filename)
                ? open_of_set(n, filename, direct, errp)
                : open_file(n, filename, direct, errp);

    if (r < 0) {
        return r;
    }
    if (fstat(s->fd, &st) < 0) {
        return error_set(errp, errno, "cannot look at '%s': %s", filename,
                         strerror(errno));
    }
    s->regular = S_ISREG(st.st_mode);
    if ((!n->flags.read_only &&
         (r = file_check_writable(s->fd, filename, errp)) < 0) ||
        (r = file_find_alignment(s, n->flags.direct, filename, errp)) < 0) {
        return r;
    }
    return file_find_size(n, filename, errp);
}

/* A duplicate has the locks of its open file, which the user has, too. */
void file_close_fd(struct node *n, int fd, struct fdset_use *use)
{
    if (use && fdset_put(n->graph, use)) {
        image_unlock(fd);
    }
    (void)close(fd);
}

static const char *const lock_words[] = {"auto", "on", "off", NULL};
static const char *const aio_words[] = {"threads", "native", "io_uring", NULL};
enum { AIO_THREADS, AIO_NATIVE, AIO_URING, AIO_UNSAID };

static const struct option file_options[] = {
    OPTION("filename", STR, .required = true),
    OPTION("aio", ENUM, .words = aio_words),
    OPTION("locking", ENUM, .words = lock_words),
    OPTIONS_END,
};

/* QEMU refuses "io_uring" where it cannot be had, too. */
static int choose_aio(struct file *s, unsigned aio, struct error **errp)
{
    int r = aio == AIO_URING ? ring_test() : 0;

    if (r < 0) {
        return error_set(errp, -r,
                         "aio=io_uring cannot be had here: %s (without aio= it "
                         "is used where it can be had)",
                         strerror(-r));
    }
    s->flies = aio != AIO_THREADS;
    return 0;
}

static int take_file_options(struct node *n, struct opts *opts,
                             const char **filename, bool *locking,
                             struct error **errp)
{
    unsigned lock = 0;
    unsigned aio = AIO_UNSAID;
    int r;

    if ((r = opts_str(opts, "filename", filename, errp)) < 0 ||
        (r = opts_enum(opts, "locking", lock_words, &lock, errp)) < 0 ||
        (r = opts_enum(opts, "aio", aio_words, &aio, errp)) < 0) {
        return r;
    }
    if (!*filename || !**filename) {
        return *filename
                   ? error_set(errp, EINVAL,
                               "The '%s' block driver requires a file "
                               "name",
                               n->drv->name)
                   : error_set(errp, EINVAL, "Parameter 'filename' is missing");
    }
    *locking = n->flags.locking && !n->flags.force_share && lock != 2;
    return choose_aio(n->state, aio, errp);
}

static int file_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct file *s = n->state;
    const char *filename = NULL;
    bool locking = false;

    s->fd = -1;
    int r = take_file_options(n, opts, &filename, &locking, errp);
    if (r == 0) {
        r = open_fd(n, filename, errp);
    }
    if (r == 0 && locking && n->flags.inactive) {
        image_lock_idle(s->fd);
    } else if (r == 0 && locking) {
        r = image_lock(s->fd, filename, !n->flags.read_only, errp);
    }
    if (r < 0) {
        if (s->fd >= 0) {
            file_close_fd(n, s->fd, s->use);
        }
        return r;
    }
    s->locked = locking;
    file_advise(n);
    file_grow_begin(n, n->size);
    mutex_init(&s->flush_lock, LOCK_FILE_FLUSH, NULL);
    mutex_init(&s->status_lock, LOCK_FILE_STATUS, NULL);
    file_uncached_init(s);
    file_sync_init(s);
    return 0;
}

static void file_close(struct node *n)
{
    struct file *s = n->state;

    mutex_destroy(&s->status_lock);
    mutex_destroy(&s->flush_lock);
    file_uncached_destroy(s);
    file_sync_destroy(s);
    file_grow_end(n);
    file_close_fd(n, s->fd, s->use);
    free(s->marks);
}

static void file_hold_mark(struct node *n, uint64_t mark)
{
    struct file *s = n->state;
    uint64_t *more = reallocarray(s->marks, s->mark_count + 1, sizeof(*more));

    if (more) { /* else it is lost in a reopen */
        s->marks = more;
        s->marks[s->mark_count++] = mark;
    }
    (void)image_mark(s->fd, mark);
}

static bool file_has_mark(struct node *n, uint64_t mark)
{
    const struct file *s = n->state;

    return image_is_marked(s->fd, mark);
}

static void file_limits(struct node *n, struct limits *lim)
{
    const struct file *s = n->state;

    lim->align = s->align;
    lim->zero_align = s->zero_align;
    lim->grows_zero = s->regular;
    lim->fast_zero = s->regular; /* a device may have to write zeroes */
    lim->zero_unmaps = true;
}

/* --- Reading and writing --- */

void file_advance(struct iovec **iov, int *cnt, size_t done)
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

/* Does the error say that a read would have to wait? */
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

    if (nowait && (s->align > 1 || file_waits_always(s))) {
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
        done += (uint64_t)got;
        file_advance(&at, &cnt, (size_t)got);
        /* The end of the file; maybe inside of a block of O_DIRECT. */
        if (got == 0 || !is_aligned((uint64_t)got, s->align)) {
            iov_fill(at, cnt, 0, 0, bytes - done);
            return 0;
        }
    }
    file_was_read(n, offset, bytes, !nowait);
    return 0;
}

int file_write_error(int code)
{
    return code == EFBIG ? -ENOSPC : -code;
}

ssize_t file_write_some(int fd, const struct iovec *iov, int cnt,
                        uint64_t offset, int flags)
{
    ssize_t put;

    do {
        put = pwritev2(fd, iov, cnt, (off_t)offset, flags);
    } while (put < 0 && errno == EINTR);
    if (put == 0) {
        return -EIO;
    }
    return put < 0 ? file_write_error(errno) : put;
}

static int write_all(struct file *s, const struct iovec *iov, int cnt,
                     uint64_t offset, uint64_t bytes)
{
    struct iovec copy[IOV_MAX_INNER];
    struct iovec *at = copy;

    memcpy(copy, iov, (size_t)cnt * sizeof(*iov));
    for (uint64_t done = 0; done < bytes;) {
        ssize_t put = file_write_some(s->fd, at, cnt, offset + done, 0);
        if (put < 0) {
            return (int)put;
        }
        done += (uint64_t)put;
        file_advance(&at, &cnt, (size_t)put);
    }
    return 0;
}

static int file_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt, unsigned flags)
{
    struct file *s = n->state;
    bool sync = (flags & REQ_FUA) && !n->flags.no_flush;

    if ((flags & REQ_NOWAIT) && (s->align > 1 || sync)) {
        return -EAGAIN;
    }
    if (sync && atomic_load(&s->broken)) {
        return -EIO;
    }
    int r = (flags & REQ_UNCACHED) && !sync
                ? file_write_uncached(n, offset, bytes, iov, cnt)
                : -ENOTSUP;
    if (r == -ENOTSUP) {
        bool met = file_uncached_meet(s);
        file_grows(n, offset, bytes);
        r = sync ? file_write_sync(n, offset, bytes, iov, cnt)
                 : write_all(s, iov, cnt, offset, bytes);
        if (met) {
            file_uncached_part(s);
        }
    }
    file_count_change(s);
    return r;
}

static int sync_locked(struct file *s) REQUIRES(s->flush_lock)
{
    uint64_t covers = atomic_load(&s->changes);
    int r;

    do {
        r = fdatasync(s->fd) < 0 ? -errno : 0;
    } while (r == -EINTR);
    if (r < 0) {
        atomic_store(&s->broken, true);
        return r;
    }
    atomic_store(&s->flushed, covers);
    return 0;
}

int file_flush(struct node *n)
{
    struct file *s = n->state;
    uint64_t want = atomic_load(&s->changes);
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

/* Call fallocate(); remember in *lacking that it is not possible. */
static int space(struct file *s, int mode, uint64_t offset, uint64_t bytes,
                 _Atomic bool *lacking)
{
    int r;

    if (atomic_load(lacking)) {
        return -ENOTSUP;
    }
    do {
        r = fallocate(s->fd, mode, (off_t)offset, (off_t)bytes) < 0
                ? file_write_error(errno)
                : 0;
    } while (r == -EINTR);
    file_count_change(s);
    if (r == -EOPNOTSUPP || r == -ENOSYS || r == -ENODEV) {
        atomic_store(lacking, true);
        return -ENOTSUP;
    }
    return r;
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

static int trim_device(struct file *s, uint64_t offset, uint64_t bytes)
{
    uint64_t range[2] = {offset, bytes};
    int r = ioctl(s->fd, BLKDISCARD, range) < 0 ? -errno : 0;

    file_count_change(s);
    return r;
}

static void count_discard(struct file *s, uint64_t bytes, int r)
{
    if (r < 0) {
        atomic_fetch_add(&s->discards_failed, 1);
    } else {
        atomic_fetch_add(&s->discards, 1);
        atomic_fetch_add(&s->discarded, bytes);
    }
}

/* A discard is a hint: it is no error that it is not possible. */
static int file_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct file *s = n->state;
    int r = punch(s, offset, bytes);

    if (r == -ENOTSUP && !s->regular) {
        r = trim_device(s, offset, bytes);
    }
    count_discard(s, bytes, r);
    return r == -ENOTSUP ? 0 : r;
}

static void file_stats(struct node *n, json_t *own)
{
    struct file *s = n->state;
    json_t *more =
        json_pack("{s:I, s:I, s:I}", "discard-nb-ok",
                  (json_int_t)atomic_load(&s->discards), "discard-nb-failed",
                  (json_int_t)atomic_load(&s->discards_failed),
                  "discard-bytes-ok", (json_int_t)atomic_load(&s->discarded));

    (void)json_object_update(own, more);
    json_decref(more);
}

/* Check the size of a device.  Only its owner can change it, and says here that
 * it has changed. */
static int resize_device(const struct node *n, uint64_t size,
                         struct error **errp)
{
    const struct file *s = n->state;
    off_t now = lseek(s->fd, 0, SEEK_END);

    if (now < 0) {
        return error_set(errp, errno, "cannot find the size of '%s': %s",
                         node_filename(n), strerror(errno));
    }
    return (uint64_t)now == size
               ? 0
               : error_set(errp, ENOTSUP,
                           "block devices cannot be resized: '%s' has %" PRIu64
                           " bytes",
                           node_filename(n), (uint64_t)now);
}

static int file_resize(struct node *n, uint64_t size, struct error **errp)
{
    struct file *s = n->state;

    if (!s->regular) {
        return resize_device(n, size, errp);
    }
    file_grow_end(n);
    if (ftruncate(s->fd, (off_t)size) < 0) {
        return error_set(errp, errno,
                         "cannot change the size of '%s' to %" PRIu64 ": %s",
                         node_filename(n), size, strerror(errno));
    }
    file_grow_begin(n, size);
    file_count_change(s);
    return 0;
}

/* --- Sharing --- */

/*
 * By reflink and by nothing else: copy_file_range copies where it cannot share,
 * which is no better than reading and writing, and does not tell which of the
 * two has failed.  The file system wants whole blocks of its own: a range that
 * has none is for the caller to write (-EINVAL).
 */
static int file_clone(struct node *n, uint64_t offset, uint64_t bytes,
                      struct node *from, uint64_t at)
{
    struct file *s = n->state;
    const struct file *other = from->state;

    if (from->drv != n->drv || !s->regular || !other->regular ||
        atomic_load(&s->no_clone)) {
        return -ENOTSUP;
    }
    struct file_clone_range range = {
        .src_fd = other->fd,
        .src_offset = at,
        .src_length = bytes,
        .dest_offset = offset,
    };
    int r;
    do {
        r = ioctl(s->fd, FICLONERANGE, &range) < 0 ? file_write_error(errno)
                                                   : 0;
    } while (r == -EINTR);
    file_count_change(s);
    if (r == -EOPNOTSUPP || r == -ENOTTY || r == -EXDEV) {
        atomic_store(&s->no_clone, true);
        return -ENOTSUP;
    }
    return r;
}

/* --- Status --- */

/* Ask what is at @offset, and where that ends.  False if the kernel cannot
 * tell, or if the file changes between the two questions. */
static bool ask_kernel(struct file *s, uint64_t offset, struct run *run)
{
    off_t data = lseek(s->fd, (off_t)offset, SEEK_DATA);

    *run = (struct run){.start = offset, .end = UINT64_MAX};
    if (data < 0 && errno == ENXIO) { /* nothing but a hole to the end */
        run->hole = true;
        return true;
    }
    if (data < 0) {
        if (errno == EINVAL || errno == EOPNOTSUPP) {
            atomic_store(&s->no_holes, true);
        }
        return false;
    }
    if ((uint64_t)data > offset) {
        run->hole = true;
        run->end = (uint64_t)data;
        return true;
    }
    off_t hole = lseek(s->fd, data, SEEK_HOLE);
    if (hole <= data) {
        return false;
    }
    run->end = (uint64_t)hole;
    return true;
}

static bool recall(struct file *s, uint64_t offset, struct run *run)
{
    mutex_lock(&s->status_lock);
    *run = s->last;
    bool stands = s->last_changes == atomic_load(&s->changes);
    mutex_unlock(&s->status_lock);
    return stands && run->start <= offset && offset < run->end;
}

static bool find_run(const struct node *n, uint64_t offset, struct run *run)
{
    struct file *s = n->state;
    uint64_t changes = atomic_load(&s->changes);

    if (!ask_kernel(s, offset, run)) {
        return false;
    }
    if (s->locked && !n->flags.inactive) {
        mutex_lock(&s->status_lock);
        s->last = *run;
        s->last_changes = changes;
        mutex_unlock(&s->status_lock);
    }
    return true;
}

static int file_map(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned flags, struct mapping *m)
{
    struct file *s = n->state;
    struct run run = {.start = offset, .end = UINT64_MAX};

    if ((flags & MAP_STATUS) && s->regular && !atomic_load(&s->no_holes) &&
        !recall(s, offset, &run)) {
        if (flags & MAP_NOWAIT) {
            return -EAGAIN;
        }
        if (!find_run(n, offset, &run)) { /* data is always a true answer */
            run = (struct run){.start = offset, .end = UINT64_MAX};
        }
    }
    m->kind = run.hole ? MAP_ZERO : MAP_DATA;
    m->file = n;
    m->host = offset;
    m->host_zero = run.hole;
    m->length = min_u64(bytes, run.end - offset);
    return 0;
}

static int file_fstat(const struct node *n, struct stat *st)
{
    const struct file *s = n->state;

    return fstat(s->fd, st) < 0 ? -errno : 0;
}

static const struct driver_reopen reopen_methods = {
    .prepare = file_reopen,
    .commit = file_reopen_commit,
    .abort = file_reopen_abort,
};

/* clang-format off */
static void file_describe(struct node *n, json_t *info)
{
    (void)n;
    (void)json_object_set_new(info, "format-specific",
                              json_pack("{s:s, s:{}}", "type", "file", "data"));
}

#define METHODS                            \
    .is_protocol = true,                   \
    .options = file_options,               \
    .state_size = sizeof(struct file),     \
    .flags_write = REQ_FUA,                \
    .open = file_open,                     \
    .close = file_close,                   \
    .reopen = &reopen_methods,             \
    .flight = &file_flight,                \
    .limits = file_limits,                 \
    .resize = file_resize,                 \
    .fstat = file_fstat,                   \
    .describe = file_describe,             \
    .hold_mark = file_hold_mark,           \
    .has_mark = file_has_mark,             \
    .stats = file_stats,                   \
    .map = file_map,                       \
    .preadv = file_preadv,                 \
    .pwritev = file_pwritev,               \
    .zero = file_zero,                     \
    .clone = file_clone,                   \
    .discard = file_discard,               \
    .flush = file_flush,                   \
    .prefetch = file_prefetch
/* clang-format on */

/* "file" takes block devices, too. */
const struct driver driver_file = {.name = "file", METHODS};

/* "host_device" takes only block devices, as in QEMU. */
const struct driver driver_host_device = {.name = "host_device", METHODS};
