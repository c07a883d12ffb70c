/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NBD_CONN_H
#define NBDELTA_SERVER_NBD_CONN_H

/*
 * A connection
 * ============
 *
 *              +-------------------- its own thread ----------------------+
 *   socket --> | input buffer --> parse --> what is in memory, at once    |
 *              |                    |             |                       |
 *              +--------------------|-------------|-----------------------+
 *                     may block     v             v one batch
 *                                 pool --------> out (segments) --> socket
 *
 * The thread takes all requests that one recv brought, serves what has its
 * data in memory (REQ_NOWAIT) straight into the batch, and sends that with
 * one sendmsg.  What has to wait for storage, and is simple, goes to the kernel
 * (io_uring); the thread replies when it has ended.  The rest goes to the
 * worker pool.
 *
 * Nobody except the connection's own thread waits for its client.  A thread
 * that has a reply appends it to `out` and, unless another thread is sending,
 * sends what the socket takes (MSG_DONTWAIT).  The connection's thread polls,
 * and sends the rest.  So a client that does not read holds up nothing but its
 * own thread: no worker, and no shutdown.
 *
 * Back-pressure is not reading: when too many bytes wait to be sent, or too
 * many requests to be done, the thread stops parsing until there are fewer.
 *
 * Order at the end: no more requests begin; the requests in the pool finish;
 * their replies go out, for a bounded time; the socket is shut down.  So a
 * client that sees the end knows that none of its data is still to be written.
 *
 * conn.c            life, receiving, waiting
 * conn-handshake.c  options
 * conn-context.c    the options about metadata contexts
 * conn-tls.c        STARTTLS, and which exports a client may open
 * conn-request.c    requests: parse, check, serve at once or hand over
 * conn-flight.c     requests in flight: the kernel has them
 * conn-spin.c       waiting for a client alone
 * conn-work.c       requests in a worker: all that may block
 * conn-read.c       reads;  conn-status.c  block status: either in both threads
 * conn-reply.c      segments, replies, sending
 */
#include <pthread.h>
#include <stdatomic.h>

#include "nbd/export.h"
#include "nbd/pool.h"
#include "nbd/proto.h"
#include "nbd/room.h"
#include "nbd/server.h"
#include "nbd/spin.h"
#include "nbdelta/flights.h"
#include "nbdelta/thread.h"
#include "nbdelta/types.h"
#include "net/pages.h"
#include "net/peer.h"
#include "net/tls-policy.h"
#include "net/transport.h"

struct server;

#define INPUT_SIZE ((size_t)64 << 10)

/* Bytes.  Reads and writes up to INLINE_MAX are done in the connection's thread
 * when they need not wait.  Longer reads that need not wait are done there,
 * too, in pieces of PIECE_SIZE. */
#define INLINE_MAX (UINT32_C(64) << 10)
#define PIECE_SIZE (UINT32_C(256) << 10)

/* A write's payload of up to so many bytes is waited for in the input buffer.
 */
#define GATHER_MAX (UINT32_C(16) << 10)

/* Parsing stops while more than OUT_HIGH bytes wait to be sent, while requests
 * in the pool and their replies hold more than HELD_MAX bytes, and while there
 * are REQUESTS_MAX requests. */
#define OUT_HIGH     ((size_t)2 << 20)
#define HELD_MAX     ((size_t)32 << 20)
#define REQUESTS_MAX 256

/* Requests of one connection that are in the hands of the pool at once. */
#define WORKERS_MAX 16

/* How long the end of a connection waits for its client to take replies: when
 * the client has ended it, and when it was told to stop. */
#define LINGER_MS 5000
#define STOP_MS   2000

/* --- Segments: buffers of three sizes, recycled (conn-reply.c). --- */

enum segment_class { SEGMENT_SMALL, SEGMENT_MEDIUM, SEGMENT_LARGE };
#define SEGMENT_CLASSES 3

/* Payload starts on a page, so that direct I/O needs no copy; headers are put
 * right before it. */
#define SEGMENT_PAYLOAD 4096U

struct segment {
    struct list link;
    enum segment_class class;
    uint32_t size; /* of the whole buffer, this struct included */
    uint32_t head; /* the bytes in use, from the address of this struct */
    uint32_t tail;
};

static inline char *segment_at(struct segment *s, uint32_t at)
{
    return (char *)s + at;
}

/* --- Requests. --- */

