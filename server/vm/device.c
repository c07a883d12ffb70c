/* SPDX-License-Identifier: BSD-3-Clause */
/* Block backends, for --vm-compat: see device.h. */
#include "vm/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "daemon.h"
#include "keyval.h"
#include "nbd/export.h"
#include "nbd/server.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/list.h"
#include "nbdelta/options.h"
#include "nbdelta/size.h"
#include "vm/drive-words.h"

struct device {
    struct list in_devices;
    char *id;
    char *qdev; /* of -device, or NULL */
    bool bare;  /* there is no drive: the device is on a node */
    struct blk *blk;
};

struct devices {
    struct list list;
    unsigned unnamed;
};

#define DEVICE(e) list_entry(e, struct device, in_devices)

struct devices *devices_new(void)
{
    struct devices *d = calloc(1, sizeof(*d));

    if (d) {
        list_init(&d->list);
    }
    return d;
}

static void device_free(struct device *dev)
{
    list_remove(&dev->in_devices);
    blk_free(dev->blk);
    free(dev->id);
    free(dev->qdev);
    free(dev);
}

void devices_free(struct devices *d)
{
    if (d) {
        while (!list_empty(&d->list)) {
            device_free(DEVICE(d->list.next));
        }
        free(d);
    }
}

static struct device *find_device(const struct devices *d, const char *name)
{
    list_for_each (e, &d->list) {
        struct device *dev = DEVICE(e);

        if (strcmp(dev->id, name) == 0 ||
            (dev->qdev && strcmp(dev->qdev, name) == 0)) {
            return dev;
        }
    }
    return NULL;
}

struct blk *devices_find(const struct devices *d, const char *name)
{
    const struct device *dev = find_device(d, name);

    return dev ? dev->blk : NULL;
}

bool devices_has(const struct devices *d, const char *name)
{
    return find_device(d, name) != NULL;
}

int devices_each(const struct devices *d,
                 int (*fn)(const char *id, struct blk *b, const char *qdev,
                           void *opaque),
                 void *opaque)
{
    int r = 0;

    list_for_each (e, &d->list) {
        const struct device *dev = DEVICE(e);

        if (r == 0) {
            r = dev->bare ? fn("", dev->blk, dev->id, opaque)
                          : fn(dev->id, dev->blk, dev->qdev, opaque);
        }
    }
    return r;
}

/* --- The options of a drive --- */

/* Take @key out of @o: its text, malloc()ed, or NULL when it is not there or
 * no text. */
static char *take_text(json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    char *copy = text ? strdup(text) : NULL;

    if (copy) {
        (void)json_object_del(o, key);
    }
    return copy;
}

/* cache=MODE in the words of nodes. */
static int set_cache(json_t *o, const char *mode, struct error **errp)
{
    static const struct {
        const char *mode;
        bool direct;
        bool no_flush;
    } modes[] = {
        {"none", true, false},          {"off", true, false},
        {"directsync", true, false},    {"writeback", false, false},
        {"writethrough", false, false}, {"unsafe", false, true},
    };

    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        if (strcmp(modes[i].mode, mode) == 0) {
            json_t *cache = json_pack("{s:b, s:b}", "direct",
                                      (int)modes[i].direct, "no-flush",
                                      (int)modes[i].no_flush);
            return json_object_set_new(o, "cache", cache) < 0
                       ? error_nomem(errp)
                       : 0;
        }
    }
    return error_set(errp, EINVAL, "invalid cache option");
}

/* The name that QEMU gives to one that has none. */
static char *default_id(struct devices *d, const json_t *o)
{
    const char *bus = json_string_value(json_object_get(o, "if"));
    unsigned n = d->unnamed++;
    char *id = NULL;
    int r = !bus || strcmp(bus, "ide") == 0
                ? asprintf(&id, "ide%u-hd%u", n / 2, n % 2)
                : asprintf(&id, "%s%u", bus, n);

    return r < 0 ? NULL : id;
}

