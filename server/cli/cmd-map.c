/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta map: what each range of a disk is.
 *
 *   image:  blk_extents, bitmap --\
 *   URI:    BLOCK_STATUS replies --+-> struct run -> joined -> text or JSON
 *
 * Neighbours that are alike become one line.
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
#include "cli/nbd-client.h"
#include "cli/object-option.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/text.h"
#include "objects/object.h"

#define OPT_OUTPUT     CLI_LONG
#define OPT_BITMAP     (CLI_LONG + 1)
#define OPT_ALLOW_PATH (CLI_LONG + 2)
#define OPT_SNAPSHOT   (CLI_LONG + 3)
#define OPT_OBJECT     (CLI_LONG + 4)

static const struct cli_option option_table[] = {
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"force-share", 'U', NULL,
     "open it even while another process writes to it"},
    {"bitmap", OPT_BITMAP, "NAME", "print what is dirty in this bitmap"},
    {"snapshot", OPT_SNAPSHOT, "NAME",
     "of the image's snapshot with this id or name"},
    {"allow-path", OPT_ALLOW_PATH, "DIR",
     "open backing files in DIR and below, too"},
    {"object", OPT_OBJECT, OBJECT_OPTION_ARG, OBJECT_OPTION_HELP},
    {"output", OPT_OUTPUT, "human|json",
     "print for people (default), or for programs"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "map",
    .usage = "[-U] [-f FORMAT] [--bitmap NAME|--snapshot NAME] "
             "[--allow-path DIR] [--object OPTIONS] "
             "[--output human|json] IMAGE\n"
             "[--bitmap NAME] [--output human|json] URI",
    .about = "Print which ranges of a disk hold data, read as zeroes, or are\n"
             "dirty in a bitmap.\n",
    .options = option_table,
};

/* --- Output --- */

struct run {
    uint64_t start;
    uint64_t length;
    unsigned flags; /* enum extent_flags */
    unsigned depth;
    uint64_t host;
    const char *file; /* or NULL */
    bool dirty;       /* with a bitmap, and nothing else counts */
};

struct map {
    /* Set at the start. */
    bool json;
    bool bitmap;
    bool uri;

    struct run last; /* not printed yet, when its length is not 0 */
    char *last_file; /* its own copy */
    bool any;        /* something is printed */
};

static const char *yes_no(bool b)
{
    return b ? "true" : "false";
}

static void print_json(const struct map *m, const struct run *r)
{
    printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64,
           m->any ? ",\n" : "[", r->start, r->length);
    if (m->bitmap) {
        printf(", \"dirty\": %s}", yes_no(r->dirty));
        return;
    }
    printf(", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s, "
           "\"compressed\": %s",
           r->depth, yes_no(r->flags & EXTENT_ALLOCATED),
           yes_no(r->flags & EXTENT_ZERO), yes_no(r->flags & EXTENT_DATA),
           yes_no(r->flags & EXTENT_COMPRESSED));
    if (r->flags & EXTENT_HOST_VALID) {
        printf(", \"offset\": %" PRIu64, r->host);
    }
    putchar('}');
}

static const char *kind(const struct run *r)
{
    if (r->flags & EXTENT_COMPRESSED) {
        return "compressed";
    }
    if (r->flags & EXTENT_DATA) {
        return r->flags & EXTENT_ZERO ? "zero,allocated" : "data";
    }
    return r->flags & EXTENT_ZERO ? "zero" : "hole";
}

