/* SPDX-License-Identifier: BSD-3-Clause */
/* The events that clients may see. */
#include "commands/table.h"
#include "commands/types.h"

static const char *const operations[] = {"read", "write", NULL};
static const char *const actions[] = {"ignore", "report", "stop", NULL};

static const struct qmp_arg export_members[] = {
    QMP_ARG("id", STR),
    QMP_LAST,
};

static const struct qmp_arg status_members[] = {
    QMP_ARG("id", STR),
    QMP_ARG("status", ENUM, .words = qmp_job_status_words),
    QMP_LAST,
};

#define JOB_MEMBERS                                                          \
    QMP_ARG("type", ENUM, .words = qmp_job_type_words),                      \
        QMP_ARG("device", STR), QMP_ARG("len", INT), QMP_ARG("offset", INT), \
        QMP_ARG("speed", INT)

static const struct qmp_arg job_members[] = {JOB_MEMBERS, QMP_LAST};

static const struct qmp_arg completed_members[] = {
    JOB_MEMBERS,
    QMP_OPT("error", STR),
    QMP_LAST,
};

static const struct qmp_arg error_members[] = {
    QMP_ARG("device", STR),
    QMP_ARG("operation", ENUM, .words = operations),
    QMP_ARG("action", ENUM, .words = actions),
    QMP_LAST,
};

static const struct qmp_arg corrupted_members[] = {
    QMP_ARG("device", STR),
    QMP_OPT("node-name", STR),
    QMP_ARG("msg", STR),
    QMP_OPT("offset", INT),
    QMP_OPT("size", INT),
    QMP_ARG("fatal", BOOL),
    QMP_LAST,
};

static const struct qmp_arg io_error_members[] = {
    QMP_ARG("qom-path", STR),
    QMP_ARG("device", STR),
    QMP_OPT("node-name", STR),
    QMP_ARG("operation", ENUM, .words = operations),
    QMP_ARG("action", ENUM, .words = actions),
    QMP_OPT("nospace", BOOL),
    QMP_ARG("reason", STR),
    QMP_LAST,
};

static const struct qmp_arg threshold_members[] = {
    QMP_ARG("node-name", STR),
    QMP_ARG("amount-exceeded", INT),
    QMP_ARG("write-threshold", INT),
    QMP_LAST,
};

static const struct qmp_arg pending_members[] = {
    QMP_ARG("type", ENUM, .words = qmp_job_type_words),
    QMP_ARG("id", STR),
    QMP_LAST,
};

static const struct qmp_arg deleted_members[] = {
    QMP_OPT("device", STR),
    QMP_ARG("path", STR),
    QMP_LAST,
};

/* Nothing else ends us: there is no guest. */
static const char *const shutdown_words[] = {"host-qmp-quit", NULL};

static const struct qmp_arg shutdown_members[] = {
    QMP_ARG("guest", BOOL),
    QMP_ARG("reason", ENUM, .words = shutdown_words),
    QMP_LAST,
};

static const char *const reset_words[] = {"host-qmp-system-reset", NULL};

static const struct qmp_arg reset_members[] = {
    QMP_ARG("guest", BOOL),
    QMP_ARG("reason", ENUM, .words = reset_words),
    QMP_LAST,
};

static const char *const results[] = {"success", "failed", "expired",
                                      "shutdown", NULL};

static const struct qmp_arg ended_members[] = {
    QMP_ARG("id", STR),
    QMP_ARG("result", ENUM, .words = results),
    QMP_LAST,
};

static const struct qmp_arg lost_members[] = {
    QMP_ARG("id", STR),
    QMP_ARG("node", STR),
    QMP_ARG("reason", STR),
    QMP_LAST,
};

const struct qmp_event qmp_events[] = {
    {"BACKUP_ENDED", ended_members},
    {"BACKUP_SNAPSHOT_LOST", lost_members},
    {"BLOCK_EXPORT_DELETED", export_members},
    {"BLOCK_IMAGE_CORRUPTED", corrupted_members},
    {"BLOCK_IO_ERROR", io_error_members},
    {"BLOCK_JOB_CANCELLED", job_members},
    {"BLOCK_JOB_COMPLETED", completed_members},
    {"BLOCK_JOB_ERROR", error_members},
    {"BLOCK_JOB_PENDING", pending_members},
    {"BLOCK_JOB_READY", job_members},
    {"BLOCK_WRITE_THRESHOLD", threshold_members},
    {"DEVICE_DELETED", deleted_members},
    {"JOB_STATUS_CHANGE", status_members},
    {"RESET", reset_members},
    {"SHUTDOWN", shutdown_members},
    {NULL, NULL},
};
