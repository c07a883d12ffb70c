/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A backup run: see backup-run.h for the order of its steps.
 *
 *   main thread                          copier, one disk after another
 *     poll: signals, the copier's end      copy_carry_out
 *     renews what was begun
 *     tells progress
 *     a signal: transfer_stop
 */
#include "cli/backup-run.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>

#include "cli/backup-copy.h"
#include "cli/progress.h"
#include "log.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/kick.h"
#include "nbdelta/size.h"
#include "nbdelta/thread.h"
#include "store/prune.h"

#define CHECKPOINT_PREFIX "nbdelta-"
#define CHECKPOINT_MAX \
    (sizeof(CHECKPOINT_PREFIX) + STORE_ID_MAX + POINT_NAME_MAX)
/* So much room is left for the file system's own and for hashes. */
#define ROOM_SPARE (16 * MiB)

struct run {
    const struct backup_options *o;
    struct graph *graph;
    struct store *store;
    struct source *source;

    char point[POINT_NAME_MAX];      /* the new one */
    char checkpoint[CHECKPOINT_MAX]; /* its checkpoint */
    char since[CHECKPOINT_MAX];      /* that of the point before, or "" */
    char parent[POINT_NAME_MAX];     /* the point before, or "" */

    unsigned count; /* disks that are wanted */
    struct plan_disk *plan;
    struct copy_job *copies;
    struct source_disk **disks;
    uint64_t set; /* bytes, of all */
    bool fell_back;
    bool kept; /* the files have their names */

    /* Guarded by lock: which disk is being copied. */
    mutex_t lock;
    struct copy_job *current;
    bool stop;

    /* The copier's, until it has ended. */
    int done; /* a kick */
    int result;
    struct error *err;
};

/* --- Checkpoints of this directory --- */

static void name_checkpoint(const struct run *r, const char *point, char *out)
{
    (void)snprintf(out, CHECKPOINT_MAX, CHECKPOINT_PREFIX "%s-%s",
                   store_id(r->store), point);
}

/* The point that the checkpoint @name is of, if it is one of this directory;
 * else NULL. */
