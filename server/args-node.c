/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Options of nodes, held against the tables of their drivers: see args-node.h.
 *
 * A level of the options is an object, and up to two tables have its members:
 * those of all nodes and those of the driver, those of a union and those of its
 * case.  As everywhere (args.c), values that do not fit come first, then
 * members that no table has, then what is missing.
 */
#include "args-node.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/option.h"
#include "wide.h"

struct level {
    const char *where; /* "file.", comes before names */
    const struct option *tables[2];
    const char *tag; /* the member that has said which the second is */
};

struct place {
    char text[128]; /* what does not fit is cut off */
};

static int check_level(json_t *object, const struct level *l,
                       struct error **errp);

/* QEMU does not say where alternates stand: @where is "" for them. */
static int bad_type(const char *where, const char *name, const char *expected,
                    struct error **errp)
{
    return error_set(errp, EINVAL,
                     "Invalid parameter type for '%s%s', expected: %s", where,
                     name, expected);
}

static int missing(const char *where, const char *name, struct error **errp)
{
    return error_set(errp, EINVAL, "Parameter '%s%s' is missing", where, name);
}

static int find_word(const char *text, const char *const *words)
{
    for (int i = 0; words[i]; i++) {
        if (strcmp(words[i], text) == 0) {
            return i;
        }
    }
    return -1;
}

/* *index: which of the words it is.  QEMU does not say where @name stands, and
 * programs look for its text. */
static int check_word(const json_t *v, const char *const *words,
                      const char *where, const char *name, int *index,
                      struct error **errp)
{
    const char *text = json_string_value(v);

    if (!text) {
        return bad_type(where, name, "string", errp);
    }
    *index = find_word(text, words);
    return *index >= 0
               ? 0
               : error_set(errp, EINVAL,
                           "Parameter '%s' does not accept value '%.200s'",
                           name, text);
}

static struct place below(const char *where, const char *name)
{
    struct place p;

    (void)snprintf(p.text, sizeof(p.text), "%.60s%.60s.", where, name);
    return p;
}

static int check_members(json_t *v, const struct option *o, const char *where,
                         const char *name, struct error **errp)
{
    struct place at = below(where, name);
    struct level l = {at.text, {o->members, NULL}, NULL};

    return json_is_object(v) ? check_level(v, &l, errp)
                             : bad_type(where, name, "object", errp);
}

static int check_union(json_t *v, const struct option *o, const char *where,
                       struct error **errp)
{
    struct place at = below(where, o->name);
    struct level l = {at.text, {o->members, NULL}, "type"};
    int index = 0;

    if (!json_is_object(v)) {
        return bad_type(where, o->name, "object", errp);
    }
    if (!json_object_get(v, "type")) {
        return missing(at.text, "type", errp);
    }
    int r = check_word(json_object_get(v, "type"), o->words, at.text, "type",
                       &index, errp);
    if (r < 0) {
        return r;
    }
    l.tables[1] = o->cases[index];
    return check_level(v, &l, errp);
}

static int check_items(json_t *v, const struct option *o, const char *where,
                       struct error **errp)
{
    size_t i;
    json_t *item;
    int r = json_is_array(v) ? 0 : bad_type(where, o->name, "array", errp);

    json_array_foreach (v, i, item) {
        char name[80];
        int index = 0;

        if (r < 0) {
            break;
        }
        (void)snprintf(name, sizeof(name), "%.50s[%zu]", o->name, i);
        r = o->type == OPTION_ENUMS /* nor does QEMU say which word it is */
                ? check_word(item, o->words, where,
                             json_is_string(item) ? "null" : name, &index, errp)
                : check_members(item, o, where, name, errp);
    }
    return r;
}

static int check_number(const json_t *v, const struct option *o,
                        const char *where, struct error **errp)
{
    if (json_is_integer(v)) {
        return 0;
    }
    return o->type_name ? error_set(errp, EINVAL, "Parameter '%s%s' expects %s",
                                    where, o->name, o->type_name)
                        : bad_type(where, o->name, "integer", errp);
}

/* Options for the backing file that an image names have no driver: the image
 * names that, too.  The open looks at them. */
