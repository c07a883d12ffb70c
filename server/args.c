/* SPDX-License-Identifier: BSD-3-Clause */
/* Holding JSON against rows that describe it: see args.h. */
#include "args.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "args-node.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "wide.h"

const char *const qmp_deprecated[] = {"deprecated", NULL};
const char *const qmp_unstable[] = {"unstable", NULL};

/* Where we are, for texts: "x-perf.", "bitmaps[0].".  What does not fit is
 * cut off: the table has only short names. */
struct path {
    char text[128];
};

static int check_members(json_t *object, const struct qmp_arg *spec,
                         const struct path *at, struct error **errp);

static int bad_type(const struct path *at, const char *name,
                    const char *expected, struct error **errp)
{
    return error_set(errp, EINVAL,
                     "Invalid parameter type for '%s%s', expected: %s",
                     at->text, name, expected);
}

static int check_enum(const json_t *v, const char *const *words,
                      const struct path *at, const char *name,
                      struct error **errp)
{
    if (!json_is_string(v)) {
        return bad_type(at, name, "string", errp);
    }
    for (size_t i = 0; words[i]; i++) {
        if (strcmp(words[i], json_string_value(v)) == 0) {
            return 0;
        }
    }
    /* QEMU does not say where @name stands, and programs look for its text. */
    return error_set(errp, EINVAL, "Parameter '%s' does not accept value '%s'",
                     name, json_string_value(v));
}

static int check_unsigned(const json_t *v, const struct qmp_arg *a,
                          const struct path *at, struct error **errp)
{
    if (!json_is_integer(v)) {
        return error_set(errp, EINVAL, "Parameter '%s%s' expects uint64",
                         at->text, a->name);
    }
    /* Of a number that is out of range QEMU does not say where it stands. */
    return a->type == QMP_UINT32 && (json_integer_value(v) < 0 ||
                                     json_integer_value(v) > UINT32_MAX)
               ? error_set(errp, EINVAL, "Parameter '%s' expects uint32_t",
                           a->name)
               : 0;
}

