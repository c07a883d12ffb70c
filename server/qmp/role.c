/* SPDX-License-Identifier: BSD-3-Clause */
/* What a role is about: see role.h. */
#include "qmp/role.h"

#include <stdlib.h>
#include <string.h>

struct qmp_role *qmp_role_new(const char *name, const char *authz,
                              json_t *disks)
{
    struct qmp_role *r = calloc(1, sizeof(*r));

    if (!r) {
        return NULL;
    }
    r->name = strdup(name);
    r->authz = authz ? strdup(authz) : NULL;
    r->disks = json_incref(disks);
    if (!r->name || (authz && !r->authz)) {
        qmp_role_free(r);
        return NULL;
    }
    return r;
}

void qmp_role_free(struct qmp_role *r)
{
    if (r) {
        free(r->name);
        free(r->authz);
        json_decref(r->disks);
        free(r);
    }
}

bool qmp_role_has_disk(const struct qmp_role *r, const char *name)
{
    size_t i;
    json_t *disk;

    json_array_foreach (r->disks, i, disk) {
        if (name && strcmp(json_string_value(disk), name) == 0) {
            return true;
        }
    }
    return false;
}