static const char *point_of_checkpoint(const struct run *r, const char *name)
{
    char prefix[CHECKPOINT_MAX];

    name_checkpoint(r, "", prefix);
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

/* Make both sides agree about what was done before. */
static int settle_past(struct run *r, struct error **errp)
{
    CLEANUP_JSON json_t *checkpoints = NULL;
    int result = all_checkpoints(r, &checkpoints, errp);

    if (result == 0 && !r->o->dry_run &&
        (result = settle_pending(r, checkpoints, errp)) == 0) {
        result = store_clean(r->store, NULL, errp);
    }
    const struct store_point *latest = store_latest(r->store);
    if (latest) {
        name_checkpoint(r, latest->name, r->since);
    }
    return result < 0 || r->o->dry_run
               ? result
               : drop_old_checkpoints(r, checkpoints, r->since, errp);
}

/* --- Which disks, and what of them --- */

static bool is_wanted(const struct backup_options *o, const char *name)
{
    bool wanted = o->disk_count == 0;

    for (unsigned i = 0; i < o->disk_count; i++) {
        wanted = wanted || strcmp(o->disks[i], name) == 0;
    }
    return wanted;
}

static int choose_disks(struct run *r, struct error **errp)
{
    const struct backup_options *o = r->o;
    const struct store_point *latest = store_latest(r->store);

    for (unsigned i = 0; i < o->disk_count; i++) {
        if (!source_find(r->source, o->disks[i])) {
            return error_set(errp, ENOENT, "the source has no disk '%s'",
                             o->disks[i]);
        }
    }
    r->disks = calloc(r->source->count + 1, sizeof(*r->disks));
    r->plan = calloc(r->source->count + 1, sizeof(*r->plan));
    r->copies = calloc(r->source->count + 1, sizeof(*r->copies));
    if (!r->disks || !r->plan || !r->copies) {
        return error_nomem(errp);
    }
    for (unsigned i = 0; i < r->source->count; i++) {
        struct source_disk *d = &r->source->disks[i];
        bool known = latest && latest->manifest &&
                     manifest_find(latest->manifest, d->name);

        d->skip = !is_wanted(o, d->name);
        d->since = known && !o->full && r->since[0] ? r->since : NULL;
        if (!d->skip) {
            r->disks[r->count++] = d;
        }
    }
    return r->count > 0 ? 0 : error_set(errp, ENOENT, "the source has no disk");
}

/* Of a dry run: does the source have the checkpoint of the point before, and
 * can it be trusted, on each disk? */
static int note_usable(const char *name, const struct source_disk *disk,
                       const char *unusable, void *opaque)
{
    struct run *r = opaque;

    for (unsigned i = 0; i < r->count; i++) {
        if (r->disks[i] == disk && strcmp(name, r->since) == 0) {
            r->plan[i].no_map = unusable;
        }
    }
    return 0;
}

static int plan_only(struct run *r, struct error **errp)
{
    for (unsigned i = 0; i < r->count; i++) {
        r->plan[i] = (struct plan_disk){.name = r->disks[i]->name,
                                        .size = r->disks[i]->size,
                                        .no_map = "no-checkpoint"};
    }
    int result = source_each_checkpoint(r->source, note_usable, r, errp);
    return result < 0 ? result
                      : plan_make(r->store, r->plan, r->count, r->o->full,
                                  r->parent, errp);
}

/* After begin: the source has said of which disks it knows the changes. */
static int make_plan(struct run *r, struct error **errp)
{
    for (unsigned i = 0; i < r->count; i++) {
        const struct source_disk *d = r->disks[i];
        bool has_map = d->dirty || d->bitmap;

        r->plan[i].name = d->name;
        r->plan[i].size = d->size;
        r->plan[i].no_map = has_map     ? NULL
                            : d->reason ? d->reason
                                        : "no-checkpoint";
    }
    int result = plan_make(r->store, r->plan, r->count, r->o->full, r->parent,
                           errp);
    for (unsigned i = 0; result == 0 && i < r->count; i++) {
        r->fell_back |= plan_fell_back(&r->plan[i]);
    }
    if (result == 0 && r->fell_back && r->o->no_fallback) {
        return error_set(
            errp, EINVAL,
            "not every disk can have an increment (--no-fallback)");
    }
    return result;
}

/* --- Copying --- */

static int prepare_copies(struct run *r, struct error **errp)
{
    for (unsigned i = 0; i < r->count; i++) {
        struct copy_job *c = &r->copies[i];

        c->graph = r->graph;
        c->store = r->store;
        c->source = r->source;
        c->disk = r->disks[i];
        c->plan = &r->plan[i];
        c->parent = r->plan[i].kind == DISK_FULL ? "" : r->parent;
        c->point = r->point;
        c->compression = r->o->compression;
        c->rate = r->o->rate;
        int result = copy_prepare(c, errp);
        if (result < 0) {
            error_prefix(errp, "disk '%s': ", c->disk->name);
            return result;
        }
        r->set += c->set;
    }
    return 0;
}

static int check_room(struct run *r, struct error **errp)
{
    struct statvfs fs;
    uint64_t needed = ROOM_SPARE;
    char need[32];
    char have[32];

    for (unsigned i = 0; i < r->count; i++) {
        needed += r->copies[i].data;
    }
    if (r->o->compression || fstatvfs(store_dir(r->store), &fs) < 0) {
        return 0;
    }
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (needed <= free_bytes) {
        return 0;
    }
    return error_set(errp, ENOSPC, "%s are needed in '%s', which has %s left",
                     size_human(needed, need, sizeof(need)), r->o->directory,
                     size_human(free_bytes, have, sizeof(have)));
}

/* The copier may go on with @c; false: it is to end. */
static bool take_turn(struct run *r, struct copy_job *c)
{
    mutex_lock(&r->lock);
    bool go_on = !r->stop;
    r->current = go_on ? c : NULL;
    mutex_unlock(&r->lock);
    return go_on;
}

static void *copier(void *opaque)
{
    struct run *r = opaque;

    for (unsigned i = 0; r->result == 0 && i < r->count; i++) {
        struct copy_job *c = &r->copies[i];

        if (!take_turn(r, c)) {
            r->result = -ECANCELED;
            break;
        }
        r->result = copy_carry_out(c, &r->err);
        if (r->result < 0 && r->err) {
            error_prefix(&r->err, "disk '%s': ", c->disk->name);
        }
    }
    kick_raise(r->done);
    return NULL;
}

static void stop_copier(struct run *r)
{
    mutex_lock(&r->lock);
    struct copy_job *c = r->stop ? NULL : r->current;
    r->stop = true;
    mutex_unlock(&r->lock);
    if (c) {
        transfer_stop(c->transfer);
    }
}

/* Bytes that are done, of all disks.  Transfers stay until the copier has
 * ended, so they can be asked at any time. */
static uint64_t bytes_done(const struct run *r)
{
    uint64_t done = 0;

    for (unsigned i = 0; i < r->count; i++) {
        struct transfer_progress p;

        transfer_progress(r->copies[i].transfer, &p);
        done += p.done;
    }
    return done;
}

static double share_done(void *opaque)
{
    const struct run *r = opaque;

    return r->set ? (double)bytes_done(r) / (double)r->set : 1;
}

static void tell_progress(const struct run *r)
{
    if (r->o->progress_json) {
        (void)fprintf(stderr, "{\"done\": %ju, \"total\": %ju}\n",
                      (uintmax_t)bytes_done(r), (uintmax_t)r->set);
    }
}

/* Until the copier has ended. */
static void watch_copier(struct run *r, struct error **errp)
{
    uint64_t renewed = now_ns();
    struct pollfd fds[2] = {{.fd = r->done, .events = POLLIN},
                            {.fd = r->o->how.stop_fd, .events = POLLIN}};

    while (!(fds[0].revents & POLLIN)) {
        (void)poll(fds, r->stop ? 1 : 2, 1000);
        if (fds[1].revents & POLLIN) {
            stop_copier(r);
            fds[1].revents = 0;
        }
        tell_progress(r);
        if (now_ns() - renewed > SOURCE_RENEW_S * UINT64_C(1000000000)) {
            renewed = now_ns();
            if (!r->stop && source_renew(r->source, errp) < 0) {
                stop_copier(r);
            }
        }
    }
}

static int copy_all(struct run *r, struct error **errp)
{
    struct error *lost = NULL; /* the source does not hold it any more */
    struct progress *bar;
    pthread_t thread;
    int result = thread_start(&thread, "backup", copier, r);

    if (result < 0) {
        return error_set(errp, -result, "cannot start a thread: %s",
                         strerror(-result));
    }
    bar = r->o->show_progress ? progress_start("backup", share_done, r) : NULL;
    watch_copier(r, &lost);
    thread_join(thread);
    progress_stop(bar);
    if (lost) {
        error_free(r->err);
        r->err = lost;
    }
    if (r->result == -ECANCELED && !r->err) {
        return error_set(errp, ECANCELED, "interrupted: no point was made");
    }
    if (r->err && errp) {
        *errp = r->err;
        r->err = NULL;
    }
    return r->result;
}

/* --- The end of a run --- */

static int fill_manifest(const struct run *r, struct manifest *m)
{
    m->time = (int64_t)time(NULL);
    (void)snprintf(m->name, sizeof(m->name), "%s", r->point);
    (void)snprintf(m->id, sizeof(m->id), "%s", store_id(r->store));
    m->source = strdup(r->o->source);
    m->program = strdup("nbdelta " NBDELTA_VERSION);
    if (r->source->version) {
        m->source_version = strdup(r->source->version);
    }
    if (!m->source || !m->program ||
        (r->source->version && !m->source_version)) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < r->count; i++) {
        const struct copy_job *c = &r->copies[i];
        struct manifest_disk *d = manifest_add(m, c->disk->name);

        if (!d) {
            return -ENOMEM;
        }
        d->size = c->disk->size;
        d->kind = c->plan->kind;
        d->reason = c->plan->reason;
        if (c->parent[0]) {
            (void)snprintf(d->parent, sizeof(d->parent), "%s", c->parent);
            (void)snprintf(d->parent_hash, sizeof(d->parent_hash), "%s",
                           c->plan->parent->sums_hash);
        }
        d->checkpoint = c->disk->checkpoint ? strdup(r->checkpoint) : NULL;
        if (c->disk->checkpoint && !d->checkpoint) {
            return -ENOMEM;
        }
        d->read = c->progress.read;
        d->written = c->progress.written;
        d->zero = c->progress.zero;
        d->milliseconds = c->milliseconds;
        (void)snprintf(d->sums_hash, sizeof(d->sums_hash), "%s", c->sums_hash);
    }
    return 0;
}

