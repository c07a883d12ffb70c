/* SPDX-License-Identifier: BSD-3-Clause */
#include "qmp/dispatch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"
#include "nbd/export.h"
#include "nbdelta/action.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "vm/device.h"

static const struct qmp_command *const tables[] = {
    qmp_backup_commands, qmp_bitmap_commands, qmp_block_commands,
    qmp_chain_commands,  qmp_core_commands,   qmp_create_commands,
    qmp_device_commands, qmp_export_commands, qmp_hmp_commands,
    qmp_job_commands,    qmp_node_commands,   qmp_object_commands,
    qmp_pull_commands,   qmp_schema_commands, qmp_transaction_commands,
    qmp_yank_commands,
};

int qmp_each_command(int (*fn)(const struct qmp_command *c, void *opaque),
                     void *opaque)
{
    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        for (const struct qmp_command *c = tables[i]; c->name; c++) {
            int r = fn(c, opaque);

            if (r != 0) {
                return r;
            }
        }
    }
    return 0;
}

const struct qmp_command *qmp_find_command(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        for (const struct qmp_command *c = tables[i]; c->name; c++) {
            if (strcmp(c->name, name) == 0) {
                return c;
            }
        }
    }
    return NULL;
}

/* --- Arguments. --- */

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

static int check_word(const json_t *v, const char *const *words,
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
    return error_set(errp, EINVAL,
                     "Parameter '%s%s' does not accept value '%s'", at->text,
                     name, json_string_value(v));
}

