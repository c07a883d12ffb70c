/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reading the snapshot table of an image that is being opened, and telling what
 * is in it.
 *
 * The header says how many entries there are, and not how many bytes.  So the
 * table is read piece by piece, as far as entries need it, and memory is taken
 * for what has been read only.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"
#include "qcow2/qcow2.h"

#define PIECE (64 * KiB)

/* The file may lack bytes that fill up the last entry. */
#define FILL 8

/* A table that is being read. */
struct reading {
    struct node *file;
    struct qcow2_snapshots *t;
    uint64_t have; /* bytes of it that are in memory */
    uint32_t room; /* for entries */
};

/* Read one more piece.  -ENODATA: the file ends, -EFBIG: it is too large. */
static int read_piece(struct reading *d)
{
    uint64_t from = d->t->offset + d->have;
    uint64_t end = node_size(d->file);
    uint64_t len = from < end ? min_u64(PIECE, end - from) : 0;

    if (len == 0) {
        return -ENODATA;
    }
    if (d->have >= QCOW2_SNAPSHOT_TABLE_MAX) {
        return -EFBIG;
    }
    unsigned char *more = realloc(d->t->table, d->have + len + FILL);
    if (!more) {
        return -ENOMEM;
    }
    d->t->table = more;
    memset(more + d->have + len, 0, FILL);
    int r = node_pread(d->file, more + d->have, len, from, 0);
    d->have += r == 0 ? len : 0;
    return r;
}

static int note_entry(struct reading *d, uint64_t bytes)
{
    struct qcow2_snapshots *t = d->t;

    if (t->count == d->room) {
        uint32_t room = d->room ? d->room * 2 : 16;
        uint32_t *more = realloc(t->at, room * sizeof(*more));
        if (!more) {
            return -ENOMEM;
        }
        t->at = more;
        d->room = room;
    }
    t->at[t->count++] = (uint32_t)t->bytes;
    t->bytes += bytes;
    return 0;
}

static int read_entries(struct reading *d, uint32_t count)
{
    struct qcow2_snapshots *t = d->t;
    int r = 0;

    while (r == 0 && t->count < count) {
        struct qcow2_snapshot sn;

        r = d->have <= t->bytes ? -EAGAIN
                                : qcow2_snapshot_parse(t->table + t->bytes,
                                                       d->have - t->bytes, &sn);
        if (r == -EAGAIN) {
            r = read_piece(d);
        } else if (r == 0) {
            r = note_entry(d, sn.bytes);
        }
    }
    return r;
}

static const char *judge_header(const struct qcow2_header *h)
{
    return h->snapshots > QCOW2_SNAPSHOTS_MAX
               ? "it has more entries than any may have"
           : h->snapshots_offset == 0 ||
                   !is_aligned(h->snapshots_offset, UINT64_C(1)
                                                        << h->cluster_bits) ||
                   h->snapshots_offset > BLK_SIZE_MAX
               ? "it is at a place where none can be"
               : NULL;
}

int qcow2_snapshots_load(struct node *file, const struct qcow2_header *h,
                         struct qcow2_snapshots *t, struct error **errp)
{
    struct reading d = {.file = file, .t = t};

    *t = (struct qcow2_snapshots){0};
    if (h->snapshots == 0) {
        return 0;
    }
    t->broken = judge_header(h);
    if (t->broken) {
        return 0;
    }
    t->offset = h->snapshots_offset;
    int r = read_entries(&d, h->snapshots);
    if (r == -ENODATA || r == -EFBIG) {
        qcow2_snapshots_free(t);
        t->broken = r == -ENODATA ? "it goes on behind the end of the file"
                                  : "it is larger than any may be";
        return 0;
    }
    if (r < 0) {
        qcow2_snapshots_free(t);
    }
    return r == -ENOMEM ? error_nomem(errp)
           : r < 0      ? error_set(errp, -r,
                                    "cannot read the image's snapshot table: %s",
                                    strerror(-r))
                        : 0;
}

