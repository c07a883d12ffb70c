/* SPDX-License-Identifier: BSD-3-Clause */
/* Changes of dirty bitmaps, alone or in a transaction; and bitmaps that come
 * from another host. */
#include <errno.h>
#include <gnutls/crypto.h>
#include <stdio.h>
#include <stdlib.h>

#include "commands/table.h"
#include "daemon.h"
#include "disk.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/fetch.h"
#include "nbdelta/graph.h"

#define SHA256_BYTES 32

static const struct qmp_arg bitmap_args[] = {
    QMP_ARG("node", STR),
    QMP_ARG("name", STR),
    QMP_LAST,
};

static const struct qmp_arg add_args[] = {
    QMP_ARG("node", STR),           QMP_ARG("name", STR),
    QMP_OPT("granularity", UINT32), QMP_OPT("persistent", BOOL),
    QMP_OPT("disabled", BOOL),      QMP_LAST,
};

static const struct qmp_arg merge_args[] = {
    QMP_ARG("node", STR),
    QMP_ARG("target", STR),
    QMP_ARG("bitmaps", STR_OR_OBJECT_ARRAY, .members = bitmap_args,
            .type_name = "BlockDirtyBitmapOrStr"),
    QMP_LAST,
};

static int make_bitmap(struct qmp_call *call, struct job_txn *txn,
                       struct action **ap, struct error **errp)
{
    const char *name = qmp_str(call, "name");
    uint64_t granularity = (uint64_t)qmp_int(call, "granularity", 0);
    struct node *n;

    (void)txn;
    if (name[0] == '\0') {
        return error_set(errp, EINVAL, "Bitmap name cannot be empty");
    }
    n = disk_find_node(call->daemon, qmp_str(call, "node"), errp);
    if (!n) {
        return -ENODEV;
    }
    if (qmp_has(call, "granularity") &&
        (granularity < 512 || !is_pow2(granularity))) {
        return error_set(errp, EINVAL,
                         "Granularity must be power of 2 and at least 512");
    }
    return bitmap_add_action((struct bitmap_ref){n, name}, granularity,
                             qmp_bool(call, "persistent", false),
                             qmp_bool(call, "disabled", false), ap, errp);
}

/* A node that is missing is "not found" here, unlike elsewhere.  A disk that
 * has gone on in a snapshot has left its bitmaps to the node of its name. */
static int find_bitmap(struct qmp_call *call, const char *node,
                       const char *name, struct bitmap_ref *ref,
                       struct error **errp)
{
    struct node *n = disk_find_node(call->daemon, node, NULL);

    if (!n) {
        return error_set(errp, ENODEV, "Node '%.200s' not found", node);
    }
    struct node *named = graph_find(call->daemon->graph, node);
    bool left = named && named != n && !disk_has_bitmap(n, name) &&
                disk_has_bitmap(named, name);
    *ref = (struct bitmap_ref){left ? named : n, name};
    return 0;
}

static int find_argument(struct qmp_call *call, const char *key,
                         struct bitmap_ref *ref, struct error **errp)
{
    return find_bitmap(call, qmp_str(call, "node"), qmp_str(call, key), ref,
                       errp);
}

static int remove_bitmap(struct qmp_call *call, struct job_txn *txn,
                         struct action **ap, struct error **errp)
{
    struct bitmap_ref ref;
    int r = find_argument(call, "name", &ref, errp);

    (void)txn;
    return r < 0 ? r : bitmap_remove_action(ref, ap, errp);
}

static int clear_bitmap(struct qmp_call *call, struct job_txn *txn,
                        struct action **ap, struct error **errp)
{
    struct bitmap_ref ref;
    int r = find_argument(call, "name", &ref, errp);

    (void)txn;
    return r < 0 ? r : bitmap_clear_action(ref, ap, errp);
}

static int enable_bitmap(struct qmp_call *call, struct job_txn *txn,
                         struct action **ap, struct error **errp)
{
    struct bitmap_ref ref;
    int r = find_argument(call, "name", &ref, errp);

    (void)txn;
    return r < 0 ? r : bitmap_enable_action(ref, true, ap, errp);
}

static int disable_bitmap(struct qmp_call *call, struct job_txn *txn,
                          struct action **ap, struct error **errp)
{
    struct bitmap_ref ref;
    int r = find_argument(call, "name", &ref, errp);

    (void)txn;
    return r < 0 ? r : bitmap_enable_action(ref, false, ap, errp);
}

static int find_sources(struct qmp_call *call, const json_t *list,
                        struct bitmap_ref *refs, struct error **errp)
{
    size_t i;
    json_t *item;
    int r = 0;

