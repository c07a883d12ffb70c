/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The handshake: fixed newstyle.
 *
 * Every option except EXPORT_NAME has a reply.  An option that cannot be
 * understood is refused, its data is skipped, and the client may go on.  The
 * connection ends only when client and server cannot stay in step, or when the
 * client plainly abuses it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "nbd/conn.h"
#include "nbd/server.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

#define OPTION_HEAD 16

/* Bytes.  An option's data is read up to OPTION_MAX.  Longer data is skipped,
 * up to OPTION_SKIP for all options of a client. */
#define OPTION_MAX  (32 * KiB)
#define OPTION_SKIP (16 * MiB)

/* Options of a client; options that end in handshake_welcome() do not count. */
#define OPTIONS_MAX 1024

/* --- Input. --- */

static bool receive_input(struct conn *c)
{
    struct iovec iov = {c->input + c->input_end, INPUT_SIZE - c->input_end};

    conn_flush(c);
    for (;;) {
        int ms = conn_time_left(c);
        if (ms == 0 || atomic_load(&c->stopping)) {
            return false;
        }
        ssize_t n = transport_receive(&c->io, &iov, 1, false);
        if (n > 0) {
            c->input_end += (size_t)n;
            return true;
        }
        if (n != -EAGAIN && n != -EINTR) {
            return false;
        }
        (void)conn_wait(c, true, ms);
    }
}

/* Receive until @n bytes are in the buffer. */
static bool want_input(struct conn *c, size_t n)
{
    while (input_left(c) < n) {
        c->input_end -= c->input_at;
        memmove(c->input, c->input + c->input_at, c->input_end);
        c->input_at = 0;
        if (!receive_input(c)) {
            return false;
        }
    }
    return true;
}

static bool skip_input(struct conn *c, size_t n)
{
    while (n > 0) {
        if (!want_input(c, 1)) {
            return false;
        }
        size_t part = min_u64(n, input_left(c));
        c->input_at += part;
        n -= part;
    }
    return true;
}

static bool option_take(struct option *o, size_t n, const char **p)
{
    if (n > o->len) {
        return false;
    }
    *p = o->data;
    o->data += n;
    o->len -= n;
    return true;
}

static bool option_u16(struct option *o, uint16_t *v)
{
    const char *p;

    if (!option_take(o, 2, &p)) {
        return false;
    }
    *v = load_be16(p);
    return true;
}

bool option_u32(struct option *o, uint32_t *v)
{
    const char *p;

    if (!option_take(o, 4, &p)) {
        return false;
    }
    *v = load_be32(p);
    return true;
}

/* A string of @len bytes; *s as in option_text(). */
static bool option_string(struct option *o, size_t len, char *s)
{
    const char *p;

    if (len > NBD_STRING_MAX || !option_take(o, len, &p) || memchr(p, 0, len)) {
        return false;
    }
    memcpy(s, p, len);
    s[len] = '\0';
    return true;
}

bool option_text(struct option *o, char *s)
{
    uint32_t len;

    return option_u32(o, &len) && option_string(o, len, s);
}

/* --- Output. --- */

int handshake_reply(struct conn *c, uint32_t option, uint32_t type,
                    const void *data, size_t len)
{
    char *p = batch_room(c, 20 + len);

    if (!p) {
        return -ENOMEM;
    }
    store_be64(p, NBD_OPTION_REPLY_MAGIC);
    store_be32(p + 8, option);
    store_be32(p + 12, type);
    store_be32(p + 16, (uint32_t)len);
    if (len > 0) {
        memcpy(p + 20, data, len);
    }
    batch_use(c, 20 + len);
    return 0;
}

int handshake_error(struct conn *c, uint32_t option, uint32_t type,
                    const char *text)
{
    return handshake_reply(c, option, type, text, strlen(text));
}

int handshake_unknown(struct conn *c, uint32_t option, const char *name)
{
    char text[120];

    (void)snprintf(text, sizeof(text), "export '%.80s%s' not present", name,
                   strlen(name) < 80 ? "" : "...");
    return handshake_error(c, option, NBD_REP_ERR_UNKNOWN, text);
}

void handshake_welcome(struct conn *c)
{
    c->options--;
    conn_renew_deadline(c);
}

