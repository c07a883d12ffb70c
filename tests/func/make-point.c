/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * make-point DIR POINT NOW [BEFORE]: add a point of one disk, "vda", to a
 * backup directory.  NOW is a raw file.  BEFORE is what it was at the latest
 * point, and the new one has what differs; without it, a full.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/transfer.h"
#include "store/store.h"
#include "store/sums.h"

static struct error *why;

static void must(int r)
{
    if (r < 0) {
        fprintf(stderr, "make-point: %s\n",
                why ? error_message(why) : strerror(-r));
        exit(EXIT_FAILURE);
    }
}

static struct node *open_raw(struct graph *g, const char *name)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s,s:b,s:{s:s,s:s}}", "driver", "raw",
                                       "read-only", 1, "file", "driver", "file",
                                       "filename", name);
    struct node *n;

    must(graph_open(g, o, &n, &why));
    return n;
}

static struct node *create(struct graph *g, const char *path, uint64_t size,
                           const char *parent)
{
    CLEANUP_JSON json_t *o = json_pack("{s:I}", "size", (json_int_t)size);
    CLEANUP_JSON json_t *open = json_pack("{s:s,s:n,s:{s:s,s:s}}", "driver",
                                          "qcow2", "backing", "file", "driver",
                                          "file", "filename", path);
    char name[64];
    struct node *n;

    if (parent) {
        (void)snprintf(name, sizeof(name), "%s.qcow2", parent);
        must(json_object_update_new(
            o, json_pack("{s:s,s:s,s:b}", "backing_file", name, "backing_fmt",
                         "qcow2", "backing_unchecked", 1)));
    }
    must(image_create(path, "qcow2", o, &why));
    must(graph_open(g, open, &n, &why));
    return n;
}

static void add_changes(struct transfer *t, const char *now, const char *before,
                        uint64_t size)
{
    static char a[SUMS_CHUNK];
    static char b[SUMS_CHUNK];
    FILE *f = fopen(now, "re");
    FILE *g = before ? fopen(before, "re") : NULL;

    for (uint64_t at = 0; at < size; at += SUMS_CHUNK) {
        size_t len = (size_t)min_u64(size - at, SUMS_CHUNK);
        if (!f || fread(a, 1, len, f) != len ||
            (before && (!g || fread(b, 1, len, g) != len))) {
            must(-EIO);
        }
        if (!before || memcmp(a, b, len) != 0) {
            transfer_add(t, at, len);
        }
    }
    if (f) {
        (void)fclose(f);
    }
    if (g) {
        (void)fclose(g);
    }
}

static void copy(struct graph *g, struct node *from, struct node *to,
                 struct sums *sums, const char *now, const char *before)
{
    struct transfer_options o = {.tap = sums_tap, .opaque = sums};
    struct transfer *t;
    struct blk *file;

    must(transfer_new(g, from, to, &o, &t, &why));
    add_changes(t, now, before, node_size(from));
    must(transfer_run(t, NULL, &why));
    transfer_free(t);
    must(blk_new(g, to, PERM_READ, PERM_ALL, "make-point", &file, &why));
    must(sums_finish(sums, file, &why));
    blk_free(file);
}

static void finish(struct store *s, const char *point, uint64_t size,
                   const struct store_point *parent, const struct sums *sums)
{
    struct manifest *m = manifest_new();
    struct manifest_disk *d = m ? manifest_add(m, "vda") : NULL;
    int fd = -1;

    must(d ? 0 : -ENOMEM);
    (void)snprintf(m->name, sizeof(m->name), "%s", point);
    (void)snprintf(m->id, sizeof(m->id), "%s", store_id(s));
    d->size = size;
    d->kind = parent ? DISK_INCREMENT : DISK_FULL;
    if (parent) {
        const struct manifest_disk *p = manifest_find(parent->manifest, "vda");
        (void)snprintf(d->parent, sizeof(d->parent), "%s", parent->name);
        (void)snprintf(d->parent_hash, sizeof(d->parent_hash), "%s",
                       p ? p->sums_hash : "");
    }
    must(store_create_file(s, "vda", point, "sums.part", &fd, &why));
    must(sums_write(sums, fd, d->sums_hash, &why));
    (void)close(fd);
    must(store_keep_disk(s, "vda", point, &why));
    must(store_put_pending(s, m, &why));
    must(store_finish_pending(s, &why));
}

int main(int argc, char **argv)
{
    CLEANUP_FREE char *path = NULL;
    struct store *s;

    if (argc < 4 || argc > 5) {
        fprintf(stderr, "usage: make-point DIR POINT NOW [BEFORE]\n");
        return 2;
    }
    const char *point = argv[2];
    must(store_open(argv[1], STORE_CREATE, "make-point", &s, &why));
    const struct store_point *parent = argc == 5 ? store_latest(s) : NULL;
    struct graph *g = graph_new();
    struct node *from = open_raw(g, argv[3]);
    uint64_t size = node_size(from);
    must(store_add_disk(s, "vda", &why));
    must(store_file_path(s, "vda", point, "qcow2.part", &path, &why));
    struct node *to = create(g, path, size, parent ? parent->name : NULL);
    struct sums *sums = sums_new(size, !parent);
    copy(g, from, to, sums, argv[3], argv[4]);
    graph_close_all(g);
    graph_free(g);
    finish(s, point, size, parent, sums);
    sums_free(sums);
    store_close(s);
    return 0;
}
