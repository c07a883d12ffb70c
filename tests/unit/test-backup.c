/* SPDX-License-Identifier: BSD-3-Clause */
/* The backup job: the point in time, bitmaps, failures, targets. */
#include "backup-util.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/image.h"

/* --- What is copied --- */

static _Atomic bool quit;

static void *guest_thread(void *opaque)
{
    struct world *w = opaque;
    unsigned seed = (unsigned)(uintptr_t)pthread_self();
    char buf[3 * 4096];

    for (int i = 0; !quit || i < 50; i++) {
        uint64_t offset = (uint64_t)rand_r(&seed) % (SIZE - sizeof(buf));
        memset(buf, 130 + i % 100, sizeof(buf));
        int r = i % 7 ? blk_pwrite(w->guest, buf, sizeof(buf), offset, 0)
                      : blk_zero(w->guest, offset,
                                 CLUSTER / 2 < SIZE - offset ? CLUSTER / 2
                                                             : SIZE - offset,
                                 REQ_MAY_UNMAP);
        ck_assert_int_eq(r, 0);
    }
    return NULL;
}

START_TEST(full_is_the_point_in_time_while_guests_write)
{
    struct world w;
    pthread_t t[2];

    begin(&w);
    char *then = disk_read(w.src);
    quit = false;
    /* The workers stand still until the guests have begun. */
    trap_gate(trap_of(w.dst), true);
    (void)start(&w, (struct backup_options){.sync = SYNC_FULL}, NULL);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(thread_start(&t[i], "guest", guest_thread, &w), 0);
    }
    trap_wait(trap_of(w.dst), 2);
    trap_gate(trap_of(w.dst), false);
    wait_for_jobs(w.j);
    quit = true;
    for (int i = 0; i < 2; i++) {
        thread_join(t[i]);
    }
    ck_disk_is(w.dst, then);
    ck_assert_str_eq(w.rec.text,
                     "b:created b:running b:paused b:running b:waiting "
                     "b:pending b:BLOCK_JOB_COMPLETED b:concluded b:null");
    ck_assert_int_eq(last_int(&w.rec, "len"), SIZE);
    ck_assert_int_eq(last_int(&w.rec, "offset"), SIZE);
    free(then);
    end(&w);
}
END_TEST

START_TEST(incremental_copies_what_is_dirty_and_clears_it)
{
    struct world w;

    begin(&w);
    add_bitmap(&w);
    guest_write(&w, 5 * CLUSTER + 4096, 'a', 1);
    guest_write(&w, 8 * CLUSTER - 1, 'b', 2);
    ck_assert_uint_eq(dirty_bytes(&w), 3 * UINT64_C(4096));
    char *then = disk_read(w.src);
    (void)start(
        &w,
        (struct backup_options){.sync = SYNC_BITMAP, .bitmap = "m", .speed = 1},
        NULL);
    ck_assert_int_eq(bitmap_clear(w.g, w.src, "m", NULL), -EBUSY);
    guest_write(&w, 20 * CLUSTER, 'c', 100);
    ck_assert_uint_eq(dirty_bytes(&w), 3 * UINT64_C(4096));
    speed_up(&w, "b");
    wait_for_jobs(w.j);
    /* What was written meanwhile, and nothing else, is for the next one. */
    ck_assert_uint_eq(dirty_bytes(&w), 4096);
    ck_assert_int_eq(last_int(&w.rec, "len"), 3 * CLUSTER);
    ck_assert_int_eq(last_int(&w.rec, "offset"), 3 * CLUSTER);
    char *expected = calloc(1, SIZE);
    memcpy(expected + 5 * CLUSTER, then + 5 * CLUSTER, CLUSTER);
    memcpy(expected + 7 * CLUSTER, then + 7 * CLUSTER, 2 * CLUSTER);
    ck_disk_is(w.dst, expected);
    free(expected);
    free(then);
    end(&w);
}
END_TEST

