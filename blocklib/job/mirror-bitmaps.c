/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A mirror that takes the bitmaps of its source along.
 *
 *     target           ready       last section: equal, flushed
 *     -------------------------------------------------------------------
 *     an image here    (nothing)   bitmaps are added, with all bits,    users
 *                                  and stored durably                   go to
 *     an NBD export    it has them already, or the job does not end so  the
 *                                  (nothing)                            target
 *
 * So users go to a target that has all bitmaps durably, whatever is killed
 * when.  Until then the source's bitmaps are right, and its users write there.
 *
 * NBD has no way to write a bitmap.  The other end fetches them itself, when
 * the mirror is ready (fetch.c), and the job looks whether they are there.
 * What the source has dirty is dirty there too: it was read there, or it came
 * there as a write later.  What was not copied yet is still to come:
 *
 *     dirty here  <=  dirty there + not copied yet
 *
 * This has to hold at any time once the other end has fetched the bitmaps.  So
 * it is asked while guests go on, and the last section asks nothing.
 */
#include "job/mirror-bitmaps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/dirty.h"
#include "core/graph.h"
#include "job/far-bits.h"
#include "job/mirror.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/tell.h"

/* --- Which bitmaps --- */

typedef int visit_fn(struct bitmap *bm, void *opaque, struct error **errp);

/* Those of the disk that can be trusted, in the order in which they were
 * made. */
static int each_bitmap(const struct mirror *m, visit_fn *fn, void *opaque,
                       struct error **errp)
{
    int r = 0;

    for (struct node *n = m->source; n;
         n = n->drv->is_filter ? node_child(n, CHILD_FILE) : NULL) {
        list_for_each (at, &n->bitmaps) {
            struct bitmap *bm = list_entry(at, struct bitmap, on_node);
            if (r == 0 && bm->name && bitmap_readable(bm)) {
                r = fn(bm, opaque, errp);
            }
        }
    }
    return r;
}

static int count_bitmap(struct bitmap *bm, void *opaque, struct error **errp)
{
    size_t *count = opaque;

    (void)bm;
    (void)errp;
    (*count)++;
    return 0;
}

/* Where the target keeps its bitmaps. */
static struct node *home_of(const struct mirror *m)
{
    return node_skip_filters(m->target);
}

/* --- The start --- */

static int check_bitmap(struct bitmap *bm, void *opaque, struct error **errp)
{
    const struct mirror *m = opaque;
    uint64_t granularity = bm->granularity;

    return bitmap_check_add(home_of(m), bm->name, &granularity, bm->persistent,
                            errp);
}

int mirror_bitmaps_begin(struct mirror *m, struct error **errp)
{
    struct node *far = far_export(m->target);

    m->bitmaps.on = true;
    if (far) {
        node_ref(far);
        m->bitmaps.far = far;
        return 0;
    }
    int r = each_bitmap(m, check_bitmap, m, errp);
    if (r < 0) {
        error_prefix(errp, "the target cannot take the bitmaps: ");
    }
    return r;
}

/* --- The far end --- */

/* What a bitmap had at one instant. */
struct seen {
    char *name;
    struct hbitmap *bits;
};

struct survey {
    struct seen *at;
    size_t count;
    struct hbitmap *uncopied;
};

static void survey_free(struct survey *s)
{
    for (size_t i = 0; i < s->count; i++) {
        free(s->at[i].name);
        hbitmap_free(s->at[i].bits);
    }
    free(s->at);
    hbitmap_free(s->uncopied);
}

/* The persistent ones: what is in memory only belongs to this process. */
static int see(struct bitmap *bm, void *opaque, struct error **errp)
{
    struct survey *s = opaque;

    if (!bm->persistent) {
        return 0;
    }
    struct seen *at = reallocarray(s->at, s->count + 1, sizeof(*at));
    if (!at) {
        return error_nomem(errp);
    }
    s->at = at;
    at += s->count++;
    *at = (struct seen){strdup(bm->name), bitmap_share_bits(bm)};
    return at->name && at->bits ? 0 : error_nomem(errp);
}

static int look_around(struct mirror *m, struct survey *s, struct error **errp)
{
    graph_lock(m->graph);
    graph_drain(m->graph, m->source);
    s->uncopied = follow_share_bits(&m->follow);
    int r = s->uncopied ? each_bitmap(m, see, s, errp) : error_nomem(errp);
    graph_unlock(m->graph);
    return r;
}

static int check_far(struct mirror *m, const struct survey *s,
                     const struct seen *here, struct error **errp)
{
    struct hbitmap *there = hbitmap_new(hbitmap_size(here->bits),
                                        hbitmap_granularity(here->bits));
    if (!there) {
        return error_nomem(errp);
    }
    int r = far_bits_add(m->bitmaps.far, here->name, copy_given_up(m->copy),
                         there, errp);
    if (r == 0) {
        hbitmap_fill(there, s->uncopied);
        if (!hbitmap_covers(there, here->bits)) {
            r = error_set(errp, EUCLEAN,
                          "bitmap '%s' of '%s': it lacks changes that are in "
                          "the bitmap of '%s'",
                          here->name, node_filename(m->bitmaps.far),
                          node_name(m->source));
        }
    }
    hbitmap_free(there);
    return r;
}

