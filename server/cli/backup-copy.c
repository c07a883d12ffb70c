/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One disk of a backup run.
 *
 *   frozen disk --> transfer --> DIR/DISK/POINT.qcow2.part   backing: parent
 *    (source)          |
 *                     tap --> sums --> DIR/DISK/POINT.sums.part
 *
 * The new file is opened without its parent: what is copied decides all of the
 * units that it touches, so nothing is read there.
 *
 * Of a compared disk, another transfer comes before.  What it fills is the set
 * of the second one.
 *
 *   frozen disk --> transfer --> null-co
 *                      |
 *                     tap --> compare <-- parent
 *
 * An audit is the same after the copy, with a sample of what is clean.
 *
 * A disk has one transfer at a time, so they take turns in `transfer`.
 */
#include "cli/backup-copy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "cli/backup-audit.h"
#include "log/log.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/size.h"
#include "store/part.h"
#include "store/verified.h"

/* QEMU takes memory for each request, and memory of 1 MiB it gives back to the
 * system each time, which makes reading up to ten times slower. */
#define REQUEST_MAX (256 * KiB)

/* Between two flushes of a file that is made. */
#define FLUSH_MS 2000

/* So much room is left for the file system's own and for hashes. */
#define ROOM_SPARE (16 * MiB)

/* For blk_extents: what an earlier run has copied. */
static int note_had(const struct extent *e, void *opaque)
{
    struct copy_job *c = opaque;

    for (uint64_t at = align_up(e->offset, SUMS_CHUNK);
         e->flags & EXTENT_ALLOCATED && at < e->offset + e->length;
         at += SUMS_CHUNK) {
        c->had[at / SUMS_CHUNK] = 1;
    }
    return 0;
}

/* Go on with a file that is there.  False: there is none that is right. */
static bool adopt_target(struct copy_job *c)
{
    uint64_t size = image_bytes(c->disk->size);

    if (!part_fits(c->store, c->disk->name, c->point, c->disk->size,
                   c->parent) ||
        !part_reclaim(c->store, c->disk->name, c->point) ||
        part_open(c->store, c->graph, c->disk->name, c->point, PERM_READ,
                  &c->to, &c->file, NULL) < 0) {
        return false;
    }
    c->had = calloc(div_up(size, SUMS_CHUNK) + 1, 1);
    return c->had && blk_extents(c->file, 0, size, 0, note_had, c) == 0;
}

static void close_target(struct copy_job *c);

/* The new file, opened. */
static int make_target(struct copy_job *c, struct error **errp)
{
    bool adopted = c->resume && adopt_target(c);
    int r = 0;

    if (!adopted) {
        close_target(c);
        r = part_drop(c->store, c->disk->name, c->point, "qcow2", errp);
        r = r < 0 ? r
                  : part_create(c->store, c->disk->name, c->point,
                                c->disk->size, c->parent, c->compression, errp);
        r = r < 0 ? r
                  : part_open(c->store, c->graph, c->disk->name, c->point,
                              PERM_READ, &c->to, &c->file, errp);
    }
    if (r < 0) {
        return r;
    }
    c->sums = sums_new(image_bytes(c->disk->size), c->parent[0] == '\0');
    return c->sums ? 0 : error_nomem(errp);
}

/* In the order in which they need each other. */
static void close_target(struct copy_job *c)
{
    blk_free(c->file);
    if (c->to) {
        graph_forget(c->graph, c->to);
    }
    sums_free(c->sums);
    free(c->had);
    c->had = NULL;
    c->file = NULL;
    c->to = NULL;
    c->sums = NULL;
}

/* --- Transfers, one after another --- */

/* For another thread: it stays until unpin_transfer.  Or NULL. */
static struct transfer *pin_transfer(struct copy_job *c)
{
    mutex_lock(&c->lock);
    struct transfer *t = c->transfer;
    c->pins += t != NULL;
    mutex_unlock(&c->lock);
    return t;
}

static void unpin_transfer(struct copy_job *c)
{
    mutex_lock(&c->lock);
    if (--c->pins == 0) {
        cond_broadcast(&c->wake);
    }
    mutex_unlock(&c->lock);
}

static void add_progress(struct transfer_progress *to, const struct transfer *t)
{
    struct transfer_progress p;

    transfer_progress(t, &p);
    to->total += p.total;
    to->done += p.done;
    to->read += p.read;
    to->written += p.written;
    to->zero += p.zero;
}

