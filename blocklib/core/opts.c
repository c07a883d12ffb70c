/* SPDX-License-Identifier: BSD-3-Clause */
/* Getters of options, and the check of what they leave over. */
#include "core/opts.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/size.h"

struct opts {
    json_t *left;  /* object: what no getter has asked for yet */
    json_t *taken; /* array: keeps alive what opts_str() handed out */
    const struct option *tables[2];
    bool described;
};

const char *const option_unstable[] = {"unstable", NULL};

#define PART_MAX 128 /* bytes of one part of a key, with the NUL */

struct opts *opts_new(const json_t *object)
{
    struct opts *o = calloc(1, sizeof(*o));

    if (!o) {
        return NULL;
    }
    o->left = json_deep_copy(object);
    o->taken = json_array();
    if (!o->left || !o->taken) {
        opts_free(o);
        return NULL;
    }
    return o;
}

void opts_free(struct opts *o)
{
    if (o) {
        json_decref(o->left);
        json_decref(o->taken);
        free(o);
    }
}

/* Split "a.b" into "a", copied to @part, and "b"; NULL for a last part. */
static const char *split(const char *key, char part[PART_MAX])
{
    const char *dot = strchr(key, '.');
    size_t len = dot ? (size_t)(dot - key) : strlen(key);

    (void)snprintf(part, PART_MAX, "%.*s", (int)len, key);
    return dot ? dot + 1 : NULL;
}

void opts_describe(struct opts *o, const struct option *common,
                   const struct option *own)
{
    o->tables[0] = common;
    o->tables[1] = own;
    o->described = true;
}

static bool find_in(const struct option *table, const char *key,
                    const struct option *like);

/* Is @rest described below @d? */
static bool find_below(const struct option *d, const char *rest,
                       const struct option *like)
{
    bool found = find_in(d->members, rest, like) ||
                 (d->type == OPTION_UNION && strcmp(rest, "type") == 0);

    for (unsigned i = 0; !found && d->cases && d->words[i]; i++) {
        found = find_in(d->cases[i], rest, like);
    }
    return found;
}

static bool is_like(const struct option *d, const struct option *like)
{
    enum option_type type = d->type == OPTION_ENUM_OR_OBJECT ? OPTION_ENUM
                                                             : d->type;

    return !like ||
           (type == like->type && (!d->words || d->words == like->words));
}

/* Is @key in the table, with a type as in @like (NULL: any type)? */
static bool find_in(const struct option *table, const char *key,
                    const struct option *like)
{
    char part[PART_MAX];
    const char *rest = split(key, part);

    for (const struct option *d = table; d && d->name; d++) {
        if (strcmp(d->name, part) == 0 &&
            (rest ? find_below(d, rest, like) : is_like(d, like))) {
            return true;
        }
    }
    return false;
}

static bool is_described(const struct opts *o, const char *key,
                         const struct option *like)
{
    return !o->described || find_in(o->tables[0], key, like) ||
           find_in(o->tables[1], key, like);
}

/* Is @key described with the type that the getter takes? */
static int check_described(const struct opts *o, const char *key,
                           enum option_type type, const char *const *words,
                           struct error **errp)
{
    const struct option like = {.type = type, .words = words};

    return is_described(o, key, &like)
               ? 0
               : error_set(errp, EINVAL, "option '%s' is not described", key);
}

/* Take @key out of @object.  Getters name their own keys, so they have few
 * parts. */
static json_t *take_key(json_t *object, const char *key)
{
    char part[PART_MAX];
    const char *rest = split(key, part);
    json_t *value = json_object_get(object, part);

    if (!rest) {
        json_incref(value);
        (void)json_object_del(object, part);
        return value;
    }
    if (!json_is_object(value)) {
        return NULL;
    }
    json_t *inner = take_key(value, rest);

    if (json_object_size(value) == 0) {
        (void)json_object_del(object, part);
    }
    return inner;
}

json_t *opts_take(struct opts *o, const char *key)
{
    return is_described(o, key, NULL) ? take_key(o->left, key) : NULL;
}

bool opts_has(const struct opts *o, const char *key)
{
    char part[PART_MAX];
    const json_t *value = o->left;

    while (key && value) {
        key = split(key, part);
        value = json_object_get(value, part);
    }
    return value != NULL;
}

/* The text of a string without NULs in it, or NULL. */
static const char *text_of(const json_t *value)
{
    const char *text = json_string_value(value);

    return text && strlen(text) == json_string_length(value) ? text : NULL;
}

int opts_str(struct opts *o, const char *key, const char **val,
             struct error **errp)
{
    json_t *value = opts_take(o, key);
    const char *text;

