/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * NBD servers, their sockets and their connections (server.h).  One thread
 * accepts clients, and joins the threads of connections that have ended.  It
 * waits for nothing else: neither for storage nor for the monitor lock.
 */
#include "nbd/server.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon.h"
#include "log/log.h"
#include "nbd/conn.h"
#include "nbd/pool.h"
#include "nbd/spin.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/kick.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "net/address-uri.h"
#include "net/address.h"
#include "net/peer.h"
#include "net/tls-policy.h"
#include "net/tls.h"
#include "objects/object.h"

/* Each connection has two descriptors.  So many are left for everything else.
 */
#define SPARE_FDS       256
#define CONNECTIONS_MIN 16
#define SEND_BUFFER     (2 << 20)
#define WORKERS         64

/* How long a half-open predecessor may take to finish (server_enter). */
#define SETTLE_NS UINT64_C(5000000000)

/* Members that are not set at its opening are guarded by the lock of `all`. */
struct server {
    struct servers *all;
    char *id; /* NULL: the one without a name */
    uint64_t serial;
    unsigned max;             /* connections; 0: any number */
    unsigned max_per_address; /* connections from one address; 0: any number */
    unsigned handshake_s;
    struct socket_access access;
    struct tls_policy *policy;

    struct list in_all; /* while it runs */
    bool running;
    unsigned refs; /* of the list, of each connection, of callers */
    struct listeners listeners;
    unsigned conn_count;
    uint64_t turned_away_count; /* clients */
    bool waited;                /* the log has it that clients wait */

    /* Guarded by the log. */
    struct log_limit waiting;
    struct log_limit crowded;
    struct log_limit turned_away;
};

struct servers {
    /* Set before servers_start. */
    struct daemon *daemon;
    struct exports *exports;
    struct pool *pool;
    struct room *room;
    struct spinners spinners;
    int wake; /* a kick for the accepting thread */
    bool started;
    pthread_t thread;

    /* Guarded by lock. */
    mutex_t lock;
    struct list list; /* servers that run */
    uint64_t serials; /* given out so far */
    cond_t calmed;    /* a connection is quiet now */
    struct list conns;
    unsigned conn_count;
    bool used; /* an export was opened */

    _Atomic bool stopping;
};

struct servers *servers_new(struct daemon *d)
{
    struct servers *ss = calloc(1, sizeof(*ss));

    if (!ss) {
        return NULL;
    }
    ss->daemon = d;
    ss->exports = d->exports;
    ss->pool = pool_new(WORKERS);
    ss->room = room_new(ROOM_MAX);
    ss->spinners.limit = d->poll_max * UINT64_C(1000);
    ss->serials = SERVER_UNNAMED;
    ss->wake = kick_new();
    list_init(&ss->list);
    list_init(&ss->conns);
    mutex_init(&ss->lock, LOCK_SERVERS, NULL);
    cond_init(&ss->calmed);
    if (!ss->pool || !ss->room || ss->wake < 0) {
        servers_free(ss);
        return NULL;
    }
    return ss;
}

static struct server *server_at(struct list *l)
{
    return list_entry(l, struct server, in_all);
}

/* Hold the lock of `all`. */
static void server_unref_locked(struct server *s)
{
    if (--s->refs == 0) {
        tls_policy_unref(s->policy);
        free(s->id);
        free(s);
    }
}

void server_unref(struct server *s)
{
    if (s) {
        struct servers *ss = s->all;

        mutex_lock(&ss->lock);
        server_unref_locked(s);
        mutex_unlock(&ss->lock);
    }
}

void server_reap_soon(struct server *s)
{
    kick_raise(s->all->wake);
}

/* --- Listening. --- */

static struct server *find_server_locked(struct servers *ss, const char *id)
    REQUIRES(ss->lock)
{
    list_for_each (l, &ss->list) {
        struct server *s = server_at(l);

        if (id && s->id ? strcmp(id, s->id) == 0 : !id && !s->id) {
            return s;
        }
    }
    return NULL;
}

