/* SPDX-License-Identifier: BSD-3-Clause */
/* Backups: what to do on errors, bitmap modes, ways to sync, transactions. */
#include "backup-util.h"
#include "nbdelta/action.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/image.h"

static void verb(struct world *w,
                 int (*fn)(struct jobs *j, const char *id, struct error **errp))
{
    mutex_lock(&w->j->lock);
    ck_assert_int_eq(fn(w->j, "b", NULL), 0);
    mutex_unlock(&w->j->lock);
}

static const char *io_status(struct world *w)
{
    static char text[20];

    mutex_lock(&w->j->lock);
    CLEANUP_JSON json_t *list = jobs_query_block(w->j);
    mutex_unlock(&w->j->lock);
    (void)snprintf(text, sizeof(text), "%s",
                   json_string_value(
                       json_object_get(json_array_get(list, 0), "io-status")));
    return text;
}

/* --- Errors --- */

/* Fails once by @error, stops, and is resumed after the reason is gone. */
static void stop_and_resume(struct backup_options o, _Atomic int *error,
                            struct world *w, int r, const char *status)
{
    char *then = disk_read(w->src);

    o.sync = SYNC_FULL;
    *error = r;
    (void)start(w, o, NULL);
    wait_for_event(w->j, &w->rec, "paused");
    ck_assert_str_eq(w->rec.text, "b:created b:running b:paused b:running "
                                  "b:BLOCK_JOB_ERROR b:paused");
    ck_assert_str_eq(last_str(&w->rec, "action"), "stop");
    ck_assert_str_eq(io_status(w), status);
    *error = 0;
    verb(w, job_resume);
    wait_for_jobs(w->j);
    ck_assert_ptr_null(last_str(&w->rec, "error"));
    ck_disk_is(w->dst, then);
    free(then);
}

