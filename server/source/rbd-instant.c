/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The instant of a backup of images of Ceph: see rbd.c.
 *
 *     begin   a snapshot of each image, all at once; their ids are the identity
 *     renew   are they still there?
 *     end     they stay as the checkpoint, or go
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "log/log.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/storage-snapshot.h"
#include "nbdelta/thread.h"
#include "source/adopt.h"
#include "source/rbd-names.h"
#include "source/rbd-priv.h"
#include "source/source.h"

/* --- Patience --- */

/*
 * A client that was killed holds up snapshots of its images until the cluster
 * has forgotten it, half a minute later.  What does not end in time is undone
 * when it ends, and then done again.
 */

#define LOOK_MS 200

static int check_stop(const struct source *s, struct error **errp)
{
    struct pollfd p = {.fd = s->stop_fd, .events = POLLIN};

    return s->stop_fd >= 0 && poll(&p, 1, 0) > 0
               ? error_set(errp, ECANCELED, "interrupted")
               : 0;
}

static bool is_settled(const struct rbd_source *x, unsigned from, unsigned to)
{
    bool settled = true;

    for (unsigned i = from; i < to; i++) {
        settled &= storage_settled(x->disks[i].node);
    }
    return settled;
}

static uint64_t patience(const struct rbd_source *x)
{
    return now_ns() + x->patience_ns;
}

/* After -ETIMEDOUT at images [from, to): it can be done again, and *errp is
 * forgotten.  False: nobody wants to wait any longer. */
static bool may_try_again(const struct source *s, unsigned from, unsigned to,
                          uint64_t until, struct error **errp)
{
    struct pollfd p = {.fd = s->stop_fd, .events = POLLIN};
    bool stop = false;

    while (!stop && now_ns() < until && !is_settled(s->opaque, from, to)) {
        stop = poll(&p, 1, LOOK_MS) > 0;
    }
    if (stop || now_ns() >= until) {
        return false;
    }
    error_free(*errp);
    *errp = NULL;
    return true;
}

/* --- Snapshots --- */

int rbd_remove_one(struct source *s, unsigned i, const char *name,
                   struct error **errp)
{
    const struct rbd_source *x = s->opaque;
    CLEANUP_ERROR struct error *err = NULL;
    uint64_t until = patience(x);
    int r;

    do {
        r = storage_remove(x->disks[i].node, name, &err);
    } while (r == -ETIMEDOUT && may_try_again(s, i, i + 1, until, &err));
    if (r == -EBUSY) {
        log_line(TELL_WARNING,
                 "snapshot '%s' of disk '%s' stays: somebody has protected or "
                 "cloned it",
                 name, x->names[i].disk);
    }
    return r == 0 || r == -ENOENT || r == -EBUSY
               ? 0
               : error_set(errp, -r, "%s", error_message(err));
}

/* Of all images, also where it fails at some; unless the cluster does not
 * answer, because that takes long enough for one. */
static int remove_what_can(struct source *s, unsigned i, const char *name,
                           struct error **errp)
{
    int r = rbd_remove_one(s, i, name, errp);

    return r == -ETIMEDOUT ? r : 0;
}

int rbd_check_snapshot(struct source *s, unsigned i, const char *name,
                       uint64_t id, struct error **errp)
{
    const struct rbd_source *x = s->opaque;
    CLEANUP_STORAGE struct storage_snapshots list = {0};
    int r = storage_snapshots_get(x->disks[i].node, &list, errp);
    const struct storage_snapshot *is = storage_snapshot_find(&list, name);

    return r < 0 ? r
           : !is || is->id != id
               ? error_set(errp, EIO,
                           "somebody has removed the snapshot '%s' of disk "
                           "'%s'",
                           name, x->names[i].disk)
               : 0;
}

/* There may be an instant of this checkpoint, or of none. */
static int name_instant(struct rbd_source *x, const char *checkpoint,
                        struct error **errp)
{
    x->checkpoint = checkpoint ? strdup(checkpoint) : NULL;
    x->snapshot = checkpoint ? storage_checkpoint_name(checkpoint)
                             : strdup(x->once);
    return x->snapshot && (x->checkpoint || !checkpoint) ? 0
                                                         : error_nomem(errp);
}

