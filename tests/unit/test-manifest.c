/* SPDX-License-Identifier: BSD-3-Clause */
/* Manifests of backup points: what is written is read, no changed bit passes,
 * and neither does one that somebody has made by hand, with a right hash, to
 * lead us elsewhere. */
#include <check.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/manifest.h"

#define HASH "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static struct manifest *example(void)
{
    struct manifest *m = manifest_new();

    strcpy(m->name, "20261129T023000Z");
    strcpy(m->id, "0123456789abcdef");
    m->time = 1795919400;
    m->source = strdup("libvirt:gr\xc3\xbcn \"x\"");
    m->program = strdup("nbdelta 0.1.0");
    strcpy(m->xml_hash, HASH);

    struct manifest_disk *d = manifest_add(m, "vda");
    d->size = 10 * GiB;
    d->kind = DISK_INCREMENT;
    strcpy(d->parent, "20261128T023000Z");
    strcpy(d->parent_hash, HASH);
    d->checkpoint = strdup("nbdelta-0123456789abcdef-20261129T023000Z");
    d->image = strdup("/srv/gr\xc3\xbcn.qcow2");
    d->read = 3 * MiB;
    d->written = 2 * MiB;
    d->zero = MiB;
    d->milliseconds = 1234;
    strcpy(d->sums_hash, HASH);

    d = manifest_add(m, "vdb");
    d->size = 512;
    d->reason = REASON_RESIZED;
    strcpy(d->sums_hash, HASH);
    return m;
}

static char *text_of(const struct manifest *m)
{
    char *text = NULL;

    ck_assert_int_eq(manifest_text(m, &text, NULL), 0);
    return text;
}

START_TEST(test_written_is_read)
{
    CLEANUP_MANIFEST struct manifest *m = example();
    CLEANUP_FREE char *text = text_of(m);
    CLEANUP_MANIFEST struct manifest *n = NULL;

    ck_assert_int_eq(manifest_parse(text, strlen(text), &n, NULL), 0);
    CLEANUP_FREE char *again = text_of(n);
    ck_assert_str_eq(text, again);

    ck_assert_str_eq(n->name, m->name);
    ck_assert_str_eq(n->source, m->source);
    ck_assert_ptr_null(n->source_version);
    ck_assert_uint_eq(n->count, 2);
    ck_assert_ptr_null(manifest_find(n, "vdc"));
    const struct manifest_disk *d = manifest_find(n, "vda");
    ck_assert_uint_eq(d->size, 10 * GiB);
    ck_assert_int_eq(d->kind, DISK_INCREMENT);
    ck_assert_int_eq(d->reason, REASON_NONE);
    ck_assert_str_eq(d->parent, "20261128T023000Z");
    ck_assert_str_eq(d->checkpoint,
                     "nbdelta-0123456789abcdef-20261129T023000Z");
    d = manifest_find(n, "vdb");
    ck_assert_int_eq(d->kind, DISK_FULL);
    ck_assert_int_eq(d->reason, REASON_RESIZED);
    ck_assert_str_eq(d->parent, "");
    ck_assert_ptr_null(d->checkpoint);
}
END_TEST

START_TEST(test_no_changed_bit_passes)
{
    CLEANUP_MANIFEST struct manifest *m = example();
    CLEANUP_FREE char *text = text_of(m);
    size_t length = strlen(text);

    for (size_t bit = 0; bit < 8 * length; bit++) {
        struct manifest *n = NULL;
        CLEANUP_ERROR struct error *err = NULL;

        text[bit / 8] ^= (char)(1 << bit % 8);
        int r = manifest_parse(text, length, &n, &err);
        ck_assert_msg(r == -EINVAL || r == -EUCLEAN, "bit %zu: %d", bit, r);
        ck_assert_int_eq(error_code(err), -r);
        text[bit / 8] ^= (char)(1 << bit % 8);
    }
    for (size_t shorter = 0; shorter < length; shorter++) {
        struct manifest *n = NULL;

        ck_assert_int_lt(manifest_parse(text, shorter, &n, NULL), 0);
    }
}
END_TEST