static struct server *server_alloc(struct servers *ss,
                                   const struct server_options *o)
{
    struct server *s = calloc(1, sizeof(*s));

    if (!s || (o->id && !(s->id = strdup(o->id)))) {
        free(s);
        return NULL;
    }
    s->all = ss;
    s->max = o->max;
    s->max_per_address = o->max_per_address;
    s->handshake_s = o->handshake_s ? o->handshake_s : HANDSHAKE_S;
    s->access = o->access;
    s->policy = tls_policy_ref(o->policy);
    s->running = true;
    s->refs = 2;
    list_init(&s->in_all);
    return s;
}

int server_open(struct servers *ss, const struct server_options *o,
                struct server **sp, struct error **errp)
{
    int r = 0;

    mutex_lock(&ss->lock);
    if (find_server_locked(ss, o->id)) {
        r = o->id ? error_set(errp, EEXIST, "NBD server '%s' already running",
                              o->id)
                  : error_set(errp, EEXIST, "NBD server already running");
    } else if (!(*sp = server_alloc(ss, o))) {
        r = error_nomem(errp);
    } else {
        (*sp)->serial = o->id ? ++ss->serials : SERVER_UNNAMED;
        list_append(&ss->list, &(*sp)->in_all);
    }
    mutex_unlock(&ss->lock);
    return r;
}

struct server *server_find(struct servers *ss, const char *id,
                           struct error **errp)
{
    mutex_lock(&ss->lock);
    struct server *s = find_server_locked(ss, id);
    if (s) {
        s->refs++;
    }
    mutex_unlock(&ss->lock);
    if (!s && id) {
        (void)error_set(errp, ENOENT, "NBD server '%.200s' not running", id);
    } else if (!s) {
        (void)error_set(errp, EINVAL, "NBD server not running");
    }
    return s;
}

uint64_t server_serial(const struct server *s)
{
    return s->serial;
}

struct room *server_room(const struct server *s)
{
    return s->all->room;
}

struct spinners *server_spinners(const struct server *s)
{
    return &s->all->spinners;
}

unsigned server_max(const struct server *s)
{
    return s->max;
}

unsigned server_handshake_s(const struct server *s)
{
    return s->handshake_s;
}

bool server_can_identify(const struct server *s)
{
    return s->policy && tls_keys_identify(s->policy->keys);
}

bool server_allows(const struct server *s, const char *authz,
                   const char *identity)
{
    return objects_allow(s->all->daemon->objects, authz, identity);
}

static const char *shown_name(const struct server *s)
{
    return s->id ? s->id : "";
}

/* These two with the lock held. */
static char *uri_of(const struct server *s, const char *name)
{
    bool tls = tls_policy_mode(s->policy) == TLS_REQUIRE;
    char *uri = NULL;

    for (unsigned i = 0; !uri && i < s->listeners.count; i++) {
        uri = address_uri(s->listeners.at[i].fd, tls, name);
    }
    return uri;
}

static void tell_listeners(const struct server *s)
{
    CLEANUP_FREE char *uri = uri_of(s, "");

    log_line(TELL_INFO, "NBD server '%s' listens: %s", shown_name(s),
             uri ? uri : "on a socket that has no URI");
}

int server_listen(struct server *s, const json_t *addr, struct error **errp)
{
    struct listeners more = {.count = 0};
    int r = address_listen(addr, &s->access, &more, errp);

    /* A name may take its time to be found: not under the lock. */
    mutex_lock(&s->all->lock);
    if (s->listeners.count + more.count > LISTENERS_MAX) {
        r = error_set(errp, EMFILE, "too many sockets to listen on");
    } else if (!s->running) {
        r = error_set(errp, ESHUTDOWN, "the NBD server was stopped meanwhile");
    }
    for (unsigned i = 0; r == 0 && i < more.count; i++) {
        s->listeners.at[s->listeners.count++] = more.at[i];
    }
    if (r == 0) {
        tell_listeners(s);
    }
    mutex_unlock(&s->all->lock);
    if (r < 0) {
        listeners_close(&more);
    }
    kick_raise(s->all->wake);
    return r;
}

