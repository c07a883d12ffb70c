/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dotted options of a command line as JSON:
 *
 *   a.b=1,a.c.0=2,a.c.1=3  becomes  {"a": {"b": "1", "c": ["2", "3"]}}
 *
 * There are two steps.  Every key is put into objects, with "0" and "1" as
 * names like any other.  Then objects that have only numbers for names are
 * turned into arrays, from the inside out.
 */
#include "nbdelta/options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/opts.h"
#include "core/rbd-name.h"
#include "core/remote-name.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define TEXT_MAX  (64 * KiB)
#define KEY_MAX   1023 /* bytes, dots included */
#define PART_MAX  127  /* bytes of one part of it */
#define DEPTH_MAX 64   /* of objects and arrays in one another */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_index(const char *part)
{
    return part[strspn(part, "0123456789")] == '\0';
}

static bool is_key_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) ||
           c == '-' || c == '_';
}

/* Copy the part of the key at @p to @part; returns its length, or 0. */
static size_t read_part(const char *p, char part[PART_MAX + 1])
{
    size_t len = 0;

    while (len <= PART_MAX && is_key_char(p[len])) {
        len++;
    }
    if (len > PART_MAX || (p[len] != '\0' && p[len] != '.')) {
        return 0;
    }
    memcpy(part, p, len);
    part[len] = '\0';
    /* A number has only one spelling, and is no name of an option. */
    if (is_index(part) && part[0] == '0' && len > 1) {
        return 0;
    }
    return len;
}

/* Set @key to @value, making the objects on the way to it. */
static int put_value(json_t *root, const char *key, const char *value,
                     struct error **errp)
{
    char part[PART_MAX + 1];
    json_t *object = root;
    const char *p = key;
    json_t *next;
    size_t len;

    for (unsigned depth = 1;; depth++) {
        len = read_part(p, part);
        if (len == 0 || (object == root && is_index(part))) {
            return error_set(errp, EINVAL, "'%s' is not an option's name", key);
        }
        if (depth > DEPTH_MAX) {
            return error_set(errp, EINVAL,
                             "option '%s' is nested more than %d deep", key,
                             DEPTH_MAX);
        }
        next = json_object_get(object, part);
        if (p[len] == '\0') {
            break;
        }
        p += len + 1;
        if (!next) {
            next = json_object();
            if (json_object_set_new(object, part, next) < 0) {
                return error_nomem(errp);
            }
        }
        if (!json_is_object(next)) {
            return error_set(errp, EINVAL,
                             "option '%s' conflicts with '%.*s', which has a "
                             "value of its own",
                             key, (int)(p - 1 - key), key);
        }
        object = next;
    }
    if (json_is_object(next)) {
        return error_set(errp, EINVAL, "option '%s' conflicts with '%s.%s'",
                         key, key,
                         json_object_iter_key(json_object_iter(next)));
    }
    next = json_string(value);
    if (!next) {
        return error_set(errp, EINVAL,
                         "the value of option '%s' is not UTF-8 text", key);
    }
    return json_object_set_new(object, part, next) < 0 ? error_nomem(errp) : 0;
}

/* Turn an object with the names 0 to its size - 1 into an array. */
static int to_array(json_t *object, const char *path, json_t **result,
                    struct error **errp)
{
    size_t size = json_object_size(object);
    CLEANUP_JSON json_t *array = json_array();
    char index[24];

    if (!array) {
        return error_nomem(errp);
    }
    for (size_t i = 0; i < size; i++) {
        (void)snprintf(index, sizeof(index), "%zu", i);
        json_t *element = json_object_get(object, index);

        if (!element) {
            return error_set(errp, EINVAL, "option '%s.%s' is missing", path,
                             index);
        }
        if (json_array_append(array, element) < 0) {
            return error_nomem(errp);
        }
    }
    *result = json_incref(array);
    return 0;
}

/*
 * Turn objects with numbers for names into arrays, in @object and below.
 * @path has KEY_MAX + 1 bytes and holds the name of @object, @len bytes.
 * put_value() bounded depth and lengths.  A new reference is *result.
 */
