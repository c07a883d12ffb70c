/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdkit-nbdelta-plugin: disk images of blocklib served by nbdkit
 *
 *   nbdkit nbdelta disk.qcow2
 *
 *   config...     parameters (config.c)
 *   get_ready     all disks are opened, so that what is wrong is told to the
 *                 user, and closed: threads do not survive a fork
 *   after_fork    opened for good (disk.c)
 *   open, close   a client comes and goes; requests in any number of threads
 *   cleanup       flushed and closed
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* Set before the first client comes, and not changed before the last is
 * gone. */
static struct config config;
static struct disks *disks;

/* 0, or -1 after telling what is wrong. */
static int told(int r, struct error *err)
{
    if (r < 0) {
        nbdkit_error("%s", error_message(err));
        errno = -r;
    }
    error_free(err);
    return r < 0 ? -1 : 0;
}

/* --- Life --- */

static void plugin_load(void)
{
    config_init(&config);
}

static void plugin_unload(void)
{
    disks_free(disks);
    config_free(&config);
}

/* nbdkit reads it: it knows the ways to give one. */
static int take_passphrase(const char *value)
{
    struct error *err = NULL;
    char *passphrase;

    if (nbdkit_read_password(value, &passphrase) < 0) {
        return -1; /* it has said why */
    }
    int r = config_take_passphrase(&config, passphrase, &err);
    return told(r, err);
}

static int plugin_config(const char *key, const char *value)
{
    struct error *err = NULL;

    if (strcmp(key, "passphrase") == 0) {
        return take_passphrase(value);
    }
    int r = config_take(&config, key, value, &err);
    return told(r, err);
}

static int plugin_config_complete(void)
{
    struct error *err = NULL;
    int r = config_complete(&config, &err);

    if (r == 0) {
        r = disks_new(&config, &disks, &err);
    }
    return told(r, err);
}

static int plugin_get_ready(void)
{
    struct error *err = NULL;
    int r = disks_open(disks, &err);

    if (r == 0) {
        r = disks_close(disks, &err);
    }
    return told(r, err);
}

static int plugin_after_fork(void)
{
    struct error *err = NULL;
    int r = disks_open(disks, &err);

    return told(r, err);
}

static void plugin_cleanup(void)
{
    struct error *err = NULL;
    int r = disks_close(disks, &err);

    (void)told(r, err);
}

static void plugin_dump(void)
{
    const char *const *names = graph_driver_names();

    printf("nbdelta_drivers=");
    for (unsigned i = 0; names[i]; i++) {
        printf("%s%s", i > 0 ? " " : "", names[i]);
    }
    printf("\n");
}

/* --- Exports --- */

#define VIEW_TEXT "what the bitmap '%s' has dirty"

static int list_export(const char *name, const char *bitmap, void *opaque)
{
    char text[sizeof(VIEW_TEXT) + 1024];

    if (bitmap) {
        (void)snprintf(text, sizeof(text), VIEW_TEXT, bitmap);
    }
    return nbdkit_add_export(opaque, name, bitmap ? text : NULL);
}

static int plugin_list_exports(int readonly, int is_tls,
                               struct nbdkit_exports *exports)
{
    (void)readonly;
    (void)is_tls;
    return disks_each_export(disks, list_export, exports) < 0 ? -1 : 0;
}

static const char *plugin_default_export(int readonly, int is_tls)
{
    (void)readonly;
    (void)is_tls;
    return config.sources[0].name;
}

/* --- Clients --- */

static void *plugin_open(int readonly)
{
    const char *name = nbdkit_export_name();
    struct opened *o = NULL;
    struct error *err = NULL;

    if (!name) {
        nbdkit_error("no memory");
        return NULL;
    }
    int r = disks_enter(disks, name, readonly, &o, &err);
    return told(r, err) < 0 ? NULL : o;
}

static void plugin_close(void *handle)
{
    disks_leave(disks, handle);
}

static int64_t plugin_get_size(void *handle)
{
    const struct opened *o = handle;

    return (int64_t)blk_size(o->blk);
}

static const char *plugin_export_description(void *handle)
{
    const struct opened *o = handle;

    return o->snapshot ? nbdkit_printf_intern("the snapshot '%s'", o->snapshot)
           : o->bitmap ? nbdkit_printf_intern(VIEW_TEXT, o->bitmap)
                       : NULL;
}

static int plugin_block_size(void *handle, uint32_t *minimum,
                             uint32_t *preferred, uint32_t *maximum)
{
    const struct opened *o = handle;
    struct blk_limits lim;

    blk_get_limits(o->blk, &lim);
    /* Smaller requests are emulated, so that 1 is never refused; nbdkit
     * wants the preferred size in [512, 32M]. */
    *minimum = 1;
    *preferred = (uint32_t)min_u64(max_u64(lim.pref, 4 * KiB), 2 * MiB);
    *maximum = UINT32_MAX;
    return 0;
}

static int plugin_can_write(void *handle)
{
    const struct opened *o = handle;

    return o->writable;
}

static int plugin_can_trim(void *handle)
{
    const struct opened *o = handle;
    struct blk_limits lim;

    blk_get_limits(o->blk, &lim);
    return lim.unmap;
}

