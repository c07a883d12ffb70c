/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The handshake: fixed newstyle, options until GO or EXPORT_NAME.
 *
 * An option is read whole (or skipped, when it is too long) before it is
 * answered, so that a bad one leaves the stream in step.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "conn.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/graph.h"
#include "proto.h"

/* Options with more data than this are skipped, ... */
#define OPTION_MAX (64U << 10)
/* ... and with more than this, end the connection. */
#define OPTION_SKIP_MAX (32U << 20)
/* A client needs a few options, not thousands. */
#define OPTIONS_MAX 1024

#define BITMAP_PREFIX "qemu:dirty-bitmap:"

struct option {
    uint32_t type;
    uint32_t length;
    const unsigned char *data;
};

/* --- Answering --- */

static int send_bytes(struct conn *c, const void *head, size_t head_len,
                      const void *data, size_t len)
{
    struct iovec v[2] = { { (void *)(uintptr_t)head, head_len },
                          { (void *)(uintptr_t)data, len } };
    return conn_send(c, v, len ? 2 : 1, false) == 0;
}

static int answer(struct conn *c, const struct option *o, uint32_t type,
                  const void *data, size_t len)
{
    unsigned char head[20];

    store_be64(head, NBD_REP_MAGIC);
    store_be32(head + 8, o->type);
    store_be32(head + 12, type);
    store_be32(head + 16, (uint32_t)len);
    return send_bytes(c, head, sizeof(head), data, len);
}

static int answer_text(struct conn *c, const struct option *o, uint32_t type,
                       const char *text)
{
    return answer(c, o, type, text, strlen(text));
}

static int answer_ack(struct conn *c, const struct option *o)
{
    return answer(c, o, NBD_REP_ACK, NULL, 0);
}

/* --- Taking apart --- */

/* What is left of an option's data. */
struct cursor {
    const unsigned char *at;
    size_t left;
};

static bool take_u32(struct cursor *p, uint32_t *v)
{
    if (p->left < 4) {
        return false;
    }
    *v = load_be32(p->at);
    p->at += 4;
    p->left -= 4;
    return true;
}

/* A string of @len bytes, malloc()ed; NULL if it is none. */
static char *take_text(struct cursor *p, uint32_t len)
{
    if (len > p->left || len > NBD_MAX_STRING ||
        (len > 0 && memchr(p->at, '\0', len))) {
        return NULL;
    }
    char *text = strndup((const char *)p->at, len);
    p->at += len;
    p->left -= len;
    return text;
}

static char *take_string(struct cursor *p)
{
    uint32_t len;
    return take_u32(p, &len) ? take_text(p, len) : NULL;
}

/* --- The export --- */

static uint16_t transmission_flags(const struct conn *c,
                                   const struct export *e)
{
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_CAN_MULTI_CONN |
                     NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FLUSH;

    if (e->writable) {
        flags |= NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
                 NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    } else {
        flags |= NBD_FLAG_READ_ONLY;
    }
    if (c->structured) {
        flags |= NBD_FLAG_SEND_DF;
    }
    return (uint16_t)flags;
}

static void begin_transmission(struct conn *c, struct export *e)
{
    export_unref(c->exports, c->export);
    c->export = e;
    /* Contexts count only for the export for which they were selected. */
    if (!c->context_export || strcmp(c->context_export, e->name) != 0) {
        conn_drop_contexts(c);
    }
}

static int do_export_name(struct conn *c, const struct option *o)
{
    struct cursor p = { o->data, o->length };
    CLEANUP_FREE char *name = take_text(&p, o->length);
    struct export *e = name ? exports_find(c->exports, name) : NULL;
    unsigned char reply[10 + 124] = { 0 };

    if (!e) {
        return 0; /* the document knows no other answer */
    }
    store_be64(reply, blk_size(e->blk));
    store_be16(reply + 8, transmission_flags(c, e));
    begin_transmission(c, e);
    return send_bytes(c, reply, c->no_zeroes ? 10 : sizeof(reply), NULL, 0);
}

