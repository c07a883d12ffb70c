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
 * commit each write by itself.
 *
 * The kernel has one write at a time make a file longer or fill its holes, and
 * those that wait for that keep a CPU busy.  So writers wait here, and the
 * first one takes along those whose ranges adjoin its own:
 *
 *     file:      ...[ B ][ A ][ D ]......[ C ]
 *     waiting:   A C D B                  A makes one write of B, A and D
 *
 * A write by way of the page cache, such as a guest's, waits for these in the
 * kernel, and the kernel may let the next one pass it.  So while there are
 * such writes, ours are small, and each one waits until none of these is under
 * way, for a moment at most.
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

#define LARGE (64 * KiB)

/* Of one write. */
#define TURN_BYTES_MAX (4 * MiB)
#define TURN_IOV_MAX   64

/* Where others write: bytes of one write (0.2 ms here), for how many writes
 * after the last one of the others, and for how long one gives way. */
#define POLITE_BYTES (256 * KiB)
#define POLITE_TURNS 16
#define POLITE_MS    1

/* Whole pages, so that none is written both ways at once. */
#define PAGE 4096

/* A writer's range, on its stack. */
struct turn {
    struct list in; /* the file's list, then that of the one who writes */
    cond_t wake;
    uint64_t offset;
    uint64_t bytes;
    const struct iovec *iov;
    int cnt;
    bool done;
    int result;
};

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
    int fd = atomic_load(&s->uncached.fd);

    if (fd != UNCACHED_UNKNOWN) {
        return fd;
    }
    int mine = open_direct(n);
    if (atomic_compare_exchange_strong(&s->uncached.fd, &fd, mine)) {
        return mine;
    }
    if (mine >= 0) {
        (void)close(mine);
    }
    return fd;
}

void file_uncached_close(struct file *s)
{
    int fd = atomic_exchange(&s->uncached.fd, UNCACHED_UNKNOWN);

    if (fd >= 0) {
        (void)close(fd);
    }
}

void file_uncached_init(struct file *s)
{
    struct uncached *u = &s->uncached;

    atomic_store(&u->fd, UNCACHED_UNKNOWN);
    mutex_init(&u->lock, LOCK_FILE_UNCACHED, NULL);
    cond_init(&u->none);
    mutex_lock(&u->lock);
    list_init(&u->waiting);
    mutex_unlock(&u->lock);
}

void file_uncached_destroy(struct file *s)
{
    file_uncached_close(s);
    cond_destroy(&s->uncached.none);
    mutex_destroy(&s->uncached.lock);
}

static bool is_worth_it(uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt)
{
    uintptr_t all = 0;

    for (int i = 0; i < cnt; i++) {
        all |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    }
    return bytes >= LARGE && cnt <= TURN_IOV_MAX &&
           is_aligned(offset | bytes | all, PAGE);
}

bool file_uncached_meet(struct file *s)
{
    struct uncached *u = &s->uncached;

    if (atomic_load_explicit(&u->fd, memory_order_relaxed) < 0) {
        return false;
    }
    atomic_store(&u->company, POLITE_TURNS);
    atomic_fetch_add(&u->others, 1);
    return true;
}

void file_uncached_part(struct file *s)
{
    struct uncached *u = &s->uncached;

    if (atomic_fetch_sub(&u->others, 1) == 1 && atomic_load(&u->gives_way)) {
        mutex_lock(&u->lock);
        cond_signal(&u->none);
        mutex_unlock(&u->lock);
    }
}

static bool in_company(const struct uncached *u)
{
    return atomic_load(&u->company) > 0;
}

/* The one that writes lets others go first. */
static void give_way(struct uncached *u)
{
    atomic_fetch_sub(&u->company, 1); /* only we count down */
    if (atomic_load(&u->others) == 0) {
        return;
    }
    mutex_lock(&u->lock);
    atomic_store(&u->gives_way, true);
    if (atomic_load(&u->others) > 0) {
        (void)cond_wait_ms(&u->none, &u->lock, POLITE_MS);
    }
    atomic_store(&u->gives_way, false);
    mutex_unlock(&u->lock);
}

/* pwritev(2) of at most @most bytes. */
static ssize_t write_some(int fd, struct iovec *v, int cnt, uint64_t offset,
                          uint64_t most)
{
    uint64_t bytes = 0;
    int n = 0;

    while (n < cnt && bytes < most) {
        bytes += v[n++].iov_len;
    }
    uint64_t over = bytes > most ? bytes - most : 0;
    v[n - 1].iov_len -= over;
    ssize_t put = pwritev(fd, v, n, (off_t)offset);
    v[n - 1].iov_len += over;
    return put;
}

