/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Names in images, and names of files that are made: which file is opened when
 * a name leads elsewhere a moment later, what may be named at all, and which
 * users may open the new file.  This program has its own realpath and open, in
 * which another process does its work in between.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/create.h"
#include "core/format.h"
#include "core/graph.h"
#include "core/image-name.h"
#include "core/reopen.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/option.h"
#include "nbdelta/options.h"

#define SIZE (1 * MiB)

/* --- The kernel, and somebody else --- */

static struct {
    const char *resolved; /* when this has been resolved (its end)... */
    const char *opened;   /* or this opened, */
    void (*fn)(void);     /* this happens, once */
    bool no_proc;
} kernel;

static void happen(const char *when, const char *path)
{
    size_t len = when ? strlen(when) : 0;

    if (when && strlen(path) >= len &&
        strcmp(path + strlen(path) - len, when) == 0) {
        kernel.resolved = NULL;
        kernel.opened = NULL;
        kernel.fn();
    }
}

/* NOLINTNEXTLINE(readability-inconsistent-declaration-parameter-name) */
char *realpath(const char *restrict path, char *restrict out)
{
    char *real = canonicalize_file_name(path);
    int code = errno;

    ck_assert_ptr_null(out);
    happen(kernel.resolved, path);
    errno = code;
    return real;
}

int open(const char *path, int flags, ...)
{
    va_list ap;

    va_start(ap, flags);
    int mode = flags & O_CREAT ? va_arg(ap, int) : 0;
    va_end(ap);
    if (kernel.no_proc && strncmp(path, "/proc/", 6) == 0) {
        errno = ENOENT;
        return -1;
    }
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    int code = errno;
    happen(kernel.opened, path);
    errno = code;
    return fd;
}

/* What open becomes where the compiler checks its arguments. */
/* NOLINTNEXTLINE(bugprone-reserved-identifier) */
int __open_2(const char *path, int flags);
int __open_2(const char *path, int flags)
{
    return open(path, flags);
}

/* --- A pool of images, and what is elsewhere --- */

static struct graph *g;

/* A test that has failed leaves its files. */
static void remove_all(void)
{
    ck_assert_int_eq(system("rm -rf pool elsewhere link.qcow2 good"), 0);
}

static void begin(void)
{
    remove_all();
    memset(&kernel, 0, sizeof(kernel));
    g = graph_new();
}

static void end(void)
{
    graph_free(g);
    g = NULL;
    remove_all();
}

static void fill(const char *name, const char *text)
{
    CLEANUP_CLOSE int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);

    ck_assert_int_eq(ftruncate(fd, SIZE), 0);
    ck_assert_int_eq(pwrite(fd, text, strlen(text), 0), (int)strlen(text));
}

static void make(const char *name, const char *key, const char *named,
                 const char *fmt)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_pack("{s:i, s:s, s:s*}", "size", SIZE, key,
                                       named, "backing_fmt", fmt);

    if (fmt) {
        (void)json_object_set_new(o, "backing_unchecked", json_true());
    }
    ck_assert_msg(image_create(name, "qcow2", o, &err) == 0, "%s",
                  error_message(err));
}

static void lay_out(void)
{
    ck_assert_int_eq(mkdir("pool", 0755), 0);
    ck_assert_int_eq(mkdir("pool/sub", 0755), 0);
    ck_assert_int_eq(mkdir("elsewhere", 0755), 0);
    fill("pool/good", "harmless");
    fill("pool/sub/good", "harmless");
    fill("elsewhere/good", "secret");
    make("pool/v.qcow2", "backing_file", "good", "raw");
    make("pool/w.qcow2", "backing_file", "sub/good", "raw");
}

static int try(const char *image, bool read_only, struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    struct node *n;

    ck_assert_int_eq(options_from_image(image, "qcow2", &o, NULL), 0);
    (void)json_object_set_new(o, "read-only", json_boolean(read_only));
    return graph_open(g, o, &n, errp);
}

static void opens(const char *image, bool read_only)
{
    CLEANUP_ERROR struct error *err = NULL;

    int r = try(image, read_only, &err);
    ck_assert_msg(r == 0, "%s: %s", image, r < 0 ? error_message(err) : "");
}

