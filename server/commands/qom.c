/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The tree of objects, as clients of QEMU look at it.
 *
 *     /                    holds nothing but
 *       objects/ID         what object-add and --object have made
 *     /machine/peripheral  has the devices of --vm-compat, for qom-set alone;
 *                          exports are devices, too (disk_set_node())
 *
 * The properties of an object are the rows of its type (objects/object.h).
 */
#include <errno.h>
#include <string.h>

#include "commands/table.h"
#include "daemon.h"
#include "disk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/throttle.h"
#include "objects/object.h"
#include "vm/device.h"

#define CONTAINER "container"

/* What a property has that was not given; "" and false otherwise. */
static const struct {
    const char *type;
    const char *property;
    const char *value; /* JSON */
} defaults[] = {
    {"secret", "format", "\"raw\""},
    {"authz-list", "policy", "\"deny\""},
    {"authz-list", "rules", "[]"},
    {"authz-listfile", "refresh", "true"},
    {"tls-creds-", "endpoint", "\"client\""},
    {"tls-creds-", "verify-peer", "true"},
    {"tls-creds-x509", "sanity-check", "true"},
    {"iothread", "poll-max-ns", "32768"},
    {"iothread", "thread-pool-max", "64"},
};

static json_t *default_value(const char *type, const struct qmp_arg *a)
{
    for (size_t i = 0; i < ARRAY_SIZE(defaults); i++) {
        if (strncmp(type, defaults[i].type, strlen(defaults[i].type)) == 0 &&
            strcmp(a->name, defaults[i].property) == 0) {
            return json_loads(defaults[i].value, JSON_DECODE_ANY, NULL);
        }
    }
    return a->type == QMP_BOOL  ? json_false()
           : a->type == QMP_INT ? json_integer(0)
                                : json_string("");
}

/* --- Paths. --- */

enum place { NOWHERE, ROOT, OBJECTS, AN_OBJECT };

/* Where @path leads: from the root, or the end of such a path.  *props are
 * those of an object. */
static enum place find_path(const struct daemon *d, const char *path,
                            json_t **props)
{
    static const char below[] = "objects/";
    bool absolute = path[0] == '/';

    path += absolute;
    if (path[0] == '\0') {
        return ROOT;
    }
    if (strcmp(path, "objects") == 0) {
        return OBJECTS;
    }
    if (strncmp(path, below, strlen(below)) == 0) {
        path += strlen(below);
    } else if (absolute) {
        return NOWHERE;
    }
    *props = json_object_get(objects_all(d->objects), path);
    return *props ? AN_OBJECT : NOWHERE;
}

static enum place need_path(struct qmp_call *call, json_t **props,
                            struct error **errp)
{
    const char *path = qmp_str(call, "path");
    enum place p = find_path(call->daemon, path, props);

    if (p == NOWHERE) {
        call->class = QMP_DEVICE_NOT_FOUND;
        (void)error_set(errp, ENODEV, "Device '%.200s' not found", path);
    }
    return p;
}

static int no_property(const char *type, const char *name, struct error **errp)
{
    return error_set(errp, EINVAL, "Property '%.100s.%.100s' not found", type,
                     name);
}

/* --- Lists. --- */

static const char *type_of(const struct qmp_arg *a)
{
    static const struct {
        const char *property;
        const char *type;
    } names[] = {
        {"endpoint", "QCryptoTLSCredsEndpoint"},
        {"format", "QCryptoSecretFormat"},
        {"limits", "ThrottleLimits"},
        {"policy", "QAuthZListPolicy"},
        {"rules", "QAuthZListRule"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(a->name, names[i].property) == 0) {
            return names[i].type;
        }
    }
    return a->type == QMP_BOOL ? "bool" : a->type == QMP_INT ? "int" : "string";
}

static void add_property(json_t *list, const char *name, const char *type)
{
    (void)json_array_append_new(
        list, json_pack("{s:s, s:s}", "name", name, "type", type));
}

/* The properties of a type; NULL: there is no such type. */
static json_t *properties(const char *type)
{
    const struct qmp_variant *v = objects_find_type(type);
    json_t *list = v ? json_array() : NULL;

    if (list) {
        add_property(list, "type", "string");
    }
    for (const struct qmp_arg *a = list ? v->members : NULL;
         a && !qmp_is_last(a); a++) {
        add_property(list, a->name, type_of(a));
    }
    return list;
}

static json_t *list_objects(const struct objects *s)
{
    json_t *list = json_array();
    const char *id;
    json_t *props;

    add_property(list, "type", "string");
    json_object_foreach (objects_all(s), id, props) {
        CLEANUP_JSON json_t *type = json_sprintf("child<%s>",
                                                 member_str(props, "qom-type"));
        add_property(list, id, json_string_value(type));
    }
    return list;
}

static json_t *list_root(void)
{
    json_t *list = json_array();

    add_property(list, "type", "string");
    add_property(list, "objects", "child<" CONTAINER ">");
    return list;
}