static int check_unsigned(const json_t *v, const struct qmp_arg *a,
                          const struct path *at, struct error **errp)
{
    if (!json_is_integer(v)) {
        return error_set(errp, EINVAL, "Parameter '%s%s' expects uint64",
                         at->text, a->name);
    }
    if (a->type == QMP_UINT32 &&
        (json_integer_value(v) < 0 || json_integer_value(v) > UINT32_MAX)) {
        return error_set(errp, EINVAL, "Parameter '%s%s' expects uint32_t",
                         at->text, a->name);
    }
    if (json_integer_value(v) < 0) {
        return error_set(errp, EINVAL,
                         "Parameter '%s%s' expects a non-negative value",
                         at->text, a->name);
    }
    return 0;
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
            r = check_word(item, a->words, at, name, errp);
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
    struct path below = {""};

    switch (a->type) {
    case QMP_STR:
        return json_is_string(v) ? 0 : bad_type(at, a->name, "string", errp);
    case QMP_INT:
        return json_is_integer(v) ? 0 : bad_type(at, a->name, "integer", errp);
    case QMP_BOOL:
        return json_is_boolean(v) ? 0 : bad_type(at, a->name, "boolean", errp);
    case QMP_ENUM:
        return check_word(v, a->words_of ? a->words_of() : a->words, at,
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
    case QMP_ANY:
        return 0;
    case QMP_UINT32:
    case QMP_SIZE:
    default:
        return check_unsigned(v, a, at, errp);
    }
}

/* The arguments of @spec, in its order; counts those that are there.  The row
 * that ends the list is *last. */
static int check_known(json_t *object, const struct qmp_arg *spec,
                       const struct path *at, size_t *known,
                       const struct qmp_arg **last, struct error **errp)
{
    const struct qmp_arg *a = spec;

    for (; !qmp_is_last(a); a++) {
        json_t *v = json_object_get(object, a->name);

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

/* In the order of the table, then what the table does not have. */
static int check_members(json_t *object, const struct qmp_arg *spec,
                         const struct path *at, struct error **errp)
{
    const struct qmp_arg *last = NULL;
    size_t known = 0;
    const char *key;
    json_t *value;

    if (!spec) {
        return 0;
    }
    int r = check_known(object, spec, at, &known, &last, errp);
    if (r == 0 && last->type == QMP_UNION) {
        r = check_known(object, variant_of(object, last), at, &known, &last,
                        errp);
    }
    if (r < 0 || last->type == QMP_REST || last->type == QMP_NODE ||
        known == json_object_size(object)) {
        return r;
    }
    json_object_foreach (object, key, value) {
        if (!qmp_find_arg(spec, object, key)) {
            return error_set(errp, EINVAL, "Parameter '%s%.200s' is unexpected",
                             at->text, key);
        }
    }
    return 0;
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
            return error_set(errp, ENOMEM, "Out of memory");
        }
        args = empty;
    }
    (void)snprintf(top.text, sizeof(top.text), "%s", where);
    return check_members(args, spec ? spec : none, &top, errp);
}

const char *qmp_str(const struct qmp_call *c, const char *name)
{
    return json_string_value(json_object_get(c->args, name));
}

bool qmp_has(const struct qmp_call *c, const char *name)
{
    return json_object_get(c->args, name) != NULL;
}

bool qmp_bool(const struct qmp_call *c, const char *name, bool fallback)
{
    const json_t *v = json_object_get(c->args, name);

    return v ? json_is_true(v) : fallback;
}

int64_t qmp_int(const struct qmp_call *c, const char *name, int64_t fallback)
{
    const json_t *v = json_object_get(c->args, name);

    return v ? json_integer_value(v) : fallback;
}

/* --- Requests. --- */

/* The members of the request itself; the name of the command is *name. */
static int check_envelope(json_t *request, bool oob_enabled, const char **name,
                          bool *oob, struct error **errp)
{
    const char *key;
    json_t *value;

    *name = NULL;
    *oob = false;
    if (!json_is_object(request)) {
        return error_set(errp, EINVAL, "QMP input must be a JSON object");
    }
    json_object_foreach (request, key, value) {
        bool exec_oob = oob_enabled && strcmp(key, "exec-oob") == 0;

        if (strcmp(key, "execute") == 0 || exec_oob) {
            if (!json_is_string(value)) {
                return error_set(errp, EINVAL,
                                 "QMP input member '%s' must be a string", key);
            }
            if (*name) {
                return error_set(errp, EINVAL,
                                 "QMP input member '%s' clashes with '%s'",
                                 "exec-oob", "execute");
            }
            *name = json_string_value(value);
            *oob = exec_oob;
        } else if (strcmp(key, "arguments") == 0) {
            if (!json_is_object(value)) {
                return error_set(errp, EINVAL,
                                 "QMP input member 'arguments' must be an "
                                 "object");
            }
        } else if (strcmp(key, "id") != 0) {
            return error_set(errp, EINVAL,
                             "QMP input member '%.200s' is unexpected", key);
        }
    }
    return *name ? 0
                 : error_set(errp, EINVAL, "QMP input lacks member 'execute'");
}

int qmp_check_request(json_t *request, struct qmp_call *call,
                      const struct qmp_command **cmd, struct error **errp)
{
    const char *name;
    bool oob;
    bool negotiate;
    int r = check_envelope(request, call->state->oob, &name, &oob, errp);

    call->class = QMP_GENERIC_ERROR;
    if (r < 0 || !name) {
        return r;
    }
    call->class = QMP_COMMAND_NOT_FOUND;
    negotiate = strcmp(name, "qmp_capabilities") == 0;
    if (!call->state->negotiated && !negotiate) {
        return error_set(errp, ENOENT,
                         "Expecting capabilities negotiation with "
                         "'qmp_capabilities'");
    }
    if (call->state->negotiated && negotiate && !oob) {
        return error_set(errp, ENOENT,
                         "Capabilities negotiation is already complete, "
                         "command ignored");
    }
    *cmd = qmp_find_command(name);
    if (!*cmd) {
        return error_set(errp, ENOENT, "The command %.200s has not been found",
                         name);
    }
    call->class = QMP_GENERIC_ERROR;
    call->args = json_object_get(request, "arguments");
    return qmp_check_args(call->args, (*cmd)->args, "", errp);
}

/* Texts quote names from outside, and some were cut in the middle of
 * a character: without what is not ASCII then. */
static json_t *text_value(const char *text)
{
    json_t *v = json_string(text);
    char *ascii;

    if (v) {
        return v;
    }
    ascii = strdup(text);
    if (!ascii) {
        return NULL;
    }
    for (char *p = ascii; *p; p++) {
        if ((unsigned char)*p >= 0x80) {
            *p = '?';
        }
    }
    v = json_string(ascii);
    free(ascii);
    return v;
}

json_t *qmp_error_reply(const json_t *id, enum qmp_class class,
                        const char *desc)
{
    static const char *const names[] = {
        [QMP_GENERIC_ERROR] = "GenericError",
        [QMP_COMMAND_NOT_FOUND] = "CommandNotFound",
        [QMP_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
        [QMP_DEVICE_NOT_FOUND] = "DeviceNotFound",
    };
    CLEANUP_JSON json_t *text = text_value(desc);
    CLEANUP_JSON json_t *reply = json_object();

    if (!reply || !text ||
        (id && json_object_set_new(reply, "id", json_deep_copy(id)) < 0) ||
        json_object_set_new(
            reply, "error",
            json_pack("{s:s, s:O}", "class", names[class], "desc", text)) < 0) {
        return NULL;
    }
    return json_incref(reply);
}

static int run(struct qmp_call *call, const struct qmp_command *cmd,
               struct error **errp)
{
    struct action *a;

    if (cmd->fn) {
        return cmd->fn(call, errp);
    }
    int r = cmd->action(call, NULL, &a, errp);
    return r < 0 ? r : action_run(call->daemon->graph, a, errp);
}

json_t *qmp_dispatch(struct daemon *d, struct qmp_state *state, json_t *request)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *none = json_object();
    CLEANUP_JSON json_t *reply = json_object();
    const json_t *id = json_object_get(request, "id");
    struct qmp_call call = {.daemon = d, .state = state};
    const struct qmp_command *cmd = NULL;
    int r = qmp_check_request(request, &call, &cmd, &err);

    if (r == 0 && cmd) {
        if (!call.args) {
            call.args = none;
        }
        if (!cmd->lockless) {
            mutex_is_held(&d->jobs->lock);
            jobs_settle(d->jobs);
        }
        r = none && reply ? run(&call, cmd, &err)
                          : error_set(&err, ENOMEM, "Out of memory");
    }
    if (r < 0) {
        json_decref(call.ret);
        return qmp_error_reply(id, call.class,
                               err ? error_message(err) : strerror(-r));
    }
    if (!call.ret) {
        call.ret = json_object();
    }
    if (json_object_set_new(reply, "return", call.ret) < 0 ||
        (id && json_object_set_new(reply, "id", json_deep_copy(id)) < 0)) {
        return NULL;
    }
    return json_incref(reply);
}

char *qmp_to_text(const json_t *message, size_t *len)
{
    size_t n = json_dumpb(message, NULL, 0, JSON_ENSURE_ASCII);
    char *text = n > 0 ? malloc(n + 3) : NULL;

    if (!text) {
        return NULL;
    }
    if (json_dumpb(message, text, n, JSON_ENSURE_ASCII) != n) {
        free(text);
        return NULL;
    }
    memcpy(text + n, "\r\n", 3);
    *len = n + 2;
    return text;
}

/* --- Nodes by name. --- */

struct find_export {
    const char *name;
    struct node *node;
};

static int match_export(struct export *e, void *opaque)
{
    struct find_export *f = opaque;

    if (!e->of_backup &&
        (strcmp(e->name, f->name) == 0 || strcmp(e->id, f->name) == 0)) {
        f->node = blk_node(e->blk);
        return 1;
    }
    return 0;
}

/* As a device: a block backend, or an export. */
static struct node *find_exported(struct daemon *d, const char *name)
{
    struct find_export f = {.name = name};
    const struct blk *b = d->devices ? devices_find(d->devices, name) : NULL;

    if (b) {
        return blk_node(b);
    }

    (void)exports_each(d->exports, match_export, &f);
    return f.node;
}

static int match_image(struct export *e, void *opaque)
{
    struct find_export *f = opaque;

    if (e->is_default && strcmp(e->id, f->name) == 0) {
        f->node = blk_disk(e->blk);
        return 1;
    }
    return 0;
}

/* As an image of the command line: what its clients see now, which a snapshot
 * or a commit has taken from the node of that name to another one. */
static struct node *find_image(struct daemon *d, const char *name)
{
    struct find_export f = {.name = name};

    (void)exports_each(d->exports, match_image, &f);
    return f.node;
}

/* The first of the two, or the text. */
static struct node *either(struct node *n, struct node *other, const char *name,
                           struct error **errp)
{
    if (!n && !other) {
        (void)error_set(errp, ENODEV,
                        "Cannot find device='%.200s' nor node-name='%.200s'",
                        name, name);
    }
    return n ? n : other;
}

struct node *qmp_find_node(struct daemon *d, const char *name,
                           struct error **errp)
{
    struct node *n = find_image(d, name);

    return either(n ? n : graph_find(d->graph, name), find_exported(d, name),
                  name, errp);
}

struct node *qmp_find_device(struct daemon *d, const char *name,
                             struct error **errp)
{
    return either(find_exported(d, name), graph_find(d->graph, name), name,
                  errp);
}
