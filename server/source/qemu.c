/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disks of a running QEMU, by its monitor
 * =======================================
 *
 *   guest --> filter of the job --> the disk's node: old checkpoint's bitmap
 *                 | old bytes          ^             new checkpoint's bitmap
 *                 v                    |             map: what is dirty
 *             scratch image -----------+ (backing)
 *                 |
 *             export, with the map --> the copy
 *
 * The job (blockdev-backup, sync=none) puts into the scratch image what the
 * guest is about to overwrite; whatever is not there, the disk still has.
 *
 *   begin   scratch images, NBD server
 *           one transaction: all jobs first, which hold back all writes until
 *           the transaction ends; then maps, merged from the old checkpoint's
 *           bitmaps; then the new checkpoint's bitmaps
 *           exports
 *   end     all that goes (qemu-clean.c), not the new checkpoint's bitmaps
 *
 * What a killed run has left is gone on with (qemu-adopt.c), or goes.
 *
 * QEMU writes persistent bitmaps into its images when it ends in order.  After
 * a crash a checkpoint is inconsistent or not there, and says so.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "source/adopt.h"
#include "source/qemu-priv.h"
#include "source/source.h"
#include "source/talk.h"

/* --- Open: disks --- */

/* "/machine/peripheral/disk0/virtio-backend" is the device "disk0". */
static char *device_id(const char *qdev)
{
    static const char path[] = "/machine/peripheral/";

    if (!qdev || strncmp(qdev, path, strlen(path)) != 0) {
        return qdev && *qdev && !strchr(qdev, '/') ? strdup(qdev) : NULL;
    }
    qdev += strlen(path);
    return strndup(qdev, strcspn(qdev, "/"));
}

/* What users call the disk: what stays the same when QEMU starts again. */
static char *disk_name(const json_t *block)
{
    const char *device = qemu_text(block, "device");
    const char *node = qemu_text(json_object_get(block, "inserted"),
                                 "node-name");
    char *name = device && *device ? strdup(device)
                                   : device_id(qemu_text(block, "qdev"));

    return name ? name : node ? strdup(node) : NULL;
}

/* Bitmaps are stored by qcow2 of the newer version only. */
static bool keeps_bitmaps(const json_t *inserted)
{
    const json_t *specific = json_object_get(json_object_get(inserted, "image"),
                                             "format-specific");
    const char *driver = qemu_text(inserted, "drv");
    const char *compat = qemu_text(json_object_get(specific, "data"), "compat");

    return driver && strcmp(driver, "qcow2") == 0 && compat &&
           strcmp(compat, "0.10") != 0;
}

/* Filters that jobs put above a disk. */
static bool is_job_filter(const char *driver)
{
    return driver && (strcmp(driver, "copy-before-write") == 0 ||
                      strcmp(driver, "mirror_top") == 0 ||
                      strcmp(driver, "commit_top") == 0 ||
                      strcmp(driver, "copy-on-read") == 0);
}

static int add_disk(struct source *s, const json_t *block, struct error **errp)
{
    struct qemu_source *q = s->opaque;
    const json_t *inserted = json_object_get(block, "inserted");
    const char *node = qemu_text(inserted, "node-name");
    CLEANUP_FREE char *name = disk_name(block);
    json_int_t size = json_integer_value(
        json_object_get(json_object_get(inserted, "image"), "virtual-size"));

    if (!node || !name || size < 0 ||
        json_is_true(json_object_get(inserted, "ro")) || source_find(s, name)) {
        return 0; /* empty, or a CD */
    }
    struct qemu_disk *more = realloc(q->disks, (s->count + 1) * sizeof(*more));
    if (!more) {
        return error_nomem(errp);
    }
    q->disks = more;
    more[s->count] = (struct qemu_disk){
        .node = strdup(node),
        .bitmaps = keeps_bitmaps(inserted),
        .busy = is_job_filter(qemu_text(inserted, "drv")),
    };
    if (!more[s->count].node ||
        !source_add_disk(s, name, qemu_text(inserted, "file"),
                         (uint64_t)size)) {
        free(more[s->count].node);
        return error_nomem(errp);
    }
    return 0;
}

