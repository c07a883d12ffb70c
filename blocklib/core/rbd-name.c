/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of images of Ceph: see rbd-name.h. */
#include "core/rbd-name.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define PREFIX "rbd:"

/* Characters that have a meaning in a name. */
#define SPECIAL ":@=/\\"

bool rbd_is_name(const char *text)
{
    return strncmp(text, PREFIX, strlen(PREFIX)) == 0;
}

/* --- From a name --- */

/* The first @c in @text that no backslash precedes, or NULL. */
static char *find(char *text, char c)
{
    for (; *text; text++) {
        if (*text == c) {
            return text;
        }
        if (*text == '\\' && text[1]) {
            text++;
        }
    }
    return NULL;
}

/* Cut *rest at @c: the part before it; *rest is what follows, or NULL. */
static char *cut(char **rest, char c)
{
    char *part = *rest;
    char *end = find(part, c);

    *rest = end ? end + 1 : NULL;
    if (end) {
        *end = '\0';
    }
    return part;
}

static json_t *unescape(char *text)
{
    char *to = text;

    for (const char *p = text; *p; p++) {
        if (*p == '\\' && p[1]) {
            p++;
        }
        *to++ = *p;
    }
    *to = '\0';
    return json_string(text);
}

static int put(json_t *options, const char *key, char *text,
               struct error **errp)
{
    return json_object_set_new(options, key, unescape(text)) < 0
               ? error_set(errp, EINVAL, "'%s' is not UTF-8 text", text)
               : 0;
}

static int parse_pairs(json_t *options, char *rest, struct error **errp)
{
    CLEANUP_JSON json_t *pairs = json_array();

    while (rest) {
        char *name = cut(&rest, '=');

        if (!rest) {
            return error_set(errp, EINVAL, "conf option %s has no value", name);
        }
        char *value = cut(&rest, ':');
        json_t *key = unescape(name);
        int r = strcmp(name, "conf") == 0 ? put(options, "conf", value, errp)
                : strcmp(name, "id") == 0 ? put(options, "user", value, errp)
                                          : 1;
        if (r > 0) {
            r = json_array_append(pairs, key) |
                json_array_append_new(pairs, unescape(value));
            r = r < 0 ? error_set(errp, EINVAL,
                                  "conf option '%s' is not UTF-8 text", name)
                      : 0;
        }
        json_decref(key);
        if (r < 0) {
            return r;
        }
    }
    if (json_array_size(pairs) == 0) {
        return 0;
    }
    CLEANUP_FREE char *text = json_dumps(pairs, JSON_COMPACT);
    return !text || json_object_set_new(options, RBD_PAIRS, json_string(text)) <
                        0
               ? error_nomem(errp)
               : 0;
}

static int parse(json_t *options, char *rest, struct error **errp)
{
    char *snapshot = NULL;
    char *pool = cut(&rest, '/');

    if (!rest) {
        return error_set(errp, EINVAL, "Pool name is required");
    }
    char *image = cut(&rest, ':');
    char *at = image;
    image = cut(&at, '@');
    snapshot = at;
    at = image;
    char *namespace = cut(&at, '/');
    if (!at) {
        at = namespace;
        namespace = NULL;
    }
    int r = put(options, "pool", pool, errp);
    if (r == 0 && namespace) {
        r = put(options, "namespace", namespace, errp);
    }
    if (r == 0) {
        r = put(options, "image", at, errp);
    }
    if (r == 0 && snapshot) {
        r = put(options, "snapshot", snapshot, errp);
    }
    return r < 0 ? r : parse_pairs(options, rest, errp);
}

int rbd_name_parse(const char *text, json_t **options, struct error **errp)
{
    CLEANUP_JSON json_t *all = json_object();
    CLEANUP_FREE char *copy = rbd_is_name(text) ? strdup(text + strlen(PREFIX))
                                                : NULL;

    if (!rbd_is_name(text)) {
        return error_set(errp, EINVAL, "File name must start with 'rbd:'");
    }
    if (!all || !copy) {
        return error_nomem(errp);
    }
    int r = parse(all, copy, errp);
    if (r == 0) {
        *options = json_incref(all);
    }
    return r;
}

/* --- To a name --- */

/* Append @before and @text, escaped, to @f; NULL: nothing. */
static void say(FILE *f, const char *before, const char *text)
{
    if (!text) {
        return;
    }
    (void)fputs(before, f);
    for (; *text; text++) {
        if (strchr(SPECIAL, *text)) {
            (void)fputc('\\', f);
        }
        (void)fputc(*text, f);
    }
}

/* A path is told as it is: ":" alone would end it. */
static void say_path(FILE *f, const char *before, const char *text)
{
    if (text) {
        (void)fputs(before, f);
    }
    for (; text && *text; text++) {
        if (strchr(":\\", *text)) {
            (void)fputc('\\', f);
        }
        (void)fputc(*text, f);
    }
}

static void say_pairs(FILE *f, const char *text)
{
    CLEANUP_JSON json_t *pairs = text ? json_loads(text, 0, NULL) : NULL;

    for (size_t i = 0; i + 1 < json_array_size(pairs); i += 2) {
        const char *name = json_string_value(json_array_get(pairs, i));
        const char *value = json_string_value(json_array_get(pairs, i + 1));

        if (name && strcmp(name, "key") != 0) {
            say(f, ":", name);
            say_path(f, "=", value);
        }
    }
}

static const char *text_of(const json_t *options, const char *key)
{
    const char *text = json_string_value(json_object_get(options, key));

    return text && *text ? text : NULL;
}

static char *in_json(const json_t *options)
{
    static const char *const keys[] = {
        "pool",     "namespace",  "image",
        "snapshot", "conf",       "user",
        "server",   "key-secret", "auth-client-required",
        "encrypt",
    };
    CLEANUP_JSON json_t *some = json_pack("{s:s}", "driver", "rbd");
    CLEANUP_FREE char *text = NULL;
    char *name;

    for (size_t i = 0; some && i < ARRAY_SIZE(keys); i++) {
        json_t *value = json_object_get(options, keys[i]);

        if (value && json_object_set(some, keys[i], value) < 0) {
            return NULL;
        }
    }
    text = some ? json_dumps(some, JSON_COMPACT) : NULL;
    return text && asprintf(&name, "json:%s", text) >= 0 ? name : NULL;
}

char *rbd_name_of(const json_t *options)
{
    static const char *const beyond[] = {"server", "key-secret", "encrypt",
                                         "auth-client-required"};
    char *name = NULL;
    size_t size;

    for (size_t i = 0; i < ARRAY_SIZE(beyond); i++) {
        if (json_object_get(options, beyond[i])) {
            return in_json(options);
        }
    }
    FILE *f = open_memstream(&name, &size);
    if (!f) {
        return NULL;
    }
    say(f, PREFIX, text_of(options, "pool"));
    say(f, "/", text_of(options, "namespace"));
    say(f, "/", text_of(options, "image"));
    say(f, "@", text_of(options, "snapshot"));
    say(f, ":id=", text_of(options, "user"));
    say_path(f, ":conf=", text_of(options, "conf"));
    say_pairs(f, text_of(options, RBD_PAIRS));
    if (fclose(f) != 0) {
        free(name);
        return NULL;
    }
    return name;
}
