/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * query-qmp-schema: what commands take and return, made from the same rows
 * that check their arguments.
 *
 * Types have numbers for names, as in QEMU, except for the types of JSON
 * ("str") and arrays ("[str]", "[12]").  What the same rows describe is one
 * type.  A type has its number before its members are looked at, so that it may
 * be among them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands/schema-priv.h"
#include "commands/table.h"
#include "commands/types.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/option.h"

void schema_append(struct schema *s, json_t *list, json_t *item)
{
    s->failed |= json_array_append_new(list, item) < 0;
}

json_t *schema_with_features(struct schema *s, json_t *item,
                             const char *const *features)
{
    json_t *list = features ? json_array() : NULL;

    for (; features && *features; features++) {
        schema_append(s, list, json_string(*features));
    }
    s->failed |= list && json_object_set_new(item, "features", list) < 0;
    return item;
}

bool schema_name_type(struct schema *s, char kind, const void *what,
                      struct type_name *n)
{
    char key[32];

    (void)snprintf(key, sizeof(key), "%c%p", kind, what);
    const char *known = json_string_value(json_object_get(s->names, key));
    if (known) {
        (void)snprintf(n->text, sizeof(n->text), "%s", known);
        return false;
    }
    (void)snprintf(n->text, sizeof(n->text), "%u", s->count++);
    s->failed |= json_object_set_new(s->names, key, json_string(n->text)) < 0;
    return true;
}

/* The same of a type that has a name of its own. */
static bool is_first_of_name(struct schema *s, const char *name)
{
    if (json_object_get(s->names, name)) {
        return false;
    }
    s->failed |= json_object_set_new(s->names, name, json_true()) < 0;
    return true;
}

static void type_of(struct schema *s, const struct qmp_arg *a,
                    struct type_name *n);

void schema_builtin(struct schema *s, const char *name, const char *json_type,
                    struct type_name *n)
{
    (void)snprintf(n->text, sizeof(n->text), "%s", name);
    if (is_first_of_name(s, name)) {
        schema_append(s, s->types,
                      json_pack("{s:s, s:s, s:s}", "name", name, "meta-type",
                                "builtin", "json-type", json_type));
    }
}

void schema_array_of(struct schema *s, struct type_name *n)
{
    struct type_name element = *n;

    (void)snprintf(n->text, sizeof(n->text), "[%.28s]", element.text);
    if (is_first_of_name(s, n->text)) {
        schema_append(s, s->types,
                      json_pack("{s:s, s:s, s:s}", "name", n->text, "meta-type",
                                "array", "element-type", element.text));
    }
}

void schema_enum_of(struct schema *s, const char *const *words,
                    struct type_name *n)
{
    if (!schema_name_type(s, 'e', words, n)) {
        return;
    }
    json_t *members = json_array();
    json_t *values = json_array();

    for (; *words; words++) {
        schema_append(s, members, json_pack("{s:s}", "name", *words));
        schema_append(s, values, json_string(*words));
    }
    schema_append(s, s->types,
                  json_pack("{s:s, s:s, s:o, s:o}", "name", n->text,
                            "meta-type", "enum", "members", members, "values",
                            values));
}

static const char *const *words_of(const struct qmp_arg *a)
{
    return a->words_of ? a->words_of() : a->words;
}

/* What the union @u adds in the case of @word; NULL: nothing. */
static const struct qmp_arg *members_of(const struct qmp_arg *u,
                                        const char *word)
{
    for (const struct qmp_variant *v = u->variants; v->name; v++) {
        if (strcmp(v->name, word) == 0) {
            return v->members;
        }
    }
    return NULL;
}

/* There is a case for each word of the tag, which is one of @spec. */
static void add_variants(struct schema *s, const struct qmp_arg *spec,
                         const struct qmp_arg *u, json_t *object)
{
    json_t *list = json_array();
    const struct qmp_arg *tag = qmp_find_arg(spec, NULL, u->name);

    for (const char *const *w = words_of(tag); *w; w++) {
        struct type_name n = {""};

        schema_object_of(s, members_of(u, *w), &n);
        schema_append(s, list,
                      json_pack("{s:s, s:s}", "case", *w, "type", n.text));
    }
    s->failed |= json_object_set_new(object, "tag", json_string(u->name)) < 0 ||
                 json_object_set_new(object, "variants", list) < 0;
}