/* Where our own filter is above a disk, show the disk. */
static int look_below_filter(const struct source *s, json_t *block,
                             const json_t *nodes, struct error **errp)
{
    const json_t *inserted = json_object_get(block, "inserted");
    const char *filter = qemu_text(inserted, "node-name");
    const char *name = filter ? qemu_adopted_node(s, filter) : NULL;
    const json_t *node = name ? qemu_find_node(nodes, name) : NULL;

    return node && json_object_set(block, "inserted",
                                   (json_t *)(uintptr_t)node) < 0
               ? error_nomem(errp)
               : 0;
}

static int list_disks(struct source *s, struct error **errp)
{
    CLEANUP_JSON json_t *list = NULL;
    CLEANUP_JSON json_t *nodes = NULL;
    size_t i;
    json_t *block;
    int r = talk_ask(s->talk, "query-block", NULL, &list, errp);

    r = r < 0 || !s->adopted ? r : qemu_nodes(s, &nodes, errp);
    json_array_foreach (list, i, block) {
        r = r < 0 ? r : look_below_filter(s, block, nodes, errp);
        r = r < 0 ? r : add_disk(s, block, errp);
    }
    return r;
}

static int make_names(struct qemu_source *q, const struct source_options *o)
{
    q->id = strdup(o->id);
    q->nbd = o->nbd ? strdup(o->nbd) : NULL;
    q->scratch = strdup(o->scratch ? o->scratch : private_dir_for_files());
    if (asprintf(&q->prefix, "nbdelta-%s-", o->id) < 0) {
        q->prefix = NULL;
    }
    if (asprintf(&q->node_prefix, "nbdelta-%.*s-", QEMU_ID_SHORT, o->id) < 0) {
        q->node_prefix = NULL;
    }
    if (asprintf(&q->map, "nbdelta-%s-map", o->id) < 0) {
        q->map = NULL;
    }
    return q->id && q->scratch && q->prefix && q->node_prefix && q->map &&
                   (!o->nbd || q->nbd)
               ? 0
               : -ENOMEM;
}

/* What a killed run has left. */
static int take_away_left(struct source *s, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    int r = qemu_clean(s, errp);

    if (r == 0) {
        private_dir_sweep(private_dir_for_sockets(), q->id, q->owner);
        private_dir_sweep(q->scratch, q->id, q->owner);
    }
    return r;
}

static int open_qemu(struct source *s, const char *what,
                     const struct source_options *o, struct error **errp)
{
    struct qemu_source *q = calloc(1, sizeof(*q));

    s->opaque = q;
    if (!q || make_names(q, o) < 0) {
        return error_nomem(errp);
    }
    if (talk_peer(s->talk, &q->pid, &q->owner) < 0) {
        return error_set(errp, ENOTSUP,
                         "'%s' is QEMU's, not nbdelta's: its monitor has to be "
                         "a Unix socket, because scratch files are made here",
                         what);
    }
    if (o->quota > 0) {
        return error_set(errp, ENOTSUP,
                         "a quota for what guests overwrite is nothing that "
                         "QEMU knows");
    }
    int r = frozen_init(&q->frozen, o, errp);
    r = r == 0 && o->adopt && !o->adopt_done ? qemu_adopt(s, o->adopt, errp)
                                             : r;
    if (r == 0 && !s->adopted) {
        r = take_away_left(s, errp);
    }
    return r < 0 ? r : list_disks(s, errp);
}

/* --- Begin: scratch images --- */

static char *scratch_path(const struct qemu_source *q, unsigned i)
{
    char *path;

    return asprintf(&path, "%s/%u.qcow2", q->scratch_dir.path, i) < 0 ? NULL
                                                                      : path;
}

static int make_scratch_file(struct source *s, unsigned i, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_FREE char *path = scratch_path(q, i);
    CLEANUP_JSON json_t *options = json_pack("{s:I}", "size",
                                             (json_int_t)s->disks[i].size);

    if (!path || !options) {
        return error_nomem(errp);
    }
    int r = image_create(path, "qcow2", options, errp);
    if (r < 0) {
        return r;
    }
    return chmod(path, 0600) == 0 && (q->owner == geteuid() ||
                                      lchown(path, q->owner, (gid_t)-1) == 0)
               ? 0
               : error_set(errp, errno,
                           "'%s' cannot be given to user %lu, which QEMU runs "
                           "as: %s",
                           path, (unsigned long)q->owner, strerror(errno));
}

