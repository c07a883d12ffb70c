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
#include "nbdelta/action.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/internal-snapshot.h"

static const struct cli_option option_table[] = {
    {"list", 'l', NULL, "list the snapshots (default)"},
    {"create", 'c', "NAME", "make a snapshot of the disk as it is"},
    {"delete", 'd', "SNAPSHOT", "remove the first snapshot of this name"},
    {"apply", 'a', "SNAPSHOT",
     "let the disk be the snapshot with this name or id"},
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"force-share", 'U', NULL, "list: even while another process writes"},
    {"quiet", 'q', NULL, "does nothing: there is no chatter"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "snapshot",
    .usage = "[-l] [-f FORMAT] [-U] IMAGE\n"
             "-c NAME|-d SNAPSHOT|-a SNAPSHOT [-f FORMAT] IMAGE",
    .about = "List, make, remove or apply the internal snapshots of an image\n"
             "that no other process uses.\n",
    .options = option_table,
    .operands = "IMAGE",
};

struct request {
    struct image_open open;
    int verb; /* the option's letter; 0: none was given */
    const char *name;
};

static int list_snapshots(struct graph *g, struct request *q,
                          struct error **errp)
{
    struct node *n;

    q->open.header_only = true;
    q->open.no_bitmaps = true;
    int r = image_open(g, &q->open, &n, errp);
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

static int change_snapshots(struct graph *g, struct request *q,
                            struct error **errp)
{
    struct internal_options o = {
        .verb = q->verb == 'c'   ? INTERNAL_MAKE
                : q->verb == 'd' ? INTERNAL_REMOVE
                                 : INTERNAL_APPLY,
        .name = q->name,
    };
    struct action *a;

    q->open.writable = true;
    int r = image_open(g, &q->open, &o.node, errp);
    if (r == 0) {
        r = snapshot_internal_action(&o, &a, errp);
    }
    if (r == 0) {
        r = action_run(g, a, errp);
    }
    if (r < 0) {
        error_prefix(errp, "Could not %s snapshot '%s': ",
                     q->verb == 'c'   ? "create"
                     : q->verb == 'd' ? "delete"
                                      : "apply",
                     q->name);
    }
    return r;
}

static int take_option(struct request *q, int code)
{
    switch (code) {
    case 'f':
        q->open.format = optarg;
        return 0;
    case 'U':
        q->open.force_share = true;
        return 0;
    case 'q':
        return 0;
    default:
        if (q->verb != 0) {
            (void)cli_usage(&command, "give one of -l, -c, -d and -a");
            return CLI_BAD;
        }
        q->verb = code;
        q->name = optarg;
        return 0;
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
    q->verb = q->verb == 0 ? 'l' : q->verb;
    if (code == CLI_END && q->open.force_share && q->verb != 'l') {
        (void)cli_usage(&command, "-U is for -l");
        return CLI_BAD;
    }
    q->open.image = argv[optind];
    return code;
}

int cmd_snapshot(int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct request q = {.open = {0}};
    int code = take_command_line(&q, argc, argv);

    if (code != CLI_END) {
        return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
    }
    struct graph *g = graph_new();
    int r = !g              ? error_nomem(&err)
            : q.verb == 'l' ? list_snapshots(g, &q, &err)
                            : change_snapshots(g, &q, &err);
    graph_free(g);
    return r < 0 ? cli_error(command.name, err) : cli_finish(command.name);
}
