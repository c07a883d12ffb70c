/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The cells of a picture: see picture.h.
 *
 *     range      ---------============----
 *     cells      |   a   |   b   |   c   |     each gets its part of the bytes
 *
 * The size of a cell has four significant bits, so that the first offsets of
 * rows are numbers that people can read.
 */
#include "cli/picture-priv.h"

#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/text.h"

#define CELL_MIN   512
#define NAME_CHARS 80

const char *const picture_kind_words[PICTURE_KINDS] = {
    [PICTURE_DATA] = "data",
    [PICTURE_COMPRESSED] = "compressed",
    [PICTURE_BACKING] = "in a backing file",
    [PICTURE_ZERO] = "zero",
    [PICTURE_HOLE] = "hole (not allocated)",
};

/* At least @bytes, and not 0. */
static uint64_t round_cell(uint64_t bytes)
{
    uint64_t unit = CELL_MIN;

    bytes += bytes == 0;
    while (bytes > 16 * unit) {
        unit *= 2;
    }
    return (bytes + unit - 1) / unit * unit;
}

struct picture *picture_new(uint64_t size, unsigned columns, unsigned rows)
{
    columns = columns > PICTURE_COLUMNS_MAX ? PICTURE_COLUMNS_MAX : columns;
    rows = rows > PICTURE_ROWS_MAX ? PICTURE_ROWS_MAX : rows;
    uint64_t wanted = (uint64_t)columns * rows;
    uint64_t bytes = round_cell(size / wanted + (size % wanted != 0));
    size_t count = (size_t)(size / bytes + (size % bytes != 0));
    struct picture *p = calloc(1, sizeof(*p) + count * sizeof(p->cells[0]));

    if (p) {
        p->size = size;
        p->cell_bytes = bytes;
        p->columns = columns;
        p->count = count;
    }
    return p;
}

void picture_free(struct picture *p)
{
    free(p);
}

/* The part of [*start, end) that is in its first cell; *start moves on. */
static uint64_t take_part(const struct picture *p, uint64_t *start,
                          uint64_t end, size_t *index)
{
    uint64_t part = min_u64(p->cell_bytes - *start % p->cell_bytes,
                            end - *start);

    *index = (size_t)(*start / p->cell_bytes);
    *start += part;
    return part;
}

static uint64_t end_of(const struct picture *p, uint64_t start, uint64_t length)
{
    return start < p->size ? start + min_u64(length, p->size - start) : start;
}

void picture_add(struct picture *p, uint64_t start, uint64_t length,
                 enum picture_kind kind)
{
    uint64_t end = end_of(p, start, length);
    size_t index;

    p->total.bytes[kind] += end - start;
    while (start < end) {
        uint64_t part = take_part(p, &start, end, &index);

        p->cells[index].bytes[kind] += part;
    }
}

void picture_dirty(struct picture *p, uint64_t start, uint64_t length)
{
    uint64_t end = end_of(p, start, length);
    size_t index;

    p->total.dirty += end - start;
    while (start < end) {
        uint64_t part = take_part(p, &start, end, &index);

        p->cells[index].dirty += part;
    }
}

/* --- For what draws it --- */

enum picture_kind cell_kind(const struct cell *c)
{
    enum picture_kind most = PICTURE_DATA;

    for (enum picture_kind k = PICTURE_DATA; k < PICTURE_KINDS; k++) {
        most = c->bytes[k] > c->bytes[most] ? k : most;
    }
    return most;
}

enum cell_dirt cell_dirt(const struct picture *p, size_t index)
{
    uint64_t dirty = p->cells[index].dirty;
    uint64_t bytes = min_u64(p->cell_bytes, p->size - index * p->cell_bytes);

    return dirty == 0              ? CELL_CLEAN
           : dirty < bytes - dirty ? CELL_PARTLY_DIRTY
                                   : CELL_DIRTY;
}

bool picture_has_dirt(const struct picture *p, enum cell_dirt dirt)
{
    for (size_t i = 0; i < p->count; i++) {
        if (cell_dirt(p, i) == dirt) {
            return true;
        }
    }
    return false;
}

const char *picture_share(const struct picture *p, uint64_t bytes, char *buf)
{
    double share = p->size > 0 ? 100.0 * (double)bytes / (double)p->size : 0;

    (void)snprintf(buf, PICTURE_SHARE_MAX,
                   bytes > 0 && share < 0.05 ? "< 0.1 %%" : "%.1f %%", share);
    return buf;
}

char *picture_name(const char *name)
{
    char *copy = text_printable(name);
    size_t at = 0;

    if (!copy) {
        return NULL;
    }
    for (unsigned n = 0; copy[at] && n < NAME_CHARS; n++) {
        uint32_t code;
        size_t len = text_char(copy + at, &code);

        at += len > 0 ? len : 1;
    }
    if (copy[at] == '\0') {
        return copy;
    }
    char *cut = realloc(copy, at + sizeof("..."));
    if (!cut) {
        free(copy);
        return NULL;
    }
    memcpy(cut + at, "...", sizeof("..."));
    return cut;
}
