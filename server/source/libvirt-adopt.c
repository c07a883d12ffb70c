/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The backup job that a killed run has left at a domain is gone on with.
 *
 * Names of its scratch files have the session's random word, and libvirt's XML
 * of the job has these names.  So the job is known by that word, whichever
 * daemon of libvirt answers.  While it stands, the disks are what they were.
 *
 * Libvirt lists its new checkpoint from the begin on.  It is not told of before
 * begin takes the job over: the caller would remove it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "source/adopt.h"
#include "source/libvirt-priv.h"
#include "source/source.h"

static const char *text_at(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

int libvirt_make_identity(struct source *s, struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    json_t *is = adopt_describe(s, l->word, l->checkpoint);
    json_t *places = json_pack(
        "{s:s*, s:s*, s:s*, s:s*, s:b}", "scratch", l->scratch_dir.path,
        "directory", l->by_ssh ? NULL : l->socket_dir.path, "socket",
        l->nbd ? NULL : l->socket, "nbd", l->nbd, "ssh", (int)l->by_ssh);

    if (!is || !places || json_object_update(is, places) < 0) {
        json_decref(is);
        is = NULL;
    }
    json_decref(places);
    json_decref(l->identity);
    l->identity = is;
    return is ? 0 : error_nomem(errp);
}

/* Libvirt makes none where no disk can keep one. */
static bool has_checkpoint(const json_t *identity)
{
    bool any = false;
    size_t i;
    json_t *disk;

    json_array_foreach (json_object_get(identity, "disks"), i, disk) {
        any |= json_is_true(json_object_get(disk, "checkpoint"));
    }
    return any;
}

/* 1 or 0, or an error of asking. */
static int stands(struct source *s, const json_t *identity, struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    const char *word = adopt_word(identity);
    const char *checkpoint = adopt_checkpoint(identity, l->id);
    int r = word ? libvirt_has_job(l, word, errp) : 0;

    return r < 1 || !has_checkpoint(identity) ? r
           : checkpoint ? libvirt_has_checkpoint(s, checkpoint, errp)
                        : 0;
}

int libvirt_adopt(struct source *s, const json_t *identity, struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    int r = stands(s, identity, errp);

    if (r == 1) {
        l->identity = json_deep_copy(identity);
        if (!l->identity) {
            return error_nomem(errp);
        }
        memcpy(l->word, adopt_word(identity), sizeof(l->word));
        s->adopted = true;
    }
    return r < 0 ? r : 0;
}

bool libvirt_is_adopted_checkpoint(const struct source *s, const char *name)
{
    const struct libvirt_source *l = s->opaque;
    const char *its = s->adopted && !s->begun
                          ? adopt_checkpoint(l->identity, l->id)
                          : NULL;

    return its && strcmp(its, name) == 0;
}

/* Is the server asked for where it is? */
static bool same_server(const struct libvirt_source *l)
{
    const char *nbd = text_at(l->identity, "nbd");
    bool ssh = json_is_true(json_object_get(l->identity, "ssh"));

    return ssh == l->by_ssh &&
           (nbd && l->nbd ? strcmp(nbd, l->nbd) == 0 : !nbd && !l->nbd) &&
           (l->nbd || text_at(l->identity, "socket"));
}

/* The directories of that run, where there were any, go with it. */
static bool take_dirs(struct libvirt_source *l)
{
    const char *scratch = text_at(l->identity, "scratch");
    const char *directory = text_at(l->identity, "directory");

    return (!scratch ||
            private_dir_take(&l->scratch_dir,
                             l->scratch ? l->scratch : private_dir_for_files(),
                             l->id, l->owner, scratch) == 0) &&
           (!directory ||
            private_dir_take(&l->socket_dir, private_dir_for_sockets(), l->id,
                             l->owner, directory) == 0);
}

int libvirt_begin_adopted(struct source *s, struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    int r = stands(s, l->identity, errp);

    if (r < 0) {
        return r;
    }
    if (r == 0 || !adopt_fits(s, l->identity, l->checkpoint) ||
        !same_server(l) || !take_dirs(l)) {
        return adopt_gone(errp);
    }
    free(l->socket);
    l->socket = NULL;
    if (!l->nbd && !(l->socket = strdup(text_at(l->identity, "socket")))) {
        return error_nomem(errp);
    }
    l->job = true;
    l->fresh = has_checkpoint(l->identity);
    adopt_take_disks(s, l->identity);
    return 0;
}
