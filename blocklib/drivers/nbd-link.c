/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections to an NBD server.
 *
 *     requests (any thread)          the thread of a link
 *        |                              |
 *        | choose a link that is UP     | connects, negotiates   --> UP
 *        | queue in its handle ------>  | poll: sends and receives
 *        | wait for `done`   <--------  | completion callback
 *        |                              | lost: all fail          --> LOST
 *        | wait for a link that is UP   | connects again, later and later
 *
 * Neither the lock of the remote nor anything else is held across the
 * network: a caller queues its request, which sends what the socket takes at
 * once, and sleeps.  libnbd's own lock of a handle is held while one of its
 * functions runs, callbacks included, so none of them is called under ours.
 *
 * A handle belongs to the thread of its link.  Others use it while they are
 * counted in `users`; it is closed when the last of them has gone.
 *
 * A request whose connection is lost may have been done or not, and is done
 * again.  Reading, writing, zeroing or discarding the same range once more
 * harms nothing, as long as the server finishes or drops the requests of a dead
 * connection before it serves requests of a newer one.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "drivers/nbd.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/kick.h"
#include "nbdelta/remote.h"
#include "nbdelta/tls-creds.h"

#define MS UINT64_C(1000000) /* nanoseconds */

/* The time for one attempt to connect, negotiation included. */
#define ATTEMPT_NS (30000 * MS)
/* The pause between attempts: twice as long each time. */
#define PAUSE_MIN_NS (100 * MS)
#define PAUSE_MAX_NS (16000 * MS)
/* The time for an attempt under way when waiting makes no sense any more. */
#define GIVE_UP_NS (1000 * MS)
/* The time for the server to close a connection that we have ended. */
#define FAREWELL_NS (500 * MS)
/* The time for a request that nobody wants any more. */
#define UNWANTED_NS (3000 * MS)
/* How often requests that may become unwanted look whether they are. */
#define LOOK_MS 250
/* A server that has not answered for so long is to be waited for as for a
 * person, not as for storage. */
#define SLOW_MS 500
/* A server hangs if it has given no answer for so long while requests wait. */
#define STUCK_NS (2000 * MS)

/* --- What libnbd says --- */

/* libnbd's last error in this thread, as errno and text. */
static int failed(struct error **errp)
{
    return remote_error(nbd_get_errno(), nbd_get_error(), errp);
}

static uint32_t block_size(struct nbd_handle *h, int which)
{
    int64_t n = nbd_get_block_size(h, which);
    return n > 0 && n <= UINT32_MAX ? (uint32_t)n : 0;
}

static int get_info(const struct remote_options *o, struct nbd_handle *h,
                    struct remote_info *i, struct error **errp)
{
    int64_t size = nbd_get_size(h);

    if (size < 0 || (uint64_t)size > BLK_SIZE_MAX) {
        return error_set(errp, EFBIG, "the export is too large");
    }
    *i = (struct remote_info){
        .size = (uint64_t)size,
        .min = block_size(h, LIBNBD_SIZE_MINIMUM),
        .pref = block_size(h, LIBNBD_SIZE_PREFERRED),
        .max = block_size(h, LIBNBD_SIZE_MAXIMUM),
        .read_only = nbd_is_read_only(h) == 1,
        .rotational = nbd_is_rotational(h) == 1,
        .can_flush = nbd_can_flush(h) == 1,
        .can_fua = nbd_can_fua(h) == 1,
        .can_trim = nbd_can_trim(h) == 1,
        .can_zero = nbd_can_zero(h) == 1,
        .can_fast_zero = nbd_can_fast_zero(h) == 1,
        .can_cache = nbd_can_cache(h) == 1,
        .multi_conn = nbd_can_multi_conn(h) == 1,
        .context = nbd_can_meta_context(h, o->context) == 1,
    };
    if (!is_pow2(i->min)) {
        i->min = 0;
    }
    if (o->dirty_bitmap && !i->context) {
        return error_set(errp, EINVAL, "requested x-dirty-bitmap %s not found",
                         o->context);
    }
    return 0;
}

static int changed(const char *what, struct error **errp)
{
    return error_set(errp, ESTALE, "the export has changed: %s", what);
}

