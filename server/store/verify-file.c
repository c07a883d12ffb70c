/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One file of a point is verified: see verify.h.
 *
 *     .sums file, by the manifest's hash ----+
 *     image: size, clusters, parent's name   |
 *     tables of the image (verify-tables.c)  |
 *     map of the image alone                 v
 *                    |        which units have a hash, which are decided
 *                    +----------> a byte for each unit of the disk
 *                                 |   |   |   threads take the next one
 *                                 v   v   v   read, hash, compare
 *                              what is wrong with it
 *     neighbours that are wrong alike are told as one range
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/thread.h"
#include "store/sums.h"
#include "store/verify-priv.h"

#define THREADS_MAX 16
#define MAP_STEP    (64 * GiB)

/* Of each unit. */
enum {
    UNIT_HASHED = 1 << 0,  /* the .sums file has a hash */
    UNIT_DECIDED = 1 << 1, /* the image decides some of it (a base: has data) */
    /* What is wrong with it. */
    UNIT_DIFFERS = 1 << 2,
    UNIT_UNREADABLE = 1 << 3,
    UNIT_LOST = 1 << 4,  /* hashed, not decided */
    UNIT_ADDED = 1 << 5, /* decided, not hashed */
};
#define UNIT_WRONG (UNIT_DIFFERS | UNIT_UNREADABLE | UNIT_LOST | UNIT_ADDED)

struct checking {
    struct verify *v;
    const char *point;
    const struct manifest_disk *disk;
    bool is_base;
    struct sums *sums;
    struct graph *graph;
    struct blk *file;
    uint64_t units;
    uint64_t first; /* units that are looked at */
    uint64_t end;
    uint8_t *unit; /* of each */
    _Atomic uint64_t next;
    _Atomic uint64_t read;
    uint64_t to_read;        /* units */
    _Atomic uint64_t looked; /* at so many of them */
    _Atomic uint64_t told;   /* of the file's weight, as progress */
    _Atomic int error;       /* that ends it, as -errno */
};

/* --- The file as a whole --- */

static int whole_file(struct checking *c, const char *what)
{
    return verify_tell(c->v, c->point, c->disk->name, 0, 0, what);
}

/* Errors that say nothing about the file. */
static bool is_ours(int r)
{
    return r == -ENOMEM || r == -EMFILE || r == -ENFILE || r == -ECANCELED ||
           r == -EAGAIN || r == -EBUSY;
}

/* An error of opening or reading is damage, unless it is ours. */
static int whole_file_error(struct checking *c, int r, const struct error *err,
                            struct error **errp)
{
    return is_ours(r) ? error_set(errp, r == -EAGAIN ? EBUSY : -r, "%s",
                                  error_message(err))
                      : whole_file(c, error_message(err));
}

static int read_sums(struct checking *c, struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_CLOSE int fd = -1;
    int r = store_open_file(c->v->store, c->disk->name, c->point, "sums", &fd,
                            NULL, &err);

    r = r < 0 ? r
              : sums_read(fd, image_bytes(c->disk->size), c->disk->sums_hash,
                          &c->sums, &err);
    return r < 0 ? whole_file_error(c, r, err, errp) : 0;
}

/* The image's own idea of what is below it: other tools follow it. */
static int check_header(struct checking *c, struct node *n)
{
    CLEANUP_JSON json_t *info = node_image_info(c->graph, n);
    const char *below =
        json_string_value(json_object_get(info, "backing-filename"));
    char want[POINT_NAME_MAX + 8];

    if (!info) {
        return -ENOMEM;
    }
    (void)snprintf(want, sizeof(want), "%s.qcow2", c->disk->parent);
    if (node_size(n) != image_bytes(c->disk->size)) {
        return whole_file(c, "the image has another size");
    }
    if (node_cluster_size(n) != SUMS_CHUNK) {
        return whole_file(c, "the image has other clusters than 64 KiB");
    }
    if (json_object_get(
            json_object_get(json_object_get(info, "format-specific"), "data"),
            "data-file")) {
        return whole_file(c, "the image has an external data file");
    }
    if (c->is_base ? below != NULL : !below || strcmp(below, want) != 0) {
        return whole_file(c, c->is_base
                                 ? "the image names a backing file, and has no "
                                   "parent"
                                 : "the image does not name its parent as its "
                                   "backing file");
    }
    return 0;
}

