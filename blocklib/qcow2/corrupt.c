/* SPDX-License-Identifier: BSD-3-Clause */
/* Images that contradict themselves: no more writes, and somebody is told. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "core/node.h"
#include "nbdelta/tell.h"
#include "qcow2/qcow2.h"

#define TEXT_MAX 256

static void set_bit(struct qcow2 *s)
{
    unsigned char be[8];

    store_be64(be, s->incompatible | QCOW2_INCOMPAT_CORRUPT);
    (void)node_pwrite(s->file, be, sizeof(be), QCOW2_HDR_INCOMPAT, 0);
    (void)node_flush(s->file);
}

static int corrupt(struct qcow2 *s, struct corruption *c)
{
    if (atomic_exchange(&s->corrupt, true)) {
        return -EIO;
    }
    c->node = node_name(s->node);
    c->fatal = !s->node->flags.read_only;
    tell_event(TELL_ERROR, "the image of node '%.200s' is corrupt: %s", c->node,
               c->text);
    if (s->version >= 3 && c->fatal) {
        set_bit(s);
    }
    node_tell_corruption(s->node, c);
    return -EIO;
}

int qcow2_corrupt_at(struct qcow2 *s, uint64_t host, uint64_t bytes,
                     const char *fmt, ...)
{
    char text[TEXT_MAX];
    struct corruption c = {
        .text = text, .placed = true, .offset = host, .bytes = bytes};
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return corrupt(s, &c);
}

int qcow2_mark_corrupt(struct qcow2 *s)
{
    struct corruption c = {.text = "its tables contradict each other"};

    return corrupt(s, &c);
}
