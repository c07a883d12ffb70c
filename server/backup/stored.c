/* SPDX-License-Identifier: BSD-3-Clause */
/* Checkpoints and points in time that the storage keeps: see stored.h. */
#include "backup/stored.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/session-priv.h"
#include "daemon.h"
#include "log/log.h"
#include "nbdelta/action.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/point.h"
#include "nbdelta/storage-snapshot.h"

#define BACKUP "nbdelta.backup."

/* --- Checkpoints of a node --- */

int stored_list(struct node *n, struct storage_snapshots *list,
                struct error **errp)
{
    *list = (struct storage_snapshots){0};
    return storage_has_snapshots(n) ? storage_snapshots_get(n, list, errp) : 0;
}

int stored_has(struct node *n, const char *checkpoint, struct error **errp)
{
    CLEANUP_STORAGE struct storage_snapshots list = {0};
    CLEANUP_FREE char *name = storage_checkpoint_name(checkpoint);

    if (!name) {
        return error_nomem(errp);
    }
    int r = stored_list(n, &list, errp);
    return r < 0 ? r : storage_snapshot_find(&list, name) != NULL;
}

int stored_remove(struct node *n, const char *checkpoint, struct error **errp)
{
    CLEANUP_FREE char *name = storage_checkpoint_name(checkpoint);

    return name ? storage_remove(n, name, errp) : error_nomem(errp);
}

/* --- What daemons have left --- */

static bool is_of_session(const struct pulls *p, const char *snapshot)
{
    list_for_each (at, &p->sessions) {
        const struct pull *s = pull_of(at);

        for (unsigned i = 0; i < s->count; i++) {
            const char *name = s->disks[i].snapshot;
            if (name && strcmp(name, snapshot) == 0) {
                return true;
            }
        }
    }
    return false;
}

/* Is nobody there any more whose backup it could be? */
static bool is_left_over(const struct pulls *p, struct node *n,
                         const char *snapshot)
{
    char own[STORAGE_OWNER_MAX];
    size_t prefix = strlen(BACKUP);

    if (strncmp(snapshot, BACKUP, prefix) != 0) {
        return false;
    }
    CLEANUP_FREE char *owner = strdup(snapshot + prefix);
    char *dot = owner ? strchr(owner, '.') : NULL;
    if (!dot) {
        return false;
    }
    *dot = '\0';
    storage_owner(n, own);
    /* One of ours may be there under another connection. */
    size_t process = (size_t)(strrchr(own, '-') - own) + 1;
    return strncmp(owner, own, process) == 0
               ? !is_of_session(p, snapshot)
               : storage_owner_lives(n, owner, NULL) == 0;
}

static void remove_left_over(const struct pulls *p, struct node *n,
                             const struct storage_snapshots *list)
{
    for (size_t i = 0; i < list->count; i++) {
        const char *name = list->at[i].name;
        struct error *err = NULL;

        if (!is_left_over(p, n, name)) {
            continue;
        }
        if (storage_remove(n, name, &err) < 0) {
            log_line(TELL_WARNING,
                     "a snapshot that a backup has left stays: "
                     "%.400s",
                     error_message(err));
        } else {
            log_line(TELL_INFO,
                     "disk '%.200s': the snapshot '%.200s' that a backup has "
                     "left is removed",
                     node_name(n), name);
        }
        error_free(err);
    }
}

/* --- Begin --- */

static int prepare_disk(struct pulls *p, const struct pull *s,
                        struct pull_disk *d, struct error **errp)
{
    CLEANUP_STORAGE struct storage_snapshots list = {0};
    CLEANUP_FREE char *fresh = s->checkpoint
                                   ? storage_checkpoint_name(s->checkpoint)
                                   : NULL;
    char own[STORAGE_OWNER_MAX];

    storage_owner(d->node, own);
    if ((s->checkpoint && !fresh) ||
        asprintf(&d->snapshot, BACKUP "%s.%s", own, s->instant) < 0) {
        return error_nomem(errp);
    }
    int r = storage_snapshots_get(d->node, &list, errp);
    if (r < 0) {
        return r;
    }
    remove_left_over(p, d->node, &list);
    return fresh && storage_snapshot_find(&list, fresh)
               ? error_set(errp, EEXIST,
                           "'%s' has the checkpoint '%s' already: it is the "
                           "snapshot '%s'",
                           d->name, s->checkpoint, fresh)
               : 0;
}

int stored_prepare(struct pulls *p, struct pull *s, struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        if (s->disks[i].stored) {
            r = prepare_disk(p, s, &s->disks[i], errp);
        }
    }
    return r;
}