static int open_scratch(struct source *s, unsigned i, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_FREE char *path = scratch_path(q, i);
    char image[32];
    char file[32];

    if (!path) {
        return error_nomem(errp);
    }
    (void)snprintf(image, sizeof(image), "%ss%u", q->node_prefix, i);
    (void)snprintf(file, sizeof(file), "%sf%u", q->node_prefix, i);
    return talk_ask(s->talk, "blockdev-add",
                    json_pack("{s:s, s:s, s:s, s:{s:b}, s:{s:s, s:s, s:s}}",
                              "driver", "qcow2", "node-name", image, "backing",
                              q->disks[i].node, "cache", "no-flush", 1, "file",
                              "driver", "file", "node-name", file, "filename",
                              path),
                    NULL, errp);
}

/* As they are now: a scratch image has to be as large. */
static int refresh_sizes(struct source *s, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_JSON json_t *nodes = NULL;
    int r = qemu_nodes(s, &nodes, errp);

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        const json_t *node = qemu_find_node(nodes, q->disks[i].node);
        const json_t *size = json_object_get(json_object_get(node, "image"),
                                             "virtual-size");

        if (json_integer_value(size) > 0) {
            s->disks[i].size = (uint64_t)json_integer_value(size);
        }
    }
    return r;
}

/* Files are made before QEMU's user may change the directory. */
static int make_scratch(struct source *s, struct error **errp)
{
    struct qemu_source *q = s->opaque;
    int r = private_dir_make(&q->scratch_dir, q->scratch, q->id, errp);

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        r = s->disks[i].skip ? 0 : make_scratch_file(s, i, errp);
    }
    r = r < 0 ? r : private_dir_give(&q->scratch_dir, q->owner, errp);
    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        r = s->disks[i].skip ? 0 : open_scratch(s, i, errp);
    }
    return r;
}

/* --- Begin: the NBD server --- */

static char *own_socket(const struct qemu_source *q)
{
    char *path;

    return asprintf(&path, "%s/nbd.sock", q->socket_dir.path) < 0 ? NULL : path;
}

/* *address: where the server is that a killed run has used. */
static int find_server(const struct qemu_source *q, json_t **address,
                       struct error **errp)
{
    if (q->nbd) {
        return frozen_address(q->nbd, NULL, address, errp);
    }
    if (!q->own_server) {
        return qemu_find_server(q->pid, address, errp);
    }
    CLEANUP_FREE char *path = own_socket(q);
    *address = path ? json_pack("{s:{s:s, s:s}}", "server", "type", "unix",
                                "path", path)
                    : NULL;
    return *address ? 0 : error_nomem(errp);
}

/* *address: where it is.  QEMU has one, so one that runs is used. */
static int start_server(struct source *s, json_t **address, struct error **errp)
{
    struct qemu_source *q = s->opaque;

    if (q->nbd) {
        return frozen_address(q->nbd, NULL, address, errp);
    }
    int r = private_dir_make(&q->socket_dir, private_dir_for_sockets(), q->id,
                             errp);
    r = r < 0 ? r : private_dir_give(&q->socket_dir, q->owner, errp);
    if (r < 0) {
        return r;
    }
    CLEANUP_FREE char *path = own_socket(q);
    if (!path) {
        return error_nomem(errp);
    }
    q->own_server = true; /* perhaps, also when no answer comes */
    r = talk_ask(s->talk, "nbd-server-start",
                 json_pack("{s:{s:s, s:{s:s}}}", "addr", "type", "unix", "data",
                           "path", path),
                 NULL, errp);
    if (r == 0) {
        return find_server(q, address, errp);
    }
    q->own_server = r != -EREMOTEIO;
    return r == -EREMOTEIO && talk_refused(s->talk, NULL, "already running")
               ? qemu_find_server(q->pid, address, errp)
               : r;
}

