/* SPDX-License-Identifier: BSD-3-Clause */
/* The backup directory: made, locked, filled with points, cleaned.  What is not
 * ours is left alone, no link leads outside, and each failing step of a write
 * leaves the old state or the new one. */
#include <check.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>

#include "store-util.h"
#include "store/store.h"

/* --- Storage that fails: this program has its own of these --- */

static struct {
    int calls;      /* so far */
    int fail;       /* this one of them fails; 0: none */
    bool break_off; /* and all that follow */
    int steal;      /* so many renames find that their file was taken */
} storage;

static bool fails(void)
{
    int n = ++storage.calls;

    if (storage.fail > 0 &&
        (n == storage.fail || (storage.break_off && n > storage.fail))) {
        errno = EIO;
        return true;
    }
    return false;
}

int fsync(int fd)
{
    return fails() ? -1 : (int)syscall(SYS_fsync, fd);
}

int renameat(int a, const char *from, int b, const char *to)
{
    if (storage.steal > 0) {
        storage.steal--;
        ck_assert_int_eq(unlinkat(a, from, 0), 0);
    }
    return fails() ? -1 : (int)syscall(SYS_renameat2, a, from, b, to, 0);
}

ssize_t write(int fd, const void *buf, size_t n)
{
    return fails() ? -1 : syscall(SYS_write, fd, buf, n);
}

static void fail_at(int call, bool break_off)
{
    storage.calls = 0;
    storage.fail = call;
    storage.break_off = break_off;
}

/* --- Made, opened, locked --- */

START_TEST(test_made_and_opened)
{
    CLEANUP_STORE struct store *s = create_store();
    struct stat st;
    char id[STORE_ID_MAX];

    ck_assert_uint_eq(store_count(s), 0);
    ck_assert_ptr_null(store_pending(s));
    ck_assert_ptr_null(store_latest(s));
    ck_assert_int_eq(stat(at("dir"), &st), 0);
    ck_assert_int_eq(st.st_mode & 07777, 0700);
    ck_assert_int_eq(stat(at("dir/nbdelta.json"), &st), 0);
    ck_assert_int_eq(st.st_mode & 07777, 0600);
    strcpy(id, store_id(s));
    ck_assert_uint_eq(strlen(id), 16);
    store_close(s);

    s = reopen_store(STORE_WRITE);
    ck_assert_str_eq(store_id(s), id);
    CLEANUP_JSON json_t *o = json_pack("{s:s}", "compress", "zstd");
    ck_assert_int_eq(store_set_options(s, o, NULL), 0);
    store_close(s);

    s = reopen_store(STORE_CREATE);
    ck_assert_str_eq(store_id(s), id);
    ck_assert(json_equal(store_options(s), o));
}
END_TEST

static int open_fails(enum store_mode mode, const char *text)
{
    struct store *s = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int r = store_open(at("dir"), mode, "test", &s, &err);

    ck_assert_int_lt(r, 0);
    ck_assert_ptr_null(s);
    ck_assert_int_eq(error_code(err), -r);
    ck_assert_msg(strstr(error_message(err), text) != NULL, "%s",
                  error_message(err));
    return r;
}

START_TEST(test_what_is_not_ours)
{
    ck_assert_int_eq(open_fails(STORE_READ, "No such file"), -ENOENT);
    ck_assert_int_eq(mkdir(at("dir"), 0755), 0);
    ck_assert_int_eq(open_fails(STORE_READ, "not a backup dir"), -ENOENT);
    ck_assert_int_eq(open_fails(STORE_WRITE, "not a backup dir"), -ENOENT);
    ck_assert(!exists(at("dir/lock")));

    put(at("dir/letter"), "dear", 4);
    ck_assert_int_eq(open_fails(STORE_CREATE, "is not empty"), -EINVAL);
    ck_assert(!exists(at("dir/nbdelta.json")));
    ck_assert_int_eq(unlink(at("dir/letter")), 0);

    /* Empty, except what a mount and a killed run leave. */
    ck_assert_int_eq(mkdir(at("dir/lost+found"), 0700), 0);
    put(at("dir/tmp.12.3"), "", 0);
    store_close(create_store());

    put(at("dir2"), "", 0);
    struct store *s = NULL;
    ck_assert_int_eq(store_open(at("dir2"), STORE_CREATE, "test", &s, NULL),
                     -ENOTDIR);
}
END_TEST

