/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a killed run has left in QEMU is gone on with.
 *
 *   identity of that run            what has to be there
 *     instant: WORD                   nbdelta-ID-WORD-N: a job at work, and an
 *     disks: N, node, mapped...       export, for each disk
 *     scratch, socket: directories    the directories
 *     checkpoint                      its bitmaps; and the map, where there was
 *                                     one
 *
 * The jobs keep old bytes whoever reads them, so the disks are what they were
 * at the instant.  Names have the session's random word: no other session is
 * taken for it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "source/adopt.h"
#include "source/qemu-priv.h"
#include "source/source.h"
#include "source/talk.h"

/* --- The identity of what begin has made --- */

int qemu_make_identity(struct source *s, struct error **errp)
{
    struct qemu_source *q = s->opaque;
    json_t *is = adopt_describe(s, q->word, q->checkpoint);

    for (unsigned i = 0; is && i < s->count; i++) {
        json_t *disk = adopt_disk(is, s->disks[i].name);

        if (disk &&
            (json_object_set_new(disk, "number", json_integer(i)) < 0 ||
             json_object_set_new(disk, "node", json_string(q->disks[i].node)) <
                 0 ||
             json_object_set_new(disk, "mapped",
                                 json_boolean(q->disks[i].mapped)) < 0)) {
            json_decref(is);
            is = NULL;
        }
    }
    json_t *places = json_pack(
        "{s:s*, s:s*, s:s*}", "scratch", q->scratch_dir.path, "socket",
        q->own_server ? q->socket_dir.path : NULL, "nbd", q->nbd);
    if (!is || !places || json_object_update(is, places) < 0) {
        json_decref(is);
        is = NULL;
    }
    json_decref(places);
    json_decref(q->identity);
    q->identity = is;
    return is ? 0 : error_nomem(errp);
}

/* --- Does it stand? --- */

/* What QEMU has of it. */
struct sight {
    json_t *jobs;
    json_t *exports;
    json_t *nodes;
};

static void free_sight(struct sight *v)
{
    json_decref(v->jobs);
    json_decref(v->exports);
    json_decref(v->nodes);
}

static int look(struct source *s, struct sight *v, struct error **errp)
{
    int r = talk_ask(s->talk, "query-jobs", NULL, &v->jobs, errp);

    r = r < 0
            ? r
            : talk_ask(s->talk, "query-block-exports", NULL, &v->exports, errp);
    return r < 0 ? r : qemu_nodes(s, &v->nodes, errp);
}

static const json_t *find_id(const json_t *list, const char *id)
{
    const json_t *found = NULL;
    size_t i;
    json_t *entry;

    json_array_foreach (list, i, entry) {
        const char *is = qemu_text(entry, "id");
        found = is && strcmp(is, id) == 0 ? entry : found;
    }
    return found;
}

static bool disk_stands(const struct qemu_source *q, const struct sight *v,
                        const json_t *identity, const json_t *disk)
{
    CLEANUP_FREE char *id = NULL;
    const char *checkpoint = adopt_checkpoint(identity, q->id);
    const char *node = qemu_text(disk, "node");
    const json_t *there = node ? qemu_find_node(v->nodes, node) : NULL;
    json_int_t number = json_integer_value(json_object_get(disk, "number"));

    if (asprintf(&id, "%s%s-%lld", q->prefix, adopt_word(identity),
                 (long long)number) < 0) {
        id = NULL;
        return false;
    }
    const json_t *export = find_id(v->exports, id);
    return there && qemu_is_at_work(find_id(v->jobs, id)) && export &&
           !json_is_true(json_object_get(export, "shutting-down")) &&
           (!json_is_true(json_object_get(disk, "mapped")) ||
            qemu_find_bitmap(there, q->map)) &&
           (!json_is_true(json_object_get(disk, "checkpoint")) ||
            (checkpoint && qemu_find_bitmap(there, checkpoint)));
}

/* 1 or 0, or an error of asking. */
static int stands(struct source *s, const json_t *identity, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    const json_t *disks = json_object_get(identity, "disks");
    struct sight v = {0};
    bool all = adopt_word(identity) && json_array_size(disks) > 0;
    int r = all ? look(s, &v, errp) : 0;
    size_t i;
    json_t *disk;

    json_array_foreach (disks, i, disk) {
        all = all && r == 0 && disk_stands(q, &v, identity, disk);
    }
    free_sight(&v);
    return r < 0 ? r : all;
}