static void print_human(const struct map *m, const struct run *r)
{
    if (m->bitmap) {
        if (!m->any) {
            printf("%14s %14s  %s\n", "Start", "Length", "State");
        }
        printf("%14" PRIu64 " %14" PRIu64 "  %s\n", r->start, r->length,
               r->dirty ? "dirty" : "clean");
        return;
    }
    if (!m->any) {
        printf("%14s %14s  %s\n", "Start", "Length",
               m->uri ? "Kind" : "Kind           Depth  Mapped to       File");
    }
    printf("%14" PRIu64 " %14" PRIu64 "  ", r->start, r->length);
    if (m->uri) {
        printf("%s\n", kind(r));
    } else if (r->flags & EXTENT_HOST_VALID) {
        CLEANUP_FREE char *file = text_printable(r->file ? r->file : "");
        printf("%-14s %5u  %#-14" PRIx64 "  %s\n", kind(r), r->depth, r->host,
               file ? file : "?");
    } else if (r->flags & EXTENT_ALLOCATED) {
        printf("%-14s %5u\n", kind(r), r->depth);
    } else {
        printf("%-14s     -\n", kind(r));
    }
}

static void print_last(struct map *m)
{
    if (m->last.length > 0) {
        if (m->json) {
            print_json(m, &m->last);
        } else {
            print_human(m, &m->last);
        }
        m->any = true;
    }
    free(m->last_file);
    m->last_file = NULL;
    m->last = (struct run){.length = 0};
}

