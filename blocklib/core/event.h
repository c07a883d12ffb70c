/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_EVENT_H
#define NBDELTA_CORE_EVENT_H

/*
 * Debug events: what a format is about to do with its file
 * =======================================================
 *
 * A format tells its file child before it reads data, updates a table,
 * allocates...  Only a blkdebug node there listens: it makes the requests
 * that follow fail, or holds up the thread that tells.  For all others an
 * event costs two loads and a branch that is never taken.
 */
#include <errno.h>

#include "core/node.h"

/* X(constant, word): the words are QEMU's. */
#define NODE_EVENTS(X)                                            \
    X(L1_UPDATE, "l1_update")                                     \
    X(L1_GROW_ALLOC_TABLE, "l1_grow_alloc_table")                 \
    X(L1_GROW_WRITE_TABLE, "l1_grow_write_table")                 \
    X(L1_GROW_ACTIVATE_TABLE, "l1_grow_activate_table")           \
    X(L2_LOAD, "l2_load")                                         \
    X(L2_UPDATE, "l2_update")                                     \
    X(L2_UPDATE_COMPRESSED, "l2_update_compressed")               \
    X(L2_ALLOC_COW_READ, "l2_alloc_cow_read")                     \
    X(L2_ALLOC_WRITE, "l2_alloc_write")                           \
    X(READ_AIO, "read_aio")                                       \
    X(READ_BACKING_AIO, "read_backing_aio")                       \
    X(READ_COMPRESSED, "read_compressed")                         \
    X(WRITE_AIO, "write_aio")                                     \
    X(WRITE_COMPRESSED, "write_compressed")                       \
    X(VMSTATE_LOAD, "vmstate_load")                               \
    X(VMSTATE_SAVE, "vmstate_save")                               \
    X(COW_READ, "cow_read")                                       \
    X(COW_WRITE, "cow_write")                                     \
    X(REFTABLE_LOAD, "reftable_load")                             \
    X(REFTABLE_GROW, "reftable_grow")                             \
    X(REFTABLE_UPDATE, "reftable_update")                         \
    X(REFBLOCK_LOAD, "refblock_load")                             \
    X(REFBLOCK_UPDATE, "refblock_update")                         \
    X(REFBLOCK_UPDATE_PART, "refblock_update_part")               \
    X(REFBLOCK_ALLOC, "refblock_alloc")                           \
    X(REFBLOCK_ALLOC_HOOKUP, "refblock_alloc_hookup")             \
    X(REFBLOCK_ALLOC_WRITE, "refblock_alloc_write")               \
    X(REFBLOCK_ALLOC_WRITE_BLOCKS, "refblock_alloc_write_blocks") \
    X(REFBLOCK_ALLOC_WRITE_TABLE, "refblock_alloc_write_table")   \
    X(REFBLOCK_ALLOC_SWITCH_TABLE, "refblock_alloc_switch_table") \
    X(CLUSTER_ALLOC, "cluster_alloc")                             \
    X(CLUSTER_ALLOC_BYTES, "cluster_alloc_bytes")                 \
    X(CLUSTER_FREE, "cluster_free")                               \
    X(FLUSH_TO_OS, "flush_to_os")                                 \
    X(FLUSH_TO_DISK, "flush_to_disk")                             \
    X(PWRITEV_RMW_HEAD, "pwritev_rmw_head")                       \
    X(PWRITEV_RMW_AFTER_HEAD, "pwritev_rmw_after_head")           \
    X(PWRITEV_RMW_TAIL, "pwritev_rmw_tail")                       \
    X(PWRITEV_RMW_AFTER_TAIL, "pwritev_rmw_after_tail")           \
    X(PWRITEV, "pwritev")                                         \
    X(PWRITEV_ZERO, "pwritev_zero")                               \
    X(PWRITEV_DONE, "pwritev_done")                               \
    X(EMPTY_IMAGE_PREPARE, "empty_image_prepare")                 \
    X(L1_SHRINK_WRITE_TABLE, "l1_shrink_write_table")             \
    X(L1_SHRINK_FREE_L2_CLUSTERS, "l1_shrink_free_l2_clusters")   \
    X(COR_WRITE, "cor_write")                                     \
    X(CLUSTER_ALLOC_SPACE, "cluster_alloc_space")                 \
    X(NONE, "none")

enum node_event {
#define NODE_EVENT_CONSTANT(constant, word) EVENT_##constant,
    NODE_EVENTS(NODE_EVENT_CONSTANT)
#undef NODE_EVENT_CONSTANT
        EVENT_COUNT
};

/* Tell @n of an event.  May block, also with driver mutexes of the caller held,
 * until a user resumes the thread, or the tree is about to be drained. */
static inline void node_event(struct node *n, enum node_event event)
{
    if (__builtin_expect(n->drv->event != NULL, false)) {
        n->drv->event(n, event);
    }
}

/* Tell @n in a request with @flags; -EAGAIN if it must not wait and @n
 * listens. */
static inline int node_event_in_request(struct node *n, enum node_event event,
                                        unsigned flags)
{
    if (__builtin_expect(n->drv->event != NULL, false)) {
        if (flags & REQ_NOWAIT) {
            return -EAGAIN;
        }
        n->drv->event(n, event);
    }
    return 0;
}

#endif /* NBDELTA_CORE_EVENT_H */
