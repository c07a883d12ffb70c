/* SPDX-License-Identifier: BSD-3-Clause */
/* From a socket that listens to the NBD URI of an export: see address-uri.h. */
#include "net/address-uri.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <linux/vm_sockets.h>

#include "nbdelta/cleanup.h"

union address {
    struct sockaddr any;
    struct sockaddr_un un;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_vm vm;
};

/* @text percent-encoded, except for the characters that RFC 3986 lets stand and
 * those in @also; malloc()ed. */
static char *encode(const char *text, const char *also)
{
    char *out = malloc(3 * strlen(text) + 1);
    char *at = out;

    for (; out && *text; text++) {
        unsigned char c = (unsigned char)*text;
        if ((c < 128 && isalnum(c)) || strchr("-._~", c) || strchr(also, c)) {
            *at++ = (char)c;
        } else {
            at += sprintf(at, "%%%02X", c);
        }
    }
    if (out) {
        *at = '\0';
    }
    return out;
}

/* The part between "//" and "/"; false: there is none. */
static bool authority(const union address *a, char *text, size_t size)
{
    char host[INET6_ADDRSTRLEN];
    bool any;

    switch (a->any.sa_family) {
    case AF_INET:
        any = a->in.sin_addr.s_addr == htonl(INADDR_ANY);
        (void)inet_ntop(AF_INET, &a->in.sin_addr, host, sizeof(host));
        (void)snprintf(text, size, "%s:%u", any ? "localhost" : host,
                       ntohs(a->in.sin_port));
        return true;
    case AF_INET6:
        any = IN6_IS_ADDR_UNSPECIFIED(&a->in6.sin6_addr);
        (void)inet_ntop(AF_INET6, &a->in6.sin6_addr, host, sizeof(host));
        (void)snprintf(text, size, any ? "%s:%u" : "[%s]:%u",
                       any ? "localhost" : host, ntohs(a->in6.sin6_port));
        return true;
    case AF_VSOCK:
        (void)snprintf(text, size, "%u:%u", a->vm.svm_cid, a->vm.svm_port);
        return true;
    default:
        return false;
    }
}

/* The path of a Unix socket, malloc()ed; NULL: it has none.  It is made
 * absolute if the file is there, because clients need not be in our directory.
 */
static char *socket_path(const union address *a, socklen_t len)
{
    size_t head = offsetof(struct sockaddr_un, sun_path);

    if (a->any.sa_family != AF_UNIX || len <= head || !a->un.sun_path[0]) {
        return NULL;
    }
    char *path = strndup(a->un.sun_path, len - head);
    char *absolute = path && path[0] != '/' ? realpath(path, NULL) : NULL;

    if (absolute) {
        free(path);
        path = absolute;
    }
    return path;
}

char *address_uri(int fd, bool tls, const char *name)
{
    union address a;
    socklen_t len = sizeof(a);
    const char *s = tls ? "s" : "";
    char host[INET6_ADDRSTRLEN + 16];
    char *uri = NULL;
    int r = -1;

    memset(&a, 0, sizeof(a));
    if (getsockname(fd, &a.any, &len) < 0) {
        return NULL;
    }
    CLEANUP_FREE char *export = encode(name, "/@:+,=");
    CLEANUP_FREE char *path = socket_path(&a, len);
    CLEANUP_FREE char *socket = path ? encode(path, "/") : NULL;
    if (export && socket) {
        r = asprintf(&uri, "nbd%s+unix:///%s?socket=%s", s, export, socket);
    } else if (export && authority(&a, host, sizeof(host))) {
        r = asprintf(&uri, "nbd%s%s://%s/%s", s,
                     a.any.sa_family == AF_VSOCK ? "+vsock" : "", host, export);
    }
    return r < 0 ? NULL : uri;
}
