/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_VERIFY_PRIV_H
#define NBDELTA_SERVER_STORE_VERIFY_PRIV_H

/* Shared by verify.c (points) and verify-file.c (one file). */
#include "nbdelta/bytes.h"
#include "store/store.h"
#include "store/verify.h"

struct verify {
    struct store *store;
    const struct verify_options *options;
    struct verify_result *result;
    json_t *found; /* in the point that is being verified */
};

/* Tell of damage, and keep it for the note.  -EUCLEAN; -ENOMEM. */
int verify_tell(struct verify *v, const char *point, const char *disk,
                uint64_t offset, uint64_t bytes, const char *what);

/* One file.  -EUCLEAN: damage was told. */
int verify_file(struct verify *v, const char *point,
                const struct manifest_disk *d, struct error **errp);

/* The tables of its image.  -EUCLEAN: they are damaged, in words.  Memory: 2
 * bytes for each cluster of the file. */
int verify_tables(struct verify *v, const char *point, const char *disk,
                  struct error **errp);

/* What a file counts in the progress. */
static inline uint64_t verify_weight(const struct manifest_disk *d)
{
    return min_u64(min_u64(d->written, d->size) + MiB, INT64_MAX);
}

static inline bool verify_stopped(const struct verify *v)
{
    return v->options->stop && *v->options->stop;
}

#endif /* NBDELTA_SERVER_STORE_VERIFY_PRIV_H */
