/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta snapshot: the internal snapshots of an image that nobody serves.
 * Options are those of qemu-img snapshot. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/image-open.h"
#include "cli/snapshot-list.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"

static const struct cli_option option_table[] = {
    {"list", 'l', NULL, "list the snapshots (default)"},
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"force-share", 'U', NULL, "list: even while another process writes"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "snapshot",
    .usage = "[-l] [-f FORMAT] [-U] IMAGE",
    .about = "List the internal snapshots of an image.\n",
    .options = option_table,
};

static int list_snapshots(struct graph *g, struct image_open *o,
                          struct error **errp)
{
    struct node *n;

    o->header_only = true;
    o->no_bitmaps = true;
    int r = image_open(g, o, &n, errp);
    if (r < 0) {
        return r;
    }
    CLEANUP_JSON json_t *info = node_image_info(g, n);
    if (!info) {
        return error_nomem(errp);
    }
    snapshot_list_print(json_object_get(info, "snapshots"));
    return 0;
}

int cmd_snapshot(int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct image_open o = {0};
    int code;

    while ((code = cli_next(&command, argc, argv)) >= 0) {
        switch (code) {
        case 'f':
            o.format = optarg;
            break;
        case 'U':
            o.force_share = true;
            break;
        default:
            break;
        }
    }
    if (code != CLI_END) {
        return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
    }
    if (argc - optind != 1) {
        return cli_usage(&command, "give one image");
    }
    o.image = argv[optind];
    struct graph *g = graph_new();
    int r = g ? list_snapshots(g, &o, &err) : error_nomem(&err);
    graph_free(g);
    return r < 0 ? cli_error(command.name, err) : cli_finish(command.name);
}
