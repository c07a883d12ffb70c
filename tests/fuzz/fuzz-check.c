/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A hostile image is checked and repaired.  A check writes nothing.  After a
 * repair, what could be read reads the same, what could not reads as zeroes or
 * is told as corrupt, and a second repair finds nothing to do.
 */
#include "fuzz-file.h"

#include "../unit/qcow2-guest.h"
#include "nbdelta/image.h"

/* Units of the disk that are compared. */
#define SHOWN 4096

static int run_check(enum image_repair how, struct image_check *c)
{
    const struct image_check_options o = {.repair = how};
    CLEANUP_ERROR struct error *err = NULL;
    struct graph *g = graph_new();
    struct node *file = make_file(g);
    int r = image_check(g, file, "qcow2", &o, c, &err);

    check(r == 0 || (err && error_code(err) == -r));
    graph_lock(g);
    node_unref(file);
    graph_unlock(g);
    graph_free(g);
    return r;
}

/* Of images that the model knows: no data file, and tables where the model may
 * look for them. */
static bool can_compare(void)
{
    return load_be32(bytes_of_file + 4) == 2 ||
           !(load_be64(bytes_of_file + 72) & 4);
}

/* The entry is there. */
static bool is_compressed(const struct guest_image *g, uint64_t unit)
{
    return load_be64(g->bytes + guest_entry(g, unit)) >> 62 & 1;
}

/* Version 2 has no zero clusters: a cluster of zeroes stands for one. */
static bool is_zeroes(uint64_t look, uint64_t size)
{
    static const unsigned char zeroes[2 << 20];

    return look <= GUEST_ZEROES ||
           (look > GUEST_UNREADABLE && size <= sizeof(zeroes) &&
            memcmp(bytes_of_file + look, zeroes, size) == 0);
}

static void compare(const unsigned char *before, uint64_t end,
                    const struct image_check *c)
{
    const struct guest_image old = {before, end};
    const struct guest_image new = {bytes_of_file, FILE_MAX};
    uint64_t size = guest_unit_size(&old);
    uint64_t units = min_u64(load_be64(before + 24) / size, SHOWN);

    for (uint64_t i = 0; i < units; i++) {
        uint64_t was = guest_look(&old, i);
        uint64_t is = guest_look(&new, i);

        if (guest_is_disputed(&old, i)) {
            continue;
        }
        if (was == GUEST_UNREADABLE) {
            check(is_zeroes(is, size) || c->corruptions > 0);
        } else if (was <= GUEST_ZEROES) {
            check(is == was || is_compressed(&old, i));
        } else if (!is_compressed(&old, i) && !guest_is_table(&old, was)) {
            check(is > GUEST_UNREADABLE &&
                  memcmp(before + was, bytes_of_file + is, size) == 0);
        }
    }
}

static void repair(const unsigned char *before, uint64_t end)
{
    struct image_check first;
    struct image_check second;

    if (run_check(IMAGE_REPAIR_ALL, &first) < 0) {
        return;
    }
    if (can_compare()) {
        compare(before, end, &first);
    }
    check(run_check(IMAGE_REPAIR_ALL, &second) == 0);
    check(second.corruptions_fixed == 0 && second.leaks_fixed == 0);
    check(second.corruptions == first.corruptions);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static unsigned char *before;
    struct image_check c;

    /* The bits of a cluster's size are the file's, so tables stay in memory. */
    if (size < 512 || size > INPUT_MAX) {
        return 0;
    }
    fill_file(data, size);
    before = before ? before : calloc(1, FILE_MAX + FILE_SLACK);
    check(before);
    memcpy(before, data, size);
    if (run_check(IMAGE_REPAIR_NONE, &c) == 0) {
        check(memcmp(bytes_of_file, data, size) == 0);
        (void)run_check(IMAGE_REPAIR_LEAKS, &c);
        repair(before, size);
    }
    memset(bytes_of_file, 0, used);
    memset(before, 0, size);
    return 0;
}
