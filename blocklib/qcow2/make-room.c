/* SPDX-License-Identifier: BSD-3-Clause */
/* Preallocation, through the driver itself: a part of the disk gets clusters,
 * and these get blocks in the file. */
#include <errno.h>
#include <stdlib.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/image.h"
#include "qcow2/qcow2.h"

#define WRITTEN (1 * MiB) /* at once */

/* Make allocated clusters read as zeroes, because the file may have bytes there
 * that are older than the image.  Zeroes are written in fact, or the file is
 * asked for them, and gives them space or need not.  A data file is raw, or new
 * there, too. */
static int fill_run(const struct mapping *m, unsigned how, const void *zeroes)
{
    int r = 0;

    if (how != IMAGE_ROOM_FULL) {
        return node_zero(m->file, m->host, m->length,
                         how == IMAGE_ROOM_METADATA ? REQ_MAY_UNMAP : 0);
    }
    for (uint64_t done = 0; done < m->length && r == 0; done += WRITTEN) {
        r = node_pwrite(m->file, zeroes, min_u64(WRITTEN, m->length - done),
                        m->host + done, 0);
    }
    return r;
}

/* Version 2 has no clusters that read as zeroes, and never written ones of an
 * encrypted image do not: zeroes are written to the disk. */
static int write_zeroes(struct node *n, uint64_t offset, uint64_t bytes,
                        const void *zeroes)
{
    int r = 0;

    for (uint64_t at = 0; at < bytes && r == 0; at += WRITTEN) {
        r = node_pwrite(n, zeroes, min_u64(bytes - at, WRITTEN), offset + at,
                        0);
    }
    return r;
}

int qcow2_make_room(struct node *n, uint64_t offset, uint64_t bytes,
                    unsigned how)
{
    const struct qcow2 *s = n->state;
    CLEANUP_FREE char *zeroes = calloc(1, WRITTEN);

    if (!zeroes) {
        return -ENOMEM;
    }
    if (s->luks && s->version < 3) {
        return write_zeroes(n, offset, bytes, zeroes);
    }
    int r = qcow2_preallocate(n, offset, bytes);
    while (bytes > 0 && r == 0) {
        struct mapping m;

        r = node_map(n, offset, bytes, 0, &m);
        if (r < 0) {
            return r;
        }
        bool placed = m.kind == MAP_DATA || m.host_zero ||
                      (m.kind == MAP_UNALLOCATED && m.file);
        if (m.kind == MAP_UNALLOCATED && placed && how == IMAGE_ROOM_METADATA) {
            r = 0; /* subclusters with a place: nobody reads there */
        } else {
            r = placed ? fill_run(&m, how, zeroes)
                       : -EIO; /* another user changes the image */
        }
        offset += m.length;
        bytes -= m.length;
        node_map_put(n, &m);
    }
    return r;
}