static int put_raw(struct conn *c, const void *data, size_t len)
{
    char *p = batch_room(c, len);

    if (!p) {
        return -ENOMEM;
    }
    memcpy(p, data, len);
    batch_use(c, len);
    return 0;
}

/* --- Options. --- */

/* The payload of block status is offered to a client to which it can be of use:
 * one that asks about the export, or has chosen contexts of it.  GO tells what
 * INFO has told. */
static bool offers_payload(const struct conn *c, const struct export *e)
{
    return c->extended &&
           (c->informed == e->serial ||
            (c->context_count > 0 && c->contexts_of == e->serial));
}

static uint16_t transmission_flags(const struct conn *c, const struct export *e)
{
    /* All connections work on one node, and have no cache of their own. */
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
                     NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    flags |= server_max(c->server) != 1 && export_is_one_disk(e)
                 ? NBD_FLAG_CAN_MULTI_CONN
                 : 0;
    flags |= conn_may_write(c, e)
                 ? NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                       NBD_FLAG_SEND_FAST_ZERO
                 : NBD_FLAG_READ_ONLY;
    flags |= c->structured ? NBD_FLAG_SEND_DF : 0;
    flags |= offers_payload(c, e) ? NBD_FLAG_BLOCK_STATUS_PAYLOAD : 0;
    return (uint16_t)flags;
}

/* The connection is for @e from now on.  Takes the reference to @e. */
static void choose_export(struct conn *c, struct export *e, uint64_t size)
{
    c->export = e;
    c->size = size;
    c->writable = conn_may_write(c, e);
    if (c->contexts_of != e->serial) {
        conn_forget_contexts(c);
    }
}

/* Open @e, if it is a view, because it is about to be used.  After a failure
 * the reference to @e is gone. */
static int open_view(struct conn *c, struct export *e, struct error **errp)
{
    int r = e->of ? export_open_view(c->exports, e, errp) : 0;

    if (r < 0) {
        export_unref(c->exports, e);
    }
    return r;
}

static int option_export_name(struct conn *c, struct option *o)
{
    char name[NBD_STRING_MAX + 1];
    char reply[10 + 124] = {0};

    if (!option_string(o, o->len, name) || c->extended) {
        return -EINVAL;
    }
    struct export *e = conn_find_export(c, name, NULL);
    if (!e) {
        return -ENOENT;
    }
    int r = open_view(c, e, NULL);
    if (r < 0) {
        return r;
    }
    uint64_t size = blk_size(e->blk);
    store_be64(reply, size);
    store_be16(reply + 8, transmission_flags(c, e));
    choose_export(c, e, size);
    return put_raw(c, reply, c->no_zeroes ? 10 : sizeof(reply));
}

struct names {
    const struct conn *conn;
    json_t *list; /* [name, description] of each export that it may open */
};

static int export_names(struct export *e, void *opaque)
{
    struct names *n = opaque;

    return e->server != server_serial(n->conn->server) ||
                   !conn_may_open(n->conn, e)
               ? 0
               : json_array_append_new(
                     n->list, json_pack("[s, s]", e->name,
                                        e->description ? e->description : ""));
}

static int reply_server(struct conn *c, const json_t *item)
{
    char data[4 + 2 * NBD_STRING_MAX];
    const char *name = json_string_value(json_array_get(item, 0));
    const char *text = json_string_value(json_array_get(item, 1));
    size_t len = name ? strnlen(name, NBD_STRING_MAX) : 0;
    size_t more = text ? strnlen(text, NBD_STRING_MAX) : 0;

    store_be32(data, (uint32_t)len);
    memcpy(data + 4, name ? name : "", len);
    memcpy(data + 4 + len, text ? text : "", more);
    return handshake_reply(c, NBD_OPT_LIST, NBD_REP_SERVER, data,
                           4 + len + more);
}

static int option_list(struct conn *c, struct option *o)
{
    if (o->len > 0) {
        return handshake_error(c, o->type, NBD_REP_ERR_INVALID,
                               "this option has no data");
    }
    struct names n = {c, json_array()};
    size_t i;
    json_t *item;
    int r = n.list && exports_each(c->exports, export_names, &n) == 0 ? 0
                                                                      : -ENOMEM;

    json_array_foreach (n.list, i, item) {
        r = r == 0 ? reply_server(c, item) : r;
    }
    json_decref(n.list);
    return r < 0 ? r : handshake_reply(c, o->type, NBD_REP_ACK, NULL, 0);
}