/* It has ended; its numbers stay. */
static void end_transfer(struct copy_job *c)
{
    mutex_lock(&c->lock);
    while (c->pins > 0) {
        cond_wait(&c->wake, &c->lock);
    }
    struct transfer *t = c->transfer;
    if (t) {
        add_progress(&c->past, t);
        c->past.total = c->past.done;
    }
    c->transfer = NULL;
    mutex_unlock(&c->lock);
    transfer_free(t);
}

static int begin_transfer(struct copy_job *c, struct node *to,
                          transfer_tap *tap, void *opaque, struct error **errp)
{
    struct transfer_options o = {
        .max_chunk = REQUEST_MAX,
        .target_zero = to != c->to || c->parent[0] == '\0',
        .compress = to == c->to && c->compression,
        .tap = tap,
        .opaque = opaque,
    };
    struct transfer *t = NULL;
    int r = transfer_new(c->graph, c->from, to, &o, &t, errp);

    if (r < 0) {
        return r;
    }
    mutex_lock(&c->lock);
    c->transfer = t;
    bool stop = c->stop;
    uint64_t rate = c->rate;
    mutex_unlock(&c->lock);
    if (rate > 0) {
        transfer_set_speed(t, rate);
    }
    if (stop) {
        transfer_stop(t);
    }
    return 0;
}

void copy_job_stop(struct copy_job *c)
{
    mutex_lock(&c->lock);
    c->stop = true;
    mutex_unlock(&c->lock);
    struct transfer *t = pin_transfer(c);
    if (t) {
        transfer_stop(t);
        unpin_transfer(c);
    }
}

void copy_job_set_rate(struct copy_job *c, uint64_t rate)
{
    mutex_lock(&c->lock);
    c->rate = rate;
    mutex_unlock(&c->lock);
    struct transfer *t = pin_transfer(c);
    if (t) {
        transfer_set_speed(t, rate);
        unpin_transfer(c);
    }
}

void copy_job_progress(struct copy_job *c, struct transfer_progress *p)
{
    mutex_lock(&c->lock);
    *p = c->past;
    p->total += c->later;
    if (c->transfer) {
        add_progress(p, c->transfer);
    }
    mutex_unlock(&c->lock);
}

/* --- What is copied --- */

/* Into the set, except what the file has. */
static int add_range(uint64_t offset, uint64_t bytes, void *opaque)
{
    struct copy_job *c = opaque;
    uint64_t end = offset + bytes;

    if (!c->had) {
        transfer_add(c->transfer, offset, bytes);
        return 0;
    }
    for (uint64_t at = align_down(offset, SUMS_CHUNK); at < end;
         at += SUMS_CHUNK) {
        uint64_t len = min_u64(c->disk->size - at, SUMS_CHUNK);

        if (c->had[at / SUMS_CHUNK]) {
            sums_again(c->sums, at, len);
        } else {
            transfer_add(c->transfer, at, len);
        }
    }
    return 0;
}

static int count_data(const struct extent *e, void *opaque)
{
    struct copy_job *c = opaque;

    c->data += e->flags & EXTENT_ZERO ? 0 : e->length;
    return 0;
}

/* How much of the set takes room. */
static int measure_set(struct copy_job *c, struct error **errp)
{
    struct blk *b;
    uint64_t at = 0;
    uint64_t bytes;
    int r = blk_new(c->graph, c->from, PERM_READ, PERM_ALL, "backup", &b, errp);

    if (r < 0) {
        return r;
    }
    c->data = 0;
    while (r == 0 && transfer_next(c->transfer, at, &at, &bytes)) {
        r = blk_extents(b, at, bytes, 0, count_data, c);
        at += bytes;
    }
    blk_free(b);
    return r < 0 ? error_set(errp, -r, "cannot read its map: %s", strerror(-r))
                 : 0;
}

int copy_check_room(const struct store *s, uint64_t bytes, struct error **errp)
{
    struct statvfs fs;
    char need[32];
    char have[32];

    if (fstatvfs(store_dir(s), &fs) < 0) {
        return 0;
    }
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    bytes += ROOM_SPARE;
    return bytes <= free_bytes
               ? 0
               : error_set(errp, ENOSPC,
                           "%s are needed in '%s', which has %s left",
                           size_human(bytes, need, sizeof(need)), store_path(s),
                           size_human(free_bytes, have, sizeof(have)));
}

