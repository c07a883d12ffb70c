/* SPDX-License-Identifier: BSD-3-Clause */
/* Making images of Ceph, by their names. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "core/create-file.h"
#include "core/opts.h"
#include "core/rbd-name.h"
#include "drivers/rbd.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define OBJECT_MIN (4 * KiB)
#define OBJECT_MAX (32 * MiB)

static const char *const create_options[] = {"size", "cluster_size", NULL};

static int check_object_size(uint64_t bytes, struct error **errp)
{
    if (!is_pow2(bytes)) {
        return error_set(errp, EINVAL, "obj size needs to be power of 2");
    }
    if (bytes < OBJECT_MIN) {
        return error_set(errp, EINVAL, "obj size too small");
    }
    return bytes > OBJECT_MAX
               ? error_set(errp, EINVAL, "obj size too large: up to 32 MiB")
               : 0;
}

/* The place that @filename stands for: a name, or json:{...}. */
static int find_place(struct graph *g, const char *filename,
                      struct ceph_place *p, struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    json_error_t why;
    int r = 0;

    if (strncmp(filename, "json:", 5) == 0) {
        options = json_loads(filename + 5, 0, &why);
        if (!json_is_object(options)) {
            return error_set(errp, EINVAL, "'%s' is no JSON object", filename);
        }
        (void)json_object_del(options, "driver");
    } else {
        r = rbd_name_parse(filename, &options, errp);
    }
    struct opts *opts = r == 0 ? opts_new(options) : NULL;
    if (!opts) {
        return r < 0 ? r : error_nomem(errp);
    }
    opts_describe(opts, NULL, rbd_node_options);
    r = rbd_place_take(g, opts, p, errp);
    if (r == 0) {
        r = opts_end(opts, "driver 'rbd'", errp);
    }
    opts_free(opts);
    if (r == 0 && p->snapshot) {
        r = error_set(errp, EINVAL,
                      "Can't use snapshot name for image creation");
    }
    if (r == 0 && p->luks != CEPH_PLAIN) {
        r = error_set(errp, ENOTSUP,
                      "an image is not encrypted when it is made ('rbd "
                      "encryption format' does that)");
    }
    return r;
}

static int rbd_create_image(const struct driver_table *t, const char *filename,
                            struct opts *opts, struct file_make *how,
                            struct error **errp)
{
    struct ceph_place p = {.cache = true};
    const struct ceph_module *m;
    uint64_t size = 0;
    uint64_t object = 0;
    int r;

    (void)t;
    if ((r = opts_uint(opts, "size", BLK_SIZE_MAX, &size, errp)) < 0 ||
        (r = opts_uint(opts, "cluster_size", UINT64_MAX, &object, errp)) < 0 ||
        (r = opts_end(opts, "format 'rbd'", errp)) < 0 ||
        (object > 0 && (r = check_object_size(object, errp)) < 0) ||
        (r = rbd_module(&m, errp)) < 0) {
        return r;
    }
    r = find_place(how->secrets, filename, &p, errp);
    if (r == 0) {
        r = m->create(&p, size, object, errp);
    }
    rbd_place_free(&p);
    return r;
}

static int rbd_remove_image(const char *filename, struct error **errp)
{
    struct ceph_place p = {.cache = true};
    const struct ceph_module *m;
    int r = rbd_module(&m, errp);

    if (r == 0) {
        r = find_place(NULL, filename, &p, errp);
    }
    if (r == 0) {
        r = m->remove(&p, errp);
    }
    rbd_place_free(&p);
    return r;
}

const struct driver_image rbd_image_methods = {
    .create = rbd_create_image,
    .create_options = create_options,
    .remove = rbd_remove_image,
};
