/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A point goes: see prune.h.
 *
 *     look      images opened, units hashed, room, nobody reads   nothing yet
 *     journal   prune.json is there                               undone
 *     unlink    the point's manifest                      --------------------
 *     merge     of each disk: prune-merge.c                       finished
 *     rename    of each disk                                      by what
 *     tell      manifests of the next point, and of those         writes next
 *               made over it: prune-manifest.c
 *     clean     what is left of the point, the journal last
 *
 * Each step is durable before the next one begins, and does nothing where it
 * was done already.  prune_recover starts with "merge" again.  It knows by the
 * files that are there how far a disk has come:
 *
 *     gone.qcow2   next.sums.part
 *     yes                            merge (again)
 *     no           yes               renamed, its hashes not yet
 *     no           no                renamed
 */
#include "store/prune.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/prune-priv.h"
#include "store/verify.h"

/* --- Nobody reads --- */

/* Does the removal change a file of the point, or its manifest? */
static bool is_touched(const struct removal *rm, const struct store_point *p)
{
    if (strcmp(p->name, rm->gone->name) == 0) {
        return true;
    }
    for (unsigned i = 0; p->manifest && i < rm->gone->count; i++) {
        const struct manifest_disk *d = manifest_find(p->manifest,
                                                      rm->gone->disks[i].name);

        if (rm->next[i][0] && (strcmp(p->name, rm->next[i]) == 0 ||
                               (d && strcmp(d->parent, rm->next[i]) == 0))) {
            return true;
        }
    }
    return false;
}

static int hold_all(struct store *s, const struct removal *rm, struct holds *h,
                    struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < store_count(s); i++) {
        if (is_touched(rm, store_point(s, i))) {
            r = holds_add(s, store_point(s, i)->name, true, h, errp);
        }
    }
    return r;
}

/* --- After the point's manifest has gone --- */

static int finish_disk(struct store *s, const struct removal *rm, unsigned i,
                       struct merge *open, struct error **errp)
{
    const struct manifest_disk *d = &rm->gone->disks[i];
    const char *gone = rm->gone->name;
    const char *next = rm->next[i];
    bool there = false;
    int r = next[0] ? merge_has(s, d->name, gone, "qcow2", &there, errp) : 0;

    if (r == 0 && there) {
        struct merge *m = open;

        r = open ? 0 : merge_reclaim(s, gone, d->name, errp);
        r = r < 0 || open ? r : merge_open(s, gone, d, next, &m, errp);
        r = r < 0 ? r : merge_run(m, errp);
        if (!open) {
            merge_free(m);
        }
    }
    return r < 0 ? r : merge_rename(s, d->name, gone, next, errp);
}

static int remove_of(const struct store *s, const char *point,
                     const char *ending, struct error **errp)
{
    char file[POINT_NAME_MAX + 16];

    (void)snprintf(file, sizeof(file), "%s.%s", point, ending);
    return dir_remove(s->dir, file, errp);
}

/* The note that a next point was verified also holds for what it has now, if
 * what was merged into it was verified then, and found right. */
#define VERIFIED_TOGETHER INT64_C(86400) /* seconds */

static bool note_holds(const struct store *s, const char *gone,
                       const char *next)
{
    struct verified a = {.when = 0};
    struct verified b = {.when = 0};

    verified_read(s, gone, &a);
    verified_read(s, next, &b);
    return a.when > 0 && a.damages == 0 && b.when <= a.when + VERIFIED_TOGETHER;
}

static int clean_up(const struct store *s, const struct removal *rm,
                    struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < rm->gone->count; i++) {
        const char *next = rm->next[i];

        r = next[0] && !note_holds(s, rm->gone->name, next)
                ? remove_of(s, next, "verified", errp)
                : 0;
    }
    r = r < 0 ? r : remove_of(s, rm->gone->name, "verified", errp);
    r = r < 0 ? r : remove_of(s, rm->gone->name, "xml", errp);
    r = r < 0 ? r : dir_flush(s->dir, errp);
    return r < 0 ? r : journal_remove(s, errp);
}