/* Each client has bits of its own. */
static int plugin_can_multi_conn(void *handle)
{
    const struct opened *o = handle;

    return !o->bitmap;
}

static int plugin_yes(void *handle)
{
    (void)handle;
    return 1;
}

static int plugin_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

static int plugin_can_cache(void *handle)
{
    (void)handle;
    return NBDKIT_CACHE_NATIVE;
}

/* --- Requests --- */

static int told_request(int r, const char *what, uint64_t offset)
{
    if (r < 0) {
        nbdkit_error("%s at offset %llu: %s", what, (unsigned long long)offset,
                     strerror(-r));
        errno = -r;
        return -1;
    }
    return 0;
}

/* Must a write be durable when it returns? */
static bool is_through(uint32_t flags)
{
    return config.writethrough || (flags & NBDKIT_FLAG_FUA);
}

static int plugin_pread(void *handle, void *buf, uint32_t count,
                        uint64_t offset, uint32_t flags)
{
    const struct opened *o = handle;

    (void)flags;
    return told_request(blk_pread(o->blk, buf, count, offset, 0), "read",
                        offset);
}

static int plugin_pwrite(void *handle, const void *buf, uint32_t count,
                         uint64_t offset, uint32_t flags)
{
    const struct opened *o = handle;
    unsigned req = is_through(flags) ? REQ_FUA : 0;

    return told_request(blk_pwrite(o->blk, buf, count, offset, req), "write",
                        offset);
}

static int plugin_zero(void *handle, uint32_t count, uint64_t offset,
                       uint32_t flags)
{
    const struct opened *o = handle;
    unsigned req = is_through(flags) ? REQ_FUA : 0;

    req |= flags & NBDKIT_FLAG_MAY_TRIM ? REQ_MAY_UNMAP : 0;
    req |= flags & NBDKIT_FLAG_FAST_ZERO ? REQ_NO_FALLBACK : 0;
    int r = blk_zero(o->blk, offset, count, req);
    if (r == -ENOTSUP) { /* an answer, and no failure */
        errno = ENOTSUP;
        return -1;
    }
    return told_request(r, "zero", offset);
}

static int plugin_trim(void *handle, uint32_t count, uint64_t offset,
                       uint32_t flags)
{
    const struct opened *o = handle;
    int r = blk_discard(o->blk, offset, count);

    if (r == 0 && is_through(flags)) {
        r = blk_flush(o->blk);
    }
    return told_request(r, "trim", offset);
}

static int plugin_flush(void *handle, uint32_t flags)
{
    const struct opened *o = handle;
    int r = blk_flush(o->blk);

    (void)flags;
    if (r < 0) {
        nbdkit_error("flush: %s", strerror(-r));
        errno = -r;
    }
    return r < 0 ? -1 : 0;
}

static int plugin_cache(void *handle, uint32_t count, uint64_t offset,
                        uint32_t flags)
{
    const struct opened *o = handle;

    (void)flags;
    return told_request(blk_prefetch(o->blk, offset, count), "cache", offset);
}

struct extents {
    struct nbdkit_extents *list;
    bool one;
};

/* Positive ends the walk early. */
static int tell_extent(const struct extent *ext, void *opaque)
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
    const struct opened *o = handle;
    struct extents e = {list, flags & NBDKIT_FLAG_REQ_ONE};
    int r = blk_extents(o->blk, offset, count, 0, tell_extent, &e);
    return told_request(r < 0 ? r : 0, "extents", offset);
}

static struct nbdkit_plugin plugin = {
    .name = "nbdelta",
    .longname = "nbdelta disk images",
    .description = "Serve qcow2 and raw disk images, with dirty bitmaps.",
    .version = NBDELTA_VERSION,
    .load = plugin_load,
    .unload = plugin_unload,
    .dump_plugin = plugin_dump,
    .config = plugin_config,
    .config_complete = plugin_config_complete,
    .config_help = config_help,
    .magic_config_key = "file",
    .get_ready = plugin_get_ready,
    .after_fork = plugin_after_fork,
    .cleanup = plugin_cleanup,
    .list_exports = plugin_list_exports,
    .default_export = plugin_default_export,
    .open = plugin_open,
    .close = plugin_close,
    .get_size = plugin_get_size,
    .export_description = plugin_export_description,
    .block_size = plugin_block_size,
    .can_write = plugin_can_write,
    .can_flush = plugin_yes,
    .can_trim = plugin_can_trim,
    .can_zero = plugin_yes,
    .can_fast_zero = plugin_yes,
    .can_fua = plugin_can_fua,
    .can_multi_conn = plugin_can_multi_conn,
    .can_cache = plugin_can_cache,
    .can_extents = plugin_yes,
    .pread = plugin_pread,
    .pwrite = plugin_pwrite,
    .zero = plugin_zero,
    .trim = plugin_trim,
    .flush = plugin_flush,
    .cache = plugin_cache,
    .extents = plugin_extents,
    .errno_is_preserved = 1,
};

/* nbdkit declares this function nowhere; the macro below defines it. */
struct nbdkit_plugin *plugin_init(void);
NBDKIT_REGISTER_PLUGIN(plugin)