START_TEST(incremental_of_nothing)
{
    struct world w;

    begin(&w);
    add_bitmap(&w);
    (void)start(&w, (struct backup_options){.sync = SYNC_BITMAP, .bitmap = "m"},
                NULL);
    wait_for_jobs(w.j);
    ck_assert_int_eq(last_int(&w.rec, "len"), 0);
    ck_assert_int_eq(trap_of(w.dst)->writes, 0);
    end(&w);
}
END_TEST

/* --- How it ends --- */

/* One cluster to copy.  With @gate its write stands still, and so would a
 * drain. */
static void start_dirty(struct world *w, bool gate, bool finalize)
{
    add_bitmap(w);
    guest_write(w, 5 * CLUSTER, 'a', 4096);
    if (gate) {
        trap_gate(trap_of(w->dst), true);
    }
    (void)start(w,
                (struct backup_options){.sync = SYNC_BITMAP,
                                        .bitmap = "m",
                                        .manual_finalize = finalize},
                NULL);
}

/* The bitmap has what it had and what came since. */
static void ck_nothing_lost(struct world *w)
{
    struct bitmap *bm = bitmap_find(w->src, "m");
    bool dirty;

    ck_assert_uint_eq(bitmap_count(bm), 2 * UINT64_C(4096));
    (void)bitmap_run(bm, 5 * CLUSTER, SIZE, &dirty);
    ck_assert(dirty);
    (void)bitmap_run(bm, 9 * CLUSTER, SIZE, &dirty);
    ck_assert(dirty);
    bitmap_unref(bm);
    /* And it is not busy any more. */
    ck_assert_int_eq(bitmap_clear(w->g, w->src, "m", NULL), 0);
}

struct error_look {
    struct world *w;
    const char *operation;
};

static void look_for_error(const char *name, void *opaque)
{
    const struct error_look *l = opaque;
    struct record *rec = &l->w->rec;

    if (strcmp(name, "BLOCK_JOB_ERROR") == 0) {
        char *data = json_dumps(rec->last, JSON_COMPACT);
        char expected[100];
        (void)snprintf(expected, sizeof(expected),
                       "{\"device\":\"b\",\"operation\":\"%s\","
                       "\"action\":\"report\"}",
                       l->operation);
        ck_assert_str_eq(data, expected);
        free(data);
        rec->look = NULL;
    }
}

static void failure(int read_error, int write_error, int flush_error,
                    const char *operation, const char *text)
{
    struct world w;
    struct error_look l = {&w, operation};

    begin(&w);
    w.rec.look = look_for_error;
    w.rec.opaque = &l;
    trap_of(w.src)->read_error = read_error;
    trap_of(w.dst)->write_error = write_error;
    trap_of(w.dst)->flush_error = flush_error;
    start_dirty(&w, true, false);
    if (!read_error) {
        trap_wait(trap_of(w.dst), 1);
    }
    guest_write(&w, 9 * CLUSTER, 'b', 1);
    trap_gate(trap_of(w.dst), false);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text,
                     "b:created b:running b:paused b:running "
                     "b:BLOCK_JOB_ERROR b:aborting b:BLOCK_JOB_COMPLETED "
                     "b:concluded b:null");
    ck_assert_str_eq(last_str(&w.rec, "error"), text);
    ck_assert_ptr_null(w.rec.look);
    ck_nothing_lost(&w);
    trap_of(w.src)->read_error = 0;
    end(&w);
}

START_TEST(a_failure_loses_no_bit)
{
    failure(-EIO, 0, 0, "read", "Input/output error");
    failure(0, -ENOSPC, 0, "write", "No space left on device");
    failure(0, 0, -EIO, "write", "Input/output error");
}
END_TEST

