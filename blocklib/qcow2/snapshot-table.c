/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The snapshot table as bytes, which are foreign.
 *
 *   0    L1 table: offset 8, entries 4
 *   12   length of the id 2, of the name 2
 *   16   date: seconds 4, nanoseconds 4; clock of the VM 8
 *   32   bytes of VM state 4 (if there are no extra data), of extra data 4
 *   40   extra data: VM state 8, size of the disk 8, icount 8, others
 *   ...  id, name, filled up to 8
 */
#include "qcow2/snapshots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"

/* Without what fills it up: the file may end there. */
static uint64_t real_size(const unsigned char *head)
{
    return QCOW2_SNAPSHOT_HEAD + (uint64_t)load_be32(head + 36) +
           load_be16(head + 12) + load_be16(head + 14);
}

uint64_t qcow2_snapshot_size(const unsigned char *head)
{
    return load_be32(head + 36) > QCOW2_SNAPSHOT_EXTRA_MAX
               ? 0
               : align_up(real_size(head), 8);
}

static void parse_extra(const unsigned char *extra, uint64_t len,
                        struct qcow2_snapshot *sn)
{
    if (len >= 8) {
        sn->vm_state_size = load_be64(extra);
    }
    if (len >= 16) {
        sn->disk_size = load_be64(extra + 8);
    }
    if (len >= 24) {
        sn->icount = load_be64(extra + 16);
    }
}

/* All of it is there. */
static void parse(const unsigned char *bytes, struct qcow2_snapshot *sn)
{
    uint64_t extra = load_be32(bytes + 36);

    *sn = (struct qcow2_snapshot){
        .l1_offset = load_be64(bytes + QCOW2_SNAPSHOT_L1_OFFSET_AT),
        .l1_size = load_be32(bytes + 8),
        .date_sec = load_be32(bytes + 16),
        .date_nsec = load_be32(bytes + 20),
        .vm_clock_nsec = load_be64(bytes + 24),
        .vm_state_size = load_be32(bytes + 32),
        .disk_size = UINT64_MAX,
        .icount = QCOW2_SNAPSHOT_NO_ICOUNT,
        .id = (const char *)bytes + QCOW2_SNAPSHOT_HEAD + extra,
        .id_len = load_be16(bytes + 12),
        .name_len = load_be16(bytes + 14),
        .bytes = qcow2_snapshot_size(bytes),
    };
    sn->name = sn->id + sn->id_len;
    parse_extra(bytes + QCOW2_SNAPSHOT_HEAD, extra, sn);
}

int qcow2_snapshot_parse(const unsigned char *bytes, uint64_t len,
                         struct qcow2_snapshot *sn)
{
    if (len < QCOW2_SNAPSHOT_HEAD) {
        return -EAGAIN;
    }
    if (qcow2_snapshot_size(bytes) == 0) {
        return -EFBIG;
    }
    if (real_size(bytes) > len) {
        return -EAGAIN;
    }
    parse(bytes, sn);
    return 0;
}

void qcow2_snapshot_get(const struct qcow2_snapshots *t, uint32_t i,
                        struct qcow2_snapshot *sn)
{
    parse(t->table + t->at[i], sn); /* it was checked when it came here */
}

static bool is_text(const char *bytes, uint32_t len, const char *text)
{
    return !text || (strlen(text) == len && memcmp(bytes, text, len) == 0);
}

int64_t qcow2_snapshot_find(const struct qcow2_snapshots *t, const char *id,
                            const char *name)
{
    for (uint32_t i = 0; i < t->count; i++) {
        struct qcow2_snapshot sn;

        qcow2_snapshot_get(t, i, &sn);
        if (is_text(sn.id, sn.id_len, id) &&
            is_text(sn.name, sn.name_len, name)) {
            return i;
        }
    }
    return -ENOENT;
}

/* Copy the value at @from to @to, up to a single comma.  Returns what follows.
 */
static const char *take_value(const char *from, char *to)
{
    for (; *from && (*from != ',' || from[1] == ','); from++) {
        from += *from == ',';
        *to++ = *from;
    }
    *to = '\0';
    return *from ? from + 1 : from;
}

static int64_t find_in_list(const struct qcow2_snapshots *t, const char *list,
                            char *id, char *name)
{
    static const char id_key[] = "snapshot.id=";
    static const char name_key[] = "snapshot.name=";
    bool has_id = false;
    bool has_name = false;

    while (*list) {
        if (strncmp(list, id_key, sizeof(id_key) - 1) == 0) {
            list = take_value(list + sizeof(id_key) - 1, id);
            has_id = true;
        } else if (strncmp(list, name_key, sizeof(name_key) - 1) == 0) {
            list = take_value(list + sizeof(name_key) - 1, name);
            has_name = true;
        } else {
            return -EINVAL;
        }
    }
    return qcow2_snapshot_find(t, has_id ? id : NULL, has_name ? name : NULL);
}

