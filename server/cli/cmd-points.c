/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta points: what is in a backup directory, by its manifests; and whether
 * it is as it should be, for monitors (points-check.h).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/point-arg.h"
#include "cli/points-check.h"
#include "cli/points-tree.h"
#include "cli/terminal.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/size.h"
#include "nbdelta/text.h"
#include "store/health.h"
#include "store/store.h"
#include "store/verify.h"

enum {
    OPT_OUTPUT = CLI_LONG,
    OPT_CHECK,
    OPT_MAX_AGE,
    OPT_MAX_VERIFY_AGE,
    OPT_METRICS,
};

static const struct cli_option option_table[] = {
    {"output", OPT_OUTPUT, "human|json|tree",
     "print for people (default), for programs, or draw the chains"},
    {"check", OPT_CHECK, NULL,
     "print one line, and exit, as plugins of Nagios do"},
    {"max-age", OPT_MAX_AGE, "AGE",
     "--check: critical if the latest point is older: 26h"},
    {"max-verify-age", OPT_MAX_VERIFY_AGE, "AGE",
     "--check: warn if a point was not verified for so long: 14d"},
    {"metrics", OPT_METRICS, "FILE",
     "write metrics for Prometheus to FILE; print no list"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "points",
    .usage = "[--output human|json|tree] DIR[@POINT]\n"
             "--check [--max-age AGE] [--max-verify-age AGE] [--metrics FILE] "
             "DIR\n"
             "--metrics FILE DIR",
    .about = "List the points of a backup directory: their disks, why a disk\n"
             "was copied as a whole, and when they were verified.  Or tell\n"
             "monitors how it is.\n",
    .options = option_table,
    .operands = "DIR[@POINT]",
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
                               : v.damages > 0
                                   ? v.lost == v.damages ? "LOST" : "DAMAGED"
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
    return disks
               ? json_pack(
                     "{s:s, s:I, s:s?, s:s?, s:s?, s:b, s:I, s:I, s:I, s:o}",
                     "name", p->name, "time", (json_int_t)m->time, "source",
                     m->source, "source-version", m->source_version, "program",
                     m->program, "pending", p == store_pending(s), "verified",
                     (json_int_t)v.when, "damages", (json_int_t)v.damages,
                     "lost", (json_int_t)v.lost, "disks", disks)
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
    return r == 0 && l.damaged ? CLI_DAMAGED : r;
}

static bool has_unreadable(const struct store *s)
{
    bool found = false;

    for (unsigned i = 0; i < store_count(s) && !found; i++) {
        found = !store_point(s, i)->manifest;
    }
    return found || (store_pending(s) && !store_pending(s)->manifest);
}

static int draw_points(struct store *s, const struct store_point *only)
{
    CLEANUP_ERROR struct error *err = NULL;
    char name[POINT_NAME_MAX] = "";

    if (only) { /* it can move while the tree is drawn */
        memcpy(name, only->name, sizeof(name));
    }
    if (points_tree(s, only ? name : NULL, terminal_utf8(), stdout, &err) < 0) {
        return cli_error(command.name, err);
    }
    int r = cli_finish(command.name);
    return r == 0 && !only && has_unreadable(s) ? CLI_DAMAGED : r;
}

/* --- For monitors --- */

struct request {
    const char *output; /* NULL: human */
    bool check;
    const char *max_age;
    const char *max_verify_age;
    const char *metrics;
};

/* -EINVAL: an age is none. */
static int take_limits(const struct request *rq, struct check_limits *limits,
                       struct error **errp)
{
    int r = rq->max_age ? check_parse_age(rq->max_age, &limits->max_age, errp)
                        : 0;

    return r < 0 || !rq->max_verify_age
               ? r
               : check_parse_age(rq->max_verify_age, &limits->max_verify_age,
                                 errp);
}

/* What is not there is told in the metrics, too. */
static int look(const struct request *rq, const char *dir,
                struct store_health *h, struct error **errp)
{
    CLEANUP_ERROR struct error *why = NULL;
    CLEANUP_STORE struct store *s = NULL;
    int r = store_open(dir, STORE_READ, command.name, &s, &why);

    r = r < 0 ? r : store_look(s, h, &why);
    if (rq->metrics) {
        int w = metrics_write(rq->metrics, dir, r < 0 ? NULL : s,
                              r < 0 ? NULL : h, errp);
        if (w < 0) {
            return w;
        }
    }
    return r < 0 ? error_set(errp, -r, "%s", error_message(why)) : 0;
}

static int check(const struct request *rq, int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct check_limits limits = {.max_age = 0};
    struct store_health h;

    if (argc != 1 || rq->output) {
        return (int)check_print_unknown(
            rq->output ? "--check goes without --output"
                       : "--check needs one directory (see --help)");
    }
    int r = take_limits(rq, &limits, &err);
    r = r < 0 ? r : look(rq, argv[0], &h, &err);
    int state = (int)(r < 0 ? check_print_unknown(error_message(err))
                            : check_print(&h, &limits, time(NULL)));
    return cli_finish(command.name) == 0 ? state : CHECK_UNKNOWN;
}

static int only_metrics(const struct request *rq, const char *dir)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct store_health h;

    return look(rq, dir, &h, &err) < 0 ? cli_error(command.name, err) : 0;
}

