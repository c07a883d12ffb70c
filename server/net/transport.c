/* SPDX-License-Identifier: BSD-3-Clause */
/* A socket with or without TLS over it: see transport.h. */
#include "net/transport.h"

#include <errno.h>
#include <sys/socket.h>

#include "net/tls.h"

ssize_t transport_receive(struct transport *t, struct iovec *iov, int cnt,
                          bool wait)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)cnt};

    if (t->tls) {
        return tls_receive(t->tls, iov, cnt, wait);
    }
    ssize_t n = recvmsg(t->fd, &msg, wait ? 0 : MSG_DONTWAIT);
    return n < 0 ? -errno : n;
}

ssize_t transport_send(struct transport *t, struct iovec *iov, int cnt)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)cnt};

    if (t->tls) {
        return tls_send(t->tls, iov, cnt);
    }
    ssize_t n = sendmsg(t->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    return n < 0 ? -errno : n;
}

bool transport_unsent(const struct transport *t)
{
    return t->tls && tls_unsent(t->tls);
}

void transport_trim(struct transport *t)
{
    if (t->tls) {
        tls_trim(t->tls);
    }
}

void transport_end(struct transport *t)
{
    if (t->tls) {
        tls_end(t->tls, false);
    }
    (void)shutdown(t->fd, SHUT_RDWR);
}
