/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * human-monitor-command: the commands of QEMU's human monitor that tests of its
 * block layer need: `commit DEVICE|all`, `qemu-io [-d] DEVICE "COMMAND"`,
 * `drive_add 0 OPTIONS`, `drive_del ID`, `block_resize`, `info block`, `info
 * block-jobs`, `drive_backup`, `system_reset`, `help`.
 */
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands/hmp-info.h"
#include "commands/table.h"
#include "daemon.h"
#include "disk.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/chain.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/size.h"
#include "vm/device.h"
#include "vm/qemu-io.h"

#define WORDS_MAX 8

/* How long a command waits for a disk that does not come to rest. */
#define SETTLE_NS UINT64_C(30000000000)

static const struct qmp_arg hmp_args[] = {
    QMP_ARG("command-line", STR),
    QMP_OPT("cpu-index", INT),
    QMP_LAST,
};

/* Split @text into words, in place; "..." is one, \ takes what follows. */
static int split_command(char *text, char **words)
{
    int count = 0;
    char *to = text;

    while (*text && count < WORDS_MAX) {
        bool quoted = false;

        while (*text == ' ') {
            text++;
        }
        if (!*text) {
            break;
        }
        words[count++] = to;
        while (*text && (quoted || *text != ' ')) {
            if (*text == '"') {
                quoted = !quoted;
                text++;
                continue;
            }
            if (*text == '\\' && text[1]) {
                text++;
            }
            *to++ = *text++;
        }
        if (*text) {
            text++;
        }
        *to++ = '\0';
    }
    return count;
}

static int reply(struct qmp_call *call, struct error **errp, const char *fmt,
                 ...) __attribute__((format(printf, 3, 4)));
static int reply(struct qmp_call *call, struct error **errp, const char *fmt,
                 ...)
{
    char text[1000];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    json_decref(call->ret);
    call->ret = json_string(text);
    return call->ret ? 0 : error_nomem(errp);
}

/*
 * The I/O is done without the monitor lock, because it may have to wait for
 * a job or for a command of another client.  The request keeps the disk.
 */
static int qemu_io(struct qmp_call *call, const char *name, bool qdev,
                   const char *command, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    struct daemon *d = call->daemon;

    if (strncmp(name, QDEV_PATH, strlen(QDEV_PATH)) == 0) {
        name += strlen(QDEV_PATH);
    }
    struct node *n = disk_find_device(d, name, NULL);
    if (!n) {
        return reply(call, errp,
                     qdev ? "Error: Device '%.200s' not found\r\n"
                          : "Error: Cannot find device='' nor "
                            "node-name='%.200s'\r\n",
                     name);
    }
    CLEANUP_ERROR struct error *err = NULL;
    struct io_request *q = NULL;
    const struct io_context c = {d->io_tasks, d->jobs, d->graph};
    struct blk *device = d->devices ? devices_find(d->devices, name) : NULL;
    if (io_prepare(&c, n, device, command, &q, &err) < 0) {
        return reply(call, errp, "%s\r\n", error_message(err));
    }
    if (q) {
        mutex_unlock(&call->daemon->jobs->lock);
        io_perform(q);
        mutex_lock(&call->daemon->jobs->lock);
    }
    return reply(call, errp, "%s", "");
}

/* The disk @name, once it can be drained: others need not wait for its storage.
 * Gives up the monitor lock meanwhile.  NULL with @errp. */
static struct node *settled(struct qmp_call *call, const char *name,
                            struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    struct daemon *d = call->daemon;
    const struct node *n = disk_find_device(d, name, errp);
    CLEANUP_FREE char *node = n ? strdup(node_name(n)) : NULL;

    if (!n) {
        return NULL;
    }
    if (!node) {
        (void)error_nomem(errp);
        return NULL;
    }
    mutex_unlock(&call->daemon->jobs->lock);
    int r = graph_settle(d->graph, node, SETTLE_NS, errp);
    mutex_lock(&call->daemon->jobs->lock);
    return r < 0 ? NULL : disk_find_device(d, name, errp);
}

/* block_resize DEVICE SIZE, in MiB unless there is a suffix. */
static int block_resize(struct qmp_call *call, const char *name,
                        const char *text, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct node *n = settled(call, name, &err);
    size_t len = strlen(text);
    bool bare = len > 0 && isdigit((unsigned char)text[len - 1]);
    uint64_t size = 0;
    struct blk *b;

    if (!n) {
        return reply(call, errp, "Error: %s\r\n", error_message(err));
    }
    if (size_parse(text, &size) < 0) {
        return reply(call, errp, "invalid size\n");
    }
    if (bare) {
        size *= MiB;
    }
    int r = blk_new(call->daemon->graph, n, PERM_RESIZE, PERM_ALL,
                    "block_resize", &b, &err);
    if (r == 0) {
        r = blk_resize(b, size, &err);
        blk_free(b);
    }
    return r < 0 ? reply(call, errp, "Error: %s\r\n", error_message(err))
                 : reply(call, errp, "%s", "");
}

