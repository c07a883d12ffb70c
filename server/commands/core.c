/* SPDX-License-Identifier: BSD-3-Clause */
/* What every monitor has: capabilities, version, commands, quit. */
#include <errno.h>

#include "commands/role.h"
#include "commands/table.h"
#include "daemon.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "qmp/monitor.h"
#include "qmp/version.h"

static int return_value(struct qmp_call *call, json_t *value,
                        struct error **errp)
{
    call->ret = value;
    return value ? 0 : error_nomem(errp);
}

static const char *const capabilities[] = {"oob", NULL};

static const struct qmp_arg capabilities_args[] = {
    QMP_OPT("enable", ENUMS, .words = capabilities),
    QMP_LAST,
};

static int cmd_capabilities(struct qmp_call *call, struct error **errp)
{
    (void)errp;
    /* There is only one capability, so any word is it. */
    call->state->oob = json_array_size(json_object_get(call->args, "enable")) >
                       0;
    call->state->negotiated = true;
    return 0;
}

/* An emulator says that it ends, a storage daemon does not. */
static int cmd_quit(struct qmp_call *call, struct error **errp)
{
    struct daemon *d = call->daemon;

    if (d->vm_compat) {
        CLEANUP_JSON json_t *data = json_pack("{s:b, s:s}", "guest", 0,
                                              "reason", "host-qmp-quit");
        if (!data) {
            return error_nomem(errp);
        }
        monitors_emit("SHUTDOWN", data, d->monitors);
    }
    daemon_quit(d);
    return 0;
}

/* There is no guest that would stop, */
static int cmd_stop(struct qmp_call *call, struct error **errp)
{
    (void)call;
    (void)errp;
    return 0;
}

/* or go on; as far as that gives it its disks, it does. */
static int cmd_cont(struct qmp_call *call, struct error **errp)
{
    return graph_set_active(call->daemon->graph, NULL, true, errp);
}

static int cmd_query_version(struct qmp_call *call, struct error **errp)
{
    return return_value(call, qmp_version(), errp);
}

static int list_command(const struct qmp_command *c, void *opaque)
{
    return json_array_append_new(opaque, json_pack("{s:s}", "name", c->name));
}

static int cmd_query_commands(struct qmp_call *call, struct error **errp)
{
    json_t *list = json_array();

    if (list && qmp_each_command(list_command, list) != 0) {
        json_decref(list);
        list = NULL;
    }
    return return_value(call, list, errp);
}

static int cmd_query_status(struct qmp_call *call, struct error **errp)
{
    return return_value(
        call, json_pack("{s:s, s:b}", "status", "running", "running", 1), errp);
}

static int cmd_query_name(struct qmp_call *call, struct error **errp)
{
    return return_value(call, json_object(), errp);
}

/* What a machine has, and a storage daemon has not: clients ask it of whatever
 * they back up, and end when they get an error. */
static int cmd_query_nothing(struct qmp_call *call, struct error **errp)
{
    return return_value(call, json_array(), errp);
}

static int cmd_query_kvm(struct qmp_call *call, struct error **errp)
{
    return return_value(
        call, json_pack("{s:b, s:b}", "enabled", 0, "present", 0), errp);
}

static int cmd_query_uuid(struct qmp_call *call, struct error **errp)
{
    return return_value(
        call,
        json_pack("{s:s}", "UUID", "00000000-0000-0000-0000-000000000000"),
        errp);
}

/* --- What they return. --- */

static const struct qmp_arg name_members[] = {
    QMP_ARG("name", STR),
    QMP_LAST,
};
static const struct qmp_arg commands_type = QMP_ARG("", OBJECTS,
                                                    .members = name_members);

static const struct qmp_arg guest_name_members[] = {
    QMP_OPT("name", STR),
    QMP_LAST,
};
static const struct qmp_arg name_type = QMP_ARG("", OBJECT,
                                                .members = guest_name_members);

static const char *const tpm_model_words[] = {"tpm-tis", "tpm-crb", "tpm-spapr",
                                              NULL};
static const char *const tpm_type_words[] = {"passthrough", "emulator", NULL};
static const struct qmp_arg tpm_models_type = QMP_ARG("", ENUMS,
                                                      .words = tpm_model_words);
static const struct qmp_arg tpm_types_type = QMP_ARG("", ENUMS,
                                                     .words = tpm_type_words);
static const struct qmp_arg tpm_members[] = {
    QMP_ARG("id", STR),
    QMP_ARG("model", ENUM, .words = tpm_model_words),
    QMP_LAST,
};
static const struct qmp_arg tpms_type = QMP_ARG("", OBJECTS,
                                                .members = tpm_members);

static const struct qmp_arg kvm_members[] = {
    QMP_ARG("enabled", BOOL),
    QMP_ARG("present", BOOL),
    QMP_LAST,
};
static const struct qmp_arg kvm_type = QMP_ARG("", OBJECT,
                                               .members = kvm_members);

static const struct qmp_arg uuid_members[] = {
    QMP_ARG("UUID", STR),
    QMP_LAST,
};
static const struct qmp_arg uuid_type = QMP_ARG("", OBJECT,
                                                .members = uuid_members);

static const char *const status_words[] = {"running", NULL};

static const struct qmp_arg status_members[] = {
    QMP_ARG("running", BOOL),
    QMP_ARG("status", ENUM, .words = status_words),
    QMP_LAST,
};
static const struct qmp_arg status_type = QMP_ARG("", OBJECT,
                                                  .members = status_members);

static const struct qmp_arg triple_members[] = {
    QMP_ARG("major", INT),
    QMP_ARG("minor", INT),
    QMP_ARG("micro", INT),
    QMP_LAST,
};
static const struct qmp_arg version_members[] = {
    QMP_ARG("qemu", OBJECT, .members = triple_members),
    QMP_ARG("package", STR),
    QMP_LAST,
};
static const struct qmp_arg version_type = QMP_ARG("", OBJECT,
                                                   .members = version_members);

const struct qmp_command qmp_core_commands[] = {
    QMP_COMMAND("qmp_capabilities", cmd_capabilities, capabilities_args,
                .lockless = true, .backup = &role_as_it_is),
    QMP_COMMAND("cont", cmd_cont, NULL),
    QMP_COMMAND("stop", cmd_stop, NULL, .lockless = true),
    QMP_COMMAND("query-commands", cmd_query_commands, NULL,
                .ret = &commands_type, .lockless = true,
                .backup = &role_commands),
    QMP_COMMAND("query-kvm", cmd_query_kvm, NULL, .ret = &kvm_type,
                .lockless = true),
    QMP_COMMAND("query-name", cmd_query_name, NULL, .ret = &name_type,
                .lockless = true),
    QMP_COMMAND("query-status", cmd_query_status, NULL, .ret = &status_type,
                .lockless = true),
    QMP_COMMAND("query-tpm", cmd_query_nothing, NULL, .ret = &tpms_type,
                .lockless = true),
    QMP_COMMAND("query-tpm-models", cmd_query_nothing, NULL,
                .ret = &tpm_models_type, .lockless = true),
    QMP_COMMAND("query-tpm-types", cmd_query_nothing, NULL,
                .ret = &tpm_types_type, .lockless = true),
    QMP_COMMAND("query-uuid", cmd_query_uuid, NULL, .ret = &uuid_type,
                .lockless = true),
    QMP_COMMAND("query-version", cmd_query_version, NULL, .ret = &version_type,
                .lockless = true, .backup = &role_as_it_is),
    QMP_COMMAND("quit", cmd_quit, NULL),
    QMP_COMMANDS_END,
};