static int cmd_list(struct qmp_call *call, struct error **errp)
{
    json_t *props = NULL;

    switch (need_path(call, &props, errp)) {
    case NOWHERE:
        return -ENODEV;
    case ROOT:
        call->ret = list_root();
        break;
    case OBJECTS:
        call->ret = list_objects(call->daemon->objects);
        break;
    case AN_OBJECT:
        call->ret = properties(member_str(props, "qom-type"));
        break;
    }
    return call->ret ? 0 : error_nomem(errp);
}

static int cmd_list_properties(struct qmp_call *call, struct error **errp)
{
    const char *type = qmp_str(call, "typename");

    call->ret = properties(type);
    if (!call->ret) {
        call->class = QMP_DEVICE_NOT_FOUND;
        return error_set(errp, ENODEV, "Class '%.200s' not found", type);
    }
    return 0;
}

/* Types, and what they are kinds of. */
static const char *parent_of(const char *type)
{
    return strncmp(type, "authz-", 6) == 0        ? "authz"
           : strncmp(type, "tls-creds-", 10) == 0 ? "tls-creds"
           : strcmp(type, "secret") == 0          ? "secret_common"
           : strcmp(type, "iothread") == 0        ? "event-loop-base"
                                                  : "object";
}

static int cmd_list_types(struct qmp_call *call, struct error **errp)
{
    const char *kind = qmp_str(call, "implements");

    call->ret = json_array();
    for (const struct qmp_variant *v = objects_types; v->name; v++) {
        const char *parent = parent_of(v->name);

        if (!kind || strcmp(kind, parent) == 0 || strcmp(kind, v->name) == 0 ||
            strcmp(kind, "object") == 0 ||
            strcmp(kind, "user-creatable") == 0) {
            (void)json_array_append_new(
                call->ret,
                json_pack("{s:s, s:s}", "name", v->name, "parent", parent));
        }
    }
    return call->ret ? 0 : error_nomem(errp);
}

/* --- Values. --- */

/* A limit, or all of them, of a throttle group as it is now. */
static json_t *limit_of(struct graph *g, const char *id, const char *name)
{
    CLEANUP_JSON json_t *limits = throttle_group_query(g, id);

    return strcmp(name, "limits") == 0
               ? json_incref(limits)
               : json_incref(json_object_get(limits, name + strlen("x-")));
}

static json_t *value_of(struct daemon *d, const json_t *props,
                        const struct qmp_arg *a)
{
    const char *type = member_str(props, "qom-type");
    json_t *value = json_object_get(props, a->name);

    if (strcmp(type, "throttle-group") == 0) {
        return limit_of(d->graph, member_str(props, "id"), a->name);
    }
    return value ? json_deep_copy(value) : default_value(type, a);
}

static int get_of_container(struct qmp_call *call, enum place p,
                            const char *name, struct error **errp)
{
    const json_t *all = objects_all(call->daemon->objects);

    if (strcmp(name, "type") == 0) {
        call->ret = json_string(CONTAINER);
    } else if (p == ROOT && strcmp(name, "objects") == 0) {
        call->ret = json_string("/objects");
    } else if (p == OBJECTS && json_object_get(all, name)) {
        call->ret = json_sprintf("/objects/%s", name);
    } else {
        return no_property(CONTAINER, name, errp);
    }
    return call->ret ? 0 : error_nomem(errp);
}

static int cmd_get(struct qmp_call *call, struct error **errp)
{
    const char *name = qmp_str(call, "property");
    json_t *props = NULL;
    enum place p = need_path(call, &props, errp);

    if (p != AN_OBJECT) {
        return p == NOWHERE ? -ENODEV : get_of_container(call, p, name, errp);
    }
    const char *type = member_str(props, "qom-type");
    const struct qmp_arg *a = objects_find_property(type, name);
    if (strcmp(name, "type") == 0) {
        call->ret = json_string(type);
    } else if (a) {
        call->ret = value_of(call->daemon, props, a);
    } else {
        return no_property(type, name, errp);
    }
    return call->ret ? 0 : error_nomem(errp);
}

/* --- Changes. --- */

/* I/O threads change nothing, so their properties are numbers to be kept. */
static int set_of_iothread(json_t *props, const char *name, json_t *value,
                           struct error **errp)
{
    json_int_t n = json_integer_value(value);

    if (!json_is_integer(value)) {
        return error_set(errp, EINVAL,
                         "Invalid parameter type for '%.100s', expected: "
                         "integer",
                         name);
    }
    if (n < 0) {
        return error_set(errp, EINVAL,
                         "%.100s value must be in range [0, %lld]", name,
                         (long long)INT64_MAX);
    }
    return json_object_set(props, name, value) < 0 ? error_nomem(errp) : 0;
}

