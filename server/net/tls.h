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
 * gnutls sees only the buffers, so it never waits and never stops in the middle
 * of a record.  A lock is held while it computes: one thread receives, and one
 * thread at a time sends (transport.h).
 *
 * tls-keys.c     credentials as files -> objects of gnutls
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

/* --- tls-keys.c: loaded credentials, shared by sessions --- */

/*
 * Load the files of @c.  @password opens the private key of a certificate;
 * NULL: it has none.  A new session looks whether the files have changed since,
 * and loads them again; when the new files cannot be used, the loaded ones stay
 * in use.  -ENOENT, -EACCES: a file cannot be read; -EINVAL: its content is
 * wrong.
 */
int tls_keys_load(const struct tls_creds *c, const char *password,
                  struct tls_keys **kp, struct error **errp);

/* Load the keys of a server from the file @path with lines USER:KEY. */
int tls_keys_load_psk(const char *path, struct tls_keys **kp,
                      struct error **errp);

struct tls_keys *tls_keys_ref(struct tls_keys *k);
void tls_keys_unref(struct tls_keys *k); /* NULL is fine */

/* Do these keys tell the server who a client is? */
bool tls_keys_identify(const struct tls_keys *k);

/* --- tls-session.c: sessions --- */

/* A session over the connected @fd; @k say whether this is the server's or the
 * client's end.  A client wants the server's certificate to be for @host (NULL:
 * no certificate will do).  @fd stays the caller's.  NULL: no memory. */
struct tls *tls_new(struct tls_keys *k, int fd, const char *host);
void tls_free(struct tls *t); /* NULL is fine */

/* Go on with the handshake, without waiting.  -EAGAIN: call it again when the
 * socket can be read or, if tls_unsent(), written.  After other errors the
 * session is over, and the other side was told. */
int tls_handshake(struct tls *t, struct error **errp);

/* After the handshake: the client's distinguished name or user name; NULL: it
 * has none.  The string lives as long as @t. */
const char *tls_identity(const struct tls *t);

/* As transport_receive().  The end of the TLS stream and the end of the socket
 * are told alike. */
ssize_t tls_receive(struct tls *t, const struct iovec *iov, int cnt, bool wait);

/* As transport_send().  Bytes that were taken may not be sent yet:
 * tls_unsent(). */
ssize_t tls_send(struct tls *t, const struct iovec *iov, int cnt);

/* Have bytes been taken and not sent?  Then call tls_send() again, if need be
 * with nothing new. */
bool tls_unsent(const struct tls *t);

/* Tell the other side that the session is over or, with @denied, that it may
 * not come.  Does not wait. */
void tls_end(struct tls *t, bool denied);

/* Free buffers that are empty.  The receiving thread, when nobody sends. */
void tls_trim(struct tls *t);

/* Of a connection on which the server has said nothing: does it wait for TLS?
 * The connection is of no use afterwards.  Blocks for @limit_ms at most. */
bool tls_is_wanted(int fd, int limit_ms);

#endif /* NBDELTA_SERVER_NET_TLS_H */