static int open_image(struct checking *c, struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *options = NULL;
    struct node *n = NULL;
    int r = store_layer_options(c->v->store, c->disk->name, c->point, &options,
                                &err);

    c->graph = graph_new();
    if (!c->graph) {
        return error_nomem(errp);
    }
    graph_follow(c->graph, FOLLOW_NONE);
    graph_without_data(c->graph);
    graph_without_bitmaps(c->graph);
    r = r < 0 ? r : graph_open(c->graph, options, &n, &err);
    if (r < 0) {
        return whole_file_error(c, r, err, errp);
    }
    r = check_header(c, n);
    if (r < 0) {
        return r == -ENOMEM ? error_nomem(errp) : r;
    }
    return blk_new(c->graph, n, PERM_READ, PERM_ALL, "verify", &c->file, errp);
}

/* --- Its map --- */

/* For blk_extents. */
static int note_extent(const struct extent *e, void *opaque)
{
    struct checking *c = opaque;
    bool decided = c->is_base
                       ? (e->flags & EXTENT_DATA) && !(e->flags & EXTENT_ZERO)
                       : (e->flags & EXTENT_ALLOCATED) != 0;
    uint64_t last = (e->offset + e->length - 1) / SUMS_UNIT;

    for (uint64_t u = e->offset / SUMS_UNIT; decided && u <= last; u++) {
        c->unit[u] |= UNIT_DECIDED;
    }
    return 0;
}

static int read_map(struct checking *c)
{
    uint64_t size = c->disk->size;
    int r = 0;

    for (uint64_t at = 0; r == 0 && at < size; at += MAP_STEP) {
        r = verify_stopped(c->v)
                ? -ECANCELED
                : blk_extents(c->file, at, min_u64(MAP_STEP, size - at), 0,
                              note_extent, c);
    }
    return r;
}

/* What the map alone tells.  In a base, data without a hash may be zeroes. */
static void compare_map(struct checking *c)
{
    for (uint64_t i = 0; i < sums_count(c->sums); i++) {
        c->unit[sums_unit(c->sums, i)] |= UNIT_HASHED;
    }
    for (uint64_t u = 0; u < c->units; u++) {
        uint8_t is = c->unit[u] & (UNIT_HASHED | UNIT_DECIDED);

        if (is == UNIT_HASHED) {
            c->unit[u] |= UNIT_LOST;
        } else if (is == UNIT_DECIDED && !c->is_base) {
            c->unit[u] |= UNIT_ADDED;
        }
    }
}

/* --- Its bytes --- */

static int check_unit(struct checking *c, uint64_t u, void *buf)
{
    const uint8_t *want = sums_find(c->sums, u);
    uint8_t hash[HASH_BYTES];
    bool any = false;
    int r = sums_compute(c->file, u, c->is_base, buf, hash, &any, NULL);

    if (r < 0) {
        if (!is_ours(r)) {
            c->unit[u] |= UNIT_UNREADABLE;
            r = 0;
        }
    } else if (any != (want != NULL)) {
        c->unit[u] |= any ? UNIT_ADDED : UNIT_DIFFERS;
    } else if (any && memcmp(hash, want, HASH_BYTES) != 0) {
        c->unit[u] |= UNIT_DIFFERS;
    }
    return r;
}

/* So many of its units have been read, or it is done (@all). */
static void tell_progress(struct checking *c, bool all)
{
    struct verify_progress *p = c->v->options->progress;
    uint64_t weight = verify_weight(c->disk);
    uint64_t n = all ? c->to_read : atomic_fetch_add(&c->looked, 1) + 1;
    double share = c->to_read > 0 ? (double)n / (double)c->to_read : 1;
    uint64_t now = all ? weight : (uint64_t)(share * (double)weight);

    /* Another thread may have told more. */
    uint64_t told = c->told;
    while (p && now > told && now <= weight) {
        if (atomic_compare_exchange_weak(&c->told, &told, now)) {
            p->done += now - told;
            break;
        }
    }
}

/* Each unit is one thread's alone. */
static void *check_units(void *opaque)
{
    struct checking *c = opaque;
    CLEANUP_FREE void *buf = malloc(SUMS_UNIT);
    uint64_t u;

    if (!buf) {
        c->error = -ENOMEM;
        return NULL;
    }
    while ((u = atomic_fetch_add(&c->next, 1)) < c->end && c->error == 0) {
        if (!(c->unit[u] & (UNIT_HASHED | UNIT_DECIDED)) ||
            c->unit[u] & UNIT_WRONG) {
            continue;
        }
        int r = verify_stopped(c->v) ? -ECANCELED : check_unit(c, u, buf);
        if (r < 0) {
            c->error = r;
        }
        atomic_fetch_add(&c->read, 1);
        tell_progress(c, false);
    }
    return NULL;
}

