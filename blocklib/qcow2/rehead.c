/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The first cluster of an image, laid out anew, so that one write of the first
 * sector switches from the old layout to the new one:
 *
 *   0            | header | extensions ...          | FILLER: up to the tail
 *   512          | what the old layout has there: it stays
 *   the tail     | more extensions | end | name of the backing file
 *   cluster size
 *
 * A sector is written whole or not at all.  What does not fit into the first
 * one goes to the tail, a place where the old layout has nothing that counts,
 * and a filler leads there.  The tail is written first.
 *
 * The bitmaps' extension comes first, because it has to be in the sector of the
 * disk's size (header-ext.c), and the names of features last.  Nobody needs
 * these: they go if there is no room.  Fillers go in any case.
 */
#include "qcow2/rehead.h"

#include <errno.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "qcow2/header.h"

#define SECTOR     QCOW2_HEAD_SECTOR
#define V2_LENGTH  72
#define NEW_LENGTH 112 /* of a header of version 3 that we make */

/* --- What is there --- */

struct part {
    uint32_t type;
    uint64_t at; /* of its head */
    uint32_t bytes;
};

static uint64_t old_length(const struct qcow2_rehead *h)
{
    return load_be32(h->old + 4) >= 3 ? load_be32(h->old + 100) : V2_LENGTH;
}

/* The extension at p->at; false: there is the end. */
static bool get_part(const struct qcow2_rehead *h, struct part *p)
{
    uint64_t name = load_be64(h->old + 8);
    uint64_t limit = name > old_length(h) ? min_u64(name, h->size) : h->size;

    if (p->at + 8 > limit) {
        return false;
    }
    p->type = load_be32(h->old + p->at);
    p->bytes = load_be32(h->old + p->at + 4);
    return p->type != QCOW2_EXT_END && p->bytes <= limit - p->at - 8;
}

static uint64_t room_of(uint64_t bytes)
{
    return 8 + align_up(bytes, 8);
}

static uint64_t next_part(const struct part *p)
{
    return p->at + room_of(p->bytes);
}

/* Move @from behind [@start, @end) if @bytes there would lie on it. */
static void step_over(uint64_t *from, uint64_t bytes, uint64_t start,
                      uint64_t end)
{
    if (start < end && *from < end && start < *from + bytes) {
        *from = align_up(end, 8);
    }
}

/* Where @bytes are free behind the first sector; 0: nowhere. */
static uint64_t find_free(const struct qcow2_rehead *h, uint64_t bytes)
{
    uint64_t name = load_be64(h->old + 8);
    uint64_t name_end = name + load_be32(h->old + 16);
    uint64_t from = SECTOR;
    uint64_t before;

    do {
        struct part p = {.at = old_length(h)};

        before = from;
        step_over(&from, bytes, name, name_end);
        while (get_part(h, &p)) {
            step_over(&from, bytes, p.at,
                      p.type == QCOW2_EXT_FILLER ? p.at + 8 : next_part(&p));
            p.at = next_part(&p);
        }
        step_over(&from, bytes, p.at, p.at + 8);
    } while (from != before);
    return from + bytes <= h->size ? from : 0;
}

/* --- The new layout --- */

struct layout {
    struct qcow2_rehead *h;
    uint64_t at;    /* the next extension */
    uint64_t left;  /* bytes that are still to be laid out */
    bool only_size; /* add up `left` */
    int error;
};

/* Go on in the tail, which has room for all that is left. */
static void jump(struct layout *l)
{
    struct qcow2_rehead *h = l->h;
    uint64_t to = find_free(h, l->left);

    if (to == 0) {
        l->error = -ENOSPC;
        return;
    }
    store_be32(h->new + l->at, QCOW2_EXT_FILLER);
    store_be32(h->new + l->at + 4, (uint32_t)(to - l->at - 8));
    h->tail = to;
    h->tail_bytes = l->left;
    memset(h->new + to, 0, l->left);
    l->at = to;
}

