/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta amend: other properties for an image that nobody uses.  Options are
 * those of qemu-img amend. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/format-options.h"
#include "cli/image-open.h"
#include "cli/object-option.h"
#include "cli/progress.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "objects/object.h"

enum { OPT_IMAGE_OPTS = CLI_LONG, OPT_OBJECT };

static const struct cli_option option_table[] = {
    {"options", 'o', "KEY=VALUE,...",
     "what the image shall be; '-o help' lists it"},
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"image-opts", OPT_IMAGE_OPTS, NULL,
     "IMAGE is a list of options, as in QEMU's tools"},
    {"object", OPT_OBJECT, OBJECT_OPTION_ARG, OBJECT_OPTION_HELP},
    {"progress", 'p', NULL, "show the progress, on a terminal"},
    {"quiet", 'q', NULL, "print nothing but errors"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "amend",
    .usage = "[-f FORMAT] [--image-opts] [--object OPTIONS] [-p] [-q]\n"
             "-o KEY=VALUE,... IMAGE\n"
             "[-f FORMAT] -o help",
    .about = "Give an image that nobody uses other properties.  What a guest\n"
             "sees stays the same.\n",
    .options = option_table,
    .operands = "IMAGE",
};

struct request {
    struct image_open open;
    struct objects *objects;
    json_t *options;
    bool help;
    bool show_progress;
    _Atomic double share;
};

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

/* Do the options need the disk's data, or the header alone? */
static bool needs_data(const json_t *options)
{
    const char *compat = json_string_value(json_object_get(options, "compat"));

    return json_object_get(options, "size") ||
           (compat &&
            (strcmp(compat, "0.10") == 0 || strcmp(compat, "v2") == 0));
}

/* Its backing file is opened only where the disk's end has to be compared with
 * it: perhaps it is not there. */
static int amend(struct graph *g, struct request *q, struct error **errp)
{
    const char *backing =
        json_string_value(json_object_get(q->options, "backing_file"));
    const struct image_amend how = {.progress = note_share, .opaque = q};
    struct node *n;

    q->open.writable = true;
    q->open.no_backing = !json_object_get(q->options, "size");
    q->open.header_only = !needs_data(q->options);
    int r = image_open(g, &q->open, &n, errp);
    if (r == 0 && backing && backing[0] != '\0') {
        r = image_check_other(n, q->open.image, backing, errp);
    }
    if (r < 0) {
        return r;
    }
    struct progress *bar = q->show_progress
                               ? progress_start("amend", tell_share, q)
                               : NULL;
    r = image_amend(g, n, q->options, &how, errp);
    progress_stop(bar);
    return r;
}

static int print_help(const struct request *q)
{
    const char *format = q->open.format ? q->open.format : "qcow2";

    return format_options_print(&command, format, image_amend_options(format));
}

static int take_option(struct request *q, int code)
{
    switch (code) {
    case 'o':
        return format_options_add(&command, optarg, q->options, &q->help);
    case 'f':
        q->open.format = optarg;
        return 0;
    case OPT_IMAGE_OPTS:
        q->open.image_opts = true;
        return 0;
    case OPT_OBJECT:
        return object_option(&command, q->objects, optarg);
    case 'p':
        q->show_progress = true;
        return 0;
    default: /* -q: nothing is printed anyway */
        return 0;
    }
}

static int run(struct graph *g, struct request *q, int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    int code;

    while ((code = cli_next(&command, argc, argv)) >= 0) {
        int status = take_option(q, code);

        if (status != 0) {
            return status;
        }
    }
    if (code != CLI_END) {
        return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
    }
    if (q->help) {
        return print_help(q);
    }
    if (json_object_size(q->options) == 0) {
        return cli_usage(&command, "say what to change (-o)");
    }
    if (argc - optind != 1) {
        return cli_usage(&command, "give one image");
    }
    q->open.image = argv[optind];
    return amend(g, q, &err) < 0 ? cli_error(command.name, err) : EXIT_SUCCESS;
}

int cmd_amend(int argc, char **argv)
{
    CLEANUP_GRAPH struct graph *g = graph_new();
    CLEANUP_OBJECTS struct objects *objects = objects_new(g);
    CLEANUP_JSON json_t *options = json_object();
    struct request q = {.objects = objects, .options = options};

    return objects && options ? run(g, &q, argc, argv)
                              : cli_failed(command.name, "no memory");
}
