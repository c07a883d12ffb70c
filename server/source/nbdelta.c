/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disks of our own daemon, by QMP
 * ===============================
 *
 *   open    query-backups: sessions that a killed run of this directory has
 *           left are ended as failed, except the one that is to be adopted,
 *           which is renewed; query-block: the disks
 *   begin   backup-begin, on a server of its own in a private directory (of
 *           TMPDIR, or beside the monitor's socket where the daemon has another
 *           TMPDIR), or, from another host, on one that the daemon has
 *           a session that was adopted: query-backups has all that backup-begin
 *           has said
 *   end     backup-end: the new checkpoint becomes durable, or is forgotten
 *
 * The daemon forgets a session that was neither renewed nor read for EXPIRE_S,
 * with its new checkpoint.  So does one that ends.  Nothing that a kill leaves
 * behind stays.
 *
 * The identity of a session is the random word that the daemon gives it: no
 * other session has it, whichever daemon answers at the socket.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "source/adopt.h"
#include "source/frozen.h"
#include "source/private-dir.h"
#include "source/source.h"
#include "source/talk.h"

#define EXPIRE_S 600

struct daemon_source {
    struct frozen frozen;
    char *id;
    char *server;  /* id of a server of the daemon, "": the one without an id,
                      or NULL */
    char *scratch; /* or NULL */
    uint64_t quota;
    uid_t owner; /* the daemon's user, if it is on this host */
    bool local;
    char *beside; /* the monitor's socket, or NULL: private_dir_beside() */
    struct private_dir dir;
    char *session;    /* NULL: none */
    char *checkpoint; /* the session's, or NULL */
    json_t *identity; /* the session's, or of the one that begin adopts; NULL:
                         an old daemon's has none */
};

