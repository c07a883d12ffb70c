/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMMANDS_ROLE_H
#define NBDELTA_SERVER_COMMANDS_ROLE_H

/* How far each command goes for a monitor with role=backup: for its row.  A
 * command whose row has none of these is not there for such a monitor. */
#include "qmp/dispatch.h"

extern const struct qmp_narrow role_as_it_is; /* no disk is in it */
extern const struct qmp_narrow role_commands;
extern const struct qmp_narrow role_block;
extern const struct qmp_narrow role_backups;
extern const struct qmp_narrow role_checkpoints;
extern const struct qmp_narrow role_begin;
extern const struct qmp_narrow role_renew;
extern const struct qmp_narrow role_end;
extern const struct qmp_narrow role_delete;

#endif /* NBDELTA_SERVER_COMMANDS_ROLE_H */
