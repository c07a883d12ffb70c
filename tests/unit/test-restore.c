/* SPDX-License-Identifier: BSD-3-Clause */
/* Disks of points are restored to what they were, unit by unit; damage in any
 * file is found, told, and harms nothing but its own range. */
#include <check.h>
#include <errno.h>

#include "nbdelta/transfer.h"
#include "store-util.h"
#include "store/restore.h"

#define SIZE  (5 * MiB + 3 * 64 * KiB + 512)
#define CHUNK (64 * KiB)

static struct graph *g;
static struct store *s;
static struct blk *source; /* the disk that is backed up */
static struct blk *target;
static uint8_t now[SIZE]; /* what the disk has */
static char parent_hash[HASH_TEXT_MAX];

static struct node *node_of(const char *text)
{
    CLEANUP_JSON json_t *o = json_loads(text, 0, NULL);
    CLEANUP_ERROR struct error *err = NULL;
    struct node *n;

    int r = graph_open(g, o, &n, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    return n;
}

static struct blk *disk_of(uint64_t size)
{
    char text[100];
    struct blk *b;

    (void)snprintf(text, sizeof(text), "{\"driver\":\"mem\",\"size\":%llu}",
                   (unsigned long long)size);
    ck_assert_int_eq(blk_new(g, node_of(text), PERM_READ | PERM_WRITE, PERM_ALL,
                             "test", &b, NULL),
                     0);
    return b;
}

static void setup(void)
{
    base_setup();
    g = graph_new();
    s = create_store();
    source = disk_of(SIZE);
    target = disk_of(SIZE);
    memset(now, 0, sizeof(now));
}

static void teardown(void)
{
    blk_free(source);
    blk_free(target);
    store_close(s);
    graph_close_all(g);
    graph_free(g);
    base_teardown();
}

static void change(uint64_t offset, int byte, uint64_t bytes)
{
    memset(now + offset, byte, bytes);
    ck_assert_int_eq(blk_pwrite(source, now + offset, bytes, offset, 0), 0);
}

static struct node *make_file(const char *point, const char *parent)
{
    CLEANUP_FREE char *path = NULL;
    CLEANUP_ERROR struct error *err = NULL;

