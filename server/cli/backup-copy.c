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
 */
#include "cli/backup-copy.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/thread.h"

/* Hashes are made of chunks of this size, and each belongs to one file. */
#define CLUSTER SUMS_CHUNK

/* Disks of images have whole sectors. */
static uint64_t whole_sectors(uint64_t size)
{
    return (size + 511) / 512 * 512;
}

static int create_file(const struct copy_job *c, const char *path,
                       struct error **errp)
{
    char backing[POINT_NAME_MAX + sizeof(".qcow2")];
    CLEANUP_JSON json_t *o = json_pack("{s:I, s:I}", "size",
                                       (json_int_t)whole_sectors(c->disk->size),
                                       "cluster_size", (json_int_t)CLUSTER);
    int r = o ? 0 : -1;

    if (r == 0 && c->parent[0]) {
        (void)snprintf(backing, sizeof(backing), "%s.qcow2", c->parent);
        r = json_object_set_new(o, "backing_file", json_string(backing)) |
            json_object_set_new(o, "backing_fmt", json_string("qcow2")) |
            json_object_set_new(o, "backing_unchecked", json_true());
    }
    if (r == 0 && c->compression) {
        r = json_object_set_new(o, "compression_type",
                                json_string(c->compression));
    }
    return r == 0 ? image_create(path, "qcow2", o, errp) : error_nomem(errp);
}

static int open_file(struct copy_job *c, const char *path, struct error **errp)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:{s:s, s:s}, s:n}", "driver",
                                       "qcow2", "file", "driver", "file",
                                       "filename", path, "backing");
    int r = o ? graph_open(c->graph, o, &c->to, errp) : error_nomem(errp);

    return r < 0 ? r
                 : blk_new(c->graph, c->to, PERM_READ, PERM_ALL, "backup",
                           &c->file, errp);
}

static int add_range(uint64_t offset, uint64_t bytes, void *opaque)
{
    struct copy_job *c = opaque;

    transfer_add(c->transfer, offset, bytes);
    return 0;
}

static int fill_set(struct copy_job *c, struct error **errp)
{
    if (c->plan->kind != DISK_INCREMENT) {
        transfer_add(c->transfer, 0, c->disk->size);
        return 0;
    }
    return source_each_dirty(c->source, c->disk, add_range, c, errp);
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
    while (r == 0 && transfer_next(c->transfer, at, &at, &bytes)) {
        c->set += bytes;
        r = blk_extents(b, at, bytes, 0, count_data, c);
        at += bytes;
    }
    blk_free(b);
    return r < 0 ? error_set(errp, -r, "disk '%s': cannot read its map: %s",
                             c->disk->name, strerror(-r))
                 : 0;
}

int copy_prepare(struct copy_job *c, struct error **errp)
{
    CLEANUP_FREE char *path = NULL;
    bool base = c->parent[0] == '\0';
    struct transfer_options o = {
        .target_zero = base,
        .compress = c->compression != NULL,
        .tap = sums_tap,
    };
    int r = store_add_disk(c->store, c->disk->name, errp);

    if (r == 0) {
        r = store_file_path(c->store, c->disk->name, c->point, "qcow2.part",
                            &path, errp);
    }
    if (r < 0 ||
        (r = graph_open(c->graph, c->disk->options, &c->from, errp)) < 0 ||
        (r = create_file(c, path, errp)) < 0 ||
        (r = open_file(c, path, errp)) < 0) {
        return r;
    }
    c->sums = sums_new(whole_sectors(c->disk->size), base);
    if (!c->sums) {
        return error_nomem(errp);
    }
    o.opaque = c->sums;
    r = transfer_new(c->graph, c->from, c->to, &o, &c->transfer, errp);
    if (r == 0) {
        r = fill_set(c, errp);
    }
    return r < 0 ? r : measure_set(c, errp);
}

int copy_carry_out(struct copy_job *c, struct error **errp)
{
    uint64_t start = now_ns();
    int r = transfer_run(c->transfer, NULL, errp);

    transfer_progress(c->transfer, &c->progress);
    c->milliseconds = (now_ns() - start) / 1000000;
    return r < 0 ? r : sums_finish(c->sums, c->file, errp);
}

void copy_job_stop(struct copy_job *c)
{
    transfer_stop(c->transfer);
}

void copy_job_set_rate(struct copy_job *c, uint64_t rate)
{
    transfer_set_speed(c->transfer, rate);
}

uint64_t copy_job_done(const struct copy_job *c)
{
    struct transfer_progress p;

    transfer_progress(c->transfer, &p);
    return p.done;
}

/* In the order in which they need each other. */
static void close_nodes(struct copy_job *c)
{
    transfer_free(c->transfer);
    blk_free(c->file);
    if (c->to) {
        graph_forget(c->graph, c->to);
    }
    if (c->from) {
        graph_forget(c->graph, c->from);
    }
    c->transfer = NULL;
    c->file = NULL;
    c->to = c->from = NULL;
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
    close_nodes(c);
    sums_free(c->sums);
    c->sums = NULL;
    if (drop) {
        (void)store_drop_disk(c->store, c->disk->name, c->point, NULL);
    }
}
