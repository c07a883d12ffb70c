/* SPDX-License-Identifier: BSD-3-Clause */
/* A backup run: see backup-run.h for the order of its steps. */
#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/backup-priv.h"
#include "cli/cli.h"
#include "log/log.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "source/side-by-side.h"
#include "store/prune.h"

/* --- All disks, a few at once --- */

struct each {
    struct run *r;
    int (*fn)(struct copy_job *c, struct error **errp);
};

static int do_one(void *opaque, unsigned i, struct error **errp)
{
    const struct each *e = opaque;
    struct copy_job *c = &e->r->copies[i];
    int result = e->fn(c, errp);

    if (result < 0) {
        error_prefix(errp, "disk '%s': ", c->disk->name);
    }
    return result;
}

/* Most of it is waiting for storage.  The first error. */
static int each_copy(struct run *r,
                     int (*fn)(struct copy_job *c, struct error **errp),
                     struct error **errp)
{
    struct each e = {r, fn};
    const struct side_by_side all = {
        .count = r->count, .fn = do_one, .opaque = &e, .stop_fd = -1};

    return side_by_side_run(&all, errp);
}

/* --- What is to be copied --- */

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
        c->no_fallback = r->o->no_fallback;
        c->audit = r->o->audit;
        c->resume = r->resume && run_may_resume(r, c);
        int result = store_add_disk(r->store, c->disk->name, errp);
        if (result < 0) {
            error_prefix(errp, "disk '%s': ", c->disk->name);
            return result;
        }
    }
    return each_copy(r, copy_prepare, errp);
}

static int check_room(struct run *r, struct error **errp)
{
    uint64_t needed = 0;

    for (unsigned i = 0; i < r->count; i++) {
        needed += r->copies[i].data;
    }
    return r->o->compression ? 0 : copy_check_room(r->store, needed, errp);
}

