/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta prune: points of a backup directory go that no rule keeps.
 *
 *     options -> rules -> plan --dry-run--> table
 *                           |
 *                           +--> one point after the other, oldest first
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/keep-options.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/size.h"
#include "store/prune.h"
#include "store/store.h"

enum { OPT_KEEP = CLI_LONG };

static const struct cli_option option_table[] = {
    KEEP_OPTION_ROWS(OPT_KEEP),
    {"dry-run", 'n', NULL, "change nothing; print which points would go"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "prune",
    .usage = "[--keep-last N] [--keep-hourly N] [--keep-daily N]\n"
             "      [--keep-weekly N] [--keep-monthly N] [--keep-yearly N]\n"
             "      [--keep-within SPAN] [--dry-run] DIR",
    .about = "Remove points of the backup directory DIR that no rule keeps.\n"
             "Hours, days, weeks, months and years without a point do not\n"
             "count.  N is a number or 'unlimited'.  The latest point always\n"
             "stays.\n",
    .options = option_table,
    .operands = "DIR",
};

/* --- What would go --- */

/* "daily, weekly" into @out. */
static void list_reasons(unsigned kept, char *out, size_t max)
{
    static const struct {
        unsigned bit;
        const char *word;
    } others[] = {
        {KEEP_UNREADABLE, "its manifest cannot be read"},
        {KEEP_NEEDED, "another point may need it"},
    };
    size_t n = 0;

    out[0] = '\0';
    for (unsigned bit = 1; bit <= KEEP_NEWEST; bit <<= 1) {
        if (kept & bit && n < max) {
            n += (size_t)snprintf(out + n, max - n, "%s%s", n ? ", " : "",
                                  rules_word(bit));
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
        if (kept & others[i].bit && n < max) {
            n += (size_t)snprintf(out + n, max - n, "%s%s", n ? ", " : "",
                                  others[i].word);
        }
    }
}

static void print_table(const struct prune_point *points, unsigned count)
{
    uint64_t bytes = 0;
    unsigned gone = 0;
    char size[32];

    printf("%-22s%-8s%-12s%s\n", "Point", "", "Freed", "Kept by");
    for (unsigned i = 0; i < count; i++) {
        char shown[POINT_SHOWN_MAX];
        char why[200];

        point_name_show(points[i].name, shown);
        list_reasons(points[i].kept, why, sizeof(why));
        if (points[i].kept) {
            printf("%-22s%-8s%-12s%s\n", shown, "keep", "", why);
        } else {
            printf("%-22s%-8s%s\n", shown, "remove",
                   size_human(points[i].bytes, size, sizeof(size)));
            bytes += points[i].bytes;
            gone++;
        }
    }
    printf("%u of %u points would go, %s freed\n", gone, count,
           size_human(bytes, size, sizeof(size)));
}

static bool any_unreadable(const struct store *s)
{
    bool any = false;

    for (unsigned i = 0; i < store_count(s); i++) {
        any |= !store_point(s, i)->manifest;
    }
    return any;
}

static int dry_run(struct store *s, const struct keep_rules *rules,
                   struct error **errp)
{
    CLEANUP_FREE struct prune_point *points = NULL;
    int r = prune_plan(s, rules, &points, errp);

    r = r < 0 ? r : prune_estimate(s, points, errp);
    if (r < 0) {
        return r;
    }
    print_table(points, store_count(s));
    return any_unreadable(s)
               ? error_set(errp, EUCLEAN, "a manifest cannot be used")
               : 0;
}

/* --- Removing --- */

static void tell_left(const char *point, const struct error *why)
{
    char shown[POINT_SHOWN_MAX];

    point_name_show(point, shown);
    (void)cli_failed(command.name, "point %s is left: %s", shown,
                     error_message(why));
}

static int prune(struct store *s, const struct keep_rules *rules,
                 struct error **errp)
{
    CLEANUP_FREE struct prune_point *points = NULL;
    struct prune_result result = {.removed = 0};
    char size[32];
    int r = prune_recover(s, NULL, errp);

    r = r < 0 ? r : prune_plan(s, rules, &points, errp);
    if (r < 0) {
        return r;
    }
    r = prune_all(s, points, store_count(s), tell_left, &result, errp);
    if (isatty(STDOUT_FILENO)) {
        printf("%u point%s removed, %s freed\n", result.removed,
               result.removed == 1 ? "" : "s",
               size_human(result.freed, size, sizeof(size)));
    }
    return r;
}

/* --- The command line --- */

struct request {
    struct keep_rules rules;
    bool dry_run;
};

static int run_prune(const struct request *rq, const char *dir)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_STORE struct store *s = NULL;
    int r = store_open(dir, rq->dry_run ? STORE_READ : STORE_WRITE,
                       "nbdelta prune", &s, &err);

    if (r == 0) {
        r = rq->dry_run ? dry_run(s, &rq->rules, &err)
                        : prune(s, &rq->rules, &err);
    }
    if (r < 0) {
        return cli_error(command.name, err);
    }
    return cli_finish(command.name);
}

/* 0, or the exit status. */
static int take_option(struct request *rq, int code)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = 0;

    if (code == 'n') {
        rq->dry_run = true;
    } else {
        r = keep_option_take(&rq->rules, code - OPT_KEEP, optarg, &err);
    }
    return r < 0 ? cli_usage(&command, "%s", error_message(err)) : 0;
}

int cmd_prune(int argc, char **argv)
{
    struct request rq = {.dry_run = false};
    int code;

    while ((code = cli_next(&command, argc, argv)) != CLI_END) {
        if (code == CLI_HELP || code == CLI_BAD) {
            return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
        }
        int r = take_option(&rq, code);
        if (r != 0) {
            return r;
        }
    }
    if (argc - optind != 1) {
        return cli_usage(&command, argc == optind ? "which directory?"
                                                  : "too many arguments");
    }
    if (!rules_any(&rq.rules)) {
        return cli_usage(&command, "give at least one of the --keep options");
    }
    return run_prune(&rq, argv[optind]);
}
