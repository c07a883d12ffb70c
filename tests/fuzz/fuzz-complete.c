/* SPDX-License-Identifier: BSD-3-Clause */

/* A line of bash as it is typed.  What takes the place of its last piece is
 * read back as the word that it stands for; no word leads the search for its
 * place astray. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "complete/line.h"
#include "complete/place.h"
#include "nbdelta/cleanup.h"

#define BREAKS " \t\n\"'@><=;|&(:"

static const struct cli_option options[] = {
    {"format", 'f', "FORMAT", ""},
    {"force", 'F', NULL, ""},
    {"wait", 'w', "[=ready|end]", ""},
    {NULL, 0, NULL, NULL},
};
static const struct cli_command command = {
    .name = "test",
    .options = options,
    .operands = "[add|remove] IMAGE|URI BITMAP...",
};

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

/* The last word, put in its own place. */
static void check_put(const struct line *l)
{
    const char *word = l->words[l->count - 1];
    CLEANUP_FREE char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    struct line again;

    if (!f) {
        return;
    }
    (void)fprintf(f, "x %.1s", (char[]){l->quote, '\0'});
    bool put = line_put(l, word, f);
    (void)fprintf(f, "%.1s", (char[]){l->quote, '\0'});
    if (fclose(f) == 0 && put && line_split(&again, text, BREAKS) == 0) {
        check(again.count == 2 && !again.quote && !again.unknown);
        check(strcmp(again.words[1], word + l->skip) == 0);
        line_free(&again);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_FREE char *text = strndup((const char *)data, size);
    struct place p;
    struct line l;

    if (!text || line_split(&l, text, BREAKS) < 0) {
        return 0;
    }
    check(l.count > 0 && l.skip <= strlen(l.words[l.count - 1]));
    check_put(&l);
    if (place_find(&p, &command, l.words, l.count) == 0) {
        struct operand_kind kinds[2];

        check(p.head <= strlen(l.words[l.count - 1]));
        check(place_kinds(&p, kinds) > 0);
        (void)place_operand(&p, "BITMAP");
        (void)place_value(&p, "format");
    }
    place_free(&p);
    line_free(&l);
    return 0;
}