/* Does a new connection describe the export as the first one did? */
static int compare_info(const struct remote_info *is,
                        const struct remote_info *was, struct error **errp)
{
    if (is->size != was->size) {
        return changed("it has another size", errp);
    }
    if (is->read_only != was->read_only) {
        return changed(is->read_only ? "it is read-only now"
                                     : "it is not read-only any more",
                       errp);
    }
    if (is->min != was->min || is->pref != was->pref || is->max != was->max) {
        return changed("it has other block sizes", errp);
    }
    if (is->can_flush != was->can_flush || is->can_fua != was->can_fua ||
        is->can_trim != was->can_trim || is->can_zero != was->can_zero ||
        is->can_fast_zero != was->can_fast_zero ||
        is->can_cache != was->can_cache || is->context != was->context ||
        is->multi_conn != was->multi_conn) {
        return changed("the server offers other commands for it", errp);
    }
    return 0;
}

/* --- Connecting --- */

static bool link_stops(void *opaque)
{
    struct remote *r = ((struct link *)opaque)->remote;

    mutex_lock(&r->lock);
    bool stop = r->stop || r->yanked || (r->ending && !r->known);
    mutex_unlock(&r->lock);
    return stop;
}

/* Shall the link stop, or has a request found that the connection is of no
 * use? */
static bool link_ends(void *opaque)
{
    struct link *l = opaque;
    struct remote *r = l->remote;

    mutex_lock(&r->lock);
    bool stop = r->stop || l->state == LINK_LOST;
    mutex_unlock(&r->lock);
    return stop;
}

static bool never(void *opaque)
{
    (void)opaque;
    return false;
}

static struct patience patience_of(struct link *l, uint64_t ns,
                                   bool (*stop)(void *opaque))
{
    return (struct patience){now_ns() + ns, l->kick, stop, l};
}

static bool is_gone(struct nbd_handle *h)
{
    return nbd_aio_is_dead(h) || nbd_aio_is_closed(h);
}

static int closed(struct error **errp)
{
    return error_set(errp, ENOTCONN, "the server closed the connection");
}

/*
 * Let libnbd do what the socket is ready for, or wait until it is.
 * -ENOTCONN: the connection is gone.
 */
static int turn(struct nbd_handle *h, const struct patience *p,
                struct error **errp)
{
    int fd = nbd_aio_get_fd(h);
    unsigned dir = nbd_aio_get_direction(h);
    bool reads = dir & LIBNBD_AIO_DIRECTION_READ;
    bool writes = dir & LIBNBD_AIO_DIRECTION_WRITE;
    int done = 0;

    if (fd >= 0 && dir != 0) {
        int got = remote_poll(
            p, fd, (short)((reads ? POLLIN : 0) | (writes ? POLLOUT : 0)));
        if (got < 0) {
            return error_set(errp, -got, "%s", strerror(-got));
        }
        /* Notify one of both only: the first may change what is allowed. */
        if (reads && (got & (POLLIN | POLLHUP | POLLERR | POLLNVAL))) {
            done = nbd_aio_notify_read(h);
        } else if (writes && got) {
            done = nbd_aio_notify_write(h);
        }
    }
    if (!is_gone(h)) {
        return 0;
    }
    (void)(done < 0 ? failed(errp) : closed(errp));
    return -ENOTCONN;
}

static int set_tls(const struct remote_options *o, struct nbd_handle *h)
{
    const struct tls_creds *c = o->creds;
    CLEANUP_FREE char *keys = NULL;
    const char *psk = o->tls_psk_file;
    const char *dir = o->tls_certificates;
    const char *user = o->tls_username;

    if (!o->tls) {
        return nbd_set_tls(h, LIBNBD_TLS_DISABLE);
    }
    if (c && c->kind == TLS_PSK) {
        if (asprintf(&keys, "%s/keys.psk", c->dir) < 0) {
            keys = NULL;
            return -1;
        }
        psk = keys;
        user = c->username;
    } else if (c) {
        dir = c->dir;
    }
    if (nbd_set_tls(h, LIBNBD_TLS_REQUIRE) < 0 ||
        (user && nbd_set_tls_username(h, user) < 0) ||
        (psk && nbd_set_tls_psk_file(h, psk) < 0) ||
        (dir && nbd_set_tls_certificates(h, dir) < 0)) {
        return -1;
    }
    return nbd_set_tls_verify_peer(h, remote_verifies(o));
}

