/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta verify: have the files of a backup directory what was written? */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/point-arg.h"
#include "cli/progress.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/size.h"
#include "nbdelta/text.h"
#include "store/store.h"
#include "store/sums.h"
#include "store/verify.h"

enum {
    OPT_QUICK = CLI_LONG,
    OPT_PART,
    OPT_OUTPUT,
    OPT_PROGRESS,
};

static const struct cli_option option_table[] = {
    {"quick", OPT_QUICK, NULL, "read no data: only manifests, hashes, tables"},
    {"part", OPT_PART, "N/M", "read the N-th of M parts of each file"},
    {"output", OPT_OUTPUT, "human|json",
     "print for people (default), or for programs"},
    {"progress", OPT_PROGRESS, "json", "print a JSON line a second on stderr"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "verify",
    .usage = "[--quick | --part N/M] [--output human|json] "
             "[--progress=json] DIR[@POINT]",
    .about = "Compare the files of a backup directory with the hashes that\n"
             "were made when they were written.  With @POINT: of that point\n"
             "and of all that it needs.\n",
    .options = option_table,
    .operands = "DIR[@POINT]",
};

static _Atomic bool stopped;

static void on_signal(int sig)
{
    (void)sig;
    stopped = true;
}

static void catch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};

    for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
        struct sigaction old;
        struct sigaction new = {.sa_handler = on_signal};

        /* What nohup ignores stays ignored. */
        if (sigaction(signals[i], NULL, &old) == 0 &&
            old.sa_handler != SIG_IGN) {
            (void)sigaction(signals[i], &new, NULL);
        }
    }
}

/* --- Output --- */

struct output {
    json_t *damage; /* an array; NULL: for people */
    bool failed;
};

static void print_damage(const struct damage *d)
{
    CLEANUP_FREE char *disk = text_printable(d->disk ? d->disk : "");
    CLEANUP_FREE char *what = text_printable(d->what);

    printf("%s", d->point);
    if (d->disk) {
        printf(" disk '%s'", disk ? disk : "?");
    }
    if (d->bytes > 0) {
        printf(" bytes %" PRIu64 " to %" PRIu64, d->offset,
               d->offset + d->bytes - 1);
    }
    printf(": %s\n", what ? what : "?");
}

static void on_damage(const struct damage *d, void *opaque)
{
    struct output *out = opaque;

    if (!out->damage) {
        print_damage(d);
    } else if (json_array_append_new(
                   out->damage,
                   json_pack("{s:s, s:s?, s:I, s:I, s:s}", "point", d->point,
                             "disk", d->disk, "offset", (json_int_t)d->offset,
                             "bytes", (json_int_t)d->bytes, "what", d->what)) <
               0) {
        out->failed = true;
    }
}

/* People see that it worked; a mail of cron is empty then. */
static void print_summary(const struct verify_result *result)
{
    char size[32];

    if (isatty(STDOUT_FILENO)) {
        printf("%" PRIu64 " files, %s read: %" PRIu64 " damaged ranges\n",
               result->files,
               size_human(result->units * SUMS_UNIT, size, sizeof(size)),
               result->damages);
    }
}

static int print_json(const struct store *s, const struct output *out,
                      const struct verify_result *result)
{
    CLEANUP_JSON json_t *all =
        json_pack("{s:s, s:I, s:I, s:O}", "directory", store_path(s), "files",
                  (json_int_t)result->files, "units", (json_int_t)result->units,
                  "damage", out->damage);

    if (!all || out->failed) {
        return cli_failed(command.name, "Out of memory, or '%s' is no text",
                          store_path(s));
    }
    cli_print_json(all);
    return 0;
}

/* --- Progress --- */

static void bytes_of(void *opaque, uint64_t *done, uint64_t *total)
{
    const struct verify_progress *p = opaque;

    *done = p->done;
    *total = p->total;
}

static double done_of(void *opaque)
{
    uint64_t done;
    uint64_t total;

    bytes_of(opaque, &done, &total);
    return total ? (double)done / (double)total : 1;
}

/* --- The command --- */

static int verify(struct store *s, const struct store_point *point,
                  struct verify_options o, bool json, bool progress_json)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *damage = json ? json_array() : NULL;
    struct output out = {.damage = damage};
    struct verify_result result = {.files = 0};
    struct verify_progress progress = {.done = 0};

    o.progress = &progress;
    o.stop = &stopped;
    o.on_damage = on_damage;
    o.opaque = &out;
    catch_signals();
    struct progress *shown = progress_json
                                 ? progress_start_json(bytes_of, &progress)
                                 : progress_start("verify", done_of, &progress);
    int r = point ? verify_point(s, point->name, true, &o, &result, &err)
                  : verify_all(s, &o, &result, &err);
    progress_stop(shown);
    int status = 0;
    if (r == 0 || r == -EUCLEAN) {
        if (json) {
            status = print_json(s, &out, &result);
        } else {
            print_summary(&result);
        }
    }
    status = cli_finish(command.name) != 0 ? EXIT_FAILURE : status;
    if (r < 0) {
        int failed = cli_error(command.name, err);
        status = status ? status : failed;
    }
    return status;
}

/* "N/M", each a number of at most four digits. */
static int take_part(const char *text, struct verify_options *o)
{
    unsigned n[2] = {0, 0};

    for (int i = 0; i < 2; i++) {
        size_t digits = strspn(text, "0123456789");

        if (digits == 0 || digits > 4 || text[digits] != (i ? '\0' : '/')) {
            return cli_usage(&command, "--part must be N/M, as 1/7");
        }
        n[i] = (unsigned)strtoul(text, NULL, 10);
        text += digits + 1;
    }
    o->part = n[0];
    o->parts = n[1];
    return n[0] >= 1 && n[0] <= n[1] && n[1] <= 1000
               ? 0
               : cli_usage(&command,
                           "--part %u/%u: N is 1 to M, and M at most 1000",
                           n[0], n[1]);
}

static int take_option(int code, struct verify_options *o, bool *json,
                       bool *progress_json)
{
    switch (code) {
    case OPT_QUICK:
        o->quick = true;
        return 0;
    case OPT_PART:
        return take_part(optarg, o);
    case OPT_OUTPUT:
        return cli_output_format(&command, optarg, json);
    case OPT_PROGRESS:
        *progress_json = true;
        return strcmp(optarg, "json") == 0
                   ? 0
                   : cli_usage(&command, "--progress is json, not '%s'",
                               optarg);
    default:
        return CLI_USAGE;
    }
}

int cmd_verify(int argc, char **argv)
{
    CLEANUP_STORE struct store *s = NULL;
    const struct store_point *point = NULL;
    struct verify_options o = {.quick = false};
    bool json = false;
    bool progress_json = false;
    int code;

    while ((code = cli_next(&command, argc, argv)) != CLI_END) {
        if (code == CLI_HELP) {
            return cli_finish(command.name);
        }
        int r = take_option(code, &o, &json, &progress_json);
        if (r != 0) {
            return r;
        }
    }
    if (argc - optind != 1) {
        return cli_usage(&command, argc == optind ? "which directory?"
                                                  : "too many arguments");
    }
    if (o.quick && o.parts > 0) {
        return cli_usage(&command, "--quick reads no part");
    }
    int r = point_arg_open(command.name, argv[optind], &s, &point);
    return r != 0 ? r : verify(s, point, o, json, progress_json);
}