struct request {
    struct work work;
    struct list link; /* pending or free */
    struct conn *conn;
    uint64_t cookie;
    uint64_t origin; /* the offset, as the client sent it */
    uint64_t offset; /* of the part that is left to be done */
    uint64_t length;
    uint64_t contexts; /* of block status: bits, by index in conn.contexts */
    uint16_t type;
    uint16_t flags;
    struct list payload; /* segments of a write */
};

enum context_kind { CONTEXT_ALLOCATION, CONTEXT_DEPTH, CONTEXT_BITMAP };

struct context {
    uint32_t id;
    enum context_kind kind;
    struct bitmap *bitmap; /* with a reference */
    bool own; /* not named in the export: offered while the disk has it */
};
#define CONTEXTS_MAX 64 /* bits in request.contexts */

struct conn {
    /* Set at creation. */
    struct server *server; /* with a reference, which its maker gives up */
    struct peer peer;
    struct exports *exports;
    struct pool *pool;
    struct tls_policy *policy; /* with a reference, or NULL */
    struct transport io;
    int wake; /* a kick */

    /* Guarded by the server's lock. */
    pthread_t thread;
    struct list in_server;
    bool serving;     /* is in transmission */
    const void *disk; /* its node, only to be compared; while serving */
    bool quiet;       /* has executed its last request */

    /* Set by the handshake. */
    struct export *export;
    struct {
        char *name;  /* of the last view that the client asked for, or NULL */
        uint64_t of; /* serial of the export that it shows; 0: no view */
        uint64_t serial;
    } view;
    uint64_t size;
    bool writable; /* for this client */
    bool fixed;    /* fixed newstyle: there are options */
    bool structured;
    bool extended; /* and structured */
    bool no_zeroes;
    struct context *contexts;
    unsigned context_count;
    uint64_t contexts_of; /* serial of their export; 0: there are none */

    /* Its own thread's. */
    pthread_t self; /* for others to compare with */
    char *input;    /* INPUT_SIZE, or NULL while idle */
    size_t input_at;
    size_t input_end;
    struct segment *batch;   /* replies of requests served at once */
    size_t unanswered;       /* bytes of payloads that came since it was sent */
    struct flights *flights; /* or NULL, while idle or where there are none */
    unsigned refusals;       /* in a row, of requests that might have flown */
    bool alone;              /* nothing is in the pool, nothing to be sent */
    bool readable;           /* as far as its last poll has seen */
    bool hung_up;            /* its client is gone, and sees no reply */
    uint64_t deadline;       /* of the handshake; 0: it is over */
    unsigned options;        /* that the client has sent, and that count */
    uint32_t skipped;        /* bytes of options too long to be read */
    struct spin spin;
    bool has_slept;    /* since the last spin */
    long switches;     /* of its thread, when it looked last */
    uint64_t informed; /* serial of the export of the INFO just before */

    /* Guarded by lock. */
    mutex_t lock;
    struct list out; /* segments to be sent, in order */
    size_t out_bytes;
    bool sending;       /* a thread is sending */
    bool stalled;       /* the socket took no more: its own thread polls */
    bool broken;        /* nothing can be sent any more */
    unsigned executing; /* requests handed over, or in flight */
    unsigned working;   /* of these, requests in the hands of the pool */
    size_t held;        /* bytes of these */
    size_t intake;      /* bytes that have come of an incomplete payload */
    size_t granted;     /* room that was given, and is not in these yet */
    size_t moved;       /* bytes sent since the room was told */
    bool wants_room;    /* its own thread waits for room */
    struct room_user room;
    struct list pending; /* requests handed over, for the pool later */
    bool throttled;      /* its own thread waits for less work */
    struct list free_requests;
    struct list free_segments[SEGMENT_CLASSES];
    unsigned free_count[SEGMENT_CLASSES];

    _Atomic bool resting;  /* its own thread waits for requests */
    _Atomic bool leaving;  /* its client has said that no more come */
    _Atomic bool stopping; /* no more requests */
    _Atomic bool finished; /* the thread is about to end */
};

/* Bytes in the input buffer that have not been looked at. */
static inline size_t input_left(const struct conn *c)
{
    return c->input_end - c->input_at;
}

/* --- conn.c --- */

/* A connection over @fd, which is connected, and which it takes.  @p is what
 * the server asks of its clients.  NULL: no memory; @fd is closed then. */
struct conn *conn_new(struct server *s, struct exports *exports,
                      struct pool *pool, struct tls_policy *p, int fd);
void *conn_thread(void *arg);
void conn_free(struct conn *c); /* after the thread has ended */

/* Ask the connection to end.  Any thread. */
void conn_stop(struct conn *c);

