/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * scratch: temporary space, in memory first, then in a file that has no name.
 *
 *      unit (64 KiB)    0     1     2     3     4
 *      stored           1     0     1     1     0     bitmap; 0: zeroes
 *      place            *           1     *
 *                       |           |     |
 *                     memory        |   memory
 *      file       slot 0, slot 1 <--+
 *
 * A unit stays where it was first put until it is discarded; then its place is
 * free again.  The file has no more slots than were needed at once, so a disk
 * may be larger than any file that the file system can have.
 *
 *  1. `stored` and a unit's place are changed under the unit's lock, held
 *     exclusively.  Reading holds it shared.
 *  2. `bytes` counts the units that are stored, and is raised before a unit is
 *     stored.  It is never more than the quota.
 *  3. A caller that takes a slot takes its size from `allowance` first.  When
 *     that is used up, the file system is asked how much is free beyond what is
 *     to be kept free.  So all scratch files that are on one file system, and
 *     all else that is written there, share its room.
 *
 * The file is made together with the node, so that a bad directory is found out
 * at once and not when the memory is full.  It is unlinked from the start
 * (O_TMPFILE).  On a file system that cannot do that, it has a name for a
 * moment.  A crash in that moment leaves the file behind, without a lock, for
 * scratch_clean.
 */
#include "copy/scratch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/create-file.h"
#include "core/hbitmap.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "util/iov.h"

#define UNIT        (64 * KiB)
#define LEAF_UNITS  4096 /* 256 MiB */
#define LOCKS       64
#define ALLOWANCE   (16 * MiB) /* the most that is taken between two looks */
#define DIR_DEFAULT "/var/tmp"
#define NAME_PREFIX ".nbdelta-scratch-"

/* Where a unit is: 0, a pointer to its memory, or its slot * 2 + 1. */
typedef uintptr_t place_t;

struct scratch {
    /* Set by scratch_new. */
    bool ready;
    int fd;
    uint64_t quota;
    uint64_t memory;
    uint64_t kept_free; /* of the file system; 0: there is no such limit */
    uint64_t leaves_count;

    rwlock_t locks[LOCKS]; /* unit i has locks[i % LOCKS] */
    /* Guarded by the unit's lock; the bits are atomic. */
    place_t *_Atomic *leaves; /* each of LEAF_UNITS places, or NULL */
    struct hbitmap *stored;

    mutex_t slots_lock; /* after a unit's lock */
    /* Guarded by slots_lock. */
    uint64_t slots; /* in the file */
    uint64_t *free_slots;
    size_t free_count;
    size_t free_room;

    /* Atomic. */
    _Atomic uint64_t bytes;
    _Atomic uint64_t in_memory; /* of these bytes */
    _Atomic uint64_t allowance; /* bytes that slots may take before a look */
    _Atomic bool in_file;
    _Atomic bool quota_was_hit;
};

/* A part of a request that lies in one unit. */
struct part {
    uint64_t unit;
    uint64_t offset; /* in the unit */
    uint64_t bytes;
    bool whole; /* as far as the node goes */
};

/* --- Places --- */

static place_t place_of(const struct scratch *s, uint64_t unit)
{
    const place_t *leaf = atomic_load(&s->leaves[unit / LEAF_UNITS]);

    return leaf ? leaf[unit % LEAF_UNITS] : 0;
}

/* Threads may need units of one leaf at the same time.  NULL: no memory. */
static place_t *place_for(struct scratch *s, uint64_t unit)
{
    place_t *_Atomic *at = &s->leaves[unit / LEAF_UNITS];
    place_t *leaf = atomic_load(at);

    if (!leaf) {
        place_t *fresh = calloc(LEAF_UNITS, sizeof(*fresh));
        if (!fresh) {
            return NULL;
        }
        if (atomic_compare_exchange_strong(at, &leaf, fresh)) {
            leaf = fresh;
        } else {
            free(fresh);
        }
    }
    return &leaf[unit % LEAF_UNITS];
}

