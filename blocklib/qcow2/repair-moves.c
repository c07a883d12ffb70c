/* SPDX-License-Identifier: BSD-3-Clause */
/* What a repair copies to another place: a list that is sorted now and then, so
 * that many entries that lead to one place take no more than one. */
#include <errno.h>
#include <stdlib.h>

#include "qcow2/repair.h"

/* So many are added before they are sorted. */
#define UNSORTED_MAX 65536

static int by_key(const void *a, const void *b)
{
    const struct qcow2_move *x = a;
    const struct qcow2_move *y = b;

    return x->of != y->of ? (x->of > y->of ? 1 : -1)
                          : (x->key > y->key) - (x->key < y->key);
}

void qcow2_moves_sort(struct qcow2_moves *m)
{
    size_t kept = 0;

    if (m->count == 0) {
        return;
    }
    qsort(m->all, m->count, sizeof(*m->all), by_key);
    for (size_t i = 1; i < m->count; i++) {
        struct qcow2_move *last = &m->all[kept];
        const struct qcow2_move *next = &m->all[i];

        if (by_key(last, next) == 0) {
            last->times += next->times;
            last->bytes = max_u64(last->bytes, next->bytes);
        } else {
            m->all[++kept] = *next;
        }
    }
    m->count = m->sorted = kept + 1;
}

int qcow2_moves_add(struct qcow2_moves *m, const struct qcow2_move *move)
{
    if (m->count - m->sorted == UNSORTED_MAX) {
        qcow2_moves_sort(m);
    }
    if (m->count == m->room) {
        size_t room = m->room ? m->room * 2 : 64;
        struct qcow2_move *more = realloc(m->all, room * sizeof(*more));

        if (!more) {
            return -ENOMEM;
        }
        m->all = more;
        m->room = room;
    }
    m->all[m->count++] = *move;
    return 0;
}

const struct qcow2_move *qcow2_moves_find(const struct qcow2_moves *m,
                                          enum qcow2_movers of, uint64_t key)
{
    const struct qcow2_move wanted = {.of = of, .key = key};

    return m->count > 0
               ? bsearch(&wanted, m->all, m->count, sizeof(*m->all), by_key)
               : NULL;
}
