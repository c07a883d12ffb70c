/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A hostile image: opened, read all over, described, written, zeroed, closed,
 * and opened again.  Whatever its bytes say, calls return 0 or an error, in
 * bounded time and memory, and what is read-only stays as it is.
 *
 * The image lies in a protocol driver of the fuzzer, which is never larger
 * than FILE_MAX; its data file, if it says that it has one, in memory.  The
 * first 4 bytes of the input choose where to go in the disk; the rest is the
 * image.
 */
#include "fuzz-file.h"

/* --- Using a disk --- */

static uint32_t choice;

/* Offsets near the places where tables, clusters and the disk end. */
static uint64_t some_offset(uint64_t size)
{
    choice = choice * 1664525 + 1013904223;
    uint64_t high = choice >> 8;
    uint64_t at = 0;

    switch (choice >> 4 & 3) {
    case 0:
        at = high % (64 * KiB);
        break;
    case 1:
        at = (high & 0xff) << (high >> 8 & 31) << (high >> 13 & 15);
        break;
    case 2:
        at = size - min_u64(size, high % (128 * KiB) + 1);
        break;
    default:
        at = high * 4096;
    }
    return size == 0 ? 0 : at % size;
}

struct walk {
    uint64_t at;
    unsigned left;
};

static int on_extent(const struct extent *e, void *opaque)
{
    struct walk *w = opaque;

    check(e->length > 0 && e->offset == w->at);
    w->at += e->length;
    return --w->left == 0 ? 1 : 0;
}

static void look(struct blk *b, char *buf, size_t len)
{
    uint64_t size = blk_size(b);

    for (unsigned i = 0; i < 12 && size > 0; i++) {
        uint64_t at = some_offset(size);
        (void)blk_pread(b, buf, min_u64(len, size - at), at,
                        i % 4 ? 0 : REQ_NOWAIT);
        struct walk w = {.at = at, .left = 200};
        uint64_t bytes = min_u64(i % 2 ? 64 * MiB : 4 * KiB, size - at);
        int r = blk_extents(b, at, bytes, 0, on_extent, &w);
        check(r != 0 || w.at == at + bytes);
        (void)blk_prefetch(b, at, min_u64(len, size - at));
    }
}

static void change(struct blk *b, char *buf, size_t len)
{
    uint64_t size = blk_size(b);

    for (unsigned i = 0; i < 10 && size > 0; i++) {
        uint64_t at = some_offset(size);
        uint64_t bytes = min_u64(1 + choice % len, size - at);

        switch (i % 5) {
        case 0:
        case 1:
            memset(buf, (int)(choice >> 16 | 1), bytes);
            (void)blk_pwrite(b, buf, bytes, at, i ? 0 : REQ_FUA);
            break;
        case 2:
            (void)blk_zero(b, at, bytes, choice & 256 ? REQ_MAY_UNMAP : 0);
            break;
        case 3:
            (void)blk_discard(b, at, min_u64(size - at, bytes * 16));
            break;
        default:
            (void)blk_flush(b);
        }
    }
    if (choice & 1024) {
        (void)blk_resize(b, size < GiB ? size + 300000 : size / 2, NULL);
    }
}

static void use(struct graph *g, struct node *disk, bool writable)
{
    static char buf[70000];
    struct blk *b = NULL;

    json_decref(node_query(g, disk));
    json_decref(node_image_info(g, disk));
    check(blk_new(g, disk, writable ? PERM_ALL : PERM_READ, PERM_ALL, "fuzz",
                  &b, NULL) == 0);
    look(b, buf, sizeof(buf));
    if (writable) {
        change(b, buf, sizeof(buf));
        look(b, buf, sizeof(buf));
        (void)blk_flush(b);
    }
    blk_free(b);
}

/* Does the header tell of an external data file? */
static bool has_data_file(void)
{
    return used >= 80 && load_be32(bytes_of_file + 4) == 3 &&
           (load_be64(bytes_of_file + 72) & 4);
}

static void open_and_use(bool writable)
{
    struct graph *g = graph_new();
    struct node *file = make_file(g);
    struct node *disk = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_pack(
        "{s:s, s:s, s:n, s:b, s:s}", "driver", "qcow2", "file", "image",
        "backing", "read-only", !writable, "discard", "unmap");

    if (has_data_file()) { /* now and then too short for the disk */
        (void)json_object_set_new(o, "data-file",
                                  json_pack("{s:s, s:i}", "driver", "mem",
                                            "size", choice & 1 ? 4096 : MiB));
    }

    int r = graph_open(g, o, &disk, &err);
    if (r == 0) {
        use(g, disk, writable);
        check(graph_close(g, disk, NULL) == 0);
    } else {
        check(err && error_code(err) == -r && error_message(err)[0]);
        for (const char *p = error_message(err); *p; p++) {
            check((unsigned char)*p >= 0x20 && *p != 0x7f);
        }
    }
    graph_lock(g);
    node_unref(file);
    graph_unlock(g);
    graph_free(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4 || size > INPUT_MAX) {
        return 0;
    }
    choice = load_be32(data);
    fill_file(data + 4, size - 4);
    open_and_use(false);
    check(memcmp(bytes_of_file, data + 4, size - 4) == 0);
    open_and_use(true);
    open_and_use(false);
    memset(bytes_of_file, 0, used);
    return 0;
}