static const char *string_at(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* Where its directory may be: @i counts from 0; NULL: nowhere else. */
static const char *place(const struct daemon_source *d, int i)
{
    return i == 0 ? private_dir_for_sockets() : i == 1 ? d->beside : NULL;
}

static void sweep_dirs(const struct daemon_source *d)
{
    const char *parent;

    for (int i = 0; d->local && (parent = place(d, i)) != NULL; i++) {
        private_dir_sweep(parent, d->id, d->owner);
    }
}

/* --- Open --- */

static bool in_own_dir(const struct daemon_source *d, const json_t *session)
{
    CLEANUP_FREE char *part = NULL;
    bool own = false;
    size_t i;
    json_t *disk;

    if (asprintf(&part, "/nbdelta-%s.", d->id) < 0) {
        part = NULL;
        return false;
    }
    json_array_foreach (json_object_get(session, "disks"), i, disk) {
        const char *uri = string_at(disk, "uri");
        own |= uri && strstr(uri, part);
    }
    return own;
}

/* Is it a session of this directory? */
static bool is_own(const struct daemon_source *d, const json_t *session)
{
    const char *checkpoint = string_at(session, "checkpoint");
    size_t len = strlen(d->id);

    return (checkpoint && strncmp(checkpoint, "nbdelta-", 8) == 0 &&
            strncmp(checkpoint + 8, d->id, len) == 0 &&
            checkpoint[8 + len] == '-') ||
           in_own_dir(d, session);
}

static int end_session(struct talk *t, const char *id, bool success,
                       struct error **errp)
{
    return talk_ask(t, "backup-end",
                    json_pack("{s:s, s:b}", "id", id, "success", (int)success),
                    NULL, errp);
}

static int renew_session(struct talk *t, const char *id, struct error **errp)
{
    return talk_ask(t, "backup-renew", json_pack("{s:s}", "id", id), NULL,
                    errp);
}

/* Is it the session that @identity tells of, and has it all of its disks? */
static bool stands(const json_t *session, const json_t *identity)
{
    const char *is = string_at(session, "instant");
    const char *was = string_at(identity, "instant");
    bool all = is && was && strcmp(is, was) == 0;
    size_t i;
    json_t *disk;

    json_array_foreach (json_object_get(session, "disks"), i, disk) {
        all = all && !json_object_get(disk, "lost");
    }
    return all;
}

/* It has all of its time again, and begin goes on with it. */
static int adopt_session(struct source *s, const char *id, const json_t *adopt,
                         struct error **errp)
{
    struct daemon_source *d = s->opaque;
    int r = renew_session(s->talk, id, errp);

    if (r == 0 && !s->adopted) {
        d->identity = json_deep_copy(adopt);
        s->adopted = true;
    }
    return r;
}

/* All of it has been copied: its checkpoint stays, where the daemon can store
 * that. */
static int finish_session(struct talk *t, const char *id, struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = end_session(t, id, true, &err);

    return r == -EREMOTEIO ? end_session(t, id, false, errp)
           : r < 0         ? error_set(errp, -r, "%s", error_message(err))
                           : 0;
}

/*
 * No other run of this directory is at work: it would hold the lock.  The
 * session that @adopt tells of, if it is there, is renewed, or ends as
 * successful (@done); all others end as failed.
 */
static int settle_sessions(struct source *s, const json_t *adopt, bool done,
                           struct error **errp)
{
    const struct daemon_source *d = s->opaque;
    CLEANUP_JSON json_t *list = NULL;
    size_t i;
    json_t *session;
    int r = talk_ask(s->talk, "query-backups", NULL, &list, errp);

    json_array_foreach (list, i, session) {
        const char *id = string_at(session, "id");

        if (r < 0 || !id || !is_own(d, session)) {
            continue;
        }
        r = !adopt || !stands(session, adopt)
                ? end_session(s->talk, id, false, errp)
            : done ? finish_session(s->talk, id, errp)
                   : adopt_session(s, id, adopt, errp);
        /* It has expired just now. */
        r = r == -EREMOTEIO && talk_refused(s->talk, NULL, "no backup") ? 0 : r;
    }
    return r;
}

static bool is_listed(const json_t *list, size_t end, const char *node)
{
    for (size_t i = 0; i < end; i++) {
        const char *other = string_at(
            json_object_get(json_array_get(list, i), "inserted"), "node-name");
        if (other && strcmp(other, node) == 0) {
            return true;
        }
    }
    return false;
}

/* Each disk once, by the name of its first export. */
static int list_disks(struct source *s, struct error **errp)
{
    CLEANUP_JSON json_t *list = NULL;
    size_t i;
    json_t *block;
    int r = talk_ask(s->talk, "query-block", NULL, &list, errp);

    if (r < 0) {
        return r;
    }
    json_array_foreach (list, i, block) {
        const json_t *inserted = json_object_get(block, "inserted");
        const char *name = string_at(block, "device");
        const char *node = string_at(inserted, "node-name");
        json_int_t size = json_integer_value(json_object_get(
            json_object_get(inserted, "image"), "virtual-size"));

        if (name && *name && node && size >= 0 && !source_find(s, name) &&
            !is_listed(list, i, node) &&
            !source_add_disk(s, name, string_at(inserted, "file"),
                             (uint64_t)size)) {
            return error_nomem(errp);
        }
    }
    return 0;
}

static int copy_options(struct daemon_source *d, const struct source_options *o)
{
    d->id = strdup(o->id);
    d->server = o->nbd ? strdup(o->nbd) : NULL;
    d->scratch = o->scratch ? strdup(o->scratch) : NULL;
    d->quota = o->quota;
    return d->id && (!o->nbd || d->server) && (!o->scratch || d->scratch)
               ? 0
               : -ENOMEM;
}

static int open_daemon(struct source *s, const char *what,
                       const struct source_options *o, struct error **errp)
{
    struct daemon_source *d = calloc(1, sizeof(*d));
    pid_t pid;

    s->opaque = d;
    if (!d || copy_options(d, o) < 0) {
        return error_nomem(errp);
    }
    d->local = talk_peer(s->talk, &pid, &d->owner) == 0;
    d->beside = d->local ? private_dir_beside(what) : NULL;
    int r = frozen_init(&d->frozen, o, errp);
    if (r < 0 || (r = settle_sessions(s, o->adopt, o->adopt_done, errp)) < 0) {
        return r;
    }
    if (!s->adopted) {
        sweep_dirs(d);
    }
    return list_disks(s, errp);
}

/* --- Begin --- */

/* The words of backup-begin that have a meaning here. */
static const char *reason_word(const char *text)
{
    static const char *const words[] = {
        "new-disk",        "no-checkpoint",
        "base-bitmap",     "bitmap-inconsistent",
        "bitmap-disabled", "checkpoint-pending",
    };

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        if (strcmp(text, words[i]) == 0) {
            return words[i];
        }
    }
    return "no-checkpoint";
}

static json_t *wanted_disks(const struct source *s)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < s->count; i++) {
        const struct source_disk *d = &s->disks[i];

        if (!d->skip) {
            (void)json_array_append_new(
                list, json_pack("{s:s, s:s*, s:s, s:o*}", "node", d->name,
                                "since", d->since, "export", d->name, "whole",
                                d->since && d->whole ? json_true() : NULL));
        }
    }
    return list;
}

