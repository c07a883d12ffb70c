/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests in the connection's own thread: parse and check them, serve those
 * at once that need not wait, and hand the others over to the pool.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "log/log.h"
#include "nbd/conn.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"

/* --- Checks. --- */

static const struct command {
    uint16_t flags;    /* that the command may have */
    bool writes;       /* not for a read-only export */
    uint32_t past_end; /* the error for a range not inside the export */
} commands[] = {
    /* has_bad_payload() looks at PAYLOAD_LEN. */
    [NBD_CMD_READ] = {NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF, false, NBD_EINVAL},
    [NBD_CMD_WRITE] = {NBD_CMD_FLAG_FUA, true, NBD_ENOSPC},
    [NBD_CMD_FLUSH] = {NBD_CMD_FLAG_FUA, false, NBD_EINVAL},
    [NBD_CMD_TRIM] = {NBD_CMD_FLAG_FUA, true, NBD_EINVAL},
    [NBD_CMD_CACHE] = {NBD_CMD_FLAG_FUA, false, NBD_EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE |
                                  NBD_CMD_FLAG_FAST_ZERO,
                              true, NBD_ENOSPC},
    [NBD_CMD_BLOCK_STATUS] = {NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE, false,
                              NBD_EINVAL},
};

/* What one kind of command asks for: an error, with its reason in *why, or 0.
 */
static uint32_t check_kind(const struct conn *c, const struct request *rq,
                           const char **why)
{
    switch (rq->type) {
    case NBD_CMD_READ:
        if ((rq->flags & NBD_CMD_FLAG_DF) && !c->structured) {
            *why = "DF needs structured replies";
            return NBD_EINVAL;
        }
        if (rq->length > NBD_PAYLOAD_MAX) {
            *why = "more than 32 MiB in one read";
            return c->structured ? NBD_EOVERFLOW : NBD_EINVAL;
        }
        return 0;
    case NBD_CMD_FLUSH:
        if (rq->offset != 0 || rq->length != 0) {
            *why = "a flush has neither offset nor length";
            return NBD_EINVAL;
        }
        return 0;
    case NBD_CMD_BLOCK_STATUS:
        if (c->context_count == 0) {
            *why = "no metadata context was negotiated";
            return NBD_EINVAL;
        }
        if (rq->length == 0) {
            *why = "block status of no bytes";
            return NBD_EINVAL;
        }
        return 0;
    default:
        return 0;
    }
}

/*
 * How many bytes come behind the header of @rq, whatever else is wrong with it.
 *
 * With extended headers PAYLOAD_LEN says that the length is that of a payload.
 * A write has its payload without the flag, too.  QEMU's client has never set
 * it since it has extended headers (8.2 to 10.0, nbd_co_send_request in
 * block/nbd.c); QEMU's server takes such a write and only traces it
 * (nbd_co_receive_request in nbd/server.c).  nbdkit has no extended headers
 * (1.42), so it meets no such client.
 */
static uint64_t payload_length(const struct conn *c, const struct request *rq)
{
    bool has = rq->type == NBD_CMD_WRITE ||
               (c->extended && (rq->flags & NBD_CMD_FLAG_PAYLOAD_LEN));

    return has ? rq->length : 0;
}

/* Is PAYLOAD_LEN set where it has no place? */
static bool has_bad_payload(const struct conn *c, const struct request *rq)
{
    return (rq->flags & NBD_CMD_FLAG_PAYLOAD_LEN) &&
           !(c->extended &&
             (rq->type == NBD_CMD_WRITE || rq->type == NBD_CMD_BLOCK_STATUS));
}

static uint32_t check_request(const struct conn *c, const struct request *rq,
                              const char **why)
{
    if (rq->type >= ARRAY_SIZE(commands) || rq->type == NBD_CMD_DISC) {
        *why = "unknown command";
        return NBD_EINVAL;
    }
    const struct command *cmd = &commands[rq->type];
    if (cmd->writes && !c->writable) {
        *why = "the export is read-only";
        return NBD_EPERM;
    }
    if ((rq->flags & ~(cmd->flags | NBD_CMD_FLAG_PAYLOAD_LEN))) {
        *why = "a flag that this command does not have";
        return NBD_EINVAL;
    }
    if (has_bad_payload(c, rq)) {
        *why = c->extended ? "a payload that this command does not have"
                           : "a payload's length needs extended headers";
        return NBD_EINVAL;
    }
    if (!range_inside(rq->offset, rq->length, c->size)) {
        *why = "the range is not inside the export";
        return cmd->past_end;
    }
    return check_kind(c, rq, why);
}

