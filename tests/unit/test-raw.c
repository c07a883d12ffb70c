/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * raw, and the file below it over a kernel that misbehaves: this program has
 * its own open, fdatasync, pwritev2, preadv2, fallocate and lseek, which fail,
 * stop short, or let something happen in between when a test says so.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/imagelock.h"
#include "core/node.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

#define NAME "window.img"
#define SIZE (1 * MiB)

static struct graph *g;
static struct node *n;
static struct blk *b;

/* --- The kernel --- */

typedef void hook_fn(void);

static struct {
    _Atomic unsigned syncs;
    int sync_error;       /* of fdatasync, once */
    int dsync_error;      /* of writes with RWF_DSYNC */
    int write_error;      /* of all writes */
    size_t most;          /* bytes that one call moves, 0: any number */
    unsigned interrupted; /* so many calls fail with EINTR first */
    int lacking;          /* modes of fallocate that there are not */
    _Atomic unsigned fallocates;
    hook_fn *_Atomic during_sync;
    hook_fn *_Atomic before_hole; /* between SEEK_DATA and SEEK_HOLE */
    hook_fn *_Atomic after_data;  /* when SEEK_DATA has found its answer */
    hook_fn *_Atomic after_read;
    hook_fn *_Atomic after_open;
} kernel;

/* Let it happen, once. */
static void happen(hook_fn *_Atomic *hook)
{
    hook_fn *fn = atomic_exchange(hook, NULL);

    if (fn) {
        fn();
    }
}

int open(const char *path, int flags, ...)
{
    va_list ap;

    va_start(ap, flags);
    int mode = flags & O_CREAT ? va_arg(ap, int) : 0;
    va_end(ap);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    int code = errno;
    if (fd >= 0) {
        happen(&kernel.after_open);
    }
    errno = code;
    return fd;
}

static int refuse(int code)
{
    errno = code;
    return -1;
}

int fdatasync(int fd)
{
    kernel.syncs++;
    happen(&kernel.during_sync);
    if (kernel.sync_error) {
        int code = kernel.sync_error;
        kernel.sync_error = 0;
        return refuse(code);
    }
    return (int)syscall(SYS_fdatasync, fd);
}

static ssize_t move(long call, int fd, const struct iovec *iov, int cnt,
                    off_t offset, int flags)
{
    struct iovec one = iov[0];

    if (kernel.interrupted > 0) {
        kernel.interrupted--;
        return refuse(EINTR);
    }
    if (kernel.most > 0) {
        one.iov_len = min_u64(one.iov_len, kernel.most);
        iov = &one;
        cnt = 1;
    }
    return syscall(call, fd, iov, cnt, offset, 0L, flags);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int cnt, off_t offset,
                 int flags)
{
    if (kernel.write_error) {
        return refuse(kernel.write_error);
    }
    if (kernel.dsync_error && (flags & RWF_DSYNC)) {
        return refuse(kernel.dsync_error);
    }
    return move(SYS_pwritev2, fd, iov, cnt, offset, flags);
}

ssize_t preadv2(int fd, const struct iovec *iov, int cnt, off_t offset,
                int flags)
{
    ssize_t r = move(SYS_preadv2, fd, iov, cnt, offset, flags);
    int code = errno;
    happen(&kernel.after_read);
    errno = code;
    return r;
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
    kernel.fallocates++;
    if (mode & kernel.lacking) {
        return refuse(EOPNOTSUPP);
    }
    return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

off_t lseek(int fd, off_t offset, int whence)
{
    if (whence == SEEK_HOLE) {
        happen(&kernel.before_hole);
    }
    off_t r = syscall(SYS_lseek, fd, offset, whence);
    int code = errno;
    if (whence == SEEK_DATA) {
        happen(&kernel.after_data);
    }
    errno = code;
    return r;
}

/* --- Helpers --- */

static int open_json(const char *text, struct node **opened,
                     struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    int r = options_parse(text, NULL, &o, errp);
    return r < 0 ? r : graph_open(g, o, opened, errp);
}

static void start(const char *text)
{
    CLEANUP_ERROR struct error *err = NULL;

    memset(&kernel, 0, sizeof(kernel));
    g = graph_new();
    int r = open_json(text, &n, &err);
    ck_assert_msg(r == 0, "%s: %s", text, r < 0 ? error_message(err) : "");
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
}

static void stop(void)
{
    blk_free(b);
    graph_free(g);
}

static void make_file(uint64_t size)
{
    CLEANUP_CLOSE int fd = open(NAME, O_RDWR | O_CREAT | O_TRUNC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, (off_t)size), 0);
}

