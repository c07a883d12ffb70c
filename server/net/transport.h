/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_TRANSPORT_H
#define NBDELTA_SERVER_NET_TRANSPORT_H

/*
 * How bytes get to a client and back: over a socket, in the clear or by TLS.
 *
 * One thread receives; one at a time sends, and that may be another.
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
 * Receive at least a byte into @iov; 0: no more comes.  Without @wait -EAGAIN
 * when nothing is there, with it when the socket's time limit has passed.
 * Poll only after -EAGAIN: what has been received may not have been given out
 * yet.  -EINTR, and other errors.
 */
ssize_t transport_receive(struct transport *t, struct iovec *iov, int cnt,
                          bool wait);

/* Take from @iov what can be sent without waiting, at least a byte; -EAGAIN:
 * the socket takes no more, -EINTR, and other errors. */
ssize_t transport_send(struct transport *t, struct iovec *iov, int cnt);

/* Is there something left of what was taken?  Then transport_send() has to be
 * called again, if need be with nothing new. */
bool transport_unsent(const struct transport *t);

/* No more goes in or out; the other side is told.  Nobody sends any more. */
void transport_end(struct transport *t);

/* Give up buffers while it is idle.  The receiving thread, when nobody sends.
 */
void transport_trim(struct transport *t);

#endif /* NBDELTA_SERVER_NET_TRANSPORT_H */
