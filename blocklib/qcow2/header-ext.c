/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The bitmaps extension in the header of an image, changed so that no crash
 * leaves anything between before and after: a sector is written whole or not
 * at all.
 *
 *   there is one         its 24 bytes are overwritten, in one write
 *   there is none        it is appended: the data, then type and length with
 *                        the next end marker, then autoclear bit 0, without
 *                        which nobody looks at it
 *   it goes              autoclear bit 0, then its type says nothing
 *
 * Other programs may make an extension that lies across two sectors, or behind
 * the first, which says what the disk is.  It is made anew in one sector, with
 * the same content, before its content changes; and in the first sector before
 * the disk's size or L1 table changes with it.  There it takes the place of the
 * names of features.
 *
 * Between making it anew and dropping the old one there are two, and a crash,
 * or a write that fails, may leave both.  The last one counts, for readers and
 * for us.  The others go before anything else changes, so they never have other
 * content than that one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "qcow2/bitmaps.h"

#define SECTOR   UINT64_C(512)
#define EXT_SIZE 24

struct head {
    struct qcow2 *s;
    unsigned char *bytes; /* the first cluster as it is on disk */
    uint64_t ext;         /* where the extension's data are, or 0 */
    bool several;         /* there are others before it */
    uint64_t end;         /* where the end marker is */
    uint64_t names;       /* the extension with names of features, or 0 */
    uint64_t reuse;       /* one that was dropped, in one sector, or 0 */
    uint64_t limit;       /* extensions lie before it */
    bool through;
};

static bool in_one_sector(uint64_t from, uint64_t len)
{
    return from / SECTOR == (from + len - 1) / SECTOR;
}

static void find_extensions(struct head *h)
{
    uint64_t name = load_be64(h->bytes + 8);
    uint64_t at = load_be32(h->bytes + 100);

    h->limit = name > at ? min_u64(name, h->s->cluster_size)
                         : h->s->cluster_size;
    h->ext = 0;
    while (at + 8 <= h->limit) {
        uint32_t type = load_be32(h->bytes + at);
        uint64_t len = load_be32(h->bytes + at + 4);

        if (type == QCOW2_EXT_END || at + 8 + len > h->limit) {
            break;
        }
        if (type == QCOW2_EXT_FEATURES) {
            h->names = at;
        }
        if (type == QCOW2_EXT_FILLER && len == EXT_SIZE && !h->reuse &&
            in_one_sector(at, 8 + EXT_SIZE)) {
            h->reuse = at;
        }
        if (type == QCOW2_EXT_BITMAPS && len >= EXT_SIZE) {
            h->several |= h->ext != 0;
            h->ext = at + 8;
        }
        at += 8 + align_up(len, 8);
    }
    h->end = at;
}

static int write_head(struct head *h, uint64_t from, uint64_t len)
{
    if (h->through) {
        return qcow2_write_through(h->s, h->bytes + from, len, from);
    }
    int r = node_pwrite(h->s->file, h->bytes + from, len, from, 0);

    return r < 0 ? r : qcow2_flush_file(h->s);
}

static void put_values(struct head *h, uint64_t at,
                       const struct qcow2_bitmaps_ext *x)
{
    store_be32(h->bytes + at, x->count);
    store_be32(h->bytes + at + 4, 0);
    store_be64(h->bytes + at + 8, x->dir_size);
    store_be64(h->bytes + at + 16, x->dir_offset);
}

/* The backing file's name is behind the extensions.  Where can it go, to make
 * room before it?  0: nowhere. */
static uint64_t place_for_name(const struct head *h, uint64_t needed)
{
    uint64_t name = load_be64(h->bytes + 8);
    uint64_t len = load_be32(h->bytes + 16);
    uint64_t to = align_up(max_u64(needed, name + len), 8);

    return name == 0 || name != h->limit || to + len > h->s->cluster_size ? 0
                                                                          : to;
}

static int move_name(struct head *h, uint64_t to)
{
    uint64_t name = load_be64(h->bytes + 8);
    uint64_t len = load_be32(h->bytes + 16);

    memcpy(h->bytes + to, h->bytes + name, len);
    int r = write_head(h, to, len);
    if (r == 0) {
        store_be64(h->bytes + 8, to);
        r = write_head(h, 8, 8);
    }
    h->limit = to;
    return r;
}

