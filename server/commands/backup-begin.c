/* SPDX-License-Identifier: BSD-3-Clause */
/* Backups that clients pull, and checkpoints.  QEMU has no such commands: the
 * shape is that of libvirt's backup and checkpoint XML. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/checkpoint.h"
#include "backup/look.h"
#include "backup/session.h"
#include "commands/role.h"
#include "commands/table.h"
#include "commands/types.h"
#include "daemon.h"
#include "disk.h"
#include "nbd/export.h"
#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/point.h"
#include "net/address.h"
#include "qmp/role.h"

#define DISKS_MAX 256

struct disks {
    struct pull_disk_options at[DISKS_MAX];
    size_t count;
};

static int add_exported(struct export *e, void *opaque)
{
    struct disks *disks = opaque;

    if (e->of_backup) {
        return 0;
    }
    if (disks->count == DISKS_MAX) {
        return -E2BIG;
    }
    disks->at[disks->count++].node = blk_node(e->blk);
    return 0;
}

/* All disks that clients can open, each once; that of the oldest export comes
 * first. */
static int all_disks(struct daemon *d, struct disks *disks, struct error **errp)
{
    size_t kept = 0;

    if (exports_each(d->exports, add_exported, disks) < 0) {
        return error_set(errp, E2BIG,
                         "There are more than %d exports: name "
                         "the disks",
                         DISKS_MAX);
    }
    for (size_t i = 0; i < disks->count; i++) {
        struct node *n = point_source(d->graph, disks->at[i].node);
        size_t k = 0;
        while (k < kept && disks->at[k].node != n) {
            k++;
        }
        disks->at[k].node = n;
        kept = k == kept ? kept + 1 : kept;
    }
    disks->count = kept;
    return kept > 0 ? 0 : error_set(errp, ENOENT, "There are no exports");
}

static int fill_disks(struct qmp_call *call, const json_t *list,
                      struct disks *disks, struct error **errp)
{
    size_t i;

    if (!list) {
        return all_disks(call->daemon, disks, errp);
    }
    disks->count = json_array_size(list);
    if (disks->count == 0 || disks->count > DISKS_MAX) {
        return error_set(errp, EINVAL, "'disks' has to name 1 to %d nodes",
                         DISKS_MAX);
    }
    json_t *item;

    json_array_foreach (list, i, item) {
        struct pull_disk_options *d = &disks->at[i];

        d->node = disk_find_node(
            call->daemon, json_string_value(json_object_get(item, "node")),
            errp);
        if (!d->node) {
            return -ENODEV;
        }
        d->since = json_string_value(json_object_get(item, "since"));
        d->export = json_string_value(json_object_get(item, "export"));
        d->whole = json_is_true(json_object_get(item, "whole"));
    }
    return 0;
}

static int cmd_begin(struct qmp_call *call, struct error **errp)
{
    const json_t *list = json_object_get(call->args, "disks");
    const json_t *scratch = json_object_get(call->args, "scratch");
    json_int_t quota = json_integer_value(json_object_get(scratch, "quota"));
    const char *limit = qmp_str(call, "on-limit");
    const char *checkpoint = qmp_str(call, "checkpoint");
    const struct qmp_role *role = call->state->role;

    if (checkpoint && checkpoint[0] == '\0') {
        return error_set(errp, EINVAL, "Checkpoint name cannot be empty");
    }
    if (quota < 0) {
        return error_set(errp, EINVAL,
                         "Parameter 'scratch.quota' must be less than 2^63");
    }
    CLEANUP_FREE struct disks *disks = calloc(1, sizeof(*disks));
    if (!disks) {
        return error_nomem(errp);
    }
    struct pulls *pulls = call->daemon->pulls;
    struct look look = {0};
    int r = fill_disks(call, list, disks, errp);
    if (r == 0) {
        r = pulls_look(pulls, disks->at, (unsigned)disks->count, &look, errp);
    }
    if (r < 0 || (r = fill_disks(call, list, disks, errp)) < 0) {
        look_free(&look);
        return r;
    }
    const struct pull_options o = {
        .disks = disks->at,
        .count = (unsigned)disks->count,
        .look = &look,
        .checkpoint = checkpoint,
        .listen = json_object_get(call->args, "listen"),
        .server = qmp_str(call, "server"),
        .scratch = json_string_value(json_object_get(scratch, "dir")),
        .quota = (uint64_t)quota,
        .keep_free = !json_object_get(scratch, "quota"),
        .expire = (uint64_t)qmp_int(call, "expire", PULL_EXPIRE_S),
        .max_delay_ms = (unsigned)qmp_int(call, "max-delay-ms", 0),
        .break_guest_write = limit && strcmp(limit, "break-guest-write") == 0,
        .once = qmp_bool(call, "once", false),
        .discard = qmp_bool(call, "discard", false),
        .owner = role ? role->name : NULL,
        .authz = role ? role->authz : NULL,
        .incremental = qmp_bool(call, "require-incremental", false),
    };
    r = pulls_begin(pulls, &o, &call->ret, errp);
    look_free(&look);
    return r;
}

