/* SPDX-License-Identifier: BSD-3-Clause */
/* Creating images: what does not depend on the format. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/chain.h"
#include "core/create.h"
#include "core/door.h"
#include "core/driver.h"
#include "core/graph-priv.h"
#include "core/open.h"
#include "core/opts.h"
#include "core/rbd-name.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"

/* --- Permissions, and which file it is --- */

void node_access(const struct node *n, struct file_access *a)
{
    static const unsigned shown[] = {CHILD_FILE, CHILD_BACKING, CHILD_DATA};
    struct stat st;

    if (n->drv->fstat && n->drv->fstat(n, &st) == 0) {
        file_access_narrow(a, &st);
    } else if (n->drv->is_protocol) {
        a->mode &= FILE_ACCESS_OWNER.mode;
    }
    for (size_t i = 0; i < ARRAY_SIZE(shown); i++) {
        const struct node *child = node_child(n, shown[i]);

        if (child) {
            node_access(child, a);
        }
    }
}

int node_check_made(const struct node *n, const struct file_make *how,
                    struct error **errp)
{
    const struct node *file = node_at_bottom(n);
    struct stat st;

    return file->drv->fstat && file->drv->fstat(file, &st) == 0 &&
                   door_same(&st, &how->made)
               ? 0
               : error_set(errp, ESTALE,
                           "'%s' is not the file that was made there",
                           node_filename(file));
}

/* --- Creating --- */

/*
 * Open the backing file as the new image will name it, to see that it is one,
 * how large it is, and who may read it.  The user has named it, so the policy
 * is not asked.  Files that it names in turn are not opened.
 */
static int measure_backing(const struct driver_table *t, const char *filename,
                           const char *backing, const char *fmt, uint64_t *size,
                           struct file_access *access, struct error **errp)
{
    const struct driver *drv = driver_find(t, fmt);

    CLEANUP_FREE char *path = path_beside(filename, backing);
    json_t *file = rbd_is_name(backing)
                       ? json_pack("{s:s}", "filename", backing)
                   : path ? options_of_file(path)
                          : NULL;
    CLEANUP_JSON json_t *options = json_pack("{s:b,s:b,s:o}", "read-only", 1,
                                             "force-share", 1, "file", file);
    struct graph *g = graph_new_with(t);
    struct node *n;
    int r;

    if (!options || !g ||
        json_object_set_new(options, "driver", json_string(fmt)) < 0 ||
        (drv && drv->has_backing &&
         json_object_set_new(options, "backing", json_null()) < 0)) {
        r = error_set(errp, EINVAL, "'%s' cannot be a backing file", backing);
    } else {
        graph_without_data(g);
        graph_without_bitmaps(g);
        r = graph_open(g, options, &n, errp);
        if (r < 0) {
            error_prefix(errp, "Could not open backing image: ");
        } else {
            *size = node_size(n);
            node_access(n, access);
            r = chain_check_room(n, errp);
        }
    }
    graph_free(g);
    return r;
}

/* Fill in "size" from the backing file where it is missing. */
static int complete_options(const struct driver_table *t, const char *filename,
                            json_t *options, struct file_access *access,
                            struct error **errp)
{
    const char *backing =
        json_string_value(json_object_get(options, "backing_file"));
    const char *fmt =
        json_string_value(json_object_get(options, "backing_fmt"));
    bool unchecked =
        json_is_true(json_object_get(options, "backing_unchecked"));
    bool sized = json_object_get(options, "size") != NULL;
    uint64_t size = 0;

    (void)json_object_del(options, "backing_unchecked");
    if (backing && backing[0] != '\0') {
        if (!fmt) {
            return error_set(errp, EINVAL,
                             "a backing file needs its format: give "
                             "backing_fmt (-F) with backing file '%s'",
                             backing);
        }
        if (unchecked && sized) {
            return 0;
        }
        int r = measure_backing(t, filename, backing, fmt, &size, access, errp);
        if (r < 0) {
            return r;
        }
        if (!sized && json_object_set_new(options, "size",
                                          json_integer((json_int_t)size)) < 0) {
            return error_nomem(errp);
        }
    } else if (!sized) {
        return error_set(errp, EINVAL, "Image creation needs a size parameter");
    }
    return 0;
}

int image_create_as(const struct driver_table *t, const char *filename,
                    const char *format, const json_t *options,
                    struct file_make *how, struct error **errp)
{
    return json_object_get(options, "data_file_exists")
               ? error_set(errp, EINVAL, "Invalid parameter 'data_file_exists'")
               : image_make(t, filename, format, options, how, errp);
}

/* --- Images of which the name is no file's --- */

static int make_rbd(const struct driver_table *t, const char *filename,
                    json_t *size, struct file_make *how, struct error **errp)
{
    CLEANUP_JSON json_t *options = json_pack("{s:O}", "size", size);

    return options ? image_make(t, filename, "rbd", options, how, errp)
                   : error_nomem(errp);
}

/* Put the format into the image, which grows by what is written. */
static int format_rbd(const struct driver_table *t, const char *filename,
                      const char *format, const json_t *options,
                      struct error **errp)
{
    CLEANUP_JSON json_t *file = json_pack("{s:s, s:s}", "driver", "rbd",
                                          "filename", filename);
    struct graph *g = graph_new_with(t);
    struct image_nodes left;

    if (!file || !g) {
        graph_free(g);
        return error_nomem(errp);
    }
    int r = image_format(g, format, file, options, &left, errp);
    image_release(g, &left);
    graph_free(g);
    return r;
}