static char *memory_at(place_t place)
{
    return place & 1 ? NULL : (char *)place;
}

static uint64_t slot_at(place_t place)
{
    return place >> 1;
}

/* Add a unit to a sum, if it stays within @most. */
static bool reserve(_Atomic uint64_t *sum, uint64_t most)
{
    uint64_t now = atomic_load(sum);

    do {
        if (now + UNIT > most) {
            return false;
        }
    } while (!atomic_compare_exchange_weak(sum, &now, now + UNIT));
    return true;
}

/* What is free in the file system beyond what is to be kept free. */
static uint64_t room_of(const struct scratch *s)
{
    struct statvfs fs;

    if (fstatvfs(s->fd, &fs) < 0) {
        return 0;
    }
    uint64_t free = (uint64_t)fs.f_bavail * fs.f_frsize;
    return free > s->kept_free ? free - s->kept_free : 0;
}

/* May the file have one more slot?  Threads that look at the same time may
 * each take an allowance. */
static bool take_allowance(struct scratch *s)
{
    uint64_t left = atomic_load(&s->allowance);

    if (s->kept_free == 0) {
        return true;
    }
    do {
        if (left < UNIT) {
            uint64_t room = min_u64(room_of(s), ALLOWANCE);
            if (room < UNIT) {
                return false;
            }
            atomic_store(&s->allowance, room);
            left = room;
        }
    } while (!atomic_compare_exchange_weak(&s->allowance, &left, left - UNIT));
    return true;
}

/* 0: there is no room for it. */
static place_t slot_new(struct scratch *s)
{
    if (!take_allowance(s)) {
        return 0;
    }
    mutex_lock(&s->slots_lock);
    uint64_t slot = s->free_count > 0 ? s->free_slots[--s->free_count]
                                      : s->slots++;
    mutex_unlock(&s->slots_lock);
    return (place_t)slot * 2 + 1;
}

/* Without memory for the list, the slot is never used again. */
static void slot_free(struct scratch *s, uint64_t slot)
{
    (void)fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    (off_t)(slot * UNIT), UNIT);
    mutex_lock(&s->slots_lock);
    if (s->free_count == s->free_room) {
        size_t room = s->free_room * 2 + 64;
        uint64_t *more = realloc(s->free_slots, room * sizeof(*more));
        if (more) {
            s->free_slots = more;
            s->free_room = room;
        }
    }
    if (s->free_count < s->free_room) {
        s->free_slots[s->free_count++] = slot;
    }
    mutex_unlock(&s->slots_lock);
}

/* Memory, or a slot when that has run out.  0: there is no room. */
static place_t place_new(struct scratch *s)
{
    if (reserve(&s->in_memory, s->memory)) {
        char *p = calloc(1, UNIT);
        if (p) {
            return (place_t)p;
        }
        atomic_fetch_sub(&s->in_memory, UNIT);
    }
    return slot_new(s);
}

static void place_free(struct scratch *s, place_t place)
{
    char *memory = memory_at(place);

    if (memory) {
        free(memory);
        atomic_fetch_sub(&s->in_memory, UNIT);
    } else {
        slot_free(s, slot_at(place));
    }
}

/* --- The file --- */