/* Exports may have their disks' names on a server of their own only. */
static void drop_export_names(json_t *disks)
{
    size_t i;
    json_t *disk;

    json_array_foreach (disks, i, disk) {
        (void)json_object_del(disk, "export");
    }
}

static json_t *begin_arguments(const struct source *s, const char *checkpoint)
{
    const struct daemon_source *d = s->opaque;
    json_t *disks = wanted_disks(s);

    if (!d->dir.path) {
        drop_export_names(disks);
    }
    json_t *args = json_pack("{s:o, s:s*, s:s*, s:i}", "disks", disks,
                             "checkpoint", checkpoint, "server",
                             d->server && *d->server ? d->server : NULL,
                             "expire", EXPIRE_S);
    if (args && d->dir.path) {
        CLEANUP_FREE char *path = NULL;
        if (asprintf(&path, "%s/nbd.sock", d->dir.path) < 0) {
            path = NULL;
        }
        (void)json_object_set_new(
            args, "listen",
            json_pack("{s:s, s:s*}", "type", "unix", "path", path));
    }
    if (args && (d->scratch || d->quota > 0)) {
        json_t *scratch = json_pack("{s:s*}", "dir", d->scratch);
        if (d->quota > 0) {
            (void)json_object_set_new(scratch, "quota",
                                      json_integer((json_int_t)d->quota));
        }
        (void)json_object_set_new(args, "scratch", scratch);
    }
    return args;
}

static int take_disk(struct source *s, struct source_disk *disk,
                     const json_t *begun, struct error **errp)
{
    const struct daemon_source *d = s->opaque;
    const char *uri = string_at(begun, "uri");
    const char *export = string_at(begun, "export");
    const char *reason = string_at(begun, "reason");
    const char *context = string_at(begun, "context");
    json_int_t size = json_integer_value(json_object_get(begun, "size"));
    CLEANUP_JSON json_t *address = NULL;

    if (!uri || !export || size < 0) {
        return error_set(errp, EPROTO,
                         "'%s' is exported where no URI leads to: name a "
                         "server that has an address",
                         disk->name);
    }
    int r = frozen_address(uri, talk_host(s->talk), &address, errp);
    r = r < 0 ? r
              : frozen_fill(&d->frozen, disk, address, export, context, errp);
    if (r < 0) {
        return r;
    }
    disk->size = (uint64_t)size;
    disk->reason = !disk->since || context ? NULL
                   : reason                ? reason_word(reason)
                                           : "no-checkpoint";
    disk->checkpoint = d->checkpoint != NULL;
    return 0;
}

/* The disks are in the order in which they were asked for. */
static int take_disks(struct source *s, const json_t *begun,
                      struct error **errp)
{
    const json_t *list = json_object_get(begun, "disks");
    size_t k = 0;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        if (!s->disks[i].skip) {
            r = take_disk(s, &s->disks[i], json_array_get(list, k++), errp);
        }
    }
    return r;
}

static void forget_session(struct daemon_source *d)
{
    private_dir_remove(&d->dir);
    free(d->session);
    free(d->checkpoint);
    json_decref(d->identity);
    d->session = NULL;
    d->checkpoint = NULL;
    d->identity = NULL;
}

/* Also when nobody knows whether it has begun. */
static void undo_begin(struct source *s)
{
    struct daemon_source *d = s->opaque;

    talk_undo(s->talk);
    (void)settle_sessions(s, NULL, false, NULL);
    forget_session(d);
    sweep_dirs(d);
}

/* An identity also says how the disks were wanted. */
static json_t *make_identity(const struct source *s, const json_t *begun)
{
    const char *instant = string_at(begun, "instant");

    return instant ? json_pack("{s:s, s:o}", "instant", instant, "disks",
                               wanted_disks(s))
                   : NULL;
}

static int begin_session(struct source *s, const char *checkpoint,
                         struct error **errp)
{
    struct daemon_source *d = s->opaque;
    CLEANUP_JSON json_t *begun = NULL;
    json_t *args = begin_arguments(s, checkpoint);
    int r = args ? talk_ask(s->talk, "backup-begin", args, &begun, errp)
                 : error_nomem(errp);

    if (r < 0) {
        return r;
    }
    const char *id = string_at(begun, "id");
    d->session = id ? strdup(id) : NULL;
    if (!d->session) {
        return error_set(errp, EPROTO, "backup-begin has no 'id'");
    }
    d->identity = make_identity(s, begun);
    r = take_disks(s, begun, errp);
    return r < 0 ? r : talk_check_stop(s->talk, errp);
}

/* --- Begin: a session that a killed run has left --- */

