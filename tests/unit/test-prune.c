/* SPDX-License-Identifier: BSD-3-Clause */
/* Points go, and the ones that stay are what they were: in any order, with
 * disks that come and go, when each step fails or the process ends there; what
 * is being read, is damaged or makes no sense is left alone.  No cluster is
 * lost. */
#include <check.h>
#include <errno.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#include "nbdelta/transfer.h"
#include "qcow2-check.h"
#include "store-util.h"
#include "store/prune.h"
#include "store/verify.h"

#define SIZE   (2 * MiB + 3 * CHUNK + 512)
#define CHUNK  (64 * KiB)
#define CHUNKS ((unsigned)(SIZE / CHUNK + 1))
#define POINTS 6
#define DISKS  2

/* --- Storage that fails: this program has its own of these --- */

static struct {
    _Atomic int calls; /* so far */
    int fail;          /* this one of them fails; 0: none */
    bool break_off;    /* and all that follow: the process has ended */
} storage;

static bool fails(void)
{
    int n = atomic_fetch_add(&storage.calls, 1) + 1;

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

int fdatasync(int fd)
{
    return fails() ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int renameat(int a, const char *from, int b, const char *to)
{
    return fails() ? -1 : (int)syscall(SYS_renameat2, a, from, b, to, 0);
}

int unlinkat(int dir, const char *name, int flags)
{
    return fails() ? -1 : (int)syscall(SYS_unlinkat, dir, name, flags);
}

ssize_t write(int fd, const void *buf, size_t n)
{
    return fails() ? -1 : syscall(SYS_write, fd, buf, n);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int cnt, off_t at, int flags)
{
    return fails() ? -1
                   : syscall(SYS_pwritev2, fd, iov, cnt, (long)at, 0L, flags);
}

static void fail_at(int call, bool break_off)
{
    storage.calls = 0;
    storage.fail = call;
    storage.break_off = break_off;
}

/* --- Disks that change, and points of them --- */

static const char *const disks[DISKS] = {"vda", "vdb"};

static struct graph *g;
static struct store *s;
static uint32_t seed;
static char names[POINTS][POINT_NAME_MAX];
static struct blk *source[DISKS];
static uint8_t now[DISKS][SIZE];
static char last_hash[DISKS][HASH_TEXT_MAX];
static char last_point[DISKS][POINT_NAME_MAX]; /* "": the next is a full */
static uint8_t *frozen[POINTS][DISKS];         /* NULL: it is not there */

static unsigned pick(unsigned below)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 16) % below;
}

static struct node *node_of(json_t *o)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct node *n;
    int r = graph_open(g, o, &n, &err);

    json_decref(o);
    ck_assert_msg(r == 0, "%s", error_message(err));
    return n;
}

static struct blk *blk_of(struct node *n, unsigned perm)
{
    struct blk *b;

    ck_assert_int_eq(blk_new(g, n, perm, PERM_ALL, "test", &b, NULL), 0);
    return b;
}

static void setup(void)
{
    fail_at(0, false);
    seed = 1;
    base_setup();
    g = graph_new();
    s = create_store();
    for (int d = 0; d < DISKS; d++) {
        source[d] = blk_of(node_of(json_pack("{s:s,s:I}", "driver", "mem",
                                             "size", (json_int_t)SIZE)),
                           PERM_READ | PERM_WRITE);
        memset(now[d], 0, SIZE);
        last_point[d][0] = '\0';
    }
}

static void teardown(void)
{
    for (int d = 0; d < DISKS; d++) {
        blk_free(source[d]);
        for (int i = 0; i < POINTS; i++) {
            free(frozen[i][d]);
            frozen[i][d] = NULL;
        }
    }
    store_close(s);
    graph_free(g);
    base_teardown();
}

static uint64_t chunk_bytes(unsigned chunk)
{
    return min_u64(SIZE - chunk * CHUNK, CHUNK);
}

static void change(int d, unsigned chunk, int byte)
{
    memset(now[d] + chunk * CHUNK, byte, chunk_bytes(chunk));
    ck_assert_int_eq(blk_pwrite(source[d], now[d] + chunk * CHUNK,
                                chunk_bytes(chunk), chunk * CHUNK, 0),
                     0);
}

