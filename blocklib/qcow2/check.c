/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Checking an image: all references are counted, and held against what the
 * image says.
 *
 *   walk -----> census       how often is each cluster referred to, by what
 *                 |
 *   refblocks --> compare    higher than the references: it leaks
 *                            lower: it is corrupt
 *                 |
 *               flags        COPIED says that a cluster has one reference
 *               clash        data where a table is
 *
 * What an entry says is told as it is read; the rest is told by clusters.
 */
#include "qcow2/check.h"
#include "qcow2/alloc.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

/* Between two questions whether to stop. */
#define STOP_EVERY 4096

static const char *const owner_names[] = {
    [QCOW2_OWN_HEADER] = "the header",
    [QCOW2_OWN_REFTABLE] = "the refcount table",
    [QCOW2_OWN_REFBLOCK] = "a refcount block",
    [QCOW2_OWN_L1] = "an L1 table",
    [QCOW2_OWN_L2] = "an L2 table",
    [QCOW2_OWN_DATA] = "a cluster of data",
    [QCOW2_OWN_PACKED] = "a compressed cluster",
    [QCOW2_OWN_SNAPSHOTS] = "the snapshot table",
    [QCOW2_OWN_BITMAP_DIR] = "the bitmap directory",
    [QCOW2_OWN_BITMAP_TABLE] = "a bitmap's table",
    [QCOW2_OWN_BITMAP] = "a cluster of a bitmap",
    [QCOW2_OWN_LUKS] = "the LUKS header",
};

void qcow2_check_tell(const struct image_check_options *o,
                      enum image_fault fault, const char *fmt, ...)
{
    char text[512];
    const struct image_finding f = {.fault = fault, .text = text};
    va_list ap;

    if (!o->found) {
        return;
    }
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    o->found(&f, o->opaque);
}

static void tell(const struct qcow2_check *k, enum image_fault fault,
                 const char *text)
{
    if (!k->quiet) {
        qcow2_check_tell(k->o, fault, "%s", text);
    }
}

static bool is_stopped(const struct qcow2_check *k)
{
    return k->o->stop && k->o->stop(k->o->opaque);
}

/* --- References --- */

static bool is_data(const struct qcow2_ref *r)
{
    return r->owner == QCOW2_OWN_DATA || r->owner == QCOW2_OWN_PACKED;
}

static void note_wrong(struct qcow2_check *k, const struct qcow2_ref *r)
{
    char text[256];
    char place[64] = "";

    k->corruptions++;
    k->broken = true;
    k->unknown |= !is_data(r) && r->owner != QCOW2_OWN_BITMAP;
    if (r->guest_bytes > 0) {
        (void)snprintf(place, sizeof(place),
                       " (disk 0x%" PRIx64 ", %" PRIu64 " bytes)", r->guest,
                       r->guest_bytes);
    }
    (void)snprintf(text, sizeof(text), "%s%s at 0x%" PRIx64 " %s%s",
                   owner_names[r->owner],
                   r->disk != QCOW2_ACTIVE ? " of a snapshot" : "", r->host,
                   r->wrong, place);
    tell(k, IMAGE_CORRUPT, text);
}

static unsigned flags_of(const struct qcow2_ref *r)
{
    unsigned copied = r->disk != QCOW2_ACTIVE ? 0
                      : r->copied             ? CENSUS_COPIED
                                              : CENSUS_SHARED;

    switch (r->owner) {
    case QCOW2_OWN_REFTABLE:
    case QCOW2_OWN_REFBLOCK:
        return CENSUS_REFCOUNT;
    case QCOW2_OWN_L2:
        return CENSUS_L2 | copied;
    case QCOW2_OWN_DATA:
        return CENSUS_DATA | copied;
    case QCOW2_OWN_PACKED: /* is never written in place */
        return CENSUS_DATA;
    default:
        return CENSUS_META;
    }
}

/* As qemu-img counts: clusters in a table that do not follow each other, and
 * all compressed ones. */
static void note_stats(struct qcow2_check *k, const struct qcow2_ref *r)
{
    uint64_t table = r->entry >> k->im.shape.cluster_bits;

    if (!is_data(r) || r->disk != QCOW2_ACTIVE) {
        return;
    }
    k->stats.allocated_clusters++;
    if (r->owner == QCOW2_OWN_PACKED) {
        k->stats.compressed_clusters++;
        k->stats.fragmented_clusters++;
        return;
    }
    if (table == k->fragment_table && k->fragment_next != 0 &&
        k->fragment_next != r->host) {
        k->stats.fragmented_clusters++;
    }
    k->fragment_table = table;
    k->fragment_next = r->host + k->im.shape.cluster_size;
}

static int count_ref(const struct qcow2_ref *r, void *opaque)
{
    struct qcow2_check *k = opaque;
    unsigned bits = k->im.shape.cluster_bits;
    uint64_t host = r->host;
    uint64_t end = host + r->bytes;

    if (r->wrong) {
        note_wrong(k, r);
        return 0;
    }
    note_stats(k, r);
    if (r->external || r->bytes == 0) {
        return 0;
    }
    for (uint64_t c = host >> bits; c <= (end - 1) >> bits; c++) {
        qcow2_census_add(k->census, c, r->times, flags_of(r));
        k->clash |= qcow2_census_clash(qcow2_census_flags(k->census, c));
    }
    return 0;
}

static int table_done(const struct qcow2_ref *table, struct qcow2_table *t,
                      void *opaque)
{
    const struct qcow2_check *k = opaque;

    (void)t;
    if (k->o->progress) {
        k->o->progress((double)table->host / (double)k->im.file_size,
                       k->o->opaque);
    }
    return is_stopped(k) ? -ECANCELED : 0;
}