static int put_definition(struct run *r, struct manifest *m,
                          struct error **errp)
{
    CLEANUP_FREE char *xml = NULL;
    int result = source_definition(r->source, &xml, errp);

    return result < 0 || !xml ? result
                              : store_put_definition(r->store, r->point, xml,
                                                     m->xml_hash, errp);
}

/* All files have their names; the manifest is pending. */
static int put_pending(struct run *r, struct error **errp)
{
    struct manifest *m = manifest_new();

    for (unsigned i = 0; i < r->count; i++) {
        int result = copy_finish(&r->copies[i], errp);
        if (result < 0) {
            manifest_free(m);
            return result;
        }
    }
    if (!m || fill_manifest(r, m) < 0) {
        manifest_free(m);
        return error_nomem(errp);
    }
    int result = put_definition(r, m, errp);
    if (result < 0) {
        manifest_free(m);
        return result;
    }
    return store_put_pending(r->store, m, errp);
}

/* The new checkpoint stays, then the point is there.  When the source does not
 * say whether it has it, the next run asks. */
static int finish(struct run *r, struct error **errp)
{
    int result = put_pending(r, errp);

    if (result < 0) {
        return result;
    }
    r->kept = true;
    result = source_end(r->source, true, errp);
    if (result < 0) {
        error_prefix(
            errp, "the next run finds out whether point %s counts: ", r->point);
        return result;
    }
    return store_finish_pending(r->store, errp);
}