static void forget_instant(struct source *s)
{
    struct rbd_source *x = s->opaque;

    s->adopted = false;
    free(x->checkpoint);
    free(x->snapshot);
    json_decref(x->identity);
    x->checkpoint = x->snapshot = NULL;
    x->identity = NULL;
    for (unsigned i = 0; i < x->count; i++) {
        x->disks[i].snapshot = 0;
    }
}

void rbd_drop_instant(struct source *s, bool undo)
{
    const struct rbd_source *x = s->opaque;

    if (undo) {
        (void)rbd_each_image(s, remove_what_can, x->snapshot, NULL);
    }
    forget_instant(s);
}

/* --- Begin --- */

static int take_all(struct source *s, const char *name, struct error **errp)
{
    const struct rbd_source *x = s->opaque;
    CLEANUP_FREE struct storage_ref *refs = calloc(x->count, sizeof(*refs));
    CLEANUP_ERROR struct error *err = NULL;
    uint64_t until = patience(x);
    unsigned count = 0;
    int r;

    if (!refs) {
        return error_nomem(errp);
    }
    for (unsigned i = 0; i < x->count; i++) {
        if (!s->disks[i].skip) {
            refs[count++] = (struct storage_ref){x->disks[i].node, name};
        }
    }
    do {
        r = storage_take(s->graph, refs, count, &err);
    } while (r == -ETIMEDOUT && may_try_again(s, 0, x->count, until, &err));
    return r < 0 ? error_set(errp, -r, "%s", error_message(err)) : 0;
}

/* Opens what the snapshot shows, as a raw disk: what guests have written there
 * is not looked at. */
static json_t *view_options(const struct rbd_source *x, unsigned i)
{
    json_t *file = json_deep_copy(x->names[i].options);

    if (!file ||
        json_object_set_new(file, "snapshot", json_string(x->snapshot)) < 0) {
        json_decref(file);
        return NULL;
    }
    return json_pack("{s:s, s:o, s:b}", "driver", "raw", "file", file,
                     "read-only", 1);
}

/* Of one image whose snapshot is there: what begin writes. */
static int fill_disk(struct source *s, unsigned i, const char *name,
                     struct error **errp)
{
    struct rbd_source *x = s->opaque;
    struct source_disk *d = &s->disks[i];
    CLEANUP_STORAGE struct storage_snapshots list = {0};

    if (d->skip) {
        return 0;
    }
    int r = storage_snapshots_get(x->disks[i].node, &list, errp);
    if (r < 0) {
        return r;
    }
    const struct storage_snapshot *new = storage_snapshot_find(&list, name);
    if (!new) {
        return error_set(errp, ENOENT, "snapshot '%s' of disk '%s' is gone",
                         name, d->name);
    }
    CLEANUP_FREE char *before = d->since ? storage_checkpoint_name(d->since)
                                         : NULL;
    const struct storage_snapshot *since =
        before ? storage_snapshot_find(&list, before) : NULL;
    x->disks[i].snapshot = new->id;
    x->disks[i].since = since ? since->id : 0;
    d->size = new->size;
    d->checkpoint = x->checkpoint != NULL;
    d->told = since != NULL;
    d->reason = d->since && !since ? "no-checkpoint" : NULL;
    d->options = view_options(x, i);
    return d->options ? 0 : error_nomem(errp);
}

/* As source_identity() tells it. */
static int make_identity(struct source *s, struct error **errp)
{
    struct rbd_source *x = s->opaque;
    char word[ADOPT_WORD_MAX];
    CLEANUP_JSON json_t *ids = json_object();
    int r = adopt_make_word(word, errp);

    if (r < 0) {
        return r;
    }
    CLEANUP_JSON json_t *identity = adopt_describe(s, word, x->checkpoint);
    for (unsigned i = 0; i < x->count; i++) {
        if (!s->disks[i].skip &&
            json_object_set_new(
                ids, s->disks[i].name,
                json_integer((json_int_t)x->disks[i].snapshot)) < 0) {
            return error_nomem(errp);
        }
    }
    if (!identity || json_object_set(identity, "snapshots", ids) < 0) {
        return error_nomem(errp);
    }
    x->identity = json_incref(identity);
    return 0;
}

