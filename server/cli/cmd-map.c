/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta map: what each range of a disk is.
 *
 *   image:  blk_extents, bitmap --\
 *   URI:    BLOCK_STATUS replies --+-> struct map_run -> map-output.h
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <libnbd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/image-open.h"
#include "cli/map-output.h"
#include "cli/nbd-client.h"
#include "cli/object-option.h"
#include "cli/picture.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "objects/object.h"

enum {
    OPT_OUTPUT = CLI_LONG,
    OPT_ROWS,
    OPT_BITMAP,
    OPT_ALLOW_PATH,
    OPT_SNAPSHOT,
    OPT_OBJECT,
};

static const struct cli_option option_table[] = {
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"force-share", 'U', NULL,
     "open it even while another process writes to it"},
    {"bitmap", OPT_BITMAP, "BITMAP", "print what is dirty in this bitmap"},
    {"snapshot", OPT_SNAPSHOT, "SNAPSHOT",
     "of the image's snapshot with this id or name"},
    {"allow-path", OPT_ALLOW_PATH, "DIR",
     "open backing files in DIR and below, too"},
    {"object", OPT_OBJECT, OBJECT_OPTION_ARG, OBJECT_OPTION_HELP},
    {"output", OPT_OUTPUT, "human|json|picture|ansi|svg",
     "print for people (default), for programs, or a picture"},
    {"rows", OPT_ROWS, "N", "rows of a picture, 1 to 200"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "map",
    .usage = "[-U] [-f FORMAT] [--bitmap BITMAP|--snapshot SNAPSHOT] "
             "[--allow-path DIR] [--object OPTIONS] "
             "[--output human|json] IMAGE\n"
             "[--bitmap BITMAP] [--output human|json] URI\n"
             "--output picture|ansi|svg [--rows N] ... IMAGE|URI",
    .about = "Print which ranges of a disk hold data, read as zeroes, or are\n"
             "dirty in a bitmap.\n"
             "As a picture: ansi has colours, svg is a file, and picture has\n"
             "colours on a terminal, without NO_COLOR.\n",
    .options = option_table,
    .operands = "IMAGE|URI",
};

/* --- Images --- */

static int add_image_extent(const struct extent *e, void *opaque)
{
    struct map_run r = {
        .start = e->offset,
        .length = e->length,
        .flags = e->flags,
        .depth = e->depth,
        .host = e->host,
        .file = e->host_file,
    };
    return map_add(opaque, &r);
}

static int map_bits(struct map *m, const struct bitmap *bm, uint64_t size)
{
    int r = 0;

    map_begin_bits(m);
    for (uint64_t at = 0; at < size && r == 0;) {
        struct map_run run = {.start = at};

        run.length = bitmap_run(bm, at, size, &run.dirty);
        r = map_add(m, &run);
        at += run.length;
    }
    return r;
}

static int no_bitmap(struct graph *g, const struct blk *b, const char *image,
                     const char *name, struct error **errp)
{
    const struct node *n = bitmap_below(g, blk_node(b), name);

    return n ? error_set(errp, ENOENT,
                         "image '%s' has no bitmap '%s'; that of '%s' below it "
                         "tells nothing about this one",
                         image, name, node_filename(n))
             : error_set(errp, ENOENT, "image '%s' has no bitmap '%s'", image,
                         name);
}

/* With a reference; NULL and 0 if none is asked for. */
static int find_bitmap(const struct map *m, struct graph *g, struct blk *b,
                       struct bitmap **bmp, struct error **errp)
{
    struct bitmap *bm = m->bitmap ? blk_bitmap_find(b, m->bitmap) : NULL;

    *bmp = NULL;
    if (!bm) {
        return m->bitmap ? no_bitmap(g, b, m->disk, m->bitmap, errp) : 0;
    }
    if (!bitmap_readable(bm)) {
        bitmap_unref(bm);
        return error_set(errp, EINVAL,
                         "Bitmap '%s' is inconsistent and cannot be used (see "
                         "'nbdelta bitmap repair')",
                         m->bitmap);
    }
    *bmp = bm;
    return 0;
}

