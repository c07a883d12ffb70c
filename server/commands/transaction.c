/* SPDX-License-Identifier: BSD-3-Clause */
/* transaction: several changes at one instant, all of them or none. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands/table.h"
#include "daemon.h"
#include "nbdelta/action.h"
#include "nbdelta/error.h"
#include "nbdelta/job.h"

static const struct qmp_arg action_args[] = {
    QMP_ARG("type", STR),
    QMP_ARG("data", OBJECT),
    {.type = QMP_ACTION},
};

static const char *const mode_words[] = {"individual", "grouped", NULL};

static const struct qmp_arg properties_args[] = {
    QMP_OPT("completion-mode", ENUM, .words = mode_words),
    QMP_LAST,
};

static const struct qmp_arg transaction_args[] = {
    QMP_ARG("actions", OBJECTS, .members = action_args),
    QMP_OPT("properties", OBJECT, .members = properties_args),
    QMP_LAST,
};

/* --- abort: an action that only fails. --- */

static int abort_act(struct action *a, struct error **errp)
{
    (void)a;
    return error_set(errp, ECANCELED, "Transaction aborted using Abort action");
}

static void abort_free(struct action *a)
{
    free(a);
}

static const struct action_ops abort_ops = {
    .act = abort_act,
    .free = abort_free,
};

static int abort_action(struct qmp_call *call, struct job_txn *txn,
                        struct action **ap, struct error **errp)
{
    (void)call;
    (void)txn;
    *ap = calloc(1, sizeof(**ap));
    if (!*ap) {
        return error_nomem(errp);
    }
    (*ap)->ops = &abort_ops;
    return 0;
}

const struct qmp_command qmp_abort_action = {
    .name = "abort",
    .action = abort_action,
};

/* --- The list. --- */

static const struct qmp_command *find_action(const json_t *item)
{
    const char *type = json_string_value(json_object_get(item, "type"));
    const struct qmp_command *c = strcmp(type, "abort") == 0
                                      ? &qmp_abort_action
                                      : qmp_find_command(type);

    return c && c->action ? c : NULL;
}

static int check_action(json_t *item, size_t i, bool grouped,
                        struct error **errp)
{
    const struct qmp_command *c = find_action(item);
    char where[64];

    if (!c) {
        return error_set(errp, EINVAL,
                         "Parameter 'type' does not accept value '%.200s'",
                         json_string_value(json_object_get(item, "type")));
    }
    if (grouped && !c->is_job) {
        return error_set(errp, EINVAL,
                         "Action '%s' does not support transaction property "
                         "completion-mode = grouped",
                         c->name);
    }
    (void)snprintf(where, sizeof(where), "actions[%zu].data.", i);
    return qmp_check_args(json_object_get(item, "data"), c->args, where, errp);
}

/* Every type and all data are looked at before anything happens. */
static int check_actions(const json_t *actions, bool grouped,
                         struct error **errp)
{
    size_t i;
    json_t *item;

    json_array_foreach (actions, i, item) {
        int r = check_action(item, i, grouped, errp);

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* Made and prepared one by one: one may name the node that another opens. */
static int prepare_action(struct qmp_call *call, json_t *item,
                          struct job_txn *txn, struct list *list,
                          struct error **errp)
{
    const struct qmp_command *c = find_action(item);
    struct qmp_call sub = *call;
    struct action *a;

    sub.args = json_object_get(item, "data");
    int r = c->action(&sub, txn, &a, errp);
    call->class = sub.class;
    return r < 0 ? r : actions_add(list, a, errp);
}

static int run_actions(struct qmp_call *call, struct job_txn *txn,
                       struct error **errp)
{
    const json_t *actions = json_object_get(call->args, "actions");
    struct list list;
    size_t i;
    json_t *item;
    int r = check_actions(actions, txn != NULL, errp);

    list_init(&list);
    json_array_foreach (actions, i, item) {
        if (r == 0) {
            r = prepare_action(call, item, txn, &list, errp);
        }
    }
    if (r < 0) {
        actions_cancel(&list);
        return r;
    }
    return actions_run(call->daemon->graph, &list, errp);
}

static int cmd_transaction(struct qmp_call *call, struct error **errp)
{
    const json_t *properties = json_object_get(call->args, "properties");
    const char *mode =
        json_string_value(json_object_get(properties, "completion-mode"));
    bool grouped = mode && strcmp(mode, "grouped") == 0;
    struct job_txn *txn = grouped ? job_txn_new() : NULL;
    int r;

    if (grouped && !txn) {
        return error_nomem(errp);
    }
    r = run_actions(call, txn, errp);
    job_txn_unref(txn);
    return r;
}

const struct qmp_command qmp_transaction_commands[] = {
    QMP_COMMAND("transaction", cmd_transaction, transaction_args,
                .drains = QMP_DRAINS_NAMED),
    QMP_COMMANDS_END,
};