static void remove_files(void)
{
    (void)unlink(NAME);
}

static int64_t file_size(void)
{
    struct stat st;
    ck_assert_int_eq(stat(NAME, &st), 0);
    return st.st_size;
}

static int put(const char *text, size_t bytes, uint64_t offset)
{
    return blk_pwrite(b, text, bytes, offset, 0);
}

static void expect(const char *text, size_t bytes, uint64_t offset)
{
    char buf[64];
    ck_assert_int_eq(blk_pread(b, buf, bytes, offset, 0), 0);
    ck_assert_mem_eq(buf, text, bytes);
}

#define PLAIN  "driver=file,discard=unmap,filename=" NAME
#define RAW    "driver=raw,file.driver=file,file.filename=" NAME
#define PROBED "file.driver=file,file.filename=" NAME

/* --- Guessed to be raw --- */

static const struct {
    char text[9];
    size_t len;
} magic[] = {
    {"QFI\xfb", 4},  {"QED\0", 4},    {"COWD", 4},         {"KDMV", 4},
    {"conectix", 8}, {"vhdxfile", 8}, {"LUKS\xba\xbe", 6},
};

START_TEST(a_guessed_disk_does_not_become_an_image)
{
    char head[4096 + 512] = {0};

    make_file(SIZE);
    start(PROBED);
    ck_assert_str_eq(node_driver(n), "raw");
    memcpy(head, magic[_i].text, magic[_i].len);
    ck_assert_int_eq(put(head, sizeof(head), 0), -EPERM);
    ck_assert_int_eq(put(head, 512, 0), -EPERM);
    ck_assert_int_eq(put(head, magic[_i].len, 0), -EPERM);
    expect("\0\0\0\0\0\0\0\0", 8, 0);
    ck_assert_int_eq(put(head, 512, 1), 0); /* elsewhere it means nothing */
    ck_assert_int_eq(put(head, 512, 512), 0);
    ck_assert_int_eq(put("\0", 1, 1), 0);
    stop();

    start(RAW);
    ck_assert_int_eq(put(head, 512, 0), 0); /* nothing was guessed */
    stop();
}
END_TEST

START_TEST(not_by_parts_either)
{
    const char *text = magic[_i].text;
    size_t len = magic[_i].len;

    make_file(SIZE);
    start(PROBED);
    memset(&kernel, 0, sizeof(kernel));
    ck_assert_int_eq(put("xxxxxxxx", 8, 0), 0);
    for (size_t i = len; i > 1; i--) {
        ck_assert_int_eq(put(text + i - 1, 1, i - 1), 0);
    }
    struct iovec v[2] = {{(void *)(uintptr_t)text, 1}, {(char[]){text[1]}, 1}};
    ck_assert_int_eq(blk_pwritev(b, v, 2, 0, 0), -EPERM);
    ck_assert_int_eq(put(text, 1, 0), -EPERM);
    expect("x", 1, 0);
    expect(text + 1, len - 1, 1);
    stop();
}
END_TEST

START_TEST(not_by_zeroes_either)
{
    make_file(SIZE);
    start(PROBED);
    ck_assert_int_eq(put("QEDx", 4, 0), 0);
    ck_assert_int_eq(blk_zero(b, 3, 100, 0), -EPERM);
    ck_assert_int_lt(blk_zero(b, 3, 100000, REQ_MAY_UNMAP), 0);
    expect("QEDx", 4, 0);
    ck_assert_int_eq(blk_zero(b, 0, SIZE, REQ_MAY_UNMAP), 0);
    expect("\0\0\0\0", 4, 0);
    stop();
}
END_TEST

START_TEST(not_behind_an_offset_either)
{
    make_file(SIZE);
    start("offset=4096," PROBED);
    ck_assert_int_eq(put("QFI", 3, 0), 0);
    ck_assert_int_eq(put("\xfb", 1, 3), -EPERM);
    stop();
}
END_TEST

static pthread_t second_half;
static int second_result;

