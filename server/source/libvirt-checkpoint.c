/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Checkpoints of libvirt
 * ======================
 *
 * A checkpoint is a bitmap of its name in the image of each of its disks, and
 * libvirt's metadata, which say which disks these are.  Either can be lost
 * without the other:
 *
 *   metadata   bitmap          what is done
 *   there      whole           it is used
 *   lost       whole           metadata are made anew: it is used
 *   any        inconsistent    the bitmap is removed: bitmap-inconsistent
 *   there      lost            the metadata are removed: no-checkpoint
 *
 * libvirt has no list of bitmaps.  But it tells the size of what is dirty for
 * the disks whose bitmap is whole, and it refuses to define a checkpoint again,
 * with a look at its bitmaps, where one is not.  Defined without that look, for
 * one disk, its removal succeeds where the bitmap is there.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "source/libvirt-priv.h"
#include "source/source.h"

#define REDEFINE VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
#define LOOK     VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE

/* --- Calls --- */

static int define_fn(virDomainPtr d, struct libvirt_args *args)
{
    virDomainCheckpointPtr c = virDomainCheckpointCreateXML(d, args->a,
                                                            args->flags);

    return c ? virDomainCheckpointFree(c) : -1;
}

static int delete_fn(virDomainPtr d, struct libvirt_args *args)
{
    virDomainCheckpointPtr c = virDomainCheckpointLookupByName(d, args->a, 0);
    int r = c ? virDomainCheckpointDelete(c, args->flags) : -1;

    if (c) {
        args->why = r < 0 ? virSaveLastError() : NULL;
        (void)virDomainCheckpointFree(c);
    }
    return r;
}

/* With the sizes of what is dirty; without, if these cannot be told. */
static int describe_fn(virDomainPtr d, struct libvirt_args *args)
{
    const unsigned flags = VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN;
    virDomainCheckpointPtr c = virDomainCheckpointLookupByName(d, args->a, 0);

    if (!c) {
        return -1;
    }
    args->text = virDomainCheckpointGetXMLDesc(
        c, flags | VIR_DOMAIN_CHECKPOINT_XML_SIZE);
    if (!args->text) {
        args->text = virDomainCheckpointGetXMLDesc(c, flags);
    }
    args->why = args->text ? NULL : virSaveLastError();
    (void)virDomainCheckpointFree(c);
    return args->text ? 0 : -1;
}

/* All names, each with a newline. */
static int list_fn(virDomainPtr d, struct libvirt_args *args)
{
    virDomainCheckpointPtr *list = NULL;
    size_t len = 0;
    int n = virDomainListAllCheckpoints(d, &list, 0);

    for (int i = 0; i < n; i++) {
        len += strlen(virDomainCheckpointGetName(list[i])) + 1;
    }
    char *at = args->text = n < 0 ? NULL : calloc(1, len + 1);
    for (int i = 0; i < n; i++) {
        if (at) {
            at = stpcpy(stpcpy(at, virDomainCheckpointGetName(list[i])), "\n");
        }
        (void)virDomainCheckpointFree(list[i]);
    }
    free(list);
    return args->text ? 0 : -1;
}

static int has_fn(virDomainPtr d, struct libvirt_args *args)
{
    virDomainCheckpointPtr c = virDomainCheckpointLookupByName(d, args->a, 0);

    if (!c) {
        return virGetLastErrorCode() == VIR_ERR_NO_DOMAIN_CHECKPOINT ? 0 : -1;
    }
    (void)virDomainCheckpointFree(c);
    return 1;
}

static int is_active_fn(virDomainPtr d, struct libvirt_args *args)
{
    (void)args;
    return virDomainIsActive(d);
}

static int delete_checkpoint(struct source *s, const char *name, unsigned flags,
                             struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    int r = libvirt_call(l->link, delete_fn, name, NULL, flags, NULL, errp);

    return r == -ENOENT ? 0 : r;
}

static int delete_metadata(struct source *s, const char *name,
                           struct error **errp)
{
    return delete_checkpoint(s, name,
                             VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY, errp);
}

/* Write metadata of checkpoint @name on the disks whose @on is set. */
static int define(struct source *s, const char *name, const bool *on,
                  unsigned flags, struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    CLEANUP_FREE struct libvirt_xml_item *items = calloc(s->count,
                                                         sizeof(*items));
    size_t n = 0;

    for (unsigned i = 0; items && i < s->count; i++) {
        if (on[i]) {
            items[n++] = (struct libvirt_xml_item){.name = s->disks[i].name,
                                                   .checkpoint = true};
        }
    }
    CLEANUP_FREE char *xml = items
                                 ? libvirt_xml_checkpoint(name, items, n, true)
                                 : NULL;
    return xml ? libvirt_call(l->link, define_fn, xml, NULL, REDEFINE | flags,
                              NULL, errp)
               : error_nomem(errp);
}