static int read_scratch_file(const struct scratch *s, char *buf, uint64_t bytes,
                             uint64_t offset)
{
    while (bytes > 0) {
        ssize_t n = pread(s->fd, buf, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        buf += n;
        offset += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

/* Move @bytes between the iov, from @done on, and @offset of the file. */
static int move(struct scratch *s, bool write, const struct iovec *iov, int cnt,
                uint64_t done, uint64_t bytes, uint64_t offset)
{
    struct iovec v[IOV_MAX_INNER];
    int parts = iov_slice(v, iov, cnt, done, bytes);
    int r = 0;

    for (int i = 0; i < parts && r == 0; i++) {
        r = write
                ? file_create_write(s->fd, v[i].iov_base, v[i].iov_len, offset)
                : read_scratch_file(s, v[i].iov_base, v[i].iov_len, offset);
        offset += v[i].iov_len;
    }
    return r;
}

/* --- One unit; hold its lock --- */

static int read_scratch_part(struct scratch *s, const struct part *p,
                             const struct iovec *iov, int cnt, uint64_t done)
{
    place_t place = place_of(s, p->unit);

    if (place == 0) {
        iov_fill(iov, cnt, done, 0, p->bytes);
        return 0;
    }
    const char *memory = memory_at(place);
    if (memory) {
        iov_from_buf(iov, cnt, done, memory + p->offset, p->bytes);
        return 0;
    }
    return move(s, false, iov, cnt, done, p->bytes,
                slot_at(place) * UNIT + p->offset);
}

/* A slot that is used again may have old data in it. */
static int clear_slot(struct scratch *s, uint64_t slot)
{
    static const char zeroes[UNIT];

    return file_create_write(s->fd, zeroes, UNIT, slot * UNIT);
}

static int put(struct scratch *s, place_t place, bool fresh,
               const struct part *p, const struct iovec *iov, int cnt,
               uint64_t done)
{
    char *memory = memory_at(place);
    int r = 0;

    if (memory) {
        iov_to_buf(iov, cnt, done, memory + p->offset, p->bytes);
        return 0;
    }
    atomic_store(&s->in_file, true);
    if (fresh && !p->whole) {
        r = clear_slot(s, slot_at(place));
    }
    return r < 0 ? r
                 : move(s, true, iov, cnt, done, p->bytes,
                        slot_at(place) * UNIT + p->offset);
}

static int write_fresh(struct scratch *s, const struct part *p,
                       const struct iovec *iov, int cnt, uint64_t done)
{
    place_t *at = place_for(s, p->unit);

    if (!at) {
        return -ENOMEM;
    }
    bool room = reserve(&s->bytes, s->quota);
    atomic_store(&s->quota_was_hit, !room);
    if (!room) {
        return -ENOSPC;
    }
    place_t place = place_new(s);
    int r = place ? put(s, place, true, p, iov, cnt, done) : -ENOSPC;
    if (r < 0) {
        if (place) {
            place_free(s, place);
        } else {
            atomic_store(&s->quota_was_hit, true);
        }
        atomic_fetch_sub(&s->bytes, UNIT);
        return r;
    }
    *at = place;
    hbitmap_set(s->stored, p->unit * UNIT, 1);
    return 0;
}

static int write_part(struct scratch *s, const struct part *p,
                      const struct iovec *iov, int cnt, uint64_t done)
{
    place_t place = place_of(s, p->unit);

    return place ? put(s, place, false, p, iov, cnt, done)
                 : write_fresh(s, p, iov, cnt, done);
}

static int zero_part(struct scratch *s, const struct part *p)
{
    static const char zeroes[UNIT];
    struct iovec v = {(void *)(uintptr_t)zeroes, p->bytes};
    place_t place = place_of(s, p->unit);

    if (!place) {
        return 0;
    }
    if (!p->whole) {
        return put(s, place, false, p, &v, 1, 0);
    }
    hbitmap_reset(s->stored, p->unit * UNIT, 1);
    *place_for(s, p->unit) = 0;
    place_free(s, place);
    atomic_fetch_sub(&s->bytes, UNIT);
    return 0;
}

/* --- Requests --- */

enum what { READ, WRITE, ZERO };

static int do_part(struct scratch *s, enum what what, const struct part *p,
                   const struct iovec *iov, int cnt, uint64_t done)
    NO_LOCK_ANALYSIS
{
    rwlock_t *lock = &s->locks[p->unit % LOCKS];
    int r;

    if (what == READ) {
        rwlock_rdlock(lock);
        r = read_scratch_part(s, p, iov, cnt, done);
    } else {
        rwlock_wrlock(lock);
        r = what == WRITE ? write_part(s, p, iov, cnt, done) : zero_part(s, p);
    }
    rwlock_unlock(lock);
    return r;
}

static int each_part(struct node *n, enum what what, uint64_t offset,
                     uint64_t bytes, const struct iovec *iov, int cnt)
{
    uint64_t size = n->size;
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0;) {
        uint64_t at = offset + done;
        struct part p = {.unit = at / UNIT, .offset = at % UNIT};

        p.bytes = min_u64(bytes - done, UNIT - p.offset);
        p.whole = p.offset == 0 && (p.bytes == UNIT || at + p.bytes == size);
        r = do_part(n->state, what, &p, iov, cnt, done);
        done += p.bytes;
    }
    return r;
}

static int scratch_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                          const struct iovec *iov, int cnt, unsigned flags)
{
    const struct scratch *s = n->state;

    if ((flags & REQ_NOWAIT) && atomic_load(&s->in_file)) {
        return -EAGAIN;
    }
    return each_part(n, READ, offset, bytes, iov, cnt);
}

static int scratch_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                           const struct iovec *iov, int cnt, unsigned flags)
{
    (void)flags;
    return each_part(n, WRITE, offset, bytes, iov, cnt);
}