static void refused(const char *image, bool read_only, int code,
                    const char *words)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = try(image, read_only, &err);

    ck_assert_msg(r == code, "%s: %d: %s", image, r,
                  r < 0 ? error_message(err) : "opened");
    ck_assert_msg(strstr(error_message(err), words), "%s: '%s' lacks '%s'",
                  image, error_message(err), words);
}

/* --- What is looked at is what is opened --- */

static void exchange_file(void)
{
    ck_assert_int_eq(unlink("pool/good"), 0);
    ck_assert_int_eq(symlink("../elsewhere/good", "pool/good"), 0);
}

static void exchange_directory(void)
{
    ck_assert_int_eq(rename("pool/sub", "pool/gone"), 0);
    ck_assert_int_eq(symlink("../elsewhere", "pool/sub"), 0);
}

static void exchange_image(void)
{
    ck_assert_int_eq(rename("pool/v.qcow2", "pool/old"), 0);
    ck_assert_int_eq(symlink("../elsewhere/other", "pool/v.qcow2"), 0);
}

START_TEST(a_link_that_comes_in_between_is_not_followed)
{
    lay_out();
    kernel.fn = exchange_file;
    kernel.resolved = "pool/good";
    refused("pool/v.qcow2", true, -ELOOP, "good");
}
END_TEST

START_TEST(nor_is_one_on_the_way)
{
    lay_out();
    kernel.fn = exchange_directory;
    kernel.resolved = "pool/sub/good";
    refused("pool/w.qcow2", true, -ENOTDIR, "sub/good");
}
END_TEST

START_TEST(nor_in_what_is_allowed)
{
    lay_out();
    graph_follow(g, FOLLOW_NONE);
    ck_assert_int_eq(graph_allow_path(g, "pool", NULL), 0);
    kernel.fn = exchange_directory;
    kernel.resolved = "pool/sub/good";
    refused("pool/w.qcow2", true, -ENOTDIR, "sub/good");
}
END_TEST

/* The directory of an image is where its open file is now. */
START_TEST(an_image_that_goes_takes_its_directory_along)
{
    lay_out();
    fill("elsewhere/other", "");
    make("pool/v.qcow2", "backing_file", "../elsewhere/good", "raw");
    kernel.fn = exchange_image;
    kernel.resolved = "elsewhere/good"; /* of the name; the image comes then */
    refused("pool/v.qcow2", true, -EPERM, "outside");
}
END_TEST

START_TEST(without_proc_the_name_is_tried_and_not_trusted)
{
    lay_out();
    kernel.no_proc = true;
    opens("pool/v.qcow2", false);
    opens("pool/w.qcow2", true);
    graph_free(g);
    g = graph_new();
    kernel.fn = exchange_image;
    fill("elsewhere/other", "");
    kernel.opened = "pool/v.qcow2";
    refused("pool/v.qcow2", true, -ESTALE, "v.qcow2");
}
END_TEST

START_TEST(files_are_reopened_without_proc)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = NULL;
    struct node *n;

    lay_out();
    kernel.no_proc = true;
    ck_assert_int_eq(options_parse("driver=file,read-only=on,"
                                   "filename=pool/good",
                                   NULL, &o, NULL),
                     0);
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    graph_lock(g);
    ck_assert_int_eq(node_set_read_only(n, false, NULL), 0);
    ck_assert_int_eq(node_set_read_only(n, true, NULL), 0);
    exchange_file();
    ck_assert_int_eq(node_set_read_only(n, false, &err), -ESTALE);
    graph_unlock(g);
}
END_TEST

/* --- What may be named --- */

static void make_socket(const char *path)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
}

START_TEST(only_regular_files_are)
{
    static const char *const names[] = {"fifo", "socket", "sub", ".", "null"};

    lay_out();
    ck_assert_int_eq(mkfifo("pool/fifo", 0600), 0);
    make_socket("pool/socket");
    ck_assert_int_eq(symlink("/dev/null", "pool/null"), 0);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        make("pool/v.qcow2", "backing_file", names[i], "raw");
        refused("pool/v.qcow2", true, -EPERM, "--allow-path");
    }
    ck_assert_int_eq(graph_allow_path(g, "/", NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        make("pool/v.qcow2", "backing_file", names[i], "raw");
        refused("pool/v.qcow2", true, -EINVAL, "neither a regular file");
    }
}
END_TEST