static void *put_second_half(void *arg)
{
    second_result = put("I\xfb", 2, 2);
    return arg;
}

/* The first half has been looked at and is not written yet.  The pause lets
 * the second one pass when nothing stops it. */
static void start_second_half(void)
{
    ck_assert_int_eq(
        thread_start(&second_half, "second", put_second_half, NULL), 0);
    (void)usleep(50000);
}

START_TEST(not_by_two_at_once_either)
{
    make_file(SIZE);
    start(PROBED);
    kernel.after_read = start_second_half;
    int first_result = put("QF", 2, 0);
    thread_join(second_half);
    ck_assert_int_eq(first_result, 0);
    ck_assert_int_eq(second_result, -EPERM);
    expect("QF\0\0", 4, 0);
    stop();
}
END_TEST

START_TEST(a_guessed_disk_keeps_its_size)
{
    static const uint64_t sizes[] = {1, 5, 1000, 4097};
    uint64_t size = sizes[_i];

    make_file(size);
    start(PROBED);
    ck_assert_int_eq(put("a", 1, 0), 0);
    ck_assert_int_eq(put("z", 1, size - 1), 0);
    ck_assert_int_eq(blk_zero(b, 0, size, 0), 0);
    ck_assert_int_eq(file_size(), (int64_t)size);
    ck_assert_uint_eq(blk_size(b), size);
    stop();
}
END_TEST

/* --- The window --- */

START_TEST(windows_that_do_not_fit_are_refused)
{
    static const char *const bad[] = {
        ",offset=1048577",
        ",size=1048577",
        ",offset=512,size=1048065",
        ",offset=1,size=9223372036853727232",
        ",offset=-1",
        ",size=-1",
        ",offset=99999999999999999999",
        ",bogus=1",
    };
    struct node *opened;

    make_file(SIZE);
    memset(&kernel, 0, sizeof(kernel));
    g = graph_new();
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        char text[200] = RAW;
        strcat(text, bad[i]);
        ck_assert_int_eq(open_json(text, &opened, NULL), -EINVAL);
    }
    ck_assert_int_eq(open_json(RAW ",offset=1048576", &opened, NULL), 0);
    ck_assert_uint_eq(node_size(opened), 0);
    graph_free(g);
}
END_TEST

struct seen {
    unsigned count;
    struct extent list[16];
};

static int see(const struct extent *ext, void *opaque)
{
    struct seen *s = opaque;
    ck_assert_uint_lt(s->count, ARRAY_SIZE(s->list));
    s->list[s->count++] = *ext;
    return 0;
}

START_TEST(status_tells_where_in_the_file)
{
    CLEANUP_FREE char *data = calloc(1, 64 * KiB);
    struct seen s = {0};

    make_file(SIZE);
    start(RAW ",offset=65536,size=524288");
    ck_assert_int_eq(put(data, 64 * KiB, 128 * KiB), 0);
    ck_assert_int_eq(blk_extents(b, 0, 512 * KiB, 0, see, &s), 0);
    ck_assert_uint_eq(s.count, 3);
    ck_assert_uint_eq(s.list[0].flags & EXTENT_ZERO, EXTENT_ZERO);
    ck_assert_uint_eq(s.list[1].offset, 128 * KiB);
    ck_assert_uint_eq(s.list[1].length, 64 * KiB);
    ck_assert_uint_eq(s.list[1].host, 192 * KiB);
    ck_assert_uint_eq(s.list[1].flags & EXTENT_ZERO, 0);
    ck_assert_uint_eq(s.list[2].flags & EXTENT_ZERO, EXTENT_ZERO);
    stop();
}
END_TEST

/* --- Status while things change --- */

static unsigned kind_at(uint64_t offset)
{
    struct seen s = {0};
    ck_assert_int_eq(blk_extents(b, offset, 1, 0, see, &s), 0);
    return s.list[0].flags & EXTENT_ZERO;
}

