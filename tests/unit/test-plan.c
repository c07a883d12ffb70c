/* SPDX-License-Identifier: BSD-3-Clause */
/* What the next point has of each disk: the reason for each full. */
#include <check.h>
#include <errno.h>

#include "point-util.h"
#include "store/plan.h"

static struct plan_disk plan_one(struct store *s, const char *name,
                                 uint64_t size, const char *no_map, bool full)
{
    struct plan_disk d = {.name = name, .size = size, .no_map = no_map};
    CLEANUP_ERROR struct error *err = NULL;
    char point[POINT_NAME_MAX];
    int r = plan_make(s, &d, 1, full, point, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    ck_assert_int_eq(d.kind == DISK_INCREMENT, d.reason == REASON_NONE);
    ck_assert_int_eq(d.kind != DISK_FULL, d.parent != NULL);
    ck_assert_str_eq(point, d.parent ? store_latest(s)->name : "");
    return d;
}

static enum disk_reason reason_of(struct store *s, const char *name)
{
    return plan_one(s, name, DISK_SIZE, NULL, false).reason;
}

START_TEST(test_first_point)
{
    CLEANUP_STORE struct store *s = create_store();
    struct plan_disk d = plan_one(s, "vda", DISK_SIZE, "no-checkpoint", false);

    ck_assert_int_eq(d.reason, REASON_NEW_DISK);
    ck_assert(!plan_fell_back(&d));
}
END_TEST

START_TEST(test_increment_and_reasons)
{
    CLEANUP_STORE struct store *s = three_points();
    struct plan_disk d = plan_one(s, "vda", DISK_SIZE, NULL, false);

    ck_assert_int_eq(d.reason, REASON_NONE);
    ck_assert_ptr_eq(d.parent, manifest_find(store_latest(s)->manifest, "vda"));
    ck_assert(!plan_fell_back(&d));

    d = plan_one(s, "vda", DISK_SIZE, NULL, true);
    ck_assert_int_eq(d.reason, REASON_ASKED);
    ck_assert(!plan_fell_back(&d));
    d = plan_one(s, "vda", DISK_SIZE, "bitmap-inconsistent", false);
    ck_assert_int_eq(d.reason, REASON_BITMAP_INCONSISTENT);
    ck_assert_int_eq(d.kind, DISK_COMPARED);
    ck_assert(!plan_fell_back(&d));
    d = plan_one(s, "vda", DISK_SIZE, "no-bitmaps", true);
    ck_assert_int_eq(d.reason, REASON_ASKED);
    d = plan_one(s, "vda", DISK_SIZE + 512, "no-bitmaps", false);
    ck_assert_int_eq(d.reason, REASON_RESIZED);
    ck_assert_int_eq(d.kind, DISK_FULL);
    ck_assert(plan_fell_back(&d));
    d = plan_one(s, "vdc", DISK_SIZE, "no-checkpoint", false);
    ck_assert_int_eq(d.reason, REASON_NEW_DISK);
    ck_assert(!plan_fell_back(&d));
}
END_TEST

/* The latest point does not have it, an earlier one has. */
START_TEST(test_disk_that_comes_back)
{
    CLEANUP_STORE struct store *s = three_points();
    struct manifest *m = begin_point(s, "20261130T023000Z");

    make_disk(s, m, "vda", POINT3, NULL, 0);
    end_point(s, m);
    ck_assert_int_eq(reason_of(s, "vda"), REASON_NONE);
    ck_assert_int_eq(reason_of(s, "vdb"), REASON_NO_CHECKPOINT);
}
END_TEST

/* Anywhere in the chain, and of no other disk. */
START_TEST(test_parents_that_are_gone)
{
    CLEANUP_STORE struct store *s = three_points();

    ck_assert_int_eq(unlink(at("dir/vda/" POINT1 ".sums")), 0);
    ck_assert_int_eq(reason_of(s, "vda"), REASON_PARENT_MISSING);
    ck_assert_int_eq(reason_of(s, "vdb"), REASON_NONE);
    ck_assert_int_eq(unlink(at("dir/vdb/" POINT3 ".qcow2")), 0);
    ck_assert_int_eq(reason_of(s, "vdb"), REASON_PARENT_MISSING);
}
END_TEST

START_TEST(test_manifests_that_are_gone)
{
    CLEANUP_STORE struct store *s = three_points();

    ck_assert_int_eq(unlink(at("dir/" POINT2 ".json")), 0);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    ck_assert_int_eq(reason_of(s, "vda"), REASON_PARENT_MISSING);
    ck_assert_int_eq(reason_of(s, "vdb"), REASON_NONE);
    put(at("dir/" POINT2 ".json"), "{", 1);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    ck_assert_int_eq(reason_of(s, "vda"), REASON_PARENT_DAMAGED);
    put(at("dir/" POINT3 ".json"), "{", 1);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    ck_assert_int_eq(reason_of(s, "vdb"), REASON_PARENT_DAMAGED);
}
END_TEST

START_TEST(test_parents_found_damaged)
{
    static const char note[] = "{\"parts\": [5], \"damage\": [{\"part\": 0, "
                               "\"disk\": \"vda\"}]}";
    CLEANUP_STORE struct store *s = three_points();

    put(at("dir/" POINT1 ".verified"), note, strlen(note));
    ck_assert_int_eq(reason_of(s, "vda"), REASON_PARENT_DAMAGED);
    ck_assert_int_eq(reason_of(s, "vdb"), REASON_NONE);
}
END_TEST

START_TEST(test_refused)
{
    CLEANUP_STORE struct store *s = create_store();
    char point[POINT_NAME_MAX];
    struct plan_disk same[] = {{.name = "vda"}, {.name = "vda"}};
    struct plan_disk bad = {.name = "../vda"};
    struct plan_disk word = {.name = "vda", .no_map = "because"};

    ck_assert_int_eq(plan_make(s, same, 2, false, point, NULL), -EINVAL);
    ck_assert_int_eq(plan_make(s, &bad, 1, false, point, NULL), -EINVAL);
    ck_assert_int_eq(plan_make(s, &word, 1, false, point, NULL), -EUCLEAN);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("plan");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, base_setup, base_teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, test_first_point);
    tcase_add_test(tc, test_increment_and_reasons);
    tcase_add_test(tc, test_disk_that_comes_back);
    tcase_add_test(tc, test_parents_that_are_gone);
    tcase_add_test(tc, test_manifests_that_are_gone);
    tcase_add_test(tc, test_parents_found_damaged);
    tcase_add_test(tc, test_refused);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
