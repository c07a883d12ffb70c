/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_MEASURE_H
#define NBDELTA_CORE_MEASURE_H

/* What a driver may ask about the disk that a new image shall have. */
#include "nbdelta/bitmap.h"

struct measure_source {
    struct blk *disk;
    bool keeps_bitmaps;         /* its image could have persistent bitmaps, */
    struct bitmap_list bitmaps; /* and these are all bitmaps of the disk */
};

/* Bytes in units of @unit bytes that have data, in one layer or another. */
int image_measure_data(const struct measure_source *source, uint64_t unit,
                       uint64_t *bytes, struct error **errp);

#endif /* NBDELTA_CORE_MEASURE_H */