static int check_all_far(struct mirror *m, struct error **errp)
{
    struct survey s = {0};
    int r = look_around(m, &s, errp);

    json_decref(m->bitmaps.known);
    m->bitmaps.known = json_object();
    for (size_t i = 0; r == 0 && i < s.count; i++) {
        r = check_far(m, &s, &s.at[i], errp);
        if (r == 0 && json_object_set_new_nocheck(
                          m->bitmaps.known, s.at[i].name, json_true()) < 0) {
            r = error_nomem(errp);
        }
    }
    if (r < 0) {
        json_decref(m->bitmaps.known);
        m->bitmaps.known = NULL;
    }
    survey_free(&s);
    return r;
}

/* An error of the target, which does what the user wants of these.  Nobody goes
 * to a target without bitmaps, so there is nothing to ignore. */
static int missing(struct mirror *m, int r, struct error *err)
{
    enum job_on_error wanted = m->follow.on_error[COPY_WRITE];
    bool stops = wanted == ON_ERROR_STOP || wanted == ON_ERROR_IGNORE;
    struct jobs *j = m->job.jobs;

    if (atomic_load(copy_given_up(m->copy))) {
        error_free(err);
        return JOB_STOPPED;
    }
    if (stops) {
        tell_event(TELL_ERROR, "job '%.200s' (mirror): %s", m->job.id,
                   error_message(err));
        error_free(err);
    } else {
        m->job.error = err;
    }
    mutex_lock(&j->lock);
    (void)job_retries(j, &m->job, stops ? ON_ERROR_STOP : ON_ERROR_REPORT,
                      false, r);
    mutex_unlock(&j->lock);
    return stops ? JOB_STOPPED : r;
}

int mirror_bitmaps_ready(struct mirror *m)
{
    struct error *err = NULL;

    if (!m->bitmaps.far) {
        m->bitmaps.ahead = true;
        (void)bitmap_store_ahead(home_of(m), true, NULL);
        return 0;
    }
    int r = check_all_far(m, &err);
    return r < 0 ? missing(m, r, err) : 0;
}

/* --- The last section --- */

static int check_known(struct bitmap *bm, void *opaque, struct error **errp)
{
    const struct mirror *m = opaque;

    return !bm->persistent || json_object_get(m->bitmaps.known, bm->name)
               ? 0
               : error_set(errp, EBUSY,
                           "bitmap '%s' was made too late to be at the target",
                           bm->name);
}

static int add_bitmap(struct bitmap *bm, void *opaque, struct error **errp)
{
    struct mirror *m = opaque;
    struct hbitmap *bits = bitmap_share_bits(bm);
    struct bitmap *new;

    if (!bits) {
        return error_nomem(errp);
    }
    int r = hbitmap_resize(bits, node_size(home_of(m))) < 0
                ? error_nomem(errp)
                : bitmap_add_with_bits(home_of(m), bm->name, bits,
                                       bm->persistent, !bm->enabled, &new,
                                       errp);
    if (r < 0) {
        hbitmap_free(bits);
        return r;
    }
    m->bitmaps.added[m->bitmaps.count++] = new;
    return 0;
}

static int store(struct mirror *m, struct error **errp)
{
    struct node *home = home_of(m);
    bool changed = home->bitmaps_changed;

    home->bitmaps_changed = false;
    return changed ? bitmap_store(home, errp) : 0;
}

int mirror_bitmaps_add(struct mirror *m, struct error **errp)
{
    struct mirror_bitmaps *b = &m->bitmaps;

    if (b->far) {
        return each_bitmap(m, check_known, m, errp);
    }
    size_t count = 0;
    (void)each_bitmap(m, count_bitmap, &count, NULL);
    b->added = calloc(count + 1, sizeof(*b->added));
    if (!b->added) {
        return error_nomem(errp);
    }
    int r = each_bitmap(m, add_bitmap, m, errp);
    if (r == 0) {
        r = store(m, errp);
    }
    if (r < 0) {
        error_prefix(errp, "the target cannot take the bitmaps: ");
        mirror_bitmaps_undo(m);
    }
    return r;
}

void mirror_bitmaps_undo(struct mirror *m)
{
    struct mirror_bitmaps *b = &m->bitmaps;

    while (b->count > 0) {
        struct bitmap *bm = b->added[--b->count];
        home_of(m)->bitmaps_changed |= bm->persistent;
        bitmap_drop(bm);
    }
    (void)store(m, NULL);
}

void mirror_bitmaps_end(struct mirror *m)
{
    if (m->bitmaps.ahead) {
        bitmap_store_behind(home_of(m));
        m->bitmaps.ahead = false;
    }
    json_decref(m->bitmaps.known);
    m->bitmaps.known = NULL;
    free(m->bitmaps.added);
    m->bitmaps.added = NULL;
}