/* --- The end of a run --- */

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

    int result = each_copy(r, copy_finish, errp);
    if (result < 0) {
        manifest_free(m);
        return result;
    }
    for (unsigned i = 0; i < r->count; i++) {
        r->fell_back |= plan_fell_back(&r->plan[i]);
    }
    if (!m || run_fill_manifest(r, m) < 0) {
        manifest_free(m);
        return error_nomem(errp);
    }
    result = put_definition(r, m, errp);
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
    /* All that was copied was frozen: else there would be a pending point that
     * the next run may finish. */
    int result = source_renew(r->source, errp);

    if (result < 0 || (result = put_pending(r, errp)) < 0) {
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

/* --- The whole --- */

/* For a hook while the guest's file systems stand still. */
#define FROZEN_HOOK_MS 5000

static int hook_limit(const struct run *r)
{
    return (int)r->o->hook_timeout_s * 1000;
}

static bool is_empty(const char *path)
{
    DIR *dir = opendir(path);
    const struct dirent *e;
    bool empty = dir != NULL;

    while (empty && (e = readdir(dir)) != NULL) {
        empty = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
    }
    if (dir) {
        (void)closedir(dir);
    }
    return empty;
}

/* Would a run make the directory? */
static bool may_be_made(const char *path)
{
    CLEANUP_FREE char *copy = strdup(path);
    struct stat st;

    return is_empty(path) ||
           (copy && lstat(path, &st) < 0 && errno == ENOENT &&
            stat(dirname(copy), &st) == 0 && S_ISDIR(st.st_mode));
}

/* A dry run finds no directory where a run would make one. */
static int open_store(struct run *r, enum store_mode mode, struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    int result = store_open(r->o->directory, mode, "backup", &r->store, &err);

    if (result == -ENOENT && r->o->dry_run && may_be_made(r->o->directory)) {
        return 0;
    }
    if (result < 0) {
        return error_set(errp, -result, "%s", error_message(err));
    }
    return mode != STORE_READ ? prune_recover(r->store, NULL, errp) : 0;
}

static int open_source(struct run *r, struct error **errp)
{
    struct source_options how = r->o->how;

    how.graph = r->graph;
    /* A dry run holds no lock: what has the directory's id at the source may
     * be of a run that is at work. */
    how.id = r->o->dry_run ? "dry-run" : store_id(r->store);
    how.adopt = run_wants_adopted(r);
    how.adopt_done = r->copied != NULL;
    int result = run_make_tls(r, &how.tls_creds, errp);
    return result < 0 ? result
                      : source_open(r->o->source, &how, &r->source, errp);
}

static int open_directory(struct run *r, enum store_mode mode,
                          struct error **errp)
{
    r->graph = graph_new();
    return r->graph ? open_store(r, mode, errp) : error_nomem(errp);
}

/* Both, and what a run before has left to go on with. */
static int open_all(struct run *r, struct error **errp)
{
    bool dry = r->o->dry_run;
    int result = open_directory(r, dry ? STORE_READ : STORE_CREATE, errp);

    if (result < 0 || (!dry && (result = run_look_for_resume(r, errp)) < 0) ||
        (result = open_source(r, errp)) < 0) {
        return result;
    }
    return dry ? 0 : run_check_resume(r, errp);
}

/* Until its end the guest may stand still. */
static int take_instant(struct run *r, struct error **errp)
{
    int limit = hook_limit(r);
    struct hook h = {.when = "frozen",
                     .limit_ms = r->o->freeze && limit > FROZEN_HOOK_MS
                                     ? FROZEN_HOOK_MS
                                     : limit,
                     .still = r->o->freeze};
    int result = source_begin(r->source, r->checkpoint, errp);

    return result < 0 ? result : run_hook(r, &h, errp);
}

/* Frozen file systems, and the instant. */
static int freeze_and_begin(struct run *r, struct error **errp)
{
    int result = r->o->freeze ? source_freeze(r->source, true, errp) : 0;

    if (result < 0) {
        return result;
    }
    result = take_instant(r, errp);
    if (r->o->freeze) {
        int thawed = source_freeze(r->source, false, result < 0 ? NULL : errp);
        result = result < 0 ? result : thawed;
    }
    return result;
}

/* The instant that a killed run has taken.  When that is gone meanwhile,
 * nothing has begun. */
static int adopt(struct run *r, struct error **errp)
{
    int result = source_begin(r->source, r->checkpoint, errp);

    if (result != -ESTALE) {
        return result;
    }
    if (errp) {
        error_free(*errp);
        *errp = NULL;
    }
    return run_begin_again(r, errp);
}

static int name_point(struct run *r, struct error **errp)
{
    int result = 0;

    if (r->resume) {
        memcpy(r->point, r->resume_point, sizeof(r->point));
    } else {
        result = store_new_name(r->store, r->resume_point, r->point, errp);
    }
    run_name_checkpoint(r, r->point, r->checkpoint);
    return result;
}

static int begin(struct run *r, struct error **errp)
{
    const struct hook before = {.when = "before", .limit_ms = hook_limit(r)};
    int result = name_point(r, errp);

    if (result == 0 && r->source->adopted && (result = adopt(r, errp)) == 0 &&
        !r->source->begun) {
        result = name_point(r, errp);
    }
    result = result < 0 ? result : run_hook(r, &before, errp);
    if (result < 0 || r->source->begun) {
        return result;
    }
    result = r->resume ? 0 : run_note_begin(r, errp);
    return result < 0 ? result : freeze_and_begin(r, errp);
}

static int make_point(struct run *r, struct error **errp)
{
    if (r->o->dry_run) {
        return run_plan_only(r, errp);
    }
    int result = begin(r, errp);

    if (result < 0 || (result = run_heal(r, errp)) < 0 ||
        (result = run_make_plan(r, errp)) < 0 ||
        (result = prepare_copies(r, errp)) < 0 ||
        (result = check_room(r, errp)) < 0 ||
        (result = run_note_resume(r, errp)) < 0 ||
        (result = run_copy_all(r, errp)) < 0 ||
        (result = finish(r, errp)) < 0) {
        return result;
    }
    run_forget_before(r);
    return 0;
}

static int end_search(const char *name, const struct source_disk *disk,
                      const char *unusable, void *opaque)
{
    (void)disk;
    (void)unusable;
    return strncmp(name, opaque, strlen(opaque)) == 0;
}

/* Nothing of a first run that has failed stays, unless something of it is left
 * at the source, or may be: the next run finds that by the directory's id. */
static void unmake_store(struct run *r)
{
    char prefix[CHECKPOINT_MAX];

    if (!r->store || r->o->dry_run || store_count(r->store) > 0) {
        return;
    }
    run_name_checkpoint(r, "", prefix);
    if (!r->source ||
        ((!r->source->begun || source_end(r->source, false, NULL) == 0) &&
         source_each_checkpoint(r->source, end_search, prefix, NULL) == 0)) {
        store_unmake(r->store);
    }
}

/* The source is as it was, except for the new checkpoint. */
static void close_source(struct run *r, bool failed)
{
    for (unsigned i = 0; i < r->count; i++) {
        if (r->copies[i].disk) {
            copy_discard(&r->copies[i], failed && !r->kept);
        }
    }
    run_end_resume(r);
    if (failed) {
        unmake_store(r);
    }
    source_close(r->source);
    r->source = NULL;
}

static void close_rest(struct run *r)
{
    store_close(r->store);
    graph_close_all(r->graph);
    graph_free(r->graph);
    free(r->disks);
    free(r->plan);
    free(r->copies);
}

/* The last one.  What it says changes nothing. */
static void tell_hook(const struct run *r, int result, const struct error *why)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct hook h = {.when = result < 0 ? "failed" : "after",
                     .why = result < 0 ? error_message(why) : NULL,
                     .limit_ms = hook_limit(r),
                     .last_words = true};

    if (run_hook(r, &h, &err) < 0) {
        log_line(TELL_WARNING, "%s", error_message(err));
    }
}

int backup_run(const struct backup_options *o, json_t **report,
               struct error **errp)
{
    struct run r = {.o = o};
    int result;

    *report = NULL;
    if ((result = open_all(&r, errp)) == 0 &&
        (result = run_settle(&r, errp)) == 0 &&
        (result = run_choose_disks(&r, errp)) == 0 &&
        (result = run_forget_returned(&r, errp)) == 0) {
        result = make_point(&r, errp);
    }
    *report = result == 0 ? run_describe(&r) : NULL;
    close_source(&r, result < 0);
    int pruned = result == 0 && !o->dry_run ? run_prune(&r) : 0;
    if (!o->dry_run) {
        tell_hook(&r, result, errp ? *errp : NULL);
    }
    bool fell_back = r.fell_back;
    close_rest(&r);
    return result < 0   ? cli_status(result)
           : pruned < 0 ? cli_status(pruned)
           : fell_back  ? CLI_PARTLY
                        : EXIT_SUCCESS;
}

int backup_forget(const struct backup_options *o, struct error **errp)
{
    struct run r = {.o = o};
    int result = open_directory(&r, STORE_WRITE, errp);

    result = result < 0 ? result : open_source(&r, errp);
    result = result < 0 ? result : run_forget_all(&r, errp);
    close_source(&r, true);
    close_rest(&r);
    return result < 0 ? cli_status(result) : EXIT_SUCCESS;
}