static int set_of_group(struct daemon *d, const char *id, const char *name,
                        json_t *value, struct error **errp)
{
    if (strcmp(name, "limits") != 0) {
        return error_set(errp, EPERM,
                         "Property cannot be set after initialization");
    }
    if (!json_is_object(value)) {
        return error_set(errp, EINVAL,
                         "Invalid parameter type for 'limits', expected: "
                         "object");
    }
    return throttle_group_change(d->graph, id, value, errp);
}

static int set_of_object(struct daemon *d, json_t *props, const char *name,
                         json_t *value, struct error **errp)
{
    const char *type = member_str(props, "qom-type");

    if (strcmp(name, "type") == 0) {
        return error_set(errp, EPERM, "Property '%s.type' is not writable",
                         type);
    }
    if (!objects_find_property(type, name)) {
        return no_property(type, name, errp);
    }
    if (strcmp(type, "throttle-group") == 0) {
        return set_of_group(d, member_str(props, "id"), name, value, errp);
    }
    return strcmp(type, "iothread") == 0
               ? set_of_iothread(props, name, value, errp)
               : error_set(errp, EPERM,
                           "Property cannot be set after initialization");
}

/* The disk of a device is the one property of it that can be set. */
static int set_of_device(struct qmp_call *call, const char *name,
                         struct error **errp)
{
    const char *property = qmp_str(call, "property");
    const char *value = json_string_value(json_object_get(call->args, "value"));
    struct daemon *d = call->daemon;

    if (strncmp(name, QDEV_PATH, strlen(QDEV_PATH)) == 0) {
        name += strlen(QDEV_PATH);
    }
    if (strcmp(property, "drive") != 0) {
        if (!d->devices || !devices_has(d->devices, name)) {
            call->class = QMP_DEVICE_NOT_FOUND;
            return error_set(errp, ENODEV, "Device '%.200s' not found",
                             qmp_str(call, "path"));
        }
        return no_property(name, property, errp);
    }
    struct node *n = value ? graph_find(d->graph, value) : NULL;
    if (!n && value) {
        n = disk_find_device(d, value, NULL);
    }
    if (!n) {
        return error_set(errp, ENODEV,
                         "Property '%.100s.drive' can't find value '%.200s'",
                         name, value ? value : "");
    }
    int r = disk_set_node(d, name, n, errp);
    if (r == -ENODEV) {
        call->class = QMP_DEVICE_NOT_FOUND;
    }
    return r;
}

static int cmd_set(struct qmp_call *call, struct error **errp)
{
    const char *path = qmp_str(call, "path");
    json_t *props = NULL;

    switch (find_path(call->daemon, path, &props)) {
    case NOWHERE:
        return set_of_device(call, path, errp);
    case AN_OBJECT:
        return set_of_object(call->daemon, props, qmp_str(call, "property"),
                             json_object_get(call->args, "value"), errp);
    default:
        return no_property(CONTAINER, qmp_str(call, "property"), errp);
    }
}

/* --- Rows. --- */

static const struct qmp_arg path_args[] = {
    QMP_ARG("path", STR),
    QMP_LAST,
};

static const struct qmp_arg get_args[] = {
    QMP_ARG("path", STR),
    QMP_ARG("property", STR),
    QMP_LAST,
};

static const struct qmp_arg set_args[] = {
    QMP_ARG("path", STR),
    QMP_ARG("property", STR),
    QMP_ARG("value", ANY),
    QMP_LAST,
};

static const struct qmp_arg typename_args[] = {
    QMP_ARG("typename", STR),
    QMP_LAST,
};

static const struct qmp_arg types_args[] = {
    QMP_OPT("implements", STR),
    QMP_OPT("abstract", BOOL),
    QMP_LAST,
};

static const struct qmp_arg any_type = QMP_ARG("", ANY);

static const struct qmp_arg property_members[] = {
    QMP_ARG("name", STR),
    QMP_ARG("type", STR),
    QMP_OPT("description", STR),
    QMP_OPT("default-value", ANY),
    QMP_LAST,
};
static const struct qmp_arg properties_type =
    QMP_ARG("", OBJECTS, .members = property_members);

static const struct qmp_arg type_members[] = {
    QMP_ARG("name", STR),
    QMP_OPT("abstract", BOOL),
    QMP_OPT("parent", STR),
    QMP_LAST,
};
static const struct qmp_arg types_type = QMP_ARG("", OBJECTS,
                                                 .members = type_members);

const struct qmp_command qmp_qom_commands[] = {
    QMP_COMMAND("qom-get", cmd_get, get_args, .ret = &any_type),
    QMP_COMMAND("qom-list", cmd_list, path_args, .ret = &properties_type),
    QMP_COMMAND("qom-list-properties", cmd_list_properties, typename_args,
                .ret = &properties_type),
    QMP_COMMAND("qom-list-types", cmd_list_types, types_args,
                .ret = &types_type),
    QMP_COMMAND("qom-set", cmd_set, set_args, .drains = QMP_DRAINS_NAMED),
    QMP_COMMANDS_END,
};