static int set_up(const struct remote_options *o, struct nbd_handle *h)
{
    /* Reads may end in a tail that is no whole block. */
    uint32_t strict = LIBNBD_STRICT_MASK & ~LIBNBD_STRICT_ALIGN;

    return nbd_set_strict_mode(h, strict) < 0 ||
                   nbd_set_export_name(h, o->export ? o->export : "") < 0 ||
                   nbd_add_meta_context(h, o->context) < 0 || set_tls(o, h) < 0
               ? -1
               : 0;
}

/* libnbd compares a certificate with the name that it has connected to. */
static int start_connecting(struct remote_options *o, struct nbd_handle *h,
                            const struct patience *p, struct error **errp)
{
    if (remote_verifies(o)) {
        return nbd_aio_connect_tcp(h, o->address.host, o->address.port) < 0
                   ? failed(errp)
                   : 0;
    }
    int fd;
    int r = remote_socket(&o->address, p, &fd, errp);

    if (r < 0) {
        return r;
    }
    if (nbd_aio_connect_socket(h, fd) < 0) { /* which has taken it */
        return failed(errp);
    }
    return 0;
}

static int negotiate(struct nbd_handle *h, const struct patience *p,
                     struct error **errp)
{
    int r = 0;

    while (r == 0 && !nbd_aio_is_ready(h)) {
        r = turn(h, p, errp);
    }
    if (r == -ETIMEDOUT) {
        return error_set(errp, ETIMEDOUT, "the server does not answer (%s)",
                         nbd_connection_state(h));
    }
    return r;
}

static int connect_handle(struct link *l, struct nbd_handle **hp,
                          struct remote_info *info, struct error **errp)
{
    struct remote_options *o = &l->remote->options;
    struct patience p = patience_of(l, ATTEMPT_NS, link_stops);
    struct nbd_handle *h = nbd_create();

    if (!h) {
        return failed(errp);
    }
    int r = set_up(o, h) < 0 ? failed(errp) : 0;
    if (r == 0) {
        r = start_connecting(o, h, &p, errp);
    }
    if (r == 0) {
        r = negotiate(h, &p, errp);
    }
    if (r == 0) {
        r = get_info(o, h, info, errp);
    }
    if (r < 0) {
        nbd_close(h);
        return r;
    }
    *hp = h;
    return 0;
}

/* --- The thread of a link --- */

static void farewell(struct link *l, struct nbd_handle *h)
{
    struct patience p = patience_of(l, FAREWELL_NS, never);

    if (nbd_aio_is_ready(h) && nbd_aio_disconnect(h, 0) == 0) {
        while (turn(h, &p, NULL) == 0) {
        }
    }
}

/* Requests that have no answer yet get one: -ENOTCONN. */
static void cut_connection(struct link *l, struct nbd_handle *h)
{
    struct patience p = patience_of(l, FAREWELL_NS, never);
    int fd = nbd_aio_get_fd(h);

    if (!is_gone(h) && fd >= 0) {
        (void)shutdown(fd, SHUT_RDWR);
    }
    while (turn(h, &p, NULL) == 0) {
    }
}

static void set_why_locked(struct remote *r, struct error *err)
    REQUIRES(r->lock)
{
    error_free(r->why);
    r->why = err;
}

/* Accept a new connection if it leads to the export that we know.  It is up
 * then. */
static int accept_link_locked(struct remote *r, struct link *l,
                              struct nbd_handle *h,
                              const struct remote_info *info,
                              struct error **errp) REQUIRES(r->lock)
{
    if (!r->known) {
        r->info = *info;
        r->known = true;
    }
    int c = r->yanked ? closed(errp) : compare_info(info, &r->info, errp);
    if (c < 0) {
        return c;
    }
    l->handle = h;
    l->state = LINK_UP;
    l->wanted = false;
    l->proven = false;
    r->deadline = 0;
    set_why_locked(r, NULL);
    cond_broadcast(&r->changed);
    return 0;
}

/* Serve the connection until it is lost, or until all links stop. */
static void run_link(struct link *l)
{
    struct remote *r = l->remote;
    struct patience p = patience_of(l, INT64_MAX / 2, link_ends);
    struct error *err = NULL;
    int c = 0;

    while (c == 0) {
        c = turn(l->handle, &p, &err);
    }
    if (c == -ECANCELED) {
        (void)closed(&err);
        farewell(l, l->handle);
        cut_connection(l, l->handle);
    }
    mutex_lock(&r->lock);
    l->state = LINK_LOST;
    set_why_locked(r, err);
    cond_broadcast(&r->changed);
    mutex_unlock(&r->lock);
}

