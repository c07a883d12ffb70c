/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sharing bytes instead of moving them, where two files are on a file system
 * that can (reflinks).
 *
 *      from                     to
 *        map -> DATA(file, host)  clone: a place for them (qcow2)
 *                  \                |
 *                   v               v
 *                  file  - - ->  clone of the file's driver
 *
 * The caller reads and writes where this does not work, and so finds out
 * what is wrong, and at which end.
 */
#include <errno.h>

#include "core/dirty.h"
#include "core/driver.h"
#include "core/io.h"

/* @from is a protocol. */
static int clone_from_file(struct node *n, uint64_t offset, uint64_t bytes,
                           struct node *from, uint64_t at)
{
    if (n->flags.read_only) {
        return -EPERM;
    }
    int r = bitmap_mark(n, offset, bytes, 0);
    if (r < 0) {
        return r;
    }
    node_note_write(n, offset + bytes);
    if (n->drv->is_filter && !n->drv->pwritev) {
        return clone_from_file(node_child(n, CHILD_FILE), offset, bytes, from,
                               at);
    }
    r = n->drv->clone ? n->drv->clone(n, offset, bytes, from, at) : -ENOTSUP;
    if (r == 0 && n->growable) {
        node_raise_size(n, offset + bytes);
    }
    return r;
}

int node_clone(struct node *n, uint64_t offset, uint64_t bytes,
               struct node *from, uint64_t at)
{
    int r = 0;

    if (from->drv->is_protocol) {
        return clone_from_file(n, offset, bytes, from, at);
    }
    for (uint64_t done = 0; r == 0 && done < bytes;) {
        struct mapping m;

        r = node_map(from, at + done, bytes - done, 0, &m);
        if (r < 0) {
            return r;
        }
        r = m.kind == MAP_DATA && !m.coded
                ? node_clone(n, offset + done, m.length, m.file, m.host)
                : -ENOTSUP;
        node_map_put(from, &m);
        done += m.length;
    }
    return r;
}