static int cmd_end(struct qmp_call *call, struct error **errp)
{
    return pulls_end(call->daemon->pulls, qmp_str(call, "id"),
                     qmp_bool(call, "success", false),
                     json_object_get(call->args, "drop"), errp);
}

static int cmd_renew(struct qmp_call *call, struct error **errp)
{
    return pulls_renew(call->daemon->pulls, qmp_str(call, "id"), errp);
}

static int cmd_query(struct qmp_call *call, struct error **errp)
{
    call->ret = pulls_query(call->daemon->pulls);
    return call->ret ? 0 : error_nomem(errp);
}

static int cmd_list(struct qmp_call *call, struct error **errp)
{
    call->ret = checkpoints_query(call->daemon);
    return call->ret ? 0 : error_nomem(errp);
}

static int cmd_delete(struct qmp_call *call, struct error **errp)
{
    return checkpoint_delete(call->daemon, qmp_str(call, "name"),
                             json_object_get(call->args, "nodes"), errp);
}

/* --- The table. --- */

static const char *const limit_words[] = {"drop-snapshot", "break-guest-write",
                                          NULL};
static const char *const mode_words[] = {"full", "incremental", NULL};

static const struct qmp_arg disk_args[] = {
    QMP_ARG("node", STR),
    QMP_OPT("since", STR),
    QMP_OPT("export", STR),
    QMP_OPT("whole", BOOL),
    QMP_LAST,
};

static const struct qmp_arg scratch_args[] = {
    QMP_OPT("dir", STR),
    QMP_OPT("quota", SIZE),
    QMP_LAST,
};

static const struct qmp_arg begin_args[] = {
    QMP_OPT("disks", OBJECTS, .members = disk_args),
    QMP_OPT("checkpoint", STR),
    QMP_OPT("listen", OBJECT, .members = address_args),
    QMP_OPT("server", STR),
    QMP_OPT("scratch", OBJECT, .members = scratch_args),
    QMP_OPT("expire", UINT32),
    QMP_OPT("max-delay-ms", UINT32),
    QMP_OPT("on-limit", ENUM, .words = limit_words),
    QMP_OPT("once", BOOL),
    QMP_OPT("discard", BOOL),
    QMP_OPT("require-incremental", BOOL),
    QMP_LAST,
};

static const struct qmp_arg end_args[] = {
    QMP_ARG("id", STR),
    QMP_ARG("success", BOOL),
    QMP_OPT("drop", STRS),
    QMP_LAST,
};

static const struct qmp_arg renew_args[] = {
    QMP_ARG("id", STR),
    QMP_LAST,
};

static const struct qmp_arg delete_args[] = {
    QMP_ARG("name", STR),
    QMP_OPT("nodes", STRS),
    QMP_LAST,
};