/* Close the handle, which nobody will use again. */
static void drop_handle(struct link *l)
{
    struct remote *r = l->remote;

    mutex_lock(&r->lock);
    while (l->users > 0) {
        cond_wait(&r->changed, &r->lock);
    }
    struct nbd_handle *h = l->handle;
    l->handle = NULL;
    l->state = LINK_IDLE;
    mutex_unlock(&r->lock);
    nbd_close(h);
}

static void attempt(struct link *l)
{
    struct remote *r = l->remote;
    struct remote_info info;
    struct error *err = NULL;
    struct nbd_handle *h = NULL;
    int c = connect_handle(l, &h, &info, &err);

    mutex_lock(&r->lock);
    if (c == 0) {
        c = accept_link_locked(r, l, h, &info, &err);
    }
    if (c < 0) {
        l->state = LINK_IDLE;
        set_why_locked(r, err);
        r->failures++;
        cond_broadcast(&r->changed);
    }
    mutex_unlock(&r->lock);
    if (c == 0) {
        run_link(l);
        drop_handle(l);
    } else if (h) {
        farewell(l, h);
        nbd_close(h);
    }
}

/* Wait until a connection is wanted, and for the pause that is due.  A
 * connection that ended too soon makes the pause longer. */
static bool wait_wanted_locked(struct remote *r, struct link *l)
    REQUIRES(r->lock)
{
    while (!r->stop && (!l->wanted || r->yanked)) {
        cond_wait(&r->changed, &r->lock);
    }
    uint64_t until = now_ns() + l->pause_ns;
    for (uint64_t now; !r->stop && (now = now_ns()) < until;) {
        (void)cond_wait_ms(&r->changed, &r->lock, div_up(until - now, MS));
    }
    l->pause_ns = min_u64(max_u64(2 * l->pause_ns, PAUSE_MIN_NS), PAUSE_MAX_NS);
    l->state = LINK_CONNECTING;
    return !r->stop;
}

static void *link_main(void *opaque)
{
    struct link *l = opaque;
    struct remote *r = l->remote;

    for (;;) {
        mutex_lock(&r->lock);
        bool go = wait_wanted_locked(r, l);
        mutex_unlock(&r->lock);
        if (!go) {
            return NULL;
        }
        attempt(l);
    }
}

static int start_link(struct remote *r, struct link *l)
{
    *l = (struct link){.remote = r, .wanted = true};
    l->kick = kick_new();
    if (l->kick < 0) {
        return -errno;
    }
    int c = thread_start(&l->thread, "nbd client", link_main, l);
    if (c < 0) {
        (void)close(l->kick);
        return c;
    }
    mutex_lock(&r->lock);
    r->count++;
    mutex_unlock(&r->lock);
    return 0;
}

/* --- Begin and end --- */

/* Wait until the first connection is up, or until it is clear that none will
 * be. */
static void wait_first_locked(struct remote *r) REQUIRES(r->lock)
{
    uint64_t until = now_ns() + r->options.open_ns;
    uint64_t now;

    while (!r->known && !r->yanked && !r->ending &&
           (r->failures == 0 || r->options.open_ns > 0)) {
        if (r->options.open_ns == 0) {
            cond_wait(&r->changed, &r->lock);
        } else if ((now = now_ns()) < until) {
            (void)cond_wait_ms(&r->changed, &r->lock, div_up(until - now, MS));
        } else {
            break;
        }
    }
}

int remote_connect(struct remote *r, struct error **errp)
{
    int c = start_link(r, &r->links[0]);

    if (c < 0) {
        return error_set(errp, -c, "cannot start a thread: %s", strerror(-c));
    }
    mutex_lock(&r->lock);
    wait_first_locked(r);
    if (!r->known) {
        const char *why = r->yanked   ? "the connection was yanked"
                          : r->ending ? "the program is about to end"
                          : r->why    ? error_message(r->why)
                                      : "the server does not answer";
        c = r->yanked || r->ending ? ECANCELED
            : r->why               ? error_code(r->why)
                                   : ETIMEDOUT;
        c = error_set(errp, c, "%s", why);
        if (strncmp(why, "Failed to connect to", 20) != 0) {
            error_prefix(errp, "'%s': ", node_filename(r->node));
        }
    }
    mutex_unlock(&r->lock);
    if (c < 0) {
        remote_disconnect(r);
    }
    return c;
}