/* --- Transactions: a case for each command that is an action. --- */

struct actions {
    struct schema *schema;
    json_t *members; /* of the enum, and its values, and the cases */
    json_t *values;
    json_t *cases;
};

static int add_action_case(const struct qmp_command *c, void *opaque)
{
    struct actions *as = opaque;
    struct schema *s = as->schema;
    struct type_name args = {""};
    struct type_name whole = {""};

    if (!c->action) {
        return 0;
    }
    schema_object_of(s, c->args, &args);
    (void)schema_name_type(s, 't', c, &whole);
    schema_append(s, s->types,
                  json_pack("{s:s, s:s, s:[{s:s, s:s}]}", "name", whole.text,
                            "meta-type", "object", "members", "name", "data",
                            "type", args.text));
    json_t *word = json_pack("{s:s}", "name", c->name);
    schema_append(s, as->members, schema_with_features(s, word, c->features));
    schema_append(s, as->values, json_string(c->name));
    schema_append(s, as->cases,
                  json_pack("{s:s, s:s}", "case", c->name, "type", whole.text));
    return 0;
}

/* @key: the rows that describe an action. */
static void action_of(struct schema *s, const struct qmp_arg *key,
                      struct type_name *n)
{
    struct actions as = {s, json_array(), json_array(), json_array()};
    struct type_name type = {""};

    (void)schema_name_type(s, 'e', key, &type);
    (void)qmp_each_command(add_action_case, &as);
    (void)add_action_case(&qmp_abort_action, &as);
    schema_append(s, s->types,
                  json_pack("{s:s, s:s, s:o, s:o}", "name", type.text,
                            "meta-type", "enum", "members", as.members,
                            "values", as.values));
    schema_append(s, s->types,
                  json_pack("{s:s, s:s, s:[{s:s, s:s}], s:s, s:o}", "name",
                            n->text, "meta-type", "object", "members", "name",
                            "type", "type", type.text, "tag", "type",
                            "variants", as.cases));
}

static enum qmp_type last_type(const struct qmp_arg *spec)
{
    while (!qmp_is_last(spec)) {
        spec++;
    }
    return spec->type;
}

/* --- Objects. --- */

/* @spec NULL: without members. */
void schema_object_of(struct schema *s, const struct qmp_arg *spec,
                      struct type_name *n)
{
    static const struct qmp_arg none[] = {QMP_LAST};
    const struct qmp_arg *a = spec ? spec : none;

    if (!schema_name_type(s, 'o', qmp_is_last(a) ? none : a, n)) {
        return;
    }
    if (last_type(a) == QMP_ACTION) {
        action_of(s, a, n);
        return;
    }
    if (last_type(a) == QMP_NODE) {
        schema_node_options_of(s, a, n);
        return;
    }
    json_t *members = json_array();
    json_t *object = json_pack("{s:s, s:s, s:o}", "name", n->text, "meta-type",
                               "object", "members", members);

    for (; !qmp_is_last(a); a++) {
        struct type_name t = {""};

        type_of(s, a, &t);
        json_t *member = json_pack("{s:s, s:s}", "name", a->name, "type",
                                   t.text);
        if (a->optional) {
            s->failed |= json_object_set_new(member, "default", json_null()) <
                         0;
        }
        schema_append(s, members, schema_with_features(s, member, a->features));
    }
    if (a->type == QMP_UNION) {
        add_variants(s, spec, a, object);
    }
    schema_append(s, s->types, object);
}

/* A string, or an object of @spec. */
static void alternate_of(struct schema *s, const struct qmp_arg *spec,
                         struct type_name *n)
{
    struct type_name text = {""};
    struct type_name object = {""};

    if (schema_name_type(s, 'a', spec, n)) {
        schema_builtin(s, "str", "string", &text);
        schema_object_of(s, spec, &object);
        schema_append(s, s->types,
                      json_pack("{s:s, s:s, s:[{s:s}, {s:s}]}", "name", n->text,
                                "meta-type", "alternate", "members", "type",
                                text.text, "type", object.text));
    }
}

