/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening: options, names, probing, children, and what images may name. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

static int open_text(struct graph *g, const char *text, struct node **n,
                     struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    struct node *ignored;
    int r = options_from_image(text, NULL, &o, errp);
    return r < 0 ? r : graph_open(g, o, n ? n : &ignored, errp);
}

static void expect_refused(const char *text, int code, const char *words)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct graph *g = graph_new();
    int r = open_text(g, text, NULL, &err);

    ck_assert_msg(r == code, "'%s': %d, '%s'", text, r,
                  r < 0 ? error_message(err) : "opened");
    ck_assert_msg(strstr(error_message(err), words), "'%s' lacks '%s'",
                  error_message(err), words);
    graph_free(g);
}

static void must_create(const char *name, const char *format,
                        const char *options)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_loads(options, 0, NULL);
    ck_assert_msg(image_create(name, format, o, &err) == 0, "%s",
                  error_message(err));
}

START_TEST(bad_options_are_refused_by_name)
{
    expect_refused("driver=nonsense", -EINVAL, "'nonsense'");
    expect_refused("driver=mem,size=1M,colour=red", -EINVAL, "'colour'");
    expect_refused("driver=mem", -EINVAL, "'size'");
    expect_refused("driver=mem,size=huge", -EINVAL, "'size'");
    expect_refused("driver=null-co,size=-1", -EINVAL, "'size'");
    expect_refused("driver=mem,size=1M,node-name=1bad", -EINVAL, "'1bad'");
    expect_refused("driver=raw", -EINVAL, "file");
    expect_refused("driver=raw,file=nobody", -ENOENT, "'nobody'");
    expect_refused("driver=mem,size=1M,read-only=perhaps", -EINVAL,
                   "'read-only'");
    expect_refused("driver=raw,file.driver=mem,file.size=1M,file.x.y=1",
                   -EINVAL, "'x");
    expect_refused("driver=raw,offset=2M,file.driver=mem,file.size=1M", -EINVAL,
                   "Offset");
    expect_refused("missing.img", -ENOENT, "missing.img");
}
END_TEST

START_TEST(names_are_unique_and_nodes_in_use_are_not_closed)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct graph *g = graph_new();
    struct node *file;
    struct node *top;

    ck_assert_int_eq(
        open_text(g, "driver=mem,size=1M,node-name=a", &file, NULL), 0);
    ck_assert_int_eq(open_text(g, "driver=mem,size=1M,node-name=a", NULL, &err),
                     -EEXIST);
    ck_assert_ptr_eq(graph_find(g, "a"), file);
    ck_assert_int_eq(open_text(g, "driver=raw,file=a,node-name=b", &top, NULL),
                     0);
    ck_assert_int_eq(graph_close(g, file, NULL), -EBUSY);
    ck_assert_int_eq(graph_close(g, top, NULL), 0);
    ck_assert_int_eq(graph_close(g, file, NULL), 0);
    ck_assert_ptr_null(graph_find(g, "a"));
    graph_free(g);
}
END_TEST

START_TEST(what_users_want_goes_through_to_the_shared_child)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct graph *g = graph_new();
    struct node *b;
    struct node *c;
    struct blk *one;
    struct blk *two;

    /* While nobody uses them, two nodes over one disk do not meet. */
    ck_assert_int_eq(open_text(g, "driver=mem,size=1M,node-name=a", NULL, NULL),
                     0);
    ck_assert_int_eq(open_text(g, "driver=raw,file=a,node-name=b", &b, NULL),
                     0);
    ck_assert_int_eq(open_text(g,
                               "driver=blkdebug,image.driver=raw,image.file=a,"
                               "node-name=c",
                               &c, NULL),
                     0);
    ck_assert_int_eq(blk_new(g, b, PERM_ALL, PERM_READ, "one", &one, NULL), 0);
    ck_assert_int_eq(blk_new(g, c, PERM_ALL, PERM_ALL, "two", &two, &err),
                     -EBUSY);
    ck_assert_ptr_nonnull(strstr(error_message(err), "unshared by node 'b'"));
    ck_assert_int_eq(blk_new(g, c, PERM_READ, PERM_ALL, "two", &two, NULL), 0);
    blk_free(two);
    blk_free(one);
    ck_assert_int_eq(blk_new(g, c, PERM_ALL, PERM_ALL, "two", &two, NULL), 0);
    /* A user that shares less than another one has taken. */
    error_free(err);
    err = NULL;
    ck_assert_int_eq(blk_new(g, b, PERM_READ, PERM_READ, "one", &one, &err),
                     -EBUSY);
    ck_assert_ptr_nonnull(strstr(error_message(err), "unshared by node 'b'"));
    blk_free(two);
    graph_free(g);
}
END_TEST