START_TEST(test_broken_configuration)
{
    static const struct {
        const char *text;
        const char *says;
    } cases[] = {
        {"", "not JSON"},
        {"{}", "not of a backup directory"},
        {"[]", "not of a backup directory"},
        {"{\"nbdelta-directory\": 2, \"new\": true}", "format 2"},
        {"{\"nbdelta-directory\": 1, \"id\": \"..\", \"options\": {}}",
         "damaged"},
        {"{\"nbdelta-directory\": 1, \"id\": \"0123456789abcdef\"}", "damaged"},
        {"{\"nbdelta-directory\": 1, \"id\": \"0123456789abcdef\", "
         "\"options\": []}",
         "damaged"},
    };

    store_close(create_store());
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        put(at("dir/nbdelta.json"), cases[i].text, strlen(cases[i].text));
        ck_assert_int_eq(open_fails(STORE_CREATE, cases[i].says), -EINVAL);
    }
    ck_assert_int_eq(unlink(at("dir/nbdelta.json")), 0);
    ck_assert_int_eq(symlink(at("elsewhere"), at("dir/nbdelta.json")), 0);
    ck_assert_int_eq(open_fails(STORE_READ, "symbolic link"), -ELOOP);
    ck_assert_int_eq(unlink(at("dir/nbdelta.json")), 0);
    ck_assert_int_eq(mkfifo(at("dir/nbdelta.json"), 0600), 0);
    ck_assert_int_eq(open_fails(STORE_READ, "not a regular file"), -EINVAL);
}
END_TEST

START_TEST(test_lock)
{
    CLEANUP_STORE struct store *s = create_store();

    ck_assert_int_eq(open_fails(STORE_WRITE, "in use by test (process "),
                     -EBUSY);
    CLEANUP_STORE struct store *reader = reopen_store(STORE_READ);
    ck_assert_int_eq(store_add_disk(reader, "vda", NULL), -EPERM);
    store_close(s);
    s = reopen_store(STORE_WRITE);

    /* What the lock says is foreign text, too. */
    put(at("dir/lock"), "\x1b[2J\n", 5);
    ck_assert_int_eq(open_fails(STORE_WRITE, "in use by ?[2J"), -EBUSY);
    store_close(s);
    ck_assert_int_eq(unlink(at("dir/lock")), 0);
    ck_assert_int_eq(symlink(at("victim"), at("dir/lock")), 0);
    s = NULL;
    ck_assert_int_eq(open_fails(STORE_WRITE, "cannot open"), -ELOOP);
    ck_assert(!exists(at("victim")));
}
END_TEST

/* --- Points --- */

