/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_QEMU_PRIV_H
#define NBDELTA_SERVER_SOURCE_QEMU_PRIV_H

/*
 * Shared by qemu.c (open, begin, end), qemu-clean.c (taking away what was
 * made), qemu-adopt.c (going on with what a killed run has made) and
 * qemu-server.c (where QEMU's NBD server is).
 *
 * All that is made in QEMU has one of these names, with N the number of a disk:
 *
 *   nbdelta-ID-map      the bitmap of what is dirty, on the disk's node
 *   nbdelta-ID-WORD-N   the job that keeps old bytes; the export.  The word is
 *                       random, one for each instant.
 *   nbdelta-IDID-sN     the scratch image's node, -fN its file's, -bN the job's
 *                       filter.  Names of nodes have 31 bytes: IDID is the
 *                       beginning of the id.
 */
#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "source/adopt.h"
#include "source/frozen.h"
#include "source/private-dir.h"

struct error;
struct source;

#define QEMU_ID_SHORT 12

struct qemu_disk {
    char *node;   /* where bitmaps are */
    bool bitmaps; /* its format keeps them */
    bool busy;    /* a job's filter is above it */
    bool mapped;  /* it has a map */
    bool fresh;   /* it may have the new checkpoint's bitmap */
};

struct qemu_source {
    struct frozen frozen;
    char *id;
    char *prefix;      /* "nbdelta-ID-" */
    char *node_prefix; /* "nbdelta-IDID-" */
    char *map;         /* "nbdelta-ID-map" */
    char *scratch;     /* directory */
    char *nbd;         /* URI that the user has named, or NULL */
    pid_t pid;
    uid_t owner;
    struct qemu_disk *disks; /* as s->disks */
    struct private_dir socket_dir;
    struct private_dir scratch_dir;
    bool own_server; /* it may run */
    char *checkpoint;
    char word[ADOPT_WORD_MAX]; /* of the instant */
    json_t *identity; /* of the instant, or of the one that begin adopts; NULL:
                         none */
};

static inline const char *qemu_text(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* All nodes, with their bitmaps. */
int qemu_nodes(struct source *s, json_t **list, struct error **errp);

/* The entry of the node @name, or NULL. */
const json_t *qemu_find_node(const json_t *nodes, const char *name);

/* The bitmap @name of the node's entry, or NULL. */
const json_t *qemu_find_bitmap(const json_t *node, const char *name);

/* --- qemu-clean.c --- */

/* Take away all that has our names, in the order in which one uses the other,
 * and wait until it is gone.  Goes on after an error as far as it makes sense;
 * the first one is returned. */
int qemu_clean(struct source *s, struct error **errp);

/* Of a job's entry: it keeps old bytes.  NULL: no. */
bool qemu_is_at_work(const json_t *job);

/* Is each disk still frozen, or has somebody ended one of our jobs? */
int qemu_check_frozen(struct source *s, struct error **errp);

/* Remove the bitmap @name wherever it is. */
int qemu_remove_bitmap(struct source *s, const char *name, struct error **errp);

/* --- qemu-adopt.c --- */

/* Begin has succeeded: write q->identity. */
int qemu_make_identity(struct source *s, struct error **errp);

/* Before disks are listed: if all that @identity tells of is there, s->adopted
 * is set. */
int qemu_adopt(struct source *s, const json_t *identity, struct error **errp);

/* The disk's node below our filter of that name; or NULL: it is none of what is
 * adopted. */
const char *qemu_adopted_node(const struct source *s, const char *filter);

/* Is it that of what is adopted, which begin has not taken over yet? */
bool qemu_is_adopted_checkpoint(const struct source *s, const char *name);

/* Take over what is adopted, with all but the options of the disks.  -ESTALE:
 * it is gone, or was wanted in another way. */
int qemu_begin_adopted(struct source *s, struct error **errp);

/* It is not wanted, after all: all of it goes. */
void qemu_drop_adopted(struct source *s);

/* --- qemu-server.c --- */

/* Does the process listen on a socket that a run of this directory has made? */
bool qemu_has_own_server(pid_t pid, const char *id);

/*
 * The NBD server among the sockets that the process listens on, as the options
 * of an nbd node.  -ENOENT: there is none, or one cannot look (@errp says what
 * to do).
 */
int qemu_find_server(pid_t pid, json_t **address, struct error **errp);

#endif /* NBDELTA_SERVER_SOURCE_QEMU_PRIV_H */