int64_t qcow2_snapshot_which(const struct qcow2_snapshots *t, const char *which)
{
    if (strncmp(which, "snapshot.", strlen("snapshot.")) != 0) {
        int64_t i = qcow2_snapshot_find(t, which, NULL);

        return i < 0 ? qcow2_snapshot_find(t, NULL, which) : i;
    }
    char *values = malloc(2 * (strlen(which) + 1));
    int64_t i = values
                    ? find_in_list(t, which, values, values + strlen(which) + 1)
                    : -ENOMEM;
    free(values);
    return i;
}

/* --- Other tables --- */

/* Our extra data: VM state, size of the disk, icount. */
#define EXTRA 24

static int new_table(uint64_t bytes, uint32_t count,
                     struct qcow2_snapshots *after)
{
    *after = (struct qcow2_snapshots){.bytes = bytes, .count = count};
    if (bytes > QCOW2_SNAPSHOT_TABLE_MAX || count > QCOW2_SNAPSHOTS_MAX) {
        return -EFBIG;
    }
    after->table = calloc(1, bytes + 1);
    after->at = calloc(count + 1UL, sizeof(*after->at));
    if (!after->table || !after->at) {
        qcow2_snapshots_free(after);
        return -ENOMEM;
    }
    return 0;
}

static void write_entry(unsigned char *to, const struct qcow2_snapshot *sn)
{
    store_be64(to + QCOW2_SNAPSHOT_L1_OFFSET_AT, sn->l1_offset);
    store_be32(to + 8, sn->l1_size);
    store_be16(to + 12, (uint16_t)sn->id_len);
    store_be16(to + 14, (uint16_t)sn->name_len);
    store_be32(to + 16, sn->date_sec);
    store_be32(to + 20, sn->date_nsec);
    store_be64(to + 24, sn->vm_clock_nsec);
    store_be32(to + 36, EXTRA);
    to += QCOW2_SNAPSHOT_HEAD;
    store_be64(to, sn->vm_state_size);
    store_be64(to + 8, sn->disk_size);
    store_be64(to + 16, sn->icount);
    memcpy(to + EXTRA, sn->id, sn->id_len);
    memcpy(to + EXTRA + sn->id_len, sn->name, sn->name_len);
}

int qcow2_snapshots_with(const struct qcow2_snapshots *t,
                         const struct qcow2_snapshot *sn,
                         struct qcow2_snapshots *after)
{
    uint64_t bytes = align_up(
        QCOW2_SNAPSHOT_HEAD + EXTRA + sn->id_len + (uint64_t)sn->name_len, 8);
    int r = new_table(t->bytes + bytes, t->count + 1, after);

    if (r < 0) {
        return r;
    }
    if (t->count > 0) {
        memcpy(after->table, t->table, t->bytes);
        memcpy(after->at, t->at, t->count * sizeof(*t->at));
    }
    after->at[t->count] = (uint32_t)t->bytes;
    write_entry(after->table + t->bytes, sn);
    return 0;
}

int qcow2_snapshots_without(const struct qcow2_snapshots *t, uint32_t i,
                            struct qcow2_snapshots *after)
{
    struct qcow2_snapshot sn;

    qcow2_snapshot_get(t, i, &sn);
    uint64_t end = t->at[i] + sn.bytes;
    int r = new_table(t->bytes - sn.bytes, t->count - 1, after);
    if (r < 0) {
        return r;
    }
    memcpy(after->table, t->table, t->at[i]);
    memcpy(after->table + t->at[i], t->table + end, t->bytes - end);
    for (uint32_t k = 0; k < after->count; k++) {
        after->at[k] = k < i ? t->at[k] : t->at[k + 1] - (uint32_t)sn.bytes;
    }
    return 0;
}

void qcow2_snapshot_date(struct qcow2_snapshots *t, uint32_t i, uint32_t sec,
                         uint32_t nsec)
{
    store_be32(t->table + t->at[i] + 16, sec);
    store_be32(t->table + t->at[i] + 20, nsec);
}

uint64_t qcow2_snapshot_next_id(const struct qcow2_snapshots *t)
{
    uint64_t max = 0;

    for (uint32_t i = 0; i < t->count; i++) {
        struct qcow2_snapshot sn;
        uint64_t id = 0;

        qcow2_snapshot_get(t, i, &sn);
        for (uint32_t k = 0; k < sn.id_len && sn.id[k] >= '0' &&
                             sn.id[k] <= '9' && id < UINT64_MAX / 20;
             k++) {
            id = id * 10 + (uint64_t)(sn.id[k] - '0');
        }
        max = max_u64(max, id);
    }
    return max + 1;
}

void qcow2_snapshots_free(struct qcow2_snapshots *t)
{
    free(t->table);
    free(t->at);
    *t = (struct qcow2_snapshots){0};
}
