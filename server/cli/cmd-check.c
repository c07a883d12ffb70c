/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta check: is an image sound, and can it be made so?  Options, output and
 * exit statuses are those of qemu-img check. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/image-open.h"
#include "cli/progress.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"

/* A wrong command line is no corrupt image. */
enum {
    STATUS_CLEAN = 0,
    STATUS_UNCHECKED = 1,
    STATUS_CORRUPT = 2,
    STATUS_LEAKS = 3,
    STATUS_UNSUPPORTED = 63,
};

/* So many findings are printed. */
#define PRINTED_MAX 1000

enum { OPT_OUTPUT = CLI_LONG };

static const struct cli_option option_table[] = {
    {"repair", 'r', "leaks|all", "repair what is wrong (nothing is written)"},
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"force-share", 'U', NULL,
     "check it even while another process writes to it"},
    {"progress", 'p', NULL, "show the progress, on a terminal"},
    {"quiet", 'q', NULL, "print nothing but errors"},
    {"output", OPT_OUTPUT, "human|json",
     "print for people (default), or for programs"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "check",
    .usage = "[-r leaks|all] [-f FORMAT] [-U] [-p] [-q] "
             "[--output human|json] IMAGE",
    .about = "Check whether the metadata of an image are sound.  With -r, "
             "repair them.\n",
    .options = option_table,
    .operands = "IMAGE",
};

struct request {
    struct image_open open;
    enum image_repair repair;
    bool json;
    bool quiet;
    bool show_progress;

    uint64_t found;
    json_t *lost; /* ranges, or NULL */
    _Atomic double share;
};

/* --- While it is checked --- */

static void note_finding(const struct image_finding *f, void *opaque)
{
    static const char *const words[] = {
        [IMAGE_CORRUPT] = "ERROR: ",
        [IMAGE_LEAK] = "Leaked: ",
        [IMAGE_LOST] = "",
        [IMAGE_MENDED] = "",
    };
    struct request *q = opaque;

    if (f->fault == IMAGE_LOST && f->guest_bytes > 0) {
        q->lost = q->lost ? q->lost : json_array();
        (void)json_array_append_new(
            q->lost, json_pack("{s:I, s:I}", "start", (json_int_t)f->guest,
                               "length", (json_int_t)f->guest_bytes));
    }
    if (!q->quiet && q->found++ < PRINTED_MAX) {
        (void)fprintf(stderr, "%s%s\n", words[f->fault], f->text);
    }
}

static void note_share(double share, void *opaque)
{
    struct request *q = opaque;

    q->share = share;
}

static double tell_share(void *opaque)
{
    const struct request *q = opaque;

    return q->share;
}

/* --- The result --- */

static int put_number(json_t *to, const char *name, uint64_t number)
{
    return number
               ? json_object_set_new(to, name, json_integer((json_int_t)number))
               : 0;
}

static void print_json(struct request *q, const struct image_check *c)
{
    CLEANUP_JSON json_t *j = json_pack("{s:s, s:s, s:i}", "filename",
                                       q->open.image, "format", c->format,
                                       "check-errors", 0);
    int r = j ? 0 : -1;

    r |= put_number(j, "image-end-offset", c->image_end_offset);
    r |= put_number(j, "corruptions", c->corruptions);
    r |= put_number(j, "leaks", c->leaks);
    r |= put_number(j, "corruptions-fixed", c->corruptions_fixed);
    r |= put_number(j, "leaks-fixed", c->leaks_fixed);
    r |= put_number(j, "total-clusters", c->total_clusters);
    r |= put_number(j, "allocated-clusters", c->allocated_clusters);
    r |= put_number(j, "fragmented-clusters", c->fragmented_clusters);
    r |= put_number(j, "compressed-clusters", c->compressed_clusters);
    if (r == 0 && q->lost) {
        r = json_object_set(j, "lost", q->lost);
    }
    if (r == 0) {
        cli_print_json(j);
    }
}

static double percent(uint64_t part, uint64_t of)
{
    return of ? (double)part * 100 / (double)of : 0;
}