/* file=NAME: whatever a user calls an image, with the rest of the options in
 * its outer node. */
static int set_file(json_t **op, const char *file, const char *format,
                    struct error **errp)
{
    CLEANUP_JSON json_t *image = NULL;
    CLEANUP_JSON json_t *given = json_incref(json_object_get(*op, "file"));
    int r = 0;

    if (format && strcmp(format, "blkdebug") == 0) {
        image = json_pack("{s:s, s:s}", "driver", format, "filename", file);
    } else {
        r = options_from_image(file, format, &image, errp);
    }
    if (r == 0 && image && json_is_object(given)) {
        (void)json_object_del(*op, "file");
        r = drive_words_merge(image, given, errp);
    }
    if (r < 0) {
        return r;
    }
    if (!image || json_object_update_missing(*op, image) < 0) {
        return error_nomem(errp);
    }
    return 0;
}

static int set_read_only(json_t *o, const char *text, struct error **errp)
{
    bool on = strcmp(text, "on") == 0;

    if (!on && strcmp(text, "off") != 0) {
        return error_set(errp, EINVAL,
                         "Parameter 'read-only' expects 'on' or 'off'");
    }
    return json_object_set_new(o, "read-only", json_boolean(on)) < 0
               ? error_nomem(errp)
               : 0;
}

/* From what -drive takes to what graph_open does. */
static int node_options(json_t *o, const char *name, struct error **errp)
{
    CLEANUP_FREE char *text = name ? NULL : take_text(o, "file");
    CLEANUP_FREE char *format = take_text(o, "format");
    CLEANUP_FREE char *driver = take_text(o, "driver");
    CLEANUP_FREE char *cache = take_text(o, "cache");
    CLEANUP_FREE char *readonly = take_text(o, "readonly");
    CLEANUP_FREE char *read_only = take_text(o, "read-only");
    const char *outer = driver ? driver : format;
    const char *file = name ? name : text;
    static const char *const ignored[] = {
        "if", "media", "aio", "index", "snapshot", "werror", "rerror"};
    int r = 0;

    for (size_t i = 0; i < ARRAY_SIZE(ignored); i++) {
        (void)json_object_del(o, ignored[i]);
    }
    if (cache) {
        r = set_cache(o, cache, errp);
    }
    if (r == 0 && (readonly || read_only)) {
        r = set_read_only(o, read_only ? read_only : readonly, errp);
    }
    if (r == 0 && file) {
        r = set_file(&o, file, outer, errp);
    } else if (r == 0 && outer &&
               json_object_set_new(o, "driver", json_string(outer)) < 0) {
        r = error_nomem(errp);
    }
    return r;
}

/* --- */

/* Let @dev be on @n. */
static int attach_backend(struct daemon *d, struct device *dev, struct node *n,
                          struct error **errp)
{
    CLEANUP_FREE char *user = NULL;

    if (asprintf(&user, "block device '%s'", dev->id) < 0) {
        user = NULL;
        return error_nomem(errp);
    }
    return blk_new(d->graph, n, 0, PERM_ALL, user, &dev->blk, errp);
}

/* @id becomes the device's. */
static int add_backend(struct daemon *d, char *id, bool bare, struct node *n,
                       struct error **errp)
{
    struct device *dev = calloc(1, sizeof(*dev));

    if (!dev) {
        free(id);
        return error_nomem(errp);
    }
    list_init(&dev->in_devices);
    dev->id = id;
    dev->bare = bare;
    int r = attach_backend(d, dev, n, errp);
    if (r < 0) {
        device_free(dev);
        return r;
    }
    list_append(&d->devices->list, &dev->in_devices);
    return 0;
}

/* Users that have come to the disk since it was asked for keep it open. */
static void take_out(struct daemon *d, struct device *dev)
{
    if (dev->blk) {
        struct node *n = blk_node(dev->blk);

        blk_free(dev->blk);
        dev->blk = NULL;
        graph_forget(d->graph, n);
    }
}

