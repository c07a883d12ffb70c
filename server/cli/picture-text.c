/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A picture as text: see picture.h.
 *
 *     disk.qcow2: 64 MiB, 64 KiB for each character
 *
 *           0 B  ######dd......
 *         4 MiB  ..DD0000
 *
 *     #  data      ...
 *
 * Each kind has its own character, so that nothing depends on the colours.
 */
#include <stdlib.h>

#include "cli/picture-priv.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/size.h"

#define LABEL 11 /* characters before a row */
#define SHAPE 16 /* columns are a multiple of it, where there is room */

struct look {
    char mark;
    const char *colour; /* of SGR */
};

static const struct look kind_looks[PICTURE_KINDS] = {
    [PICTURE_DATA] = {'#', "32"},    [PICTURE_COMPRESSED] = {'%', "36"},
    [PICTURE_BACKING] = {'=', "34"}, [PICTURE_ZERO] = {'0', "33"},
    [PICTURE_HOLE] = {'.', "90"},
};
static const struct look dirty_look = {'D', "1;31"};
static const struct look partly_look = {'d', "35"};

unsigned picture_columns(unsigned width)
{
    unsigned left = width > LABEL + 1 ? width - LABEL - 1 : 1;

    return left > SHAPE ? left - left % SHAPE : left;
}

static const struct look *look_of(const struct picture *p, size_t index)
{
    switch (cell_dirt(p, index)) {
    case CELL_DIRTY:
        return &dirty_look;
    case CELL_PARTLY_DIRTY:
        return &partly_look;
    default:
        return &kind_looks[cell_kind(&p->cells[index])];
    }
}

static void print_row(const struct picture *p, size_t first, bool colours,
                      FILE *f)
{
    const struct look *last = NULL;
    char offset[32];

    (void)fprintf(f, "%9s  ",
                  size_human(first * p->cell_bytes, offset, sizeof(offset)));
    for (size_t i = first; i < p->count && i < first + p->columns; i++) {
        const struct look *look = look_of(p, i);

        if (colours && look != last) {
            (void)fprintf(f, "\033[0;%sm", look->colour);
        }
        (void)fputc(look->mark, f);
        last = look;
    }
    (void)fputs(colours ? "\033[0m\n" : "\n", f);
}

static void print_mark(const struct look *look, bool colours, FILE *f)
{
    if (colours) {
        (void)fprintf(f, "\033[0;%sm%c\033[0m  ", look->colour, look->mark);
    } else {
        (void)fprintf(f, "%c  ", look->mark);
    }
}

static void print_sum(const struct picture *p, const char *word, uint64_t bytes,
                      FILE *f)
{
    char size[32];
    char share[PICTURE_SHARE_MAX];

    (void)fprintf(f, "%-20s  %9s  %8s\n", word,
                  size_human(bytes, size, sizeof(size)),
                  picture_share(p, bytes, share));
}

static void print_legend(const struct picture *p, const char *bitmap,
                         bool colours, FILE *f)
{
    for (unsigned k = 0; k < PICTURE_KINDS; k++) {
        if (p->total.bytes[k] > 0) {
            print_mark(&kind_looks[k], colours, f);
            print_sum(p, picture_kind_words[k], p->total.bytes[k], f);
        }
    }
    if (bitmap) {
        print_mark(&dirty_look, colours, f);
        print_sum(p, "dirty", p->total.dirty, f);
    }
    if (picture_has_dirt(p, CELL_PARTLY_DIRTY)) {
        print_mark(&partly_look, colours, f);
        (void)fputs("less than half is dirty\n", f);
    }
}

void picture_print(const struct picture *p, const struct picture_text *t,
                   bool colours, FILE *f)
{
    CLEANUP_FREE char *disk = picture_name(t->disk);
    CLEANUP_FREE char *bitmap = t->bitmap ? picture_name(t->bitmap) : NULL;
    char size[32];
    char cell[32];

    (void)fprintf(f, "%s: %s, %s for each character\n", disk ? disk : "?",
                  size_human(p->size, size, sizeof(size)),
                  size_human(p->cell_bytes, cell, sizeof(cell)));
    if (t->bitmap) {
        (void)fprintf(f, "Bitmap: %s\n", bitmap ? bitmap : "?");
    }
    (void)fputc('\n', f);
    for (size_t i = 0; i < p->count; i += p->columns) {
        print_row(p, i, colours, f);
    }
    (void)fputs(p->count > 0 ? "\n" : "", f);
    print_legend(p, t->bitmap, colours, f);
}