/* Bytes of the names of features, if the extension has room there. */
static uint64_t room_of_names(const struct head *h)
{
    uint64_t at = h->names;
    uint64_t len = at ? align_up(load_be32(h->bytes + at + 4), 8) : 0;

    return len < EXT_SIZE + 8 || !in_one_sector(at, 8 + EXT_SIZE + 8) ? 0 : len;
}

/* Put the extension, and what says nothing, in place of the names of features,
 * which nobody needs.  That changes the beginning of the names only, in one
 * sector, so it happens at once. */
static int replace_names(struct head *h, const struct qcow2_bitmaps_ext *x)
{
    uint64_t at = h->names;
    uint64_t len = room_of_names(h);
    uint64_t rest = at + 8 + EXT_SIZE;

    store_be32(h->bytes + at, QCOW2_EXT_BITMAPS);
    store_be32(h->bytes + at + 4, EXT_SIZE);
    put_values(h, at + 8, x);
    store_be32(h->bytes + rest, QCOW2_EXT_FILLER);
    store_be32(h->bytes + rest + 4, (uint32_t)(len - EXT_SIZE - 8));
    h->ext = at + 8;
    h->names = 0;
    return write_head(h, at, 8 + EXT_SIZE + 8);
}

static int reuse_dropped(struct head *h, const struct qcow2_bitmaps_ext *x)
{
    h->ext = h->reuse + 8;
    put_values(h, h->ext, x);
    store_be32(h->bytes + h->reuse, QCOW2_EXT_BITMAPS);
    return write_head(h, h->reuse, 8 + EXT_SIZE);
}

static bool in_first_sector(uint64_t at)
{
    return at != 0 && at + EXT_SIZE <= SECTOR;
}

static bool can_reuse_first(const struct head *h)
{
    return h->reuse && in_first_sector(h->reuse + 8);
}

/* Is there room in the first sector?  Storage says -ENOSPC for other reasons,
 * so that is asked before anything is written. */
static bool can_put_first(const struct head *h)
{
    return can_reuse_first(h) ||
           (room_of_names(h) > 0 && in_first_sector(h->names + 8 + 8));
}

static int put_first(struct head *h, const struct qcow2_bitmaps_ext *x)
{
    return can_reuse_first(h) ? reuse_dropped(h, x) : replace_names(h, x);
}

/* Append the extension.  A filler that says nothing comes before it where that
 * is needed to have it in one sector. */
static int append_extension(struct head *h, const struct qcow2_bitmaps_ext *x)
{
    uint64_t at = h->end;
    uint64_t data = at + 8;

    if (h->reuse) {
        return reuse_dropped(h, x);
    }
    if (!in_one_sector(data, EXT_SIZE)) {
        data = align_up(data, SECTOR) + 8;
    }
    if (data + EXT_SIZE + 8 > h->limit) {
        uint64_t to = place_for_name(h, data + EXT_SIZE + 8);
        if (to == 0) {
            return room_of_names(h) > 0 ? replace_names(h, x) : -ENOSPC;
        }
        int r = move_name(h, to);
        if (r < 0) {
            return r;
        }
    }
    memset(h->bytes + at + 8, 0, data + EXT_SIZE + 8 - (at + 8));
    put_values(h, data, x);
    store_be32(h->bytes + data - 8, QCOW2_EXT_BITMAPS);
    store_be32(h->bytes + data - 4, EXT_SIZE);
    int r = write_head(h, at + 8, data + EXT_SIZE + 8 - (at + 8));
    if (r < 0) {
        return r;
    }
    /* Now the old end marker gives way. */
    if (data == at + 8) {
        store_be32(h->bytes + at, QCOW2_EXT_BITMAPS);
        store_be32(h->bytes + at + 4, EXT_SIZE);
    } else {
        store_be32(h->bytes + at, QCOW2_EXT_FILLER);
        store_be32(h->bytes + at + 4, (uint32_t)(data - 8 - (at + 8)));
    }
    r = write_head(h, at, 8);
    h->ext = data;
    return r;
}

