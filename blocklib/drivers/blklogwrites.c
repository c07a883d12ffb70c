/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * blklogwrites: a filter that records what changes its file child, in order, in
 * the format of dm-log-writes.  Tests can play back from the log what a power
 * cut may leave.
 *
 *   log:  | super | entry | data ... | entry | entry | data ... |
 *           sector  write   as written  flush   write
 *
 * An entry is in the log before the file changes, so every change that may be
 * on the disk is in the log.  A flush runs alone: changes whose entries come
 * before its own had completed when it began, and it covers them.  A write with
 * FUA runs alone, too, and has two entries: one as any write, and one with the
 * flag when it is durable.  Entries are written one after another, data first;
 * so the log's length at any moment tells what was done by then.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/graph.h"
#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/thread.h"
#include "util/iov.h"

#define MAGIC      UINT64_C(0x6a736677736872)
#define VERSION    1
#define SUPER_SIZE 28
#define ENTRY_SIZE 32

#define SECTOR_MIN     32
#define SECTOR_MAX     (1 << 24)
#define SECTOR_DEFAULT 512

#define INTERVAL_DEFAULT 4096 /* entries between two updates of the super */

enum {
    LOG_FLUSH = 1 << 0,
    LOG_FUA = 1 << 1,
    LOG_DISCARD = 1 << 2,
    LOG_MARK = 1 << 3,
    LOG_ALL = LOG_FLUSH | LOG_FUA | LOG_DISCARD | LOG_MARK,
};

struct logwrites {
    /* Set at open. */
    struct node *log;
    uint64_t sector;
    uint64_t interval;

    /* Held for reading while the file changes, by a flush for writing. */
    rwlock_t order;

    mutex_t lock;                      /* of the log */
    uint64_t end GUARDED_BY(lock);     /* bytes, where the next entry goes */
    uint64_t entries GUARDED_BY(lock); /* so many are there */
};

/* What an entry says. */
struct entry {
    uint64_t offset;
    uint64_t bytes;
    uint64_t flags;
    const struct iovec *iov; /* the data, or NULL: zeroes */
    int iovcnt;
};

static void put_le64(unsigned char *to, uint64_t value)
{
    value = htole64(value);
    memcpy(to, &value, sizeof(value));
}

static uint64_t get_le64(const unsigned char *from)
{
    uint64_t value;

    memcpy(&value, from, sizeof(value));
    return le64toh(value);
}

/* --- Writing the log --- */

static int write_super(struct logwrites *s) REQUIRES(s->lock)
{
    CLEANUP_FREE unsigned char *super = buf_alloc(s->sector);
    uint32_t sector = htole32((uint32_t)s->sector);

    if (!super) {
        return -ENOMEM;
    }
    memset(super, 0, s->sector);
    put_le64(super, MAGIC);
    put_le64(super + 8, VERSION);
    put_le64(super + 16, s->entries);
    memcpy(super + 24, &sector, sizeof(sector));
    int r = node_pwrite(s->log, super, s->sector, 0, 0);
    return r < 0 ? r : node_flush(s->log);
}

static int write_entry(struct logwrites *s, const struct entry *e)
    REQUIRES(s->lock)
{
    CLEANUP_FREE unsigned char *head = buf_alloc(s->sector);

    if (!head) {
        return -ENOMEM;
    }
    memset(head, 0, s->sector);
    put_le64(head, e->offset / s->sector);
    put_le64(head + 8, div_up(e->bytes, s->sector));
    put_le64(head + 16, e->flags);
    return node_pwrite(s->log, head, s->sector, s->end, 0);
}

/* Write zeroes at @offset of the log.  Past its end only the last bytes are
 * written. */
static int log_zeroes(struct logwrites *s, uint64_t offset, uint64_t bytes)
{
    CLEANUP_FREE unsigned char *last = buf_alloc(s->sector);
    uint64_t size = node_size(s->log);
    int r = 0;

    if (!last) {
        return -ENOMEM;
    }
    memset(last, 0, s->sector);
    if (offset < size) {
        r = node_zero(s->log, offset, min_u64(size - offset, bytes), 0);
    }
    return r < 0 ? r
                 : node_pwrite(s->log, last, s->sector,
                               offset + bytes - s->sector, 0);
}

static int log_data(struct logwrites *s, const struct entry *e)
    REQUIRES(s->lock)
{
    uint64_t at = s->end + s->sector;

    if (e->flags & (LOG_DISCARD | LOG_FLUSH)) {
        return 0;
    }
    return e->iov ? node_pwritev(s->log, at, e->bytes, e->iov, e->iovcnt, 0)
                  : log_zeroes(s, at, align_up(e->bytes, s->sector));
}