/* Is the client still there?  Any thread. */
enum presence conn_presence(const struct conn *c);

/* Wake its thread out of a poll.  Any thread. */
void conn_kick(struct conn *c);

/* Wait until input can be read (with @input), output has gone out, or a kick
 * has come; at most @ms (-1: for ever).  False: the time is over. */
bool conn_wait(struct conn *c, bool input, int ms);

/* The time that the handshake may take begins now. */
void conn_renew_deadline(struct conn *c);

/* Milliseconds until the deadline; -1: there is none. */
int conn_time_left(const struct conn *c);

/* Receive at least a byte into @iov.  0: no more comes; -EAGAIN: nothing has
 * come for a second, and the connection is alone; or another -errno. */
ssize_t conn_receive(struct conn *c, struct iovec *iov, int cnt);

/* Send all that is queued, and the batch.  The connection's own thread. */
void conn_flush(struct conn *c) EXCLUDES(c->lock);

/* True: begin no more requests.  Requests of a client that is gone are dropped,
 * because it may be back on another connection, with newer writes. */
bool conn_is_ending(struct conn *c);

/* Wait until the connection may hold @need more bytes and one more request, or
 * is ending. */
void conn_throttle(struct conn *c, size_t need) EXCLUDES(c->lock);

/* Tell the room of all connections what this one holds; @moved: room_hold. */
void conn_account_locked(struct conn *c, bool moved) REQUIRES(c->lock);

/* Wait until the connection may hold @bytes more, for long perhaps.  False: it
 * is ending.  The room is kept for it until it holds the bytes, asks for other
 * room, or gives this back. */
bool conn_take_room(struct conn *c, size_t bytes) EXCLUDES(c->lock);
void conn_give_back_room(struct conn *c) EXCLUDES(c->lock);

/* --- conn-spin.c --- */

/* As conn_receive(), for a connection that is alone; and -EINTR. */
ssize_t conn_receive_alone(struct conn *c, struct iovec *iov, int cnt);

/* --- conn-handshake.c --- */

/* 0: go on to transmission; else the connection ends. */
int conn_handshake(struct conn *c);

/* An option, and the part of its data that has not been taken yet. */
struct option {
    uint32_t type;
    const char *data;
    size_t len;
};

/* Take a number, or a length and a string of that length, from the front of
 * @o.  False: @o is too short, the string is too long, or has a NUL in it.
 * @s has room for NBD_STRING_MAX + 1 bytes. */
bool option_u32(struct option *o, uint32_t *v);
bool option_text(struct option *o, char *s);

/* Reply to @option; handshake_error() with a sentence.  Negative: the
 * connection ends. */
int handshake_reply(struct conn *c, uint32_t option, uint32_t type,
                    const void *data, size_t len);
int handshake_error(struct conn *c, uint32_t option, uint32_t type,
                    const char *text);
/* The client has asked about an export that it may open.  It could as well
 * have opened it and stayed for ever.  So its question does not count, and its
 * time begins anew: a listing may be of any length, while a client that gets
 * nothing, or does nothing, is gone soon. */
void handshake_welcome(struct conn *c);
/* NBD_REP_ERR_UNKNOWN, with the beginning of @name. */
int handshake_unknown(struct conn *c, uint32_t option, const char *name);

/* --- conn-tls.c --- */

/* Serve STARTTLS.  All that was negotiated before is forgotten. */
int conn_option_starttls(struct conn *c, const struct option *o);

/* Is @option refused until TLS has been started? */
bool conn_needs_tls(const struct conn *c, uint32_t option);

/* Do the rules of @e let this client in?  May it write? */
bool conn_may_open(const struct conn *c, const struct export *e);
bool conn_may_write(const struct conn *c, const struct export *e);

/* As exports_find(), among the exports that the client may open.  A view, which
 * is made anew for each option, keeps its serial from option to option.
 * *needs_tls (or NULL): there is such an export, and the client may be allowed
 * to open it after STARTTLS. */
struct export *conn_find_export(struct conn *c, const char *name,
                                bool *needs_tls);

/* --- conn-context.c --- */

/* Serve LIST_META_CONTEXT and SET_META_CONTEXT. */
int conn_option_contexts(struct conn *c, struct option *o);
void conn_forget_contexts(struct conn *c);

/* --- conn-request.c --- */

/* Serve all complete requests in the input buffer.  False: the connection
 * ends. */
bool conn_requests(struct conn *c);

/* --- conn-flight.c: in the connection's own thread. --- */

