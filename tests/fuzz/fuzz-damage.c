/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A hostile image is written to, and what was not written stays as it was.
 *
 *   data that no other entry leads to, and that are counted: read the same
 *   zeroes, and what is unallocated: still are
 *   the snapshot table, L1 and L2 tables of snapshots, the LUKS header: have
 *   the same bytes
 *
 * What two entries lead to is of no interest: who writes to one changes both.
 * Neither is what counts as free: it may be handed out.  The walk that all
 * checks use says what leads where.
 *
 * The first 4 bytes of the input choose what is done; the rest is the image.
 */
#include "fuzz-file.h"

#include "../unit/qcow2-guest.h"
#include "qcow2/alloc.h"
#include "qcow2/check.h"

/* Units of the disk that are looked at, and clusters of the file. */
#define SHOWN    4096
#define CLUSTERS (FILE_MAX / 512)

static uint32_t choice;
static bool touched[SHOWN];    /* units that were written */
static bool counted[CLUSTERS]; /* refcount is one */
static unsigned char *before;

static uint32_t some(uint32_t below)
{
    choice = choice * 1664525 + 1013904223;
    return below ? (choice >> 8) % below : 0;
}

/* A part of the structures that no write of a guest changes. */
static struct {
    uint64_t host;
    uint64_t bytes;
} lasting[256];
static size_t lasting_count;

/* --- What leads where, before --- */

/* Has the cluster at @host one reference, of these kinds? */
static bool is_single(const struct qcow2_check *k, uint64_t host,
                      unsigned kinds)
{
    const unsigned all = CENSUS_DATA | CENSUS_L2 | CENSUS_REFCOUNT |
                         CENSUS_META | CENSUS_TWICE;
    uint64_t cluster = host >> k->im.shape.cluster_bits;

    return qcow2_census_count(k->census, cluster) == 1 &&
           !(qcow2_census_flags(k->census, cluster) & all & ~kinds);
}

/* And is it counted as such? */
static bool is_alone(const struct qcow2_check *k, uint64_t host, unsigned kinds)
{
    uint64_t cluster = host >> k->im.shape.cluster_bits;

    return cluster < CLUSTERS && counted[cluster] && is_single(k, host, kinds);
}

/* A block that has another owner changes with that. */
static int note_block(struct qcow2_refblock *b, void *opaque)
{
    const struct qcow2_check *k = opaque;

    for (uint64_t i = 0; i < b->count && b->first + i < CLUSTERS &&
                         b->host != 0 && is_single(k, b->host, CENSUS_REFCOUNT);
         i++) {
        counted[b->first + i] =
            qcow2_refcount_load(b->bytes, k->im.shape.refcount_order, i) == 1;
    }
    return 0;
}

static int note_ref(const struct qcow2_ref *r, void *opaque)
{
    (void)opaque;
    if ((r->owner == QCOW2_OWN_SNAPSHOTS || r->owner == QCOW2_OWN_LUKS ||
         ((r->owner == QCOW2_OWN_L1 || r->owner == QCOW2_OWN_L2) &&
          r->disk != QCOW2_ACTIVE)) &&
        !r->wrong && lasting_count < 256) {
        lasting[lasting_count].host = r->host;
        lasting[lasting_count++].bytes = r->bytes;
    }
    return 0;
}

static bool has_sound_reftable(const struct qcow2_check *k)
{
    uint64_t bytes = (uint64_t)k->im.h.reftable_clusters
                     << k->im.shape.cluster_bits;
    bool sound = bytes < FILE_MAX;

    for (uint64_t at = 0; sound && at < bytes; at += k->im.shape.cluster_size) {
        sound = is_single(k, k->im.h.reftable_offset + at, CENSUS_REFCOUNT);
    }
    return sound;
}

/* False: it is no image, or one of which nothing can be said. */
static bool look_before(struct qcow2_check *k)
{
    static const struct image_check_options quiet = {0};
    const struct qcow2_walker w = {.refer = note_ref};
    struct graph *g = graph_new();
    struct node *file = make_file(g);
    int r = qcow2_check_run(k, file, &quiet, true, NULL);

    memset(counted, 0, sizeof(counted));
    lasting_count = 0;
    if (r == 0) {
        r = !has_sound_reftable(k)
                ? -EINVAL
                : qcow2_each_refblock(&k->im, CLUSTERS, note_block, k);
        r = r == 0 ? qcow2_walk(&k->im, &w) : r;
    }
    graph_lock(g);
    node_unref(file);
    graph_unlock(g);
    graph_free(g);
    return r == 0;
}

/* --- The guest --- */

static void touch(const struct guest_image *g, uint64_t at, uint64_t bytes)
{
    uint64_t unit = guest_unit_size(g);

    for (uint64_t u = at / unit; u <= (at + bytes - 1) / unit && u < SHOWN;
         u++) {
        touched[u] = true;
    }
}