/* @merges: the ones that are open already, one for each disk, or NULL. */
static int finish(struct store *s, const struct removal *rm,
                  struct merge **merges, struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < rm->gone->count; i++) {
        r = finish_disk(s, rm, i, merges ? merges[i] : NULL, errp);
        if (merges) { /* the old file of the next point gives its room back */
            merge_free(merges[i]);
            merges[i] = NULL;
        }
    }
    r = r < 0 ? r : manifests_update(s, rm, errp);
    return r < 0 ? r : clean_up(s, rm, errp);
}

/* --- Before --- */

static int open_merges(struct store *s, const struct removal *rm,
                       struct merge **merges, struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < rm->gone->count; i++) {
        if (rm->next[i][0]) {
            r = merge_open(s, rm->gone->name, &rm->gone->disks[i], rm->next[i],
                           &merges[i], errp);
        }
    }
    for (unsigned i = 0; r == 0 && i < rm->gone->count; i++) {
        r = merges[i] ? merge_check(merges[i], errp) : 0;
    }
    return r;
}

/* The store forgets the point, whose manifest is not there any more. */
static void forget_point(struct store *s, const char *name)
{
    for (unsigned i = 0; i < s->count; i++) {
        struct store_point *p = &s->points[i];

        if (strcmp(p->name, name) == 0) {
            manifest_free(p->manifest);
            free(p->why);
            memmove(p, p + 1, (s->count - i - 1) * sizeof(*p));
            s->count--;
            return;
        }
    }
}

/* From here on there is no way back.  An error leaves it open whether the
 * manifest has gone: prune_recover looks. */
static int begin(struct store *s, const struct removal *rm, struct error **errp)
{
    int r = journal_write(s, rm, errp);

    r = r < 0 ? r : remove_of(s, rm->gone->name, "json", errp);
    r = r < 0 ? r : dir_flush(s->dir, errp);
    if (r == 0) {
        forget_point(s, rm->gone->name);
    }
    return r;
}

static uint64_t disk_bytes(struct store *s, const struct removal *rm)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < rm->gone->count; i++) {
        const char *disk = rm->gone->disks[i].name;

        bytes += merge_disk_bytes(s, disk, rm->gone->name);
        bytes += rm->next[i][0] ? merge_disk_bytes(s, disk, rm->next[i]) : 0;
    }
    return bytes;
}

static int do_removal(struct store *s, const struct removal *rm,
                      struct merge **merges, uint64_t *freed,
                      struct error **errp)
{
    struct holds holds = {.count = 0};
    uint64_t before = disk_bytes(s, rm);
    int r = hold_all(s, rm, &holds, errp);

    r = r < 0 ? r : open_merges(s, rm, merges, errp);
    if (r == 0) {
        r = begin(s, rm, errp);
        r = r < 0 ? r : finish(s, rm, merges, errp);
        if (r < 0) {
            (void)store_reload(s, NULL); /* as far as it has come */
        }
    }
    holds_release(&holds);
    if (r == 0 && freed) {
        uint64_t after = disk_bytes(s, rm);
        *freed += before > after ? before - after : 0;
    }
    return r;
}

static int remove_point(struct store *s, const struct removal *rm,
                        uint64_t *freed, struct error **errp)
{
    struct merge **merges = calloc(rm->gone->count + 1, sizeof(*merges));
    int r = merges ? do_removal(s, rm, merges, freed, errp) : error_nomem(errp);

    for (unsigned i = 0; merges && i < rm->gone->count; i++) {
        merge_free(merges[i]);
    }
    free(merges);
    return r;
}

static int check_point(struct store *s, const char *point,
                       const struct store_point **pp, struct error **errp)
{
    const struct store_point *p = store_named(s, point);
    int r = store_check_writable(s, errp);

    if (r < 0) {
        return r;
    }
    if (!p || p == store_pending(s)) {
        return error_set(errp, ENOENT, "'%s' has no point %s", s->path, point);
    }
    if (p == store_latest(s)) {
        return error_set(errp, EINVAL, "%s is the latest point, which stays",
                         point);
    }
    if (prune_must_keep(s, (unsigned)(p - store_point(s, 0))) != 0) {
        return error_set(errp, EBUSY,
                         "point %s stays: its manifest, or that of one of "
                         "the two points after it, cannot be used, or a "
                         "pending point needs it",
                         point);
    }
    *pp = p;
    return 0;
}