/* --- Begin: the instant --- */

static int add_action(json_t *list, const char *type, json_t *data)
{
    return json_array_append_new(
        list, json_pack("{s:s, s:o}", "type", type, "data", data));
}

/* Of the job, and of the export; NULL: no memory. */
static char *make_id(const struct qemu_source *q, unsigned i)
{
    char *id;

    return asprintf(&id, "%s%s-%u", q->prefix, q->word, i) < 0 ? NULL : id;
}

static int add_job(const struct qemu_source *q, unsigned i, json_t *list)
{
    char target[32];
    char filter[32];
    CLEANUP_FREE char *id = make_id(q, i);

    (void)snprintf(target, sizeof(target), "%ss%u", q->node_prefix, i);
    (void)snprintf(filter, sizeof(filter), "%sb%u", q->node_prefix, i);
    return id ? add_action(list, "blockdev-backup",
                           json_pack("{s:s, s:s, s:s, s:s, s:s}", "device",
                                     q->disks[i].node, "target", target, "sync",
                                     "none", "job-id", id, "filter-node-name",
                                     filter))
              : -1;
}

/* NULL: what has changed since @since can be told.  Otherwise why not. */
static const char *find_changes(const struct qemu_disk *d, const json_t *node,
                                const char *since)
{
    const json_t *b = qemu_find_bitmap(node, since);

    return !d->bitmaps ? "no-bitmaps"
           : !b        ? "no-checkpoint"
           : json_is_true(json_object_get(b, "inconsistent"))
               ? "bitmap-inconsistent"
           : json_is_true(json_object_get(b, "busy"))       ? "bitmap-busy"
           : !json_is_true(json_object_get(b, "recording")) ? "bitmap-disabled"
                                                            : NULL;
}

static int add_map(const struct qemu_source *q, unsigned i, const char *since,
                   const json_t *bitmap, json_t *list)
{
    const char *node = q->disks[i].node;
    int r = add_action(list, "block-dirty-bitmap-add",
                       json_pack("{s:s, s:s, s:b, s:O}", "node", node, "name",
                                 q->map, "disabled", 1, "granularity",
                                 json_object_get(bitmap, "granularity")));

    return r < 0 ? r
                 : add_action(list, "block-dirty-bitmap-merge",
                              json_pack("{s:s, s:s, s:[s]}", "node", node,
                                        "target", q->map, "bitmaps", since));
}

static int add_bitmaps(struct source *s, unsigned i, const json_t *nodes,
                       json_t *list)
{
    struct qemu_source *q = s->opaque;
    struct qemu_disk *d = &q->disks[i];
    struct source_disk *disk = &s->disks[i];
    const json_t *node = qemu_find_node(nodes, d->node);
    int r = 0;

    disk->reason = disk->since ? find_changes(d, node, disk->since) : NULL;
    d->mapped = disk->since && !disk->reason;
    if (d->mapped) {
        r = add_map(q, i, disk->since, qemu_find_bitmap(node, disk->since),
                    list);
    }
    disk->checkpoint = q->checkpoint && d->bitmaps;
    if (r == 0 && disk->checkpoint) {
        r = add_action(list, "block-dirty-bitmap-add",
                       json_pack("{s:s, s:s, s:b}", "node", d->node, "name",
                                 q->checkpoint, "persistent", 1));
    } else if (q->checkpoint && !disk->reason) {
        disk->reason = "no-bitmaps";
    }
    return r;
}

static int check_disk(const struct source *s, unsigned i, const json_t *nodes,
                      struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    const json_t *node = qemu_find_node(nodes, q->disks[i].node);

    if (q->disks[i].busy) {
        return error_set(errp, EBUSY, "'%s' has a job at QEMU that works on it",
                         s->disks[i].name);
    }
    if (!node) {
        return error_set(errp, ENODEV, "QEMU has no disk '%s' any more",
                         s->disks[i].name);
    }
    return q->checkpoint && qemu_find_bitmap(node, q->checkpoint)
               ? error_set(errp, EEXIST, "'%s' has a checkpoint '%s' already",
                           s->disks[i].name, q->checkpoint)
               : 0;
}

