/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_PEER_H
#define NBDELTA_SERVER_NET_PEER_H

/* Where a client comes from: a host or, over a Unix socket, a user. */
#include <stdbool.h>
#include <stddef.h>

struct peer {
    int family;           /* 0: unknown */
    unsigned char id[16]; /* address, CID or user id; zeroes behind it */
};

/* The peer of the connected socket @fd. */
void peer_of(int fd, struct peer *p);

/* "192.0.2.7", "user 1000", "CID 3" or "unknown", in @text of @size bytes; at
 * least PEER_TEXT of them hold any. */
#define PEER_TEXT 64
const char *peer_text(const struct peer *p, char *text, size_t size);

/* Two unknown peers are equal. */
bool peer_equal(const struct peer *a, const struct peer *b);

#endif /* NBDELTA_SERVER_NET_PEER_H */
