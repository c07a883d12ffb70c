/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_BACKUP_SESSION_H
#define NBDELTA_SERVER_BACKUP_SESSION_H

/*
 * Backups that clients pull
 * =========================
 *
 *   begin    one drained instant for all disks: the bits since the asked
 *            checkpoint are copied, the new checkpoint's bitmaps start, a
 *            point in time of each disk is kept (nbdelta/point.h)
 *            then it is exported, read-only
 *   ...      clients read
 *   end      success: the new checkpoint becomes persistent, checkpoints to
 *            be dropped go
 *            else: nothing of the new checkpoint is left
 *
 * Until the end the new checkpoint is in memory only.  So a daemon that ends,
 * in whatever way, leaves the old checkpoints and nothing of the new one.  A
 * session that nobody has renewed, and whose exports nobody has used, for
 * `expire` seconds ends as failed.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "nbdelta/types.h"

struct daemon;
struct look;
struct pulls;

/* Each backup costs memory and scratch, and a copy for writes of the guest. */
#define PULLS_PER_DISK 16
/* Unless another time is asked for: a day without a client. */
#define PULL_EXPIRE_S 86400

struct pull_disk_options {
    struct node *node;
    const char *since;  /* a checkpoint; NULL: the whole disk */
    bool whole;         /* the whole disk can be read, also with `since` */
    const char *export; /* or NULL: the disk's name, made unique */
};

struct pull_options {
    const struct pull_disk_options *disks;
    unsigned count;
    struct look *look;      /* of pulls_look(); taken */
    const char *checkpoint; /* the new one, or NULL */
    const json_t *listen; /* checked address of a server of its own, or NULL */
    const char *server;   /* or the id of a running server; NULL: unnamed */
    const char *scratch;  /* directory, or NULL */
    uint64_t quota;       /* bytes of scratch for each disk; 0: no limit */
    bool keep_free;       /* scratch leaves room on its file system (point.h) */
    uint64_t expire;      /* seconds; 0: never */
    unsigned max_delay_ms;  /* most that a guest's write waits for scratch */
    bool break_guest_write; /* without room the guest gets an error */
    bool once;              /* what was read is not kept any more */
    bool discard;           /* clients may give up what they do not need */
    const char *owner; /* the role that may end it; NULL: nobody in a role */
    const char *authz; /* of clients that may read the backup, beside all that
                          may open the disks; NULL: there are no others */
    bool incremental;  /* exporting a disk as a whole is an error */
};

struct pulls *pulls_new(struct daemon *d); /* NULL: no memory */

/* End all sessions, as failed; later ones are refused.  Without the monitor
 * lock, while exports and jobs still are there. */
void pulls_stop(struct pulls *p);
void pulls_free(struct pulls *p); /* after pulls_stop; NULL is fine */

/* --- Hold the monitor lock for all of these. --- */

/* Ask the storage of disks, if it makes snapshots, before a session begins, and
 * remove what dead daemons have left there.  The monitor lock is given up
 * meanwhile, so the disks are to be found anew afterwards.  look_free(@l) also
 * after a failure. */
int pulls_look(struct pulls *p, const struct pull_disk_options *disks,
               unsigned count, struct look *l, struct error **errp);

/* Begin a session.  *reply, a new reference, is what backup-begin returns.
 * After an error everything is as it was.  The monitor lock is given up where
 * there are storage snapshots.  -EBUSY: the disk is another node than
 * pulls_look() has seen. */
int pulls_begin(struct pulls *p, const struct pull_options *o, json_t **reply,
                struct error **errp);

/*
 * End the session @id.  Clients that are still connected are disconnected.
 * @drop has names of checkpoints, or is NULL.  Waits until the session's
 * exports are gone, and for storage; the monitor lock is given up meanwhile.
 * -ENOENT.  The
 * session goes on when the new checkpoint cannot be stored, and when @success
 * is claimed although a point in time was lost.
 */
int pulls_end(struct pulls *p, const char *id, bool success, const json_t *drop,
              struct error **errp);

/* The time until the session @id expires begins anew.  -ENOENT. */
int pulls_renew(struct pulls *p, const char *id, struct error **errp);

/* Is the session @id there, and @owner's? */
bool pulls_has(const struct pulls *p, const char *id, const char *owner);

/* The nodes of the session @id, if there is such, as members of @names. */
void pulls_name_nodes(const struct pulls *p, const char *id, json_t *names);

/* What query-backups returns; a new reference, NULL: no memory. */
json_t *pulls_query(struct pulls *p);

#endif /* NBDELTA_SERVER_BACKUP_SESSION_H */