static int record(struct logwrites *s, const struct entry *e)
{
    bool has_data = !(e->flags & (LOG_DISCARD | LOG_FLUSH));

    mutex_lock(&s->lock);
    int r = log_data(s, e);
    if (r == 0) {
        r = write_entry(s, e);
    }
    if (r == 0) {
        s->end += s->sector + (has_data ? align_up(e->bytes, s->sector) : 0);
        s->entries++;
        if ((e->flags & LOG_FLUSH) || s->entries % s->interval == 0) {
            r = write_super(s);
        }
    }
    mutex_unlock(&s->lock);
    return r;
}

/* --- Requests --- */

static int write_fua(struct node *n, struct entry e)
{
    struct logwrites *s = n->state;

    rwlock_wrlock(&s->order);
    int r = record(s, &e);
    if (r == 0) {
        r = node_pwritev(node_child(n, CHILD_FILE), e.offset, e.bytes, e.iov,
                         e.iovcnt, REQ_FUA);
    }
    if (r == 0) {
        e.flags = LOG_FUA;
        r = record(s, &e);
    }
    rwlock_unlock(&s->order);
    return r;
}

static int logwrites_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                             const struct iovec *iov, int cnt, unsigned flags)
{
    struct logwrites *s = n->state;

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    if (flags & REQ_FUA) {
        return write_fua(n, (struct entry){offset, bytes, 0, iov, cnt});
    }
    rwlock_rdlock(&s->order);
    int r = record(s, &(struct entry){offset, bytes, 0, iov, cnt});
    if (r == 0) {
        r = node_pwritev(node_child(n, CHILD_FILE), offset, bytes, iov, cnt,
                         flags);
    }
    rwlock_unlock(&s->order);
    return r;
}

static int logwrites_zero(struct node *n, uint64_t offset, uint64_t bytes,
                          unsigned flags)
{
    struct logwrites *s = n->state;

    rwlock_rdlock(&s->order);
    int r = record(s, &(struct entry){offset, bytes, 0, NULL, 0});
    if (r == 0) {
        r = node_zero(node_child(n, CHILD_FILE), offset, bytes, flags);
    }
    rwlock_unlock(&s->order);
    return r;
}

static int logwrites_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct logwrites *s = n->state;

    rwlock_rdlock(&s->order);
    int r = record(s, &(struct entry){offset, bytes, LOG_DISCARD, NULL, 0});
    if (r == 0) {
        r = node_discard(node_child(n, CHILD_FILE), offset, bytes);
    }
    rwlock_unlock(&s->order);
    return r;
}

static int logwrites_flush(struct node *n)
{
    struct logwrites *s = n->state;

    rwlock_wrlock(&s->order);
    int r = node_flush(node_child(n, CHILD_FILE));
    if (r == 0) {
        r = record(s, &(struct entry){0, 0, LOG_FLUSH, NULL, 0});
    }
    rwlock_unlock(&s->order);
    return r;
}

/* --- Opening --- */

/* Find the end of the entries that a log has already. */
static int find_log_end(struct logwrites *s, struct error **errp)
{
    unsigned char head[ENTRY_SIZE];
    uint64_t size = node_size(s->log);
    uint64_t end = s->sector;

    for (uint64_t i = 0; i < s->entries; i++) {
        /* Past the log's end, bytes read as zeroes, which look like entries. */
        if (!range_inside(end, sizeof(head), size)) {
            return error_set(
                errp, EINVAL,
                "Log entry %" PRIu64 " lies behind the end of the log", i);
        }
        int r = node_pread(s->log, head, sizeof(head), end, 0);
        if (r < 0) {
            return error_set(errp, -r,
                             "Failed to read log entry %" PRIu64 ": %s", i,
                             strerror(-r));
        }
        uint64_t sectors = get_le64(head + 8);
        uint64_t flags = get_le64(head + 16);
        if (flags & ~(uint64_t)LOG_ALL) {
            return error_set(
                errp, EINVAL,
                "Invalid flags 0x%" PRIx64 " in log entry %" PRIu64, flags, i);
        }
        uint64_t data = flags & LOG_DISCARD ? 0 : sectors;
        if (data >= INT64_MAX / s->sector - end / s->sector - 1) {
            return error_set(errp, EINVAL,
                             "Invalid length in log entry %" PRIu64, i);
        }
        end += s->sector + data * s->sector;
    }
    s->end = end;
    return 0;
}

static int read_super(struct logwrites *s, struct error **errp)
{
    unsigned char super[SUPER_SIZE];
    uint32_t sector;

    if (node_size(s->log) == 0) {
        return 0;
    }
    int r = node_pread(s->log, super, sizeof(super), 0, 0);
    if (r < 0) {
        return error_set(errp, -r, "Could not read log superblock: %s",
                         strerror(-r));
    }
    if (get_le64(super) != MAGIC) {
        return error_set(errp, EINVAL, "Invalid log superblock magic");
    }
    if (get_le64(super + 8) != VERSION) {
        return error_set(errp, EINVAL, "Unsupported log version %" PRIu64,
                         get_le64(super + 8));
    }
    memcpy(&sector, super + 24, sizeof(sector));
    s->sector = le32toh(sector);
    s->entries = get_le64(super + 16);
    return 0;
}

