/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writes that may go past the page cache (REQ_UNCACHED): what is in the file
 * then, what is in memory, and what such a write does where it cannot.  Works
 * in the current directory; what the file system cannot do is left out.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/node.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"
#include "nbdelta/thread.h"

#define NAME      "disk.img"
#define SIZE      (4 * MiB)
#define FILE_NODE "driver=file,filename=" NAME

static struct graph *g;
static struct node *n;
static struct blk *b;

static void start(const char *text, uint64_t size)
{
    CLEANUP_JSON json_t *o = NULL;
    CLEANUP_CLOSE int fd = open(NAME, O_RDWR | O_CREAT | O_TRUNC, 0600);

    ck_assert_int_eq(ftruncate(fd, (off_t)size), 0);
    g = graph_new();
    ck_assert_int_eq(options_parse(text, NULL, &o, NULL), 0);
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
}

static void stop(void)
{
    blk_free(b);
    graph_free(g);
    (void)unlink(NAME);
}

/* Does the file system of the current directory take such writes? */
static bool can_uncached(void)
{
    CLEANUP_CLOSE int fd = open("probe", O_RDWR | O_CREAT | O_TRUNC, 0600);
    struct statx x;
    bool can = statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) == 0 &&
               (x.stx_mask & STATX_DIOALIGN) && x.stx_dio_offset_align > 0;

    (void)unlink("probe");
    return can;
}

/* Pages of [0, @size) that are in memory. */
static uint64_t pages_in_memory(uint64_t size)
{
    CLEANUP_CLOSE int fd = open(NAME, O_RDONLY);
    CLEANUP_FREE unsigned char *in = malloc(size / 4096);
    void *p = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    uint64_t count = 0;

    ck_assert_ptr_ne(p, MAP_FAILED);
    ck_assert_int_eq(mincore(p, size, in), 0);
    for (uint64_t i = 0; i < size / 4096; i++) {
        count += in[i] & 1;
    }
    (void)munmap(p, size);
    return count;
}

/* Aligned memory. */
static char *filled(char c, uint64_t bytes)
{
    char *buf = aligned_alloc(4096, align_up(bytes, 4096));

    ck_assert_ptr_nonnull(buf);
    memset(buf, c, bytes);
    return buf;
}

static void put(char c, uint64_t bytes, uint64_t offset, unsigned flags)
{
    CLEANUP_FREE char *buf = filled(c, bytes);

    ck_assert_int_eq(blk_pwrite(b, buf, bytes, offset, flags), 0);
}

/* As the node reads it, and as anybody else does. */
static void expect(char c, uint64_t bytes, uint64_t offset)
{
    CLEANUP_FREE char *want = filled(c, bytes);
    CLEANUP_FREE char *got = filled((char)(c + 1), bytes);
    CLEANUP_CLOSE int fd = open(NAME, O_RDONLY);

    ck_assert_int_eq(blk_pread(b, got, bytes, offset, 0), 0);
    ck_assert_mem_eq(got, want, bytes);
    memset(got, c + 1, bytes);
    ck_assert_int_eq(pread(fd, got, bytes, (off_t)offset), (ssize_t)bytes);
    ck_assert_mem_eq(got, want, bytes);
}

