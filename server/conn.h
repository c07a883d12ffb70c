/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CONN_H
#define NBDELTA_SERVER_CONN_H

/*
 * One NBD connection
 * ==================
 *
 *      socket -> in buffer -> parse -> answer at once -> batch -> socket
 *                                |                                  ^
 *                                +-- would block --> pool thread ---+
 *
 * The connection's own thread reads, parses and serves what is in memory; it
 * sends its replies in batches.  Everything else goes to the pool, whose
 * threads send their replies themselves, under send_lock.
 */
#include <sys/uio.h>

#include "export.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "pool.h"

struct bitmap;
struct server;

/* Requests that are small enough to be served by the connection's thread. */
#define CONN_INLINE_MAX (64U << 10)
#define CONN_IN_SIZE    (CONN_INLINE_MAX + 4096)
#define CONN_BATCH_SIZE (256U << 10)

/* Requests in the hands of the pool: at most so many, of so many bytes. */
#define CONN_INFLIGHT_MAX       16
#define CONN_INFLIGHT_BYTES_MAX (UINT64_C(64) << 20)

#define CONN_CONTEXTS_MAX 64

enum context_kind { CONTEXT_ALLOCATION, CONTEXT_DEPTH, CONTEXT_BITMAP };

struct context {
    enum context_kind kind;
    uint32_t id;
    struct bitmap *bitmap; /* a reference, or NULL */
};

struct request {
    struct work work;
    struct conn *conn;
    unsigned char cookie[8];
    uint16_t flags;
    uint16_t type;
    uint64_t offset;
    uint32_t length;
    unsigned char *payload; /* of a write; malloc()ed */
};

struct conn {
    /* Set at creation. */
    struct server *server;
    struct exports *exports;
    struct pool *pool;
    int fd;

    /* The server's lock. */
    struct list in_server;

    /* The connection's own thread. */
    unsigned char *in; /* CONN_IN_SIZE bytes, [in_start, in_end) unread */
    size_t in_start;
    size_t in_end;
    uint64_t deadline_ns; /* of the handshake; 0: none */
    unsigned char *batch; /* CONN_BATCH_SIZE, only while it is filled */
    size_t batch_len;

    /* Set by the handshake, then constant. */
    struct export *export; /* a reference */
    bool no_zeroes;
    bool structured;
    char *context_export; /* for which SET_META_CONTEXT was */
    struct context contexts[CONN_CONTEXTS_MAX];
    unsigned context_count;

    mutex_t send_lock;

    mutex_t lock;
    cond_t finished; /* a request has left the pool */

    /* Guarded by lock. */
    unsigned inflight;
    uint64_t inflight_bytes;

    /* Atomic. */
    _Atomic bool broken; /* sending has failed: answer no more */
};

/* --- conn.c --- */

/* Serve @fd, which then belongs to the connection, until it ends. */
struct conn *conn_new(struct server *server, struct exports *exports,
                      struct pool *pool, int fd);
void conn_run(struct conn *c);
void conn_free(struct conn *c);

/* Have at least @bytes (<= CONN_IN_SIZE) unread bytes in the buffer: 1, or 0
 * at the end of the stream, on errors and past the deadline. */
int conn_fill(struct conn *c, size_t bytes);
static inline unsigned char *conn_unread(const struct conn *c)
{
    return c->in + c->in_start;
}
static inline size_t conn_buffered(const struct conn *c)
{
    return c->in_end - c->in_start;
}
/* Read @bytes to @to, or skip them when it is NULL: 1 or 0. */
int conn_read(struct conn *c, void *to, uint64_t bytes);

/* Send all of it under send_lock; 0, or -EPIPE and the connection is broken.
 * @pooled: by a thread of the pool. */
int conn_send(struct conn *c, const struct iovec *iov, int cnt, bool pooled);

/* Room for @bytes (<= CONN_BATCH_SIZE) at the end of the batch, which is sent
 * before if need be.  NULL: no memory, or broken.  conn_batch_commit keeps
 * what was written there. */
unsigned char *conn_batch_room(struct conn *c, size_t bytes);
void conn_batch_commit(struct conn *c, size_t bytes);
void conn_batch_send(struct conn *c);

/* --- conn-handshake.c --- */

/* 1: transmission shall begin; 0: the connection is over. */
int conn_handshake(struct conn *c);
void conn_drop_contexts(struct conn *c);

/* --- conn-request.c --- */

/* Handle the next request: 1, or 0 when the connection is over. */
int conn_request(struct conn *c);

/* --- conn-reply.c --- */

/* A complete reply without data: success (0) or -errno. */
void reply_simple(struct request *rq, int r, bool pooled);
/* The number on the wire for -errno. */
uint32_t reply_errno(int r);
/* The header of a chunk, or of a simple reply, into @to; the length of it. */
size_t reply_put_chunk(unsigned char *to, const struct request *rq,
                       uint16_t flags, uint16_t type, uint32_t length);
size_t reply_put_simple(unsigned char *to, const struct request *rq, int r);

/* --- conn-status.c --- */
void conn_block_status(struct request *rq);

#endif /* NBDELTA_SERVER_CONN_H */