static int drop_extension(struct head *h, uint64_t ext)
{
    store_be32(h->bytes + ext - 8, QCOW2_EXT_FILLER);
    return write_head(h, ext - 8, 4);
}

/* Drop those before the last one. */
static int drop_others(struct head *h)
{
    int r = 0;

    for (uint64_t at = load_be32(h->bytes + 100); r == 0 && at + 8 < h->ext;
         at += 8 + align_up(load_be32(h->bytes + at + 4), 8)) {
        if (load_be32(h->bytes + at) == QCOW2_EXT_BITMAPS) {
            store_be32(h->bytes + at, QCOW2_EXT_FILLER);
            r = node_pwrite(h->s->file, h->bytes + at, 4, at, 0);
        }
    }
    h->several = false;
    find_extensions(h);
    return r < 0 ? r : qcow2_flush_file(h->s);
}

static int set_autoclear(struct head *h, bool on)
{
    uint64_t bits = load_be64(h->bytes + QCOW2_HDR_AUTOCLEAR);
    uint64_t want = on ? bits | QCOW2_AUTOCLEAR_BITMAPS
                       : bits & ~QCOW2_AUTOCLEAR_BITMAPS;

    if (bits == want && !h->s->bitmaps.header_doubt) {
        return 0;
    }
    store_be64(h->bytes + QCOW2_HDR_AUTOCLEAR, want);
    return write_head(h, QCOW2_HDR_AUTOCLEAR, 8);
}

static int set_disk(struct head *h, const struct qcow2_disk *to)
{
    if (!to) {
        return 0;
    }
    qcow2_disk_put(to, h->bytes);
    return write_head(h, QCOW2_HDR_SIZE, QCOW2_HDR_DISK_END - QCOW2_HDR_SIZE);
}

/* Overwrite the extension in one write, with what is said of the disk: of one
 * sector, if there was room for the extension in the first. */
static int overwrite(struct head *h, const struct qcow2_bitmaps_ext *x,
                     const struct qcow2_disk *to)
{
    put_values(h, h->ext, x);
    if (!to) {
        return write_head(h, h->ext, EXT_SIZE);
    }
    qcow2_disk_put(to, h->bytes);
    return write_head(h, QCOW2_HDR_SIZE, h->ext + EXT_SIZE - QCOW2_HDR_SIZE);
}

static int change_extension(struct head *h, const struct qcow2_bitmaps_ext *x,
                            const struct qcow2_disk *to)
{
    uint64_t old = h->ext;
    bool valid = load_be64(h->bytes + QCOW2_HDR_AUTOCLEAR) &
                 QCOW2_AUTOCLEAR_BITMAPS;
    int r = 0;

    if (x->count == 0) {
        r = set_autoclear(h, false);
        if (r == 0 && old) {
            r = drop_extension(h, old);
        }
        return r < 0 ? r : set_disk(h, to);
    }
    bool fresh = !old || !in_one_sector(old, EXT_SIZE);
    bool same = valid && old; /* as before, at another place */
    const struct qcow2_bitmaps_ext *now = same ? &h->s->bitmaps.ext : x;
    bool moved = to && !in_first_sector(old) && can_put_first(h);
    if (moved) {
        r = put_first(h, now);
    } else if (fresh) {
        r = append_extension(h, now);
    }
    if (r == 0 && old && (fresh || moved)) {
        r = drop_extension(h, old);
    }
    if (r == 0 && (!fresh || same || to)) {
        r = overwrite(h, x, to);
    }
    return r < 0 ? r : set_autoclear(h, true);
}

int qcow2_set_bitmaps_ext(struct qcow2 *s, const struct qcow2_bitmaps_ext *x,
                          const struct qcow2_disk *to, bool through)
{
    struct head h = {.s = s, .through = through};
    CLEANUP_FREE unsigned char *bytes = calloc(1, s->cluster_size);

    if (!bytes) {
        return -ENOMEM;
    }
    h.bytes = bytes;
    int r = node_pread(s->file, bytes, s->cluster_size, 0, 0);
    if (r < 0) {
        return r;
    }
    find_extensions(&h);
    r = h.several ? drop_others(&h) : 0;
    return r < 0 ? r : change_extension(&h, x, to);
}