/* All of the disk, or what is dirty, goes into the new file. */
static int prepare_copy(struct copy_job *c, struct error **errp)
{
    int r = begin_transfer(c, c->to, sums_tap, c->sums, errp);

    if (r < 0) {
        return r;
    }
    if (c->plan->kind == DISK_FULL) {
        r = add_range(0, c->disk->size, c);
    } else {
        r = source_each_dirty(c->source, c->disk, c->from, add_range, c, errp);
    }
    return r < 0 ? r : measure_set(c, errp);
}

/* Something will be compared with the parent. */
static int open_compare(struct copy_job *c, struct error **errp)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:I}", "driver", "null-co",
                                       "size", (json_int_t)c->disk->size);
    int r = o ? graph_open(c->graph, o, &c->sink, errp) : error_nomem(errp);

    return r < 0 ? r
                 : compare_new(c->store, c->parent, c->disk->name, &c->compare,
                               errp);
}

/* All of the disk is read, and compared. */
static int prepare_compare(struct copy_job *c, struct error **errp)
{
    int r = open_compare(c, errp);

    r = r < 0 ? r : begin_transfer(c, c->sink, compare_tap, c->compare, errp);
    if (r == 0) {
        transfer_add(c->transfer, 0, c->disk->size);
    }
    return r;
}

static int prepare_audit(struct copy_job *c, struct error **errp)
{
    uint64_t bytes = 0;
    int r = open_compare(c, errp);

    if (r < 0) {
        return r;
    }
    if (audit_choose(c->transfer, c->disk->size, c->audit, &c->audited,
                     &bytes) < 0) {
        return error_nomem(errp);
    }
    mutex_lock(&c->lock);
    c->later = bytes;
    mutex_unlock(&c->lock);
    return 0;
}

int copy_prepare(struct copy_job *c, struct error **errp)
{
    mutex_init(&c->lock, LOCK_COPY_JOB, NULL);
    cond_init(&c->wake);
    c->ready = true;
    int r = graph_open(c->graph, c->disk->options, &c->from, errp);

    if (r < 0 || (r = make_target(c, errp)) < 0) {
        return r;
    }
    if (c->plan->kind == DISK_COMPARED) {
        return prepare_compare(c, errp);
    }
    r = prepare_copy(c, errp);
    return r == 0 && c->plan->kind == DISK_INCREMENT && c->audit > 0
               ? prepare_audit(c, errp)
               : r;
}

/* --- Copying --- */

static void end_compare(struct copy_job *c)
{
    end_transfer(c);
    compare_free(c->compare);
    if (c->sink) {
        graph_forget(c->graph, c->sink);
    }
    c->compare = NULL;
    c->sink = NULL;
}

/* In the order in which they need each other. */
static void close_nodes(struct copy_job *c)
{
    end_compare(c);
    blk_free(c->file);
    if (c->to) {
        graph_forget(c->graph, c->to);
    }
    if (c->from) {
        graph_forget(c->graph, c->from);
    }
    c->file = NULL;
    c->to = c->from = NULL;
}

/* The parent is damaged: nothing is put over it. */
static int become_full(struct copy_job *c, struct error **errp)
{
    if (c->no_fallback) {
        error_prefix(errp, "it cannot be compared (--no-fallback): ");
        return -EUCLEAN;
    }
    if (errp) {
        error_free(*errp);
        *errp = NULL;
    }
    end_compare(c);
    close_target(c);
    int r = store_drop_disk(c->store, c->disk->name, c->point, errp);
    if (r < 0) {
        return r;
    }
    c->plan->kind = DISK_FULL;
    c->plan->reason = REASON_PARENT_DAMAGED;
    c->plan->parent = NULL;
    c->parent = "";
    r = make_target(c, errp);
    return r < 0 ? r : prepare_copy(c, errp);
}

/* What differs is the set of the next transfer. */
static int copy_differences(struct copy_job *c, struct error **errp)
{
    uint64_t at = 0;
    uint64_t bytes;

    end_transfer(c);
    int r = begin_transfer(c, c->to, sums_tap, c->sums, errp);
    while (r == 0 && compare_next(c->compare, at, &at, &bytes)) {
        (void)add_range(at, bytes, c);
        at += bytes;
    }
    return r < 0 ? r : measure_set(c, errp);
}

/* Read what the transfer has, and compare it. */
static int run_compare(struct copy_job *c, struct error **errp)
{
    enum transfer_end end = TRANSFER_SOURCE;
    int r = transfer_run(c->transfer, &end, errp);

    if (r < 0 && (r == -ECANCELED || end != TRANSFER_TAP)) {
        return r;
    }
    if (errp) {
        error_free(*errp); /* the comparer knows better */
        *errp = NULL;
    }
    int compared = compare_finish(c->compare, &c->damage, errp);
    return r < 0 && compared == 0
               ? error_set(errp, -r, "cannot compare: %s", strerror(-r))
               : compared;
}

