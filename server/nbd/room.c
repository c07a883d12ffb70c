/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory for what clients send and are sent, shared out: see room.h. */
#include "nbd/room.h"

#include <stdlib.h>

#include "nbdelta/thread.h"

#define STALL_NS (ROOM_STALL_S * UINT64_C(1000000000))

struct room {
    size_t limit;

    /* Guarded by lock. */
    mutex_t lock;
    struct list users;        /* users that hold more than ROOM_FREE */
    struct room_user *beyond; /* the user beyond the limit; or NULL */
};

struct room *room_new(size_t limit)
{
    struct room *r = calloc(1, sizeof(*r));

    if (r) {
        r->limit = limit;
        mutex_init(&r->lock, LOCK_ROOM, NULL);
        list_init(&r->users);
    }
    return r;
}

void room_free(struct room *r)
{
    if (r) {
        mutex_destroy(&r->lock);
        free(r);
    }
}

static void enlist(struct room *r, struct room_user *u, uint64_t now)
    REQUIRES(r->lock)
{
    if (!u->listed) {
        u->listed = true;
        u->on_client = false;
        u->moved_ns = now;
        list_append(&r->users, &u->link);
    }
}

static void delist(struct room *r, struct room_user *u) REQUIRES(r->lock)
{
    u->listed = false;
    list_remove(&u->link);
    if (r->beyond == u) {
        r->beyond = NULL;
    }
}

void room_hold(struct room *r, struct room_user *u, size_t bytes,
               bool on_client, bool moved, uint64_t now)
{
    if (bytes <= ROOM_FREE && !u->listed) {
        return;
    }
    mutex_lock(&r->lock);
    if (bytes <= ROOM_FREE) {
        delist(r, u);
    } else {
        enlist(r, u, now);
        if (moved || !on_client || !u->on_client) {
            u->moved_ns = now;
        }
        u->bytes = bytes;
        u->on_client = on_client;
    }
    mutex_unlock(&r->lock);
}

static size_t held_by_all(const struct room *r) REQUIRES(r->lock)
{
    size_t sum = 0;

    list_for_each (l, &r->users) {
        sum += list_entry(l, struct room_user, link)->bytes;
    }
    return sum;
}

static bool has_stalled(const struct room_user *u, uint64_t now)
{
    return now >= u->moved_ns + STALL_NS;
}

static void cut_stalled(struct room *r, uint64_t now) REQUIRES(r->lock)
{
    list_for_each (l, &r->users) {
        struct room_user *u = list_entry(l, struct room_user, link);

        if (u->on_client && !u->is_cut && has_stalled(u, now)) {
            u->is_cut = true;
            u->cut(u);
        }
    }
}

bool room_ask(struct room *r, struct room_user *u, size_t bytes, size_t more,
              uint64_t now)
{
    if (more == 0 || bytes + more <= ROOM_FREE) {
        return true;
    }
    mutex_lock(&r->lock);
    bool may = held_by_all(r) + more <= r->limit;
    if (!may && (!r->beyond || r->beyond == u || has_stalled(r->beyond, now))) {
        r->beyond = u;
        may = true;
    }
    if (may) {
        enlist(r, u, now);
        u->bytes = bytes + more; /* nobody else gets it from now on */
    } else {
        cut_stalled(r, now);
    }
    mutex_unlock(&r->lock);
    return may;
}
