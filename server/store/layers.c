/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk of a point, read unit by unit: see layers.h.
 *
 *      newest layer   | d |   |   | d |      chunks that it decides, checked
 *      ...            | . | z |   | . |      only where nothing above does
 *      base           | . | . | d | . |
 *                       |   |   |   |
 *      one buffer       d   z   d   d
 *
 * A layer whose hash does not agree may decide other chunks than it says.  So
 * nothing below it is true either: what is not known by then is damaged.
 */
#include "store/layers.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"

#define CHUNKS_MAX (SUMS_UNIT / SUMS_CHUNK)

/* --- Opening --- */

static int spoil(struct layer *l, const char *why)
{
    free(l->why);
    l->why = strdup(why);
    return l->why ? 0 : -ENOMEM;
}

static int open_file(struct layers *s, struct layer *l, struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    int c = store_layer_options(s->store, s->disk, l->point, &options, errp);

    if (c == 0) {
        c = graph_open(s->graph, options, &l->node, errp);
    }
    if (c == 0 && node_size(l->node) < s->size) {
        c = error_set(errp, EUCLEAN,
                      "the image has %" PRIu64 " bytes, not %" PRIu64,
                      node_size(l->node), s->size);
    }
    return c < 0 ? c
                 : blk_new(s->graph, l->node, PERM_READ, PERM_READ, "backup",
                           &l->file, errp);
}

static int open_sums(struct layers *s, struct layer *l,
                     const struct manifest_disk *d, struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;
    int c = store_open_file(s->store, s->disk, l->point, "sums", &fd, NULL,
                            errp);

    return c < 0 ? c
                 : sums_read(fd, image_bytes(d->size), d->sums_hash, &l->sums,
                             errp);
}

static void close_layer(struct layers *s, struct layer *l)
{
    blk_free(l->file);
    l->file = NULL;
    if (l->node) {
        (void)graph_close(s->graph, l->node, NULL);
    }
    l->node = NULL;
    sums_free(l->sums);
    l->sums = NULL;
}

/* Is it our trouble, and no damage? */
static bool is_ours(int c)
{
    return c == -ENOMEM || c == -EMFILE || c == -ENFILE || c == -EACCES ||
           c == -EAGAIN || c == -EBUSY;
}

/* A file that cannot be read is damage. */
static int open_layer(struct layers *s, struct layer *l,
                      const struct manifest_disk *d, struct error **errp)
{
    struct error *err = NULL;
    int c = open_sums(s, l, d, &err);

    if (c == 0) {
        c = open_file(s, l, &err);
    }
    if (c == 0) {
        return 0;
    }
    if (is_ours(c)) {
        error_prefix(&err, "disk '%s', point %s: ", s->disk, l->point);
        *errp = err;
        return c;
    }
    close_layer(s, l);
    c = spoil(l, error_message(err));
    error_free(err);
    return c < 0 ? error_nomem(errp) : 0;
}

static int add_layer(struct layers *s, const char *point, struct layer **lp)
{
    struct layer *all = realloc(s->layer, (s->count + 1) * sizeof(*all));

    if (!all) {
        return -ENOMEM;
    }
    s->layer = all;
    struct layer *l = &all[s->count++];
    memset(l, 0, sizeof(*l));
    l->held = -1;
    (void)snprintf(l->point, sizeof(l->point), "%s", point);
    *lp = l;
    return 0;
}

/* What is known of @d's parent is refreshed: it is held. */
static int look_up_parent(struct layers *s, const struct layer *above,
                          const struct manifest_disk *d,
                          const struct manifest_disk **parent,
                          struct error **errp)
{
    int c = store_parent(s->store, d, parent, errp);

    return c == 0 && *parent && strcmp(d->parent, above->point) >= 0
               ? error_set(errp, EUCLEAN, "its parent is not older")
               : c;
}

/* The layer of @point, which is held from now on. */
static int hold_layer(struct layers *s, const char *point, struct layer **lp,
                      struct error **errp)
{
    int c = add_layer(s, point, lp);

    return c < 0 ? error_nomem(errp)
                 : store_hold(s->store, point, false, &(*lp)->held, errp);
}

/* Damage of the manifests: what the layers so far do not decide, nobody
 * knows. */
static int end_layers(struct layer *l, int c, struct error *why,
                      struct error **errp)
{
    if (c == -EBUSY || c == -ENOMEM) {
        return error_set(errp, -c, "%s", error_message(why));
    }
    return spoil(l, error_message(why)) < 0 ? error_nomem(errp) : 0;
}

