/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Names of files that a user gives here, and another process opens: see
 * target-names.h.
 *
 *     here: /home/me     drive-backup target=full.qcow2
 *                                     |
 *     the daemon: /      drive-backup target=/home/me/full.qcow2
 *
 * In the same directory a relative name is the same file at both ends, and the
 * daemon shows it as it was typed.
 */
#include "client/target-names.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/qmp-client.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define DEPTH_MAX 64 /* of nodes in nodes */

/* Where commands have such names, ours and QEMU's. */
static const struct place {
    const char *command;
    const char *members[3]; /* the way to it */
} places[] = {
    {"drive-backup", {"target"}},
    {"drive-mirror", {"target"}},
    {"blockdev-snapshot-sync", {"snapshot-file"}},
    {"blockdev-create", {"options", "filename"}},
    {"backup-begin", {"scratch", "dir"}},
    {"backup-begin", {"listen", "path"}},
    {"nbd-server-start", {"addr", "data", "path"}},
};

/* As QEMU tells: a colon before the first slash belongs to a protocol. */
static bool is_relative(const char *name)
{
    return name[0] != '\0' && name[strcspn(name, "/:")] != ':' &&
           name[0] != '/';
}

char *target_name_absolute(const char *name)
{
    CLEANUP_FREE char *here = NULL;
    char *all = NULL;

    if (!is_relative(name)) {
        return strdup(name);
    }
    here = getcwd(NULL, 0);
    if (!here) {
        return NULL;
    }
    while (strncmp(name, "./", 2) == 0 && name[2] != '\0') {
        name += 2;
    }
    return asprintf(&all, "%s/%s", strcmp(here, "/") == 0 ? "" : here, name) < 0
               ? NULL
               : all;
}

static int resolve(json_t *object, const char *key, struct error **errp)
{
    const char *name = json_string_value(json_object_get(object, key));

    if (!name || !is_relative(name) ||
        json_is_true(json_object_get(object, "abstract"))) {
        return 0;
    }
    CLEANUP_FREE char *all = target_name_absolute(name);
    if (!all) {
        return error_set(errp, errno, "'%s' is relative to no directory: %s",
                         name, strerror(errno));
    }
    return json_object_set_new(object, key, json_string(all)) < 0
               ? error_set(errp, EINVAL, "the directory of '%s' is not UTF-8",
                           name)
               : 0;
}

static int resolve_place(json_t *args, const struct place *p,
                         struct error **errp)
{
    size_t i = 0;

    while (i + 1 < ARRAY_SIZE(p->members) && p->members[i + 1]) {
        args = json_object_get(args, p->members[i++]);
    }
    return resolve(args, p->members[i], errp);
}

/* Options of a node, and of those below it that are spelled out. */
static int resolve_nodes(json_t *node, unsigned depth, struct error **errp)
{
    const char *key;
    json_t *member;
    int r = resolve(node, "filename", errp);

    r = r < 0 ? r : resolve(json_object_get(node, "server"), "path", errp);
    if (!json_is_object(node) || depth == DEPTH_MAX) {
        return r;
    }
    json_object_foreach (node, key, member) {
        if (r == 0 && json_is_object(member)) {
            r = resolve_nodes(member, depth + 1, errp);
        }
    }
    return r;
}

static int resolve_command(const char *command, json_t *args,
                           struct error **errp);

static int resolve_actions(json_t *actions, struct error **errp)
{
    size_t i;
    json_t *a;
    int r = 0;

    json_array_foreach (actions, i, a) {
        const char *type = json_string_value(json_object_get(a, "type"));

        if (r == 0 && type && strcmp(type, "transaction") != 0) {
            r = resolve_command(type, json_object_get(a, "data"), errp);
        }
    }
    return r;
}

static int resolve_command(const char *command, json_t *args,
                           struct error **errp)
{
    int r = 0;

    if (strcmp(command, "transaction") == 0) {
        return resolve_actions(json_object_get(args, "actions"), errp);
    }
    if (strcmp(command, "blockdev-add") == 0) {
        return resolve_nodes(args, 0, errp);
    }
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(places); i++) {
        if (strcmp(places[i].command, command) == 0) {
            r = resolve_place(args, &places[i], errp);
        }
    }
    return r;
}

static bool is_local(const struct qmp_client *c)
{
    struct sockaddr_storage addr = {.ss_family = AF_UNSPEC};
    socklen_t len = sizeof(addr);

    return getsockname(c->fd, (struct sockaddr *)&addr, &len) == 0 &&
           addr.ss_family == AF_UNIX;
}

/* Is the working directory of the one who has greeted ours?  False also where
 * nobody may know. */
static bool is_here(const struct qmp_client *c)
{
    char path[48];
    struct stat there;
    struct stat here;

    (void)snprintf(path, sizeof(path), "/proc/%ld/cwd", (long)c->peer);
    return c->peer > 0 && stat(path, &there) == 0 && stat(".", &here) == 0 &&
           there.st_dev == here.st_dev && there.st_ino == here.st_ino;
}

int target_names_resolve(const struct qmp_client *c, const char *command,
                         json_t *args, struct error **errp)
{
    return !args || !is_local(c) || is_here(c)
               ? 0
               : resolve_command(command, args, errp);
}
