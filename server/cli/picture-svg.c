/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A picture as one SVG file: see picture.h.
 *
 *     title, offsets of rows | cells: a path for each kind, in which neighbours
 *                            | are one rectangle; above them the dirty ones
 *     legend: a square, the word, the size, the share
 *
 * It names no other file, has no script, and is readable without its colours:
 * kinds differ in brightness, what is dirty is hatched over its kind.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/picture-priv.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/size.h"
#include "nbdelta/text.h"

/* Lengths are pixels. */
#define CELL_WIDTH  6
#define CELL_HEIGHT 10
#define LEFT        80 /* of the cells */
#define TOP         44
#define MARGIN      16
#define LINE        18 /* of the legend */
#define WIDTH_MIN   560

static const char *const kind_classes[PICTURE_KINDS] = {
    [PICTURE_DATA] = "data",     [PICTURE_COMPRESSED] = "packed",
    [PICTURE_BACKING] = "below", [PICTURE_ZERO] = "zero",
    [PICTURE_HOLE] = "hole",
};

static const char style[] =
    "<style>\n"
    "text { font: 11px monospace; fill: #222 }\n"
    "text.head { font-size: 12px }\n"
    ".paper { fill: #fff }\n"
    ".data { fill: #1b6e3c }\n"
    ".packed { fill: #2f9fa8 }\n"
    ".below { fill: #6f9be8 }\n"
    ".zero { fill: #e6cf7a }\n"
    ".hole { fill: #ececec }\n"
    ".dirty { fill: url(#dense) }\n"
    ".partly { fill: url(#sparse) }\n"
    "</style>\n"
    "<defs>\n"
    "<pattern id=\"dense\" width=\"4\" height=\"4\" "
    "patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">"
    "<rect width=\"3\" height=\"4\" fill=\"#c4161c\"/></pattern>\n"
    "<pattern id=\"sparse\" width=\"5\" height=\"5\" "
    "patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">"
    "<rect width=\"2\" height=\"5\" fill=\"#c4161c\"/></pattern>\n"
    "</defs>\n";

/* XML has no U+FFFE and U+FFFF; text_printable has replaced control
 * characters. */
static void print_escaped(const char *text, FILE *f)
{
    uint32_t code;

    for (size_t len; *text; text += len) {
        len = text_char(text, &code);
        if (len == 0 || code == 0xfffe || code == 0xffff) {
            (void)fputc('?', f);
            len = len > 0 ? len : 1;
        } else if (strchr("&<>\"'", *text)) {
            (void)fprintf(f, "&#%d;", *text);
        } else {
            (void)fwrite(text, 1, len, f);
        }
    }
}

static void print_name(const char *name, FILE *f)
{
    CLEANUP_FREE char *shown = picture_name(name);

    print_escaped(shown ? shown : "?", f);
}

/* --- Texts for those who hear it --- */

static void print_sum(const struct picture *p, const char *word, uint64_t bytes,
                      FILE *f)
{
    char size[32];
    char share[PICTURE_SHARE_MAX];

    (void)fprintf(f, "%s: %s, ", word, size_human(bytes, size, sizeof(size)));
    print_escaped(picture_share(p, bytes, share), f);
}

static void print_dirty(const struct picture *p, const char *bitmap, FILE *f)
{
    print_sum(p, "dirty", p->total.dirty, f);
    (void)fputs(" (bitmap ", f);
    print_name(bitmap, f);
    (void)fputc(')', f);
}

static void print_title(const struct picture *p, const struct picture_text *t,
                        FILE *f)
{
    char size[32];
    char cell[32];

    print_name(t->disk, f);
    (void)fprintf(f, ": %s, %s for each cell",
                  size_human(p->size, size, sizeof(size)),
                  size_human(p->cell_bytes, cell, sizeof(cell)));
}

static void print_description(const struct picture *p,
                              const struct picture_text *t, FILE *f)
{
    (void)fputs("<desc id=\"desc\">What the disk has, from its start at the "
                "top left to its end at the bottom right.",
                f);
    for (unsigned k = 0; k < PICTURE_KINDS; k++) {
        if (p->total.bytes[k] > 0) {
            (void)fputc(' ', f);
            print_sum(p, picture_kind_words[k], p->total.bytes[k], f);
            (void)fputc('.', f);
        }
    }
    if (t->bitmap) {
        (void)fputc(' ', f);
        print_dirty(p, t->bitmap, f);
        (void)fputc('.', f);
    }
    (void)fputs("</desc>\n", f);
}

/* --- Cells --- */

/* Does the cell belong to this path? */
typedef bool cell_fn(const struct picture *p, size_t index, unsigned which);

static bool has_kind(const struct picture *p, size_t index, unsigned which)
{
    return (unsigned)cell_kind(&p->cells[index]) == which;
}

