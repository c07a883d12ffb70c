/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_DRIVERS_NBD_H
#define NBDELTA_DRIVERS_NBD_H

/* Inside of the nbd driver: between nbd.c and nbd-*.c. */
#include <libnbd.h>

#include "core/node.h"
#include "core/yank.h"
#include "nbdelta/option.h"
#include "nbdelta/thread.h"

struct opts;
struct tls_creds;

#define REMOTE_CONNECTIONS_MAX 16

/* --- Options (nbd-options.c): set at open, never changed. --- */

enum remote_type { REMOTE_INET, REMOTE_UNIX, REMOTE_VSOCK, REMOTE_FD };

struct remote_address {
    enum remote_type type;
    char *host;     /* inet: without brackets; unix: the path */
    char *port;     /* inet */
    int family;     /* inet: AF_UNSPEC, AF_INET or AF_INET6 */
    bool abstract;  /* unix: the path is no file's */
    bool tight;     /* unix, abstract: ... and nothing follows it */
    uint32_t cid;   /* vsock */
    uint32_t vport; /* vsock */
    int fd;         /* fd: until it is used, then -1; else -1 */
};

struct remote_options {
    struct remote_address address;
    char *export;
    char *context;     /* that tells of extents */
    bool dirty_bitmap; /* ... is that of x-dirty-bitmap: it has to be there */
    uint64_t delay_ns; /* reconnect-delay */
    uint64_t open_ns;  /* open-timeout */
    unsigned connections;
    bool tls;
    const struct tls_creds *creds; /* or NULL */
    char *tls_hostname;
    char *tls_username;     /* of a URI, as the two below */
    char *tls_certificates; /* a directory */
    char *tls_psk_file;
};

extern const struct option remote_node_options[];

/* Take all options.  Call remote_options_free() after a failure, too. */
int remote_options_take(struct node *n, struct opts *opts,
                        struct remote_options *o, struct error **errp);
void remote_options_free(struct remote_options *o);

/* Is libnbd to compare a certificate with the name that it connects to? */
bool remote_verifies(const struct remote_options *o);

/* The name that a user would type for it: a URI, or json:{...}; NULL: no
 * memory. */
char *remote_filename(const struct remote_options *o, const json_t *options);

/* --- Sockets (nbd-socket.c) --- */

/* Until when an operation may take, and what ends it before. */
struct patience {
    uint64_t until; /* now_ns() */
    int kick;       /* readable: look at `stop` */
    bool (*stop)(void *opaque);
    void *opaque;
};

/* Wait for @events on @fd, or for a kick.  Their revents, 0 for a kick;
 * -ETIMEDOUT, -ECANCELED. */
int remote_poll(const struct patience *p, int fd, short events);

/* A connected socket.  -ETIMEDOUT, -ECANCELED, and what connecting gives. */
int remote_socket(struct remote_address *a, const struct patience *p, int *fdp,
                  struct error **errp);

/* --- Connections (nbd-link.c) --- */

/* What a server says of its export: the same on each connection. */
struct remote_info {
    uint64_t size;
    uint32_t min; /* 0, here and below: it did not say */
    uint32_t pref;
    uint32_t max;
    bool read_only;
    bool rotational;
    bool can_flush;
    bool can_fua;
    bool can_trim;
    bool can_zero;
    bool can_fast_zero;
    bool can_cache;
    bool multi_conn;
    bool context; /* the one asked for */
};

/*
 * A connection and its thread:
 *
 *     IDLE --wanted--> CONNECTING --> UP --lost--> LOST --users gone--> IDLE
 *                       |     ^
 *                       +-----+ failed: again, after a while
 */
enum link_state { LINK_IDLE, LINK_CONNECTING, LINK_UP, LINK_LOST };

struct link {
    struct remote *remote;
    pthread_t thread;
    int kick; /* eventfd: wakes the thread in poll */

    /* Guarded by remote->lock. */
    enum link_state state;
    bool wanted;               /* requests would like to have it */
    bool proven;               /* it has answered a request */
    unsigned users;            /* requests that use handle */
    uint64_t pause_ns;         /* before the next attempt */
    struct nbd_handle *handle; /* UP, LOST */
};

struct remote {
    struct node *node;
    struct remote_options options;

    mutex_t lock;
    cond_t changed; /* anything that somebody waits for */

    /* Guarded by lock until the first connection is up, then never changed. */
    struct remote_info info;

    /* Guarded by lock. */
    bool known; /* info is filled in */
    bool stop;
    bool yanked;    /* no connection any more */
    bool ending;    /* nobody waits for the first connection any more */
    unsigned asked; /* requests that wait for their answer */
    uint64_t heard; /* now_ns() at the last answer, or at the first request that
                       waits */
    unsigned failures; /* of connecting, so far */
    struct error *why; /* the last failure, or what ended a connection */
    uint64_t deadline; /* now_ns(): requests wait no longer; 0: nobody waits */
    unsigned count;    /* of links that have threads */

    struct yank yank;

    /* Guarded by lock: what the last answer about a dirty map has told that
     * nobody has asked for yet. */
    uint32_t *told;   /* lengths and states, from told_at on */
    size_t told_next; /* index of the next pair */
    size_t told_end;
    uint64_t told_at;
    uint64_t told_ns; /* when */

    /* Atomic. */
    _Atomic bool no_large_zero; /* the server refuses requests above info.max */

    struct link links[REMOTE_CONNECTIONS_MAX];
};

/* A request in flight, on the stack of the thread that waits for it. */
struct call {
    struct remote *remote;
    cond_t cond;

    /* Guarded by remote->lock. */
    bool done;
    int error; /* errno */
};

/* Connect, once or until open-timeout.  After a failure no threads are left. */
int remote_connect(struct remote *r, struct error **errp);
/* More connections, as the options and the server want. */
void remote_connect_more(struct remote *r);
/* All requests are done. */
void remote_disconnect(struct remote *r);

/*
 * Do a request: @issue puts it into @h's queue with @done as its completion,
 * and returns what libnbd returned.  Tried again on a new connection while
 * reconnect-delay lasts.
 *
 * -EIO: there is no connection.  -ERESTART: see driver.h.  Else what the
 * server answered.
 */
typedef int64_t issue_fn(struct nbd_handle *h, nbd_completion_callback done,
                         void *opaque);
int remote_request(struct remote *r, issue_fn *issue, void *opaque);

/* Callbacks of a yank; none of them waits.  yank: cut all connections, for
 * good.  is_stuck: are there requests, and has no answer come for a while?
 * give_up: let requests, and the open, wait only a moment for a connection. */
void remote_yank(void *opaque);
bool remote_is_stuck(void *opaque);
void remote_give_up(void *opaque);

/* Have requests that wait for a connection look whether they still may, or give
 * up. */
void remote_kick(struct remote *r, bool give_up);

#endif /* NBDELTA_DRIVERS_NBD_H */
