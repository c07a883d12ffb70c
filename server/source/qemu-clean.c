/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Taking away what was made in QEMU, by its names.
 *
 *   exports -> the server, if it is ours -> jobs -> scratch images -> their
 *   files -> the bitmaps of what is dirty
 *
 * That is also how the next run finds what a killed one has left.  QEMU removes
 * exports and jobs some time after it has replied.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "source/qemu-priv.h"
#include "source/source.h"
#include "source/talk.h"

#define POLL_MS  20
#define POLL_MAX (15000 / POLL_MS)

int qemu_nodes(struct source *s, json_t **list, struct error **errp)
{
    return talk_ask(s->talk, "query-named-block-nodes",
                    json_pack("{s:b}", "flat", 1), list, errp);
}

const json_t *qemu_find_node(const json_t *nodes, const char *name)
{
    size_t i;
    json_t *node;

    json_array_foreach (nodes, i, node) {
        const char *is = qemu_text(node, "node-name");
        if (is && strcmp(is, name) == 0) {
            return node;
        }
    }
    return NULL;
}

const json_t *qemu_find_bitmap(const json_t *node, const char *name)
{
    size_t i;
    json_t *bitmap;

    json_array_foreach (json_object_get(node, "dirty-bitmaps"), i, bitmap) {
        const char *is = qemu_text(bitmap, "name");
        if (is && strcmp(is, name) == 0) {
            return bitmap;
        }
    }
    return NULL;
}

static bool begins(const char *text, const char *prefix)
{
    return text && strncmp(text, prefix, strlen(prefix)) == 0;
}

static void nap(void)
{
    const struct timespec t = {.tv_nsec = POLL_MS * 1000000L};

    (void)nanosleep(&t, NULL);
}

/* --- Exports and jobs: each is told to go until it is not there. --- */

struct kind {
    const char *query;
    int (*end)(struct source *s, const json_t *entry, struct error **errp);
};

static int end_export(struct source *s, const json_t *entry,
                      struct error **errp)
{
    if (json_is_true(json_object_get(entry, "shutting-down"))) {
        return 0;
    }
    return talk_ask(
        s->talk, "block-export-del",
        json_pack("{s:s, s:s}", "id", qemu_text(entry, "id"), "mode", "hard"),
        NULL, errp);
}

static int end_job(struct source *s, const json_t *entry, struct error **errp)
{
    const char *id = qemu_text(entry, "id");
    const char *status = qemu_text(entry, "status");
    bool over = status && strcmp(status, "concluded") == 0;

    return over ? talk_ask(s->talk, "job-dismiss", json_pack("{s:s}", "id", id),
                           NULL, errp)
                : talk_ask(s->talk, "block-job-cancel",
                           json_pack("{s:s, s:b}", "device", id, "force", 1),
                           NULL, errp);
}

/* One round; the number of things that are still there, or an error.  QEMU's
 * refusals do not count: perhaps it has gone meanwhile. */
static int end_round(struct source *s, const struct kind *k,
                     struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_JSON json_t *list = NULL;
    int left = 0;
    size_t i;
    json_t *entry;
    int r = talk_ask(s->talk, k->query, NULL, &list, errp);

    json_array_foreach (list, i, entry) {
        if (r >= 0 && begins(qemu_text(entry, "id"), q->prefix)) {
            r = k->end(s, entry, NULL);
            r = r == -EREMOTEIO ? 0 : r;
            left++;
        }
    }
    return r < 0
               ? error_set(errp, -r, "cannot tidy up at QEMU: %s", strerror(-r))
               : left;
}

static int end_all(struct source *s, const struct kind *k, struct error **errp)
{
    for (int i = 0; i < POLL_MAX; i++) {
        int left = end_round(s, k, errp);

        if (left <= 0) {
            return left;
        }
        nap();
    }
    return error_set(errp, ETIMEDOUT,
                     "QEMU does not let go of what the backup has made (%s)",
                     k->query);
}

/* --- Nodes --- */

/* Delete nodes whose names begin with @prefix; the number of nodes that stay,
 * or an error. */
static int delete_round(struct source *s, const char *prefix,
                        struct error **errp)
{
    CLEANUP_JSON json_t *nodes = NULL;
    int left = 0;
    size_t i;
    json_t *node;
    int r = qemu_nodes(s, &nodes, errp);

