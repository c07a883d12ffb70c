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

bool stored_has(const struct storage_snapshots *list, const char *checkpoint)
{
    for (size_t i = 0; list && i < list->count; i++) {
        CLEANUP_FREE char *is = storage_checkpoint_of(list->at[i].name);

        if (is && (!checkpoint || strcmp(is, checkpoint) == 0)) {
            return true;
        }
    }
    return false;
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

/* Those that may have been left, by this process or another one: no backup of
 * ours has them. */
static struct storage_ref *candidates(const struct pulls *p,
                                      const struct look *l, size_t *count)
{
    struct storage_ref *found;
    size_t room = 1;

    *count = 0;
    for (size_t i = 0; i < l->count; i++) {
        room += l->at[i].list.count;
    }
    found = calloc(room, sizeof(*found));
    for (size_t i = 0; found && i < l->count; i++) {
        for (size_t k = 0; k < l->at[i].list.count; k++) {
            const char *name = l->at[i].list.at[k].name;

            if (strncmp(name, BACKUP, strlen(BACKUP)) == 0 &&
                !is_of_session(p, name)) {
                found[(*count)++] = (struct storage_ref){l->at[i].storage,
                                                         name};
            }
        }
    }
    return found;
}

/* Is nobody there any more whose backup it could be?  1, 0 or -errno. */
static int is_left_over(const struct storage_ref *s)
{
    char own[STORAGE_OWNER_MAX];
    CLEANUP_FREE char *owner = strdup(s->name + strlen(BACKUP));
    char *dot = owner ? strchr(owner, '.') : NULL;

    if (!dot) {
        return 0;
    }
    *dot = '\0';
    storage_owner(s->node, own);
    /* One of ours may be there under another connection. */
    size_t process = (size_t)(strrchr(own, '-') - own) + 1;
    if (strncmp(owner, own, process) == 0) {
        return 1;
    }
    int r = storage_owner_lives(s->node, owner, NULL);
    return r < 0 ? r : !r;
}

static void remove_left_over(const struct storage_ref *refs, size_t count)
{
    int r = 0;

    for (size_t i = 0; i < count && r != -ETIMEDOUT; i++) {
        CLEANUP_ERROR struct error *err = NULL;

        r = is_left_over(&refs[i]);
        if (r != 1) {
            continue;
        }
        r = storage_remove(refs[i].node, refs[i].name, &err);
        if (r < 0 && r != -ENOENT) {
            log_line(TELL_WARNING,
                     "a snapshot that a backup has left stays: %.400s",
                     error_message(err));
        } else if (r == 0) {
            log_line(TELL_INFO,
                     "'%.400s': the snapshot '%.200s' that a backup has "
                     "left is removed",
                     node_filename(refs[i].node), refs[i].name);
        }
    }
}

int pulls_look(struct pulls *p, const struct pull_disk_options *disks,
               unsigned count, struct look *l, struct error **errp)
{
    struct graph *g = p->daemon->graph;
    bool any = false;
    int r = 0;

    *l = (struct look){.daemon = p->daemon};
    for (unsigned i = 0; i < count; i++) {
        any |= storage_has_snapshots(point_source(g, disks[i].node));
    }
    for (unsigned i = 0; any && r == 0 && i < count; i++) {
        r = look_add(l, point_source(g, disks[i].node), errp);
    }
    if (r < 0 || !any || (r = look_ask(l, errp)) < 0) {
        return r;
    }
    size_t found;
    CLEANUP_FREE struct storage_ref *refs = candidates(p, l, &found);

    look_begin(p->daemon);
    if (refs) {
        remove_left_over(refs, found);
    }
    for (size_t i = 0; r == 0 && i < l->count; i++) {
        struct node *n = l->at[i].storage;
        r = n ? storage_ready(n, errp) : 0;
    }
    r = r < 0 ? r : look_settle(l, errp);
    look_end(p->daemon);
    return r;
}

/* --- Begin --- */

static int prepare_disk(const struct pull *s, struct pull_disk *d,
                        struct error **errp)
{
    const struct looked *k = look_find(&s->look, d->node);
    char own[STORAGE_OWNER_MAX];

    if (!k || !k->storage) {
        return error_set(errp, EBUSY,
                         "'%s' is another node since a moment ago: try again",
                         d->name);
    }
    d->storage = k->storage;
    storage_owner(d->storage, own);
    if (asprintf(&d->snapshot, BACKUP "%s.%s", own, s->instant) < 0) {
        d->snapshot = NULL;
        return error_nomem(errp);
    }
    return s->checkpoint && stored_has(&k->list, s->checkpoint)
               ? error_set(errp, EEXIST,
                           "'%s' has the checkpoint '%s' already: it is a "
                           "snapshot of the image",
                           d->name, s->checkpoint)
               : 0;
}

int stored_prepare(struct pull *s, struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        if (s->disks[i].stored) {
            r = prepare_disk(s, &s->disks[i], errp);
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
            refs[count++] = (struct storage_ref){d->storage, d->snapshot};
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

/* Give the snapshot of @d another name. */
static int rename_one(struct pull_disk *d, const char *from, const char *to,
                      bool kept, struct error **errp)
{
    int r = storage_rename(d->storage, from, to, errp);

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

/* A rename that has timed out may have been done after all.  So the snapshot is
 * found by its number, too. */
static int remove_snapshot(const struct pull_disk *d, struct error **errp)
{
    CLEANUP_STORAGE struct storage_snapshots list = {0};
    const char *name;
    int r = storage_remove(d->storage, d->snapshot, errp);

    if (r != -ENOENT || storage_snapshots_get(d->storage, &list, NULL) < 0 ||
        !(name = point_snapshot(d->point, &list))) {
        return r;
    }
    return storage_remove(d->storage, name, errp);
}

void stored_drop(struct pull *s)
{
    int r = 0;

    for (unsigned i = 0; i < s->count; i++) {
        struct pull_disk *d = &s->disks[i];
        CLEANUP_ERROR struct error *err = NULL;

        if (!d->taken || d->kept) {
            continue;
        }
        /* Storage that does not answer is not asked again. */
        r = r == -ETIMEDOUT ? error_set(&err, ETIMEDOUT, "a snapshot is left")
                            : remove_snapshot(d, &err);
        if (r < 0 && r != -ENOENT) {
            log_line(TELL_WARNING,
                     "disk '%.200s': %.400s; the next backup of the disk "
                     "removes it",
                     d->name, error_message(err));
        }
        d->taken = false;
    }
}