static int reply_info(struct conn *c, uint32_t option, uint16_t info,
                      const void *data, size_t len)
{
    char reply[2 + NBD_STRING_MAX];

    store_be16(reply, info);
    memcpy(reply + 2, data, min_u64(len, NBD_STRING_MAX));
    return handshake_reply(c, option, NBD_REP_INFO, reply, 2 + len);
}

static int reply_block_size(struct conn *c, uint32_t option,
                            const struct export *e)
{
    struct blk_limits lim;
    char data[12];

    blk_get_limits(export_disk(e), &lim);
    store_be32(data, 1);
    store_be32(data + 4, is_pow2(lim.pref) && lim.pref >= 512 &&
                                 lim.pref <= NBD_PAYLOAD_MAX
                             ? lim.pref
                             : 4096);
    store_be32(data + 8, NBD_PAYLOAD_MAX);
    return reply_info(c, option, NBD_INFO_BLOCK_SIZE, data, sizeof(data));
}

/* Reply with the size and flags, and once with each other item that the client
 * has asked for. */
static int reply_infos(struct conn *c, struct option *o, const struct export *e,
                       uint64_t size)
{
    char data[10];
    unsigned asked = 0;
    uint16_t info;

    while (option_u16(o, &info)) {
        asked |= info < 16 ? 1U << info : 0;
    }
    store_be64(data, size);
    store_be16(data + 8, transmission_flags(c, e));
    int r = reply_info(c, o->type, NBD_INFO_EXPORT, data, sizeof(data));
    if (r == 0 && (asked & 1U << NBD_INFO_NAME)) {
        r = reply_info(c, o->type, NBD_INFO_NAME, e->name, strlen(e->name));
    }
    if (r == 0 && (asked & 1U << NBD_INFO_DESCRIPTION) && e->description) {
        r = reply_info(c, o->type, NBD_INFO_DESCRIPTION, e->description,
                       strlen(e->description));
    }
    if (r == 0 && (asked & 1U << NBD_INFO_BLOCK_SIZE)) {
        r = reply_block_size(c, o->type, e);
    }
    return r < 0 ? r : handshake_reply(c, o->type, NBD_REP_ACK, NULL, 0);
}

static int option_info(struct conn *c, struct option *o)
{
    char name[NBD_STRING_MAX + 1];
    uint16_t count;

    if (!option_text(o, name) || !option_u16(o, &count) ||
        o->len != (size_t)2 * count) {
        return handshake_error(c, o->type, NBD_REP_ERR_INVALID,
                               "malformed option");
    }
    bool needs_tls;
    struct export *e = conn_find_export(c, name, &needs_tls);
    if (!e) {
        return needs_tls ? handshake_error(c, o->type, NBD_REP_ERR_TLS_REQD,
                                           "this export needs TLS")
                         : handshake_unknown(c, o->type, name);
    }
    handshake_welcome(c);
    CLEANUP_ERROR struct error *err = NULL;
    if (o->type == NBD_OPT_GO && open_view(c, e, &err) < 0) {
        return handshake_error(c, o->type, NBD_REP_ERR_POLICY,
                               error_message(err));
    }
    uint64_t size = export_size(e);
    if (o->type == NBD_OPT_INFO) {
        c->informed = e->serial;
    }
    int r = reply_infos(c, o, e, size);
    if (r == 0 && o->type == NBD_OPT_GO) {
        choose_export(c, e, size);
    } else {
        export_unref(c->exports, e);
    }
    return r;
}

/* STRUCTURED_REPLY and EXTENDED_HEADERS: the kind of replies goes up, never
 * down, and no step twice. */
