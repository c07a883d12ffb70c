/* SPDX-License-Identifier: BSD-3-Clause */
/* Verifying a backup directory: all that was changed behind its back is found,
 * and named by disk, point and range; what is right is not called damaged. */
#include <check.h>
#include <errno.h>

#include "point-util.h"
#include "store/verify.h"

/* --- What is told --- */

static struct {
    unsigned count;
    char first[300];
} told;

static void on_damage(const struct damage *d, void *opaque)
{
    (void)opaque;
    if (told.count++ == 0) {
        (void)snprintf(told.first, sizeof(told.first), "%s %s %llu+%llu %s",
                       d->point, d->disk ? d->disk : "-",
                       (unsigned long long)d->offset,
                       (unsigned long long)d->bytes, d->what);
    }
}

static int verify(struct store *s, struct verify_options o)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct verify_result result;

    memset(&told, 0, sizeof(told));
    o.on_damage = on_damage;
    int r = verify_all(s, &o, &result, &err);
    ck_assert(r == 0 || error_code(err) == -r);
    ck_assert_uint_eq(result.damages, told.count);
    return r;
}

static int verify_whole(struct store *s)
{
    return verify(s, (struct verify_options){.threads = 3});
}

static int verify_quick(struct store *s)
{
    return verify(s, (struct verify_options){.quick = true});
}

/* One thing is damaged, and told in these words. */
static void check_told(int r, const char *words)
{
    ck_assert_int_eq(r, -EUCLEAN);
    ck_assert_msg(told.count == 1 && strstr(told.first, words) != NULL,
                  "%u: %s", told.count, told.first);
}

START_TEST(test_right)
{
    CLEANUP_STORE struct store *s = three_points();
    struct verify_result result;
    struct verify_options o = {.threads = 1};
    struct verified v;

    verified_read(s, POINT1, &v);
    ck_assert_int_eq(v.when, 0);
    ck_assert_int_eq(verify_quick(s), 0);
    verified_read(s, POINT1, &v);
    ck_assert_int_eq(v.when, 0); /* no byte of it was read */
    ck_assert_int_eq(verify_point(s, POINT2, false, &o, &result, NULL), 0);
    ck_assert_uint_eq(result.files, 2);
    ck_assert_uint_eq(result.units, 3 + 1);
    ck_assert_int_eq(verify_point(s, POINT2, true, &o, &result, NULL), 0);
    ck_assert_uint_eq(result.files, 4);
    ck_assert_int_eq(verify_whole(s), 0);
    verified_read(s, POINT3, &v);
    ck_assert_int_gt(v.when, 0);
    ck_assert_uint_eq(v.damages, 0);
    ck_assert_int_eq(
        verify_point(s, "20300101T000000Z", true, &o, &result, NULL), -ENOENT);
}
END_TEST

/* --- The images --- */

static void change(const char *path, uint64_t offset, uint64_t bytes,
                   uint8_t byte)
{
    const struct run w = {offset, bytes, byte};

    write_runs(at("dir/%s", path), NULL, &w, 1);
}

START_TEST(test_changed_data)
{
    CLEANUP_STORE struct store *s = three_points();
    struct verified v;

    change("vda/" POINT2 ".qcow2", 5 * MiB + 77, 1, 6);
    ck_assert_int_eq(verify_quick(s), 0);
    check_told(verify_whole(s), POINT2 " vda 5242880+1048576 has other bytes");
    ck_assert(verified_damaged(s, POINT2, "vda"));
    ck_assert(!verified_damaged(s, POINT2, "vdb"));
    ck_assert(!verified_damaged(s, POINT1, "vda"));
    verified_read(s, POINT2, &v);
    ck_assert_uint_eq(v.damages, 1);
    ck_assert_int_eq(verify_quick(s), 0); /* which does not take it back */
    ck_assert(verified_damaged(s, POINT2, "vda"));

    change("vda/" POINT2 ".qcow2", 5 * MiB + 77, 1, 5);
    ck_assert_int_eq(verify_whole(s), 0);
    ck_assert(!verified_damaged(s, POINT2, "vda"));
}
END_TEST

START_TEST(test_changed_map)
{
    CLEANUP_STORE struct store *s = three_points();

    change("vda/" POINT2 ".qcow2", 4 * MiB, 64 * KiB, 0);
    check_told(verify_quick(s), POINT2 " vda 4194304+1048576 was not there");
    check_told(verify_whole(s), POINT2 " vda 4194304+1048576 was not there");
    ck_assert(verified_damaged(s, POINT2, "vda"));
}
END_TEST

