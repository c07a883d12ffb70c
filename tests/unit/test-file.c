/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * file, and raw above it: content against a model, growth, holes, direct
 * I/O, locks, and what is no disk.  Works in the current directory; what the
 * file system cannot do is left out.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/node.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

#define NAME "disk.img"
#define SIZE (2 * MiB)

static struct graph *g;
static struct node *n;
static struct blk *b;

static int open_text(const char *text, struct node **opened,
                     struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    int r = options_parse(text, NULL, &o, errp);
    return r < 0 ? r : graph_open(g, o, opened, errp);
}

static void make_file(uint64_t size)
{
    CLEANUP_CLOSE int fd = open(NAME, O_RDWR | O_CREAT | O_TRUNC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, (off_t)size), 0);
}

static struct blk *attach(struct node *to)
{
    struct blk *user = NULL;
    unsigned perm = node_read_only(to) ? PERM_READ : PERM_ALL;
    ck_assert_int_eq(blk_new(g, to, perm, PERM_ALL, "test", &user, NULL), 0);
    return user;
}

static void start(const char *text)
{
    CLEANUP_ERROR struct error *err = NULL;

    g = graph_new();
    int r = open_text(text, &n, &err);
    ck_assert_msg(r == 0, "%s: %s", text, r < 0 ? error_message(err) : "");
    b = attach(n);
}

static void stop(void)
{
    blk_free(b);
    graph_free(g);
}

static void remove_files(void)
{
    (void)unlink(NAME);
    (void)unlink("fifo");
    (void)unlink("link");
    (void)rmdir("directory");
}

static struct stat look(void)
{
    struct stat st;
    ck_assert_int_eq(stat(NAME, &st), 0);
    return st;
}

static uint64_t space_used(void)
{
    return (uint64_t)look().st_blocks * 512;
}

static void write_byte(char c, uint64_t bytes, uint64_t offset, unsigned flags)
{
    CLEANUP_FREE char *buf = malloc(bytes);
    ck_assert_ptr_nonnull(buf);
    memset(buf, c, bytes);
    ck_assert_int_eq(blk_pwrite(b, buf, bytes, offset, flags), 0);
}

static void expect_byte(char c, uint64_t bytes, uint64_t offset)
{
    CLEANUP_FREE char *buf = malloc(bytes);
    ck_assert_ptr_nonnull(buf);
    memset(buf, c + 1, bytes);
    ck_assert_int_eq(blk_pread(b, buf, bytes, offset, 0), 0);
    for (uint64_t i = 0; i < bytes; i++) {
        if (buf[i] != c) { /* each ck_assert is a system call */
            ck_abort_msg("%d, not %d, at %" PRIu64, buf[i], c, offset + i);
        }
    }
}

static bool can_punch(void)
{
    CLEANUP_CLOSE int fd = open("probe", O_RDWR | O_CREAT | O_TRUNC, 0600);
    static char data[64 * KiB] = {1};

    ck_assert_int_eq(pwrite(fd, data, sizeof(data), 0), sizeof(data));
    int r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                      sizeof(data));
    bool told = r == 0 && lseek(fd, 0, SEEK_DATA) < 0 && errno == ENXIO;
    (void)unlink("probe");
    return told;
}

static bool can_direct(void)
{
    CLEANUP_CLOSE int fd = open("probe", O_RDWR | O_CREAT | O_TRUNC | O_DIRECT,
                                0600);
    (void)unlink("probe");
    return fd >= 0;
}

#define DIRECT "driver=file,filename=" NAME ",cache.direct=on,discard=unmap"
#define PLAIN  "driver=file,filename=" NAME ",discard=unmap"
#define RAW(s) "driver=raw,file.driver=file,file.filename=" NAME s

/* --- Content --- */

static uint64_t seed;
static uint64_t rnd(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % below;
}

/* What is discarded is what it was, or zeroes, and stays so. */
static void discard_some(char *model, char *buf, uint64_t at, uint64_t bytes)
{
    ck_assert_int_eq(blk_discard(b, at, bytes), 0);
    ck_assert_int_eq(blk_pread(b, buf, bytes, at, 0), 0);
    for (uint64_t i = 0; i < bytes; i++) {
        if (buf[i] != 0 && buf[i] != model[at + i]) {
            ck_abort_msg("%d, not %d, at %" PRIu64, buf[i], model[at + i],
                         at + i);
        }
    }
    memcpy(model + at, buf, bytes);
}

