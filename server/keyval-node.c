/* SPDX-License-Identifier: BSD-3-Clause */
/* Texts of a command line become what the tables of drivers want: see
 * keyval-node.h. */
#include "keyval-node.h"

#include <errno.h>
#include <string.h>

#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/option.h"
#include "nbdelta/size.h"

int keyval_to_bool(const char *text, const char *name, json_t **v,
                   struct error **errp)
{
    bool on = strcmp(text, "on") == 0 || strcmp(text, "yes") == 0 ||
              strcmp(text, "true") == 0 || strcmp(text, "y") == 0;

    if (!on && strcmp(text, "off") != 0 && strcmp(text, "no") != 0 &&
        strcmp(text, "false") != 0 && strcmp(text, "n") != 0) {
        return error_set(errp, EINVAL, "Parameter '%s' expects 'on' or 'off'",
                         name);
    }
    *v = json_boolean(on);
    return 0;
}

int keyval_to_size(const char *text, const char *name, json_t **v,
                   struct error **errp)
{
    uint64_t n;

    if (size_parse(text, &n) < 0) {
        return error_set(errp, EINVAL, "Parameter '%s' expects a size", name);
    }
    *v = json_integer((json_int_t)n);
    return 0;
}

static int convert_level(json_t *object, const struct option *table,
                         struct error **errp);

static int convert_items(json_t *array, const struct option *members,
                         struct error **errp)
{
    size_t i;
    json_t *item;
    int r = 0;

    json_array_foreach (array, i, item) {
        r = r < 0 ? r : convert_level(item, members, errp);
    }
    return r;
}

static const struct option *case_of(const json_t *v, const struct option *o)
{
    const char *type = json_string_value(json_object_get(v, "type"));

    for (unsigned i = 0; type && o->words[i]; i++) {
        if (strcmp(o->words[i], type) == 0) {
            return o->cases[i];
        }
    }
    return NULL;
}

/* *to: what @v becomes; NULL: it stays, perhaps with other members. */
static int convert_value(json_t *v, const struct option *o, json_t **to,
                         struct error **errp)
{
    const char *text = json_string_value(v);
    int r = 0;

    *to = NULL;
    switch (o->type) {
    case OPTION_BOOL:
        return text ? keyval_to_bool(text, o->name, to, errp) : 0;
    case OPTION_UINT:
        return text ? keyval_to_size(text, o->name, to, errp) : 0;
    case OPTION_NODE:
    case OPTION_NODE_OR_NULL:
        return json_is_object(v) ? keyval_convert_node(v, errp) : 0;
    case OPTION_OBJECTS:
        return convert_items(v, o->members, errp);
    case OPTION_UNION:
        r = convert_level(v, case_of(v, o), errp);
        return r < 0 ? r : convert_level(v, o->members, errp);
    case OPTION_OBJECT:
    case OPTION_ENUM_OR_OBJECT:
        return convert_level(v, o->members, errp);
    case OPTION_STR:
    case OPTION_ENUM:
    case OPTION_ENUMS:
    default:
        return 0;
    }
}

static int convert_level(json_t *object, const struct option *table,
                         struct error **errp)
{
    for (const struct option *o = table; o && o->name; o++) {
        json_t *v = json_object_get(object, o->name);
        json_t *to = NULL;
        int r = v ? convert_value(v, o, &to, errp) : 0;

        if (r < 0) {
            return r;
        }
        if (to && json_object_set_new(object, o->name, to) < 0) {
            return error_nomem(errp);
        }
    }
    return 0;
}

int keyval_convert_node(json_t *options, struct error **errp)
{
    const char *driver = json_string_value(json_object_get(options, "driver"));
    int r = convert_level(options, graph_node_options, errp);

    return r < 0 || !driver
               ? r
               : convert_level(options, graph_driver_options(driver), errp);
}