START_TEST(test_changed_base)
{
    CLEANUP_STORE struct store *s = three_points();

    /* Zeroes that are stored are zeroes. */
    change("vda/" POINT1 ".qcow2", 4 * MiB, 64 * KiB, 1);
    change("vda/" POINT1 ".qcow2", 4 * MiB, 64 * KiB, 0);
    ck_assert_int_eq(verify_whole(s), 0);
    change("vda/" POINT1 ".qcow2", 4 * MiB + 512, 1, 9);
    check_told(verify_whole(s), POINT1 " vda 4194304+1048576 was not there");
    change("vda/" POINT1 ".qcow2", 4 * MiB, 64 * KiB, 0);
    change("vda/" POINT1 ".qcow2", 6 * MiB, 512, 0); /* the short last one */
    check_told(verify_quick(s), POINT1 " vda 6291456+512 was there");
}
END_TEST

START_TEST(test_parts)
{
    CLEANUP_STORE struct store *s = three_points();
    struct verified v;
    int damaged = 0;

    change("vda/" POINT2 ".qcow2", 5 * MiB + 77, 1, 6);
    for (unsigned part = 1; part <= 5; part++) {
        struct verify_options o = {.part = part, .parts = 5};

        verified_read(s, POINT3, &v);
        ck_assert_int_eq(v.when, 0);
        damaged += verify(s, o) == -EUCLEAN;
    }
    ck_assert_int_eq(damaged, 1);
    verified_read(s, POINT3, &v);
    ck_assert_int_gt(v.when, 0);
    verified_read(s, POINT2, &v);
    ck_assert_uint_eq(v.damages, 1);
    ck_assert_int_eq(verify(s, (struct verify_options){.part = 6, .parts = 5}),
                     -EINVAL);
    ck_assert_int_eq(verify(s, (struct verify_options){.part = 0, .parts = 5}),
                     -EINVAL);
}
END_TEST

/* --- Files that are something else --- */

static void replace_image(const char *path, const char *backing,
                          const char *size, const char *more)
{
    char command[1000];

    (void)snprintf(command, sizeof(command),
                   "exec >/dev/null 2>&1; cd '%s' && rm -f '%s' && "
                   "qemu-img create -f qcow2 %s %s %s '%s' %s",
                   at("dir"), path, backing ? "-u -F qcow2 -b" : "",
                   backing ? backing : "", more, path, size);
    ck_assert_int_eq(system(command), 0); /* NOLINT(cert-env33-c) */
}

START_TEST(test_other_images)
{
    static const struct {
        const char *backing;
        const char *size;
        const char *more;
        const char *words;
    } cases[] = {
        {NULL, "6291968", "", "does not name its parent"},
        {"../../victim", "6291968", "", "does not name its parent"},
        {POINT1 ".qcow2", "6291456", "", "another size"},
        {POINT1 ".qcow2", "6291968", "-o cluster_size=4k", "other clusters"},
        {POINT1 ".qcow2", "6291968", "-o data_file=x.raw", "external data"},
    };
    CLEANUP_STORE struct store *s = three_points();

    if (system("qemu-img --version >/dev/null") != 0) { /* NOLINT */
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        replace_image("vda/" POINT2 ".qcow2", cases[i].backing, cases[i].size,
                      cases[i].more);
        check_told(verify_quick(s), cases[i].words);
        ck_assert_ptr_nonnull(strstr(told.first, POINT2 " vda 0+0"));
    }
}
END_TEST

START_TEST(test_no_images)
{
    CLEANUP_STORE struct store *s = three_points();
    const char *image = at("dir/vdb/" POINT3 ".qcow2");

    put(image, "QFI\xfb garbage", 12);
    check_told(verify_quick(s), POINT3 " vdb 0+0");
    ck_assert_int_eq(unlink(image), 0);
    check_told(verify_quick(s), "No such file");
    ck_assert_int_eq(symlink("/etc/hostname", image), 0);
    check_told(verify_quick(s), "symbolic link");
    ck_assert_int_eq(unlink(image), 0);
    ck_assert_int_eq(mkfifo(image, 0600), 0);
    check_told(verify_quick(s), "not a regular file");
}
END_TEST