START_TEST(formats_are_probed)
{
    struct graph *g = graph_new();
    struct node *n;

    must_create("probed.qcow2", "qcow2", "{\"size\": 1048576}");
    must_create("probed.raw", "raw", "{\"size\": 1048576}");
    ck_assert_int_eq(open_text(g, "probed.qcow2", &n, NULL), 0);
    ck_assert_str_eq(node_driver(n), "qcow2");
    ck_assert_int_eq(open_text(g, "probed.raw", &n, NULL), 0);
    ck_assert_str_eq(node_driver(n), "raw");
    graph_free(g);
}
END_TEST

START_TEST(a_guessed_raw_image_cannot_be_turned_into_another_format)
{
    struct graph *g = graph_new();
    char head[512] = "QFI\xfb";
    struct node *n;
    struct blk *b;

    must_create("guess.raw", "raw", "{\"size\": 1048576}");
    ck_assert_int_eq(open_text(g, "guess.raw", &n, NULL), 0);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "guest", &b, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, head, 512, 0, 0), -EPERM);
    ck_assert_int_eq(blk_pwrite(b, head, 3, 0, 0), 0);
    ck_assert_int_eq(blk_pwrite(b, head + 3, 1, 3, 0), -EPERM);
    ck_assert_int_eq(blk_pwrite(b, head, 512, 512, 0), 0);
    head[0] = 'X';
    ck_assert_int_eq(blk_pwrite(b, head, 512, 0, 0), 0);
    blk_free(b);
    graph_free(g);
    /* Said to be raw, it takes anything. */
    g = graph_new();
    head[0] = 'Q';
    ck_assert_int_eq(open_text(g,
                               "driver=raw,file.driver=file,"
                               "file.filename=guess.raw",
                               &n, NULL),
                     0);
    ck_assert_int_eq(
        blk_new(g, n, PERM_READ | PERM_WRITE, PERM_ALL, "guest", &b, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, head, 512, 0, 0), 0);
    blk_free(b);
    graph_free(g);
}
END_TEST

/* --- What an image names --- */

static void make_overlay(const char *name, const char *backing)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_pack("{s:i, s:s, s:s, s:b}", "size", 1048576,
                                       "backing_file", backing, "backing_fmt",
                                       "raw", "backing_unchecked", 1);
    ck_assert_msg(image_create(name, "qcow2", o, &err) == 0, "%s",
                  error_message(err));
}

static void lay_out_directories(void)
{
    (void)mkdir("in", 0755);
    (void)mkdir("in/below", 0755);
    (void)mkdir("out", 0755);
    must_create("in/base.raw", "raw", "{\"size\": 1048576}");
    must_create("in/below/base.raw", "raw", "{\"size\": 1048576}");
    must_create("out/base.raw", "raw", "{\"size\": 1048576}");
    (void)unlink("in/link.raw");
    ck_assert_int_eq(symlink("../out/base.raw", "in/link.raw"), 0);
}

START_TEST(backing_files_beside_the_image_and_below_are_opened)
{
    struct graph *g = graph_new();
    struct node *n;

    lay_out_directories();
    make_overlay("in/a.qcow2", "base.raw");
    ck_assert_int_eq(open_text(g, "in/a.qcow2", &n, NULL), 0);
    ck_assert_ptr_nonnull(node_backing(n));
    ck_assert(node_read_only(node_backing(n)));
    make_overlay("in/b.qcow2", "below/base.raw");
    ck_assert_int_eq(open_text(g, "in/b.qcow2", &n, NULL), 0);
    graph_free(g);
}
END_TEST