static int take_instant(struct source *s, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_JSON json_t *nodes = NULL;
    json_t *list = json_array();
    int bad = list ? 0 : -1;
    int r = qemu_nodes(s, &nodes, errp);

    for (unsigned i = 0; r == 0 && bad == 0 && i < s->count; i++) {
        if (!s->disks[i].skip) {
            r = check_disk(s, i, nodes, errp);
            bad = add_job(q, i, list);
        }
    }
    for (unsigned i = 0; r == 0 && bad == 0 && i < s->count; i++) {
        bad = s->disks[i].skip ? 0 : add_bitmaps(s, i, nodes, list);
    }
    r = r < 0 || bad == 0 ? r : error_nomem(errp);
    if (r < 0 || (r = talk_check_stop(s->talk, errp)) < 0) {
        json_decref(list);
        return r;
    }
    for (unsigned i = 0; i < s->count; i++) {
        q->disks[i].fresh = s->disks[i].checkpoint;
    }
    r = talk_ask(s->talk, "transaction", json_pack("{s:o}", "actions", list),
                 NULL, errp);
    return r == -EREMOTEIO && talk_refused(s->talk, NULL, "is busy") ? -EBUSY
                                                                     : r;
}

/* --- Begin: exports --- */

static int export_disk(struct source *s, unsigned i, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_FREE char *id = make_id(q, i);
    char node[32];

    if (!id) {
        return error_nomem(errp);
    }
    (void)snprintf(node, sizeof(node), "%ss%u", q->node_prefix, i);
    json_t *args = json_pack("{s:s, s:s, s:s, s:s}", "type", "nbd", "id", id,
                             "node-name", node, "name", id);
    if (q->disks[i].mapped) {
        (void)json_object_set_new(args, "bitmaps", json_pack("[s]", q->map));
    }
    return talk_ask(s->talk, "block-export-add", args, NULL, errp);
}

static int fill_disk(struct source *s, unsigned i, const json_t *address,
                     struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_FREE char *id = make_id(q, i);
    CLEANUP_FREE char *context = NULL;

    if (!id || asprintf(&context, "qemu:dirty-bitmap:%s", q->map) < 0) {
        return error_nomem(errp);
    }
    return frozen_fill(&q->frozen, &s->disks[i], address, id,
                       q->disks[i].mapped ? context : NULL, errp);
}

static int fill_disks(struct source *s, const json_t *address,
                      struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        r = s->disks[i].skip ? 0 : fill_disk(s, i, address, errp);
    }
    return r;
}

/* --- Begin and end --- */

/* Remove the new checkpoint from the disks that have got it. */
static int remove_fresh(struct source *s, struct error **errp)
{
    struct qemu_source *q = s->opaque;
    bool any = false;

    for (unsigned i = 0; i < s->count; i++) {
        any |= q->disks[i].fresh;
        q->disks[i].fresh = false;
    }
    return any && q->checkpoint ? qemu_remove_bitmap(s, q->checkpoint, errp)
                                : 0;
}

static void forget_begun(struct qemu_source *q)
{
    free(q->checkpoint);
    json_decref(q->identity);
    q->checkpoint = NULL;
    q->identity = NULL;
}

static int freeze_disks(struct source *s, struct error **errp)
{
    struct qemu_source *q = s->opaque;
    CLEANUP_JSON json_t *address = NULL;
    int r = adopt_make_word(q->word, errp);

    r = r < 0 ? r : refresh_sizes(s, errp);
    r = r < 0 ? r : make_scratch(s, errp);
    r = r < 0 ? r : start_server(s, &address, errp);
    r = r < 0 ? r : take_instant(s, errp);
    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        r = s->disks[i].skip ? 0 : export_disk(s, i, errp);
    }
    r = r < 0 ? r : fill_disks(s, address, errp);
    r = r < 0 ? r : qemu_make_identity(s, errp);
    return r < 0 ? r : talk_check_stop(s->talk, errp);
}

