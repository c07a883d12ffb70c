/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * External data files: which file is opened, what hostile images do with
 * them, and how they follow the size of the disk.  test-qcow2 and
 * test-qcow2-crash show that reads and writes are right.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/graph.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

#define NAME   "disk.qcow2"
#define DATA   "disk.data"
#define DISK   (1 * MiB)
#define COPIED (UINT64_C(1) << 63)

static struct graph *g;
static struct node *n;
static struct blk *b;

static void create(const char *data_file, bool raw)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_pack("{s:I, s:s, s:b}", "size",
                                       (json_int_t)DISK, "data_file", data_file,
                                       "data_file_raw", (int)raw);

    ck_assert_msg(image_create(NAME, "qcow2", o, &err) == 0, "%s",
                  error_message(err));
}

/* With one option more, if @more is not NULL; takes it. */
static int start(bool read_only, json_t *more, struct error **errp)
{
    CLEANUP_JSON json_t *o =
        json_pack("{s:s, s:b, s:s, s:{s:s, s:s}}", "driver", "qcow2",
                  "read-only", (int)read_only, "discard", "unmap", "file",
                  "driver", "file", "filename", NAME);

    if (more) {
        (void)json_object_update(o, more);
        json_decref(more);
    }
    g = graph_new();
    graph_follow(g, FOLLOW_DATA);
    int r = graph_open(g, o, &n, errp);
    return r < 0 ? r
                 : blk_new(g, n, read_only ? PERM_READ : PERM_ALL, PERM_ALL,
                           "test", &b, errp);
}

static void must_start(void)
{
    CLEANUP_ERROR struct error *err = NULL;

    ck_assert_msg(start(false, NULL, &err) == 0, "%s", error_message(err));
}

static void finish(void)
{
    blk_free(b);
    graph_free(g);
    b = NULL;
    g = NULL;
}

static void refused(bool read_only, json_t *more, int code, const char *words)
{
    CLEANUP_ERROR struct error *err = NULL;

    ck_assert_int_eq(start(read_only, more, &err), code);
    ck_assert_msg(strstr(error_message(err), words), "'%s' lacks '%s'",
                  error_message(err), words);
    finish();
}

static uint64_t get(const char *name, uint64_t offset)
{
    unsigned char be[8];
    CLEANUP_CLOSE int fd = open(name, O_RDONLY);

    ck_assert_int_eq(pread(fd, be, 8, (off_t)offset), 8);
    return load_be64(be);
}

static void put(const char *name, uint64_t offset, uint64_t value)
{
    unsigned char be[8];
    CLEANUP_CLOSE int fd = open(name, O_RDWR);

    store_be64(be, value);
    ck_assert_int_eq(pwrite(fd, be, 8, (off_t)offset), 8);
}

static uint64_t size_of(const char *name)
{
    struct stat st;

    ck_assert_int_eq(stat(name, &st), 0);
    return (uint64_t)st.st_size;
}

static void make_file(const char *name, uint64_t size)
{
    CLEANUP_CLOSE int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);

    ck_assert_int_eq(ftruncate(fd, (off_t)size), 0);
}

/* --- Which file --- */

START_TEST(only_files_that_the_policy_allows_are_opened)
{
    const char *outside = "../outside.data";

    ck_assert_int_eq(mkdir("inside", 0700), 0);
    ck_assert_int_eq(chdir("inside"), 0);
    create(outside, false);
    refused(false, NULL, -EPERM, "--allow-path");
    (void)start(true,
                json_pack("{s:{s:s, s:s}}", "data-file", "driver", "file",
                          "filename", outside),
                NULL);
    ck_assert_ptr_nonnull(b); /* the user may */
    finish();
    (void)unlink(outside);
    refused(true, NULL, -ENOENT, "outside.data");

    create("json:{}", false);
    refused(true, NULL, -EPERM, "names the data file 'json:{}'");
    (void)unlink("json:{}");
    create("nbd:some:thing", false);
    refused(true, json_pack("{s:n}", "data-file"), -EINVAL, "data-file");
    (void)unlink("nbd:some:thing");
    (void)unlink(NAME);
    ck_assert_int_eq(chdir(".."), 0);
    ck_assert_int_eq(rmdir("inside"), 0);
}
END_TEST

