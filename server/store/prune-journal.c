/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The journal of a prune: DIR/prune.json, what a killed one had begun.
 *
 *     {"nbdelta-prune": 1,
 *      "manifest": "the text of the manifest of the point that goes",
 *      "next": ["20261128T023000Z", null, ...]}      one for each of its disks
 *
 * Its manifest is a part of it, because that is the first file to go.  It is
 * foreign text as all in the directory: the manifest's own hash is checked, and
 * the rest has to agree with the manifests that are there.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/prune-priv.h"

#define JOURNAL_FORMAT 1
#define JOURNAL_MAX    (4 * MiB) /* a manifest, each character escaped */

void removal_free(struct removal *r)
{
    if (r) {
        manifest_free(r->gone);
        free(r->next);
        free(r);
    }
}

/* @gone is stolen. */
static struct removal *removal_alloc(struct manifest *gone)
{
    struct removal *r = calloc(1, sizeof(*r));

    if (!r) {
        manifest_free(gone);
        return NULL;
    }
    r->gone = gone;
    r->next = calloc(gone->count + 1, sizeof(r->next[0]));
    if (!r->next) {
        removal_free(r);
        return NULL;
    }
    return r;
}

/* --- The points that were made over one --- */

static int take_next(const struct store *s, struct removal *r, unsigned i,
                     const struct store_point *p, struct error **errp)
{
    const struct manifest_disk *base = &r->gone->disks[i];
    const struct manifest_disk *d = manifest_find(p->manifest, base->name);

    if (!d || strcmp(d->parent, r->gone->name) != 0) {
        return 0;
    }
    if (p == store_pending(s)) {
        return error_set(errp, EBUSY,
                         "the pending point %s was made over %s: 'nbdelta "
                         "backup' finishes or removes it",
                         p->name, r->gone->name);
    }
    if (r->next[i][0]) {
        return error_set(errp, EUCLEAN,
                         "both %s and %s were made over %s of disk '%s'",
                         r->next[i], p->name, r->gone->name, base->name);
    }
    if (strcmp(d->parent_hash, base->sums_hash) != 0 || d->size != base->size) {
        return error_set(errp, EUCLEAN,
                         "disk '%s': %s was made over another %s than there is",
                         base->name, p->name, r->gone->name);
    }
    memcpy(r->next[i], p->name, POINT_NAME_MAX);
    return 0;
}

static int take_point(const struct store *s, struct removal *r,
                      const struct store_point *p, struct error **errp)
{
    int err = 0;

    for (unsigned i = 0; err == 0 && p && p->manifest && i < r->gone->count;
         i++) {
        err = take_next(s, r, i, p, errp);
    }
    return err;
}

int removal_new(const struct store *s, struct manifest *gone,
                struct removal **rp, struct error **errp)
{
    CLEANUP_REMOVAL struct removal *r = removal_alloc(gone);
    int err = 0;

    if (!r) {
        return error_nomem(errp);
    }
    for (unsigned i = 0; err == 0 && i < store_count(s); i++) {
        err = take_point(s, r, store_point(s, i), errp);
    }
    err = err < 0 ? err : take_point(s, r, store_pending(s), errp);
    if (err == 0) {
        *rp = r;
        r = NULL;
    }
    return err;
}

/* --- The file --- */

static json_t *journal_json(const struct removal *r, const char *manifest)
{
    json_t *next = json_array();

    for (unsigned i = 0; next && i < r->gone->count; i++) {
        if (json_array_append_new(next, r->next[i][0] ? json_string(r->next[i])
                                                      : json_null()) < 0) {
            json_decref(next);
            return NULL;
        }
    }
    return next ? json_pack("{s:i, s:s, s:o}", "nbdelta-prune", JOURNAL_FORMAT,
                            "manifest", manifest, "next", next)
                : NULL;
}

int journal_write(const struct store *s, const struct removal *r,
                  struct error **errp)
{
    CLEANUP_FREE char *manifest = NULL;
    int err = manifest_text(r->gone, &manifest, errp);

    if (err < 0) {
        return err;
    }
    CLEANUP_JSON json_t *j = journal_json(r, manifest);
    CLEANUP_FREE char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    return text ? dir_put(s->dir, STORE_JOURNAL, text, strlen(text), errp)
                : error_nomem(errp);
}

int journal_remove(const struct store *s, struct error **errp)
{
    int err = dir_remove(s->dir, STORE_JOURNAL, errp);

    return err < 0 ? err : dir_flush(s->dir, errp);
}

/* --- Reading --- */

static int damaged(const char *why, struct error **errp)
{
    return error_set(errp, EUCLEAN, "it is damaged: %s", why);
}

static int parse_manifest(const json_t *j, struct manifest **mp,
                          struct error **errp)
{
    const char *text = json_string_value(json_object_get(j, "manifest"));
    int err;

