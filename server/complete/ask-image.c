/* SPDX-License-Identifier: BSD-3-Clause */
/* What is in an image: see ask.h. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/image-open.h"
#include "complete/ask.h"
#include "complete/offer.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/graph.h"

char *ask_path(const char *text)
{
    const char *home = getenv("HOME");
    char *path;

    if (strncmp(text, "~/", 2) != 0 || !home) {
        return strdup(text);
    }
    return asprintf(&path, "%s%s", home, text + 1) < 0 ? NULL : path;
}

/* A device of characters, a pipe: something happens when it is opened. */
static bool can_hold_image(const char *path)
{
    struct stat st;

    return path && stat(path, &st) == 0 &&
           (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode));
}

static void with_image(struct offers *o, const struct ask_image *image,
                       bool bitmaps,
                       void (*fn)(struct offers *o, struct graph *g,
                                  struct node *n))
{
    CLEANUP_FREE char *path = ask_path(image->path);
    const struct image_open how = {
        .image = path,
        .format = image->format,
        .force_share = true,
        .header_only = true,
        .no_backing = true,
        .no_bitmaps = !bitmaps,
    };
    struct node *n;

    if (!can_hold_image(path)) {
        return;
    }
    struct graph *g = graph_new();
    if (!g) {
        return;
    }
    graph_follow(g, FOLLOW_NONE);
    if (image_open(g, &how, &n, NULL) == 0) {
        fn(o, g, n);
    }
    /* It is not closed: the process ends, and nothing was changed. */
}

static void offer_bitmaps(struct offers *o, struct graph *g, struct node *n)
{
    CLEANUP_BITMAPS struct bitmap_list list;

    (void)g;
    (void)bitmaps_get(n, &list);
    for (size_t i = list.count; i-- > 0;) {
        const struct bitmap_info *b = &list.at[i];

        if (b->name) {
            offer(o, b->name,
                  b->inconsistent ? "inconsistent"
                  : b->recording  ? "enabled"
                                  : "disabled");
        }
    }
}

void ask_bitmaps(struct offers *o, const void *image)
{
    with_image(o, image, true, offer_bitmaps);
}

static void offer_snapshots(struct offers *o, struct graph *g, struct node *n)
{
    CLEANUP_JSON json_t *info = node_image_info(g, n);
    size_t i;
    json_t *sn;

    json_array_foreach (json_object_get(info, "snapshots"), i, sn) {
        const char *id = json_string_value(json_object_get(sn, "id"));
        const char *name = json_string_value(json_object_get(sn, "name"));

        if (name && *name) {
            CLEANUP_FREE char *about = NULL;
            if (asprintf(&about, "snapshot %s", id ? id : "?") < 0) {
                about = NULL;
            }
            offer(o, name, about);
        } else if (id) {
            offer(o, id, "snapshot without a name");
        }
    }
}

void ask_snapshots(struct offers *o, const void *image)
{
    with_image(o, image, false, offer_snapshots);
}
