/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Copying up: clusters of the backing file get into the image.
 *
 *   range lock on the guest clusters, so that no other request allocates them
 *   +- what is unallocated now?  that, and nothing else:
 *        data      as a write (write.c), which notes them as old data
 *        zeroes    ZERO entries; what is no whole subcluster: as data
 *
 *  1. An unallocated cluster is written by nobody without the range lock.  So
 *     what is found unallocated under the lock has not been written by a guest
 *     since the caller has read the backing file, and is not until it is
 *     linked.
 *  2. The caller reads before that, without the lock: a backing file that is
 *     slow holds up no guest's write.
 *  3. A guest that has flushed long ago knows nothing of the new place.  So the
 *     bytes are old data (copied.c): durable before the entry leads there on
 *     disk, and copied again when a flush fails.
 */
#include <errno.h>
#include <stdlib.h>

#include "nbdelta/cleanup.h"
#include "qcow2/piece.h"
#include "qcow2/write.h"

/* Zeroes take no time, but other requests wait for the lock. */
#define LOCKED_MAX (2 * MiB)
#define ZEROES_LEN (64 * KiB)

static int write_zeroes(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    uint64_t chunk = min_u64(bytes, ZEROES_LEN);
    int r = 0;

    if (bytes == 0) {
        return 0;
    }
    CLEANUP_FREE void *zeroes = calloc(1, chunk);
    if (!zeroes) {
        return -ENOMEM;
    }
    for (uint64_t done = 0; done < bytes && r == 0; done += chunk) {
        r = qcow2_write_copied_up(s, offset + done,
                                  min_u64(bytes - done, chunk), zeroes, 0);
    }
    return r;
}

static int zero_run(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes;
    uint64_t from = align_up(offset, qcow2_sub_size(s));
    uint64_t to = end == s->node->size ? end
                                       : align_down(end, qcow2_sub_size(s));

    if (s->version < 3 || s->raw || from >= to) {
        return write_zeroes(s, offset, bytes);
    }
    int r = qcow2_zero_copied_up(s, from, to - from);
    if (r == 0) {
        r = write_zeroes(s, offset, from - offset);
    }
    return r == 0 ? write_zeroes(s, to, end - to) : r;
}

/* With the clusters locked. */
static int copy_locked(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                       const char *buf, unsigned flags)
{
    struct mapping m;
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0; done += m.length) {
        r = qcow2_map(s->node, offset + done, bytes - done, 0, &m);
        if (r < 0) {
            return r;
        }
        qcow2_map_put(s->node, &m);
        if (m.kind == MAP_UNALLOCATED) {
            r = buf ? qcow2_write_copied_up(s, offset + done, m.length,
                                            buf + done, flags)
                    : zero_run(s, offset + done, m.length);
        }
    }
    return r;
}

int qcow2_copy_up(struct node *n, uint64_t offset, uint64_t bytes,
                  const void *buf, unsigned flags)
{
    struct qcow2 *s = n->state;
    int r = qcow2_check_data(s);

    for (uint64_t done = 0, len; done < bytes && r == 0; done += len) {
        uint64_t start = align_down(offset + done, s->cluster_size);
        struct range_req req;

        len = min_u64(bytes - done, LOCKED_MAX);
        range_lock(&s->range, &req, start,
                   align_up(offset + done + len, s->cluster_size) - start,
                   true);
        r = copy_locked(s, offset + done, len,
                        buf ? (const char *)buf + done : NULL, flags);
        range_unlock(&s->range, &req);
        r = r < 0 ? r : qcow2_relieve(s);
    }
    return r;
}
