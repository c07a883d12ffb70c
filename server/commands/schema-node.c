/* SPDX-License-Identifier: BSD-3-Clause */
/* query-qmp-schema: the options of nodes, as the tables of their drivers have
 * them (option.h).  See schema.c. */
#include "commands/schema-priv.h"

#include "commands/table.h"
#include "nbdelta/graph.h"
#include "nbdelta/option.h"

static void options_of(struct schema *s, const struct option *table,
                       const char *const *features, struct type_name *n);

static void add_option_members(struct schema *s, const struct option *o,
                               json_t *members);

/* Alternatives are told by their types alone. */
static void add_alternative(struct schema *s, json_t *list, const char *type)
{
    schema_append(s, list, json_pack("{s:s}", "type", type));
}

void schema_node_ref_of(struct schema *s, bool or_null, struct type_name *n)
{
    static const char kinds[2];
    struct type_name t = {""};

    if (!schema_name_type(s, 'r', &kinds[or_null], n)) {
        return;
    }
    json_t *list = json_array();
    schema_object_of(s, qmp_node_args, &t);
    add_alternative(s, list, t.text);
    schema_builtin(s, "str", "string", &t);
    add_alternative(s, list, t.text);
    if (or_null) {
        schema_builtin(s, "null", "null", &t);
        add_alternative(s, list, t.text);
    }
    schema_append(s, s->types,
                  json_pack("{s:s, s:s, s:o}", "name", n->text, "meta-type",
                            "alternate", "members", list));
}

static void option_union_of(struct schema *s, const struct option *o,
                            struct type_name *n)
{
    if (!schema_name_type(s, 'u', o, n)) {
        return;
    }
    struct type_name tag = {""};
    json_t *cases = json_array();
    json_t *members = json_array();

    schema_enum_of(s, o->words, &tag);
    schema_append(s, members,
                  json_pack("{s:s, s:s}", "name", "type", "type", tag.text));
    add_option_members(s, o->members, members);
    for (unsigned i = 0; o->words[i]; i++) {
        struct type_name t = {""};

        options_of(s, o->cases[i], NULL, &t);
        schema_append(
            s, cases,
            json_pack("{s:s, s:s}", "case", o->words[i], "type", t.text));
    }
    schema_append(s, s->types,
                  json_pack("{s:s, s:s, s:o, s:s, s:o}", "name", n->text,
                            "meta-type", "object", "members", members, "tag",
                            "type", "variants", cases));
}

/* One of the words, or an object of the members. */
static void enum_or_object_of(struct schema *s, const struct option *o,
                              struct type_name *n)
{
    struct type_name words = {""};
    struct type_name object = {""};

    if (schema_name_type(s, 'w', o, n)) {
        schema_enum_of(s, o->words, &words);
        options_of(s, o->members, NULL, &object);
        schema_append(s, s->types,
                      json_pack("{s:s, s:s, s:[{s:s}, {s:s}]}", "name", n->text,
                                "meta-type", "alternate", "members", "type",
                                object.text, "type", words.text));
    }
}

static void option_type_of(struct schema *s, const struct option *o,
                           struct type_name *n)
{
    switch (o->type) {
    case OPTION_STR:
        schema_builtin(s, "str", "string", n);
        break;
    case OPTION_BOOL:
        schema_builtin(s, "bool", "boolean", n);
        break;
    case OPTION_UINT:
        schema_builtin(s, "int", "int", n);
        break;
    case OPTION_ENUM:
    case OPTION_ENUMS:
        schema_enum_of(s, o->words, n);
        break;
    case OPTION_OBJECT:
    case OPTION_OBJECTS:
        options_of(s, o->members, NULL, n);
        break;
    case OPTION_UNION:
        option_union_of(s, o, n);
        break;
    case OPTION_ENUM_OR_OBJECT:
        enum_or_object_of(s, o, n);
        break;
    case OPTION_NODE:
    case OPTION_NODE_OR_NULL:
    default:
        schema_node_ref_of(s, o->type == OPTION_NODE_OR_NULL, n);
        break;
    }
    if (o->type == OPTION_ENUMS || o->type == OPTION_OBJECTS) {
        schema_array_of(s, n);
    }
}

static void add_option_members(struct schema *s, const struct option *o,
                               json_t *members)
{
    for (; o && o->name; o++) {
        struct type_name t = {""};

        if (o->hidden) {
            continue;
        }
        option_type_of(s, o, &t);
        json_t *member = json_pack("{s:s, s:s}", "name", o->name, "type",
                                   t.text);
        if (!o->required) {
            s->failed |= json_object_set_new(member, "default", json_null()) <
                         0;
        }
        schema_append(s, members, schema_with_features(s, member, o->features));
    }
}

/* The options of one driver, or the members of one option. */
static void options_of(struct schema *s, const struct option *table,
                       const char *const *features, struct type_name *n)
{
    static const struct option none[] = {OPTIONS_END};
    const struct option *o = table ? table : none;

    if (schema_name_type(s, 'n', o, n)) {
        json_t *members = json_array();

        add_option_members(s, o, members);
        json_t *object = json_pack("{s:s, s:s, s:o}", "name", n->text,
                                   "meta-type", "object", "members", members);
        schema_append(s, s->types, schema_with_features(s, object, features));
    }
}

void schema_node_options_of(struct schema *s, const struct qmp_arg *key,
                            struct type_name *n)
{
    json_t *members = json_array();
    json_t *cases = json_array();
    struct type_name t = {""};

    schema_enum_of(s, key->words_of(), &t);
    schema_append(s, members,
                  json_pack("{s:s, s:s}", "name", key->name, "type", t.text));
    add_option_members(s, graph_node_options, members);
    for (const char *const *w = key->words_of(); *w; w++) {
        options_of(s, graph_driver_options(*w), graph_driver_features(*w), &t);
        schema_append(s, cases,
                      json_pack("{s:s, s:s}", "case", *w, "type", t.text));
    }
    schema_append(s, s->types,
                  json_pack("{s:s, s:s, s:o, s:s, s:o}", "name", n->text,
                            "meta-type", "object", "members", members, "tag",
                            key->name, "variants", cases));
}