    int bad = check_described(o, key, OPTION_STR, NULL, errp);

    if (bad < 0) {
        json_decref(value);
        return bad;
    }
    if (!value) {
        return 0;
    }
    if (json_array_append_new(o->taken, value) < 0) {
        return error_nomem(errp);
    }
    text = text_of(value);
    if (!text) {
        return error_set(errp, EINVAL, "option '%s' must be a string", key);
    }
    *val = text;
    return 0;
}

static bool one_of(const char *text, const char *const *words, unsigned *index)
{
    for (unsigned i = 0; words[i]; i++) {
        if (strcmp(text, words[i]) == 0) {
            *index = i;
            return true;
        }
    }
    return false;
}

int opts_bool(struct opts *o, const char *key, bool *val, struct error **errp)
{
    /* An odd index is true. */
    static const char *const words[] = {"off", "on", "false", "true", "no",
                                        "yes", "n",  "y",     NULL};
    CLEANUP_JSON json_t *value = opts_take(o, key);
    const char *text = text_of(value);
    unsigned index;

    int bad = check_described(o, key, OPTION_BOOL, NULL, errp);

    if (bad < 0) {
        return bad;
    }
    if (!value) {
        return 0;
    }
    if (json_is_boolean(value)) {
        *val = json_is_true(value);
        return 0;
    }
    if (text && one_of(text, words, &index)) {
        *val = index % 2 != 0;
        return 0;
    }
    return error_set(errp, EINVAL, "option '%s' must be 'on' or 'off'", key);
}

/* QEMU names no limits: what is below zero is out of the range of any type. */
static int out_of_range(const char *key, const json_t *value, uint64_t max,
                        struct error **errp)
{
    if (max == UINT32_MAX) {
        return error_set(errp, EINVAL, "Parameter '%s' expects uint32_t", key);
    }
    if (json_integer_value(value) < 0) {
        return error_set(errp, EINVAL,
                         "Value '%" JSON_INTEGER_FORMAT
                         "' is out of range for parameter '%s'",
                         json_integer_value(value), key);
    }
    return error_set(errp, EINVAL, "option '%s' must be between 0 and %" PRIu64,
                     key, max);
}

int opts_uint(struct opts *o, const char *key, uint64_t max, uint64_t *val,
              struct error **errp)
{
    CLEANUP_JSON json_t *value = opts_take(o, key);
    const char *text = text_of(value);
    uint64_t n = 0;
    int r;

    int bad = check_described(o, key, OPTION_UINT, NULL, errp);

    if (bad < 0) {
        return bad;
    }
    if (!value) {
        return 0;
    }
    if (text) {
        r = size_parse(text, &n);
    } else if (json_is_integer(value)) {
        r = 0; /* one below zero is greater than most @max */
        n = (uint64_t)json_integer_value(value);
    } else {
        r = -EINVAL;
    }
    if (r == -EINVAL) {
        return error_set(errp, EINVAL, "option '%s' must be a number", key);
    }
    if (r < 0 || n > max) {
        return out_of_range(key, value, max, errp);
    }
    *val = n;
    return 0;
}

int opts_enum(struct opts *o, const char *key, const char *const *words,
              unsigned *val, struct error **errp)
{
    CLEANUP_JSON json_t *value = opts_take(o, key);
    const char *text = text_of(value);
    char list[256] = "";
    size_t len = 0;

    int bad = check_described(o, key, OPTION_ENUM, words, errp);

    if (bad < 0) {
        return bad;
    }
    if (!value || (text && one_of(text, words, val))) {
        return 0;
    }
    for (unsigned i = 0; words[i] && len < sizeof(list); i++) {
        const char *glue = i == 0 ? "" : words[i + 1] ? ", " : " or ";

        len += (size_t)snprintf(list + len, sizeof(list) - len, "%s'%s'", glue,
                                words[i]);
    }
    return error_set(errp, EINVAL, "option '%s' must be %s", key, list);
}

int opts_end(struct opts *o, const char *what, struct error **errp)
{
    char name[512] = "";
    size_t len = 0;
    const char *key;
    json_t *object = o->left;

    if (json_object_size(object) == 0) {
        return 0;
    }
    /* Name the first key, with its dots; a long name is cut. */
    while (json_object_size(object) > 0 && len < sizeof(name)) {
        void *it = json_object_iter(object);

        key = json_object_iter_key(it);
        len += (size_t)snprintf(name + len, sizeof(name) - len, "%s%s",
                                len > 0 ? "." : "", key);
        object = json_object_iter_value(it);
    }
    return error_set(errp, EINVAL, "%s does not take the option '%s'", what,
                     name);
}
