/* SPDX-License-Identifier: BSD-3-Clause */
/* Hashes of what a file of a backup decides: what is gathered while it is
 * written, in any pieces, by many threads, is what the file itself says
 * afterwards; and the .sums file, which others may have written. */
#include <check.h>
#include <errno.h>

#include "nbdelta/thread.h"
#include "store-util.h"
#include "store/sums.h"

#define SIZE (9 * MiB + 3 * 64 * KiB + 512)

/* --- An image, and what is written to it --- */

static struct graph *g;
static struct node *node;
static struct blk *file;
static struct sums *sums;
static bool base_file;

static void make_image(uint64_t size, bool is_base, const char *clusters)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_pack("{s:I, s:s}", "size", (json_int_t)size,
                                       "cluster_size", clusters);

    if (!is_base) {
        ck_assert_int_eq(
            json_object_update_new(
                o, json_pack("{s:s, s:s, s:b}", "backing_file", POINT1 ".qcow2",
                             "backing_fmt", "qcow2", "backing_unchecked", 1)),
            0);
    }
    int r = image_create(at("a.qcow2"), "qcow2", o, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    CLEANUP_JSON json_t *open = json_pack("{s:s, s:n, s:s, s:{s:s, s:s}}",
                                          "driver", "qcow2", "backing",
                                          "discard", "unmap", "file", "driver",
                                          "file", "filename", at("a.qcow2"));
    g = graph_new();
    r = graph_open(g, open, &node, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    ck_assert_int_eq(
        blk_new(g, node, PERM_READ | PERM_WRITE, PERM_ALL, "test", &file, NULL),
        0);
    base_file = is_base;
    sums = sums_new(size, is_base);
    ck_assert_ptr_nonnull(sums);
}

static void drop_image(void)
{
    sums_free(sums);
    blk_free(file);
    graph_close_all(g);
    graph_free(g);
}

/* As a transfer does: told, then written. */
static void piece(uint64_t offset, uint64_t bytes, const void *buf)
{
    ck_assert_int_eq(sums_tap(sums, offset, bytes, buf), 0);
    ck_assert_int_eq(buf ? blk_pwrite(file, buf, bytes, offset, 0)
                         : blk_zero(file, offset, bytes, 0),
                     0);
}

static unsigned noise(unsigned *state)
{
    *state = *state * 1103515245 + 12345;
    return *state >> 8 & 0xffff;
}

static void fill(uint8_t *buf, uint64_t bytes, unsigned seed)
{
    for (uint64_t i = 0; i < bytes; i++) {
        buf[i] = (uint8_t)(1 + noise(&seed) % 255);
    }
}

/* Do the hashes say what the file says?  Returns how many there are. */
static uint64_t check_file(void)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_FREE void *buf = malloc(SUMS_UNIT);
    uint64_t count = 0;
    int r = sums_finish(sums, file, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    for (uint64_t u = 0; u < div_up(sums_size(sums), SUMS_UNIT); u++) {
        uint8_t hash[HASH_BYTES];
        bool any = false;
        const uint8_t *found = sums_find(sums, u);

        ck_assert_int_eq(
            sums_compute(file, u, base_file, buf, hash, &any, NULL), 0);
        ck_assert_msg(any == (found != NULL), "unit %ju", (uintmax_t)u);
        ck_assert_msg(!any || memcmp(found, hash, HASH_BYTES) == 0, "unit %ju",
                      (uintmax_t)u);
        count += any;
    }
    ck_assert_uint_eq(sums_count(sums), count);
    return count;
}

/* --- In any pieces, by many threads --- */

#define PIECES 4000

static struct {
    struct {
        uint64_t offset;
        uint64_t bytes;
        bool zero;
    } piece[PIECES];
    unsigned count;
    _Atomic unsigned next;
} work;

static void *do_pieces(void *opaque)
{
    CLEANUP_FREE uint8_t *buf = malloc(SUMS_UNIT);
    unsigned i;

    (void)opaque;
    while ((i = work.next++) < work.count) {
        fill(buf, work.piece[i].bytes, i);
        piece(work.piece[i].offset, work.piece[i].bytes,
              work.piece[i].zero ? NULL : buf);
    }
    return NULL;
}

/* A set of whole clusters, some left out, cut into pieces, and shuffled. */
static void make_pieces(unsigned seed, uint64_t longest, bool gaps)
{
    work.count = 0;
    work.next = 0;
    for (uint64_t at = 0; at < SIZE;) {
        uint64_t run = min_u64((1 + noise(&seed) % 20) * 64 * KiB, SIZE - at);

        if (gaps && noise(&seed) % 3 == 0) {
            at += run;
            continue;
        }
        for (uint64_t end = at + run; at < end;) {
            uint64_t n = min_u64((1 + noise(&seed) % (longest / 512)) * 512,
                                 end - at);

            ck_assert_uint_lt(work.count, PIECES);
            work.piece[work.count].offset = at;
            work.piece[work.count].bytes = n;
            work.piece[work.count++].zero = noise(&seed) % 4 == 0;
            at += n;
        }
    }
    for (unsigned i = work.count - 1; i > 0; i--) {
        unsigned k = noise(&seed) % (i + 1);
        typeof(work.piece[0]) other = work.piece[i];
        work.piece[i] = work.piece[k];
        work.piece[k] = other;
    }
}

static void do_all_pieces(unsigned seed, uint64_t longest, bool is_base)
{
    pthread_t threads[4];

    base_setup();
    make_image(SIZE, is_base, "64k");
    make_pieces(seed, longest, !is_base);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(thread_start(&threads[i], "tap", do_pieces, NULL), 0);
    }
    for (int i = 0; i < 4; i++) {
        thread_join(threads[i]);
    }
    ck_assert_uint_gt(check_file(), 0);
    drop_image();
    base_teardown();
}