START_TEST(a_name_that_fits_two_files_is_refused)
{
    ck_assert_int_eq(mkdir("sub", 0700), 0);
    create(DATA, false);
    ck_assert_int_eq(rename(NAME, "sub/" NAME), 0);
    ck_assert_int_eq(rename(DATA, "sub/" DATA), 0);
    ck_assert_int_eq(symlink("sub/" NAME, "link"), 0);

    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = NULL;
    ck_assert_int_eq(options_from_image("sub/" NAME, "qcow2", &o, NULL), 0);
    g = graph_new(); /* as long as there is one in its directory alone */
    graph_follow(g, FOLLOW_DATA);
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    graph_free(g);
    make_file(DATA, DISK);
    g = graph_new();
    graph_follow(g, FOLLOW_DATA);
    ck_assert_int_eq(graph_open(g, o, &n, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error_message(err), "both in its directory"));
    graph_free(g);
    g = NULL;
    /* One file by two names is not two. */
    (void)unlink(DATA);
    ck_assert_int_eq(link("sub/" DATA, DATA), 0);
    g = graph_new();
    graph_follow(g, FOLLOW_DATA);
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    graph_free(g);
    g = NULL;
    (void)unlink("link");
    (void)unlink(DATA);
    (void)unlink("sub/" DATA);
    (void)unlink("sub/" NAME);
    (void)rmdir("sub");
}
END_TEST

START_TEST(a_data_file_in_use_is_refused)
{
    create(DATA, false);
    CLEANUP_CLOSE int fd = open(DATA, O_RDWR);
    struct flock l = {.l_type = F_RDLCK, .l_start = 201, .l_len = 1};
    ck_assert_int_eq(fcntl(fd, F_OFD_SETLK, &l), 0);
    refused(false, NULL, -EAGAIN, DATA);
}
END_TEST

START_TEST(an_image_is_not_its_own_data_file)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_pack("{s:i, s:s}", "size", 1 << 20,
                                       "data_file", NAME);
    ck_assert_int_eq(image_create(NAME, "qcow2", o, &err), -EAGAIN);
    create("disk.qcow3", false); /* of the same length */
    (void)unlink("disk.qcow3");
    CLEANUP_CLOSE int fd = open(NAME, O_RDWR);
    ck_assert_int_eq(pwrite(fd, NAME, strlen(NAME), 112 + 8),
                     (ssize_t)strlen(NAME));
    refused(false, NULL, -EAGAIN, NAME);
}
END_TEST

START_TEST(the_option_is_for_images_that_have_one)
{
    CLEANUP_JSON json_t *o = json_pack("{s:i}", "size", 1 << 20);

    ck_assert_int_eq(image_create(NAME, "qcow2", o, NULL), 0);
    refused(true,
            json_pack("{s:{s:s, s:s}}", "data-file", "driver", "file",
                      "filename", NAME),
            -EINVAL, "can only be set for images with an external data file");
}
END_TEST