START_TEST(test_points_in_order)
{
    CLEANUP_STORE struct store *s = create_store();
    const struct store_point *p = NULL;
    char name[POINT_NAME_MAX];

    add_point(s, POINT2, "vda", NULL);
    add_point(s, POINT1, "vda", NULL);
    add_point(s, POINT3, "vda", POINT2);
    store_close(s);
    s = reopen_store(STORE_WRITE);
    ck_assert_uint_eq(store_count(s), 3);
    ck_assert_str_eq(store_point(s, 0)->name, POINT1);
    ck_assert_str_eq(store_latest(s)->name, POINT3);
    ck_assert_int_eq(store_find_point(s, NULL, &p, NULL), 0);
    ck_assert_str_eq(p->name, POINT3);
    ck_assert_int_eq(store_find_point(s, "2026-11-28", &p, NULL), 0);
    ck_assert_str_eq(p->name, POINT2);
    ck_assert_int_eq(store_find_point(s, "2026", &p, NULL), -EINVAL);
    ck_assert_int_eq(store_find_point(s, "latest~3", &p, NULL), -ENOENT);

    const struct manifest_disk *parent = NULL;
    ck_assert_int_eq(
        store_parent(s, &store_latest(s)->manifest->disks[0], &parent, NULL),
        0);
    ck_assert_ptr_eq(parent, &p->manifest->disks[0]);

    ck_assert_int_eq(store_new_name(s, "", name, NULL), 0);
    ck_assert_int_gt(strcmp(name, POINT3), 0);
    add_point(s, "29991231T000000Z", "vda", NULL);
    ck_assert_int_eq(store_new_name(s, "", name, NULL), 0);
    ck_assert_str_eq(name, "29991231T000001Z");
    ck_assert_int_eq(store_new_name(s, "29991231T000007Z", name, NULL), 0);
    ck_assert_str_eq(name, "29991231T000008Z");
}
END_TEST

START_TEST(test_manifest_in_the_wrong_place)
{
    CLEANUP_STORE struct store *s = create_store();
    CLEANUP_ERROR struct error *err = NULL;
    const struct store_point *p = NULL;

    add_point(s, POINT1, "vda", NULL);
    add_point(s, POINT2, "vda", POINT1);
    ck_assert_int_eq(
        rename(at("dir/" POINT1 ".json"), at("dir/" POINT3 ".json")), 0);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    ck_assert_uint_eq(store_count(s), 2);
    ck_assert_int_eq(store_find_point(s, "latest", &p, &err), -EUCLEAN);
    ck_assert_ptr_nonnull(strstr(error_message(err), POINT1));
    const struct manifest_disk *parent = NULL;
    ck_assert_int_eq(
        store_parent(s, &store_point(s, 0)->manifest->disks[0], &parent, NULL),
        -EUCLEAN);
    json_t *o = NULL;
    ck_assert_int_eq(store_chain_options(s, "vda", POINT2, &o, NULL), -EUCLEAN);

    /* That point's files stay: they may be all that is left of it. */
    ck_assert_int_eq(unlink(at("dir/" POINT3 ".json")), 0);
    put(at("dir/" POINT1 ".json"), "{}", 2);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    ck_assert_ptr_null(store_point(s, 0)->manifest);
    ck_assert_int_eq(store_clean(s, NULL, NULL), 0);
    ck_assert(exists(at("dir/vda/" POINT1 ".qcow2")));
}
END_TEST

