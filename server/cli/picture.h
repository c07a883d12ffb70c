/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_PICTURE_H
#define NBDELTA_SERVER_CLI_PICTURE_H

/*
 * A picture of a disk
 * ===================
 *
 *     ranges, any number of them  ->  cells, at most rows x columns  ->  text
 *                                                                        SVG
 *
 * All cells but the last have the same size.  A cell counts the bytes of each
 * kind, and shows the kind that most of its bytes have.  Memory depends on the
 * number of cells alone, and so does the size of what is printed.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum picture_kind {
    PICTURE_DATA,
    PICTURE_COMPRESSED,
    PICTURE_BACKING, /* data of a backing file */
    PICTURE_ZERO,
    PICTURE_HOLE, /* not allocated */
    PICTURE_KINDS
};

/* What the picture is of. */
struct picture_text {
    const char *disk;   /* its name, any bytes */
    const char *bitmap; /* the name, or NULL: picture_dirty is not called */
};

#define PICTURE_ROWS_MAX    200
#define PICTURE_COLUMNS_MAX 512

/* Of a disk of @size bytes.  NULL: no memory. */
struct picture *picture_new(uint64_t size, unsigned columns, unsigned rows);
void picture_free(struct picture *p); /* NULL is fine */

/* The range is of that kind; it is dirty.  What is outside of the disk does not
 * count.  No range comes twice. */
void picture_add(struct picture *p, uint64_t start, uint64_t length,
                 enum picture_kind kind);
void picture_dirty(struct picture *p, uint64_t start, uint64_t length);

/* How many columns there are in a picture of text with lines of @width. */
unsigned picture_columns(unsigned width);

/* Print it as lines of text, with the colours of a terminal or without. */
void picture_print(const struct picture *p, const struct picture_text *t,
                   bool colours, FILE *f);

/* Print it as one SVG file. */
void picture_print_svg(const struct picture *p, const struct picture_text *t,
                       FILE *f);

#endif /* NBDELTA_SERVER_CLI_PICTURE_H */