static bool is_same_file(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

static bool joins(const struct run *a, const struct run *b)
{
    if (a->length == 0 || a->start + a->length != b->start ||
        a->dirty != b->dirty || a->flags != b->flags || a->depth != b->depth) {
        return false;
    }
    return !(a->flags & EXTENT_HOST_VALID) ||
           (a->host + a->length == b->host && is_same_file(a->file, b->file));
}

static int join_run(struct map *m, const struct run *r)
{
    if (joins(&m->last, r)) {
        m->last.length += r->length;
        return 0;
    }
    print_last(m);
    m->last = *r;
    if (r->file) {
        m->last.file = m->last_file = strdup(r->file);
        if (!m->last_file) {
            return -ENOMEM;
        }
    }
    return ferror(stdout) ? -EIO : 0;
}

static int finish_output(struct map *m, int r)
{
    if (r < 0) {
        free(m->last_file);
        m->last_file = NULL;
        return r;
    }
    print_last(m);
    if (m->json) {
        puts(m->any ? "]" : "[]");
    }
    return 0;
}

/* --- Images --- */

static int add_image_extent(const struct extent *e, void *opaque)
{
    struct run r = {
        .start = e->offset,
        .length = e->length,
        .flags = e->flags,
        .depth = e->depth,
        .host = e->host,
        .file = e->host_file,
    };
    return join_run(opaque, &r);
}

static int map_bits(struct map *m, const struct bitmap *bm, uint64_t size)
{
    int r = 0;

    for (uint64_t at = 0; at < size && r == 0;) {
        struct run run = {.start = at};

        run.length = bitmap_run(bm, at, size, &run.dirty);
        r = join_run(m, &run);
        at += run.length;
    }
    return finish_output(m, r);
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

static int map_bitmap(struct map *m, struct graph *g, struct blk *b,
                      const char *image, const char *name, struct error **errp)
{
    struct bitmap *bm = blk_bitmap_find(b, name);
    int r;

    if (!bm) {
        return no_bitmap(g, b, image, name, errp);
    }
    if (bitmap_readable(bm)) {
        r = map_bits(m, bm, blk_size(b));
        r = r < 0
                ? error_set(errp, -r, "cannot write the map: %s", strerror(-r))
                : 0;
    } else {
        r = error_set(errp, EINVAL,
                      "Bitmap '%s' is inconsistent and cannot be used (see "
                      "'nbdelta bitmap repair')",
                      name);
    }
    bitmap_unref(bm);
    return r;
}

static int map_extents(struct map *m, struct blk *b, const char *image,
                       struct error **errp)
{
    int r = finish_output(
        m, blk_extents(b, 0, blk_size(b), 0, add_image_extent, m));

    return r < 0
               ? error_set(errp, -r, "cannot map '%s': %s", image, strerror(-r))
               : 0;
}

static int map_image(struct map *m, struct graph *g, const struct image_open *o,
                     const char *bitmap, struct error **errp)
{
    struct node *n;
    struct blk *b;
    int r = image_open(g, o, &n, errp);

    r = r < 0 ? r : blk_new(g, n, PERM_READ, PERM_ALL, "map", &b, errp);
    if (r < 0) {
        return r;
    }
    r = bitmap ? map_bitmap(m, g, b, o->image, bitmap, errp)
               : map_extents(m, b, o->image, errp);
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

static void run_of_state(const struct reply *rp, uint32_t state, struct run *r)
{
    if (rp->map->bitmap) {
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
        struct run r = {
            .start = rp->next,
            .length = min_u64(entries[i], rp->end - rp->next),
        };
        if (r.length == 0) {
            break;
        }
        run_of_state(rp, entries[i + 1], &r);
        rp->error = join_run(rp->map, &r);
        rp->next += r.length;
    }
    return 0;
}

static int map_export(struct map *m, struct nbd_handle *h, const char *context,
                      struct error **errp)
{
    int64_t size = nbd_get_size(h);
    struct reply rp = {.map = m, .context = context};

    rp.end = size > 0 ? (uint64_t)size : 0;
    while (rp.next < rp.end && rp.error == 0) {
        nbd_extent_callback each = {.callback = add_reply, .user_data = &rp};
        uint64_t before = rp.next;
        uint64_t bytes = min_u64(rp.end - rp.next, 2 * GiB);

        if (nbd_block_status(h, bytes, rp.next, each, 0) < 0) {
            int errnum = nbd_get_errno();
            (void)finish_output(m, -EIO);
            return error_set(errp, errnum > 0 ? errnum : EIO, "%s",
                             nbd_get_error());
        }
        if (rp.next == before && rp.error == 0) {
            (void)finish_output(m, -EIO);
            return error_set(errp, EPROTO,
                             "the server tells nothing of offset %" PRIu64,
                             before);
        }
    }
    int r = finish_output(m, rp.error);
    return r < 0 ? error_set(errp, -r, "cannot write the map: %s", strerror(-r))
                 : 0;
}

static int map_uri(struct map *m, const char *uri, const char *bitmap,
                   struct error **errp)
{
    CLEANUP_FREE char *context = NULL;
    struct nbd_handle *h;

    if (asprintf(&context, "%s%s",
                 bitmap ? "qemu:dirty-bitmap:" : "base:allocation",
                 bitmap ? bitmap : "") < 0) {
        context = NULL;
        return error_nomem(errp);
    }
    int r = client_connect(uri, &h, errp);
    if (r < 0) {
        return r;
    }
    r = client_go(h, context, errp);
    if (r == 0) {
        r = map_export(m, h, context, errp);
        (void)nbd_shutdown(h, 0);
    }
    nbd_close(h);
    return r;
}

/* --- */

struct request {
    struct map map;
    struct image_open open;
    struct objects *objects;
    const char *bitmap;
};

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
            rq->bitmap = optarg;
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
        default:
            if (cli_output_format(&command, optarg, &rq->map.json) != 0) {
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
    rq->open.image = argv[optind];
    rq->map.uri = client_is_uri(rq->open.image);
    if (rq->open.snapshot && (rq->map.uri || rq->bitmap)) {
        return cli_usage(&command, "--snapshot is for images, and without a "
                                   "bitmap");
    }
    rq->map.bitmap = rq->bitmap != NULL;
    int r = rq->map.uri ? map_uri(&rq->map, rq->open.image, rq->bitmap, &err)
                        : map_image(&rq->map, g, &rq->open, rq->bitmap, &err);
    return r < 0 ? cli_error(command.name, err) : cli_finish(command.name);
}

int cmd_map(int argc, char **argv)
{
    struct request rq = {.bitmap = NULL};
    struct graph *g = graph_new();

    rq.objects = g ? objects_new(g) : NULL;
    int r = rq.objects ? run_map(&rq, g, argc, argv)
                       : cli_failed(command.name, "no memory");

    objects_free(rq.objects);
    graph_free(g);
    return r;
}
