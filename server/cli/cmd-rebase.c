/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta rebase: an image gets another backing file.
 *
 *   1. what the image shows and the new backing file has not is written to the
 *      image (not with -u)
 *   2. it is flushed
 *   3. one write of the header names the new backing file
 *
 * A crash before 3 leaves the old backing file, and the same disk.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/disk-rebase.h"
#include "cli/image-open.h"
#include "cli/nbd-client.h"
#include "cli/progress.h"
#include "nbdelta/blk.h"
#include "nbdelta/chain.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/options.h"

enum { OPT_ALLOW_PATH = CLI_LONG };

static const struct cli_option option_table[] = {
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"backing", 'b', "FILE",
     "the new backing file, as the image shall name it; '': none"},
    {"backing-format", 'F', "FORMAT",
     "format of the new backing file; -b needs it"},
    {"unsafe", 'u', NULL, "change the name only: the content is the same"},
    {"allow-path", OPT_ALLOW_PATH, "DIR",
     "open backing files in DIR and below, too"},
    {"progress", 'p', NULL, "show the progress, on a terminal"},
    {"quiet", 'q', NULL, "print nothing but errors"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "rebase",
    .usage = "[-f FORMAT] [-u] [--allow-path DIR] [-p] [-q] -b FILE -F FORMAT\n"
             "IMAGE\n"
             "[-f FORMAT] [-u] [--allow-path DIR] [-p] [-q] -b '' IMAGE",
    .about = "Give an image another backing file, or none.  What a guest sees\n"
             "stays the same: what the new one has not is copied to the\n"
             "image.  With -u only the name is changed.\n",
    .options = option_table,
    .operands = "IMAGE",
};

struct request {
    struct image_open open;
    const char *backing; /* NULL: not given */
    const char *backing_format;
    bool show_progress;

    struct disk_rebase rebase;
};

static double tell_share(void *opaque)
{
    const struct request *q = opaque;
    uint64_t size = blk_size(q->rebase.image);

    return size ? (double)q->rebase.done / (double)size : 1;
}

/* --- The new backing file --- */

static int open_backing(struct graph *g, const struct request *q,
                        const struct node *image, struct blk **bp,
                        struct error **errp)
{
    bool plain = !options_spelled_out(q->backing) && !client_is_uri(q->backing);
    CLEANUP_FREE char *path = plain ? image_backing_path(image, q->backing)
                                    : NULL;
    const struct image_open o = {
        .image = path ? path : q->backing,
        .format = q->backing_format,
        .no_bitmaps = true,
    };
    struct node *n = NULL;

    if (plain && !path) {
        return error_set(errp, EINVAL, "'%s' names no file", q->backing);
    }
    int r = image_open(g, &o, &n, errp);
    if (r < 0) {
        error_prefix(errp, "the new backing file: ");
    }
    return r < 0 ? r : blk_new(g, n, PERM_READ, PERM_ALL, "rebase", bp, errp);
}

/* --- */

static int copy(struct graph *g, struct request *q, struct node *image,
                struct error **errp)
{
    struct disk_rebase *d = &q->rebase;
    int r = blk_new(g, image, PERM_READ | PERM_WRITE, PERM_READ, "rebase",
                    &d->image, errp);

    if (r == 0 && q->backing[0]) {
        r = open_backing(g, q, image, &d->backing, errp);
    }
    if (r == 0) {
        struct progress *bar = q->show_progress
                                   ? progress_start("rebase", tell_share, q)
                                   : NULL;

        r = disk_rebase(d, errp);
        progress_stop(bar);
    }
    blk_free(d->backing);
    blk_free(d->image);
    return r;
}

static int rebase(struct graph *g, struct request *q, struct error **errp)
{
    struct node *image;
    int r = image_open(g, &q->open, &image, errp);

    if (r == 0 && q->backing[0]) {
        r = image_check_other(image, q->open.image, q->backing, errp);
    }
    if (r == 0 && !q->open.no_backing) {
        r = copy(g, q, image, errp);
    }
    return r < 0
               ? r
               : image_set_backing(g, image, q->backing[0] ? q->backing : NULL,
                                   q->backing_format, errp);
}

static int take_command_line(struct request *q, struct graph *g, int argc,
                             char **argv)
{
    int code;

    while ((code = cli_next(&command, argc, argv)) >= 0) {
        switch (code) {
        case 'f':
            q->open.format = optarg;
            break;
        case 'b':
            q->backing = optarg;
            break;
        case 'F':
            q->backing_format = optarg;
            break;
        case 'u':
            q->open.no_backing = true;
            break;
        case OPT_ALLOW_PATH:
            if (image_allow_path(&command, g, optarg) != 0) {
                return CLI_BAD;
            }
            break;
        case 'p':
            q->show_progress = true;
            break;
        default: /* -q: nothing is printed anyway */
            break;
        }
    }
    if (code != CLI_END) {
        return code;
    }
    const char *wrong = argc - optind != 1 ? "give one image"
                        : !q->backing      ? "give the new backing file, -b"
                        : q->backing[0] && !q->backing_format
                            ? "-b needs -F: the format of the backing file"
                        : !q->backing[0] && q->backing_format
                            ? "-F has no meaning without a backing file"
                            : NULL;
    if (wrong) {
        (void)cli_usage(&command, "%s", wrong);
        return CLI_BAD;
    }
    q->open.image = argv[optind];
    return code;
}

static int run(struct graph *g, int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct request q = {.open.writable = true};
    int code = take_command_line(&q, g, argc, argv);

    if (code != CLI_END) {
        return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
    }
    return rebase(g, &q, &err) < 0 ? cli_error(command.name, err)
                                   : EXIT_SUCCESS;
}

int cmd_rebase(int argc, char **argv)
{
    CLEANUP_GRAPH struct graph *g = graph_new();

    return g ? run(g, argc, argv) : cli_failed(command.name, "no memory");
}
