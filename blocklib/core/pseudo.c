/* SPDX-License-Identifier: BSD-3-Clause */
/* Options of file names, and of names that stand for more than a file. */
#include <errno.h>
#include <string.h>

#include "core/format.h"
#include "core/opts.h"
#include "core/rbd-name.h"
#include "core/remote-name.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define PREFIX  "blkdebug:"
#define NULL_CO "null-co://"

static int expand(const json_t *options, const char *name, json_t **full,
                  struct error **errp)
{
    bool prefixed = strncmp(name, PREFIX, strlen(PREFIX)) == 0;
    const char *rules = prefixed ? name + strlen(PREFIX) : name;
    const char *image = prefixed ? strchr(rules, ':') : name;

    if (!image) {
        return error_set(errp, EINVAL,
                         "blkdebug requires both config file and image path");
    }
    CLEANUP_JSON json_t *copy = json_copy((json_t *)(uintptr_t)options);
    size_t len = prefixed ? (size_t)(image - rules) : 0;
    json_t *config = len > 0 ? json_stringn(rules, len) : NULL;
    json_t *child = json_pack("{s:s}", "filename", image + prefixed);
    int r = json_object_del(copy, "filename") |
            json_object_set_new(copy, "driver", json_string("blkdebug")) |
            json_object_set_new(copy, "image", child);

    if (len > 0) {
        r |= json_object_set_new(copy, "config", config);
    }
    if (r != 0) {
        return error_nomem(errp);
    }
    *full = json_incref(copy);
    return 0;
}

/* Spell out the name of a remote export, which alone says where it is. */
static int expand_remote(const json_t *options, const char *key, json_t **full,
                         struct error **errp)
{
    static const char *const conflicts[] = {"host", "port", "path", "export",
                                            "server"};
    const char *name = json_string_value(json_object_get(options, key));
    CLEANUP_JSON json_t *copy = json_copy((json_t *)(uintptr_t)options);
    CLEANUP_JSON json_t *named = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(conflicts); i++) {
        if (json_object_get(options, conflicts[i])) {
            return error_set(
                errp, EINVAL, "Option '%s' cannot be used with a %s",
                conflicts[i], strcmp(key, "uri") == 0 ? "URI" : "file name");
        }
    }
    int r = remote_name_parse(name, &named, errp);
    if (r < 0) {
        return r;
    }
    if (json_object_del(copy, key) < 0 ||
        json_object_set_new(copy, "driver", json_string("nbd")) < 0 ||
        json_object_update(copy, named) < 0) {
        return error_nomem(errp);
    }
    *full = json_incref(copy);
    return 0;
}

/* The same for an image of Ceph.  What the options say beside the name has to
 * be something else. */
static int expand_rbd(const json_t *options, json_t **full, struct error **errp)
{
    const char *name = json_string_value(json_object_get(options, "filename"));
    CLEANUP_JSON json_t *copy = json_copy((json_t *)(uintptr_t)options);
    CLEANUP_JSON json_t *named = NULL;
    const char *key;
    json_t *value;
    int r = rbd_name_parse(name, &named, errp);

    if (r < 0) {
        return r;
    }
    json_object_foreach (named, key, value) {
        (void)value;
        if (json_object_get(options, key)) {
            return error_set(errp, EINVAL,
                             "Option '%s' cannot be used with a file name that "
                             "has it, too",
                             key);
        }
    }
    if (json_object_del(copy, "filename") < 0 ||
        json_object_set_new(copy, "driver", json_string("rbd")) < 0 ||
        json_object_update(copy, named) < 0) {
        return error_nomem(errp);
    }
    *full = json_incref(copy);
    return 0;
}

json_t *options_of_file(const char *path)
{
    return json_pack("{s:s, s:s}", "driver", PROTOCOL_OF_FILES, "filename",
                     path);
}

int options_expand(const json_t *options, json_t **full, struct error **errp)
{
    const json_t *driver = json_object_get(options, "driver");
    const char *name = json_string_value(json_object_get(options, "filename"));
    const char *word = json_string_value(driver);

    if (name && (driver ? word && strcmp(word, "blkdebug") == 0
                        : strncmp(name, PREFIX, strlen(PREFIX)) == 0)) {
        return expand(options, name, full, errp);
    }
    if (name && !driver && strcmp(name, NULL_CO) == 0) {
        CLEANUP_JSON json_t *copy = json_copy((json_t *)(uintptr_t)options);

        if (json_object_del(copy, "filename") < 0 ||
            json_object_set_new(copy, "driver", json_string("null-co")) < 0) {
            return error_nomem(errp);
        }
        *full = json_incref(copy);
        return 0;
    }
    if (name &&
        (driver ? word && strcmp(word, "rbd") == 0 : rbd_is_name(name))) {
        return expand_rbd(options, full, errp);
    }
    bool remote = driver ? word && strcmp(word, "nbd") == 0
                         : name && remote_is_name(name);
    if (remote && name) {
        return expand_remote(options, "filename", full, errp);
    }
    if (remote && json_is_string(json_object_get(options, "uri"))) {
        return expand_remote(options, "uri", full, errp);
    }
    *full = json_incref((json_t *)(uintptr_t)options);
    return 0;
}
