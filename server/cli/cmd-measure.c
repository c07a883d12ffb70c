/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta measure: how large will an image be?  Options and output are those of
 * qemu-img measure. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/disk-arg.h"
#include "cli/format-options.h"
#include "cli/image-open.h"
#include "cli/object-option.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/size.h"
#include "objects/object.h"

enum {
    OPT_SIZE = CLI_LONG,
    OPT_DISK,
    OPT_IMAGE_OPTS,
    OPT_ALLOW_PATH,
    OPT_OBJECT,
    OPT_OUTPUT,
};

static const struct cli_option option_table[] = {
    {"target-format", 'O', "FORMAT",
     "format of the new image: raw (default) or qcow2"},
    {"options", 'o', "KEY=VALUE,...",
     "options of the new image; '-o help' lists them"},
    {"size", OPT_SIZE, "SIZE", "of an empty disk with so many bytes"},
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"snapshot", 'l', "SNAPSHOT",
     "of the image's snapshot with this id or name"},
    {"disk", OPT_DISK, "DISK", "the disk of a point that has more than one"},
    {"image-opts", OPT_IMAGE_OPTS, NULL,
     "DISK is a list of options, as in QEMU's tools"},
    {"force-share", 'U', NULL,
     "open it even while another process writes to it"},
    {"allow-path", OPT_ALLOW_PATH, "DIR",
     "open backing files in DIR and below, too"},
    {"object", OPT_OBJECT, OBJECT_OPTION_ARG, OBJECT_OPTION_HELP},
    {"output", OPT_OUTPUT, "human|json",
     "print for people (default), or for programs"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "measure",
    .usage = "[-O FORMAT] [-o KEY=VALUE,...] [--object OPTIONS]\n"
             "[--output human|json] --size SIZE\n"
             "[-O FORMAT] [-o KEY=VALUE,...] [-f FORMAT] [-l SNAPSHOT] [-U]\n"
             "[--disk DISK] [--image-opts] [--allow-path DIR] "
             "[--object OPTIONS]\n[--output human|json] DISK",
    .about = "Print how large a file, or a block device, has to be for a new\n"
             "image: of an empty disk, or with the content of DISK.  That is\n"
             "an image, the URI of an NBD export, or a point of a backup\n"
             "directory, DIR[@POINT].\n",
    .options = option_table,
    .operands = "IMAGE|URI|DIR[@POINT]",
};

struct request {
    struct disk_arg disk; /* no `arg`: an empty disk */
    struct objects *objects;
    const char *format;
    json_t *options;
    bool sized; /* they have "size" */
    bool help;
    bool json;
};

/* --- The result --- */

static void print_json(const struct image_measure *m)
{
    CLEANUP_JSON json_t *j = json_object();

    if (m->has_bitmaps) {
        (void)json_object_set_new(j, "bitmaps",
                                  json_integer((json_int_t)m->bitmaps));
    }
    (void)json_object_set_new(j, "required",
                              json_integer((json_int_t)m->required));
    (void)json_object_set_new(j, "fully-allocated",
                              json_integer((json_int_t)m->fully_allocated));
    cli_print_json(j);
}

static void print_human(const struct image_measure *m)
{
    printf("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n",
           m->required, m->fully_allocated);
    if (m->has_bitmaps) {
        printf("bitmaps size: %" PRIu64 "\n", m->bitmaps);
    }
}

/* --- */

static int measure(struct graph *g, struct request *q)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct image_measure m;
    int r = q->disk.arg ? disk_arg_open(g, command.name, &q->disk, &err) : 0;

    r = r < 0 ? r : image_measure(q->format, q->options, q->disk.blk, &m, &err);
    disk_arg_close(&q->disk);
    if (r < 0) {
        return cli_error(command.name, err);
    }
    if (q->json) {
        print_json(&m);
    } else {
        print_human(&m);
    }
    return cli_finish(command.name);
}

static int take_size(struct request *q, const char *text)
{
    uint64_t size;

    if (size_parse(text, &size) < 0) {
        return cli_no_size(&command, text);
    }
    q->sized = true;
    return json_object_set_new(q->options, "size", json_string(text)) < 0
               ? cli_failed(command.name, "no memory")
               : 0;
}

static int take_option(struct request *q, struct graph *g, int code)
{
    switch (code) {
    case 'O':
        q->format = optarg;
        return 0;
    case 'o':
        return format_options_add(&command, optarg, q->options, &q->help);
    case OPT_SIZE:
        return take_size(q, optarg);
    case 'f':
        q->disk.format = optarg;
        return 0;
    case 'l':
        q->disk.snapshot = optarg;
        return 0;
    case OPT_DISK:
        q->disk.disk = optarg;
        return 0;
    case OPT_IMAGE_OPTS:
        q->disk.image_opts = true;
        return 0;
    case 'U':
        q->disk.force_share = true;
        return 0;
    case OPT_ALLOW_PATH:
        return image_allow_path(&command, g, optarg);
    case OPT_OBJECT:
        return object_option(&command, q->objects, optarg);
    default:
        return cli_output_format(&command, optarg, &q->json);
    }
}

/* What is wrong with the command line, or NULL. */
static const char *find_contradiction(const struct request *q, int arguments)
{
    const struct disk_arg *d = &q->disk;

    if (arguments > 1 || (arguments == 1) == q->sized) {
        return q->sized && arguments > 0
                   ? "--size cannot be used together with a disk"
                   : "give either --size or one disk";
    }
    return q->sized && (d->format || d->snapshot || d->disk || d->image_opts)
               ? "-f, -l, --disk and --image-opts need a disk"
               : NULL;
}

static int run(struct graph *g, struct request *q, int argc, char **argv)
{
    int code;

    while ((code = cli_next(&command, argc, argv)) >= 0) {
        int status = take_option(q, g, code);

        if (status != 0) {
            return status;
        }
    }
    if (code != CLI_END) {
        return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
    }
    if (q->help) {
        return format_options_print(&command, q->format,
                                    image_create_options(q->format));
    }
    const char *wrong = find_contradiction(q, argc - optind);
    if (wrong) {
        return cli_usage(&command, "%s", wrong);
    }
    q->disk.arg = argv[optind];
    return measure(g, q);
}

static int measure_disk(struct request *q, int argc, char **argv)
{
    CLEANUP_GRAPH struct graph *g = graph_new();
    CLEANUP_OBJECTS struct objects *objects = objects_new(g);
    CLEANUP_JSON json_t *options = json_object();

    q->objects = objects;
    q->options = options;
    return objects && options ? run(g, q, argc, argv)
                              : cli_failed(command.name, "no memory");
}

int cmd_measure(int argc, char **argv)
{
    struct request q = {.disk = {.with_bitmaps = true}, .format = "raw"};
    int status = measure_disk(&q, argc, argv);

    disk_arg_release(&q.disk);
    return status;
}