START_TEST(as_much_is_followed_as_is_said)
{
    lay_out();
    fill("pool/data", "");
    (void)unlink("pool/data");
    ck_assert_int_eq(chdir("pool"), 0);
    make("d.qcow2", "data_file", "data", NULL);
    ck_assert_int_eq(chdir(".."), 0);

    opens("pool/v.qcow2", false);
    opens("pool/d.qcow2", false);
    graph_free(g);

    /* A data file of somebody else is only read, unless that is allowed. */
    if (geteuid() == 0) {
        ck_assert_int_eq(chown("pool/data", 12345, 12345), 0);
        g = graph_new();
        refused("pool/d.qcow2", false, -EPERM, "--follow=data");
        opens("pool/d.qcow2", true);
        graph_free(g);
    }

    g = graph_new();
    graph_follow(g, FOLLOW_NONE);
    refused("pool/v.qcow2", true, -EPERM, "--follow=none");
    refused("pool/d.qcow2", true, -EPERM, "--follow=none");
    ck_assert_int_eq(graph_allow_path(g, "pool/data", NULL), 0);
    refused("pool/v.qcow2", true, -EPERM, "--follow=none");
    opens("pool/d.qcow2", false); /* one file can be allowed as well */
    graph_free(g);

    g = graph_new();
    graph_follow(g, FOLLOW_DATA);
    opens("pool/d.qcow2", false);
}
END_TEST

START_TEST(what_was_only_read_is_not_written_to_later)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = NULL;
    struct node *n;

    lay_out();
    ck_assert_int_eq(chdir("pool"), 0);
    make("d.qcow2", "data_file", "data", NULL);
    ck_assert_int_eq(chdir(".."), 0);
    if (geteuid() != 0) {
        return; /* nobody else's file can be had */
    }
    ck_assert_int_eq(chown("pool/data", 12345, 12345), 0);
    ck_assert_int_eq(options_from_image("pool/d.qcow2", "qcow2", &o, NULL), 0);
    (void)json_object_set_new(o, "read-only", json_true());
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    graph_lock(g);
    ck_assert_int_eq(node_set_read_only(n, false, &err), -EPERM);
    graph_unlock(g);
    ck_assert(node_read_only(n));
}
END_TEST

START_TEST(a_link_to_an_image_has_the_directory_of_the_image)
{
    lay_out();
    ck_assert_int_eq(symlink("pool/v.qcow2", "link.qcow2"), 0);
    fill("good", "");
    refused("link.qcow2", true, -EPERM, "outside"); /* "good" is beside it */
    (void)unlink("good");
    ck_assert_int_eq(symlink("pool/good", "good"), 0);
    opens("link.qcow2", true);
    (void)unlink("good");
}
END_TEST

static const struct {
    const char *name;
    int code;
} names[] = {
    {"file:good", 0},
    {"./good", 0},
    {"sub/../good", 0},
    {"json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\","
     "\"filename\":\"good\"}}",
     0},
    {"json:{\"driver\":\"raw\",\"file.driver\":\"file\","
     "\"file.filename\":\"good\"}",
     0},
    {"json:{\"driver\":\"file\",\"filename\":\"good\"}", 0},
    {"json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\","
     "\"filename\":\"../elsewhere/good\"}}",
     -EPERM},
    {"json:{\"driver\":\"raw\",\"offset\":512,\"file\":{\"driver\":\"file\","
     "\"filename\":\"good\"}}",
     -EPERM},
    {"json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\","
     "\"filename\":\"good\",\"locking\":\"off\"}}",
     -EPERM},
    {"json:{\"driver\":\"raw\",\"file\":\"named\"}", -EPERM},
    {"json:{\"driver\":\"null-co\",\"filename\":\"good\"}", -EPERM},
    {"json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\","
     "\"filename\":\"good\"}}",
     -EPERM},
    {"json:{", -EPERM},
    {"json:[]", -EPERM},
    {"nbd:localhost:10809", -EPERM},
    {"nbd:unix:good", -EPERM},
    {"ssh://host/good", -EPERM},
};