START_TEST(a_full_target_does_not_harm_the_guest)
{
    struct world w;
    struct error_look l = {&w, "write"};

    begin(&w);
    trap_of(w.dst)->write_error = -ENOSPC;
    trap_gate(trap_of(w.src), true);
    w.rec.look = look_for_error;
    w.rec.opaque = &l;
    (void)start(&w, (struct backup_options){.sync = SYNC_FULL}, NULL);
    trap_gate(trap_of(w.src), false);
    for (uint64_t at = 0; at < SIZE; at += CLUSTER) {
        guest_write(&w, at + 5, 'x', 1);
    }
    wait_for_jobs(w.j);
    ck_assert_ptr_null(w.rec.look);
    ck_assert_str_eq(last_str(&w.rec, "error"), "No space left on device");
    end(&w);
}
END_TEST

static int cancel(struct world *w)
{
    mutex_lock(&w->j->lock);
    int r = job_cancel(w->j, "b", true, NULL);
    mutex_unlock(&w->j->lock);
    return r;
}

START_TEST(a_cancel_loses_no_bit)
{
    struct world w;

    begin(&w);
    start_dirty(&w, true, false);
    trap_wait(trap_of(w.dst), 1);
    guest_write(&w, 9 * CLUSTER, 'b', 1);
    ck_assert_int_eq(cancel(&w), 0);
    trap_gate(trap_of(w.dst), false);
    wait_for_jobs(w.j);
    ck_assert_str_eq(w.rec.text,
                     "b:created b:running b:paused b:running b:aborting "
                     "b:BLOCK_JOB_CANCELLED b:concluded b:null");
    ck_nothing_lost(&w);
    end(&w);
}
END_TEST

START_TEST(a_cancel_of_a_pending_job_loses_no_bit)
{
    struct world w;

    begin(&w);
    start_dirty(&w, false, true);
    wait_for_event(w.j, &w.rec, "BLOCK_JOB_PENDING");
    guest_write(&w, 9 * CLUSTER, 'b', 1);
    ck_assert_int_eq(bitmap_clear(w.g, w.src, "m", NULL), -EBUSY);
    ck_assert_int_eq(cancel(&w), 0);
    wait_for_jobs(w.j);
    ck_nothing_lost(&w);
    end(&w);
}
END_TEST

START_TEST(finalize_gives_up_the_bits)
{
    struct world w;

    begin(&w);
    start_dirty(&w, false, true);
    wait_for_event(w.j, &w.rec, "BLOCK_JOB_PENDING");
    mutex_lock(&w.j->lock);
    ck_assert_int_eq(job_finalize(w.j, "b", NULL), 0);
    mutex_unlock(&w.j->lock);
    ck_assert_uint_eq(dirty_bytes(&w), 0);
    end(&w);
}
END_TEST

START_TEST(shutdown_loses_no_bit)
{
    struct world w;

    begin(&w);
    add_bitmap(&w);
    guest_write(&w, 5 * CLUSTER, 'a', 1);
    guest_write(&w, 9 * CLUSTER, 'b', 1);
    (void)start(
        &w,
        (struct backup_options){.sync = SYNC_BITMAP, .bitmap = "m", .speed = 1},
        NULL);
    while (trap_of(w.dst)->writes == 0) {
        nap(); /* the second one will come in 18 hours */
    }
    jobs_shutdown(w.j);
    ck_assert_ptr_nonnull(strstr(w.rec.text, "b:BLOCK_JOB_CANCELLED"));
    ck_nothing_lost(&w);
    end(&w);
}
END_TEST

/* --- While it runs --- */

