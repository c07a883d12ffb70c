/* SPDX-License-Identifier: BSD-3-Clause */
/* Images of Ceph on the command line: many names are one text, and again many
 * names; what is kept of it has no secrets, and is not too long. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "source/rbd-names.h"

static const char *text_of(const struct rbd_source_name *n, const char *key)
{
    const char *text = json_string_value(json_object_get(n->options, key));

    return text ? text : "";
}

/* What the text says of the image @i: "disk pool/image". */
static void is(const struct rbd_source_name *list, unsigned i, const char *disk,
               const char *pool, const char *image)
{
    ck_assert_str_eq(list[i].disk, disk);
    ck_assert_str_eq(text_of(&list[i], "pool"), pool);
    ck_assert_str_eq(text_of(&list[i], "image"), image);
    ck_assert_str_eq(text_of(&list[i], "driver"), "rbd");
}

static struct rbd_source_name *parse(char **given, unsigned count)
{
    CLEANUP_FREE char *text = rbd_source_join(given, count);
    struct rbd_source_name *list;
    struct error *err = NULL;

    ck_assert_ptr_nonnull(text);
    int r = rbd_source_parse(text, &list, &err);
    ck_assert_msg(r == 0, "%s: %s", text, err ? error_message(err) : "");
    return list;
}

static void refused(char **given, unsigned count, const char *why)
{
    CLEANUP_FREE char *text = rbd_source_join(given, count);
    CLEANUP_ERROR struct error *err = NULL;
    struct rbd_source_name *list;

    ck_assert_ptr_nonnull(text);
    ck_assert_int_eq(rbd_source_parse(text, &list, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error_message(err), why));
    ck_assert_ptr_null(list);
}

START_TEST(names_are_told_from_others)
{
    ck_assert(rbd_source_is("rbd:vms/web"));
    ck_assert(rbd_source_is("vda=rbd:vms/web"));
    ck_assert(rbd_source_is("a b=rbd:vms/web"));
    ck_assert(!rbd_source_is("web.qcow2"));
    ck_assert(!rbd_source_is("./vda=rbd:vms/web"));
    ck_assert(!rbd_source_is("nbd://host/vda=rbd:x/y"));
    ck_assert(!rbd_source_is("vda=web.qcow2"));
}
END_TEST

START_TEST(many_become_one_and_many_again)
{
    char *given[] = {
        (char[]){"rbd:vms/web"},
        (char[]){"v d\\a=rbd:p q/i\\@m\\\\g:conf=/etc/a b"},
        (char[]){"x=y=rbd:p/n/i:id=me"},
    };
    struct rbd_source_name *list = parse(given, 3);

    is(list, 0, "web", "vms", "web");
    is(list, 1, "v d\\a", "p q", "i@m\\g");
    ck_assert_str_eq(text_of(&list[1], "conf"), "/etc/a b");
    is(list, 2, "x=y", "p", "i");
    ck_assert_str_eq(text_of(&list[2], "namespace"), "n");
    ck_assert_str_eq(text_of(&list[2], "user"), "me");
    ck_assert_ptr_null(list[3].disk);
    rbd_source_free(list);
}
END_TEST

START_TEST(what_is_refused)
{
    refused((char *[]){(char[]){"rbd:vms/web@monday"}}, 1, "is a snapshot");
    refused((char *[]){(char[]){"rbd:a/x"}, (char[]){"rbd:b/x"}}, 2,
            "two disks would be 'x'");
    refused((char *[]){(char[]){"rbd:a/x"}, (char[]){"x=rbd:b/y"}}, 2,
            "two disks would be 'x'");
    refused((char *[]){(char[]){"rbd:a"}}, 1, "");
    refused((char *[]){(char[]){"rbd:a/x"}, (char[]){"y"}}, 2,
            "'y' is no image of Ceph");
}
END_TEST

START_TEST(what_is_kept_has_no_secret)
{
    char *given[] = {(char[]){"d=rbd:vms/web:id=me:key=AQsecret\\=\\="},
                     (char[]){"rbd:vms/db"}};
    CLEANUP_FREE char *text = rbd_source_join(given, 2);
    CLEANUP_FREE char *plain = rbd_source_plain(text);

    ck_assert_str_eq(plain, "d=rbd:vms/web:id=me rbd:vms/db");
    /* It is a text of the same kind. */
    struct rbd_source_name *list;
    ck_assert_int_eq(rbd_source_parse(plain, &list, NULL), 0);
    is(list, 0, "d", "vms", "web");
    is(list, 1, "db", "vms", "db");
    rbd_source_free(list);
}
END_TEST

/* The text that is kept of @count images, each of which has a letter of two
 * bytes; the last one's name ends with @last. */
static char *kept(unsigned count, unsigned shift, char last)
{
    char **given = calloc(count, sizeof(*given));

    ck_assert_ptr_nonnull(given);
    for (unsigned i = 0; i < count; i++) {
        ck_assert_int_gt(asprintf(&given[i], "rbd:vms/%.*s\xc3\xa4-%03u%c",
                                  i == 0 ? (int)shift : 0, "xx", i,
                                  i + 1 == count ? last : 'a'),
                         0);
    }
    CLEANUP_FREE char *text = rbd_source_join(given, count);
    char *plain = rbd_source_plain(text);
    ck_assert_ptr_nonnull(plain);
    for (unsigned i = 0; i < count; i++) {
        free(given[i]);
    }
    free(given);
    return plain;
}

START_TEST(what_is_kept_is_not_too_long)
{
    for (unsigned shift = 0; shift < 3; shift++) {
        CLEANUP_FREE char *one = kept(500, shift, 'a');
        CLEANUP_FREE char *same = kept(500, shift, 'a');
        CLEANUP_FREE char *other = kept(500, shift, 'b');

        ck_assert_uint_lt(strlen(one), 4096);
        ck_assert_uint_gt(strlen(one), 3900);
        ck_assert_str_eq(one, same);
        ck_assert_str_ne(one, other);
        json_t *as_json = json_string(one); /* which wants UTF-8 */
        ck_assert_ptr_nonnull(as_json);
        json_decref(as_json);
    }
    CLEANUP_FREE char *few = kept(3, 0, 'a');
    ck_assert_ptr_null(strstr(few, "SHA"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("rbd-names");
    TCase *tc = tcase_create("all");

    tcase_add_test(tc, names_are_told_from_others);
    tcase_add_test(tc, many_become_one_and_many_again);
    tcase_add_test(tc, what_is_refused);
    tcase_add_test(tc, what_is_kept_has_no_secret);
    tcase_add_test(tc, what_is_kept_is_not_too_long);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