static int send_block_size(struct conn *c, const struct option *o,
                           const struct export *e)
{
    unsigned char info[14];
    struct blk_limits lim;

    blk_get_limits(e->blk, &lim);
    store_be16(info, NBD_INFO_BLOCK_SIZE);
    store_be32(info + 2, 1);
    store_be32(info + 6, (uint32_t)min_u64(max_u64(lim.pref, 4096),
                                           NBD_MAX_PAYLOAD));
    store_be32(info + 10, NBD_MAX_PAYLOAD);
    return answer(c, o, NBD_REP_INFO, info, sizeof(info));
}

static int send_info_text(struct conn *c, const struct option *o, uint16_t what,
                          const char *text)
{
    unsigned char info[2 + NBD_MAX_STRING];
    size_t len = min_u64(strlen(text), NBD_MAX_STRING);

    store_be16(info, what);
    memcpy(info + 2, text, len);
    return answer(c, o, NBD_REP_INFO, info, 2 + len);
}

static int send_infos(struct conn *c, const struct option *o,
                      const struct export *e, const unsigned char *asked,
                      uint16_t count)
{
    unsigned char info[12];
    int ok;

    store_be16(info, NBD_INFO_EXPORT);
    store_be64(info + 2, blk_size(e->blk));
    store_be16(info + 10, transmission_flags(c, e));
    ok = answer(c, o, NBD_REP_INFO, info, sizeof(info));
    bool sent[4] = { 0 };
    for (uint16_t i = 0; i < count && ok; i++) {
        uint16_t what = load_be16(asked + 2 * (size_t)i);
        if (what >= ARRAY_SIZE(sent) || sent[what]) {
            continue;
        }
        sent[what] = true;
        if (what == NBD_INFO_NAME) {
            ok = send_info_text(c, o, what, e->name);
        } else if (what == NBD_INFO_DESCRIPTION && e->description) {
            ok = send_info_text(c, o, what, e->description);
        } else if (what == NBD_INFO_BLOCK_SIZE) {
            ok = send_block_size(c, o, e);
        }
    }
    return ok;
}

/* INFO and GO; *go: transmission begins. */
static int do_info(struct conn *c, const struct option *o, bool *go)
{
    struct cursor p = { o->data, o->length };
    CLEANUP_FREE char *name = take_string(&p);

    if (!name || p.left < 2 ||
        p.left != 2 + 2 * (size_t)load_be16(p.at)) {
        return answer_text(c, o, NBD_REP_ERR_INVALID,
                           "the option's length does not fit its content");
    }
    struct export *e = exports_find(c->exports, name);
    if (!e) {
        return answer_text(c, o, NBD_REP_ERR_UNKNOWN,
                           "there is no export of that name");
    }
    int ok = send_infos(c, o, e, p.at + 2, load_be16(p.at)) &&
             answer_ack(c, o);
    *go = ok && o->type == NBD_OPT_GO;
    if (*go) {
        begin_transmission(c, e);
    } else {
        export_unref(c->exports, e);
    }
    return ok;
}

/* The replies are collected first: none is sent under the set's lock. */
struct listing {
    unsigned char *bytes;
    size_t len;
    const struct option *o;
    bool failed;
};

static int list_export(struct export *e, void *opaque)
{
    struct listing *l = opaque;
    size_t name = strlen(e->name);
    size_t desc = e->description ? strlen(e->description) : 0;
    size_t data = 4 + name + desc;
    unsigned char *more = realloc(l->bytes, l->len + 20 + data);

    if (!more) {
        l->failed = true;
        return 1;
    }
    l->bytes = more;
    more += l->len;
    store_be64(more, NBD_REP_MAGIC);
    store_be32(more + 8, l->o->type);
    store_be32(more + 12, NBD_REP_SERVER);
    store_be32(more + 16, (uint32_t)data);
    store_be32(more + 20, (uint32_t)name);
    memcpy(more + 24, e->name, name);
    if (desc) {
        memcpy(more + 24 + name, e->description, desc);
    }
    l->len += 20 + data;
    return 0;
}

static int do_list(struct conn *c, const struct option *o)
{
    struct listing l = { .o = o };
    int ok = 1;

    if (o->length > 0) {
        return answer_text(c, o, NBD_REP_ERR_INVALID,
                           "LIST has no data");
    }
    (void)exports_each(c->exports, list_export, &l);
    if (l.len > 0) {
        ok = send_bytes(c, l.bytes, l.len, NULL, 0);
    }
    free(l.bytes);
    return ok && !l.failed && answer_ack(c, o);
}