START_TEST(a_paused_job_copies_nothing_but_for_the_guest)
{
    struct world w;

    begin(&w);
    char *then = disk_read(w.src);
    trap_gate(trap_of(w.dst), true);
    (void)start(&w,
                (struct backup_options){
                    .sync = SYNC_FULL, .max_workers = 1, .max_chunk = CLUSTER},
                NULL);
    trap_wait(trap_of(w.dst), 1);
    mutex_lock(&w.j->lock);
    ck_assert_int_eq(job_pause(w.j, "b", NULL), 0);
    mutex_unlock(&w.j->lock);
    trap_gate(trap_of(w.dst), false);
    wait_for_event(w.j, &w.rec, "paused");
    ck_assert_int_eq(trap_of(w.dst)->writes, 1);
    guest_write(&w, 30 * CLUSTER, 'x', 1);
    ck_assert_int_eq(trap_of(w.dst)->writes, 2);
    mutex_lock(&w.j->lock);
    json_t *list = jobs_query_block(w.j);
    json_t *info = json_array_get(list, 0);
    ck_assert(json_is_true(json_object_get(info, "paused")));
    ck_assert_str_eq(json_string_value(json_object_get(info, "status")),
                     "paused");
    ck_assert_int_eq(json_integer_value(json_object_get(info, "offset")),
                     2 * CLUSTER);
    json_decref(list);
    ck_assert_int_eq(job_resume(w.j, "b", NULL), 0);
    mutex_unlock(&w.j->lock);
    wait_for_jobs(w.j);
    ck_disk_is(w.dst, then);
    free(then);
    end(&w);
}
END_TEST

START_TEST(a_drain_waits_for_chunks_only)
{
    struct world w;

    begin(&w);
    char *then = disk_read(w.src);
    (void)start(&w,
                (struct backup_options){.sync = SYNC_FULL, .speed = 4 * SIZE},
                NULL);
    for (int i = 0; i < 20; i++) {
        graph_lock(w.g);
        graph_drain(w.g, w.src);
        int writes = trap_of(w.dst)->writes;
        nap();
        ck_assert_int_eq(trap_of(w.dst)->writes, writes);
        graph_unlock(w.g);
        guest_write(&w, (uint64_t)i * 3 * CLUSTER, 'x', 1);
    }
    wait_for_jobs(w.j);
    ck_disk_is(w.dst, then);
    free(then);
    end(&w);
}
END_TEST

START_TEST(a_drain_comes_through_a_job_that_waits_for_its_speed)
{
    struct world w;

    begin(&w);
    (void)start(&w, (struct backup_options){.sync = SYNC_FULL, .speed = 1},
                NULL);
    while (trap_of(w.dst)->writes == 0) {
        nap();
    }
    graph_lock(w.g);
    graph_drain(w.g, w.src);
    graph_unlock(w.g);
    ck_assert_int_eq(cancel(&w), 0);
    wait_for_jobs(w.j);
    end(&w);
}
END_TEST

START_TEST(two_backups_of_one_disk_at_a_time)
{
    struct world w;

    begin(&w);
    struct node *other = disk_new(w.g, "other", SIZE);
    char *first = disk_read(w.src);
    (void)start(&w, (struct backup_options){.sync = SYNC_FULL, .speed = 1},
                NULL);
    guest_write(&w, 40 * CLUSTER, 'x', CLUSTER);
    char *second = disk_read(w.src);
    (void)start(
        &w,
        (struct backup_options){
            .sync = SYNC_FULL, .job_id = "c", .target = other, .speed = 1},
        NULL);
    guest_write(&w, 40 * CLUSTER, 'y', CLUSTER);
    guest_write(&w, 50 * CLUSTER, 'y', CLUSTER);
    speed_up(&w, "b");
    speed_up(&w, "c");
    wait_for_jobs(w.j);
    ck_disk_is(w.dst, first);
    ck_disk_is(other, second);
    free(first);
    free(second);
    end(&w);
}
END_TEST

/* --- Files as targets --- */

static struct node *open_raw(struct graph *g, const char *file, int *r)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:{s:s, s:s}}", "driver", "raw",
                                       "file", "driver", "file", "filename",
                                       file);
    struct node *n = NULL;

    *r = graph_open(g, o, &n, NULL);
    return n;
}

struct peek {
    const char *file;
    int during; /* what opening it gave */
    int after;
};

