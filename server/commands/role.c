/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the clients of a monitor with role=backup may do with each command that
 * they have.
 *
 *     request -> check: refuse what goes beyond, fill in what is missing
 *                  |
 *                handler, as for all
 *                  |
 *                cut: take out of the reply what is about something else
 *
 * What is not theirs is not there for them, in the same words.  They may name
 * no file, and no limit of what a backup costs: they get the daemon's own.
 * Checkpoints of other tools stay: theirs have the names that `nbdelta backup`
 * gives.
 */
#include "commands/role.h"

#include <errno.h>
#include <string.h>

#include "backup/checkpoint.h"
#include "backup/session.h"
#include "daemon.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qmp/role.h"

#define CHECKPOINT_PREFIX "nbdelta-"

/* --- Replies --- */

typedef bool keep_fn(const struct qmp_call *call, json_t *item);

static void keep_only(struct qmp_call *call, keep_fn *keep)
{
    for (size_t i = json_array_size(call->ret); i > 0; i--) {
        if (!keep(call, json_array_get(call->ret, i - 1))) {
            (void)json_array_remove(call->ret, i - 1);
        }
    }
}

static bool is_their_command(const struct qmp_call *call, json_t *item)
{
    const struct qmp_command *c =
        call->daemon->service->find_command(member_str(item, "name"));

    return c && c->backup;
}

static void cut_commands(struct qmp_call *call)
{
    keep_only(call, is_their_command);
}

static bool is_their_device(const struct qmp_call *call, json_t *item)
{
    return qmp_role_has_disk(call->state->role, member_str(item, "device"));
}

static void cut_block(struct qmp_call *call)
{
    keep_only(call, is_their_device);
}

static bool is_their_backup(const struct qmp_call *call, json_t *item)
{
    return pulls_has(call->daemon->pulls, member_str(item, "id"),
                     call->state->role->name);
}

static void cut_backups(struct qmp_call *call)
{
    keep_only(call, is_their_backup);
}

static bool has_their_disk(const struct qmp_call *call, const json_t *entry)
{
    bool any = false;
    size_t i;
    json_t *name;

    json_array_foreach (json_object_get(entry, "devices"), i, name) {
        any |= qmp_role_has_disk(call->state->role, json_string_value(name));
    }
    return any;
}

/* Also takes the disks of others out of the checkpoint. */
static bool is_their_checkpoint(const struct qmp_call *call, json_t *item)
{
    json_t *disks = json_object_get(item, "disks");

    for (size_t i = json_array_size(disks); i > 0; i--) {
        if (!has_their_disk(call, json_array_get(disks, i - 1))) {
            (void)json_array_remove(disks, i - 1);
        }
    }
    return json_array_size(disks) > 0;
}

static void cut_checkpoints(struct qmp_call *call)
{
    keep_only(call, is_their_checkpoint);
}

/* --- Requests --- */

static int refuse(const char *what, struct error **errp)
{
    return error_set(errp, EPERM,
                     "%s is not for clients of a monitor with role=backup",
                     what);
}

/* The arguments that are not theirs, whatever they say. */
static int refuse_members(const struct qmp_call *call,
                          const char *const *theirs, unsigned count,
                          struct error **errp)
{
    const char *key;
    json_t *value;

    json_object_foreach (call->args, key, value) {
        bool known = false;

        for (unsigned i = 0; i < count; i++) {
            known |= strcmp(key, theirs[i]) == 0;
        }
        if (!known) {
            return error_set(errp, EPERM,
                             "Parameter '%s' is not for clients of a monitor "
                             "with role=backup",
                             key);
        }
    }
    return 0;
}

static int check_checkpoint(const char *name, struct error **errp)
{
    return strncmp(name, CHECKPOINT_PREFIX, strlen(CHECKPOINT_PREFIX)) == 0
               ? 0
               : refuse("A checkpoint whose name does not begin with "
                        "'" CHECKPOINT_PREFIX "'",
                        errp);
}

