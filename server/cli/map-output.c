/* SPDX-License-Identifier: BSD-3-Clause */
/* What `nbdelta map` prints: see map-output.h. */
#include "cli/map-output.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/picture.h"
#include "cli/terminal.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"
#include "nbdelta/types.h"

#define ROWS        16
#define SVG_ROWS    32
#define SVG_COLUMNS 128

bool map_format_parse(const char *word, enum map_format *format)
{
    static const char *const words[] = {"human", "json", "picture", "ansi",
                                        "svg"};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        if (strcmp(words[i], word) == 0) {
            *format = (enum map_format)i;
            return true;
        }
    }
    return false;
}

bool map_is_picture(const struct map *m)
{
    return m->format >= MAP_PICTURE;
}

/* --- Lines --- */

static const char *yes_no(bool b)
{
    return b ? "true" : "false";
}

static void print_json(const struct map *m, const struct map_run *r)
{
    printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64,
           m->any ? ",\n" : "[", r->start, r->length);
    if (m->bits) {
        printf(", \"dirty\": %s}", yes_no(r->dirty));
        return;
    }
    printf(", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s, "
           "\"compressed\": %s",
           r->depth, yes_no(r->flags & EXTENT_ALLOCATED),
           yes_no(r->flags & EXTENT_ZERO), yes_no(r->flags & EXTENT_DATA),
           yes_no(r->flags & EXTENT_COMPRESSED));
    if (r->flags & EXTENT_HOST_VALID) {
        printf(", \"offset\": %" PRIu64, r->host);
    }
    putchar('}');
}

static const char *kind(const struct map_run *r)
{
    if (r->flags & EXTENT_COMPRESSED) {
        return "compressed";
    }
    if (r->flags & EXTENT_DATA) {
        return r->flags & EXTENT_ZERO ? "zero,allocated" : "data";
    }
    return r->flags & EXTENT_ZERO ? "zero" : "hole";
}

static void print_human(const struct map *m, const struct map_run *r)
{
    if (m->bits) {
        if (!m->any) {
            printf("%14s %14s  %s\n", "Start", "Length", "State");
        }
        printf("%14" PRIu64 " %14" PRIu64 "  %s\n", r->start, r->length,
               r->dirty ? "dirty" : "clean");
        return;
    }
    if (!m->any) {
        printf("%14s %14s  %s\n", "Start", "Length",
               m->uri ? "Kind" : "Kind           Depth  Mapped to       File");
    }
    printf("%14" PRIu64 " %14" PRIu64 "  ", r->start, r->length);
    if (m->uri) {
        printf("%s\n", kind(r));
    } else if (r->flags & EXTENT_HOST_VALID) {
        CLEANUP_FREE char *file = text_printable(r->file ? r->file : "");
        printf("%-14s %5u  %#-14" PRIx64 "  %s\n", kind(r), r->depth, r->host,
               file ? file : "?");
    } else if (r->flags & EXTENT_ALLOCATED) {
        printf("%-14s %5u\n", kind(r), r->depth);
    } else {
        printf("%-14s     -\n", kind(r));
    }
}

static void print_last(struct map *m)
{
    if (m->last.length > 0) {
        if (m->format == MAP_JSON) {
            print_json(m, &m->last);
        } else {
            print_human(m, &m->last);
        }
        m->any = true;
    }
    free(m->last_file);
    m->last_file = NULL;
    m->last = (struct map_run){.length = 0};
}

static bool is_same_file(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

static bool joins(const struct map_run *a, const struct map_run *b)
{
    if (a->length == 0 || a->start + a->length != b->start ||
        a->dirty != b->dirty || a->flags != b->flags || a->depth != b->depth) {
        return false;
    }
    return !(a->flags & EXTENT_HOST_VALID) ||
           (a->host + a->length == b->host && is_same_file(a->file, b->file));
}

static int join_run(struct map *m, const struct map_run *r)
{
    if (joins(&m->last, r)) {
        m->last.length += r->length;
        return 0;
    }
    print_last(m);
    m->last = *r;
    if (r->file) {
        m->last.file = m->last_file = strdup(r->file);
        if (!m->last_file) {
            return -ENOMEM;
        }
    }
    return ferror(stdout) ? -EIO : 0;
}

/* --- Pictures --- */

static enum picture_kind picture_kind(const struct map_run *r)
{
    if (r->flags & EXTENT_ZERO) {
        return r->flags & EXTENT_ALLOCATED ? PICTURE_ZERO : PICTURE_HOLE;
    }
    if (!(r->flags & (EXTENT_DATA | EXTENT_COMPRESSED))) {
        return PICTURE_HOLE;
    }
    return r->depth > 0                   ? PICTURE_BACKING
           : r->flags & EXTENT_COMPRESSED ? PICTURE_COMPRESSED
                                          : PICTURE_DATA;
}

static void draw(struct map *m, const struct map_run *r)
{
    if (!m->bits) {
        picture_add(m->picture, r->start, r->length, picture_kind(r));
    } else if (r->dirty) {
        picture_dirty(m->picture, r->start, r->length);
    }
}

static void print_picture(const struct map *m)
{
    struct picture_text text = {.disk = m->disk, .bitmap = m->bitmap};

    if (m->format == MAP_SVG) {
        picture_print_svg(m->picture, &text, stdout);
    } else {
        picture_print(m->picture, &text,
                      m->format == MAP_ANSI || terminal_colours(), stdout);
    }
}

/* --- All of it --- */

int map_begin(struct map *m, uint64_t size, struct error **errp)
{
    bool svg = m->format == MAP_SVG;

    m->bits = m->bitmap && !map_is_picture(m);
    if (!map_is_picture(m)) {
        return 0;
    }
    m->picture = picture_new(
        size, svg ? SVG_COLUMNS : picture_columns(terminal_columns()),
        m->rows > 0 ? m->rows
        : svg       ? SVG_ROWS
                    : ROWS);
    return m->picture ? 0 : error_nomem(errp);
}

void map_begin_bits(struct map *m)
{
    m->bits = true;
}

int map_add(struct map *m, const struct map_run *r)
{
    if (m->picture) {
        draw(m, r);
        return 0;
    }
    return join_run(m, r);
}

void map_end(struct map *m)
{
    if (m->picture) {
        print_picture(m);
        return;
    }
    print_last(m);
    if (m->format == MAP_JSON) {
        puts(m->any ? "]" : "[]");
    }
}

void map_release(struct map *m)
{
    free(m->last_file);
    picture_free(m->picture);
}
