/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_LIBVIRT_PRIV_H
#define NBDELTA_SERVER_SOURCE_LIBVIRT_PRIV_H

/*
 * Shared by libvirt.c (open, begin, end), libvirt-begin.c (the instant),
 * libvirt-adopt.c (going on with the instant of a killed run),
 * libvirt-checkpoint.c (what checkpoints there are, and which can be used) and
 * libvirt-freeze.c (file systems).
 *
 * What is made has a path that contains "/nbdelta-ID.": the socket, scratch
 * files.  So a backup job of a killed run is known by libvirt's XML of it.
 * Names of scratch files have a random word, too, one for each instant.
 */
#include <stdbool.h>
#include <sys/types.h>

#include "source/adopt.h"
#include "source/frozen.h"
#include "source/libvirt-call.h"
#include "source/libvirt-xml.h"
#include "source/private-dir.h"
#include "source/source.h"

struct error;
struct libvirt_tunnel;

struct libvirt_disk {
    bool bitmaps; /* its format keeps them */
    char *scratch;
};

struct libvirt_source {
    struct frozen frozen;
    struct libvirt_link *link;
    char *domain;
    char *uri; /* of the connection, or NULL: libvirt's default */
    char *id;
    char *mark; /* "/nbdelta-ID." */
    char *scratch;
    char *nbd;   /* URI where libvirt's NBD server shall be, or NULL */
    bool by_ssh; /* a tunnel carries its socket */
    bool remote;
    int stop_fd;
    unsigned limit_ms;

    bool has_owner;
    uid_t owner; /* the user that QEMU runs as */
    int domain_id;
    struct libvirt_disk *disks; /* as s->disks */

    struct private_dir socket_dir;
    struct private_dir scratch_dir;
    char *socket; /* of the NBD server, at its host */
    struct libvirt_tunnel *tunnel;
    char *checkpoint;          /* that has begun; NULL: none */
    bool fresh;                /* it may be there */
    bool job;                  /* ours may run */
    char word[ADOPT_WORD_MAX]; /* of the instant */
    json_t *identity; /* of the instant, or of the one that begin adopts; NULL:
                         none */
    char version[64];
};

/* --- libvirt.c --- */

/* 1: a backup of this directory runs; with @word, of the instant that has it.
 * Else 0, or an error. */
int libvirt_has_job(const struct libvirt_source *l, const char *word,
                    struct error **errp);

/* Errors come to us by their texts; libvirt prints them otherwise.  For
 * virSetErrorFunc(). */
void libvirt_stay_quiet(void *opaque, virErrorPtr err);

/* --- libvirt-adopt.c --- */

/* Begin has succeeded: write l->identity. */
int libvirt_make_identity(struct source *s, struct error **errp);

/* If the job that @identity tells of is there, s->adopted is set. */
int libvirt_adopt(struct source *s, const json_t *identity,
                  struct error **errp);

/* Is it that of what is adopted, which begin has not taken over yet? */
bool libvirt_is_adopted_checkpoint(const struct source *s, const char *name);

/* Take over what is adopted, with all but the options of the disks.  -ESTALE:
 * it is gone, or was wanted in another way. */
int libvirt_begin_adopted(struct source *s, struct error **errp);

/* --- libvirt-begin.c --- */

/* Freeze the wanted disks, with a new checkpoint `checkpoint`, and fill them.
 * After a failure `job` and `fresh` tell what may be there. */
int libvirt_freeze_disks(struct source *s, struct error **errp);

/* The same of disks that a killed run has frozen. */
int libvirt_adopt_disks(struct source *s, struct error **errp);

/* As the disks are now. */
int libvirt_read_sizes(struct source *s, struct error **errp);

/* -ECANCELED: the user wants an end. */
int libvirt_check_stop(const struct libvirt_source *l, struct error **errp);

/* --- libvirt-checkpoint.c --- */

/*
 * Can what has changed since @since be told of the disks with that `since`?
 * Where not, their `reason` says why.  Metadata are made true on the way:
 * bitmaps that nobody can trust are removed, whole ones get back a
 * checkpoint that was lost, and one without any bitmap goes.
 */
int libvirt_find_changes(struct source *s, const char *since,
                         struct error **errp);

/* Is there a checkpoint of the name?  1, 0 or an error. */
int libvirt_has_checkpoint(struct source *s, const char *name,
                           struct error **errp);

/* Make checkpoint @name on disk @i alone, and remove it again. */
int libvirt_try_checkpoint(struct source *s, unsigned i, const char *name,
                           struct error **errp);

/* As in struct source_ops. */
int libvirt_forget(struct source *s, const char *name, struct error **errp);
int libvirt_each_checkpoint(struct source *s, source_checkpoint_fn *fn,
                            void *opaque, struct error **errp);

/* --- libvirt-freeze.c --- */

/* As in struct source_ops. */
void libvirt_guard(const char *what, const struct source_options *o, int fd);

#endif /* NBDELTA_SERVER_SOURCE_LIBVIRT_PRIV_H */
