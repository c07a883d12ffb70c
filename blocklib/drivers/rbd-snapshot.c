/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Snapshots of images of Ceph (nbdelta/storage-snapshot.h).
 *
 * librbd lets no write pass while it makes a snapshot, and what it needs a
 * monitor for comes in the middle of that.  So `ready` asks first whether there
 * is one: guests would wait until there was.
 *
 * A group snapshot of Ceph would be no better than one of each image in one
 * drained section: it takes the exclusive lock of each image and then makes one
 * after the other.  An image can be in one group only, and no diff can begin at
 * a snapshot of a group before Ceph 19.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/rbd.h"
#include "nbdelta/error.h"
#include "nbdelta/tell.h"

int rbd_error(struct node *n, int r, const char *what, const char *name,
              struct error **errp)
{
    const char *why = strerror(-r);

    if (r == -ESHUTDOWN) {
        why = "the cluster has put this connection on its blocklist";
        r = rbd_result(n, r); /* as requests fail */
    } else if (r == -ETIMEDOUT) {
        why = "the cluster, or the client that has the image's exclusive "
              "lock, does not answer";
    } else if (r == -EBUSY) {
        why = "it is protected, or has clones";
    }
    return error_set(errp, -r, "cannot %s%s%s%s of '%.400s': %s", what,
                     name ? " '" : "", name ? name : "", name ? "'" : "",
                     node_filename(n), why);
}

/* Run @c and free it; its errors in words. */
static int run(struct node *n, struct rbd_call *c, const char *what,
               const char *name, struct error **errp)
{
    int r = c ? rbd_call_run(c, RBD_CALL_S) : -ENOMEM;

    rbd_call_free(c);
    return r < 0 ? rbd_error(n, r, what, name, errp) : r;
}

static bool rbd_possible(const struct node *n)
{
    const struct rbd *s = n->state;

    return !s->m->read_only(s->image) && s->luks == CEPH_PLAIN;
}

static int do_ready(struct rbd_call *c)
{
    return c->m->ready(c->image);
}

static int rbd_ready(struct node *n, struct error **errp)
{
    return run(n, rbd_call_new(n, do_ready, NULL, NULL), "make a snapshot",
               NULL, errp);
}

/* --- Taking --- */

static int do_create(struct rbd_call *c)
{
    return c->m->snapshot_create(c->image, c->name);
}

static int do_remove(struct rbd_call *c)
{
    return c->m->snapshot_remove(c->image, c->name);
}

static void remove_late(struct rbd_call *c)
{
    int r = do_remove(c);

    tell_event(r < 0 ? TELL_ERROR : TELL_INFO,
               "a snapshot came too late and was%s removed: '%.200s'%s%s",
               r < 0 ? " not" : "", c->name, r < 0 ? ": " : "",
               r < 0 ? strerror(-r) : "");
}

struct taking {
    const struct storage_ref *refs;
    unsigned count;
    struct rbd_call **calls;
};

static int begin_all(struct taking *t, unsigned *failed)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < t->count; i++) {
        struct rbd_call *c = rbd_call_new(t->refs[i].node, do_create,
                                          t->refs[i].name, NULL);

        *failed = i;
        if (!c) {
            return -ENOMEM;
        }
        c->late = remove_late;
        r = rbd_call_begin(c);
        if (r < 0) {
            rbd_call_free(c);
        } else {
            t->calls[i] = c;
        }
    }
    return r;
}

/* The error of the first that has failed.  They take the same time. */
static int wait_for_all(struct taking *t, int r, unsigned *failed)
{
    uint64_t until = now_ns() + RBD_CALL_S * UINT64_C(1000000000);

    for (unsigned i = 0; i < t->count; i++) {
        int one = t->calls[i] ? rbd_call_wait(t->calls[i], until) : 0;

        if (one < 0) {
            rbd_call_free(t->calls[i]);
            t->calls[i] = NULL;
        }
        if (one < 0 && r == 0) {
            *failed = i;
            r = one;
        }
    }
    return r;
}