START_TEST(test_pieces_of_many_threads)
{
    static const uint64_t longest[] = {8 * KiB, 64 * KiB, 600 * KiB, MiB};

    base_teardown();
    for (unsigned i = 0; i < ARRAY_SIZE(longest); i++) {
        do_all_pieces(10 + i, longest[i], false);
        do_all_pieces(20 + i, longest[i], true);
    }
    base_setup();
}
END_TEST

/* --- What does not fit --- */

START_TEST(test_chunk_that_comes_in_part)
{
    uint8_t buf[4096];

    fill(buf, sizeof(buf), 1);
    make_image(SIZE, false, "64k");
    piece(3 * MiB + 4096, sizeof(buf), buf); /* never the rest of it */
    piece(5 * MiB + 7, 100, buf);            /* no sectors */
    piece(6 * MiB, 64 * KiB, NULL);
    ck_assert_uint_eq(check_file(), 3);
    drop_image();
}
END_TEST

START_TEST(test_chunk_that_comes_twice)
{
    CLEANUP_FREE uint8_t *buf = malloc(MiB);

    make_image(SIZE, false, "64k");
    fill(buf, MiB, 1);
    piece(0, 64 * KiB, buf);
    fill(buf, MiB, 2);
    piece(0, 64 * KiB, buf);
    piece(MiB, MiB, buf); /* the unit is closed by now */
    fill(buf, MiB, 3);
    piece(MiB + 512, 512, buf);
    piece(2 * MiB, 512, buf);
    piece(2 * MiB, 64 * KiB, buf); /* whole, over a part */
    piece(3 * MiB, 1024, buf);
    piece(3 * MiB + 512, 512, buf + 7);
    piece(4 * MiB, 64 * KiB, NULL);
    piece(4 * MiB, 512, buf);

    /* Two writers: the last to be told was not the last to write. */
    CLEANUP_FREE uint8_t *other = malloc(64 * KiB);
    fill(other, 64 * KiB, 4);
    ck_assert_int_eq(sums_tap(sums, 5 * MiB, 64 * KiB, buf), 0);
    piece(5 * MiB, 64 * KiB, other);
    ck_assert_int_eq(blk_pwrite(file, buf, 64 * KiB, 5 * MiB, 0), 0);
    ck_assert_uint_eq(check_file(), 6);
    drop_image();
}
END_TEST

/* More open units, and more parts, than are kept. */
START_TEST(test_too_much_at_once)
{
    uint64_t units = 4096 + 300;
    uint8_t buf[512];

    make_image(units * MiB, false, "64k");
    for (uint64_t u = 0; u < units; u++) {
        piece(u * MiB, 64 * KiB, NULL);
    }
    fill(buf, 512, 1);
    piece(64 * KiB, 64 * KiB, NULL); /* unit 0 was closed */
    for (uint64_t u = 1000; u < 1300; u++) {
        piece(u * MiB + 64 * KiB, 512, buf);
    }
    ck_assert_uint_eq(check_file(), units);
    drop_image();
}
END_TEST