    if (!json_is_object(j) || json_object_size(j) != 3 || !text ||
        json_integer_value(json_object_get(j, "nbdelta-prune")) !=
            JOURNAL_FORMAT) {
        return damaged("it is no journal of a prune that we know", errp);
    }
    err = manifest_parse(text, strlen(text), mp, errp);
    return err == -EINVAL ? -EUCLEAN : err;
}

static int parse_next(struct removal *r, const json_t *j, struct error **errp)
{
    const json_t *next = json_object_get(j, "next");

    if (!json_is_array(next) || json_array_size(next) != r->gone->count) {
        return damaged("it does not name the next point of each disk", errp);
    }
    for (unsigned i = 0; i < r->gone->count; i++) {
        const json_t *one = json_array_get(next, i);
        const char *name = json_string_value(one);

        if (json_is_null(one)) {
            continue;
        }
        if (!name || strlen(name) != POINT_NAME_LEN ||
            !point_name_valid(name)) {
            return damaged("a next point has no valid name", errp);
        }
        memcpy(r->next[i], name, POINT_NAME_MAX);
    }
    return 0;
}

static bool is_over(const struct store_point *p, const char *disk,
                    const char *gone)
{
    const struct manifest_disk *d = p && p->manifest
                                        ? manifest_find(p->manifest, disk)
                                        : NULL;

    return d && strcmp(d->parent, gone) == 0;
}

/* A disk of which nothing follows goes for good.  So nothing may need it. */
static int check_unused(const struct store *s, const struct removal *r,
                        const char *disk, struct error **errp)
{
    bool used = is_over(store_pending(s), disk, r->gone->name);

    for (unsigned i = 0; !used && i < store_count(s); i++) {
        used = is_over(store_point(s, i), disk, r->gone->name);
    }
    return used ? damaged("a manifest needs what it would remove", errp) : 0;
}

/* Is the next point still over the one that goes, or over its parent? */
static int check_next(const struct store *s, const struct removal *r,
                      unsigned i, struct error **errp)
{
    const struct manifest_disk *base = &r->gone->disks[i];
    const struct store_point *p = store_named(s, r->next[i]);

    if (r->next[i][0] == '\0') {
        return check_unused(s, r, base->name, errp);
    }
    const struct manifest_disk *d = p && p->manifest
                                        ? manifest_find(p->manifest, base->name)
                                        : NULL;
    if (!d) {
        return error_set(errp, EUCLEAN,
                         "the manifest of %s, into which %s is being merged, "
                         "cannot be used: %s",
                         r->next[i], r->gone->name,
                         !p       ? "it is missing"
                         : p->why ? p->why
                                  : "a disk is missing");
    }
    if (d->size != base->size ||
        (strcmp(d->parent, r->gone->name) != 0 &&
         strcmp(d->parent, base->parent) != 0) ||
        (strcmp(d->parent, r->gone->name) == 0 &&
         strcmp(d->parent_hash, base->sums_hash) != 0)) {
        return damaged("a next point was made over something else", errp);
    }
    return 0;
}

static int take_journal(const struct store *s, const json_t *j,
                        struct removal **rp, struct error **errp)
{
    struct manifest *gone = NULL;
    int err = parse_manifest(j, &gone, errp);

    if (err < 0) {
        return err;
    }
    CLEANUP_REMOVAL struct removal *r = removal_alloc(gone);
    if (!r) {
        return error_nomem(errp);
    }
    err = strcmp(gone->id, s->id) == 0
              ? parse_next(r, j, errp)
              : damaged("it is of another directory", errp);
    /* If the point is there still, nothing has been changed yet. */
    for (unsigned i = 0;
         err == 0 && !store_named(s, gone->name) && i < gone->count; i++) {
        err = check_next(s, r, i, errp);
    }
    if (err == 0) {
        *rp = r;
        r = NULL;
    }
    return err;
}

int journal_parse(const struct store *s, const char *text, size_t length,
                  struct removal **rp, struct error **errp)
{
    CLEANUP_JSON json_t *j = json_loadb(text, length, JSON_REJECT_DUPLICATES,
                                        NULL);

    return j ? take_journal(s, j, rp, errp) : damaged("it is not JSON", errp);
}

int journal_read(const struct store *s, struct removal **rp,
                 struct error **errp)
{
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;
    int err = dir_get(s->dir, STORE_JOURNAL, JOURNAL_MAX, &text, &length, errp);

    err = err < 0 ? err : journal_parse(s, text, length, rp, errp);
    if (err < 0 && err != -ENOENT && errp) {
        error_prefix(
            errp,
            "'%s/" STORE_JOURNAL "', of a prune that did not end: ", s->path);
    }
    return err;
}
