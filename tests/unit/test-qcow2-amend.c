/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Amending an image, under power cuts and with requests that fail.  After each
 * write, any set of sectors of the unflushed writes may be on the disk.  The
 * header then has all of the old properties or all of the new ones, and the
 * guest's disk is the same.
 */
#include "sector-cut.h"

#include "nbdelta/blk.h"

#define GUEST (256 * KiB)

static struct {
    char *from; /* properties */
    char *to;
} change;

/* --- What a header says --- */

static const char *or_none(const char *text)
{
    return text ? text : "-";
}

static char *properties_of(const unsigned char *head)
{
    struct qcow2_header h;
    struct error *err = NULL;
    char *text;
    int r = qcow2_header_parse(head, cut.cluster, &h, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    ck_assert_int_gt(
        asprintf(&text, "v%u %s %s %s lazy=%d raw=%d bitmaps=%u/%lu", h.version,
                 or_none(h.backing), or_none(h.backing_fmt),
                 or_none(h.data_file), (int)(h.compatible & QCOW2_COMPAT_LAZY),
                 (int)(h.autoclear & QCOW2_AUTOCLEAR_RAW), h.bitmaps.count,
                 (unsigned long)h.bitmaps.dir_offset),
        0);
    ck_assert_uint_eq(h.refcount_order, 4);
    qcow2_header_release(&h);
    return text;
}

static void check_head(const unsigned char *head)
{
    CLEANUP_FREE char *now = properties_of(head);

    ck_assert_msg(strcmp(now, change.from) == 0 || !change.to ||
                      strcmp(now, change.to) == 0,
                  "'%s' is neither '%s' nor '%s'", now, change.from, change.to);
}

static void load_new_image(size_t cluster, const char *backing)
{
    CLEANUP_JSON json_t *o =
        json_pack("{s:s, s:I, s:s, s:s, s:b}", "size", "256k", "cluster_size",
                  (json_int_t)cluster, "backing_file", backing, "backing_fmt",
                  "qcow2", "backing_unchecked", 1);

    if (backing[0] == '\0') {
        (void)json_object_del(o, "backing_file");
        (void)json_object_del(o, "backing_fmt");
    }
    cut_load(o, cluster, check_head);
    change.from = change.to = NULL;
}

static void drop_image(void)
{
    cut_drop();
    free(change.from);
    free(change.to);
}

/* Ones, zeroes over a part of them, zeroes where nothing was. */
static void write_guest(void)
{
    static unsigned char ones[GUEST / 2];
    struct graph *g = graph_new();
    struct blk *b;

    memset(ones, 1, sizeof(ones));
    ck_assert_int_eq(
        blk_new(g, cut_open_image(g), PERM_WRITE, PERM_ALL, "test", &b, NULL),
        0);
    ck_assert_int_eq(blk_pwrite(b, ones, sizeof(ones), 0, 0), 0);
    ck_assert_int_eq(blk_zero(b, 64 * KiB, 32 * KiB, 0), 0);
    ck_assert_int_eq(blk_zero(b, 192 * KiB, 64 * KiB, 0), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    blk_free(b);
    graph_free(g);
}

static void check_guest(void)
{
    static unsigned char buf[GUEST];
    struct graph *g = graph_new();
    struct image_check c;
    struct image_check_options all = {.repair = IMAGE_REPAIR_NONE};
    struct node *n = cut_open_image(g);
    struct blk *b;

    ck_assert_int_eq(blk_new(g, n, PERM_READ, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(blk_pread(b, buf, GUEST, 0, 0), 0);
    size_t i = 0;
    while (i < GUEST &&
           buf[i] == (i < 64 * KiB || (i >= 96 * KiB && i < 128 * KiB))) {
        i++;
    }
    ck_assert_uint_eq(i, GUEST);
    blk_free(b);
    graph_free(g);

    g = graph_new();
    int r = image_check(g, cut_open_file(g), "qcow2", &all, &c, NULL);
    ck_assert_int_eq(r, 0);
    ck_assert_uint_eq(c.corruptions, 0);
    graph_free(g);
}

static int amend(const char *options)
{
    const struct image_amend how = {NULL, NULL};
    CLEANUP_JSON json_t *o = json_loads(options, 0, NULL);
    CLEANUP_ERROR struct error *err = NULL;
    struct graph *g = graph_new();
    struct node *n = cut_open_image(g);

    free(change.from);
    change.from = properties_of(cut.safe);
    ck_assert_ptr_nonnull(o);
    int r = image_amend(g, n, o, &how, &err);
    if (r == 0) {
        memcpy(cut.disk, cut.safe, cut.cluster); /* it is durable */
    }
    graph_free(g);
    return r;
}

#define LONG                                                                \
    "a-name-that-is-not-short-and-does-not-fit-where-the-old-one-was-and-"  \
    "that-goes-on-for-a-while-and-goes-on-and-on-to-the-end-of-the-sector-" \
    "which-has-five-hundred-and-twelve-bytes-so-that-it-has-to-lie-behind"

/* Each changes what the one before has left. */
static const struct {
    const char *options;
    const char *wanted; /* a part of the properties */
} steps[] = {
    {"{\"lazy_refcounts\": true}", "lazy=1"},
    {"{\"compat\": \"0.10\"}", "v2"},
    {"{\"backing_file\": \"" LONG "\", \"backing_fmt\": \"qcow2\"}", LONG},
    {"{\"compat\": \"1.1\", \"lazy_refcounts\": \"on\"}", "v3"},
    {"{\"backing_file\": \"b\", \"backing_fmt\": \"raw\", \"compat\": \"v2\"}",
     "v2 b raw"},
    {"{\"backing_file\": \"x" LONG "\", \"backing_fmt\": \"qcow2\","
     " \"compat\": \"v3\"}",
     "v3 x" LONG},
    {"{\"backing_file\": \"y" LONG "\", \"backing_fmt\": \"raw\"}", "y" LONG},
    {"{\"backing_file\": \"\", \"lazy_refcounts\": false}", "v3 - - - lazy=0"},
};

static const size_t clusters[] = {512, 1024, 4096, 65536};

/* The properties after the step, found out on a copy. */
static int try_step(size_t i)
{
    unsigned char *disk = malloc(DISK_MAX);
    unsigned char *safe = malloc(DISK_MAX);

    memcpy(disk, cut.disk, DISK_MAX);
    memcpy(safe, cut.safe, DISK_MAX);
    free(change.to);
    change.to = NULL; /* anything that can be read */
    cut.writes = 0;
    int r = amend(steps[i].options);
    change.to = r == 0 ? properties_of(cut.safe) : strdup(change.from);
    memcpy(cut.disk, disk, DISK_MAX);
    memcpy(cut.safe, safe, DISK_MAX);
    free(disk);
    free(safe);
    return r;
}

START_TEST(a_cut_leaves_the_old_properties_or_the_new)
{
    size_t cluster = clusters[_i];

    load_new_image(cluster, "");
    write_guest();
    for (unsigned round = 0; round < 2; round++) {
        for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
            int r = try_step(i);

            ck_assert_int_eq(amend(steps[i].options), r);
            /* Only where there is little room may it be refused. */
            ck_assert_msg(r == 0 || (r == -ENOSPC && cluster <= 1024),
                          "step %zu: %d", i, r);
            ck_assert_msg(r < 0 || strstr(change.to, steps[i].wanted),
                          "step %zu: %s", i, change.to);
            check_guest();
        }
    }
    ck_assert_uint_gt(cut.count, 100);
    drop_image();
}
END_TEST

START_TEST(a_write_that_fails_leaves_the_old_properties_or_the_new)
{
    size_t cluster = clusters[_i / 2 * 2];

    for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
        load_new_image(cluster, i % 2 ? "" : "base");
        write_guest();
        unsigned char *before = malloc(DISK_MAX);
        memcpy(before, cut.disk, DISK_MAX);
        int possible = try_step(i);
        unsigned writes = cut.writes;
        for (unsigned k = 1; k <= writes; k += 1 + writes / 8) {
            memcpy(cut.disk, before, DISK_MAX);
            memcpy(cut.safe, before, DISK_MAX);
            cut.writes = 0;
            cut.fail_at = k;
            cut.fail_done = _i % 2;
            (void)amend(steps[i].options);
            cut.fail_at = 0;
            memcpy(cut.safe, cut.disk, DISK_MAX);
            check_head(cut.disk);
            check_guest();
            /* And then it can be done, if it could. */
            free(change.from);
            change.from = properties_of(cut.safe);
            ck_assert_int_eq(amend(steps[i].options), possible);
            check_guest();
        }
        free(before);
        drop_image();
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qcow2-amend");
    TCase *tc = tcase_create("qcow2-amend");

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, a_cut_leaves_the_old_properties_or_the_new, 0,
                        (int)ARRAY_SIZE(clusters));
    tcase_add_loop_test(tc,
                        a_write_that_fails_leaves_the_old_properties_or_the_new,
                        0, (int)ARRAY_SIZE(clusters));
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
