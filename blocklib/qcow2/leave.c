/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Leaving ranges to the backing file, whose content they have by now.
 *
 *   leave_range, drained    entries become UNALLOCATED, clusters go to limbo
 *   leave_end, a request    flush: no entry on disk leads to them any more;
 *                           they are discarded, and free
 *
 * What the backing file got has to be durable before the first call.  A crash
 * in between leaves any mixture of old and new entries, and all of these read
 * the same.
 *
 * Clusters of an external data file keep their bytes.  They could be discarded
 * once the entries are on disk only, and a guest may have put new data there by
 * then.
 */
#include <errno.h>

#include "qcow2/alloc.h"
#include "qcow2/l2.h"
#include "qcow2/qcow2.h"

/* In the part of the range that one L2 table describes. */
static int leave_in_l2(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                       bool *some) REQUIRES(s->meta)
{
    struct qcow2_table *t;
    struct qcow2_at at;

    if (!(atomic_load(&s->l1[offset / qcow2_l2_span(s)]) & QCOW2_OFFSET_MASK)) {
        return 0;
    }
    int r = qcow2_l2_get_writable(s, offset, &t);
    if (r < 0) {
        return r;
    }
    for (uint64_t done = 0; done < bytes && r == 0; done += at.bytes) {
        qcow2_l2_look(s, t, offset + done, bytes - done, &at);
        r = at.contradicts ? qcow2_l2_check(s, &at) : 0;
        if (r == 0 && at.kind != QCOW2_KIND_UNALLOCATED) {
            *some = true;
            r = qcow2_l2_put(s, t, offset + done, at.bytes,
                             QCOW2_KIND_UNALLOCATED, 0);
        }
    }
    qcow2_cache_put(s->l2, t);
    return r;
}

static int leave_clusters(struct qcow2 *s, uint64_t offset, uint64_t bytes,
                          bool *some)
{
    uint64_t seen = atomic_load(&s->released);
    int r;

    do {
        mutex_lock(&s->meta);
        r = leave_in_l2(s, offset, bytes, some);
        mutex_unlock(&s->meta);
    } while (qcow2_try_again(s, &r, &seen));
    return r;
}

int qcow2_leave_range(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct qcow2 *s = n->state;
    bool some = false;
    int r = 0;

    if (!s->data) {
        return -ENOMEDIUM;
    }
    if (s->raw) {
        return -ENOTSUP; /* it has no backing file */
    }
    if (atomic_load(&s->corrupt)) {
        return -EIO;
    }
    for (uint64_t done = 0, len; done < bytes && r == 0; done += len) {
        len = min_u64(bytes - done, qcow2_l2_rest(s, offset + done));
        r = leave_clusters(s, offset + done, len, &some);
    }
    return r < 0 ? r : some;
}

int qcow2_leave_end(struct node *n)
{
    struct qcow2 *s = n->state;
    bool empty;

    qcow2_give_back(s, true);
    int r = qcow2_empty_limbo(s, &empty);
    qcow2_give_back(s, false);
    return r;
}