static int make_in_rbd(const struct driver_table *t, const char *filename,
                       const char *format, json_t *options,
                       struct file_make *how, struct error **errp)
{
    bool raw = strcmp(format, "raw") == 0;
    CLEANUP_JSON json_t *none = json_integer(0);
    json_t *size = raw ? json_object_get(options, "size") : none;
    const char *preallocation =
        json_string_value(json_object_get(options, "preallocation"));

    const char *key;
    json_t *value;

    json_object_foreach (options, key, value) {
        (void)value;
        if (raw && strcmp(key, "size") != 0 &&
            strcmp(key, "preallocation") != 0) {
            return error_set(errp, EINVAL,
                             "raw image creation does not take the option '%s'",
                             key);
        }
    }
    if (raw && preallocation && strcmp(preallocation, "off") != 0) {
        return error_set(errp, ENOTSUP, "images of Ceph have no preallocation");
    }
    int r = make_rbd(t, filename, size, how, errp);
    if (r < 0 || raw) {
        return r;
    }
    r = format_rbd(t, filename, format, options, errp);
    if (r < 0) {
        (void)image_remove_with(t, filename, NULL);
    }
    return r;
}

int image_remove_with(const struct driver_table *t, const char *filename,
                      struct error **errp)
{
    if (rbd_is_name(filename)) {
        return driver_find(t, "rbd")->image->remove(filename, errp);
    }
    return unlink(filename) < 0
               ? error_set(errp, errno, "cannot remove '%s': %s", filename,
                           strerror(errno))
               : 0;
}

int image_make(const struct driver_table *t, const char *filename,
               const char *format, const json_t *options, struct file_make *how,
               struct error **errp)
{
    const struct driver *drv = driver_find(t, format);
    if (!drv || !drv->image || !drv->image->create) {
        return error_set(errp, EINVAL, "Unknown file format '%s'", format);
    }
    CLEANUP_JSON json_t *complete = json_deep_copy(options);
    if (!complete) {
        return error_nomem(errp);
    }
    int r = complete_options(t, filename, complete, &how->access, errp);
    if (r < 0) {
        return r;
    }
    if (rbd_is_name(filename) && strcmp(format, "rbd") != 0) {
        return make_in_rbd(t, filename, format, complete, how, errp);
    }
    struct opts *opts = opts_new(complete);
    if (!opts) {
        return error_nomem(errp);
    }
    r = drv->image->create(t, filename, opts, how, errp);
    opts_free(opts);
    return r;
}

/* The node that @file names or describes, with a reference. */
static int open_given_file(struct graph *g, const json_t *file,
                           struct node **np, struct error **errp)
{
    const char *name = json_string_value(file);
    int r = 0;

    graph_lock(g);
    if (!name) {
        r = graph_open_locked(g, file, np, errp);
    } else if ((*np = graph_find_locked(g, name))) {
        node_ref(*np);
    } else {
        r = error_set(errp, ENODEV,
                      "Cannot find device='%s' nor node-name='%s'", name, name);
    }
    graph_unlock(g);
    return r;
}

/* Take the node for the data, if there is one.  The image names its file, and
 * finds it as it is. */
static int take_data(struct graph *g, json_t *options, struct node **np,
                     struct error **errp)
{
    const json_t *ref = json_object_get(options, "data_file");
    int r = ref ? open_given_file(g, ref, np, errp) : 0;

    if (r < 0 || !ref) {
        return r;
    }
    return json_object_set_new(options, "data_file",
                               json_string(node_filename(*np))) < 0 ||
                   json_object_set_new(options, "data_file_exists",
                                       json_true()) < 0
               ? error_nomem(errp)
               : 0;
}

/* Make the data node as long as the disk, at least. */
static int stretch(struct graph *g, struct node *data, const json_t *options,
                   struct error **errp)
{
    uint64_t size =
        (uint64_t)json_integer_value(json_object_get(options, "size"));
    struct blk *b;

    if (!data || node_size(data) >= size) {
        return 0;
    }
    int r = blk_new(g, data, PERM_WRITE | PERM_RESIZE, PERM_ALL,
                    "an unnamed block device", &b, errp);
    if (r == 0) {
        r = blk_resize(b, size, errp);
        blk_free(b);
    }
    return r;
}

int image_format(struct graph *g, const char *format, const json_t *file,
                 const json_t *options, struct image_nodes *left,
                 struct error **errp)
{
    const struct driver *drv = driver_find(graph_drivers(g), format);

    CLEANUP_JSON json_t *complete = json_deep_copy(options);

    *left = (struct image_nodes){NULL, NULL, NULL};
    if (!drv || !drv->image || !drv->image->format) {
        return error_set(errp, EINVAL, "'%s' is no format to create", format);
    }
    int r = open_given_file(g, file, &left->file, errp);
    if (r == 0) {
        r = take_data(g, complete, &left->data, errp);
    }
    if (r < 0) {
        return r;
    }
    struct opts *opts = opts_new(complete);
    if (!opts) {
        return error_nomem(errp);
    }
    r = drv->image->format(g, left->file, opts, &left->image, errp);
    opts_free(opts);
    return r < 0 ? r : stretch(g, left->data, complete, errp);
}

void image_release(struct graph *g, struct image_nodes *left)
{
    graph_lock(g);
    if (left->image) {
        node_unref(left->image);
    }
    if (left->data) {
        node_unref(left->data);
    }
    if (left->file) {
        node_unref(left->file);
    }
    graph_unlock(g);
    *left = (struct image_nodes){NULL, NULL, NULL};
}