/* --- By hand, with a hash that is right --- */

static char *sign(json_t *j)
{
    char hash[HASH_TEXT_MAX];
    char *text = NULL;

    (void)json_object_del(j, "sha256");
    CLEANUP_FREE char *plain = json_dumps(j, JSON_INDENT(2));
    ck_assert_int_eq(hash_of(plain, strlen(plain), hash, NULL), 0);
    ck_assert_int_eq(json_object_set_new(j, "sha256", json_string(hash)), 0);
    CLEANUP_FREE char *all = json_dumps(j, JSON_INDENT(2));
    ck_assert_int_gt(asprintf(&text, "%s\n", all), 0);
    return text;
}

static json_t *example_json(void)
{
    CLEANUP_MANIFEST struct manifest *m = example();
    CLEANUP_FREE char *text = text_of(m);

    return json_loads(text, 0, NULL);
}

/* With the member @key, of the first disk or of the point, being @value
 * (JSON; NULL: removed). */
static int parse_with(const char *key, bool of_disk, const char *value)
{
    CLEANUP_JSON json_t *j = example_json();
    json_t *at = of_disk ? json_array_get(json_object_get(j, "disks"), 0) : j;
    CLEANUP_ERROR struct error *err = NULL;
    struct manifest *n = NULL;

    if (value) {
        json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
        ck_assert_msg(v != NULL, "%s", value);
        ck_assert_int_eq(json_object_set_new(at, key, v), 0);
    } else {
        ck_assert_int_eq(json_object_del(at, key), 0);
    }
    CLEANUP_FREE char *text = sign(j);
    int r = manifest_parse(text, strlen(text), &n, &err);
    ck_assert(r == 0 || error_code(err) == -r);
    manifest_free(n);
    return r;
}

struct edit {
    const char *key;
    const char *value;
};

START_TEST(test_what_is_signed_is_read)
{
    ck_assert_int_eq(parse_with("name", false, "\"20261129T023001Z\""), 0);
    ck_assert_int_eq(parse_with("size", true, "65536"), 0);
    ck_assert_int_eq(parse_with("checkpoint", true, "null"), 0);
    ck_assert_int_eq(parse_with("image", true, "null"), 0);
    ck_assert_int_eq(parse_with("kind", true, "\"compared\""), 0);
}
END_TEST