static int drive(struct qmp_call *call, bool add, const char *what,
                 struct error **errp) REQUIRES(call->daemon->jobs->lock)
{
    CLEANUP_ERROR struct error *err = NULL;
    if (!add && disk_find_device(call->daemon, what, NULL) &&
        !settled(call, what, &err)) {
        return reply(call, errp, "Error: %s\r\n", error_message(err));
    }
    int r = add ? devices_add_drive(call->daemon, what, &err)
                : devices_delete_drive(call->daemon, what, &err);

    if (r < 0) {
        return reply(call, errp, "Error: %s\r\n", error_message(err));
    }
    return reply(call, errp, "%s", add ? "OK\r\n" : "");
}

/* Run a command of QMP.  *value (or NULL): what it returns; a new reference.
 * Its error is told as the human monitor does. */
static int run_qmp(struct qmp_call *call, const char *name, json_t *arguments,
                   json_t **value, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    CLEANUP_JSON json_t *request = json_pack("{s:s, s:o*}", "execute", name,
                                             "arguments", arguments);
    CLEANUP_JSON json_t *result =
        request ? qmp_dispatch(call->daemon, call->state, request) : NULL;
    const char *error = member_str(json_object_get(result, "error"), "desc");

    if (!result) {
        return error_nomem(errp);
    }
    if (value) {
        *value = json_incref(json_object_get(result, "return"));
    }
    return error ? reply(call, errp, "Error: %s\r\n", error)
                 : reply(call, errp, "%s", "");
}

static int info(struct qmp_call *call, const char *what, const char *name,
                struct error **errp) REQUIRES(call->daemon->jobs->lock)
{
    bool jobs = strcmp(what, "block-jobs") == 0;
    CLEANUP_JSON json_t *value = NULL;

    if (!jobs && strcmp(what, "block") != 0) {
        return reply(call, errp, "unknown command: 'info %.200s'\r\n", what);
    }
    int r = run_qmp(call, jobs ? "query-block-jobs" : "query-block", NULL,
                    &value, errp);
    if (r < 0 || !value) {
        return r;
    }
    CLEANUP_FREE char *text = jobs ? hmp_info_jobs(value)
                                   : hmp_info_block(value, name);
    json_decref(call->ret);
    call->ret = text ? json_string(text) : NULL;
    return call->ret ? 0 : error_nomem(errp);
}

/* drive_backup [-n] [-f] [-c] DEVICE TARGET [FORMAT] */
static int backup(struct qmp_call *call, char **words, int count,
                  struct error **errp) REQUIRES(call->daemon->jobs->lock)
{
    bool reuse = false;
    bool full = false;
    bool compress = false;
    int at = 1;

    for (; at < count && words[at][0] == '-'; at++) {
        for (const char *p = words[at] + 1; *p; p++) {
            reuse |= *p == 'n';
            full |= *p == 'f';
            compress |= *p == 'c';
        }
    }
    if (count - at < 2 || count - at > 3) {
        return reply(call, errp,
                     "drive_backup: usage: drive_backup [-n] [-f] [-c] device "
                     "target [format]\r\n");
    }
    return run_qmp(call, "drive-backup",
                   json_pack("{s:s, s:s, s:s, s:s, s:b, s:s*}", "device",
                             words[at], "target", words[at + 1], "sync",
                             full ? "full" : "top", "mode",
                             reuse ? "existing" : "absolute-paths", "compress",
                             (int)compress, "format",
                             count - at == 3 ? words[at + 2] : NULL),
                   NULL, errp);
}

/* @device: what the user has said.  QEMU says no more than what the errno
 * means; where that is vague, the reason stands before it. */
static int commit_failed(struct qmp_call *call, const char *device, int r,
                         const struct error *err, struct error **errp)
{
    bool plain = r == -ENOTSUP || r == -EBUSY;

    return reply(call, errp, "%.400s%s'commit' error for '%.200s': %s\r\n",
                 plain ? "" : error_message(err), plain ? "" : "\r\n", device,
                 strerror(-r));
}

/* The image that users of @n know, below filters of jobs. */
static int commit_node(struct qmp_call *call, struct node *n, const char *name,
                       struct error **errp) REQUIRES(call->daemon->jobs->lock)
{
    return job_commit_and_empty(call->daemon->jobs,
                                node_shown(call->daemon->graph, n), name, errp);
}

