/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What runs before this one have left: a pending point, and checkpoints of this
 * directory at the source.
 *
 *   checkpoint at the source   the point          what becomes of it
 *   nbdelta-ID-POINT           is pending         the point is finished
 *   none                       is pending         the point goes
 *   nbdelta-ID-POINT           is the latest      it stays: the next increment
 *   nbdelta-ID-POINT           another, or none   the checkpoint goes
 *   of another name            -                  stays
 *
 * Libvirt does not list a checkpoint when it has lost the metadata: of a
 * transient domain that has ended, of a disk that was detached when the others'
 * went.  The bitmap is there still.  So these are forgotten by their names.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/backup-priv.h"
#include "log/log.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define PREFIX "nbdelta-"

void run_name_checkpoint(const struct run *r, const char *point, char *out)
{
    (void)snprintf(out, CHECKPOINT_MAX, PREFIX "%s-%s", store_id(r->store),
                   point);
}

/* The point that the checkpoint @name is of, if it is one of this directory;
 * else NULL. */
static const char *point_of_checkpoint(const struct run *r, const char *name)
{
    char prefix[CHECKPOINT_MAX];

    run_name_checkpoint(r, "", prefix);
    size_t len = strlen(prefix);
    return strncmp(name, prefix, len) == 0 && point_name_valid(name + len)
               ? name + len
               : NULL;
}

static int gather_checkpoint(const char *name, const struct source_disk *disk,
                             const char *unusable, void *opaque)
{
    (void)disk;
    (void)unusable;
    return json_object_set_new(opaque, name, json_true()) < 0 ? -ENOMEM : 0;
}

/* All that are at the source: an object with their names as keys. */
static int all_checkpoints(struct run *r, json_t **names, struct error **errp)
{
    *names = json_object();
    return *names ? source_each_checkpoint(r->source, gather_checkpoint, *names,
                                           errp)
                  : error_nomem(errp);
}

/* A killed run has left a pending point: it counts if its checkpoint is at the
 * source, or if it has none. */
static int settle_pending(struct run *r, const json_t *checkpoints,
                          struct error **errp)
{
    const struct store_point *p = store_pending(r->store);
    const char *checkpoint = NULL;

    if (!p) {
        return 0;
    }
    for (unsigned i = 0; p->manifest && i < p->manifest->count; i++) {
        if (p->manifest->disks[i].checkpoint) {
            checkpoint = p->manifest->disks[i].checkpoint;
        }
    }
    int result = -EUCLEAN;
    if (p->manifest &&
        (!checkpoint || json_object_get(checkpoints, checkpoint))) {
        result = store_finish_pending(r->store, errp);
    }
    /* Without all of its files it is no point; the one before still counts, and
     * has its checkpoint. */
    if (result == -EUCLEAN) {
        if (errp) {
            error_free(*errp);
            *errp = NULL;
        }
        result = store_drop_pending(r->store, errp);
    }
    return result;
}

/* Checkpoints of this directory go, except that of the latest point. */
static int drop_old_checkpoints(struct run *r, const json_t *checkpoints,
                                const char *keep, struct error **errp)
{
    const char *name;
    json_t *value;
    int result = 0;

    json_object_foreach ((json_t *)(uintptr_t)checkpoints, name, value) {
        if (result == 0 && point_of_checkpoint(r, name) &&
            strcmp(name, keep) != 0) {
            result = source_forget(r->source, name, errp);
        }
    }
    return result;
}

static bool has_own(const struct run *r, const json_t *checkpoints)
{
    const char *name;
    json_t *value;
    bool own = false;

    json_object_foreach ((json_t *)(uintptr_t)checkpoints, name, value) {
        own |= point_of_checkpoint(r, name) != NULL;
    }
    return own;
}

int run_settle(struct run *r, struct error **errp)
{
    CLEANUP_JSON json_t *checkpoints = NULL;

    if (!r->store) {
        return 0;
    }
    int result = all_checkpoints(r, &checkpoints, errp);

    result = result < 0 ? result
                        : run_check_source(r, has_own(r, checkpoints), errp);
    if (result == 0 && !r->o->dry_run &&
        (result = settle_pending(r, checkpoints, errp)) == 0 &&
        (result = run_forget_copied(r, errp)) == 0) {
        result = store_clean(r->store, NULL, errp);
    }
    const struct store_point *latest = store_latest(r->store);
    if (latest) {
        run_name_checkpoint(r, latest->name, r->since);
    }
    result = result < 0 || r->o->dry_run
                 ? result
                 : drop_old_checkpoints(r, checkpoints, r->since, errp);
    return result < 0 || r->o->dry_run || !r->left[0] ||
                   json_object_get(checkpoints, r->left)
               ? result
               : source_forget(r->source, r->left, errp);
}

static const struct manifest_disk *disk_in(const struct manifest *m,
                                           const char *name)
{
    for (unsigned i = 0; m && i < m->count; i++) {
        if (strcmp(m->disks[i].name, name) == 0) {
            return &m->disks[i];
        }
    }
    return NULL;
}

/* The newest point that has the disk: its checkpoint, if it is one of this
 * directory and not that of the latest point; or NULL. */
static const char *checkpoint_before(const struct run *r, const char *disk)
{
    const struct manifest_disk *d = NULL;

    for (unsigned i = store_count(r->store); !d && i > 0; i--) {
        d = disk_in(store_point(r->store, i - 1)->manifest, disk);
    }
    return d && d->checkpoint && point_of_checkpoint(r, d->checkpoint) &&
                   strcmp(d->checkpoint, r->since) != 0
               ? d->checkpoint
               : NULL;
}

int run_forget_returned(struct run *r, struct error **errp)
{
    int result = 0;

    if (!r->store || r->o->dry_run || r->source->adopted) {
        return 0;
    }
    for (unsigned i = 0; result == 0 && i < r->count; i++) {
        const char *old = checkpoint_before(r, r->disks[i]->name);
        result = old ? source_forget(r->source, old, errp) : 0;
    }
    return result;
}

void run_forget_before(struct run *r)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (r->since[0] && strcmp(r->since, r->checkpoint) != 0 &&
        source_forget(r->source, r->since, &err) < 0) {
        log_line(TELL_WARNING, "checkpoint '%s' is left at the source: %s",
                 r->since, error_message(err));
    }
}

int run_forget_all(struct run *r, struct error **errp)
{
    CLEANUP_JSON json_t *checkpoints = NULL;
    int result = all_checkpoints(r, &checkpoints, errp);

    return result < 0 ? result : drop_old_checkpoints(r, checkpoints, "", errp);
}
