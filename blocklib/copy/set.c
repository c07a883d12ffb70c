/* SPDX-License-Identifier: BSD-3-Clause */
/* Sets of clusters: see set.h. */
#include "copy/set.h"

#include "nbdelta/bytes.h"

/* The next run of the base in [@from, @end). */
static bool next_of_base(const struct copy_set *s, uint64_t from, uint64_t end,
                         uint64_t *start, uint64_t *bytes)
{
    *start = from;
    *bytes = end - from;
    return from < end &&
           (!s->base || hbitmap_next_dirty(s->base, from, end, start, bytes));
}

bool copy_set_next(const struct copy_set *s, uint64_t from, uint64_t end,
                   uint64_t *start, uint64_t *bytes)
{
    while (next_of_base(s, from, end, start, bytes)) {
        uint64_t run_end = *start + *bytes;
        bool gone = false;
        uint64_t len = s->gone ? hbitmap_run(s->gone, *start, run_end, &gone)
                               : *bytes;

        if (!gone) {
            *bytes = len;
            return true;
        }
        from = *start + len;
    }
    return false;
}

uint64_t copy_set_run(const struct copy_set *s, uint64_t offset, uint64_t end,
                      bool *in)
{
    uint64_t len = end - offset;
    bool gone = false;

    *in = true;
    if (s->base) {
        len = hbitmap_run(s->base, offset, end, in);
    }
    if (*in && s->gone) {
        len = hbitmap_run(s->gone, offset, offset + len, &gone);
        *in = !gone;
    }
    return len;
}

void copy_set_take(const struct copy_set *s, uint64_t offset, uint64_t bytes)
{
    if (s->gone) {
        hbitmap_set(s->gone, offset, bytes);
    } else {
        hbitmap_reset(s->base, offset, bytes);
    }
}

/* The same of the base. */
static uint64_t count_base(const struct hbitmap *base, uint64_t size,
                           uint64_t cluster)
{
    uint64_t past = align_up(size, hbitmap_granularity(base)) -
                    align_up(size, cluster);
    bool last = past > 0 && hbitmap_get(base, size - 1);

    return hbitmap_count(base) - (last ? past : 0);
}

uint64_t copy_set_count(const struct copy_set *s, uint64_t size,
                        uint64_t cluster)
{
    uint64_t had = s->base ? count_base(s->base, size, cluster)
                           : align_up(size, cluster);

    return had - min_u64(had, s->gone ? hbitmap_count(s->gone) : 0);
}