/* --- Input. --- */

static size_t head_size(const struct conn *c)
{
    return c->extended ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE;
}

/* As conn_receive(), but wait also when conn_receive() gives up. */
static bool receive_payload(struct conn *c, struct iovec *iov, int cnt,
                            size_t *got)
{
    ssize_t n;

    while ((n = conn_receive(c, iov, cnt)) == -EAGAIN) {
        (void)conn_wait(c, true, -1);
    }
    *got = n > 0 ? (size_t)n : 0;
    return n > 0;
}

/* Drop @n bytes of a payload that nobody wants. */
static bool skip_payload(struct conn *c, uint64_t n)
{
    for (;;) {
        size_t part = min_u64(n, input_left(c));

        c->input_at += part;
        n -= part;
        if (n == 0) {
            return true;
        }
        struct iovec iov = {c->input, INPUT_SIZE};
        c->input_at = c->input_end = 0;
        conn_flush(c);
        if (!receive_payload(c, &iov, 1, &c->input_end)) {
            return false;
        }
    }
}

static struct segment *payload_segment(struct conn *c, size_t bytes)
{
    struct segment *s = segment_new(c, bytes <= INLINE_MAX ? SEGMENT_MEDIUM
                                                           : SEGMENT_LARGE);
    if (s) {
        s->head = s->tail = SEGMENT_PAYLOAD;
    }
    return s;
}

static void take_input(struct conn *c, struct segment *s, size_t want)
{
    size_t n = min_u64(want, input_left(c));

    memcpy(segment_at(s, s->tail), c->input + c->input_at, n);
    s->tail += (uint32_t)n;
    c->input_at += n;
}

/* How much of what is behind a payload is received with it.  It is the next
 * request's, and moved once more if that is large, too. */
#define BEHIND_MAX ((size_t)4 << 10)

/* Replies in the batch are sent before the thread waits for a payload, and
 * whenever so many bytes of payloads have come. */
#define REPLY_EVERY ((size_t)256 << 10)

/* Receive a part of a payload. */
static bool receive_part(struct conn *c, struct iovec *iov, int cnt,
                         size_t *got)
{
    ssize_t n = c->unanswered < REPLY_EVERY
                    ? transport_receive(&c->io, iov, cnt, false)
                    : -EAGAIN;

    if (n > 0) {
        *got = (size_t)n;
    } else {
        c->unanswered = 0;
        conn_flush(c);
        if (!receive_payload(c, iov, cnt, got)) {
            return false;
        }
    }
    c->unanswered += *got;
    return true;
}

/* Fill @s up to @want bytes.  With @more, receive the bytes behind them into
 * the input buffer. */
static bool fill_segment(struct conn *c, struct segment *s, size_t want,
                         bool more)
{
    take_input(c, s, want);
    while (s->tail - SEGMENT_PAYLOAD < want) {
        size_t left = want - (s->tail - SEGMENT_PAYLOAD);
        struct iovec iov[2] = {{segment_at(s, s->tail), left},
                               {c->input, BEHIND_MAX}};
        size_t n;

        c->input_at = c->input_end = 0;
        if (!receive_part(c, iov, more ? 2 : 1, &n)) {
            return false;
        }
        s->tail += (uint32_t)min_u64(n, left);
        c->input_end = n > left ? n - left : 0;
    }
    return true;
}

/* --- Writes. --- */

static bool try_write(struct conn *c, const struct request *rq,
                      const void *data)
{
    if (rq->length > INLINE_MAX || (rq->flags & NBD_CMD_FLAG_FUA)) {
        return false;
    }
    int r = blk_pwrite(c->export->blk, data, rq->length, rq->offset,
                       REQ_NOWAIT);
    if (r == -EAGAIN) {
        return false;
    }
    conn_reply_result(c, rq, r, true);
    return true;
}

/* Memory for @more bytes of a payload has been taken.  0: the payload is
 * complete, or given up. */
static void take_in(struct conn *c, size_t more)
{
    mutex_lock(&c->lock);
    c->intake = more > 0 ? c->intake + more : 0;
    c->granted = 0;
    conn_account_locked(c, true);
    mutex_unlock(&c->lock);
}