static void random_requests(uint64_t size, unsigned count)
{
    CLEANUP_FREE char *model = calloc(1, size);
    CLEANUP_FREE char *memory = malloc(256 * KiB + 1);
    char *buf = memory + 1; /* never aligned */

    for (unsigned i = 0; i < count; i++) {
        uint64_t at = rnd(3) ? rnd(size) : align_down(rnd(size), 4096);
        uint64_t len = rnd(3) ? 1 + rnd(9000) : 4096 * (1 + rnd(60));
        len = min_u64(len, size - at);
        unsigned flags = rnd(10) ? 0 : REQ_FUA;
        switch (rnd(7)) {
        case 0:
            flags |= rnd(2) ? REQ_MAY_UNMAP : 0;
            ck_assert_int_eq(blk_zero(b, at, len, flags), 0);
            memset(model + at, 0, len);
            break;
        case 1:
            discard_some(model, buf, at, len);
            break;
        case 2:
        case 3: {
            uint64_t cut = len / 3;
            struct iovec v[2] = {{buf + len - cut, cut}, {buf, len - cut}};
            ck_assert_int_eq(blk_preadv(b, v, 2, at, 0), 0);
            ck_assert_mem_eq(buf + len - cut, model + at, cut);
            ck_assert_mem_eq(buf, model + at + cut, len - cut);
            break;
        }
        default:
            memset(buf, (int)rnd(256), len);
            ck_assert_int_eq(blk_pwrite(b, buf, len, at, flags), 0);
            memcpy(model + at, buf, len);
        }
    }
    CLEANUP_FREE char *all = malloc(size);
    ck_assert_int_eq(blk_pread(b, all, size, 0, 0), 0);
    ck_assert_mem_eq(all, model, size);
    ck_assert_int_eq(blk_flush(b), 0);

    CLEANUP_CLOSE int fd = open(NAME, O_RDONLY);
    ck_assert_int_eq(pread(fd, all, size, 0), (ssize_t)size);
    ck_assert_mem_eq(all, model, size);
    /* Also where direct I/O had to write a whole last block. */
    ck_assert_int_eq(look().st_size, (off_t)size);
}

START_TEST(random_requests_agree_with_the_model)
{
    static const char *const texts[] = {
        PLAIN,
        RAW(",discard=unmap"),
        DIRECT,
        RAW(",file.cache.direct=on"),
    };
    static const uint64_t sizes[] = {SIZE, SIZE - 4096 + 777};

    bool direct = strstr(texts[_i / 2], "direct");

    if (direct && !can_direct()) {
        return;
    }
    seed = 1000 + (uint64_t)_i;
    make_file(sizes[_i % 2]);
    start(texts[_i / 2]);
    ck_assert_uint_eq(blk_size(b), sizes[_i % 2]);
    random_requests(sizes[_i % 2], 400);
    stop();
}
END_TEST

START_TEST(ranges_outside_the_disk_are_refused)
{
    char buf[16];

    make_file(1000);
    start(PLAIN);
    ck_assert_int_eq(blk_pread(b, buf, 1, 1000, 0), -EINVAL);
    ck_assert_int_eq(blk_pread(b, buf, 16, 990, 0), -EINVAL);
    ck_assert_int_eq(blk_pwrite(b, buf, 16, 990, 0), -EINVAL);
    ck_assert_int_eq(blk_pwrite(b, buf, 16, UINT64_MAX - 7, 0), -EINVAL);
    ck_assert_int_eq(blk_zero(b, 990, 16, 0), -EINVAL);
    ck_assert_int_eq(blk_discard(b, 990, 16), -EINVAL);
    ck_assert_int_eq(look().st_size, 1000);
    ck_assert_int_eq(blk_pread(b, buf, 10, 990, 0), 0);
    stop();
}
END_TEST