START_TEST(status_remembers_until_something_changes)
{
    struct seen s = {0};
    char page[4096] = {1};

    make_file(SIZE);
    start(PLAIN);
    ck_assert_int_eq(blk_extents(b, 0, 1, REQ_NOWAIT, see, &s), -EAGAIN);
    ck_assert_uint_ne(kind_at(0), 0);
    ck_assert_int_eq(blk_extents(b, 4096, 9, REQ_NOWAIT, see, &s), 0);
    ck_assert_int_eq(put(page, 4096, 8192), 0);
    ck_assert_int_eq(blk_extents(b, 4096, 9, REQ_NOWAIT, see, &s), -EAGAIN);
    ck_assert_uint_eq(kind_at(8192), 0);
    ck_assert_int_eq(blk_extents(b, 8200, 9, REQ_NOWAIT, see, &s), 0);
    ck_assert_int_eq(blk_zero(b, 8192, 4096, REQ_MAY_UNMAP), 0);
    ck_assert_uint_ne(kind_at(8192), 0);
    ck_assert_int_eq(put(page, 4096, 8192), 0);
    ck_assert_int_eq(blk_discard(b, 8192, 4096), 0);
    ck_assert_uint_ne(kind_at(8192), 0);
    stop();
}
END_TEST

static void punch_it(void)
{
    CLEANUP_CLOSE int fd = open(NAME, O_RDWR);
    ck_assert_int_eq(syscall(SYS_fallocate, fd,
                             FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0L,
                             65536L),
                     0);
}

/* The data is gone when the kernel is asked where it ends. */
START_TEST(a_hole_that_comes_in_between_does_not_end_status)
{
    CLEANUP_FREE char *data = calloc(1, 64 * KiB);

    make_file(SIZE);
    start(PLAIN);
    ck_assert_int_eq(put(data, 64 * KiB, 0), 0);
    kernel.before_hole = punch_it;
    ck_assert_uint_eq(kind_at(0), 0);
    ck_assert_uint_ne(kind_at(0), 0);
    stop();
}
END_TEST

static void fill_it(void)
{
    char page[4096] = {1};
    ck_assert_int_eq(node_pwrite(n, page, 4096, 0, 0), 0);
}

/* The hole is filled when the kernel has already called it one. */
START_TEST(an_answer_that_is_overtaken_is_not_remembered)
{
    make_file(SIZE);
    start(PLAIN);
    kernel.after_data = fill_it;
    (void)kind_at(0);
    ck_assert_uint_eq(kind_at(0), 0);
    stop();
}
END_TEST

/* Others may write to what we have not locked. */
START_TEST(nothing_is_remembered_without_a_lock)
{
    make_file(SIZE);
    start(PLAIN ",locking=off");
    ck_assert_uint_ne(kind_at(0), 0);
    CLEANUP_CLOSE int fd = open(NAME, O_RDWR);
    ck_assert_int_eq(pwrite(fd, "x", 1, 0), 1);
    ck_assert_uint_eq(kind_at(0), 0);
    stop();
}
END_TEST

static _Atomic bool finished;

static void *ask_on(void *arg)
{
    while (!finished) {
        (void)kind_at(0);
        (void)kind_at(SIZE / 2);
    }
    return arg;
}

START_TEST(what_is_written_is_no_hole_at_once)
{
    char page[4096] = {1};
    pthread_t t;

    make_file(SIZE);
    start(PLAIN);
    finished = false;
    ck_assert_int_eq(thread_start(&t, "ask", ask_on, NULL), 0);
    for (unsigned round = 0; round < 4; round++) {
        for (uint64_t at = 0; at < SIZE; at += 8192) {
            ck_assert_int_eq(put(page, 4096, at), 0);
            ck_assert_uint_eq(kind_at(at), 0);
        }
        ck_assert_int_eq(blk_zero(b, 0, SIZE, REQ_MAY_UNMAP), 0);
        ck_assert_uint_ne(kind_at(SIZE / 2), 0);
    }
    finished = true;
    thread_join(t);
    stop();
}
END_TEST

/* --- A kernel that misbehaves --- */