/* All disks whose images have backing files, until one fails. */
static int commit_all(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    CLEANUP_JSON json_t *disks = NULL;
    size_t i;
    json_t *disk;
    int r = run_qmp(call, "query-block", NULL, &disks, errp);

    json_array_foreach (disks, i, disk) {
        const json_t *inserted = json_object_get(disk, "inserted");
        const char *name = member_str(inserted, "node-name");
        struct node *n = name ? graph_find(call->daemon->graph, name) : NULL;
        CLEANUP_ERROR struct error *err = NULL;

        if (r < 0 || !n || !node_backing(n)) {
            continue;
        }
        n = settled(call, name, &err);
        if (!n) {
            return commit_failed(call, "all", -ETIMEDOUT, err, errp);
        }
        int failed = commit_node(call, n, name, &err);
        if (failed < 0) {
            return commit_failed(call, "all", failed, err, errp);
        }
    }
    return r;
}

static int commit(struct qmp_call *call, const char *device,
                  struct error **errp) REQUIRES(call->daemon->jobs->lock)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (strcmp(device, "all") == 0) {
        return commit_all(call, errp);
    }
    if (!disk_find_device(call->daemon, device, NULL)) {
        return reply(call, errp, "Device '%.200s' not found\r\n", device);
    }
    struct node *n = settled(call, device, &err);
    if (!n) {
        return commit_failed(call, device, -ETIMEDOUT, err, errp);
    }
    int r = commit_node(call, n, device, &err);
    return r < 0 ? commit_failed(call, device, r, err, errp)
                 : reply(call, errp, "%s", "");
}

static int help(struct qmp_call *call, struct error **errp)
{
    return reply(call, errp, "%s",
                 "block_resize device size\r\n"
                 "commit device|all\r\n"
                 "drive_add bus options\r\n"
                 "drive_backup [-n] [-f] [-c] device target [format]\r\n"
                 "drive_del id\r\n"
                 "help\r\n"
                 "info block [name]\r\n"
                 "info block-jobs\r\n"
                 "qemu-io [-d] device \"command\"\r\n"
                 "quit\r\n"
                 "system_reset\r\n");
}

/* The commands that are others of QMP.  1: it is none of these. */
static int other(struct qmp_call *call, char **words, int count,
                 struct error **errp) REQUIRES(call->daemon->jobs->lock)
{
    if (strcmp(words[0], "info") == 0 && count >= 2) {
        return info(call, words[1], count > 2 ? words[2] : NULL, errp);
    }
    if (strcmp(words[0], "commit") == 0 && count == 2) {
        return commit(call, words[1], errp);
    }
    if (strcmp(words[0], "drive_backup") == 0) {
        return backup(call, words, count, errp);
    }
    if (strcmp(words[0], "system_reset") == 0) {
        return run_qmp(call, "system_reset", NULL, NULL, errp);
    }
    return strcmp(words[0], "help") == 0 ? help(call, errp) : 1;
}

static int cmd_human(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    CLEANUP_FREE char *text = strdup(qmp_str(call, "command-line"));
    char *words[WORDS_MAX] = {NULL};
    int count = text ? split_command(text, words) : 0;
    int first = 1;

    if (count == 0) {
        return reply(call, errp, "%s", "");
    }
    if (strcmp(words[0], "block_resize") == 0 && count == 3) {
        return block_resize(call, words[1], words[2], errp);
    }
    if (call->daemon->devices && count == 3 &&
        strcmp(words[0], "drive_add") == 0) { /* a bus address comes first */
        return drive(call, true, words[2], errp);
    }
    if (call->daemon->devices && count == 2 &&
        strcmp(words[0], "drive_del") == 0) {
        return drive(call, false, words[1], errp);
    }
    int r = other(call, words, count, errp);
    if (r <= 0) {
        return r;
    }
    if (strcmp(words[0], "qemu-io") != 0) {
        return reply(call, errp, "unknown command: '%.200s'\r\n", words[0]);
    }
    if (count > 1 && strcmp(words[1], "-d") == 0) {
        first++;
    }
    if (count != first + 2) {
        return reply(call, errp,
                     "%s: usage: qemu-io [-d] device \"command\"\r\n",
                     words[0]);
    }
    return qemu_io(call, words[first], first > 1, words[first + 1], errp);
}

static const struct qmp_arg text_type = QMP_ARG("", STR);

const struct qmp_command qmp_hmp_commands[] = {
    QMP_COMMAND("human-monitor-command", cmd_human, hmp_args,
                .ret = &text_type),
    QMP_COMMANDS_END,
};