START_TEST(test_pending)
{
    CLEANUP_STORE struct store *s = create_store();

    add_point(s, POINT1, "vda", NULL);
    ck_assert_int_eq(
        store_put_pending(s, one_disk(s, POINT2, "vda", POINT1), NULL), 0);
    ck_assert_int_eq(
        store_put_pending(s, one_disk(s, POINT3, "vda", POINT1), NULL),
        -EEXIST);
    store_close(s);

    /* Its files are not there: it is not finished. */
    s = reopen_store(STORE_WRITE);
    ck_assert_uint_eq(store_count(s), 1);
    ck_assert_str_eq(store_pending(s)->name, POINT2);
    ck_assert_int_eq(store_finish_pending(s, NULL), -EUCLEAN);

    put(at("dir/vda/" POINT2 ".qcow2"), "", 0);
    put(at("dir/vda/" POINT2 ".sums"), "", 0);
    ck_assert_int_eq(store_clean(s, NULL, NULL), 0);
    ck_assert(exists(at("dir/vda/" POINT2 ".qcow2")));
    ck_assert_int_eq(store_drop_pending(s, NULL), 0);
    ck_assert_ptr_null(store_pending(s));
    ck_assert(!exists(at("dir/" POINT2 ".json.pending")));
    ck_assert(!exists(at("dir/vda/" POINT2 ".qcow2")));
    ck_assert(!exists(at("dir/vda/" POINT2 ".sums")));
    ck_assert(exists(at("dir/vda/" POINT1 ".qcow2")));
    ck_assert_int_eq(store_drop_pending(s, NULL), 0);

    /* Nor does another one get its name, as the clock goes. */
    char name[POINT_NAME_MAX];
    put(at("dir/29991231T000000Z.json.pending"), "{", 1);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    ck_assert_int_eq(store_drop_pending(s, NULL), 0);
    ck_assert_int_eq(store_new_name(s, "", name, NULL), 0);
    ck_assert_str_eq(name, "29991231T000001Z");

    /* One that nobody can read goes, too. */
    put(at("dir/" POINT2 ".json.pending"), "{", 1);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    ck_assert_ptr_nonnull(store_pending(s));
    ck_assert_int_eq(store_finish_pending(s, NULL), -EUCLEAN);
    ck_assert_int_eq(store_drop_pending(s, NULL), 0);
    ck_assert_uint_eq(store_count(s), 1);
}
END_TEST

START_TEST(test_held_points)
{
    CLEANUP_STORE struct store *s = create_store();
    int a;
    int b;
    int c;

    add_point(s, POINT1, "vda", NULL);
    ck_assert_int_eq(store_hold(s, POINT1, false, &a, NULL), 0);
    ck_assert_int_eq(store_hold(s, POINT1, false, &b, NULL), 0);
    ck_assert_int_eq(store_hold(s, POINT1, true, &c, NULL), -EBUSY);
    close(a);
    close(b);
    ck_assert_int_eq(store_hold(s, POINT1, true, &c, NULL), 0);
    ck_assert_int_eq(store_hold(s, POINT1, false, &a, NULL), -EBUSY);
    close(c);
    ck_assert_int_eq(store_hold(s, POINT2, false, &a, NULL), -ENOENT);
}
END_TEST

/* --- Cleaning --- */