/* Begin a request that would have to wait.  False: it cannot be, and is for the
 * pool. */
bool conn_fly(struct conn *c, struct request *r) EXCLUDES(c->lock);

/* Queue the replies of all that has ended. */
void conn_land(struct conn *c) EXCLUDES(c->lock);

/* Wait until nothing is in flight: before anything that may block. */
void conn_land_all(struct conn *c) EXCLUDES(c->lock);

/* Hand over to the kernel what was begun.  How long to wait at the most before
 * trying again, of @ms. */
int conn_take_off(struct conn *c, int ms);

/* Readable when conn_land() has something to do; or -1. */
int conn_flights_fd(const struct conn *c);
int conn_flights_kick_fd(const struct conn *c);

/* --- conn-work.c --- */

/* A request object like @like; NULL: no memory. */
struct request *request_new(struct conn *c, const struct request *like)
    EXCLUDES(c->lock);
void request_free(struct request *r); /* one that was not submitted */

/* Bytes that @rq holds while it is executing. */
size_t request_bytes(const struct request *rq);

/* Hand @r over to the pool. */
void request_submit(struct request *r);

/* The connection has @r in flight; or it has replied to it, and frees it. */
void request_count(struct request *r);
void request_uncount(struct request *r);

/* The log's words for the command of @rq. */
const char *request_name(const struct request *rq);

/* As conn_reply(), for the result @r of a blk_*() function. */
void conn_reply_result(struct conn *c, const struct request *rq, int r,
                       bool batch);

/* --- conn-read.c --- */

/* Read and reply.  With @nowait, which is for the connection's thread, -EAGAIN:
 * *rq is now the rest of the request, which has to go to the pool.  Else 0. */
int conn_read(struct conn *c, struct request *rq, bool nowait);

/* How many bytes of replies wait at once while @rq is read with @nowait. */
size_t conn_read_room(const struct conn *c, const struct request *rq);

/* Put the header of a reply with the first @length bytes of @rq at @p; its
 * size. */
void put_read_head(const struct conn *c, char *p, const struct request *rq,
                   uint32_t length, bool last);
size_t read_head_size(const struct conn *c);

/* --- conn-status.c --- */

/* Serve block status.  With @nowait, which is for the connection's thread,
 * -EAGAIN: it would have to wait, and has to go to the pool.  Else 0. */
int conn_status(struct conn *c, const struct request *rq, bool nowait);

/* --- conn-reply.c --- */

struct segment *segment_new(struct conn *c, enum segment_class class)
    EXCLUDES(c->lock);
void segment_free(struct conn *c, struct segment *s) EXCLUDES(c->lock);
void segments_free(struct conn *c, struct list *segments) EXCLUDES(c->lock);

/* Free the buffers that are kept for reuse, and the batch.  No other thread may
 * be at work. */
void conn_trim(struct conn *c) EXCLUDES(c->lock);

/* Put a header at @p: of a simple reply, or of a chunk, which is structured or
 * extended.  put_chunk() returns the end of the header, @p + chunk_size(). */
void put_simple(char *p, uint32_t error, uint64_t cookie);
char *put_chunk(const struct conn *c, char *p, const struct request *rq,
                uint16_t flags, uint16_t type, uint32_t length);

static inline size_t chunk_size(const struct conn *c)
{
    return c->extended ? NBD_EXTENDED_CHUNK_SIZE : NBD_CHUNK_SIZE;
}

/* Room for @n bytes in the batch; batch_use() takes it.  NULL: no memory.  The
 * connection's own thread. */
char *batch_room(struct conn *c, size_t n);
void batch_use(struct conn *c, size_t n);

/* Reply.  Without @batch, from any thread, and the reply is sent; with @batch,
 * from the connection's own thread, into the batch.  Without memory the
 * connection is broken. */
void conn_reply(struct conn *c, const struct request *rq, uint32_t error,
                const char *text, bool batch);

/* Append segments to the bytes that are to be sent. */
void conn_queue(struct conn *c, struct segment *s) EXCLUDES(c->lock);
void conn_queue_list(struct conn *c, struct list *segments) EXCLUDES(c->lock);

/* Queue the batch. */
void conn_queue_batch(struct conn *c) EXCLUDES(c->lock);

/* Send what the socket takes. */
void conn_push(struct conn *c) EXCLUDES(c->lock);

/* Nothing can be sent any more: drop all that is queued. */
void conn_break(struct conn *c) EXCLUDES(c->lock);

#endif /* NBDELTA_SERVER_NBD_CONN_H */
