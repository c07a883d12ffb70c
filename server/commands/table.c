/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of all commands: see table.h. */
#include "commands/table.h"

#include <stdint.h>
#include <string.h>

#include "backup/session.h"
#include "daemon.h"
#include "disk.h"
#include "nbdelta/bytes.h"

static const struct qmp_command *const tables[] = {
    qmp_backup_commands,      qmp_bitmap_commands, qmp_block_commands,
    qmp_chain_commands,       qmp_core_commands,   qmp_create_commands,
    qmp_device_commands,      qmp_export_commands, qmp_fd_commands,
    qmp_hmp_commands,         qmp_job_commands,    qmp_mirror_commands,
    qmp_node_commands,        qmp_object_commands, qmp_pull_commands,
    qmp_qom_commands,         qmp_schema_commands, qmp_throttle_commands,
    qmp_transaction_commands, qmp_yank_commands,
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

static void find_nodes(struct daemon *d, const json_t *names, bool exports,
                       json_t *nodes)
{
    const char *name;
    json_t *value;

    disk_find_nodes(d, names, exports, nodes);
    json_object_foreach ((json_t *)(uintptr_t)names, name, value) {
        pulls_name_nodes(d->pulls, name, nodes);
    }
}

const struct qmp_service qmp_service = {
    .find_command = qmp_find_command,
    .find_nodes = find_nodes,
};