static const json_t *find_adopted(const struct source *s, const json_t *list,
                                  const char *checkpoint)
{
    const struct daemon_source *d = s->opaque;
    CLEANUP_JSON json_t *wanted = wanted_disks(s);
    const json_t *found = NULL;
    size_t i;
    json_t *session;

    json_array_foreach (list, i, session) {
        const char *is = string_at(session, "checkpoint");

        if (is && checkpoint && strcmp(is, checkpoint) == 0 &&
            string_at(session, "id") && stands(session, d->identity) &&
            json_equal(wanted, json_object_get(d->identity, "disks"))) {
            found = session;
        }
    }
    return found;
}

/* The directory of its server goes with it. */
static void take_dir(struct daemon_source *d, const json_t *session)
{
    const json_t *first = json_array_get(json_object_get(session, "disks"), 0);
    const char *uri = string_at(first, "uri");
    CLEANUP_JSON json_t *address = NULL;

    if (!d->local || !uri || frozen_address(uri, NULL, &address, NULL) < 0) {
        return;
    }
    const char *path = string_at(json_object_get(address, "server"), "path");
    CLEANUP_FREE char *dir = path ? strdup(path) : NULL;
    char *slash = dir ? strrchr(dir, '/') : NULL;
    if (slash) {
        const char *parent;

        *slash = '\0';
        for (int i = 0; !d->dir.path && (parent = place(d, i)) != NULL; i++) {
            (void)private_dir_take(&d->dir, parent, d->id, d->owner, dir);
        }
    }
}

static int begin_adopted(struct source *s, const char *checkpoint,
                         struct error **errp)
{
    struct daemon_source *d = s->opaque;
    CLEANUP_JSON json_t *list = NULL;
    int r = talk_ask(s->talk, "query-backups", NULL, &list, errp);

    if (r < 0) {
        return r;
    }
    const json_t *session = find_adopted(s, list, checkpoint);
    if (!session) {
        return adopt_gone(errp);
    }
    take_dir(d, session);
    d->session = strdup(string_at(session, "id"));
    if (!d->session) {
        return error_nomem(errp);
    }
    r = renew_session(s->talk, d->session, errp);
    return r == -EREMOTEIO ? adopt_gone(errp)
           : r < 0         ? r
                           : take_disks(s, session, errp);
}

static int begin_in(struct source *s, const char *checkpoint,
                    const char *parent, struct error **errp)
{
    struct daemon_source *d = s->opaque;
    int r = private_dir_make(&d->dir, parent, d->id, errp);

    r = r < 0 ? r : private_dir_give(&d->dir, d->owner, errp);
    return r < 0 ? r : begin_session(s, checkpoint, errp);
}

static bool cannot_listen(const struct source *s, int r)
{
    return r == -EREMOTEIO &&
           talk_refused(s->talk, NULL, "cannot bind the socket");
}

/* A daemon may have a /tmp of its own, and see others read-only. */
static int begin_local(struct source *s, const char *checkpoint,
                       struct error **errp)
{
    struct daemon_source *d = s->opaque;
    CLEANUP_ERROR struct error *first = NULL;
    CLEANUP_ERROR struct error *second = NULL;
    int r = begin_in(s, checkpoint, place(d, 0), &first);

    if (!cannot_listen(s, r)) {
        return r < 0 ? error_set(errp, -r, "%s", error_message(first)) : r;
    }
    private_dir_remove(&d->dir);
    if (place(d, 1)) {
        r = begin_in(s, checkpoint, place(d, 1), &second);
    }
    if (r < 0 && second && d->dir.path && !cannot_listen(s, r)) {
        return error_set(errp, -r, "%s", error_message(second));
    }
    return r < 0 ? error_set(errp, -r,
                             "%s (the daemon may have another TMPDIR than this "
                             "command: set it to a directory that both have, "
                             "or name a server of the daemon, with --nbd)",
                             error_message(first))
                 : r;
}

static int begin_daemon(struct source *s, const char *checkpoint,
                        struct error **errp)
{
    struct daemon_source *d = s->opaque;
    talk_resume(s->talk);
    int r = talk_check_stop(s->talk, errp);

    if (r < 0) {
        return r;
    }
    d->checkpoint = checkpoint ? strdup(checkpoint) : NULL;
    if (checkpoint && !d->checkpoint) {
        return error_nomem(errp);
    }
    if (s->adopted) {
        r = begin_adopted(s, checkpoint, errp);
    } else {
        r = d->local && !d->server ? begin_local(s, checkpoint, errp)
                                   : begin_session(s, checkpoint, errp);
    }
    if (r < 0) {
        undo_begin(s);
    }
    return r;
}

