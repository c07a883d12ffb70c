/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * block_set_io_throttle: limits of a disk, for all who have it by that name.
 *
 * The requests of a device or of an export wait (blk_set_throttle), those of
 * jobs do not.  Exports of one name are one device to QMP, and get one group.
 */
#include "commands/throttle.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands/table.h"
#include "daemon.h"
#include "nbd/export.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "vm/device.h"

/* The words of QMP here, and those of a group's limits. */
static const struct {
    const char *word;
    const char *limit;
} words[] = {
    {"bps", "bps-total"},   {"bps_rd", "bps-read"},   {"bps_wr", "bps-write"},
    {"iops", "iops-total"}, {"iops_rd", "iops-read"}, {"iops_wr", "iops-write"},
};
static const char *const suffixes[][2] = {
    {"", ""}, {"_max", "-max"}, {"_max_length", "-max-length"}};

/* Call @fn for the name of each limit in both languages. */
static void each_limit(void (*fn)(const char *word, const char *limit,
                                  const json_t *from, json_t *to),
                       const json_t *from, json_t *to)
{
    char word[32];
    char limit[32];

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        for (size_t k = 0; k < ARRAY_SIZE(suffixes); k++) {
            (void)snprintf(word, sizeof(word), "%s%s", words[i].word,
                           suffixes[k][0]);
            (void)snprintf(limit, sizeof(limit), "%s%s", words[i].limit,
                           suffixes[k][1]);
            fn(word, limit, from, to);
        }
    }
    fn("iops_size", "iops-size", from, to);
}

static void take(const char *word, const char *limit, const json_t *from,
                 json_t *to)
{
    json_t *v = json_object_get(from, word);

    if (v) {
        (void)json_object_set(to, limit, v);
    }
}

static void show(const char *word, const char *limit, const json_t *from,
                 json_t *to)
{
    (void)json_object_set(to, word, json_object_get(from, limit));
}

void throttle_show(json_t *info, const json_t *limits)
{
    if (limits) {
        each_limit(show, limits, info);
        (void)json_object_set(info, "group", json_object_get(limits, "group"));
    }
}

struct setting {
    const char *name;
    const char *group; /* asked for, or NULL */
    const json_t *limits;
    struct error **errp;
    bool found;
};

static int set_one(const struct setting *s, struct blk *b)
{
    const char *group = s->group || blk_is_throttled(b) ? s->group : s->name;

    return blk_set_throttle(b, group, s->limits, s->errp);
}

static int set_export(struct export *e, void *opaque)
{
    struct setting *s = opaque;

    if (e->of_backup ||
        (strcmp(e->name, s->name) != 0 && strcmp(e->id, s->name) != 0)) {
        return 0;
    }
    s->found = true;
    return set_one(s, export_disk(e));
}

static int cmd_throttle(struct qmp_call *call, struct error **errp)
{
    struct daemon *d = call->daemon;
    const char *device = qmp_str(call, "device");
    const char *id = qmp_str(call, "id");
    CLEANUP_JSON json_t *limits = json_object();
    struct setting s = {device ? device : id, qmp_str(call, "group"), limits,
                        errp, false};

    if (!device == !id) {
        return error_set(errp, EINVAL, "Need exactly one of 'device' and 'id'");
    }
    if (!limits) {
        return error_nomem(errp);
    }
    each_limit(take, call->args, limits);
    if (d->devices && devices_has(d->devices, s.name)) {
        struct blk *b = devices_find(d->devices, s.name);

        return b ? set_one(&s, b)
                 : error_set(errp, ENOMEDIUM, "Device has no medium");
    }
    int r = exports_each(d->exports, set_export, &s);
    if (r == 0 && !s.found) {
        call->class = QMP_DEVICE_NOT_FOUND;
        r = error_set(errp, ENODEV, "Device '%.200s' not found", s.name);
    }
    return r;
}

static const struct qmp_arg throttle_args[] = {
    QMP_OPT("device", STR, .features = qmp_deprecated),
    QMP_OPT("id", STR),
    QMP_ARG("bps", INT),
    QMP_ARG("bps_rd", INT),
    QMP_ARG("bps_wr", INT),
    QMP_ARG("iops", INT),
    QMP_ARG("iops_rd", INT),
    QMP_ARG("iops_wr", INT),
    THROTTLE_MEMBERS,
    QMP_LAST,
};

const struct qmp_command qmp_throttle_commands[] = {
    QMP_COMMAND("block_set_io_throttle", cmd_throttle, throttle_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMANDS_END,
};