#define DISK_MEMBERS                                                           \
    QMP_ARG("node", STR), QMP_ARG("export", STR), QMP_OPT("uri", STR),         \
        QMP_OPT("context", STR), QMP_ARG("size", SIZE),                        \
        QMP_ARG("estimate", SIZE), QMP_ARG("mode", ENUM, .words = mode_words), \
        QMP_OPT("reason", STR)

static const struct qmp_arg begun_disk[] = {DISK_MEMBERS, QMP_LAST};

/* What point_query() tells. */
static const char *const where_words[] = {"memory", "file", "storage", NULL};
static const struct qmp_arg usage_members[] = {
    QMP_ARG("bytes", SIZE),
    QMP_OPT("quota", SIZE),
    QMP_OPT("keep-free", SIZE),
    QMP_ARG("where", ENUM, .words = where_words),
    QMP_LAST,
};

static const struct qmp_arg queried_disk[] = {
    DISK_MEMBERS,
    QMP_ARG("clients", INT),
    QMP_ARG("scratch", OBJECT, .members = usage_members),
    QMP_ARG("copied", SIZE),
    QMP_ARG("pulled", SIZE),
    QMP_ARG("discarded", SIZE),
    QMP_ARG("left", SIZE),
    QMP_OPT("snapshot", STR),
    QMP_OPT("lost", STR),
    QMP_OPT("delay", OBJECT, .members = qmp_delay_members),
    QMP_LAST,
};

static const struct qmp_arg begun_members[] = {
    QMP_ARG("id", STR),
    QMP_ARG("instant", STR),
    QMP_OPT("checkpoint", STR),
    QMP_ARG("drained-us", INT),
    QMP_ARG("disks", OBJECTS, .members = begun_disk),
    QMP_LAST,
};
static const struct qmp_arg begun_type = QMP_ARG("", OBJECT,
                                                 .members = begun_members);

static const struct qmp_arg queried_members[] = {
    QMP_ARG("id", STR),
    QMP_ARG("instant", STR),
    QMP_OPT("checkpoint", STR),
    QMP_ARG("drained-us", INT),
    QMP_OPT("expire", INT),
    QMP_ARG("disks", OBJECTS, .members = queried_disk),
    QMP_LAST,
};
static const struct qmp_arg queried_type = QMP_ARG("", OBJECTS,
                                                   .members = queried_members);

static const struct qmp_arg checkpoint_disk[] = {
    QMP_ARG("node", STR),
    QMP_ARG("devices", STRS),
    QMP_OPT("granularity", INT),
    QMP_OPT("count", INT),
    QMP_OPT("snapshot", STR),
    QMP_OPT("snapshot-id", INT),
    QMP_ARG("persistent", BOOL),
    QMP_ARG("busy", BOOL),
    QMP_ARG("inconsistent", BOOL),
    QMP_OPT("reason", STR),
    QMP_LAST,
};

static const struct qmp_arg checkpoint_members[] = {
    QMP_ARG("name", STR),
    QMP_ARG("disks", OBJECTS, .members = checkpoint_disk),
    QMP_LAST,
};
static const struct qmp_arg checkpoints_type =
    QMP_ARG("", OBJECTS, .members = checkpoint_members);

const struct qmp_command qmp_pull_commands[] = {
    QMP_COMMAND("backup-begin", cmd_begin, begin_args, .ret = &begun_type,
                .drains = QMP_DRAINS_ALL, .backup = &role_begin),
    QMP_COMMAND("backup-end", cmd_end, end_args, .drains = QMP_DRAINS_NAMED,
                .backup = &role_end),
    QMP_COMMAND("backup-renew", cmd_renew, renew_args, .backup = &role_renew),
    QMP_COMMAND("checkpoint-delete", cmd_delete, delete_args,
                .drains = QMP_DRAINS_NAMED, .backup = &role_delete),
    QMP_COMMAND("checkpoint-list", cmd_list, NULL, .ret = &checkpoints_type,
                .backup = &role_checkpoints),
    QMP_COMMAND("query-backups", cmd_query, NULL, .ret = &queried_type,
                .backup = &role_backups),
    QMP_COMMANDS_END,
};
