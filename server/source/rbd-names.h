/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_RBD_NAMES_H
#define NBDELTA_SERVER_SOURCE_RBD_NAMES_H

/*
 * Images of Ceph as a source of backups:
 *
 *   rbd:POOL/IMAGE[:NAME=VALUE...]         the disk "IMAGE"
 *   DISK=rbd:POOL/IMAGE[:NAME=VALUE...]
 *
 * Several make one text, with spaces between them; a backslash takes the
 * meaning from the character behind it.
 */
#include <jansson.h>
#include <stdbool.h>

struct error;

struct rbd_source_name {
    char *disk;
    json_t *options; /* of the node, driver rbd */
};

/* Does @text begin like one of them? */
bool rbd_source_is(const char *text);

/* The text of all of @given, malloc()ed.  NULL: no memory. */
char *rbd_source_join(char **given, unsigned count);

/* The same without secrets, for manifests and messages.  One of more than 4000
 * bytes is cut there, and has a hash of the whole.  malloc()ed; NULL: no
 * memory. */
char *rbd_source_plain(const char *text);

/* *list ends with a row without a disk; rbd_source_free() it.  -EINVAL: a name
 * is none, is that of a snapshot, or two disks have the same name. */
int rbd_source_parse(const char *text, struct rbd_source_name **list,
                     struct error **errp);
void rbd_source_free(struct rbd_source_name *list);

#endif /* NBDELTA_SERVER_SOURCE_RBD_NAMES_H */
