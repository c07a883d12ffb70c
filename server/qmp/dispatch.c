/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking requests, running commands, making replies: see dispatch.h. */
#include "qmp/dispatch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"
#include "log/log.h"
#include "nbdelta/action.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/job.h"
#include "qmp/record.h"
#include "wide.h"

/* --- Arguments of a call. --- */

const char *qmp_str(const struct qmp_call *c, const char *name)
{
    return member_str(c->args, name);
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

/* Check the members of the request itself; *name is that of the command. */
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

bool qmp_may_run(const struct qmp_state *state, const struct qmp_command *cmd)
{
    return !state->role || cmd->backup;
}

int qmp_check_request(json_t *request, struct qmp_call *call,
                      const struct qmp_command **cmd, struct error **errp)
{
    const char *name;
    bool oob;
    bool negotiate;
    int r = check_envelope(request, call->state->oob, &name, &oob, errp);

    call->class = QMP_GENERIC_ERROR;
    if (r < 0) {
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
    *cmd = call->daemon->service->find_command(name);
    if (!*cmd) {
        return error_set(errp, ENOENT, "The command %.200s has not been found",
                         name);
    }
    call->class = QMP_GENERIC_ERROR;
    if (oob && !(*cmd)->lockless) {
        return error_set(errp, EINVAL, "The command %s does not support OOB",
                         (*cmd)->name);
    }
    if (!qmp_may_run(call->state, *cmd)) {
        return error_set(errp, EPERM,
                         "The command %s is not for clients of a monitor with "
                         "role=backup",
                         (*cmd)->name);
    }
    call->args = json_object_get(request, "arguments");
    return qmp_check_args(call->args, (*cmd)->args, "", errp);
}

/* A JSON string of @text.  Texts quote names from outside, and some were cut in
 * the middle of a character: then bytes that are not ASCII become '?'. */
static json_t *utf8_value(const char *text)
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
    CLEANUP_JSON json_t *text = utf8_value(desc);
    CLEANUP_JSON json_t *reply = json_object();

    if (!reply || !text ||
        (id && json_object_set_new(reply, "id", wide_copy(id)) < 0) ||
        json_object_set_new(
            reply, "error",
            json_pack("{s:s, s:O}", "class", names[class], "desc", text)) < 0) {
        return NULL;
    }
    return json_incref(reply);
}

static int run_command(struct qmp_call *call, const struct qmp_command *cmd,
                       struct error **errp)
{
    struct action *a;

    if (cmd->fn) {
        return cmd->fn(call, errp);
    }
    int r = cmd->action(call, NULL, &a, errp);
    return r < 0 ? r : action_run(call->daemon->graph, a, errp);
}

static int run_handler(struct qmp_call *call, const struct qmp_command *cmd,
                       struct error **errp)
{
    const struct qmp_narrow *narrow = call->state->role ? cmd->backup : NULL;
    int r = narrow && narrow->check ? narrow->check(call, errp) : 0;

    r = r < 0 ? r : run_command(call, cmd, errp);
    if (r == 0 && narrow && narrow->cut) {
        narrow->cut(call);
    }
    return r;
}

/* Arguments may be secrets. */
static void tell_command(const struct qmp_command *cmd, int r,
                         const struct error *err)
{
    log_line(TELL_DEBUG, "monitor: %s%s%s", cmd ? cmd->name : "no command",
             r < 0 ? ": " : "",
             r == 0 ? ""
             : err  ? error_message(err)
                    : strerror(-r));
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

    if (r == 0) {
        if (!call.args) {
            call.args = none;
        }
        if (!cmd->lockless) {
            mutex_is_held(&d->jobs->lock);
            jobs_settle(d->jobs);
        }
        r = none && reply ? run_handler(&call, cmd, &err) : error_nomem(&err);
    }
    tell_command(cmd, r, err);
    if (r < 0) {
        json_decref(call.ret);
        return qmp_error_reply(id, call.class,
                               err ? error_message(err) : strerror(-r));
    }
    if (!call.ret) {
        call.ret = json_object();
    }
    qmp_record("ret-type", cmd->name, call.ret);
    if (json_object_set_new(reply, "return", call.ret) < 0 ||
        (id && json_object_set_new(reply, "id", wide_copy(id)) < 0)) {
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
    n = wide_write(text, n);
    memcpy(text + n, "\r\n", 3);
    *len = n + 2;
    return text;
}
