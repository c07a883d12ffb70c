/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of snapshots that are checkpoints: there and back, and what is none. */
#include <check.h>
#include <stdlib.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/storage-snapshot.h"

static void check_both(const char *checkpoint, const char *snapshot)
{
    CLEANUP_FREE char *name = storage_checkpoint_name(checkpoint);
    CLEANUP_FREE char *back = storage_checkpoint_of(snapshot);

    ck_assert_str_eq(name, snapshot);
    ck_assert_ptr_nonnull(back);
    ck_assert_str_eq(back, checkpoint);
}

START_TEST(test_names)
{
    check_both("mon", "nbdelta.checkpoint.mon");
    check_both("nbdelta-20261129T023000Z.2",
               "nbdelta.checkpoint.nbdelta-20261129T023000Z.2");
    check_both("a/b@c d%", "nbdelta.checkpoint.a%2Fb%40c%20d%25");
    check_both("%2F", "nbdelta.checkpoint.%252F");
    check_both("\xc3\xa4\n\x7f", "nbdelta.checkpoint.\xc3\xa4%0A%7F");
}
END_TEST

/* Anybody can give a snapshot any name.  What nobody would find again by the
 * checkpoint's name, and what is no text, is not one of ours. */
START_TEST(test_no_names)
{
    static const char *const names[] = {
        "",
        "mon",
        "nbdelta.checkpoint",
        "nbdelta.checkpoint.",
        "nbdelta.backup.00000001-1-1-1.0",
        "Nbdelta.checkpoint.mon",
        "nbdelta.checkpoint.a b",
        "nbdelta.checkpoint.%",
        "nbdelta.checkpoint.%2",
        "nbdelta.checkpoint.%2G",
        "nbdelta.checkpoint.%2f",
        "nbdelta.checkpoint.%+5",
        "nbdelta.checkpoint.% 5",
        "nbdelta.checkpoint.%41",
        "nbdelta.checkpoint.a%00b",
        "nbdelta.checkpoint.%C3%A4",
        "nbdelta.checkpoint.\xff",
        "nbdelta.checkpoint.\xc3",
    };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        CLEANUP_FREE char *name = storage_checkpoint_of(names[i]);

        ck_assert_msg(!name, "'%s' is '%s'", names[i], name);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("storage-names");
    TCase *tc = tcase_create("names");

    tcase_add_test(tc, test_names);
    tcase_add_test(tc, test_no_names);
    suite_add_tcase(suite, tc);

    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
