/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * QMP monitors and their sessions: see monitor.h.
 *
 * Each monitor has room for a number of sessions, whatever others have.  One
 * thread looks after all monitors: it accepts clients, and joins the threads of
 * sessions that have ended.  Where a lost connection is to be made again,
 * another thread makes it, because names and hosts may be silent for long.
 * Events and replies meet in the sessions' output.  Only the thread that holds
 * the monitor lock fills it, so that all sessions see them in the same order.
 */
#include "qmp/monitor.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "daemon.h"
#include "keyval.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/kick.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "net/address.h"
#include "qmp/chardev.h"
#include "qmp/dispatch.h"
#include "qmp/record.h"
#include "qmp/role.h"
#include "qmp/session.h"

#define MONITORS_MAX 64
#define SESSIONS_MAX 64 /* of each monitor */
#define SECOND       UINT64_C(1000000000)
/* When a monitor is full, a client that has not negotiated for so long makes
 * room. */
#define SILENT_NS (2 * SECOND)
#define STOP_NS   (2 * SECOND)

struct monitor {
    struct monitors *all;
    struct chardev *chardev;
    struct qmp_role *role; /* or NULL */
    enum session_mode mode;
    bool connected; /* does not listen: it has a session */
    unsigned sessions;
    uint64_t retry_at; /* when to connect again, if it does */
    bool dialing;      /* there is a dialer, which has the chardev's channel */
    pthread_t dialer;
    _Atomic bool dialed; /* it has ended */
};

struct link {
    struct list in_monitors;
    struct session *session;
    struct monitor *monitor;
    uint64_t since; /* now_ns() */
    bool leaving;   /* it has been asked to make room */
};

struct monitors {
    /* Set before the start. */
    struct daemon *daemon;
    struct chardevs *chardevs;
    int wake; /* a kick for the thread */
    bool started;
    pthread_t thread;

    /* The thread's, once it has started. */
    struct monitor monitors[MONITORS_MAX];
    unsigned count;

    /* Guarded by lock; changed by the thread only. */
    mutex_t lock;
    struct list links; /* oldest session first */

    _Atomic bool stopping;
};

void monitors_emit(const char *name, json_t *data, void *opaque)
{
    struct monitors *m = opaque;
    struct timespec now = {0, 0};

    (void)clock_gettime(CLOCK_REALTIME, &now);
    CLEANUP_JSON json_t *event = json_pack(
        "{s:{s:I, s:I}, s:s, s:O}", "timestamp", "seconds",
        (json_int_t)now.tv_sec, "microseconds",
        (json_int_t)(now.tv_nsec / 1000), "event", name, "data", data);

    qmp_record("arg-type", name, data);
    mutex_lock(&m->lock);
    list_for_each (l, &m->links) {
        session_event(list_entry(l, struct link, in_monitors)->session, event);
    }
    mutex_unlock(&m->lock);
}

/* --- Sessions. --- */

/* Take @ch for a new session.  Without memory the client is gone. */
static void add_session(struct monitors *m, struct monitor *mon,
                        const struct channel *ch)
{
    struct session *s = session_new(m->daemon, ch, mon->role, mon->mode,
                                    m->wake);
    struct link *link = s ? calloc(1, sizeof(*link)) : NULL;

    if (link) {
        link->session = s;
        link->monitor = mon;
        link->since = now_ns();
        /* The session gets events from before its client can negotiate. */
        mutex_lock(&m->lock);
        list_append(&m->links, &link->in_monitors);
        mutex_unlock(&m->lock);
        if (session_start(s) == 0) {
            mon->connected = true;
            mon->sessions++;
            return;
        }
        mutex_lock(&m->lock);
        list_remove(&link->in_monitors);
        mutex_unlock(&m->lock);
        free(link);
    }
    if (s) {
        session_free(s);
    }
}

static void retry_later(struct monitor *mon)
{
    mon->retry_at = now_ns() + chardev_reconnect(mon->chardev) * SECOND;
}