START_TEST(test_clean)
{
    static const char *const gone[] = {
        "tmp.77.0",
        POINT3 ".xml",
        POINT3 ".verified",
        POINT3 ".json.pending",
        "vda/" POINT3 ".qcow2",
        "vda/" POINT3 ".sums",
        "vda/" POINT2 ".qcow2.part",
        "vda/" POINT3 ".qcow2.part",
        "vda/" POINT3 ".sums.part",
    };
    static const char *const kept[] = {
        "letter",
        "vda/letter",
        "tmp.letter",
        "vda/" POINT3 ".raw",
        "vda/" POINT3 ".qcow2.old",
        "vda/20269999T000000Z.qcow2",
        "vda/" POINT1 ".qcow2",
        "vda/" POINT2 ".qcow2",
        "vda/" POINT2 ".sums",
        POINT2 ".xml",
        POINT2 ".json",
    };
    CLEANUP_STORE struct store *s = create_store();
    unsigned removed = 0;

    /* Somebody has taken the first point's manifest away by hand: its file is
     * the second one's parent all the same. */
    add_point(s, POINT1, "vda", NULL);
    add_point(s, POINT2, "vda", POINT1);
    ck_assert_int_eq(unlink(at("dir/" POINT1 ".json")), 0);
    for (size_t i = 0; i < ARRAY_SIZE(gone); i++) {
        put(at("dir/%s", gone[i]), "", 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(kept); i++) {
        if (!exists(at("dir/%s", kept[i]))) {
            put(at("dir/%s", kept[i]), "", 0);
        }
    }

    /* Folders that are links lead elsewhere. */
    ck_assert_int_eq(mkdir(at("else"), 0700), 0);
    put(at("else/" POINT3 ".qcow2"), "", 0);
    ck_assert_int_eq(symlink(at("else"), at("dir/vdb")), 0);

    /* Prune's journal is there: nothing is touched. */
    put(at("dir/" STORE_JOURNAL), "", 0);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    ck_assert_int_eq(store_clean(s, &removed, NULL), 0);
    ck_assert_uint_eq(removed, 0);
    ck_assert_int_eq(unlink(at("dir/" STORE_JOURNAL)), 0);

    /* A pending point that came later is one; this is an older one's. */
    ck_assert_int_eq(unlink(at("dir/" POINT3 ".json.pending")), 0);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    put(at("dir/" POINT3 ".json.pending"), "", 0);
    ck_assert_int_eq(store_clean(s, &removed, NULL), 0);
    ck_assert_uint_eq(removed, ARRAY_SIZE(gone));
    for (size_t i = 0; i < ARRAY_SIZE(gone); i++) {
        ck_assert_msg(!exists(at("dir/%s", gone[i])), "%s", gone[i]);
    }
    for (size_t i = 0; i < ARRAY_SIZE(kept); i++) {
        ck_assert_msg(exists(at("dir/%s", kept[i])), "%s", kept[i]);
    }
    ck_assert(exists(at("else/" POINT3 ".qcow2")));
}
END_TEST

/* --- Nothing leads outside --- */

START_TEST(test_links)
{
    CLEANUP_STORE struct store *s = create_store();
    int fd = -1;
    json_t *o = NULL;

    put(at("victim"), "secret", 6);
    ck_assert_int_eq(mkdir(at("else"), 0700), 0);
    ck_assert_int_eq(symlink(at("else"), at("dir/vda")), 0);
    ck_assert_int_lt(store_add_disk(s, "vda", NULL), 0);
    ck_assert_int_eq(store_add_disk(s, "../vdb", NULL), -EINVAL);
    ck_assert(!exists(at("vdb")));

    ck_assert_int_eq(store_add_disk(s, "vdc", NULL), 0);
    ck_assert_int_eq(symlink(at("victim"), at("dir/vdc/" POINT1 ".qcow2")), 0);
    ck_assert_int_eq(
        store_open_file(s, "vdc", POINT1, "qcow2", &fd, NULL, NULL), -ELOOP);
    ck_assert_int_eq(store_layer_options(s, "vdc", POINT1, &o, NULL), -ELOOP);
    ck_assert_int_eq(store_create_file(s, "vdc", POINT1, "qcow2", &fd, NULL),
                     -EEXIST);
    ck_assert_int_eq(store_create_file(s, "vdc", "../../x", "qcow2", &fd, NULL),
                     -EINVAL);

    /* A definition replaces the link and not what it leads to. */
    char hash[HASH_TEXT_MAX];
    ck_assert_int_eq(symlink(at("victim"), at("dir/" POINT1 ".xml")), 0);
    ck_assert_int_eq(store_put_definition(s, POINT1, "<domain/>", hash, NULL),
                     0);
    struct stat st;
    ck_assert_int_eq(stat(at("victim"), &st), 0);
    ck_assert_int_eq(st.st_size, 6);
    ck_assert_int_eq(lstat(at("dir/" POINT1 ".xml"), &st), 0);
    ck_assert(S_ISREG(st.st_mode) && st.st_size == 9);
}
END_TEST

/* --- The k-th step fails --- */

/* A point is put and finished; the error, or 0. */
static int put_point(struct store *s)
{
    int r = store_put_pending(s, one_disk(s, POINT2, "vda", POINT1), NULL);

    return r < 0 ? r : store_finish_pending(s, NULL);
}

static void check_after_failure(bool told)
{
    CLEANUP_STORE struct store *s = reopen_store(STORE_WRITE);

    ck_assert_ptr_nonnull(store_point(s, 0)->manifest);
    ck_assert_str_eq(store_point(s, 0)->name, POINT1);
    if (store_pending(s)) {
        ck_assert_uint_eq(store_count(s), 1);
        ck_assert_ptr_nonnull(store_pending(s)->manifest);
        ck_assert_int_eq(store_finish_pending(s, NULL), 0);
    } else if (store_count(s) == 1) {
        ck_assert(told);
        ck_assert_int_eq(put_point(s), 0);
    }
    ck_assert_uint_eq(store_count(s), 2);
    ck_assert_ptr_nonnull(store_latest(s)->manifest);
    unsigned removed = 99;
    ck_assert_int_eq(store_clean(s, &removed, NULL), 0);
    ck_assert(exists(at("dir/vda/" POINT2 ".qcow2")));
    ck_assert_int_eq(store_clean(s, &removed, NULL), 0);
    ck_assert_uint_eq(removed, 0);
}

static bool fail_once(int call, bool break_off)
{
    base_setup();
    struct store *s = create_store();
    add_point(s, POINT1, "vda", NULL);
    put(at("dir/vda/" POINT2 ".qcow2"), "", 0);
    put(at("dir/vda/" POINT2 ".sums"), "", 0);
    fail_at(call, break_off);
    int r = put_point(s);
    bool reached = storage.calls >= call;
    fail_at(0, false);
    ck_assert_msg(reached == (r < 0), "call %d: %d", call, r);
    store_close(s);
    check_after_failure(r < 0);
    base_teardown();
    return reached;
}

START_TEST(test_each_step_fails)
{
    int calls = 0;

    base_teardown();
    for (int break_off = 0; break_off < 2; break_off++) {
        for (int k = 1; fail_once(k, break_off); k++) {
            calls++;
        }
    }
    ck_assert_int_ge(calls, 2 * 6);
    base_setup();
}
END_TEST

/* By somebody who cleans meanwhile. */
START_TEST(test_unfinished_file_is_taken)
{
    CLEANUP_STORE struct store *s = create_store();

    storage.steal = 2;
    ck_assert_int_eq(store_put_file(s, POINT1 ".verified", "{}", 2, NULL), 0);
    ck_assert(exists(at("dir/" POINT1 ".verified")));
    storage.steal = 100;
    ck_assert_int_eq(store_put_file(s, POINT2 ".verified", "{}", 2, NULL),
                     -ENOENT);
    storage.steal = 0;
}
END_TEST

/* What a failed retry in one process finds. */
START_TEST(test_finish_again)
{
    CLEANUP_STORE struct store *s = create_store();

    add_point(s, POINT1, "vda", NULL);
    put(at("dir/vda/" POINT2 ".qcow2"), "", 0);
    put(at("dir/vda/" POINT2 ".sums"), "", 0);
    ck_assert_int_eq(
        store_put_pending(s, one_disk(s, POINT2, "vda", POINT1), NULL), 0);
    fail_at(2, false); /* the flush after the rename */
    ck_assert_int_eq(store_finish_pending(s, NULL), -EIO);
    fail_at(0, false);
    ck_assert_int_eq(store_finish_pending(s, NULL), 0);
    ck_assert_uint_eq(store_count(s), 2);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("store");
    TCase *tc = tcase_create("all");

    tcase_add_checked_fixture(tc, base_setup, base_teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, test_made_and_opened);
    tcase_add_test(tc, test_what_is_not_ours);
    tcase_add_test(tc, test_broken_configuration);
    tcase_add_test(tc, test_lock);
    tcase_add_test(tc, test_points_in_order);
    tcase_add_test(tc, test_manifest_in_the_wrong_place);
    tcase_add_test(tc, test_pending);
    tcase_add_test(tc, test_held_points);
    tcase_add_test(tc, test_clean);
    tcase_add_test(tc, test_links);
    tcase_add_test(tc, test_each_step_fails);
    tcase_add_test(tc, test_unfinished_file_is_taken);
    tcase_add_test(tc, test_finish_again);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
