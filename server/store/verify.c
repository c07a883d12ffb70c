/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Points are verified, oldest first: see verify.h.
 *
 * Each point is held while its files are read, so that no prune changes them;
 * a backup goes on meanwhile, because it only adds files.  A point that a prune
 * has removed meanwhile is none.  One that a prune works on is left, and all
 * others are verified.
 */
#include "store/verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/verified.h"
#include "store/verify-priv.h"

#define DEFINITION_MAX (16 * MiB)

int verify_tell(struct verify *v, const char *point, const char *disk,
                uint64_t offset, uint64_t bytes, const char *what)
{
    const struct damage d = {
        .point = point,
        .disk = disk,
        .offset = offset,
        .bytes = bytes,
        .what = what,
    };

    v->result->damages++;
    if (v->options->on_damage) {
        v->options->on_damage(&d, v->options->opaque);
    }
    return disk && verified_add(v->found, disk, offset, bytes) < 0 ? -ENOMEM
                                                                   : -EUCLEAN;
}

/* Damage is told, and the next thing looked at. */
static int go_on(int r, bool *damage)
{
    *damage = *damage || r == -EUCLEAN;
    return r == -EUCLEAN ? 0 : r;
}

static int check_definition(struct verify *v, const struct manifest *m)
{
    CLEANUP_FREE char *text = NULL;
    char name[POINT_NAME_MAX + 8];
    char hash[HASH_TEXT_MAX];
    size_t length = 0;

    if (!m->xml_hash[0]) {
        return 0;
    }
    (void)snprintf(name, sizeof(name), "%s.xml", m->name);
    int r = store_get_file(v->store, name, DEFINITION_MAX, &text, &length,
                           NULL);
    r = r < 0 ? r : hash_of(text, length, hash, NULL);
    return r == 0 && strcmp(hash, m->xml_hash) == 0
               ? 0
               : verify_tell(v, m->name, NULL, 0, 0,
                             "the machine's definition is damaged or missing");
}

static int check_parents(struct verify *v, const struct manifest *m,
                         const struct manifest_disk *d)
{
    CLEANUP_ERROR struct error *err = NULL;
    const struct manifest_disk *parent = NULL;

    if (store_refresh(v->store, d->parent, NULL) < 0) {
        return -ENOMEM;
    }
    return store_parent(v->store, d, &parent, &err) < 0
               ? verify_tell(v, m->name, d->name, 0, 0, error_message(err))
               : 0;
}

static int check_point(struct verify *v, const struct manifest *m,
                       struct error **errp)
{
    bool damage = false;
    int r = go_on(check_definition(v, m), &damage);

    for (unsigned i = 0; r == 0 && i < m->count; i++) {
        r = go_on(check_parents(v, m, &m->disks[i]), &damage);
        if (r == 0) {
            r = go_on(verify_file(v, m->name, &m->disks[i], errp), &damage);
        }
    }
    return r < 0 ? r : damage ? -EUCLEAN : 0;
}

/* A directory that cannot be written to can be verified all the same. */
static int write_note(const struct verify *v, const char *point,
                      struct error **errp)
{
    const struct verify_options *o = v->options;
    CLEANUP_ERROR struct error *err = NULL;

    /* Without data, what is right says nothing; what is wrong is wrong. */
    if (o->quick && json_array_size(v->found) == 0) {
        return 0;
    }
    int r = o->quick
                ? verified_damage(v->store, point, v->found, &err)
                : verified_write(v->store, point, o->parts ? o->part - 1 : 0,
                                 o->parts ? o->parts : 1, v->found, &err);
    if (r == 0 || r == -EROFS || r == -EACCES || r == -EPERM) {
        return 0;
    }
    return error_set(errp, -r, "cannot note the result: %s",
                     error_message(err));
}

/* @held: the point's manifest is locked while its files are read. */
static int verify_held(struct verify *v, const struct store_point *p,
                       struct error **errp)
{
    v->found = json_array();
    if (!v->found) {
        return error_nomem(errp);
    }
    int r = check_point(v, p->manifest, errp);
    int noted = r == 0 || r == -EUCLEAN ? write_note(v, p->name, errp) : 0;
    json_decref(v->found);
    v->found = NULL;
    return noted < 0 ? noted : r;
}

