/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A run that was cut off (kill -9, a crash) is gone on with, if the source has
 * what it had then.
 *
 *   resume.json   identity of the source, boot, and of each disk: size, kind,
 *                 parent, compression
 *
 * The point has the name that it had: that is its instant.  After another boot
 * all is copied again: nobody knows what of a file came to the disk first.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/backup-priv.h"
#include "log.h"
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

/* Has the source what it had, as @what tells? */
static bool is_same(const struct run *r, const json_t *what)
{
    CLEANUP_JSON json_t *boot = boot_id();
    const char *source = json_string_value(json_object_get(what, "source"));

    return boot && r->identity && source && strcmp(source, r->o->source) == 0 &&
           json_equal(boot, json_object_get(what, "boot")) &&
           json_equal(r->identity, json_object_get(what, "identity"));
}

int run_look_for_resume(struct run *r, struct error **errp)
{
    r->identity = source_identity(r->source);
    resume_get(r->store, r->resume_point, &r->resume);
    if (r->resume && !is_same(r, r->resume)) {
        log_line(TELL_WARNING,
                 "a copy that was cut off is begun again: the source may have "
                 "changed since");
        json_decref(r->resume);
        r->resume = NULL;
    }
    return r->resume ? 0 : resume_drop(r->store, errp);
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

int run_note_resume(struct run *r, struct error **errp)
{
    json_t *boot = boot_id();
    json_t *disks = json_array();

    if (!r->identity || !boot) {
        json_decref(boot);
        json_decref(disks);
        return 0;
    }
    for (unsigned i = 0; i < r->count; i++) {
        (void)json_array_append_new(disks, describe(&r->copies[i]));
    }
    CLEANUP_JSON json_t *what =
        json_pack("{s:s, s:o, s:O, s:o}", "source", r->o->source, "boot", boot,
                  "identity", r->identity, "disks", disks);
    return what ? resume_put(r->store, r->point, what, errp)
                : error_nomem(errp);
}

void run_end_resume(struct run *r)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (!r->o->dry_run && r->identity && r->store &&
        resume_drop(r->store, &err) < 0) {
        log_line(TELL_WARNING, "%s", error_message(err));
    }
    json_decref(r->identity);
    json_decref(r->resume);
    r->identity = r->resume = NULL;
}
