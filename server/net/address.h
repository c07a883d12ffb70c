/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_ADDRESS_H
#define NBDELTA_SERVER_NET_ADDRESS_H

/*
 * Socket addresses, which QMP calls SocketAddress:
 *
 *   {"type": "unix", "path": ...}
 *   {"type": "inet", "host": ..., "port": ..., "to", "ipv4", "ipv6"}
 *   {"type": "vsock", "cid": ..., "port": ...}
 *   {"type": "fd", "str": number of an inherited descriptor}
 */
#include "args.h"
#include "net/unix-socket.h"

struct error;

/* Lists of arguments.  The members of an address stand beside its type, or in
 * an object "data" (SocketAddressLegacy). */
extern const struct qmp_arg address_args[];
extern const struct qmp_arg address_legacy_args[];

/* The first form of a checked legacy address; a new reference.  NULL: no
 * memory. */
json_t *address_from_legacy(const json_t *legacy);

#define LISTENERS_MAX 16

/* Sockets that listen.  One address may be several sockets, because a host name
 * may have several addresses. */
struct listeners {
    struct unix_socket at[LISTENERS_MAX];
    unsigned count;
};

/* Add the sockets that listen on the checked @addr to @l, all or none.  The
 * file of a Unix socket has @access, and NULL is for the user alone.  Several
 * addresses of one host have one port, also when that is 0: any free one. */
int address_listen(const json_t *addr, const struct socket_access *access,
                   struct listeners *l, struct error **errp);
void listeners_close(struct listeners *l); /* all, and remove their files */

/* Connect to the checked @addr; *fdp is close-on-exec and blocking.  Waits for
 * the other side to accept. */
int address_connect(const json_t *addr, int *fdp, struct error **errp);

#endif /* NBDELTA_SERVER_NET_ADDRESS_H */
