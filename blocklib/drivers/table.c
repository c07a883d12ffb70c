/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The one list of drivers, and the public functions that need all of them.
 *
 * Core knows drivers by the table that a graph has from here, so nothing below
 * this file names a driver.  A driver that is built only where its library is
 * available stands in an #if of its own: here, and nowhere else.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>

#include "core/create.h"
#include "core/driver.h"
#include "core/graph.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/option.h"
#include "qcow2/qcow2.h"

static const struct driver *const drivers[] = {
    &driver_blkdebug,     &driver_logwrites,
    &driver_compress,     &driver_cbw,
    &driver_copy_on_read, &driver_file,
    &driver_host_device,  &driver_mem,
    &driver_nbd,          &driver_null_co,
    &driver_qcow2,        &driver_raw,
    &driver_rbd,          &driver_snapshot_access,
    &driver_throttle,     NULL,
};

static const struct driver_table table = {drivers};

struct graph *graph_new(void)
{
    return graph_new_with(&table);
}

/* --- Names and options --- */

static const char *names[ARRAY_SIZE(drivers)];

static void make_names(void)
{
    for (size_t i = 0; drivers[i]; i++) {
        names[i] = drivers[i]->name;
    }
}

const char *const *graph_driver_names(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    (void)pthread_once(&once, make_names);
    return names;
}

const struct option *graph_driver_options(const char *driver)
{
    const struct driver *drv = driver_find(&table, driver);

    return drv ? drv->options : NULL;
}

const char *const *graph_driver_features(const char *driver)
{
    const struct driver *drv = driver_find(&table, driver);

    return drv ? drv->features : NULL;
}

/* --- Formats --- */

/* " (formats are qcow2 and raw)": the drivers that can make an image. */
static void list_formats(char *text, size_t size)
{
    size_t at = 0;

    text[0] = '\0';
    for (size_t i = 0; drivers[i] && at < size; i++) {
        if (!drivers[i]->is_protocol && drivers[i]->image &&
            drivers[i]->image->create) {
            int len = snprintf(text + at, size - at, "%s%s",
                               at == 0 ? " (formats are " : " and ",
                               drivers[i]->name);
            at += len > 0 ? (size_t)len : 0;
        }
    }
    if (at > 0 && at < size) {
        (void)snprintf(text + at, size - at, ")");
    }
}

int image_check_format(const char *format, struct error **errp)
{
    char formats[80];

    if (!format || driver_find(&table, format)) {
        return 0;
    }
    list_formats(formats, sizeof(formats));
    return error_set(errp, EINVAL, "Unknown file format '%s'%s", format,
                     formats);
}

/* --- Creating images --- */

int image_create_with(struct graph *g, const char *filename, const char *format,
                      const json_t *options, struct error **errp)
{
    struct file_make how = {.access = FILE_ACCESS_ANY, .secrets = g};
    int r = image_check_format(format, errp);

    return r < 0
               ? r
               : image_create_as(&table, filename, format, options, &how, errp);
}

int image_create(const char *filename, const char *format,
                 const json_t *options, struct error **errp)
{
    return image_create_with(NULL, filename, format, options, errp);
}

int image_remove(const char *filename, struct error **errp)
{
    return image_remove_with(&table, filename, errp);
}

int image_measure(const char *format, const json_t *options, struct blk *disk,
                  struct image_measure *m, struct error **errp)
{
    int r = image_check_format(format, errp);

    return r < 0 ? r
                 : image_measure_with(&table, format, options, disk, m, errp);
}

int image_track(const char *filename, const char *raw,
                const struct image_track *how, struct error **errp)
{
    return qcow2_track(&table, filename, raw, how, errp);
}

const char *const *image_amend_options(const char *format)
{
    const struct driver *drv = driver_find(&table, format);

    return drv && drv->image ? drv->image->amend_options : NULL;
}

const char *const *image_create_options(const char *format)
{
    const struct driver *drv = driver_find(&table, format);

    return drv && drv->image ? drv->image->create_options : NULL;
}