static int shape(json_t *object, char *path, size_t len, json_t **result,
                 struct error **errp)
{
    size_t indexes = 0;

    for (void *it = json_object_iter(object); it;
         it = json_object_iter_next(object, it)) {
        const char *key = json_object_iter_key(it);
        json_t *value = json_object_iter_value(it);
        json_t *shaped;
        int r;

        indexes += is_index(key);
        if (!json_is_object(value)) {
            continue;
        }
        size_t n = (size_t)snprintf(path + len, KEY_MAX + 1 - len, "%s%s",
                                    len > 0 ? "." : "", key);
        r = shape(value, path, len + n, &shaped, errp);
        path[len] = '\0';
        if (r < 0) {
            return r;
        }
        if (json_object_iter_set_new(object, it, shaped) < 0) {
            return error_nomem(errp);
        }
    }
    if (indexes == 0) {
        *result = json_incref(object);
        return 0;
    }
    if (indexes < json_object_size(object)) {
        return error_set(errp, EINVAL,
                         "option '%s' has both numbers and names below it",
                         path);
    }
    return to_array(object, path, result, errp);
}

/* Copy a value up to a single comma to @value; returns where it ended. */
static const char *read_value(const char *p, char *value)
{
    for (; *p; p++) {
        if (*p == ',') {
            if (p[1] != ',') {
                break;
            }
            p++;
        }
        *value++ = *p;
    }
    *value = '\0';
    return p;
}

/* Put all options of @text.  @value has room for all of it. */
static int put_all(json_t *root, const char *text, const char *implied,
                   char *value, struct error **errp)
{
    char key[KEY_MAX + 1];
    const char *p = text;

    while (*p) {
        size_t len = strcspn(p, "=,");

        if (len == 0) {
            return error_set(errp, EINVAL, "an option without a name in '%s'",
                             text);
        }
        if (p[len] == '=') {
            if (len > KEY_MAX) {
                return error_set(errp, EINVAL,
                                 "the option's name '%.*s...' is too long", 64,
                                 p);
            }
            (void)snprintf(key, sizeof(key), "%.*s", (int)len, p);
            p += len + 1;
        } else if (p == text && implied) {
            (void)snprintf(key, sizeof(key), "%s", implied);
        } else {
            return error_set(errp, EINVAL, "expected '=' after option '%.*s'",
                             (int)len, p);
        }
        p = read_value(p, value);
        int r = put_value(root, key, value, errp);
        if (r < 0) {
            return r;
        }
        p += *p == ',';
    }
    return 0;
}

static int parse_keyval(const char *text, const char *implied, json_t **options,
                        struct error **errp)
{
    CLEANUP_JSON json_t *root = json_object();
    char *value = malloc(strlen(text) + 1);
    char path[KEY_MAX + 1] = "";
    int r;

    if (root && value) {
        r = put_all(root, text, implied, value, errp);
    } else {
        r = error_nomem(errp);
    }
    free(value);
    return r < 0 ? r : shape(root, path, 0, options, errp);
}

static bool too_deep(json_t *value, unsigned depth)
{
    const char *key;
    json_t *inner;
    size_t i;

    if (!json_is_object(value) && !json_is_array(value)) {
        return false;
    }
    if (depth > DEPTH_MAX) {
        return true;
    }
    json_array_foreach (value, i, inner) {
        if (too_deep(inner, depth + 1)) {
            return true;
        }
    }
    json_object_foreach (value, key, inner) {
        if (too_deep(inner, depth + 1)) {
            return true;
        }
    }
    return false;
}

