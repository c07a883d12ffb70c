/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is noted of a write before it happens: how far the node was ever written
 * (`highest`), and whether that is past an offset of which somebody wants to
 * hear, once (`threshold`).
 *
 *      0        threshold      highest
 *      |------------|-------------|------------
 *      nothing      tell, once    raise highest
 *      to note
 *
 * A write compares its end with one number, `noted`: all writes up to there
 * have nothing to note.  It is the smaller of the two, so a threshold that is
 * not set costs nothing.
 *
 * Writes and node_set_threshold() run at the same time.  A write raises `noted`
 * and then looks for a threshold; a threshold is set and then lowers `noted`.
 * So the last one of them to act leaves `noted` no greater than the threshold,
 * and a write that has hidden it from others for a moment tells of itself.
 */
#include <stdatomic.h>

#include "core/graph-priv.h"
#include "nbdelta/graph.h"

static void raise_to(_Atomic uint64_t *x, uint64_t to)
{
    uint64_t old = atomic_load(x);

    while (old < to && !atomic_compare_exchange_weak(x, &old, to)) {
    }
}

static void lower_to(_Atomic uint64_t *x, uint64_t to)
{
    uint64_t old = atomic_load(x);

    while (old > to && !atomic_compare_exchange_weak(x, &old, to)) {
    }
}

void node_note_write_past(struct node *n, uint64_t end)
{
    const struct graph *g = n->graph;

    raise_to(&n->highest, end);
    raise_to(&n->noted, end);
    uint64_t threshold = atomic_load(&n->threshold);
    if (threshold == 0) {
        return;
    }
    lower_to(&n->noted, threshold);
    /* Of several writes that go past it at the same time one tells. */
    if (end > threshold &&
        atomic_compare_exchange_strong(&n->threshold, &threshold, 0) &&
        g->on_threshold) {
        g->on_threshold(node_name(n), threshold, end - threshold,
                        g->threshold_opaque);
    }
}

void node_set_threshold(struct node *n, uint64_t threshold)
{
    atomic_store(&n->threshold, threshold);
    if (threshold > 0) {
        lower_to(&n->noted, threshold);
    }
}

void graph_on_threshold(struct graph *g, threshold_fn *fn, void *opaque)
{
    g->on_threshold = fn;
    g->threshold_opaque = opaque;
}