static void flip(const char *path, long offset)
{
    FILE *f = fopen(path, "r+");
    int c;

    ck_assert_int_eq(fseek(f, offset, SEEK_SET), 0);
    ck_assert_int_ne(c = fgetc(f), EOF);
    ck_assert_int_eq(fseek(f, offset, SEEK_SET), 0);
    ck_assert_int_ne(fputc(c ^ 1, f), EOF);
    ck_assert_int_eq(fclose(f), 0);
}

START_TEST(test_flipped_bits)
{
    CLEANUP_STORE struct store *s = three_points();

    flip(at("dir/vda/" POINT3 ".sums"), 50);
    check_told(verify_quick(s), POINT3 " vda 0+0 the file of hashes");
    flip(at("dir/vda/" POINT3 ".sums"), 50);
    ck_assert_int_eq(verify_whole(s), 0);

    flip(at("dir/" POINT3 ".json"), 100);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    check_told(verify_quick(s), POINT3 " - 0+0");
    flip(at("dir/" POINT3 ".json"), 100);
    ck_assert_int_eq(store_reload(s, NULL), 0);

    /* The parent's loss is told of the child, too. */
    ck_assert_int_eq(unlink(at("dir/" POINT2 ".json")), 0);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    check_told(verify_quick(s), "its parent " POINT2 " is missing");
}
END_TEST

START_TEST(test_definition)
{
    CLEANUP_STORE struct store *s = create_store();
    struct manifest *m = begin_point(s, POINT1);

    make_disk(s, m, "vda", NULL, NULL, 0);
    ck_assert_int_eq(
        store_put_definition(s, POINT1, "<domain/>", m->xml_hash, NULL), 0);
    end_point(s, m);
    ck_assert_int_eq(verify_whole(s), 0);
    put(at("dir/" POINT1 ".xml"), "<domain>", 8);
    check_told(verify_quick(s), POINT1 " - 0+0 the machine's definition");
}
END_TEST

START_TEST(test_stopped_and_held)
{
    CLEANUP_STORE struct store *s = three_points();
    _Atomic bool stop = true;
    int held = -1;
    struct verified v;

    ck_assert_int_eq(verify(s, (struct verify_options){.stop = &stop}),
                     -ECANCELED);
    verified_read(s, POINT1, &v);
    ck_assert_int_eq(v.when, 0);
    ck_assert_int_eq(store_hold(s, POINT2, true, &held, NULL), 0);
    ck_assert_int_eq(verify_whole(s), -EBUSY);
    close(held);
    ck_assert_int_eq(verify_whole(s), 0);
}
END_TEST

/* A note of somebody else's says nothing. */
START_TEST(test_hostile_notes)
{
    static const char *const notes[] = {
        "",
        "{}",
        "{\"parts\": [], \"damage\": []}",
        "{\"parts\": [-1], \"damage\": []}",
        "{\"parts\": [\"x\"], \"damage\": []}",
        "{\"parts\": [5], \"damage\": [1]}",
        "{\"parts\": [5], \"damage\": [{\"part\": 1, \"disk\": \"vda\"}]}",
        "{\"parts\": [5], \"damage\": [{\"part\": 0, \"disk\": 7}]}",
    };
    CLEANUP_STORE struct store *s = three_points();
    struct verified v;

    for (size_t i = 0; i < ARRAY_SIZE(notes); i++) {
        put(at("dir/" POINT1 ".verified"), notes[i], strlen(notes[i]));
        verified_read(s, POINT1, &v);
        ck_assert_msg(v.when == 0 && v.damages == 0, "%s", notes[i]);
        ck_assert(!verified_damaged(s, POINT1, "vda"));
        ck_assert_int_eq(verify_whole(s), 0);
        verified_read(s, POINT1, &v);
        ck_assert_int_gt(v.when, 0);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("verify");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, base_setup, base_teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, test_right);
    tcase_add_test(tc, test_changed_data);
    tcase_add_test(tc, test_changed_map);
    tcase_add_test(tc, test_changed_base);
    tcase_add_test(tc, test_parts);
    tcase_add_test(tc, test_other_images);
    tcase_add_test(tc, test_no_images);
    tcase_add_test(tc, test_flipped_bits);
    tcase_add_test(tc, test_definition);
    tcase_add_test(tc, test_stopped_and_held);
    tcase_add_test(tc, test_hostile_notes);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