START_TEST(short_counts_and_signals_do_not_show)
{
    char out[1000];
    char in[1000];

    make_file(2000);
    start(PLAIN);
    for (unsigned i = 0; i < sizeof(out); i++) {
        out[i] = (char)(i * 7);
    }
    kernel.most = 33;
    kernel.interrupted = 3;
    struct iovec w[3] = {{out, 100}, {out + 100, 1}, {out + 101, 899}};
    ck_assert_int_eq(blk_pwritev(b, w, 3, 1000, 0), 0);
    kernel.interrupted = 3;
    struct iovec r[3] = {{in, 1}, {in + 1, 800}, {in + 801, 199}};
    ck_assert_int_eq(blk_preadv(b, r, 3, 1000, 0), 0);
    ck_assert_mem_eq(in, out, sizeof(out));
    ck_assert_int_eq(truncate(NAME, 1500), 0);
    ck_assert_int_eq(blk_preadv(b, r, 3, 1000, 0), 0);
    ck_assert_mem_eq(in, out, 500);
    ck_assert(in[500] == 0 && in[999] == 0);
    stop();
}
END_TEST

START_TEST(flush_is_for_what_is_new)
{
    make_file(SIZE);
    start(PLAIN);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(kernel.syncs, 0);
    ck_assert_int_eq(put("x", 1, 0), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(kernel.syncs, 1);
    ck_assert_int_eq(blk_zero(b, 0, 4096, 0), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(kernel.syncs, 2);
    ck_assert_int_eq(blk_discard(b, 0, 4096), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(kernel.syncs, 3);
    ck_assert_int_eq(blk_resize(b, SIZE / 2, NULL), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(kernel.syncs, 4);
    stop();

    start(PLAIN ",cache.no-flush=on");
    ck_assert_int_eq(put("x", 1, 0), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(kernel.syncs, 0);
    stop();
}
END_TEST

static void write_more(void)
{
    ck_assert_int_eq(node_pwrite(n, "y", 1, 1, 0), 0);
}

START_TEST(flush_does_not_cover_what_comes_meanwhile)
{
    make_file(SIZE);
    start(PLAIN);
    ck_assert_int_eq(put("x", 1, 0), 0);
    kernel.during_sync = write_more;
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_eq(kernel.syncs, 2);
    stop();
}
END_TEST

START_TEST(after_a_failed_flush_none_succeeds)
{
    make_file(SIZE);
    start(PLAIN);
    ck_assert_int_eq(put("x", 1, 0), 0);
    kernel.sync_error = EINTR;
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(put("x", 1, 0), 0);
    kernel.sync_error = ENOSPC;
    ck_assert_int_eq(blk_flush(b), -ENOSPC);
    ck_assert_int_eq(blk_flush(b), -EIO);
    ck_assert_int_eq(put("x", 1, 0), 0);
    ck_assert_int_eq(blk_flush(b), -EIO);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 0, REQ_FUA), -EIO);
    expect("x", 1, 0);
    stop();
}
END_TEST

/* RWF_DSYNC takes the kernel's only report of data that was lost. */
START_TEST(a_fua_write_that_lost_data_is_a_failed_flush)
{
    make_file(SIZE);
    start(PLAIN);
    kernel.dsync_error = EIO;
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 0, REQ_FUA), -EIO);
    kernel.dsync_error = 0;
    ck_assert_int_eq(blk_flush(b), -EIO);
    stop();
}
END_TEST

START_TEST(a_write_that_finds_no_space_is_not)
{
    make_file(SIZE);
    start(PLAIN);
    kernel.write_error = ENOSPC;
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 0, REQ_FUA), -ENOSPC);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 0, 0), -ENOSPC);
    kernel.write_error = 0;
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(blk_pwrite(b, "x", 1, 0, REQ_FUA), 0);
    stop();
}
END_TEST

START_TEST(what_the_file_system_lacks_is_asked_for_once)
{
    make_file(SIZE);
    start(PLAIN);
    kernel.lacking = FALLOC_FL_ZERO_RANGE | FALLOC_FL_PUNCH_HOLE;
    ck_assert_int_eq(put("abcdefgh", 8, 4000), 0);
    ck_assert_int_eq(blk_zero(b, 4001, 3, REQ_NO_FALLBACK), -ENOTSUP);
    expect("abcdefgh", 8, 4000);
    ck_assert_uint_eq(kernel.fallocates, 1);
    ck_assert_int_eq(blk_zero(b, 4001, 3, REQ_MAY_UNMAP | REQ_NO_FALLBACK),
                     -ENOTSUP);
    ck_assert_int_eq(blk_discard(b, 4000, 8), 0);
    expect("abcdefgh", 8, 4000);
    ck_assert_uint_eq(kernel.fallocates, 2);
    ck_assert_int_eq(blk_zero(b, 4001, 3, 0), 0);
    expect("a\0\0\0efgh", 8, 4000);
    ck_assert_uint_eq(kernel.fallocates, 2);
    stop();
}
END_TEST

