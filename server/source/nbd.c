/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An export of somebody's NBD server, which somebody has frozen.
 *
 * Nobody can make checkpoints by NBD.  The bitmap that the caller has named is
 * what is dirty since the last point, whichever checkpoint is asked for.
 *
 * Nor does an export tell whether it has the bytes that it had: neither its
 * size nor its name changes when it is frozen anew.  The caller may tell, by a
 * word for the instant.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "source/frozen.h"
#include "source/source.h"

struct nbd_source {
    struct frozen frozen;
    json_t *address;
    char *context;    /* or NULL */
    json_t *identity; /* NULL: the caller has no word for it */
};

/* Open a node for a moment: its size, or why it cannot be opened. */
static int look_at(struct source *s, const json_t *options, uint64_t *size,
                   struct error **errp)
{
    struct node *n;
    int r = graph_open(s->graph, options, &n, errp);

    if (r == 0) {
        *size = node_size(n);
        r = graph_close(s->graph, n, errp);
    }
    return r;
}

static int look_at_export(struct source *s, const struct nbd_source *n,
                          struct error **errp)
{
    struct source_disk probe = {0};
    uint64_t size = 0;
    int r = frozen_fill(&n->frozen, &probe, n->address, NULL, n->context, errp);

    r = r < 0 ? r : look_at(s, probe.options, &size, errp);
    if (r == 0 && probe.dirty) {
        uint64_t same;
        r = look_at(s, probe.dirty, &same, errp);
    }
    json_decref(probe.options);
    json_decref(probe.dirty);
    if (r < 0) {
        return r;
    }
    const char *export =
        json_string_value(json_object_get(n->address, "export"));
    return source_add_disk(s, export && *export ? export : "disk", NULL, size)
               ? 0
               : error_nomem(errp);
}

static int make_identity(struct source *s, const struct source_options *o,
                         struct error **errp)
{
    struct nbd_source *n = s->opaque;

    n->identity = json_pack("{s:s, s:s*, s:I}", "instant", o->instant, "bitmap",
                            o->bitmap, "size", (json_int_t)s->disks[0].size);
    return n->identity
               ? 0
               : error_set(errp, EINVAL, "the word for the instant is no text");
}

static json_t *identity_of_export(struct source *s)
{
    const struct nbd_source *n = s->opaque;

    return json_incref(n->identity);
}

static int open_nbd(struct source *s, const char *what,
                    const struct source_options *o, struct error **errp)
{
    struct nbd_source *n = calloc(1, sizeof(*n));

    s->opaque = n;
    if (!n) {
        return error_nomem(errp);
    }
    if (o->bitmap &&
        asprintf(&n->context, "qemu:dirty-bitmap:%s", o->bitmap) < 0) {
        n->context = NULL;
        return error_nomem(errp);
    }
    int r = frozen_init(&n->frozen, o, errp);
    r = r < 0 ? r : frozen_address(what, NULL, &n->address, errp);
    r = r < 0 ? r : look_at_export(s, n, errp);
    return r < 0 || !o->instant ? r : make_identity(s, o, errp);
}

static int begin_nbd(struct source *s, const char *checkpoint,
                     struct error **errp)
{
    const struct nbd_source *n = s->opaque;
    struct source_disk *d = &s->disks[0];
    const char *context = d->since ? n->context : NULL;

    (void)checkpoint;
    d->reason = d->since && !context ? "no-checkpoint" : NULL;
    return frozen_fill(&n->frozen, d, n->address, NULL, context, errp);
}

static int end_nbd(struct source *s, bool keep, struct error **errp)
{
    (void)s;
    (void)keep;
    (void)errp;
    return 0;
}

static void close_nbd(struct source *s)
{
    struct nbd_source *n = s->opaque;

    if (n) {
        frozen_free(&n->frozen);
        json_decref(n->address);
        json_decref(n->identity);
        free(n->context);
        free(n);
    }
}

const struct source_ops source_nbd = {
    .name = "nbd",
    .open = open_nbd,
    .begin = begin_nbd,
    .end = end_nbd,
    .identity = identity_of_export,
    .close = close_nbd,
};