/* The point is there: what fails now is told, and done by the next run. */
static void forget_before(struct run *r)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (r->since[0] && strcmp(r->since, r->checkpoint) != 0 &&
        source_forget(r->source, r->since, &err) < 0) {
        log_line(TELL_WARNING, "checkpoint '%s' is left at the source: %s",
                 r->since, error_message(err));
    }
}

/* --- Hooks --- */

static int run_hook(const struct run *r, const char *when, struct error **errp)
{
    CLEANUP_FREE char *command = NULL;

    if (!r->o->hook) {
        return 0;
    }
    (void)setenv("NBDELTA_WHEN", when, 1);
    (void)setenv("NBDELTA_POINT", r->point, 1);
    (void)setenv("NBDELTA_DIR", r->o->directory, 1);
    if (asprintf(&command, "%s %s", r->o->hook, when) < 0) {
        command = NULL;
        return error_nomem(errp);
    }
    int status = system(command);
    return status == 0
               ? 0
               : error_set(errp, ECHILD, "the hook failed (%s): status %d",
                           when,
                           WIFEXITED(status) ? WEXITSTATUS(status) : status);
}

/* --- The whole --- */

static json_t *describe(const struct run *r)
{
    json_t *disks = json_array();

    for (unsigned i = 0; disks && i < r->count; i++) {
        const struct plan_disk *p = &r->plan[i];
        const struct copy_job *c = &r->copies[i];

        if (json_array_append_new(
                disks,
                json_pack("{s:s, s:I, s:s, s:s*, s:s*, s:I, s:I, s:I, s:f}",
                          "name", p->name, "size", (json_int_t)p->size, "kind",
                          disk_kind_word(p->kind), "reason",
                          disk_reason_word(p->reason), "parent",
                          p->kind == DISK_FULL ? NULL : r->parent, "read",
                          (json_int_t)c->progress.read, "written",
                          (json_int_t)c->progress.written, "zero",
                          (json_int_t)c->progress.zero, "seconds",
                          (double)c->milliseconds / 1000)) < 0) {
            json_decref(disks);
            return NULL;
        }
    }
    return json_pack("{s:s*, s:s, s:o*}", "point",
                     r->o->dry_run ? NULL : r->point, "directory",
                     store_path(r->store), "disks", disks);
}

