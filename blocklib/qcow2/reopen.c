/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing flags and options of an open image; its tree is drained. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/opts.h"
#include "nbdelta/error.h"
#include "qcow2/bitmaps.h"

/* What a reopen wants.  Once it is done and can still be taken back, this is
 * what the image had before. */
struct qcow2_wanted {
    uint64_t l2_bytes;
    uint64_t refcount_bytes;
    unsigned overlap;       /* kinds that are looked at: overlap.h */
    bool keep;              /* discard-no-unref */
    struct qcow2_cache *l2; /* the other caches; NULL: they stay */
    struct qcow2_cache *refblocks;
    bool swapped; /* these are the old ones */
};

const char *const qcow2_reopen_options[] = {
    "cache-size",          "l2-cache-size",
    "refcount-cache-size", "lazy-refcounts",
    "overlap-check",       "pass-discard-request",
    "pass-discard-other",  "pass-discard-snapshot",
    "discard-no-unref",    NULL,
};

int qcow2_reopen_take(struct node *n, struct opts *opts, struct error **errp)
{
    struct qcow2 *s = n->state;
    struct qcow2_wanted *w = s->wanted;

    if (!w) {
        w = calloc(1, sizeof(*w));
    }
    if (!w) {
        return error_nomem(errp);
    }
    s->wanted = w;
    w->keep = false;
    int r = qcow2_take_options(opts, &w->l2_bytes, &w->refcount_bytes,
                               &w->overlap, &w->keep, errp);
    return r < 0 ? r : qcow2_check_keep(s, w->keep, errp);
}

/* Write all metadata to the file. */
static int write_back(struct qcow2 *s, struct error **errp)
{
    int r = qcow2_bitmaps_settle(s);

    if (r == 0) {
        r = qcow2_flush(s->node);
    }
    if (r == 0) {
        r = qcow2_flush(s->node); /* the first one has released clusters */
    }
    return r < 0 ? error_set(errp, -r, "cannot flush '%s': %s",
                             node_filename(s->node), strerror(-r))
                 : 0;
}

/* Leave the file as a close does. */
static int put_away(struct qcow2 *s, struct error **errp)
{
    qcow2_tightener_stop(s); /* the next write starts it again */
    int r = qcow2_bitmaps_settle(s);
    if (r < 0) {
        return error_set(errp, -r, "cannot store the bitmaps of '%s': %s",
                         node_filename(s->node), strerror(-r));
    }
    r = write_back(s, errp);
    if (r == 0) {
        qcow2_round_up_file(s);
    }
    return r;
}

static int begin_writing(struct qcow2 *s, struct error **errp)
{
    struct qcow2_header h;
    int r = qcow2_header_read(s->file, &h, errp);

    if (r == 0 && s->shows_snapshot) {
        qcow2_header_release(&h);
        r = error_set(errp, EACCES, "a snapshot can only be opened read-only");
    } else if (r == 0) {
        r = qcow2_check_writable(&h, errp);
        if (r == 0) {
            r = qcow2_snapshots_check(&h, &s->snapshots, errp);
        }
        if (r == 0 && qcow2_overlap_load(s) < 0) {
            r = error_nomem(errp);
        }
        if (r == 0) {
            r = qcow2_clear_autoclear(s, &h, errp);
        }
        qcow2_header_release(&h);
    }
    if (r < 0) {
        error_prefix(errp, "Could not open '%s': ", node_filename(s->file));
    }
    return r;
}

static void swap_caches(struct qcow2 *s, struct qcow2_wanted *w)
{
    struct qcow2_wanted had = {
        .l2_bytes = s->l2_bytes,
        .refcount_bytes = s->refcount_bytes,
        .overlap = w->overlap,
        .keep = w->keep,
        .l2 = s->l2,
        .refblocks = s->refblocks,
        .swapped = !w->swapped,
    };

    s->l2_bytes = w->l2_bytes;
    s->refcount_bytes = w->refcount_bytes;
    s->l2 = w->l2;
    s->refblocks = w->refblocks;
    *w = had;
}

/* Make new, empty caches; what the old ones had is in the file. */
static int change_caches(struct qcow2 *s, struct qcow2_wanted *w,
                         struct error **errp)
{
    if (w->l2_bytes == s->l2_bytes && w->refcount_bytes == s->refcount_bytes) {
        return 0;
    }
    int r = s->node->flags.read_only ? 0 : write_back(s, errp);
    if (r == 0) {
        swap_caches(s, w);
        r = qcow2_make_caches(s, s->l2_bytes, s->refcount_bytes, errp);
        if (r < 0) {
            swap_caches(s, w);
        }
    }
    return r;
}

static void forget_wanted(struct qcow2 *s)
{
    if (s->wanted) {
        qcow2_cache_free(s->wanted->l2);
        qcow2_cache_free(s->wanted->refblocks);
        free(s->wanted);
        s->wanted = NULL;
    }
}

int qcow2_reopen(struct node *n, const struct node_flags *to,
                 struct error **errp)
{
    struct qcow2 *s = n->state;
    int r = n->flags.inactive && !to->inactive && !s->shows_snapshot
                ? qcow2_wake(n, !to->read_only, errp)
                : 0;

    s = n->state;
    if (r == 0 && to->read_only && !n->flags.read_only) {
        r = put_away(s, errp);
    } else if (r == 0 && !to->read_only && n->flags.read_only) {
        r = begin_writing(s, errp);
    }
    if (r == 0 && to->inactive && !n->flags.inactive) {
        r = qcow2_check_rest(s, errp);
    }
    if (r == 0 && s->wanted) {
        r = change_caches(s, s->wanted, errp);
    }
    return r;
}

void qcow2_reopen_commit(struct node *n)
{
    struct qcow2 *s = n->state;

    if (s->wanted) {
        atomic_store(&s->overlap_checked, s->wanted->overlap);
        atomic_store(&s->keep_clusters, s->wanted->keep);
    }
    forget_wanted(s);
    qcow2_wake_commit(n);
    if (n->flags.inactive) {
        qcow2_bitmaps_leave(s);
    }
}

void qcow2_reopen_abort(struct node *n)
{
    struct qcow2 *s = n->state;

    if (s->wanted && s->wanted->swapped) {
        swap_caches(s, s->wanted);
    }
    forget_wanted(s);
    qcow2_wake_abort(n);
}

void qcow2_file_changed(struct node *n)
{
    struct qcow2 *s = n->state;

    s->file = node_child(n, CHILD_FILE);
    s->data = s->external ? node_child(n, CHILD_DATA) : s->file;
    qcow2_files_changed(s);
    s->file_grows_zero = s->file->limits.grows_zero;
    qcow2_cache_set_file(s->l2, s->file);
    qcow2_cache_set_file(s->refblocks, s->file);
}