static int verify_one(struct verify *v, const struct store_point *p,
                      struct error **errp)
{
    CLEANUP_CLOSE int held = -1;

    if (verify_stopped(v)) {
        return error_set(errp, ECANCELED, "interrupted");
    }
    int r = store_hold(v->store, p->name, false, &held, errp);
    if (r == -ENOENT || r == -EBUSY || r == -ENOMEM) {
        return r == -ENOENT ? 0 : r;
    }
    if (r < 0 || !p->manifest) {
        return verify_tell(v, p->name, NULL, 0, 0,
                           p->why ? p->why : "its manifest cannot be opened");
    }
    return verify_held(v, p, errp);
}

static int check_options(const struct verify_options *o, struct error **errp)
{
    return o->parts > VERIFY_PARTS_MAX || o->part > o->parts ||
                   (o->parts > 0 && o->part == 0)
               ? error_set(errp, EINVAL, "part %u of %u: there are 1 to %d",
                           o->part, o->parts, VERIFY_PARTS_MAX)
               : 0;
}

static uint64_t weight(const struct manifest *m)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; m && i < m->count; i++) {
        bytes += min_u64(verify_weight(&m->disks[i]), INT64_MAX - bytes);
    }
    return bytes;
}

static void count_total(const struct store *s, const bool *wanted,
                        struct verify_progress *p)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < store_count(s); i++) {
        if (!wanted || wanted[i]) {
            total += min_u64(weight(store_point(s, i)->manifest),
                             INT64_MAX - total);
        }
    }
    p->total = total;
}

/* @wanted: a flag for each point, or NULL: all. */
static int verify_points(struct store *s, const bool *wanted,
                         const struct verify_options *o,
                         struct verify_result *result, struct error **errp)
{
    struct verify v = {.store = s, .options = o, .result = result};
    CLEANUP_ERROR struct error *left = NULL;
    bool damage = false;
    int r = check_options(o, errp);

    *result = (struct verify_result){.files = 0};
    if (o->progress) {
        count_total(s, wanted, o->progress);
    }
    for (unsigned i = 0; r == 0 && i < store_count(s); i++) {
        CLEANUP_ERROR struct error *err = NULL;

        if (wanted && !wanted[i]) {
            continue;
        }
        r = go_on(verify_one(&v, store_point(s, i), &err), &damage);
        if (r == -EBUSY) {
            (void)error_set(&left, EBUSY, "%s", error_message(err));
            r = 0;
        } else if (r < 0) {
            (void)error_set(errp, -r, "%s", error_message(err));
        }
    }
    return r < 0    ? r
           : damage ? error_set(errp, EUCLEAN, "%llu thing%s damaged",
                                (unsigned long long)result->damages,
                                result->damages == 1 ? " is" : "s are")
           : left   ? error_set(errp, EBUSY, "%s", error_message(left))
                    : 0;
}

int verify_all(struct store *s, const struct verify_options *o,
               struct verify_result *result, struct error **errp)
{
    return verify_points(s, NULL, o, result, errp);
}

static unsigned index_of(const struct store *s, const struct store_point *p)
{
    return (unsigned)(p - store_point(s, 0));
}

/* All that the disks of the points that are wanted have for parents.  These
 * are older, so one pass from the newest does. */
static void want_parents(const struct store *s, bool *wanted)
{
    for (unsigned i = store_count(s); i > 0; i--) {
        const struct manifest *m = store_point(s, i - 1)->manifest;

        for (unsigned k = 0; wanted[i - 1] && m && k < m->count; k++) {
            const struct store_point *p = store_named(s, m->disks[k].parent);

            if (p && p != store_pending(s)) {
                wanted[index_of(s, p)] = true;
            }
        }
    }
}

int verify_point(struct store *s, const char *point, bool chain,
                 const struct verify_options *o, struct verify_result *result,
                 struct error **errp)
{
    CLEANUP_FREE bool *wanted = calloc(store_count(s) + 1, sizeof(*wanted));
    const struct store_point *p = store_named(s, point);

    if (!wanted) {
        return error_nomem(errp);
    }
    if (!p || p == store_pending(s)) {
        return error_set(errp, ENOENT, "there is no point %s", point);
    }
    wanted[index_of(s, p)] = true;
    if (chain) {
        want_parents(s, wanted);
    }
    return verify_points(s, wanted, o, result, errp);
}
