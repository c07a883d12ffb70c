/* SPDX-License-Identifier: BSD-3-Clause */
/* Keys from passphrases, sectors, and LUKS headers, against published vectors
 * and against themselves. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "crypto/luks.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

static void unhex(const char *hex, unsigned char *to)
{
    for (; *hex; hex += 2) {
        char two[3] = {hex[0], hex[1], '\0'};
        *to++ = (unsigned char)strtoul(two, NULL, 16);
    }
}

static void expect_key(const char *hash, const char *password, const char *salt,
                       uint32_t iterations, const char *hex)
{
    unsigned char want[64];
    unsigned char key[64];
    size_t len = strlen(hex) / 2;

    unhex(hex, want);
    ck_assert_int_eq(kdf_pbkdf2(kdf_hash_find(hash), password, strlen(password),
                                (const unsigned char *)salt, strlen(salt),
                                iterations, key, len, NULL),
                     0);
    ck_assert_mem_eq(key, want, len);
}

START_TEST(pbkdf2_makes_the_published_keys)
{
    expect_key("sha1", "password", "salt", 1,
               "0c60c80f961f0e71f3a9b524af6012062fe037a6");
    expect_key("sha1", "password", "salt", 4096,
               "4b007901b765489abead49d926f721d065a429c1");
    expect_key("sha1", "passwordPASSWORDpassword",
               "saltSALTsaltSALTsaltSALTsaltSALTsalt", 4096,
               "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038");
    expect_key(
        "sha256", "passwd", "salt", 1,
        "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
        "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783");
}
END_TEST

static bool say_stop(void *opaque)
{
    (void)opaque;
    return true;
}

START_TEST(pbkdf2_ends_when_it_takes_too_long_or_is_stopped)
{
    const struct kdf_hash *h = kdf_hash_find("sha256");
    const unsigned char salt[32] = {0};
    unsigned char key[32];
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    const struct kdf_patience soon = {
        .until_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec +
                    10000000};
    const struct kdf_patience stopped = {.stop = say_stop};

    ck_assert_int_eq(kdf_pbkdf2(h, "a", 1, salt, sizeof(salt), UINT32_MAX, key,
                                sizeof(key), &soon),
                     -ETIMEDOUT);
    ck_assert_int_eq(kdf_pbkdf2(h, "a", 1, salt, sizeof(salt), UINT32_MAX, key,
                                sizeof(key), &stopped),
                     -ECANCELED);
}
END_TEST

START_TEST(what_was_split_is_merged)
{
    static unsigned char split[64 * 4000];
    unsigned char key[64];
    unsigned char back[64];

    for (size_t bytes = 16; bytes <= 64; bytes += 8) {
        const struct kdf_hash *h = kdf_hash_find(bytes % 16 ? "sha1"
                                                            : "sha512");
        ck_assert_int_eq(kdf_random(key, bytes), 0);
        ck_assert_int_eq(kdf_split(h, key, bytes, 4000, split), 0);
        ck_assert_int_eq(kdf_merge(h, split, bytes, 4000, back), 0);
        ck_assert_mem_eq(key, back, bytes);
        split[1] ^= 1; /* any bit counts */
        ck_assert_int_eq(kdf_merge(h, split, bytes, 4000, back), 0);
        ck_assert_mem_ne(key, back, bytes);
    }
}
END_TEST

/* IEEE 1619, vector 4, and a part of 10: data units of 512 bytes that count
 * from 0. */