    ck_assert_int_eq(store_add_disk(s, "vda", NULL), 0);
    ck_assert_int_eq(
        store_file_path(s, "vda", point, "qcow2.part", &path, NULL), 0);
    CLEANUP_JSON json_t *o = json_pack("{s:I}", "size", (json_int_t)SIZE);
    if (parent) {
        char name[64];
        (void)snprintf(name, sizeof(name), "%s.qcow2", parent);
        json_object_set_new(o, "backing_file", json_string(name));
        json_object_set_new(o, "backing_fmt", json_string("qcow2"));
        json_object_set_new(o, "backing_unchecked", json_true());
    }
    int r = image_create(path, "qcow2", o, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    CLEANUP_JSON json_t *open = json_pack("{s:s,s:n,s:{s:s,s:s}}", "driver",
                                          "qcow2", "backing", "file", "driver",
                                          "file", "filename", path);
    struct node *n;
    r = graph_open(g, open, &n, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    return n;
}

static void finish_point(struct manifest *m)
{
    CLEANUP_ERROR struct error *err = NULL;

    ck_assert_int_eq(store_keep_disk(s, "vda", m->name, NULL), 0);
    int r = store_put_pending(s, m, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    ck_assert_int_eq(store_finish_pending(s, NULL), 0);
}

/* A point of what the disk has now: [offset, offset + bytes) of it, as a run
 * makes it. */
static void back_up(const char *point, const char *parent, uint64_t offset,
                    uint64_t bytes)
{
    struct node *n = make_file(point, parent);
    struct sums *sums = sums_new(SIZE, !parent);
    struct transfer_options o = {.tap = sums_tap, .opaque = sums};
    struct transfer *t;
    struct blk *file;
    int fd = -1;

    ck_assert_int_eq(transfer_new(g, blk_node(source), n, &o, &t, NULL), 0);
    transfer_add(t, offset, bytes);
    ck_assert_int_eq(transfer_run(t, NULL, NULL), 0);
    transfer_free(t);
    ck_assert_int_eq(blk_new(g, n, PERM_READ, PERM_ALL, "test", &file, NULL),
                     0);
    ck_assert_int_eq(sums_finish(sums, file, NULL), 0);
    blk_free(file);
    ck_assert_int_eq(graph_close(g, n, NULL), 0);

    struct manifest *m = one_disk(s, point, "vda", parent);
    m->disks[0].size = SIZE;
    strcpy(m->disks[0].parent_hash, parent ? parent_hash : "");
    ck_assert_int_eq(store_create_file(s, "vda", point, "sums.part", &fd, NULL),
                     0);
    ck_assert_int_eq(sums_write(sums, fd, m->disks[0].sums_hash, NULL), 0);
    close(fd);
    sums_free(sums);
    strcpy(parent_hash, m->disks[0].sums_hash);
    finish_point(m);
}

/* Three points; what the disk had at the second one. */
static uint8_t second[SIZE];

static void three_points(void)
{
    change(0, 1, 3 * MiB);
    change(SIZE - 512, 2, 512);
    back_up(POINT1, NULL, 0, SIZE);
    change(MiB + 5 * CHUNK, 3, CHUNK);
    change(2 * MiB, 0, CHUNK); /* zeroes over data */
    change(4 * MiB, 4, MiB);
    back_up(POINT2, POINT1, MiB + 5 * CHUNK, 12 * CHUNK);
    /* Of the last change the second point knows nothing. */
    memcpy(second, now, SIZE);
    memset(second + 4 * MiB, 0, MiB);
    back_up(POINT3, POINT2, 4 * MiB, MiB);
}

/* --- */

static char told[4096];

static void note_damage(const struct damage *d, void *opaque)
{
    size_t len = strlen(told);

    (void)opaque;
    (void)snprintf(told + len, sizeof(told) - len, "%s %llu+%llu;", d->point,
                   (unsigned long long)d->offset, (unsigned long long)d->bytes);
}

static struct restore_result result;

static int restore_to(struct blk *to, const char *point, bool partial)
{
    struct restore_options o = {
        .partial = partial,
        .threads = 3,
        .on_damage = note_damage,
    };
    CLEANUP_ERROR struct error *err = NULL;

    memset(&result, 0, sizeof(result));
    told[0] = '\0';
    int r = restore_disk(s, g, point, "vda", to, &o, &result, &err);
    ck_assert((r == 0) == (err == NULL));
    return r;
}

static void ck_target(const uint8_t *expected)
{
    CLEANUP_FREE uint8_t *bytes = malloc(SIZE);

    ck_assert_int_eq(blk_pread(target, bytes, SIZE, 0, 0), 0);
    ck_assert_mem_eq(bytes, expected, SIZE);
}

static void soil_target(void)
{
    CLEANUP_FREE uint8_t *bytes = malloc(SIZE);

    memset(bytes, 0xee, SIZE);
    ck_assert_int_eq(blk_pwrite(target, bytes, SIZE, 0, 0), 0);
}

/* Change a byte of data of a file; what is at @offset of it is data. */
static void flip(const char *point, const char *ending, long offset)
{
    FILE *f = fopen(at("dir/vda/%s.%s", point, ending), "r+");

    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fseek(f, offset, offset < 0 ? SEEK_END : SEEK_SET), 0);
    int c = fgetc(f);
    ck_assert_int_eq(fseek(f, -1, SEEK_CUR), 0);
    (void)fputc(c ^ 1, f);
    (void)fclose(f);
}

START_TEST(each_point_is_restored_whatever_the_target_has)
{
    three_points();
    soil_target();
    ck_assert_int_eq(restore_to(target, POINT3, false), 0);
    ck_target(now);
    ck_assert_uint_eq(result.done, SIZE);
    ck_assert_int_eq(restore_to(target, POINT2, false), 0);
    ck_target(second);
    ck_assert_uint_eq(result.written, MiB); /* no more than differs */
    ck_assert_int_eq(restore_to(target, POINT2, false), 0);
    ck_assert_uint_eq(result.written, 0);
}
END_TEST

START_TEST(what_is_behind_a_larger_target_stays)
{
    uint8_t byte = 0x77;
    uint8_t found = 0;

    three_points();
    struct blk *large = disk_of(SIZE + MiB);
    struct blk *small = disk_of(SIZE - 1);
    ck_assert_int_eq(blk_pwrite(large, &byte, 1, SIZE, 0), 0);
    ck_assert_int_eq(restore_to(large, POINT3, false), 0);
    ck_assert_int_eq(blk_pread(large, &found, 1, SIZE, 0), 0);
    ck_assert_uint_eq(found, byte);
    ck_assert_int_eq(restore_to(small, POINT3, false), -EINVAL);
    blk_free(large);
    blk_free(small);
}
END_TEST

/* In the base: chunks of the unit that a newer file decides are known. */
START_TEST(damage_of_the_base_spares_what_newer_files_decide)
{
    uint8_t expected[SIZE];

    three_points();
    /* Data of the base begin behind its metadata, and its clusters are in
     * order where one worker wrote them; so any of them is in [0, 3 MiB). */
    flip(POINT1, "qcow2", -(long)CHUNK * 20);
    ck_assert_int_eq(restore_to(target, POINT3, false), -EUCLEAN);
    ck_assert_ptr_nonnull(strstr(told, POINT1));
    soil_target();
    ck_assert_int_eq(restore_to(target, POINT3, true), -EUCLEAN);
    ck_assert_uint_gt(result.damaged, 0);
    ck_assert_uint_le(result.damaged, MiB);
    unsigned long long offset;
    unsigned long long bytes;
    memcpy(expected, now, SIZE);
    for (char *p = told; *p; p = strchr(p, ';') + 1) {
        ck_assert_int_eq(sscanf(strchr(p, ' '), " %llu+%llu", &offset, &bytes),
                         2);
        memset(expected + offset, 0, bytes);
    }
    ck_target(expected);
}
END_TEST

START_TEST(damage_that_newer_files_hide_harms_nobody)
{
    change(0, 1, MiB);
    back_up(POINT1, NULL, 0, SIZE);
    change(0, 2, SIZE);
    back_up(POINT2, POINT1, 0, SIZE);
    flip(POINT1, "qcow2", -1000);
    ck_assert_int_eq(restore_to(target, POINT2, false), 0);
    ck_target(now);
    ck_assert_int_eq(restore_to(target, POINT1, false), -EUCLEAN);
}
END_TEST

/* Which units it has is not known then: nothing below it is true. */
START_TEST(a_file_that_cannot_be_used_spoils_all_below)
{
    uint8_t expected[SIZE] = {0};

    three_points();
    if (_i == 0) {
        flip(POINT2, "sums", -1);
    } else if (_i == 1) {
        ck_assert_int_eq(unlink(at("dir/vda/%s.qcow2", POINT2)), 0);
    } else if (_i == 2) {
        ck_assert_int_eq(unlink(at("dir/%s.json", POINT2)), 0);
        ck_assert_int_eq(store_reload(s, NULL), 0);
    } else {
        flip(POINT2, "qcow2", 0);
    }
    soil_target();
    ck_assert_int_eq(restore_to(target, POINT3, false), -EUCLEAN);
    soil_target();
    ck_assert_int_eq(restore_to(target, POINT3, true), -EUCLEAN);
    memset(expected + 4 * MiB, 4, MiB); /* the third has it itself */
    ck_target(expected);
    ck_assert_uint_eq(result.damaged, SIZE - MiB);
    ck_assert_int_eq(restore_to(target, POINT1, false), 0);
}
END_TEST

START_TEST(what_is_not_there_is_said)
{
    three_points();
    ck_assert_int_eq(restore_to(target, "20200101T000000Z", false), -ENOENT);
    _Atomic bool stop = true;
    struct restore_options o = {.stop = &stop};
    ck_assert_int_eq(
        restore_disk(s, g, POINT3, "vda", target, &o, &result, NULL),
        -ECANCELED);
    ck_assert_int_eq(
        restore_disk(s, g, POINT3, "vdb", target, &o, &result, NULL), -ENOENT);
}
END_TEST

START_TEST(a_point_that_is_pruned_is_not_read)
{
    int fd = -1;

    three_points();
    struct store *other = reopen_store(STORE_READ);
    ck_assert_int_eq(store_hold(other, POINT1, true, &fd, NULL), 0);
    ck_assert_int_eq(restore_to(target, POINT3, false), -EBUSY);
    close(fd);
    ck_assert_int_eq(restore_to(target, POINT3, false), 0);
    /* And it has let go of them. */
    ck_assert_int_eq(store_hold(other, POINT1, true, &fd, NULL), 0);
    close(fd);
    store_close(other);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("restore");
    TCase *tc = tcase_create("restore");

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, each_point_is_restored_whatever_the_target_has);
    tcase_add_test(tc, what_is_behind_a_larger_target_stays);
    tcase_add_test(tc, damage_of_the_base_spares_what_newer_files_decide);
    tcase_add_test(tc, damage_that_newer_files_hide_harms_nobody);
    tcase_add_loop_test(tc, a_file_that_cannot_be_used_spoils_all_below, 0, 4);
    tcase_add_test(tc, what_is_not_there_is_said);
    tcase_add_test(tc, a_point_that_is_pruned_is_not_read);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
