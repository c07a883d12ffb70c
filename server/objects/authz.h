/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_OBJECTS_AUTHZ_H
#define NBDELTA_SERVER_OBJECTS_AUTHZ_H

/*
 * Authorization: which identities may come
 * ========================================
 *
 * Objects "authz-simple", "authz-list" and "authz-listfile", by their ids.  An
 * object is looked up for each client: so a change holds from the next client
 * on, and without the object nobody is allowed.  Any thread may call this.
 */
#include <jansson.h>
#include <stdbool.h>

#include "args.h"

struct authz_set;
struct error;

/* Properties beside "qom-type" and "id". */
extern const struct qmp_arg authz_simple_args[];
extern const struct qmp_arg authz_list_args[];
extern const struct qmp_arg authz_listfile_args[];

struct authz_set *authz_set_new(void);    /* NULL: no memory */
void authz_set_free(struct authz_set *s); /* NULL is fine */

/* Add an object with the checked @props, whose id is not taken.  -ENOENT and
 * the like: the file of a list cannot be read; -EINVAL: it is no list. */
int authz_add(struct authz_set *s, const json_t *props, struct error **errp);
void authz_remove(struct authz_set *s, const char *id);

bool authz_exists(struct authz_set *s, const char *id);

/* Does the object @id allow @identity (NULL: unknown)?  Reads the file of a
 * list again if it has changed; a file that is no list allows nobody. */
bool authz_allows(struct authz_set *s, const char *id, const char *identity);

#endif /* NBDELTA_SERVER_OBJECTS_AUTHZ_H */
