/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NBD_ROOM_H
#define NBDELTA_SERVER_NBD_ROOM_H

/*
 * Room in memory for what clients send and are sent, over all connections
 * =======================================================================
 *
 * Each connection may hold ROOM_FREE bytes, come what may.  A connection that
 * wants more asks for it.  When all room is taken, one of the connections that
 * ask goes on beyond the limit, so that there is always one that gets further.
 * The others ask again, and meanwhile leave the bytes that their clients send
 * in the sockets.  The connection beyond the limit leaves its turn to another
 * when it does not get further for ROOM_STALL_S seconds, because its storage
 * hangs.  A connection that holds more than ROOM_FREE, and whose client neither
 * sends nor takes any of it for ROOM_STALL_S, is cut off as soon as another
 * connection asks in vain.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbdelta/list.h"

struct room;

#define ROOM_FREE    ((size_t)1 << 20)
#define ROOM_MAX     ((size_t)512 << 20)
#define ROOM_STALL_S 10

/* A connection, as the room knows it.  Zeroed at first.  Calls for one user
 * come one at a time. */
struct room_user {
    void (*cut)(struct room_user *u); /* called with the room's lock: it waits
                                         for nothing, and takes no lock that a
                                         caller of room_*() may hold */
    bool listed;                      /* it holds more than ROOM_FREE */

    /* Guarded by the room's lock. */
    struct list link;
    size_t bytes;
    bool on_client; /* it waits for its client to send or take some of it */
    bool is_cut;
    uint64_t moved_ns;
};

/* NULL: no memory. */
struct room *room_new(size_t limit);
void room_free(struct room *r); /* NULL is fine; no users are left */

/* Tell what @u holds now, and whether it waits for its client; with @moved, the
 * client has sent or taken a good part. */
void room_hold(struct room *r, struct room_user *u, size_t bytes,
               bool on_client, bool moved, uint64_t now);

/* May @u, which holds @bytes, hold @more than that?  True: these count as held
 * until room_hold() tells otherwise.  False: ask again a moment later. */
bool room_ask(struct room *r, struct room_user *u, size_t bytes, size_t more,
              uint64_t now);

#endif /* NBDELTA_SERVER_NBD_ROOM_H */
