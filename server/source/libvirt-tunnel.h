/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_LIBVIRT_TUNNEL_H
#define NBDELTA_SERVER_SOURCE_LIBVIRT_TUNNEL_H

/*
 * A Unix socket of another host, carried by the user's own ssh
 * ============================================================
 *
 *   nbd node --> socket in a private directory == ssh -L ==> socket of QEMU
 *
 * Host, port, user, key, known hosts and the program come from libvirt's
 * connection URI, as for libvirt's own ssh; everything else from the user's
 * configuration of ssh.  Nothing is stored.
 *
 * A thread starts ssh, and starts it again when it has ended before its time.
 * It ends with the tunnel, and also when the process is killed.
 */
struct error;
struct libvirt_tunnel;

/*
 * Carry @local, which nobody has made yet, to @remote at the host of @uri
 * ("qemu+ssh://USER@HOST:PORT/system?keyfile=...").  Returns when @local is
 * there.  -EINVAL: ssh cannot be used with this URI; -ECONNREFUSED: ssh has
 * ended, after it said why on standard error; -ETIMEDOUT: not within
 * @limit_ms; -ECANCELED: @stop_fd (-1: none) became readable.
 */
int libvirt_tunnel_open(const char *uri, const char *local, const char *remote,
                        unsigned limit_ms, int stop_fd,
                        struct libvirt_tunnel **tp, struct error **errp);

/* End ssh, and wait for its end.  NULL is fine. */
void libvirt_tunnel_close(struct libvirt_tunnel *t);

#endif /* NBDELTA_SERVER_SOURCE_LIBVIRT_TUNNEL_H */