void remote_connect_more(struct remote *r)
{
    while (r->count < r->options.connections && r->info.multi_conn &&
           start_link(r, &r->links[r->count]) == 0) {
    }
}

void remote_disconnect(struct remote *r)
{
    mutex_lock(&r->lock);
    r->stop = true;
    cond_broadcast(&r->changed);
    mutex_unlock(&r->lock);
    for (unsigned i = 0; i < r->count; i++) {
        kick_raise(r->links[i].kick);
    }
    for (unsigned i = 0; i < r->count; i++) {
        thread_join(r->links[i].thread);
    }
    mutex_lock(&r->lock); /* a yank may still come, when an open has failed */
    for (unsigned i = 0; i < r->count; i++) {
        (void)close(r->links[i].kick);
    }
    r->count = 0;
    mutex_unlock(&r->lock);
    error_free(r->why);
    r->why = NULL;
}

/* --- Requests --- */

/* Choose the link with the fewest requests, and say that the others are
 * missed. */
static struct link *choose_locked(struct remote *r) REQUIRES(r->lock)
{
    struct link *best = NULL;

    for (unsigned i = 0; i < r->count; i++) {
        struct link *l = &r->links[i];
        if (l->state == LINK_UP) {
            best = !best || l->users < best->users ? l : best;
        } else if (!l->wanted && !r->yanked) {
            l->wanted = true;
            cond_broadcast(&r->changed);
        }
    }
    return best;
}

/* May a request wait, or wait on, for a connection? */
static int may_wait_locked(struct remote *r, uint64_t until) REQUIRES(r->lock)
{
    uint64_t now = now_ns();

    if (r->options.delay_ns == 0 || now >= until || r->yanked ||
        node_is_unwanted()) {
        return -EIO;
    }
    if (r->deadline == 0) {
        r->deadline = now + r->options.delay_ns;
    }
    if (now >= r->deadline || node_is_drained(r->node)) {
        return -EIO;
    }
    return node_shall_restart(r->node) ? -ERESTART : 0;
}

static int link_get(struct remote *r, uint64_t until, struct link **lp)
{
    struct link *l;
    int c = 0;

    mutex_lock(&r->lock);
    while (!(l = choose_locked(r)) && (c = may_wait_locked(r, until)) == 0) {
        uint64_t end = min_u64(until, r->deadline);
        uint64_t now = now_ns();
        thread_wait_begin(); /* others shall have a thread meanwhile */
        uint64_t ms = now < end ? div_up(end - now, MS) : 1;
        (void)cond_wait_ms(&r->changed, &r->lock,
                           node_unwanted ? min_u64(ms, LOOK_MS) : ms);
        thread_wait_end();
    }
    if (l) {
        l->users++;
        c = 0;
    }
    mutex_unlock(&r->lock);
    *lp = l;
    return c;
}

/* Stop using the link.  @lost: its connection has turned out to be of no
 * use. */
static void link_put(struct link *l, bool lost)
{
    struct remote *r = l->remote;

    mutex_lock(&r->lock);
    l->users--;
    if (lost && l->state == LINK_UP) {
        l->state = LINK_LOST;
        kick_raise(l->kick);
    }
    if (!lost && !l->proven) {
        l->proven = true;
        l->pause_ns = 0;
    }
    if (l->state == LINK_LOST && l->users == 0) {
        cond_broadcast(&r->changed);
    }
    mutex_unlock(&r->lock);
}

static int call_done(void *opaque, int *error)
{
    struct call *c = opaque;
    struct remote *r = c->remote; /* it outlives *c */

    mutex_lock(&r->lock);
    c->error = *error;
    c->done = true;
    cond_signal(&c->cond);
    mutex_unlock(&r->lock);
    return 1;
}

/* A request that nobody wants any more and that has no answer for a while costs
 * its connection: there is no other way to have its buffer back. */