/* --- Creating --- */

START_TEST(space_is_reserved_as_asked)
{
    static const char *const words[] = {"off", "falloc", "full"};
    CLEANUP_JSON json_t *o = json_pack("{s:i,s:s}", "size", 300001,
                                       "preallocation", words[_i]);
    struct stat st;

    make_file(SIZE); /* is replaced */
    memset(&kernel, 0, sizeof(kernel));
    ck_assert_int_eq(image_create(NAME, "raw", o, NULL), 0);
    ck_assert_int_eq(stat(NAME, &st), 0);
    ck_assert_int_eq(st.st_size, 300001);
    if (_i > 0) {
        ck_assert_int_ge(st.st_blocks * 512, 300001);
    } else {
        ck_assert_int_eq(st.st_blocks, 0);
    }
}
END_TEST

static int other = -1;

static void lock_it(void)
{
    other = open(NAME, O_RDWR | O_CLOEXEC);
    ck_assert_int_eq(image_lock(other, NAME, true, NULL), 0);
}

static void unlink_it(void)
{
    ck_assert_int_eq(unlink(NAME), 0);
}

static int create_small(void)
{
    CLEANUP_JSON json_t *o = json_pack("{s:i}", "size", 1000);
    return image_create(NAME, "raw", o, NULL);
}

/* Another process takes the file between our making and our locking it. */
START_TEST(a_file_that_another_has_locked_is_not_removed)
{
    memset(&kernel, 0, sizeof(kernel));
    kernel.after_open = lock_it;
    ck_assert_int_eq(create_small(), -EAGAIN);
    ck_assert_int_eq(access(NAME, F_OK), 0);
    (void)close(other);
    ck_assert_int_eq(create_small(), 0);
}
END_TEST

/* Another process has failed to make it, and cleaned up, while we open it. */
START_TEST(a_file_that_another_has_removed_is_not_filled)
{
    make_file(5);
    memset(&kernel, 0, sizeof(kernel));
    kernel.after_open = unlink_it;
    ck_assert_int_eq(create_small(), -EAGAIN);
    ck_assert_int_lt(access(NAME, F_OK), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("raw");
    TCase *tc = tcase_create("all");
    const int formats = ARRAY_SIZE(magic);

    tcase_add_checked_fixture(tc, NULL, remove_files);
    tcase_add_loop_test(tc, a_guessed_disk_does_not_become_an_image, 0,
                        formats);
    tcase_add_loop_test(tc, not_by_parts_either, 0, formats);
    tcase_add_test(tc, not_by_zeroes_either);
    tcase_add_test(tc, not_behind_an_offset_either);
    tcase_add_test(tc, not_by_two_at_once_either);
    tcase_add_loop_test(tc, a_guessed_disk_keeps_its_size, 0, 4);
    tcase_add_test(tc, windows_that_do_not_fit_are_refused);
    tcase_add_test(tc, status_tells_where_in_the_file);
    tcase_add_test(tc, status_remembers_until_something_changes);
    tcase_add_test(tc, a_hole_that_comes_in_between_does_not_end_status);
    tcase_add_test(tc, an_answer_that_is_overtaken_is_not_remembered);
    tcase_add_test(tc, nothing_is_remembered_without_a_lock);
    tcase_add_test(tc, what_is_written_is_no_hole_at_once);
    tcase_add_test(tc, short_counts_and_signals_do_not_show);
    tcase_add_test(tc, flush_is_for_what_is_new);
    tcase_add_test(tc, flush_does_not_cover_what_comes_meanwhile);
    tcase_add_test(tc, after_a_failed_flush_none_succeeds);
    tcase_add_test(tc, a_fua_write_that_lost_data_is_a_failed_flush);
    tcase_add_test(tc, a_write_that_finds_no_space_is_not);
    tcase_add_test(tc, what_the_file_system_lacks_is_asked_for_once);
    tcase_add_loop_test(tc, space_is_reserved_as_asked, 0, 3);
    tcase_add_test(tc, a_file_that_another_has_locked_is_not_removed);
    tcase_add_test(tc, a_file_that_another_has_removed_is_not_filled);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
