/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_BACKUP_SESSION_PRIV_H
#define NBDELTA_SERVER_BACKUP_SESSION_PRIV_H

/* Shared by session.c (begin and end), access.c (rules of the exports) and
 * watch.c (queries, and the thread). */
#include <pthread.h>
#include <stdatomic.h>

#include "backup/look.h"
#include "backup/session.h"
#include "nbd/export.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"

struct tls_policy;

#define NS UINT64_C(1000000000)

/* 128 random bits in hexadecimal digits. */
#define INSTANT_MAX 33

struct pull_disk {
    struct node *node; /* stays: a point in time is kept of it */
    char *name;
    char *since;         /* the checkpoint; NULL: all is exported */
    bool whole;          /* all can be read, also with `since` */
    const char *reason;  /* why not what was asked for, or NULL */
    char *context;       /* the bitmap's name there, or NULL */
    struct point *point; /* NULL: not yet, or gone */
    char *export_id;     /* NULL: not exported; nobody else can choose it */
    char *export;
    char *uri; /* or NULL: it has none */
    uint64_t estimate;
    struct export_rules rules; /* of its exports, for the backup's */
    struct bitmap *fresh;      /* the new checkpoint's, held; or NULL */
    bool has_fresh;
    bool told; /* that its point in time was lost */

    /* Of a disk whose storage makes snapshots (stored.h). */
    struct node *storage; /* the node that makes them; as long as `look` */
    bool stored;
    bool since_bitmap; /* `since` is a bitmap all the same */
    bool taken;        /* the snapshot is there */
    bool kept;         /* it has become the checkpoint */
    char *snapshot;    /* its name while the backup goes on */
};

struct pull {
    struct list link;
    char *id;
    char instant[INSTANT_MAX]; /* no other session ever has it */
    char *checkpoint;          /* or NULL */
    char *owner;               /* see pull_options; or NULL */
    uint64_t drained_ns;
    uint64_t expire_ns;   /* 0: never */
    uint64_t renewed_at;  /* now_ns() when the time began anew */
    uint64_t stuck_until; /* now_ns() when it is tried again to end it */
    struct server *server;
    char *server_id; /* of one that runs, if it has a name */
    bool own_server;
    bool discard;
    bool away;   /* storage is asked for it, so the monitor lock is given up
                    now and then.  Nobody else changes it. */
    bool ending; /* nobody finds it */
    struct look look; /* references to its nodes if any is `stored` */
    unsigned count;
    struct pull_disk disks[];
};

struct pulls {
    struct daemon *daemon;
    int wake; /* eventfd */
    pthread_t thread;
    bool started;
    _Atomic bool stopping;

    cond_t back; /* a session is `away` no more */

    /* Monitor lock. */
    struct list sessions; /* oldest first */
    uint64_t serial;
};

static inline struct pull *pull_of(struct list *at)
{
    return list_entry(at, struct pull, link);
}

/* What backup-begin says of it; new references, NULL: no memory. */
json_t *pull_describe(const struct pull *s);
json_t *pull_describe_disk(const struct pull_disk *d);

/* Make the thread look again.  With any locks. */
void pulls_wake(struct pulls *p);

/* Start the thread unless it runs.  Hold the monitor lock. */
int pulls_start_thread(struct pulls *p, struct error **errp);

/* Fill the disks' rules; clients of @authz (or NULL) may read the
 * backup, too. */
int pull_gather_rules(struct pulls *p, struct pull *s, const char *authz,
                      struct error **errp);

/* *pp: what a server that belongs to the session asks of its clients, a new
 * reference; NULL: nothing.  -EINVAL: the disks' servers ask for different
 * credentials. */
int pull_own_policy(const struct pull *s, struct tls_policy **pp,
                    struct error **errp);

/* -EACCES: no client of the session's server could open one of the exports. */
int pull_check_rules(const struct pull *s, struct error **errp);

/* The session @id unless it is ending, or NULL.  Hold the monitor lock. */
struct pull *pull_find(const struct pulls *p, const char *id);

/* End @s without success; @result is a word of BACKUP_ENDED.  Hold the monitor
 * lock, which is given up meanwhile. */
void pull_fail(struct pulls *p, struct pull *s, const char *result);

#endif /* NBDELTA_SERVER_BACKUP_SESSION_PRIV_H */
