/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_TRANSPORT_H
#define NBDELTA_SERVER_NET_TRANSPORT_H

/*
 * How bytes get to a client and back: over a socket, in the clear or by TLS.
 *
 * One thread receives.  One thread at a time sends, and it may be another.
 */
#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

struct tls;

struct transport {
    int fd;          /* connected; blocking */
    struct tls *tls; /* after its handshake; NULL: in the clear */
};

/*
 * Receive at least a byte into @iov.  0: no more comes.  -EAGAIN: nothing is
 * there or, with @wait, nothing has come within the socket's time limit.  Poll
 * only after -EAGAIN, because bytes that were received may not have been given
 * out yet.  -EINTR, and other errors.
 */
ssize_t transport_receive(struct transport *t, struct iovec *iov, int cnt,
                          bool wait);

/* Take the bytes of @iov that can be sent without waiting, at least one.
 * -EAGAIN: the socket takes no more.  -EINTR, and other errors. */
ssize_t transport_send(struct transport *t, struct iovec *iov, int cnt);

/* Have bytes been taken and not sent?  Then call transport_send() again, if
 * need be with nothing new. */
bool transport_unsent(const struct transport *t);

/* Let no more in or out, and tell the other side.  Call it when nobody sends
 * any more. */
void transport_end(struct transport *t);

/* Free buffers while the connection is idle.  The receiving thread, when nobody
 * sends. */
void transport_trim(struct transport *t);

#endif /* NBDELTA_SERVER_NET_TRANSPORT_H */
