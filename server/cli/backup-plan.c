/* SPDX-License-Identifier: BSD-3-Clause */
/* Which disks of the source are wanted, and what of each: all of it, or what
 * has changed since the point before. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/backup-priv.h"
#include "nbdelta/error.h"
#include "store/heal.h"

static bool is_wanted(const struct backup_options *o, const char *name)
{
    bool wanted = o->disk_count == 0;

    for (unsigned i = 0; i < o->disk_count; i++) {
        wanted = wanted || strcmp(o->disks[i], name) == 0;
    }
    return wanted;
}

/* There is no directory yet. */
static int plan_first(struct run *r, struct error **errp)
{
    int result = 0;

    for (unsigned i = 0; result == 0 && i < r->count; i++) {
        r->plan[i].kind = DISK_FULL;
        r->plan[i].reason = r->o->full ? REASON_ASKED : REASON_NEW_DISK;
        result = disk_name_check(r->plan[i].name, errp);
    }
    return result;
}

static int make_plan(struct run *r, struct error **errp)
{
    return r->store ? plan_make(r->store, r->plan, r->count, r->o->full,
                                r->parent, errp)
                    : plan_first(r, errp);
}

/* Of a disk that is no increment all is wanted: some sources have only what is
 * dirty, where that was asked for.  One whose damage may be healed needs both:
 * all, and what has changed. */
static int ask_for_whole(struct run *r, struct error **errp)
{
    for (unsigned i = 0; i < r->count; i++) {
        r->plan[i] = (struct plan_disk){.name = r->disks[i]->name,
                                        .size = r->disks[i]->size,
                                        .image = r->disks[i]->image};
    }
    int result = make_plan(r, errp);
    for (unsigned i = 0; result == 0 && i < r->count; i++) {
        const struct plan_disk *p = &r->plan[i];
        bool heal = r->store && heal_wanted(r->store, p->name);

        r->disks[i]->whole |= heal;
        if (p->kind != DISK_INCREMENT &&
            !(heal && p->reason == REASON_PARENT_DAMAGED)) {
            r->disks[i]->since = NULL;
        }
    }
    return result;
}

int run_choose_disks(struct run *r, struct error **errp)
{
    const struct backup_options *o = r->o;

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
    r->count = 0;
    for (unsigned i = 0; i < r->source->count; i++) {
        struct source_disk *d = &r->source->disks[i];

        d->skip = !is_wanted(o, d->name);
        d->whole = o->audit > 0;
        d->since = r->since[0] ? r->since : NULL;
        if (!d->skip) {
            r->disks[r->count++] = d;
        }
    }
    if (r->count > MANIFEST_DISKS) {
        return error_set(errp, EINVAL,
                         "a directory has %d disks at most, and these are %u",
                         MANIFEST_DISKS, r->count);
    }
    return r->count > 0 ? ask_for_whole(r, errp)
                        : error_set(errp, ENOENT, "the source has no disk");
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

int run_plan_only(struct run *r, struct error **errp)
{
    for (unsigned i = 0; i < r->count; i++) {
        r->plan[i] = (struct plan_disk){.name = r->disks[i]->name,
                                        .size = r->disks[i]->size,
                                        .image = r->disks[i]->image,
                                        .no_map = "no-checkpoint"};
    }
    int result = source_each_checkpoint(r->source, note_usable, r, errp);
    return result < 0 ? result : make_plan(r, errp);
}

/* After begin: the source has said of which disks it knows the changes. */
int run_make_plan(struct run *r, struct error **errp)
{
    for (unsigned i = 0; i < r->count; i++) {
        const struct source_disk *d = r->disks[i];
        r->plan[i].name = d->name;
        r->plan[i].size = d->size;
        r->plan[i].image = d->image;
        r->plan[i].no_map = source_has_map(d) ? NULL
                            : d->reason       ? d->reason
                                              : "no-checkpoint";
    }
    int result = make_plan(r, errp);
    for (unsigned i = 0; result == 0 && i < r->count; i++) {
        r->fell_back |= plan_fell_back(&r->plan[i]);
    }
    if (result == 0 && r->fell_back && r->o->no_fallback) {
        return error_set(errp, EINVAL,
                         "a disk would be copied as a whole (--no-fallback)");
    }
    return result;
}
