/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which kind of source is it, and what all kinds have in common: see source.h.
 *
 *   "libvirt:DOMAIN"          a module, loaded when it is asked for
 *   a socket, or "qmp://..."  who greets there?  nbdelta, or QEMU
 *   "nbd://..." and the like  nbd
 *   [NAME=]"rbd:..."          rbd, or with another format than raw: image
 *   anything else             image
 */
#include "source/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/thread.h"
#include "source/agent.h"
#include "source/module.h"
#include "source/rbd-names.h"
#include "source/talk.h"

/* --- Kinds --- */

struct kind {
    const char *prefix; /* how SOURCE begins */
    bool keep_prefix;   /* it is part of what the kind gets */
    const struct source_ops *ops;
    const char *module; /* without ops: the module that has them */
};

static const struct kind kinds[] = {
    {"libvirt:", false, NULL, "libvirt"},
    {"nbd:", true, &source_nbd, NULL},
    {"nbd://", true, &source_nbd, NULL},
    {"nbds://", true, &source_nbd, NULL},
    {"nbd+tcp://", true, &source_nbd, NULL},
    {"nbds+tcp://", true, &source_nbd, NULL},
    {"nbd+unix://", true, &source_nbd, NULL},
    {"nbds+unix://", true, &source_nbd, NULL},
    {"nbd+vsock://", true, &source_nbd, NULL},
    {"nbds+vsock://", true, &source_nbd, NULL},
};

static const struct kind of_ceph = {"rbd:", true, &source_rbd, NULL};

static const struct kind *kind_of(const char *what)
{
    if (rbd_source_is(what)) {
        return &of_ceph;
    }
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (strncmp(what, kinds[i].prefix, strlen(kinds[i].prefix)) == 0) {
            return &kinds[i];
        }
    }
    return NULL;
}

const char *source_module_name(size_t i)
{
    for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
        if (kinds[k].module && i-- == 0) {
            return kinds[k].module;
        }
    }
    return NULL;
}

/* Choose s->ops, and what of *what the kind gets. */
static int choose_kind(struct source *s, const char **what,
                       const struct source_options *o, struct error **errp)
{
    const struct kind *k = kind_of(*what);

    if (k == &of_ceph && o->format && strcmp(o->format, "raw") != 0) {
        k = NULL;
    }
    if (o->instant && (!k || k->ops != &source_nbd)) {
        return error_set(errp, EINVAL,
                         "a word for the instant is for an NBD URI: '%s' tells "
                         "itself whether it has changed",
                         *what);
    }
    if (o->tunnel && (!k || !k->module)) {
        return error_set(errp, EINVAL,
                         "a tunnel is for domains of libvirt, and '%s' is none",
                         *what);
    }
    if (k) {
        *what += k->keep_prefix ? 0 : strlen(k->prefix);
        s->ops = k->ops;
        return k->ops ? 0 : source_module_load(k->module, &s->ops, errp);
    }
    if (!talk_is_monitor(*what)) {
        s->ops = &source_image;
        return 0;
    }
    int r = talk_open(*what, o, &s->talk, errp);
    if (r == 0) {
        s->version = talk_version(s->talk);
        s->ops = talk_is_nbdelta(s->talk) ? &source_nbdelta : &source_qemu;
    }
    return r;
}

/* --- The guard --- */

struct guarded {
    const struct kind *kind;
    const char *what;
    const struct source_options *o;
};

/* In the guard's process, which has no threads: modules can be loaded.  When
 * that fails, the parent says so itself. */
static void serve_guard(const void *opaque, int fd)
{
    const struct guarded *g = opaque;
    const struct source_ops *ops = NULL;

    if (source_module_load(g->kind->module, &ops, NULL) == 0 && ops->guard) {
        ops->guard(g->what, g->o, fd);
    }
}

int source_start_guard(const char *what, const struct source_options *o,
                       struct agent **ap, struct error **errp)
{
    struct guarded g = {.kind = kind_of(what), .o = o};

    *ap = NULL;
    if (!g.kind || !g.kind->module) {
        return 0;
    }
    g.what = what + (g.kind->keep_prefix ? 0 : strlen(g.kind->prefix));
    return agent_start_as(what, serve_guard, &g, ap, errp);
}