/* --- Until the end --- */

static int renew_daemon(struct source *s, struct error **errp)
{
    const struct daemon_source *d = s->opaque;
    int r = -EIO;

    for (int i = 0; i < 2 && r < 0 && (i == 0 || r != -EREMOTEIO); i++) {
        r = renew_session(s->talk, d->session, errp);
    }
    return r;
}

struct search {
    const char *name;
    unsigned found;
};

static int count_checkpoint(const char *name, const struct source_disk *disk,
                            const char *unusable, void *opaque)
{
    struct search *f = opaque;

    (void)disk;
    (void)unusable;
    f->found += strcmp(name, f->name) == 0;
    return 0;
}

/* The connection was lost while the session ended: how has it? */
static int find_out(struct source *s, struct error **errp)
{
    const struct daemon_source *d = s->opaque;
    struct search f = {.name = d->checkpoint};
    int r = f.name ? source_each_checkpoint(s, count_checkpoint, &f, errp) : 0;

    return r < 0 || f.found > 0 || !f.name
               ? r
               : error_set(errp, EIO,
                           "the backup has ended at the daemon before, and "
                           "without its checkpoint '%s'",
                           f.name);
}

static int end_daemon(struct source *s, bool keep, struct error **errp)
{
    struct daemon_source *d = s->opaque;

    talk_undo(s->talk);
    int r = d->session ? end_session(s->talk, d->session, keep, errp) : 0;
    if (r < 0 && r != -EREMOTEIO) {
        r = end_session(s->talk, d->session, keep, errp);
    }
    if (r == -EREMOTEIO && talk_refused(s->talk, NULL, "There is no backup")) {
        r = keep ? find_out(s, errp) : 0;
    }
    if (r == 0 || !keep) {
        forget_session(d);
    }
    return r;
}

/* --- Checkpoints --- */

static const struct source_disk *disk_of(const struct source *s,
                                         const json_t *entry)
{
    const struct source_disk *found = NULL;
    size_t i;
    json_t *name;

    json_array_foreach (json_object_get(entry, "devices"), i, name) {
        found = found ? found : source_find(s, json_string_value(name));
    }
    return found;
}

static int tell_checkpoint(struct source *s, const json_t *checkpoint,
                           source_checkpoint_fn *fn, void *opaque)
{
    const char *name = string_at(checkpoint, "name");
    size_t i;
    json_t *entry;
    int r = 0;

    json_array_foreach (json_object_get(checkpoint, "disks"), i, entry) {
        const struct source_disk *disk = disk_of(s, entry);
        const char *unusable =
            json_is_true(json_object_get(entry, "inconsistent"))
                ? "bitmap-inconsistent"
                : NULL;

        if (r == 0 && name && disk) {
            r = fn(name, disk, unusable, opaque);
        }
    }
    return r;
}

static int each_daemon_checkpoint(struct source *s, source_checkpoint_fn *fn,
                                  void *opaque, struct error **errp)
{
    CLEANUP_JSON json_t *list = NULL;
    size_t i;
    json_t *checkpoint;
    int r = talk_ask(s->talk, "checkpoint-list", NULL, &list, errp);

    json_array_foreach (list, i, checkpoint) {
        r = r == 0 ? tell_checkpoint(s, checkpoint, fn, opaque) : r;
    }
    return r;
}

static int forget_daemon_checkpoint(struct source *s, const char *checkpoint,
                                    struct error **errp)
{
    int r = talk_ask(s->talk, "checkpoint-delete",
                     json_pack("{s:s}", "name", checkpoint), NULL, errp);

    return r == -EREMOTEIO && talk_refused(s->talk, NULL, "no checkpoint") ? 0
                                                                           : r;
}

static json_t *identity_of_session(struct source *s)
{
    const struct daemon_source *d = s->opaque;

    return json_incref(d->identity);
}

static void close_daemon(struct source *s)
{
    struct daemon_source *d = s->opaque;

    if (d && s->adopted) { /* and begin did not come */
        undo_begin(s);
    }
    if (d) {
        forget_session(d);
        frozen_free(&d->frozen);
        free(d->id);
        free(d->server);
        free(d->scratch);
        free(d->beside);
        free(d);
    }
}

const struct source_ops source_nbdelta = {
    .name = "nbdelta",
    .open = open_daemon,
    .begin = begin_daemon,
    .renew = renew_daemon,
    .end = end_daemon,
    .each_checkpoint = each_daemon_checkpoint,
    .forget = forget_daemon_checkpoint,
    .identity = identity_of_session,
    .close = close_daemon,
};