/* Somebody else has cut the file; also, in the middle of a block. */
START_TEST(what_the_file_has_no_more_reads_as_zeroes)
{
    static const char *const texts[] = {PLAIN, DIRECT};

    if (_i == 1 && !can_direct()) {
        return;
    }
    make_file(SIZE);
    start(texts[_i]);
    write_byte(5, SIZE, 0, 0);
    ck_assert_int_eq(truncate(NAME, 100001), 0);
    expect_byte(5, 100001, 0);
    expect_byte(0, SIZE - 100001, 100001);
    expect_byte(0, 100, SIZE - 100);
    char buf[200];
    ck_assert_int_eq(blk_pread(b, buf, 200, 99901, 0), 0);
    ck_assert(buf[0] == 5 && buf[99] == 5 && buf[100] == 0 && buf[199] == 0);
    stop();
}
END_TEST

START_TEST(a_file_grows_below_a_format)
{
    make_file(1000);
    start(PLAIN);
    n->growable = true;
    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(node_pwrite(n, "abc", 3, 70000, 0), 0);
    graph_unlock(g);
    ck_assert_uint_eq(node_size(n), 70003);
    ck_assert_int_eq(look().st_size, 70003);
    expect_byte(0, 70000, 0);
    char buf[3];
    ck_assert_int_eq(blk_pread(b, buf, 3, 70000, 0), 0);
    ck_assert_mem_eq(buf, "abc", 3);
    stop();
}
END_TEST

START_TEST(resize_keeps_the_rest_and_adds_zeroes)
{
    static const char *const texts[] = {PLAIN, RAW("")};

    make_file(100000);
    start(texts[_i]);
    write_byte(7, 100000, 0, 0);
    ck_assert_int_eq(blk_resize(b, 300001, NULL), 0);
    ck_assert_uint_eq(blk_size(b), 300001);
    ck_assert_int_eq(look().st_size, 300001);
    expect_byte(7, 100000, 0);
    expect_byte(0, 200001, 100000);
    write_byte(8, 200001, 100000, 0);
    ck_assert_int_eq(blk_resize(b, 50000, NULL), 0);
    ck_assert_int_eq(look().st_size, 50000);
    ck_assert_int_eq(blk_resize(b, 300001, NULL), 0);
    expect_byte(7, 50000, 0);
    expect_byte(0, 250001, 50000);
    stop();
}
END_TEST

START_TEST(raw_is_a_window_on_its_file)
{
    CLEANUP_ERROR struct error *err = NULL;

    make_file(100000);
    start(RAW(",offset=1000,size=5000"));
    ck_assert_uint_eq(blk_size(b), 5000);
    write_byte(3, 5000, 0, 0);
    ck_assert_int_eq(blk_zero(b, 100, 200, 0), 0);
    char buf[16];
    ck_assert_int_eq(blk_pwrite(b, buf, 1, 5000, 0), -EINVAL);
    ck_assert_int_eq(blk_resize(b, 6000, &err), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(error_message(err), "fixed-size"));
    stop();
    start(PLAIN);
    expect_byte(0, 1000, 0);
    expect_byte(3, 100, 1000);
    expect_byte(0, 200, 1100);
    expect_byte(3, 4700, 1300);
    expect_byte(0, 94000, 6000);
    stop();

    start(RAW(",offset=99000"));
    ck_assert_uint_eq(blk_size(b), 1000);
    ck_assert_int_eq(blk_resize(b, 3000, NULL), 0);
    ck_assert_int_eq(look().st_size, 102000);
    stop();
}
END_TEST

/* --- Durability, as far as it can be seen --- */

START_TEST(flush_and_fua_leave_the_data_in_the_file)
{
    static const char *const texts[] = {
        PLAIN,
        "driver=file,filename=" NAME ",cache.no-flush=on",
        DIRECT,
    };

    if (_i == 2 && !can_direct()) {
        return;
    }
    make_file(SIZE);
    start(texts[_i]);
    ck_assert_int_eq(blk_flush(b), 0);
    write_byte(1, 5000, 0, 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    write_byte(2, 100000, 4096, REQ_FUA);
    ck_assert_int_eq(blk_zero(b, 8192, 4096, REQ_FUA), 0);
    ck_assert_int_eq(blk_discard(b, 1 * MiB, 1 * MiB), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    stop();
    start(PLAIN ",read-only=on");
    expect_byte(1, 4096, 0);
    expect_byte(2, 4096, 4096);
    expect_byte(0, 4096, 8192);
    expect_byte(2, 91808, 12288);
    ck_assert_int_eq(blk_flush(b), 0);
    stop();
}
END_TEST

static void *write_and_flush(void *arg)
{
    uint64_t base = (uint64_t)(uintptr_t)arg * 256 * KiB;
    char buf[4096];

    for (unsigned i = 0; i < 64; i++) {
        memset(buf, (int)i + 1, sizeof(buf));
        ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), base + i * 4096, 0),
                         0);
        if (i % 8 == 7) {
            ck_assert_int_eq(blk_flush(b), 0);
        }
    }
    return NULL;
}

