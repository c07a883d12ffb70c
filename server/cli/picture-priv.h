/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_PICTURE_PRIV_H
#define NBDELTA_SERVER_CLI_PICTURE_PRIV_H

/* The cells of a picture, for what draws them (picture.h). */
#include <stddef.h>

#include "cli/picture.h"

struct cell {
    uint64_t bytes[PICTURE_KINDS];
    uint64_t dirty;
};

struct picture {
    uint64_t size;       /* of the disk */
    uint64_t cell_bytes; /* the last cell can be shorter */
    unsigned columns;
    size_t count; /* of cells; the last row need not be full */
    struct cell total;
    struct cell cells[];
};

enum cell_dirt {
    CELL_CLEAN,
    CELL_PARTLY_DIRTY, /* less than half of it */
    CELL_DIRTY,
};

/* What a cell shows.  The first of the kinds that have the most bytes. */
enum picture_kind cell_kind(const struct cell *c);
enum cell_dirt cell_dirt(const struct picture *p, size_t index);
bool picture_has_dirt(const struct picture *p, enum cell_dirt dirt);

/* What a legend calls it. */
extern const char *const picture_kind_words[PICTURE_KINDS];

#define PICTURE_SHARE_MAX 16

/* "12.5 %" of the disk.  Returns @buf, of PICTURE_SHARE_MAX bytes. */
const char *picture_share(const struct picture *p, uint64_t bytes, char *buf);

/* A printable copy of a name, at most 80 characters, with "..." where it is
 * cut.  Free the result; NULL: no memory. */
char *picture_name(const char *name);

#endif /* NBDELTA_SERVER_CLI_PICTURE_PRIV_H */