static void add(struct layout *l, uint32_t type, const void *data,
                uint32_t bytes)
{
    unsigned char *new = l->h->new;
    uint64_t room = room_of(bytes);

    if (l->only_size) {
        l->left += room;
        return;
    }
    /* Behind it, there is room for the end, or for a filler. */
    if (l->error == 0 && l->h->tail == 0 && l->at + room + 8 > SECTOR) {
        jump(l);
    }
    if (l->error == 0) {
        store_be32(new + l->at, type);
        store_be32(new + l->at + 4, bytes);
        memcpy(new + l->at + 8, data, bytes);
        l->at += room;
        l->left -= room;
    }
}

static void add_text(struct layout *l, uint32_t type, const char *text)
{
    if (text) {
        add(l, type, text, (uint32_t)strlen(text));
    }
}

/* When an extension has its turn; -1: never. */
static int turn_of(const struct qcow2_rehead *h, uint32_t type, bool features)
{
    switch (type) {
    case QCOW2_EXT_BITMAPS:
        return h->version >= 3 ? 0 : -1;
    case QCOW2_EXT_FILLER:
    case QCOW2_EXT_BACKING_FMT:
    case QCOW2_EXT_DATA_FILE:
        return -1;
    case QCOW2_EXT_FEATURES:
        return h->version >= 3 && features ? 2 : -1;
    default:
        return 1;
    }
}

static void add_old(struct layout *l, int turn, bool features)
{
    struct qcow2_rehead *h = l->h;
    struct part p = {.at = old_length(h)};

    while (l->error == 0 && get_part(h, &p)) {
        if (turn_of(h, p.type, features) == turn) {
            add(l, p.type, h->old + p.at + 8, p.bytes);
        }
        p.at = next_part(&p);
    }
}

static void add_all(struct layout *l, bool features)
{
    add_old(l, 0, features);
    add_text(l, QCOW2_EXT_BACKING_FMT, l->h->backing_fmt);
    add_text(l, QCOW2_EXT_DATA_FILE, l->h->data_file);
    add_old(l, 1, features);
    add_old(l, 2, features);
}

/* The name comes behind the end of the extensions, or alone in the tail. */
static int put_name(struct layout *l)
{
    struct qcow2_rehead *h = l->h;
    uint64_t len = h->backing ? strlen(h->backing) : 0;
    uint64_t at = l->at + 8;

    if (len > 0 && h->tail == 0 && at + len > SECTOR) {
        at = find_free(h, len);
        h->tail = at;
        h->tail_bytes = len;
        if (at == 0) {
            return -ENOSPC;
        }
    }
    if (len > 0) {
        memcpy(h->new + at, h->backing, len);
    }
    store_be64(h->new + 8, len > 0 ? at : 0);
    store_be32(h->new + 16, (uint32_t)len);
    return 0;
}

static void put_fields(const struct qcow2_rehead *h)
{
    bool was_old = load_be32(h->old + 4) < 3;

    store_be32(h->new + 4, h->version);
    if (h->version < 3) {
        return;
    }
    store_be64(h->new + QCOW2_HDR_COMPAT, h->compatible);
    store_be64(h->new + QCOW2_HDR_AUTOCLEAR, h->autoclear);
    if (was_old) {
        store_be64(h->new + QCOW2_HDR_INCOMPAT, 0);
        store_be32(h->new + 96, 4); /* refcounts of 16 bits */
        store_be32(h->new + 100, NEW_LENGTH);
    }
}

static int lay_out(struct qcow2_rehead *h, bool features)
{
    bool is_old = load_be32(h->old + 4) < 3;
    uint64_t length = h->version < 3 ? V2_LENGTH
                      : is_old       ? NEW_LENGTH
                                     : old_length(h);
    struct layout l = {.h = h, .at = length, .only_size = true};

    if (length + 8 > SECTOR) {
        return -ENOSPC;
    }
    memcpy(h->new, h->old, h->size);
    h->tail = h->tail_bytes = 0;
    memset(h->new + (is_old ? V2_LENGTH : length), 0,
           SECTOR - (is_old ? V2_LENGTH : length));
    add_all(&l, features);
    l.left += 8 + (h->backing ? align_up(strlen(h->backing), 8) : 0);
    l.only_size = false;
    add_all(&l, features);
    if (l.error == 0) {
        put_fields(h);
        l.error = put_name(&l);
    }
    return l.error;
}

int qcow2_rehead(struct qcow2_rehead *h)
{
    int r = lay_out(h, true);

    return r == -ENOSPC ? lay_out(h, false) : r;
}