START_TEST(any_number_of_threads_write_and_flush)
{
    pthread_t threads[4];

    make_file(SIZE);
    start(PLAIN);
    for (uintptr_t i = 0; i < ARRAY_SIZE(threads); i++) {
        ck_assert_int_eq(
            thread_start(&threads[i], "write", write_and_flush, (void *)i), 0);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(threads); i++) {
        thread_join(threads[i]);
    }
    for (unsigned i = 0; i < 4 * 64; i++) {
        expect_byte((char)(i % 64 + 1), 4096, (uint64_t)i * 4096);
    }
    stop();
}
END_TEST

/* --- Space --- */

START_TEST(discard_gives_space_back_when_it_may)
{
    if (!can_punch()) {
        return;
    }
    make_file(SIZE);
    start("driver=file,filename=" NAME);
    write_byte(9, SIZE, 0, 0);
    ck_assert_int_eq(blk_flush(b), 0);
    uint64_t full = space_used();
    ck_assert_uint_ge(full, SIZE);
    ck_assert_int_eq(blk_discard(b, 0, 1 * MiB), 0);
    ck_assert_uint_eq(space_used(), full);
    expect_byte(9, SIZE, 0);
    stop();

    start(PLAIN);
    ck_assert_int_eq(blk_discard(b, 0, 1 * MiB), 0);
    ck_assert_uint_le(space_used(), full - 1 * MiB + 64 * KiB);
    expect_byte(0, 1 * MiB, 0);
    expect_byte(9, 1 * MiB, 1 * MiB);
    ck_assert_int_eq(look().st_size, SIZE);
    stop();

    start(RAW(",discard=unmap"));
    ck_assert_int_eq(blk_discard(b, 1 * MiB, 1 * MiB), 0);
    ck_assert_uint_le(space_used(), 64 * KiB);
    expect_byte(0, SIZE, 0);
    stop();
}
END_TEST