static void free_link(struct link *link)
{
    session_free(link->session);
    free(link);
}

static void free_ended_sessions(struct monitors *m)
{
    struct list gone;

    list_init(&gone);
    mutex_lock(&m->lock);
    list_for_each_safe (l, &m->links) {
        struct link *link = list_entry(l, struct link, in_monitors);

        if (session_finished(link->session)) {
            list_remove(l);
            list_append(&gone, l);
        }
    }
    mutex_unlock(&m->lock);
    list_for_each_safe (l, &gone) {
        struct link *link = list_entry(l, struct link, in_monitors);
        struct monitor *mon = link->monitor;

        free_link(link);
        mon->connected = false;
        mon->sessions--;
        retry_later(mon);
    }
}

/* --- The thread. --- */

/* The session that has been silent for the longest time, or NULL.  Only this
 * thread changes the links, so it needs no lock to look. */
static struct link *oldest_silent(struct monitors *m, const struct monitor *mon)
{
    list_for_each (l, &m->links) {
        struct link *link = list_entry(l, struct link, in_monitors);

        if (link->monitor == mon && !link->leaving &&
            !session_negotiated(link->session)) {
            return link;
        }
    }
    return NULL;
}

/* Has @mon room for one more session?  Strangers that fill a monitor do not
 * shut its door: the client that has said nothing for the longest time goes
 * when another client comes. */
static bool has_room(struct monitors *m, const struct monitor *mon,
                     const struct listeners *ls)
{
    if (mon->sessions < SESSIONS_MAX) {
        return true;
    }
    struct link *link = oldest_silent(m, mon);
    uint64_t now = now_ns();

    for (unsigned i = 0; link && i < ls->count; i++) {
        struct pollfd fd = {.fd = ls->at[i].fd, .events = POLLIN};

        if (now - link->since >= SILENT_NS && poll(&fd, 1, 0) > 0) {
            link->leaving = true;
            session_stop(link->session, now);
            break;
        }
    }
    return false;
}

/* Accept a client from each socket that has one.  True: wait a moment before
 * the next try. */
static bool accept_clients(struct monitors *m, struct monitor *mon)
{
    struct listeners *ls = chardev_listeners(mon->chardev);
    bool rest = false;

    for (unsigned i = 0; ls && i < ls->count; i++) {
        if (!has_room(m, mon, ls)) {
            break;
        }
        int fd = accept4(ls->at[i].fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) {
            struct channel ch;
            if (chardev_accept(mon->chardev, fd, &ch)) {
                add_session(m, mon, &ch);
            }
        } else {
            rest |= errno == EMFILE || errno == ENFILE || errno == ENOMEM;
        }
    }
    return rest;
}

static bool may_reconnect(const struct monitor *mon)
{
    return !mon->connected && !mon->dialing &&
           chardev_reconnect(mon->chardev) > 0;
}

static void *dial_thread(void *arg)
{
    struct monitor *mon = arg;

    (void)chardev_connect(mon->chardev, NULL);
    atomic_store(&mon->dialed, true);
    kick_raise(mon->all->wake);
    return NULL;
}

static void begin_dialing(struct monitor *mon)
{
    atomic_store(&mon->dialed, false);
    mon->dialing = thread_start(&mon->dialer, "qmp-dial", dial_thread, mon) ==
                   0;
    if (!mon->dialing) {
        retry_later(mon);
    }
}

static void end_dialing(struct monitor *mon)
{
    thread_join(mon->dialer);
    mon->dialing = false;
    retry_later(mon);
}

static void reconnect(struct monitors *m, struct monitor *mon)
{
    struct channel ch;

    if (mon->dialing && atomic_load(&mon->dialed)) {
        end_dialing(mon);
        if (chardev_take(mon->chardev, &ch)) {
            add_session(m, mon, &ch);
        }
    } else if (may_reconnect(mon) && mon->retry_at <= now_ns()) {
        begin_dialing(mon);
    }
}

