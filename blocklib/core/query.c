/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes in the words of QMP: ImageInfo and BlockDeviceInfo. */

#include <sys/stat.h>

#include "core/graph-priv.h"
#include "core/image-name.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"

/* Add the bytes that the file of @n, or the files below it, take on disk. */
static bool add_disk_bytes(const struct node *n, uint64_t *sum)
{
    static const unsigned below[] = {CHILD_FILE, CHILD_DATA};
    struct stat st;
    bool known = false;

    if (n->drv->no_room) {
        return true;
    }
    if (n->drv->fstat) {
        known = n->drv->fstat(n, &st) == 0;
        *sum += known ? (uint64_t)st.st_blocks * 512 : 0;
        return known;
    }
    for (size_t i = 0; i < ARRAY_SIZE(below); i++) {
        const struct node *child = node_child(n, below[i]);

        known |= child && add_disk_bytes(child, sum);
    }
    return known;
}

bool node_disk_bytes(struct graph *g, const struct node *n, uint64_t *bytes)
{
    *bytes = 0;
    graph_lock(g);
    bool known = add_disk_bytes(n, bytes);
    graph_unlock(g);
    return known;
}

int node_check_alone(struct node *n, struct error **errp)
{
    int r = n->drv->check_alone ? n->drv->check_alone(n, errp) : 0;

    for (unsigned i = 0; r == 0 && i < CHILD_MAX; i++) {
        struct node *child = i != CHILD_BACKING ? node_child(n, i) : NULL;

        r = child ? node_check_alone(child, errp) : 0;
    }
    return r;
}

uint32_t node_cluster_size(const struct node *n)
{
    return n->cluster_size;
}

static void add_backing(struct node *n, json_t *info)
{
    const char *named = n->image_backing;

    if (!named) {
        return;
    }
    CLEANUP_FREE char *path = image_name_path(named, node_filename(n));
    const char *full = path ? path : named; /* no file: as it is */
    (void)json_object_set_new(info, "backing-filename", json_string(named));
    (void)json_object_set_new(info, "full-backing-filename", json_string(full));
    if (n->image_backing_fmt) {
        (void)json_object_set_new(info, "backing-filename-format",
                                  json_string(n->image_backing_fmt));
    }
}

/* QEMU tells of an image whether it was closed in order only if what has its
 * bytes knows more than their number. */
static bool has_details(const struct node *n)
{
    const struct node *file;

    n = node_skip_filters((struct node *)(uintptr_t)n);
    while (!n->drv->has_backing && (file = node_child(n, CHILD_FILE))) {
        n = node_skip_filters((struct node *)(uintptr_t)file);
    }
    return !n->drv->no_details;
}

static json_t *image_info(struct node *n)
{
    json_t *info = json_pack("{s:I, s:s, s:s}", "virtual-size",
                             (json_int_t)node_size(n), "filename",
                             node_filename(n), "format", node_driver(n));
    uint64_t on_disk = 0;

    if (!info) {
        info = json_object(); /* a file name that is not UTF-8 */
    }
    uint32_t cluster = node_skip_filters(n)->cluster_size;
    if (cluster > 0) {
        (void)json_object_set_new(info, "cluster-size", json_integer(cluster));
    }
    if (n->drv->describe) {
        n->drv->describe(n, info);
    }
    if (!json_object_get(info, "dirty-flag") && has_details(n)) {
        (void)json_object_set_new(info, "dirty-flag", json_false());
    }
    if (add_disk_bytes(n, &on_disk)) {
        (void)json_object_set_new(info, "actual-size",
                                  json_integer((json_int_t)on_disk));
    }
    add_backing(n, info);
    return info;
}

json_t *node_image_info(struct graph *g, struct node *n)
{
    graph_lock(g);
    json_t *info = image_info(n);
    graph_unlock(g);
    return info;
}

/* What a filter filters, or an image's backing node; filters that no user has
 * put there are not counted. */
static struct node *next_image(const struct node *n)
{
    struct node *below = node_child(n, n->drv->is_filter ? CHILD_FILE
                                                         : CHILD_BACKING);

    while (below && below->implicit) {
        below = node_child(below, CHILD_FILE);
    }
    return below;
}

/* ImageInfo with the chain below it, as BlockDeviceInfo has it. */
static json_t *image_chain(struct node *n)
{
    json_t *info = image_info(n);
    struct node *below = next_image(n);

    if (info && below) {
        (void)json_object_set_new(info, "backing-image", image_chain(below));
    }
    return info;
}

static json_int_t backing_depth(struct node *n)
{
    json_int_t depth = 0;

    while ((n = next_image(n))) {
        depth++;
    }
    return depth;
}

static json_t *device_info(struct node *n)
{
    static const char *const detect[] = {"off", "on", "unmap"};
    struct node *backing = node_child(n, CHILD_BACKING);
    json_t *info = json_pack(
        "{s:i, s:s, s:o, s:i, s:b, s:b, s:s, s:I, s:s, s:i, s:i, s:I, s:b, "
        "s:i, "
        "s:i, s:{s:b, s:b, s:b}, s:s}",
        "iops_rd", 0, "detect_zeroes", detect[n->flags.detect_zeroes], "image",
        image_chain(n), "iops_wr", 0, "ro", (int)node_read_only(n), "active",
        (int)node_active(n), "node-name", n->name, "backing_file_depth",
        backing_depth(n), "drv", node_driver(n), "iops", 0, "bps_wr", 0,
        "write_threshold", (json_int_t)atomic_load(&n->threshold), "encrypted",
        0, "bps", 0, "bps_rd", 0, "cache", "no-flush", (int)n->flags.no_flush,
        "direct", (int)n->flags.direct, "writeback", 1, "file",
        node_filename(n));

    if (json_is_true(
            json_object_get(json_object_get(info, "image"), "encrypted"))) {
        (void)json_object_set_new(info, "encrypted", json_true());
    }
    if (info && backing) {
        (void)json_object_set_new(info, "backing_file",
                                  json_string(node_filename(backing)));
    }
    return info ? info : json_object();
}

json_t *node_query(struct graph *g, struct node *n)
{
    graph_lock(g);
    json_t *info = device_info(n);
    graph_unlock(g);

    CLEANUP_JSON json_t *bitmaps = bitmap_query(n);
    if (json_array_size(bitmaps) > 0) {
        (void)json_object_set(info, "dirty-bitmaps", bitmaps);
    }
    return info;
}