/* In the words for a disk that is not there. */
static int check_disks(const struct qmp_call *call, struct error **errp)
{
    size_t i;
    json_t *disk;

    json_array_foreach (json_object_get(call->args, "disks"), i, disk) {
        const char *name = member_str(disk, "node");

        if (!qmp_role_has_disk(call->state->role, name)) {
            return error_set(errp, ENODEV,
                             "Cannot find device='%.200s' nor node-name="
                             "'%.200s' among the disks of this monitor",
                             name, name);
        }
        if (json_object_get(disk, "export")) { /* it may be another's */
            return refuse("A name for an export", errp);
        }
    }
    return qmp_has(call, "disks") ? 0 : refuse("A backup of all disks", errp);
}

static int check_begin(struct qmp_call *call, struct error **errp)
{
    static const char *const theirs[] = {"disks", "checkpoint", "server",
                                         "expire", "require-incremental"};
    const char *checkpoint = qmp_str(call, "checkpoint");
    int64_t expire = qmp_int(call, "expire", PULL_EXPIRE_S);
    int r = refuse_members(call, theirs, ARRAY_SIZE(theirs), errp);

    r = r < 0 ? r : check_disks(call, errp);
    r = r < 0 || !checkpoint ? r : check_checkpoint(checkpoint, errp);
    return r == 0 && (expire == 0 || expire > PULL_EXPIRE_S)
               ? refuse("A backup that does not expire within a day", errp)
               : r;
}

static int check_session(struct qmp_call *call, struct error **errp)
{
    const char *id = qmp_str(call, "id");

    return pulls_has(call->daemon->pulls, id, call->state->role->name)
               ? 0
               : error_set(errp, ENOENT, "There is no backup '%.200s'", id);
}

static int check_end(struct qmp_call *call, struct error **errp)
{
    static const char *const theirs[] = {"id", "success"};
    int r = refuse_members(call, theirs, ARRAY_SIZE(theirs), errp);

    return r < 0 ? r : check_session(call, errp);
}

/* The nodes of their disks that have the checkpoint. */
static json_t *nodes_with(struct qmp_call *call, const char *name)
{
    CLEANUP_JSON json_t *list = checkpoints_query(call->daemon);
    json_t *nodes = json_array();
    size_t i;
    size_t k;
    json_t *item;
    json_t *disk;

    json_array_foreach (list, i, item) {
        if (strcmp(member_str(item, "name"), name) != 0 ||
            !is_their_checkpoint(call, item)) {
            continue;
        }
        json_array_foreach (json_object_get(item, "disks"), k, disk) {
            (void)json_array_append(nodes, json_object_get(disk, "node"));
        }
    }
    return nodes;
}

static int check_delete(struct qmp_call *call, struct error **errp)
{
    static const char *const theirs[] = {"name"};
    const char *name = qmp_str(call, "name");
    int r = refuse_members(call, theirs, ARRAY_SIZE(theirs), errp);

    r = r < 0 ? r : check_checkpoint(name, errp);
    if (r < 0) {
        return r;
    }
    json_t *nodes = nodes_with(call, name);
    if (json_array_size(nodes) == 0) {
        json_decref(nodes);
        return error_set(errp, ENOENT, "There is no checkpoint '%.200s'", name);
    }
    return json_object_set_new(call->args, "nodes", nodes) < 0
               ? error_nomem(errp)
               : 0;
}

const struct qmp_narrow role_as_it_is = {NULL, NULL};
const struct qmp_narrow role_commands = {NULL, cut_commands};
const struct qmp_narrow role_block = {NULL, cut_block};
const struct qmp_narrow role_backups = {NULL, cut_backups};
const struct qmp_narrow role_checkpoints = {NULL, cut_checkpoints};
const struct qmp_narrow role_begin = {check_begin, NULL};
const struct qmp_narrow role_renew = {check_session, NULL};
const struct qmp_narrow role_end = {check_end, NULL};
const struct qmp_narrow role_delete = {check_delete, NULL};
