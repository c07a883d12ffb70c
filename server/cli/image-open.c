/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening an image for a sub-command: see image-open.h. */
#include "cli/image-open.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "nbdelta/chain.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

/* Of "raw" over a file: the file.  Else as it is. */
static int take_file(json_t **options, struct error **errp)
{
    json_t *file = json_object_get(*options, "file");

    if (json_is_string(file)) {
        return error_set(errp, EINVAL, "a node cannot be named here");
    }
    if (file) {
        json_incref(file);
        json_decref(*options);
        *options = file;
    }
    return 0;
}

static int open_once(struct graph *g, const struct image_open *o,
                     bool no_backing, struct node **nodep, struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    int r = image_check_format(o->format, errp);

    if (r == 0) {
        r = o->image_opts
                ? options_parse(o->image, NULL, &options, errp)
                : options_from_image(o->image, o->format, &options, errp);
    }
    if (r < 0) {
        return r;
    }
    if (o->bytes_only && (r = take_file(&options, errp)) < 0) {
        return r;
    }
    if (json_object_set_new(options, "read-only", json_boolean(!o->writable)) <
            0 ||
        (o->force_share &&
         json_object_set_new(options, "force-share", json_true()) < 0) ||
        (o->snapshot && json_object_set_new(options, "snapshot",
                                            json_string(o->snapshot)) < 0) ||
        (no_backing && !json_object_get(options, "backing") &&
         json_object_set_new(options, "backing", json_null()) < 0)) {
        return error_nomem(errp);
    }
    return graph_open(g, options, nodep, errp);
}

int image_open(struct graph *g, const struct image_open *o, struct node **nodep,
               struct error **errp)
{
    if (o->header_only) {
        graph_without_data(g);
    }
    if (o->no_bitmaps) {
        graph_without_bitmaps(g);
    }
    if ((o->header_only || o->no_backing) &&
        open_once(g, o, true, nodep, NULL) == 0) {
        return 0;
    }

    /* Perhaps the format has no backing files and refuses the option.
     * Otherwise this says what is wrong. */
    int r = open_once(g, o, false, nodep, errp);
    if (r == -EAGAIN && !o->force_share && !o->writable) {
        CLEANUP_ERROR struct error *why = *errp;
        *errp = NULL;
        return error_set(errp, EAGAIN,
                         "%s (-U looks at it all the same: it may change "
                         "meanwhile)",
                         error_message(why));
    }
    return r;
}

int image_check_other(const struct node *image, const char *filename,
                      const char *backing, struct error **errp)
{
    CLEANUP_FREE char *path = image_backing_path(image, backing);
    CLEANUP_FREE char *a = path ? realpath(path, NULL) : NULL;
    CLEANUP_FREE char *b = realpath(filename, NULL);

    return a && b && strcmp(a, b) == 0
               ? error_set(errp, EINVAL, "'%s' cannot be its own backing file",
                           filename)
               : 0;
}

int image_allow_path(const struct cli_command *c, struct graph *g,
                     const char *dir)
{
    CLEANUP_ERROR struct error *err = NULL;

    return graph_allow_path(g, dir, &err) < 0
               ? cli_usage(c, "%s", error_message(err))
               : 0;
}
