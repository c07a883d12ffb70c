/* SPDX-License-Identifier: BSD-3-Clause */
/* Backups that discard their source, and the unit that they copy in. */
#include <inttypes.h>

#include "backup-util.h"
#include "nbdelta/cleanup.h"

#define ROUNDS 100

static void *write_all(void *arg)
{
    struct world *w = arg;
    char buf[CLUSTER];

    memset(buf, 'g', sizeof(buf));
    for (uint64_t at = 0; at < SIZE; at += CLUSTER) {
        ck_assert_int_eq(blk_pwrite(w->guest, buf, sizeof(buf), at, 0), 0);
    }
    return NULL;
}

/* The target has the point in time, the source what the guest has written
 * since, and nothing else. */
START_TEST(a_discard_never_hits_what_a_guest_has_written)
{
    struct backup_options o = {.sync = SYNC_FULL, .discard_source = true};
    struct world w;
    pthread_t guest;

    begin(&w);
    for (unsigned i = 0; i < ROUNDS; i++) {
        disk_fill(w.src, SIZE);
        char *then = disk_read(w.src);

        (void)start(&w, o, NULL);
        ck_assert_int_eq(thread_start(&guest, "guest", write_all, &w), 0);
        thread_join(guest);
        wait_for_jobs(w.j);
        ck_assert_ptr_null(last_str(&w.rec, "error"));
        ck_disk_is(w.dst, then);
        char *now = disk_read(w.src);
        for (uint64_t at = 0; at < SIZE; at++) {
            ck_assert_msg(now[at] == 'g', "round %u: byte %" PRIu64, i, at);
        }
        free(now);
        free(then);
    }
    end(&w);
}
END_TEST

START_TEST(what_was_copied_is_discarded)
{
    struct backup_options o = {.sync = SYNC_FULL, .discard_source = true};
    struct world w;

    begin(&w);
    char *then = disk_read(w.src);
    (void)start(&w, o, NULL);
    wait_for_jobs(w.j);
    ck_disk_is(w.dst, then);
    char *now = disk_read(w.src);
    ck_assert(bytes_are_zero(now, SIZE));
    free(now);
    free(then);
    end(&w);
}
END_TEST

/* What could not be copied stays. */
START_TEST(a_target_that_fails_costs_nothing)
{
    struct backup_options o = {.sync = SYNC_FULL, .discard_source = true};
    struct world w;

    begin(&w);
    char *then = disk_read(w.src);
    trap_of(w.dst)->write_error = -EIO;
    (void)start(&w, o, NULL);
    wait_for_jobs(w.j);
    ck_assert_str_eq(last_str(&w.rec, "error"), "Input/output error");
    ck_disk_is(w.src, then);
    free(then);
    end(&w);
}
END_TEST

START_TEST(a_source_that_is_read_only_is_refused)
{
    struct backup_options o = {.sync = SYNC_FULL, .discard_source = true};
    struct world w;

    begin(&w);
    blk_free(w.guest);
    w.src->flags.read_only = true;
    (void)start(&w, o, "Block node is read-only");
    w.src->flags.read_only = false;
    ck_assert_int_eq(
        blk_new(w.g, w.src, PERM_ALL, PERM_ALL, "guest", &w.guest, NULL), 0);
    end(&w);
}
END_TEST

/* A flush of the source that fails: the guest's writes may be lost, and the
 * bitmap must not believe otherwise. */
START_TEST(the_source_is_flushed_before_bits_are_given_up)
{
    struct backup_options o = {.sync = SYNC_BITMAP, .bitmap = "m"};
    struct world w;

    begin(&w);
    add_bitmap(&w);
    guest_write(&w, CLUSTER, 'a', CLUSTER);
    trap_of(w.src)->flush_error = -EIO;
    (void)start(&w, o, NULL);
    wait_for_jobs(w.j);
    ck_assert_str_eq(last_str(&w.rec, "error"), "Input/output error");
    ck_assert_uint_eq(dirty_bytes(&w), CLUSTER);
    trap_of(w.src)->flush_error = 0;
    (void)blk_flush(w.guest);
    (void)start(&w, o, NULL);
    wait_for_jobs(w.j);
    ck_assert_uint_eq(dirty_bytes(&w), 0);
    end(&w);
}
END_TEST

START_TEST(the_unit_is_at_least_as_large_as_asked)
{
    struct backup_options o = {
        .sync = SYNC_NONE,
        .min_cluster = 100,
        .filter_node_name = "top",
    };
    struct world w;

    begin(&w);
    (void)start(&w, o,
                "Cannot create block-copy-state: min-cluster-size needs to be "
                "a power of 2");
    o.min_cluster = UINT64_C(1) << 63;
    (void)start(&w, o,
                "min-cluster-size too large: 9223372036854775808 > "
                "9223372036854775807");
    o.min_cluster = 4 * CLUSTER;
    (void)start(&w, o, NULL);
    guest_write(&w, 5 * CLUSTER, 'x', 1);
    mutex_lock(&w.j->lock);
    CLEANUP_JSON json_t *info = node_query(w.g, graph_find(w.g, "top"));
    mutex_unlock(&w.j->lock);
    /* Readable, written, to do: the filter's, as QEMU 10 shows them. */
    static const uint64_t counts[] = {SIZE, 4 * CLUSTER, SIZE - 4 * CLUSTER};
    const json_t *bits = json_object_get(info, "dirty-bitmaps");
    ck_assert_uint_eq(json_array_size(bits), ARRAY_SIZE(counts));
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
        const json_t *b = json_array_get(bits, i);
        ck_assert_int_eq(json_integer_value(json_object_get(b, "granularity")),
                         4 * CLUSTER);
        ck_assert_uint_eq(
            (uint64_t)json_integer_value(json_object_get(b, "count")),
            counts[i]);
    }
    mutex_lock(&w.j->lock);
    ck_assert_int_eq(job_cancel(w.j, "b", true, NULL), 0);
    mutex_unlock(&w.j->lock);
    wait_for_jobs(w.j);
    end(&w);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        a_discard_never_hits_what_a_guest_has_written,
        what_was_copied_is_discarded,
        a_target_that_fails_costs_nothing,
        a_source_that_is_read_only_is_refused,
        the_source_is_flushed_before_bits_are_given_up,
        the_unit_is_at_least_as_large_as_asked,
    };
    return run_suite("backup-discard", tests, ARRAY_SIZE(tests));
}
