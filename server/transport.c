/* SPDX-License-Identifier: BSD-3-Clause */
#include "transport.h"

#include <errno.h>
#include <sys/socket.h>

ssize_t transport_receive(struct transport *t, struct iovec *iov, int cnt,
                          bool wait)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)cnt};
    ssize_t n = recvmsg(t->fd, &msg, wait ? 0 : MSG_DONTWAIT);

    return n < 0 ? -errno : n;
}

ssize_t transport_send(struct transport *t, struct iovec *iov, int cnt)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)cnt};
    ssize_t n = sendmsg(t->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

    return n < 0 ? -errno : n;
}

void transport_end(struct transport *t)
{
    (void)shutdown(t->fd, SHUT_RDWR);
}
