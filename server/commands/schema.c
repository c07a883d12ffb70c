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

#include "commands/table.h"
#include "commands/types.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/option.h"

struct schema {
    json_t *users; /* commands and events */
    json_t *types;
    json_t *names; /* what describes a type -> its name */
    unsigned count;
    bool failed; /* no memory */
};

struct type_name {
    char text[32];
};

static void append(struct schema *s, json_t *list, json_t *item)
{
    s->failed |= json_array_append_new(list, item) < 0;
}

/* The name of the type that @what describes, in the role @kind, or a new one.
 * True: it is new. */
static bool name_type(struct schema *s, char kind, const void *what,
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

static void builtin(struct schema *s, const char *name, const char *json_type,
                    struct type_name *n)
{
    (void)snprintf(n->text, sizeof(n->text), "%s", name);
    if (is_first_of_name(s, name)) {
        append(s, s->types,
               json_pack("{s:s, s:s, s:s}", "name", name, "meta-type",
                         "builtin", "json-type", json_type));
    }
}

static void array_of(struct schema *s, struct type_name *n)
{
    struct type_name element = *n;

    (void)snprintf(n->text, sizeof(n->text), "[%.28s]", element.text);
    if (is_first_of_name(s, n->text)) {
        append(s, s->types,
               json_pack("{s:s, s:s, s:s}", "name", n->text, "meta-type",
                         "array", "element-type", element.text));
    }
}

static void enum_of(struct schema *s, const char *const *words,
                    struct type_name *n)
{
    if (!name_type(s, 'e', words, n)) {
        return;
    }
    json_t *members = json_array();
    json_t *values = json_array();

    for (; *words; words++) {
        append(s, members, json_pack("{s:s}", "name", *words));
        append(s, values, json_string(*words));
    }
    append(s, s->types,
           json_pack("{s:s, s:s, s:o, s:o}", "name", n->text, "meta-type",
                     "enum", "members", members, "values", values));
}

static void object_of(struct schema *s, const struct qmp_arg *spec,
                      struct type_name *n);

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

        object_of(s, members_of(u, *w), &n);
        append(s, list, json_pack("{s:s, s:s}", "case", *w, "type", n.text));
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
    object_of(s, c->args, &args);
    (void)name_type(s, 't', c, &whole);
    append(s, s->types,
           json_pack("{s:s, s:s, s:[{s:s, s:s}]}", "name", whole.text,
                     "meta-type", "object", "members", "name", "data", "type",
                     args.text));
    append(s, as->members, json_pack("{s:s}", "name", c->name));
    append(s, as->values, json_string(c->name));
    append(s, as->cases,
           json_pack("{s:s, s:s}", "case", c->name, "type", whole.text));
    return 0;
}

/* @key: the rows that describe an action. */
static void action_of(struct schema *s, const struct qmp_arg *key,
                      struct type_name *n)
{
    struct actions as = {s, json_array(), json_array(), json_array()};
    struct type_name type = {""};

    (void)name_type(s, 'e', key, &type);
    (void)qmp_each_command(add_action_case, &as);
    (void)add_action_case(&qmp_abort_action, &as);
    append(s, s->types,
           json_pack("{s:s, s:s, s:o, s:o}", "name", type.text, "meta-type",
                     "enum", "members", as.members, "values", as.values));
    append(s, s->types,
           json_pack("{s:s, s:s, s:[{s:s, s:s}], s:s, s:o}", "name", n->text,
                     "meta-type", "object", "members", "name", "type", "type",
                     type.text, "tag", "type", "variants", as.cases));
}

static enum qmp_type last_type(const struct qmp_arg *spec)
{
    while (!qmp_is_last(spec)) {
        spec++;
    }
    return spec->type;
}

/* --- Nodes: from what their drivers take (option.h). --- */

static void options_of(struct schema *s, const struct option *table,
                       struct type_name *n);

static void add_option_members(struct schema *s, const struct option *o,
                               json_t *members);

