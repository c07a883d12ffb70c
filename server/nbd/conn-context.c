/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Metadata contexts: base:allocation, qemu:allocation-depth, and
 * qemu:dirty-bitmap:NAME, for the bitmaps that the export offers.
 *
 * A query is a context's name.  In a LIST it may also be the beginning of
 * names: "base:", "qemu:", "qemu:dirty-bitmap:".
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbd/conn.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"

#define BITMAP_PREFIX "qemu:dirty-bitmap:"

void conn_forget_contexts(struct conn *c)
{
    for (unsigned i = 0; i < c->context_count; i++) {
        bitmap_unref(c->contexts[i].bitmap);
    }
    free(c->contexts);
    c->contexts = NULL;
    c->context_count = 0;
    c->contexts_of = 0;
}

/* --- Queries. --- */

/* The queries of an option: checked, and walked any number of times. */
struct queries {
    struct option at; /* the first query */
    uint32_t count;
};

static bool queries_are_well_formed(const struct queries *qs)
{
    struct option o = qs->at;
    char text[NBD_STRING_MAX + 1];

    for (uint32_t i = 0; i < qs->count; i++) {
        if (!option_text(&o, text) || !strchr(text, ':')) {
            return false;
        }
    }
    return o.len == 0;
}

static bool is_wildcard(const char *text)
{
    return strcmp(text, "base:") == 0 || strcmp(text, "qemu:") == 0 ||
           strcmp(text, BITMAP_PREFIX) == 0;
}

static bool asks_for(const struct queries *qs, const char *name, bool list)
{
    struct option o = qs->at;
    char text[NBD_STRING_MAX + 1];

    for (uint32_t i = 0; i < qs->count && option_text(&o, text); i++) {
        if (strcmp(text, name) == 0 ||
            (list && is_wildcard(text) &&
             strncmp(text, name, strlen(text)) == 0)) {
            return true;
        }
    }
    return list && qs->count == 0;
}

/* --- Replies. --- */

struct answer {
    struct conn *conn;
    const struct queries *queries;
    struct export *export;
    uint32_t option;
};

static int reply_context(const struct answer *a, uint32_t id, const char *name)
{
    char data[4 + NBD_STRING_MAX];
    size_t len = strnlen(name, NBD_STRING_MAX);

    store_be32(data, id);
    memcpy(data + 4, name, len);
    return handshake_reply(a->conn, a->option, NBD_REP_META_CONTEXT, data,
                           4 + len);
}

/* -E2BIG: the client has too many contexts. */
static int select_context(struct conn *c, const struct context *ctx)
{
    if (!c->contexts) {
        c->contexts = calloc(CONTEXTS_MAX, sizeof(*c->contexts));
        if (!c->contexts) {
            return -ENOMEM;
        }
    }
    if (c->context_count == CONTEXTS_MAX) {
        return -E2BIG;
    }
    c->contexts[c->context_count++] = *ctx;
    return 0;
}

/* Offer a context, if it is asked for.  Takes the reference to @bitmap. */
static int offer(const struct answer *a, const char *name, uint32_t id,
                 enum context_kind kind, struct bitmap *bitmap)
{
    bool list = a->option == NBD_OPT_LIST_META_CONTEXT;
    struct context ctx = {.id = id,
                          .kind = kind,
                          .bitmap = bitmap,
                          .own = a->export->all_bitmaps};

    if (!asks_for(a->queries, name, list) ||
        (bitmap && !bitmap_readable(bitmap))) {
        bitmap_unref(bitmap);
        return 0;
    }
    int r = list ? 0 : select_context(a->conn, &ctx);
    if (list || r < 0) {
        bitmap_unref(ctx.bitmap);
    }
    return r < 0 ? r : reply_context(a, list ? 0 : id, name);
}

static int offer_bitmap(const struct answer *a, uint32_t id, const char *name,
                        struct bitmap *bitmap)
{
    char text[sizeof(BITMAP_PREFIX) + BITMAP_NAME_MAX];

    (void)snprintf(text, sizeof(text), BITMAP_PREFIX "%s", name);
    return offer(a, text, id, CONTEXT_BITMAP, bitmap);
}

/* Offer the bitmaps that the disk has now. */
static int offer_all_bitmaps(const struct answer *a)
{
    CLEANUP_JSON json_t *names = blk_bitmap_names(a->export->blk);
    size_t i;
    json_t *name;

    if (!names) {
        return -ENOMEM;
    }
    json_array_foreach (names, i, name) {
        const char *text = json_string_value(name);
        struct bitmap *bm = blk_bitmap_find(a->export->blk, text);
        int r = bm ? offer_bitmap(a, 3 + (uint32_t)i, text, bm) : 0;

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int offer_bitmaps(const struct answer *a)
{
    const struct export *e = a->export;
    int r = e->all_bitmaps ? offer_all_bitmaps(a) : 0;

    for (unsigned i = 0; r == 0 && i < e->bitmap_count; i++) {
        const struct export_bitmap *b = &e->bitmaps[i];

        bitmap_ref(b->bitmap);
        r = offer_bitmap(a, 3 + i, b->name, b->bitmap);
    }
    return r;
}

static int answer_queries(const struct answer *a)
{
    struct conn *c = a->conn;
    int r = offer(a, "base:allocation", 1, CONTEXT_ALLOCATION, NULL);

    if (r == 0 && a->export->allocation_depth) {
        r = offer(a, "qemu:allocation-depth", 2, CONTEXT_DEPTH, NULL);
    }
    if (r == 0) {
        r = offer_bitmaps(a);
    }
    if (r == -E2BIG) {
        conn_forget_contexts(c);
        return handshake_error(c, a->option, NBD_REP_ERR_TOO_BIG,
                               "too many metadata contexts");
    }
    return r < 0 ? r : handshake_reply(c, a->option, NBD_REP_ACK, NULL, 0);
}

int conn_option_contexts(struct conn *c, struct option *o)
{
    char name[NBD_STRING_MAX + 1];
    struct queries qs;

    /* SET drops the contexts of an earlier SET, also when it fails. */
    if (o->type == NBD_OPT_SET_META_CONTEXT) {
        conn_forget_contexts(c);
    }
    if (!c->structured) {
        return handshake_error(c, o->type, NBD_REP_ERR_INVALID,
                               "structured replies or extended headers come "
                               "first");
    }
    bool ok = option_text(o, name) && option_u32(o, &qs.count);
    qs.at = *o;
    if (!ok || !queries_are_well_formed(&qs)) {
        return handshake_error(c, o->type, NBD_REP_ERR_INVALID,
                               "malformed option");
    }
    struct export *e = conn_find_export(c, name, NULL);
    if (!e) {
        return handshake_unknown(c, o->type, name);
    }
    handshake_welcome(c);
    struct answer a = {c, &qs, e, o->type};
    if (o->type == NBD_OPT_SET_META_CONTEXT) {
        c->contexts_of = e->serial;
    }
    int r = answer_queries(&a);
    export_unref(c->exports, e);
    return r;
}