/* A full of which only data were told, as over a target that is zero. */
START_TEST(test_base_without_its_zeroes)
{
    CLEANUP_FREE uint8_t *buf = calloc(1, MiB);

    make_image(SIZE, true, "64k");
    piece(7 * MiB, MiB, buf); /* data that are zeroes */
    fill(buf, MiB, 1);
    piece(2 * MiB + 64 * KiB, 64 * KiB, buf);
    ck_assert_int_eq(sums_tap(sums, 4 * MiB, MiB, NULL), 0); /* not written */
    ck_assert_uint_eq(check_file(), 1);

    /* The same content, where nothing else is known of it, has the same. */
    uint8_t hash[HASH_BYTES];
    memmove(buf + 64 * KiB, buf, 64 * KiB);
    memset(buf, 0, 64 * KiB);
    memset(buf + 128 * KiB, 0, MiB - 128 * KiB);
    ck_assert_int_eq(sums_of_unit(buf, MiB, hash), 0);
    ck_assert_mem_eq(hash, sums_find(sums, 2), HASH_BYTES);
    ck_assert_int_eq(sums_of_chunks(buf, MiB, 2, hash), 0);
    ck_assert_mem_ne(hash, sums_find(sums, 2), HASH_BYTES);
    drop_image();
}
END_TEST

START_TEST(test_refused)
{
    uint8_t buf[512] = {1};

    make_image(SIZE, false, "64k");
    ck_assert_int_eq(sums_tap(sums, SIZE, 512, buf), -EINVAL);
    ck_assert_int_eq(sums_tap(sums, UINT64_MAX, 512, buf), -EINVAL);
    ck_assert_int_eq(sums_tap(sums, 0, SIZE + 1, NULL), -EINVAL);
    ck_assert_uint_eq(check_file(), 0);
    ck_assert_int_eq(sums_tap(sums, 0, 512, buf), -EINVAL); /* it is over */
    drop_image();
    ck_assert_int_eq(unlink(at("a.qcow2")), 0);
    make_image(SIZE, false, "4k");
    ck_assert_int_eq(sums_finish(sums, file, NULL), -EINVAL);
    drop_image();
}
END_TEST

/* What a bit of the image changes is seen. */
START_TEST(test_changed_byte)
{
    CLEANUP_FREE uint8_t *buf = malloc(MiB);
    uint8_t hash[HASH_BYTES];
    uint32_t only = 0;
    bool any = false;

    make_image(SIZE, false, "64k");
    fill(buf, MiB, 1);
    piece(0, MiB, buf);
    piece(MiB, 128 * KiB, NULL);
    ck_assert_uint_eq(check_file(), 2);
    buf[777] ^= 1;
    ck_assert_int_eq(blk_pwrite(file, buf + 777, 1, 777, 0), 0);
    ck_assert_int_eq(sums_compute(file, 0, false, buf, hash, &any, &only), 0);
    ck_assert_mem_ne(hash, sums_find(sums, 0), HASH_BYTES);
    ck_assert_uint_eq(only, 0xffff);

    /* One more cluster of zeroes is another unit, too. */
    ck_assert_int_eq(blk_zero(file, MiB + 128 * KiB, 64 * KiB, 0), 0);
    ck_assert_int_eq(sums_compute(file, 1, false, buf, hash, &any, &only), 0);
    ck_assert_mem_ne(hash, sums_find(sums, 1), HASH_BYTES);
    ck_assert_uint_eq(only, 7);
    drop_image();
}
END_TEST

/* --- The .sums file --- */

static char file_hash[HASH_TEXT_MAX];

/* Of five units of which one has a hole. */
static void write_example(void)
{
    CLEANUP_FREE uint8_t *buf = malloc(MiB);
    int fd = open(at("a.sums"), O_RDWR | O_CREAT | O_TRUNC, 0600);

    make_image(SIZE, false, "64k");
    fill(buf, MiB, 1);
    for (unsigned u = 0; u < 5; u++) {
        piece(u * 2 * MiB, u == 3 ? 64 * KiB : 500 * 1024, buf);
    }
    ck_assert_uint_eq(check_file(), 5);
    ck_assert_int_eq(sums_write(sums, fd, file_hash, NULL), 0);
    close(fd);
}

static int read_bytes(const void *bytes, size_t length, uint64_t size,
                      const char *hash, struct sums **sp)
{
    CLEANUP_ERROR struct error *err = NULL;

    put(at("b.sums"), bytes, length);
    int fd = open(at("b.sums"), O_RDONLY);
    int r = sums_read(fd, size, hash, sp, &err);
    close(fd);
    ck_assert(r == 0 || error_code(err) == -r);
    return r;
}