START_TEST(test_hostile_points)
{
    static const struct edit edits[] = {
        {"nbdelta-point", "2"},
        {"nbdelta-point", "0"},
        {"nbdelta-point", "\"1\""},
        {"nbdelta-point", NULL},
        {"name", "\"../../etc/passwd\""},
        {"name", "\"20261129T023000\""},
        {"name", "\"20261329T023000Z\""},
        {"name", "17"},
        {"name", NULL},
        {"name", "\"20261127T023000Z\""}, /* before its parent */
        {"directory", "\"\""},
        {"directory", "\"../..\""},
        {"directory", "\"0123456789abcdef0123456789abcdef0\""},
        {"time", "-1"},
        {"time", "1.5"},
        {"source", "[]"},
        {"definition", "\"0011\""},
        {"disks", "[]"},
        {"disks", "{}"},
        {"disks", "[1]"},
        {"disks", NULL},
        {"more", "1"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(edits); i++) {
        ck_assert_msg(parse_with(edits[i].key, false, edits[i].value) ==
                          -EINVAL,
                      "%s: %s", edits[i].key, edits[i].value);
    }
}
END_TEST

START_TEST(test_hostile_disks)
{
    static const struct edit edits[] = {
        {"name", "\"..\""},
        {"name", "\"../vda\""},
        {"name", "\"/etc\""},
        {"name", "\"a:b\""},
        {"name", "\"a\\u001b[2J\""},
        {"name", "\"\""},
        {"name", "\"vdb\""}, /* the other one */
        {"name", "null"},
        {"size", "-1"},
        {"size", "9223372036854775807"},
        {"size", "\"1\""},
        {"kind", "\"inc\""},
        {"kind", "\"full\""}, /* with a parent */
        {"reason", "\"because\""},
        {"reason", "\"resized\""}, /* of no full */
        {"parent", "null"},
        {"parent", "\"20261129T023000Z\""}, /* itself */
        {"parent", "\"20261130T023000Z\""},
        {"parent", "\"../../x/yyyyyyyy\""},
        {"parent-sums", "null"},
        {"parent-sums", "\"00\""},
        {"read", "-5"},
        {"written", "1e3"},
        {"sums", "null"},
        {"sums", "\"" HASH "0\""},
        {"sums", "\"0123456789ABCDEF0123456789ABCDEF"
                 "0123456789ABCDEF0123456789ABCDEF\""},
        {"checkpoint", "7"},
        {"image", "7"},
        {"image", NULL},
        {"more", "1"},
        {"zero", NULL},
    };

    for (size_t i = 0; i < ARRAY_SIZE(edits); i++) {
        const char *value = edits[i].value;

        ck_assert_msg(parse_with(edits[i].key, true, value) == -EINVAL,
                      "%s: %s", edits[i].key, value);
    }
}
END_TEST

START_TEST(test_not_json)
{
    static const char *const texts[] = {
        "",
        "{",
        "[]",
        "null",
        "{\"nbdelta-point\": 99999999999999999999}",
        "{\"nbdelta-point\": 1, \"nbdelta-point\": 1}",
        "{\"nbdelta-point\": 1}",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    };
    struct manifest *n = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        ck_assert_msg(manifest_parse(texts[i], strlen(texts[i]), &n, NULL) ==
                          -EINVAL,
                      "%s", texts[i]);
    }
    CLEANUP_FREE char *big = calloc(1, MANIFEST_MAX + 1);
    memset(big, ' ', MANIFEST_MAX + 1);
    ck_assert_int_eq(manifest_parse(big, MANIFEST_MAX + 1, &n, NULL), -EINVAL);
}
END_TEST

START_TEST(test_what_breaks_a_rule_is_not_written)
{
    CLEANUP_MANIFEST struct manifest *m = example();
    char *text = NULL;

    strcpy(m->disks[0].parent, m->name);
    ck_assert_int_eq(manifest_text(m, &text, NULL), -EINVAL);
    strcpy(m->disks[0].parent, "20261128T023000Z");
    m->disks[1].size = UINT64_MAX;
    ck_assert_int_eq(manifest_text(m, &text, NULL), -EINVAL);
    m->disks[1].size = 512;
    free(m->source);
    m->source = strdup("\xff");
    ck_assert_int_eq(manifest_text(m, &text, NULL), -EINVAL);
    ck_assert_ptr_null(text);
}
END_TEST

START_TEST(test_reasons_have_words)
{
    for (int i = REASON_NONE + 1; i < REASON_COUNT; i++) {
        enum disk_reason back = REASON_NONE;

        ck_assert(
            disk_reason_from(disk_reason_word((enum disk_reason)i), &back));
        ck_assert_int_eq(back, i);
    }
    ck_assert_ptr_null(disk_reason_word(REASON_NONE));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("manifest");
    TCase *tc = tcase_create("all");

    tcase_add_test(tc, test_written_is_read);
    tcase_add_test(tc, test_no_changed_bit_passes);
    tcase_add_test(tc, test_what_is_signed_is_read);
    tcase_add_test(tc, test_hostile_points);
    tcase_add_test(tc, test_hostile_disks);
    tcase_add_test(tc, test_not_json);
    tcase_add_test(tc, test_what_breaks_a_rule_is_not_written);
    tcase_add_test(tc, test_reasons_have_words);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