/* --- Metadata contexts --- */

void conn_drop_contexts(struct conn *c)
{
    for (unsigned i = 0; i < c->context_count; i++) {
        bitmap_unref(c->contexts[i].bitmap);
    }
    c->context_count = 0;
}

/* Tell the client of one context, and select it if it asked for that. */
static int offer(struct conn *c, const struct option *o,
                 enum context_kind kind, const char *name,
                 struct bitmap *bitmap)
{
    unsigned char data[4 + sizeof(BITMAP_PREFIX) + BITMAP_NAME_MAX];
    bool set = o->type == NBD_OPT_SET_META_CONTEXT;
    size_t len = strlen(name);
    uint32_t id = 0;

    if (set) {
        for (unsigned i = 0; i < c->context_count; i++) {
            const struct context *x = &c->contexts[i];
            if (x->kind == kind && x->bitmap == bitmap) {
                bitmap_unref(bitmap);
                return 1; /* a query that came twice */
            }
        }
        if (c->context_count == CONN_CONTEXTS_MAX) {
            bitmap_unref(bitmap);
            return 1;
        }
        id = c->context_count + 1;
        c->contexts[c->context_count++] = (struct context){ kind, id, bitmap };
    } else {
        bitmap_unref(bitmap);
    }
    if (len > sizeof(data) - 4) {
        return 1;
    }
    store_be32(data, id);
    memcpy(data + 4, name, len);
    return answer(c, o, NBD_REP_META_CONTEXT, data, 4 + len);
}

static int offer_bitmap(struct conn *c, const struct option *o,
                        struct export *e, const char *name)
{
    CLEANUP_FREE char *full = NULL;
    struct bitmap *bm = bitmap_find(blk_node(e->blk), name);

    if (!bm || !bitmap_readable(bm)) {
        bitmap_unref(bm);
        return 1;
    }
    if (asprintf(&full, BITMAP_PREFIX "%s", name) < 0) {
        full = NULL;
        bitmap_unref(bm);
        return 0;
    }
    return offer(c, o, CONTEXT_BITMAP, full, bm);
}

static int offer_all_bitmaps(struct conn *c, const struct option *o,
                             struct export *e)
{
    CLEANUP_JSON json_t *names = bitmap_names(blk_node(e->blk));
    int ok = 1;

    for (size_t i = 0; i < json_array_size(names) && ok; i++) {
        ok = offer_bitmap(c, o, e,
                          json_string_value(json_array_get(names, i)));
    }
    return ok;
}

/* One query.  "base:", "qemu:" and "qemu:dirty-bitmap:" ask for all of a kind,
 * which only listing gives. */
static int answer_query(struct conn *c, const struct option *o,
                        struct export *e, const char *q)
{
    bool list = o->type == NBD_OPT_LIST_META_CONTEXT;
    bool all = list && q[0] == '\0';
    bool qemu = list && strcmp(q, "qemu:") == 0;
    int ok = 1;

    if (all || strcmp(q, "base:allocation") == 0 ||
        (list && strcmp(q, "base:") == 0)) {
        ok = offer(c, o, CONTEXT_ALLOCATION, "base:allocation", NULL);
    }
    if (ok && (all || qemu || strcmp(q, "qemu:allocation-depth") == 0)) {
        ok = offer(c, o, CONTEXT_DEPTH, "qemu:allocation-depth", NULL);
    }
    if (ok && (all || qemu || (list && strcmp(q, BITMAP_PREFIX) == 0))) {
        return offer_all_bitmaps(c, o, e);
    }
    if (ok && strncmp(q, BITMAP_PREFIX, strlen(BITMAP_PREFIX)) == 0) {
        return offer_bitmap(c, o, e, q + strlen(BITMAP_PREFIX));
    }
    return ok;
}

/* Are the rest of the data @count strings, and nothing else? */
static bool queries_are_sound(struct cursor p, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        CLEANUP_FREE char *q = take_string(&p);
        if (!q) {
            return false;
        }
    }
    return p.left == 0;
}

static int answer_queries(struct conn *c, const struct option *o,
                          struct export *e, struct cursor p, uint32_t count)
{
    int ok = 1;

