/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Encrypted images and buffers in pieces: sectors that lie in several elements,
 * and writes that are longer than what is encrypted at once.
 */
#define DISK_MAX (16 * MiB)

#include "power-cut.h"

#include "nbdelta/blk.h"
#include "nbdelta/graph.h"

#define GUEST  (4 * MiB)
#define PIECES 16

static unsigned char wanted[GUEST];
static unsigned char found[GUEST];

/* @bytes of @buf in pieces of any length, an empty one among them. */
static int scatter(struct iovec *iov, unsigned char *buf, uint64_t bytes)
{
    uint64_t at = 0;
    int cnt = 0;

    while (at < bytes && cnt < PIECES - 1) {
        uint64_t rest = bytes - at;
        uint64_t len = cnt == 2   ? 0
                       : cnt == 4 ? min_u64(rest, 512 * (rnd(600) + 1))
                                  : min_u64(rest, rnd(rnd(2) ? 2000 : 200000));

        iov[cnt++] = (struct iovec){buf + at, len};
        at += len;
    }
    iov[cnt++] = (struct iovec){buf + at, bytes - at};
    return cnt;
}

static void write_and_read(struct blk *b)
{
    struct iovec iov[PIECES];
    uint64_t unit = rnd(2) ? 1 : 512; /* else the core makes one piece of it */
    uint64_t offset = unit * rnd(GUEST / unit);
    uint64_t bytes = rnd(rnd(3) ? GUEST - offset
                                : min_u64(GUEST - offset, 5000));

    bytes = align_down(bytes, unit) + unit;
    for (uint64_t i = 0; i < bytes; i++) {
        wanted[offset + i] = (unsigned char)rnd(256);
    }
    int cnt = scatter(iov, wanted + offset, bytes);
    ck_assert_int_eq(blk_pwritev(b, iov, cnt, offset, 0), 0);

    cnt = scatter(iov, found, GUEST);
    ck_assert_int_eq(blk_preadv(b, iov, cnt, 0, 0), 0);
    ck_assert_mem_eq(found, wanted, GUEST);
    memset(found, 0, GUEST);
    ck_assert_int_eq(blk_pread(b, found, bytes, offset, 0), 0);
    ck_assert_mem_eq(found, wanted + offset, bytes);
}

START_TEST(bytes_in_pieces_are_coded_as_one)
{
    struct graph *g = graph_new();
    struct blk *b;

    seed = 7001 + (unsigned)_i;
    rec.encrypted = true;
    (void)load_new_image("{\"size\": 4194304, \"encrypt\": {\"format\": "
                         "\"luks\", \"key-secret\": \"s\", "
                         "\"iter-time\": 1}}");
    add_secret(g);
    struct node *n = open_recorded(g, DISK_MAX);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "test", &b, NULL), 0);
    memset(wanted, 0, GUEST);
    for (unsigned i = 0; i < 8; i++) {
        write_and_read(b);
    }
    blk_free(b);
    graph_free(g);
    forget_records();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qcow2-luks");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, bytes_in_pieces_are_coded_as_one, 0, 6);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
