/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMMANDS_TABLE_H
#define NBDELTA_SERVER_COMMANDS_TABLE_H

/*
 * All commands of the monitor
 * ===========================
 *
 * Each file of this room has the commands of one kind, and their rows.  A new
 * file's rows are added here, and to the list in table.c.
 */
#include "qmp/dispatch.h"

/* Visit all commands until @fn returns non-zero, and return that. */
int qmp_each_command(int (*fn)(const struct qmp_command *c, void *opaque),
                     void *opaque);
const struct qmp_command *qmp_find_command(const char *name);

/* For a daemon that has all of them. */
extern const struct qmp_service qmp_service;

/* The parts of the table; a NULL name ends each. */
extern const struct qmp_command qmp_backup_commands[];
extern const struct qmp_command qmp_bitmap_commands[];
extern const struct qmp_command qmp_block_commands[];
extern const struct qmp_command qmp_chain_commands[];
extern const struct qmp_command qmp_create_commands[];
extern const struct qmp_command qmp_device_commands[];
extern const struct qmp_command qmp_export_commands[];
extern const struct qmp_command qmp_fd_commands[];
extern const struct qmp_command qmp_hmp_commands[];
extern const struct qmp_command qmp_mirror_commands[];
extern const struct qmp_command qmp_node_commands[];
extern const struct qmp_command qmp_object_commands[];
extern const struct qmp_command qmp_pull_commands[];
extern const struct qmp_command qmp_qom_commands[];
extern const struct qmp_command qmp_job_commands[];
extern const struct qmp_command qmp_core_commands[];
extern const struct qmp_command qmp_schema_commands[];
extern const struct qmp_command qmp_abort_action; /* no command */
extern const struct qmp_command qmp_throttle_commands[];
extern const struct qmp_command qmp_transaction_commands[];
extern const struct qmp_command qmp_yank_commands[];

/* --nbd-server: nbd-server-start with another form of addr. */
extern const struct qmp_command qmp_nbd_server_option;

/* BlockdevOptions: "driver", and what that takes. */
extern const struct qmp_arg qmp_node_args[];

struct qmp_event {
    const char *name;
    const struct qmp_arg *data;
};
extern const struct qmp_event qmp_events[]; /* a NULL name ends it */

#endif /* NBDELTA_SERVER_COMMANDS_TABLE_H */