struct attempt {
    const char *file;
    int result;
};

static void *open_elsewhere(void *opaque)
{
    struct attempt *a = opaque;
    struct graph *g = graph_new();

    (void)open_raw(g, a->file, &a->result);
    graph_free(g);
    return NULL;
}

/* With locks of the job's graph held, so another thread opens it in another
 * graph. */
static void peek_at_file(const char *name, void *opaque)
{
    struct peek *p = opaque;
    struct attempt a = {.file = p->file};
    pthread_t t;

    ck_assert_int_eq(thread_start(&t, "peek", open_elsewhere, &a), 0);
    thread_join(t);
    int r = a.result;
    if (strcmp(name, "BLOCK_JOB_COMPLETED") == 0) {
        p->after = r;
    } else if (p->after > 0) {
        p->during = p->during > 0 ? r : p->during;
    }
}

START_TEST(the_file_is_locked_until_the_end_and_free_at_it)
{
    struct world w;
    struct peek p = {.during = 1, .after = 1};
    int r;

    begin(&w);
    p.file = w.file;
    w.rec.look = peek_at_file;
    w.rec.opaque = &p;
    char *then = disk_read(w.src);
    (void)start(&w,
                (struct backup_options){
                    .sync = SYNC_FULL, .target_file = w.file, .format = "raw"},
                NULL);
    wait_for_jobs(w.j);
    ck_assert_int_eq(p.during, -EAGAIN);
    ck_assert_int_eq(p.after, 0);
    struct node *n = open_raw(w.g, w.file, &r);
    ck_assert_int_eq(r, 0);
    struct tree *t = node_enter(n, false);
    char *now = malloc(SIZE);
    ck_assert_int_eq(node_pread(n, now, SIZE, 0, 0), 0);
    node_leave(t);
    ck_assert_int_eq(memcmp(now, then, SIZE), 0);
    free(now);
    free(then);
    end(&w);
}
END_TEST

START_TEST(a_qcow2_target_has_the_clusters_that_are_dirty)
{
    struct world w;
    struct node *n;

    begin(&w);
    add_bitmap(&w);
    guest_write(&w, 3 * CLUSTER, 'q', 10);
    (void)start(&w,
                (struct backup_options){.sync = SYNC_BITMAP,
                                        .bitmap = "m",
                                        .target_file = w.file,
                                        .format = "qcow2"},
                NULL);
    wait_for_jobs(w.j);
    ck_assert_ptr_nonnull(strstr(w.rec.text, "b:BLOCK_JOB_COMPLETED"));
    ck_assert_ptr_null(json_object_get(w.rec.last, "error"));
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:{s:s, s:s}}", "driver", "qcow2",
                                       "file", "driver", "file", "filename",
                                       w.file);
    ck_assert_int_eq(graph_open(w.g, o, &n, NULL), 0);
    char *now = malloc(SIZE);
    char *expected = calloc(1, SIZE);
    char *src = disk_read(w.src);
    memcpy(expected + 3 * CLUSTER, src + 3 * CLUSTER, CLUSTER);
    struct tree *t = node_enter(n, false);
    ck_assert_int_eq(node_pread(n, now, SIZE, 0, 0), 0);
    node_leave(t);
    ck_assert_int_eq(memcmp(now, expected, SIZE), 0);
    free(now);
    free(expected);
    free(src);
    end(&w);
}
END_TEST

/* --- What is refused --- */