static unsigned thread_count(const struct verify *v)
{
    long n = v->options->threads ? (long)v->options->threads
                                 : sysconf(_SC_NPROCESSORS_ONLN);

    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : (unsigned)n;
}

static int read_units(struct checking *c)
{
    pthread_t threads[THREADS_MAX];
    unsigned started = 0;

    /* One of them is this one, so it goes on where there are no threads. */
    while (started + 1 < thread_count(c->v) &&
           thread_start(&threads[started], "verify", check_units, c) == 0) {
        started++;
    }
    (void)check_units(c);
    for (unsigned i = 0; i < started; i++) {
        thread_join(threads[i]);
    }
    return c->error;
}

/* --- What was found --- */

static const char *phrase(uint8_t wrong)
{
    return wrong & UNIT_UNREADABLE ? "cannot be read"
           : wrong & UNIT_LOST     ? "was there, and is not any more"
           : wrong & UNIT_ADDED    ? "was not there when it was made"
                                   : "has other bytes than were written";
}

static int tell_ranges(struct checking *c)
{
    int r = 0;

    for (uint64_t u = c->first; u < c->end && r != -ENOMEM;) {
        uint8_t wrong = c->unit[u] & UNIT_WRONG;
        uint64_t from = u;

        while (u < c->end && (c->unit[u] & UNIT_WRONG) == wrong) {
            u++;
        }
        if (wrong) {
            uint64_t start = from * SUMS_UNIT;
            uint64_t end = min_u64(u * SUMS_UNIT, c->disk->size);
            r = verify_tell(c->v, c->point, c->disk->name, start, end - start,
                            phrase(wrong));
        }
    }
    return r;
}

/* With parts, by the first of them. */
static int check_tables(struct checking *c, struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    const struct verify_options *o = c->v->options;
    int r = o->quick || (o->parts && o->part != 1)
                ? 0
                : verify_tables(c->v, c->point, c->disk->name, &err);

    return r < 0 ? whole_file_error(c, r, err, errp) : 0;
}

static int check_bytes(struct checking *c, struct error **errp)
{
    const struct verify_options *o = c->v->options;
    unsigned parts = o->parts ? o->parts : 1;
    unsigned part = o->parts ? o->part : 1;

    c->units = div_up(c->disk->size, SUMS_UNIT);
    c->first = c->units / parts * (part - 1) +
               c->units % parts * (part - 1) / parts;
    c->end = c->units / parts * part + c->units % parts * part / parts;
    c->next = c->first;
    c->unit = calloc(c->units + 1, 1);
    if (!c->unit) {
        return error_nomem(errp);
    }
    int r = read_map(c);
    if (r < 0) {
        return is_ours(r)
                   ? error_set(errp, -r, "cannot verify: %s", strerror(-r))
                   : whole_file(c, "the image's tables cannot be read");
    }
    compare_map(c);
    for (uint64_t u = c->first; u < c->end; u++) {
        c->to_read += (c->unit[u] & (UNIT_HASHED | UNIT_DECIDED)) &&
                      !(c->unit[u] & UNIT_WRONG);
    }
    r = o->quick ? 0 : read_units(c);
    c->v->result->units += c->read;
    if (r < 0) {
        return error_set(errp, -r, "cannot verify: %s", strerror(-r));
    }
    r = tell_ranges(c);
    return r == -ENOMEM ? error_nomem(errp) : r;
}

int verify_file(struct verify *v, const char *point,
                const struct manifest_disk *d, struct error **errp)
{
    struct checking c = {
        .v = v,
        .point = point,
        .disk = d,
        .is_base = d->kind == DISK_FULL,
    };
    int r = read_sums(&c, errp);

    r = r < 0 ? r : open_image(&c, errp);
    if (r == 0) {
        int tables = check_tables(&c, errp);
        r = tables < 0 && tables != -EUCLEAN ? tables : check_bytes(&c, errp);
        r = r == 0 ? tables : r;
    }
    v->result->files++;
    tell_progress(&c, true);
    free(c.unit);
    sums_free(c.sums);
    blk_free(c.file);
    if (c.graph) {
        graph_close_all(c.graph);
        graph_free(c.graph);
    }
    return r;
}