static void str_or_null_of(struct schema *s, struct type_name *n)
{
    static const char kind;
    struct type_name text = {""};
    struct type_name null = {""};

    if (schema_name_type(s, 's', &kind, n)) {
        schema_builtin(s, "str", "string", &text);
        schema_builtin(s, "null", "null", &null);
        schema_append(s, s->types,
                      json_pack("{s:s, s:s, s:[{s:s}, {s:s}]}", "name", n->text,
                                "meta-type", "alternate", "members", "type",
                                text.text, "type", null.text));
    }
}

static void type_of(struct schema *s, const struct qmp_arg *a,
                    struct type_name *n)
{
    const struct qmp_arg *members = a->members ? a->members : a->shown;

    switch (a->type) {
    case QMP_STR:
    case QMP_NEW_NODE:
    case QMP_STRS:
        schema_builtin(s, "str", "string", n);
        break;
    case QMP_INT:
    case QMP_UINT32:
    case QMP_SIZE:
    case QMP_INTS:
        schema_builtin(s, "int", "int", n);
        break;
    case QMP_NUMBER:
        schema_builtin(s, "number", "number", n);
        break;
    case QMP_BOOL:
        schema_builtin(s, "bool", "boolean", n);
        break;
    case QMP_ENUM:
    case QMP_ENUMS:
        schema_enum_of(s, words_of(a), n);
        break;
    case QMP_STR_OR_NULL:
        str_or_null_of(s, n);
        break;
    case QMP_NODE_REF:
        schema_node_ref_of(s, false, n);
        break;
    case QMP_STR_OR_OBJECT_ARRAY:
        alternate_of(s, a->members, n);
        break;
    default:
        if ((a->type == QMP_OBJECT || a->type == QMP_OBJECTS) && members) {
            schema_object_of(s, members, n);
        } else {
            schema_builtin(s, "any", "value", n);
        }
        break;
    }
    if (a->type == QMP_STRS || a->type == QMP_ENUMS || a->type == QMP_OBJECTS ||
        a->type == QMP_INTS || a->type == QMP_STR_OR_OBJECT_ARRAY) {
        schema_array_of(s, n);
    }
}

static int describe_command(const struct qmp_command *c, void *opaque)
{
    struct schema *s = opaque;
    struct type_name arg = {""};
    struct type_name ret = {""};

    schema_object_of(s, c->args, &arg);
    if (c->ret) {
        type_of(s, c->ret, &ret);
    } else {
        schema_object_of(s, NULL, &ret);
    }
    json_t *command = json_pack("{s:s, s:s, s:s, s:s}", "name", c->name,
                                "meta-type", "command", "arg-type", arg.text,
                                "ret-type", ret.text);
    if (c->lockless && command) {
        s->failed |= json_object_set_new(command, "allow-oob", json_true()) < 0;
    }
    schema_append(s, s->users, schema_with_features(s, command, c->features));
    return 0;
}

static void add_events(struct schema *s)
{
    for (const struct qmp_event *e = qmp_events; e->name; e++) {
        struct type_name arg = {""};

        schema_object_of(s, e->data, &arg);
        schema_append(s, s->users,
                      json_pack("{s:s, s:s, s:s}", "name", e->name, "meta-type",
                                "event", "arg-type", arg.text));
    }
}

static int cmd_query_schema(struct qmp_call *call, struct error **errp)
{
    struct schema s = {json_array(), json_array(), json_object(), 0, false};

    (void)qmp_each_command(describe_command, &s);
    add_events(&s);
    s.failed |= json_array_extend(s.users, s.types) < 0;
    json_decref(s.types);
    json_decref(s.names);
    call->ret = s.users;
    return s.failed ? error_nomem(errp) : 0;
}

const struct qmp_command qmp_schema_commands[] = {
    QMP_COMMAND("query-qmp-schema", cmd_query_schema, NULL,
                .ret = &qmp_schema_type),
    QMP_COMMANDS_END,
};