int libvirt_try_checkpoint(struct source *s, unsigned i, const char *name,
                           struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    const struct libvirt_xml_item item = {.name = s->disks[i].name,
                                          .checkpoint = true};
    CLEANUP_FREE struct libvirt_xml_item *items = calloc(s->count,
                                                         sizeof(*items));

    for (unsigned k = 0; items && k < s->count; k++) {
        items[k] = k == i ? item
                          : (struct libvirt_xml_item){.name = s->disks[k].name};
    }
    CLEANUP_FREE char *xml =
        items ? libvirt_xml_checkpoint(name, items, s->count, false) : NULL;
    int r = xml ? libvirt_call_once(l->link, define_fn, xml, NULL, 0, NULL,
                                    errp)
                : error_nomem(errp);
    return r < 0 ? r : delete_checkpoint(s, name, 0, errp);
}

int libvirt_has_checkpoint(struct source *s, const char *name,
                           struct error **errp)
{
    const struct libvirt_source *l = s->opaque;

    return libvirt_call(l->link, has_fn, name, NULL, 0, NULL, errp);
}

/* --- What a checkpoint has --- */

/* Of one checkpoint, for each disk of the source. */
struct state {
    struct source *s;
    bool *has;   /* metadata say that the disk has a bitmap */
    bool *whole; /* it has, indeed */
    bool metadata;
    bool all;     /* all that has is whole */
    bool strange; /* it has disks that are not there: one may have another
                     name now, and its bitmap still */
};

static void free_state(struct state *st)
{
    free(st->has);
    free(st->whole);
}
#define CLEANUP_STATE __attribute__((cleanup(free_state)))

static int note_disk(const char *name, bool whole, void *opaque)
{
    struct state *st = opaque;
    const struct source_disk *d = source_find(st->s, name);

    if (!d) {
        st->strange = true;
        return 0;
    }
    st->has[d - st->s->disks] = true;
    st->whole[d - st->s->disks] = whole;
    st->all = st->all && whole;
    return 0;
}

static int read_state(struct source *s, const char *name, struct state *st,
                      struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    struct libvirt_answer answer;

    st->s = s;
    st->all = true;
    st->has = calloc(s->count + 1, sizeof(bool));
    st->whole = calloc(s->count + 1, sizeof(bool));
    if (!st->has || !st->whole) {
        return error_nomem(errp);
    }
    CLEANUP_ERROR struct error *err = NULL;
    int r = libvirt_call(l->link, describe_fn, name, NULL, 0, &answer, &err);
    if (r == -ENOENT && answer.code == VIR_ERR_NO_DOMAIN_CHECKPOINT) {
        return 0;
    }
    if (r < 0) {
        return error_set(errp, -r, "%s", error_message(err));
    }
    st->metadata = true;
    r = libvirt_xml_each_disk(answer.text, note_disk, st, errp);
    free(answer.text);
    return r;
}

/* --- Bitmaps that nobody can trust, or that nobody knows of --- */

/* Metadata of one disk alone. */
static int define_one(struct source *s, unsigned i, const char *name,
                      unsigned flags, struct error **errp)
{
    CLEANUP_FREE bool *one = calloc(s->count, sizeof(bool));

    if (!one) {
        return error_nomem(errp);
    }
    one[i] = true;
    return define(s, name, one, flags, errp);
}

/* Remove the bitmap of one disk: 1 if it was there.  The metadata are gone
 * afterwards. */
static int remove_bitmap(struct source *s, unsigned i, const char *name,
                         struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = define_one(s, i, name, 0, errp);

    if (r < 0) {
        return r;
    }
    r = delete_checkpoint(s, name, 0, &err);
    return r == 0      ? 1
           : r == -EIO ? delete_metadata(s, name, errp) /* it was not there */
                       : error_set(errp, -r, "%s", error_message(err));
}

/* Is the bitmap of one disk whole?  1 or 0; the metadata are of that disk
 * alone if it is. */
static int look_at_bitmap(struct source *s, unsigned i, const char *name,
                          struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = define_one(s, i, name, LOOK, &err);

    return r == 0         ? 1
           : r == -ESTALE ? 0
                          : error_set(errp, -r, "%s", error_message(err));
}

/* Find out for each disk, remove what is broken, and write metadata of the
 * rest. */
