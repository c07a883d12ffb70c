/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta compare: have two disks the same content?  Options, output and exit
 * statuses are those of qemu-img compare. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/disk-arg.h"
#include "cli/disk-compare.h"
#include "cli/progress.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"

enum {
    STATUS_SAME = 0,
    STATUS_DIFFERENT = 1,
    STATUS_UNOPENED = 2, /* and a wrong command line */
    STATUS_UNREAD = 4,
};

enum { OPT_DISK = CLI_LONG, OPT_IMAGE_OPTS, OPT_ALLOW_PATH };

static const struct cli_option option_table[] = {
    {"format", 'f', "FORMAT",
     "format of the first image (default: look at it)"},
    {"second-format", 'F', "FORMAT",
     "format of the second image (default: look at it)"},
    {"disk", OPT_DISK, "DISK", "the disk of a point that has more than one"},
    {"image-opts", OPT_IMAGE_OPTS, NULL,
     "images are lists of options, as in driver=qcow2,file.filename=a"},
    {"strict", 's', NULL, "sizes, and places of data and holes, count, too"},
    {"force-share", 'U', NULL,
     "open images even while another process writes to them"},
    {"allow-path", OPT_ALLOW_PATH, "DIR",
     "open backing files in DIR and below, too"},
    {"progress", 'p', NULL, "show the progress, on a terminal"},
    {"quiet", 'q', NULL, "print nothing but errors"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "compare",
    .usage = "[-f FORMAT] [-F FORMAT] [--disk DISK] [--image-opts] [-s] [-U] "
             "[-p] [-q]\n[--allow-path DIR] DISK1 DISK2",
    .about =
        "Compare the content of two disks.  Each is an image, the URI of an "
        "NBD export,\nor a point of a backup directory, DIR[@POINT].\n",
    .options = option_table,
    .operands = "IMAGE|URI|DIR[@POINT]...",
};

struct request {
    struct disk_arg disk[2];
    struct disk_compare compare;
    bool quiet;
    bool show_progress;
};

static double tell_share(void *opaque)
{
    const struct request *q = opaque;
    uint64_t all = max_u64(blk_size(q->compare.disk[0]),
                           blk_size(q->compare.disk[1]));

    return all ? (double)q->compare.done / (double)all : 1;
}

/* --- The result --- */

static void say(const struct request *q, const char *text)
{
    if (!q->quiet) {
        puts(text);
    }
}

static int tell_difference(const struct request *q, uint64_t shorter,
                           uint64_t longer)
{
    const struct disk_compare *c = &q->compare;

    /* Where both are, all is the same. */
    if (shorter < longer && !c->strict &&
        (c->difference == DISKS_SAME || c->offset >= shorter)) {
        say(q, "Warning: Image size mismatch!");
    }
    if (c->difference == DISKS_SAME) {
        say(q, "Images are identical.");
        return STATUS_SAME;
    }
    if (!q->quiet && c->difference == DISKS_DIFFER) {
        printf("Content mismatch at offset %" PRIu64 "!\n", c->offset);
    } else if (!q->quiet) {
        printf("Strict mode: Offset %" PRIu64 " block status mismatch!\n",
               c->offset);
    }
    return STATUS_DIFFERENT;
}

/* --- */

static int compare_open(struct request *q)
{
    CLEANUP_ERROR struct error *err = NULL;
    uint64_t a = blk_size(q->disk[0].blk);
    uint64_t b = blk_size(q->disk[1].blk);
    int failed;

    if (q->compare.strict && a != b) {
        say(q, "Strict mode: Image size mismatch!");
        return STATUS_DIFFERENT;
    }
    q->compare.disk[0] = q->disk[0].blk;
    q->compare.disk[1] = q->disk[1].blk;
    struct progress *bar = q->show_progress
                               ? progress_start("compare", tell_share, q)
                               : NULL;
    int r = disk_compare(&q->compare, &failed, &err);
    progress_stop(bar);
    if (r == 0) {
        return tell_difference(q, min_u64(a, b), max_u64(a, b));
    }
    if (failed >= 0) {
        error_prefix(&err, "'%s': ", q->disk[failed].arg);
    }
    (void)cli_error(command.name, err);
    return STATUS_UNREAD;
}

static int compare(struct graph *g, struct request *q)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = disk_arg_open(g, command.name, &q->disk[0], &err);

    r = r < 0 ? r : disk_arg_open(g, command.name, &q->disk[1], &err);
    int status;
    if (r == 0) {
        status = compare_open(q);
    } else if ((status = cli_error(command.name, err)) != CLI_LOCKED) {
        status = STATUS_UNOPENED;
    }
    disk_arg_close(&q->disk[0]);
    disk_arg_close(&q->disk[1]);
    return cli_finish(command.name) != 0 ? STATUS_UNREAD : status;
}

static int take_option(struct request *q, struct graph *g, int code)
{
    switch (code) {
    case 'f':
        q->disk[0].format = optarg;
        break;
    case 'F':
        q->disk[1].format = optarg;
        break;
    case OPT_DISK:
        q->disk[0].disk = q->disk[1].disk = optarg;
        break;
    case OPT_IMAGE_OPTS:
        q->disk[0].image_opts = q->disk[1].image_opts = true;
        break;
    case OPT_ALLOW_PATH:
        return image_allow_path(&command, g, optarg);
    case 's':
        q->compare.strict = true;
        break;
    case 'U':
        q->disk[0].force_share = q->disk[1].force_share = true;
        break;
    case 'p':
        q->show_progress = true;
        break;
    default:
        q->quiet = true;
        break;
    }
    return 0;
}

static int run(struct graph *g, struct request *q, int argc, char **argv)
{
    int code;

    while ((code = cli_next(&command, argc, argv)) >= 0) {
        if (take_option(q, g, code) != 0) {
            return STATUS_UNOPENED;
        }
    }
    if (code != CLI_END) {
        return code == CLI_HELP ? STATUS_SAME : STATUS_UNOPENED;
    }
    if (argc - optind != 2) {
        (void)cli_usage(&command, "give two disks");
        return STATUS_UNOPENED;
    }
    q->disk[0].arg = argv[optind];
    q->disk[1].arg = argv[optind + 1];
    return compare(g, q);
}

int cmd_compare(int argc, char **argv)
{
    struct request q = {.quiet = false};
    struct graph *g = graph_new();
    int status = g ? run(g, &q, argc, argv)
                   : cli_failed(command.name, "no memory");

    graph_free(g);
    disk_arg_release(&q.disk[0]);
    disk_arg_release(&q.disk[1]);
    return status;
}