/* Alternatives are told by their types alone. */
static void add_alternative(struct schema *s, json_t *list, const char *type)
{
    append(s, list, json_pack("{s:s}", "type", type));
}

/* BlockdevRef, or BlockdevRefOrNull. */
static void node_ref_of(struct schema *s, bool or_null, struct type_name *n)
{
    static const char kinds[2];
    struct type_name t = {""};

    if (!name_type(s, 'r', &kinds[or_null], n)) {
        return;
    }
    json_t *list = json_array();
    object_of(s, qmp_node_args, &t);
    add_alternative(s, list, t.text);
    builtin(s, "str", "string", &t);
    add_alternative(s, list, t.text);
    if (or_null) {
        builtin(s, "null", "null", &t);
        add_alternative(s, list, t.text);
    }
    append(s, s->types,
           json_pack("{s:s, s:s, s:o}", "name", n->text, "meta-type",
                     "alternate", "members", list));
}

static void option_union_of(struct schema *s, const struct option *o,
                            struct type_name *n)
{
    if (!name_type(s, 'u', o, n)) {
        return;
    }
    struct type_name tag = {""};
    json_t *cases = json_array();
    json_t *members = json_array();

    enum_of(s, o->words, &tag);
    append(s, members,
           json_pack("{s:s, s:s}", "name", "type", "type", tag.text));
    add_option_members(s, o->members, members);
    for (unsigned i = 0; o->words[i]; i++) {
        struct type_name t = {""};

        options_of(s, o->cases[i], &t);
        append(s, cases,
               json_pack("{s:s, s:s}", "case", o->words[i], "type", t.text));
    }
    append(s, s->types,
           json_pack("{s:s, s:s, s:o, s:s, s:o}", "name", n->text, "meta-type",
                     "object", "members", members, "tag", "type", "variants",
                     cases));
}

/* One of the words, or an object of the members. */
static void enum_or_object_of(struct schema *s, const struct option *o,
                              struct type_name *n)
{
    struct type_name words = {""};
    struct type_name object = {""};

    if (name_type(s, 'w', o, n)) {
        enum_of(s, o->words, &words);
        options_of(s, o->members, &object);
        append(s, s->types,
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
        builtin(s, "str", "string", n);
        break;
    case OPTION_BOOL:
        builtin(s, "bool", "boolean", n);
        break;
    case OPTION_UINT:
        builtin(s, "int", "int", n);
        break;
    case OPTION_ENUM:
    case OPTION_ENUMS:
        enum_of(s, o->words, n);
        break;
    case OPTION_OBJECT:
    case OPTION_OBJECTS:
        options_of(s, o->members, n);
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
        node_ref_of(s, o->type == OPTION_NODE_OR_NULL, n);
        break;
    }
    if (o->type == OPTION_ENUMS || o->type == OPTION_OBJECTS) {
        array_of(s, n);
    }
}

static void add_option_members(struct schema *s, const struct option *o,
                               json_t *members)
{
    for (; o && o->name; o++) {
        struct type_name t = {""};

        option_type_of(s, o, &t);
        json_t *member = json_pack("{s:s, s:s}", "name", o->name, "type",
                                   t.text);
        if (!o->required) {
            s->failed |= json_object_set_new(member, "default", json_null()) <
                         0;
        }
        append(s, members, member);
    }
}

/* The options of one driver, or the members of one option. */
static void options_of(struct schema *s, const struct option *table,
                       struct type_name *n)
{
    static const struct option none[] = {OPTIONS_END};
    const struct option *o = table ? table : none;

    if (name_type(s, 'n', o, n)) {
        json_t *members = json_array();

        add_option_members(s, o, members);
        append(s, s->types,
               json_pack("{s:s, s:s, s:o}", "name", n->text, "meta-type",
                         "object", "members", members));
    }
}

/* @key: the rows that describe a node. */
static void node_options_of(struct schema *s, const struct qmp_arg *key,
                            struct type_name *n)
{
    json_t *members = json_array();
    json_t *cases = json_array();
    struct type_name t = {""};