START_TEST(large_writes_leave_nothing_in_memory)
{
    if (!can_uncached()) {
        return;
    }
    start(FILE_NODE, SIZE);
    put(1, SIZE, 0, REQ_UNCACHED);
    ck_assert_uint_eq(pages_in_memory(SIZE), 0);
    put(2, 16 * KiB, MiB, REQ_UNCACHED); /* a small one is kept */
    ck_assert_uint_gt(pages_in_memory(SIZE), 0);
    put(3, MiB, MiB, REQ_UNCACHED); /* what was kept is not true any more */
    ck_assert_uint_eq(pages_in_memory(SIZE), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    expect(1, MiB, 0);
    expect(3, MiB, MiB);
    expect(1, 2 * MiB, 2 * MiB);
    put(4, MiB, 0, 0); /* without the word, memory has it */
    ck_assert_uint_ge(pages_in_memory(SIZE), MiB / 4096);
    stop();
}
END_TEST

static uint64_t seed = 4711;
static uint64_t rnd(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % below;
}

/* Any offset, length, memory; with the word and without it; also on a node that
 * has no page cache. */
START_TEST(all_ways_of_writing_agree)
{
    static const char *const texts[] = {
        FILE_NODE,
        "driver=raw,file.driver=file,file.filename=" NAME,
        FILE_NODE ",cache.direct=on",
    };
    const uint64_t size = SIZE - 777;
    CLEANUP_FREE char *model = calloc(1, SIZE);
    CLEANUP_FREE char *memory = filled(0, SIZE + 4096);
    CLEANUP_FREE char *got = filled(0, SIZE);

    if (_i == 2 && !can_uncached()) {
        return;
    }
    start(texts[_i], size);
    for (unsigned i = 0; i < 120; i++) {
        uint64_t unit = rnd(2) ? 4096 : 1;
        uint64_t at = align_down(rnd(size), unit);
        uint64_t len = min_u64(align_up(1 + rnd(MiB), unit), size - at);
        char *buf = memory + (rnd(4) ? 0 : 512);
        uint64_t cut = align_down(rnd(len), unit);
        struct iovec v[2] = {{buf, cut}, {buf + cut, len - cut}};

        memset(buf, (int)rnd(256), len);
        memset(model + at, buf[0], len);
        ck_assert_int_eq(
            blk_pwritev(b, v, 2, at,
                        (rnd(3) ? REQ_UNCACHED : 0) | (rnd(9) ? 0 : REQ_FUA)),
            0);
    }
    ck_assert_int_eq(blk_pread(b, got, size, 0, 0), 0);
    ck_assert_mem_eq(got, model, size);
    ck_assert_int_eq(blk_flush(b), 0);
    struct stat st;
    ck_assert_int_eq(stat(NAME, &st), 0);
    ck_assert_int_eq(st.st_size, (off_t)size);
    stop();
}
END_TEST

static int descriptors(void)
{
    int count = 0;

    for (int fd = 0; fd < 256; fd++) {
        count += fcntl(fd, F_GETFD) >= 0;
    }
    return count;
}

/* The second descriptor goes with the first one, also where many writers want
 * one at the same moment. */
static void *write_some(void *opaque)
{
    uint64_t at = *(uint64_t *)opaque;

    put((char)(1 + at / MiB), MiB, at, REQ_UNCACHED);
    return NULL;
}

START_TEST(no_descriptor_is_left)
{
    int before = descriptors();
    uint64_t at[4];
    pthread_t threads[4];

    start(FILE_NODE, SIZE);
    for (unsigned i = 0; i < 4; i++) {
        at[i] = i * MiB;
        ck_assert_int_eq(thread_start(&threads[i], "t", write_some, &at[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        thread_join(threads[i]);
    }
    for (unsigned i = 0; i < 4; i++) {
        expect((char)(1 + i), MiB, at[i]);
    }
    ck_assert_int_eq(descriptors(), before + 1 + (can_uncached() ? 1 : 0));
    stop();
    ck_assert_int_eq(descriptors(), before);
}
END_TEST

/* Writers that wait for one another write what adjoins at once. */
#define PIECE   (64 * KiB)
#define WRITERS 8

struct writer {
    unsigned first; /* it writes this piece, and each WRITERS-th after it */
    unsigned room;  /* pieces that the file has room for */
};

static void *write_pieces(void *opaque)
{
    const struct writer *w = opaque;
    CLEANUP_FREE char *buf = filled(0, PIECE);

    for (unsigned i = w->first; i < SIZE / PIECE; i += WRITERS) {
        struct tree *t = node_enter(n, false);
        memset(buf, (int)i + 1, PIECE);
        int r = node_pwrite(n, buf, PIECE, i * PIECE, REQ_UNCACHED);
        node_leave(t);
        if (r != (i < w->room ? 0 : -ENOSPC)) {
            ck_abort_msg("piece %u: %d", i, r);
        }
    }
    return NULL;
}

static void write_side_by_side(unsigned room)
{
    struct writer w[WRITERS];
    pthread_t threads[WRITERS];

    for (unsigned i = 0; i < WRITERS; i++) {
        w[i] = (struct writer){i, room};
        ck_assert_int_eq(thread_start(&threads[i], "t", write_pieces, &w[i]),
                         0);
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        thread_join(threads[i]);
    }
    for (unsigned i = 0; i < min_u64(room, SIZE / PIECE); i++) {
        expect((char)(i + 1), PIECE, i * PIECE);
    }
}

START_TEST(writers_side_by_side_write_what_is_theirs)
{
    start(FILE_NODE, 0);
    n->growable = true;
    for (unsigned i = 0; i < 10; i++) {
        write_side_by_side(UINT_MAX);
        ck_assert_int_eq(blk_resize(b, i * PIECE, NULL), 0);
    }
    stop();
}
END_TEST

/* Of those that are written at once, only those that have no room fail. */
START_TEST(each_writer_has_its_own_error)
{
    struct rlimit old;
    struct rlimit small = {SIZE - 9 * PIECE, 0};

    start(FILE_NODE, 0);
    n->growable = true;
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    small.rlim_max = old.rlim_max;
    ck_assert_ptr_ne(signal(SIGXFSZ, SIG_IGN), SIG_ERR);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    for (unsigned i = 0; i < 10; i++) {
        write_side_by_side(SIZE / PIECE - 9);
        ck_assert_int_eq(blk_resize(b, i * PIECE, NULL), 0);
    }
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    stop();
}
END_TEST

START_TEST(no_room_is_told)
{
    struct rlimit old;

    start(FILE_NODE, SIZE);
    n->growable = true;
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    struct rlimit small = {SIZE, old.rlim_max};
    ck_assert_ptr_ne(signal(SIGXFSZ, SIG_IGN), SIG_ERR);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    CLEANUP_FREE char *buf = filled(5, MiB);
    graph_lock(g);
    graph_drain(g, n);
    int r = node_pwrite(n, buf, MiB, SIZE, REQ_UNCACHED);
    graph_unlock(g);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    ck_assert_int_eq(r, -ENOSPC);
    put(6, MiB, 0, REQ_UNCACHED);
    expect(6, MiB, 0);
    stop();
}
END_TEST

/* --- Beside writes by way of the page cache --- */

/* What the kernel is asked for: the largest write past the page cache.  One by
 * way of it hangs while `hangs`. */
static _Atomic uint64_t largest;
static _Atomic bool hangs;
static sem_t has_hung;
static sem_t goes_on;

ssize_t pwritev(int fd, const struct iovec *iovec, int count, off_t offset)
{
    uint64_t bytes = 0;

    for (int i = 0; i < count; i++) {
        bytes += iovec[i].iov_len;
    }
    atomic_store(&largest, max_u64(atomic_load(&largest), bytes));
    return syscall(SYS_pwritev, fd, iovec, count, offset, 0);
}

ssize_t pwritev2(int fd, const struct iovec *iodev, int count, off_t offset,
                 int flags)
{
    if (atomic_exchange(&hangs, false)) {
        (void)sem_post(&has_hung);
        (void)sem_wait(&goes_on);
    }
    return syscall(SYS_pwritev2, fd, iodev, count, offset, 0, flags);
}

static uint64_t largest_of(char c, uint64_t bytes, uint64_t offset)
{
    atomic_store(&largest, 0);
    put(c, bytes, offset, REQ_UNCACHED);
    expect(c, bytes, offset);
    return atomic_load(&largest);
}

/* The kernel lets a guest's write wait for one of these: so they are small for
 * a while after one has been seen. */
START_TEST(small_where_others_write)
{
    start(FILE_NODE, SIZE);
    if (can_uncached()) {
        ck_assert_uint_ge(largest_of(1, SIZE, 0), MiB);
        put(2, 4 * KiB, 0, 0);
        ck_assert_uint_eq(largest_of(3, 2 * MiB, MiB), 256 * KiB);
        expect(2, 4 * KiB, 0);
        ck_assert_uint_eq(largest_of(4, 2 * MiB, 0), 256 * KiB);
        ck_assert_uint_ge(largest_of(5, 2 * MiB, 0), MiB);
    }
    stop();
}
END_TEST

static void *write_small(void *opaque)
{
    (void)opaque;
    for (uint64_t at = 0; at < MiB; at += 4 * KiB) {
        put(7, 4 * KiB, at, 0);
    }
    return NULL;
}

START_TEST(both_kinds_at_once)
{
    uint64_t at[3];
    pthread_t threads[4];

    start(FILE_NODE, SIZE);
    put(1, SIZE, 0, REQ_UNCACHED);
    ck_assert_int_eq(thread_start(&threads[3], "t", write_small, NULL), 0);
    for (unsigned i = 0; i < 3; i++) {
        at[i] = (i + 1) * MiB;
        ck_assert_int_eq(thread_start(&threads[i], "t", write_some, &at[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        thread_join(threads[i]);
    }
    expect(7, MiB, 0);
    for (unsigned i = 0; i < 3; i++) {
        expect((char)(2 + i), MiB, at[i]);
    }
    stop();
}
END_TEST

/* Way is given for a moment, not until the other one has ended. */
START_TEST(one_that_hangs_holds_up_nobody)
{
    pthread_t thread;

    start(FILE_NODE, SIZE);
    put(1, SIZE, 0, REQ_UNCACHED);
    ck_assert_int_eq(sem_init(&has_hung, 0, 0), 0);
    ck_assert_int_eq(sem_init(&goes_on, 0, 0), 0);
    atomic_store(&hangs, true);
    ck_assert_int_eq(thread_start(&thread, "t", write_small, NULL), 0);
    (void)sem_wait(&has_hung);
    put(3, 2 * MiB, 2 * MiB, REQ_UNCACHED);
    expect(3, 2 * MiB, 2 * MiB);
    (void)sem_post(&goes_on);
    thread_join(thread);
    expect(7, MiB, 0);
    stop();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("file-uncached");
    TCase *t = tcase_create("file-uncached");

    tcase_add_test(t, large_writes_leave_nothing_in_memory);
    tcase_add_loop_test(t, all_ways_of_writing_agree, 0, 3);
    tcase_add_test(t, no_descriptor_is_left);
    tcase_add_test(t, writers_side_by_side_write_what_is_theirs);
    tcase_add_test(t, each_writer_has_its_own_error);
    tcase_add_test(t, small_where_others_write);
    tcase_add_test(t, both_kinds_at_once);
    tcase_add_test(t, one_that_hangs_holds_up_nobody);
    tcase_add_test(t, no_room_is_told);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