static int map_disk(struct map *m, struct graph *g, struct blk *b,
                    struct error **errp)
{
    struct bitmap *bm;
    int r = find_bitmap(m, g, b, &bm, errp);

    r = r < 0 ? r : map_begin(m, blk_size(b), errp);
    if (r == 0 && (!bm || map_is_picture(m))) {
        r = blk_extents(b, 0, blk_size(b), 0, add_image_extent, m);
        r = r < 0 ? error_set(errp, -r, "cannot map '%s': %s", m->disk,
                              strerror(-r))
                  : 0;
    }
    if (r == 0 && bm) {
        r = map_bits(m, bm, blk_size(b));
        r = r < 0
                ? error_set(errp, -r, "cannot write the map: %s", strerror(-r))
                : 0;
    }
    bitmap_unref(bm);
    return r;
}

static int map_image(struct map *m, struct graph *g, const struct image_open *o,
                     struct error **errp)
{
    struct node *n;
    struct blk *b;
    int r = image_open(g, o, &n, errp);

    r = r < 0 ? r : blk_new(g, n, PERM_READ, PERM_ALL, "map", &b, errp);
    if (r < 0) {
        return r;
    }
    r = map_disk(m, g, b, errp);
    blk_free(b);
    return r;
}

/* --- Exports --- */

/* One request for block status, and how far its reply came. */
struct reply {
    struct map *map;
    const char *context;
    uint64_t next;
    uint64_t end;
    int error;
};

static void run_of_state(const struct reply *rp, uint32_t state,
                         struct map_run *r)
{
    if (rp->map->bits) {
        r->dirty = state & 1;
        return;
    }
    r->flags = EXTENT_ALLOCATED;
    r->flags |= state & LIBNBD_STATE_HOLE ? 0 : EXTENT_DATA;
    r->flags |= state & LIBNBD_STATE_ZERO ? EXTENT_ZERO : 0;
}

/* @entries are pairs of a length and a state. */
static int add_reply(void *opaque, const char *context, uint64_t offset,
                     uint32_t *entries, size_t nr_entries, int *error)
{
    struct reply *rp = opaque;

    (void)error;
    if (strcmp(context, rp->context) != 0 || offset != rp->next) {
        return 0;
    }
    for (size_t i = 0; i + 1 < nr_entries && rp->error == 0; i += 2) {
        struct map_run r = {
            .start = rp->next,
            .length = min_u64(entries[i], rp->end - rp->next),
        };
        if (r.length == 0) {
            break;
        }
        run_of_state(rp, entries[i + 1], &r);
        rp->error = map_add(rp->map, &r);
        rp->next += r.length;
    }
    return 0;
}

static int map_context(struct map *m, struct nbd_handle *h, const char *context,
                       uint64_t size, struct error **errp)
{
    struct reply rp = {.map = m, .context = context, .end = size};

    while (rp.next < rp.end && rp.error == 0) {
        nbd_extent_callback each = {.callback = add_reply, .user_data = &rp};
        uint64_t before = rp.next;
        uint64_t bytes = min_u64(rp.end - rp.next, 2 * GiB);

        if (nbd_block_status(h, bytes, rp.next, each, 0) < 0) {
            int errnum = nbd_get_errno();
            return error_set(errp, errnum > 0 ? errnum : EIO, "%s",
                             nbd_get_error());
        }
        if (rp.next == before && rp.error == 0) {
            return error_set(errp, EPROTO,
                             "the server tells nothing of offset %" PRIu64,
                             before);
        }
    }
    return rp.error < 0 ? error_set(errp, -rp.error, "cannot write the map: %s",
                                    strerror(-rp.error))
                        : 0;
}

#define CONTEXT_DISK "base:allocation"

/* @bits: the context of the bitmap, or NULL. */
static int map_export(struct map *m, struct nbd_handle *h, const char *bits,
                      struct error **errp)
{
    bool both = bits && map_is_picture(m);
    int r = client_go(h, bits ? bits : CONTEXT_DISK, both ? CONTEXT_DISK : NULL,
                      errp);
    int64_t answer = r < 0 ? 0 : nbd_get_size(h);
    uint64_t size = answer > 0 ? (uint64_t)answer : 0;