/* --- Opening --- */

static bool is_id(const char *id)
{
    return id && *id && strlen(id) <= SOURCE_ID_MAX &&
           strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                      "0123456789-") == strlen(id);
}

int source_open(const char *what, const struct source_options *o,
                struct source **sp, struct error **errp)
{
    struct source *s;
    int r;

    *sp = NULL;
    if (!is_id(o->id)) {
        return error_set(errp, EINVAL, "'%s' is no id", o->id ? o->id : "");
    }
    s = calloc(1, sizeof(*s));
    if (!s) {
        return error_nomem(errp);
    }
    s->graph = o->graph;
    s->agent = o->agent;
    s->stop_fd = o->stop_fd;
    r = choose_kind(s, &what, o, errp);
    r = r < 0 ? r : s->ops->open(s, what, o, errp);
    if (r < 0) {
        source_close(s);
        return r;
    }
    *sp = s;
    return 0;
}

void source_close(struct source *s)
{
    if (!s) {
        return;
    }
    if (s->still) {
        (void)source_freeze(s, false, NULL);
    }
    if (s->begun) {
        (void)source_end(s, false, NULL);
    }
    free(s->froze);
    if (s->ops) {
        s->ops->close(s);
    }
    talk_close(s->talk);
    source_reset_disks(s);
    for (unsigned i = 0; i < s->count; i++) {
        free(s->disks[i].name);
        free(s->disks[i].image);
    }
    free(s->disks);
    free(s);
}

/* --- Disks --- */

void source_reset_disks(struct source *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        struct source_disk *d = &s->disks[i];

        json_decref(d->options);
        json_decref(d->dirty);
        bitmap_unref(d->bitmap);
        d->options = NULL;
        d->dirty = NULL;
        d->bitmap = NULL;
        d->told = false;
        d->reason = NULL;
        d->checkpoint = false;
    }
}

/* --- The life of a backup --- */

int source_begin(struct source *s, const char *checkpoint, struct error **errp)
{
    bool any = false;

    if (s->begun) {
        return error_set(errp, EBUSY, "a backup of it has not ended");
    }
    for (unsigned i = 0; i < s->count; i++) {
        any |= !s->disks[i].skip;
    }
    if (!any) {
        return error_set(errp, ENOENT, "there is no disk to back up");
    }
    source_reset_disks(s);
    int r = s->ops->begin(s, checkpoint, errp);
    s->begun = r == 0;
    if (r < 0) {
        source_reset_disks(s);
    }
    if (r == -ESTALE) {
        s->adopted = false;
    }
    return r;
}

int source_renew(struct source *s, struct error **errp)
{
    return s->begun && s->ops->renew ? s->ops->renew(s, errp) : 0;
}

int source_end(struct source *s, bool keep, struct error **errp)
{
    int r = s->ops->end(s, keep, errp);

    if (r == 0 || !keep) {
        s->begun = false;
        s->adopted = false;
        source_reset_disks(s);
    }
    return r;
}

int source_each_checkpoint(struct source *s, source_checkpoint_fn *fn,
                           void *opaque, struct error **errp)
{
    return s->ops->each_checkpoint
               ? s->ops->each_checkpoint(s, fn, opaque, errp)
               : 0;
}

int source_forget(struct source *s, const char *checkpoint, struct error **errp)
{
    return s->ops->forget ? s->ops->forget(s, checkpoint, errp) : 0;
}

int source_definition(struct source *s, char **xml, struct error **errp)
{
    *xml = NULL;
    return s->ops->definition ? s->ops->definition(s, xml, errp) : 0;
}

/* --- The guest's file systems --- */

/* The number of file systems, 0 where nobody says, or -errno. */
static int64_t freeze_guest(struct source *s, struct error **errp)
{
    return s->agent
               ? agent_freeze(s->agent, s->stop_fd, errp)
               : error_set(errp, ENOTSUP,
                           "nobody can freeze file systems of this source: "
                           "name the socket of the guest's agent");
}

