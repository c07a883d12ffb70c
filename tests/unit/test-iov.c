/* SPDX-License-Identifier: BSD-3-Clause */
/* iovecs: sums, slices, copies, and the search for zeroes. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "util/iov.h"

/* "abcdefghij" in five parts, two of them empty. */
struct scattered {
    char a[3];
    char b[1];
    char c[6];
    struct iovec iov[5];
};

static void scatter(struct scattered *s)
{
    memcpy(s->a, "abc", 3);
    memcpy(s->b, "d", 1);
    memcpy(s->c, "efghij", 6);
    s->iov[0] = (struct iovec){s->a, 3};
    s->iov[1] = (struct iovec){NULL, 0};
    s->iov[2] = (struct iovec){s->b, 1};
    s->iov[3] = (struct iovec){s->c, 6};
    s->iov[4] = (struct iovec){NULL, 0};
}

#define PARTS 5
#define TOTAL 10

START_TEST(bytes_are_summed)
{
    struct scattered s;

    scatter(&s);
    ck_assert_uint_eq(iov_bytes(s.iov, PARTS), TOTAL);
    ck_assert_uint_eq(iov_bytes(s.iov, 0), 0);
}
END_TEST

START_TEST(every_slice_has_its_bytes)
{
    for (size_t from = 0; from <= TOTAL; from++) {
        for (size_t to = from; to <= TOTAL; to++) {
            struct scattered s;
            struct iovec dst[PARTS];
            char flat[TOTAL];

            scatter(&s);
            int n = iov_slice(dst, s.iov, PARTS, from, to - from);
            ck_assert_int_le(n, PARTS);
            ck_assert_uint_eq(iov_bytes(dst, n), to - from);
            iov_to_buf(dst, n, 0, flat, to - from);
            ck_assert_mem_eq(flat, &"abcdefghij"[from], to - from);
            for (int i = 0; i < n; i++) {
                ck_assert_uint_gt(dst[i].iov_len, 0);
            }
        }
    }
}
END_TEST

START_TEST(copies_touch_their_range_only)
{
    for (size_t from = 0; from <= TOTAL; from++) {
        for (size_t to = from; to <= TOTAL; to++) {
            struct scattered s;
            char want[] = "abcdefghij";
            char flat[TOTAL] = "..........";

            scatter(&s);
            iov_to_buf(s.iov, PARTS, from, flat, to - from);
            ck_assert_mem_eq(flat, want + from, to - from);
            for (size_t i = to - from; i < TOTAL; i++) {
                ck_assert_int_eq(flat[i], '.');
            }

            memcpy(want + from, "0123456789", to - from);
            iov_from_buf(s.iov, PARTS, from, "0123456789", to - from);
            iov_to_buf(s.iov, PARTS, 0, flat, TOTAL);
            ck_assert_mem_eq(flat, want, TOTAL);

            memset(want + from, '#', to - from);
            iov_fill(s.iov, PARTS, from, '#', to - from);
            iov_to_buf(s.iov, PARTS, 0, flat, TOTAL);
            ck_assert_mem_eq(flat, want, TOTAL);
        }
    }
}
END_TEST

START_TEST(zero_is_seen_at_every_length_and_place)
{
    unsigned char buf[200];

    for (size_t start = 0; start < 17; start++) {
        for (size_t len = 0; len < 150; len++) {
            memset(buf, 0xff, sizeof(buf));
            memset(buf + start, 0, len);
            ck_assert(bytes_are_zero(buf + start, len));
            for (size_t i = 0; i < len; i++) {
                buf[start + i] = 0x80;
                ck_assert(!bytes_are_zero(buf + start, len));
                buf[start + i] = 0;
            }
        }
    }
}
END_TEST

START_TEST(last_byte_of_a_large_buffer_counts)
{
    CLEANUP_FREE unsigned char *buf = buf_alloc(MiB);

    ck_assert_ptr_nonnull(buf);
    memset(buf, 0, MiB);
    ck_assert(bytes_are_zero(buf, MiB));
    buf[MiB - 1] = 1;
    ck_assert(!bytes_are_zero(buf, MiB));
    ck_assert(bytes_are_zero(buf, MiB - 1));
}
END_TEST

START_TEST(repeated_data_is_not_zero)
{
    char buf[256];

    memset(buf, 'r', sizeof(buf));
    ck_assert(!bytes_are_zero(buf, sizeof(buf)));
}
END_TEST

START_TEST(memory_is_aligned)
{
    CLEANUP_FREE char *a = buf_alloc(0);
    CLEANUP_FREE char *b = buf_alloc(513);

    ck_assert_ptr_nonnull(a);
    ck_assert_ptr_nonnull(b);
    ck_assert_uint_eq((uintptr_t)a % 4096, 0);
    ck_assert_uint_eq((uintptr_t)b % 4096, 0);
    memset(b, 1, 513);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("iov");
    TCase *tc = tcase_create("iov");
    tcase_add_test(tc, bytes_are_summed);
    tcase_add_test(tc, every_slice_has_its_bytes);
    tcase_add_test(tc, copies_touch_their_range_only);
    tcase_add_test(tc, zero_is_seen_at_every_length_and_place);
    tcase_add_test(tc, last_byte_of_a_large_buffer_counts);
    tcase_add_test(tc, repeated_data_is_not_zero);
    tcase_add_test(tc, memory_is_aligned);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