/* Write all of @v, which is the caller's own copy. */
static int write_direct(struct uncached *u, int fd, struct iovec *v, int cnt,
                        uint64_t offset, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes;) {
        uint64_t most = bytes;

        if (in_company(u)) {
            give_way(u);
            most = POLITE_BYTES;
        }
        ssize_t put = write_some(fd, v, cnt, offset + done, most);
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
        file_advance(&v, &cnt, (size_t)put);
    }
    return 0;
}

static struct turn *turn_at(struct list *l)
{
    return list_entry(l, struct turn, in);
}

/* One that waits, and adjoins [@from, @end); or NULL. */
static struct turn *find_neighbour(struct uncached *u, uint64_t from,
                                   uint64_t end) REQUIRES(u->lock)
{
    for (struct list *l = u->waiting.next; l != &u->waiting; l = l->next) {
        struct turn *t = turn_at(l);

        if (t->offset == end || t->offset + t->bytes == from) {
            return t;
        }
    }
    return NULL;
}

/* Take @first and all that can go with it from the waiting, in the order of
 * their offsets. */
static void take_group(struct uncached *u, struct turn *first,
                       struct list *group) REQUIRES(u->lock)
{
    uint64_t from = first->offset;
    uint64_t end = from + first->bytes;
    struct turn *t = first;
    int cnt = 0;

    list_init(group);
    while (t && cnt + t->cnt <= TURN_IOV_MAX &&
           (t == first || end - from + t->bytes <= TURN_BYTES_MAX)) {
        list_remove(&t->in);
        list_insert_before(t->offset < from ? group->next : group, &t->in);
        from = min_u64(from, t->offset);
        end = max_u64(end, t->offset + t->bytes);
        cnt += t->cnt;
        t = find_neighbour(u, from, end);
    }
}

static int write_group(struct uncached *u, int fd, const struct list *group)
{
    struct iovec v[TURN_IOV_MAX];
    uint64_t bytes = 0;
    int cnt = 0;

    for (struct list *l = group->next; l != group; l = l->next) {
        const struct turn *t = turn_at(l);

        memcpy(v + cnt, t->iov, (size_t)t->cnt * sizeof(*v));
        cnt += t->cnt;
        bytes += t->bytes;
    }
    return write_direct(u, fd, v, cnt, turn_at(group->next)->offset, bytes);
}

/* Whoever has failed in company tries alone, so that each has its own result.
 */
static void write_turns(struct uncached *u, int fd, struct list *group)
{
    bool one = group->next->next == group;
    int r = write_group(u, fd, group);

    for (struct list *l = group->next; l != group; l = l->next) {
        struct turn *t = turn_at(l);
        struct iovec v[TURN_IOV_MAX];

        t->result = r;
        if (r < 0 && !one) {
            memcpy(v, t->iov, (size_t)t->cnt * sizeof(*v));
            t->result = write_direct(u, fd, v, t->cnt, t->offset, t->bytes);
        }
    }
}

/* The one whose turn is first writes for all that it takes along. */
static int wait_and_write(struct uncached *u, int fd, struct turn *me)
{
    struct list group;

    mutex_lock(&u->lock);
    list_append(&u->waiting, &me->in);
    while (!me->done && (u->busy || u->waiting.next != &me->in)) {
        cond_wait(&me->wake, &u->lock);
    }
    if (!me->done) {
        u->busy = true;
        take_group(u, me, &group);
        mutex_unlock(&u->lock);
        write_turns(u, fd, &group);
        mutex_lock(&u->lock);
        u->busy = false;
        while (!list_empty(&group)) {
            struct turn *t = turn_at(group.next);
            list_remove(&t->in);
            t->done = true;
            cond_signal(&t->wake); /* it goes when we unlock */
        }
        if (!list_empty(&u->waiting)) {
            cond_signal(&turn_at(u->waiting.next)->wake);
        }
    }
    mutex_unlock(&u->lock);
    return me->result;
}

int file_write_uncached(struct node *n, uint64_t offset, uint64_t bytes,
                        const struct iovec *iov, int cnt)
{
    struct file *s = n->state;
    int fd = is_worth_it(offset, bytes, iov, cnt) ? direct_fd(n) : -1;

    if (fd < 0) {
        return -ENOTSUP;
    }
    struct turn me = {.offset = offset, .bytes = bytes, .iov = iov, .cnt = cnt};
    cond_init(&me.wake);
    int r = wait_and_write(&s->uncached, fd, &me);
    cond_destroy(&me.wake);
    return r;
}
