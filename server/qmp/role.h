/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_ROLE_H
#define NBDELTA_SERVER_QMP_ROLE_H

/*
 * Roles: what the clients of a monitor may do
 * ===========================================
 *
 * A monitor without a role has all commands.  With role=backup its clients have
 * those that a backup of certain disks needs, and each of these as far as it is
 * about these disks: a command's row says how (qmp_narrow in qmp/dispatch.h).
 * They get no events.
 */
#include <jansson.h>
#include <stdbool.h>

struct qmp_role {
    char *name;    /* of the monitor's device: whose a session of a backup is */
    char *authz;   /* of its clients, or NULL */
    json_t *disks; /* names, an array */
};

/* NULL: no memory; is fine for the other two. */
struct qmp_role *qmp_role_new(const char *name, const char *authz,
                              json_t *disks);
void qmp_role_free(struct qmp_role *r);

bool qmp_role_has_disk(const struct qmp_role *r, const char *name);

#endif /* NBDELTA_SERVER_QMP_ROLE_H */