static void cut_unwanted_locked(const struct remote *r, struct link *l,
                                uint64_t *since) REQUIRES(r->lock)
{
    uint64_t now = now_ns();

    (void)r; /* only names the lock */
    if (!node_is_unwanted()) {
        return;
    }
    if (*since == 0) {
        *since = now;
    } else if (now - *since >= UNWANTED_NS && l->state == LINK_UP) {
        l->state = LINK_LOST;
        kick_raise(l->kick);
    }
}

/* Wait for the answer.  While a slow server takes its time, other requests get
 * a thread. */
static int wait_done(struct link *l, struct call *c)
{
    struct remote *r = c->remote;
    uint64_t unwanted_since = 0;
    bool told = false;

    mutex_lock(&r->lock);
    if (r->asked++ == 0) {
        r->heard = now_ns();
    }
    while (!c->done) {
        if (!told && !cond_wait_ms(&c->cond, &r->lock, SLOW_MS)) {
            thread_wait_begin();
            told = true;
        } else if (told && node_unwanted) {
            (void)cond_wait_ms(&c->cond, &r->lock, LOOK_MS);
        } else if (told) {
            cond_wait(&c->cond, &r->lock);
        }
        cut_unwanted_locked(r, l, &unwanted_since);
    }
    r->asked--;
    r->heard = now_ns();
    mutex_unlock(&r->lock);
    if (told) {
        thread_wait_end();
    }
    return -c->error;
}

/* Do one request on one link.  -ENOTCONN: nobody knows whether it was done. */
static int do_call(struct link *l, issue_fn *issue, void *opaque)
{
    struct call call = {.remote = l->remote};
    nbd_completion_callback done = {.callback = call_done, .user_data = &call};
    int c;

    cond_init(&call.cond);
    if (issue(l->handle, done, opaque) >= 0) {
        c = 0;
    } else if (is_gone(l->handle)) {
        c = -ENOTCONN;
    } else {
        int code = nbd_get_errno();
        c = code > 0 ? -code : -EIO;
    }
    /* The link's thread has to see when the socket takes the rest of the
     * request, or that the handle has died. */
    if (nbd_aio_get_direction(l->handle) != LIBNBD_AIO_DIRECTION_READ) {
        kick_raise(l->kick);
    }
    if (c == 0) {
        c = wait_done(l, &call);
    }
    cond_destroy(&call.cond);
    return c;
}

int remote_request(struct remote *r, issue_fn *issue, void *opaque)
{
    uint64_t until = UINT64_MAX;

    for (;;) {
        struct link *l;
        int c = link_get(r, until, &l);

        if (c < 0) {
            return c;
        }
        c = do_call(l, issue, opaque);
        bool lost = c == -ENOTCONN || c == -ESHUTDOWN;
        link_put(l, lost);
        if (!lost) {
            return c;
        }
        if (r->options.delay_ns == 0 || node_is_unwanted()) {
            return -EIO;
        }
        until = min_u64(until, now_ns() + r->options.delay_ns);
    }
}

void remote_yank(void *opaque)
{
    struct remote *r = opaque;

    mutex_lock(&r->lock);
    r->yanked = true;
    for (unsigned i = 0; i < r->count; i++) {
        if (r->links[i].state == LINK_UP) {
            r->links[i].state = LINK_LOST;
        }
        kick_raise(r->links[i].kick);
    }
    cond_broadcast(&r->changed);
    mutex_unlock(&r->lock);
}

bool remote_is_stuck(void *opaque)
{
    struct remote *r = opaque;

    mutex_lock(&r->lock);
    bool stuck = r->asked > 0 && now_ns() - r->heard > STUCK_NS;
    mutex_unlock(&r->lock);
    return stuck;
}

void remote_give_up(void *opaque)
{
    struct remote *r = opaque;

    remote_kick(r, true);
    mutex_lock(&r->lock);
    r->ending = true;
    for (unsigned i = 0; !r->known && i < r->count; i++) {
        kick_raise(r->links[i].kick);
    }
    cond_broadcast(&r->changed);
    mutex_unlock(&r->lock);
}

void remote_kick(struct remote *r, bool give_up)
{
    mutex_lock(&r->lock);
    uint64_t soon = now_ns() + GIVE_UP_NS;
    if (give_up && (r->deadline == 0 || r->deadline > soon)) {
        r->deadline = soon; /* until there is a connection again */
    }
    cond_broadcast(&r->changed);
    mutex_unlock(&r->lock);
}