START_TEST(an_error_can_stop_the_job_until_it_is_resumed)
{
    const struct {
        struct backup_options o;
        bool read;
        int r;
        const char *status;
    } cases[] = {
        {{.on_source_error = ON_ERROR_STOP}, true, -EIO, "failed"},
        {{.on_target_error = ON_ERROR_STOP}, false, -EIO, "failed"},
        {{.on_target_error = ON_ERROR_STOP}, false, -ENOSPC, "nospace"},
        {{.on_target_error = ON_ERROR_ENOSPC}, false, -ENOSPC, "nospace"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct world w;

        begin(&w);
        stop_and_resume(cases[i].o,
                        cases[i].read ? &trap_of(w.src)->read_error
                                      : &trap_of(w.dst)->write_error,
                        &w, cases[i].r, cases[i].status);
        end(&w);
    }
}
END_TEST

START_TEST(enospc_stops_on_nothing_else)
{
    struct world w;

    begin(&w);
    trap_of(w.dst)->write_error = -EIO;
    (void)start(&w,
                (struct backup_options){.sync = SYNC_FULL,
                                        .on_target_error = ON_ERROR_ENOSPC},
                NULL);
    wait_for_jobs(w.j);
    ck_assert_str_eq(last_str(&w.rec, "error"), "Input/output error");
    end(&w);
}
END_TEST

START_TEST(ignored_errors_are_tried_again)
{
    struct world w;

    begin(&w);
    char *then = disk_read(w.src);
    trap_of(w.src)->read_error = -EIO;
    (void)start(&w,
                (struct backup_options){.sync = SYNC_FULL,
                                        .on_source_error = ON_ERROR_IGNORE},
                NULL);
    wait_for_event(w.j, &w.rec, "b:BLOCK_JOB_ERROR b:BLOCK_JOB_ERROR");
    mutex_lock(&w.j->lock);
    ck_assert_str_eq(last_str(&w.rec, "action"), "ignore");
    mutex_unlock(&w.j->lock);
    ck_assert_str_eq(io_status(&w), "ok");
    trap_of(w.src)->read_error = 0;
    wait_for_jobs(w.j);
    ck_assert_ptr_null(last_str(&w.rec, "error"));
    ck_disk_is(w.dst, then);
    free(then);
    end(&w);
}
END_TEST

/* The point in time is gone then: stopping could not bring it back. */
START_TEST(a_failed_copy_for_a_guest_fails_even_what_would_stop)
{
    struct world w;

    begin(&w);
    trap_of(w.dst)->write_error = -EIO;
    (void)start(&w,
                (struct backup_options){.sync = SYNC_NONE,
                                        .on_target_error = ON_ERROR_STOP},
                NULL);
    guest_write(&w, 0, 'g', 10);
    wait_for_jobs(w.j);
    ck_assert_str_eq(last_str(&w.rec, "error"), "Input/output error");
    end(&w);
}
END_TEST

/* --- Bitmap modes --- */

#define DIRTY (3 * CLUSTER) /* at the clusters 0, 10, 20 */

static void make_dirty(struct world *w)
{
    ck_assert_int_eq(bitmap_add(w->g, w->src, "m", CLUSTER, false, false, NULL),
                     0);
    for (uint64_t i = 0; i <= 20; i += 10) {
        guest_write(w, i * CLUSTER, 'd', 10);
    }
    ck_assert_uint_eq(dirty_bytes(w), DIRTY);
}

static void run_mode(struct world *w, enum backup_sync sync,
                     enum bitmap_mode mode, uint64_t left)
{
    (void)start(w,
                (struct backup_options){
                    .sync = sync, .bitmap = "m", .bitmap_mode = mode},
                NULL);
    wait_for_jobs(w->j);
    ck_assert_uint_eq(dirty_bytes(w), left);
}

START_TEST(modes_decide_what_a_success_clears)
{
    static const struct {
        enum backup_sync sync;
        enum bitmap_mode mode;
        uint64_t copied;
        uint64_t left;
    } cases[] = {
        {SYNC_BITMAP, BITMAP_ON_SUCCESS, DIRTY, 0},
        {SYNC_BITMAP, BITMAP_ALWAYS, DIRTY, 0},
        {SYNC_BITMAP, BITMAP_NEVER, DIRTY, DIRTY},
        {SYNC_FULL, BITMAP_ON_SUCCESS, SIZE, 0},
        {SYNC_FULL, BITMAP_ALWAYS, SIZE, 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct world w;

        begin(&w);
        make_dirty(&w);
        run_mode(&w, cases[i].sync, cases[i].mode, cases[i].left);
        ck_assert_ptr_null(last_str(&w.rec, "error"));
        ck_assert_int_eq(last_int(&w.rec, "offset"),
                         (json_int_t)cases[i].copied);
        end(&w);
    }
}
END_TEST

START_TEST(a_failure_keeps_what_was_not_copied)
{
    static const struct {
        enum backup_sync sync;
        enum bitmap_mode mode;
        uint64_t left;
    } cases[] = {
        {SYNC_BITMAP, BITMAP_ON_SUCCESS, DIRTY},
        {SYNC_BITMAP, BITMAP_NEVER, DIRTY},
        {SYNC_BITMAP, BITMAP_ALWAYS, DIRTY},
        {SYNC_FULL, BITMAP_ON_SUCCESS, DIRTY},
        {SYNC_FULL, BITMAP_ALWAYS, SIZE},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct world w;

        begin(&w);
        make_dirty(&w);
        trap_of(w.dst)->write_error = -EIO;
        run_mode(&w, cases[i].sync, cases[i].mode, cases[i].left);
        ck_assert_str_eq(last_str(&w.rec, "error"), "Input/output error");
        end(&w);
    }
}
END_TEST

START_TEST(what_cannot_be_flushed_was_not_copied)
{
    static const enum bitmap_mode modes[] = {BITMAP_ON_SUCCESS, BITMAP_ALWAYS,
                                             BITMAP_NEVER};

    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        struct world w;

        begin(&w);
        make_dirty(&w);
        trap_of(w.dst)->flush_error = -EIO;
        run_mode(&w, SYNC_BITMAP, modes[i], DIRTY);
        ck_assert_str_eq(last_str(&w.rec, "error"), "Input/output error");
        end(&w);
    }
}
END_TEST

/* What storage has told another user of the target is not told twice. */
START_TEST(a_flush_of_another_user_that_fails_fails_the_job)
{
    struct blk *other;
    struct world w;

    begin(&w);
    make_dirty(&w);
    trap_gate(trap_of(w.src), true);
    (void)start(&w,
                (struct backup_options){.bitmap = "m",
                                        .sync = SYNC_BITMAP,
                                        .bitmap_mode = BITMAP_ON_SUCCESS},
                NULL);
    trap_wait(trap_of(w.src), 1);
    ck_assert_int_eq(
        blk_new(w.g, w.dst, PERM_READ, PERM_ALL, "other", &other, NULL), 0);
    trap_of(w.dst)->flush_error = -EIO;
    ck_assert_int_eq(blk_flush(other), -EIO);
    trap_of(w.dst)->flush_error = 0;
    ck_assert_int_eq(blk_flush(other), 0);
    blk_free(other);
    trap_gate(trap_of(w.src), false);
    wait_for_jobs(w.j);
    ck_assert_str_eq(last_str(&w.rec, "error"), "Input/output error");
    ck_assert_uint_eq(dirty_bytes(&w), DIRTY);
    end(&w);
}
END_TEST

/* When a part has been copied. */
static uint64_t cancel_backup(struct world *w)
{
    trap_gate(trap_of(w->src), true); /* the workers */
    (void)start(w,
                (struct backup_options){.sync = SYNC_BITMAP,
                                        .bitmap = "m",
                                        .bitmap_mode = BITMAP_ALWAYS},
                NULL);
    trap_wait(trap_of(w->src), 1);
    mutex_lock(&w->j->lock);
    ck_assert_int_eq(job_cancel(w->j, "b", true, NULL), 0);
    mutex_unlock(&w->j->lock);
    trap_gate(trap_of(w->src), false); /* what is in hand is copied */
    wait_for_jobs(w->j);
    uint64_t copied = (uint64_t)last_int(&w->rec, "offset");
    ck_assert_uint_ge(copied, CLUSTER);
    return copied;
}

START_TEST(always_gives_up_what_was_copied_before_a_cancel)
{
    struct world w;

    begin(&w);
    make_dirty(&w);
    uint64_t copied = cancel_backup(&w);
    ck_assert_uint_eq(dirty_bytes(&w), DIRTY - copied);
    end(&w);
}
END_TEST

START_TEST(always_keeps_what_a_cancel_leaves_unflushed)
{
    struct world w;

    begin(&w);
    make_dirty(&w);
    trap_of(w.dst)->flush_error = -EIO;
    (void)cancel_backup(&w);
    ck_assert_uint_eq(dirty_bytes(&w), DIRTY);
    end(&w);
}
END_TEST

/* While the job had its bits, all that it recorded was in the younger one. */
START_TEST(bits_that_come_back_hide_no_writes_from_others)
{
    uint64_t start;
    uint64_t bytes;
    struct world w;

    begin(&w);
    make_dirty(&w);
    struct bitmap *m = bitmap_find(w.src, "m");
    ck_assert_int_eq(
        bitmap_add(w.g, w.src, "younger", 4096, false, false, NULL), 0);
    struct bitmap *younger = bitmap_find(w.src, "younger");
    trap_of(w.dst)->write_error = -EIO;
    run_mode(&w, SYNC_BITMAP, BITMAP_ALWAYS, DIRTY);
    ck_assert(hbitmap_next_dirty(m->bits, 0, SIZE, &start, &bytes));
    ck_assert(!hbitmap_get(younger->bits, start));
    guest_write(&w, start, 1, 1);
    ck_assert(hbitmap_get(younger->bits, start));
    bitmap_unref(m);
    bitmap_unref(younger);
    end(&w);
}
END_TEST

/* --- Ways to sync --- */

static struct node *open_image(struct world *w, const char *name,
                               const char *file, const char *backing)
{
    json_t *o = json_pack("{s:s, s:s, s:{s:s, s:s}, s:s}", "driver", "qcow2",
                          "node-name", name, "file", "driver", "file",
                          "filename", file, "discard", "unmap");
    struct error *err = NULL;
    struct node *n;

    (void)json_object_set_new(o, "backing",
                              backing ? json_string(backing) : json_null());
    int r = graph_open(w->g, o, &n, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
    json_decref(o);
    return n;
}

static struct node *make_image(struct world *w, const char *name,
                               const char *backing)
{
    CLEANUP_JSON json_t *o = json_pack("{s:i}", "size", (int)SIZE);
    char file[100];

    (void)snprintf(file, sizeof(file), "%s/%s", w->dir, name);
    ck_assert_int_eq(image_create(file, "qcow2", o, NULL), 0);
    return open_image(w, name, file, backing);
}

static void drop_image(struct world *w, struct node *n)
{
    char file[100];

    (void)snprintf(file, sizeof(file), "%s/%s", w->dir, node_name(n));
    ck_assert_int_eq(graph_close(w->g, n, NULL), 0);
    ck_assert_int_eq(unlink(file), 0);
}

static struct blk *attach(struct world *w, struct node *n)
{
    struct blk *b;

    ck_assert_int_eq(
        blk_new(w->g, n, PERM_READ | PERM_WRITE, PERM_ALL, "t", &b, NULL), 0);
    return b;
}

static void fill(struct blk *b, uint64_t cluster, int byte)
{
    char buf[CLUSTER];

    memset(buf, byte, sizeof(buf));
    ck_assert_int_eq(blk_pwrite(b, buf, sizeof(buf), cluster * CLUSTER, 0), 0);
}

static void ck_cluster_is(struct blk *b, uint64_t cluster, int byte)
{
    char buf[CLUSTER];
    char expected[CLUSTER];

    memset(expected, byte, sizeof(expected));
    ck_assert_int_eq(blk_pread(b, buf, sizeof(buf), cluster * CLUSTER, 0), 0);
    ck_assert_mem_eq(buf, expected, sizeof(buf));
}

static int backup_of_node(struct world *w, struct node *source,
                          struct backup_options o)
{
    o.source = source;
    o.device = "b";
    mutex_lock(&w->j->lock);
    int r = start_backup(w->j, &o, NULL);
    mutex_unlock(&w->j->lock);
    return r;
}

START_TEST(top_copies_the_own_layer_alone)
{
    struct world w;

    begin(&w);
    struct node *base = make_image(&w, "base", NULL);
    struct blk *b = attach(&w, base);
    fill(b, 1, 'b');
    fill(b, 2, 'b');
    fill(b, 4, 'b');
    blk_free(b);
    struct node *top = make_image(&w, "top", "base");
    b = attach(&w, top);
    fill(b, 2, 't');
    fill(b, 3, 't');
    ck_assert_int_eq(blk_zero(b, 4 * CLUSTER, CLUSTER, 0), 0);

    ck_assert_int_eq(backup_of_node(&w, top,
                                    (struct backup_options){
                                        .sync = SYNC_TOP,
                                        .target_file = w.file,
                                    }),
                     0);
    wait_for_jobs(w.j);
    ck_assert_ptr_null(last_str(&w.rec, "error"));
    ck_assert_int_eq(last_int(&w.rec, "len"), 3 * CLUSTER);
    ck_assert_int_eq(last_int(&w.rec, "offset"), 3 * CLUSTER);
    blk_free(b);

    struct node *copy = open_image(&w, "copy", w.file, "base");
    b = attach(&w, copy);
    ck_cluster_is(b, 0, 0);
    ck_cluster_is(b, 1, 'b');
    ck_cluster_is(b, 2, 't');
    ck_cluster_is(b, 3, 't');
    ck_cluster_is(b, 4, 0);
    blk_free(b);
    ck_assert_int_eq(graph_close(w.g, copy, NULL), 0);
    copy = open_image(&w, "copy", w.file, NULL);
    CLEANUP_JSON json_t *info = node_image_info(w.g, copy);
    const char *named =
        json_string_value(json_object_get(info, "backing-filename"));
    ck_assert_ptr_nonnull(strstr(named, "/base"));
    ck_assert_int_eq(graph_close(w.g, copy, NULL), 0);
    drop_image(&w, top);
    drop_image(&w, base);
    end(&w);
}
END_TEST

START_TEST(none_keeps_what_changes_and_reads_the_rest_from_the_source)
{
    struct world w;

    begin(&w);
    struct node *disk = make_image(&w, "disk", NULL);
    struct blk *guest = attach(&w, disk);
    fill(guest, 0, 'o');
    fill(guest, 1, 'o');
    fill(guest, 2, 'o');
    struct node *fleece = make_image(&w, "fleece", "disk");
    ck_assert_int_eq(backup_of_node(&w, disk,
                                    (struct backup_options){.sync = SYNC_NONE,
                                                            .target = fleece}),
                     0);
    struct blk *pull;
    ck_assert_int_eq(
        blk_new(w.g, fleece, PERM_READ, PERM_ALL, "pull", &pull, NULL), 0);
    fill(guest, 1, 'n');
    fill(guest, 5, 'n');
    ck_assert_int_eq(blk_discard(guest, 2 * CLUSTER, CLUSTER), 0);
    ck_cluster_is(pull, 0, 'o');
    ck_cluster_is(pull, 1, 'o');
    ck_cluster_is(pull, 2, 'o');
    ck_cluster_is(pull, 5, 0);
    ck_cluster_is(guest, 1, 'n');
    ck_cluster_is(guest, 5, 'n');

    mutex_lock(&w.j->lock);
    ck_assert_int_eq(job_cancel(w.j, "b", false, NULL), 0);
    mutex_unlock(&w.j->lock);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text,
                     "b:created b:running b:paused b:running b:aborting "
                     "b:BLOCK_JOB_CANCELLED b:concluded b:null");
    ck_cluster_is(pull, 1, 'o');
    blk_free(pull);
    blk_free(guest);
    drop_image(&w, fleece);
    drop_image(&w, disk);
    end(&w);
}
END_TEST

struct puller {
    struct blk *blk;
    uint64_t clusters;
    _Atomic bool quit;
};

/* The fleece never shows anything but what was there at the start. */
static void *pull_thread(void *opaque)
{
    struct puller *p = opaque;

    for (unsigned i = 0; !atomic_load(&p->quit); i++) {
        ck_cluster_is(p->blk, i % p->clusters, 'o');
    }
    return NULL;
}

START_TEST(a_fleece_stays_the_same_while_the_guest_writes)
{
    struct world w;
    struct puller p = {.clusters = 32};
    pthread_t t;

    begin(&w);
    struct node *disk = make_image(&w, "disk", NULL);
    struct blk *guest = attach(&w, disk);
    for (uint64_t i = 0; i < p.clusters; i++) {
        fill(guest, i, 'o');
    }
    struct node *fleece = make_image(&w, "fleece", "disk");
    ck_assert_int_eq(backup_of_node(&w, disk,
                                    (struct backup_options){.sync = SYNC_NONE,
                                                            .target = fleece}),
                     0);
    ck_assert_int_eq(
        blk_new(w.g, fleece, PERM_READ, PERM_ALL, "pull", &p.blk, NULL), 0);
    ck_assert_int_eq(thread_start(&t, "pull", pull_thread, &p), 0);
    for (uint64_t i = 0; i < p.clusters; i++) {
        fill(guest, p.clusters - 1 - i, 'n');
    }
    for (uint64_t i = 0; i < p.clusters; i++) {
        ck_cluster_is(p.blk, i, 'o');
    }
    atomic_store(&p.quit, true);
    thread_join(t);
    blk_free(p.blk);
    mutex_lock(&w.j->lock);
    ck_assert_int_eq(job_cancel(w.j, "b", false, NULL), 0);
    mutex_unlock(&w.j->lock);
    wait_for_jobs(w.j);
    blk_free(guest);
    drop_image(&w, fleece);
    drop_image(&w, disk);
    end(&w);
}
END_TEST

/* --- Transactions --- */

static void add_backup(struct world *w, struct list *list, const char *id,
                       struct backup_options o, struct job_txn *txn)
{
    struct action *a;

    o.device = id;
    o.source = o.source ? o.source : w->src;
    ck_assert_int_eq(backup_action(w->j, &o, txn, &a, NULL), 0);
    list_append(list, &a->link);
}

static void add_clear(struct world *w, struct list *list, const char *name)
{
    struct action *a;

    ck_assert_int_eq(
        bitmap_clear_action((struct bitmap_ref){w->src, name}, &a, NULL), 0);
    list_append(list, &a->link);
}

static void add_enable(struct world *w, struct list *list, const char *name,
                       bool enable)
{
    struct action *a;

    ck_assert_int_eq(bitmap_enable_action((struct bitmap_ref){w->src, name},
                                          enable, &a, NULL),
                     0);
    list_append(list, &a->link);
}

static void add_bitmap_action(struct world *w, struct list *list,
                              const char *name)
{
    struct action *a;

    ck_assert_int_eq(bitmap_add_action((struct bitmap_ref){w->src, name},
                                       CLUSTER, false, false, &a, NULL),
                     0);
    list_append(list, &a->link);
}

START_TEST(a_bitmap_is_added_and_used_at_one_instant)
{
    struct world w;
    struct list list;

    begin(&w);
    list_init(&list);
    mutex_lock(&w.j->lock);
    add_bitmap_action(&w, &list, "m");
    add_backup(&w, &list, "b",
               (struct backup_options){
                   .sync = SYNC_FULL, .target = w.dst, .bitmap = "m"},
               NULL);
    ck_assert_int_eq(actions_run(w.g, &list, NULL), 0);
    mutex_unlock(&w.j->lock);
    wait_for_jobs(w.j);
    ck_assert_uint_eq(dirty_bytes(&w), 0);
    guest_write(&w, 0, 'x', 1);
    ck_assert_uint_eq(dirty_bytes(&w), CLUSTER);
    end(&w);
}
END_TEST

START_TEST(what_fails_last_undoes_all)
{
    struct world w;
    struct list list;
    struct error *err = NULL;

    begin(&w);
    make_dirty(&w);
    ck_assert_int_eq(bitmap_add(w.g, w.src, "off", 0, false, true, NULL), 0);
    ck_assert_int_eq(bitmap_add(w.g, w.src, "old", 0, false, false, NULL), 0);
    CLEANUP_JSON json_t *before = bitmap_query(w.src);

    list_init(&list);
    mutex_lock(&w.j->lock);
    struct action *a;
    ck_assert_int_eq(
        bitmap_remove_action((struct bitmap_ref){w.src, "old"}, &a, NULL), 0);
    list_append(&list, &a->link);
    add_bitmap_action(&w, &list, "old");
    add_bitmap_action(&w, &list, "new");
    struct bitmap_ref m = {w.src, "m"};
    ck_assert_int_eq(
        bitmap_merge_action((struct bitmap_ref){w.src, "off"}, &m, 1, &a, NULL),
        0);
    list_append(&list, &a->link);
    add_enable(&w, &list, "off", true);
    add_clear(&w, &list, "m");
    add_backup(&w, &list, "b",
               (struct backup_options){
                   .sync = SYNC_BITMAP, .target = w.dst, .bitmap = "new"},
               NULL);
    add_clear(&w, &list, "unknown");
    ck_assert_int_eq(actions_run(w.g, &list, &err), -ENOENT);
    mutex_unlock(&w.j->lock);
    ck_assert_str_eq(error_message(err), "Dirty bitmap 'unknown' not found");
    error_free(err);

    CLEANUP_JSON json_t *after = bitmap_query(w.src);
    ck_assert(json_equal(before, after));
    ck_assert_ptr_eq(blk_node(w.guest), w.src);
    ck_assert_str_eq(w.rec.text, "b:created b:null");
    guest_write(&w, 30 * CLUSTER, 'x', 1);
    ck_assert_uint_eq(dirty_bytes(&w), DIRTY + CLUSTER);
    end(&w);
}
END_TEST

START_TEST(a_group_begins_together_and_fails_together)
{
    struct world w;
    struct list list;

    begin(&w);
    make_dirty(&w);
    struct node *empty = disk_new(w.g, "empty", SIZE);
    struct node *second = disk_new(w.g, "second", SIZE);
    ck_assert_int_eq(bitmap_add(w.g, empty, "m", 0, false, false, NULL), 0);
    trap_of(w.dst)->write_error = -EIO;
    trap_gate(trap_of(w.src), true);
    list_init(&list);
    struct job_txn *txn = job_txn_new();
    mutex_lock(&w.j->lock);
    /* The first has nothing to do, and waits for the other all the same. */
    add_backup(&w, &list, "e",
               (struct backup_options){.sync = SYNC_BITMAP,
                                       .source = empty,
                                       .target = second,
                                       .bitmap = "m"},
               txn);
    add_backup(&w, &list, "b",
               (struct backup_options){
                   .sync = SYNC_BITMAP, .target = w.dst, .bitmap = "m"},
               txn);
    ck_assert_int_eq(actions_run(w.g, &list, NULL), 0);
    job_txn_unref(txn);
    mutex_unlock(&w.j->lock);
    wait_for_event(w.j, &w.rec, "e:waiting");
    trap_gate(trap_of(w.src), false);
    wait_for_jobs(w.j);
    ck_assert_str_eq(
        w.rec.text,
        "e:created b:created e:running e:paused b:running b:paused "
        "e:running b:running e:waiting b:BLOCK_JOB_ERROR b:aborting "
        "b:BLOCK_JOB_COMPLETED b:concluded b:null e:aborting "
        "e:BLOCK_JOB_CANCELLED e:concluded e:null");
    ck_assert_uint_eq(dirty_bytes(&w), DIRTY);
    end(&w);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        an_error_can_stop_the_job_until_it_is_resumed,
        enospc_stops_on_nothing_else,
        ignored_errors_are_tried_again,
        a_failed_copy_for_a_guest_fails_even_what_would_stop,
        modes_decide_what_a_success_clears,
        a_failure_keeps_what_was_not_copied,
        always_gives_up_what_was_copied_before_a_cancel,
        what_cannot_be_flushed_was_not_copied,
        a_flush_of_another_user_that_fails_fails_the_job,
        always_keeps_what_a_cancel_leaves_unflushed,
        bits_that_come_back_hide_no_writes_from_others,
        top_copies_the_own_layer_alone,
        none_keeps_what_changes_and_reads_the_rest_from_the_source,
        a_fleece_stays_the_same_while_the_guest_writes,
        a_bitmap_is_added_and_used_at_one_instant,
        what_fails_last_undoes_all,
        a_group_begins_together_and_fails_together,
    };
    return run_suite("backup-modes", tests, ARRAY_SIZE(tests));
}