START_TEST(headers_are_read_without_the_data)
{
    create(DATA, false);
    must_start();
    char byte = 'x';
    ck_assert_int_eq(blk_pwrite(b, &byte, 1, 0, 0), 0);
    finish();
    (void)unlink(DATA);
    refused(true, NULL, -ENOENT, DATA);

    CLEANUP_JSON json_t *o = NULL;
    ck_assert_int_eq(options_from_image(NAME, "qcow2", &o, NULL), 0);
    g = graph_new();
    graph_without_data(g);
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
    CLEANUP_JSON json_t *info = node_image_info(g, n);
    ck_assert_str_eq(
        json_string_value(json_object_get(
            json_object_get(json_object_get(info, "format-specific"), "data"),
            "data-file")),
        DATA);
    ck_assert_int_eq(blk_pread(b, &byte, 1, 0, 0), -ENOMEDIUM);
    ck_assert_int_eq(blk_pwrite(b, &byte, 1, 0, 0), -ENOMEDIUM);
    ck_assert_int_eq(blk_pwrite(b, &byte, 1, 500000, 0), -ENOMEDIUM);
    ck_assert_int_eq(blk_zero(b, 0, 1 << 20, REQ_MAY_UNMAP), -ENOMEDIUM);
    ck_assert_int_lt(blk_resize(b, 1 << 21, NULL), 0);
    ck_assert_int_lt(blk_resize(b, 1 << 19, NULL), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    finish();
}
END_TEST

START_TEST(a_name_that_is_no_text_hides_nothing_else)
{
    create("\xc3\xa9.data", false);
    (void)unlink("\xc3\xa9.data");
    CLEANUP_CLOSE int fd = open(NAME, O_RDWR);
    ck_assert_int_eq(pwrite(fd, "\xff", 1, 112 + 8), 1);
    refused(true, NULL, -EINVAL, "not UTF-8");

    CLEANUP_JSON json_t *o = NULL;
    ck_assert_int_eq(options_from_image(NAME, "qcow2", &o, NULL), 0);
    g = graph_new();
    graph_without_data(g);
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    CLEANUP_JSON json_t *info = node_image_info(g, n);
    const json_t *data =
        json_object_get(json_object_get(info, "format-specific"), "data");
    ck_assert_ptr_null(json_object_get(data, "data-file"));
    ck_assert_ptr_nonnull(json_object_get(data, "data-file-raw"));
    finish();
}
END_TEST

/* --- Hostile tables --- */

static uint64_t l2_offset(void)
{
    return get(NAME, get(NAME, 40)) & UINT64_C(0x00fffffffffffe00);
}

/* Say that guest cluster 1 is what @entry says, and use it. */
static void lead_astray(bool raw, uint64_t entry, bool first_write)
{
    char buf[512] = "untouched";
    char old[512];

    create(DATA, raw);
    must_start();
    for (uint64_t at = 0; at < DISK; at += 64 * KiB) {
        ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), at, 0), 0);
    }
    finish();
    put(NAME, l2_offset() + 8, entry);
    must_start();
    memset(buf, 0xee, sizeof(buf));
    if (first_write) {
        ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), 64 * KiB, 0), -EIO);
    }
    ck_assert_int_eq(blk_pread(b, old, sizeof(old), 64 * KiB, 0), -EIO);
    ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), 64 * KiB, 0), -EIO);
    ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), 0, 0), -EIO);
    finish();
    ck_assert_uint_eq(get(NAME, 72), 2 | 4); /* corrupt */
    for (uint64_t at = 0; at < DISK; at += 64 * KiB) {
        ck_assert_uint_eq(get(DATA, at), load_be64("untouched"));
    }
}

START_TEST(entries_that_lead_elsewhere_are_corrupt)
{
    static const uint64_t entries[] = {
        COPIED | 128 * KiB,
        COPIED | 512,
        COPIED,
        128 * KiB,
        COPIED | UINT64_C(1) << 54,
        COPIED | 128 * KiB | 1,
        UINT64_C(1) << 62 | 4096,
    };

    for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
        for (unsigned how = 0; how < 4; how++) {
            bool compressed = entries[i] >> 62 & 1;
            bool replaces = !(entries[i] & COPIED); /* it reads first, then */
            lead_astray(how & 1, entries[i],
                        (how & 2) && !compressed && !replaces);
        }
    }
}
END_TEST

/* --- Size --- */

static void expect_bytes(struct blk *of, uint64_t from, uint64_t to, int byte)
{
    unsigned char got[4096];
    unsigned char want[sizeof(got)];

    memset(want, byte, sizeof(want));
    for (uint64_t at = from; at < to; at += sizeof(got)) {
        ck_assert_int_eq(blk_pread(of, got, sizeof(got), at, 0), 0);
        ck_assert_mem_eq(got, want, sizeof(got));
    }
}