static int adopt_disks(struct source *s, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_JSON json_t *address = NULL;
    int r = qemu_begin_adopted(s, errp);

    r = r < 0 ? r : find_server(q, &address, errp);
    return r < 0 ? r : fill_disks(s, address, errp);
}

static int begin_qemu(struct source *s, const char *checkpoint,
                      struct error **errp)
{
    struct qemu_source *q = s->opaque;
    talk_resume(s->talk);
    int r = talk_check_stop(s->talk, errp);

    if (r < 0) {
        return r;
    }
    for (unsigned i = 0; i < s->count; i++) {
        q->disks[i].fresh = false; /* of an earlier backup */
    }
    q->checkpoint = checkpoint ? strdup(checkpoint) : NULL;
    if (checkpoint && !q->checkpoint) {
        return error_nomem(errp);
    }
    r = s->adopted ? adopt_disks(s, errp) : freeze_disks(s, errp);
    if (r < 0) {
        talk_undo(s->talk);
        if (s->adopted) {
            qemu_drop_adopted(s);
        } else {
            (void)qemu_clean(s, NULL);
            (void)remove_fresh(s, NULL);
        }
        forget_begun(q);
    }
    return r;
}

static int end_qemu(struct source *s, bool keep, struct error **errp)
{
    struct qemu_source *q = s->opaque;

    talk_undo(s->talk);
    int r = keep ? qemu_check_frozen(s, errp) : 0;
    if (r < 0) { /* source_end() comes once more */
        return r;
    }
    r = qemu_clean(s, errp);
    if (!keep) {
        int gone = remove_fresh(s, r < 0 ? NULL : errp);
        r = r < 0 ? r : gone;
    }
    if (r == 0 || !keep) {
        forget_begun(q);
    }
    return r;
}

/* The job is not there if QEMU is another one, or somebody has ended it. */
static int renew_qemu(struct source *s, struct error **errp)
{
    return qemu_check_frozen(s, errp);
}

/* --- Checkpoints --- */

static int each_qemu_checkpoint(struct source *s, source_checkpoint_fn *fn,
                                void *opaque, struct error **errp)
{
    const struct qemu_source *q = s->opaque;
    CLEANUP_JSON json_t *nodes = NULL;
    int r = qemu_nodes(s, &nodes, errp);

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        const json_t *node = qemu_find_node(nodes, q->disks[i].node);
        size_t k;
        json_t *b;

        json_array_foreach (json_object_get(node, "dirty-bitmaps"), k, b) {
            const char *name = qemu_text(b, "name");
            bool bad = json_is_true(json_object_get(b, "inconsistent"));

            if (r == 0 && name && strcmp(name, q->map) != 0 &&
                !qemu_is_adopted_checkpoint(s, name) &&
                json_is_true(json_object_get(b, "persistent"))) {
                r = fn(name, &s->disks[i], bad ? "bitmap-inconsistent" : NULL,
                       opaque);
            }
        }
    }
    return r;
}

static json_t *identity_of_instant(struct source *s)
{
    const struct qemu_source *q = s->opaque;

    return json_incref(q->identity);
}

static void close_qemu(struct source *s)
{
    struct qemu_source *q = s->opaque;

    if (!q) {
        return;
    }
    if (s->adopted) { /* and begin did not come */
        talk_undo(s->talk);
        qemu_drop_adopted(s);
    }
    for (unsigned i = 0; q->disks && i < s->count; i++) {
        free(q->disks[i].node);
    }
    frozen_free(&q->frozen);
    private_dir_remove(&q->socket_dir);
    private_dir_remove(&q->scratch_dir);
    forget_begun(q);
    free(q->disks);
    free(q->id);
    free(q->prefix);
    free(q->node_prefix);
    free(q->map);
    free(q->scratch);
    free(q->nbd);
    free(q);
}

const struct source_ops source_qemu = {
    .name = "qemu",
    .open = open_qemu,
    .begin = begin_qemu,
    .renew = renew_qemu,
    .end = end_qemu,
    .each_checkpoint = each_qemu_checkpoint,
    .forget = qemu_remove_bitmap,
    .identity = identity_of_instant,
    .close = close_qemu,
};