static void change(struct blk *b, const struct guest_image *g)
{
    static char buf[70000];
    uint64_t span = min_u64(blk_size(b), SHOWN * guest_unit_size(g));

    for (unsigned i = 0; i < 8 && span > 0; i++) {
        uint64_t at = some(UINT32_MAX) * UINT64_C(512) % span;
        uint32_t most = some(3) ? 3000 : sizeof(buf) - 1;
        uint64_t bytes = min_u64(1 + some(most), span - at);

        touch(g, at, bytes);
        switch (some(6)) {
        case 0:
            (void)blk_zero(b, at, bytes, 0);
            break;
        case 1:
            (void)blk_zero(b, at, bytes, REQ_MAY_UNMAP);
            break;
        case 2:
            (void)blk_discard(b, at, bytes);
            break;
        case 3:
            (void)blk_flush(b);
            break;
        default:
            memset(buf, 0x5a, bytes);
            (void)blk_pwrite(b, buf, bytes, at, 0);
        }
    }
}

/* False: it cannot be opened. */
static bool open_and_change(const struct guest_image *g)
{
    struct graph *graph = graph_new();
    struct node *file = make_file(graph);
    struct node *disk = NULL;
    struct blk *b = NULL;
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:n, s:s}", "driver",
                                       "qcow2", "file", "image", "backing",
                                       "discard", "unmap");
    int r = graph_open(graph, o, &disk, NULL);

    if (r == 0) {
        check(blk_new(graph, disk, PERM_ALL, PERM_ALL, "fuzz", &b, NULL) == 0);
        change(b, g);
        blk_free(b);
        check(graph_close(graph, disk, NULL) == 0);
    }
    graph_lock(graph);
    node_unref(file);
    graph_unlock(graph);
    graph_free(graph);
    return r == 0;
}

/* --- Afterwards --- */

static bool is_packed(const struct guest_image *g, uint64_t unit)
{
    uint64_t at = guest_entry(g, unit);

    return at > GUEST_UNREADABLE && load_be64(g->bytes + at) >> 62 & 1;
}

/* The table that has the entry is nothing else, so only a write to this range
 * of the disk changes it. */
static bool has_sound_entry(const struct qcow2_check *k,
                            const struct guest_image *g, uint64_t unit)
{
    uint64_t at = guest_entry(g, unit);

    uint64_t table = k->im.shape.cluster_size << k->im.shape.l2_bits;
    uint64_t l1 = load_be64(g->bytes + 40) +
                  unit * guest_unit_size(g) / table * 8;

    /* What the L1 table has nothing for, only its own table can give. */
    return is_alone(k, l1, CENSUS_META) &&
           (at == GUEST_NOTHING ||
            (at > GUEST_UNREADABLE && is_alone(k, at, CENSUS_L2)));
}

static void compare_disk(const struct qcow2_check *k,
                         const struct guest_image *old)
{
    const struct guest_image new = {bytes_of_file, FILE_MAX};
    uint64_t size = guest_unit_size(old);
    uint64_t units = min_u64(load_be64(before + 24) / size, SHOWN);

    for (uint64_t i = 0; i < units; i++) {
        if (touched[i] || !has_sound_entry(k, old, i) || is_packed(old, i)) {
            continue;
        }
        uint64_t was = guest_look(old, i);
        uint64_t is = guest_look(&new, i);
        if (was <= GUEST_ZEROES) { /* may be copied with what is beside it */
            check(is <= GUEST_ZEROES ||
                  bytes_are_zero(bytes_of_file + is, size));
        } else if (was != GUEST_UNREADABLE && is_alone(k, was, CENSUS_DATA)) {
            check(is > GUEST_UNREADABLE &&
                  memcmp(before + was, bytes_of_file + is, size) == 0);
        }
    }
}

static void compare_structures(const struct qcow2_check *k)
{
    uint64_t size = k->im.shape.cluster_size;

    for (size_t i = 0; i < lasting_count; i++) {
        uint64_t end = lasting[i].host + lasting[i].bytes;

        for (uint64_t at = lasting[i].host; at < min_u64(end, FILE_MAX);
             at += size) {
            check(!is_alone(k, at, CENSUS_META | CENSUS_L2) ||
                  memcmp(before + at, bytes_of_file + at,
                         min_u64(size, end - at)) == 0);
        }
    }
}

/* Images that the model of a guest knows: no data file. */
static bool is_known(void)
{
    return load_be32(before + 4) == 2 || !(load_be64(before + 72) & 4);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct qcow2_check k;

    if (size < 4 + 512 || size > INPUT_MAX) {
        return 0;
    }
    choice = load_be32(data);
    fill_file(data + 4, size - 4);
    before = before ? before : calloc(1, FILE_MAX + FILE_SLACK);
    check(before);
    memcpy(before, data + 4, size - 4);
    memset(touched, 0, sizeof(touched));
    if (look_before(&k) && is_known()) {
        const struct guest_image old = {before, size - 4};

        if (open_and_change(&old)) {
            compare_disk(&k, &old);
            compare_structures(&k);
        }
    }
    qcow2_check_release(&k);
    memset(bytes_of_file, 0, used);
    memset(before, 0, size);
    return 0;
}