static int parse_json(const char *text, json_t **options, struct error **errp)
{
    json_error_t e;
    CLEANUP_JSON json_t *value = json_loads(text, JSON_REJECT_DUPLICATES, &e);

    if (!value) {
        if (json_error_code(&e) == json_error_out_of_memory) {
            return error_nomem(errp);
        }
        return error_set(errp, EINVAL, "JSON, line %d, column %d: %s", e.line,
                         e.column, e.text);
    }
    if (!json_is_object(value)) {
        return error_set(errp, EINVAL, "JSON options must be an object");
    }
    if (too_deep(value, 1)) {
        return error_set(errp, EINVAL,
                         "JSON options are nested more than %d deep",
                         DEPTH_MAX);
    }
    *options = json_incref(value);
    return 0;
}

static bool has_prefix(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

int options_parse(const char *text, const char *implied, json_t **options,
                  struct error **errp)
{
    if (strnlen(text, TEXT_MAX + 1) > TEXT_MAX) {
        return error_set(errp, EINVAL, "options of more than %u bytes",
                         (unsigned)TEXT_MAX);
    }
    if (has_prefix(text, "json:")) {
        return parse_json(text + strlen("json:"), options, errp);
    }
    if (text[0] == '{') {
        return parse_json(text, options, errp);
    }
    return parse_keyval(text, implied, options, errp);
}

/* Options that the user spelled out, with @format as the driver if they have
 * none. */
static int options_with_format(const char *text, const char *format,
                               json_t **options, struct error **errp)
{
    CLEANUP_JSON json_t *object = NULL;
    const char *driver;
    int r = options_parse(text, NULL, &object, errp);

    if (r < 0) {
        return r;
    }
    if (format && !json_object_get(object, "driver")) {
        r = json_object_set_new(object, "driver", json_string(format));
        if (r < 0) {
            return error_nomem(errp);
        }
    }
    driver = json_string_value(json_object_get(object, "driver"));
    if (format && driver && strcmp(driver, format) != 0) {
        return error_set(errp, EINVAL,
                         "the format '%s' conflicts with the option "
                         "'driver=%s'",
                         format, driver);
    }
    *options = json_incref(object);
    return 0;
}

bool options_spelled_out(const char *text)
{
    return has_prefix(text, "json:") || has_prefix(text, "driver=");
}

int options_from_image(const char *text, const char *format, json_t **options,
                       struct error **errp)
{
    CLEANUP_JSON json_t *object = NULL;
    CLEANUP_JSON json_t *name = NULL;

    if (options_spelled_out(text)) {
        return options_with_format(text, format, options, errp);
    }
    if (text[0] == '\0') {
        return error_set(errp, EINVAL, "the file name is empty");
    }
    name = json_string(text);
    if (!name) {
        return error_set(errp, EINVAL, "the file name '%s' is not UTF-8 text",
                         text);
    }
    if (format && strcmp(format, "nbd") == 0 && remote_is_name(text)) {
        /* The node of the protocol alone. */
        *options = json_pack("{s:O}", "filename", name);
        return *options ? 0 : error_nomem(errp);
    }
    object = has_prefix(text, "blkdebug:") || remote_is_name(text) ||
                     rbd_is_name(text)
                 ? json_pack("{s:{s:O}}", "file", "filename", name)
                 : json_pack("{s:o}", "file", options_of_file(text));
    if (!object || (format && json_object_set_new(object, "driver",
                                                  json_string(format)) < 0)) {
        return error_nomem(errp);
    }
    *options = json_incref(object);
    return 0;
}

bool options_names_rbd(const char *text)
{
    return rbd_is_name(text);
}

int options_from_rbd_name(const char *text, json_t **options,
                          struct error **errp)
{
    int r = rbd_name_parse(text, options, errp);

    if (r == 0 &&
        json_object_set_new(*options, "driver", json_string("rbd")) < 0) {
        json_decref(*options);
        r = error_nomem(errp);
    }
    return r;
}

char *options_to_rbd_name(const json_t *options)
{
    return rbd_name_of(options);
}

int options_from_nbd_name(const char *text, json_t **options,
                          struct error **errp)
{
    return remote_is_name(text)
               ? remote_name_parse(text, options, errp)
               : error_set(errp, EINVAL, "'%s' is not an NBD URI", text);
}