int qemu_adopt(struct source *s, const json_t *identity, struct error **errp)
{
    struct qemu_source *q = s->opaque;
    int r = stands(s, identity, errp);

    if (r == 1) {
        q->identity = json_deep_copy(identity);
        if (!q->identity) {
            return error_nomem(errp);
        }
        memcpy(q->word, adopt_word(identity), sizeof(q->word));
        s->adopted = true;
    }
    return r < 0 ? r : 0;
}

/* Of a disk that we have frozen QEMU shows our filter. */
const char *qemu_adopted_node(const struct source *s, const char *filter)
{
    const struct qemu_source *q = s->opaque;
    const char *node = NULL;
    size_t i;
    json_t *disk;

    if (!s->adopted) {
        return NULL;
    }
    json_array_foreach (json_object_get(q->identity, "disks"), i, disk) {
        char name[32];

        (void)snprintf(
            name, sizeof(name), "%sb%u", q->node_prefix,
            (unsigned)json_integer_value(json_object_get(disk, "number")));
        node = strcmp(name, filter) == 0 ? qemu_text(disk, "node") : node;
    }
    return node;
}

bool qemu_is_adopted_checkpoint(const struct source *s, const char *name)
{
    const struct qemu_source *q = s->opaque;
    const char *its = s->adopted && !s->begun
                          ? adopt_checkpoint(q->identity, q->id)
                          : NULL;

    return its && strcmp(its, name) == 0;
}

/* --- Begin --- */

static bool same_places(const struct source *s)
{
    const struct qemu_source *q = s->opaque;
    const char *nbd = qemu_text(q->identity, "nbd");
    bool same = nbd && q->nbd ? strcmp(nbd, q->nbd) == 0 : !nbd && !q->nbd;

    for (unsigned i = 0; i < s->count; i++) {
        const json_t *was = s->disks[i].skip
                                ? NULL
                                : adopt_disk(q->identity, s->disks[i].name);
        const char *node = qemu_text(was, "node");

        same = same &&
               (!was ||
                (json_integer_value(json_object_get(was, "number")) == i &&
                 node && strcmp(node, q->disks[i].node) == 0));
    }
    return same;
}

/* The directories of that run go with it. */
static bool take_dirs(struct qemu_source *q)
{
    const char *scratch = qemu_text(q->identity, "scratch");
    const char *socket = qemu_text(q->identity, "socket");

    q->own_server = socket != NULL;
    return scratch &&
           private_dir_take(&q->scratch_dir, q->scratch, q->id, q->owner,
                            scratch) == 0 &&
           (!socket ||
            private_dir_take(&q->socket_dir, private_dir_for_sockets(), q->id,
                             q->owner, socket) == 0);
}

int qemu_begin_adopted(struct source *s, struct error **errp)
{
    struct qemu_source *q = s->opaque;
    int r = stands(s, q->identity, errp);

    if (r < 0) {
        return r;
    }
    if (r == 0 || !adopt_fits(s, q->identity, q->checkpoint) ||
        !same_places(s) || !take_dirs(q)) {
        return adopt_gone(errp);
    }
    adopt_take_disks(s, q->identity);
    for (unsigned i = 0; i < s->count; i++) {
        const json_t *was = s->disks[i].skip
                                ? NULL
                                : adopt_disk(q->identity, s->disks[i].name);

        q->disks[i].mapped = json_is_true(json_object_get(was, "mapped"));
        q->disks[i].fresh = s->disks[i].checkpoint;
    }
    return 0;
}

/* Also what an earlier begin has taken. */
void qemu_drop_adopted(struct source *s)
{
    struct qemu_source *q = s->opaque;
    CLEANUP_JSON json_t *was = q->identity;
    const char *checkpoint = adopt_checkpoint(was, q->id);

    q->identity = NULL;
    (void)qemu_clean(s, NULL);
    if (checkpoint) {
        (void)qemu_remove_bitmap(s, checkpoint, NULL);
    }
    private_dir_sweep(private_dir_for_sockets(), q->id, q->owner);
    private_dir_sweep(q->scratch, q->id, q->owner);
}