/* Then c->transfer is what is to be copied. */
static int compare_disk(struct copy_job *c, struct error **errp)
{
    int r = run_compare(c, errp);

    r = r == 0          ? copy_differences(c, errp)
        : r == -EUCLEAN ? become_full(c, errp)
                        : r;
    return r < 0 || c->compression ? r
                                   : copy_check_room(c->store, c->data, errp);
}

static int audit_disk(struct copy_job *c, struct error **errp)
{
    end_transfer(c);
    int r = begin_transfer(c, c->sink, compare_tap, c->compare, errp);

    if (r < 0) {
        return r;
    }
    mutex_lock(&c->lock);
    c->later = 0;
    mutex_unlock(&c->lock);
    audit_fill(c->transfer, c->disk->size, c->audited);
    r = run_compare(c, errp);
    return r < 0 ? r : audit_tell(c->compare, errp);
}

/* What is in the file counts from a flush on, if the run is cut off. */
static void *flush_file(void *opaque)
{
    struct copy_job *c = opaque;

    mutex_lock(&c->lock);
    while (c->flushing) {
        if (cond_wait_ms(&c->wake, &c->lock, FLUSH_MS)) {
            continue;
        }
        mutex_unlock(&c->lock);
        (void)blk_flush(c->file); /* an error comes again at the end */
        mutex_lock(&c->lock);
    }
    mutex_unlock(&c->lock);
    return NULL;
}

static int run_copy(struct copy_job *c, struct error **errp)
{
    pthread_t thread;

    mutex_lock(&c->lock);
    c->flushing = true;
    mutex_unlock(&c->lock);
    bool started = thread_start(&thread, "flush", flush_file, c) == 0;
    int r = transfer_run(c->transfer, NULL, errp);
    mutex_lock(&c->lock);
    c->flushing = false;
    cond_broadcast(&c->wake);
    mutex_unlock(&c->lock);
    if (started) {
        thread_join(thread);
    }
    return r;
}

int copy_carry_out(struct copy_job *c, struct error **errp)
{
    uint64_t start = now_ns();
    bool compared = c->compare && !c->audited;
    int r = compared ? compare_disk(c, errp) : 0;

    r = r < 0 ? r : run_copy(c, errp);
    if (r == 0) {
        struct transfer_progress p;
        transfer_progress(c->transfer, &p);
        c->progress.written = p.written;
        c->progress.zero = p.zero;
        r = sums_finish(c->sums, c->file, errp);
    }
    r = r == 0 && c->audited ? audit_disk(c, errp) : r;
    c->milliseconds = (now_ns() - start) / 1000000;
    if (r == 0) {
        struct transfer_progress p;
        copy_job_progress(c, &p);
        c->progress.read = p.read;
        close_nodes(c); /* there may be many disks */
    }
    return r;
}

/* --- The end --- */

/* The next run does not put anything over it either, and verify looks. */
static void note_damage(struct copy_job *c)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *found = json_array();
    const struct compare_damage *d = &c->damage;

    if (d->bytes > 0 &&
        (verified_add(found, c->disk->name, d->offset, d->bytes) < 0 ||
         verified_damage(c->store, d->point, found, &err) < 0)) {
        log_line(TELL_WARNING,
                 "cannot note that point %s of disk '%s' is damaged: %s",
                 d->point, c->disk->name,
                 err ? error_message(err) : strerror(ENOMEM));
    }
}

int copy_finish(struct copy_job *c, struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;

    close_nodes(c);
    int r = store_create_file(c->store, c->disk->name, c->point, "sums.part",
                              &fd, errp);
    if (r == 0) {
        r = sums_write(c->sums, fd, c->sums_hash, errp);
    }
    return r < 0 ? r : store_keep_disk(c->store, c->disk->name, c->point, errp);
}

void copy_discard(struct copy_job *c, bool drop)
{
    if (!c->ready) {
        return;
    }
    close_nodes(c);
    close_target(c);
    note_damage(c);
    free(c->audited);
    c->audited = NULL;
    cond_destroy(&c->wake);
    mutex_destroy(&c->lock);
    c->ready = false;
    if (drop) {
        (void)store_drop_disk(c->store, c->disk->name, c->point, NULL);
    }
}