START_TEST(zero_keeps_space_unless_it_may_unmap)
{
    if (!can_punch()) {
        return;
    }
    make_file(SIZE);
    start(PLAIN);
    write_byte(9, SIZE, 0, 0);
    ck_assert_int_eq(blk_flush(b), 0);
    uint64_t full = space_used();
    ck_assert_int_eq(blk_zero(b, 0, SIZE / 2, 0), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_uint_ge(space_used(), SIZE);
    expect_byte(0, SIZE / 2, 0);
    expect_byte(9, SIZE / 2, SIZE / 2);
    ck_assert_int_eq(blk_zero(b, 0, SIZE / 2, REQ_MAY_UNMAP), 0);
    ck_assert_uint_le(space_used(), full - SIZE / 2 + 64 * KiB);
    ck_assert_int_eq(
        blk_zero(b, SIZE / 2, SIZE / 2, REQ_MAY_UNMAP | REQ_NO_FALLBACK), 0);
    expect_byte(0, SIZE, 0);
    ck_assert_int_eq(look().st_size, SIZE);
    stop();
}
END_TEST

/* --- Status --- */

struct seen {
    char text[256]; /* "Z65536 D4096 ...", neighbours joined */
    uint64_t at;
    char kind;
    uint64_t length;
};

static void seen_end(struct seen *s)
{
    size_t used = strlen(s->text);
    if (s->length > 0) {
        (void)snprintf(s->text + used, sizeof(s->text) - used, "%s%c%" PRIu64,
                       used ? " " : "", s->kind, s->length);
    }
    s->length = 0;
}

static int see(const struct extent *ext, void *opaque)
{
    struct seen *s = opaque;
    char kind = ext->flags & EXTENT_ZERO ? 'Z' : 'D';

    ck_assert_uint_eq(ext->offset, s->at);
    ck_assert_uint_gt(ext->length, 0);
    ck_assert(ext->flags & EXTENT_ALLOCATED);
    if (kind == 'D') {
        ck_assert(ext->flags & EXTENT_HOST_VALID);
        ck_assert_str_eq(ext->host_file, NAME);
        ck_assert_uint_eq(ext->host, ext->offset);
    }
    if (kind != s->kind) {
        seen_end(s);
        s->kind = kind;
    }
    s->length += ext->length;
    s->at += ext->length;
    return 0;
}

static void expect_extents(uint64_t from, uint64_t to, const char *text)
{
    struct seen s = {.at = from};

    ck_assert_int_eq(blk_extents(b, from, to - from, 0, see, &s), 0);
    seen_end(&s);
    ck_assert_uint_eq(s.at, to);
    ck_assert_str_eq(s.text, text);
}

START_TEST(holes_are_told)
{
    if (!can_punch()) {
        return;
    }
    make_file(SIZE);
    start(RAW(",file.locking=off"));
    expect_extents(0, SIZE, "Z2097152");
    write_byte(1, 128 * KiB, 512 * KiB, 0);
    write_byte(1, 64 * KiB, SIZE - 64 * KiB, 0);
    ck_assert_int_eq(blk_flush(b), 0);
    expect_extents(0, SIZE, "Z524288 D131072 Z1376256 D65536");
    expect_extents(512 * KiB, 600 * KiB, "D90112");
    expect_extents(600 * KiB, 700 * KiB, "D40960 Z61440");
    expect_extents(1 * MiB, 1 * MiB + 1, "Z1");
    expect_extents(SIZE - 1, SIZE, "D1");
    /* Cut by somebody else: what is not there is zeroes. */
    ck_assert_int_eq(truncate(NAME, 576 * KiB), 0);
    expect_extents(512 * KiB, SIZE, "D65536 Z1507328");
    stop();
}
END_TEST

/* --- Waiting --- */

START_TEST(nowait_reads_give_the_right_bytes_or_none)
{
    CLEANUP_FREE char *buf = malloc(SIZE);
    CLEANUP_FREE char *other = malloc(SIZE);

    make_file(SIZE);
    start(PLAIN);
    write_byte(6, SIZE, 0, 0);
    expect_byte(6, SIZE, 0);
    CLEANUP_CLOSE int fd = open(NAME, O_RDONLY);
    struct iovec v = {other, 65536};
    bool can = preadv2(fd, &v, 1, 0, RWF_NOWAIT) == 65536;
    int r = blk_pread(b, buf, 65536, 0, REQ_NOWAIT);
    ck_assert(r == 0 || (r == -EAGAIN && !can));
    memset(other, 6, SIZE);
    ck_assert(r < 0 || memcmp(buf, other, 65536) == 0);

    /* Thrown out of the cache, it may be there or not. */
    ck_assert_int_eq(blk_flush(b), 0);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    for (uint64_t at = 0; at < SIZE; at += 65536) {
        memset(buf, 0, 65536);
        r = blk_pread(b, buf, 65536, at, REQ_NOWAIT);
        ck_assert(r == 0 || r == -EAGAIN);
        ck_assert(r < 0 || (buf[0] == 6 && buf[65535] == 6));
    }
    ck_assert_int_eq(blk_prefetch(b, 0, SIZE), 0);
    expect_byte(6, SIZE, 0);
    stop();

    if (can_direct()) {
        start(DIRECT);
        ck_assert_int_eq(blk_pread(b, buf, 4096, 0, REQ_NOWAIT), -EAGAIN);
        ck_assert_int_eq(blk_pwrite(b, buf, 4096, 0, REQ_NOWAIT), -EAGAIN);
        stop();
    }
}
END_TEST

/* --- Opening --- */

#define refused(text, code, words)                                 \
    do {                                                           \
        CLEANUP_ERROR struct error *err = NULL;                    \
        struct node *opened;                                       \
        ck_assert_int_eq(open_text(text, &opened, &err), -(code)); \
        ck_assert_msg(strstr(error_message(err), words), "'%s'",   \
                      error_message(err));                         \
    } while (0)

START_TEST(what_is_no_disk_is_refused)
{
    static const char what[] = "is neither a regular file nor a block device";

    g = graph_new();
    ck_assert_int_eq(mkfifo("fifo", 0600), 0);
    ck_assert_int_eq(mkdir("directory", 0700), 0);
    ck_assert_int_eq(symlink("fifo", "link"), 0);
    refused("driver=file,filename=fifo", EINVAL, what);
    refused("driver=file,filename=fifo", EINVAL, "'fifo'");
    refused("driver=file,filename=link", EINVAL, what);
    refused("driver=file,filename=directory", EINVAL, what);
    refused("driver=file,filename=directory,read-only=on", EINVAL, what);
    refused("driver=file,filename=/dev/null", EINVAL, what);
    refused("driver=raw,file.driver=file,file.filename=/dev/zero", EINVAL,
            what);
    refused("driver=file,filename=nosuch", ENOENT, "'nosuch'");
    refused("driver=file,filename=nosuch/x", ENOENT, "'nosuch/x'");
    refused("driver=file", EINVAL, "'filename'");
    refused("driver=file,filename=x,locking=maybe", EINVAL, "'locking'");
    graph_free(g);
}
END_TEST

START_TEST(a_read_only_node_is_not_written)
{
    char buf[512] = {0};
    struct blk *user = NULL;

    make_file(SIZE);
    start(PLAIN ",read-only=on");
    ck_assert_int_eq(blk_new(g, n, PERM_WRITE, PERM_ALL, "test", &user, NULL),
                     -EACCES);
    ck_assert_int_eq(blk_pwrite(b, buf, 512, 0, 0), -EPERM);
    ck_assert_int_eq(blk_zero(b, 0, 512, 0), -EPERM);
    ck_assert_int_eq(blk_discard(b, 0, 512), -EPERM);
    ck_assert_int_eq(blk_pread(b, buf, 512, 0, 0), 0);
    stop();
}
END_TEST

/* The locks are those of open files: two opens of one process are as strange
 * to each other as those of two. */
START_TEST(image_locks_keep_two_writers_apart)
{
    static const char read_only[] = PLAIN ",read-only=on";
    static const char hint[] = "lock: is another process using the image";
    struct node *second;

    make_file(SIZE);
    start(PLAIN);
    refused(PLAIN, EAGAIN, "Failed to get");
    refused(PLAIN, EAGAIN, hint);
    refused(read_only, EAGAIN, hint);
    ck_assert_int_eq(
        open_text(PLAIN ",read-only=on,force-share=on", &second, NULL), 0);
    ck_assert_int_eq(open_text(PLAIN ",locking=off", &second, NULL), 0);
    /* Closing those does not give up the first one's. */
    ck_assert_int_eq(graph_close(g, second, NULL), 0);
    refused(PLAIN, EAGAIN, hint);
    CLEANUP_JSON json_t *o = json_pack("{s:i}", "size", 65536);
    ck_assert_int_eq(image_create(NAME, "raw", o, NULL), -EAGAIN);
    ck_assert_int_eq(look().st_size, SIZE);
    stop();

    start(read_only);
    ck_assert_int_eq(open_text(read_only, &second, NULL), 0);
    refused(PLAIN, EAGAIN, hint);
    ck_assert_int_eq(image_create(NAME, "raw", o, NULL), -EAGAIN);
    stop();
    ck_assert_int_eq(look().st_size, SIZE);
    ck_assert_int_eq(image_create(NAME, "raw", o, NULL), 0);
    ck_assert_int_eq(look().st_size, 65536);
    start(PLAIN);
    stop();
}
END_TEST

START_TEST(a_new_image_that_cannot_be_made_leaves_no_file)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s}", "size", "4000000T",
                                       "preallocation", "falloc");
    CLEANUP_JSON json_t *small = json_pack("{s:s}", "size", "1M");

    ck_assert_int_lt(image_create(NAME, "raw", o, &err), 0);
    ck_assert_int_lt(access(NAME, F_OK), 0);
    ck_assert_int_eq(mkfifo("fifo", 0600), 0);
    error_free(err);
    err = NULL;
    ck_assert_int_eq(image_create("fifo", "raw", small, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error_message(err), "'fifo'"));
    ck_assert_int_lt(image_create("nosuch/x", "raw", small, NULL), 0);
}
END_TEST