static enum backup_status status_of(int result)
{
    return result == -EBUSY || result == -EAGAIN ? BACKUP_BUSY
           : result == -EUCLEAN                  ? BACKUP_DAMAGED
                                                 : BACKUP_FAILED;
}

static int open_both(struct run *r, enum store_mode mode, struct error **errp)
{
    struct source_options how = r->o->how;

    r->graph = graph_new();
    if (!r->graph) {
        return error_nomem(errp);
    }
    int result = store_open(r->o->directory, mode, "backup", &r->store, errp);
    if (result == 0 && mode != STORE_READ) {
        result = prune_recover(r->store, NULL, errp);
    }
    if (result < 0) {
        return result;
    }
    how.graph = r->graph;
    how.id = store_id(r->store);
    return source_open(r->o->source, &how, &r->source, errp);
}

static int begin(struct run *r, struct error **errp)
{
    int result = store_new_name(r->store, r->point, errp);

    if (result < 0) {
        return result;
    }
    name_checkpoint(r, r->point, r->checkpoint);
    if ((result = run_hook(r, "before", errp)) < 0) {
        return result;
    }
    return source_begin(r->source, r->checkpoint, errp);
}

static int make_point(struct run *r, struct error **errp)
{
    if (r->o->dry_run) {
        return plan_only(r, errp);
    }
    int result = begin(r, errp);

    if (result < 0 || (result = make_plan(r, errp)) < 0 ||
        (result = prepare_copies(r, errp)) < 0 ||
        (result = check_room(r, errp)) < 0 ||
        (result = copy_all(r, errp)) < 0 || (result = finish(r, errp)) < 0) {
        return result;
    }
    forget_before(r);
    return 0;
}

static void close_all(struct run *r, bool failed)
{
    for (unsigned i = 0; i < r->count; i++) {
        if (r->copies[i].disk) {
            copy_discard(&r->copies[i], failed && !r->kept);
        }
    }
    source_close(r->source);
    store_close(r->store);
    graph_close_all(r->graph);
    graph_free(r->graph);
    free(r->disks);
    free(r->plan);
    free(r->copies);
    error_free(r->err);
}

enum backup_status backup_run(const struct backup_options *o, json_t **report,
                              struct error **errp)
{
    struct run r = {.o = o, .done = kick_new()};
    int result;

    *report = NULL;
    mutex_init(&r.lock, LOCK_PROGRESS, NULL);
    if (r.done < 0) {
        return BACKUP_FAILED;
    }
    if ((result = open_both(&r, o->dry_run ? STORE_READ : STORE_CREATE,
                            errp)) == 0 &&
        (result = settle_past(&r, errp)) == 0 &&
        (result = choose_disks(&r, errp)) == 0) {
        result = make_point(&r, errp);
    }
    if (result == 0) {
        *report = describe(&r);
    } else {
        (void)run_hook(&r, "failed", NULL);
    }
    bool fell_back = r.fell_back;
    close_all(&r, result < 0);
    (void)close(r.done);
    mutex_destroy(&r.lock);
    return result < 0  ? status_of(result)
           : fell_back ? BACKUP_FELL_BACK
                       : BACKUP_DONE;
}

enum backup_status backup_forget(const struct backup_options *o,
                                 struct error **errp)
{
    struct run r = {.o = o};
    CLEANUP_JSON json_t *checkpoints = NULL;
    int result = open_both(&r, STORE_WRITE, errp);

    if (result == 0) {
        result = all_checkpoints(&r, &checkpoints, errp);
    }
    if (result == 0) {
        result = drop_old_checkpoints(&r, checkpoints, "", errp);
    }
    close_all(&r, true);
    return result < 0 ? status_of(result) : BACKUP_DONE;
}
