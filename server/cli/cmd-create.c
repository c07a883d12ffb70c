/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta create: make an image file. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/format-options.h"
#include "cli/object-option.h"
#include "cli/progress.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/size.h"
#include "objects/object.h"

enum { OPT_TRACK = CLI_LONG, OPT_BITMAP, OPT_FORCE, OPT_OBJECT };

static const struct cli_option option_table[] = {
    {"format", 'f', "FORMAT", "format of the image: qcow2 (default) or raw"},
    {"options", 'o', "KEY=VALUE,...",
     "set options of the format; '-o help' lists them"},
    {"backing", 'b', "FILE",
     "make an overlay: show FILE where nothing was written"},
    {"backing-format", 'F', "FORMAT",
     "format of the backing file; -b needs it"},
    {"object", OPT_OBJECT, OBJECT_OPTION_ARG, OBJECT_OPTION_HELP},
    {"track", OPT_TRACK, "RAW", "make an image that tracks the raw disk RAW"},
    {"bitmap", OPT_BITMAP, "NAME", "with --track: add a dirty bitmap"},
    {"force", OPT_FORCE, NULL,
     "with --track: take RAW as raw, whatever it looks like"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "create",
    .usage = "[-f FORMAT] [-o KEY=VALUE,...] [--object OPTIONS] FILE SIZE\n"
             "[-o KEY=VALUE,...] -b BACKING -F FORMAT FILE [SIZE]\n"
             "--track RAW [--bitmap NAME] [--force] FILE",
    .about = "Create an empty disk image.  SIZE is in bytes or has one of\n"
             "the suffixes k M G T P E; with a backing file it can be left\n"
             "out.  An image that is there already is replaced, unless\n"
             "another process uses it.\n"
             "\n"
             "With --track, FILE is a new qcow2 image without data.  It has\n"
             "bitmaps that remember which blocks of the raw disk RAW change.\n",
    .options = option_table,
    .operands = "FILE SIZE",
};

/* --- Progress of preallocation: how much of the file takes space --- */

struct growth {
    const char *filename;
    double size;
};

static double grown(void *opaque)
{
    const struct growth *g = opaque;
    struct stat st;

    if (g->size <= 0 || stat(g->filename, &st) < 0) {
        return 0;
    }
    return (double)st.st_blocks * 512 / g->size;
}

static struct progress *show_growth(struct growth *g, const json_t *options)
{
    const char *how =
        json_string_value(json_object_get(options, "preallocation"));
    const json_t *size = json_object_get(options, "size");
    uint64_t bytes = 0;

    if (!how || (strcmp(how, "falloc") != 0 && strcmp(how, "full") != 0)) {
        return NULL;
    }
    if (json_is_string(size)) {
        (void)size_parse(json_string_value(size), &bytes);
    } else {
        bytes = (uint64_t)json_integer_value(size);
    }
    g->size = (double)bytes;
    return progress_start("preallocating", grown, g);
}

/* --- */

struct request {
    const char *format;
    json_t *options;
    struct graph *graph; /* has what --object makes */
    struct objects *objects;
    bool help; /* list the options of the format */
    const char *track;
    const char *bitmap;
    bool force;
};

static int add_option(struct request *rq, const char *key, const char *value)
{
    if (json_object_set_new(rq->options, key, json_string(value)) < 0) {
        return cli_failed(command.name, "'%s' is not UTF-8", value);
    }
    return 0;
}

static int create_image(struct request *rq, const char *filename)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct growth growth = {.filename = filename};
    struct progress *progress = show_growth(&growth, rq->options);

    int r = image_create_with(rq->graph, filename, rq->format, rq->options,
                              &err);
    progress_stop(progress);
    return r < 0 ? cli_error(command.name, err) : EXIT_SUCCESS;
}

static int track_disk(const struct request *rq, const char *filename)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct image_track how = {rq->options, rq->bitmap, rq->force};

    return image_track(filename, rq->track, &how, &err) < 0
               ? cli_error(command.name, err)
               : EXIT_SUCCESS;
}

/* FILE alone, and what makes no sense beside it. */
static int take_tracked(const struct request *rq, int argc, char **argv)
{
    if (argc < 1) {
        return cli_usage(&command, "which file?");
    }
    if (argc > 1) {
        return cli_usage(&command, "the size is that of '%s'", rq->track);
    }
    if (strcmp(rq->format, "qcow2") != 0) {
        return cli_usage(&command, "--track makes a qcow2 image");
    }
    return track_disk(rq, argv[0]);
}

static int take_file_and_size(struct request *rq, int argc, char **argv)
{
    int r = 0;

    if (rq->help) {
        return format_options_print(&command, rq->format,
                                    image_create_options(rq->format));
    }
    if (rq->track) {
        return take_tracked(rq, argc, argv);
    }
    if (rq->bitmap || rq->force) {
        return cli_usage(&command, "'%s' needs --track",
                         rq->bitmap ? "--bitmap" : "--force");
    }
    if (argc < 1 || argc > 2) {
        return cli_usage(&command,
                         argc < 1 ? "which file?" : "too many arguments");
    }
    if (argc == 2) {
        uint64_t size;
        if (size_parse(argv[1], &size) < 0) {
            return cli_no_size(&command, argv[1]);
        }
        r = add_option(rq, "size", argv[1]);
    } else if (!json_object_get(rq->options, "size") &&
               !json_object_get(rq->options, "backing_file")) {
        return cli_usage(&command, "a size is needed");
    }
    return r != 0 ? r : create_image(rq, argv[0]);
}

static int run_create(struct request *rq, int argc, char **argv)
{
    int code;
    int r = 0;

    while (r == 0 && (code = cli_next(&command, argc, argv)) != CLI_END) {
        switch (code) {
        case 'f':
            rq->format = optarg;
            break;
        case 'o':
            r = format_options_add(&command, optarg, rq->options, &rq->help);
            break;
        case 'b':
            r = add_option(rq, "backing_file", optarg);
            break;
        case 'F':
            r = add_option(rq, "backing_fmt", optarg);
            break;
        case OPT_OBJECT:
            r = object_option(&command, rq->objects, optarg);
            break;
        case OPT_TRACK:
            rq->track = optarg;
            break;
        case OPT_BITMAP:
            rq->bitmap = optarg;
            break;
        case OPT_FORCE:
            rq->force = true;
            break;
        default:
            return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
        }
    }
    return r != 0 ? r : take_file_and_size(rq, argc - optind, argv + optind);
}

int cmd_create(int argc, char **argv)
{
    CLEANUP_GRAPH struct graph *g = graph_new();
    CLEANUP_OBJECTS struct objects *objects = objects_new(g);
    CLEANUP_JSON json_t *options = json_object();
    struct request rq = {
        .format = "qcow2",
        .options = options,
        .graph = g,
        .objects = objects,
    };

    return objects && options ? run_create(&rq, argc, argv)
                              : cli_failed(command.name, "no memory");
}
