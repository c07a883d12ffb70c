/* SPDX-License-Identifier: BSD-3-Clause */
/* Pictures of disks: what cells show, and how large a picture gets. */
#include <check.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/picture.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/types.h"

static struct picture *p;

static void teardown(void)
{
    picture_free(p);
    p = NULL;
}

static char *drawn(const char *disk, const char *bitmap, bool svg)
{
    struct picture_text t = {.disk = disk, .bitmap = bitmap};
    char *text = NULL;
    size_t len;
    FILE *f = open_memstream(&text, &len);

    ck_assert_ptr_nonnull(f);
    if (svg) {
        picture_print_svg(p, &t, f);
    } else {
        picture_print(p, &t, false, f);
    }
    ck_assert_int_eq(fclose(f), 0);
    return text;
}

START_TEST(a_cell_shows_what_most_of_it_is)
{
    p = picture_new(8 * MiB, 8, 1);
    picture_add(p, 0, MiB + MiB / 2, PICTURE_DATA); /* half of the second */
    picture_add(p, MiB + MiB / 2, MiB, PICTURE_ZERO);
    picture_add(p, 2 * MiB + MiB / 2, MiB / 2 - 1, PICTURE_HOLE);
    picture_add(p, 3 * MiB - 1, MiB + 1, PICTURE_BACKING);
    picture_add(p, 4 * MiB, 4 * MiB, PICTURE_COMPRESSED);
    picture_dirty(p, 5 * MiB, MiB / 2);
    picture_dirty(p, 6 * MiB, 512);
    CLEANUP_FREE char *text = drawn("d", "b", false);
    ck_assert_ptr_nonnull(strstr(text, "0 B  ##0=%Dd%\n"));
    ck_assert_ptr_nonnull(strstr(text, "dirty                   513 KiB"));
    ck_assert_ptr_nonnull(strstr(text, "data                    1.5 MiB"));
    ck_assert_ptr_nonnull(strstr(text, "18.8 %"));
}
END_TEST

/* The last cell and the last row are shorter. */
START_TEST(any_size_has_a_picture)
{
    static const uint64_t sizes[] = {
        0, 1, 511, 513, 1000 * KiB + 1, 64 * TiB - 512, BLK_SIZE_MAX,
    };

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        p = picture_new(sizes[i], 7, 3);
        picture_add(p, 0, sizes[i], PICTURE_DATA);
        picture_dirty(p, 0, UINT64_MAX);
        picture_dirty(p, UINT64_MAX, 1);
        CLEANUP_FREE char *text = drawn("d", "b", false);
        unsigned cells = 0;
        for (const char *c = strstr(text, "\n\n"); *c; c++) {
            cells += *c == 'D';
        }
        ck_assert_uint_ge(cells, 1 + (sizes[i] > 2000 ? 16 : 0));
        ck_assert_uint_le(cells, 21 + 1); /* with the legend's */
        CLEANUP_FREE char *svg = drawn("d", "b", true);
        ck_assert_ptr_nonnull(strstr(svg, "</svg>\n"));
        teardown();
    }
}
END_TEST

/* Ten million ranges of 64 TiB, of which no two neighbours are alike. */
START_TEST(memory_depends_on_the_cells_alone)
{
    const uint64_t count = 10000000;
    const uint64_t each = 64 * TiB / count;

    p = picture_new(64 * TiB, PICTURE_COLUMNS_MAX, PICTURE_ROWS_MAX);
    size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    for (uint64_t i = 0; i < count; i++) {
        picture_add(p, i * each, each, (enum picture_kind)(i % PICTURE_KINDS));
        picture_dirty(p, i * each, i % 3 * 512);
    }
    ck_assert_uint_eq(mallinfo2().uordblks + mallinfo2().hblkhd, before);
    CLEANUP_FREE char *svg = drawn("disk", "b0", true);
    ck_assert_uint_lt(strlen(svg), 6 * MiB);
    ck_assert_ptr_nonnull(strstr(svg, "data: 12.8 TiB, 20.0 %"));
}
END_TEST

START_TEST(names_are_only_text)
{
    CLEANUP_FREE char *longest = calloc(1, 100001);

    p = picture_new(MiB, 16, 4);
    memset(longest, '<', 100000);
    CLEANUP_FREE char *a = drawn("</title><script>\"&'\033[2J\xff\xef\xbf\xbf",
                                 longest, true);
    ck_assert_ptr_null(strstr(a, "<script"));
    ck_assert_ptr_null(strchr(a, '\033'));
    ck_assert_ptr_null(strchr(a, '\xff'));
    ck_assert_ptr_null(strstr(a, "\xef\xbf\xbf"));
    ck_assert_ptr_nonnull(strstr(
        a, "&#60;/title&#62;&#60;script&#62;&#34;&#38;&#39;?[2J??: 1 MiB"));
    ck_assert_uint_lt(strlen(a), 8192);
    CLEANUP_FREE char *b = drawn("\033[2J\n", longest, false);
    ck_assert_ptr_null(strchr(b, '\033'));
    ck_assert_ptr_nonnull(strstr(b, "?[2J?: 1 MiB"));
    ck_assert_ptr_nonnull(strstr(b, "<<<...\n"));
}
END_TEST

START_TEST(columns_follow_the_width)
{
    ck_assert_uint_eq(picture_columns(80), 64);
    ck_assert_uint_eq(picture_columns(500), 480);
    ck_assert_uint_eq(picture_columns(20), 8);
    ck_assert_uint_ge(picture_columns(0), 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("picture");
    TCase *tc = tcase_create("picture");

    tcase_add_checked_fixture(tc, NULL, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_cell_shows_what_most_of_it_is);
    tcase_add_test(tc, any_size_has_a_picture);
    tcase_add_test(tc, memory_depends_on_the_cells_alone);
    tcase_add_test(tc, names_are_only_text);
    tcase_add_test(tc, columns_follow_the_width);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
