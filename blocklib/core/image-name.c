/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of backing files and data files: what an image means by them. */
#include "core/image-name.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/graph.h"
#include "core/rbd-name.h"
#include "core/remote-name.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"

#define JSON "json:"

/* The drivers that open what a path leads to. */
static const char *const of_paths[] = {"file", "host_device"};

static bool begins_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* @name without the protocol of files. */
static const char *strip(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(of_paths); i++) {
        size_t len = strlen(of_paths[i]);

        if (begins_with(name, of_paths[i]) && name[len] == ':') {
            return name + len + 1;
        }
    }
    return name;
}

/* Does @name name something that is no file? */
static bool is_foreign(const char *name)
{
    return begins_with(name, JSON) || strstr(name, "://") ||
           remote_is_name(name) || rbd_is_name(name);
}

char *image_name_path(const char *named, const char *image)
{
    return is_foreign(named) ? NULL : path_beside(image, strip(named));
}

char *image_name_write(const char *name)
{
    char *copy;

    if (name[strcspn(name, ":/")] != ':' || is_foreign(name) ||
        strip(name) != name) {
        return strdup(name);
    }
    return asprintf(&copy, "./%s", name) < 0 ? NULL : copy;
}

/* --- JSON --- */

static bool opens_paths(const char *driver)
{
    for (size_t i = 0; i < ARRAY_SIZE(of_paths); i++) {
        if (strcmp(driver, of_paths[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* The string @key in @o, which adds to *@taken; NULL: there is none. */
static const char *take_member(json_t *o, const char *key, unsigned *taken)
{
    const char *text = json_string_value(json_object_get(o, key));

    *taken += text != NULL;
    return text;
}

/* The file name in the options of a file node, whose keys begin with @prefix.
 * NULL: the options describe something else.  Adds the number of keys to
 * *@taken. */
static const char *take_file_members(json_t *o, const char *prefix,
                                     unsigned *taken)
{
    char key[32];

    (void)snprintf(key, sizeof(key), "%sdriver", prefix);
    const char *driver = take_member(o, key, taken);
    (void)snprintf(key, sizeof(key), "%sfilename", prefix);
    const char *filename = take_member(o, key, taken);

    return driver && opens_paths(driver) ? filename : NULL;
}

/* The file name in @o, if there are no other keys except a format's. */
static const char *name_of_protocol(json_t *o, const char **format)
{
    json_t *inner = json_object_get(o, "file");
    unsigned taken = 0;
    const char *name = take_file_members(o, "", &taken);

    *format = NULL;
    if (!name) { /* of a format, then */
        taken = 0;
        *format = take_member(o, "driver", &taken);
        if (json_is_object(inner)) {
            unsigned in = 0;

            name = take_file_members(inner, "", &in);
            name = in == json_object_size(inner) ? name : NULL;
            taken++;
        } else {
            name = take_file_members(o, "file.", &taken);
        }
    }
    return taken == json_object_size(o) ? name : NULL;
}

/* --- */

static int no_file(const char *named, const char *image, const char *option,
                   struct error **errp)
{
    return error_set(errp, EPERM,
                     "image '%s' names the %s file '%s': only files are opened "
                     "because an image names them (give it as the option '%s')",
                     image, strcmp(option, "backing") == 0 ? "backing" : "data",
                     named, option);
}

static int find_either(const char *named, const char *image, const char *option,
                       char **pathp, struct error **errp)
{
    CLEANUP_FREE char *beside = path_beside(image, named);
    CLEANUP_FREE char *here = strdup(named);
    struct stat a;
    struct stat b;

    if (!beside || !here) {
        return error_nomem(errp);
    }
    bool at_image = stat(beside, &a) == 0;
    bool at_us = stat(here, &b) == 0;
    if (at_image && at_us && (a.st_dev != b.st_dev || a.st_ino != b.st_ino)) {
        return error_set(errp, EINVAL,
                         "image '%s' names the %s file '%s', which is both in "
                         "its directory and in this one: give the right one as "
                         "the option '%s'",
                         image,
                         strcmp(option, "backing") == 0 ? "backing" : "data",
                         named, option);
    }
    char **found = at_us && !at_image ? &here : &beside;
    *pathp = *found;
    *found = NULL;
    return 0;
}

int image_name_parse(const char *named, const char *image, const char *option,
                     struct image_name *nm, struct error **errp)
{
    bool backing = strcmp(option, "backing") == 0;
    CLEANUP_JSON json_t *options = NULL;
    const char *name = strip(named);
    int r = 0;

    *nm = (struct image_name){0};
    if (begins_with(named, JSON)) {
        name = options_parse(named, NULL, &options, NULL) == 0
                   ? name_of_protocol(options, &nm->driver)
                   : NULL;
    } else if (is_foreign(name)) {
        name = NULL;
    }
    if (!name || (nm->driver && !backing)) {
        return no_file(named, image, option, errp);
    }
    if (options || !backing) {
        r = find_either(name, image, option, &nm->path, errp);
    } else if (!(nm->path = path_beside(image, name))) {
        r = error_nomem(errp);
    }
    nm->options = r == 0 ? json_incref(options) : NULL;
    return r;
}

void image_name_free(struct image_name *nm)
{
    free(nm->path);
    json_decref(nm->options);
}
