/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Status of a range through all layers: each layer's map, and the backing
 * node's map for ranges that the layer leaves to it.
 */
#include <assert.h>
#include <errno.h>

#include "core/node.h"
#include "nbdelta/bytes.h"

/* So many mappings are looked up at once.  They are on the stack, once for each
 * layer. */
#define MAPPINGS_MAX 32

struct walk {
    extent_fn *fn;
    void *opaque;
    unsigned flags; /* enum map_flags */
};

/* Walk one node.  @shift turns an offset of this node into one of the top
 * node. */
static int walk_node(const struct walk *w, struct node *n, uint64_t offset,
                     uint64_t bytes, uint64_t shift, unsigned depth);

static int walk_below(const struct walk *w, struct node *n, uint64_t offset,
                      uint64_t bytes, uint64_t shift, unsigned depth)
{
    struct node *backing = node_child(n, CHILD_BACKING);
    uint64_t size = backing ? backing->size : 0;
    uint64_t inside = offset < size ? min_u64(bytes, size - offset) : 0;

    if (inside > 0) {
        int r = walk_node(w, backing, offset, inside, shift, depth + 1);
        if (r != 0) {
            return r;
        }
    }
    if (inside == bytes) {
        return 0;
    }
    struct extent e = {
        .offset = offset + inside + shift,
        .length = bytes - inside,
        .flags = EXTENT_ZERO,
        .depth = depth,
    };
    return w->fn(&e, w->opaque);
}

/* --- Under a guard (node.h): look, check, then tell --- */

struct first {
    struct extent e;
    bool any;
};

static int take_first(const struct extent *e, void *opaque)
{
    struct first *f = opaque;

    f->e = *e;
    f->any = true;
    return 1;
}

/* As walk_below(), for the first part of the range that is alike.  The guard
 * was asked before the map was: the range is @held, or not.  The caller looks
 * again at the rest of the range, beginning with the guard. */
static int walk_guarded(const struct walk *w, struct node *n, bool held,
                        uint64_t offset, uint64_t *bytes, uint64_t shift,
                        unsigned depth)
{
    struct first f = {.any = false};
    struct walk look = {take_first, &f, w->flags};

    if (*bytes == 0) {
        return -EIO;
    }
    int r = walk_below(&look, n, offset, *bytes, shift, depth);

    if (r < 0) {
        return r;
    }
    assert(f.any);
    *bytes = min_u64(*bytes, f.e.length);
    if (held && !node_guard_holds(n, offset, *bytes)) {
        *bytes = 0;
        return 0;
    }
    return w->fn(&f.e, w->opaque);
}

static int emit(const struct walk *w, struct node *n, const struct mapping *m,
                uint64_t offset, uint64_t shift, unsigned depth)
{
    struct extent e = {
        .offset = offset + shift,
        .length = m->length,
        .flags = EXTENT_ALLOCATED,
        .depth = depth,
        .host = m->host,
    };
    if ((m->kind == MAP_DATA || m->host_zero) && !m->coded) {
        e.flags |= EXTENT_HOST_VALID;
        e.host_file = node_filename(m->file ? m->file : n);
    }
    if (m->kind == MAP_ZERO) {
        e.flags |= EXTENT_ZERO;
    } else if (m->no_data) {
        e.flags = 0;
    } else {
        e.flags |= EXTENT_DATA;
    }
    if (m->compressed) {
        e.flags |= EXTENT_COMPRESSED;
    }
    return w->fn(&e, w->opaque);
}

/* Tell of a mapping, or ask the node that it leads to.  A guard may make it
 * shorter. */
static int tell_mapping(const struct walk *w, struct node *n, bool held,
                        struct mapping *m, uint64_t offset, uint64_t shift,
                        unsigned depth)
{
    if (m->kind == MAP_UNALLOCATED) {
        return n->guard
                   ? walk_guarded(w, n, held, offset, &m->length, shift, depth)
                   : walk_below(w, n, offset, m->length, shift, depth);
    }
    if (m->kind == MAP_DATA && m->file && !m->coded && !n->drv->is_protocol &&
        (!n->drv->has_backing || m->file == node_child(n, CHILD_DATA))) {
        /* The node is a plain window on its file, which knows its holes. */
        return walk_node(w, m->file, m->host, m->length,
                         shift + offset - m->host, depth);
    }
    return emit(w, n, m, offset, shift, depth);
}

/* Under a guard there is one mapping: what was looked up before the others were
 * told of may not be true any more. */
static int map_some(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned flags, struct mapping *m, unsigned *count)
{
    if (n->drv->map_many && !n->guard) {
        return n->drv->map_many(n, offset, bytes, flags, m, count);
    }
    *count = 1;
    return node_map(n, offset, bytes, flags, m);
}

static int walk_node(const struct walk *w, struct node *n, uint64_t offset,
                     uint64_t bytes, uint64_t shift, unsigned depth)
{
    unsigned want = 1; /* callers may have enough of the first one */

    for (; n->drv->is_filter; n = node_child(n, CHILD_FILE)) {
        int r = !n->drv->status         ? 0
                : w->flags & MAP_NOWAIT ? -EAGAIN /* it sees each one once */
                                        : n->drv->status(n, offset, bytes);
        if (r < 0) {
            return r;
        }
    }
    while (bytes > 0) {
        struct mapping m[MAPPINGS_MAX];
        unsigned count = want;
        uint64_t alike = bytes;
        bool held = node_guard(n, offset, &alike);
        int r = map_some(n, offset, bytes, w->flags | MAP_STATUS, m, &count);
        if (r < 0) {
            return r;
        }
        if (n->guard && m[0].kind == MAP_UNALLOCATED) {
            m[0].length = min_u64(m[0].length, alike);
        }
        for (unsigned i = 0; i < count && r == 0; i++) {
            r = tell_mapping(w, n, held, &m[i], offset, shift, depth);
            offset += m[i].length;
            bytes -= m[i].length;
        }
        node_map_put(n, m);
        if (r != 0) {
            return r;
        }
        want = MAPPINGS_MAX;
    }
    return 0;
}

int node_extents(struct node *n, uint64_t offset, uint64_t bytes,
                 unsigned flags, extent_fn *fn, void *opaque)
{
    struct walk w = {
        .fn = fn,
        .opaque = opaque,
        .flags = flags & REQ_NOWAIT ? MAP_NOWAIT : 0,
    };
    return walk_node(&w, n, offset, bytes, 0, 0);
}