static int scratch_zero(struct node *n, uint64_t offset, uint64_t bytes,
                        unsigned flags)
{
    (void)flags;
    return each_part(n, ZERO, offset, bytes, NULL, 0);
}

static int scratch_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    return each_part(n, ZERO, offset, bytes, NULL, 0);
}

static int scratch_map(struct node *n, uint64_t offset, uint64_t bytes,
                       unsigned flags, struct mapping *m)
{
    const struct scratch *s = n->state;
    bool stored = false;

    (void)flags;
    m->length = hbitmap_run(s->stored, offset, offset + bytes, &stored);
    m->kind = stored ? MAP_DATA : MAP_ZERO;
    m->file = n;
    m->host = offset;
    return 0;
}

/* No scratch outlives the process. */
static int scratch_flush(struct node *n)
{
    (void)n;
    return 0;
}

static void scratch_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->pref = UNIT;
    lim->zero_align = UNIT;
    lim->fast_zero = true;
    lim->zero_unmaps = true;
}

static void scratch_close(struct node *n)
{
    struct scratch *s = n->state;

    if (!s->ready) {
        return;
    }
    for (uint64_t i = 0; i < s->leaves_count; i++) {
        place_t *leaf = s->leaves[i];
        for (unsigned k = 0; leaf && k < LEAF_UNITS; k++) {
            free(memory_at(leaf[k]));
        }
        free(leaf);
    }
    free(s->leaves);
    hbitmap_free(s->stored);
    free(s->free_slots);
    mutex_destroy(&s->slots_lock);
    for (unsigned i = 0; i < LOCKS; i++) {
        rwlock_destroy(&s->locks[i]);
    }
    (void)close(s->fd);
}

static const struct driver driver_scratch = {
    .name = "scratch",
    .is_protocol = true,
    .state_size = sizeof(struct scratch),
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .close = scratch_close,
    .limits = scratch_limits,
    .map = scratch_map,
    .preadv = scratch_preadv,
    .pwritev = scratch_pwritev,
    .zero = scratch_zero,
    .discard = scratch_discard,
    .flush = scratch_flush,
};

/* --- Making the file --- */

static const char *dir_or_default(const char *dir)
{
    const char *tmp = getenv("TMPDIR");

    return dir ? dir : tmp && tmp[0] ? tmp : DIR_DEFAULT;
}

/* For file systems without O_TMPFILE.  Between opening and locking, the file
 * has no lock, and another process's scratch_clean may unlink it first.  That
 * does no harm. */