char *server_uri(struct server *s, const char *name)
{
    mutex_lock(&s->all->lock);
    char *uri = uri_of(s, name);
    mutex_unlock(&s->all->lock);
    return uri;
}

void servers_tell(struct servers *ss)
{
    mutex_lock(&ss->lock);
    list_for_each (l, &ss->list) {
        tell_listeners(server_at(l));
    }
    mutex_unlock(&ss->lock);
}

/* A limit of 0 is none. */
static int add_limit(json_t *o, const char *key, unsigned limit)
{
    return limit > 0 ? json_object_set_new(o, key, json_integer(limit)) : 0;
}

json_t *servers_query(struct servers *ss)
{
    json_t *all = json_array();
    int r = all ? 0 : -1;

    mutex_lock(&ss->lock);
    list_for_each (l, &ss->list) {
        const struct server *s = server_at(l);
        json_t *o = json_pack("{s:i, s:I, s:s*}", "clients", (int)s->conn_count,
                              "turned-away", (json_int_t)s->turned_away_count,
                              "server", s->id);

        r |= add_limit(o, "max-connections", s->max);
        r |= add_limit(o, "max-connections-per-address", s->max_per_address);
        r |= json_array_append_new(all, o);
    }
    mutex_unlock(&ss->lock);
    if (r < 0) {
        json_decref(all);
        return NULL;
    }
    return all;
}

/* The server that @e names, with a reference, or NULL. */
static struct server *server_of(struct servers *ss, const struct export *e)
{
    struct server *s = NULL;

    mutex_lock(&ss->lock);
    list_for_each (l, &ss->list) {
        if (server_at(l)->serial == e->server) {
            s = server_at(l);
            s->refs++;
        }
    }
    mutex_unlock(&ss->lock);
    return s;
}

char *servers_uri(struct servers *ss, const struct export *e)
{
    struct server *s = server_of(ss, e);
    char *uri = s ? server_uri(s, e->name) : NULL;

    server_unref(s);
    return uri;
}

struct tls_policy *server_policy(const struct server *s)
{
    return tls_policy_ref(s->policy);
}

struct tls_policy *servers_policy(struct servers *ss, const struct export *e)
{
    struct server *s = server_of(ss, e);
    struct tls_policy *p = s ? server_policy(s) : NULL;

    server_unref(s);
    return p;
}

/* Tell the connections of @s to end; the accepting thread frees them. */
static void stop_connections(struct servers *ss, const struct server *s)
    REQUIRES(ss->lock)
{
    list_for_each (l, &ss->conns) {
        struct conn *c = list_entry(l, struct conn, in_server);

        if (c->server == s) {
            conn_stop(c);
        }
    }
    cond_broadcast(&ss->calmed);
}

void server_close(struct server *s)
{
    struct servers *ss = s->all;

    mutex_lock(&ss->lock);
    if (s->running) {
        s->running = false;
        list_remove(&s->in_all);
        listeners_close(&s->listeners);
        stop_connections(ss, s);
        server_unref_locked(s);
    }
    mutex_unlock(&ss->lock);
    kick_raise(ss->wake);
}

static void close_all(struct servers *ss)
{
    mutex_lock(&ss->lock);
    while (!list_empty(&ss->list)) {
        struct server *s = server_at(ss->list.next);

        s->refs++;
        mutex_unlock(&ss->lock);
        server_close(s);
        server_unref(s);
        mutex_lock(&ss->lock);
    }
    mutex_unlock(&ss->lock);
}

void servers_free(struct servers *ss)
{
    if (ss) {
        close_all(ss); /* servers that late commands have opened */
        pool_free(ss->pool);
        room_free(ss->room);
        if (ss->wake >= 0) {
            (void)close(ss->wake);
        }
        cond_destroy(&ss->calmed);
        mutex_destroy(&ss->lock);
        free(ss);
    }
}

void servers_end_export(struct servers *ss, const struct export *e)
{
    mutex_lock(&ss->lock);
    list_for_each (l, &ss->conns) {
        struct conn *c = list_entry(l, struct conn, in_server);

        if (c->serving && (c->export == e || c->export->of == e)) {
            conn_stop(c);
        }
    }
    cond_broadcast(&ss->calmed);
    mutex_unlock(&ss->lock);
}

