/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The bitmap directory: from untrusted bytes to structures, and back.
 *
 *   0   table offset (8), table size in entries (4), flags (4)
 *   16  type, log2 of the granularity, length of name (2), of extra data (4)
 *   24  extra data, name, zeroes up to a multiple of 8
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/bitmaps.h"

#define TYPE_DIRTY 1
#define FLAGS_KNOWN \
    (QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO | QCOW2_BITMAP_EXTRA)
#define GRANULARITY_BITS_MIN 9
#define GRANULARITY_BITS_MAX 31

void qcow2_bitmap_free(struct qcow2_bitmap *qb)
{
    list_remove(&qb->in_image);
    if (qb->bm) {
        qb->bm->stored = NULL;
    }
    free(qb->name);
    free(qb->extra);
    free(qb->table);
    free(qb->armed);
    free(qb->touched);
    free(qb->stale);
    free(qb->loose);
    free(qb->doubt);
    free(qb->unflushed);
    free(qb);
}

uint64_t qcow2_bitmap_entry_bytes(uint64_t extra_len, uint64_t name_len)
{
    return align_up(QCOW2_BITMAP_ENTRY_SIZE + extra_len + name_len, 8);
}

uint64_t qcow2_bitmap_entry_size(const struct qcow2_bitmap *qb)
{
    return qcow2_bitmap_entry_bytes(qb->extra_len, qb->name_len);
}

/* A copy of @len bytes with a zero behind it. */
static void *copy_bytes(const void *from, size_t len)
{
    char *to = malloc(len + 1);

    if (to) {
        memcpy(to, from, len);
        to[len] = '\0';
    }
    return to;
}

/* Can its table be understood? */
static const char *judge_table(const struct qcow2_bitmap *qb)
{
    if (qb->flags & ~FLAGS_KNOWN) {
        return "it has unknown flags";
    }
    if (qb->type != TYPE_DIRTY) {
        return "it is of an unknown type";
    }
    if (qb->granularity_bits < GRANULARITY_BITS_MIN ||
        qb->granularity_bits > GRANULARITY_BITS_MAX) {
        return "its granularity is out of range";
    }
    return NULL;
}

static const char *judge_rest(const struct qcow2_bitmap *qb)
{
    if (qb->name_len == 0 || qb->name_len > BITMAP_NAME_MAX ||
        strlen(qb->name) != qb->name_len) {
        return "its name is no name";
    }
    if (qb->extra_len > 0 && !(qb->flags & QCOW2_BITMAP_EXTRA)) {
        return "it has extra data that is not known";
    }
    if (qb->flags & QCOW2_BITMAP_IN_USE) {
        return "it is marked as in use: writes may lack in it";
    }
    return NULL;
}

static int parse_entry(const unsigned char *at, uint64_t left, uint64_t *used,
                       struct list *list)
{
    if (left < QCOW2_BITMAP_ENTRY_SIZE) {
        return -EINVAL;
    }
    uint32_t name_len = load_be16(at + 18);
    uint32_t extra_len = load_be32(at + 20);
    *used = qcow2_bitmap_entry_bytes(extra_len, name_len);
    if (*used > left) {
        return -EINVAL;
    }
    struct qcow2_bitmap *qb = calloc(1, sizeof(*qb));
    if (!qb) {
        return -ENOMEM;
    }
    qb->table_offset = load_be64(at);
    qb->table_size = load_be32(at + 8);
    qb->flags = load_be32(at + QCOW2_BITMAP_FLAGS_AT);
    qb->type = at[16];
    qb->granularity_bits = at[17];
    qb->name_len = name_len;
    qb->extra_len = extra_len;
    qb->extra = copy_bytes(at + QCOW2_BITMAP_ENTRY_SIZE, extra_len);
    qb->name = copy_bytes(at + QCOW2_BITMAP_ENTRY_SIZE + extra_len, name_len);
    list_append(list, &qb->in_image);
    if (!qb->extra || !qb->name) {
        return -ENOMEM;
    }
    qb->broken = judge_table(qb);
    qb->sound = !qb->broken;
    if (!qb->broken) {
        qb->broken = judge_rest(qb);
    }
    atomic_store(&qb->voided, qb->flags & QCOW2_BITMAP_IN_USE);
    return 0;
}

int qcow2_bitmap_dir_parse(const unsigned char *dir, uint64_t len,
                           uint32_t count, struct list *list)
{
    uint64_t at = 0;
    int r = 0;

    for (uint32_t i = 0; i < count && r == 0; i++) {
        uint64_t used = 0;

        r = parse_entry(dir + at, len - at, &used, list);
        at += used;
    }
    return r == 0 && at != len ? -EINVAL : r;
}

uint64_t qcow2_bitmap_dir_size(struct qcow2_bitmap *const *dir, uint32_t count)
{
    uint64_t size = 0;

    for (uint32_t i = 0; i < count; i++) {
        size += qcow2_bitmap_entry_size(dir[i]);
    }
    return size;
}

void qcow2_bitmap_dir_write(struct qcow2_bitmap *const *dir, uint32_t count,
                            unsigned char *to)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct qcow2_bitmap *qb = dir[i];
        uint64_t size = qcow2_bitmap_entry_size(qb);

        memset(to, 0, size);
        store_be64(to, qb->table_offset);
        store_be32(to + 8, qb->table_size);
        store_be32(to + QCOW2_BITMAP_FLAGS_AT, qb->flags);
        to[16] = qb->type;
        to[17] = qb->granularity_bits;
        store_be16(to + 18, (uint16_t)qb->name_len);
        store_be32(to + 20, qb->extra_len);
        memcpy(to + QCOW2_BITMAP_ENTRY_SIZE, qb->extra, qb->extra_len);
        memcpy(to + QCOW2_BITMAP_ENTRY_SIZE + qb->extra_len, qb->name,
               qb->name_len);
        to += size;
    }
}