int qcow2_snapshots_check(const struct qcow2_header *h,
                          const struct qcow2_snapshots *t, struct error **errp)
{
    if (t->broken) {
        return error_set(errp, EUCLEAN,
                         "the table of the image's internal snapshots is "
                         "damaged: %s ('nbdelta check' tells more); open the "
                         "image read-only",
                         t->broken);
    }
    if (t->count > 0 && (h->incompatible & QCOW2_INCOMPAT_DATA_FILE)) {
        return error_set(errp, ENOTSUP,
                         "the image has internal snapshots and an external "
                         "data file, which cannot keep them: open it "
                         "read-only");
    }
    return 0;
}

bool qcow2_snapshot_has_l1(const struct qcow2 *s,
                           const struct qcow2_snapshot *sn)
{
    uint64_t bytes = sn->l1_size * UINT64_C(8);

    return bytes <= QCOW2_MAX_L1_BYTES &&
           (sn->l1_size == 0 || sn->l1_offset != 0) &&
           is_aligned(sn->l1_offset, s->cluster_size) &&
           sn->l1_offset <= BLK_SIZE_MAX - bytes;
}

int qcow2_snapshot_choose(const struct qcow2_snapshots *t, const char *which,
                          struct qcow2_snapshot *sn, struct error **errp)
{
    int64_t i = qcow2_snapshot_which(t, which);

    if (i < 0) {
        return i == -ENOMEM ? error_nomem(errp)
               : i == -EINVAL
                   ? error_set(errp, EINVAL,
                               "'%.200s' is no list of "
                               "snapshot.id=ID and "
                               "snapshot.name=NAME",
                               which)
                   : error_set(errp, ENOENT, "there is no snapshot '%.200s'",
                               which);
    }
    qcow2_snapshot_get(t, (uint32_t)i, sn);
    return 0;
}

int qcow2_snapshot_shape(const struct qcow2 *s, uint64_t span, uint64_t now,
                         const struct qcow2_snapshot *sn, uint64_t *size,
                         struct error **errp)
{
    *size = sn->disk_size == UINT64_MAX ? now : sn->disk_size;
    return !qcow2_snapshot_has_l1(s, sn) || *size > BLK_SIZE_MAX ||
                   div_up(*size, span) > sn->l1_size
               ? error_set(errp, EUCLEAN,
                           "the L1 table of the snapshot '%.*s' cannot be "
                           "right: see 'nbdelta check'",
                           (int)min_u64(sn->name_len, 200), sn->name)
               : 0;
}

/* --- Telling --- */

static json_t *text_json(const char *bytes, uint32_t len)
{
    CLEANUP_FREE char *text = strndup(bytes, len);
    CLEANUP_FREE char *utf8 = text ? text_as_utf8(text) : NULL;

    return utf8 ? json_string(utf8) : NULL;
}

json_t *qcow2_snapshot_describe(const struct qcow2_snapshot *sn)
{
    json_t *icount = sn->icount == QCOW2_SNAPSHOT_NO_ICOUNT
                         ? NULL
                         : json_integer((json_int_t)sn->icount);

    return json_pack(
        "{s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:o*}", "id",
        text_json(sn->id, sn->id_len), "name",
        text_json(sn->name, sn->name_len), "vm-state-size",
        (json_int_t)sn->vm_state_size, "date-sec", (json_int_t)sn->date_sec,
        "date-nsec", (json_int_t)sn->date_nsec, "vm-clock-sec",
        (json_int_t)(sn->vm_clock_nsec / 1000000000), "vm-clock-nsec",
        (json_int_t)(sn->vm_clock_nsec % 1000000000), "icount", icount);
}

json_t *qcow2_snapshots_describe(const struct qcow2_snapshots *t)
{
    json_t *all = json_array();

    for (uint32_t i = 0; all && i < t->count; i++) {
        struct qcow2_snapshot sn;

        qcow2_snapshot_get(t, i, &sn);
        (void)json_array_append_new(all, qcow2_snapshot_describe(&sn));
    }
    return all;
}