START_TEST(xts_makes_the_published_sectors)
{
    static const struct {
        const char *key;
        uint64_t sector;
        const char *first;
    } vectors[] = {
        {"2718281828459045235360287471352631415926535897932384626433832795", 0,
         "27a7479befa1d476489f308cd4cfa6e2"},
        {"2718281828459045235360287471352662497757247093699959574966967627"
         "3141592653589793238462643383279502884197169399375105820974944592",
         0xff, "1c3b3a102f770386e4836c99e370cf9b"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(vectors); i++) {
        struct sector_spec spec = {
            .mode = SECTOR_XTS,
            .iv = SECTOR_PLAIN64,
            .key_bytes = (unsigned)strlen(vectors[i].key) / 2,
        };
        unsigned char key[SECTOR_KEY_MAX];
        unsigned char plain[512];
        unsigned char coded[512];
        unsigned char want[16];
        struct sector_cipher *c;

        unhex(vectors[i].key, key);
        unhex(vectors[i].first, want);
        for (size_t b = 0; b < sizeof(plain); b++) {
            plain[b] = (unsigned char)b;
        }
        ck_assert_int_eq(sector_cipher_new(&spec, key, &c, NULL), 0);
        ck_assert_int_eq(
            sector_encrypt(c, vectors[i].sector, plain, coded, sizeof(coded)),
            0);
        ck_assert_mem_eq(coded, want, sizeof(want));
        ck_assert_int_eq(
            sector_decrypt(c, vectors[i].sector, coded, sizeof(coded)), 0);
        ck_assert_mem_eq(coded, plain, sizeof(plain));
        sector_cipher_free(c);
    }
}
END_TEST

static void round_trip(const struct sector_spec *spec)
{
    unsigned char key[SECTOR_KEY_MAX];
    unsigned char plain[2048];
    unsigned char coded[2048];
    unsigned char single[512];
    struct sector_cipher *c;

    ck_assert_int_eq(kdf_random(key, sizeof(key)), 0);
    ck_assert_int_eq(kdf_random(plain, sizeof(plain)), 0);
    ck_assert_int_eq(sector_cipher_new(spec, key, &c, NULL), 0);
    ck_assert_int_eq(sector_encrypt(c, 7, plain, coded, sizeof(coded)), 0);
    ck_assert_mem_ne(coded, plain, sizeof(plain));
    /* Each sector on its own, whatever is beside it. */
    ck_assert_int_eq(sector_encrypt(c, 9, plain + 1024, single, 512), 0);
    ck_assert_mem_eq(single, coded + 1024, 512);
    ck_assert_int_eq(sector_encrypt(c, 8, plain + 1024, single, 512), 0);
    ck_assert_mem_ne(single, coded + 1024, 512);
    ck_assert_int_eq(sector_decrypt(c, 7, coded, sizeof(coded)), 0);
    ck_assert_mem_eq(coded, plain, sizeof(plain));
    sector_cipher_free(c);
}

START_TEST(each_cipher_decrypts_what_it_has_encrypted)
{
    for (unsigned mode = SECTOR_XTS; mode <= SECTOR_CBC; mode++) {
        for (unsigned iv = SECTOR_PLAIN; iv <= SECTOR_ESSIV; iv++) {
            for (unsigned bytes = 16; bytes <= 32; bytes += 8) {
                round_trip(&(struct sector_spec){
                    mode, iv, bytes * (mode == SECTOR_XTS ? 2 : 1)});
            }
        }
    }
}
END_TEST

/* --- Headers --- */

static unsigned char *area;
static uint64_t area_bytes;
static unsigned char master[SECTOR_KEY_MAX];

static void make_header(const struct luks_wish *w)
{
    struct luks_header h;

    free(area);
    ck_assert_int_eq(luks_plan(w, &h, NULL), 0);
    area_bytes = luks_bytes(&h);
    area = calloc(1, area_bytes);
    ck_assert_ptr_nonnull(area);
    ck_assert_int_eq(luks_make(&h, w, "sesame", 6, area, master, NULL), 0);
}

static int unlock(const char *passphrase, unsigned char *key)
{
    const unsigned char *material[LUKS_SLOTS];
    struct luks_header h;

    ck_assert_int_eq(luks_parse(area, area_bytes, &h, NULL), 0);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        material[i] = area + (size_t)h.slots[i].sector * SECTOR_BYTES;
    }
    return luks_unlock(&h, material, passphrase, strlen(passphrase), NULL, key,
                       NULL);
}

START_TEST(a_header_that_was_made_is_unlocked_by_its_passphrase)
{
    static const struct luks_wish wishes[] = {
        {.has_iter = true, .iter_ms = 1},
        {.cipher = "aes-192", .has_iter = true, .iter_ms = 1},
        {.cipher = "aes-128",
         .mode = "cbc",
         .iv = "essiv",
         .hash = "sha1",
         .has_iter = true,
         .iter_ms = 1},
    };
    unsigned char key[SECTOR_KEY_MAX];

    for (size_t i = 0; i < ARRAY_SIZE(wishes); i++) {
        struct luks_header h;

        make_header(&wishes[i]);
        ck_assert_int_eq(luks_parse(area, area_bytes, &h, NULL), 0);
        ck_assert_int_eq(unlock("sesame", key), 0);
        ck_assert_mem_eq(key, master, h.spec.key_bytes);
        ck_assert_int_eq(unlock("Sesame", key), -EPERM);
        ck_assert_int_eq(unlock("", key), -EPERM);
    }
}
END_TEST