/* Receive the payload of a write straight into segments, and serve it. */
static bool receive_write(struct conn *c, const struct request *rq)
{
    struct request *r;

    conn_throttle(c, rq->length);
    r = conn_is_ending(c) ? NULL : request_new(c, rq);
    if (!r) {
        return false;
    }
    for (uint64_t left = rq->length; left > 0;) {
        size_t part = min_u64(left, PIECE_SIZE);
        struct segment *s = conn_take_room(c, part) ? payload_segment(c, part)
                                                    : NULL;

        if (!s) {
            goto fail;
        }
        list_append(&r->payload, &s->link);
        take_in(c, part);
        if (!fill_segment(c, s, part, part == left)) {
            goto fail;
        }
        left -= part;
    }
    struct segment *first = list_entry(r->payload.next, struct segment, link);
    if (try_write(c, rq, segment_at(first, first->head))) {
        request_free(r);
        take_in(c, 0);
    } else if (!conn_fly(c, r)) {
        request_submit(r);
    }
    return true;

fail:
    request_free(r);
    take_in(c, 0);
    return false;
}

/* After a request: go on, wait for more input, or end the connection. */
enum step { STEP_ON, STEP_WAIT, STEP_END };

static void log_refusal(const struct conn *c, const struct request *rq,
                        const char *why)
{
    struct export *e = c->export->of ? c->export->of : c->export;

    log_seldom(&e->refusals, TELL_WARNING,
               "export '%.200s': a client's %s at %" PRIu64 " (%" PRIu64
               " bytes) was refused: %s",
               e->name,
               rq->type < ARRAY_SIZE(commands) ? request_name(rq)
                                               : "unknown request",
               rq->offset, rq->length, why);
}

/* Answer without doing anything, and drop the payload. */
static enum step answer_at_once(struct conn *c, const struct request *rq,
                                uint64_t payload, uint32_t error,
                                const char *why)
{
    if (error) {
        log_refusal(c, rq, why);
    }
    if (!skip_payload(c, payload)) {
        return STEP_END;
    }
    conn_reply(c, rq, error, why, true);
    return STEP_ON;
}

static enum step write_request(struct conn *c, const struct request *rq,
                               uint64_t payload)
{
    const char *why = NULL;
    uint32_t error = check_request(c, rq, &why);

    if (error || payload == 0) {
        c->input_at += head_size(c);
        return answer_at_once(c, rq, payload, error, why);
    }
    size_t there = input_left(c) - head_size(c);
    if (there < rq->length && rq->length <= GATHER_MAX) {
        return STEP_WAIT;
    }
    c->input_at += head_size(c);
    if (there >= rq->length && try_write(c, rq, c->input + c->input_at)) {
        c->input_at += rq->length;
        return STEP_ON;
    }
    return receive_write(c, rq) ? STEP_ON : STEP_END;
}

/* --- Other requests. --- */

static enum step submit(struct conn *c, const struct request *rq)
{
    conn_throttle(c, request_bytes(rq));
    struct request *r = conn_take_room(c, request_bytes(rq)) &&
                                !conn_is_ending(c)
                            ? request_new(c, rq)
                            : NULL;
    if (!r) {
        return STEP_END;
    }
    if (!conn_fly(c, r)) {
        request_submit(r);
    }
    return STEP_ON;
}

/* A short read, straight into the batch.  -EAGAIN: the read would wait. */
static int read_into_batch(struct conn *c, const struct request *rq)
{
    size_t head = read_head_size(c);
    char *p = batch_room(c, head + rq->length);

    if (!p) {
        return -EAGAIN;
    }
    int r = blk_pread(c->export->blk, p + head, rq->length, rq->offset,
                      REQ_NOWAIT);
    if (r == -EAGAIN) {
        return r;
    }
    if (r < 0) {
        conn_reply_result(c, rq, r, true);
        return 0;
    }
    put_read_head(c, p, rq, (uint32_t)rq->length, true);
    batch_use(c, head + rq->length);
    return 0;
}

static enum step read_request(struct conn *c, struct request *rq)
{
    int r;

    if (rq->length <= INLINE_MAX) {
        r = read_into_batch(c, rq);
    } else {
        conn_throttle(c, rq->length);
        if (!conn_take_room(c, conn_read_room(c, rq)) || conn_is_ending(c)) {
            return STEP_END;
        }
        r = conn_read(c, rq, true);
        conn_give_back_room(c); /* what is to be sent counts by itself */
    }
    return r == 0 ? STEP_ON : submit(c, rq);
}

/* Room is taken for the longest reply. */
static enum step status_request(struct conn *c, const struct request *rq)
{
    conn_throttle(c, request_bytes(rq));
    if (!conn_take_room(c, request_bytes(rq)) || conn_is_ending(c)) {
        return STEP_END;
    }
    int r = conn_status(c, rq, true);
    conn_give_back_room(c); /* what is to be sent counts by itself */
    return r == 0 ? STEP_ON : submit(c, rq);
}