static int copy_manifest(const struct manifest *m, struct manifest **copy,
                         struct error **errp)
{
    CLEANUP_FREE char *text = NULL;
    int r = manifest_text(m, &text, errp);

    return r < 0 ? r : manifest_parse(text, strlen(text), copy, errp);
}

int prune_point(struct store *s, const char *point, uint64_t *freed,
                struct error **errp)
{
    CLEANUP_REMOVAL struct removal *rm = NULL;
    const struct store_point *p = NULL;
    struct manifest *gone = NULL;
    int r = prune_recover(s, NULL, errp);

    r = r < 0 ? r : check_point(s, point, &p, errp);
    r = r < 0 ? r : copy_manifest(p->manifest, &gone, errp);
    r = r < 0 ? r : removal_new(s, gone, &rm, errp);
    return r < 0 ? r : remove_point(s, rm, freed, errp);
}

static bool may_be_left(int r)
{
    return r == -EBUSY || r == -EUCLEAN || r == -ENOSPC;
}

/* The worst of two results of points that were left. */
static int worse(int a, int b)
{
    static const int order[] = {-EUCLEAN, -EBUSY, -ENOSPC};

    for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
        if (a == order[i] || b == order[i]) {
            return order[i];
        }
    }
    return 0;
}

/* What keeps them is nothing that a rule says. */
static int tell_unreadable(const struct store *s,
                           void (*left)(const char *point,
                                        const struct error *why))
{
    int r = 0;

    for (unsigned i = 0; i < store_count(s); i++) {
        CLEANUP_ERROR struct error *why = NULL;
        const struct store_point *p = store_point(s, i);

        if (!p->manifest) {
            r = error_set(&why, EUCLEAN, "its manifest cannot be used: %s",
                          p->why);
            left(p->name, why);
        }
    }
    return r;
}

int prune_all(struct store *s, const struct prune_point *points, unsigned count,
              void (*left)(const char *point, const struct error *why),
              struct prune_result *result, struct error **errp)
{
    int worst = tell_unreadable(s, left);

    *result = (struct prune_result){.removed = 0};
    for (unsigned i = 0; i < count; i++) {
        CLEANUP_ERROR struct error *why = NULL;
        int r = points[i].kept
                    ? 0
                    : prune_point(s, points[i].name, &result->freed, &why);

        if (r < 0 && !may_be_left(r)) {
            return error_set(errp, -r, "%s", error_message(why));
        }
        if (r < 0) {
            left(points[i].name, why);
        }
        result->removed += r == 0 && points[i].kept == 0;
        worst = worse(worst, r);
    }
    return worst < 0 ? error_set(errp, -worst, "some points were left") : 0;
}

/* --- After somebody was killed --- */

static int recover(struct store *s, const struct removal *rm,
                   struct error **errp)
{
    struct holds holds = {.count = 0};
    int r = hold_all(s, rm, &holds, errp);

    r = r < 0 ? r : finish(s, rm, NULL, errp);
    if (r < 0) {
        (void)store_reload(s, NULL);
        error_prefix(errp,
                     "cannot finish the removal of point %s: ", rm->gone->name);
    }
    holds_release(&holds);
    return r;
}

int prune_recover(struct store *s, bool *did, struct error **errp)
{
    CLEANUP_REMOVAL struct removal *rm = NULL;
    CLEANUP_ERROR struct error *none = NULL;
    int r = store_check_writable(s, errp);

    if (did) {
        *did = false;
    }
    if (r < 0) {
        return r;
    }
    r = journal_read(s, &rm, &none);
    if (r == -ENOENT) {
        return 0;
    }
    if (r < 0) {
        return error_set(errp, -r, "%s", error_message(none));
    }
    if (store_named(s, rm->gone->name)) {
        return journal_remove(s, errp);
    }
    r = recover(s, rm, errp);
    if (r == 0 && did) {
        *did = true;
    }
    return r;
}
