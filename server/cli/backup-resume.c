/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A run that was cut off (kill -9, a crash) is gone on with, if the source has
 * what it had then.
 *
 *   resume.json   options, identity of the source, boot, what the guest's agent
 *                 has answered, and of each disk: size, kind, parent,
 *                 compression
 *
 * Before begin it has the name of the point alone.  A run that is not gone on
 * with may have left a checkpoint of that name at the source: it goes, also
 * where the source does not list it.
 *
 * The identity of an image is its files and their times.  That of disks in use
 * is known once they are frozen, and the source is asked to adopt what the
 * killed run has frozen there.
 *
 * Where its point is pending, all is copied, and only the source may not know
 * yet that the checkpoint stays: it is told, and the point is finished.
 *
 * The point has the name that it had: that is its instant.  After another boot
 * all is copied again: nobody knows what of a file came to the disk first.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/backup-priv.h"
#include "log/log.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/resume.h"

/* A new reference, or NULL. */
static json_t *boot_id(void)
{
    char text[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    bool got = f && fgets(text, sizeof(text), f);

    if (f) {
        (void)fclose(f);
    }
    text[strcspn(text, "\n")] = '\0';
    return got ? json_string(text) : NULL;
}

/* What is wanted of the source, in words of the command line. */
static json_t *options(const struct backup_options *o)
{
    json_t *disks = json_array();

    for (unsigned i = 0; i < o->disk_count; i++) {
        (void)json_array_append_new(disks, json_string(o->disks[i]));
    }
    return json_pack("{s:s, s:o, s:b, s:b, s:s, s:s*}", "source",
                     o->source_name, "disks", disks, "full", (int)o->full,
                     "audit", (int)(o->audit > 0), "compression",
                     o->compression ? o->compression : "none", "format",
                     o->how.format);
}

static void forget_resume(struct run *r)
{
    json_decref(r->identity);
    json_decref(r->resume);
    json_decref(r->copied);
    r->identity = r->resume = r->copied = NULL;
}

/* The parts go with the next store_clean(). */
static int give_up(struct run *r, const char *why, struct error **errp)
{
    log_line(TELL_WARNING, "a copy that was cut off is begun again: %s", why);
    forget_resume(r);
    run_name_checkpoint(r, r->resume_point, r->left);
    return resume_put(r->store, r->resume_point, NULL, errp);
}

int run_look_for_resume(struct run *r, struct error **errp)
{
    CLEANUP_JSON json_t *boot = boot_id();
    CLEANUP_JSON json_t *is = options(r->o);
    const struct store_point *pending = store_pending(r->store);

    resume_get(r->store, r->resume_point, &r->resume);
    if (!r->resume && r->resume_point[0] && !pending) {
        run_name_checkpoint(r, r->resume_point, r->left);
        return 0;
    }
    if (!r->resume) {
        return resume_drop(r->store, errp);
    }
    if (pending && strcmp(pending->name, r->resume_point) == 0) {
        r->copied = json_incref(json_object_get(r->resume, "identity"));
        json_decref(r->resume);
        r->resume = NULL;
        return 0;
    }
    if (!is || !json_equal(is, json_object_get(r->resume, "options"))) {
        return give_up(r, "it was one with other options", errp);
    }
    if (!boot || !json_equal(boot, json_object_get(r->resume, "boot"))) {
        return give_up(r, "this host has started since", errp);
    }
    return pending ? give_up(r, "another point is almost made", errp) : 0;
}

const json_t *run_wants_adopted(const struct run *r)
{
    return r->copied ? r->copied : json_object_get(r->resume, "identity");
}

int run_forget_copied(struct run *r, struct error **errp)
{
    if (!r->copied) {
        return 0;
    }
    json_decref(r->copied);
    r->copied = NULL;
    return resume_drop(r->store, errp);
}

int run_check_resume(struct run *r, struct error **errp)
{
    json_t *froze = json_object_get(r->resume, "agent");

    r->identity = source_identity(r->source);
    if (!r->resume) {
        return 0;
    }
    if (!r->identity || !json_equal(r->identity, run_wants_adopted(r))) {
        return give_up(r, "the source may have changed since", errp);
    }
    if (r->source->adopted && json_is_string(froze)) {
        r->source->froze = strdup(json_string_value(froze));
    }
    return 0;
}

int run_begin_again(struct run *r, struct error **errp)
{
    int result = give_up(r, "the source may have changed since", errp);

    free(r->source->froze);
    r->source->froze = NULL;
    return result < 0 ? result : store_clean(r->store, NULL, errp);
}

static json_t *describe(const struct copy_job *c)
{
    return json_pack("{s:s, s:I, s:s, s:s, s:s}", "name", c->disk->name, "size",
                     (json_int_t)c->disk->size, "kind",
                     disk_kind_word(c->plan->kind), "parent", c->parent,
                     "compression", c->compression ? c->compression : "none");
}

bool run_may_resume(const struct run *r, const struct copy_job *c)
{
    CLEANUP_JSON json_t *is = describe(c);
    const json_t *list = json_object_get(r->resume, "disks");
    bool same = false;

    for (size_t i = 0; is && i < json_array_size(list); i++) {
        same |= json_equal(is, json_array_get(list, i));
    }
    return same;
}

int run_note_begin(struct run *r, struct error **errp)
{
    r->noted = true;
    return resume_put(r->store, r->point, NULL, errp);
}

int run_note_resume(struct run *r, struct error **errp)
{
    CLEANUP_JSON json_t *boot = boot_id();
    CLEANUP_JSON json_t *is = options(r->o);
    CLEANUP_JSON json_t *disks = json_array();

    if (!r->identity) { /* of a source in use there is one now */
        r->identity = source_identity(r->source);
    }
    if (!r->identity || !boot || !is) {
        return 0;
    }
    for (unsigned i = 0; i < r->count; i++) {
        (void)json_array_append_new(disks, describe(&r->copies[i]));
    }
    CLEANUP_JSON json_t *what = json_pack(
        "{s:O, s:O, s:O, s:O, s:s*}", "options", is, "boot", boot, "identity",
        r->identity, "disks", disks, "agent", r->source->froze);
    return what ? resume_put(r->store, r->point, what, errp)
                : error_nomem(errp);
}

void run_end_resume(struct run *r)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (!r->o->dry_run && (r->identity || r->noted) && r->store &&
        resume_drop(r->store, &err) < 0) {
        log_line(TELL_WARNING, "%s", error_message(err));
    }
    if (r->resume && r->identity &&
        !r->kept) { /* parts of disks that were not reached */
        (void)store_clean(r->store, NULL, NULL);
    }
    forget_resume(r);
}