START_TEST(names_are_understood_as_qemu_writes_them)
{
    CLEANUP_ERROR struct error *err = NULL;

    lay_out();
    make("pool/v.qcow2", "backing_file", names[_i].name, "raw");
    int r = try("pool/v.qcow2", true, &err);
    ck_assert_msg(r == names[_i].code, "%s: %d: %s", names[_i].name, r,
                  r < 0 ? error_message(err) : "opened");
}
END_TEST

START_TEST(names_are_written_so_that_qemu_understands_them)
{
    static const char *const as[][2] = {
        {"base.qcow2", "base.qcow2"},
        {"full-10:55.qcow2", "./full-10:55.qcow2"},
        {"/a:b/c", "/a:b/c"},
        {"./a:b", "./a:b"},
        {"a/b:c", "a/b:c"},
        {":", "./:"},
        {"nbd://host/x", "nbd://host/x"},
        {"nbd:unix:s", "nbd:unix:s"},
        {"json:{}", "json:{}"},
        {"file:x", "file:x"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(as); i++) {
        CLEANUP_FREE char *name = image_name_write(as[i][0]);
        ck_assert_str_eq(name, as[i][1]);
    }
}
END_TEST

/* --- What is made --- */

static mode_t mode_of(const char *name)
{
    struct stat st;

    ck_assert_int_eq(stat(name, &st), 0);
    return st.st_mode & 0777;
}

START_TEST(access_is_never_wider_than_before)
{
    static const struct {
        mode_t a;
        gid_t of_a;
        mode_t b;
        gid_t of_b;
        mode_t both;
    } rows[] = {
        {0644, 1, 0644, 1, 0644}, {0600, 1, 0644, 1, 0600},
        {0640, 1, 0644, 1, 0640}, {0640, 1, 0640, 2, 0600},
        {0644, 1, 0644, 2, 0644}, {0640, 1, 0644, 2, 0600},
        {0604, 1, 0644, 1, 0604},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct file_access a = FILE_ACCESS_ANY;
        struct stat st = {.st_mode = S_IFREG | rows[i].a,
                          .st_gid = rows[i].of_a};

        file_access_narrow(&a, &st);
        st = (struct stat){.st_mode = S_IFREG | rows[i].b,
                           .st_gid = rows[i].of_b};
        file_access_narrow(&a, &st);
        ck_assert_msg(a.mode == rows[i].both, "%zu: %o", i, a.mode);
    }
}
END_TEST

static void make_over(const char *base, mode_t mode)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s}", "backing_file", base,
                                       "backing_fmt", "raw");
    char path[64];

    (void)snprintf(path, sizeof(path), "pool/%s", base);
    ck_assert_int_eq(chmod(path, mode), 0);
    ck_assert_int_eq(image_create("pool/new.qcow2", "qcow2", o, NULL), 0);
}

START_TEST(what_is_made_over_a_private_file_is_private)
{
    mode_t before = umask(022);

    lay_out();
    make_over("good", 0600);
    ck_assert_int_eq(mode_of("pool/new.qcow2"), 0600);
    ck_assert_int_eq(unlink("pool/new.qcow2"), 0);
    make_over("good", 0644);
    ck_assert_int_eq(mode_of("pool/new.qcow2"), 0644);
    (void)umask(before);
}
END_TEST

static int make_plain(const char *name, struct error **errp)
{
    struct file_make how = {.access = FILE_ACCESS_ANY};

    return file_create_plain(name, SIZE, ROOM_NONE, &how, errp);
}

START_TEST(a_link_of_somebody_else_is_not_emptied)
{
    CLEANUP_ERROR struct error *err = NULL;
    char text[8] = "";

    lay_out();
    ck_assert_int_eq(symlink("../elsewhere/good", "pool/target"), 0);
    CLEANUP_CLOSE int fd = open("elsewhere/good", O_RDONLY);
    if (geteuid() == 0) {
        ck_assert_int_eq(lchown("pool/target", 1, 1), 0);
        ck_assert_int_eq(make_plain("pool/target", &err), -EPERM);
        ck_assert_int_eq(pread(fd, text, 6, 0), 6);
        ck_assert_str_eq(text, "secret");
        ck_assert_int_eq(lchown("pool/target", 0, 0), 0);
    }
    ck_assert_int_eq(make_plain("pool/target", NULL), 0); /* our own */
    ck_assert_int_eq(pread(fd, text, 6, 0), 6);
    ck_assert_int_eq(text[0], 0);
}
END_TEST