static void print_human(const struct request *q, const struct image_check *c)
{
    if (q->found > PRINTED_MAX) {
        (void)fprintf(stderr, "... and %" PRIu64 " more\n",
                      q->found - PRINTED_MAX);
    }
    if (c->corruptions_fixed || c->leaks_fixed) {
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" PRIu64 " leaked clusters\n    %" PRIu64
               " corruptions\n\n",
               c->leaks_fixed, c->corruptions_fixed);
    }
    if (!c->corruptions && !c->leaks) {
        printf("No errors were found on the image.\n");
    }
    if (c->corruptions) {
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may "
               "corrupt it.\n",
               c->corruptions);
    }
    if (c->leaks) {
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               c->leaks);
    }
    printf("%" PRIu64 "/%" PRIu64
           " = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed "
           "clusters\nImage end offset: %" PRIu64 "\n",
           c->allocated_clusters, c->total_clusters,
           percent(c->allocated_clusters, c->total_clusters),
           percent(c->fragmented_clusters, c->allocated_clusters),
           percent(c->compressed_clusters, c->allocated_clusters),
           c->image_end_offset);
}

/* --- */

/* The file of the image, not the image itself: that may be beyond opening. */
static int open_file(struct graph *g, struct request *q, struct node **file,
                     struct error **errp)
{
    struct image_open o = q->open;

    o.format = "raw";
    o.writable = q->repair != IMAGE_REPAIR_NONE;
    o.bytes_only = true;
    int r = image_check_format(q->open.format, errp);
    return r < 0 ? r : image_open(g, &o, file, errp);
}

static int check(struct request *q, struct image_check *c, struct error **errp)
{
    const struct image_check_options o = {
        .repair = q->repair,
        .found = note_finding,
        .progress = note_share,
        .opaque = q,
    };
    CLEANUP_GRAPH struct graph *g = graph_new();
    struct node *file;
    int r = g ? open_file(g, q, &file, errp) : error_nomem(errp);

    if (r == 0) {
        struct progress *bar = q->show_progress
                                   ? progress_start("check", tell_share, q)
                                   : NULL;

        r = image_check(g, file, q->open.format, &o, c, errp);
        progress_stop(bar);
    }
    return r;
}

static int take_option(struct request *q, int code)
{
    switch (code) {
    case 'r':
        q->repair = strcmp(optarg, "all") == 0 ? IMAGE_REPAIR_ALL
                                               : IMAGE_REPAIR_LEAKS;
        return q->repair == IMAGE_REPAIR_ALL || strcmp(optarg, "leaks") == 0
                   ? 0
                   : cli_usage(&command, "-r is leaks or all, not '%s'",
                               optarg);
    case 'f':
        q->open.format = optarg;
        return 0;
    case 'U':
        q->open.force_share = true;
        return 0;
    case 'p':
        q->show_progress = true;
        return 0;
    case 'q':
        q->quiet = true;
        return 0;
    default:
        return cli_output_format(&command, optarg, &q->json);
    }
}

static int take_command_line(struct request *q, int argc, char **argv)
{
    int code;

    while ((code = cli_next(&command, argc, argv)) >= 0) {
        if (take_option(q, code) != 0) {
            return CLI_BAD;
        }
    }
    if (code == CLI_END && argc - optind != 1) {
        (void)cli_usage(&command, "give one image");
        return CLI_BAD;
    }
    if (code == CLI_END && q->open.force_share &&
        q->repair != IMAGE_REPAIR_NONE) {
        (void)cli_usage(&command, "-U and -r exclude each other");
        return CLI_BAD;
    }
    q->open.image = argv[optind];
    return code;
}

int cmd_check(int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct image_check c = {0};
    struct request q = {.open = {0}};
    int code = take_command_line(&q, argc, argv);

    if (code != CLI_END) {
        return code == CLI_HELP ? STATUS_CLEAN : STATUS_UNCHECKED;
    }
    int r = check(&q, &c, &err);
    if (r < 0) {
        int status = cli_error(command.name, err);
        json_decref(q.lost);
        return r == -ENOTSUP          ? STATUS_UNSUPPORTED
               : status == CLI_LOCKED ? CLI_LOCKED
                                      : STATUS_UNCHECKED;
    }
    if (q.json) {
        print_json(&q, &c);
    } else if (!q.quiet) {
        print_human(&q, &c);
    }
    if (q.open.force_share) {
        (void)fprintf(stderr, "Another process may write to the image: this "
                              "may be out of date.\n");
    }
    json_decref(q.lost);
    return cli_finish(command.name) != 0 ? STATUS_UNCHECKED
           : c.corruptions               ? STATUS_CORRUPT
           : c.leaks                     ? STATUS_LEAKS
                                         : STATUS_CLEAN;
}