static int check_array(const json_t *v, const struct qmp_arg *a,
                       const struct path *at, struct error **errp)
{
    size_t i;
    json_t *item;
    int r = 0;

    if (!json_is_array(v)) {
        return bad_type(at, a->name, "array", errp);
    }
    json_array_foreach (v, i, item) {
        char name[80];

        (void)snprintf(name, sizeof(name), "%s[%zu]", a->name, i);
        if (a->type == QMP_OBJECTS && !json_is_object(item)) {
            r = bad_type(at, name, "object", errp);
        } else if (a->type == QMP_ENUMS) {
            r = check_enum(item, a->words, at, name, errp);
        } else if (a->type == QMP_STRS) {
            r = json_is_string(item) ? 0 : bad_type(at, name, "string", errp);
        } else if (json_is_object(item)) {
            struct path below = {""};

            (void)snprintf(below.text, sizeof(below.text), "%.40s%s.", at->text,
                           name);
            r = check_members(item, a->members, &below, errp);
        } else if (!json_is_string(item)) {
            r = bad_type(at, name, a->type_name, errp);
        }
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int check_value(json_t *v, const struct qmp_arg *a,
                       const struct path *at, struct error **errp)
{
    static const struct path nowhere; /* QEMU does not say for alternates */
    struct path below = {""};

    switch (a->type) {
    case QMP_STR:
        return json_is_string(v) ? 0 : bad_type(at, a->name, "string", errp);
    case QMP_INT:
        return json_is_integer(v) ? 0 : bad_type(at, a->name, "integer", errp);
    case QMP_BOOL:
        return json_is_boolean(v) ? 0 : bad_type(at, a->name, "boolean", errp);
    case QMP_ENUM:
        return check_enum(v, a->words_of ? a->words_of() : a->words, at,
                          a->name, errp);
    case QMP_OBJECT:
        if (!json_is_object(v)) {
            return bad_type(at, a->name, "object", errp);
        }
        (void)snprintf(below.text, sizeof(below.text), "%.40s%.40s.", at->text,
                       a->name);
        return check_members(v, a->members, &below, errp);
    case QMP_ENUMS:
    case QMP_OBJECTS:
    case QMP_STR_OR_OBJECT_ARRAY:
    case QMP_STRS:
        return check_array(v, a, at, errp);
    case QMP_NEW_NODE:
        if (!json_is_string(v)) {
            return bad_type(at, a->name, "string", errp);
        }
        return json_string_length(v) <= QMP_NODE_NAME_MAX
                   ? 0
                   : error_set(errp, EINVAL, "Node name too long");
    case QMP_STR_OR_NULL:
        return json_is_string(v) || json_is_null(v)
                   ? 0
                   : bad_type(&nowhere, a->name, "StrOrNull", errp);
    case QMP_NODE_REF:
        return args_check_node_ref(v, at->text, a->name, errp);
    case QMP_NUMBER:
    case QMP_INTS:
    case QMP_ANY:
        return 0;
    case QMP_UINT32:
    case QMP_SIZE:
    default:
        return check_unsigned(v, a, at, errp);
    }
}

static bool is_unsigned(const struct qmp_arg *a)
{
    return a->type == QMP_SIZE || a->type == QMP_UINT32;
}

/* Check the arguments of @spec in its order, which is QEMU's: the first that is
 * wrong, or is not there, is told of.  *known counts the ones that are there;
 * *last becomes the row that ends the list. */
static int check_known(json_t *object, const struct qmp_arg *spec,
                       const struct path *at, size_t *known,
                       const struct qmp_arg **last, struct error **errp)
{
    const struct qmp_arg *a = spec;

    for (; !qmp_is_last(a); a++) {
        json_t *v = is_unsigned(a) ? wide_to_bits(object, a->name)
                                   : json_object_get(object, a->name);

        if (v) {
            int r = check_value(v, a, at, errp);

            if (r < 0) {
                return r;
            }
            ++*known;
        } else if (!a->optional) {
            return error_set(errp, EINVAL, "Parameter '%s%s' is missing",
                             at->text, a->name);
        }
    }
    *last = a;
    return 0;
}

/* The arguments that the union @u adds, as its tag in @object says. */
static const struct qmp_arg *variant_of(const json_t *object,
                                        const struct qmp_arg *u)
{
    static const struct qmp_arg none[] = {QMP_LAST};
    const char *tag = json_string_value(json_object_get(object, u->name));

    for (const struct qmp_variant *v = u->variants; tag && v->name; v++) {
        if (strcmp(v->name, tag) == 0) {
            return v->members ? v->members : none;
        }
    }
    return none;
}

const struct qmp_arg *qmp_find_arg(const struct qmp_arg *spec,
                                   const json_t *object, const char *key)
{
    const struct qmp_arg *a = spec;

    while (a && !qmp_is_last(a)) {
        if (strcmp(a->name, key) == 0) {
            return a;
        }
        a++;
    }
    return a && a->type == QMP_UNION
               ? qmp_find_arg(variant_of(object, a), object, key)
               : NULL;
}

static int check_unknown(json_t *object, const struct qmp_arg *spec,
                         const struct path *at, struct error **errp)
{
    const char *key;
    json_t *value;

    json_object_foreach (object, key, value) {
        if (!qmp_find_arg(spec, object, key)) {
            return error_set(errp, EINVAL, "Parameter '%s%.200s' is unexpected",
                             at->text, key);
        }
    }
    return 0;
}

/* Members that the table does not have come last. */
static int check_members(json_t *object, const struct qmp_arg *spec,
                         const struct path *at, struct error **errp)
{
    const struct qmp_arg *last = NULL;
    size_t known = 0;

    if (!spec) {
        return 0;
    }
    int r = check_known(object, spec, at, &known, &last, errp);
    if (r == 0 && last->type == QMP_UNION &&
        json_object_get(object, last->name)) {
        r = check_known(object, variant_of(object, last), at, &known, &last,
                        errp);
    }
    if (r == 0 && last->type == QMP_NODE) {
        return args_check_node(object, at->text, errp);
    }
    if (r == 0 && last->type != QMP_REST && known != json_object_size(object)) {
        r = check_unknown(object, spec, at, errp);
    }
    return r;
}

int qmp_check_args(json_t *args, const struct qmp_arg *spec, const char *where,
                   struct error **errp)
{
    static const struct qmp_arg none[] = {{.type = QMP_END}};
    struct path top;
    CLEANUP_JSON json_t *empty = NULL;

    if (!args) {
        empty = json_object();
        if (!empty) {
            return error_nomem(errp);
        }
        args = empty;
    }
    (void)snprintf(top.text, sizeof(top.text), "%s", where);
    return check_members(args, spec ? spec : none, &top, errp);
}