    enum_of(s, words_of(key), &t);
    append(s, members,
           json_pack("{s:s, s:s}", "name", key->name, "type", t.text));
    add_option_members(s, graph_node_options, members);
    for (const char *const *w = words_of(key); *w; w++) {
        options_of(s, graph_driver_options(*w), &t);
        append(s, cases, json_pack("{s:s, s:s}", "case", *w, "type", t.text));
    }
    append(s, s->types,
           json_pack("{s:s, s:s, s:o, s:s, s:o}", "name", n->text, "meta-type",
                     "object", "members", members, "tag", key->name, "variants",
                     cases));
}

/* --- Objects. --- */

/* @spec NULL: without members. */
static void object_of(struct schema *s, const struct qmp_arg *spec,
                      struct type_name *n)
{
    static const struct qmp_arg none[] = {QMP_LAST};
    const struct qmp_arg *a = spec ? spec : none;

    if (!name_type(s, 'o', qmp_is_last(a) ? none : a, n)) {
        return;
    }
    if (last_type(a) == QMP_ACTION) {
        action_of(s, a, n);
        return;
    }
    if (last_type(a) == QMP_NODE) {
        node_options_of(s, a, n);
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
        append(s, members, member);
    }
    if (a->type == QMP_UNION) {
        add_variants(s, spec, a, object);
    }
    append(s, s->types, object);
}

/* A string, or an object of @spec. */
static void alternate_of(struct schema *s, const struct qmp_arg *spec,
                         struct type_name *n)
{
    struct type_name text = {""};
    struct type_name object = {""};

    if (name_type(s, 'a', spec, n)) {
        builtin(s, "str", "string", &text);
        object_of(s, spec, &object);
        append(s, s->types,
               json_pack("{s:s, s:s, s:[{s:s}, {s:s}]}", "name", n->text,
                         "meta-type", "alternate", "members", "type", text.text,
                         "type", object.text));
    }
}

static void type_of(struct schema *s, const struct qmp_arg *a,
                    struct type_name *n)
{
    const struct qmp_arg *members = a->members ? a->members : a->shown;

    switch (a->type) {
    case QMP_STR:
    case QMP_STRS:
        builtin(s, "str", "string", n);
        break;
    case QMP_INT:
    case QMP_UINT32:
    case QMP_SIZE:
        builtin(s, "int", "int", n);
        break;
    case QMP_BOOL:
        builtin(s, "bool", "boolean", n);
        break;
    case QMP_ENUM:
    case QMP_ENUMS:
        enum_of(s, words_of(a), n);
        break;
    case QMP_STR_OR_OBJECT_ARRAY:
        alternate_of(s, a->members, n);
        break;
    default:
        if ((a->type == QMP_OBJECT || a->type == QMP_OBJECTS) && members) {
            object_of(s, members, n);
        } else {
            builtin(s, "any", "value", n);
        }
        break;
    }
    if (a->type == QMP_STRS || a->type == QMP_ENUMS || a->type == QMP_OBJECTS ||
        a->type == QMP_STR_OR_OBJECT_ARRAY) {
        array_of(s, n);
    }
}

static int describe_command(const struct qmp_command *c, void *opaque)
{
    struct schema *s = opaque;
    struct type_name arg = {""};
    struct type_name ret = {""};

    object_of(s, c->args, &arg);
    if (c->ret) {
        type_of(s, c->ret, &ret);
    } else {
        object_of(s, NULL, &ret);
    }
    append(s, s->users,
           json_pack("{s:s, s:s, s:s, s:s}", "name", c->name, "meta-type",
                     "command", "arg-type", arg.text, "ret-type", ret.text));
    return 0;
}

static void add_events(struct schema *s)
{
    for (const struct qmp_event *e = qmp_events; e->name; e++) {
        struct type_name arg = {""};

        object_of(s, e->data, &arg);
        append(s, s->users,
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
