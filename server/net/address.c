/* SPDX-License-Identifier: BSD-3-Clause */
/* Listening on, and connecting to, socket addresses of four kinds: address.h.
 */
#include "net/address.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/fdname.h"

#define BACKLOG         128
#define FREE_PORT_TRIES 16

static const char *const types[] = {"inet", "unix", "vsock", "fd", NULL};

static const struct qmp_arg unix_args[] = {
    QMP_ARG("path", STR),
    QMP_LAST,
};

static const struct qmp_arg inet_args[] = {
    QMP_ARG("host", STR),  QMP_ARG("port", STR),  QMP_OPT("to", UINT32),
    QMP_OPT("ipv4", BOOL), QMP_OPT("ipv6", BOOL), QMP_LAST,
};

static const struct qmp_arg vsock_args[] = {
    QMP_ARG("cid", STR),
    QMP_ARG("port", STR),
    QMP_LAST,
};

static const struct qmp_arg fd_args[] = {
    QMP_ARG("str", STR),
    QMP_LAST,
};

static const struct qmp_variant variants[] = {
    {"inet", inet_args}, {"unix", unix_args}, {"vsock", vsock_args},
    {"fd", fd_args},     {NULL, NULL},
};

const struct qmp_arg address_args[] = {
    QMP_ARG("type", ENUM, .words = types),
    QMP_VARIANTS("type", variants),
};

#define LEGACY(list)                                         \
    {                                                        \
        QMP_ARG("data", OBJECT, .members = (list)), QMP_LAST \
    }
static const struct qmp_arg legacy_inet[] = LEGACY(inet_args);
static const struct qmp_arg legacy_unix[] = LEGACY(unix_args);
static const struct qmp_arg legacy_vsock[] = LEGACY(vsock_args);
static const struct qmp_arg legacy_fd[] = LEGACY(fd_args);

static const struct qmp_variant legacy_variants[] = {
    {"inet", legacy_inet}, {"unix", legacy_unix}, {"vsock", legacy_vsock},
    {"fd", legacy_fd},     {NULL, NULL},
};

const struct qmp_arg address_legacy_args[] = {
    QMP_ARG("type", ENUM, .words = types),
    QMP_VARIANTS("type", legacy_variants),
};

json_t *address_from_legacy(const json_t *legacy)
{
    json_t *addr = json_deep_copy(json_object_get(legacy, "data"));

    if (addr &&
        json_object_set(addr, "type", json_object_get(legacy, "type")) < 0) {
        json_decref(addr);
        return NULL;
    }
    return addr;
}

static bool address_is(const json_t *addr, const char *type)
{
    return strcmp(member_str(addr, "type"), type) == 0;
}

/* --- Descriptors that are there. --- */

/* Make @fd fit for its use.  It has to be a socket that listens, or, without
 * @listening, one that does not. */
static int prepare_fd(int fd, const char *text, bool listening,
                      struct error **errp)
{
    int accepts = 0;
    socklen_t len = sizeof(accepts);

    (void)getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &len);
    if ((accepts != 0) != listening) {
        return error_set(errp, EINVAL, "the socket '%s' %s", text,
                         listening ? "does not listen" : "listens");
    }
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ||
        fcntl(fd, F_SETFL,
              listening ? flags | O_NONBLOCK : flags & ~O_NONBLOCK) < 0) {
        return error_set(errp, errno, "descriptor '%s': %s", text,
                         strerror(errno));
    }
    return 0;
}

static int take_fd(const char *text, bool listening, int *fdp,
                   struct error **errp)
{
    int fd = fd_named_socket(text, false, errp);
    int r = fd < 0 ? fd : prepare_fd(fd, text, listening, errp);

    if (fd >= 0 && r < 0 && !isdigit((unsigned char)text[0])) {
        (void)close(fd); /* a number is not ours, then */
    }
    *fdp = fd;
    return r;
}

/* --- TCP. --- */

static int add_listener(struct listeners *l, const struct unix_socket *u,
                        struct error **errp)
{
    if (l->count == LISTENERS_MAX) {
        return error_set(errp, EMFILE, "too many sockets to listen on");
    }
    l->at[l->count++] = *u;
    return 0;
}

/* Listen on one address.  @only: the name has no other.  -errno, mostly without
 * a text. */
static int listen_tcp(struct listeners *l, const struct addrinfo *ai, bool only,
                      struct error **errp)
{
    static const int on = 1;
    /* A "::" that is the only address is for IPv4 as well. */
    const int v6_only = !only;
    CLEANUP_CLOSE int fd =
        socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return -errno;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (ai->ai_family == AF_INET6) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6_only,
                         sizeof(v6_only));
    }
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        return -errno;
    }
    struct unix_socket u = {.fd = fd};
    int r = add_listener(l, &u, errp);
    if (r == 0) {
        fd = -1;
    }
    return r;
}