    if (count == 0 && o->type == NBD_OPT_LIST_META_CONTEXT) {
        ok = answer_query(c, o, e, "");
    }
    for (uint32_t i = 0; i < count && ok; i++) {
        CLEANUP_FREE char *q = take_string(&p);
        ok = q && answer_query(c, o, e, q);
    }
    return ok && answer_ack(c, o);
}

static int do_meta_context(struct conn *c, const struct option *o)
{
    struct cursor p = { o->data, o->length };
    CLEANUP_FREE char *name = NULL;
    uint32_t count;

    if (o->type == NBD_OPT_SET_META_CONTEXT) {
        conn_drop_contexts(c); /* also when this one fails */
    }
    if (!c->structured) {
        return answer_text(c, o, NBD_REP_ERR_INVALID,
                           "structured replies are not negotiated");
    }
    name = take_string(&p);
    if (!name || !take_u32(&p, &count) || !queries_are_sound(p, count)) {
        return answer_text(c, o, NBD_REP_ERR_INVALID,
                           "the option's length does not fit its content");
    }
    struct export *e = exports_find(c->exports, name);
    if (!e) {
        return answer_text(c, o, NBD_REP_ERR_UNKNOWN,
                           "there is no export of that name");
    }
    int ok = answer_queries(c, o, e, p, count);
    if (o->type == NBD_OPT_SET_META_CONTEXT) {
        free(c->context_export);
        c->context_export = strdup(e->name);
    }
    export_unref(c->exports, e);
    return ok;
}

/* --- The loop --- */

static int do_structured_reply(struct conn *c, const struct option *o)
{
    if (o->length > 0) {
        return answer_text(c, o, NBD_REP_ERR_INVALID,
                           "STRUCTURED_REPLY has no data");
    }
    c->structured = true;
    return answer_ack(c, o);
}

/* 1: go on; 0: over; *done: transmission begins. */
static int do_option(struct conn *c, const struct option *o, bool *done)
{
    switch (o->type) {
    case NBD_OPT_EXPORT_NAME:
        *done = do_export_name(c, o);
        return *done;
    case NBD_OPT_ABORT:
        (void)answer_ack(c, o);
        return 0;
    case NBD_OPT_LIST:
        return do_list(c, o);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return do_info(c, o, done);
    case NBD_OPT_STRUCTURED_REPLY:
        return do_structured_reply(c, o);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return do_meta_context(c, o);
    default:
        return answer_text(c, o, NBD_REP_ERR_UNSUP,
                           "this option is not supported");
    }
}

static int next_option(struct conn *c, bool *done)
{
    CLEANUP_FREE unsigned char *data = NULL;
    struct option o;

    if (!conn_fill(c, 16) ||
        load_be64(conn_unread(c)) != NBD_OPTION_MAGIC) {
        return 0;
    }
    o.type = load_be32(conn_unread(c) + 8);
    o.length = load_be32(conn_unread(c) + 12);
    c->in_start += 16;
    if (o.length > OPTION_SKIP_MAX) {
        return 0;
    }
    if (o.length > OPTION_MAX) {
        return conn_read(c, NULL, o.length) &&
               o.type != NBD_OPT_EXPORT_NAME &&
               answer_text(c, &o, NBD_REP_ERR_TOO_BIG,
                           "the option has too much data");
    }
    data = malloc(o.length + 1);
    if (!data || !conn_read(c, data, o.length)) {
        return 0;
    }
    o.data = data;
    return do_option(c, &o, done);
}

int conn_handshake(struct conn *c)
{
    unsigned char hello[18];
    bool done = false;

    store_be64(hello, NBD_MAGIC);
    store_be64(hello + 8, NBD_OPTION_MAGIC);
    store_be16(hello + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if (!send_bytes(c, hello, sizeof(hello), NULL, 0) || !conn_fill(c, 4)) {
        return 0;
    }
    uint32_t flags = load_be32(conn_unread(c));
    c->in_start += 4;
    if ((flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) ||
        !(flags & NBD_FLAG_FIXED_NEWSTYLE)) {
        return 0;
    }
    c->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    for (unsigned i = 0; i < OPTIONS_MAX && !done; i++) {
        if (!next_option(c, &done)) {
            return 0;
        }
    }
    return done;
}