/* Milliseconds until the next reconnect, or until a client may have been silent
 * for too long; -1: for ever. */
static int ms_until_due(struct monitors *m)
{
    uint64_t now = now_ns();
    uint64_t left = UINT64_MAX;

    for (unsigned i = 0; i < m->count; i++) {
        const struct monitor *mon = &m->monitors[i];

        if (mon->sessions >= SESSIONS_MAX && oldest_silent(m, mon)) {
            left = left < SECOND ? left : SECOND;
        }
        if (may_reconnect(mon)) {
            uint64_t ns = mon->retry_at > now ? mon->retry_at - now : 0;
            left = ns < left ? ns : left;
        }
    }
    return left == UINT64_MAX ? -1 : (int)(left / 1000000 + 1);
}

/* Poll the sockets of monitors that have room for more sessions; their number,
 * with the kick. */
static nfds_t fill_poll_set(struct monitors *m, struct pollfd *fds, nfds_t max)
{
    nfds_t n = 1;

    fds[0] = (struct pollfd){.fd = m->wake, .events = POLLIN};
    for (unsigned i = 0; i < m->count; i++) {
        const struct listeners *ls = chardev_listeners(m->monitors[i].chardev);
        bool room = m->monitors[i].sessions < SESSIONS_MAX;

        for (unsigned k = 0; ls && room && k < ls->count && n < max; k++) {
            fds[n++] = (struct pollfd){.fd = ls->at[k].fd, .events = POLLIN};
        }
    }
    return n;
}

static void *monitors_thread(void *arg)
{
    struct monitors *m = arg;
    struct pollfd fds[MONITORS_MAX + LISTENERS_MAX];

    while (!atomic_load(&m->stopping)) {
        bool rest = false;

        free_ended_sessions(m);
        nfds_t n = fill_poll_set(m, fds, MONITORS_MAX + LISTENERS_MAX);
        if (poll(fds, n, ms_until_due(m)) < 0) {
            continue;
        }
        if (fds[0].revents) {
            kick_clear(m->wake);
        }
        for (unsigned i = 0; i < m->count && !atomic_load(&m->stopping); i++) {
            struct monitor *mon = &m->monitors[i];

            rest |= accept_clients(m, mon);
            reconnect(m, mon);
        }
        if (rest) {
            /* Clients that cannot be accepted wait: do not spin. */
            (void)poll(fds, 1, 100);
        }
    }
    return NULL;
}

/* --- Life. --- */

struct monitors *monitors_new(struct daemon *d, struct chardevs *chardevs)
{
    struct monitors *m = calloc(1, sizeof(*m));

    if (!m) {
        return NULL;
    }
    m->daemon = d;
    m->chardevs = chardevs;
    for (unsigned i = 0; i < MONITORS_MAX; i++) {
        m->monitors[i].all = m;
    }
    list_init(&m->links);
    m->wake = kick_new();
    if (m->wake < 0) {
        free(m);
        return NULL;
    }
    mutex_init(&m->lock, LOCK_MONITORS, NULL);
    return m;
}

static int check_room(const struct monitors *m, struct error **errp)
{
    return m->count == MONITORS_MAX
               ? error_set(errp, EMFILE, "too many monitors")
               : 0;
}

int monitors_listen(struct monitors *m, const json_t *addr,
                    const struct socket_access *access, struct error **errp)
{
    struct monitor *mon = &m->monitors[m->count];
    int r = check_room(m, errp);

    if (r == 0) {
        r = chardevs_listen(m->chardevs, addr, access, &mon->chardev, errp);
    }
    if (r == 0) {
        m->count++;
    }
    return r;
}

static const char *const modes[] = {"readline", "control", NULL};
static const char *const roles[] = {"backup", NULL};

