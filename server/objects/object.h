/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_OBJECTS_OBJECT_H
#define NBDELTA_SERVER_OBJECTS_OBJECT_H

/*
 * Objects that a user makes (object-add, --object) and names in other
 * options: secrets, TLS credentials, authorizations, throttle groups, I/O
 * threads.  They are checked and kept.  Hold the monitor lock, except for
 * objects_allow().
 */
#include <jansson.h>

#include "args.h"

struct error;
struct graph;
struct objects;
struct tls_keys;

/* Arguments of object-add. */
extern const struct qmp_arg object_args[];

/* NULL: no memory, or @g is NULL. */
struct objects *objects_new(struct graph *g);
void objects_free(struct objects *s); /* NULL is fine */
static inline void objects_cleanup(struct objects **s)
{
    objects_free(*s);
}
#define CLEANUP_OBJECTS __attribute__((cleanup(objects_cleanup)))

/* Add an object with the checked @props, or delete one.  -EEXIST: the id is
 * taken.  Throttle groups and TLS credentials are made in the graph, and
 * deleted there: -EBUSY while a node uses the group. */
int objects_add(struct objects *s, json_t *props, struct error **errp);
int objects_del(struct objects *s, const char *id, struct error **errp);

/* The type of the object @id ("secret"), or NULL. */
const char *objects_type(const struct objects *s, const char *id);

/* All of them, in the order in which they were made: an object of their
 * properties ("qom-type" and "id" among these) by their ids; borrowed. */
json_t *objects_all(const struct objects *s);

/* The types: their names, and rows for their properties.  NULL: there is no
 * such type, or property. */
extern const struct qmp_variant objects_types[];
const struct qmp_variant *objects_find_type(const char *type);
const struct qmp_arg *objects_find_property(const char *type, const char *name);

/* The loaded keys of the TLS credentials @id, for a server or a client, with a
 * reference.  -ENOENT; -EINVAL: @id is another object, or for the other end. */
int objects_tls_keys(const struct objects *s, const char *id, bool server,
                     struct tls_keys **keys, struct error **errp);

/* -ENOENT: there is no authorization @id. */
int objects_check_authz(const struct objects *s, const char *id,
                        struct error **errp);

/* Does the authorization @authz allow @identity (NULL: unknown)?  Any
 * thread. */
bool objects_allow(const struct objects *s, const char *authz,
                   const char *identity);

#endif /* NBDELTA_SERVER_OBJECTS_OBJECT_H */