/* --- Reading ahead --- */

#define FAR (512 * KiB) /* ahead of the reader */

static bool in_memory(uint64_t offset)
{
    unsigned char page = 0;
    CLEANUP_CLOSE int fd = open(NAME, O_RDONLY);
    void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, (off_t)offset);

    ck_assert(p != MAP_FAILED);
    ck_assert_int_eq(mincore(p, 4096, &page), 0);
    (void)munmap(p, 4096);
    return page & 1;
}

/* False where the file system has its files in memory only. */
static bool make_cold_file(void)
{
    CLEANUP_FREE char *data = malloc(SIZE);
    CLEANUP_CLOSE int fd = open(NAME, O_RDWR | O_CREAT | O_TRUNC, 0600);

    memset(data, 1, SIZE);
    for (uint64_t at = 0; at < 4 * SIZE; at += SIZE) {
        ck_assert_int_eq(pwrite(fd, data, SIZE, (off_t)at), SIZE);
    }
    ck_assert_int_eq(fsync(fd), 0);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return !in_memory(0) && !in_memory(4 * MiB + FAR);
}

static bool becomes_resident(uint64_t offset)
{
    for (unsigned i = 0; i < 5000 && !in_memory(offset); i++) {
        (void)usleep(1000);
    }
    return in_memory(offset);
}

