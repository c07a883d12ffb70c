/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_ADDRESS_H
#define NBDELTA_SERVER_NET_ADDRESS_H

/*
 * Socket addresses, QMP's SocketAddress:
 *
 *   {"type": "unix", "path": ...}
 *   {"type": "inet", "host": ..., "port": ..., "to", "ipv4", "ipv6"}
 *   {"type": "vsock", "cid": ..., "port": ...}
 *   {"type": "fd", "str": number of an inherited descriptor}
 */
#include "args.h"
#include "net/unix-socket.h"

struct error;

/* Lists of arguments: with the members of an address beside its type, and in
 * an object "data" (SocketAddressLegacy). */
extern const struct qmp_arg address_args[];
extern const struct qmp_arg address_legacy_args[];

/* The first form of a checked legacy one; a new reference, NULL: no memory. */
json_t *address_from_legacy(const json_t *legacy);

#define LISTENERS_MAX 16

/* One address may be several sockets: a host name has many addresses. */
struct listeners {
    struct unix_socket at[LISTENERS_MAX];
    unsigned count;
};

/* Add what listens on the checked @addr to @l, or nothing.  A Unix socket that
 * it makes has @mode. */
int address_listen(const json_t *addr, mode_t mode, struct listeners *l,
                   struct error **errp);
void listeners_close(struct listeners *l); /* all; their files go */

/* Connect to the checked @addr; *fdp is close-on-exec and blocking.  Waits
 * for the other side to accept. */
int address_connect(const json_t *addr, int *fdp, struct error **errp);

#endif /* NBDELTA_SERVER_NET_ADDRESS_H */