static int add_point(struct pulls *p, struct pull_disk *d, struct list *actions,
                     struct error **errp)
{
    CLEANUP_FREE char *since = d->since && !d->since_bitmap
                                   ? storage_checkpoint_name(d->since)
                                   : NULL;
    const struct point_stored_options o = {
        .node = d->node,
        .snapshot = d->snapshot,
        .since = since,
        .bitmap = d->since_bitmap ? d->since : NULL,
        .context = d->context,
    };
    struct action *a;

    if (d->since && !d->since_bitmap && !since) {
        return error_nomem(errp);
    }
    int r = point_stored_action(p->daemon->graph, &o, &d->point, &a, errp);
    return r < 0 ? r : actions_add(actions, a, errp);
}

int stored_add(struct pulls *p, struct pull *s, struct list *actions,
               struct error **errp)
{
    CLEANUP_FREE struct storage_ref *refs = calloc(s->count + 1, sizeof(*refs));
    unsigned count = 0;
    struct action *a;
    int r = refs ? 0 : error_nomem(errp);

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];

        if (d->stored) {
            refs[count++] = (struct storage_ref){d->node, d->snapshot};
            r = add_point(p, d, actions, errp);
        }
    }
    if (r < 0 || count == 0) {
        return r;
    }
    r = storage_take_action(p->daemon->graph, refs, count, &a, errp);
    return r < 0 ? r : actions_add(actions, a, errp);
}

static void tell_how(const struct pull_disk *d, enum storage_diff_how how)
{
    if (how == STORAGE_DIFF_INVALID) {
        log_line(TELL_WARNING,
                 "disk '%.200s': an object map since '%.200s' is marked as "
                 "invalid, so each object was asked what has changed ('rbd "
                 "object-map rebuild' makes it anew)",
                 d->name, d->since);
    }
}

int stored_open(struct pull *s, struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];
        enum storage_diff_how how;

        if (d->stored) {
            r = point_stored_open(d->point, &how, errp);
            tell_how(d, how);
        }
    }
    return r;
}

/* --- End --- */

int stored_check(struct pull *s, struct error **errp)
{
    for (unsigned i = 0; i < s->count; i++) {
        int r = s->disks[i].stored ? point_check(s->disks[i].point, errp) : 0;

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* Give the snapshot of @d another name. */
static int rename_one(struct pull_disk *d, const char *from, const char *to,
                      bool kept, struct error **errp)
{
    int r = storage_rename(d->node, from, to, errp);

    if (r == 0) {
        d->kept = kept;
    }
    return r;
}

void stored_back(struct pull *s)
{
    CLEANUP_FREE char *name = s->checkpoint
                                  ? storage_checkpoint_name(s->checkpoint)
                                  : NULL;

    for (unsigned i = 0; name && i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];
        struct error *err = NULL;

        if (d->kept && rename_one(d, name, d->snapshot, false, &err) < 0) {
            log_line(TELL_ERROR, "disk '%.200s': %.400s", d->name,
                     error_message(err));
        }
        error_free(err);
    }
}

int stored_keep(struct pull *s, struct error **errp)
{
    CLEANUP_FREE char *name = s->checkpoint
                                  ? storage_checkpoint_name(s->checkpoint)
                                  : NULL;
    int r = s->checkpoint && !name ? error_nomem(errp) : 0;

    for (unsigned i = 0; r == 0 && name && i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];

        if (d->stored && !d->kept) {
            r = rename_one(d, d->snapshot, name, true, errp);
        }
    }
    if (r < 0) {
        stored_back(s);
    }
    return r;
}

/* *silent: the storage does not answer.  It is not asked again, as everybody
 * waits meanwhile. */
static void drop_one(const struct pull_disk *d, bool *silent)
{
    struct error *err = NULL;
    int r = *silent ? error_set(&err, ETIMEDOUT, "a snapshot is left")
                    : storage_remove(d->node, d->snapshot, &err);

    *silent |= r == -ETIMEDOUT;
    if (r < 0 && r != -ENOENT) {
        log_line(TELL_WARNING,
                 "disk '%.200s': %.400s; the next backup of the disk removes "
                 "it",
                 d->name, error_message(err));
    }
    error_free(err);
}

void stored_drop(struct pull *s)
{
    bool silent = false;

    for (unsigned i = 0; i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];

        if (d->taken && !d->kept) {
            drop_one(d, &silent);
            d->taken = false;
        }
    }
}