static void read_some(uint64_t offset, uint64_t step)
{
    char buf[4096];

    for (unsigned i = 0; i < 6; i++) {
        ck_assert_int_eq(blk_pread(b, buf, sizeof(buf), offset + i * step, 0),
                         0);
    }
}

START_TEST(who_reads_in_order_is_read_ahead_for)
{
    if (!make_cold_file()) {
        return;
    }
    start("driver=file,filename=" NAME);
    read_some(4 * MiB, 4096);
    ck_assert(becomes_resident(4 * MiB + FAR));
    ck_assert(!in_memory(6 * MiB)); /* not all of it */
    stop();
}
END_TEST

/* The window grows with the stream, and is small again in another place. */
START_TEST(who_reads_on_is_read_ahead_for_further)
{
    if (!make_cold_file()) {
        return;
    }
    start("driver=file,filename=" NAME);
    for (uint64_t at = 0; at < 2 * MiB; at += 64 * KiB) {
        expect_byte(1, 64 * KiB, at);
    }
    ck_assert(becomes_resident(4 * MiB - 512 * KiB));
    ck_assert(!in_memory(5 * MiB));
    read_some(6 * MiB, 4096);
    ck_assert(becomes_resident(6 * MiB + FAR));
    ck_assert(!in_memory(8 * MiB - 8192));
    stop();
}
END_TEST

/* Not even what the kernel would think of: large folios. */
START_TEST(who_reads_here_and_there_gets_what_he_asked_for)
{
    if (!make_cold_file()) {
        return;
    }
    start("driver=file,filename=" NAME);
    read_some(0, 1 * MiB + 8192);
    ck_assert(in_memory(0));
    ck_assert(!in_memory(8192));
    ck_assert(!in_memory(FAR));
    stop();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("file");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, remove_files, remove_files);
    tcase_add_loop_test(tc, random_requests_agree_with_the_model, 0, 8);
    tcase_add_test(tc, ranges_outside_the_disk_are_refused);
    tcase_add_loop_test(tc, what_the_file_has_no_more_reads_as_zeroes, 0, 2);
    tcase_add_test(tc, a_file_grows_below_a_format);
    tcase_add_loop_test(tc, resize_keeps_the_rest_and_adds_zeroes, 0, 2);
    tcase_add_test(tc, raw_is_a_window_on_its_file);
    tcase_add_loop_test(tc, flush_and_fua_leave_the_data_in_the_file, 0, 3);
    tcase_add_test(tc, any_number_of_threads_write_and_flush);
    tcase_add_test(tc, discard_gives_space_back_when_it_may);
    tcase_add_test(tc, zero_keeps_space_unless_it_may_unmap);
    tcase_add_test(tc, holes_are_told);
    tcase_add_test(tc, nowait_reads_give_the_right_bytes_or_none);
    tcase_add_test(tc, what_is_no_disk_is_refused);
    tcase_add_test(tc, a_read_only_node_is_not_written);
    tcase_add_test(tc, image_locks_keep_two_writers_apart);
    tcase_add_test(tc, a_new_image_that_cannot_be_made_leaves_no_file);
    tcase_add_test(tc, who_reads_in_order_is_read_ahead_for);
    tcase_add_test(tc, who_reads_on_is_read_ahead_for_further);
    tcase_add_test(tc, who_reads_here_and_there_gets_what_he_asked_for);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