/* --- Refcounts --- */

/* A run of clusters of which the same is to be said. */
struct run {
    struct qcow2_check *k;
    uint64_t first;
    uint64_t count;
    uint64_t stored;
    uint64_t counted;
};

static void end_run(struct run *r)
{
    char text[160];
    bool leak = r->stored > r->counted;

    if (r->count > 0) {
        (void)snprintf(text, sizeof(text),
                       "clusters %" PRIu64 " to %" PRIu64 ": refcount %" PRIu64
                       ", references %" PRIu64,
                       r->first, r->first + r->count - 1, r->stored,
                       r->counted);
        tell(r->k, leak ? IMAGE_LEAK : IMAGE_CORRUPT, text);
    }
    r->count = 0;
}

static void note_difference(struct run *r, uint64_t cluster, uint64_t stored,
                            uint64_t counted)
{
    struct qcow2_check *k = r->k;

    if (r->count == 0 || r->first + r->count != cluster ||
        r->stored != stored || r->counted != counted) {
        end_run(r);
        *r = (struct run){k, cluster, 0, stored, counted};
    }
    r->count++;
    if (stored > counted) {
        k->leaks++;
    } else {
        k->corruptions++;
        k->low = true;
    }
}

static void tell_cluster(struct qcow2_check *k, uint64_t cluster,
                         const char *what)
{
    char text[128];

    k->corruptions++;
    (void)snprintf(text, sizeof(text), "cluster %" PRIu64 " (0x%" PRIx64 ") %s",
                   cluster, cluster << k->im.shape.cluster_bits, what);
    tell(k, IMAGE_CORRUPT, text);
}

/* COPIED, held against the refcount, as QEMU does, and against the references.
 * Where the refcount is too high, nobody can be told to be the only one. */
static void look_at_flags(struct run *r, uint64_t cluster, uint64_t stored,
                          uint64_t counted)
{
    struct qcow2_check *k = r->k;
    unsigned flags = qcow2_census_flags(k->census, cluster);
    bool several = (flags & CENSUS_COPIED) && counted != 1;
    bool alone = (flags & CENSUS_SHARED) && counted == 1 && stored == 1;
    bool claims = (flags & CENSUS_COPIED) && counted == 1 && stored > 1;

    if (several || alone || claims) {
        end_run(r);
        k->flags |= several || alone;
        k->claims += claims;
        tell_cluster(k, cluster,
                     several ? "has several references, and one of them says "
                               "that it is the only one"
                     : alone ? "has one reference, which does not say so"
                             : "has a reference that says that it is the only "
                               "one, and the refcount says something else");
    }
}

static int compare_block(struct qcow2_refblock *b, void *opaque)
{
    struct run *r = opaque;
    struct qcow2_check *k = r->k;

    for (uint64_t i = 0; i < b->count; i++) {
        uint64_t cluster = b->first + i;
        uint64_t stored = qcow2_refcount_load(b->bytes,
                                              k->im.shape.refcount_order, i);
        uint64_t counted = qcow2_census_count(k->census, cluster);

        if (stored != counted) {
            note_difference(r, cluster, stored, counted);
        }
        look_at_flags(r, cluster, stored, counted);
        if (stored != 0 || counted != 0) {
            k->end = max_u64(k->end, cluster + 1);
        }
        if (counted != 0) {
            k->referred = max_u64(k->referred, cluster + 1);
        }
    }
    return is_stopped(k) ? -ECANCELED : 0;
}

/* --- Who has a cluster --- */

static int look_at_clusters(struct qcow2_check *k)
{
    for (uint64_t c = 0; c < k->end; c++) {
        if (qcow2_census_clash(qcow2_census_flags(k->census, c))) {
            tell_cluster(k, c, "belongs to two that cannot share it");
        }
        if (c % STOP_EVERY == 0 && is_stopped(k)) {
            return -ECANCELED;
        }
    }
    return 0;
}

/* --- The whole --- */

static int look(struct qcow2_check *k)
{
    struct run run = {.k = k};
    const struct qcow2_walker w = {
        .refer = count_ref, .table = table_done, .opaque = k};
    int r = qcow2_walk(&k->im, &w);

    if (r == 0) {
        r = qcow2_each_refblock(&k->im, qcow2_census_size(k->census),
                                compare_block, &run);
        end_run(&run);
    }
    return r == 0 ? look_at_clusters(k) : r;
}

int qcow2_check_run(struct qcow2_check *k, struct node *file,
                    const struct image_check_options *o, bool quiet,
                    struct error **errp)
{
    *k = (struct qcow2_check){.o = o, .quiet = quiet};
    int r = qcow2_image_read(file, &k->im, errp);

    if (r < 0) {
        return r;
    }
    /* A reference may lead to one cluster behind the end, and compressed bytes
     * may seem to go on in the next. */
    k->census =
        qcow2_census_new(div_up(k->im.file_size, k->im.shape.cluster_size) + 2);
    if (!k->census) {
        return error_set(errp, ENOMEM,
                         "the file is too large to be checked with the memory "
                         "of this machine");
    }
    r = look(k);
    k->stats.total_clusters = div_up(k->im.h.size, k->im.shape.cluster_size);
    k->stats.image_end_offset = k->end << k->im.shape.cluster_bits;
    k->stats.corruptions = k->corruptions;
    k->stats.leaks = k->leaks;
    if (r == -ECANCELED) {
        return error_set(errp, ECANCELED, "the check was cancelled");
    }
    return r < 0
               ? error_set(errp, -r, "cannot check the image: %s", strerror(-r))
               : 0;
}

void qcow2_check_release(struct qcow2_check *k)
{
    qcow2_census_free(k->census);
    k->census = NULL;
    qcow2_image_release(&k->im);
}