static const struct qmp_arg monitor_args[] = {
    QMP_ARG("chardev", STR),
    QMP_OPT("id", STR),
    QMP_OPT("mode", ENUM, .words = modes),
    QMP_OPT("pretty", BOOL),
    QMP_OPT("role", ENUM, .words = roles),
    QMP_OPT("disks", STRS),
    QMP_LAST,
};

/* What is asked for without a disk would be all of them. */
static int take_role(struct monitor *mon, const json_t *o, struct error **errp)
{
    json_t *disks = json_object_get(o, "disks");
    bool role = json_object_get(o, "role");

    if (role != (json_array_size(disks) > 0)) {
        return error_set(errp, EINVAL,
                         role ? "role=backup needs the names of its disks: "
                                "disks.0=NAME,disks.1=NAME..."
                              : "'disks' needs role=backup");
    }
    if (role) {
        mon->role = qmp_role_new(member_str(o, "chardev"),
                                 chardev_authz(mon->chardev), disks);
    }
    return role && !mon->role ? error_nomem(errp) : 0;
}

int monitors_add(struct monitors *m, const char *text, struct error **errp)
{
    struct monitor *mon = &m->monitors[m->count];
    CLEANUP_JSON json_t *o = NULL;
    CLEANUP_FREE char *full = keyval_spell_out(text, "chardev", monitor_args);
    int r = check_room(m, errp);

    if (r == 0) {
        r = full ? keyval_parse(full, "chardev", monitor_args, &o, errp)
                 : error_nomem(errp);
    }
    if (r < 0) {
        return r;
    }
    const char *mode = member_str(o, "mode");
    bool human = mode && strcmp(mode, "readline") == 0;
    if (human && (!m->daemon->vm_compat || json_object_get(o, "role"))) {
        return error_set(errp, ENOTSUP,
                         "a monitor for people (mode=readline) is there with "
                         "--vm-compat only, and has no role");
    }
    r = chardevs_claim(m->chardevs, member_str(o, "chardev"), &mon->chardev,
                       errp);
    r = r < 0 ? r : take_role(mon, o, errp);
    if (r == 0) {
        mon->mode = human ? SESSION_HUMAN
                    : json_is_true(json_object_get(o, "pretty"))
                        ? SESSION_PRETTY
                        : SESSION_QMP;
        m->count++;
    }
    return r;
}

int monitors_start(struct monitors *m, struct error **errp)
{
    for (unsigned i = 0; i < m->count; i++) {
        struct channel ch;

        if (chardev_take(m->monitors[i].chardev, &ch)) {
            add_session(m, &m->monitors[i], &ch);
        }
    }
    int r = thread_start(&m->thread, "qmp-accept", monitors_thread, m);
    if (r < 0) {
        return error_set(errp, -r, "cannot start a thread: %s", strerror(-r));
    }
    m->started = true;
    return 0;
}

void monitors_stop(struct monitors *m)
{
    uint64_t deadline = now_ns() + STOP_NS;

    atomic_store(&m->stopping, true);
    kick_raise(m->wake);
    if (m->started) {
        thread_join(m->thread);
        m->started = false;
    }
    for (unsigned i = 0; i < m->count; i++) {
        if (m->monitors[i].dialing) {
            end_dialing(&m->monitors[i]);
        }
    }
    mutex_lock(&m->lock);
    list_for_each (l, &m->links) {
        session_stop(list_entry(l, struct link, in_monitors)->session,
                     deadline);
    }
    mutex_unlock(&m->lock);
    list_for_each (l, &m->links) {
        session_wait(list_entry(l, struct link, in_monitors)->session);
    }
}

void monitors_free(struct monitors *m)
{
    if (m) {
        list_for_each_safe (l, &m->links) {
            free_link(list_entry(l, struct link, in_monitors));
        }
        for (unsigned i = 0; i < m->count; i++) {
            qmp_role_free(m->monitors[i].role);
        }
        mutex_destroy(&m->lock);
        (void)close(m->wake);
        free(m);
    }
}