/* throttling.iops-total=... and the like, of which *limits becomes what
 * blk_set_throttle() takes, and *group the group (malloc()ed) or NULL. */
static int take_limits(json_t *o, json_t **limits, char **group,
                       struct error **errp)
{
    CLEANUP_JSON json_t *given = json_incref(json_object_get(o, "throttling"));
    const char *key;
    json_t *value;

    (void)json_object_del(o, "throttling");
    *group = given ? take_text(given, "group") : NULL;
    *limits = json_object();
    json_object_foreach (given, key, value) {
        const char *text = json_string_value(value);
        uint64_t n;

        if (!text || size_parse(text, &n) < 0 || n > INT64_MAX) {
            return error_set(errp, EINVAL,
                             "Parameter 'throttling.%.100s' expects a number",
                             key);
        }
        (void)json_object_set_new(*limits, key, json_integer((json_int_t)n));
    }
    return *limits ? 0 : error_nomem(errp);
}

/* Open the drive that @o and @file (NULL: none) describe, with the name @id,
 * which becomes its. */
static int open_drive(struct daemon *d, json_t *o, const char *file, char *id,
                      struct error **errp)
{
    CLEANUP_JSON json_t *limits = NULL;
    CLEANUP_FREE char *group = NULL;
    struct node *n = NULL;
    int r = take_limits(o, &limits, &group, errp);

    if (r == 0) {
        r = node_options(o, file, errp);
    }
    if (r == 0) {
        r = graph_open(d->graph, o, &n, errp);
    }
    if (r < 0) {
        free(id);
        return r;
    }
    r = add_backend(d, id, false, n, errp);
    if (r < 0) {
        graph_forget(d->graph, n);
        return r;
    }
    struct device *dev = DEVICE(d->devices->list.prev);
    r = blk_set_throttle(dev->blk, group ? group : dev->id, limits, errp);
    if (r < 0) {
        take_out(d, dev);
        device_free(dev);
    }
    return r;
}

int devices_add_drive(struct daemon *d, const char *text, struct error **errp)
{
    static const struct qmp_arg booleans[] = {
        QMP_OPT("read-only", BOOL),
        QMP_OPT("readonly", BOOL),
        QMP_OPT("snapshot", BOOL),
        QMP_LAST,
    };
    CLEANUP_JSON json_t *o = NULL;
    CLEANUP_FREE char *full = keyval_spell_out(text, "file", booleans);
    CLEANUP_FREE char *file = NULL;
    int r = full ? drive_words_parse(full, &file, &o, errp) : error_nomem(errp);

    if (r < 0) {
        return r;
    }
    char *id = take_text(o, "id");
    if (!id) {
        id = default_id(d->devices, o);
    }
    if (!id) {
        return error_nomem(errp);
    }
    if (find_device(d->devices, id)) {
        r = error_set(errp, EEXIST, "Duplicate ID '%s' for drive", id);
        free(id);
        return r;
    }
    return open_drive(d, o, file, id, errp);
}

/* --- Taking a disk out --- */

struct on_node {
    const struct node *node;
    char *id; /* malloc()ed */
};

static int note_export_id(struct export *e, void *opaque)
{
    struct on_node *o = opaque;

    if (blk_node(e->blk) != o->node) {
        return 0;
    }
    o->id = strdup(e->id);
    return 1;
}

/* An export of @n, to be freed; NULL: there is none. */
static char *find_export(struct daemon *d, const struct node *n)
{
    struct on_node o = {n, NULL};

    (void)exports_each(d->exports, note_export_id, &o);
    return o.id;
}

/* Clients are told to go, and have gone. */
static void end_exports(struct daemon *d, const struct node *n)
    REQUIRES(d->jobs->lock)
{
    char *id;

    while ((id = find_export(d, n))) {
        struct export *e;

        if (exports_remove(d->exports, id, false, &e, NULL) == 0) {
            servers_end_export(d->servers, e);
            export_unref(d->exports, e);
        }
        free(id);
    }
    exports_settle(d->exports, d->jobs, 0);
}