/* --- The command line --- */

enum form { FORM_HUMAN, FORM_JSON, FORM_TREE };

static int take_form(const char *text, enum form *form)
{
    static const char *const words[] = {"human", "json", "tree"};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        if (strcmp(text, words[i]) == 0) {
            *form = (enum form)i;
            return 0;
        }
    }
    return cli_usage(&command, "--output must be human, json or tree, not '%s'",
                     text);
}

static int take_options(struct request *rq, int argc, char **argv)
{
    int code;

    while ((code = cli_next(&command, argc, argv)) >= 0) {
        switch (code) {
        case OPT_OUTPUT:
            rq->output = optarg;
            break;
        case OPT_CHECK:
            rq->check = true;
            break;
        case OPT_MAX_AGE:
            rq->max_age = optarg;
            break;
        case OPT_MAX_VERIFY_AGE:
            rq->max_verify_age = optarg;
            break;
        default:
            rq->metrics = optarg;
            break;
        }
    }
    return code;
}

/* For a plugin, 2 means "critical". */
static int usage_status(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--check") == 0) {
            return (int)check_print_unknown("the command line is wrong");
        }
    }
    return CLI_USAGE;
}

static int check_usage(const struct request *rq, int argc)
{
    if (rq->max_age || rq->max_verify_age) {
        return cli_usage(&command, "--max-age and --max-verify-age are for "
                                   "--check");
    }
    if (rq->metrics && rq->output) {
        return cli_usage(&command, "--metrics goes without --output");
    }
    return argc == 1 ? 0
                     : cli_usage(&command, argc == 0 ? "which directory?"
                                                     : "too many arguments");
}

int cmd_points(int argc, char **argv)
{
    CLEANUP_STORE struct store *s = NULL;
    const struct store_point *only = NULL;
    struct request rq = {.output = NULL};
    enum form form = FORM_HUMAN;
    int code = take_options(&rq, argc, argv);

    if (code != CLI_END) {
        return code == CLI_HELP ? cli_finish(command.name)
                                : usage_status(argc, argv);
    }
    if (rq.check) {
        return check(&rq, argc - optind, argv + optind);
    }
    int r = check_usage(&rq, argc - optind);
    if (r == 0 && rq.output) {
        r = take_form(rq.output, &form);
    }
    if (r != 0 || rq.metrics) {
        return r ? r : only_metrics(&rq, argv[optind]);
    }
    r = point_arg_open(command.name, argv[optind], &s, &only);
    if (r != 0) {
        return r;
    }
    return form == FORM_TREE ? draw_points(s, only)
                             : print_points(s, only, form == FORM_JSON);
}