#define EXAMPLE_BYTES (15 + 16 + 5 * 40)

static void load_example(uint8_t *bytes)
{
    FILE *f = fopen(at("a.sums"), "r");

    ck_assert_uint_eq(fread(bytes, 1, EXAMPLE_BYTES + 1, f), EXAMPLE_BYTES);
    (void)fclose(f);
}

START_TEST(test_written_is_read)
{
    CLEANUP_SUMS struct sums *s = NULL;
    uint8_t bytes[EXAMPLE_BYTES + 1];

    write_example();
    load_example(bytes);
    char hash[HASH_TEXT_MAX];
    ck_assert_int_eq(hash_of(bytes, EXAMPLE_BYTES, hash, NULL), 0);
    ck_assert_str_eq(hash, file_hash);
    ck_assert_int_eq(read_bytes(bytes, EXAMPLE_BYTES, SIZE, file_hash, &s), 0);
    ck_assert_uint_eq(sums_count(s), 5);
    for (unsigned i = 0; i < 5; i++) {
        ck_assert_uint_eq(sums_unit(s, i), 2 * i);
        ck_assert_mem_eq(sums_hash(s, i), sums_find(sums, 2 * i), HASH_BYTES);
        ck_assert_ptr_null(sums_find(s, 2 * i + 1));
    }
    drop_image();
}
END_TEST

START_TEST(test_no_changed_bit_passes)
{
    uint8_t bytes[EXAMPLE_BYTES + 1];
    struct sums *s = NULL;

    write_example();
    load_example(bytes);
    for (int bit = 0; bit < 8 * EXAMPLE_BYTES; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        ck_assert_int_eq(read_bytes(bytes, EXAMPLE_BYTES, SIZE, file_hash, &s),
                         -EUCLEAN);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t n = 0; n < EXAMPLE_BYTES; n++) {
        ck_assert_int_eq(read_bytes(bytes, n, SIZE, file_hash, &s), -EUCLEAN);
    }
    drop_image();
}
END_TEST

START_TEST(test_hostile_files)
{
    uint8_t bytes[EXAMPLE_BYTES + 1] = {0};
    struct sums *s = NULL;

    write_example();
    load_example(bytes);
    ck_assert_int_eq(read_bytes(bytes, EXAMPLE_BYTES + 1, SIZE, NULL, &s),
                     -EUCLEAN); /* something behind it */
    ck_assert_int_eq(read_bytes(bytes, EXAMPLE_BYTES, SIZE + 512, NULL, &s),
                     -EUCLEAN);
    store_be64(bytes + 15, BLK_SIZE_MAX);
    store_be64(bytes + 23, BLK_SIZE_MAX / MiB); /* has not nearly as many */
    ck_assert_int_eq(read_bytes(bytes, EXAMPLE_BYTES, BLK_SIZE_MAX, NULL, &s),
                     -EUCLEAN);
    store_be64(bytes + 23, UINT64_MAX);
    ck_assert_int_eq(read_bytes(bytes, EXAMPLE_BYTES, BLK_SIZE_MAX, NULL, &s),
                     -EUCLEAN);

    load_example(bytes);
    store_be64(bytes + 31 + 40, 0); /* unit 0 twice */
    ck_assert_int_eq(read_bytes(bytes, EXAMPLE_BYTES, SIZE, NULL, &s),
                     -EUCLEAN);
    store_be64(bytes + 31 + 40, UINT64_MAX);
    ck_assert_int_eq(read_bytes(bytes, EXAMPLE_BYTES, SIZE, NULL, &s),
                     -EUCLEAN);
    ck_assert_ptr_null(s);
    drop_image();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("sums");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, base_setup, base_teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, test_pieces_of_many_threads);
    tcase_add_test(tc, test_chunk_that_comes_in_part);
    tcase_add_test(tc, test_chunk_that_comes_twice);
    tcase_add_test(tc, test_too_much_at_once);
    tcase_add_test(tc, test_base_without_its_zeroes);
    tcase_add_test(tc, test_refused);
    tcase_add_test(tc, test_changed_byte);
    tcase_add_test(tc, test_written_is_read);
    tcase_add_test(tc, test_no_changed_bit_passes);
    tcase_add_test(tc, test_hostile_files);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