/* --- Connections. --- */

static void set_options(int fd)
{
    static const int on = 1;
    static const int buffer = SEND_BUFFER;
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);

    if (getsockname(fd, (struct sockaddr *)&addr, &len) == 0 &&
        addr.ss_family != AF_UNIX) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
        return; /* the kernel sizes its buffers */
    }
    /* The buffer is larger than the system's limit, if we may. */
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof(buffer)) <
        0) {
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    }
}

/* Has @s as many clients as it may have?  More stay in the queues of its
 * sockets. */
static bool is_full(const struct server *s)
{
    return s->max > 0 && s->conn_count >= s->max;
}

/* Are there as many connections as the daemon's descriptors allow?  A client
 * that comes now is turned away. */
static bool is_exhausted(const struct servers *ss) REQUIRES(ss->lock)
{
    struct rlimit lim;

    if (getrlimit(RLIMIT_NOFILE, &lim) < 0 || lim.rlim_cur == RLIM_INFINITY) {
        return false;
    }
    uint64_t spare = min_u64(SPARE_FDS, lim.rlim_cur / 4);
    return ss->conn_count >=
           max_u64((lim.rlim_cur - spare) / 2, CONNECTIONS_MIN);
}

static void turn_away(struct server *s, const char *why)
{
    s->turned_away_count++;
    log_seldom(&s->turned_away, TELL_WARNING,
               "NBD server '%s': a client is turned away: %s", shown_name(s),
               why);
}

/* Has this address enough connections already? */
static bool is_crowded(const struct servers *ss, const struct server *s,
                       const struct peer *peer) REQUIRES(ss->lock)
{
    unsigned count = 0;

    if (s->max_per_address == 0) {
        return false;
    }
    list_for_each (l, &ss->conns) {
        const struct conn *c = list_entry(l, struct conn, in_server);

        count += c->server == s && !atomic_load(&c->finished) &&
                 peer_equal(&c->peer, peer);
    }
    return count >= s->max_per_address;
}

static void start_conn(struct servers *ss, struct server *s, int fd)
    REQUIRES(ss->lock)
{
    struct peer peer;

    peer_of(fd, &peer);
    if (is_crowded(ss, s, &peer)) {
        s->turned_away_count++;
        log_seldom(&s->crowded, TELL_WARNING,
                   "NBD server '%s': a client is turned away: "
                   "max-connections-per-address is %u",
                   shown_name(s), s->max_per_address);
        (void)close(fd);
        return;
    }
    if (is_exhausted(ss)) {
        turn_away(s, "there are no descriptors for more connections");
        (void)close(fd);
        return;
    }
    set_options(fd);
    struct conn *c = conn_new(s, ss->exports, ss->pool, s->policy, fd);
    if (!c) {
        turn_away(s, "no memory, or no descriptors");
        return;
    }
    c->peer = peer;
    if (thread_start(&c->thread, "nbd-conn", conn_thread, c) < 0) {
        turn_away(s, "cannot start a thread");
        conn_free(c);
        return;
    }
    list_append(&ss->conns, &c->in_server);
    ss->conn_count++;
    s->conn_count++;
    s->refs++;
}

/* @c has ended, and is in no list any more.  Without locks. */
static void free_conn(struct conn *c)
{
    struct server *s = c->server;

    thread_join(c->thread);
    conn_free(c);
    server_unref(s);
}

/* Free the connections that have ended. */
static void free_ended_connections(struct servers *ss)
{
    struct list gone;

    list_init(&gone);
    mutex_lock(&ss->lock);
    list_for_each_safe (l, &ss->conns) {
        struct conn *c = list_entry(l, struct conn, in_server);

        if (atomic_load(&c->finished)) {
            list_remove(l);
            list_append(&gone, l);
            ss->conn_count--;
            c->server->conn_count--;
        }
    }
    bool last = ss->used && ss->conn_count == 0;
    mutex_unlock(&ss->lock);
    if (last && ss->daemon->exit_on_disconnect) {
        daemon_ask_quit(ss->daemon, "the last client has gone");
    }
    list_for_each_safe (l, &gone) {
        free_conn(list_entry(l, struct conn, in_server));
    }
}