/* A header with other bytes @at is refused. */
static void expect_refused(size_t at, const char *hex, int code,
                           const char *words)
{
    CLEANUP_ERROR struct error *err = NULL;
    unsigned char head[LUKS_HEADER_BYTES];
    struct luks_header h;

    memcpy(head, area, sizeof(head));
    unhex(hex, head + at);
    ck_assert_int_eq(luks_parse(head, area_bytes, &h, &err), code);
    ck_assert_msg(strstr(error_message(err), words), "said '%s'",
                  error_message(err));
}

START_TEST(bad_headers_are_refused_by_what_is_wrong)
{
    make_header(&(struct luks_wish){.has_iter = true, .iter_ms = 1});
    expect_refused(0, "00", -EINVAL, "no LUKS header");
    expect_refused(6, "0002", -ENOTSUP, "version 2");
    expect_refused(8, "62", -ENOTSUP, "cipher 'bes'");
    expect_refused(40, "79", -ENOTSUP, "mode 'yts-plain64'");
    expect_refused(44, "71", -ENOTSUP, "'xts-qlain64' makes vectors");
    expect_refused(72, "6d6435", -ENOTSUP, "hash 'md5256'");
    expect_refused(104, "00000001", -EINVAL, "slot 0 lies where");
    expect_refused(108, "ffffffff", -ENOTSUP, "key of 4294967295 bytes");
    expect_refused(108, "00000000", -ENOTSUP, "key of 0 bytes");
    expect_refused(164, "00000000", -EINVAL, "no iterations");
    expect_refused(208, "00000000", -EINVAL, "neither active");
    expect_refused(212, "00000000", -EINVAL, "0 iterations");
    expect_refused(248, "00000000", -EINVAL, "slot 0 lies where");
    expect_refused(248, "ffffffff", -EINVAL, "slot 0 lies where");
    expect_refused(252, "ffffffff", -EINVAL, "4294967295 stripes");
    memcpy(area + 256, area + 208, 48);
    expect_refused(6, "0001", -EINVAL, "slots 0 and 1 overlap");
}
END_TEST

static void expect_no_plan(const struct luks_wish *w, const char *words)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct luks_header h;

    ck_assert_int_lt(luks_plan(w, &h, &err), 0);
    ck_assert_msg(strstr(error_message(err), words), "said '%s'",
                  error_message(err));
}

START_TEST(wishes_that_cannot_be_fulfilled_are_refused)
{
    expect_no_plan(&(struct luks_wish){.cipher = "serpent-256"}, "serpent-256");
    expect_no_plan(&(struct luks_wish){.mode = "ecb"}, "ecb-plain64");
    expect_no_plan(&(struct luks_wish){.iv = "benbi"}, "xts-benbi");
    expect_no_plan(&(struct luks_wish){.iv = "essiv", .iv_hash = "sha1"},
                   "sha256");
    expect_no_plan(&(struct luks_wish){.iv_hash = "sha1"}, "essiv");
    expect_no_plan(&(struct luks_wish){.hash = "md5"}, "md5");
    expect_no_plan(&(struct luks_wish){.cipher = "aes-192", .mode = "cbc"},
                   "aes-192");
    expect_no_plan(&(struct luks_wish){.has_iter = true}, "iter-time");
    expect_no_plan(&(struct luks_wish){.has_iter = true, .iter_ms = 30001},
                   "iter-time");
}
END_TEST

static void forget_area(void)
{
    free(area);
    area = NULL;
}

int main(void)
{
    Suite *s = suite_create("crypto");
    TCase *tc = tcase_create("all");
    SRunner *sr = srunner_create(s);

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, NULL, forget_area);
    tcase_add_test(tc, pbkdf2_makes_the_published_keys);
    tcase_add_test(tc, pbkdf2_ends_when_it_takes_too_long_or_is_stopped);
    tcase_add_test(tc, what_was_split_is_merged);
    tcase_add_test(tc, xts_makes_the_published_sectors);
    tcase_add_test(tc, each_cipher_decrypts_what_it_has_encrypted);
    tcase_add_test(tc, a_header_that_was_made_is_unlocked_by_its_passphrase);
    tcase_add_test(tc, bad_headers_are_refused_by_what_is_wrong);
    tcase_add_test(tc, wishes_that_cannot_be_fulfilled_are_refused);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