static int open_and_unlink(const char *dir)
{
    CLEANUP_FREE char *name = NULL;

    if (asprintf(&name, "%s/" NAME_PREFIX "XXXXXX", dir) < 0) {
        name = NULL;
        return -ENOMEM;
    }
    int fd = mkostemp(name, O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    (void)flock(fd, LOCK_EX | LOCK_NB);
    (void)unlink(name);
    return fd;
}

static int open_scratch_file(const char *dir)
{
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        return open_and_unlink(dir);
    }
    return fd < 0 ? -errno : fd;
}

static void clean_one(int dir, const char *name)
{
    struct stat st;
    int fd = openat(dir, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0) {
        return;
    }
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() &&
        flock(fd, LOCK_EX | LOCK_NB) == 0) {
        (void)unlinkat(dir, name, 0);
    }
    (void)close(fd);
}

void scratch_clean(const char *dir)
{
    DIR *d = opendir(dir_or_default(dir));
    const struct dirent *e;

    while (d && (e = readdir(d))) {
        if (strncmp(e->d_name, NAME_PREFIX, strlen(NAME_PREFIX)) == 0) {
            clean_one(dirfd(d), e->d_name);
        }
    }
    if (d) {
        (void)closedir(d);
    }
}

/* --- Making one --- */

/* How much of the file system the file has to leave free. */
static uint64_t choose_kept_free(const struct scratch *s)
{
    struct statvfs fs;

    if (fstatvfs(s->fd, &fs) < 0) {
        return 0;
    }
    return min_u64((uint64_t)fs.f_blocks * fs.f_frsize / 10,
                   (uint64_t)fs.f_bavail * fs.f_frsize / 2);
}

static int set_up_scratch(struct node *n, const struct scratch_options *o,
                          struct error **errp)
{
    struct scratch *s = n->state;
    const char *dir = dir_or_default(o->dir);

    s->fd = open_scratch_file(dir);
    if (s->fd < 0) {
        return error_set(errp, -s->fd, "cannot make a scratch file in '%s': %s",
                         dir, strerror(-s->fd));
    }
    s->quota = o->quota ? o->quota : UINT64_MAX - UNIT;
    s->memory = o->memory;
    s->kept_free = o->keep_free ? choose_kept_free(s) : 0;
    s->leaves_count = div_up(n->size, UNIT * LEAF_UNITS);
    s->leaves = calloc(s->leaves_count + 1, sizeof(*s->leaves));
    s->stored = hbitmap_new(n->size, UNIT);
    if (!s->leaves || !s->stored) {
        free(s->leaves);
        hbitmap_free(s->stored);
        (void)close(s->fd);
        return error_nomem(errp);
    }
    mutex_init(&s->slots_lock, LOCK_SCRATCH_SLOTS, NULL);
    for (unsigned i = 0; i < LOCKS; i++) {
        rwlock_init(&s->locks[i], LOCK_SCRATCH_UNIT, NULL);
    }
    s->ready = true;
    return 0;
}

int scratch_new(struct graph *g, struct node *like,
                const struct scratch_options *o, struct node **np,
                struct error **errp)
{
    struct node *n;
    int r = node_new(g, &driver_scratch, NULL, like, &n, errp);

    if (r < 0) {
        return r;
    }
    n->flags = (struct node_flags){.unmap = true};
    node_refresh_limits(n);
    r = set_up_scratch(n, o, errp);
    if (r < 0) {
        node_unref(n);
        return r;
    }
    *np = n;
    return 0;
}

void scratch_usage(const struct node *n, struct scratch_usage *u)
{
    const struct scratch *s = n->state;

    *u = (struct scratch_usage){
        .bytes = atomic_load(&s->bytes),
        .in_file = atomic_load(&s->in_file),
        .quota_was_hit = atomic_load(&s->quota_was_hit),
        .kept_free = s->kept_free,
    };
}