START_TEST(the_data_file_follows_the_disk)
{
    CLEANUP_FREE char *buf = malloc(DISK);
    bool raw = _i;

    memset(buf, 0x5a, DISK);
    create(DATA, raw);
    must_start();
    ck_assert_int_eq(blk_pwrite(b, buf, DISK, 0, 0), 0);
    /* In the middle of a cluster; what was there does not come back. */
    ck_assert_int_eq(blk_resize(b, 500 * KiB, NULL), 0);
    ck_assert_uint_eq(size_of(DATA), 500 * KiB);
    ck_assert_int_eq(blk_resize(b, 3 * DISK, NULL), 0);
    ck_assert_uint_eq(size_of(DATA), 3 * DISK);
    expect_bytes(b, 0, 500 * KiB, 0x5a);
    expect_bytes(b, 500 * KiB, 3 * DISK, 0);
    ck_assert_int_eq(blk_pwrite(b, buf, 512, 3 * DISK - 512, 0), 0);
    finish();
    must_start();
    ck_assert_uint_eq(blk_size(b), 3 * DISK);
    expect_bytes(b, 500 * KiB, 2 * DISK, 0);
    finish();
}
END_TEST

/* A data file that is longer than the disk: a raw one shows what it has. */
START_TEST(growing_into_what_the_data_file_has)
{
    CLEANUP_FREE char *buf = malloc(DISK);
    bool raw = _i;

    memset(buf, 0x77, DISK);
    create(DATA, raw);
    must_start();
    ck_assert_int_eq(blk_resize(b, 500 * KiB, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, buf, 500 * KiB, 0, 0), 0);
    finish();
    CLEANUP_CLOSE int fd = open(DATA, O_RDWR);
    ck_assert_int_eq(pwrite(fd, buf, DISK, 0), DISK);
    must_start();
    ck_assert_int_eq(blk_resize(b, DISK, NULL), 0);
    expect_bytes(b, 0, 500 * KiB, 0x77);
    expect_bytes(b, 500 * KiB, DISK, raw ? 0x77 : 0);
    finish();
    ck_assert_uint_eq(size_of(DATA), DISK);
}
END_TEST

START_TEST(a_raw_data_file_has_no_backing_file)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_pack(
        "{s:i, s:s, s:b, s:s, s:s}", "size", 1 << 20, "data_file", DATA,
        "data_file_raw", 1, "backing_file", "lower.raw", "backing_fmt", "raw");

    make_file("lower.raw", DISK);
    ck_assert_int_eq(image_create(NAME, "qcow2", o, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error_message(err), "data-file-raw"));
    create(DATA, true);
    must_start();
    graph_lock(g);
    graph_drain(g, n);
    ck_assert_int_eq(n->drv->image->change_backing(n, "lower.raw", "raw", NULL),
                     -EINVAL);
    graph_unlock(g);
    finish();
}
END_TEST

static void clean_up(void)
{
    (void)unlink(NAME);
    (void)unlink(DATA);
    (void)unlink("lower.raw");
}

int main(void)
{
    Suite *s = suite_create("data-file");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, NULL, clean_up);
    tcase_add_test(tc, only_files_that_the_policy_allows_are_opened);
    tcase_add_test(tc, a_name_that_fits_two_files_is_refused);
    tcase_add_test(tc, a_data_file_in_use_is_refused);
    tcase_add_test(tc, an_image_is_not_its_own_data_file);
    tcase_add_test(tc, the_option_is_for_images_that_have_one);
    tcase_add_test(tc, headers_are_read_without_the_data);
    tcase_add_test(tc, a_name_that_is_no_text_hides_nothing_else);
    tcase_add_test(tc, entries_that_lead_elsewhere_are_corrupt);
    tcase_add_loop_test(tc, the_data_file_follows_the_disk, 0, 2);
    tcase_add_loop_test(tc, growing_into_what_the_data_file_has, 0, 2);
    tcase_add_test(tc, a_raw_data_file_has_no_backing_file);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