/* What there is goes again, all side by side. */
static void remove_all(struct taking *t)
{
    for (unsigned i = 0; i < t->count; i++) {
        struct rbd_call *c = t->calls[i]
                                 ? rbd_call_new(t->refs[i].node, do_remove,
                                                t->refs[i].name, NULL)
                                 : NULL;

        if (c) {
            if (rbd_call_begin(c) == 0) {
                (void)rbd_call_wait(c, 0); /* nobody waits for it */
            }
            rbd_call_free(c);
        }
    }
}

static int rbd_take(const struct storage_ref *refs, unsigned count,
                    struct error **errp)
{
    struct taking t = {refs, count, calloc(count, sizeof(struct rbd_call *))};
    unsigned failed = 0;

    if (!t.calls) {
        return error_nomem(errp);
    }
    int r = begin_all(&t, &failed);
    r = wait_for_all(&t, r, &failed);
    if (r < 0) {
        remove_all(&t);
        r = rbd_error(refs[failed].node, r, "make the snapshot",
                      refs[failed].name, errp);
    }
    for (unsigned i = 0; i < count; i++) {
        rbd_call_free(t.calls[i]);
    }
    free(t.calls);
    return r;
}

/* --- The rest --- */

static int rbd_remove(struct node *n, const char *name, struct error **errp)
{
    return run(n, rbd_call_new(n, do_remove, name, NULL), "remove the snapshot",
               name, errp);
}

static int do_rename(struct rbd_call *c)
{
    return c->m->snapshot_rename(c->image, c->name, c->to);
}

static int rbd_rename(struct node *n, const char *from, const char *to,
                      struct error **errp)
{
    return run(n, rbd_call_new(n, do_rename, from, to), "rename the snapshot",
               from, errp);
}

static int do_list(struct rbd_call *c)
{
    return c->m->snapshots(c->image, &c->list, &c->list_count);
}

static int take_list(const struct rbd_call *c, struct storage_snapshots *list)
{
    list->at = calloc(c->list_count + 1, sizeof(*list->at));
    for (size_t i = 0; list->at && i < c->list_count; i++) {
        const struct ceph_snapshot *s = &c->list[i];

        list->at[i] = (struct storage_snapshot){s->id, s->size,
                                                strdup(s->name)};
        if (!list->at[i].name) {
            return -ENOMEM;
        }
        list->count++;
    }
    return list->at ? 0 : -ENOMEM;
}

static int rbd_list(struct node *n, struct storage_snapshots *list,
                    struct error **errp)
{
    struct rbd_call *c = rbd_call_new(n, do_list, NULL, NULL);
    int r = c ? rbd_call_run(c, RBD_CALL_S) : -ENOMEM;

    r = r < 0 ? r : take_list(c, list);
    rbd_call_free(c);
    return r < 0 ? rbd_error(n, r, "list the snapshots", NULL, errp) : 0;
}

static bool rbd_settled(const struct node *n)
{
    const struct rbd *s = n->state;

    return !rbd_late_any(s->late);
}

static uint64_t rbd_client(const struct node *n)
{
    const struct rbd *s = n->state;

    return s->m->client(s->image);
}

static int do_has_client(struct rbd_call *c)
{
    return c->m->has_client(c->image, c->client);
}

static int rbd_has_client(struct node *n, uint64_t client, struct error **errp)
{
    struct rbd_call *c = rbd_call_new(n, do_has_client, NULL, NULL);

    if (c) {
        c->client = client;
    }
    return run(n, c, "list the clients", NULL, errp);
}

static int rbd_show(json_t *options, const char *name)
{
    return json_object_set_new(options, "snapshot", json_string(name));
}

const struct driver_storage rbd_storage = {
    .possible = rbd_possible,
    .ready = rbd_ready,
    .take = rbd_take,
    .remove = rbd_remove,
    .rename = rbd_rename,
    .list = rbd_list,
    .settled = rbd_settled,
    .diff = rbd_diff,
    .client = rbd_client,
    .has_client = rbd_has_client,
    .show = rbd_show,
};