/* Does the error @r say that the machine does not have such addresses? */
static bool is_lacking(int r)
{
    return r == -EAFNOSUPPORT || r == -EADDRNOTAVAIL;
}

static int wanted_family(const json_t *addr)
{
    const json_t *v4 = json_object_get(addr, "ipv4");
    const json_t *v6 = json_object_get(addr, "ipv6");

    if (json_is_false(v6) || (json_is_true(v4) && !v6)) {
        return AF_INET;
    }
    return json_is_false(v4) || (json_is_true(v6) && !v4) ? AF_INET6
                                                          : AF_UNSPEC;
}

/* The addresses of @addr, with @port.  The host "" is all addresses of this
 * machine, no host its loopback addresses.  Free *list. */
static int resolve(const json_t *addr, const char *port, bool passive,
                   struct addrinfo **list, struct error **errp)
{
    const char *host = member_str(addr, "host");
    bool any = host && host[0] == '\0';
    struct addrinfo hints = {.ai_family = wanted_family(addr),
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = host && passive ? AI_PASSIVE : 0};
    int r = getaddrinfo(any ? NULL : host, port, &hints, list);

    if (r != 0) {
        return error_set(errp, EINVAL, "'%s' port %s: %s",
                         host ? host : "localhost", port, gai_strerror(r));
    }
    return 0;
}

/* The port of the first of the sockets, where the system has chosen it. */
static void follow_port(struct addrinfo *ai, const struct listeners *l,
                        unsigned first)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof(a);

    memset(&a, 0, sizeof(a));
    if (l->count == first ||
        getsockname(l->at[first].fd, (struct sockaddr *)&a, &len) < 0) {
        return;
    }
    in_port_t port = a.ss_family == AF_INET6
                         ? ((const struct sockaddr_in6 *)&a)->sin6_port
                         : ((const struct sockaddr_in *)&a)->sin_port;
    if (ai->ai_family == AF_INET6) {
        ((struct sockaddr_in6 *)ai->ai_addr)->sin6_port = port;
    } else if (ai->ai_family == AF_INET) {
        ((struct sockaddr_in *)ai->ai_addr)->sin_port = port;
    }
}

static int listen_inet(const json_t *addr, const char *port,
                       struct listeners *l, struct error **errp)
{
    const char *host = member_str(addr, "host");
    struct addrinfo *list = NULL;
    unsigned before = l->count;
    int r = resolve(addr, port, true, &list, errp);
    int last = -EADDRNOTAVAIL;

    if (r < 0) {
        return r;
    }
    for (struct addrinfo *ai = list; ai; ai = ai->ai_next) {
        follow_port(ai, l, before);
        r = listen_tcp(l, ai, !list->ai_next, errp);
        last = r < 0 ? r : last;
        if (r < 0 && !is_lacking(r)) {
            break;
        }
    }
    freeaddrinfo(list);
    if (l->count > before && (r == 0 || is_lacking(r))) {
        return 0;
    }
    while (l->count > before) {
        unix_socket_close(&l->at[--l->count]);
    }
    return error_set(errp, -last, "cannot listen on '%s' port %s: %s",
                     host ? host : "localhost", port, strerror(-last));
}

/* Listen on the first port that is free, from "port" to "to". */
static int listen_range(const json_t *addr, struct listeners *l,
                        struct error **errp)
{
    const char *port = member_str(addr, "port");
    json_int_t to = json_integer_value(json_object_get(addr, "to"));
    int r = listen_inet(addr, port, l, errp);

    /* A port that is free at one address may be taken at the next one. */
    for (int i = 0;
         r == -EADDRINUSE && strcmp(port, "0") == 0 && i < FREE_PORT_TRIES;
         i++) {
        r = listen_inet(addr, port, l, errp);
    }

    for (json_int_t n = strtol(port, NULL, 10) + 1;
         r == -EADDRINUSE && n <= to && n <= UINT16_MAX; n++) {
        char text[24];

        (void)snprintf(text, sizeof(text), "%lld", (long long)n);
        r = listen_inet(addr, text, l, errp);
    }
    return r;
}

/* --- Virtual machine sockets. --- */

static int parse_u32(const char *what, const char *text, unsigned *n,
                     struct error **errp)
{
    char *end;
    unsigned long long v = strtoull(text, &end, 10);

    if (!isdigit((unsigned char)text[0]) || *end || v > UINT32_MAX) {
        return error_set(errp, EINVAL, "Failed to parse %s '%s'", what, text);
    }
    *n = (unsigned)v;
    return 0;
}

static int vsock_address(const json_t *addr, struct sockaddr_vm *vm,
                         struct error **errp)
{
    *vm = (struct sockaddr_vm){.svm_family = AF_VSOCK};
    int r = parse_u32("cid", member_str(addr, "cid"), &vm->svm_cid, errp);