static int check_sector(const struct logwrites *s, struct error **errp)
{
    return !is_pow2(s->sector) || s->sector < SECTOR_MIN ||
                   s->sector >= SECTOR_MAX
               ? error_set(errp, EINVAL, "Invalid log sector size %" PRIu64,
                           s->sector)
               : 0;
}

static const struct option log_options[] = {
    OPTION("file", NODE, .required = true),
    OPTION("log", NODE, .required = true),
    OPTION("log-append", BOOL),
    OPTION("log-sector-size", UINT, .type_name = "uint64"),
    OPTION("log-super-update-interval", UINT, .type_name = "uint64"),
    OPTIONS_END,
};

static int take_log_options(struct logwrites *s, struct opts *opts,
                            struct error **errp)
{
    bool sized = opts_has(opts, "log-sector-size");
    bool append = false;
    int r;

    s->sector = SECTOR_DEFAULT;
    s->interval = INTERVAL_DEFAULT;
    if ((r = opts_bool(opts, "log-append", &append, errp)) < 0 ||
        (r = opts_uint(opts, "log-sector-size", UINT32_MAX, &s->sector, errp)) <
            0 ||
        (r = opts_uint(opts, "log-super-update-interval", UINT64_MAX,
                       &s->interval, errp)) < 0) {
        return r;
    }
    if (append && sized) {
        return error_set(errp, EINVAL,
                         "log-append and log-sector-size are mutually "
                         "exclusive");
    }
    if (s->interval == 0) {
        return error_set(errp, EINVAL,
                         "Invalid log superblock update interval 0");
    }
    if (append && (r = read_super(s, errp)) < 0) {
        return r;
    }
    r = check_sector(s, errp);
    s->end = s->sector;
    return r == 0 && s->entries > 0 ? find_log_end(s, errp) : r;
}

static int logwrites_open(struct node *n, struct opts *opts,
                          struct error **errp)
{
    struct logwrites *s = n->state;
    int r;

    if ((r = node_open_child(n, opts, "file", CHILD_FILE, false, errp)) < 0 ||
        (r = node_open_child(n, opts, "log", CHILD_TARGET, true, errp)) < 0) {
        return r;
    }
    s->log = node_child(n, CHILD_TARGET);
    n->size = node_size(node_child(n, CHILD_FILE));
    r = take_log_options(s, opts, errp);
    if (r == 0) {
        rwlock_init(&s->order, LOCK_LOGWRITES_ORDER, s);
        mutex_init(&s->lock, LOCK_LOGWRITES, NULL);
    }
    return r;
}

static void logwrites_close(struct node *n)
{
    struct logwrites *s = n->state;

    if (!n->flags.read_only) {
        mutex_lock(&s->lock);
        (void)write_super(s);
        mutex_unlock(&s->lock);
    }
    rwlock_destroy(&s->order);
    mutex_destroy(&s->lock);
}

static void logwrites_limits(struct node *n, struct limits *lim)
{
    const struct logwrites *s = n->state;

    lim->align = (uint32_t)max_u64(lim->align, s->sector);
    lim->zero_align = (uint32_t)max_u64(lim->zero_align, lim->align);
    lim->max_transfer -= lim->max_transfer % lim->align;
}

/* What is cut off reads as zeroes when the file grows again.  The format of the
 * log has no better word for that than a discard. */
static int logwrites_resize(struct node *n, uint64_t size, struct error **errp)
{
    struct logwrites *s = n->state;
    struct node *file = node_child(n, CHILD_FILE);
    uint64_t old = node_size(file);
    uint64_t from = align_up(size, s->sector);
    int r = 0;

    rwlock_rdlock(&s->order);
    if (from < old) {
        r = record(s, &(struct entry){from, old - from, LOG_DISCARD, NULL, 0});
    }
    r = r < 0 ? error_set(errp, -r, "cannot write to the log '%s': %s",
                          node_filename(s->log), strerror(-r))
              : node_resize(file, size, errp);
    rwlock_unlock(&s->order);
    return r;
}

const struct driver driver_logwrites = {
    .name = "blklogwrites",
    .options = log_options,
    .is_filter = true,
    .state_size = sizeof(struct logwrites),
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .open = logwrites_open,
    .close = logwrites_close,
    .limits = logwrites_limits,
    .resize = logwrites_resize,
    .pwritev = logwrites_pwritev,
    .zero = logwrites_zero,
    .discard = logwrites_discard,
    .flush = logwrites_flush,
};