static uint64_t all_contexts(const struct conn *c)
{
    return c->context_count == 0 ? 0 : UINT64_MAX >> (64 - c->context_count);
}

/* Choose the contexts whose @count ids are at @p.  False: one is unknown, or
 * there twice. */
static bool pick_contexts(struct conn *c, struct request *rq, const char *p,
                          size_t count)
{
    rq->contexts = 0;
    for (; count > 0; count--, p += 4) {
        uint64_t bit = 0;

        for (unsigned i = 0; i < c->context_count; i++) {
            bit |= c->contexts[i].id == load_be32(p) ? UINT64_C(1) << i : 0;
        }
        if (bit == 0 || (rq->contexts & bit)) {
            return false;
        }
        rq->contexts |= bit;
    }
    return true;
}

/* Block status with a payload: first the length of the range, then the ids of
 * the contexts. */
static enum step filtered_status(struct conn *c, struct request *rq)
{
    const uint64_t payload = rq->length;
    const char *why = "unknown metadata contexts";

    if (payload < 12 || payload % 4 != 0 ||
        payload > 8 + 4 * (uint64_t)c->context_count) {
        c->input_at += head_size(c);
        return answer_at_once(c, rq, payload, NBD_EINVAL, why);
    }
    if (input_left(c) < head_size(c) + payload) {
        return STEP_WAIT;
    }
    const char *p = c->input + c->input_at + head_size(c);
    rq->length = load_be64(p);
    uint32_t error = pick_contexts(c, rq, p + 8, (payload - 8) / 4)
                         ? check_request(c, rq, &why)
                         : NBD_EINVAL;
    c->input_at += head_size(c) + payload;
    return error ? answer_at_once(c, rq, 0, error, why) : status_request(c, rq);
}

/* Parse the header at the front of the input.  False: it is no request. */
static bool parse_header(const struct conn *c, struct request *rq)
{
    const char *p = c->input + c->input_at;
    uint32_t magic = c->extended ? NBD_EXTENDED_REQUEST_MAGIC
                                 : NBD_REQUEST_MAGIC;

    *rq = (struct request){
        .flags = load_be16(p + 4),
        .type = load_be16(p + 6),
        .cookie = load_be64(p + 8),
        .origin = load_be64(p + 16),
        .offset = load_be64(p + 16),
        .length = c->extended ? load_be64(p + 24) : load_be32(p + 24),
        .contexts = all_contexts(c),
    };
    if (c->export->writethrough && rq->type != NBD_CMD_READ) {
        rq->flags |= NBD_CMD_FLAG_FUA;
    }
    return load_be32(p) == magic;
}

static enum step one_request(struct conn *c)
{
    const char *why = NULL;
    struct request rq;

    bool known = parse_header(c, &rq);
    if (!known || rq.type == NBD_CMD_DISC) {
        if (!known) {
            log_refusal(c, &rq, "no request begins here; it is cut off");
        }
        atomic_store(&c->leaving, true);
        return STEP_END;
    }
    uint64_t payload = payload_length(c, &rq);
    if (payload > NBD_PAYLOAD_MAX) { /* no client means so much */
        log_refusal(c, &rq, "more than 32 MiB of payload; it is cut off");
        return STEP_END;
    }
    if (rq.type == NBD_CMD_WRITE) {
        return write_request(c, &rq, payload);
    }
    if (rq.type == NBD_CMD_BLOCK_STATUS && c->extended &&
        (rq.flags & NBD_CMD_FLAG_PAYLOAD_LEN)) {
        return filtered_status(c, &rq);
    }
    c->input_at += head_size(c);
    uint32_t error = check_request(c, &rq, &why);
    if (error || (rq.type == NBD_CMD_READ && rq.length == 0)) {
        return answer_at_once(c, &rq, payload, error, why);
    }
    return rq.type == NBD_CMD_READ           ? read_request(c, &rq)
           : rq.type == NBD_CMD_BLOCK_STATUS ? status_request(c, &rq)
                                             : submit(c, &rq);
}

bool conn_requests(struct conn *c)
{
    const size_t part = spin_part(&c->spin, input_left(c) / head_size(c));
    size_t done = 0;

    while (input_left(c) >= head_size(c)) {
        if (conn_is_ending(c)) {
            return false;
        }
        enum step step = one_request(c);
        if (step != STEP_ON) {
            return step == STEP_WAIT;
        }
        if (++done == part) {
            conn_queue_batch(c);
            conn_push(c);
            done = 0;
        }
    }
    return true;
}