/* Tell all connections at once to end, then wait for each.  Nobody adds any
 * more now. */
static void end_connections(struct servers *ss)
{
    mutex_lock(&ss->lock);
    list_for_each (l, &ss->conns) {
        conn_stop(list_entry(l, struct conn, in_server));
    }
    cond_broadcast(&ss->calmed);
    while (!list_empty(&ss->conns)) {
        struct conn *c = list_entry(ss->conns.next, struct conn, in_server);

        mutex_unlock(&ss->lock);
        thread_join(c->thread);
        mutex_lock(&ss->lock);
        list_remove(&c->in_server);
        ss->conn_count--;
        c->server->conn_count--;
        mutex_unlock(&ss->lock);
        struct server *s = c->server;
        conn_free(c); /* it gives back room, by way of its server */
        server_unref(s);
        mutex_lock(&ss->lock);
    }
    mutex_unlock(&ss->lock);
}

/* Has the client of @c gone?  A client that has closed only its sending half
 * may want its replies for a while: with @patient it counts as there. */
static bool is_gone(const struct conn *c, bool patient)
{
    struct pollfd p = {.fd = c->io.fd, .events = POLLRDHUP};

    return poll(&p, 1, 0) > 0 &&
           (!patient || (p.revents & (POLLHUP | POLLERR)));
}

/* Has the client of @c closed at least its sending half, while requests of it
 * are still to be done?  When it is gone for good, requests that have not begun
 * are dropped. */
static bool is_remnant(struct conn *c, bool patient)
{
    if (!c->serving || c->quiet || !is_gone(c, false)) {
        return false;
    }
    if (is_gone(c, patient)) {
        conn_stop(c);
    }
    return true;
}

void server_enter(struct server *s, struct conn *c)
{
    struct servers *ss = s->all;
    uint64_t end = now_ns() + SETTLE_NS;
    bool wait = c->writable;
    const struct node *disk = blk_node(c->export->blk);

    mutex_lock(&ss->lock);
    c->disk = disk;
    while (wait && !atomic_load(&c->stopping)) {
        bool patient = now_ns() < end;

        wait = false;
        list_for_each (l, &ss->conns) {
            struct conn *other = list_entry(l, struct conn, in_server);

            if (other != c && other->serving &&
                (other->export == c->export || other->disk == c->disk)) {
                wait |= is_remnant(other, patient);
            }
        }
        if (wait && is_gone(c, patient)) {
            conn_stop(c); /* storage may hang: waits do not pile up */
        } else if (wait) {
            (void)cond_wait_ms(&ss->calmed, &ss->lock, 100);
        }
    }
    c->serving = true;
    ss->used = true;
    mutex_unlock(&ss->lock);
    /* Either servers_end_export finds it, or it was removed before. */
    if (export_is_removed(ss->exports, c->export)) {
        conn_stop(c);
    }
}

void server_quiet(struct server *s, struct conn *c)
{
    struct servers *ss = s->all;

    mutex_lock(&ss->lock);
    c->quiet = true;
    cond_broadcast(&ss->calmed);
    mutex_unlock(&ss->lock);
}

void server_leave(struct server *s, struct conn *c)
{
    struct servers *ss = s->all;
    struct export *e = c->export;

    conn_forget_contexts(c);
    mutex_lock(&ss->lock);
    c->serving = false;
    c->export = NULL;
    mutex_unlock(&ss->lock);
    export_unref(ss->exports, e);
}

enum presence servers_presence(struct servers *ss, const void *e)
{
    enum presence most = CLIENT_LEAVING;
    bool any = false;