/* For the manifest. */
static void note_answer(struct source *s, int64_t count)
{
    free(s->froze);
    if (count > 0 ? asprintf(&s->froze, "%lld file systems frozen",
                             (long long)count) < 0
                  : !(s->froze = strdup("file systems frozen"))) {
        s->froze = NULL;
    }
}

static int freeze(struct source *s, struct error **errp)
{
    int64_t count = freeze_guest(s, errp);

    if (count < 0) {
        return (int)count;
    }
    s->still = true;
    s->still_ns = now_ns();
    note_answer(s, count);
    return 0;
}

static int thaw(struct source *s, struct error **errp)
{
    char *text;
    int r = agent_thaw(s->agent, errp);
    uint64_t ms = (now_ns() - s->still_ns) / 1000000;

    s->still = false;
    if (s->froze && asprintf(&text, "%s for %llu ms", s->froze,
                             (unsigned long long)ms) >= 0) {
        free(s->froze);
        s->froze = text;
    }
    return r;
}

int source_freeze(struct source *s, bool on, struct error **errp)
{
    return on == s->still ? 0 : on ? freeze(s, errp) : thaw(s, errp);
}

json_t *source_identity(struct source *s)
{
    return s->ops->identity ? s->ops->identity(s) : NULL;
}

/* --- What is dirty --- */

struct walk {
    source_range_fn *fn;
    void *opaque;
    uint64_t start; /* of dirty neighbours that were not told yet */
    uint64_t end;
};

static int tell_range(struct walk *w)
{
    int r = w->end > w->start ? w->fn(w->start, w->end - w->start, w->opaque)
                              : 0;

    w->start = w->end;
    return r;
}

static int add_range(struct walk *w, uint64_t offset, uint64_t bytes)
{
    int r = offset == w->end ? 0 : tell_range(w);

    w->start = offset == w->end ? w->start : offset;
    w->end = offset + bytes;
    return r;
}

/* A dirty range of x-dirty-bitmap has no data. */
static int add_extent(const struct extent *e, void *opaque)
{
    return e->flags & EXTENT_DATA ? 0 : add_range(opaque, e->offset, e->length);
}

static int walk_view(struct source *s, const struct source_disk *d,
                     struct walk *w, struct error **errp)
{
    struct node *n;
    struct blk *b = NULL;
    int r = graph_open(s->graph, d->dirty, &n, errp);

    if (r < 0) {
        return r;
    }
    r = blk_new(s->graph, n, PERM_READ, PERM_ALL, "the dirty map", &b, errp);
    if (r == 0 && blk_size(b) != d->size) {
        r = error_set(errp, EINVAL,
                      "'%s': what is dirty is told of %llu bytes of %llu",
                      d->name, (unsigned long long)blk_size(b),
                      (unsigned long long)d->size);
    } else if (r == 0) {
        r = blk_extents(b, 0, d->size, 0, add_extent, w);
        if (r < 0) {
            (void)error_set(errp, -r, "'%s': cannot ask what is dirty: %s",
                            d->name, strerror(-r));
        }
    }
    blk_free(b);
    graph_forget(s->graph, n);
    return r;
}

static int tell_walk(uint64_t offset, uint64_t bytes, void *opaque)
{
    return add_range(opaque, offset, bytes);
}

static int walk_bitmap(const struct source_disk *d, struct walk *w)
{
    uint64_t at = 0;
    int r = 0;

    while (r == 0 && at < d->size) {
        bool dirty;
        uint64_t bytes = bitmap_run(d->bitmap, at, d->size, &dirty);

        r = dirty ? add_range(w, at, bytes) : 0;
        at += bytes;
    }
    return r;
}

int source_each_dirty(struct source *s, const struct source_disk *disk,
                      struct node *n, source_range_fn *fn, void *opaque,
                      struct error **errp)
{
    struct walk w = {.fn = fn, .opaque = opaque};
    int r = disk->dirty    ? walk_view(s, disk, &w, errp)
            : disk->bitmap ? walk_bitmap(disk, &w)
            : disk->told   ? s->ops->each_dirty(s, disk, n, tell_walk, &w, errp)
                           : add_range(&w, 0, disk->size);

    return r == 0 ? tell_range(&w) : r;
}
