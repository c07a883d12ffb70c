/* SPDX-License-Identifier: BSD-3-Clause */
/* What a run has done: the manifest of its point, and the JSON for the user. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/backup-priv.h"

int run_fill_manifest(const struct run *r, struct manifest *m)
{
    m->time = (int64_t)time(NULL);
    (void)snprintf(m->name, sizeof(m->name), "%s", r->point);
    (void)snprintf(m->id, sizeof(m->id), "%s", store_id(r->store));
    m->source = run_name_source(r->o->source_name);
    m->program = strdup("nbdelta " NBDELTA_VERSION);
    if (r->source->version) {
        m->source_version = strdup(r->source->version);
    }
    m->agent = r->source->froze ? strdup(r->source->froze) : NULL;
    if (!m->source || !m->program ||
        (r->source->version && !m->source_version) ||
        (r->source->froze && !m->agent)) {
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
        d->image = c->disk->image ? strdup(c->disk->image) : NULL;
        if ((c->disk->checkpoint && !d->checkpoint) ||
            (c->disk->image && !d->image)) {
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

json_t *run_describe(const struct run *r)
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
    return json_pack("{s:s*, s:s, s:s*, s:o*}", "point",
                     r->o->dry_run ? NULL : r->point, "directory",
                     r->store ? store_path(r->store) : r->o->directory, "agent",
                     r->source->froze, "disks", disks);
}
