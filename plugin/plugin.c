/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdkit-nbdelta-plugin: disk images of blocklib, read-only, served by nbdkit
 *
 *   nbdkit nbdelta disk.qcow2
 *
 * The image is opened once, before nbdkit goes into the background, so that
 * what is wrong is told to the user; all connections share it.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/options.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* Set before the first connection, and not changed before the last is gone. */
static struct graph *graph;
static struct blk *disk;
static char *image;
static char *format;

/* --- Configuration --- */

static void plugin_load(void)
{
    graph = graph_new();
}

static void plugin_unload(void)
{
    blk_free(disk);
    graph_free(graph);
    free(image);
    free(format);
}

static int set_once(char **where, const char *key, char *value)
{
    if (!value) {
        return -1; /* nbdkit told why */
    }
    if (*where) {
        nbdkit_error("%s= is given twice", key);
        free(value);
        return -1;
    }
    *where = value;
    return 0;
}

static char *copy(const char *text)
{
    char *s = strdup(text);
    if (!s) {
        nbdkit_error("strdup: %m");
    }
    return s;
}

static int set_image(const char *value)
{
    bool options = strncmp(value, "json:", 5) == 0 ||
                   strncmp(value, "driver=", 7) == 0;

    /* nbdkit changes its directory. */
    return set_once(&image, "file",
                    options ? copy(value) : nbdkit_absolute_path(value));
}

static int plugin_config(const char *key, const char *value)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (!graph) {
        nbdkit_error("no memory");
        return -1;
    }
    if (strcmp(key, "file") == 0) {
        return set_image(value);
    }
    if (strcmp(key, "format") == 0) {
        return set_once(&format, key, copy(value));
    }
    if (strcmp(key, "allow-path") == 0) {
        if (graph_allow_path(graph, value, &err) < 0) {
            nbdkit_error("%s", error_message(err));
            return -1;
        }
        return 0;
    }
    nbdkit_error("unknown parameter '%s'", key);
    return -1;
}

static int plugin_config_complete(void)
{
    if (!image) {
        nbdkit_error("which image? Give file=IMAGE");
        return -1;
    }
    return 0;
}

static int open_disk(struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    struct node *n;

    int r = options_from_image(image, format, &options, errp);
    if (r < 0) {
        return r;
    }
    if (json_object_set_new(options, "read-only", json_true()) < 0) {
        return error_set(errp, ENOMEM, "no memory");
    }
    r = graph_open(graph, options, &n, errp);
    if (r < 0) {
        return r;
    }
    return blk_new(graph, n, PERM_READ, PERM_READ, "nbdkit", &disk, errp);
}

static int plugin_get_ready(void)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (open_disk(&err) < 0) {
        nbdkit_error("%s", error_message(err));
        return -1;
    }
    return 0;
}

/* --- Connections --- */

static void *plugin_open(int readonly)
{
    (void)readonly;
    return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t plugin_get_size(void *handle)
{
    (void)handle;
    return (int64_t)blk_size(disk);
}

static int plugin_block_size(void *handle, uint32_t *minimum,
                             uint32_t *preferred, uint32_t *maximum)
{
    struct blk_limits lim;

    (void)handle;
    blk_get_limits(disk, &lim);
    /* Smaller requests are emulated, so that 1 is never refused; nbdkit
     * wants the preferred size in [512, 32M]. */
    *minimum = 1;
    *preferred = (uint32_t)min_u64(max_u64(lim.pref, 4 * KiB), 2 * MiB);
    *maximum = UINT32_MAX;
    return 0;
}

static int plugin_yes(void *handle)
{
    (void)handle;
    return 1;
}

static int plugin_can_cache(void *handle)
{
    (void)handle;
    return NBDKIT_CACHE_NATIVE;
}

/* --- Requests --- */

static int result(int r, const char *what, uint64_t offset)
{
    if (r == 0) {
        return 0;
    }
    nbdkit_error("%s at offset %llu: %s", what, (unsigned long long)offset,
                 strerror(-r));
    nbdkit_set_error(-r);
    return -1;
}

static int plugin_pread(void *handle, void *buf, uint32_t count,
                        uint64_t offset, uint32_t flags)
{
    (void)handle;
    (void)flags;
    return result(blk_pread(disk, buf, count, offset, 0), "read", offset);
}

static int plugin_cache(void *handle, uint32_t count, uint64_t offset,
                        uint32_t flags)
{
    (void)handle;
    (void)flags;
    return result(blk_prefetch(disk, offset, count), "cache", offset);
}

struct extents {
    struct nbdkit_extents *list;
    bool one;
};

/* Positive ends the walk early. */
static int add_extent(const struct extent *ext, void *opaque)
{
    const struct extents *e = opaque;
    uint32_t type = 0;

    if (!(ext->flags & EXTENT_DATA)) {
        type |= NBDKIT_EXTENT_HOLE;
    }
    if (ext->flags & EXTENT_ZERO) {
        type |= NBDKIT_EXTENT_ZERO;
    }
    if (nbdkit_add_extent(e->list, ext->offset, ext->length, type) < 0) {
        return -errno;
    }
    return e->one;
}

static int plugin_extents(void *handle, uint32_t count, uint64_t offset,
                          uint32_t flags, struct nbdkit_extents *list)
{
    struct extents e = {list, flags & NBDKIT_FLAG_REQ_ONE};

    (void)handle;
    int r = blk_extents(disk, offset, count, 0, add_extent, &e);
    return result(r < 0 ? r : 0, "extents", offset);
}

static struct nbdkit_plugin plugin = {
    .name = "nbdelta",
    .longname = "nbdelta disk images",
    .description = "Serve qcow2 and raw disk images, read-only.",
    .version = NBDELTA_VERSION,
    .load = plugin_load,
    .unload = plugin_unload,
    .config = plugin_config,
    .config_complete = plugin_config_complete,
    .config_help =
        "[file=]<IMAGE>     (required) The disk image to serve.\n"
        "format=<FORMAT>    Its format: qcow2 or raw (default: look at it).\n"
        "allow-path=<DIR>   Follow names of backing files into DIR, too.",
    .magic_config_key = "file",
    .get_ready = plugin_get_ready,
    .open = plugin_open,
    .get_size = plugin_get_size,
    .block_size = plugin_block_size,
    .can_multi_conn = plugin_yes,
    .can_cache = plugin_can_cache,
    .pread = plugin_pread,
    .cache = plugin_cache,
    .extents = plugin_extents,
};

/* nbdkit declares it nowhere; the macro below defines it. */
struct nbdkit_plugin *plugin_init(void);
NBDKIT_REGISTER_PLUGIN(plugin)