static int repair(struct source *s, const char *name, struct state *st,
                  const char **why, struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    bool any = false;
    int r = 0;

    for (unsigned i = 0; r >= 0 && i < s->count; i++) {
        r = l->disks[i].bitmaps ? look_at_bitmap(s, i, name, errp) : 0;
        st->whole[i] = r == 1;
        any |= st->whole[i];
    }
    for (unsigned i = 0; r >= 0 && i < s->count; i++) {
        if (l->disks[i].bitmaps && !st->whole[i]) {
            r = remove_bitmap(s, i, name, errp);
            why[i] = r == 1 ? "bitmap-inconsistent" : "no-checkpoint";
        }
    }
    return r < 0 ? r
           : any ? define(s, name, st->whole, 0, errp)
                 : delete_metadata(s, name, errp);
}

/* Does a disk have no such checkpoint that had one when the caller looked last,
 * as far as metadata say? */
static bool is_missing(const struct source *s, const char *since,
                       const struct state *st)
{
    const struct libvirt_source *l = s->opaque;
    bool missing = false;

    for (unsigned i = 0; i < s->count; i++) {
        missing |= s->disks[i].since && l->disks[i].bitmaps && !st->has[i] &&
                   strcmp(s->disks[i].since, since) == 0;
    }
    return missing;
}

int libvirt_find_changes(struct source *s, const char *since,
                         struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    CLEANUP_STATE struct state st = {0};
    CLEANUP_FREE const char **why = calloc(s->count, sizeof(*why));
    int r = why ? read_state(s, since, &st, errp) : error_nomem(errp);

    if (r == 0 && (!st.all || is_missing(s, since, &st))) {
        r = repair(s, since, &st, why, errp);
    }
    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        struct source_disk *d = &s->disks[i];

        if (d->since && strcmp(d->since, since) == 0 && !st.whole[i]) {
            d->reason = !l->disks[i].bitmaps ? "no-bitmaps"
                        : why[i]             ? why[i]
                                             : "no-checkpoint";
        }
    }
    return r;
}

/* --- Forgetting --- */

/* What the metadata say is not true, or there are none. */
static int forget_pieces(struct source *s, const char *name, struct state *st,
                         struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    bool any = false;
    int r = 0;

    for (unsigned i = 0; i < s->count; i++) {
        any |= st->whole[i];
    }
    if (any) {
        r = define(s, name, st->whole, 0, errp);
        r = r < 0 ? r : delete_checkpoint(s, name, 0, errp);
    }
    for (unsigned i = 0; r >= 0 && i < s->count; i++) {
        r = l->disks[i].bitmaps && !st->whole[i]
                ? remove_bitmap(s, i, name, errp)
                : 0;
    }
    return r < 0 ? r : delete_metadata(s, name, errp);
}

int libvirt_forget(struct source *s, const char *name, struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    CLEANUP_STATE struct state st = {0};
    int r = libvirt_call(l->link, is_active_fn, NULL, NULL, 0, NULL, errp);

    if (r == 0) {
        return error_set(errp, ENODEV,
                         "the domain '%s' is shut off: only of one that runs "
                         "libvirt removes bitmaps",
                         l->domain);
    }
    r = r < 0 ? r : read_state(s, name, &st, errp);
    return r < 0 ? r
           : st.metadata && st.all && !st.strange
               ? delete_checkpoint(s, name, 0, errp)
               : forget_pieces(s, name, &st, errp);
}

/* --- Listing --- */

static int tell_checkpoint(struct source *s, const char *name,
                           source_checkpoint_fn *fn, void *opaque,
                           struct error **errp)
{
    CLEANUP_STATE struct state st = {0};
    bool told = false;
    int r = read_state(s, name, &st, errp);

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        if (st.has[i]) {
            r = fn(name, &s->disks[i],
                   st.whole[i] ? NULL : "bitmap-inconsistent", opaque);
            told = true;
        }
    }
    if (r == 0 && !told && st.metadata && s->count > 0) {
        r = fn(name, &s->disks[0], "no-checkpoint", opaque);
    }
    return r;
}

/* One none of whose disks is there is told of the first disk. */
int libvirt_each_checkpoint(struct source *s, source_checkpoint_fn *fn,
                            void *opaque, struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    struct libvirt_answer answer;
    char *save = NULL;
    int r = libvirt_call(l->link, list_fn, NULL, NULL, 0, &answer, errp);

    if (r < 0) {
        return r;
    }
    CLEANUP_FREE char *names = answer.text;
    char *name = strtok_r(names, "\n", &save);
    while (r == 0 && name) {
        r = libvirt_is_adopted_checkpoint(s, name)
                ? 0
                : tell_checkpoint(s, name, fn, opaque, errp);
        name = strtok_r(NULL, "\n", &save);
    }
    return r;
}