static int option_replies(struct conn *c, struct option *o)
{
    bool extended = o->type == NBD_OPT_EXTENDED_HEADERS;

    if (o->len > 0) {
        return handshake_error(c, o->type, NBD_REP_ERR_INVALID,
                               "this option has no data");
    }
    if (c->extended) {
        return handshake_error(c, o->type,
                               extended ? NBD_REP_ERR_INVALID
                                        : NBD_REP_ERR_EXT_HEADER_REQD,
                               "extended headers already negotiated");
    }
    if (c->structured && !extended) {
        return handshake_error(c, o->type, NBD_REP_ERR_INVALID,
                               "structured reply already negotiated");
    }
    c->structured = true;
    c->extended = extended;
    return handshake_reply(c, o->type, NBD_REP_ACK, NULL, 0);
}

static int refuse_before_tls(struct conn *c, uint32_t option)
{
    char text[60];

    (void)snprintf(text, sizeof(text),
                   "Option 0x%" PRIx32 " not permitted before TLS", option);
    return handshake_error(c, option, NBD_REP_ERR_TLS_REQD, text);
}

static int handle_option(struct conn *c, struct option *o)
{
    int r;

    if (conn_needs_tls(c, o->type)) {
        return o->type == NBD_OPT_EXPORT_NAME ? -EPERM
                                              : refuse_before_tls(c, o->type);
    }
    if (o->type != NBD_OPT_INFO && o->type != NBD_OPT_GO) {
        c->informed = 0;
    }
    switch (o->type) {
    case NBD_OPT_EXPORT_NAME:
        return option_export_name(c, o);
    case NBD_OPT_ABORT:
        r = handshake_reply(c, o->type, NBD_REP_ACK, NULL, 0);
        return r < 0 ? r : -ECONNABORTED;
    case NBD_OPT_LIST:
        return option_list(c, o);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return option_info(c, o);
    case NBD_OPT_STRUCTURED_REPLY:
    case NBD_OPT_EXTENDED_HEADERS:
        return option_replies(c, o);
    case NBD_OPT_STARTTLS:
        return conn_option_starttls(c, o);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return conn_option_contexts(c, o);
    default:
        return handshake_error(c, o->type, NBD_REP_ERR_UNSUP,
                               "this option is not supported");
    }
}

static bool is_known_option(uint32_t type)
{
    return type >= NBD_OPT_LIST && type <= NBD_OPT_EXTENDED_HEADERS &&
           type != 4;
}

/* An option with more data than any option needs. */
static int long_option(struct conn *c, uint32_t type, uint32_t len)
{
    struct option o = {.type = type};

    if (type == NBD_OPT_EXPORT_NAME || len > OPTION_SKIP - c->skipped ||
        !skip_input(c, len)) {
        return -EINVAL;
    }
    c->skipped += len;
    if (type == NBD_OPT_SET_META_CONTEXT) {
        conn_forget_contexts(c);
    }
    return is_known_option(type) && !conn_needs_tls(c, type)
               ? handshake_error(c, type, NBD_REP_ERR_TOO_BIG, "too much data")
               : handle_option(c, &o);
}

static int next_option(struct conn *c)
{
    if (++c->options > OPTIONS_MAX || !want_input(c, OPTION_HEAD) ||
        load_be64(c->input + c->input_at) != NBD_OPTION_MAGIC) {
        return -EINVAL;
    }
    uint32_t type = load_be32(c->input + c->input_at + 8);
    uint32_t len = load_be32(c->input + c->input_at + 12);
    c->input_at += OPTION_HEAD;
    if (len > OPTION_MAX) {
        return long_option(c, type, len);
    }
    if (!want_input(c, len)) {
        return -ECONNRESET;
    }
    struct option o = {type, c->input + c->input_at, len};
    c->input_at += len;
    return handle_option(c, &o);
}

int conn_handshake(struct conn *c)
{
    char greeting[18];

    c->input = pages_new(INPUT_SIZE);
    if (!c->input) {
        return -ENOMEM;
    }
    store_be64(greeting, NBD_MAGIC);
    store_be64(greeting + 8, NBD_OPTION_MAGIC);
    store_be16(greeting + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if (put_raw(c, greeting, sizeof(greeting)) < 0 || !want_input(c, 4)) {
        return -ECONNRESET;
    }
    uint32_t flags = load_be32(c->input + c->input_at);
    c->input_at += 4;
    if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        return -EINVAL;
    }
    c->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    c->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    if (!c->fixed && tls_policy_mode(c->policy) == TLS_REQUIRE) {
        return -EPERM;
    }
    while (!c->export) {
        int r = next_option(c);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}
