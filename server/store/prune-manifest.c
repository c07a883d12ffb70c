/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What manifests say after a point has gone.
 *
 *              kind    parent  its hash
 *     gone     K       P       H(P)
 *     next     -> K    -> P    -> H(P)        H(next) is another one now
 *     after    the same, over next, -> H(next)
 *
 * A member that has its new value already is left alone.  So all of this can be
 * done again after any part of it.
 */
#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "store/prune-priv.h"

/* --- What the merged files are --- */

static int hash_all(int fd, gnutls_hash_hd_t h)
{
    char buf[16 * KiB];

    for (;;) {
        ssize_t n = read(fd, buf, sizeof(buf));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : 0;
        }
        if (gnutls_hash(h, buf, (size_t)n) < 0) {
            return -ENOTSUP;
        }
    }
}

/* The hash of a .sums file, as text. */
static int hash_sums(struct store *s, const char *disk, const char *point,
                     char *text, struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;
    uint8_t hash[HASH_BYTES];
    gnutls_hash_hd_t h;
    int r = store_open_file(s, disk, point, "sums", &fd, NULL, errp);

    if (r < 0) {
        return r;
    }
    if (gnutls_hash_init(&h, GNUTLS_DIG_SHA256) < 0) {
        return error_set(errp, ENOTSUP, "cannot compute a SHA-256");
    }
    r = hash_all(fd, h);
    gnutls_hash_deinit(h, hash);
    hash_to_text(hash, text);
    return r < 0 ? error_set(errp, -r, "disk '%s': cannot read %s.sums: %s",
                             disk, point, strerror(-r))
                 : 0;
}

/* For blk_extents. */
static int count_extent(const struct extent *e, void *opaque)
{
    struct manifest_disk *d = opaque;
    bool data = (e->flags & EXTENT_DATA) && !(e->flags & EXTENT_ZERO);

    if (data) {
        d->written += e->length;
    } else if ((e->flags & EXTENT_ALLOCATED) || d->kind == DISK_FULL) {
        d->zero += e->length;
    }
    return 0;
}

/* Fill in `written` and `zero` by what the file has. */
static int count_file(struct store *s, const char *point,
                      struct manifest_disk *d, struct error **errp)
{
    struct graph *g = graph_new();
    struct node *n = NULL;
    struct blk *b = NULL;
    int r = g ? layer_open(s, g, d->name, point, false, &n, errp)
              : error_nomem(errp);

    r = r < 0 ? r : blk_new(g, n, PERM_READ, PERM_ALL, "prune", &b, errp);
    if (r == 0) {
        d->written = d->zero = 0;
        r = blk_extents(b, 0, blk_size(b), 0, count_extent, d);
        r = r < 0 ? error_set(errp, -r, "cannot look at disk '%s' of %s: %s",
                              d->name, point, strerror(-r))
                  : 0;
    }
    blk_free(b);
    graph_free(g);
    return r;
}

/* --- The next point, and those after it --- */

static enum disk_kind merged_kind(enum disk_kind gone, enum disk_kind next)
{
    return gone == DISK_INCREMENT ? next : gone;
}

static int update_next(struct store *s, const struct manifest_disk *gone,
                       const char *gone_name, const char *point,
                       struct manifest_disk *d, bool *changed,
                       struct error **errp)
{
    char hash[HASH_TEXT_MAX];
    int r = hash_sums(s, d->name, point, hash, errp);

    if (r == 0 && strcmp(d->parent, gone_name) == 0) {
        d->reason = gone->kind == DISK_INCREMENT ? d->reason : gone->reason;
        d->kind = merged_kind(gone->kind, d->kind);
        memcpy(d->parent, gone->parent, POINT_NAME_MAX);
        memcpy(d->parent_hash, gone->parent_hash, HASH_TEXT_MAX);
        d->read = min_u64(d->read + gone->read, INT64_MAX);
        d->milliseconds = min_u64(d->milliseconds + gone->milliseconds,
                                  INT64_MAX);
        r = count_file(s, point, d, errp);
        *changed = true;
    }
    if (r == 0 && strcmp(d->sums_hash, hash) != 0) {
        memcpy(d->sums_hash, hash, HASH_TEXT_MAX);
        *changed = true;
    }
    return r;
}

static int update_disk(struct store *s, const struct removal *rm, unsigned i,
                       const struct store_point *p, bool *changed,
                       struct error **errp)
{
    const struct manifest_disk *gone = &rm->gone->disks[i];
    struct manifest_disk *d = manifest_find(p->manifest, gone->name);
    const struct store_point *next = store_named(s, rm->next[i]);

    if (!d || !next) {
        return 0;
    }
    if (p == next) {
        return update_next(s, gone, rm->gone->name, p->name, d, changed, errp);
    }
    if (strcmp(d->parent, next->name) == 0) {
        const struct manifest_disk *below = manifest_find(next->manifest,
                                                          gone->name);
        if (below && strcmp(d->parent_hash, below->sums_hash) != 0) {
            memcpy(d->parent_hash, below->sums_hash, HASH_TEXT_MAX);
            *changed = true;
        }
    }
    return 0;
}

static int put_manifest(const struct store *s, const struct store_point *p,
                        struct error **errp)
{
    char file[POINT_NAME_MAX + sizeof(".json.pending")];
    CLEANUP_FREE char *text = NULL;
    int r = manifest_text(p->manifest, &text, errp);

    (void)snprintf(file, sizeof(file), "%s.json%s", p->name,
                   p == store_pending(s) ? ".pending" : "");
    return r < 0 ? r : dir_put(s->dir, file, text, strlen(text), errp);
}

static int update_point(struct store *s, const struct removal *rm,
                        const struct store_point *p, struct error **errp)
{
    bool changed = false;
    int r = 0;

    for (unsigned i = 0; r == 0 && p && p->manifest && i < rm->gone->count;
         i++) {
        r = rm->next[i][0] ? update_disk(s, rm, i, p, &changed, errp) : 0;
    }
    return r == 0 && changed ? put_manifest(s, p, errp) : r;
}

int manifests_update(struct store *s, const struct removal *rm,
                     struct error **errp)
{
    int r = 0;

    /* Oldest first: a next point comes before all that is over it. */
    for (unsigned i = 0; r == 0 && i < store_count(s); i++) {
        r = update_point(s, rm, store_point(s, i), errp);
    }
    return r < 0 ? r : update_point(s, rm, store_pending(s), errp);
}