    mutex_lock(&ss->lock);
    list_for_each (l, &ss->conns) {
        const struct conn *c = list_entry(l, struct conn, in_server);

        if (c->serving && (c->export == e || c->export->of == e)) {
            enum presence p = conn_presence(c);

            most = p > most ? p : most;
            any = true;
        }
    }
    mutex_unlock(&ss->lock);
    return any ? most : CLIENT_UNSURE;
}

/* --- Accepting. --- */

/* True: wait a moment before the next try. */
static bool accept_one(struct servers *ss, struct server *s, int listener)
    REQUIRES(ss->lock)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd >= 0) {
        start_conn(ss, s, fd);
        return false;
    }
    return errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
           errno == ENOBUFS;
}

/* Tell the log once when clients wait for a server that is full. */
static void tell_waiting(struct server *s)
{
    for (unsigned i = 0; i < s->listeners.count && !s->waited; i++) {
        struct pollfd p = {.fd = s->listeners.at[i].fd, .events = POLLIN};

        if (poll(&p, 1, 0) > 0) {
            s->waited = true;
            log_seldom(&s->waiting, TELL_WARNING,
                       "NBD server '%s': clients wait until others have gone: "
                       "max-connections is %u",
                       shown_name(s), s->max);
        }
    }
}

/* Accept all clients that wait at sockets that are open now; none of them
 * blocks.  True: wait a moment before the next try. */
static bool accept_all(struct servers *ss)
{
    bool rest = false;

    mutex_lock(&ss->lock);
    list_for_each (l, &ss->list) {
        struct server *s = server_at(l);

        for (unsigned i = 0; i < s->listeners.count && !is_full(s); i++) {
            rest |= accept_one(ss, s, s->listeners.at[i].fd);
        }
        if (is_full(s)) {
            tell_waiting(s);
        }
    }
    mutex_unlock(&ss->lock);
    return rest;
}

/* The descriptors that the accepting thread waits for. */
struct poll_set {
    struct pollfd *fds;
    size_t count;
    size_t room;
};

/* Without memory, the socket @fd is not listened to for now. */
static void watch_socket(struct poll_set *ps, int fd)
{
    if (ps->count == ps->room) {
        size_t room = 2 * ps->room + 8;
        struct pollfd *grown = reallocarray(ps->fds, room, sizeof(*ps->fds));

        if (!grown) {
            return;
        }
        ps->fds = grown;
        ps->room = room;
    }
    ps->fds[ps->count++] = (struct pollfd){.fd = fd, .events = POLLIN};
}

static void watch_sockets(struct servers *ss, struct poll_set *ps)
{
    ps->count = 0;
    watch_socket(ps, ss->wake);
    mutex_lock(&ss->lock);
    list_for_each (l, &ss->list) {
        struct server *s = server_at(l);

        s->waited &= is_full(s);
        for (unsigned i = 0; i < s->listeners.count && !s->waited; i++) {
            watch_socket(ps, s->listeners.at[i].fd);
        }
    }
    mutex_unlock(&ss->lock);
}

static void *accept_thread(void *arg)
{
    struct servers *ss = arg;
    struct pollfd wake = {.fd = ss->wake, .events = POLLIN};
    struct poll_set ps = {.count = 0};

    while (!atomic_load(&ss->stopping)) {
        free_ended_connections(ss);
        watch_sockets(ss, &ps);
        if (poll(ps.fds, ps.count, ps.count > 0 ? -1 : 100) < 0) {
            continue;
        }
        kick_clear(ss->wake);
        if (!atomic_load(&ss->stopping) && accept_all(ss)) {
            /* Clients that cannot be accepted wait: do not spin. */
            (void)poll(&wake, 1, 100);
        }
    }
    free(ps.fds);
    return NULL;
}

int servers_start(struct servers *ss, struct error **errp)
{
    int r = thread_start(&ss->thread, "nbd-accept", accept_thread, ss);

    if (r < 0) {
        return error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
    }
    ss->started = true;
    return 0;
}

void servers_stop(struct servers *ss)
{
    atomic_store(&ss->stopping, true);
    close_all(ss);
    kick_raise(ss->wake);
    if (ss->started) {
        thread_join(ss->thread);
        ss->started = false;
    }
    end_connections(ss);
}
