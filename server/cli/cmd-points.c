/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta points: what is in a backup directory, by its manifests. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/point-arg.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/size.h"
#include "nbdelta/text.h"
#include "store/store.h"
#include "store/verify.h"

#define OPT_OUTPUT CLI_LONG

static const struct cli_option option_table[] = {
    {"output", OPT_OUTPUT, "human|json",
     "print for people (default), or for programs"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "points",
    .usage = "[--output human|json] DIR[@POINT]",
    .about = "List the points of a backup directory: their disks, why a disk\n"
             "was copied as a whole, and when they were verified.\n",
    .options = option_table,
};

/* --- For people --- */

static void show_time(int64_t when, char *out)
{
    char name[POINT_NAME_MAX];

    (void)snprintf(out, POINT_SHOWN_MAX, "never");
    if (when > 0 && point_name_make(when, NULL, name) == 0) {
        point_name_show(name, out);
    }
}

/* The first line of a point has its name and when it was verified. */
static void print_disk(const char *point, const struct manifest_disk *d,
                       const char *verified)
{
    CLEANUP_FREE char *name = text_printable(d->name);
    const char *reason = disk_reason_word(d->reason);
    char size[32];
    char written[32];

    printf("%-20s  %-8s  %10s  %10s  %-9s  %-19s  %s\n", point,
           name ? name : "?", size_human(d->size, size, sizeof(size)),
           size_human(d->written, written, sizeof(written)),
           disk_kind_word(d->kind), reason ? reason : "-", verified);
}

static void print_point(const struct store *s, const struct store_point *p)
{
    struct verified v;
    char shown[POINT_SHOWN_MAX];
    char when[POINT_SHOWN_MAX];

    point_name_show(p->name, shown);
    if (!p->manifest) {
        printf("%-20s  cannot be used: %s\n", shown, p->why);
        return;
    }
    verified_read(s, p->name, &v);
    show_time(v.when, when);
    for (unsigned i = 0; i < p->manifest->count; i++) {
        const char *verified = p == store_pending(s) ? "pending"
                               : v.damages > 0       ? "DAMAGED"
                                                     : when;
        print_disk(i == 0 ? shown : "", &p->manifest->disks[i],
                   i == 0 ? verified : "");
    }
}

/* --- For programs --- */

static json_t *disk_json(const struct manifest_disk *d)
{
    return json_pack(
        "{s:s, s:I, s:s, s:s?, s:s?, s:s?, s:I, s:I, s:I, s:f}", "name",
        d->name, "size", (json_int_t)d->size, "kind", disk_kind_word(d->kind),
        "reason", disk_reason_word(d->reason), "parent",
        d->parent[0] ? d->parent : NULL, "checkpoint", d->checkpoint, "read",
        (json_int_t)d->read, "written", (json_int_t)d->written, "zero",
        (json_int_t)d->zero, "seconds", (double)d->milliseconds / 1000);
}

static json_t *manifest_json(const struct store *s, const struct store_point *p)
{
    const struct manifest *m = p->manifest;
    json_t *disks = json_array();
    struct verified v;

    verified_read(s, p->name, &v);
    for (unsigned i = 0; disks && i < m->count; i++) {
        (void)json_array_append_new(disks, disk_json(&m->disks[i]));
    }
    return disks ? json_pack("{s:s, s:I, s:s?, s:s?, s:s?, s:b, s:I, s:I, s:o}",
                             "name", p->name, "time", (json_int_t)m->time,
                             "source", m->source, "source-version",
                             m->source_version, "program", m->program,
                             "pending", p == store_pending(s), "verified",
                             (json_int_t)v.when, "damages",
                             (json_int_t)v.damages, "disks", disks)
                 : NULL;
}

static json_t *point_json(const struct store *s, const struct store_point *p)
{
    return p->manifest ? manifest_json(s, p)
                       : json_pack("{s:s, s:s, s:b}", "name", p->name, "error",
                                   p->why, "pending", p == store_pending(s));
}

/* --- All of them, or one --- */

struct listing {
    const struct store *store;
    json_t *json; /* an array; NULL: for people */
    bool damaged;
    bool failed;
};

static void list_point(struct listing *l, const struct store_point *p)
{
    l->damaged = l->damaged || !p->manifest;
    if (!l->json) {
        print_point(l->store, p);
    } else if (json_array_append_new(l->json, point_json(l->store, p)) < 0) {
        l->failed = true;
    }
}

static void list_points(struct listing *l, const struct store_point *only)
{
    const struct store *s = l->store;

    if (!l->json) {
        printf("%-20s  %-8s  %10s  %10s  %-9s  %-19s  %s\n", "Point", "Disk",
               "Size", "Written", "Kind", "Reason", "Verified");
    }
    for (unsigned i = 0; !only && i < store_count(s); i++) {
        list_point(l, store_point(s, i));
    }
    if (only) {
        list_point(l, only);
    } else if (store_pending(s)) {
        list_point(l, store_pending(s));
    }
}

static int print_points(const struct store *s, const struct store_point *only,
                        bool json)
{
    struct listing l = {.store = s, .json = json ? json_array() : NULL};

    list_points(&l, only);
    if (json) {
        CLEANUP_JSON json_t *all = json_pack("{s:s, s:s, s:o}", "directory",
                                             store_path(s), "id", store_id(s),
                                             "points", l.json);
        if (!all || l.failed) {
            return cli_failed(command.name, "Out of memory, or '%s' is no text",
                              store_path(s));
        }
        cli_print_json(all);
    }
    int r = cli_finish(command.name);
    return r == 0 && l.damaged ? POINT_DAMAGED : r;
}

int cmd_points(int argc, char **argv)
{
    CLEANUP_STORE struct store *s = NULL;
    const struct store_point *only = NULL;
    bool json = false;
    int code;
    int r = 0;

    while (r == 0 && (code = cli_next(&command, argc, argv)) != CLI_END) {
        if (code != OPT_OUTPUT) {
            return code == CLI_HELP ? cli_finish(command.name) : CLI_USAGE;
        }
        r = cli_output_format(&command, optarg, &json);
    }
    if (r != 0) {
        return r;
    }
    if (argc - optind != 1) {
        return cli_usage(&command, argc == optind ? "which directory?"
                                                  : "too many arguments");
    }
    r = point_arg_open(command.name, argv[optind], &s, &only);
    return r != 0 ? r : print_points(s, only, json);
}
