/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_TLS_H
#define NBDELTA_SERVER_NET_TLS_H

/*
 * TLS over a socket, by gnutls
 * ============================
 *
 *   tls_receive <-- records <-- input buffer  <-- one recv for many records
 *   tls_send    --> records --> output buffer --> one send for many records
 *
 * gnutls sees the buffers only, so it never waits and never stops in the
 * middle of a record.  A lock is held for as long as it computes: one thread
 * receives, and one at a time sends (transport.h).
 *
 * tls-keys.c     credentials as files -> what gnutls has of them
 * tls-check.c    are our own certificates fit for use?
 * tls-session.c  handshake, records, end
 */
#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

struct error;
struct tls;
struct tls_creds;
struct tls_keys;

/* --- Keys: loaded credentials, shared by sessions. --- */

/*
 * Load the files of @c; @password opens the private key of a certificate,
 * NULL: there is none.  Sessions look whether files have changed since, and
 * load them again; those that cannot be used leave things as they were.
 * -ENOENT, -EACCES: a file; -EINVAL: what is in one.
 */
int tls_keys_load(const struct tls_creds *c, const char *password,
                  struct tls_keys **kp, struct error **errp);

/* A server's, of the file @path with lines USER:KEY. */
int tls_keys_load_psk(const char *path, struct tls_keys **kp,
                      struct error **errp);

struct tls_keys *tls_keys_ref(struct tls_keys *k);
void tls_keys_unref(struct tls_keys *k); /* NULL is fine */

/* Do they tell the server who a client is? */
bool tls_keys_identify(const struct tls_keys *k);

/* --- Sessions. --- */

/* One over the connected @fd, for the end that @k are for; a client wants the
 * server's certificate to be for @host (NULL: none will do).  NULL: no memory.
 * @fd stays the caller's. */
struct tls *tls_new(struct tls_keys *k, int fd, const char *host);
void tls_free(struct tls *t); /* NULL is fine */

/* Go on with the handshake, without waiting.  -EAGAIN: when the socket can be
 * read, or written if tls_unsent().  Other errors are its end; the other side
 * was told. */
int tls_handshake(struct tls *t, struct error **errp);

/* After the handshake: the client's distinguished name or user name; NULL: it
 * has none.  Lives as long as @t. */
const char *tls_identity(const struct tls *t);

/* As transport_receive.  The end of the stream and of the socket are one. */
ssize_t tls_receive(struct tls *t, const struct iovec *iov, int cnt, bool wait);

/* As transport_send.  What is taken may not be out yet, see tls_unsent(). */
ssize_t tls_send(struct tls *t, const struct iovec *iov, int cnt);

/* Is there something that tls_send(), with nothing new, has to send? */
bool tls_unsent(const struct tls *t);

/* Tell the other side that it is over, without waiting; with @denied, that it
 * is not wanted. */
void tls_end(struct tls *t, bool denied);

/* Give up buffers that are empty.  The receiving thread, when nobody sends. */
void tls_trim(struct tls *t);

#endif /* NBDELTA_SERVER_NET_TLS_H */
