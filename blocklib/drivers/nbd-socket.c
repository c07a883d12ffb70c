/* SPDX-License-Identifier: BSD-3-Clause */
/* Sockets to NBD servers, connected within a limit of time. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "drivers/nbd.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/kick.h"

/* A peer whose machine is gone is noticed after about a minute. */
#define KEEP_IDLE_S     30
#define KEEP_INTERVAL_S 10
#define KEEP_COUNT      3
#define UNACKED_MS      60000

int remote_poll(const struct patience *p, int fd, short events)
{
    struct pollfd fds[2] = {{.fd = fd, .events = events},
                            {.fd = p->kick, .events = POLLIN}};

    for (;;) {
        uint64_t now = now_ns();
        uint64_t left = now < p->until ? p->until - now : 0;
        int ms = (int)min_u64(div_up(left, 1000000), 60000);
        int n = poll(fds, 2, ms);

        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        if (n > 0 && fds[1].revents) {
            kick_clear(p->kick);
        }
        if (p->stop(p->opaque)) {
            return -ECANCELED;
        }
        if (n > 0) {
            return fds[0].revents;
        }
        if (now_ns() >= p->until) {
            return -ETIMEDOUT;
        }
    }
}

/* Wait for an asynchronous connect, and return its result. */
static int wait_connected(int fd, const struct patience *p)
{
    int code = 0;
    socklen_t len = sizeof(code);
    int r;

    do {
        r = remote_poll(p, fd, POLLOUT);
    } while (r == 0);
    if (r < 0) {
        return r;
    }
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &len) < 0 ? -errno
                                                                 : -code;
}

/* A Unix socket whose queue is full says so at once. */
static int connect_patiently(int fd, const struct sockaddr *sa, socklen_t len,
                             const struct patience *p)
{
    for (;;) {
        if (connect(fd, sa, len) == 0) {
            return 0;
        }
        if (errno == EINPROGRESS) {
            return wait_connected(fd, p);
        }
        if (errno != EAGAIN) {
            return -errno;
        }
        struct patience soon = *p;
        soon.until = min_u64(p->until, now_ns() + 50 * UINT64_C(1000000));
        int r = remote_poll(&soon, -1, 0);
        if (r < 0 && (r != -ETIMEDOUT || now_ns() >= p->until)) {
            return r;
        }
    }
}

static int connect_to(int domain, const struct sockaddr *sa, socklen_t len,
                      const struct patience *p, int *fdp)
{
    CLEANUP_CLOSE int fd =
        socket(domain, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return -errno;
    }
    int r = connect_patiently(fd, sa, len, p);
    if (r == 0) {
        *fdp = fd;
        fd = -1;
    }
    return r;
}

static void set_option(int fd, int level, int name, int value)
{
    (void)setsockopt(fd, level, name, &value, sizeof(value));
}

static int connect_inet(const struct remote_address *a,
                        const struct patience *p, int *fdp, struct error **errp)
{
    struct addrinfo hints = {.ai_family = a->family,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    int r = getaddrinfo(a->host, a->port, &hints, &list);

    if (r != 0) {
        return error_set(errp, EINVAL,
                         "address resolution failed for %s:%s: "
                         "%s",
                         a->host, a->port, gai_strerror(r));
    }
    r = -EADDRNOTAVAIL;
    for (struct addrinfo *ai = list; ai && r < 0 && r != -ECANCELED;
         ai = ai->ai_next) {
        r = connect_to(ai->ai_family, ai->ai_addr, ai->ai_addrlen, p, fdp);
    }
    freeaddrinfo(list);
    if (r < 0) {
        return error_set(errp, -r, "Failed to connect to '%s:%s': %s", a->host,
                         a->port, strerror(-r));
    }
    set_option(*fdp, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(*fdp, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(*fdp, IPPROTO_TCP, TCP_KEEPIDLE, KEEP_IDLE_S);
    set_option(*fdp, IPPROTO_TCP, TCP_KEEPINTVL, KEEP_INTERVAL_S);
    set_option(*fdp, IPPROTO_TCP, TCP_KEEPCNT, KEEP_COUNT);
    set_option(*fdp, IPPROTO_TCP, TCP_USER_TIMEOUT, UNACKED_MS);
    return 0;
}

static int connect_unix(const struct remote_address *a,
                        const struct patience *p, int *fdp, struct error **errp)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    size_t len = strlen(a->host);

    if (len + a->abstract >= sizeof(sun.sun_path)) {
        return error_set(errp, ENAMETOOLONG,
                         "UNIX socket path '%s' is too long", a->host);
    }
    memcpy(sun.sun_path + a->abstract, a->host, len);
    size_t used = offsetof(struct sockaddr_un, sun_path) + len + 1;
    int r = connect_to(AF_UNIX, (const struct sockaddr *)&sun,
                       a->abstract && a->tight ? (socklen_t)used : sizeof(sun),
                       p, fdp);
    return r < 0 ? error_set(errp, -r, "Failed to connect to '%s': %s", a->host,
                             strerror(-r))
                 : 0;
}

static int connect_vsock(const struct remote_address *a,
                         const struct patience *p, int *fdp,
                         struct error **errp)
{
    struct sockaddr_vm vm = {
        .svm_family = AF_VSOCK, .svm_cid = a->cid, .svm_port = a->vport};
    int r = connect_to(AF_VSOCK, (const struct sockaddr *)&vm, sizeof(vm), p,
                       fdp);
    return r < 0 ? error_set(errp, -r, "Failed to connect to '%u:%u': %s",
                             a->cid, a->vport, strerror(-r))
                 : 0;
}

int remote_socket(struct remote_address *a, const struct patience *p, int *fdp,
                  struct error **errp)
{
    switch (a->type) {
    case REMOTE_INET:
        return connect_inet(a, p, fdp, errp);
    case REMOTE_UNIX:
        return connect_unix(a, p, fdp, errp);
    case REMOTE_VSOCK:
        return connect_vsock(a, p, fdp, errp);
    case REMOTE_FD:
        break;
    }
    if (a->fd < 0) {
        return error_set(errp, ENOTCONN,
                         "a connection that came as a descriptor cannot be "
                         "made again");
    }
    *fdp = a->fd;
    a->fd = -1;
    return 0;
}