/* From the disk of a point, whose layer is there, down to the base.  There are
 * no more layers than points: a parent is older. */
static int open_all(struct layers *s, const struct manifest_disk *d,
                    struct error **errp)
{
    while (d) {
        CLEANUP_ERROR struct error *why = NULL;
        const struct manifest_disk *parent = NULL;
        struct layer *l = &s->layer[s->count - 1];

        l->base = d->kind == DISK_FULL;
        int c = open_layer(s, l, d, errp);
        if (c < 0 || l->base) {
            return c;
        }
        c = hold_layer(s, d->parent, &l, &why);
        c = c < 0 && c != -ENOENT
                ? c
                : look_up_parent(s, &s->layer[s->count - 2], d, &parent, &why);
        if (c < 0) {
            return end_layers(&s->layer[s->count - 1], c, why, errp);
        }
        d = parent;
    }
    return 0;
}

/* The disk, as the manifest has it that is held now. */
static int find_disk(struct layers *s, const char *point,
                     const struct manifest_disk **d, struct error **errp)
{
    struct layer *l = NULL;
    int c = hold_layer(s, point, &l, errp);
    const struct store_point *p = store_named(s->store, point);

    if (c == 0 && p && !p->manifest) {
        return error_set(errp, EUCLEAN,
                         "the manifest of point %s cannot be used: %s", point,
                         p->why);
    }
    *d = c == 0 && p ? manifest_find(p->manifest, s->disk) : NULL;
    return c < 0 && c != -ENOENT ? c
           : *d                  ? 0
                : error_set(errp, ENOENT, "point %s has no disk '%s'", point,
                            s->disk);
}

int layers_open(struct layers *s, const char *point, struct error **errp)
{
    const struct manifest_disk *d = NULL;
    int c = find_disk(s, point, &d, errp);

    if (c < 0) {
        return c;
    }
    s->size = d->size;
    return open_all(s, d, errp);
}

void layers_close(struct layers *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        struct layer *l = &s->layer[i];

        close_layer(s, l);
        free(l->why);
        if (l->held >= 0) {
            (void)close(l->held);
        }
    }
    free(s->layer);
    s->layer = NULL;
    s->count = 0;
}

/* --- A unit --- */

/* Is what the layer has of the unit as it was written?  @only: the chunks that
 * it decides, whose bytes are in @buf. */
static bool layer_is_true(const struct layer *l, uint64_t unit, void *buf,
                          uint32_t *only)
{
    uint8_t hash[HASH_BYTES];
    bool any = false;

    if (!l->file) {
        return false;
    }
    memset(buf, 0, SUMS_UNIT);
    if (sums_compute(l->file, unit, l->base, buf, hash, &any, only) < 0) {
        return false;
    }
    const uint8_t *known = sums_find(l->sums, unit);
    return known ? any && memcmp(hash, known, HASH_BYTES) == 0 : !any;
}

static void take_chunks(uint8_t *to, const uint8_t *from, uint32_t chunks)
{
    for (unsigned i = 0; i < CHUNKS_MAX; i++) {
        if (chunks & (1U << i)) {
            memcpy(to + i * SUMS_CHUNK, from + i * SUMS_CHUNK, SUMS_CHUNK);
        }
    }
}

uint16_t layers_read_unit(const struct layers *s, uint64_t unit, uint8_t *out,
                          uint8_t *buf, unsigned *by)
{
    uint16_t missing = layers_all_chunks(layers_unit_bytes(s, unit));
    unsigned i = 0;

    memset(out, 0, SUMS_UNIT);
    for (; missing && i < s->count; i++) {
        uint32_t only = 0;

        if (!layer_is_true(&s->layer[i], unit, buf, &only)) {
            break;
        }
        take_chunks(out, buf, only & missing);
        missing = (uint16_t)(missing & ~only);
        if (s->layer[i].base) {
            missing = 0;
        }
    }
    *by = (unsigned)min_u64(i, s->count - 1);
    return missing;
}

bool layers_find_hash(const struct layers *s, uint64_t unit,
                      const uint8_t **hash)
{
    for (unsigned i = 0; i < s->count && s->layer[i].sums; i++) {
        *hash = sums_find(s->layer[i].sums, unit);
        if (*hash || s->layer[i].base) {
            return true;
        }
    }
    return false;
}