    return r < 0 ? r
                 : parse_u32("port", member_str(addr, "port"), &vm->svm_port,
                             errp);
}

static int listen_vsock(const json_t *addr, struct listeners *l,
                        struct error **errp)
{
    struct sockaddr_vm vm;
    int r = vsock_address(addr, &vm, errp);

    if (r < 0) {
        return r;
    }
    CLEANUP_CLOSE int fd =
        socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&vm, sizeof(vm)) < 0 ||
        listen(fd, BACKLOG) < 0) {
        r = -errno;
        return error_set(errp, -r, "cannot listen on vsock cid %s port %s: %s",
                         member_str(addr, "cid"), member_str(addr, "port"),
                         strerror(-r));
    }
    struct unix_socket u = {.fd = fd};
    r = add_listener(l, &u, errp);
    if (r == 0) {
        fd = -1;
    }
    return r;
}

/* --- All kinds. --- */

int address_listen(const json_t *addr, const struct socket_access *access,
                   struct listeners *l, struct error **errp)
{
    struct unix_socket u = {.fd = -1};
    int r;

    if (address_is(addr, "inet")) {
        return listen_range(addr, l, errp);
    }
    if (address_is(addr, "vsock")) {
        return listen_vsock(addr, l, errp);
    }
    r = address_is(addr, "unix")
            ? unix_socket_listen(&u, member_str(addr, "path"), access, errp)
            : take_fd(member_str(addr, "str"), true, &u.fd, errp);
    if (r == 0 && (r = add_listener(l, &u, errp)) < 0) {
        unix_socket_close(&u);
    }
    return r;
}

void listeners_close(struct listeners *l)
{
    while (l->count > 0) {
        unix_socket_close(&l->at[--l->count]);
    }
}

/* How long a peer that does not answer is waited for, for each address. */
#define CONNECT_S 10

static int connect_to(int domain, const struct sockaddr *sa, socklen_t len,
                      int *fdp)
{
    static const struct timeval limit = {.tv_sec = CONNECT_S};
    static const struct timeval none = {.tv_sec = 0};
    CLEANUP_CLOSE int fd = socket(domain, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        return -errno;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, sa, len) < 0) {
        return errno == EINPROGRESS || errno == EAGAIN ? -ETIMEDOUT : -errno;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof(none));
    *fdp = fd;
    fd = -1;
    return 0;
}

static int connect_unix(const char *path, int *fdp, struct error **errp)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(sun.sun_path)) {
        return error_set(errp, ENAMETOOLONG,
                         "the path of the socket '%s' is longer than %zu bytes",
                         path, sizeof(sun.sun_path) - 1);
    }
    memcpy(sun.sun_path, path, strlen(path));
    int r = connect_to(AF_UNIX, (const struct sockaddr *)&sun, sizeof(sun),
                       fdp);
    return r < 0 ? error_set(errp, -r, "Failed to connect to '%s': %s", path,
                             strerror(-r))
                 : 0;
}

static int connect_inet(const json_t *addr, int *fdp, struct error **errp)
{
    const char *port = member_str(addr, "port");
    struct addrinfo *list = NULL;
    int r = resolve(addr, port, false, &list, errp);

    if (r < 0) {
        return r;
    }
    r = -EADDRNOTAVAIL;
    for (struct addrinfo *ai = list; ai && r < 0; ai = ai->ai_next) {
        r = connect_to(ai->ai_family, ai->ai_addr, ai->ai_addrlen, fdp);
    }
    freeaddrinfo(list);
    return r < 0 ? error_set(errp, -r, "Failed to connect to '%s:%s': %s",
                             member_str(addr, "host"), port, strerror(-r))
                 : 0;
}

static int connect_vsock(const json_t *addr, int *fdp, struct error **errp)
{
    struct sockaddr_vm vm;
    int r = vsock_address(addr, &vm, errp);

    if (r < 0) {
        return r;
    }
    r = connect_to(AF_VSOCK, (const struct sockaddr *)&vm, sizeof(vm), fdp);
    return r < 0 ? error_set(errp, -r, "Failed to connect to '%s:%s': %s",
                             member_str(addr, "cid"), member_str(addr, "port"),
                             strerror(-r))
                 : 0;
}

int address_connect(const json_t *addr, int *fdp, struct error **errp)
{
    if (address_is(addr, "vsock")) {
        return connect_vsock(addr, fdp, errp);
    }
    if (address_is(addr, "unix")) {
        return connect_unix(member_str(addr, "path"), fdp, errp);
    }
    return address_is(addr, "inet")
               ? connect_inet(addr, fdp, errp)
               : take_fd(member_str(addr, "str"), false, fdp, errp);
}