    json_array_foreach (nodes, i, node) {
        const char *name = qemu_text(node, "node-name");
        if (r < 0 || !begins(name, prefix)) {
            continue;
        }
        r = talk_ask(s->talk, "blockdev-del",
                     json_pack("{s:s}", "node-name", name), NULL, errp);
        left += r == -EREMOTEIO;
        r = r == -EREMOTEIO ? 0 : r;
    }
    return r < 0 ? r : left;
}

/* A scratch image takes its file with it; one whose opening has failed may have
 * left it. */
static int delete_nodes(struct source *s, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_ERROR struct error *why = NULL;
    CLEANUP_FREE char *images = NULL;

    if (asprintf(&images, "%ss", q->node_prefix) < 0) {
        images = NULL;
        return error_nomem(errp);
    }
    for (int i = 0; i < POLL_MAX; i++) {
        int r = delete_round(s, images, &why);

        r = r == 0 ? delete_round(s, q->node_prefix, &why) : r;
        if (r == 0) {
            return 0;
        }
        if (r < 0) {
            return error_set(errp, -r, "%s", error_message(why));
        }
        nap();
    }
    return error_set(errp, EBUSY, "%s", error_message(why));
}

/* --- The server and bitmaps --- */

static int stop_server(struct source *s, struct error **errp)
{
    struct qemu_source *q = s->opaque;

    if (!q->own_server && !qemu_has_own_server(q->pid, q->id)) {
        return 0;
    }
    int r = talk_ask(s->talk, "nbd-server-stop", NULL, NULL, errp);
    if (r == 0 || r == -EREMOTEIO) { /* it does not run */
        q->own_server = false;
        return 0;
    }
    return r;
}

int qemu_remove_bitmap(struct source *s, const char *name, struct error **errp)
{
    CLEANUP_JSON json_t *nodes = NULL;
    size_t i;
    json_t *node;
    int r = qemu_nodes(s, &nodes, errp);

    json_array_foreach (nodes, i, node) {
        const char *at = qemu_text(node, "node-name");
        if (r == 0 && at && qemu_find_bitmap(node, name)) {
            r = talk_ask(s->talk, "block-dirty-bitmap-remove",
                         json_pack("{s:s, s:s}", "node", at, "name", name),
                         NULL, errp);
        }
    }
    return r;
}

int qemu_clean(struct source *s, struct error **errp)
{
    static const struct kind exports = {"query-block-exports", end_export};
    static const struct kind jobs = {"query-jobs", end_job};
    struct qemu_source *q = s->opaque;
    int first = end_all(s, &exports, errp);
    int r = stop_server(s, first < 0 ? NULL : errp);

    first = first < 0 ? first : r;
    r = end_all(s, &jobs, first < 0 ? NULL : errp);
    first = first < 0 ? first : r;
    r = delete_nodes(s, first < 0 ? NULL : errp);
    first = first < 0 ? first : r;
    r = qemu_remove_bitmap(s, q->map, first < 0 ? NULL : errp);
    first = first < 0 ? first : r;
    private_dir_remove(&q->socket_dir);
    private_dir_remove(&q->scratch_dir);
    return first;
}

bool qemu_is_at_work(const json_t *job)
{
    const char *status = qemu_text(job, "status");

    return status &&
           (strcmp(status, "running") == 0 || strcmp(status, "paused") == 0);
}

int qemu_check_frozen(struct source *s, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_JSON json_t *jobs = NULL;
    unsigned wanted = 0;
    size_t i;
    json_t *job;
    int r = talk_ask(s->talk, "query-jobs", NULL, &jobs, errp);

    if (r < 0) {
        return r;
    }
    for (unsigned k = 0; k < s->count; k++) {
        wanted += !s->disks[k].skip;
    }
    json_array_foreach (jobs, i, job) {
        wanted -= begins(qemu_text(job, "id"), q->prefix) &&
                  qemu_is_at_work(job);
    }
    return wanted == 0 ? 0
                       : error_set(errp, EIO,
                                   "a disk was frozen no more: its job at QEMU "
                                   "has ended, or QEMU is another one");
}
