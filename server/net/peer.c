/* SPDX-License-Identifier: BSD-3-Clause */
/* Who is at the other end of a socket: see peer.h. */
#include "net/peer.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <linux/vm_sockets.h>

void peer_of(int fd, struct peer *p)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_vm vm;
        struct sockaddr_storage room;
    } a;
    socklen_t len = sizeof(a);
    struct ucred cred;
    socklen_t cred_len = sizeof(cred);

    memset(p, 0, sizeof(*p));
    memset(&a, 0, sizeof(a));
    if (getpeername(fd, &a.any, &len) < 0) {
        return;
    }
    switch (a.any.sa_family) {
    case AF_INET:
        memcpy(p->id, &a.in.sin_addr, sizeof(a.in.sin_addr));
        break;
    case AF_INET6:
        memcpy(p->id, &a.in6.sin6_addr, sizeof(a.in6.sin6_addr));
        break;
    case AF_VSOCK:
        memcpy(p->id, &a.vm.svm_cid, sizeof(a.vm.svm_cid));
        break;
    case AF_UNIX:
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len) < 0) {
            return;
        }
        memcpy(p->id, &cred.uid, sizeof(cred.uid));
        break;
    default:
        return;
    }
    p->family = a.any.sa_family;
}

const char *peer_text(const struct peer *p, char *text, size_t size)
{
    uint32_t number;

    memcpy(&number, p->id, sizeof(number));
    switch (p->family) {
    case AF_INET:
    case AF_INET6:
        if (inet_ntop(p->family, p->id, text, (socklen_t)size)) {
            return text;
        }
        break;
    case AF_UNIX:
        (void)snprintf(text, size, "user %u", number);
        return text;
    case AF_VSOCK:
        (void)snprintf(text, size, "CID %u", number);
        return text;
    default:
        break;
    }
    (void)snprintf(text, size, "unknown");
    return text;
}

bool peer_equal(const struct peer *a, const struct peer *b)
{
    return a->family == b->family && memcmp(a->id, b->id, sizeof(a->id)) == 0;
}