static struct node *make_file(const char *disk, const char *point,
                              const char *parent)
{
    CLEANUP_FREE char *path = NULL;
    CLEANUP_ERROR struct error *err = NULL;

    ck_assert_int_eq(store_add_disk(s, disk, NULL), 0);
    ck_assert_int_eq(store_file_path(s, disk, point, "qcow2.part", &path, NULL),
                     0);
    CLEANUP_JSON json_t *o = json_pack("{s:I}", "size", (json_int_t)SIZE);
    if (parent[0]) {
        char name[64];
        (void)snprintf(name, sizeof(name), "%s.qcow2", parent);
        json_object_set_new(o, "backing_file", json_string(name));
        json_object_set_new(o, "backing_fmt", json_string("qcow2"));
        json_object_set_new(o, "backing_unchecked", json_true());
    }
    int r = image_create(path, "qcow2", o, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    return node_of(json_pack("{s:s,s:n,s:{s:s,s:s}}", "driver", "qcow2",
                             "backing", "file", "driver", "file", "filename",
                             path));
}

/* Copy what @dirty says; in a full, all.  Every other chunk is compressed. */
static void copy_disk(int d, struct node *n, struct sums *sums,
                      const bool *dirty)
{
    for (int packed = 0; packed < 2; packed++) {
        struct transfer_options o = {
            .tap = sums_tap, .opaque = sums, .compress = packed};
        struct transfer *t;

        ck_assert_int_eq(transfer_new(g, blk_node(source[d]), n, &o, &t, NULL),
                         0);
        for (unsigned c = 0; c < CHUNKS; c++) {
            if ((!dirty || dirty[c]) && (int)(c % 2) == packed) {
                transfer_add(t, c * CHUNK, chunk_bytes(c));
            }
        }
        ck_assert_int_eq(transfer_run(t, NULL, NULL), 0);
        transfer_free(t);
    }
}

static void back_up(int d, struct manifest *m, const bool *dirty)
{
    const char *parent = last_point[d];
    struct node *n = make_file(disks[d], m->name, parent);
    struct sums *sums = sums_new(SIZE, !parent[0]);
    struct manifest_disk *disk = manifest_add(m, disks[d]);
    int fd = -1;

    copy_disk(d, n, sums, parent[0] ? dirty : NULL);
    struct blk *file = blk_of(n, PERM_READ);
    ck_assert_int_eq(sums_finish(sums, file, NULL), 0);
    blk_free(file);
    ck_assert_int_eq(graph_close(g, n, NULL), 0);

    disk->size = SIZE;
    disk->kind = parent[0] ? DISK_INCREMENT : DISK_FULL;
    disk->reason = parent[0] ? REASON_NONE : REASON_NEW_DISK;
    disk->read = 1000;
    strcpy(disk->parent, parent);
    strcpy(disk->parent_hash, parent[0] ? last_hash[d] : "");
    ck_assert_int_eq(
        store_create_file(s, disks[d], m->name, "sums.part", &fd, NULL), 0);
    ck_assert_int_eq(sums_write(sums, fd, disk->sums_hash, NULL), 0);
    close(fd);
    sums_free(sums);
    ck_assert_int_eq(store_keep_disk(s, disks[d], m->name, NULL), 0);
    strcpy(last_hash[d], disk->sums_hash);
    strcpy(last_point[d], m->name);
}

static struct manifest *begin_point(unsigned i)
{
    struct manifest *m = manifest_new();

    (void)snprintf(names[i], POINT_NAME_MAX, "202611%02uT023000Z", i + 1);
    strcpy(m->name, names[i]);
    strcpy(m->id, store_id(s));
    return m;
}

static void end_point(struct manifest *m)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = store_put_pending(s, m, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    ck_assert_int_eq(store_finish_pending(s, NULL), 0);
}

static void freeze(unsigned i, int d)
{
    frozen[i][d] = malloc(SIZE);
    memcpy(frozen[i][d], now[d], SIZE);
}

/* Some of a disk changes, some of that to zeroes, and some is only said to. */
static void change_some(int d, bool *dirty)
{
    for (unsigned c = 0; c < CHUNKS; c++) {
        unsigned what = pick(8);

        dirty[c] = what < 4;
        if (what < 3) {
            change(d, c, what == 0 ? 0 : (int)pick(255) + 1);
        }
    }
}

/* Six points.  vdb is not in the third one, and a full in the fourth. */
static void make_points(void)
{
    for (unsigned i = 0; i < POINTS; i++) {
        struct manifest *m = begin_point(i);

        for (int d = 0; d < DISKS; d++) {
            bool dirty[CHUNKS];

            if (d == 1 && i == 2) {
                last_point[d][0] = '\0';
                continue;
            }
            change_some(d, dirty);
            back_up(d, m, dirty);
            freeze(i, d);
        }
        end_point(m);
    }
}

/* --- Looking --- */

static void check_content(json_t *options, unsigned i, int d)
{
    static uint8_t got[SIZE];
    struct graph *own = graph_new();
    CLEANUP_ERROR struct error *err = NULL;
    struct node *n;
    struct blk *b;

    int r = graph_open(own, options, &n, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    ck_assert_int_eq(blk_new(own, n, PERM_READ, PERM_ALL, "test", &b, NULL), 0);
    ck_assert_int_eq(blk_pread(b, got, SIZE, 0, 0), 0);
    ck_assert_msg(memcmp(got, frozen[i][d], SIZE) == 0, "%s of %s differs",
                  disks[d], names[i]);
    blk_free(b);
    graph_free(own);
    json_decref(options);
}

/* As other tools do: by the names in the images. */
static void check_by_names(unsigned i)
{
    for (int d = 0; d < DISKS; d++) {
        if (frozen[i][d]) {
            check_content(json_pack("{s:s,s:b,s:{s:s,s:s}}", "driver", "qcow2",
                                    "read-only", 1, "file", "driver", "file",
                                    "filename",
                                    at("dir/%s/%s.qcow2", disks[d], names[i])),
                          i, d);
        }
    }
}

static void check_by_manifests(unsigned i)
{
    for (int d = 0; d < DISKS; d++) {
        CLEANUP_ERROR struct error *err = NULL;
        json_t *o = NULL;

        if (frozen[i][d]) {
            int r = store_chain_options(s, disks[d], names[i], &o, &err);
            ck_assert_msg(r == 0, "%s", error_message(err));
            check_content(o, i, d);
        }
    }
}

static void fail_damage(const struct damage *d, void *opaque)
{
    (void)opaque;
    ck_abort_msg("%s of %s at %llu: %s", d->disk ? d->disk : "all", d->point,
                 (unsigned long long)d->offset, d->what);
}

static void verify(void)
{
    struct verify_options o = {.on_damage = fail_damage, .threads = 1};
    struct verify_result result;
    CLEANUP_ERROR struct error *err = NULL;
    int r = verify_all(s, &o, &result, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
}

/* No cluster of the file is lost, and none is missing. */
static void check_clusters(const char *path)
{
    CLEANUP_FREE unsigned char *bytes = NULL;
    struct stat st;
    FILE *f = fopen(path, "r");

    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fstat(fileno(f), &st), 0);
    bytes = malloc((size_t)st.st_size);
    ck_assert_ptr_nonnull(bytes);
    ck_assert_uint_eq(fread(bytes, 1, (size_t)st.st_size, f), st.st_size);
    (void)fclose(f);
    struct image image = {bytes, (uint64_t)st.st_size};
    struct verdict v = check_image(&image);
    ck_assert_uint_eq(v.corruptions, 0);
    ck_assert_msg(v.leaks == 0, "%s: %u clusters are lost", path,
                  (unsigned)v.leaks);
}

/* Just the points of @mask are there, and right in all ways; and nothing
 * else. */
static void check_points(unsigned mask)
{
    unsigned count = 0;
    unsigned files = 0;

    ck_assert_int_eq(store_reload(s, NULL), 0);
    for (unsigned i = 0; i < POINTS; i++) {
        bool stays = mask & (1U << i);

        ck_assert_msg((store_named(s, names[i]) != NULL) == stays, "%s is %s",
                      names[i], stays ? "missing" : "there");
        count += stays;
        for (int d = 0; d < DISKS; d++) {
            bool there = exists(at("dir/%s/%s.qcow2", disks[d], names[i]));
            ck_assert_int_eq(there, stays && frozen[i][d]);
            if (there) {
                check_clusters(at("dir/%s/%s.qcow2", disks[d], names[i]));
            }
            there = exists(at("dir/%s/%s.sums", disks[d], names[i]));
            ck_assert_int_eq(there, stays && frozen[i][d]);
            files += there;
        }
        if (stays) {
            check_by_names(i);
            check_by_manifests(i);
        }
    }
    ck_assert(!exists(at("dir/" STORE_JOURNAL)));
    ck_assert_uint_eq(store_count(s), count);
    ck_assert_uint_gt(files, 0);
    verify();
}

static void remove_point(unsigned i)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = prune_point(s, names[i], NULL, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
}

static void refused(unsigned i, int errnum, const char *why)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = prune_point(s, names[i], NULL, &err);

    ck_assert_int_eq(r, -errnum);
    ck_assert_msg(strstr(error_message(err), why) != NULL, "%s",
                  error_message(err));
}

/* --- Points go --- */

START_TEST(test_orders)
{
    static const unsigned orders[][POINTS - 1] = {
        {0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {2, 0, 4, 1, 3}, {1, 3, 2, 4, 0}};
    unsigned mask = (1U << POINTS) - 1;

    make_points();
    check_points(mask);
    for (unsigned i = 0; i < POINTS - 1; i++) {
        remove_point(orders[_i][i]);
        mask &= ~(1U << orders[_i][i]);
        check_points(mask);
    }
    refused(POINTS - 1, EINVAL, "latest");
    refused(0, ENOENT, "no point");
}
END_TEST

/* What the manifest says afterwards. */
START_TEST(test_manifest)
{
    make_points();
    remove_point(0);
    store_close(s);
    s = reopen_store(STORE_WRITE);
    const struct manifest_disk *d =
        &store_named(s, names[1])->manifest->disks[0];
    ck_assert_int_eq(d->kind, DISK_FULL);
    ck_assert_int_eq(d->reason, REASON_NEW_DISK);
    ck_assert_str_eq(d->parent, "");
    ck_assert_str_eq(d->parent_hash, "");
    ck_assert_uint_eq(d->read, 2000);
    ck_assert_uint_eq(d->written + d->zero, SIZE);

    remove_point(3);
    d = &store_named(s, names[4])->manifest->disks[0];
    ck_assert_int_eq(d->kind, DISK_INCREMENT);
    ck_assert_int_eq(d->reason, REASON_NONE);
    ck_assert_str_eq(d->parent, names[2]);
    ck_assert_str_eq(d->parent_hash,
                     store_named(s, names[2])->manifest->disks[0].sums_hash);
    ck_assert_uint_gt(d->written, 0);
    ck_assert_uint_gt(d->zero, 0);
}
END_TEST

/* --- Steps that fail --- */

static void copy_dir(const char *from, const char *to)
{
    char command[1200];

    (void)snprintf(command, sizeof(command), "rm -rf '%s' && cp -a '%s' '%s'",
                   to, from, to);
    ck_assert_int_eq(system(command), 0); /* NOLINT(cert-env33-c) */
}

/* From the second point on each is over the one before, and changes the next
 * one's manifest and that of the one after that. */
#define GOES 1

static void check_others_by_names(void)
{
    for (unsigned i = 0; i < POINTS; i++) {
        if (i != GOES) {
            check_by_names(i);
        }
    }
}

/* The point has gone, or nothing has happened. */
static void check_either(void)
{
    unsigned all = (1U << POINTS) - 1;

    check_points(store_named(s, names[GOES]) ? all : all & ~(1U << GOES));
}

/* 0: the k-th call was not reached. */
static bool try_broken_off(int k)
{
    CLEANUP_ERROR struct error *err = NULL;

    copy_dir(at("whole"), at("dir"));
    s = reopen_store(STORE_WRITE);
    fail_at(k, true);
    int r = prune_point(s, names[GOES], NULL, NULL);
    bool reached = storage.calls >= k;
    store_close(s);
    s = NULL;
    fail_at(0, false);
    ck_assert_int_eq(r == 0, !reached);
    check_others_by_names();

    s = reopen_store(STORE_WRITE);
    r = prune_recover(s, NULL, &err);
    ck_assert_msg(r == 0, "%d: %s", k, error_message(err));
    check_either();
    return reached;
}

START_TEST(test_ends_anywhere)
{
    int k = 1;

    make_points();
    store_close(s);
    copy_dir(at("dir"), at("whole"));
    while (try_broken_off(k)) {
        store_close(s);
        k++;
    }
    ck_assert_int_gt(k, 25);
}
END_TEST

/* And the recovery ends anywhere, too. */
START_TEST(test_recovery_ends)
{
    int k = 1;
    bool reached = true;

    make_points();
    store_close(s);
    copy_dir(at("dir"), at("whole"));
    s = reopen_store(STORE_WRITE);
    fail_at(12, true); /* somewhere in the merge */
    ck_assert_int_lt(prune_point(s, names[GOES], NULL, NULL), 0);
    store_close(s);
    fail_at(0, false);
    ck_assert(exists(at("dir/" STORE_JOURNAL)));
    ck_assert(!exists(at("dir/%s.json", names[GOES])));
    copy_dir(at("dir"), at("begun"));
    for (; reached; k++) {
        copy_dir(at("begun"), at("dir"));
        s = reopen_store(STORE_WRITE);
        fail_at(k, true);
        int r = prune_recover(s, NULL, NULL);
        reached = storage.calls >= k;
        store_close(s);
        fail_at(0, false);
        ck_assert_int_eq(r == 0, !reached);
        check_others_by_names();
        s = reopen_store(STORE_WRITE);
        ck_assert_int_eq(prune_recover(s, NULL, NULL), 0);
        check_points(((1U << POINTS) - 1) & ~(1U << GOES));
        store_close(s);
    }
    s = NULL;
    ck_assert_int_gt(k, 15);
}
END_TEST

/* One call fails; then the same is asked for again. */
START_TEST(test_fails_once)
{
    bool reached = true;

    make_points();
    store_close(s);
    copy_dir(at("dir"), at("whole"));
    for (int k = 1; reached; k++) {
        CLEANUP_ERROR struct error *err = NULL;

        copy_dir(at("whole"), at("dir"));
        s = reopen_store(STORE_WRITE);
        fail_at(k, false);
        int r = prune_point(s, names[GOES], NULL, NULL);
        reached = storage.calls >= k;
        fail_at(0, false);
        if (r < 0) {
            r = prune_point(s, names[GOES], NULL, &err);
            ck_assert_msg(r == 0 || r == -ENOENT, "%d: %s", k,
                          error_message(err));
        }
        check_points(((1U << POINTS) - 1) & ~(1U << GOES));
        store_close(s);
    }
    s = NULL;
}
END_TEST

/* --- What is left alone --- */

START_TEST(test_read_points_stay)
{
    make_points();
    for (unsigned i = GOES; i <= GOES + 1; i++) {
        int fd = -1;
        ck_assert_int_eq(store_hold(s, names[i], false, &fd, NULL), 0);
        refused(GOES, EBUSY, "is being read");
        close(fd);
    }
    json_t *o = NULL;
    ck_assert_int_eq(store_layer_options(s, "vda", names[GOES], &o, NULL), 0);
    struct node *n = node_of(o);
    refused(GOES, EBUSY, names[GOES]);
    ck_assert_int_eq(graph_close(g, n, NULL), 0);
    check_points((1U << POINTS) - 1);
}
END_TEST

/* A reader of the manifests before a prune sees no damage afterwards. */
START_TEST(test_readers_follow)
{
    struct verify_options o = {.quick = false};
    struct verify_result result;
    struct holds holds = {.count = 0};

    make_points();
    struct store *reader = reopen_store(STORE_READ);
    ck_assert_int_eq(prune_point(s, names[GOES], NULL, NULL), 0);
    ck_assert_int_eq(prune_point(s, names[0], NULL, NULL), 0);
    ck_assert_int_eq(verify_all(reader, &o, &result, NULL), 0);
    ck_assert_uint_eq(result.damages, 0);
    store_close(reader);

    reader = reopen_store(STORE_READ);
    ck_assert_int_eq(store_hold_chain(reader, names[POINTS - 1], &holds, NULL),
                     0);
    refused(GOES + 1, EBUSY, "is being read");
    holds_release(&holds);
    store_close(reader);
    check_points(((1U << POINTS) - 1) & ~(1U << GOES) & ~1U);
}
END_TEST

static void flip(const char *path, long at_byte)
{
    FILE *f = fopen(path, "r+");
    int c;

    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fseek(f, at_byte, SEEK_SET), 0);
    c = fgetc(f);
    ck_assert_int_eq(fseek(f, at_byte, SEEK_SET), 0);
    ck_assert_int_ne(fputc(c ^ 1, f), EOF);
    ck_assert_int_eq(fclose(f), 0);
}

/* The host offset of the first chunk that is data in a file. */
static int note_host(const struct extent *e, void *opaque)
{
    uint64_t *host = opaque;

    if (*host == 0 && (e->flags & EXTENT_HOST_VALID) &&
        (e->flags & EXTENT_DATA)) {
        *host = e->host;
    }
    return 0;
}

static long data_of(unsigned i)
{
    json_t *o = NULL;
    uint64_t host = 0;

    ck_assert_int_eq(store_layer_options(s, "vda", names[i], &o, NULL), 0);
    struct node *n = node_of(o);
    struct blk *b = blk_of(n, PERM_READ);
    ck_assert_int_eq(blk_extents(b, 0, SIZE, 0, note_host, &host), 0);
    ck_assert_uint_gt(host, 0);
    blk_free(b);
    ck_assert_int_eq(graph_close(g, n, NULL), 0);
    return (long)host;
}

/* Damage does not become right by a new hash. */
START_TEST(test_damage)
{
    unsigned all = (1U << POINTS) - 1;

    make_points();
    for (unsigned i = GOES; i <= GOES + 1; i++) {
        long host = data_of(i);
        flip(at("dir/vda/%s.qcow2", names[i]), host);
        refused(GOES, EUCLEAN, "damaged in the");
        ck_assert(!exists(at("dir/" STORE_JOURNAL)));
        flip(at("dir/vda/%s.qcow2", names[i]), host);
        flip(at("dir/vda/%s.sums", names[i]), 50);
        refused(GOES, EUCLEAN, "hashes is damaged");
        flip(at("dir/vda/%s.sums", names[i]), 50);
    }
    check_points(all);
    remove_point(GOES);
    check_points(all & ~(1U << GOES));
}
END_TEST

/* Units of which only one file decides anything keep their hashes, and so their
 * damage. */
START_TEST(test_damage_is_kept)
{
    struct verify_options o = {.threads = 1};
    struct verify_result result;
    static const unsigned chunks[] = {2, 20, 33}; /* of three units */

    for (unsigned i = 0; i < 3; i++) {
        struct manifest *m = begin_point(i);
        bool dirty[CHUNKS] = {false};

        change(0, chunks[i], (int)i + 1);
        dirty[chunks[i]] = true;
        back_up(0, m, dirty);
        freeze(i, 0);
        end_point(m);
    }
    flip(at("dir/vda/%s.qcow2", names[0]), data_of(0));
    remove_point(0);
    ck_assert_int_eq(verify_all(s, &o, &result, NULL), -EUCLEAN);
    ck_assert_uint_eq(result.damages, 1);
}
END_TEST

/* Manifests that cannot be read keep their points, and what they may need. */
START_TEST(test_unreadable_manifests)
{
    CLEANUP_FREE struct prune_point *points = NULL;
    struct keep_rules r = {.count = {[RULE_LAST] = 1}};

    make_points();
    flip(at("dir/%s.json", names[3]), 100);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    ck_assert_int_eq(prune_plan(s, &r, &points, NULL), 0);
    ck_assert_uint_eq(points[0].kept, 0);
    ck_assert_uint_eq(points[1].kept, KEEP_NEEDED);
    ck_assert_uint_eq(points[2].kept, KEEP_NEEDED);
    ck_assert_uint_eq(points[3].kept, KEEP_UNREADABLE);
    ck_assert_uint_eq(points[4].kept, 0);
    ck_assert_uint_eq(points[5].kept, KEEP_BY(RULE_LAST));
    for (unsigned i = 1; i <= 3; i++) {
        refused(i, EBUSY, "cannot be used");
    }
    remove_point(0);
    flip(at("dir/%s.json", names[3]), 100);
    check_points(0x3e);
}
END_TEST

/* A pending point keeps what it was made over, and learns its new hash. */
START_TEST(test_pending)
{
    bool dirty[CHUNKS] = {true};

    for (unsigned i = 0; i < 3; i++) {
        struct manifest *m = begin_point(i);
        change(0, 0, (int)i + 1);
        back_up(0, m, dirty);
        freeze(i, 0);
        if (i < 2) {
            end_point(m);
        } else {
            ck_assert_int_eq(store_put_pending(s, m, NULL), 0);
        }
    }
    refused(1, EINVAL, "latest");
    remove_point(0);
    store_close(s);
    s = reopen_store(STORE_WRITE);
    ck_assert_int_eq(store_finish_pending(s, NULL), 0);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    check_by_manifests(2);
    verify();
}
END_TEST

/* --- Journals of others --- */

static void journal(const char *text)
{
    CLEANUP_ERROR struct error *err = NULL;

    put(at("dir/" STORE_JOURNAL), text, strlen(text));
    int r = prune_recover(s, NULL, &err);
    ck_assert_msg(r == -EUCLEAN, "%s: %d", text, r);
    ck_assert_ptr_nonnull(strstr(error_message(err), STORE_JOURNAL));
}

static char *journal_of(const char *manifest, const char *next)
{
    CLEANUP_JSON json_t *n = json_loads(next, 0, NULL);
    CLEANUP_JSON json_t *j = json_pack("{s:i,s:s,s:O}", "nbdelta-prune", 1,
                                       "manifest", manifest, "next", n);

    return json_dumps(j, 0);
}

START_TEST(test_hostile_journals)
{
    static const char *const nexts[] = {
        "[]",
        "[null]",
        "[null, null]",
        "[\"20261103T023000Z\", 1]",
        "[\"20261103T023000Z\", \"../../../x\"]",
        "[\"20261104T023000Z\", \"20261103T023000Z\"]",
        "[\"20261103T023000Z\", null, null]",
        "[\"20291103T023000Z\", null]"};
    static const char *const texts[] = {
        "",
        "{}",
        "[]",
        "{\"nbdelta-prune\":1}",
        "{\"nbdelta-prune\":2,\"manifest\":\"\",\"next\":[]}",
        "{\"nbdelta-prune\":1,\"manifest\":\"{}\",\"next\":[]}",
        "{\"nbdelta-prune\":1,\"manifest\":5,\"next\":[]}"};
    CLEANUP_FREE char *manifest = NULL;
    size_t length;
    char file[40];

    make_points();
    (void)snprintf(file, sizeof(file), "%s.json", names[GOES]);
    ck_assert_int_eq(store_get_file(s, file, MiB, &manifest, &length, NULL), 0);
    ck_assert_int_eq(rename(at("dir/%s", file), at("aside")), 0);
    ck_assert_int_eq(store_reload(s, NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        journal(texts[i]);
    }
    for (size_t i = 0; i < ARRAY_SIZE(nexts); i++) {
        CLEANUP_FREE char *text = journal_of(manifest, nexts[i]);
        journal(text);
    }
    /* Nothing was touched, and the true one does what it says.  vdb was not in
     * the point after it. */
    ck_assert(exists(at("dir/vda/%s.qcow2", names[GOES])));
    ck_assert(exists(at("dir/vdb/%s.qcow2", names[GOES])));
    CLEANUP_FREE char *text = journal_of(manifest,
                                         "[\"20261103T023000Z\", null]");
    put(at("dir/" STORE_JOURNAL), text, strlen(text));
    bool did = false;
    ck_assert_int_eq(prune_recover(s, &did, NULL), 0);
    ck_assert(did);
    check_points(((1U << POINTS) - 1) & ~(1U << GOES));
}
END_TEST

/* --- Plans --- */

START_TEST(test_estimate)
{
    CLEANUP_FREE struct prune_point *points = NULL;
    struct keep_rules r = {.count = {[RULE_LAST] = 1}};
    CLEANUP_ERROR struct error *err = NULL;

    ck_assert_int_eq(
        prune_plan(s, &(struct keep_rules){.has_within = false}, &points, NULL),
        -EINVAL);
    for (unsigned i = 0; i < 3; i++) {
        bool dirty[CHUNKS] = {false};
        struct manifest *m = begin_point(i);
        unsigned count = i == 0 ? 10 : i == 1 ? 3 : 2;

        for (unsigned c = 0; c < count; c++) {
            /* Chunks 0 to 9 of the first; 2 to 4 of the second, 4 zeroes; 1 and
             * 2 of the third. */
            unsigned chunk = i == 0 ? c : i == 1 ? 2 + c : 1 + c;
            change(0, chunk, chunk == 4 && i == 1 ? 0 : (int)i + 1);
            dirty[chunk] = true;
        }
        back_up(0, m, dirty);
        end_point(m);
    }
    ck_assert_int_eq(prune_plan(s, &r, &points, NULL), 0);
    int e = prune_estimate(s, points, &err);
    ck_assert_msg(e == 0, "%s", error_message(err));
    ck_assert_uint_eq(points[0].bytes, 4 * CHUNK);
    ck_assert_uint_eq(points[1].bytes, CHUNK);
    ck_assert_uint_eq(points[2].bytes, 0);
}
END_TEST

static unsigned left;
static void count_left(const char *point, const struct error *why)
{
    ck_assert_str_eq(point, names[left == 0 ? 1 : 3]);
    ck_assert_ptr_nonnull(strstr(error_message(why), "being read"));
    left++;
}

/* One that is read is left, and the others go. */
START_TEST(test_all)
{
    CLEANUP_FREE struct prune_point *points = NULL;
    struct keep_rules r = {.count = {[RULE_LAST] = 2}};
    struct prune_result result;
    int fd = -1;

    make_points();
    left = 0;
    ck_assert_int_eq(store_hold(s, names[3], false, &fd, NULL), 0);
    ck_assert_int_eq(prune_plan(s, &r, &points, NULL), 0);
    /* The second one would change the manifest of the fourth. */
    points[2].kept = KEEP_BY(RULE_LAST);
    ck_assert_int_eq(prune_all(s, points, POINTS, count_left, &result, NULL),
                     -EBUSY);
    ck_assert_uint_eq(left, 2);
    ck_assert_uint_eq(result.removed, 1);
    ck_assert_uint_gt(result.freed, 0);
    close(fd);
    check_points(0x3e);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("prune");
    TCase *t = tcase_create("prune");

    tcase_set_timeout(t, 300);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, test_orders, 0, 4);
    tcase_add_test(t, test_manifest);
    tcase_add_test(t, test_ends_anywhere);
    tcase_add_test(t, test_recovery_ends);
    tcase_add_test(t, test_fails_once);
    tcase_add_test(t, test_read_points_stay);
    tcase_add_test(t, test_readers_follow);
    tcase_add_test(t, test_damage);
    tcase_add_test(t, test_damage_is_kept);
    tcase_add_test(t, test_unreadable_manifests);
    tcase_add_test(t, test_pending);
    tcase_add_test(t, test_hostile_journals);
    tcase_add_test(t, test_estimate);
    tcase_add_test(t, test_all);
    suite_add_tcase(suite, t);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
