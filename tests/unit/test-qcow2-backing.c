/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changing the backing file in a header, under power cuts.  After each write,
 * any set of sectors of the unflushed writes may be on the disk.  The
 * header is then valid and names the old file or the new one, each with its
 * own format or with none.
 */
#include "sector-cut.h"

struct names {
    const char *file;
    const char *fmt;
};

static struct names from, to;

static bool equal(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

static void check_header(const unsigned char *head)
{
    struct qcow2_header h;
    struct error *err = NULL;
    int r = qcow2_header_parse(head, cut.cluster, &h, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    bool old = equal(h.backing, from.file);
    bool new = equal(h.backing, to.file);
    ck_assert_msg(old || new, "names '%s'", h.backing ? h.backing : "nothing");
    ck_assert_msg(!h.backing || !h.backing_fmt ||
                      (old && equal(h.backing_fmt, from.fmt)) ||
                      (new &&equal(h.backing_fmt, to.fmt)),
                  "'%s' with format '%s'", h.backing, h.backing_fmt);
    qcow2_header_release(&h);
}

static void load_new_image(size_t cluster, const char *compat,
                           struct names names)
{
    CLEANUP_JSON json_t *o = json_pack(
        "{s:s, s:I, s:s, s:s, s:s, s:b}", "size", "1M", "cluster_size",
        (json_int_t)cluster, "compat", compat, "backing_file", names.file,
        "backing_fmt", names.fmt, "backing_unchecked", 1);

    cut_load(o, cluster, check_header);
    from = names;
}

static int change(struct graph *g, struct node *n, struct names names)
{
    to = names;
    graph_lock(g);
    graph_drain(g, n);
    int r = n->drv->image->change_backing(n, names.file, names.fmt, NULL);
    graph_unlock(g);
    if (r == 0) {
        from = names;
        check_header(cut.safe); /* durable */
        ck_assert(equal(n->image_backing, names.file));
        ck_assert(equal(n->image_backing_fmt, names.fmt));
    }
    return r;
}

static const struct {
    size_t cluster;
    const char *compat;
} images[] = {
    {512, "1.1"},  {512, "0.10"},   {1024, "1.1"},
    {4096, "1.1"}, {65536, "0.10"}, {65536, "1.1"},
};

START_TEST(a_cut_leaves_the_old_name_or_the_new)
{
    static const char longest[] =
        "/a/name/that/is/not/short/and/does/not/fit/where/the/old/one/was/"
        "and/that/goes/on/for/quite/a/while/base-of-the-disk.qcow2";
    static const struct names steps[] = {
        {"b.raw", "raw"},       {"c.qcow2", "qcow2"}, {"d", NULL},
        {longest, "qcow2"},     {"e", "raw"},         {NULL, NULL},
        {"f.qcow2", "qcow2"},   {longest, "raw"},     {longest, NULL},
        {"g", "a-long-format"},
    };
    struct graph *g = graph_new();

    load_new_image(images[_i].cluster, images[_i].compat,
                   (struct names){"a.qcow2", "qcow2"});
    struct node *n = cut_open_image(g);
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
            int r = change(g, n, steps[i]);
            /* Only where there is little room may it be refused. */
            ck_assert_msg(r == 0 ||
                              (r == -ENOSPC && images[_i].cluster <= 1024),
                          "step %zu: %d", i, r);
        }
    }
    ck_assert_uint_gt(cut.count, 1000);
    graph_free(g);
    cut_drop();
}
END_TEST

START_TEST(what_is_too_long_is_refused)
{
    char name[1100];
    struct graph *g = graph_new();

    memset(name, 'x', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    load_new_image(65536, "1.1", (struct names){"a.qcow2", "qcow2"});
    struct node *n = cut_open_image(g);
    ck_assert_int_eq(change(g, n, (struct names){name, "raw"}), -EINVAL);
    name[1023] = '\0';
    ck_assert_int_eq(change(g, n, (struct names){name, "a-format-of-16-b"}),
                     -EINVAL);
    ck_assert_int_eq(change(g, n, (struct names){name, "raw"}), 0);
    graph_free(g);
    cut_drop();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("qcow2-backing");
    TCase *tc = tcase_create("qcow2-backing");

    tcase_add_loop_test(tc, a_cut_leaves_the_old_name_or_the_new, 0,
                        (int)ARRAY_SIZE(images));
    tcase_add_test(tc, what_is_too_long_is_refused);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