    json_array_foreach (list, i, item) {
        const char *node = qmp_str(call, "node");
        const char *name = json_string_value(item);

        if (!name) {
            node = json_string_value(json_object_get(item, "node"));
            name = json_string_value(json_object_get(item, "name"));
        }
        r = find_bitmap(call, node, name, &refs[i], errp);
        if (r < 0) {
            break;
        }
    }
    return r;
}

static int merge_bitmaps(struct qmp_call *call, struct job_txn *txn,
                         struct action **ap, struct error **errp)
{
    const json_t *list = json_object_get(call->args, "bitmaps");
    size_t count = json_array_size(list);
    struct bitmap_ref target;
    int r = find_argument(call, "target", &target, errp);

    (void)txn;
    if (r < 0) {
        return r;
    }
    CLEANUP_FREE struct bitmap_ref *refs = calloc(count + 1, sizeof(*refs));
    if (!refs) {
        return error_nomem(errp);
    }
    r = find_sources(call, list, refs, errp);
    return r < 0 ? r : bitmap_merge_action(target, refs, count, ap, errp);
}

/* --- From another host --- */

static const struct qmp_arg fetch_args[] = {
    QMP_ARG("job-id", STR),         QMP_ARG("node", STR),
    QMP_ARG("source", STR),         QMP_ARG("bitmaps", STRS),
    QMP_OPT("granularity", UINT32), QMP_LAST,
};

static int cmd_fetch(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    const json_t *list = json_object_get(call->args, "bitmaps");
    size_t count = json_array_size(list);
    CLEANUP_FREE const char **names = calloc(count + 1, sizeof(*names));
    struct fetch_options o = {
        .job_id = qmp_str(call, "job-id"),
        .node = disk_find_node(call->daemon, qmp_str(call, "node"), errp),
        .names = names,
        .count = count,
        .granularity = (uint64_t)qmp_int(call, "granularity", 0),
    };

    if (!names) {
        return error_nomem(errp);
    }
    for (size_t i = 0; i < count; i++) {
        names[i] = json_string_value(json_array_get(list, i));
    }
    o.source = o.node
                   ? disk_find_node(call->daemon, qmp_str(call, "source"), errp)
                   : NULL;
    return o.source ? job_fetch_bitmaps(call->daemon->jobs, &o, errp) : -ENODEV;
}

/* --- What its bits are, in short --- */

static int hash_bits(struct qmp_call *call, const struct bitmap *bm,
                     struct error **errp)
{
    unsigned char sum[SHA256_BYTES];
    char text[2 * SHA256_BYTES + 1];
    size_t len;
    CLEANUP_FREE void *bytes = bitmap_bytes(bm, &len);

    if (!bytes) {
        return error_nomem(errp);
    }
    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes, len, sum) < 0) {
        return error_set(errp, EIO, "Unable to calculate a hash");
    }
    for (size_t i = 0; i < SHA256_BYTES; i++) {
        (void)snprintf(text + 2 * i, 3, "%02x", sum[i]);
    }
    call->ret = json_pack("{s:s}", "sha256", text);
    return call->ret ? 0 : error_nomem(errp);
}

static int cmd_sha256(struct qmp_call *call, struct error **errp)
{
    struct bitmap_ref ref;
    int r = find_argument(call, "name", &ref, errp);

    if (r < 0) {
        return r;
    }
    struct bitmap *bm = bitmap_find(ref.node, ref.name);
    if (!bm) {
        return error_set(errp, ENOENT, "Dirty bitmap '%.1023s' not found",
                         ref.name);
    }
    r = hash_bits(call, bm, errp);
    bitmap_unref(bm);
    return r;
}

static const struct qmp_arg sha256_members[] = {
    QMP_ARG("sha256", STR),
    QMP_LAST,
};
static const struct qmp_arg sha256_type = QMP_ARG("", OBJECT,
                                                  .members = sha256_members);

const struct qmp_command qmp_bitmap_commands[] = {
    QMP_ACTION("block-dirty-bitmap-add", make_bitmap, add_args),
    QMP_ACTION("block-dirty-bitmap-clear", clear_bitmap, bitmap_args),
    QMP_ACTION("block-dirty-bitmap-disable", disable_bitmap, bitmap_args),
    QMP_ACTION("block-dirty-bitmap-enable", enable_bitmap, bitmap_args),
    QMP_COMMAND("block-dirty-bitmap-fetch", cmd_fetch, fetch_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_ACTION("block-dirty-bitmap-merge", merge_bitmaps, merge_args),
    QMP_ACTION("block-dirty-bitmap-remove", remove_bitmap, bitmap_args),
    QMP_COMMAND("x-debug-block-dirty-bitmap-sha256", cmd_sha256, bitmap_args,
                .ret = &sha256_type, .features = qmp_unstable),
    QMP_COMMANDS_END,
};