START_TEST(backing_files_elsewhere_need_an_allowed_path)
{
    static const char *const names[] = {"../out/base.raw", "link.raw",
                                        "below/../../out/base.raw"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        CLEANUP_ERROR struct error *err = NULL;
        struct graph *g = graph_new();
        lay_out_directories();
        make_overlay("in/c.qcow2", names[i]);
        expect_refused("in/c.qcow2", -EPERM, "--allow-path");
        ck_assert_int_eq(graph_allow_path(g, "out", NULL), 0);
        ck_assert_msg(open_text(g, "in/c.qcow2", NULL, &err) == 0, "%s",
                      error_message(err));
        graph_free(g);
    }
}
END_TEST

START_TEST(backing_names_that_are_no_files_are_not_followed)
{
    lay_out_directories();
    make_overlay("in/d.qcow2", "nbd://localhost/x");
    expect_refused("in/d.qcow2", -EPERM, "nbd://localhost/x");
    make_overlay("in/e.qcow2", "json:{\\\"driver\\\":\\\"null-co\\\"}");
    expect_refused("in/e.qcow2", -EPERM, "json:");
    make_overlay("in/f.qcow2", "gone.raw");
    expect_refused("in/f.qcow2", -ENOENT, "gone.raw");
}
END_TEST

START_TEST(an_image_that_names_itself_is_refused)
{
    CLEANUP_JSON json_t *o =
        json_pack("{s:i, s:s, s:s, s:b}", "size", 1048576, "backing_file",
                  "self.qcow2", "backing_fmt", "qcow2", "backing_unchecked", 1);
    ck_assert_int_eq(image_create("self.qcow2", "qcow2", o, NULL), 0);
    expect_refused("driver=qcow2,read-only=on,file.driver=file,"
                   "file.filename=self.qcow2",
                   -ELOOP, "name itself");
}
END_TEST

START_TEST(backing_can_be_given_or_left_out)
{
    struct graph *g = graph_new();
    struct node *n;

    lay_out_directories();
    make_overlay("in/g.qcow2", "../out/base.raw");
    ck_assert_int_eq(
        open_text(g,
                  "json:{\"driver\":\"qcow2\",\"backing\":null,\"file\":"
                  "{\"driver\":\"file\",\"filename\":\"in/g.qcow2\"}}",
                  &n, NULL),
        0);
    ck_assert_ptr_null(node_backing(n));
    ck_assert_int_eq(graph_close(g, n, NULL), 0);
    ck_assert_int_eq(
        open_text(g,
                  "driver=qcow2,file.driver=file,file.filename=in/g.qcow2,"
                  "backing.driver=mem,backing.size=1M,backing.node-name=m",
                  &n, NULL),
        0);
    ck_assert_ptr_eq(node_backing(n), graph_find(g, "m"));
    graph_free(g);
}
END_TEST

START_TEST(image_info_has_the_members_of_qemu_img)
{
    struct graph *g = graph_new();
    struct node *n;

    lay_out_directories();
    make_overlay("in/h.qcow2", "base.raw");
    ck_assert_int_eq(open_text(g, "in/h.qcow2", &n, NULL), 0);
    CLEANUP_JSON json_t *info = node_image_info(g, n);
    ck_assert_str_eq(json_string_value(json_object_get(info, "format")),
                     "qcow2");
    ck_assert_str_eq(
        json_string_value(json_object_get(info, "backing-filename")),
        "base.raw");
    ck_assert_str_eq(
        json_string_value(json_object_get(info, "full-backing-filename")),
        "in/base.raw");
    ck_assert_int_eq(json_integer_value(json_object_get(info, "cluster-size")),
                     65536);
    ck_assert(json_object_get(info, "actual-size") != NULL);
    graph_free(g);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("open");
    TCase *tc = tcase_create("open");

    tcase_add_test(tc, bad_options_are_refused_by_name);
    tcase_add_test(tc, names_are_unique_and_nodes_in_use_are_not_closed);
    tcase_add_test(tc, what_users_want_goes_through_to_the_shared_child);
    tcase_add_test(tc, formats_are_probed);
    tcase_add_test(tc,
                   a_guessed_raw_image_cannot_be_turned_into_another_format);
    tcase_add_test(tc, backing_files_beside_the_image_and_below_are_opened);
    tcase_add_test(tc, backing_files_elsewhere_need_an_allowed_path);
    tcase_add_test(tc, backing_names_that_are_no_files_are_not_followed);
    tcase_add_test(tc, an_image_that_names_itself_is_refused);
    tcase_add_test(tc, backing_can_be_given_or_left_out);
    tcase_add_test(tc, image_info_has_the_members_of_qemu_img);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
