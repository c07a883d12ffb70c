/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta resize: grow or shrink the disk of an image.  Options and words are
 * those of qemu-img resize. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/image-open.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/size.h"

enum { OPT_SHRINK = CLI_LONG, OPT_PREALLOCATION, OPT_IMAGE_OPTS };

static const struct cli_option option_table[] = {
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"image-opts", OPT_IMAGE_OPTS, NULL,
     "IMAGE is a list of options, as in QEMU's tools"},
    {"preallocation", OPT_PREALLOCATION, "off|metadata|falloc|full",
     "of what grows: off (default), metadata, falloc or full"},
    {"shrink", OPT_SHRINK, NULL, "let the disk lose its end"},
    {"quiet", 'q', NULL, "print nothing but errors"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "resize",
    .usage = "[-f FORMAT] [--shrink] [--preallocation "
             "off|metadata|falloc|full] [-q] "
             "IMAGE [+|-]SIZE",
    .about = "Grow or shrink the disk of an image that nobody uses.  SIZE is\n"
             "in bytes or has one of the suffixes k M G T P E; with a sign it\n"
             "is the difference.\n",
    .options = option_table,
    .operands = "IMAGE SIZE",
};

struct request {
    struct image_open open;
    enum image_room room;
    bool shrink;
    bool quiet;
    char sign; /* '+', '-', or 0 */
    uint64_t amount;
};

/* --- The work --- */

/* The size that the disk shall have. */
static int work_out_size(const struct request *q, uint64_t old, uint64_t *size,
                         struct error **errp)
{
    uint64_t max = INT64_MAX;

    if (q->sign == '+' && q->amount > max - min_u64(old, max)) {
        return error_set(errp, EFBIG, "New image size is too large");
    }
    *size = q->sign == '+'   ? old + q->amount
            : q->sign == '-' ? old - min_u64(old, q->amount)
                             : q->amount;
    if (*size == 0) {
        return error_set(errp, EINVAL, "New image size must be positive");
    }
    if (*size < old && !q->shrink) {
        return error_set(errp, EINVAL,
                         "The disk would lose what is behind its new end, for "
                         "good; --shrink says that this is meant");
    }
    if (*size <= old && q->room != IMAGE_ROOM_NONE) {
        return error_set(errp, EINVAL,
                         "Preallocation can only be used for growing images");
    }
    return 0;
}

/* Without the room that was asked for, the disk stays as it was. */
static int resize_disk(const struct request *q, struct blk *b,
                       struct error **errp)
{
    uint64_t old = node_size(blk_node(b));
    uint64_t size = 0;
    int r = work_out_size(q, old, &size, errp);

    if (r == 0) {
        r = blk_resize(b, size, errp);
    }
    if (r < 0 || size <= old) {
        return r;
    }
    r = image_preallocate(b, old, size - old, q->room, errp);
    if (r < 0) {
        (void)blk_resize(b, old, NULL);
    }
    return r;
}

static int resize_node(const struct request *q, struct graph *g, struct node *n,
                       struct error **errp)
{
    struct blk *b;
    int r = blk_new(g, n, PERM_READ | PERM_WRITE | PERM_RESIZE, 0, "a resize",
                    &b, errp);

    if (r < 0) {
        return r;
    }
    r = resize_disk(q, b, errp);
    if (r == 0) {
        r = blk_flush(b);
        r = r < 0 ? error_set(errp, -r, "cannot flush '%s': %s", q->open.image,
                              strerror(-r))
                  : 0;
    }
    blk_free(b);
    return r;
}

static int resize_image(const struct request *q)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct graph *g = graph_new();
    struct node *n;

    int r = g ? image_open(g, &q->open, &n, &err) : error_nomem(&err);
    if (r == 0) {
        r = resize_node(q, g, n, &err);
    }
    graph_free(g);
    if (r < 0) {
        return cli_error(command.name, err);
    }
    if (!q->quiet) {
        printf("Image resized.\n");
    }
    return cli_finish(command.name);
}

/* --- The command line --- */

static int take_room(struct request *q, const char *text)
{
    static const char *const words[] = {
        [IMAGE_ROOM_NONE] = "off",
        [IMAGE_ROOM_METADATA] = "metadata",
        [IMAGE_ROOM_FALLOC] = "falloc",
        [IMAGE_ROOM_FULL] = "full",
    };

    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(text, words[i]) == 0) {
            q->room = (enum image_room)i;
            return 0;
        }
    }
    return cli_usage(&command, "'%s' is no mode of preallocation", text);
}

static int take_size(struct request *q, const char *text)
{
    const char *number = text;

    if (*text == '+' || *text == '-') {
        q->sign = *text;
        number++;
    }
    return *number >= '0' && *number <= '9' &&
                   size_parse(number, &q->amount) == 0
               ? 0
               : cli_no_size(&command, text);
}

static int take_options(struct request *q, int argc, char **argv)
{
    int code;
    int r = 0;

    while (r == 0 && (code = cli_next(&command, argc, argv)) != CLI_END) {
        switch (code) {
        case 'f':
            q->open.format = optarg;
            break;
        case 'q':
            q->quiet = true;
            break;
        case OPT_SHRINK:
            q->shrink = true;
            break;
        case OPT_IMAGE_OPTS:
            q->open.image_opts = true;
            break;
        case OPT_PREALLOCATION:
            r = take_room(q, optarg);
            break;
        default:
            return code == CLI_HELP ? -1 : CLI_USAGE;
        }
    }
    return r;
}

/* The size comes last, and may look like an option: "-1G". */
static bool is_difference(const char *text)
{
    return text[0] == '-' && text[1] >= '0' && text[1] <= '9';
}

int cmd_resize(int argc, char **argv)
{
    struct request q = {.open = {.writable = true}};
    char *size = NULL;

    if (argc > 2 && is_difference(argv[argc - 1])) {
        size = argv[--argc];
        argv[argc] = NULL;
    }
    int r = take_options(&q, argc, argv);
    if (r != 0) {
        return r < 0 ? EXIT_SUCCESS : r;
    }
    argc -= optind;
    argv += optind;
    if (!size && argc > 1) {
        size = argv[--argc];
    }
    if (argc != 1 || !size) {
        return cli_usage(&command, "an image and a size are needed");
    }
    q.open.image = argv[0];
    r = take_size(&q, size);
    return r != 0 ? r : resize_image(&q);
}