/* Ask this before anything changes.  -EBUSY: something other than the device
 * and @exports of the disk uses the disk. */
static int check_take_out(struct daemon *d, const struct device *dev,
                          unsigned exports, struct error **errp)
{
    return dev->blk ? graph_check_close(d->graph, blk_node(dev->blk),
                                        1 + exports, errp)
                    : 0;
}

int devices_eject(struct daemon *d, const char *name, struct error **errp)
{
    struct device *dev = find_device(d->devices, name);

    if (!dev) {
        return error_set(errp, ENODEV, "Device '%.200s' not found", name);
    }
    if (!dev->blk) {
        return 0;
    }
    mutex_is_held(&d->jobs->lock);
    const struct blk *disk = dev->blk;
    const struct node *n = blk_node(disk);
    int r = check_take_out(d, dev, exports_on_node(d->exports, n), errp);
    if (r < 0) {
        return r;
    }
    /* It gives up the lock: another command may take the disk out meanwhile. */
    end_exports(d, n);
    dev = find_device(d->devices, name);
    if (dev && dev->blk == disk) {
        take_out(d, dev);
    }
    return 0;
}

int devices_delete_drive(struct daemon *d, const char *id, struct error **errp)
{
    struct device *dev = find_device(d->devices, id);

    if (!dev) {
        return error_set(errp, ENODEV, "Device '%.200s' not found", id);
    }
    int r = check_take_out(d, dev, 0, errp);
    if (r == 0) {
        take_out(d, dev);
        device_free(dev);
    }
    return r;
}

int devices_set_disk(struct daemon *d, const char *name, struct node *n,
                     struct error **errp)
{
    struct device *dev = find_device(d->devices, name);

    if (!dev) {
        return error_set(errp, ENODEV, "Device '%.200s' not found", name);
    }
    struct blk *old = dev->blk;
    int r = attach_backend(d, dev, n, errp);
    if (r == 0) {
        blk_free(old);
    }
    return r;
}

/* --- Devices --- */

int devices_plug(struct daemon *d, const char *id, const char *drive,
                 struct error **errp)
{
    struct device *dev = drive ? find_device(d->devices, drive) : NULL;
    struct node *n = drive && !dev ? graph_find(d->graph, drive) : NULL;

    if (id && find_device(d->devices, id)) {
        return error_set(errp, EEXIST, "Duplicate device ID '%.200s'", id);
    }
    if (drive && !dev && !n) {
        return error_set(errp, ENODEV,
                         "Property 'drive' can't find value '%.200s'", drive);
    }
    if (!id || (!dev && !n)) { /* no disk, or nobody can ask for it */
        return 0;
    }
    char *name = strdup(id);
    if (!name) {
        return error_nomem(errp);
    }
    if (n) {
        return add_backend(d, name, true, n, errp);
    }
    free(dev->qdev);
    dev->qdev = name;
    return 0;
}

int devices_add_device(struct daemon *d, const char *text, struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    int r = options_parse(text, "driver", &o, errp);

    return r < 0 ? r
                 : devices_plug(d, json_string_value(json_object_get(o, "id")),
                                json_string_value(json_object_get(o, "drive")),
                                errp);
}

int devices_unplug(struct daemon *d, const char *id, struct error **errp)
{
    struct device *dev = find_device(d->devices, id);

    if (!dev || (!dev->bare && strcmp(dev->id, id) == 0)) {
        return error_set(errp, ENODEV, "Device '%.200s' not found", id);
    }
    if (!dev->bare && dev->blk) {
        struct node *n = blk_node(dev->blk);

        mutex_is_held(&d->jobs->lock);
        jobs_cancel_on(d->jobs, n);
        graph_forget(d->graph, n);
    }
    device_free(dev);
    return 0;
}