static bool has_dirt(const struct picture *p, size_t index, unsigned which)
{
    return (unsigned)cell_dirt(p, index) == which;
}

/* A rectangle for each run of such cells in a row. */
static void print_path(const struct picture *p, const char *class, cell_fn *fn,
                       unsigned which, FILE *f)
{
    bool begun = false;

    for (size_t i = 0; i < p->count;) {
        size_t row = i / p->columns;
        size_t first = i;

        while (i < p->count && i / p->columns == row && fn(p, i, which)) {
            i++;
        }
        if (i == first) {
            i++;
            continue;
        }
        if (!begun) {
            (void)fprintf(f, "<path class=\"%s\" d=\"", class);
            begun = true;
        }
        size_t width = (i - first) * CELL_WIDTH;
        (void)fprintf(f, "M%zu %zuh%zuv%dh-%zuz\n",
                      LEFT + first % p->columns * CELL_WIDTH,
                      TOP + row * CELL_HEIGHT, width, CELL_HEIGHT, width);
    }
    (void)fputs(begun ? "\"/>\n" : "", f);
}

static void print_cells(const struct picture *p, FILE *f)
{
    for (unsigned k = 0; k < PICTURE_KINDS; k++) {
        print_path(p, kind_classes[k], has_kind, k, f);
    }
    print_path(p, "partly", has_dirt, CELL_PARTLY_DIRTY, f);
    print_path(p, "dirty", has_dirt, CELL_DIRTY, f);
}

static void print_offsets(const struct picture *p, size_t rows, FILE *f)
{
    char offset[32];

    for (size_t row = 0; row < rows; row += 2) {
        uint64_t start = (uint64_t)row * p->columns * p->cell_bytes;

        (void)fprintf(f,
                      "<text x=\"%d\" y=\"%zu\" text-anchor=\"end\">%s</text>"
                      "\n",
                      LEFT - 8, TOP + row * CELL_HEIGHT + CELL_HEIGHT - 1,
                      size_human(start, offset, sizeof(offset)));
    }
}

/* --- Legend --- */

static void print_square(const char *class, unsigned y, FILE *f)
{
    (void)fprintf(f,
                  "<rect class=\"%s\" x=\"%d\" y=\"%u\" width=\"12\" "
                  "height=\"12\"/>\n<text x=\"%d\" y=\"%u\">",
                  class, LEFT, y, LEFT + 20, y + 10);
}

/* Its height, without printing if @f is NULL. */
static unsigned print_legend(const struct picture *p, const char *bitmap,
                             unsigned top, FILE *f)
{
    unsigned y = top;

    for (unsigned k = 0; k < PICTURE_KINDS; k++) {
        if (p->total.bytes[k] == 0) {
            continue;
        }
        if (f) {
            print_square(kind_classes[k], y, f);
            print_sum(p, picture_kind_words[k], p->total.bytes[k], f);
            (void)fputs("</text>\n", f);
        }
        y += LINE;
    }
    if (bitmap) {
        if (f) {
            print_square("dirty", y, f);
            print_dirty(p, bitmap, f);
            (void)fputs("</text>\n", f);
        }
        y += LINE;
    }
    if (picture_has_dirt(p, CELL_PARTLY_DIRTY)) {
        if (f) {
            print_square("partly", y, f);
            (void)fputs("less than half is dirty</text>\n", f);
        }
        y += LINE;
    }
    return y - top;
}

void picture_print_svg(const struct picture *p, const struct picture_text *t,
                       FILE *f)
{
    size_t rows = (p->count + p->columns - 1) / p->columns;
    unsigned below = TOP + (unsigned)rows * CELL_HEIGHT + MARGIN;
    unsigned height = below + print_legend(p, t->bitmap, below, NULL) + MARGIN;
    unsigned width = LEFT + p->columns * CELL_WIDTH + MARGIN;

    width = width < WIDTH_MIN ? WIDTH_MIN : width;
    (void)fprintf(f,
                  "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                  "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" "
                  "aria-labelledby=\"title desc\" width=\"%u\" height=\"%u\" "
                  "viewBox=\"0 0 %u %u\">\n<title id=\"title\">",
                  width, height, width, height);
    print_title(p, t, f);
    (void)fputs("</title>\n", f);
    print_description(p, t, f);
    (void)fprintf(f,
                  "%s<rect class=\"paper\" width=\"%u\" height=\"%u\"/>\n"
                  "<text class=\"head\" x=\"%d\" y=\"26\">",
                  style, width, height, MARGIN);
    print_title(p, t, f);
    (void)fputs("</text>\n", f);
    print_offsets(p, rows, f);
    print_cells(p, f);
    (void)print_legend(p, t->bitmap, below, f);
    (void)fputs("</svg>\n", f);
}