START_TEST(refusals_leave_everything_as_it_was)
{
    struct world w;

    begin(&w);
    add_bitmap(&w);
    struct node *small = disk_new(w.g, "small", SIZE / 2);
    struct node *plain = disk_new(w.g, "plain", SIZE);
    const struct {
        struct backup_options o;
        int r;
        const char *text;
    } cases[] = {
        {{.sync = SYNC_BITMAP},
         -EINVAL,
         "must provide a valid bitmap name for 'bitmap' sync mode"},
        {{.sync = SYNC_BITMAP, .bitmap = "unknown"},
         -ENOENT,
         "Bitmap 'unknown' could not be found"},
        {{.sync = SYNC_FULL, .target = small},
         -EINVAL,
         "Source and target image have different sizes"},
        {{.sync = SYNC_FULL, .target = w.src},
         -EINVAL,
         "Source and target cannot be the same"},
        {{.sync = SYNC_FULL, .device = "#block7"},
         -EINVAL,
         "Invalid job ID '#block7'"},
        {{.sync = SYNC_FULL, .filter_node_name = "small"},
         -EEXIST,
         "Duplicate nodes with node-name='small'"},
        {{.sync = SYNC_BITMAP, .bitmap = "m", .filter_node_name = "1234"},
         -EINVAL,
         "Invalid node-name: '1234'"},
        {{.sync = SYNC_FULL, .max_chunk = 4096},
         -EINVAL,
         "Required max-chunk (4096) is less than backup cluster size "
         "(65536)"},
        {{.sync = SYNC_FULL, .compress = true, .target = plain},
         -ENOTSUP,
         "Compression is not supported for this drive plain"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        ck_assert_int_eq(start(&w, cases[i].o, cases[i].text), cases[i].r);
        ck_assert_ptr_eq(blk_node(w.guest), w.src);
    }
    ck_assert_str_eq(w.rec.text, "");
    ck_assert_int_eq(access(w.file, F_OK), -1);
    ck_assert_int_eq(bitmap_clear(w.g, w.src, "m", NULL), 0);
    end(&w);
}
END_TEST

START_TEST(a_busy_bitmap_or_id_is_refused)
{
    struct world w;

    begin(&w);
    add_bitmap(&w);
    guest_write(&w, 5 * CLUSTER, 'a', 1);
    guest_write(&w, 9 * CLUSTER, 'b', 1);
    (void)start(
        &w,
        (struct backup_options){.sync = SYNC_BITMAP, .bitmap = "m", .speed = 1},
        NULL);
    (void)start(&w, (struct backup_options){.sync = SYNC_FULL},
                "Job ID 'b' already in use");
    (void)start(&w,
                (struct backup_options){
                    .sync = SYNC_BITMAP, .bitmap = "m", .job_id = "c"},
                "Bitmap 'm' is currently in use by another operation and "
                "cannot be used");
    end(&w);
}
END_TEST

START_TEST(an_existing_target_that_is_not_there)
{
    struct world w;
    char text[120];

    begin(&w);
    (void)snprintf(text, sizeof(text),
                   "Could not open '%s': No such file or directory", w.file);
    ck_assert_int_eq(start(&w,
                           (struct backup_options){.sync = SYNC_FULL,
                                                   .existing = true,
                                                   .target_file = w.file},
                           text),
                     -ENOENT);
    end(&w);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        full_is_the_point_in_time_while_guests_write,
        incremental_copies_what_is_dirty_and_clears_it,
        incremental_of_nothing,
        a_failure_loses_no_bit,
        a_full_target_does_not_harm_the_guest,
        a_cancel_loses_no_bit,
        a_cancel_of_a_pending_job_loses_no_bit,
        finalize_gives_up_the_bits,
        shutdown_loses_no_bit,
        a_paused_job_copies_nothing_but_for_the_guest,
        a_drain_waits_for_chunks_only,
        a_drain_comes_through_a_job_that_waits_for_its_speed,
        two_backups_of_one_disk_at_a_time,
        the_file_is_locked_until_the_end_and_free_at_it,
        a_qcow2_target_has_the_clusters_that_are_dirty,
        refusals_leave_everything_as_it_was,
        a_busy_bitmap_or_id_is_refused,
        an_existing_target_that_is_not_there,
    };
    return run_suite("backup", tests, ARRAY_SIZE(tests));
}