static int check_backing(json_t *v, const struct option *o, const char *where,
                         struct error **errp)
{
    if (json_is_null(v) ||
        (json_is_object(v) && !json_object_get(v, "driver"))) {
        return 0;
    }
    return json_is_object(v) || json_is_string(v)
               ? args_check_node_ref(v, where, o->name, errp)
               : bad_type("", o->name, "BlockdevRefOrNull", errp);
}

static int check_value(json_t *v, const struct option *o, const char *where,
                       struct error **errp)
{
    int index = 0;

    switch (o->type) {
    case OPTION_STR:
        return json_is_string(v) ? 0 : bad_type(where, o->name, "string", errp);
    case OPTION_BOOL:
        return json_is_boolean(v) ? 0
                                  : bad_type(where, o->name, "boolean", errp);
    case OPTION_UINT:
        return check_number(v, o, where, errp);
    case OPTION_ENUM:
        return check_word(v, o->words, where, o->name, &index, errp);
    case OPTION_ENUM_OR_OBJECT:
        if (!json_is_object(v) && !json_is_string(v)) {
            return bad_type("", o->name, o->type_name, errp);
        }
        return json_is_object(v)
                   ? check_members(v, o, where, o->name, errp)
                   : check_word(v, o->words, where, o->name, &index, errp);
    case OPTION_OBJECT:
        return check_members(v, o, where, o->name, errp);
    case OPTION_UNION:
        return check_union(v, o, where, errp);
    case OPTION_ENUMS:
    case OPTION_OBJECTS:
        return check_items(v, o, where, errp);
    case OPTION_NODE_OR_NULL:
        return check_backing(v, o, where, errp);
    case OPTION_NODE:
    default:
        return args_check_node_ref(v, where, o->name, errp);
    }
}

static const struct option *find_option(const struct level *l, const char *key)
{
    for (size_t i = 0; i < 2; i++) {
        for (const struct option *o = l->tables[i]; o && o->name; o++) {
            if (strcmp(o->name, key) == 0) {
                return o;
            }
        }
    }
    return NULL;
}

static int check_unknown(json_t *object, const struct level *l,
                         struct error **errp)
{
    for (void *it = json_object_iter(object); it;
         it = json_object_iter_next(object, it)) {
        const char *key = json_object_iter_key(it);

        if ((!l->tag || strcmp(key, l->tag) != 0) && !find_option(l, key)) {
            return error_set(errp, EINVAL, "Parameter '%s%.200s' is unexpected",
                             l->where, key);
        }
    }
    return 0;
}

/* QEMU's uint64, which not all of its integers are. */
static bool is_unsigned(const struct option *o)
{
    return o->type == OPTION_UINT && o->type_name;
}

static int check_level(json_t *object, const struct level *l,
                       struct error **errp)
{
    const struct option *lacks = NULL;
    int r = 0;

    for (size_t i = 0; i < 2; i++) {
        for (const struct option *o = l->tables[i]; r == 0 && o && o->name;
             o++) {
            json_t *v = is_unsigned(o) ? wide_to_bits(object, o->name)
                                       : json_object_get(object, o->name);

            r = v ? check_value(v, o, l->where, errp) : 0;
            lacks = !v && o->required && !lacks ? o : lacks;
        }
    }
    r = r < 0 ? r : check_unknown(object, l, errp);
    return r == 0 && lacks ? missing(l->where, lacks->name, errp) : r;
}

int args_check_node(json_t *options, const char *where, struct error **errp)
{
    struct level l = {where, {graph_node_options, NULL}, "driver"};
    const json_t *driver = json_object_get(options, "driver");
    int index = 0;

    if (!driver) {
        return missing(where, "driver", errp);
    }
    int r = check_word(driver, graph_driver_names(), where, "driver", &index,
                       errp);
    if (r < 0) {
        return r;
    }
    l.tables[1] = graph_driver_options(graph_driver_names()[index]);
    return check_level(options, &l, errp);
}

int args_check_node_ref(json_t *value, const char *where, const char *name,
                        struct error **errp)
{
    struct place at = below(where, name);

    if (json_is_string(value)) {
        return 0;
    }
    return json_is_object(value) ? args_check_node(value, at.text, errp)
                                 : bad_type("", name, "BlockdevRef", errp);
}
