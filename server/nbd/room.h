/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NBD_ROOM_H
#define NBDELTA_SERVER_NBD_ROOM_H

/*
 * Room in memory for what clients send and are sent, over all connections
 * =======================================================================
 *
 * Each may hold ROOM_FREE, come what may.  Who wants more asks for it.  When
 * all of it is taken, one of those who ask goes on beyond the limit, so there
 * is always one who gets further; the others ask again, and leave what their
 * clients send in the sockets meanwhile.  One that does not get further for
 * ROOM_STALL_S, because its storage hangs, leaves the turn to another one.  Who
 * holds more than ROOM_FREE, and whose client neither sends nor takes any of it
 * for ROOM_STALL_S, is cut off as soon as another one asks in vain.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbdelta/list.h"

struct room;

#define ROOM_FREE    ((size_t)1 << 20)
#define ROOM_MAX     ((size_t)512 << 20)
#define ROOM_STALL_S 10

/* One connection's.  Zeroed at first; calls for one come one at a time. */
struct room_user {
    void (*cut)(struct room_user *u); /* called with the room's lock: it waits
                                         for nothing, and takes no lock that a
                                         caller of room_*() may hold */
    bool listed;                      /* it holds more, or goes beyond */

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
