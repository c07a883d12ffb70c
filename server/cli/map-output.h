/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_MAP_OUTPUT_H
#define NBDELTA_SERVER_CLI_MAP_OUTPUT_H

/*
 * What `nbdelta map` prints
 * =========================
 *
 *     runs, from the disk's start to its end -> joined -> text or JSON
 *                                            -> cells  -> a picture
 *
 * Neighbours that are alike become one line.
 */
#include <stdbool.h>
#include <stdint.h>

struct error;
struct picture;

enum map_format {
    MAP_HUMAN,
    MAP_JSON,
    MAP_PICTURE, /* with colours where they can be seen */
    MAP_ANSI,    /* with colours */
    MAP_SVG,
};

/* The format of this word.  False: there is none. */
bool map_format_parse(const char *word, enum map_format *format);

struct map_run {
    uint64_t start;
    uint64_t length;
    unsigned flags; /* enum extent_flags */
    unsigned depth;
    uint64_t host;
    const char *file; /* or NULL */
    bool dirty;       /* of a bitmap's runs, and nothing else counts */
};

struct map {
    /* Set by the caller. */
    enum map_format format;
    unsigned rows;      /* of a picture; 0: as many as it has by itself */
    const char *disk;   /* its name */
    const char *bitmap; /* whose runs come; of a picture, after the others */
    bool uri;           /* nothing is known of files */

    /* Private; zeroes at first. */
    struct picture *picture;
    bool bits;           /* the runs are now those of the bitmap */
    struct map_run last; /* not printed yet, when its length is not 0 */
    char *last_file;     /* its own copy */
    bool any;            /* something is printed */
};

/* Is it a picture: does it have the disk's runs beside those of a bitmap? */
bool map_is_picture(const struct map *m);

/* Runs will come of a disk of @size bytes.  -ENOMEM. */
int map_begin(struct map *m, uint64_t size, struct error **errp);

/* From now on runs are those of the bitmap. */
void map_begin_bits(struct map *m);

/* -ENOMEM; -EIO: standard output cannot be written. */
int map_add(struct map *m, const struct map_run *r);

/* Print what is left. */
void map_end(struct map *m);

/* Free what is in @m. */
void map_release(struct map *m);

#endif /* NBDELTA_SERVER_CLI_MAP_OUTPUT_H */