    r = r < 0 ? r : map_begin(m, size, errp);
    if (r == 0 && (!bits || both)) {
        r = map_context(m, h, CONTEXT_DISK, size, errp);
    }
    if (r == 0 && bits) {
        map_begin_bits(m);
        r = map_context(m, h, bits, size, errp);
    }
    if (r == 0) {
        (void)nbd_shutdown(h, 0);
    }
    return r;
}

static int map_uri(struct map *m, const char *uri, struct error **errp)
{
    CLEANUP_FREE char *bits = NULL;
    struct nbd_handle *h;

    if (m->bitmap && asprintf(&bits, "qemu:dirty-bitmap:%s", m->bitmap) < 0) {
        bits = NULL;
        return error_nomem(errp);
    }
    int r = client_connect(uri, &h, errp);
    if (r == 0) {
        r = map_export(m, h, bits, errp);
        nbd_close(h);
    }
    return r;
}

/* --- */

struct request {
    struct map map;
    struct image_open open;
    struct objects *objects;
};

static int take_format(struct map *m)
{
    return map_format_parse(optarg, &m->format)
               ? 0
               : cli_usage(&command,
                           "--output must be human, json, picture, ansi or "
                           "svg, not '%s'",
                           optarg);
}

static int take_rows(struct map *m)
{
    char *end;
    unsigned long n = strtoul(optarg, &end, 10);

    m->rows = (unsigned)n;
    return *optarg < '0' || *optarg > '9' || *end || n < 1 ||
                   n > PICTURE_ROWS_MAX
               ? cli_usage(&command, "--rows must be from 1 to %d, not '%s'",
                           PICTURE_ROWS_MAX, optarg)
               : 0;
}

static int take_map_options(struct request *rq, struct graph *g, int argc,
                            char **argv)
{
    int code;

    while ((code = cli_next(&command, argc, argv)) >= 0) {
        switch (code) {
        case 'f':
            rq->open.format = optarg;
            break;
        case 'U':
            rq->open.force_share = true;
            break;
        case OPT_BITMAP:
            rq->map.bitmap = optarg;
            break;
        case OPT_SNAPSHOT:
            rq->open.snapshot = optarg;
            break;
        case OPT_OBJECT:
            if (object_option(&command, rq->objects, optarg) != 0) {
                return CLI_BAD;
            }
            break;
        case OPT_ALLOW_PATH:
            if (image_allow_path(&command, g, optarg) != 0) {
                return CLI_BAD;
            }
            break;
        case OPT_ROWS:
            if (take_rows(&rq->map) != 0) {
                return CLI_BAD;
            }
            break;
        default:
            if (take_format(&rq->map) != 0) {
                return CLI_BAD;
            }
            break;
        }
    }
    return code;
}

static int run_map(struct request *rq, struct graph *g, int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    int code = take_map_options(rq, g, argc, argv);

    if (code != CLI_END) {
        return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
    }
    if (argc - optind != 1) {
        return cli_usage(&command, "give one image or URI");
    }
    rq->open.image = rq->map.disk = argv[optind];
    rq->map.uri = client_is_uri(rq->open.image);
    if (rq->open.snapshot && (rq->map.uri || rq->map.bitmap)) {
        return cli_usage(&command, "--snapshot is for images, and without a "
                                   "bitmap");
    }
    if (rq->map.rows > 0 && !map_is_picture(&rq->map)) {
        return cli_usage(&command, "--rows is for pictures (--output)");
    }
    int r = rq->map.uri ? map_uri(&rq->map, rq->open.image, &err)
                        : map_image(&rq->map, g, &rq->open, &err);
    if (r < 0) {
        return cli_error(command.name, err);
    }
    map_end(&rq->map);
    return cli_finish(command.name);
}

int cmd_map(int argc, char **argv)
{
    CLEANUP_GRAPH struct graph *g = graph_new();
    CLEANUP_OBJECTS struct objects *objects = objects_new(g);
    struct request rq = {.objects = objects};
    int r = objects ? run_map(&rq, g, argc, argv)
                    : cli_failed(command.name, "no memory");

    map_release(&rq.map);
    return r;
}