/* --- Formats --- */

START_TEST(footers_are_recognised)
{
    unsigned char head[FORMAT_BYTES] = {0};
    unsigned char tail[FORMAT_BYTES] = {0};
    const struct driver_table *t = graph_drivers(g);
    uint32_t sum = 0;

    ck_assert_str_eq(format_probe(t, head, tail), "raw");
    memcpy(tail, "conectix", 8);
    tail[63] = 2;
    ck_assert_str_eq(format_probe(t, head, tail), "raw"); /* its sum is wrong */
    for (size_t i = 0; i < sizeof(tail); i++) {
        sum += tail[i];
    }
    store_be32(tail + 64, ~sum);
    ck_assert_str_eq(format_probe(t, head, tail), "vpc");
    memset(tail, 0, sizeof(tail));
    memcpy(tail, "koly\0\0\0\4\0\0\2\0", 12);
    ck_assert_str_eq(format_probe(t, head, tail), "dmg");
    memcpy(head, "QFI\xfb\0\0\0\1", 8);
    ck_assert_str_eq(format_probe(t, head, tail), "qcow");
    head[7] = 3;
    ck_assert_str_eq(format_probe(t, head, tail), "qcow2");
}
END_TEST

START_TEST(drivers_are_listed_in_the_order_of_their_names)
{
    const char *const *drivers = graph_driver_names();

    ck_assert_ptr_nonnull(drivers[0]);
    for (size_t i = 0; drivers[i]; i++) {
        ck_assert_ptr_nonnull(graph_driver_options(drivers[i]));
        ck_assert(i == 0 || strcmp(drivers[i - 1], drivers[i]) < 0);
    }
    ck_assert_ptr_null(graph_driver_options("nosuch"));
}
END_TEST

START_TEST(a_guessed_disk_does_not_get_a_footer)
{
    static const char koly[] = "koly\0\0\0\4\0\0\2\0";
    CLEANUP_JSON json_t *o = NULL;
    struct node *n;
    struct blk *b;

    lay_out();
    ck_assert_int_eq(options_from_image("pool/good", NULL, &o, NULL), 0);
    ck_assert_int_eq(graph_open(g, o, &n, NULL), 0);
    ck_assert_str_eq(node_driver(n), "raw");
    ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(blk_pwrite(b, koly, 12, SIZE - 512, 0), -EPERM);
    ck_assert_int_eq(blk_pwrite(b, koly + 1, 11, SIZE - 511, 0), 0);
    ck_assert_int_eq(blk_pwrite(b, koly, 1, SIZE - 512, 0), -EPERM);
    ck_assert_int_eq(blk_pwrite(b, koly, 12, SIZE - 1024, 0), 0);
    ck_assert_int_eq(blk_pwrite(b, koly, 12, 512, 0), 0);
    blk_free(b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("names");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, begin, end);
    tcase_add_test(tc, a_link_that_comes_in_between_is_not_followed);
    tcase_add_test(tc, nor_is_one_on_the_way);
    tcase_add_test(tc, nor_in_what_is_allowed);
    tcase_add_test(tc, an_image_that_goes_takes_its_directory_along);
    tcase_add_test(tc, without_proc_the_name_is_tried_and_not_trusted);
    tcase_add_test(tc, files_are_reopened_without_proc);
    tcase_add_test(tc, only_regular_files_are);
    tcase_add_test(tc, as_much_is_followed_as_is_said);
    tcase_add_test(tc, what_was_only_read_is_not_written_to_later);
    tcase_add_test(tc, a_link_to_an_image_has_the_directory_of_the_image);
    tcase_add_loop_test(tc, names_are_understood_as_qemu_writes_them, 0,
                        (int)ARRAY_SIZE(names));
    tcase_add_test(tc, names_are_written_so_that_qemu_understands_them);
    tcase_add_test(tc, access_is_never_wider_than_before);
    tcase_add_test(tc, what_is_made_over_a_private_file_is_private);
    tcase_add_test(tc, a_link_of_somebody_else_is_not_emptied);
    tcase_add_test(tc, footers_are_recognised);
    tcase_add_test(tc, drivers_are_listed_in_the_order_of_their_names);
    tcase_add_test(tc, a_guessed_disk_does_not_get_a_footer);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