static int begin_new(struct source *s, const char *checkpoint,
                     struct error **errp)
{
    struct rbd_source *x = s->opaque;
    int r = check_stop(s, errp);

    if (r < 0) {
        return r;
    }
    r = name_instant(x, checkpoint, errp);
    if (r == 0 && !checkpoint) {
        r = rbd_each_image(s, rbd_remove_one, x->once, errp);
    }
    r = r < 0 ? r : take_all(s, x->snapshot, errp);
    r = r < 0 ? r : rbd_each_image(s, fill_disk, x->snapshot, errp);
    r = r < 0 ? r : make_identity(s, errp);
    r = r < 0 ? r : check_stop(s, errp);
    if (r < 0) {
        rbd_drop_instant(s, true);
    }
    return r;
}

/* --- What a killed run has begun --- */

/* Is the snapshot of the identity there? */
static int find_adopted(struct source *s, unsigned i, const char *name,
                        struct error **errp)
{
    struct rbd_source *x = s->opaque;
    const char *disk = x->names[i].disk;
    json_int_t id = json_integer_value(
        json_object_get(json_object_get(x->identity, "snapshots"), disk));

    if (!adopt_disk(x->identity, disk)) {
        return 0;
    }
    x->disks[i].snapshot = (uint64_t)id;
    int r = rbd_check_snapshot(s, i, name, (uint64_t)id, NULL);
    return r == -EIO ? adopt_gone(errp)
           : r < 0   ? error_set(errp, -r, "disk '%s': %s", disk, strerror(-r))
                     : 0;
}

void rbd_adopt(struct source *s, const json_t *identity)
{
    struct rbd_source *x = s->opaque;
    const char *checkpoint = adopt_checkpoint(identity, x->id);

    if (!adopt_word(identity) || !checkpoint) {
        return;
    }
    x->identity = json_incref((json_t *)(uintptr_t)identity);
    s->adopted = name_instant(x, checkpoint, NULL) == 0 &&
                 rbd_each_image(s, find_adopted, x->snapshot, NULL) == 0;
    if (!s->adopted) {
        forget_instant(s);
    }
}

/* Sizes, reasons and what the views are. */
static int begin_adopted(struct source *s, const char *checkpoint,
                         struct error **errp)
{
    struct rbd_source *x = s->opaque;
    int r = adopt_fits(s, x->identity, checkpoint)
                ? rbd_each_image(s, find_adopted, x->snapshot, errp)
                : adopt_gone(errp);

    r = r < 0 ? r : rbd_each_image(s, fill_disk, x->snapshot, errp);
    if (r < 0) {
        rbd_drop_instant(s, true);
    }
    return r;
}

int rbd_begin(struct source *s, const char *checkpoint, struct error **errp)
{
    return s->adopted ? begin_adopted(s, checkpoint, errp)
                      : begin_new(s, checkpoint, errp);
}

/* --- End --- */

static int check_one(struct source *s, unsigned i, const char *name,
                     struct error **errp)
{
    const struct rbd_source *x = s->opaque;

    return s->disks[i].skip
               ? 0
               : rbd_check_snapshot(s, i, name, x->disks[i].snapshot, errp);
}

int rbd_renew(struct source *s, struct error **errp)
{
    const struct rbd_source *x = s->opaque;

    return rbd_each_image(s, check_one, x->snapshot, errp);
}

int rbd_end(struct source *s, bool keep, struct error **errp)
{
    const struct rbd_source *x = s->opaque;

    if (keep && x->checkpoint) {
        int r = rbd_each_image(s, check_one, x->snapshot, errp);

        if (r == 0) {
            forget_instant(s);
        }
        return r;
    }
    int r = rbd_each_image(s, rbd_remove_one, x->snapshot, errp);
    if (r < 0 && r != -ETIMEDOUT) {
        (void)rbd_each_image(s, remove_what_can, x->snapshot, NULL);
    }
    if (r == 0 || !keep) {
        forget_instant(s);
    }
    return r;
}
